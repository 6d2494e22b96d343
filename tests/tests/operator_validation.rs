//! What the API server itself refuses of NexusRoutes and NexusProviders, with the message that `kubectl apply` shows.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use nexus_tests::connection;
use nexus_tests::controlled::Scene;
use serde_json::{Value, json};

/// `kubectl apply` of an object with this spec in the scene's namespace.
fn apply(scene: &Scene, kind: &str, name: &str, spec: &Value) -> nexus_tests::apiserver::Answer {
    let object = json!({
        "apiVersion": "nexus.io/v1alpha1", "kind": kind,
        "metadata": {"name": name, "namespace": (kind == "NexusRoute").then_some(&scene.namespace)},
        "spec": spec,
    });
    scene.cluster.apply(&object.to_string())
}

/// The spec of a route that nothing is wrong with, but for these fields.
fn with(fields: Value) -> Value {
    let mut spec = json!({"upstream": {"url": "https://api.example.com"}});
    if let (Value::Object(spec), Value::Object(fields)) = (&mut spec, fields) {
        spec.extend(fields);
    }
    spec
}

#[test]
#[expect(clippy::too_many_lines, reason = "one table")]
fn what_can_be_judged_alone_is_refused_at_apply_with_its_field() {
    let scene = Scene::new("rules");
    for (spec, message) in [
        (
            json!({"upstream": {"url": "http://h.example"}}),
            "spec.upstream: Invalid value: an http:// upstream needs allowInsecure: true",
        ),
        (
            json!({"upstream": {"url": "https://h.example", "protocol": "H2C"}}),
            "spec.upstream: Invalid value: protocol H2C is for http:// upstreams",
        ),
        (
            json!({"upstream": {"url": "http://h.example", "allowInsecure": true, "protocol": "HTTP2"}}),
            "spec.upstream: Invalid value: protocol HTTP2 is for https:// upstreams; in clear text it is H2C",
        ),
        (
            json!({"upstream": {"url": "https://user:password@h.example"}}),
            "spec.upstream.url in body should match",
        ),
        (
            json!({"upstream": {"url": "https://h.example", "protocol": "HTTP3"}}),
            r#"spec.upstream.protocol: Unsupported value: "HTTP3": supported values: "Auto", "HTTP1", "HTTP2", "H2C""#,
        ),
        (
            with(json!({"limits": {"burst": 5}})),
            "spec.limits: Invalid value: burst needs requestsPerSecond",
        ),
        (
            with(json!({"limits": {"requestsPerSecond": 0}})),
            "spec.limits.requestsPerSecond in body should be greater than or equal to 1",
        ),
        (
            with(json!({"limits": {"maxSignedBodyBytes": 67_108_865}})),
            "spec.limits.maxSignedBodyBytes in body should be less than or equal to 67108864",
        ),
        (
            with(json!({"timeouts": {"connect": "none"}})),
            "spec.timeouts.connect in body should match",
        ),
        (
            with(json!({"timeouts": {"idle": "10"}})),
            "spec.timeouts.idle in body should match",
        ),
        (
            with(json!({"replay": {"statusCodes": [200]}})),
            "spec.replay.statusCodes[0] in body should be greater than or equal to 400",
        ),
        (
            with(json!({"replay": {"maxBodyBytes": 33_554_433}})),
            "spec.replay.maxBodyBytes in body should be less than or equal to 33554432",
        ),
        (
            with(json!({"access": {"allow": []}})),
            "spec.access.allow in body should have at least 1 items",
        ),
        (
            with(json!({"access": {"deny": [{"paths": ["a"]}]}})),
            "spec.access.deny[0].paths[0] in body should match '^/'",
        ),
        (
            with(json!({"access": {"mode": "Maybe"}})),
            r#"spec.access.mode: Unsupported value: "Maybe": supported values: "Enforce", "Warn""#,
        ),
        (
            with(json!({"connections": [{"tenant": "a b", "connectionId": connection(1)}]})),
            "spec.connections[0].tenant in body should match",
        ),
        (
            with(json!({"connections": [{"tenant": "a"}]})),
            "spec.connections[0].connectionId: Required value",
        ),
        (
            with(json!({"provider": "Bad"})),
            "spec.provider in body should match",
        ),
        (
            with(json!({"response": {"scrub": "No"}})),
            r#"spec.response.scrub: Unsupported value: "No": supported values: "Redact", "Block", "None""#,
        ),
        (
            with(json!({"serviceAccounts": [""]})),
            "spec.serviceAccounts[0] in body should be at least 1 chars long",
        ),
        (
            with(json!({"strategy": {"type": ""}})),
            "spec.strategy.type in body should be at least 1 chars long",
        ),
        (
            with(json!({"upstraem": {}})),
            r#"unknown field "spec.upstraem""#,
        ),
    ] {
        let said = apply(&scene, "NexusRoute", "r", &spec).refused();
        assert!(said.contains(message), "{spec}\n{said}");
    }
    let name = "x".repeat(64);
    let said = apply(&scene, "NexusRoute", &name, &with(json!({}))).refused();
    assert!(
        said.contains("metadata.name is no provider name; set spec.provider"),
        "{said}"
    );
    apply(
        &scene,
        "NexusRoute",
        &name,
        &with(json!({"provider": scene.namespace})),
    )
    .ok();
}

