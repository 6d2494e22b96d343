//! The listeners agents connect to: accept, bound, watch over and drain connections.

pub mod activity;

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderValue, Request};
use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use self::activity::{Activity, Command, Connections, InFlight};
use crate::drain::Watcher;
use crate::error::{Code, ProxyError};
use crate::metrics::{Metrics, Outcome};
use crate::proxy::Proxy;

/// Streams at once on an HTTP/2 connection.
const MAX_STREAMS: u32 = 100;
/// Size of a request's header section, in bytes.
const MAX_HEADER_BYTES: u32 = 64 * 1024;
/// How long the first bytes of a connection may take.
const FIRST_BYTES_LIMIT: Duration = Duration::from_secs(30);
/// How long a connection beyond the bound may take to go.
const REFUSAL_LIMIT: Duration = Duration::from_secs(1);
/// What an HTTP/2 client with prior knowledge begins with (RFC 9113 section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What every connection shares.
#[derive(Clone)]
pub struct Server {
    /// Answers the requests.
    pub proxy: Arc<Proxy>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Connections that are open.
    pub connections: Arc<Connections>,
}

impl Server {
    /// Accepts on one listener until the shutdown starts.
    pub async fn accept(self, listener: TcpListener, mut drain: Watcher) {
        let alive = drain.clone();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = drain.started() => break,
            };
            match accepted {
                Ok((stream, peer)) => {
                    tokio::spawn(self.clone().serve(stream, peer, alive.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    // Out of file descriptors: connections that close bring some back, a busy loop does not.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
        self.connections.drain();
    }

    async fn serve(self, stream: TcpStream, peer: SocketAddr, mut alive: Watcher) {
        let Some(registered) = self.connections.register() else {
            let overloaded = Outcome::Error(Code::Overloaded);
            self.metrics.unrouted().record(overloaded);
            refuse(stream).await;
            return;
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY");
        }
        let first = tokio::select! {
            biased;
            first = tokio::time::timeout(FIRST_BYTES_LIMIT, speaks_http2(&stream)) => first,
            // Nothing was asked yet, so there is nothing to finish.
            () = alive.started() => return,
        };
        let Ok(Ok(http2)) = first else { return };
        let activity = registered.activity();
        let io = Watched {
            io: TokioIo::new(stream),
            activity: Arc::clone(activity),
            heads: !http2,
        };
        let proxy = Arc::clone(&self.proxy);
        let counted = Arc::clone(activity);
        let service = service_fn(move |request: Request<Incoming>| {
            let proxy = Arc::clone(&proxy);
            let in_flight = InFlight::new(&counted);
            async move { Ok::<_, Infallible>(proxy.handle(request, in_flight).await) }
        });
        let result = if http2 {
            let connection = http2_builder().serve_connection(io, service);
            supervise(
                pin!(connection),
                http2::Connection::graceful_shutdown,
                activity,
            )
            .await
        } else {
            let connection = http1_builder().serve_connection(io, service);
            supervise(
                pin!(connection),
                http1::Connection::graceful_shutdown,
                activity,
            )
            .await
        };
        if let Err(error) = result {
            if error.is_parse() {
                self.metrics.malformed_requests.inc();
            }
            tracing::debug!(%peer, error = %crate::record::chain(&error), "agent connection ended");
        }
    }
}

fn http1_builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .header_read_timeout(None)
        .max_header_size(MAX_HEADER_BYTES as usize);
    builder
}

fn http2_builder() -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_BYTES)
        .max_pending_accept_reset_streams(20)
        .max_local_error_reset_streams(Some(64))
        .initial_stream_window_size(256 * 1024)
        .initial_connection_window_size(1024 * 1024);
    builder
}

/// Drives a connection and carries out what the watchdog or the shutdown asks of it.
async fn supervise<C>(
    mut connection: Pin<&mut C>,
    shutdown: fn(Pin<&mut C>),
    activity: &Activity,
) -> hyper::Result<()>
where
    C: Future<Output = hyper::Result<()>>,
{
    let (mut attended, mut draining) = (false, false);
    poll_fn(|cx: &mut Context<'_>| {
        if !attended {
            attended = true;
            activity.attend(cx);
        }
        match activity.command() {
            Command::Run => {}
            Command::Drain if draining => {}
            // hyper would wait for the rest of the head, which need not ever come.
            Command::Drain if activity.is_amid_head() => return Poll::Ready(Ok(())),
            Command::Drain => {
                draining = true;
                shutdown(connection.as_mut());
            }
            Command::Close => return Poll::Ready(Ok(())),
        }
        connection.as_mut().poll(cx)
    })
    .await
}

/// Looks at the first bytes without taking them.
async fn speaks_http2(stream: &TcpStream) -> io::Result<bool> {
    let mut first = [0; PREFACE.len()];
    loop {
        let length = stream.peek(&mut first).await?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if first[..length] != PREFACE[..length] {
            return Ok(false);
        }
        if length == PREFACE.len() {
            return Ok(true);
        }
        // The rest of the preface is on its way; peeked bytes keep the socket readable.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Answers a connection beyond the bound, and closes it.
async fn refuse(mut stream: TcpStream) {
    let error = ProxyError::new(
        Code::Overloaded,
        "too many agent connections; reuse connections or close some",
    )
    .retry_after(Duration::from_secs(1));
    let response = error.response(&HeaderValue::from_static("none"), false);
    let mut head = format!("HTTP/1.1 {}\r\nconnection: close\r\n", response.status()).into_bytes();
    for (name, value) in response.headers() {
        head.extend_from_slice(name.as_str().as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    head.extend_from_slice(response.body());
    let told = tokio::time::timeout(REFUSAL_LIMIT, async {
        stream.write_all(&head).await?;
        stream.shutdown().await?;
        // Closing with the request unread would reset the connection, and the answer with it.
        let mut request = [0; 1024];
        while stream.read(&mut request).await? > 0 {}
        io::Result::Ok(())
    });
    if let Ok(Err(error)) = told.await {
        tracing::debug!(%error, "refusing a connection");
    }
}

/// Tells the watchdog what happens on a connection.
struct Watched {
    io: TokioIo<TcpStream>,
    activity: Arc<Activity>,
    /// Bytes outside of a request begin a request's head (HTTP/1.1).
    heads: bool,
}

impl Read for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.io).poll_read(cx, buf);
        if let Poll::Ready(Ok(())) = result {
            self.activity.received(self.heads);
        }
        result
    }
}

impl Write for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }
}
