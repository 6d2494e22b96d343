//! What is said about annotations of workloads, which are accepted all the same.

use nexus_tests::policies::{Scene, until};
use serde_json::{Value, json};

fn workload(kind: &str, annotations: &Value) -> Value {
    let template = json!({
        "metadata": {"labels": {"app": "agent"}, "annotations": annotations},
        "spec": {"restartPolicy": "Always", "containers": [{"name": "agent", "image": "localhost/agent:1"}]},
    });
    let selector = json!({"matchLabels": {"app": "agent"}});
    let mut once = template.clone();
    once["spec"]["restartPolicy"] = "Never".into();
    let spec = match kind {
        "jobs" => json!({"template": once}),
        "cronjobs" => {
            json!({"schedule": "0 0 1 1 *", "jobTemplate": {"spec": {"template": once}}})
        }
        "statefulsets" => {
            json!({"serviceName": "agent", "selector": selector, "template": template})
        }
        _ => json!({"selector": selector, "template": template}),
    };
    json!({"metadata": {"name": "agent"}, "spec": spec})
}

const WORKLOADS: [(&str, &str); 6] = [
    ("apps", "deployments"),
    ("apps", "statefulsets"),
    ("apps", "daemonsets"),
    ("apps", "replicasets"),
    ("batch", "jobs"),
    ("batch", "cronjobs"),
];

/// What is said about a workload that is accepted all the same.
async fn warnings(scene: &Scene, group: &str, kind: &str, workload: &Value) -> Vec<String> {
    let namespace = &scene.namespace;
    let path = format!("/apis/{group}/v1/namespaces/{namespace}/{kind}?dryRun=All");
    let answer = scene.mallory.post(&path, workload).await;
    let warnings = answer.warnings.clone();
    answer.ok();
    warnings
}

async fn assert_warned(scene: &Scene, workload: &Value, why: &str) {
    let warnings = warnings(scene, "apps", "deployments", workload).await;
    let about_us = |text: &&String| text.contains("'nexus-workload-annotations'");
    assert_eq!(
        warnings.iter().filter(about_us).count(),
        1,
        "{why}: {warnings:?}"
    );
    assert!(
        warnings.iter().any(|text| text.contains(why)),
        "{why}: {warnings:?}"
    );
}

