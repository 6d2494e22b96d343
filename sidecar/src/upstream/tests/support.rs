//! Servers and requests.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use nexus_crds::matcher::{Upstream, UpstreamProtocol};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;

use crate::upstream::{Pool, SendError, Settings, UpstreamBody, Upstreams};

pub(super) type Body = BoxBody<Bytes, std::io::Error>;

/// Plenty for loopback.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);

pub(super) fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed()
}

pub(super) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed()
}

/// A body that gets its data from a channel, which also tells when it was dropped.
pub(super) fn channel() -> (mpsc::Sender<Bytes>, Body) {
    struct Channel(mpsc::Receiver<Bytes>);
    impl http_body::Body for Channel {
        type Data = Bytes;
        type Error = std::io::Error;
        fn poll_frame(
            mut self: std::pin::Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
            self.0
                .poll_recv(cx)
                .map(|data| data.map(|data| Ok(Frame::data(data))))
        }
    }
    let (sender, receiver) = mpsc::channel(1);
    (sender, Channel(receiver).boxed())
}

/// A body that ends in an error.
pub(super) fn broken() -> Body {
    struct Broken;
    impl http_body::Body for Broken {
        type Data = Bytes;
        type Error = std::io::Error;
        fn poll_frame(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
            std::task::Poll::Ready(Some(Err(std::io::ErrorKind::ConnectionReset.into())))
        }
    }
    Broken.boxed()
}

/// What a server did.
#[derive(Clone)]
pub(super) struct Server {
    pub(super) addr: SocketAddr,
    accepted: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
    drain: watch::Sender<()>,
}

#[derive(Clone, Default)]
pub(super) struct Options {
    pub(super) tls: Option<TlsAcceptor>,
    pub(super) max_streams: Option<u32>,
    /// Pause before a connection is accepted.
    pub(super) accept_after: Duration,
}

impl Server {
    /// Connections accepted so far.
    pub(super) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// Ends every connection gracefully: GOAWAY over HTTP/2.
    pub(super) fn drain(&self) {
        self.drain.send_replace(());
    }

    pub(super) async fn open_connections_become(&self, count: usize) {
        for _ in 0..500 {
            if self.open.load(Ordering::SeqCst) == count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!(
            "{} connections are open, not {count}",
            self.open.load(Ordering::SeqCst)
        );
    }
}

/// Serves both HTTP versions. `answer` gets the number of the connection, from 1.
pub(super) async fn serve<F, R>(options: Options, answer: F) -> Server
where
    F: Fn(usize, Request<Incoming>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Response<Body>> + Send + 'static,
{
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let server = Server {
        addr: listener.local_addr().unwrap(),
        accepted: Arc::default(),
        open: Arc::default(),
        drain: watch::channel(()).0,
    };
    let shared = server.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::time::sleep(options.accept_after).await;
            let number = shared.accepted.fetch_add(1, Ordering::SeqCst) + 1;
            let (shared, answer, options) = (shared.clone(), answer.clone(), options.clone());
            tokio::spawn(async move {
                stream.set_nodelay(true).unwrap();
                shared.open.fetch_add(1, Ordering::SeqCst);
                match &options.tls {
                    None => connection(stream, number, &shared, &options, answer).await,
                    Some(tls) => {
                        if let Ok(stream) = tls.accept(stream).await {
                            connection(stream, number, &shared, &options, answer).await;
                        }
                    }
                }
                shared.open.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    server
}

async fn connection<S, F, R>(
    stream: S,
    number: usize,
    server: &Server,
    options: &Options,
    answer: F,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Fn(usize, Request<Incoming>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Response<Body>> + Send + 'static,
{
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http2().max_concurrent_streams(options.max_streams);
    let service = service_fn(move |request| {
        let answer = answer.clone();
        async move { Ok::<_, std::convert::Infallible>(answer(number, request).await) }
    });
    let serving = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(serving);
    let mut drain = server.drain.subscribe();
    loop {
        tokio::select! {
            _ = &mut serving => return,
            Ok(()) = drain.changed() => serving.as_mut().graceful_shutdown(),
        }
    }
}

/// Answers 200 with the connection's number once the request's body was read.
pub(super) async fn number(number: usize, request: Request<Incoming>) -> Response<Body> {
    request.into_body().collect().await.unwrap();
    Response::new(full(number.to_string()))
}

/// A server that does with each connection what `serve` says.
pub(super) async fn raw<F, R>(serve: F) -> Server
where
    F: Fn(usize, TcpStream) -> R + Send + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let server = Server {
        addr: listener.local_addr().unwrap(),
        accepted: Arc::default(),
        open: Arc::default(),
        drain: watch::channel(()).0,
    };
    let shared = server.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let number = shared.accepted.fetch_add(1, Ordering::SeqCst) + 1;
            tokio::spawn(serve(number, stream));
        }
    });
    server
}

/// Reads a request's head from `stream`, answers `answer`.
pub(super) async fn answer_raw(stream: &mut TcpStream, answer: &[u8]) {
    read_head(stream).await;
    stream.write_all(answer).await.unwrap();
}

pub(super) async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

pub(super) fn upstream(addr: SocketAddr, protocol: UpstreamProtocol) -> Upstream {
    Upstream {
        tls: false,
        host: addr.ip().to_string().into(),
        port: addr.port(),
        authority: addr.to_string().into(),
        base_path: "".into(),
        protocol,
        ca_bundle: None,
        allow_private_addresses: true,
    }
}

/// A pool and what keeps it going.
#[derive(Clone)]
pub(super) struct Client {
    pub(super) upstreams: Arc<Upstreams<Body>>,
    pub(super) pool: Arc<Pool<Body>>,
}

pub(super) fn client(upstream: &Upstream) -> Client {
    client_with(Settings::default(), upstream)
}

pub(super) fn client_with(settings: Settings, upstream: &Upstream) -> Client {
    let upstreams = Upstreams::new(settings);
    let pool = upstreams.pool(upstream).unwrap();
    Client { upstreams, pool }
}

impl Client {
    pub(super) async fn get(&self) -> Result<Response<UpstreamBody>, SendError> {
        self.send("GET", empty()).await
    }

    pub(super) async fn send(
        &self,
        method: &str,
        body: Body,
    ) -> Result<Response<UpstreamBody>, SendError> {
        self.pool.send(request(method, body), TIMEOUT).await
    }

    /// Sends a request and reads the answer.
    pub(super) async fn text(&self) -> String {
        text(self.get().await.unwrap()).await
    }
}

pub(super) fn request(method: &str, body: Body) -> Request<Body> {
    Request::builder()
        .method(method)
        .uri("/path?query")
        .header("host", "upstream.example")
        .body(body)
        .unwrap()
}

pub(super) async fn text(answer: Response<UpstreamBody>) -> String {
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}
