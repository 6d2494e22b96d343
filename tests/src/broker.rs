//! A stand-in for the Nexus control plane on loopback: the REST gateway, the broker behind it or the gRPC
//! gateway's HTTP front.
//!
//! Each connection has a scripted answer. Answers are bytes, so that a recorded one goes out as it was recorded.
//! What was called is counted per connection id, together with how many calls were under way at once.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::raw::{self, Message};

/// Which of the framework's services is stood in for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Front {
    /// The REST gateway: `/v1/token/{id}`, passes statuses on without a body.
    Gateway,
    /// The broker: `/connections/{id}/token`.
    Broker,
    /// The gRPC gateway's HTTP front: `/v1/token/{id}`, wraps the payload as `{"token": ...}`.
    Grpc,
}

/// What one connection answers.
#[derive(Clone, Debug)]
pub struct Answer {
    delay: Duration,
    reply: Reply,
}

#[derive(Clone, Debug)]
enum Reply {
    Credential(Value),
    Status(u16, Value),
    Raw(Vec<u8>),
    Hang,
    Close,
}

impl Answer {
    /// A 200 with `strategy` and `credentials`, shaped as the front shapes it.
    pub fn credential(strategy: Value, credentials: Value) -> Self {
        let mut payload = json!({});
        if strategy["type"] == "oauth2" {
            payload = credentials.clone();
        }
        payload["strategy"] = strategy;
        payload["credentials"] = credentials;
        Reply::Credential(payload).into()
    }

    /// An OAuth 2 access token that is valid for another hour.
    pub fn oauth2(token: &str) -> Self {
        Self::credential(
            json!({"type": "oauth2"}),
            json!({"access_token": token, "token_type": "Bearer", "expired": false}),
        )
    }

    /// A key that goes into header `name`.
    pub fn header(name: &str, key: &str) -> Self {
        Self::credential(
            json!({"type": "header", "config": {"header_name": name, "credential_field": "api_key"}}),
            json!({"api_key": key}),
        )
    }

    /// A status with the broker's `{"error", "message"}`; the gateway passes only the status on.
    pub fn status(status: u16, error: &str) -> Self {
        Reply::Status(status, json!({"error": error, "message": "as scripted"})).into()
    }

    /// These bytes and nothing else.
    pub fn raw(response: impl Into<Vec<u8>>) -> Self {
        Reply::Raw(response.into()).into()
    }

    /// A 200 with this body, as JSON.
    pub fn body(body: &str) -> Self {
        Self::raw(raw::response(200, "application/json", body))
    }

    /// Takes the request and never answers.
    pub fn hang() -> Self {
        Reply::Hang.into()
    }

    /// Takes the request and closes the connection.
    pub fn close() -> Self {
        Reply::Close.into()
    }

    /// Answers after this time.
    #[must_use]
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    fn render(&self, front: Front) -> Option<Vec<u8>> {
        match &self.reply {
            Reply::Credential(payload) if front == Front::Grpc => {
                let body = json!({"token": payload}).to_string();
                Some(raw::response(200, "application/json", &body))
            }
            Reply::Credential(payload) => {
                Some(raw::response(200, "application/json", &payload.to_string()))
            }
            Reply::Status(status, body) => Some(match front {
                Front::Gateway => raw::response(*status, "", ""),
                Front::Broker => raw::response(*status, "application/json", &body.to_string()),
                Front::Grpc => raw::response(200, "application/json", r#"{"token":{}}"#),
            }),
            Reply::Raw(bytes) => Some(bytes.clone()),
            Reply::Hang | Reply::Close => None,
        }
    }
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Self {
        Self {
            delay: Duration::ZERO,
            reply,
        }
    }
}

/// The stand-in. It ends when it is dropped.
#[derive(Debug)]
pub struct Broker {
    addr: SocketAddr,
    state: Arc<State>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct State {
    front: Front,
    api_key: Option<String>,
    connections: Mutex<HashMap<String, Connection>>,
}

#[derive(Debug, Default)]
struct Connection {
    answer: Option<Answer>,
    refresh: Option<Answer>,
    calls: usize,
    refreshes: usize,
    in_flight: usize,
    max_in_flight: usize,
}

impl Broker {
    /// Starts a REST gateway.
    pub async fn gateway() -> Self {
        Self::start(Front::Gateway, None).await
    }

    /// Starts one of the services; a broker with a key answers 401 and 403 to who does not send it.
    pub async fn start(front: Front, api_key: Option<&str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let state = Arc::new(State {
            front,
            api_key: api_key.map(str::to_owned),
            connections: Mutex::default(),
        });
        let task = tokio::spawn(accept(listener, Arc::clone(&state)));
        Self { addr, state, task }
    }

    /// Base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Which service this is.
    pub fn front(&self) -> Front {
        self.state.front
    }

    /// Scripts the token answer of a connection.
    pub fn set(&self, id: &str, answer: Answer) {
        self.state.with(id, |c| c.answer = Some(answer));
    }

    /// Scripts the refresh answer of a connection.
    pub fn set_refresh(&self, id: &str, answer: Answer) {
        self.state.with(id, |c| c.refresh = Some(answer));
    }

    /// Token calls of a connection so far.
    pub fn calls(&self, id: &str) -> usize {
        self.state.with(id, |c| c.calls)
    }

    /// Refresh calls of a connection so far.
    pub fn refreshes(&self, id: &str) -> usize {
        self.state.with(id, |c| c.refreshes)
    }

