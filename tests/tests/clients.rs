//! Agents written with requests, axios, fetch and curl reach an upstream through the sidecar without a secret.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use nexus_tests::broker::{Answer, Broker};
use nexus_tests::clients::{ask, node_script, output, python_script, repository};
use nexus_tests::connection;
use nexus_tests::route::Route;
use nexus_tests::sidecar::Sidecar;
use nexus_tests::upstream::Upstream;
use serde_json::{Value, json};
use tokio::process::Command;

/// Two tenants of one provider.
struct TwoTenants {
    _broker: Broker,
    upstream: Upstream,
    sidecar: Sidecar,
}

impl TwoTenants {
    async fn start() -> Self {
        let broker = Broker::gateway().await;
        broker.set(&connection(1), Answer::oauth2("token-of-tenant-one"));
        broker.set(&connection(2), Answer::oauth2("token-of-tenant-two"));
        let upstream = Upstream::start().await;
        let route = Route::new("github", &upstream.url())
            .tenant("one", &connection(1))
            .tenant("two", &connection(2));
        let sidecar = Sidecar::with(&broker, &route).await;
        Self {
            _broker: broker,
            upstream,
            sidecar,
        }
    }

    /// Target and `Authorization` of every request that arrived.
    fn arrived(&self) -> Vec<(String, String)> {
        let seen = self.upstream.seen();
        seen.iter()
            .map(|s| (s.target.clone(), s.header("authorization").to_owned()))
            .collect()
    }
}

fn arrivals(of: &[(&str, &str)]) -> Vec<(String, String)> {
    of.iter()
        .map(|(target, token)| ((*target).to_owned(), format!("Bearer {token}")))
        .collect()
}

async fn requests(sidecar: &Sidecar, arguments: &[&str]) -> Value {
    let mut agent = python_script("tests/clients/python/requests_agent.py");
    ask(agent.arg(sidecar.url()).args(arguments), &Value::Null).await
}

