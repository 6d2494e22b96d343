//! Control plane x upstream x content x method: what the agent is answered, what the upstream got, and that no secret
//! comes to light. The combination is in the test's name.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::time::Duration;

use nexus_tests::broker::{Answer, Broker, Front, Outage};
use nexus_tests::canary::Canary;
use nexus_tests::connection;
use nexus_tests::raw::{self, Message, Outcome, RawAgent, Reply};
use nexus_tests::route::Route;
use nexus_tests::script::{Arrival, ScriptedUpstream};
use nexus_tests::sidecar::Sidecar;
use serde_json::json;

/// Replay buffer of the route, in bytes.
const BUFFER: usize = 64 << 10;
/// How long what is slow takes.
const SLOW: Duration = Duration::from_millis(300);

/// How the control plane behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Control {
    Ok,
    Slow,
    /// Answers once, then nothing listens any more.
    GoneAfterFirst,
    NotFound,
    NotActive,
    Attention,
    Failing,
    Unavailable,
    Garbage,
    NoCredential,
    Closing,
    RateLimiting,
    Hanging,
    Trickling,
}

/// How the upstream behaves towards the request in question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Up {
    Answers200,
    Answers403,
    Answers500,
    SlowHead,
    /// Rejects every credential.
    Rejects,
    /// Rejects the one before the rotation.
    RejectsTheOld,
    /// Reads the request and closes its kept connection.
    Closes,
    ClosesMidHead,
    ClosesMidBody,
}

/// How the content is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    Empty,
    Small,
    Chunked,
    OverTheBuffer,
}

impl Content {
    fn bytes(self) -> Vec<u8> {
        let length = match self {
            Self::Empty => 0,
            Self::Small => 100,
            Self::Chunked => 3000,
            Self::OverTheBuffer => BUFFER + 1,
        };
        (0..=250_u8).cycle().take(length).collect()
    }

    fn request(self, method: &str) -> Vec<u8> {
        let content = self.bytes();
        let framing = match self {
            Self::Empty if method == "GET" || method == "DELETE" => String::new(),
            Self::Chunked => "Transfer-Encoding: chunked\r\n".to_owned(),
            Self::Empty | Self::Small | Self::OverTheBuffer => {
                format!("Content-Length: {}\r\n", content.len())
            }
        };
        let head = format!(
            "{method} /case HTTP/1.1\r\nHost: localhost\r\nX-Nexus-Provider: p\r\n{framing}\r\n"
        );
        let mut request = head.into_bytes();
        if self != Self::Chunked {
            request.extend(content);
            return request;
        }
        for chunk in content.chunks(1000) {
            request.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
            request.extend(chunk);
            request.extend(b"\r\n");
        }
        request.extend(b"0\r\n\r\n");
        request
    }
}

/// What must come of a case.
#[derive(Debug)]
struct Expected {
    /// Status and `X-Nexus-Error`; nothing for an answer that breaks off.
    answer: Option<(u16, &'static str)>,
    /// How often the request reaches the upstream.
    arrivals: usize,
}

fn expected(control: Control, up: Up, content: Content, method: &str) -> Expected {
    let refused = match control {
        Control::Ok | Control::Slow | Control::GoneAfterFirst => None,
        Control::NotFound => Some((404, "connection_unknown")),
        Control::NotActive => Some((403, "connection_inactive")),
        Control::Attention => Some((403, "attention_required")),
        Control::Failing
        | Control::Unavailable
        | Control::Garbage
        | Control::NoCredential
        | Control::Closing
        | Control::RateLimiting
        | Control::Hanging
        | Control::Trickling => Some((503, "broker_unavailable")),
    };
    if refused.is_some() {
        return Expected {
            answer: refused,
            arrivals: 0,
        };
    }
    let fits = content != Content::OverTheBuffer;
    let (answer, arrivals) = match up {
        Up::Answers200 | Up::SlowHead => ((200, ""), 1),
        Up::Answers403 => ((403, ""), 1),
        Up::Answers500 => ((500, ""), 1),
        Up::RejectsTheOld if fits && control != Control::GoneAfterFirst => ((200, ""), 2),
        Up::Rejects | Up::RejectsTheOld => ((401, ""), 1),
        // What is not idempotent may have been acted on (RFC 9110 section 9.2.2).
        Up::Closes if fits && !matches!(method, "POST" | "PATCH") => {
            ((502, "upstream_unreachable"), 2)
        }
        Up::Closes | Up::ClosesMidHead => ((502, "upstream_unreachable"), 1),
        Up::ClosesMidBody => {
            return Expected {
                answer: None,
                arrivals: 1,
            };
        }
    };
    Expected {
        answer: Some(answer),
        arrivals,
    }
}

/// The tokens before and after the rotation, and the key that the sidecar shows to the control plane.
struct Secrets {
    old: Canary,
    new: Canary,
    key: Canary,
}

impl Secrets {
    fn new() -> Self {
        Self {
            old: Canary::new("old-token"),
            new: Canary::new("new-token"),
            key: Canary::new("api-key"),
        }
    }