    /// The most calls of a connection that were under way at once.
    pub fn max_in_flight(&self, id: &str) -> usize {
        self.state.with(id, |c| c.max_in_flight)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl State {
    fn with<T>(&self, id: &str, act: impl FnOnce(&mut Connection) -> T) -> T {
        act(self
            .connections
            .lock()
            .unwrap()
            .entry(id.to_owned())
            .or_default())
    }

    /// What the front says before it looks at the connection.
    fn refusal(&self, request: &Message) -> Option<Vec<u8>> {
        let key = self.api_key.as_deref()?;
        let (status, error) = match request.header("x-api-key").map(str::trim) {
            Some(sent) if sent == key => return None,
            Some(_) => (403, "invalid_api_key"),
            None => (401, "missing_api_key"),
        };
        let message = error.replace('_', " ");
        let body = json!({"error": error, "message": message}).to_string();
        Some(raw::response(status, "application/json", &body))
    }

    /// The connection id and whether this is a refresh, for a path of this front.
    fn parse(&self, request: &Message) -> Option<(String, bool)> {
        let path = request.target();
        let (id, refresh) = match self.front {
            Front::Broker => {
                let rest = path.strip_prefix("/connections/")?;
                let (id, what) = rest.split_once('/')?;
                (
                    id,
                    (what == "refresh")
                        .then_some(true)
                        .or((what == "token").then_some(false))?,
                )
            }
            Front::Gateway | Front::Grpc => match path.strip_prefix("/v1/token/") {
                Some(id) => (id, false),
                None => (path.strip_prefix("/v1/refresh/")?, true),
            },
        };
        let method = if refresh { "POST" } else { "GET" };
        (request.method() == method && !id.contains(['/', '?'])).then(|| (id.to_owned(), refresh))
    }

    fn unknown(&self) -> Answer {
        debug_assert!(self.front != Front::Grpc || self.api_key.is_none());
        Answer::status(404, "connection_not_found")
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(serve(stream, Arc::clone(&state)));
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(mut stream: TcpStream, state: Arc<State>) {
    stream.set_nodelay(true).unwrap();
    let mut buffer = Vec::new();
    loop {
        let request = match Message::take(&mut buffer) {
            Ok(Some(request)) => request,
            Ok(None) => match stream.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => continue,
            },
            Err(reason) => panic!("the control plane got a malformed request: {reason}"),
        };
        let Some(bytes) = respond(&request, &state, &mut stream).await else {
            return;
        };
        if stream.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

/// The bytes to answer, or nothing when the connection is to be closed.
async fn respond(request: &Message, state: &State, stream: &mut TcpStream) -> Option<Vec<u8>> {
    if let Some(refusal) = state.refusal(request) {
        return Some(refusal);
    }
    let Some((id, refresh)) = state.parse(request) else {
        return Some(raw::response(404, "text/plain", "404 page not found\n"));
    };
    let _under_way = UnderWay::enter(state, &id, refresh);
    let answer = state
        .with(&id, |c| {
            if refresh {
                c.refresh.clone()
            } else {
                c.answer.clone()
            }
        })
        .unwrap_or_else(|| state.unknown());
    tokio::time::sleep(answer.delay).await;
    if matches!(answer.reply, Reply::Hang) {
        // Until the caller gives up, which closes the connection.
        let _ = stream.read_u8().await;
    }
    answer.render(state.front)
}

/// Counts a call, and that it is under way while this lives.
struct UnderWay<'a> {
    state: &'a State,
    id: &'a str,
}

impl<'a> UnderWay<'a> {
    fn enter(state: &'a State, id: &'a str, refresh: bool) -> Self {
        state.with(id, |c| {
            c.calls += usize::from(!refresh);
            c.refreshes += usize::from(refresh);
            c.in_flight += 1;
            c.max_in_flight = c.max_in_flight.max(c.in_flight);
        });
        Self { state, id }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.state.with(self.id, |c| c.in_flight -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::Agent;

    const ID: &str = "00000000-0000-4000-8000-000000000001";

    #[tokio::test]
    async fn gateway_passes_statuses_on_without_a_body() {
        let broker = Broker::gateway().await;
        broker.set(ID, Answer::status(403, "connection_not_active"));
        let answer = Agent::new(broker.addr)
            .get(&format!("/v1/token/{ID}"))
            .send()
            .await;
        assert_eq!((answer.status, answer.body.len()), (403, 0));
        assert_eq!((broker.calls(ID), broker.max_in_flight(ID)), (1, 1));
    }

    #[tokio::test]
    async fn broker_asks_for_its_key_and_answers_under_its_own_path() {
        let broker = Broker::start(Front::Broker, Some("key")).await;
        broker.set(ID, Answer::oauth2("token"));
        let path = format!("/connections/{ID}/token");
        let agent = Agent::new(broker.addr);
        assert_eq!(agent.get(&path).send().await.status, 401);
        assert_eq!(
            agent
                .get(&path)
                .header("X-API-Key", "no")
                .send()
                .await
                .status,
            403
        );
        let answer = agent.get(&path).header("X-API-Key", "key").send().await;
        assert_eq!(answer.json()["credentials"]["access_token"], "token");
        let other = agent
            .get("/v1/token/x")
            .header("X-API-Key", "key")
            .send()
            .await;
        assert_eq!(other.status, 404);
    }

    #[tokio::test]
    async fn grpc_front_wraps_the_payload_and_hides_every_status() {
        let broker = Broker::start(Front::Grpc, None).await;
        broker.set(ID, Answer::oauth2("token"));
        let agent = Agent::new(broker.addr);
        let answer = agent.get(&format!("/v1/token/{ID}")).send().await;
        assert_eq!(answer.json()["token"]["strategy"]["type"], "oauth2");
        broker.set(ID, Answer::status(404, "connection_not_found"));
        let answer = agent.get(&format!("/v1/token/{ID}")).send().await;
        assert_eq!(
            (answer.status, answer.text()),
            (200, r#"{"token":{}}"#.to_owned())
        );
    }
}
