//! Every reason for which a pod cannot have a sidecar.

use super::*;

/// Pods, the operator's flags and the field that the refusal must name.
type Case = (Value, &'static [&'static str], &'static str);

const API_KEY: &[&str] = &["--sidecar-auth=api-key", "--sidecar-auth-secret=key"];

fn of_the_pod() -> Vec<Case> {
    let volume = |source: Value| {
        let mut volume = json!({"name": "v"});
        merge(&mut volume, source);
        pod(json!({"volumes": [{"name": "other", "emptyDir": {}}, volume]}))
    };
    let token = json!({"projected": {"sources": [
        {"configMap": {"name": "c"}},
        {"serviceAccountToken": {"audience": "nexus-gateway", "path": "t"}},
    ]}});
    let projected_key = json!({"projected": {"sources": [{"secret": {"name": "key"}}]}});
    vec![
        (
            pod(json!({"shareProcessNamespace": true})),
            &[],
            "spec.shareProcessNamespace: ",
        ),
        (pod(json!({"hostPID": true})), &[], "spec.hostPID: "),
        (pod(json!({"hostIPC": true})), &[], "spec.hostIPC: "),
        (pod(json!({"hostNetwork": true})), &[], "spec.hostNetwork: "),
        (
            pod(json!({"os": {"name": "windows"}})),
            &[],
            "spec.os.name: ",
        ),
        (
            pod(json!({"nodeSelector": {"kubernetes.io/os": "windows"}})),
            &[],
            "spec.nodeSelector[kubernetes.io/os]: ",
        ),
        (
            pod(
                json!({"hostAliases": [{"ip": "10.0.0.1", "hostnames": ["a", "GATEWAY.example."]}]}),
            ),
            &[],
            "spec.hostAliases: says where gateway.example is",
        ),
        (
            pod(json!({"securityContext": {"runAsUser": 0}})),
            &["--sidecar-no-run-as-user"],
            "spec.securityContext.runAsUser: ",
        ),
        (
            volume(json!({"hostPath": {"path": "/"}})),
            &[],
            "spec.volumes[v].hostPath: ",
        ),
        (
            volume(token),
            &[],
            "spec.volumes[v].projected: holds a token for the audience nexus-gateway",
        ),
        (
            volume(json!({"secret": {"secretName": "key"}})),
            API_KEY,
            "spec.volumes[v].secret: is the Secret key",
        ),
        (
            volume(projected_key),
            API_KEY,
            "spec.volumes[v].projected: is the Secret key",
        ),
        (
            annotated(pod(json!({})), [("kubernetes.io/config.mirror", "x")]),
            &[],
            "annotation kubernetes.io/config.mirror: ",
        ),
    ]
}

fn of_a_container() -> Vec<Case> {
    let capabilities =
        |name: &str| json!({"securityContext": {"capabilities": {"add": ["CHOWN", name]}}});
    let add = "spec.containers[agent].securityContext.capabilities.add: ";
    let first = |fields: Value| {
        let mut first = json!({"name": "first"});
        merge(&mut first, fields);
        pod(json!({"initContainers": [first]}))
    };
    let mut cases: Vec<Case> = vec![
        (
            agent(json!({"securityContext": {"privileged": true}})),
            &[],
            "spec.containers[agent].securityContext.privileged: ",
        ),
        (
            first(json!({"securityContext": {"privileged": true}})),
            &[],
            "spec.initContainers[first].securityContext.privileged: ",
        ),
        (
            agent(json!({"volumeMounts": [{"name": "nexus-sidecar-auth", "mountPath": "/x"}]})),
            &[],
            "spec.containers[agent].volumeMounts: mounts nexus-sidecar-auth",
        ),
        (
            first(json!({"volumeDevices": [{"name": "nexus-sidecar-x", "devicePath": "/x"}]})),
            &[],
            "spec.initContainers[first].volumeMounts: mounts nexus-sidecar-x",
        ),
        (
            agent(
                json!({"env": [{"name": "K", "valueFrom": {"secretKeyRef": {"name": "key", "key": "api-key"}}}]}),
            ),
            API_KEY,
            "spec.containers[agent].env[K]: is the Secret key",
        ),
        (
            agent(json!({"envFrom": [{"secretRef": {"name": "key"}}]})),
            API_KEY,
            "spec.containers[agent].envFrom: is the Secret key",
        ),
        (
            agent(json!({"ports": [{"containerPort": 8080}]})),
            &[],
            "spec.containers[agent].ports[8080]: is the sidecar's; use another, or move the sidecar with nexus.io/sidecar-port",
        ),
        (
            first(json!({"ports": [{"containerPort": 9901, "protocol": "TCP"}]})),
            &[],
            "spec.initContainers[first].ports[9901]: ",
        ),
        (
            annotated(
                agent(json!({"ports": [{"containerPort": 8888}]})),
                [("nexus.io/sidecar-port", "8888")],
            ),
            &[],
            "spec.containers[agent].ports[8888]: ",
        ),
    ];
    let added = [
        "SYS_PTRACE",
        "NET_ADMIN",
        "NET_RAW",
        "SYS_ADMIN",
        "ALL",
        "all",
        "CAP_SYS_PTRACE",
        "cap_net_raw",
        "sys_ptrace",
        "DAC_READ_SEARCH",
        "BPF",
        "PERFMON",
        "SYS_MODULE",
        "SYS_RAWIO",
        "CHECKPOINT_RESTORE",
    ];
    cases.extend(added.map(|name| (agent(capabilities(name)), &[] as &[_], add)));
    cases
}

