//! What a namespace demands of its pods holds with a sidecar as well.

use std::time::Instant;

use serde_json::{Value, json};

use crate::scene::{LIMIT, Scene, annotated, assert_injected, pod};

#[test]
fn a_namespace_limits_the_tenants_of_its_pods() {
    let scene = Scene::new("tenants");
    scene
        .cluster
        .kubectl(&[
            "annotate",
            "namespace",
            &scene.namespace,
            "nexus.io/tenants=a,b",
        ])
        .ok();
    let start = Instant::now();
    let said = loop {
        // Its own watch tells the operator of the annotation a moment later.
        let name = format!("over-{}", start.elapsed().as_millis());
        let answer = scene.create(&annotated(
            pod(&name, &json!({})),
            &[("nexus.io/tenants", "a,c")],
        ));
        if !answer.success {
            break answer.stderr;
        }
        assert!(start.elapsed() < LIMIT);
    };
    let says = format!(
        "names \"c\", which the annotation nexus.io/tenants of the Namespace {} does not list",
        scene.namespace
    );
    assert!(said.contains(&says), "{said}");
    let within = scene.stored(&annotated(
        pod("within", &json!({})),
        &[("nexus.io/tenants", "b")],
    ));
    let admitted = within["metadata"]["annotations"]["nexus.io/admitted"]
        .as_str()
        .unwrap();
    let admitted: Value = serde_json::from_str(admitted).unwrap();
    assert_eq!(admitted["tenants"], json!(["b"]));
}

#[test]
fn a_sidecar_passes_the_restricted_standard() {
    let scene = Scene::new("restricted");
    let enforce = "pod-security.kubernetes.io/enforce=restricted";
    scene
        .cluster
        .kubectl(&["label", "namespace", &scene.namespace, enforce])
        .ok();
    let context = json!({
        "allowPrivilegeEscalation": false,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": true,
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    let agent = json!({"name": "agent", "image": "localhost/agent:1", "securityContext": context});
    assert_injected(&scene.stored(&pod("strict", &json!({"containers": [agent]}))));
    scene.create(&pod("loose", &json!({}))).refused();
}

#[test]
fn limits_of_a_namespace_hold_for_the_sidecar_as_well() {
    let scene = Scene::new("limits");
    let range = json!({
        "apiVersion": "v1",
        "kind": "LimitRange",
        "metadata": {"name": "limits"},
        "spec": {"limits": [{
            "type": "Container",
            "default": {"cpu": "500m", "memory": "512Mi", "ephemeral-storage": "1Gi"},
            "max": {"cpu": "1", "memory": "1Gi", "ephemeral-storage": "2Gi"},
        }]},
    });
    scene.create(&range).ok();
    // With requests of its own, since with the defaults alone the pod would be Guaranteed.
    let agent = json!({"name": "agent", "image": "localhost/agent:1", "resources": {"requests": {"cpu": "50m"}}});
    let start = Instant::now();
    let stored = loop {
        let name = format!("limited-{}", start.elapsed().as_millis());
        // Known to the plugin a moment later.
        let stored = scene.stored(&pod(&name, &json!({"containers": [agent]})));
        if stored["spec"]["containers"][0]["resources"]["limits"]["cpu"] == "500m" {
            break stored;
        }
        assert!(start.elapsed() < LIMIT, "{stored}");
    };
    assert_injected(&stored);
    let limits = &stored["spec"]["initContainers"][0]["resources"]["limits"];
    assert_eq!(
        *limits,
        json!({"cpu": "500m", "memory": "256Mi", "ephemeral-storage": "1Gi"})
    );
}

#[test]
fn a_guaranteed_pod_stays_guaranteed() {
    let scene = Scene::new("guaranteed");
    let fixed = json!({"limits": {"cpu": "1", "memory": "1Gi"}});
    let agent = json!({"name": "agent", "image": "localhost/agent:1", "resources": fixed});
    let stored = scene.stored(&pod("fixed", &json!({"containers": [agent]})));
    assert_injected(&stored);
    assert_eq!(stored["status"]["qosClass"], "Guaranteed");
    let burst = scene.stored(&pod("burst", &json!({})));
    assert_eq!(burst["status"]["qosClass"], "Burstable");
    // All of the pod's budget is given away: what the sidecar requested on top would be refused.
    let whole =
        json!({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "1Gi"}});
    let agent = json!({"name": "agent", "image": "localhost/agent:1", "resources": whole});
    let budget = scene.stored(&pod(
        "budget",
        &json!({"resources": whole, "containers": [agent]}),
    ));
    assert_injected(&budget);
}

#[test]
fn admissions_are_counted() {
    let scene = Scene::new("counted");
    let count = |outcome: &str| {
        let outcome = format!("outcome=\"{outcome}\"");
        scene.operator.metric(
            "nexus_operator_admissions_total",
            &["kind=\"Pod\"", &outcome],
        )
    };
    let (injected, refused) = (count("Injected"), count("Refused"));
    scene.create(&pod("counted", &json!({}))).ok();
    scene
        .create(&pod("refused", &json!({"hostPID": true})))
        .refused();
    assert!(count("Injected") > injected && count("Refused") > refused);
}
