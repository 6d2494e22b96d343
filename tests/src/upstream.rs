//! Upstreams over HTTP/1.1, HTTP/2 with TLS and HTTP/2 without, which keep what they received.
//!
//! | path | answer |
//! | --- | --- |
//! | `/sse/{count}/{milliseconds}` | so many server-sent events, so far apart, each with the time it was sent |
//! | `/silent` | the head of an event stream, and then nothing |
//! | `/download/{bytes}` | that many bytes, made as they are read |
//! | `/sink` | how much of the request's body arrived, and its SHA-256 |
//! | `/early` | 200 at once, `begun`, and `ended` once the request's body has arrived |
//! | `/unread` | none, and the request's body is not read |
//! | `/hang` | none |
//! | `/status/{code}` | that status |
//! | anything else | the request as JSON |
//!
//! A gate ([`Builder::gate`]) looks at every request whose body was read, and may refuse it before its path counts.

use std::convert::Infallible;
use std::fmt::{self, Write as _};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::server::ServerConfig;
use serde::Serialize;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use crate::tls::{Authority, Leaf};

/// A request as it arrived.
#[derive(Clone, Debug, Serialize)]
pub struct Seen {
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub version: String,
    /// Method.
    pub method: String,
    /// Path and query, byte for byte.
    pub target: String,
    /// `Host` or `:authority`.
    pub authority: String,
    /// Names and values; the order within a name is as sent.
    pub headers: Vec<(String, String)>,
    /// Content, empty for `/sink`.
    #[serde(skip)]
    pub body: Bytes,
    /// Length of the content.
    pub length: u64,
    /// SHA-256 of the content, in hexadecimal.
    pub sha256: String,
    /// Trailers, as the headers.
    #[serde(skip)]
    pub trailers: Vec<(String, String)>,
    /// When its head was there.
    #[serde(skip)]
    pub arrived: Instant,
}

impl Seen {
    /// All values of a header.
    pub fn values(&self, name: &str) -> Vec<&str> {
        self.headers
            .iter()
            .filter(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.as_str())
            .collect()
    }

    /// The only value of a header.
    ///
    /// # Panics
    ///
    /// When there is none or another.
    pub fn header(&self, name: &str) -> &str {
        let values = self.values(name);
        assert_eq!(values.len(), 1, "{name} in {:?}", self.headers);
        values[0]
    }
}

/// What a gate answers itself instead of letting a request through: a refusal, or what a test's own API says.
#[derive(Clone, Debug)]
pub struct Refusal {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Refusal {
    /// A refusal with this status and content.
    pub fn new(status: u16, body: impl Into<Bytes>) -> Self {
        Self {
            status: StatusCode::from_u16(status).unwrap(),
            headers: HeaderMap::new(),
            body: body.into(),
        }
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.append(name, value.parse().unwrap());
        self
    }

    fn response(self) -> Response<Content> {
        let mut response = Response::new(Full::from(self.body).boxed());
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response
    }
}

type Judge = dyn Fn(&Seen) -> Option<Refusal> + Send + Sync;

#[derive(Clone)]
struct Gate(Arc<Judge>);

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gate")
    }
}

/// How an [`Upstream`] is to be.
#[derive(Debug, Default)]
pub struct Builder {
    tls: Option<Arc<ServerConfig>>,
    max_streams: Option<u32>,
    gate: Option<Gate>,
    forgetful: bool,
    addr: Option<SocketAddr>,
}

impl Builder {
    /// Listens there instead of on a free port of 127.0.0.1.
    #[must_use]
    pub fn at(mut self, addr: SocketAddr) -> Self {
        self.addr = Some(addr);
        self
    }

    /// With TLS, a certificate of this kind and these ALPN protocols.
    #[must_use]
    pub fn tls(mut self, authority: &Authority, leaf: Leaf, alpn: &[&str]) -> Self {
        self.tls = Some(authority.server(leaf, alpn));
        self
    }

    /// With TLS, in this way.
    #[must_use]
    pub fn with(mut self, tls: Arc<ServerConfig>) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Lets an HTTP/2 connection carry this many streams at once.
    #[must_use]
    pub fn max_streams(mut self, limit: u32) -> Self {
        self.max_streams = Some(limit);
        self
    }

    /// Asks `gate` about every request.
    #[must_use]
    pub fn gate(mut self, gate: impl Fn(&Seen) -> Option<Refusal> + Send + Sync + 'static) -> Self {
        self.gate = Some(Gate(Arc::new(gate)));
        self
    }

