//! What happens after an upstream has rejected a credential: it is read again, the request is sent again once if
//! its content is still there, and else the rejection goes back untouched.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::time::Duration;

use nexus_tests::broker::{Answer, Provider, Standing};
use nexus_tests::guarded::{Accepts, Guarded, REFUSED, Refuses};
use nexus_tests::raw::{Outcome, RawAgent};
use nexus_tests::upstream::Seen;
use serde_json::json;

/// Replay buffer of the routes here.
const BUFFER: usize = 64 << 10;

/// How a request carries its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Empty,
    Small,
    Chunked,
    Trailers,
    FillsTheBuffer,
    OverTheBuffer,
    ChunkedOverTheBuffer,
    Expecting,
}

impl Kind {
    fn content(self) -> Vec<u8> {
        let length = match self {
            Self::Empty => 0,
            Self::Small | Self::Expecting => 300,
            Self::Chunked | Self::Trailers => 3000,
            Self::FillsTheBuffer => BUFFER,
            Self::OverTheBuffer | Self::ChunkedOverTheBuffer => BUFFER + 1,
        };
        // Places differ from their neighbours near and far, so that a shifted or repeated part shows.
        let pattern = (0..=250_u8).flat_map(|row| (0..=250_u8).map(move |at| at ^ row));
        pattern.cycle().take(length).collect()
    }

    fn fits(self) -> bool {
        self.content().len() <= BUFFER
    }

    fn head(self) -> String {
        match self {
            Self::Empty => String::new(),
            Self::Chunked | Self::ChunkedOverTheBuffer => {
                "Transfer-Encoding: chunked\r\n".to_owned()
            }
            Self::Trailers => {
                "Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\nTE: trailers\r\n".to_owned()
            }
            Self::Small | Self::FillsTheBuffer | Self::OverTheBuffer => {
                format!("Content-Length: {}\r\n", self.content().len())
            }
            Self::Expecting => format!(
                "Content-Length: {}\r\nExpect: 100-continue\r\n",
                self.content().len()
            ),
        }
    }

    fn framed(self) -> Vec<u8> {
        let content = self.content();
        if !self.head().contains("chunked") {
            return content;
        }
        let mut bytes = Vec::new();
        for chunk in content.chunks(1000) {
            bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            bytes.extend_from_slice(chunk);
            bytes.extend_from_slice(b"\r\n");
        }
        let trailer = if self == Self::Trailers {
            "X-Sum: 42\r\n"
        } else {
            ""
        };
        bytes.extend_from_slice(format!("0\r\n{trailer}\r\n").as_bytes());
        bytes
    }
}

/// Sends one request and returns status, `X-Nexus-Error` and content of its answer.
async fn send(guarded: &Guarded, method: &str, kind: Kind) -> (u16, String, Vec<u8>) {
    let mut agent = RawAgent::connect(guarded.sidecar.proxy_addr()).await;
    let head = format!(
        "{method} /path?query=1 HTTP/1.1\r\nHost: localhost\r\nX-Nexus-Provider: p\r\nX-Own: kept\r\n{}\r\n",
        kind.head()
    );
    agent.send(head).await;
    if kind == Kind::Expecting {
        let Outcome::Response(interim) = agent.receive().await else {
            panic!("closed instead of 100");
        };
        assert_eq!(interim.status(), 100);
    }
    agent.send(kind.framed()).await;
    match agent.receive().await {
        Outcome::Response(answer) => {
            let error = answer.header("x-nexus-error").unwrap_or_default();
            (answer.status(), error.to_owned(), answer.body.clone())
        }
        Outcome::Closed => panic!("closed without an answer"),
    }
}

fn assert_whole(seen: &Seen, method: &str, kind: Kind) {
    assert_eq!(
        (seen.method.as_str(), seen.target.as_str()),
        (method, "/path?query=1")
    );
    assert_eq!(seen.header("x-own"), "kept");
    assert!(seen.body == kind.content(), "{kind:?}: other bytes arrived");
    let trailers: Vec<(String, String)> = match kind {
        Kind::Trailers => vec![("x-sum".to_owned(), "42".to_owned())],
        _ => Vec::new(),
    };
    assert_eq!(seen.trailers, trailers, "{kind:?}");
}

async fn with_small_buffer() -> Guarded {
    let replay = json!({"statusCodes": [401], "maxBodyBytes": BUFFER});
    Guarded::adapted(Provider::new("p"), Refuses::default(), |route| {
        route.with("replay", replay)
    })
    .await
}

