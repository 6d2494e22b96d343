//! What kubectl says, and what is not stored.

use serde_json::{Value, json};

use crate::scene::{Scene, annotated, assert_injected, pod};

#[test]
fn a_dry_run_shows_the_sidecar_and_stores_nothing() {
    let scene = Scene::new("dry");
    let arguments = [
        "create",
        "--dry-run=server",
        "--output=json",
        "--filename=-",
    ];
    let shown = scene
        .kubectl(&arguments, &pod("dry", &json!({})).to_string())
        .ok();
    assert_injected(&serde_json::from_str(&shown).unwrap());
    assert!(scene.cluster.get(&scene.namespace, "pod", "dry").is_none());
    scene
        .kubectl(
            &arguments,
            &pod("dry", &json!({"hostPID": true})).to_string(),
        )
        .refused();
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of refusals")]
fn what_cannot_have_a_sidecar_is_refused_with_the_field() {
    let scene = Scene::new("refused");
    let plain = json!({"name": "agent", "image": "localhost/agent:1"});
    let with = |fields: Value| {
        let mut agent = plain.clone();
        agent
            .as_object_mut()
            .unwrap()
            .extend(fields.as_object().unwrap().clone());
        pod("refused", &json!({"containers": [agent]}))
    };
    let on_pod = |fields: Value| pod("refused", &fields);
    let volume = |source: Value| {
        let mut volume = source;
        volume["name"] = "v".into();
        on_pod(json!({"volumes": [volume]}))
    };
    let capability =
        |name: &str| with(json!({"securityContext": {"capabilities": {"add": [name]}}}));
    let annotation = |name: &str, value: &str| annotated(on_pod(json!({})), &[(name, value)]);
    for (pod, says) in [
        (
            on_pod(json!({"shareProcessNamespace": true})),
            "spec.shareProcessNamespace: ",
        ),
        (on_pod(json!({"hostPID": true})), "spec.hostPID: "),
        (on_pod(json!({"hostIPC": true})), "spec.hostIPC: "),
        (on_pod(json!({"hostNetwork": true})), "spec.hostNetwork: "),
        (on_pod(json!({"os": {"name": "windows"}})), "spec.os.name: "),
        (
            volume(json!({"hostPath": {"path": "/"}})),
            "spec.volumes[v].hostPath: ",
        ),
        (
            volume(json!({"projected": {"sources": [
                {"serviceAccountToken": {"audience": "nexus-gateway", "path": "t"}},
            ]}})),
            "spec.volumes[v].projected: holds a token for the audience nexus-gateway",
        ),
        (
            with(json!({"volumeMounts": [{"name": "nexus-sidecar-auth", "mountPath": "/x"}]})),
            "spec.containers[agent].volumeMounts: mounts nexus-sidecar-auth",
        ),
        (
            with(json!({"securityContext": {"privileged": true}})),
            "spec.containers[agent].securityContext.privileged: ",
        ),
        (
            capability("SYS_PTRACE"),
            "capabilities.add: holds SYS_PTRACE",
        ),
        (capability("NET_ADMIN"), "capabilities.add: holds NET_ADMIN"),
        (capability("NET_RAW"), "capabilities.add: holds NET_RAW"),
        (
            with(json!({"ports": [{"containerPort": 8080}]})),
            "spec.containers[agent].ports[8080]: is the sidecar's",
        ),
        (
            with(json!({"ports": [{"containerPort": 9901}]})),
            "spec.containers[agent].ports[9901]: ",
        ),
        (
            annotation("nexus.io/tenants", "*"),
            "annotation nexus.io/tenants: \"*\" is not a tenant name",
        ),
        (
            annotation("nexus.io/sidecar-port", "http"),
            "annotation nexus.io/sidecar-port: ",
        ),
        (
            annotation("nexus.io/sidecar-log-level", "very loud"),
            "annotation nexus.io/sidecar-log-level: ",
        ),
        (
            annotation("nexus.io/sidecar-cpu-limit", "much"),
            "annotation nexus.io/sidecar-cpu-limit: ",
        ),
        (
            annotation("nexus.io/sidecar-readiness", "yes"),
            "annotation nexus.io/sidecar-readiness: ",
        ),
        (
            annotation("nexus.io/base-url-env", "X"),
            "annotation nexus.io/base-url-env: ",
        ),
        (
            annotation("nexus.io/placeholder-env", "1"),
            "annotation nexus.io/placeholder-env: ",
        ),
    ] {
        let said = scene.create(&pod).refused();
        let head = "admission webhook \"inject.nexus.io\" denied the request: the annotation nexus.io/inject asks for a sidecar that this pod cannot have: ";
        assert!(said.contains(head) && said.contains(says), "{says}\n{said}");
        assert!(
            said.starts_with("Error from server (Forbidden): "),
            "{said}"
        );
    }
    // The same pods are nothing to us unless they ask.
    let mut other = on_pod(json!({"hostPID": true}));
    other["metadata"]["annotations"] = Value::Null;
    scene.create(&other).ok();
}

#[test]
fn kubectl_shows_warnings() {
    let scene = Scene::new("warned");
    let spec = json!({"securityContext": {"runAsUser": 28080}});
    let answer = scene.create(&annotated(
        pod("warned", &spec),
        &[("nexus.io/tenant", "a")],
    ));
    for says in [
        "Warning: annotation nexus.io/tenant: is not known",
        "Warning: spec.containers[agent].securityContext.runAsUser: is 28080, as the sidecar's",
    ] {
        assert!(answer.stderr.contains(says), "{}", answer.stderr);
    }
    answer.ok();
    assert_injected(&scene.pod("warned"));
}