async fn axios(sidecar: &Sidecar, arguments: &[&str]) -> Value {
    let mut agent = node_script("tests/clients/node/axios_agent.mjs");
    ask(agent.arg(sidecar.url()).args(arguments), &Value::Null).await
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_and_axios_name_provider_and_tenant_by_two_headers() {
    let scene = TwoTenants::start().await;
    let python = requests(&scene.sidecar, &["headers", "github", "one"]).await;
    let node = axios(&scene.sidecar, &["headers", "github", "two"]).await;
    assert_eq!(python["statuses"], json!([200, 200]));
    assert_eq!(node["statuses"], json!([200, 200]));
    assert_eq!(
        scene.arrived(),
        arrivals(&[
            ("/first?q=a+b", "token-of-tenant-one"),
            ("/second", "token-of-tenant-one"),
            ("/first?q=a+b", "token-of-tenant-two"),
            ("/second", "token-of-tenant-two"),
        ])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_axios_and_fetch_get_by_with_a_base_url_alone() {
    let scene = TwoTenants::start().await;
    let python = requests(&scene.sidecar, &["base_url", "github", "two"]).await;
    let node = axios(&scene.sidecar, &["base_url", "github", "one"]).await;
    let fetch = axios(&scene.sidecar, &["fetch", "github@one"]).await;
    assert_eq!(python["statuses"], json!([200]));
    assert_eq!(node["statuses"], json!([200]));
    assert_eq!(fetch["statuses"], json!([200]));
    assert_eq!(
        scene.arrived(),
        arrivals(&[
            ("/by-base-url", "token-of-tenant-two"),
            ("/by-base-url", "token-of-tenant-one"),
            ("/by-fetch", "token-of-tenant-one"),
        ])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_setting_reaches_routed_hosts_and_no_other() {
    let broker = Broker::gateway().await;
    broker.set(&connection(1), Answer::oauth2("token-of-the-proxied"));
    let (routed, other) = (Upstream::start().await, Upstream::start().await);
    let route = Route::new("api", &routed.url()).connection(&connection(1));
    let sidecar = Sidecar::with(&broker, &route).await;
    let target = format!("{}/absolute", routed.url());
    let elsewhere = format!("{}/absolute", other.url());
    for agent in ["requests", "axios"] {
        let ask = async |target: &str| match agent {
            "requests" => requests(&sidecar, &["proxy", target]).await,
            _ => axios(&sidecar, &["proxy", target]).await,
        };
        assert_eq!(ask(&target).await["statuses"], json!([200]), "{agent}");
        assert_eq!(routed.last().target, "/absolute");
        assert_eq!(
            routed.last().header("authorization"),
            "Bearer token-of-the-proxied"
        );
        let refused = ask(&elsewhere).await;
        assert_eq!(refused["statuses"], json!([404]), "{agent}");
        assert_eq!(refused["error"], "provider_unknown", "{agent}");
    }
    assert_eq!(other.seen().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_streams_up_and_down() {
    let scene = TwoTenants::start().await;
    let python = requests(&scene.sidecar, &["stream", "github@one"]).await;
    assert_eq!(python, json!({"statuses": [200, 200], "events": 5}));
    let sent: usize = (0..1000).map(|n| format!("part {n}\n").len()).sum();
    assert_eq!(scene.upstream.seen()[0].length, sent as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_read_failures_as_problem_json() {
    let scene = TwoTenants::start().await;
    let python = requests(&scene.sidecar, &["failure", "nobody"]).await;
    let node = axios(&scene.sidecar, &["failure", "nobody"]).await;
    assert_eq!(python["type"], "application/problem+json");
    for answer in [python, node] {
        assert_eq!(answer["statuses"], json!([404]));
        assert_eq!(answer["error"], "provider_unknown");
        assert_eq!(answer["problem"]["code"], "provider_unknown");
        assert_eq!(answer["problem"]["status"], 404);
        assert!(
            answer["problem"]["requestId"]
                .as_str()
                .is_some_and(|id| !id.is_empty())
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_reaches_the_upstream_over_http_1_and_2() {
    let scene = TwoTenants::start().await;
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--fail-with-body", version])
            .args([
                "--write-out",
                "%{http_code} %{http_version}",
                "--output",
                "/dev/null",
            ])
            .args(["--header", "X-Nexus-Provider: github"])
            .args(["--header", "X-Nexus-Tenant: one"])
            .arg(format!("{}/curl", scene.sidecar.url()));
        let version = if version == "--http1.1" { "1.1" } else { "2" };
        assert_eq!(output(&mut curl).await, format!("200 {version}"));
    }
    assert_eq!(
        scene.arrived(),
        arrivals(&[
            ("/curl", "token-of-tenant-one"),
            ("/curl", "token-of-tenant-one"),
        ])
    );
}

/// The examples, each against the provider and tenant it is given.
#[tokio::test(flavor = "multi_thread")]
async fn every_example_agent_runs_as_it_is() {
    let scene = TwoTenants::start().await;
    let mut curl = Command::new(repository().join("examples/curl/agent.sh"));
    for (name, agent) in [
        ("python", &mut python_script("examples/python/agent.py")),
        ("node", &mut node_script("examples/node/agent.mjs")),
        ("curl", &mut curl),
    ] {
        let before = scene.upstream.seen().len();
        let agent = agent.args(["github", "two"]);
        let text = output(agent.env("NEXUS_SIDECAR_URL", scene.sidecar.url())).await;
        let arrived = &scene.arrived()[before..];
        assert_eq!(arrived.len(), 2, "{name} calls by headers and by base URL");
        for (target, authorization) in arrived {
            assert!(target.starts_with("/hello"), "{name}: {target}");
            assert_eq!(authorization, "Bearer token-of-tenant-two", "{name}");
        }
        assert!(
            !text.contains("token-of-tenant-two"),
            "{name} was shown the token: {text}"
        );
    }
}

#[test]
fn examples_pin_the_versions_that_are_tested() {
    let read = |path: &str| std::fs::read_to_string(repository().join(path)).unwrap();
    let axios = |path: &str| -> Value {
        let package: Value = serde_json::from_str(&read(path)).unwrap();
        package["dependencies"]["axios"].clone()
    };
    assert_eq!(
        axios("examples/node/package.json"),
        axios("tests/clients/node/package.json")
    );
    let tested = read("tests/clients/python/requirements.txt");
    for line in read("examples/python/requirements.txt").lines() {
        assert!(tested.lines().any(|l| l == line), "{line}");
    }
}
