//! One connection of the API server, from its handshake to its end.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::header::{CONNECTION, HeaderValue};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::server::TlsStream;

use crate::tls::ServingCertificate;

/// How long one request may take; the API server waits 30 s at most for any webhook.
const REQUEST_LIMIT: Duration = Duration::from_secs(30);
/// How long an HTTP/1.1 connection may be idle or amid a head. The API server gives up an idle connection after 90 s;
/// before that, this end must not.
const IDLE_LIMIT: Duration = Duration::from_mins(3);
/// Size of a request's header section, in bytes.
const MAX_HEADER_BYTES: u32 = 32 * 1024;
/// Streams at once on an HTTP/2 connection.
const MAX_STREAMS: u32 = 250;
/// An HTTP/2 peer that is silent for so long is asked whether it is there.
const PING_AFTER: Duration = Duration::from_mins(1);

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    #[error("no handshake within {0:?}")]
    Handshake(Duration),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Http(#[from] hyper::Error),
}

/// What ends a connection: another certificate, the shutdown, or its age.
pub(super) struct Ending {
    changes: watch::Receiver<u64>,
    certificate: u64,
    shutdown: watch::Receiver<bool>,
    age: Instant,
}

impl Ending {
    /// Before the handshake: whatever is published from here on is another certificate than the one shown, or may be.
    pub(super) fn new(
        certificate: &ServingCertificate,
        shutdown: watch::Receiver<bool>,
        age: Duration,
    ) -> Self {
        let changes = certificate.changes();
        let shown = *changes.borrow();
        Self {
            changes,
            certificate: shown,
            shutdown,
            age: Instant::now() + age,
        }
    }

    /// Resolves when the connection is to end.
    async fn comes(mut self) {
        let shown = self.certificate;
        // Whoever publishes goes away with the process only.
        tokio::select! {
            Ok(_) = self.changes.wait_for(|count| *count != shown) => {}
            Ok(_) = self.shutdown.wait_for(|ending| *ending) => {}
            () = sleep_until(self.age) => {}
        }
    }
}

/// Answers what comes on a connection until it ends.
pub(super) async fn serve_connection(
    stream: TlsStream<TcpStream>,
    router: Router,
    ending: Ending,
) -> Result<(), ConnectionError> {
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let io = TokioIo::new(stream);
    let last = Arc::new(AtomicBool::new(false));
    let router = TowerToHyperService::new(router);
    let service = service_fn({
        let last = last.clone();
        move |request: Request<Incoming>| {
            let answer = router.call(request);
            let last = last.clone();
            async move {
                let mut answer = match timeout(REQUEST_LIMIT, answer).await {
                    Ok(answer) => answer?,
                    Err(_) => late(),
                };
                if !http2 && last.load(Ordering::Relaxed) {
                    let close = HeaderValue::from_static("close");
                    answer.headers_mut().insert(CONNECTION, close);
                }
                Ok::<_, std::convert::Infallible>(answer)
            }
        }
    });
    if http2 {
        let connection = http2_builder().serve_connection(io, service);
        let mut connection = pin!(connection);
        supervise(&mut connection, ending, |connection| {
            connection.graceful_shutdown();
        })
        .await?;
    } else {
        let connection = http1_builder().serve_connection(io, service);
        let mut connection = pin!(connection);
        supervise(&mut connection, ending, |_| {
            last.store(true, Ordering::Relaxed);
        })
        .await?;
    }
    Ok(())
}

/// Drives a connection; `end` is called once, when it is to end.
async fn supervise<C: Future<Output = hyper::Result<()>>>(
    connection: &mut Pin<&mut C>,
    ending: Ending,
    end: impl FnOnce(Pin<&mut C>),
) -> hyper::Result<()> {
    tokio::select! {
        result = connection.as_mut() => return result,
        () = ending.comes() => end(connection.as_mut()),
    }
    connection.await
}

fn http1_builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_LIMIT)
        .max_header_size(MAX_HEADER_BYTES as usize);
    builder
}

fn http2_builder() -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_BYTES)
        .keep_alive_interval(PING_AFTER);
    builder
}

fn late() -> Response<Body> {
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = StatusCode::GATEWAY_TIMEOUT;
    answer
}