    fn assert_not_in(&self, text: &str, what: &str) {
        for canary in [&self.old, &self.new, &self.key] {
            assert_eq!(canary.find_in(text), None, "{what}: {text}");
        }
    }
}

fn control_answer(control: Control, token: &str) -> Answer {
    let good = Answer::oauth2(token);
    match control {
        Control::Ok | Control::GoneAfterFirst => good,
        Control::Slow => good.after(SLOW),
        Control::NotFound => Answer::status(404, "connection_not_found"),
        Control::NotActive => Answer::status(403, "connection_not_active"),
        Control::Attention => Answer::status(409, "attention_required"),
        Control::Failing => Answer::status(500, "decrypt_failed"),
        Control::Unavailable => Answer::status(502, "upstream_error"),
        Control::Garbage => Answer::raw(raw::response(200, "text/html", "<html>login</html>")),
        Control::NoCredential => Answer::body(r#"{"error":"broker_unavailable"}"#),
        Control::Closing => Answer::close(),
        Control::RateLimiting => Answer::raw(
            "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n",
        ),
        Control::Hanging => Answer::hang(),
        Control::Trickling => good.trickled(Duration::from_secs(1)),
    }
}

/// What the upstream does with the request in question. It repeats the credential in its answers, as some do.
fn upstream_reply(up: Up, arrival: &Arrival, old: &str) -> (Duration, Reply) {
    let credential = arrival.message.header("authorization").unwrap_or_default();
    let text = format!("you sent {credential}");
    let whole = |status| Reply::Bytes(raw::response(status, "text/plain", &text));
    if arrival.message.target() == "/first" {
        return (Duration::ZERO, whole(200));
    }
    let reply = match up {
        Up::RejectsTheOld if credential == format!("Bearer {old}") => whole(401),
        Up::Answers200 | Up::SlowHead | Up::RejectsTheOld => whole(200),
        Up::Answers403 => whole(403),
        Up::Answers500 => whole(500),
        Up::Rejects => whole(401),
        Up::Closes => Reply::BytesThenClose(Vec::new()),
        Up::ClosesMidHead => Reply::BytesThenClose(b"HTTP/1.1 200 OK\r\nContent-".to_vec()),
        Up::ClosesMidBody => {
            let head =
                "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 1000\r\n\r\n";
            Reply::BytesThenClose(format!("{head}{text}").into_bytes())
        }
    };
    let delay = if up == Up::SlowHead {
        SLOW
    } else {
        Duration::ZERO
    };
    (delay, reply)
}

async fn case(control: Control, up: Up, content: Content, method: &str) {
    let secrets = Secrets::new();
    let old = secrets.old.value().to_owned();
    let upstream = ScriptedUpstream::start(move |arrival| upstream_reply(up, arrival, &old)).await;
    let id = connection(1);
    let broker = Broker::start(Front::Broker, Some(secrets.key.value())).await;
    broker.set(&id, control_answer(control, secrets.old.value()));
    let route = Route::new("p", &upstream.url()).connection(&id).with(
        "replay",
        json!({"statusCodes": [401], "maxBodyBytes": BUFFER}),
    );
    let sidecar = Sidecar::run()
        .route(&route)
        .control(&broker)
        .api_key(secrets.key.value())
        .start()
        .await;
    let expected = expected(control, up, content, method);
    let first = usize::from(expected.arrivals > 0);
    if first == 1 {
        // Brings the credential in, and leaves a connection to be used again.
        let answer = sidecar.agent().get("/first").provider("p").send().await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    if control == Control::GoneAfterFirst {
        broker.outage(Outage::Refused).await;
    } else if up == Up::RejectsTheOld {
        broker.set(&id, control_answer(control, secrets.new.value()));
    }

    let mut agent = RawAgent::connect(sidecar.proxy_addr()).await;
    agent.send(content.request(method)).await;
    let outcome = agent.receive().await;
    match (&outcome, expected.answer) {
        (Outcome::Response(answer), Some((status, code))) => {
            assert_answer(answer, status, code, &id);
            secrets.assert_not_in(&format!("{answer:?}"), "the answer");
            secrets.assert_not_in(&String::from_utf8_lossy(&answer.body), "the answer's body");
        }
        (Outcome::Closed, None) => {}
        (outcome, expected) => panic!("{outcome:?} instead of {expected:?}"),
    }
    let arrivals: Vec<Arrival> = upstream.arrivals().split_off(first);
    assert_eq!(arrivals.len(), expected.arrivals, "{arrivals:#?}");
    for (index, arrival) in arrivals.iter().enumerate() {
        assert_eq!(arrival.message.method(), method);
        assert!(
            arrival.message.body == content.bytes(),
            "other bytes arrived"
        );
        let renewed = up == Up::RejectsTheOld && index == 1;
        let token = if renewed { &secrets.new } else { &secrets.old };
        let sent = arrival.message.header("authorization");
        assert_eq!(sent, Some(format!("Bearer {}", token.value()).as_str()));
    }
    assert_eq!(broker.max_in_flight(&id), 1);
    assert_eq!(broker.refreshes(&id), 0, "there was no refresh token");
    secrets.assert_not_in(&sidecar.said(), "the sidecar's output");
}

fn assert_answer(answer: &Message, status: u16, code: &str, id: &str) {
    let text = String::from_utf8_lossy(&answer.body);
    let got = (
        answer.status(),
        answer.header("x-nexus-error").unwrap_or_default(),
    );
    assert_eq!(got, (status, code), "{text}");
    let retry_after = answer.header("retry-after");
    if code == "broker_unavailable" {
        let seconds: u64 = retry_after.expect("when to come back").parse().unwrap();
        assert!(seconds >= 1);
    } else {
        assert_eq!(retry_after, None);
    }
    if code.is_empty() {
        assert!(text.starts_with("you sent "), "the upstream's own: {text}");
    } else {
        let problem: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(problem["code"], code);
        for private in [id, "127.0.0.1"] {
            assert!(
                !text.contains(private),
                "{private} is not for the agent: {text}"
            );
        }
    }
}

macro_rules! requests {
    ($control:ident $up:ident: $($content:ident = $variant:ident { $($name:ident = $method:literal),* })*) => {
        $(
            mod $content {
                use super::super::super::{Content, Control, Up, case};
                $(
                    #[tokio::test(flavor = "multi_thread")]
                    async fn $name() {
                        case(Control::$control, Up::$up, Content::$variant, $method).await;
                    }
                )*
            }
        )*
    };
}

macro_rules! every_request {
    ($control:ident $up:ident) => {
        requests! {
            $control $up:
            body_empty = Empty { get = "GET", post = "POST", delete = "DELETE" }
            body_small = Small { post = "POST", put = "PUT", patch = "PATCH", delete = "DELETE" }
            body_chunked = Chunked { post = "POST", put = "PUT" }
            body_over_the_buffer = OverTheBuffer { post = "POST", put = "PUT" }
        }
    };
}

/// For what takes as long as the sidecar's patience.
macro_rules! few_requests {
    ($control:ident $up:ident) => {
        requests! {
            $control $up:
            body_empty = Empty { get = "GET" }
            body_small = Small { post = "POST" }
            body_over_the_buffer = OverTheBuffer { put = "PUT" }
        }
    };
}

macro_rules! matrix {
    ($which:ident: $($control:ident = $control_is:ident { $($up:ident = $up_is:ident),* $(,)? })*) => {
        $(
            mod $control {
                $(
                    mod $up {
                        $which! { $control_is $up_is }
                    }
                )*
            }
        )*
    };
}

matrix! {
    every_request:
    broker_ok = Ok {
        upstream_200 = Answers200,
        upstream_403 = Answers403,
        upstream_500 = Answers500,
        upstream_slow = SlowHead,
        upstream_401 = Rejects,
        upstream_401_then_200_after_rotation = RejectsTheOld,
        upstream_closes_before_its_answer = Closes,
        upstream_closes_within_its_head = ClosesMidHead,
        upstream_closes_within_its_body = ClosesMidBody,
    }
    broker_slow = Slow {
        upstream_200 = Answers200,
        upstream_401 = Rejects,
        upstream_401_then_200_after_rotation = RejectsTheOld,
        upstream_closes_before_its_answer = Closes,
    }
    broker_gone_after_the_first = GoneAfterFirst {
        upstream_200 = Answers200,
        upstream_500 = Answers500,
        upstream_slow = SlowHead,
        upstream_401 = Rejects,
        upstream_401_after_rotation = RejectsTheOld,
        upstream_closes_before_its_answer = Closes,
        upstream_closes_within_its_body = ClosesMidBody,
    }
    broker_404 = NotFound { upstream_200 = Answers200 }
    broker_403 = NotActive { upstream_200 = Answers200 }
    broker_409 = Attention { upstream_200 = Answers200, upstream_401 = Rejects }
    broker_500 = Failing { upstream_200 = Answers200, upstream_401 = Rejects }
    broker_502 = Unavailable { upstream_200 = Answers200 }
    broker_garbage = Garbage { upstream_200 = Answers200 }
    broker_200_without_credential = NoCredential { upstream_200 = Answers200 }
    broker_closes = Closing { upstream_200 = Answers200 }
    broker_429 = RateLimiting { upstream_200 = Answers200 }
}

matrix! {
    few_requests:
    broker_hangs = Hanging { upstream_200 = Answers200 }
    broker_trickles = Trickling { upstream_200 = Answers200 }
}
