//! No web page reaches an upstream through the sidecar: however it addresses the request, with whatever method, and in
//! every mode. What agents send passes.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use http::Method;
use nexus_tests::agent::{Agent, Answer, Call};
use nexus_tests::scene::Scene;
use nexus_tests::sidecar::Sidecar;

/// What browsers send of their own accord, and pages cannot change.
const OF_PAGES: [(&str, &str); 7] = [
    ("Origin", "https://evil.example"),
    ("Origin", "http://localhost.evil.example"),
    ("Origin", "null"),
    ("Sec-Fetch-Site", "cross-site"),
    ("Sec-Fetch-Site", "same-site"),
    // DNS rebinding: the page's own name leads to the sidecar.
    ("Host", "rebound.example"),
    ("Host", "rebound.example:8080"),
];

const METHODS: [Method; 5] = [
    Method::GET,
    Method::HEAD,
    Method::POST,
    Method::PUT,
    Method::OPTIONS,
];

/// The ways to address provider `p`: by header, by prefix, and, where there is one, by the upstream's URL.
fn addressings(agent: Agent, method: &Method, provider: &str, upstream: Option<&str>) -> Vec<Call> {
    let mut calls = vec![
        agent.call(method.clone(), "/x").provider(provider),
        agent.call(method.clone(), &format!("/via/{provider}/x")),
    ];
    calls.extend(upstream.map(|url| agent.call(method.clone(), &format!("{url}/x"))));
    calls
}

fn assert_refused(answer: &Answer, what: &str) {
    assert_eq!(
        (answer.status, answer.error()),
        (403, "origin_forbidden"),
        "{what}"
    );
    let readable = answer
        .headers
        .keys()
        .any(|name| name.as_str().starts_with("access-control-"));
    assert!(!readable, "{what}: {:?}", answer.headers);
}

#[tokio::test(flavor = "multi_thread")]
async fn run_refuses_pages_however_they_address_a_provider() {
    let scene = Scene::bearer().await;
    let url = scene.upstream.url();
    let host = scene.upstream.addr().to_string();
    for (name, value) in OF_PAGES {
        for method in METHODS {
            // The Host of an absolute target is that of its URL, which pages cannot send.
            let absolute = Some(url.as_str()).filter(|_| name != "Host");
            for call in addressings(scene.sidecar.agent(), &method, "p", absolute) {
                let what = format!("{name}: {value} {call:?}");
                assert_refused(&call.header(name, value).send().await, &what);
            }
        }
    }
    assert_eq!(scene.upstream.seen().len(), 0);
    assert_eq!(
        scene.broker.calls(&Scene::id()),
        0,
        "no credential was needed for that"
    );

    for call in addressings(scene.sidecar.agent(), &Method::GET, "p", Some(&url)) {
        let what = format!("{call:?}");
        let answer = call.header("Sec-Fetch-Mode", "cors").send().await;
        assert_eq!(answer.status, 200, "{what}: {}", answer.text());
    }
    let seen = scene.upstream.seen();
    assert_eq!(seen.len(), 3);
    assert!(seen.iter().all(|request| request.header("host") == host));
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_refuses_them_too() {
    let sidecar = Sidecar::dev().start().await;
    for (name, value) in OF_PAGES {
        for method in METHODS {
            for call in addressings(sidecar.agent(), &method, "bearer", None) {
                let what = format!("{name}: {value} {call:?}");
                assert_refused(&call.header(name, value).send().await, &what);
            }
        }
    }
    for call in addressings(sidecar.agent(), &Method::GET, "bearer", None) {
        let what = format!("{call:?}");
        assert_eq!(call.send().await.status, 200, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_allowed_by_its_flag_and_no_other_with_it() {
    let sidecar = Sidecar::dev()
        .arg("--allowed-host=sidecar.internal,host.docker.internal")
        .start()
        .await;
    let ask = |host: &str| {
        let call = sidecar.agent().get("/x").provider("bearer");
        call.header("Host", host).send()
    };
    for host in ["sidecar.internal", "Host.Docker.Internal:8080"] {
        assert_eq!(ask(host).await.status, 200, "{host}");
    }
    for host in ["internal", "x.sidecar.internal", "sidecar.internal.example"] {
        assert_refused(&ask(host).await, host);
    }
}

/// Probes name the pod's address, which the sidecar does not know, so `Host` is not judged there. No page may read an
/// answer across origins, and nothing there is secret.
#[tokio::test(flavor = "multi_thread")]
async fn the_admin_port_answers_probes_and_lets_no_other_origin_read() {
    let scene = Scene::bearer().await;
    assert_eq!(scene.get("/").send().await.status, 200);
    for path in ["/readyz", "/healthz", "/metrics"] {
        let call = scene
            .sidecar
            .admin()
            .get(path)
            .header("Host", "10.1.2.3:9901");
        let answer = call.header("Origin", "https://evil.example").send().await;
        assert_eq!(answer.status, 200, "{path}");
        let readable = answer
            .headers
            .keys()
            .any(|name| name.as_str().starts_with("access-control-"));
        assert!(!readable, "{path}: {:?}", answer.headers);
        assert!(
            !answer.text().contains("access-token-of-the-scene"),
            "{path}"
        );
    }
    for path in ["/", "/via/p/x", "/x"] {
        let call = scene.sidecar.admin().get(path).provider("p");
        assert_eq!(call.send().await.status, 404, "it proxies nothing: {path}");
    }
    assert_eq!(scene.upstream.seen().len(), 1);
}
