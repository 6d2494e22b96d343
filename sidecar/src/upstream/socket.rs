//! What an upstream is reached over: a socket to it, or a tunnel that an egress proxy opened.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// A connection to an upstream, before TLS with the upstream.
pub(super) struct Socket {
    wire: Wire,
    /// What came right behind an egress proxy's answer, which is the upstream's already.
    early: Bytes,
}

enum Wire {
    Tcp(TcpStream),
    /// TLS with an egress proxy.
    Tls(Box<TlsStream<TcpStream>>),
    /// For tests whose clock stands still, which real sockets do not wait for.
    #[cfg(test)]
    Memory(tokio::io::DuplexStream),
}

impl Socket {
    /// The same connection, with bytes that were read too far given back.
    pub(super) fn with_early(mut self, early: Bytes) -> Self {
        self.early = early;
        self
    }
}

impl From<TcpStream> for Socket {
    fn from(stream: TcpStream) -> Self {
        Wire::Tcp(stream).into()
    }
}

impl From<TlsStream<TcpStream>> for Socket {
    fn from(stream: TlsStream<TcpStream>) -> Self {
        Wire::Tls(Box::new(stream)).into()
    }
}

#[cfg(test)]
impl From<tokio::io::DuplexStream> for Socket {
    fn from(stream: tokio::io::DuplexStream) -> Self {
        Wire::Memory(stream).into()
    }
}

impl From<Wire> for Socket {
    fn from(wire: Wire) -> Self {
        Self {
            wire,
            early: Bytes::new(),
        }
    }
}

/// Calls a method of whatever the bytes travel over.
macro_rules! over {
    ($wire:expr, $stream:ident => $call:expr) => {
        match $wire {
            Wire::Tcp($stream) => $call,
            Wire::Tls($stream) => $call,
            #[cfg(test)]
            Wire::Memory($stream) => $call,
        }
    };
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.early.is_empty() {
            let taken = self.early.len().min(buf.remaining());
            buf.put_slice(&self.early[..taken]);
            self.early.advance(taken);
            return Poll::Ready(Ok(()));
        }
        over!(&mut self.wire, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        over!(&mut self.wire, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        over!(&mut self.wire, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        over!(&self.wire, stream => stream.is_write_vectored())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        over!(&mut self.wire, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        over!(&mut self.wire, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn early_bytes_are_read_first_however_small_the_pieces() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut socket = Socket::from(near).with_early(Bytes::from_static(b"early"));
        far.write_all(b" and late").await.unwrap();
        drop(far);
        let mut read = Vec::new();
        let mut piece = [0; 3];
        loop {
            let length = socket.read(&mut piece).await.unwrap();
            if length == 0 {
                break;
            }
            read.extend_from_slice(&piece[..length]);
        }
        assert_eq!(read, b"early and late");
    }
}
