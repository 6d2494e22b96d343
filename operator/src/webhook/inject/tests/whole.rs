//! The patch of simple pods, step by step.

use super::*;

fn steps(pod: &Value) -> Value {
    match decide_in(pod, &namespace(None), &config(&["--sidecar-auth=token"])) {
        Decision::Injected { patch, .. } => json!(patch),
        other => panic!("{other:?}"),
    }
}

fn the_sidecar() -> Value {
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}});
    json!({
        "name": "nexus-sidecar",
        "image": "registry.example/nexus-sidecar:1",
        "args": [
            "run",
            "--routes=/etc/nexus/routes",
            "--gateway-url=https://gateway.example/",
            "--token-file=/var/run/secrets/nexus/token",
            "--log-level=info",
        ],
        "restartPolicy": "Always",
        "env": [
            field("NEXUS_ADMITTED", "metadata.annotations['nexus.io/admitted']"),
            field("POD_NAME", "metadata.name"),
            field("POD_NAMESPACE", "metadata.namespace"),
            field("POD_UID", "metadata.uid"),
        ],
        "ports": [{"name": "nexus-admin", "containerPort": 9901, "protocol": "TCP"}],
        "startupProbe": {
            "exec": {"command": ["/nexus-sidecar", "probe", "--admin", "127.0.0.1:9901"]},
            "periodSeconds": 1,
            "timeoutSeconds": 5,
            "failureThreshold": 300,
        },
        "resources": {
            "requests": {"cpu": "10m", "memory": "32Mi"},
            "limits": {"memory": "256Mi"},
        },
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]},
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "runAsNonRoot": true,
            "runAsUser": 28080,
            "runAsGroup": 28080,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "nexus-sidecar-routes", "mountPath": "/etc/nexus/routes", "readOnly": true},
            {"name": "nexus-sidecar-auth", "mountPath": "/var/run/secrets/nexus", "readOnly": true},
            {
                "name": "nexus-sidecar-no-api-token",
                "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
                "readOnly": true,
            },
        ],
    })
}

fn the_volumes() -> [Value; 3] {
    [
        json!({"name": "nexus-sidecar-routes", "configMap": {
            "name": "nexus-routes", "optional": true, "defaultMode": 0o444,
        }}),
        json!({"name": "nexus-sidecar-auth", "projected": {
            "defaultMode": 0o444,
            "sources": [{"serviceAccountToken": {
                "audience": "nexus-gateway", "expirationSeconds": 3600, "path": "token",
            }}],
        }}),
        json!({"name": "nexus-sidecar-no-api-token", "emptyDir": {}}),
    ]
}

/// The steps with the decision taken out, and the decision.
fn without_decision(mut steps: Value) -> (Value, Value) {
    let last = steps.as_array_mut().unwrap().last_mut().unwrap();
    let decision = serde_json::from_str(last["value"].take().as_str().unwrap()).unwrap();
    (steps, decision)
}

fn the_decision(labels: &Value) -> Value {
    json!({
        "version": 1,
        "labels": labels,
        "serviceAccount": "research",
        "tableFormat": nexus_crds::table::FORMAT,
        "sidecarVersion": env!("CARGO_PKG_VERSION"),
    })
}

#[test]
fn a_pod_that_has_nothing_gets_whole_lists() {
    let mut pod = pod(json!({}));
    pod["metadata"].as_object_mut().unwrap().remove("labels");
    let expected = json!([
        {"op": "add", "path": "/spec/containers/0/env",
            "value": [{"name": "NEXUS_SIDECAR_URL", "value": "http://127.0.0.1:8080"}]},
        {"op": "add", "path": "/spec/initContainers", "value": [the_sidecar()]},
        {"op": "add", "path": "/spec/volumes", "value": the_volumes()},
        {"op": "add", "path": "/metadata/labels", "value": {"nexus.io/sidecar": "true"}},
        {"op": "add", "path": "/metadata/annotations/nexus.io~1admitted", "value": null},
    ]);
    let (steps, decision) = without_decision(steps(&pod));
    assert_eq!(steps, expected);
    let mut expected = the_decision(&json!({}));
    expected.as_object_mut().unwrap().remove("labels");
    assert_eq!(decision, expected);
}

