//! Bodies stream: a gigabyte passes at flat memory in either direction, also towards a slow reader, and events
//! arrive one by one.
//!
//! The tests of this file run one after the other. Each judges memory or time, and a gigabyte moved by another at
//! the same moment would be measured with it.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use nexus_tests::broker::Answer;
use nexus_tests::raw::{Outcome, RawAgent};
use nexus_tests::route::Route;
use nexus_tests::scene::Scene;
use nexus_tests::sidecar::Sidecar;
use nexus_tests::tls::{Authority, Leaf};
use nexus_tests::upstream::{Upstream, now_micros};
use nexus_tests::wait;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, MutexGuard};

const GIB: u64 = 1 << 30;
const FLAT: u64 = 16 << 20;

async fn one_at_a_time() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::const_new(());
    TURN.lock().await
}

/// How the upstream is reached.
#[derive(Clone, Copy, Debug)]
enum Via {
    Http1,
    Tls,
    Http2,
    H2c,
}

const ALL: [Via; 4] = [Via::Http1, Via::Tls, Via::Http2, Via::H2c];

impl Via {
    async fn scene(self) -> Scene {
        let authority = Authority::new();
        let builder = Upstream::builder();
        let upstream = match self {
            Self::Http1 | Self::H2c => builder,
            Self::Tls => builder.tls(&authority, Leaf::Valid, &["http/1.1"]),
            Self::Http2 => builder.tls(&authority, Leaf::Valid, &["h2", "http/1.1"]),
        };
        let adapt = |route: Route| match self {
            Self::Http1 => route,
            Self::H2c => route.upstream("protocol", "H2C"),
            Self::Tls | Self::Http2 => route.upstream("caBundle", authority.pem()),
        };
        let scene = Scene::with_upstream(
            Answer::oauth2("token-of-the-streams"),
            upstream.start().await,
            adapt,
        )
        .await;
        // Connections, TLS state and the credential are in place before memory is measured.
        let warm = scene.get("/").send().await;
        assert_eq!(warm.status, 200, "{self:?}: {}", warm.text());
        scene
    }

    fn version(self) -> &'static str {
        match self {
            Self::Http1 | Self::Tls => "HTTP/1.1",
            Self::Http2 | Self::H2c => "HTTP/2.0",
        }
    }
}

/// The highest resident size of a sidecar, sampled while something runs.
struct Peak {
    before: u64,
    highest: u64,
}

impl Peak {
    fn start(sidecar: &Sidecar) -> Self {
        let before = sidecar.resident();
        Self {
            before,
            highest: before,
        }
    }

    fn sample(&mut self, sidecar: &Sidecar) {
        self.highest = self.highest.max(sidecar.resident());
    }

    fn assert_flat(&self, what: &str) {
        let growth = self.highest - self.before;
        assert!(
            growth < FLAT,
            "{what}: memory grew by {growth} bytes from {}",
            self.before
        );
    }
}

