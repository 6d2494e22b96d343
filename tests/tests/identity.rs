//! Whom the sidecar works for, as the webhook says in `NEXUS_ADMITTED`: the routes of its pod and no others, the tenants
//! it was admitted with and no others, and no start at all where that is not known for sure.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::path::Path;
use std::time::Duration;

use nexus_crds::table::{RouteTable, TableRoute};
use nexus_tests::agent::Call;
use nexus_tests::broker::{Answer, Broker};
use nexus_tests::connection;
use nexus_tests::sidecar::{Builder, Sidecar};
use nexus_tests::upstream::Upstream;
use nexus_tests::wait;
use serde_json::{Value, json};

/// One upstream, and a control plane where connection `n` has the token `token-n`.
struct Stage {
    broker: Broker,
    upstream: Upstream,
}

impl Stage {
    async fn set() -> Self {
        let broker = Broker::gateway().await;
        for number in 1..=9 {
            broker.set(
                &connection(number),
                Answer::oauth2(&format!("token-{number}")),
            );
        }
        Self {
            broker,
            upstream: Upstream::start().await,
        }
    }

    /// A route with the connection `number` for requests without tenant.
    fn route(&self, provider: &str, number: u32, fields: &Value) -> TableRoute {
        let mut route = json!({
            "name": format!("route-{number}"),
            "provider": provider,
            "upstream": {
                "url": self.upstream.url(),
                "allowInsecure": true,
                "allowPrivateAddresses": true,
            },
            "connections": [{"id": connection(number)}],
        });
        for (field, value) in fields.as_object().unwrap() {
            route[field] = value.clone();
        }
        serde_json::from_value(route).unwrap()
    }

    fn prepare(&self, routes: Vec<TableRoute>) -> Builder {
        let builder = Sidecar::run().control(&self.broker);
        publish(&builder.routes_folder(), 1, routes);
        builder
    }

    async fn admitted(&self, admitted: &Value, routes: Vec<TableRoute>) -> Sidecar {
        self.prepare(routes)
            .env("NEXUS_ADMITTED", &admitted.to_string())
            .start()
            .await
    }
}

fn publish(folder: &Path, revision: u64, routes: Vec<TableRoute>) {
    let mut table = RouteTable::new("agents", routes);
    table.revision = revision;
    let new = folder.join(".new");
    std::fs::write(&new, table.encode().unwrap().as_bytes()).unwrap();
    std::fs::rename(new, folder.join("routes.json")).unwrap();
}

fn app(name: &str) -> Value {
    json!({"podSelector": {"matchLabels": {"app": name}}})
}

/// Status, and the token that reached the upstream or else the error code.
async fn outcome(stage: &Stage, call: Call) -> (u16, String) {
    let before = stage.upstream.seen().len();
    let answer = call.send().await;
    let seen = stage.upstream.seen();
    match &seen[before..] {
        [] => (answer.status, answer.error().to_owned()),
        [request] => {
            let authorization = request.header("authorization");
            let token = authorization.strip_prefix("Bearer ").unwrap_or_default();
            (answer.status, token.to_owned())
        }
        several => panic!("one call became {} requests", several.len()),
    }
}

async fn ask(stage: &Stage, sidecar: &Sidecar, provider: &str) -> (u16, String) {
    outcome(stage, sidecar.agent().get("/").provider(provider)).await
}

fn sent(token: &str) -> (u16, String) {
    (200, token.to_owned())
}

