//! Whatever an agent sends reaches the upstream as exactly one message with one framing, or not at all. Judged by
//! the bytes that arrive at an upstream of our own, read by a reader that shares no code with the sidecar.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::time::Duration;

use nexus_tests::broker::{Answer, Broker};
use nexus_tests::raw::{Message, Outcome, RawAgent, RawUpstream};
use nexus_tests::route::Route;
use nexus_tests::scene::Scene;
use nexus_tests::sidecar::Sidecar;

/// What must become of a shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    /// 400 and the connection closed; nothing at the upstream.
    Refused,
    /// One message with this body.
    Body(&'static str),
    /// Either of the two: RFC 9112 leaves the choice.
    RefusedOr(&'static str),
}

use Expect::{Body, Refused, RefusedOr};

struct Scenery {
    _broker: Broker,
    upstream: RawUpstream,
    sidecar: Sidecar,
}

async fn scenery() -> Scenery {
    let broker = Broker::gateway().await;
    broker.set(&Scene::id(), Answer::oauth2("token-of-the-smuggler"));
    let upstream = RawUpstream::ok().await;
    let route = Route::new("p", &upstream.url()).connection(&Scene::id());
    let sidecar = Sidecar::with(&broker, &route).await;
    Scenery {
        _broker: broker,
        upstream,
        sidecar,
    }
}

/// A request of its own that must never arrive by riding on another. It names the provider, so if it is taken for
/// the agent's next request it does arrive: once, and then it is the agent's own.
const RIDER: &str = "GET /rider HTTP/1.1\r\nHost: localhost\r\nX-Nexus-Provider: p\r\n\r\n";

impl Scenery {
    /// Sends a shape and says what arrived of it.
    async fn send(&self, name: &str, bytes: &str) -> (Option<Message>, Vec<Message>) {
        let before = self.upstream.requests().len();
        let mut agent = RawAgent::connect(self.sidecar.proxy_addr()).await;
        // Without closing the sending half: an agent that does is gone, and nothing more is done for it.
        agent.send(bytes).await;
        let answer = match agent.receive().await {
            Outcome::Response(answer) => Some(answer),
            Outcome::Closed => None,
        };
        // What the parser refuses has no error code; after it nothing on the connection can be trusted.
        let by_the_parser =
            |answer: &Message| answer.status() >= 400 && answer.header("x-nexus-error").is_none();
        if answer.as_ref().is_none_or(by_the_parser) {
            let closed = agent.is_closed_within(Duration::from_secs(5)).await;
            assert!(closed, "{name}: the connection goes on after a refusal");
        }
        // Another agent's request shows whether the upstream connection is in step.
        let mut next = RawAgent::connect(self.sidecar.proxy_addr()).await;
        next.send("GET /next HTTP/1.1\r\nHost: localhost\r\nX-Nexus-Provider: p\r\n\r\n")
            .await;
        match next.receive().await {
            Outcome::Response(answer) => assert_eq!(answer.status(), 200, "{name}: {answer:?}"),
            Outcome::Closed => panic!("{name}: the next agent got no answer"),
        }
        // `requests` fails the test when any byte at the upstream has no reading or two.
        let mut arrived = self.upstream.requests().split_off(before);
        let last = arrived.pop().unwrap();
        assert_eq!(last.target(), "/next", "{name}");
        (answer, arrived)
    }

    /// What is wrong with what became of a shape, if anything is.
    async fn fault(&self, name: &str, bytes: &str, expect: Expect) -> Option<String> {
        let (answer, arrived) = self.send(name, bytes).await;
        let shown = format!("{name}: expected {expect:?}; answer {answer:?}, arrived {arrived:?}");
        for message in &arrived {
            let framings = ["content-length", "transfer-encoding"].map(|n| message.values(n).len());
            if framings.iter().sum::<usize>() > 1 || message.values("authorization").len() != 1 {
                return Some(shown);
            }
        }
        let refusal = |answer: Message| matches!(answer.status(), 400 | 431 | 501);
        let refused = arrived.is_empty() && answer.is_none_or(refusal);
        let body = match arrived.as_slice() {
            [only] => only.body.as_slice(),
            _ => b"(not one message)",
        };
        let held = match expect {
            Refused => refused,
            Body(expected) => body == expected.as_bytes(),
            RefusedOr(expected) => refused || body == expected.as_bytes(),
        };
        (!held).then_some(shown)
    }

    /// Judges every shape before it fails, so that one run shows them all.
    async fn judge<B: AsRef<str>>(&self, shapes: impl IntoIterator<Item = (&str, B, Expect)>) {
        let mut faults = Vec::new();
        for (name, bytes, expect) in shapes {
            faults.extend(self.fault(name, bytes.as_ref(), expect).await);
        }
        assert!(faults.is_empty(), "{}", faults.join("\n"));
    }
}

fn post(headers: &str, rest: &str) -> String {
    format!(
        "POST /shape HTTP/1.1\r\nHost: localhost\r\nX-Nexus-Provider: p\r\n{headers}\r\n\r\n{rest}"
    )
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "a table")]
async fn contradicting_framings_are_refused_or_read_once() {
    let scenery = scenery().await;
    let rider_after_chunks = format!("0\r\n\r\n{}", RIDER.replace("p\r\n\r\n", "nobody\r\n\r\n"));
    let shapes = [
        (
            "length then coding",
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
            "0\r\n\r\n",
            RefusedOr(""),
        ),
        (
            "coding then length",
            "Transfer-Encoding: chunked\r\nContent-Length: 5",
            "0\r\n\r\n",
            RefusedOr(""),
        ),
        (
            "both, with a body",
            "Content-Length: 3\r\nTransfer-Encoding: chunked",
            "3\r\nabc\r\n0\r\n\r\n",
            RefusedOr("abc"),
        ),
        (
            "coding twice",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
            "0\r\n\r\n",
            Refused,
        ),
        (
            "coding list",
            "Transfer-Encoding: chunked, identity",
            "0\r\n\r\n",
            Refused,
        ),
        (
            "chunked twice",
            "Transfer-Encoding: chunked, chunked",
            "0\r\n\r\n",
            RefusedOr(""),
        ),
        (
            "identity",
            "Transfer-Encoding: identity\r\nContent-Length: 3",
            "abc",
            Refused,
        ),
        (
            "unknown coding",
            "Transfer-Encoding: xchunked",
            "0\r\n\r\n",
            Refused,
        ),
        (
            "gzip, chunked",
            "Transfer-Encoding: gzip, chunked",
            "0\r\n\r\n",
            RefusedOr(""),
        ),
        (
            "quoted coding",
            "Transfer-Encoding: \"chunked\"",
            "0\r\n\r\n",
            Refused,
        ),
        (
            "coding with a tab",
            "Transfer-Encoding:\tchunked",
            "3\r\nabc\r\n0\r\n\r\n",
            RefusedOr("abc"),
        ),
        (
            "coding in capitals",
            "TRANSFER-ENCODING: CHUNKED",
            "3\r\nabc\r\n0\r\n\r\n",
            Body("abc"),
        ),
        (
            "coding with vertical tab",
            "Transfer-Encoding: \x0bchunked",
            "0\r\n\r\n",
            Refused,
        ),
        (
            "same length twice",
            "Content-Length: 3\r\nContent-Length: 3",
            "abc",
            RefusedOr("abc"),
        ),
        (
            "two lengths",
            "Content-Length: 3\r\nContent-Length: 6",
            "abcdef",
            Refused,
        ),
        (
            "two lengths, zero first",
            "Content-Length: 0\r\nContent-Length: 6",
            "abcdef",
            Refused,
        ),
        (
            "length list",
            "Content-Length: 3, 3",
            "abc",
            RefusedOr("abc"),
        ),
        (
            "length list of two",
            "Content-Length: 3, 6",
            "abcdef",
            Refused,
        ),
        ("positive sign", "Content-Length: +3", "abc", Refused),
        ("negative length", "Content-Length: -1", "abc", Refused),
        ("hexadecimal length", "Content-Length: 0x3", "abc", Refused),
        (
            "length with underscore",
            "Content-Length: 1_0",
            "abc",
            Refused,
        ),
        ("empty length", "Content-Length: ", "abc", Refused),
        (
            "length past 64 bits",
            "Content-Length: 18446744073709551617",
            "a",
            Refused,
        ),
        (
            "length with zeros in front",
            "Content-Length: 003",
            "abc",
            RefusedOr("abc"),
        ),
    ];
    let shapes = shapes.map(|(name, headers, rest, expect)| (name, post(headers, rest), expect));
    scenery.judge(shapes).await;
    // The classic: one reader ends at the chunk, the other goes on into the rider.
    for headers in [
        format!(
            "Content-Length: {}\r\nTransfer-Encoding: chunked",
            rider_after_chunks.len()
        ),
        format!(
            "Transfer-Encoding: chunked\r\nContent-Length: {}",
            rider_after_chunks.len()
        ),
    ] {
        let (_, arrived) = scenery
            .send("rider", &post(&headers, &rider_after_chunks))
            .await;
        assert!(arrived.len() <= 1, "{arrived:?}");
        assert!(
            arrived
                .iter()
                .all(|m| m.target() == "/shape" && m.body.is_empty()),
            "{arrived:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_chunks_are_refused_and_nothing_follows_them() {
    let scenery = scenery().await;
    let chunked = "Transfer-Encoding: chunked";
    for (name, rest) in [
        ("no size", "\r\nabc\r\n0\r\n\r\n"),
        ("not hexadecimal", "g\r\nabc\r\n0\r\n\r\n"),
        ("with a sign", "-3\r\nabc\r\n0\r\n\r\n"),
        ("with 0x", "0x3\r\nabc\r\n0\r\n\r\n"),
        ("past 64 bits", "10000000000000003\r\nabc\r\n0\r\n\r\n"),
        ("longer than its size", "3\r\nabcdef\r\n0\r\n\r\n"),
        ("bare line feed after the data", "3\r\nabc\n0\r\n\r\n"),
        ("cut short", "64\r\nabc"),
        ("no last chunk", "3\r\nabc\r\n"),
    ] {
        let mut agent = RawAgent::connect(scenery.sidecar.proxy_addr()).await;
        let before = scenery.upstream.received().len();
        agent.send(post(chunked, rest)).await;
        agent.finish().await;
        match agent.receive().await {
            Outcome::Response(answer) => assert_eq!(answer.status(), 400, "{name}: {answer:?}"),
            Outcome::Closed => {}
        }
        // The head may have gone out before the fault was met; then its connection must not end as a whole message.
        for bytes in scenery.upstream.received().split_off(before) {
            assert!(
                Message::all(&bytes).is_err() || bytes.is_empty(),
                "{name}: {:?}",
                String::from_utf8_lossy(&bytes)
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn well_formed_chunks_arrive_whole_without_their_extensions() {
    let scenery = scenery().await;
    let shapes = [
        ("plain", "3\r\nabc\r\n0\r\n\r\n", "abc"),
        ("two", "1\r\na\r\n2\r\nbc\r\n0\r\n\r\n", "abc"),
        ("zeros in front", "0003\r\nabc\r\n000\r\n\r\n", "abc"),
        ("extension", "3;name=value\r\nabc\r\n0;last\r\n\r\n", "abc"),
        (
            "trailer",
            "3\r\nabc\r\n0\r\nX-Trailer: 1\r\nAuthorization: forged\r\n\r\n",
            "abc",
        ),
    ];
    let chunked = |rest| post("Transfer-Encoding: chunked", rest);
    let shapes = shapes.map(|(name, rest, expected)| (name, chunked(rest), Body(expected)));
    scenery.judge(shapes).await;
    for message in scenery.upstream.requests() {
        assert_ne!(message.header("authorization"), Some("forged"));
    }
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "a table")]
async fn malformed_heads_are_refused_or_read_once() {
    let scenery = scenery().await;
    let get = "GET /shape HTTP/1.1";
    let named = "Host: localhost\r\nX-Nexus-Provider: p";
    let shapes = [
        (
            "folded line",
            format!("{get}\r\n{named}\r\nX-A: b\r\n c\r\n\r\n"),
            Refused,
        ),
        (
            "folded coding",
            post("Transfer-Encoding:\r\n chunked", "0\r\n\r\n"),
            Refused,
        ),
        (
            "space before the colon",
            post("Transfer-Encoding : chunked", "0\r\n\r\n"),
            Refused,
        ),
        (
            "space in a name",
            format!("{get}\r\n{named}\r\nX A: b\r\n\r\n"),
            Refused,
        ),
        (
            "no name",
            format!("{get}\r\n{named}\r\n: b\r\n\r\n"),
            Refused,
        ),
        (
            "no colon",
            format!("{get}\r\n{named}\r\nX-A b\r\n\r\n"),
            Refused,
        ),
        (
            "NUL in a value",
            format!("{get}\r\n{named}\r\nX-A: b\0c\r\n\r\n"),
            Refused,
        ),
        (
            "bare CR in a value",
            format!("{get}\r\n{named}\r\nX-A: b\rX-B: c\r\n\r\n"),
            Refused,
        ),
        (
            "bare LF line ends",
            format!("{get}\n{}\n\n", named.replace("\r\n", "\n")),
            RefusedOr(""),
        ),
        (
            "one bare LF",
            format!("{get}\r\n{named}\r\nX-A: b\nX-C: d\r\n\r\n"),
            RefusedOr(""),
        ),
        (
            "line before the request",
            format!("\r\n{get}\r\n{named}\r\n\r\n"),
            RefusedOr(""),
        ),
        (
            "two spaces",
            format!("GET  /shape HTTP/1.1\r\n{named}\r\n\r\n"),
            Refused,
        ),
        (
            "version twice",
            format!("GET /shape HTTP/1.1 HTTP/1.1\r\n{named}\r\n\r\n"),
            Refused,
        ),
        (
            "no version",
            format!("GET /shape\r\n{named}\r\n\r\n"),
            Refused,
        ),
        (
            "version 2",
            format!("GET /shape HTTP/2.0\r\n{named}\r\n\r\n"),
            Refused,
        ),
        (
            "version 1.9",
            format!("GET /shape HTTP/1.9\r\n{named}\r\n\r\n"),
            Refused,
        ),
        (
            "coding in 1.0",
            post("Transfer-Encoding: chunked", "0\r\n\r\n").replace("1.1", "1.0"),
            Refused,
        ),
        (
            "no target",
            format!("GET HTTP/1.1\r\n{named}\r\n\r\n"),
            Refused,
        ),
        (
            "no slash",
            format!("GET shape HTTP/1.1\r\n{named}\r\n\r\n"),
            Refused,
        ),
        (
            "method with a slash",
            format!("G/T /shape HTTP/1.1\r\n{named}\r\n\r\n"),
            Refused,
        ),
        (
            "TLS to a plain port",
            "\x16\x03\x01\x02\x00\x01\x00\x01\u{7f}\x03\x03\r\n\r\n".to_owned(),
            Refused,
        ),
    ];
    scenery.judge(shapes).await;
    let metrics = scenery.sidecar.admin().get("/metrics").send().await.text();
    let counted = metrics
        .lines()
        .find_map(|line| line.strip_prefix("nexus_malformed_requests_total "));
    assert!(
        counted.unwrap().parse::<u64>().unwrap() >= 10,
        "{counted:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn no_host_or_several_are_refused() {
    let scenery = scenery().await;
    for (name, hosts) in [
        ("none", ""),
        ("two", "Host: localhost\r\nHost: localhost\r\n"),
        (
            "two that differ",
            "Host: localhost\r\nHost: evil.example\r\n",
        ),
    ] {
        let bytes = format!("GET /shape HTTP/1.1\r\n{hosts}X-Nexus-Provider: p\r\n\r\n");
        let (answer, arrived) = scenery.send(name, &bytes).await;
        let status = answer.map(|answer| answer.status());
        assert!(matches!(status, Some(400 | 403)), "{name}: {status:?}");
        assert_eq!(arrived, [], "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_requests_are_each_answered_in_order() {
    let scenery = scenery().await;
    let mut agent = RawAgent::connect(scenery.sidecar.proxy_addr()).await;
    let first = post("Content-Length: 3", "abc");
    agent.send(format!("{first}{RIDER}{first}")).await;
    for _ in 0..3 {
        assert!(matches!(agent.receive().await, Outcome::Response(r) if r.status() == 200));
    }
    let targets: Vec<String> = scenery
        .upstream
        .requests()
        .iter()
        .map(|m| m.target().to_owned())
        .collect();
    assert_eq!(targets, ["/shape", "/rider", "/shape"]);
}
