//! What was decided when a pod was admitted stays so, and everything else may change.

use nexus_tests::policies::{REPOSITORY, Scene, assert_denied};
use serde_json::{Value, json};

use super::merge;

#[tokio::test]
async fn what_was_decided_at_admission_stays_so() {
    let scene = Scene::new("update").await;
    scene.injected("agent").await;
    let annotations = "annotations nexus.io/* say what was decided when the pod was created";
    let label = "the label nexus.io/sidecar is fixed";
    let image = "the image of the container nexus-sidecar is fixed";
    let metadata = [
        (
            json!({"annotations": {"nexus.io/admitted": r#"{"version":1,"tenants":["victim"]}"#}}),
            annotations,
        ),
        (
            json!({"annotations": {"nexus.io/admitted": null}}),
            annotations,
        ),
        (
            json!({"annotations": {"nexus.io/tenants": "victim"}}),
            annotations,
        ),
        (json!({"annotations": {"nexus.io/later": "x"}}), annotations),
        (json!({"annotations": null}), annotations),
        (json!({"labels": {"nexus.io/sidecar": "false"}}), label),
        (json!({"labels": {"nexus.io/sidecar": null}}), label),
    ];
    for caller in [&scene.mallory, &scene.admin, &scene.kubelet] {
        for path in ["pods/agent", "pods/agent/status"] {
            for (patch, why) in &metadata {
                let answer = caller
                    .merge(&scene.core(path), &json!({"metadata": patch}))
                    .await;
                if answer.message().contains("User \"system:node:") {
                    continue; // A kubelet may change only the status.
                }
                assert_denied(&answer, "nexus-pod-update", why);
            }
        }
    }
    let images = |sidecar: &str, agent: &str| {
        json!({"spec": {
            "initContainers": [{"name": "nexus-sidecar", "image": sidecar}],
            "containers": [{"name": "agent", "image": agent}],
        }})
    };
    let path = scene.core("pods/agent");
    for hostile in [
        "localhost/evil:1",
        &format!("{REPOSITORY}:0.0.9"),
        &format!("{REPOSITORY}-x:1"),
    ] {
        let answer = scene
            .mallory
            .strategic(&path, &images(hostile, "localhost/agent:1"))
            .await;
        assert_denied(&answer, "nexus-pod-update", image);
    }
    // Everything else is the business of whoever may change pods.
    let same = format!("{REPOSITORY}:0.1.0");
    scene
        .mallory
        .strategic(&path, &images(&same, "localhost/agent:2"))
        .await
        .ok();
    let others = json!({"annotations": {"team": "a"}, "labels": {"app": "b", "team": "a"}, "finalizers": ["example.com/x"]});
    scene
        .mallory
        .merge(&path, &json!({"metadata": others}))
        .await
        .ok();
    for team in [json!("b"), Value::Null] {
        let changed = json!({"metadata": {"annotations": {"team": team}}});
        scene.mallory.merge(&path, &changed).await.ok();
    }
    scene
        .mallory
        .merge(&path, &json!({"metadata": {"finalizers": null}}))
        .await
        .ok();
    let status = json!({"status": {"phase": "Running", "podIP": "10.0.0.1"}});
    scene
        .kubelet
        .merge(&scene.core("pods/agent/status"), &status)
        .await
        .ok();
}

#[tokio::test]
async fn a_pod_without_a_sidecar_may_be_changed_as_ever() {
    let scene = Scene::new("plain").await;
    let plain = json!({
        "metadata": {"name": "plain"},
        "spec": {"containers": [{"name": "agent", "image": "localhost/agent:1"}]},
    });
    scene.mallory.post(&scene.core("pods"), &plain).await.ok();
    let path = scene.core("pods/plain");
    for patch in [
        json!({"annotations": {"nexus.io/tenants": "a"}}),
        json!({"annotations": null}),
        json!({"annotations": {"nexus.io/inject": "true"}, "labels": {"app": "b"}}),
    ] {
        let changed = json!({"metadata": patch});
        scene.mallory.merge(&path, &changed).await.ok();
    }
}

#[tokio::test]
async fn a_pod_without_a_sidecar_does_not_become_one_that_has() {
    let scene = Scene::new("become").await;
    let plain = json!({
        "metadata": {"name": "plain"},
        "spec": {"containers": [{"name": "agent", "image": "localhost/agent:1"}]},
    });
    scene.mallory.post(&scene.core("pods"), &plain).await.ok();
    let annotations = "annotations nexus.io/* say what was decided when the pod was created";
    let label = "the label nexus.io/sidecar is fixed";
    let admitted = r#"{"version":1,"tableFormat":1}"#;
    for caller in [&scene.mallory, &scene.admin] {
        for path in ["pods/plain", "pods/plain/status"] {
            for (patch, why) in [
                (
                    json!({"annotations": {"nexus.io/admitted": admitted}}),
                    annotations,
                ),
                (json!({"labels": {"nexus.io/sidecar": "true"}}), label),
                // All that the operator looks for.
                (
                    json!({
                        "annotations": {"nexus.io/inject": "true", "nexus.io/admitted": admitted},
                        "labels": {"nexus.io/sidecar": "true"},
                    }),
                    "",
                ),
            ] {
                let changed = json!({"metadata": patch});
                let answer = caller.merge(&scene.core(path), &changed).await;
                assert_denied(&answer, "nexus-pod-update", why);
            }
        }
    }
}

#[tokio::test]
async fn an_ephemeral_container_stays_beside_the_agent() {
    let scene = Scene::new("ephemeral").await;
    let pod = scene.injected("agent").await;
    let path = scene.core("pods/agent/ephemeralcontainers");
    let with = |container: &Value| {
        let mut pod = pod.clone();
        let mut debug = json!({"name": "debug", "image": "localhost/debug:1"});
        merge(&mut debug, container.clone());
        pod["spec"]["ephemeralContainers"] = json!([debug]);
        pod["metadata"]["resourceVersion"] = Value::Null;
        pod
    };
    let adding = |capability: &str| json!({"securityContext": {"capabilities": {"add": ["CHOWN", capability]}}});
    let near = "must neither target nexus-sidecar nor mount its volumes";
    let mighty = "must not be privileged or have the capabilities";
    for (container, why) in [
        (json!({"targetContainerName": "nexus-sidecar"}), near),
        (
            json!({"volumeMounts": [{"name": "nexus-sidecar-auth", "mountPath": "/stolen"}]}),
            near,
        ),
        (
            json!({"targetContainerName": "agent", "securityContext": {"privileged": true}}),
            mighty,
        ),
        (adding("NET_RAW"), mighty),
        (adding("CAP_NET_ADMIN"), mighty),
        (adding("sys_admin"), mighty),
        (adding("ALL"), mighty),
        (adding("DAC_READ_SEARCH"), mighty),
        (adding("SYS_MODULE"), mighty),
        (adding("SYS_RAWIO"), mighty),
        (adding("BPF"), mighty),
    ] {
        for caller in [&scene.mallory, &scene.admin] {
            let answer = caller.put(&path, &with(&container)).await;
            assert_denied(&answer, "nexus-pod-update", why);
        }
    }
    // As `kubectl debug --target=agent` makes it.
    let mut debug = adding("SYS_PTRACE");
    merge(
        &mut debug,
        json!({"targetContainerName": "agent", "stdin": true, "tty": true}),
    );
    scene.mallory.put(&path, &with(&debug)).await.ok();
}
