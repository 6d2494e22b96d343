//! What an agent or the author of a route gets wrong is answered with its code and a sentence, and nothing hangs.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use nexus_tests::broker::{Answer, Broker};
use nexus_tests::connection;
use nexus_tests::raw::{Outcome, RawAgent};
use nexus_tests::route::Route;
use nexus_tests::scene::Scene;
use nexus_tests::sidecar::Sidecar;
use nexus_tests::upstream::Upstream;
use nexus_tests::wait;
use serde_json::json;

const GATEWAY: &str = "http://127.0.0.1:1";

#[tokio::test(flavor = "multi_thread")]
async fn routes_that_do_not_parse_end_the_start_with_a_message_that_says_where() {
    let good = Route::new("good", "http://127.0.0.1:1").yaml();
    for (name, content, mentions) in [
        (
            "tabs.yaml",
            "apiVersion: nexus.io/v1alpha1\nkind:\tNexusRoute\n  x: [".to_owned(),
            "tabs.yaml",
        ),
        (
            "kind.yaml",
            good.replace("NexusRoute", "NexusRuote"),
            "kind",
        ),
        (
            "field.yaml",
            good.replace("allowInsecure", "allowUnsecure"),
            "allowUnsecure",
        ),
        (
            "url.yaml",
            good.replace("http://127.0.0.1:1", "ftp://example.com"),
            "url",
        ),
        (
            "insecure.yaml",
            good.replace("allowInsecure: true", "allowInsecure: false"),
            "allowInsecure",
        ),
        (
            "provider.yaml",
            good.replace("provider: good", "provider: Not/Good"),
            "provider",
        ),
    ] {
        let builder = Sidecar::run().file(name, &content).gateway_url(GATEWAY);
        let output = builder.fails().await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{name}: {said}");
        assert!(said.contains(name), "the file of {name}: {said}");
        assert!(said.contains(mentions), "{mentions} in {name}: {said}");
        assert!(output.stdout.is_empty(), "{name} never listened");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_route_file_or_control_plane_ends_the_start() {
    let no_gateway = Sidecar::run().fails().await;
    assert_eq!(no_gateway.status.code(), Some(2));
    let said = String::from_utf8_lossy(&no_gateway.stderr).into_owned();
    assert!(said.contains("--gateway-url"), "{said}");

    let no_file = Sidecar::run().gateway_url(GATEWAY).env("NEXUS_ROUTES", "");
    let folder = no_file.routes_folder();
    std::fs::remove_dir(&folder).unwrap();
    let output = no_file.fails().await;
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains(folder.to_str().unwrap()), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_that_does_not_parse_keeps_the_last_good_routes_and_is_reported() {
    let scene = Scene::bearer().await;
    assert_eq!(scene.get("/before").send().await.status, 200);
    let path = scene.sidecar.routes_folder().join("p.yaml");
    let good = std::fs::read_to_string(&path).unwrap();
    let failures = async || {
        let metrics = scene.sidecar.admin().get("/metrics").send().await.text();
        let line = metrics
            .lines()
            .find(|line| line.starts_with("nexus_route_table_reload_failures_total"));
        line.unwrap()
            .rsplit(' ')
            .next()
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    assert_eq!(failures().await, 0);

    std::fs::write(&path, good.replace("provider:", "pruvider:")).unwrap();
    let logged = scene.sidecar.logged("pruvider").await;
    assert!(logged.contains("last good"), "{logged}");
    let ready = scene.sidecar.admin().get("/readyz").send().await;
    assert_eq!(ready.status, 200, "it still serves");
    let error = ready.json()["lastError"].as_str().unwrap().to_owned();
    assert!(
        error.contains("p.yaml") && error.contains("pruvider"),
        "{error}"
    );
    assert!(failures().await >= 1);
    assert_eq!(scene.get("/during").send().await.status, 200);

    std::fs::write(&path, good.replace("provider: p", "provider: renamed")).unwrap();
    wait::within("the corrected routes", async {
        while scene
            .sidecar
            .agent()
            .get("/after")
            .provider("renamed")
            .send()
            .await
            .status
            != 200
        {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    let ready = scene.sidecar.admin().get("/readyz").send().await.json();
    assert_eq!(
        ready["lastError"],
        serde_json::Value::Null,
        "the error is over"
    );
    assert_eq!(scene.get("/gone").send().await.error(), "provider_unknown");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_request_fails_to_name_has_its_own_code() {
    let broker = Broker::gateway().await;
    broker.set(&connection(1), Answer::oauth2("token-of-tenant-one"));
    broker.set(&connection(2), Answer::oauth2("token-of-tenant-two"));
    let upstream = Upstream::start().await;
    let several = Route::new("several", &upstream.url())
        .tenant("one", &connection(1))
        .tenant("two", &connection(2));
    let plain = Route::new("plain", &upstream.url()).connection(&connection(1));
    let builder = Sidecar::run()
        .route(&several)
        .route(&plain)
        .control(&broker);
    let sidecar = builder.start().await;
    let agent = sidecar.agent();
    for (call, status, code) in [
        (agent.get("/x"), 400, "provider_missing"),
        (agent.get("/via"), 400, "provider_missing"),
        (agent.get("/x").provider("nobody"), 404, "provider_unknown"),
        (agent.get("/via/nobody/x"), 404, "provider_unknown"),
        (agent.get("/x").provider("Upper"), 400, "bad_request"),
        (agent.get("/x").provider("a,b"), 400, "bad_request"),
        (
            agent.get("/x").provider("plain").provider("plain"),
            400,
            "bad_request",
        ),
        (agent.get("/x").provider("several"), 400, "tenant_missing"),
        (agent.get("/via/several/x"), 400, "tenant_missing"),
        (
            agent.get("/x").provider("several").tenant("three"),
            403,
            "tenant_forbidden",
        ),
        (agent.get("/via/several@three/x"), 403, "tenant_forbidden"),
        (
            agent.get("/x").provider("several").tenant("*"),
            400,
            "bad_request",
        ),
        (
            agent.get("/x").provider("several").tenant("one,two"),
            400,
            "bad_request",
        ),
        (
            agent.get("/x").provider("several").tenant("ONE"),
            403,
            "tenant_forbidden",
        ),
        (
            agent.get("/x").provider("plain").tenant("one"),
            404,
            "connection_unknown",
        ),
        (agent.get("/via/p%6Cain/x"), 400, "bad_request"),
    ] {
        let shown = format!("{call:?}");
        let answer = call.send().await;
        assert_eq!(
            (answer.status, answer.error()),
            (status, code),
            "{shown}: {}",
            answer.text()
        );
        let problem = answer.json();
        assert_eq!(answer.header("content-type"), "application/problem+json");
        assert_eq!(problem["code"], code);
        assert_eq!(problem["requestId"], answer.header("x-nexus-request-id"));
        assert!(problem["detail"].as_str().unwrap().len() > 10, "{problem}");
    }
    assert_eq!(upstream.seen().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_are_those_of_the_flag_where_it_is_given() {
    let broker = Broker::gateway().await;
    for number in 1..=3 {
        broker.set(&connection(number), Answer::oauth2("token-of-some-tenant"));
    }
    let upstream = Upstream::start().await;
    let route = Route::new("p", &upstream.url())
        .tenant("one", &connection(1))
        .tenant("two", &connection(2))
        .tenant("*", &connection(3));
    let builder = Sidecar::run()
        .route(&route)
        .control(&broker)
        .arg("--tenants");
    let sidecar = builder.arg("one,other").start().await;
    for (tenant, status) in [("one", 200), ("other", 200), ("two", 403), ("third", 403)] {
        let answer = sidecar
            .agent()
            .get("/")
            .provider("p")
            .tenant(tenant)
            .send()
            .await;
        assert_eq!(answer.status, status, "{tenant}: {}", answer.text());
    }
    // By id alone: one's own works, and a forbidden tenant's is as unknown as one that nobody has.
    let mut answers = Vec::new();
    for number in [1, 2, 9] {
        let call = sidecar
            .agent()
            .get("/")
            .header("X-Nexus-Connection-ID", &connection(number));
        let answer = call.send().await;
        answers.push((answer.status, answer.error().to_owned()));
    }
    assert_eq!(answers[0].0, 200);
    assert_eq!(answers[1], (404, "connection_unknown".to_owned()));
    assert_eq!(answers[1], answers[2]);
    assert_eq!(broker.calls(&connection(3)), 1, "any other allowed tenant");
}

#[tokio::test(flavor = "multi_thread")]
async fn access_rules_and_rate_limits_refuse_with_their_codes() {
    let scene = Scene::adapted(Answer::oauth2("token-of-the-limited"), |route| {
        route
            .with(
                "access",
                json!({
                    "allow": [{"methods": ["GET"], "paths": ["/repos/**"]}],
                    "deny": [{"methods": ["*"], "paths": ["/repos/*/*/keys/**"]}],
                }),
            )
            .with("limits", json!({"requestsPerSecond": 1, "burst": 2}))
    })
    .await;
    for (target, method) in [
        ("/user", http::Method::GET),
        ("/repos/a/b", http::Method::POST),
        ("/repos/a/b/keys/1", http::Method::GET),
        ("/repos/a/b/%6Beys/1", http::Method::GET),
        ("/repos/a/b//keys/1", http::Method::GET),
        ("/repos/a/b/keys;v=1/1", http::Method::GET),
    ] {
        let answer = scene
            .sidecar
            .agent()
            .call(method, target)
            .provider("p")
            .send()
            .await;
        assert_eq!(
            (answer.status, answer.error()),
            (403, "request_denied"),
            "{target}"
        );
    }
    let mut limited = None;
    for _ in 0..8 {
        let answer = scene.get("/repos/a/b").send().await;
        if answer.status != 200 {
            limited = Some(answer);
            break;
        }
    }
    let limited = limited.expect("eight requests at once are more than a burst of two");
    assert_eq!((limited.status, limited.error()), (429, "rate_limited"));
    assert!(limited.header("retry-after").parse::<u64>().unwrap() >= 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_callers_get_trailers_only_errors() {
    let scene = Scene::answering(Answer::status(404, "connection_not_found")).await;
    let call = scene
        .post("/package.Service/Method", "")
        .header("Content-Type", "application/grpc");
    let answer = call.send().await;
    assert_eq!((answer.status, answer.error()), (200, "connection_unknown"));
    assert_eq!(answer.header("grpc-status"), "5");
    assert_eq!(answer.header("content-type"), "application/grpc");
    assert!(answer.body.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn oversized_heads_are_refused_and_the_next_connection_is_served() {
    let scene = Scene::bearer().await;
    let (long, many) = ("x".repeat(100 << 10), "X-A: 1\r\n".repeat(20_000));
    for (name, head, statuses) in [
        (
            "header",
            format!("GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: {long}\r\n\r\n"),
            &[431][..],
        ),
        (
            "headers",
            format!("GET / HTTP/1.1\r\nHost: localhost\r\n{many}\r\n"),
            &[431],
        ),
        (
            "target",
            format!("GET /{long} HTTP/1.1\r\nHost: localhost\r\n\r\n"),
            &[414, 431],
        ),
    ] {
        let mut agent = RawAgent::connect(scene.sidecar.proxy_addr()).await;
        agent.send(head).await;
        match agent.receive().await {
            Outcome::Response(answer) => {
                assert!(statuses.contains(&answer.status()), "{name}: {answer:?}");
                assert_eq!(agent.receive().await, Outcome::Closed, "{name}");
            }
            // The refusal may be lost when the peer resets over unread bytes; being closed on is the answer then.
            Outcome::Closed => {}
        }
    }
    assert_eq!(scene.upstream.seen().len(), 0);
    let near_the_limit = "x".repeat(48 << 10);
    let answer = scene
        .get("/")
        .header("X-Long", &near_the_limit)
        .send()
        .await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(
        scene.upstream.only().header("x-long").len(),
        near_the_limit.len()
    );
}