/// A rejection after a rotation: read again and sent again, unless the content is past the buffer.
async fn rotated(method: &str, kind: Kind) {
    let guarded = with_small_buffer().await;
    assert_eq!(guarded.get("/").send().await.status, 200);
    let (before, calls) = (guarded.upstream.seen().len(), guarded.calls());
    let old = guarded.current();
    guarded.rotate();
    let (status, error, body) = send(&guarded, method, kind).await;
    let arrived = guarded.upstream.seen().split_off(before);
    let sent = guarded.sent().split_off(before);
    for seen in &arrived {
        assert_whole(seen, method, kind);
    }
    if kind.fits() {
        assert_eq!(
            (status, error.as_str()),
            (200, ""),
            "{}",
            String::from_utf8_lossy(&body)
        );
        assert_eq!(sent, [old, guarded.current()]);
    } else {
        assert_eq!((status, error.as_str()), (401, ""));
        assert_eq!(body, REFUSED.as_bytes(), "the upstream's own answer");
        assert_eq!(sent, [old]);
        // The rejection was not for nothing.
        let (status, ..) = send(&guarded, method, kind).await;
        assert_eq!(status, 200);
        assert_eq!(guarded.sent().split_off(before + 1), [guarded.current()]);
    }
    assert_eq!(guarded.calls(), calls + 1, "read again once");
    assert_eq!(guarded.refreshes(), 0, "nothing had to be refreshed");
}

macro_rules! rotated {
    ($($name:ident: $method:literal $kind:ident,)*) => {
        mod a_rotation_is_picked_up_by_the_rejected_request {
            use super::{Kind, rotated};
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $name() {
                    rotated($method, Kind::$kind).await;
                }
            )*
        }
    };
}

