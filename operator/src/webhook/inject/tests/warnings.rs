//! What the owner of a pod is told although the pod gets its sidecar.

use super::*;

#[test]
fn what_is_probably_not_meant_is_said() {
    let user = |of_pod: Value, of_container: Value| {
        pod(json!({
            "securityContext": {"runAsUser": of_pod},
            "containers": [{"name": "agent", "securityContext": {"runAsUser": of_container}}],
        }))
    };
    let probe = |probe: Value| agent(json!({"livenessProbe": probe}));
    let proxied = json!([
        {"name": "HTTP_PROXY", "value": "http://proxy.example"},
        {"name": "NO_PROXY", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}},
    ]);
    for (pod, flags, expected) in [
        (
            user(Value::Null, json!(28080)),
            &[][..],
            "spec.containers[agent].securityContext.runAsUser: is 28080, as the sidecar's",
        ),
        (
            user(json!(28080), Value::Null),
            &[],
            "spec.containers[agent].securityContext.runAsUser: ",
        ),
        (
            user(json!(1000), Value::Null),
            &["--sidecar-no-run-as-user"],
            "spec.containers[agent].securityContext.runAsUser: ",
        ),
        (
            agent(json!({"env": proxied})),
            &[],
            "spec.containers[agent].env[NO_PROXY]: ",
        ),
        (
            probe(json!({"httpGet": {"port": 8080}})),
            &[],
            "spec.containers[agent].livenessProbe: its port is the sidecar's",
        ),
        (
            probe(json!({"tcpSocket": {"port": 9901}})),
            &[],
            "spec.containers[agent].livenessProbe: ",
        ),
        (
            probe(json!({"grpc": {"port": 8080}})),
            &[],
            "spec.containers[agent].livenessProbe: ",
        ),
        (
            annotated(pod(json!({})), [("nexus.io/tenant", "a")]),
            &[],
            "annotation nexus.io/tenant: is not known",
        ),
        (
            annotated(pod(json!({})), [("nexus.io/connections", "*")]),
            &[],
            "annotation nexus.io/connections: belongs on the Namespace",
        ),
    ] {
        let (_, warnings) = injected(&pod, &config(flags));
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].starts_with(expected), "{warnings:?}");
        // More would be cut off by the API server.
        assert!(warnings[0].len() <= 256, "{warnings:?}");
    }
}

#[test]
fn nothing_is_said_about_what_is_fine() {
    for fields in [
        json!({"securityContext": {"runAsUser": 28080}, "containers": [
            {"name": "agent", "securityContext": {"runAsUser": 1000}},
        ]}),
        json!({"containers": [{"name": "agent", "livenessProbe": {"httpGet": {"port": "http"}}}]}),
        json!({"containers": [{"name": "agent", "readinessProbe": {"httpGet": {"port": 8081}}}]}),
    ] {
        after(&pod(fields), &[]);
    }
}

#[test]
fn many_warnings_are_counted() {
    let mut pod = pod(json!({}));
    for n in 0..50 {
        pod["metadata"]["annotations"][format!("nexus.io/x{n}")] = "".into();
    }
    let (_, warnings) = injected(&pod, &config(&[]));
    assert_eq!(warnings.len(), 9);
    assert_eq!(warnings[8], "there are 42 more warnings");
}