fn of_the_annotations() -> Vec<Case> {
    let bad = [
        ("nexus.io/sidecar-port", "http"),
        ("nexus.io/sidecar-port", "80"),
        ("nexus.io/sidecar-port", "65536"),
        ("nexus.io/sidecar-port", "9901"),
        ("nexus.io/sidecar-port", ""),
        ("nexus.io/sidecar-log-level", "loud enough"),
        ("nexus.io/sidecar-log-level", "$(POD_NAME)"),
        ("nexus.io/sidecar-log-level", ""),
        ("nexus.io/sidecar-readiness", "yes"),
        ("nexus.io/sidecar-cpu-request", "1 core"),
        ("nexus.io/sidecar-cpu-limit", "0"),
        ("nexus.io/sidecar-memory-request", "64m"),
        ("nexus.io/sidecar-memory-limit", "0Mi"),
        ("nexus.io/tenants", "*"),
        ("nexus.io/base-url-env", "OPENAI_BASE_URL"),
        ("nexus.io/base-url-env", "=openai"),
        ("nexus.io/base-url-env", "1A=openai"),
        ("nexus.io/base-url-env", "A=OpenAI/v1"),
        ("nexus.io/base-url-env", "A="),
        ("nexus.io/base-url-env", "A=openai@other/v1"),
        ("nexus.io/base-url-env", "A=openai@/v1"),
        ("nexus.io/base-url-env", "A=openai/$(HOME)"),
        ("nexus.io/base-url-env", "A=openai/v1?x=1"),
        ("nexus.io/base-url-env", "A=openai/v 1"),
        ("nexus.io/base-url-env", "A=openai,A=github"),
        ("nexus.io/base-url-env", "NEXUS_SIDECAR_URL=openai"),
        ("nexus.io/placeholder-env", "A-B"),
        ("nexus.io/placeholder-env", "NEXUS_SIDECAR_URL"),
    ];
    let cases = bad.map(|annotation| {
        let field: &'static str =
            Box::leak(format!("annotation {}: ", annotation.0).into_boxed_str());
        (annotated(pod(json!({})), [annotation]), &[] as &[_], field)
    });
    let twice = annotated(
        pod(json!({})),
        [
            ("nexus.io/base-url-env", "A=openai"),
            ("nexus.io/placeholder-env", "A"),
        ],
    );
    let more = annotated(
        pod(json!({})),
        [
            ("nexus.io/sidecar-cpu-request", "2"),
            ("nexus.io/sidecar-cpu-limit", "1000m"),
        ],
    );
    let rest: [Case; 2] = [
        (
            twice,
            &[],
            "annotation nexus.io/placeholder-env: names A, and nexus.io/base-url-env too",
        ),
        (
            more,
            &[],
            "annotation nexus.io/sidecar-cpu-request: 2 is more than 1000m",
        ),
    ];
    cases.into_iter().chain(rest).collect()
}

#[test]
fn every_reason_names_the_field() {
    let cases = of_the_pod()
        .into_iter()
        .chain(of_a_container())
        .chain(of_the_annotations());
    for (pod, flags, field) in cases {
        let message = refusal(&pod, flags);
        let rest = message
            .strip_prefix(
                "the annotation nexus.io/inject asks for a sidecar that this pod cannot have: ",
            )
            .unwrap();
        assert!(rest.starts_with(field), "{field}: {message}");
        assert!(!rest.contains("; and "), "one reason, {message}");
    }
}

#[test]
fn all_reasons_are_told_at_once_and_many_are_counted() {
    let message = refusal(&pod(json!({"hostPID": true, "hostIPC": true})), &[]);
    assert!(
        message.contains("spec.hostPID: ") && message.contains("; spec.hostIPC: "),
        "{message}"
    );
    let many: Vec<_> = (0..50)
        .map(|n| json!({"name": format!("v{n}"), "hostPath": {"path": "/"}}))
        .collect();
    let message = refusal(&pod(json!({"volumes": many})), &[]);
    assert!(
        message.ends_with("; and 42 more") && message.len() < 2_000,
        "{message}"
    );
}