#[test]
fn what_is_wrong_with_a_provider_alone_is_refused_at_apply() {
    let scene = Scene::new("rules");
    for (name, spec, message) in [
        (
            "x".repeat(64),
            with(json!({})),
            "a provider name has at most 63 characters",
        ),
        (
            "p".to_owned(),
            json!({"origins": []}),
            "spec.origins in body should have at least 1 items",
        ),
        (
            "p".to_owned(),
            json!({"origins": ["https://h.example/api"]}),
            "spec.origins[0] in body should match",
        ),
        (
            "p".to_owned(),
            json!({"sdk": {"placeholderEnv": ["1A"]}}),
            "spec.sdk.placeholderEnv[0] in body should match",
        ),
        (
            "p".to_owned(),
            json!({"sdk": {"baseUrlEnv": [{"name": "A", "path": "v1"}]}}),
            "spec.sdk.baseUrlEnv[0].path in body should match",
        ),
    ] {
        let said = apply(&scene, "NexusProvider", &name, &spec).refused();
        assert!(said.contains(message), "{spec}\n{said}");
    }
}

#[test]
fn what_others_may_still_grant_is_stored_with_a_warning() {
    let scene = Scene::new("warned");
    let warned = |kind: &str| {
        let labels = [format!("kind=\"{kind}\""), "outcome=\"Warned\"".to_owned()];
        let labels = labels.each_ref().map(String::as_str);
        scene
            .operator
            .metric("nexus_operator_admissions_total", &labels)
    };
    let before = (warned("NexusRoute"), warned("NexusProvider"));
    let alone = with(json!({"connections": [{"connectionId": connection(9_301)}]}));
    let answer = apply(
        &scene,
        "NexusRoute",
        &format!("{}-none", scene.namespace),
        &alone,
    );
    let said = answer.stderr.clone();
    answer.ok();
    assert!(
        said.contains("Warning: will not be accepted (OriginNotGranted): "),
        "{said}"
    );
    assert!(warned("NexusRoute") >= before.0 + 1.0);

    let granted = with(json!({
        "provider": scene.namespace,
        "connections": [{"connectionId": connection(9_302)}],
    }));
    let answer = apply(&scene, "NexusRoute", "api", &granted);
    assert!(!answer.stderr.contains("Warning: "), "{}", answer.stderr);
    answer.ok();
    scene.until("api", "Accepted", "Programmed");
    let other = json!({"upstream": {"url": "https://other.example.com"}});
    let answer = apply(&scene, "NexusProvider", &scene.namespace, &other);
    let said = answer.stderr.clone();
    answer.ok();
    let lost = format!(
        "Warning: NexusRoute {}/api will no longer be accepted (OriginNotGranted): ",
        scene.namespace
    );
    assert!(said.contains(&lost), "{said}");
    assert!(warned("NexusProvider") >= before.1 + 1.0);
    scene.until("api", "OriginNotGranted", "Pending");
}

#[test]
fn five_thousand_connections_are_applied_on_the_server() {
    let scene = Scene::new("large");
    let entry = |n: u32| json!({"tenant": format!("tenant-{n}"), "connectionId": connection(n), "keyConnectionId": connection(n)});
    let route = |count: u32| {
        let connections: Vec<Value> = (0..count).map(entry).collect();
        scene
            .route("large", &json!({"connections": connections}))
            .to_string()
    };
    let arguments = ["apply", "--server-side", "--filename=-"];
    scene.cluster.kubectl_with(&arguments, &route(5_000)).ok();
    let said = scene
        .cluster
        .kubectl_with(&arguments, &route(5_001))
        .refused();
    assert!(
        said.contains("spec.connections: Too many: 5001: must have at most 5000 items"),
        "{said}"
    );
}

#[test]
fn the_examples_are_accepted() {
    let scene = Scene::new("examples");
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/local/routes.yaml");
    let arguments = ["--namespace", &scene.namespace, "apply", "--filename", file];
    scene.cluster.kubectl(&arguments).ok();
}
