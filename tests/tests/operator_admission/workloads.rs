//! Every kind of workload.

use serde_json::{Value, json};

use crate::scene::{Scene, assert_injected, assert_untouched, pod};

/// A workload of every kind whose pods ask for a sidecar or do not.
fn workloads(app: &str, asks: bool) -> Vec<(&'static str, Value)> {
    let annotations = if asks {
        json!({"nexus.io/inject": "true"})
    } else {
        Value::Null
    };
    let template = |app: &str, restart: &str| {
        json!({
            "metadata": {"labels": {"app": app}, "annotations": annotations},
            "spec": {"restartPolicy": restart, "containers": [{"name": "agent", "image": "localhost/agent:1"}]},
        })
    };
    let named = |kind: &str| format!("{app}-{}", kind.to_lowercase());
    let long = |kind: &'static str| {
        let name = named(kind);
        let mut object = json!({
            "apiVersion": "apps/v1",
            "kind": kind,
            "metadata": {"name": name},
            "spec": {"selector": {"matchLabels": {"app": name}}, "template": template(&name, "Always")},
        });
        if kind == "StatefulSet" {
            object["spec"]["serviceName"] = "none".into();
        }
        (kind, object)
    };
    let job = |kind: &str| json!({"template": template(&named(kind), "Never")});
    vec![
        long("Deployment"),
        long("StatefulSet"),
        long("DaemonSet"),
        (
            "Job",
            json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": named("Job")}, "spec": job("Job")}),
        ),
        (
            "CronJob",
            json!({
                "apiVersion": "batch/v1",
                "kind": "CronJob",
                "metadata": {"name": named("CronJob")},
                "spec": {"schedule": "0 0 1 1 *", "jobTemplate": {"spec": job("CronJob")}},
            }),
        ),
    ]
}

#[test]
fn pods_of_every_kind_of_workload_have_a_sidecar_if_they_ask_and_only_then() {
    let scene = Scene::new("workloads");
    // For DaemonSets.
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node"}});
    scene.cluster.apply(&node.to_string()).ok();
    for (app, asks) in [("asks", true), ("does-not", false)] {
        for (kind, object) in workloads(app, asks) {
            let answer = scene.create(&object);
            assert_eq!(answer.stderr, "", "{kind}");
            let name = object["metadata"]["name"].as_str().unwrap().to_owned();
            if kind == "CronJob" {
                let from = format!("--from=cronjob/{name}");
                scene
                    .kubectl(&["create", "job", &format!("{name}-now"), &from], "")
                    .ok();
            }
            let pod = scene.pod_of(&name);
            if asks {
                assert_injected(&pod);
            } else {
                assert_untouched(&pod);
            }
        }
    }
    let mut generated = pod("generated", &json!({}));
    generated["metadata"] = json!({
        "generateName": "agent-",
        "labels": {"app": "generated"},
        "annotations": {"nexus.io/inject": "true"},
    });
    scene.create(&generated).ok();
    assert_injected(&scene.pod_of("generated"));
    let mut plain = pod("plain", &json!({}));
    plain["metadata"]["annotations"]["nexus.io/inject"] = "false".into();
    let stored = scene.stored(&plain);
    assert!(stored["spec"].get("initContainers").is_none());
    plain["metadata"] = json!({"name": "bare"});
    assert_untouched(&scene.stored(&plain));
}
