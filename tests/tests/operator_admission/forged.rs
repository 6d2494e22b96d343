//! Pods that come with a sidecar.

use serde_json::{Value, json};

use crate::scene::{Scene, annotated, assert_injected, pod};

/// A stored pod as somebody would create it again under another name.
fn copied(stored: &Value, name: &str) -> Value {
    let metadata = &stored["metadata"];
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": metadata["labels"], "annotations": metadata["annotations"]},
        "spec": stored["spec"],
    })
}

#[test]
fn a_copied_pod_ends_as_the_one_it_was_copied_from() {
    let scene = Scene::new("copied");
    let stored = scene.stored(&pod("first", &json!({})));
    assert_injected(&stored);
    let copy = scene.stored(&copied(&stored, "second"));
    assert_injected(&copy);
    assert_eq!(copy["spec"], stored["spec"]);
    assert_eq!(
        copy["metadata"]["annotations"],
        stored["metadata"]["annotations"]
    );
}

#[test]
fn forged_and_outdated_pods_end_as_those_that_never_were() {
    let scene = Scene::new("forged");
    let plain = scene.stored(&pod("plain", &json!({})));
    let evil = json!({
        "name": "nexus-sidecar",
        "image": "localhost/evil:1",
        "command": ["sh"],
        "volumeMounts": [{"name": "nexus-sidecar-auth", "mountPath": "/stolen"}],
        "env": [{"name": "NEXUS_ADMITTED", "value": "{}"}],
    });
    let volume = json!({"name": "nexus-sidecar-auth", "projected": {"sources": [
        {"serviceAccountToken": {"audience": "nexus-gateway", "path": "token"}},
    ]}});
    let agent = json!({"name": "agent", "image": "localhost/agent:1"});
    let old_agent = json!({
        "name": "agent",
        "image": "localhost/agent:1",
        "env": [{"name": "NEXUS_SIDECAR_URL", "value": "http://localhost:15000"}],
    });
    let old = json!({"name": "nexus-sidecar", "image": "ghcr.io/nexus/nexus-sidecar:0.0.1", "args": ["run"]});
    for (name, spec) in [
        (
            "init",
            json!({"initContainers": [evil], "volumes": [volume]}),
        ),
        (
            "main",
            json!({"containers": [agent, evil], "volumes": [volume]}),
        ),
        // As an older version would have left it: in another place, of another image, with another port and volume.
        (
            "outdated",
            json!({"containers": [old, old_agent], "volumes": [{"name": "nexus-sidecar-old", "emptyDir": {}}]}),
        ),
    ] {
        let mut forged = annotated(
            pod(name, &spec),
            &[("nexus.io/admitted", r#"{"version":1,"tenants":["bank"]}"#)],
        );
        forged["metadata"]["labels"] = json!({"app": "plain", "nexus.io/sidecar": "true"});
        let stored = scene.stored(&forged);
        assert_injected(&stored);
        assert_eq!(
            without_api_token(&stored),
            without_api_token(&plain),
            "{name}"
        );
        assert_eq!(
            stored["metadata"]["annotations"]["nexus.io/admitted"],
            plain["metadata"]["annotations"]["nexus.io/admitted"]
        );
    }
}

/// The specification without what the ServiceAccount plugin names at random, and where it stands.
fn without_api_token(pod: &Value) -> Value {
    let mut spec = pod["spec"].clone();
    let is_not = |element: &Value| {
        !element["name"]
            .as_str()
            .unwrap()
            .starts_with("kube-api-access-")
    };
    spec["volumes"].as_array_mut().unwrap().retain(is_not);
    for container in spec["containers"].as_array_mut().unwrap() {
        container["volumeMounts"]
            .as_array_mut()
            .unwrap()
            .retain(is_not);
    }
    spec
}