fn refused(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

async fn revision(sidecar: &Sidecar, revision: u64) {
    wait::within(&format!("revision {revision}"), async {
        while sidecar.admin().get("/readyz").send().await.json()["revision"] != revision {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_routes_of_a_provider_each_pod_has_its_own() {
    let stage = Stage::set().await;
    let routes = || {
        let not_a = json!({"podSelector": {"matchExpressions": [
            {"key": "app", "operator": "NotIn", "values": ["a"]},
            {"key": "nexus-off", "operator": "DoesNotExist"},
        ]}});
        vec![stage.route("p", 1, &app("a")), stage.route("p", 2, &not_a)]
    };
    for (labels, expected) in [
        (json!({"app": "a"}), sent("token-1")),
        (json!({"app": "b"}), sent("token-2")),
        (json!({}), sent("token-2")),
        (
            json!({"app": "b", "nexus-off": ""}),
            refused(404, "provider_unknown"),
        ),
    ] {
        let admitted = json!({"version": 1, "labels": labels});
        let sidecar = stage.admitted(&admitted, routes()).await;
        assert_eq!(ask(&stage, &sidecar, "p").await, expected, "{labels}");
        let ready = sidecar.admin().get("/readyz").send().await.json();
        assert_eq!(ready["routes"], u64::from(expected.0 == 200), "{labels}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_for_other_pods_is_the_same_as_what_does_not_exist() {
    let stage = Stage::set().await;
    let routes = vec![
        stage.route("mine", 1, &json!({"serviceAccounts": ["other", "robot"]})),
        stage.route("theirs", 2, &json!({"serviceAccounts": ["other"]})),
        stage.route(
            "ahead",
            3,
            &json!({"serviceAccounts": ["other"], "requires": ["a-feature-of-the-future"]}),
        ),
    ];
    let admitted = json!({"version": 1, "serviceAccount": "robot"});
    let sidecar = stage.admitted(&admitted, routes).await;
    assert_eq!(ask(&stage, &sidecar, "mine").await, sent("token-1"));
    let mut answers = Vec::new();
    for provider in ["theirs", "ahead", "none"] {
        let by_header = sidecar.agent().get("/").provider(provider).send().await;
        let by_prefix = sidecar
            .agent()
            .get(&format!("/via/{provider}/x"))
            .send()
            .await;
        for answer in [by_header, by_prefix] {
            assert_eq!(answer.status, 404);
            assert_eq!(answer.error(), "provider_unknown");
            let detail = answer.json()["detail"].to_string();
            answers.push(detail.replace(provider, "P"));
        }
    }
    assert!(answers.iter().all(|it| *it == answers[0]), "{answers:?}");

    for (number, expected) in [
        (1, sent("token-1")),
        (2, refused(404, "connection_unknown")),
    ] {
        let call = sidecar
            .agent()
            .get("/")
            .header("X-Nexus-Connection-ID", &connection(number));
        assert_eq!(outcome(&stage, call).await, expected);
    }
    assert_eq!(stage.broker.calls(&connection(2)), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absolute_target_finds_the_route_of_this_pod() {
    let stage = Stage::set().await;
    let routes = || {
        vec![
            stage.route("p", 1, &app("a")),
            stage.route("q", 2, &app("b")),
        ]
    };
    for (label, expected) in [
        ("a", sent("token-1")),
        ("b", sent("token-2")),
        ("c", refused(404, "provider_unknown")),
    ] {
        let admitted = json!({"version": 1, "labels": {"app": label}});
        let sidecar = stage.admitted(&admitted, routes()).await;
        let call = sidecar.agent().get(&format!("{}/", stage.upstream.url()));
        assert_eq!(outcome(&stage, call).await, expected, "{label}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_admitted_tenants_may_be_named() {
    let stage = Stage::set().await;
    let connections = json!({"connections": [
        {"tenant": "a", "id": connection(1)},
        {"tenant": "b", "id": connection(2)},
        {"tenant": "*", "id": connection(3)},
    ]});
    let sidecar = stage
        .admitted(
            &json!({"version": 1, "tenants": ["a", "other"]}),
            vec![stage.route("p", 9, &connections)],
        )
        .await;
    let ask = |sidecar: &Sidecar, tenant| sidecar.agent().get("/").provider("p").tenant(tenant);
    for (tenant, expected) in [
        ("a", sent("token-1")),
        ("other", sent("token-3")),
        ("b", refused(403, "tenant_forbidden")),
        ("c", refused(403, "tenant_forbidden")),
    ] {
        assert_eq!(
            outcome(&stage, ask(&sidecar, tenant)).await,
            expected,
            "{tenant}"
        );
    }
    let unnamed = sidecar.agent().get("/").provider("p");
    assert_eq!(
        outcome(&stage, unnamed).await,
        refused(400, "tenant_missing"),
        "there are two"
    );
    let foreign = sidecar
        .agent()
        .get("/")
        .header("X-Nexus-Connection-ID", &connection(2));
    assert_eq!(
        outcome(&stage, foreign).await,
        refused(404, "connection_unknown")
    );

    let one = stage
        .admitted(
            &json!({"version": 1, "tenants": ["other"]}),
            vec![stage.route("p", 9, &connections)],
        )
        .await;
    let unnamed = one.agent().get("/").provider("p");
    assert_eq!(
        outcome(&stage, unnamed).await,
        sent("token-3"),
        "the only one"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_without_tenants_may_name_none() {
    let stage = Stage::set().await;
    let tenants = json!({"connections": [
        {"id": connection(1)},
        {"tenant": "a", "id": connection(2)},
        {"tenant": "*", "id": connection(3)},
    ]});
    for admitted in [json!({"version": 1}), json!({"version": 1, "tenants": []})] {
        let routes = vec![stage.route("p", 9, &tenants)];
        let sidecar = stage.admitted(&admitted, routes).await;
        assert_eq!(ask(&stage, &sidecar, "p").await, sent("token-1"));
        for tenant in ["a", "b"] {
            let call = sidecar.agent().get("/").provider("p").tenant(tenant);
            assert_eq!(
                outcome(&stage, call).await,
                refused(403, "tenant_forbidden"),
                "{admitted} {tenant}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_certain_stops_the_start() {
    let stage = Stage::set().await;
    for (value, says) in [
        ("", "is empty"),
        ("nonsense", "is not what the webhook writes"),
        (r#"{"tenants":["a"]}"#, "missing field `version`"),
        (r#"{"version":2}"#, "has version 2, this one reads 1"),
        (r#"{"version":0}"#, "has version 0, this one reads 1"),
        (r#"{"version":1,"tenants":["*"]}"#, r#"the tenant "*""#),
        (r#"{"version":1,"tenants":"a"}"#, "expected a sequence"),
        (r#"{"version":1,"labels":["a"]}"#, "expected a map"),
    ] {
        let output = stage
            .prepare(vec![stage.route("p", 1, &json!({}))])
            .env("NEXUS_ADMITTED", value)
            .fails()
            .await;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{value}: {error}");
        assert!(
            error.contains("NEXUS_ADMITTED") && error.contains(says),
            "{value}: {error}"
        );
        assert!(!String::from_utf8_lossy(&output.stdout).contains("listening"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_are_given_once() {
    let stage = Stage::set().await;
    let output = stage
        .prepare(vec![stage.route("p", 1, &json!({}))])
        .env("NEXUS_ADMITTED", r#"{"version":1}"#)
        .env("NEXUS_TENANTS", "a")
        .fails()
        .await;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(
        error.contains("--admitted") && error.contains("--tenants"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_that_stops_selecting_the_pod_leaves_and_takes_its_credential_along() {
    let stage = Stage::set().await;
    let admitted = json!({"version": 1, "labels": {"app": "a"}});
    let route = |selector| vec![stage.route("p", 1, &selector)];
    let sidecar = stage.admitted(&admitted, route(app("a"))).await;
    for _ in 0..2 {
        assert_eq!(ask(&stage, &sidecar, "p").await, sent("token-1"));
    }
    assert_eq!(stage.broker.calls(&connection(1)), 1);

    publish(&sidecar.routes_folder(), 2, route(app("b")));
    revision(&sidecar, 2).await;
    assert_eq!(
        ask(&stage, &sidecar, "p").await,
        refused(404, "provider_unknown")
    );
    publish(&sidecar.routes_folder(), 3, route(app("a")));
    revision(&sidecar, 3).await;
    assert_eq!(ask(&stage, &sidecar, "p").await, sent("token-1"));
    assert_eq!(
        stage.broker.calls(&connection(1)),
        2,
        "the credential was dropped with the route"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn outside_of_a_pod_every_route_is_served_and_of_a_provider_the_first() {
    let stage = Stage::set().await;
    let routes = || {
        vec![
            stage.route("p", 1, &app("a")),
            stage.route("p", 2, &app("b")),
            stage.route("q", 3, &json!({"serviceAccounts": ["robot"]})),
        ]
    };
    let sidecar = stage.prepare(routes()).start().await;
    assert_eq!(ask(&stage, &sidecar, "p").await, sent("token-1"));
    assert_eq!(ask(&stage, &sidecar, "q").await, sent("token-3"));
    let second = sidecar
        .agent()
        .get("/")
        .header("X-Nexus-Connection-ID", &connection(2));
    assert_eq!(
        outcome(&stage, second).await,
        refused(404, "connection_unknown")
    );

    publish(&sidecar.routes_folder(), 2, routes());
    revision(&sidecar, 2).await;
    let log = sidecar.stderr();
    let warnings = log
        .iter()
        .filter(|line| line.contains("without --admitted"));
    assert_eq!(warnings.count(), 1, "{log:#?}");
    assert!(
        log.iter()
            .any(|line| line.contains("\"route\":\"route-2\""))
    );
}
