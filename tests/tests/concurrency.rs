//! Many callers cost the control plane one call, and silent streams do not hold others up.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use nexus_tests::broker::{Answer, Broker};
use nexus_tests::connection;
use nexus_tests::raw::{Message, Outcome, RawAgent};
use nexus_tests::route::Route;
use nexus_tests::scene::Scene;
use nexus_tests::sidecar::Sidecar;
use nexus_tests::tls::{Authority, Leaf};
use nexus_tests::upstream::Upstream;
use nexus_tests::wait;
use tokio::sync::Barrier;
use tokio::task::JoinSet;

const CALLERS: usize = 1000;
const SLOW: Duration = Duration::from_millis(500);

/// Connects every caller, releases them together, and returns the answers.
async fn call_at_once(sidecar: &Sidecar, callers: usize) -> Vec<Message> {
    let barrier = Arc::new(Barrier::new(callers));
    let mut calls = JoinSet::new();
    for number in 0..callers {
        let mut agent = RawAgent::connect(sidecar.proxy_addr()).await;
        let barrier = Arc::clone(&barrier);
        calls.spawn(async move {
            barrier.wait().await;
            let request =
                format!("GET /{number} HTTP/1.1\r\nHost: localhost\r\nX-Nexus-Provider: p\r\n\r\n");
            agent.send(request).await;
            match agent.receive().await {
                Outcome::Response(response) => response,
                Outcome::Closed => panic!("caller {number} got no answer"),
            }
        });
    }
    calls.join_all().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_callers_of_a_cold_connection_cause_one_call() {
    let scene = Scene::answering(Answer::oauth2("token-for-a-thousand").after(SLOW)).await;
    let answers = call_at_once(&scene.sidecar, CALLERS).await;
    for answer in &answers {
        assert_eq!(answer.status(), 200, "{answer:?}");
    }
    let seen = scene.upstream.seen();
    assert_eq!(seen.len(), CALLERS);
    for request in &seen {
        assert_eq!(
            request.header("authorization"),
            "Bearer token-for-a-thousand"
        );
    }
    assert_eq!(scene.broker.calls(&Scene::id()), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_caller_that_goes_away_takes_nobody_with_it() {
    let scene = Scene::answering(Answer::oauth2("token-for-the-rest").after(SLOW)).await;
    let mut first = RawAgent::connect(scene.sidecar.proxy_addr()).await;
    first
        .send("GET /first HTTP/1.1\r\nHost: localhost\r\nX-Nexus-Provider: p\r\n\r\n")
        .await;
    wait::until("the first caller's fetch", || {
        (scene.broker.calls(&Scene::id()) == 1).then_some(())
    })
    .await;
    drop(first);
    let answers = call_at_once(&scene.sidecar, CALLERS - 1).await;
    for answer in &answers {
        assert_eq!(answer.status(), 200, "{answer:?}");
    }
    assert_eq!(scene.broker.calls(&Scene::id()), 1);
    let seen = scene.upstream.seen();
    assert!(
        seen.iter().all(|s| s.target != "/first"),
        "nobody waits for it any more"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_callers_share_one_error() {
    for (answer, status, code) in [
        (
            Answer::status(403, "connection_not_active"),
            403,
            "connection_inactive",
        ),
        (
            Answer::status(409, "attention_required"),
            403,
            "attention_required",
        ),
        (
            Answer::status(502, "broker_unavailable"),
            503,
            "broker_unavailable",
        ),
    ] {
        // Against the broker itself, since the gateway passes no codes on.
        let broker = Broker::start(nexus_tests::broker::Front::Broker, Some("key")).await;
        broker.set(&Scene::id(), answer.after(SLOW));
        let upstream = Upstream::start().await;
        let route = Route::new("p", &upstream.url()).connection(&Scene::id());
        let builder = Sidecar::run().route(&route).control(&broker).api_key("key");
        let sidecar = builder.start().await;
        for answer in call_at_once(&sidecar, CALLERS).await {
            assert_eq!(answer.status(), status, "{code}: {answer:?}");
            assert_eq!(answer.header("x-nexus-error"), Some(code));
        }
        assert_eq!(broker.calls(&Scene::id()), 1, "{code}");
        assert_eq!(upstream.seen().len(), 0, "{code}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_tenant_delays_no_other_and_each_is_fetched_once() {
    const TENANTS: u32 = 50;
    let broker = Broker::gateway().await;
    let upstream = Upstream::start().await;
    let mut route = Route::new("p", &upstream.url()).tenant("slow", &connection(0));
    broker.set(&connection(0), Answer::hang());
    for number in 1..=TENANTS {
        let token = format!("token-of-tenant-{number:03}");
        broker.set(&connection(number), Answer::oauth2(&token));
        route = route.tenant(&format!("t{number}"), &connection(number));
    }
    let sidecar = Sidecar::with(&broker, &route).await;
    let stuck = sidecar.agent().get("/").provider("p").tenant("slow");
    let stuck = tokio::spawn(stuck.open());
    wait::until("the slow tenant's fetch", || {
        (broker.calls(&connection(0)) == 1).then_some(())
    })
    .await;
    let mut calls = JoinSet::new();
    for number in 1..=TENANTS {
        for _ in 0..4 {
            let call = sidecar.agent().get("/").provider("p");
            let call = call.tenant(&format!("t{number}"));
            calls.spawn(async move { call.send().await.status });
        }
    }
    assert_eq!(calls.join_all().await, [200; 200]);
    for number in 1..=TENANTS {
        assert_eq!(broker.calls(&connection(number)), 1, "tenant {number}");
    }
    stuck.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_streams_beyond_the_peers_limit_take_another_connection() {
    let authority = Authority::new();
    let upstream = Upstream::builder()
        .tls(&authority, Leaf::Valid, &["h2"])
        .max_streams(100)
        .start()
        .await;
    let answer = Answer::oauth2("token-of-the-silent");
    let scene = Scene::with_upstream(answer, upstream, |route| {
        route.upstream("caBundle", authority.pem())
    })
    .await;
    let mut calls = JoinSet::new();
    for _ in 0..300 {
        let call = scene.get("/silent");
        calls.spawn(async move { call.open().await.unwrap() });
    }
    let streams = wait::within("300 silent streams", calls.join_all()).await;
    assert!(streams.iter().all(|response| response.status() == 200));
    assert_eq!(scene.upstream.open_responses(), 300);

    let start = Instant::now();
    let answer = scene.get("/301").send().await;
    let took = start.elapsed();
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(took < Duration::from_secs(1), "request 301 took {took:?}");
    let connections = scene.upstream.connections();
    assert!((4..=8).contains(&connections), "{connections} connections");
    assert_eq!(scene.upstream.last().version, "HTTP/2.0");

    drop(streams);
    wait::until("dropped streams to end at the upstream", || {
        (scene.upstream.open_responses() == 0).then_some(())
    })
    .await;
}
