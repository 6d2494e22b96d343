//! What is sent again after a kept connection has died without a byte of an answer, and what is not.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::time::Duration;

use nexus_tests::agent;
use nexus_tests::broker::{Answer, Broker};
use nexus_tests::raw::{self, Reply};
use nexus_tests::route::Route;
use nexus_tests::scene::Scene;
use nexus_tests::script::ScriptedUpstream;
use nexus_tests::sidecar::Sidecar;
use serde_json::json;

/// Replay buffer of the routes here.
const BUFFER: usize = 64 << 10;

/// An upstream that answers the first request of each connection, and closes at the second without a byte.
struct Dying {
    _broker: Broker,
    upstream: ScriptedUpstream,
    sidecar: Sidecar,
}

impl Dying {
    async fn start(adapt: impl FnOnce(Route) -> Route) -> Self {
        let upstream = ScriptedUpstream::start(|arrival| {
            let reply = match arrival.request {
                0 => Reply::Bytes(raw::response(200, "text/plain", "alive")),
                _ => Reply::BytesThenClose(Vec::new()),
            };
            (Duration::ZERO, reply)
        })
        .await;
        let broker = Broker::gateway().await;
        broker.set(&Scene::id(), Answer::oauth2("token-of-the-dying"));
        let route = Route::new("p", &upstream.url()).connection(&Scene::id());
        let sidecar = Sidecar::with(&broker, &adapt(route)).await;
        let dying = Self {
            _broker: broker,
            upstream,
            sidecar,
        };
        // Leaves a connection in the pool that dies at its next request.
        let answer = dying.sidecar.agent().get("/").provider("p").send().await;
        assert_eq!(answer.text(), "alive");
        dying
    }

    /// Where the requests after the first arrived, and with which content.
    fn arrivals(&self) -> Vec<(usize, usize, Vec<u8>)> {
        let arrivals = self.upstream.arrivals().into_iter().skip(1);
        arrivals
            .map(|a| (a.connection, a.request, a.message.body))
            .collect()
    }
}

/// Sends a request on the connection that dies.
async fn send_to_dying(dying: &Dying, method: &str, body: &[u8], key: bool) -> agent::Answer {
    let agent = dying.sidecar.agent();
    let call = agent.call(method.parse().unwrap(), "/").body(body.to_vec());
    let call = call.provider("p");
    if key {
        call.header("Idempotency-Key", "7").send().await
    } else {
        call.send().await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idempotent_request_on_a_kept_connection_that_dies_is_sent_again_on_a_new_one() {
    for (method, body, key) in [
        ("GET", &b""[..], false),
        ("DELETE", b"", false),
        ("PUT", b"content", false),
        ("POST", b"content", true),
    ] {
        let dying = Dying::start(|route| route).await;
        let answer = send_to_dying(&dying, method, body, key).await;
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (200, "alive"),
            "{method}"
        );
        let expected = [(0, 1, body.to_vec()), (1, 0, body.to_vec())];
        assert_eq!(dying.arrivals(), expected, "{method}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_be_sent_again_fails_with_its_kept_connection() {
    let replay = json!({"statusCodes": [401], "maxBodyBytes": BUFFER, "methods": ["GET", "PUT"]});
    let too_long = vec![b'x'; BUFFER + 1];
    for (why, method, body) in [
        ("the upstream may have acted on it", "POST", &b"content"[..]),
        ("over the buffer", "PUT", &too_long),
        ("not one of the route's methods", "DELETE", b""),
    ] {
        let dying = Dying::start(|route| route.with("replay", replay.clone())).await;
        let answer = send_to_dying(&dying, method, body, false).await;
        assert_eq!(
            (answer.status, answer.error()),
            (502, "upstream_unreachable"),
            "{why}"
        );
        assert_eq!(dying.arrivals().len(), 1, "{why}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_dies_within_an_answer_is_not_retried() {
    let upstream = ScriptedUpstream::start(|arrival| {
        let reply = match arrival.request {
            0 => Reply::Bytes(raw::response(200, "text/plain", "alive")),
            _ => Reply::BytesThenClose(b"HTTP/1.1 200 OK\r\nContent-Le".to_vec()),
        };
        (Duration::ZERO, reply)
    })
    .await;
    let broker = Broker::gateway().await;
    broker.set(&Scene::id(), Answer::oauth2("token-of-the-dying"));
    let route = Route::new("p", &upstream.url()).connection(&Scene::id());
    let sidecar = Sidecar::with(&broker, &route).await;
    let call = sidecar.agent().get("/").provider("p");
    assert_eq!(call.clone().send().await.status, 200);
    let answer = call.send().await;
    assert_eq!(
        (answer.status, answer.error()),
        (502, "upstream_unreachable")
    );
    assert_eq!(
        upstream.arrivals().len(),
        2,
        "the upstream had begun to answer"
    );
}