    /// Keeps no request, so that it can run for long.
    #[must_use]
    pub fn forgetful(mut self) -> Self {
        self.forgetful = true;
        self
    }

    /// Starts it.
    ///
    /// # Panics
    ///
    /// When its address cannot be bound.
    pub async fn start(self) -> Upstream {
        let free = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = TcpListener::bind(self.addr.unwrap_or(free)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let state = Arc::new(State {
            gate: self.gate.clone(),
            forgetful: self.forgetful,
            ..State::default()
        });
        let task = tokio::spawn(accept(listener, self, Arc::clone(&state)));
        Upstream {
            addr,
            scheme,
            state,
            task,
        }
    }
}

/// An upstream. It ends when it is dropped.
#[derive(Debug)]
pub struct Upstream {
    addr: SocketAddr,
    scheme: &'static str,
    state: Arc<State>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct State {
    gate: Option<Gate>,
    forgetful: bool,
    seen: Mutex<Vec<Seen>>,
    connections: AtomicUsize,
    peers: Mutex<Vec<SocketAddr>>,
    open: AtomicUsize,
}

impl Upstream {
    /// One that speaks HTTP/1.1 and HTTP/2 without TLS, whichever the client begins with.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// One to be configured.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Base URL.
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.addr)
    }

    /// Address of the listener.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Every request whose body has arrived, in order of arrival.
    pub fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().unwrap().clone()
    }

    /// The only request.
    ///
    /// # Panics
    ///
    /// When there was none or another.
    pub fn only(&self) -> Seen {
        let seen = self.seen();
        assert_eq!(seen.len(), 1, "requests at the upstream: {seen:#?}");
        seen.into_iter().next().unwrap()
    }

    /// The latest request.
    ///
    /// # Panics
    ///
    /// When there was none.
    pub fn last(&self) -> Seen {
        self.seen().pop().expect("a request at the upstream")
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// Who the connections came from, in their order.
    pub fn peers(&self) -> Vec<SocketAddr> {
        self.state.peers.lock().unwrap().clone()
    }

    /// Responses whose bodies are still under way.
    pub fn open_responses(&self) -> usize {
        self.state.open.load(Ordering::SeqCst)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, options: Builder, state: Arc<State>) {
    let acceptor = options.tls.map(TlsAcceptor::from);
    let mut connections = JoinSet::new();
    while let Ok((stream, peer)) = listener.accept().await {
        state.peers.lock().unwrap().push(peer);
        state.connections.fetch_add(1, Ordering::SeqCst);
        stream.set_nodelay(true).unwrap();
        connections.spawn(serve(
            stream,
            acceptor.clone(),
            options.max_streams,
            Arc::clone(&state),
        ));
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(
    stream: TcpStream,
    acceptor: Option<TlsAcceptor>,
    max_streams: Option<u32>,
    state: Arc<State>,
) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new());
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(max_streams.or(Some(1000)));
    let service = service_fn(move |request| answer(request, Arc::clone(&state)));
    // Clients that go away mid-way are what many tests are about.
    let _ = match acceptor {
        None => {
            builder
                .serve_connection(TokioIo::new(stream), service)
                .await
        }
        Some(acceptor) => match acceptor.accept(stream).await {
            Ok(stream) => {
                builder
                    .serve_connection(TokioIo::new(stream), service)
                    .await
            }
            Err(_) => Ok(()),
        },
    };
}

type Content = BoxBody<Bytes, Infallible>;

async fn answer(
    request: Request<Incoming>,
    state: Arc<State>,
) -> Result<Response<Content>, hyper::Error> {
    let path = request.uri().path().to_owned();
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    match segments.as_slice() {
        ["unread"] => return hold(request).await,
        ["early"] => return Ok(early(request, Open::enter(state))),
        _ => {}
    }
    let keep = segments != ["sink"] && !state.forgetful;
    let seen = read(request, keep).await?;
    if !state.forgetful {
        state.seen.lock().unwrap().push(seen.clone());
    }
    if let Some(refusal) = state.gate.as_ref().and_then(|gate| gate.0(&seen)) {
        return Ok(refusal.response());
    }
    let open = Open::enter(state);
    Ok(match segments.as_slice() {
        ["sse", count, pause] => {
            let pause = Duration::from_millis(pause.parse().unwrap());
            events(open, Some(count.parse().unwrap()), pause)
        }
        ["silent"] => events(open, None, Duration::ZERO),
        ["download", length] => download(open, length.parse().unwrap()),
        ["hang"] => std::future::pending().await,
        ["status", code] => {
            let mut response = Response::new(full(&json!({"status": code})));
            *response.status_mut() = code.parse::<StatusCode>().unwrap();
            response
        }
        _ => Response::builder()
            .header("content-type", "application/json")
            .body(full(&serde_json::to_value(seen).unwrap()))
            .unwrap(),
    })
}

async fn read(request: Request<Incoming>, keep: bool) -> Result<Seen, hyper::Error> {
    let arrived = Instant::now();
    let (parts, mut body) = request.into_parts();
    let mut digest = Sha256::new();
    let mut length = 0;
    let mut kept = Vec::new();
    let mut trailers = HeaderMap::new();
    while let Some(frame) = body.frame().await {
        match frame?.into_data() {
            Ok(data) => {
                digest.update(&data);
                length += data.len() as u64;
                if keep {
                    kept.extend_from_slice(&data);
                }
            }
            Err(frame) => trailers.extend(frame.into_trailers().unwrap_or_default()),
        }
    }
    Ok(Seen {
        version: format!("{:?}", parts.version),
        method: parts.method.to_string(),
        target: parts
            .uri
            .path_and_query()
            .map_or_else(String::new, ToString::to_string),
        authority: match parts.uri.authority() {
            Some(authority) => authority.to_string(),
            None => text(&parts.headers, "host"),
        },
        headers: pairs(&parts.headers),
        body: kept.into(),
        length,
        sha256: hex(&digest.finalize()),
        trailers: pairs(&trailers),
        arrived,
    })
}

fn pairs(headers: &HeaderMap) -> Vec<(String, String)> {
    headers
        .iter()
        .map(|(name, value)| {
            let value = String::from_utf8_lossy(value.as_bytes());
            (name.to_string(), value.into_owned())
        })
        .collect()
}

fn text(headers: &HeaderMap, name: &str) -> String {
    headers.get(name).map_or_else(String::new, |v| {
        String::from_utf8_lossy(v.as_bytes()).into()
    })
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn full(value: &serde_json::Value) -> Content {
    Full::from(value.to_string()).boxed()
}

/// Microseconds since 1970, the clock that events are stamped with.
pub fn now_micros() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(now.as_micros()).unwrap()
}

async fn hold(request: Request<Incoming>) -> Result<Response<Content>, hyper::Error> {
    std::future::pending::<()>().await;
    drop(request);
    Ok(Response::new(full(&json!({}))))
}

fn early(request: Request<Incoming>, open: Open) -> Response<Content> {
    let (sender, receiver) = mpsc::channel(2);
    tokio::spawn(async move {
        let _ = sender.send(Bytes::from_static(b"begun\n")).await;
        if read(request, false).await.is_ok() {
            let _ = sender.send(Bytes::from_static(b"ended\n")).await;
        }
    });
    let body = Events {
        receiver,
        _open: open,
    };
    Response::new(body.boxed())
}

/// Sends `count` events, then ends; without a count it stays silent.
fn events(open: Open, count: Option<usize>, pause: Duration) -> Response<Content> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        for index in 0..count.unwrap_or(0) {
            tokio::time::sleep(pause).await;
            let event = format!("data: {{\"index\":{index},\"sent\":{}}}\n\n", now_micros());
            if sender.send(event.into()).await.is_err() {
                return;
            }
        }
        if count.is_none() {
            sender.closed().await;
        }
    });
    let body = Events {
        receiver,
        _open: open,
    };
    Response::builder()
        .header("content-type", "text/event-stream")
        .header("cache-control", "no-cache")
        .body(body.boxed())
        .unwrap()
}

fn download(open: Open, length: u64) -> Response<Content> {
    Response::builder()
        .header("content-type", "application/octet-stream")
        .header("content-length", length)
        .body(
            Download {
                left: length,
                chunk: Bytes::from(vec![b'd'; 64 << 10]),
                _open: open,
            }
            .boxed(),
        )
        .unwrap()
}

/// Counts a response while its body lives.
struct Open(Arc<State>);

impl Open {
    fn enter(state: Arc<State>) -> Self {
        state.open.fetch_add(1, Ordering::SeqCst);
        Self(state)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

struct Events {
    receiver: mpsc::Receiver<Bytes>,
    _open: Open,
}

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.receiver
            .poll_recv(context)
            .map(|event| event.map(|data| Ok(Frame::data(data))))
    }
}

struct Download {
    left: u64,
    chunk: Bytes,
    _open: Open,
}

impl Body for Download {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let length = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(self.chunk.len());
        self.left -= length as u64;
        Poll::Ready(Some(Ok(Frame::data(self.chunk.slice(..length)))))
    }
}