/// Sends the head of a request by hand, so that its body can be written at will.
async fn begin(sidecar: &Sidecar, head: &str) -> TcpStream {
    let mut stream = TcpStream::connect(sidecar.proxy_addr()).await.unwrap();
    let head = format!("{head}\r\nHost: localhost\r\nX-Nexus-Provider: p\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gigabyte_comes_down_at_flat_memory() {
    let _turn = one_at_a_time().await;
    for via in ALL {
        let scene = via.scene().await;
        let mut peak = Peak::start(&scene.sidecar);
        let response = scene.get(&format!("/download/{GIB}")).open().await.unwrap();
        assert_eq!(response.status(), 200);
        let expected = vec![b'd'; 4 << 20];
        let (mut length, mut sampled) = (0, 0);
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            let data: Bytes = frame.unwrap().into_data().unwrap();
            assert!(
                data == expected[..data.len()],
                "{via:?}: changed on the way"
            );
            length += data.len() as u64;
            if length - sampled > (8 << 20) {
                peak.sample(&scene.sidecar);
                sampled = length;
            }
        }
        assert_eq!(length, GIB, "{via:?}");
        assert_eq!(scene.upstream.last().version, via.version());
        peak.assert_flat(&format!("download, {via:?}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gigabyte_goes_up_at_flat_memory() {
    let _turn = one_at_a_time().await;
    for via in ALL {
        let scene = via.scene().await;
        let mut peak = Peak::start(&scene.sidecar);
        let head = format!("PUT /sink HTTP/1.1\r\nConnection: close\r\nContent-Length: {GIB}");
        let mut stream = begin(&scene.sidecar, &head).await;
        let part = vec![b'u'; 1 << 20];
        for _ in 0..GIB >> 20 {
            stream.write_all(&part).await.unwrap();
            peak.sample(&scene.sidecar);
        }
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{via:?}: {answer}");
        let seen = scene.upstream.last();
        assert_eq!(seen.length, GIB, "{via:?}");
        // SHA-256 of 2^30 times `u`.
        assert_eq!(
            seen.sha256,
            "a39bdb0db7e5f58d6fc644d09c4057de1ccb4e42c4692d4dd20acd5b98d458cc"
        );
        assert_eq!(seen.version, via.version());
        peak.assert_flat(&format!("upload, {via:?}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_slows_the_upstream_down_and_fills_no_memory() {
    let _turn = one_at_a_time().await;
    let [http1, tls, http2, h2c] = ALL.map(read_slowly);
    tokio::join!(http1, tls, http2, h2c);
}

/// Reads one megabyte a second, for ten seconds.
async fn read_slowly(via: Via) {
    let scene = via.scene().await;
    let mut peak = Peak::start(&scene.sidecar);
    let head = format!("GET /download/{GIB} HTTP/1.1");
    let mut stream = begin(&scene.sidecar, &head).await;
    let mut part = vec![0; 100_000];
    let mut pace = tokio::time::interval(Duration::from_millis(100));
    for _ in 0..100 {
        pace.tick().await;
        stream.read_exact(&mut part).await.unwrap();
        peak.sample(&scene.sidecar);
    }
    assert_eq!(scene.upstream.open_responses(), 1, "{via:?}: held back");
    peak.assert_flat(&format!("slow reader, {via:?}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_upstream_reader_slows_the_agent_down_and_fills_no_memory() {
    let _turn = one_at_a_time().await;
    let scene = Via::Http1.scene().await;
    let mut peak = Peak::start(&scene.sidecar);
    let head = format!("PUT /unread HTTP/1.1\r\nContent-Length: {GIB}");
    let mut stream = begin(&scene.sidecar, &head).await;
    let part = vec![b'u'; 1 << 20];
    let mut written: u64 = 0;
    // The upstream never reads: writing must come to a stop once the sockets' buffers are full.
    while let Ok(result) =
        tokio::time::timeout(Duration::from_secs(2), stream.write_all(&part)).await
    {
        result.unwrap();
        written += part.len() as u64;
        peak.sample(&scene.sidecar);
        assert!(written < GIB, "nothing held the agent back");
    }
    peak.assert_flat("upload that nobody reads");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_arrive_one_by_one_within_50_ms() {
    let _turn = one_at_a_time().await;
    for via in ALL {
        let scene = via.scene().await;
        let response = scene.get("/sse/40/25").open().await.unwrap();
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let mut body = response.into_body();
        let mut buffer = String::new();
        let mut delays = Vec::new();
        while let Some(frame) = body.frame().await {
            let now = now_micros();
            let data = frame.unwrap().into_data().unwrap();
            buffer += std::str::from_utf8(&data).unwrap();
            while let Some((event, rest)) = buffer.split_once("\n\n") {
                let event: Value =
                    serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap();
                assert_eq!(event["index"], delays.len());
                delays.push(now - event["sent"].as_u64().unwrap());
                buffer = rest.to_owned();
            }
        }
        assert_eq!(delays.len(), 40, "{via:?}");
        let worst = *delays.iter().max().unwrap();
        assert!(worst < 50_000, "{via:?}: microseconds {delays:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answer_may_begin_before_the_request_has_ended() {
    let _turn = one_at_a_time().await;
    let scene = Via::Http1.scene().await;
    let head = "POST /early HTTP/1.1\r\nConnection: close\r\nTransfer-Encoding: chunked";
    let mut stream = begin(&scene.sidecar, head).await;
    let mut first = [0; 12];
    wait::within("the upstream's early answer", stream.read_exact(&mut first))
        .await
        .unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    stream.write_all(b"3\r\nend\r\n0\r\n\r\n").await.unwrap();
    let mut rest = String::new();
    wait::within("the answer's end", stream.read_to_string(&mut rest))
        .await
        .unwrap();
    assert!(rest.contains("begun") && rest.contains("ended"), "{rest}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_announced_body_is_asked_for_and_a_refusal_comes_without_it() {
    let _turn = one_at_a_time().await;
    let scene = Via::Http1.scene().await;
    let expect = |provider: &str| {
        format!(
            "PUT /announced HTTP/1.1\r\nHost: localhost\r\nX-Nexus-Provider: {provider}\r\n\
             Expect: 100-continue\r\nContent-Length: 5\r\n\r\n"
        )
    };
    let mut agent = RawAgent::connect(scene.sidecar.proxy_addr()).await;
    agent.send(expect("p")).await;
    assert!(matches!(agent.receive().await, Outcome::Response(r) if r.status() == 100));
    agent.send("hello").await;
    assert!(matches!(agent.receive().await, Outcome::Response(r) if r.status() == 200));
    assert_eq!(scene.upstream.last().body, "hello");

    let mut agent = RawAgent::connect(scene.sidecar.proxy_addr()).await;
    agent.send(expect("nobody")).await;
    assert!(matches!(agent.receive().await, Outcome::Response(r) if r.status() == 404));
}
