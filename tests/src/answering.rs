//! Upstreams whose answers a test writes byte by byte, each with a sidecar before it.

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::agent;
use crate::broker::{Answer, Broker};
use crate::raw::{RawUpstream, Reply};
use crate::route::Route;
use crate::scene::Scene;
use crate::sidecar::Sidecar;
use crate::wait;

/// The credential, unless a test has another.
pub const TOKEN: &str = "token-that-the-upstream-repeats";

/// A whole answer. `fields` are lines with their ends.
pub fn answer(fields: &str, content: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 200 OK\r\n{fields}Content-Length: {}\r\n\r\n",
        content.len()
    );
    [head.as_bytes(), content].concat()
}

/// A sidecar before an upstream that answers everything alike. The route's base path is `/v1`.
///
/// A sidecar has one thread unless it is told otherwise, and then the content that an upstream sends with its head is
/// there when the head is judged.
#[derive(Debug)]
pub struct Fixed {
    /// The gateway.
    pub broker: Broker,
    /// The upstream.
    pub upstream: RawUpstream,
    /// The sidecar.
    pub sidecar: Sidecar,
}

impl Fixed {
    /// With this whole answer and the route's `response` rules.
    pub async fn new(reply: Vec<u8>, response: Value) -> Self {
        Self::linked(|_| reply, Answer::oauth2(TOKEN), response).await
    }

    /// With an answer that depends on the upstream's base URL, and another credential.
    pub async fn linked(
        reply: impl FnOnce(&str) -> Vec<u8>,
        credential: Answer,
        response: Value,
    ) -> Self {
        let upstream = RawUpstream::start_at(|url| Reply::Bytes(reply(url))).await;
        let url = format!("{}/v1", upstream.url());
        let (broker, sidecar) = before(&url, credential, response).await;
        Self {
            broker,
            upstream,
            sidecar,
        }
    }

    /// Asks for `/x`.
    pub async fn get(&self) -> agent::Answer {
        let agent = self.sidecar.agent();
        agent.get("/x").provider("p").send().await
    }
}

async fn before(url: &str, credential: Answer, response: Value) -> (Broker, Sidecar) {
    let broker = Broker::gateway().await;
    broker.set(&Scene::id(), credential);
    let route = Route::new("p", url).connection(&Scene::id());
    let sidecar = Sidecar::with(&broker, &route.with("response", response)).await;
    (broker, sidecar)
}

/// An upstream for one request whose answer the test writes piece by piece, and a sidecar before it.
#[derive(Debug)]
pub struct Scripted {
    _broker: Broker,
    /// The sidecar.
    pub sidecar: Sidecar,
    pieces: mpsc::UnboundedSender<Vec<u8>>,
}

impl Scripted {
    /// With the route's `response` rules.
    pub async fn new(response: Value) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (pieces, mut script) = mpsc::unbounded_channel::<Vec<u8>>();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                assert!(stream.read_buf(&mut request).await.unwrap() > 0);
            }
            while let Some(piece) = script.recv().await {
                // The sidecar hangs up on an answer that it cuts.
                if stream.write_all(&piece).await.is_err() {
                    return;
                }
            }
        });
        let (broker, sidecar) = before(&url, Answer::oauth2(TOKEN), response).await;
        Self {
            _broker: broker,
            sidecar,
            pieces,
        }
    }

    /// A chunked answer to a request, with these lines in its head and nothing of its content yet.
    pub async fn begin(&self, fields: &str) -> Response<Incoming> {
        let head = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n{fields}\r\n");
        self.pieces.send(head.into_bytes()).unwrap();
        let call = self.sidecar.agent().get("/").provider("p");
        wait::within("a head", call.header("TE", "trailers").open())
            .await
            .unwrap()
    }

    /// Sends a chunk of the content.
    pub fn chunk(&self, content: &[u8]) {
        let size = format!("{:x}\r\n", content.len());
        let chunk = [size.as_bytes(), content, b"\r\n"].concat();
        self.pieces.send(chunk).unwrap();
    }

    /// Ends the content, with these lines as trailers.
    pub fn end(&self, trailers: &str) {
        self.pieces
            .send(format!("0\r\n{trailers}\r\n").into_bytes())
            .unwrap();
    }
}

/// The next piece of a body, as long as it streams.
pub async fn next(body: &mut Incoming) -> Bytes {
    let frame = wait::within("a piece of the body", body.frame()).await;
    frame.unwrap().unwrap().into_data().unwrap()
}

/// What else comes of a body, its trailers, and whether it ends well.
pub async fn rest(mut body: Incoming) -> (Vec<u8>, HeaderMap, bool) {
    let (mut bytes, mut trailers) = (Vec::new(), HeaderMap::new());
    loop {
        match wait::within("the end of the body", body.frame()).await {
            None => return (bytes, trailers, true),
            Some(Err(_)) => return (bytes, trailers, false),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => bytes.extend_from_slice(&data),
                Err(frame) => trailers = frame.into_trailers().unwrap(),
            },
        }
    }
}

/// The line about the only answer that a credential was found in.
pub async fn audited(sidecar: &Sidecar) -> Value {
    wait::until("a line about a credential", || {
        let lines = sidecar.access_log();
        lines.into_iter().find(|line| line["scrubbed"].is_number())
    })
    .await
}
