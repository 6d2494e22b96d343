//! The bytes of an upstream connection, clear or TLS, counted as they arrive.
//!
//! An upstream that refuses an upload often answers and closes at once. The next write then fails while the answer is
//! there to be read; hyper would give up on the connection with the answer unread. So a failed write is kept from it:
//! what follows is dropped, and the next read tells whether there was an answer (RFC 9112 section 9.5).

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::client::TlsStream;

use super::socket::Socket;

/// A connected upstream.
pub(super) struct Stream {
    transport: Transport,
    received: Received,
    /// The peer takes no more bytes.
    deaf: bool,
}

enum Transport {
    Clear(Socket),
    Tls(Box<TlsStream<Socket>>),
}

/// How many bytes of plain text came in so far. Tells whether an answer had begun when a connection ended.
#[derive(Clone, Debug, Default)]
pub(super) struct Received(Arc<AtomicU64>);

impl Received {
    pub(super) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn add(&self, bytes: usize) {
        // Only the connection's own task writes, so two plain accesses do.
        let total = self.bytes().wrapping_add(bytes as u64);
        self.0.store(total, Ordering::Relaxed);
    }
}

impl Stream {
    pub(super) fn received(&self) -> Received {
        self.received.clone()
    }
}

impl From<Socket> for Stream {
    fn from(stream: Socket) -> Self {
        Self {
            transport: Transport::Clear(stream),
            received: Received::default(),
            deaf: false,
        }
    }
}

impl From<TlsStream<Socket>> for Stream {
    fn from(stream: TlsStream<Socket>) -> Self {
        Self {
            transport: Transport::Tls(Box::new(stream)),
            received: Received::default(),
            deaf: false,
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = match &mut self.transport {
            Transport::Clear(stream) => Pin::new(stream).poll_read(cx, buf),
            Transport::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        };
        let read = buf.filled().len() - before;
        if read > 0 {
            self.received.add(read);
        }
        polled
    }
}

impl Stream {
    /// What a write came to, or that all of it is dropped.
    fn hushed<T>(&mut self, wrote: Poll<io::Result<T>>, all: T) -> Poll<io::Result<T>> {
        match wrote {
            Poll::Ready(Err(error)) if is_closed_by_peer(&error) => {
                self.deaf = true;
                Poll::Ready(Ok(all))
            }
            other => other,
        }
    }
}

fn is_closed_by_peer(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    )
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.deaf {
            return Poll::Ready(Ok(buf.len()));
        }
        let wrote = match &mut self.transport {
            Transport::Clear(stream) => Pin::new(stream).poll_write(cx, buf),
            Transport::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        };
        self.hushed(wrote, buf.len())
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all = || bufs.iter().map(|buf| buf.len()).sum();
        if self.deaf {
            return Poll::Ready(Ok(all()));
        }
        let wrote = match &mut self.transport {
            Transport::Clear(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Transport::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        };
        self.hushed(wrote, all())
    }

    fn is_write_vectored(&self) -> bool {
        match &self.transport {
            Transport::Clear(stream) => stream.is_write_vectored(),
            Transport::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.deaf {
            return Poll::Ready(Ok(()));
        }
        let flushed = match &mut self.transport {
            Transport::Clear(stream) => Pin::new(stream).poll_flush(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_flush(cx),
        };
        self.hushed(flushed, ())
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Clear(stream) => Pin::new(stream).poll_shutdown(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