#[test]
fn names_of_a_control_plane_that_no_public_authority_vouches_for_are_left_to_the_cluster() {
    let cases = [
        (
            json!({"dnsConfig": {"nameservers": ["10.0.0.1"]}}),
            "spec.dnsConfig: ",
        ),
        (
            json!({"dnsConfig": {"searches": ["evil.example"]}}),
            "spec.dnsConfig: ",
        ),
        (json!({"hostname": "gateway"}), "spec.hostname: "),
    ];
    let flags = [
        "--sidecar-gateway-url=http://gateway",
        "--sidecar-allow-insecure-gateway",
    ];
    let insecure = try_config(&flags).unwrap();
    // Of the pod's namespace, so the pod's owner may write it.
    let own_authority = [
        "--sidecar-gateway-url=https://gateway",
        "--sidecar-ca-config-map=gateway-ca",
    ];
    let own_authority = try_config(&own_authority).unwrap();
    for (fields, field) in cases {
        let pod = pod(fields);
        for config in [&insecure, &own_authority] {
            let Decision::Refused { message } = decide_in(&pod, &namespace(None), config) else {
                panic!("{pod}");
            };
            assert!(message.contains(field), "{message}");
        }
        // A certificate says who answers.
        after(&pod, &[]);
    }
    let (_, warnings) = injected(
        &pod(json!({"dnsConfig": {"options": [{"name": "ndots"}]}})),
        &insecure,
    );
    assert_eq!(warnings, [""; 0]);
}

#[test]
fn what_would_make_endless_patches_is_refused() {
    let containers: Vec<_> = (0..257).map(|n| json!({"name": format!("c{n}")})).collect();
    let message = refusal(&pod(json!({"containers": containers})), &[]);
    assert!(
        message.contains("spec.containers: are more than 256"),
        "{message}"
    );
    let names: Vec<_> = (0..65).map(|n| format!("A{n}")).collect();
    let pod = annotated(
        pod(json!({})),
        [("nexus.io/placeholder-env", &names.join(","))],
    );
    let message = refusal(&pod, &[]);
    assert!(
        message.contains("annotation nexus.io/placeholder-env: names more than 64"),
        "{message}"
    );
}

#[test]
fn what_is_harmless_passes() {
    for (fields, flags) in [
        (
            json!({"shareProcessNamespace": false, "hostPID": false, "hostNetwork": false}),
            &[][..],
        ),
        (
            json!({"os": {"name": "linux"}, "nodeSelector": {"kubernetes.io/os": "linux"}}),
            &[],
        ),
        (
            json!({"securityContext": {"runAsUser": 0, "fsGroup": 1}}),
            &[],
        ),
        (
            json!({"hostAliases": [{"ip": "10.0.0.1", "hostnames": ["not-gateway.example"]}]}),
            &[],
        ),
        (
            json!({"volumes": [{"name": "v", "secret": {"secretName": "other"}}]}),
            API_KEY,
        ),
        (
            json!({"volumes": [{"name": "v", "secret": {"secretName": "key"}}]}),
            &[],
        ),
        (
            json!({"volumes": [{"name": "v", "projected": {"sources": [
                {"serviceAccountToken": {"path": "t"}},
                {"serviceAccountToken": {"audience": "nexus-gateway.example", "path": "u"}},
            ]}}]}),
            &[],
        ),
        (
            json!({"containers": [{"name": "agent", "ports": [
                {"containerPort": 8080, "protocol": "UDP"}, {"containerPort": 8081},
            ]}]}),
            &[],
        ),
        (
            json!({"containers": [{"name": "agent", "securityContext": {
                "privileged": false,
                "capabilities": {"add": ["NET_BIND_SERVICE"], "drop": ["ALL"]},
            }}]}),
            &[],
        ),
    ] {
        after(&pod(fields), flags);
    }
}

#[test]
fn a_sidecar_of_an_earlier_admission_is_no_reason() {
    // Its ports and mounts are those that nobody else may have.
    let pod = pod(json!({
        "initContainers": [{
            "name": "nexus-sidecar",
            "ports": [{"containerPort": 9901}],
            "volumeMounts": [{"name": "nexus-sidecar-auth", "mountPath": "/x"}],
            "securityContext": {"privileged": true},
        }],
        "volumes": [{"name": "nexus-sidecar-auth", "projected": {"sources": [
            {"serviceAccountToken": {"audience": "nexus-gateway", "path": "token"}},
        ]}}],
    }));
    let after = after(&pod, &[]);
    assert_eq!(after["spec"]["initContainers"].as_array().unwrap().len(), 1);
    assert!(!after.to_string().contains("nexus-gateway"));
}