#[test]
fn a_pod_that_has_something_keeps_it_and_gets_elements() {
    let [routes, auth, none] = the_volumes();
    let pod = pod(json!({
        "initContainers": [{"name": "first"}],
        "containers": [{"name": "agent", "env": [{"name": "A", "value": "$(NEXUS_SIDECAR_URL)/x"}]}],
        "volumes": [{"name": "scratch", "emptyDir": {}}],
    }));
    let variable = json!({"name": "NEXUS_SIDECAR_URL", "value": "http://127.0.0.1:8080"});
    let expected = json!([
        {"op": "add", "path": "/spec/initContainers/0/env", "value": [variable]},
        {"op": "add", "path": "/spec/containers/0/env/0", "value": variable},
        {"op": "add", "path": "/spec/initContainers/0", "value": the_sidecar()},
        {"op": "add", "path": "/spec/volumes/-", "value": routes},
        {"op": "add", "path": "/spec/volumes/-", "value": auth},
        {"op": "add", "path": "/spec/volumes/-", "value": none},
        {"op": "add", "path": "/metadata/labels/nexus.io~1sidecar", "value": "true"},
        {"op": "add", "path": "/metadata/annotations/nexus.io~1admitted", "value": null},
    ]);
    let (steps, decision) = without_decision(steps(&pod));
    assert_eq!(steps, expected);
    assert_eq!(decision, the_decision(&json!({"app": "x"})));
}

#[test]
fn fields_that_are_not_known_survive() {
    let unknown = json!({"of": ["a", "later", "version"]});
    let mut pod = pod(json!({
        "later": unknown,
        "initContainers": [{"name": "first", "later": unknown}],
        "containers": [
            {"name": "nexus-sidecar", "later": "forged"},
            {"name": "agent", "later": unknown, "env": [
                {"name": "NEXUS_SIDECAR_URL", "value": "http://127.0.0.1:1"},
                {"name": "A", "later": unknown, "valueFrom": {"later": unknown}},
                {"name": "HTTPS_PROXY", "value": "http://proxy.example", "later": unknown},
                {"name": "NO_PROXY", "value": "x", "later": unknown},
            ]},
        ],
        "volumes": [{"name": "nexus-sidecar-old", "later": 1}, {"name": "v", "later": unknown}],
    }));
    pod["metadata"]["later"] = unknown.clone();
    let after = after(&pod, &[]);
    assert_eq!(after["metadata"]["later"], unknown);
    let spec = &after["spec"];
    assert_eq!(spec["later"], unknown);
    assert_eq!(spec["initContainers"][1]["later"], unknown);
    assert_eq!(spec["containers"].as_array().unwrap().len(), 1);
    let agent = &spec["containers"][0];
    assert_eq!(agent["later"], unknown);
    assert_eq!(
        agent["env"],
        json!([
            {"name": "NEXUS_SIDECAR_URL", "value": "http://127.0.0.1:8080"},
            {"name": "A", "later": unknown, "valueFrom": {"later": unknown}},
            {"name": "HTTPS_PROXY", "value": "http://proxy.example", "later": unknown},
            {"name": "NO_PROXY", "value": "x,127.0.0.1,localhost", "later": unknown},
        ])
    );
    assert_eq!(spec["volumes"][0], json!({"name": "v", "later": unknown}));
    assert!(!after.to_string().contains("forged") && !after.to_string().contains("sidecar-old"));
}

#[test]
fn what_is_added_is_what_kubernetes_knows() {
    let flags = [
        "--sidecar-auth=client-certificate",
        "--sidecar-auth-secret=s",
        "--sidecar-ca-config-map=ca",
    ];
    let pod = annotated(pod(json!({})), [("nexus.io/sidecar-readiness", "true")]);
    let after = after(&pod, &flags);
    // A field that does not exist, or of another type, would be lost on the way.
    let typed: Pod = serde_json::from_value(after.clone()).unwrap();
    assert_eq!(serde_json::to_value(typed).unwrap(), after);
}

#[test]
fn a_pod_that_does_not_ask_is_left_alone() {
    for value in ["false", "True", "1", "", "yes", " true"] {
        let pod = annotated(pod(json!({"hostPID": true})), [("nexus.io/inject", value)]);
        let decision = decide_in(&pod, &namespace(None), &config(&[]));
        assert!(matches!(decision, Decision::Untouched), "{value:?}");
    }
    let mut bare = pod(json!({}));
    bare["metadata"]
        .as_object_mut()
        .unwrap()
        .remove("annotations");
    let decision = decide_in(&bare, &namespace(None), &config(&[]));
    assert!(matches!(decision, Decision::Untouched));
}
