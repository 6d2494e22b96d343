//! An upstream that is gone, breaks off, is late, is not who it should be or must not be reached: each has its code,
//! and what was cut short is never passed off as whole.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use nexus_tests::agent;
use nexus_tests::broker::{Answer, Broker};
use nexus_tests::raw::{RawUpstream, Reply, response};
use nexus_tests::route::Route;
use nexus_tests::scene::Scene;
use nexus_tests::sidecar::Sidecar;
use nexus_tests::tls::{Authority, Leaf};
use nexus_tests::upstream::Upstream;
use serde_json::json;

async fn sidecar_for(route: Route) -> (Broker, Sidecar) {
    let broker = Broker::gateway().await;
    broker.set(&Scene::id(), Answer::oauth2("token-of-the-faults"));
    let sidecar = Sidecar::with(&broker, &route.connection(&Scene::id())).await;
    (broker, sidecar)
}

async fn answer_of(route: Route) -> agent::Answer {
    let (_broker, sidecar) = sidecar_for(route).await;
    sidecar.agent().get("/").provider("p").send().await
}

fn assert_code(answer: &agent::Answer, status: u16, code: &str, what: &str) {
    assert_eq!(
        (answer.status, answer.error()),
        (status, code),
        "{what}: {}",
        answer.text()
    );
    assert!(!answer.text().contains("token-of-the-faults"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_refuses_or_is_unknown_is_unreachable() {
    let gone = Upstream::start().await.url();
    let answer = answer_of(Route::new("p", &gone)).await;
    assert_code(&answer, 502, "upstream_unreachable", "refused");
    let answer = answer_of(Route::new("p", "http://no-such-host.invalid")).await;
    assert_code(&answer, 502, "upstream_unreachable", "no such host");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_closes_resets_or_speaks_garbage_is_unreachable() {
    for (what, reply) in [
        ("close", Reply::BytesThenClose(Vec::new())),
        ("reset", Reply::BytesThenReset(Vec::new())),
        (
            "half a head",
            Reply::BytesThenClose(b"HTTP/1.1 200 OK\r\nX".to_vec()),
        ),
        (
            "garbage",
            Reply::BytesThenClose(b"\x00\x01\x02 nonsense\r\n\r\n".to_vec()),
        ),
        (
            "ssh",
            Reply::BytesThenClose(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()),
        ),
        (
            "unasked upgrade",
            Reply::Bytes(
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"
                    .to_vec(),
            ),
        ),
    ] {
        let upstream = RawUpstream::start(reply).await;
        let answer = answer_of(Route::new("p", &upstream.url())).await;
        assert_code(&answer, 502, "upstream_unreachable", what);
        let sent = upstream
            .received()
            .iter()
            .filter(|bytes| !bytes.is_empty())
            .count();
        assert!((1..=3).contains(&sent), "{what}: sent {sent} times");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_breaks_off_reaches_the_agent_as_broken() {
    let cut: [(&str, Vec<u8>); 3] = [
        (
            "length",
            b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this".to_vec(),
        ),
        (
            "chunk",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\nonly this".to_vec(),
        ),
        (
            "no last chunk",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nonly this\r\n".to_vec(),
        ),
    ];
    for (what, bytes) in cut {
        for reply in [
            Reply::BytesThenClose(bytes.clone()),
            Reply::BytesThenReset(bytes),
        ] {
            let upstream = RawUpstream::start(reply).await;
            let (_broker, sidecar) = sidecar_for(Route::new("p", &upstream.url())).await;
            let response = sidecar.agent().get("/").provider("p").open().await;
            // A reset may overtake the head; then there is no answer to be mistaken for a whole one.
            let Ok(response) = response else { continue };
            if response.status() == 200 {
                assert!(response.into_body().collect().await.is_err(), "{what}");
            } else {
                assert_eq!(response.headers()["x-nexus-error"], "upstream_unreachable");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_delimited_by_close_reaches_the_agent_whole() {
    let bytes = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nall of it".to_vec();
    let upstream = RawUpstream::start(Reply::BytesThenClose(bytes)).await;
    let answer = answer_of(Route::new("p", &upstream.url())).await;
    assert_eq!(
        (answer.status, answer.text()),
        (200, "all of it".to_owned())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_upstream_times_out_by_the_routes_limits() {
    for (field, hangs) in [("responseHeader", "/hang"), ("request", "/hang")] {
        let upstream = Upstream::start().await;
        let route = Route::new("p", &upstream.url()).with("timeouts", json!({field: "1s"}));
        let (_broker, sidecar) = sidecar_for(route).await;
        let start = Instant::now();
        let answer = sidecar.agent().get(hangs).provider("p").send().await;
        assert_code(&answer, 504, "upstream_timeout", field);
        assert!(start.elapsed() >= Duration::from_secs(1), "{field}");
        assert!(answer.text().contains(field), "{field}: {}", answer.text());
    }
    // Once the head is out, a silent stream is cut, so that the agent sees it broken.
    for field in ["idle", "request"] {
        let upstream = Upstream::start().await;
        let route = Route::new("p", &upstream.url()).with("timeouts", json!({field: "1s"}));
        let (_broker, sidecar) = sidecar_for(route).await;
        let response = sidecar
            .agent()
            .get("/silent")
            .provider("p")
            .open()
            .await
            .unwrap();
        assert_eq!(response.status(), 200);
        let ended = nexus_tests::wait::within(field, response.into_body().collect()).await;
        assert!(
            ended.is_err(),
            "{field}: the stream ended as if it were whole"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_ca_is_trusted_where_it_is_given_and_nowhere_else() {
    let authority = Authority::new();
    for (what, leaf, bundle) in [
        ("good", Leaf::Valid, Some(authority.pem())),
        ("unknown authority", Leaf::Valid, None),
        (
            "another authority",
            Leaf::Valid,
            Some(Authority::new().pem()),
        ),
        ("wrong name", Leaf::WrongName, Some(authority.pem())),
        ("expired", Leaf::Expired, Some(authority.pem())),
    ] {
        for alpn in [&["h2", "http/1.1"][..], &["http/1.1"], &[]] {
            let upstream = Upstream::builder()
                .tls(&authority, leaf, alpn)
                .start()
                .await;
            let mut route = Route::new("p", &upstream.url());
            if let Some(pem) = &bundle {
                route = route.upstream("caBundle", pem.as_str());
            }
            let answer = answer_of(route).await;
            if what == "good" {
                assert_eq!(answer.status, 200, "{alpn:?}: {}", answer.text());
                let version = if alpn.first() == Some(&"h2") {
                    "HTTP/2.0"
                } else {
                    "HTTP/1.1"
                };
                assert_eq!(upstream.only().version, version, "{alpn:?}");
            } else {
                assert_code(&answer, 502, "upstream_unreachable", what);
                assert_eq!(upstream.seen().len(), 0, "{what}: nothing was sent");
            }
        }
    }
    // Answers the client's hello with an HTTP error.
    let plain = Upstream::start().await;
    let url = plain.url().replace("http://", "https://");
    let answer = answer_of(Route::new("p", &url)).await;
    assert_code(&answer, 502, "upstream_unreachable", "no TLS at all");
    assert_eq!(plain.seen().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn private_and_forbidden_addresses_are_refused() {
    let upstream = Upstream::start().await;
    let private = Route::new("p", &upstream.url()).upstream("allowPrivateAddresses", false);
    let answer = answer_of(private).await;
    assert_code(&answer, 502, "upstream_refused_address", "loopback");
    let port = upstream.addr().port();
    for host in [
        "169.254.169.254".to_owned(),
        "168.63.129.16".to_owned(),
        "100.100.100.200".to_owned(),
        "[fd00:ec2::254]".to_owned(),
        "[::ffff:169.254.169.254]".to_owned(),
        "[64:ff9b::a9fe:a9fe]".to_owned(),
    ] {
        let answer = answer_of(Route::new("p", &format!("http://{host}:{port}"))).await;
        assert_code(&answer, 502, "upstream_refused_address", &host);
    }
    // The gateway that holds every credential is no upstream.
    let broker = Broker::gateway().await;
    broker.set(&Scene::id(), Answer::oauth2("token-of-the-faults"));
    let route = Route::new("p", &broker.url()).connection(&Scene::id());
    let sidecar = Sidecar::with(&broker, &route).await;
    let other = format!("/v1/token/{}", Scene::id());
    let answer = sidecar.agent().get(&other).provider("p").send().await;
    assert_code(&answer, 502, "upstream_refused_address", "the gateway");
    assert_eq!(upstream.seen().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_back_to_the_sidecar_is_a_loop() {
    let upstream = Upstream::start().await;
    let (_broker, sidecar) = sidecar_for(Route::new("p", &upstream.url())).await;
    let back = Route::new("back", &sidecar.url()).connection(&Scene::id());
    let path = sidecar.routes_folder().join(back.file_name());
    std::fs::write(path, back.yaml()).unwrap();
    let answer = nexus_tests::wait::within("the new route", async {
        loop {
            let answer = sidecar.agent().get("/via/p/").provider("back").send().await;
            if answer.error() != "provider_unknown" {
                break answer;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert_code(&answer, 508, "loop_detected", "back");
    assert_eq!(upstream.seen().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstreams_own_errors_pass_untouched() {
    let scene = Scene::bearer().await;
    for status in [400, 401, 403, 404, 409, 429, 500, 502, 503] {
        let answer = scene.get(&format!("/status/{status}")).send().await;
        assert_eq!(
            (answer.status, answer.error()),
            (status, ""),
            "{}",
            answer.text()
        );
        assert_eq!(answer.json()["status"], status.to_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_answer_may_not_bring_is_dropped_and_the_rest_passes() {
    let mut bytes = response(200, "text/plain", "ok");
    let extra = b"Set-Cookie: a=b\r\nX-Nexus-Error: forged\r\nX-Nexus-Request-Id: forged\r\n\
        Alt-Svc: h3=\":443\"\r\nStrict-Transport-Security: max-age=1\r\nClear-Site-Data: *\r\n\
        WWW-Authenticate: Negotiate\r\nX-Kept: one\r\nX-Kept: two\r\n";
    let at = bytes.windows(2).position(|w| w == b"\r\n").unwrap() + 2;
    bytes.splice(at..at, extra.iter().copied());
    let upstream = RawUpstream::start(Reply::Bytes(bytes)).await;
    let answer = answer_of(Route::new("p", &upstream.url())).await;
    assert_eq!(
        (answer.status, answer.error(), answer.text().as_str()),
        (200, "", "ok")
    );
    for name in [
        "set-cookie",
        "alt-svc",
        "strict-transport-security",
        "clear-site-data",
        "www-authenticate",
    ] {
        assert!(!answer.headers.contains_key(name), "{name}");
    }
    let kept: Vec<_> = answer.headers.get_all("x-kept").iter().collect();
    assert_eq!(kept, ["one", "two"]);
    assert_ne!(answer.header("x-nexus-request-id"), "forged");
}