rotated! {
    get: "GET" Empty,
    delete: "DELETE" Empty,
    options: "OPTIONS" Empty,
    post_empty: "POST" Empty,
    post_small: "POST" Small,
    post_chunked: "POST" Chunked,
    post_with_trailers: "POST" Trailers,
    post_that_fills_the_buffer: "POST" FillsTheBuffer,
    post_over_the_buffer: "POST" OverTheBuffer,
    post_chunked_over_the_buffer: "POST" ChunkedOverTheBuffer,
    post_expecting_100: "POST" Expecting,
    put_small: "PUT" Small,
    put_over_the_buffer: "PUT" OverTheBuffer,
    patch_chunked: "PATCH" Chunked,
    delete_small: "DELETE" Small,
    method_of_its_own: "FROBNICATE" Small,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejection_over_http2_is_replayed_too() {
    let guarded = Guarded::adapted(Provider::new("p"), Refuses::default(), |route| {
        route.upstream("protocol", "H2C")
    })
    .await;
    assert_eq!(guarded.get("/").send().await.status, 200);
    guarded.rotate();
    assert_eq!(guarded.post("/", "content").send().await.status, 200);
    let seen = guarded.upstream.seen();
    assert_eq!(seen.len(), 3);
    assert!(seen.iter().all(|seen| seen.version == "HTTP/2.0"));
    assert_eq!(
        (&seen[1].body[..], &seen[2].body[..]),
        (&b"content"[..], &b"content"[..])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_routes_statuses_say_what_a_dead_credential_is() {
    let refuses = Refuses {
        status: 403,
        challenge: "Bearer",
    };
    let only_403 = json!({"statusCodes": [403]});
    let guarded = Guarded::adapted(Provider::new("p"), refuses, |route| {
        route.with("replay", only_403.clone())
    })
    .await;
    guarded.get("/").send().await;
    guarded.rotate();
    assert_eq!(guarded.get("/").send().await.status, 200);

    let guarded = Guarded::adapted(Provider::new("p"), Refuses::default(), |route| {
        route.with("replay", only_403)
    })
    .await;
    guarded.get("/").send().await;
    let calls = guarded.calls();
    guarded.rotate();
    assert_eq!(guarded.get("/").send().await.status, 401);
    assert_eq!(guarded.get("/").send().await.status, 401);
    assert_eq!(guarded.calls(), calls, "a 401 means something else here");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_routes_methods_are_sent_again() {
    let replay = json!({"statusCodes": [401], "methods": ["GET"]});
    let guarded = Guarded::adapted(Provider::new("p"), Refuses::default(), |route| {
        route.with("replay", replay)
    })
    .await;
    guarded.get("/").send().await;
    guarded.rotate();
    let answer = guarded.post("/", "content").send().await;
    assert_eq!((answer.status, answer.text().as_str()), (401, REFUSED));
    assert_eq!(guarded.upstream.seen().len(), 2);
    assert_eq!(guarded.post("/", "content").send().await.status, 200);
    guarded.rotate();
    assert_eq!(guarded.get("/").send().await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejection_of_an_unchanged_value_comes_back_untouched() {
    let guarded = Guarded::by(Provider::new("p")).await;
    guarded.accept(Accepts::Nothing);
    let answer = guarded.post("/", "content").send().await;
    assert_eq!((answer.status, answer.text().as_str()), (401, REFUSED));
    assert_eq!(answer.error(), "", "it is the upstream's");
    assert_eq!(answer.header("x-upstream"), "refused");
    assert_eq!(
        answer.header("www-authenticate"),
        Refuses::default().challenge
    );
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!(guarded.upstream.seen().len(), 1, "sent once");
    assert_eq!(guarded.refreshes(), 0, "it was obtained just now");
    assert_eq!(guarded.calls(), 2, "fetched, and read again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_sent_again_once_only() {
    let guarded = Guarded::by(Provider::new("p")).await;
    assert_eq!(guarded.get("/").send().await.status, 200);
    let old = guarded.current();
    guarded.broker.rotate(&Guarded::id());
    guarded.accept(Accepts::Nothing);
    let answer = guarded.get("/").send().await;
    assert_eq!((answer.status, answer.text().as_str()), (401, REFUSED));
    assert_eq!(guarded.sent().split_off(1), [old, guarded.current()]);
    assert_eq!(guarded.refreshes(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejection_whose_reread_fails_comes_back_untouched() {
    let guarded = Guarded::by(Provider::new("p")).await;
    assert_eq!(guarded.get("/").send().await.status, 200);
    guarded.accept(Accepts::Nothing);
    let failed = Answer::status(502, "upstream_error");
    guarded.broker.script(&Guarded::id(), [failed]);
    let answer = guarded.get("/").send().await;
    assert_eq!((answer.status, answer.text().as_str()), (401, REFUSED));
    assert_eq!((guarded.upstream.seen().len(), guarded.refreshes()), (2, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_rejections_cause_no_refresh_and_few_reads() {
    const REQUESTS: usize = 1000;
    const AT_ONCE: usize = 50;
    let guarded = Guarded::by(Provider::new("p")).await;
    assert_eq!(guarded.get("/").send().await.status, 200);
    guarded.accept(Accepts::Nothing);
    let mut agents = tokio::task::JoinSet::new();
    for _ in 0..AT_ONCE {
        let call = guarded.get("/");
        agents.spawn(async move {
            for _ in 0..REQUESTS / AT_ONCE {
                let answer = call.clone().send().await;
                assert_eq!((answer.status, answer.text().as_str()), (401, REFUSED));
            }
        });
    }
    while let Some(agent) = agents.join_next().await {
        agent.unwrap();
    }
    assert_eq!(
        guarded.upstream.seen().len(),
        1 + REQUESTS,
        "none was sent twice"
    );
    assert_eq!(guarded.refreshes(), 0, "an agent cannot burn a connection");
    assert_eq!(guarded.broker.max_in_flight(&Guarded::id()), 1);
    let calls = guarded.calls();
    assert!(
        calls <= REQUESTS / 10,
        "{calls} reads of an unchanged value"
    );
    assert_eq!(guarded.broker.standing(&Guarded::id()), Standing::Active);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_saw_the_same_rejection_share_one_read() {
    const AT_ONCE: usize = 40;
    let guarded = Guarded::by(Provider::new("p")).await;
    assert_eq!(guarded.get("/").send().await.status, 200);
    guarded.rotate();
    let slow = Answer::genuine().after(Duration::from_millis(500));
    guarded.broker.script(&Guarded::id(), [slow]);
    let mut agents = tokio::task::JoinSet::new();
    for _ in 0..AT_ONCE {
        agents.spawn(guarded.post("/", "content").send());
    }
    while let Some(answer) = agents.join_next().await {
        assert_eq!(answer.unwrap().status, 200);
    }
    assert_eq!((guarded.calls(), guarded.refreshes()), (2, 0));
    assert!(guarded.upstream.seen().len() <= 1 + 2 * AT_ONCE);
}
