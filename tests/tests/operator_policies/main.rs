//! The chart's admission policies, one by one: what they must deny to somebody with the role `edit` and more, and what
//! they must let pass. There is no webhook here, so each request reaches the policies as it was sent.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod changes;
mod lifecycle;
mod pods;
mod tables;
mod warnings;

use nexus_tests::policies::{Scene, assert_denied, injected, until};
use serde_json::{Value, json};

/// Merges as a JSON merge patch does.
fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let target = target.as_object_mut().unwrap();
    for (key, value) in patch {
        if value.is_null() {
            target.remove(&key);
        } else {
            merge(target.entry(key).or_insert(Value::Null), value);
        }
    }
}

fn changed(pointer: &str, patch: Value) -> Value {
    let mut pod = injected();
    merge(
        pod.pointer_mut(pointer)
            .unwrap_or_else(|| panic!("{pointer}")),
        patch,
    );
    pod
}

fn token_request(audiences: &[&str]) -> Value {
    json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": audiences}})
}

#[tokio::test]
async fn only_kubelets_get_tokens_of_the_sidecars_audience() {
    let scene = Scene::new("token").await;
    let path = scene.core("serviceaccounts/default/token");
    for caller in [&scene.mallory, &scene.admin, &scene.operator] {
        for audiences in [
            &["nexus-gateway"][..],
            &["other", "nexus-gateway"],
            &[
                "nexus-gateway",
                "https://kubernetes.default.svc.cluster.local",
            ],
        ] {
            let answer = caller.post(&path, &token_request(audiences)).await;
            if answer
                .message()
                .contains("User \"system:serviceaccount:nexus-system")
            {
                continue; // The operator may create none at all.
            }
            assert_denied(&answer, "nexus-token-audience", "only kubelets get tokens");
        }
    }
    let bound = scene.injected("bound").await;
    let mut request = token_request(&["nexus-gateway"]);
    request["spec"]["boundObjectRef"] = json!({
        "apiVersion": "v1", "kind": "Pod", "name": "bound", "uid": bound["metadata"]["uid"],
    });
    let answer = scene.mallory.post(&path, &request).await;
    assert_denied(&answer, "nexus-token-audience", "nexus.io/inject");
    let token = scene.kubelet.post(&path, &request).await.ok();
    assert!(token["status"]["token"].is_string());
    for audiences in [
        &[][..],
        &["other"],
        &["nexus-gateway-2"],
        &["NEXUS-GATEWAY"],
    ] {
        let token = scene.mallory.post(&path, &token_request(audiences)).await;
        assert!(token.ok()["status"]["token"].is_string());
    }
}

#[tokio::test]
async fn nothing_is_run_in_the_sidecar_and_the_agent_is_as_open_as_ever() {
    let scene = Scene::new("exec").await;
    scene.injected("agent").await;
    for caller in [&scene.mallory, &scene.admin] {
        for call in [
            "exec?command=cat&container=nexus-sidecar",
            "exec?container=nexus-sidecar&container=agent&command=cat",
            "attach?container=nexus-sidecar&stdin=true",
        ] {
            let path = scene.core(&format!("pods/agent/{call}"));
            for answer in [
                caller.post(&path, &Value::Null).await,
                caller.get(&path).await,
            ] {
                assert_denied(&answer, "nexus-exec", "kubectl logs POD -c nexus-sidecar");
            }
        }
        // Admitted: there is no kubelet to carry it out.
        for call in [
            "exec?command=ls",
            "exec?command=ls&container=agent",
            "exec?command=ls&container=prepare",
            "attach?container=agent",
            "attach",
        ] {
            let path = scene.core(&format!("pods/agent/{call}"));
            let answer = caller.post(&path, &Value::Null).await;
            assert_eq!(
                answer.message(),
                "pod agent does not have a host assigned",
                "{call}"
            );
        }
    }
    // Without a name it is the only ordinary container, never the sidecar, and of two it is none.
    let mut pod = injected();
    pod["metadata"]["name"] = "two".into();
    let second = json!({"name": "second", "image": "localhost/agent:1"});
    pod["spec"]["containers"]
        .as_array_mut()
        .unwrap()
        .push(second);
    pod["spec"]["nodeName"] = "node-1".into();
    scene.admin.post(&scene.core("pods"), &pod).await.ok();
    let path = scene.core("pods/two/exec?command=ls");
    let answer = scene.mallory.post(&path, &Value::Null).await;
    let why = "a container name must be specified for pod two, choose one of: [nexus-sidecar prepare agent second]";
    assert!(answer.message().starts_with(why), "{}", answer.message());
}

#[tokio::test]
async fn a_binding_cannot_carry_what_only_the_webhook_sets() {
    let scene = Scene::new("binding").await;
    scene.injected("agent").await;
    let binding = |metadata: Value| {
        let mut binding =
            json!({"metadata": {"name": "agent"}, "target": {"kind": "Node", "name": "node-1"}});
        let Value::Object(more) = metadata else {
            unreachable!()
        };
        binding["metadata"].as_object_mut().unwrap().extend(more);
        binding
    };
    for path in ["pods/agent/binding", "bindings"] {
        for forged in [
            json!({"annotations": {"nexus.io/admitted": r#"{"version":1,"tenants":["victim"]}"#}}),
            json!({"annotations": {"nexus.io/tenants": "victim"}}),
            json!({"labels": {"nexus.io/sidecar": "false"}}),
        ] {
            let answer = scene
                .mallory
                .post(&scene.core(path), &binding(forged))
                .await;
            assert_denied(&answer, "nexus-pod-binding", "must not carry nexus.io/*");
        }
    }
    let plain = binding(json!({"annotations": {"example.com/zone": "a"}}));
    let path = scene.core("pods/agent/binding");
    scene.mallory.post(&path, &plain).await.ok();
    let pod = scene.admin.get(&scene.core("pods/agent")).await.ok();
    assert_eq!(pod["spec"]["nodeName"], "node-1");
    // This is why: what a binding carries becomes the pod's.
    assert_eq!(pod["metadata"]["annotations"]["example.com/zone"], "a");
}

#[tokio::test]
async fn every_policy_is_typed_without_a_warning() {
    let scene = Scene::new("types").await;
    let path = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
    let policies = || async {
        let list = scene.admin.get(path).await.ok();
        list["items"].as_array().unwrap().clone()
    };
    let checked = || async {
        policies()
            .await
            .iter()
            .all(|policy| !policy["status"]["observedGeneration"].is_null())
    };
    until("the type checks", checked).await;
    let policies = policies().await;
    assert_eq!(policies.len(), 7);
    for policy in policies {
        let name = &policy["metadata"]["name"];
        assert_eq!(policy["status"]["typeChecking"], json!({}), "{name}");
        let expected = if name == "nexus-workload-annotations" {
            "Ignore"
        } else {
            "Fail"
        };
        assert_eq!(policy["spec"]["failurePolicy"], expected, "{name}");
    }
}