#[tokio::test]
async fn a_wrong_annotation_of_a_workload_shows_when_it_is_applied() {
    let scene = Scene::new("warned").await;
    let known = json!({"nexus.io/inject": "true", "nexus.io/tenant": "a"});
    for (group, kind) in WORKLOADS {
        let place = if kind == "cronjobs" {
            "unknown annotation nexus.io/tenant in spec.jobTemplate.spec.template.metadata; there are nexus.io/inject,"
        } else {
            "unknown annotation nexus.io/tenant in spec.template.metadata; there are nexus.io/inject,"
        };
        let warnings = warnings(&scene, group, kind, &workload(kind, &known)).await;
        assert!(
            warnings.len() == 1 && warnings[0].contains(place),
            "{kind}: {warnings:?}"
        );
    }
    let with = |name: &str, value: &str| json!({"nexus.io/inject": "true", name: value});
    for (annotations, why) in [
        (
            json!({"nexus.io/inject": "yes"}),
            r#"nexus.io/inject is "yes", so nothing is injected; write "true""#,
        ),
        (json!({"nexus.io/inject": "True"}), r#"write "true""#),
        (
            json!({"nexus.io/tenants": "a"}),
            r#"without nexus.io/inject: "true" nothing is injected, and nexus.io/tenants"#,
        ),
        (
            with("nexus.io/tenants", "a, b c,é"),
            r#"nexus.io/tenants names "b c", "é", which is not a tenant name"#,
        ),
        (
            with("nexus.io/admitted", "{}"),
            "unknown annotation nexus.io/admitted",
        ),
        (
            with("nexus.io/sidecar-readiness", "on"),
            r#"nexus.io/sidecar-readiness is "on""#,
        ),
        (
            with("nexus.io/sidecar-memory-limit", "64 MB"),
            "nexus.io/sidecar-memory-limit must be a quantity",
        ),
    ] {
        assert_warned(&scene, &workload("deployments", &annotations), why).await;
    }
}

#[tokio::test]
async fn a_value_that_the_webhook_refuses_shows_when_it_is_applied() {
    let scene = Scene::new("refusable").await;
    let with = |name: &str, value: &str| json!({"nexus.io/inject": "true", name: value});
    let many = |name: &str, target: &str| {
        let names = (0..65).map(|number| format!("{name}{number}{target}"));
        names.collect::<Vec<_>>().join(",")
    };
    let port = "write a port from 1024 to 65535 other than 9901";
    let url = "write up to 64 of NAME=provider[@tenant][/path]";
    let placeholder = "write up to 64 names of variables";
    for (annotations, why) in [
        (with("nexus.io/sidecar-port", "0"), port),
        (with("nexus.io/sidecar-port", "1023"), port),
        (with("nexus.io/sidecar-port", "9901"), port),
        (with("nexus.io/sidecar-port", "65536"), port),
        (with("nexus.io/sidecar-port", "http"), port),
        (
            with("nexus.io/sidecar-cpu-request", "-1"),
            "nexus.io/sidecar-cpu-request must be a quantity",
        ),
        (
            with("nexus.io/sidecar-cpu-request", "1500u"),
            "nexus.io/sidecar-cpu-request is finer than",
        ),
        (
            with("nexus.io/sidecar-memory-request", "64m"),
            "nexus.io/sidecar-memory-request is finer than",
        ),
        (
            with("nexus.io/sidecar-cpu-limit", "0"),
            "nexus.io/sidecar-cpu-limit is 0, which would be no limit",
        ),
        (
            json!({
                "nexus.io/inject": "true",
                "nexus.io/sidecar-memory-request": "65Mi",
                "nexus.io/sidecar-memory-limit": "64Mi",
            }),
            "nexus.io/sidecar-memory-request is more than nexus.io/sidecar-memory-limit",
        ),
        (
            with("nexus.io/sidecar-log-level", "very loud"),
            r#"nexus.io/sidecar-log-level is "very loud""#,
        ),
        (
            with("nexus.io/sidecar-log-level", "nexus=loud"),
            "or target=level",
        ),
        (with("nexus.io/base-url-env", "OPENAI_BASE_URL"), url),
        (with("nexus.io/base-url-env", "1A=openai"), url),
        (with("nexus.io/base-url-env", "A=OpenAI"), url),
        (with("nexus.io/base-url-env", "A=openai/v1?x=1"), url),
        (with("nexus.io/base-url-env", "A=openai/$(HOME)"), url),
        (with("nexus.io/base-url-env", "A=openai,A=github"), url),
        (with("nexus.io/base-url-env", "A=openai@tenant/v1"), url),
        (
            with("nexus.io/base-url-env", "NEXUS_SIDECAR_URL=openai"),
            url,
        ),
        (with("nexus.io/base-url-env", &many("A", "=openai")), url),
        (with("nexus.io/placeholder-env", "API-KEY"), placeholder),
        (
            with("nexus.io/placeholder-env", "NEXUS_SIDECAR_URL"),
            placeholder,
        ),
        (
            with("nexus.io/placeholder-env", &many("A", "")),
            placeholder,
        ),
        (
            json!({
                "nexus.io/inject": "true",
                "nexus.io/base-url-env": "A=openai",
                "nexus.io/placeholder-env": "A",
            }),
            placeholder,
        ),
    ] {
        assert_warned(&scene, &workload("deployments", &annotations), why).await;
    }
}

#[tokio::test]
async fn what_has_no_effect_where_it_stands_shows_too() {
    let scene = Scene::new("misplaced").await;
    let mut misplaced = workload("deployments", &Value::Null);
    misplaced["metadata"]["annotations"] = json!({"nexus.io/inject": "true"});
    let why = "have no effect here; move them to spec.template.metadata.annotations";
    assert_warned(&scene, &misplaced, why).await;
    for pointer in ["/metadata", "/spec/template/metadata"] {
        let mut labelled = workload("deployments", &Value::Null);
        labelled.pointer_mut(pointer).unwrap()["labels"] =
            json!({"app": "agent", "nexus.io/inject": "true"});
        assert_warned(
            &scene,
            &labelled,
            "is an annotation, as a label it has no effect",
        )
        .await;
    }
}

#[tokio::test]
async fn tenants_beyond_those_of_the_namespace_show_too() {
    let scene = Scene::new("limited").await;
    let path = format!("/api/v1/namespaces/{}", scene.namespace);
    let limit = json!({"metadata": {"annotations": {"nexus.io/tenants": "a,b"}}});
    scene.admin.merge(&path, &limit).await.ok();
    let beyond = workload(
        "deployments",
        &json!({"nexus.io/inject": "true", "nexus.io/tenants": "a,c"}),
    );
    let said = || async {
        let warnings = warnings(&scene, "apps", "deployments", &beyond).await;
        warnings
            .iter()
            .any(|text| text.contains("of the namespace limited-"))
    };
    until("the warning of the namespace's limit", said).await;
}

#[tokio::test]
async fn nothing_is_said_about_workloads_that_are_right() {
    let scene = Scene::new("silent").await;
    let whole = json!({
        "nexus.io/inject": "true",
        "nexus.io/tenants": "tenant_123, a:b.c-d",
        "nexus.io/base-url-env": "OPENAI_BASE_URL=openai/v1, B=a.b-c@a:b.c-d/x%20y/~z[1]'*+;=:@!&(),",
        "nexus.io/placeholder-env": "OPENAI_API_KEY, _OTHER",
        "nexus.io/sidecar-port": "65535",
        "nexus.io/sidecar-log-level": "warn,nexus_sidecar::proxy=DEBUG",
        "nexus.io/sidecar-cpu-request": "10m",
        "nexus.io/sidecar-memory-request": "64Mi",
        "nexus.io/sidecar-cpu-limit": "0.5",
        "nexus.io/sidecar-memory-limit": "1e8",
        "nexus.io/sidecar-readiness": "true",
        "example.com/other": "x",
    });
    for (group, kind) in WORKLOADS {
        for annotations in [
            &whole,
            &json!({"nexus.io/inject": "false"}),
            &json!({}),
            &Value::Null,
        ] {
            let said = warnings(&scene, group, kind, &workload(kind, annotations)).await;
            assert_eq!(said, [""; 0], "{kind} {annotations}");
        }
    }
    // A tool that writes the template's annotations on the workload too does no harm.
    let mut both = workload("deployments", &whole);
    both["metadata"]["annotations"] = whole.clone();
    assert_eq!(
        warnings(&scene, "apps", "deployments", &both).await,
        [""; 0]
    );
    // Who made the Deployment was warned; its controller is not.
    let mut owned = workload("replicasets", &json!({"nexus.io/tenant": "a"}));
    owned["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "apps/v1", "kind": "Deployment", "name": "agent", "uid": "1", "controller": true,
    }]);
    assert_eq!(
        warnings(&scene, "apps", "replicasets", &owned).await,
        [""; 0]
    );
}
