//! The injected container under the operator's flags and the pod's annotations.

use super::*;

fn arguments(sidecar: &Value) -> Vec<&str> {
    let all = sidecar["args"].as_array().unwrap();
    all.iter()
        .map(|argument| argument.as_str().unwrap())
        .collect()
}

#[test]
fn the_control_plane_is_reached_as_the_operator_says() {
    for (flags, expected) in [
        (&["--sidecar-auth=none"][..], &[][..]),
        (
            &["--sidecar-auth=api-key", "--sidecar-auth-secret=s"],
            &["--api-key-file=/var/run/secrets/nexus/api-key"],
        ),
        (
            &[
                "--sidecar-auth=client-certificate",
                "--sidecar-auth-secret=s",
            ],
            &[
                "--client-cert=/var/run/secrets/nexus/tls.crt",
                "--client-key=/var/run/secrets/nexus/tls.key",
            ],
        ),
        (
            &["--sidecar-auth=token"],
            &["--token-file=/var/run/secrets/nexus/token"],
        ),
        (
            &["--sidecar-ca-config-map=ca"],
            &["--gateway-ca=/etc/nexus/ca/ca.crt"],
        ),
        (&["--sidecar-admin-port=9999"], &["--admin=[::]:9999"]),
    ] {
        let sidecar = sidecar(&pod(json!({})), flags);
        let whole: Vec<&str> = [
            "run",
            "--routes=/etc/nexus/routes",
            "--gateway-url=https://gateway.example/",
        ]
        .iter()
        .chain(expected)
        .chain(&["--log-level=info"])
        .copied()
        .collect();
        assert_eq!(arguments(&sidecar), whole);
    }
    let broker = try_config(&[
        "--sidecar-broker-url=http://broker.x.svc:80",
        "--sidecar-allow-insecure-gateway",
    ]);
    let (pod, _) = injected(&pod(json!({})), &broker.unwrap());
    let arguments = arguments(&pod["spec"]["initContainers"][0]);
    assert!(
        arguments.contains(&"--broker-url=http://broker.x.svc/"),
        "{arguments:?}"
    );
    assert!(
        arguments.contains(&"--allow-insecure-gateway"),
        "{arguments:?}"
    );
}

#[test]
fn only_the_sidecar_mounts_what_it_shows() {
    for (flags, volume) in [
        (
            &["--sidecar-auth=api-key", "--sidecar-auth-secret=s"][..],
            json!({"secret": {"secretName": "s", "defaultMode": 0o444, "items": [
                {"key": "api-key", "path": "api-key"},
            ]}}),
        ),
        (
            &[
                "--sidecar-auth=client-certificate",
                "--sidecar-auth-secret=s",
            ],
            json!({"secret": {"secretName": "s", "defaultMode": 0o444, "items": [
                {"key": "tls.crt", "path": "tls.crt"}, {"key": "tls.key", "path": "tls.key"},
            ]}}),
        ),
    ] {
        let pod = pod(json!({"initContainers": [{"name": "first"}]}));
        let spec = after(&pod, flags)["spec"].take();
        let mut expected = volume;
        expected["name"] = "nexus-sidecar-auth".into();
        assert_eq!(spec["volumes"][1], expected);
        let mounts = &spec["initContainers"][0]["volumeMounts"];
        assert!(mounts.to_string().contains("nexus-sidecar-auth"));
        assert!(spec["initContainers"][1].get("volumeMounts").is_none());
        assert!(spec["containers"][0].get("volumeMounts").is_none());
    }
    let ca = after(&pod(json!({})), &["--sidecar-ca-config-map=ca"]);
    assert_eq!(
        ca["spec"]["volumes"][1],
        json!({"name": "nexus-sidecar-ca", "configMap": {
            "name": "ca", "items": [{"key": "ca.crt", "path": "ca.crt"}], "defaultMode": 0o444,
        }})
    );
}

#[test]
fn a_pod_sets_port_log_level_and_readiness() {
    let pod = annotated(
        pod(json!({})),
        [
            ("nexus.io/sidecar-port", " 8888 "),
            ("nexus.io/sidecar-log-level", "warn,nexus_sidecar=debug"),
            ("nexus.io/sidecar-readiness", "true"),
        ],
    );
    let after = after(&pod, &[]);
    let sidecar = &after["spec"]["initContainers"][0];
    let arguments = arguments(sidecar);
    assert!(
        arguments.contains(&"--listen=127.0.0.1:8888"),
        "{arguments:?}"
    );
    assert!(
        arguments.contains(&"--log-level=warn,nexus_sidecar=debug"),
        "{arguments:?}"
    );
    assert_eq!(
        sidecar["readinessProbe"]["httpGet"],
        json!({"path": "/readyz", "port": 9901})
    );
    assert!(sidecar.get("livenessProbe").is_none());
    let url = &after["spec"]["containers"][0]["env"][0];
    assert_eq!(url["value"], "http://127.0.0.1:8888");
}

#[test]
fn by_default_nothing_but_the_start_is_probed() {
    let plain = sidecar(&pod(json!({})), &[]);
    let refused = annotated(pod(json!({})), [("nexus.io/sidecar-readiness", "false")]);
    for sidecar in [plain, sidecar(&refused, &[])] {
        assert!(sidecar.get("readinessProbe").is_none());
        assert!(sidecar.get("livenessProbe").is_none());
        assert!(sidecar["startupProbe"]["exec"].is_object());
    }
}

#[test]
fn the_user_can_be_left_to_the_cluster() {
    let sidecar = sidecar(&pod(json!({})), &["--sidecar-no-run-as-user"]);
    let context = &sidecar["securityContext"];
    assert!(context.get("runAsUser").is_none() && context.get("runAsGroup").is_none());
    assert_eq!(context["runAsNonRoot"], true);
}

#[test]
fn a_forced_pull_policy_stays() {
    let with = |policy: &str| {
        pod(json!({"initContainers": [{"name": "nexus-sidecar", "imagePullPolicy": policy}]}))
    };
    let flags = ["--sidecar-image-pull-policy=IfNotPresent"];
    assert_eq!(
        sidecar(&with("Always"), &flags)["imagePullPolicy"],
        "Always"
    );
    assert_eq!(
        sidecar(&with("Never"), &flags)["imagePullPolicy"],
        "IfNotPresent"
    );
    assert!(
        sidecar(&with("Never"), &[])
            .get("imagePullPolicy")
            .is_none()
    );
}

#[test]
fn flags_that_no_sidecar_would_start_with_are_named() {
    for (flags, says) in [
        (
            &["--sidecar-image-pull-policy=Sometimes"][..],
            "--sidecar-image-pull-policy: ",
        ),
        (&["--sidecar-cpu-request=1u"], "--sidecar-cpu-request: "),
        (
            &["--sidecar-memory-request=x"],
            "--sidecar-memory-request: ",
        ),
        (
            &["--sidecar-memory-request=1Gi"],
            "is more than --sidecar-memory-limit, 256Mi",
        ),
        (&["--sidecar-memory-limit=0"], "--sidecar-memory-limit: "),
        (&["--sidecar-cpu-limit=-1"], "--sidecar-cpu-limit: "),
        (
            &["--sidecar-cpu-limit=1m"],
            "is more than --sidecar-cpu-limit, 1m",
        ),
        (&["--sidecar-log-level=loud$(X)"], "--sidecar-log-level: "),
        (&["--sidecar-admin-port=8080"], "--sidecar-admin-port: 8080"),
        (
            &["--sidecar-ca-config-map=A b"],
            "--sidecar-ca-config-map: ",
        ),
        (
            &["--sidecar-auth=api-key", "--sidecar-auth-secret=/"],
            "--sidecar-auth-secret: ",
        ),
    ] {
        let flags: Vec<&str> = [URL].iter().chain(flags).copied().collect();
        let error = try_config(&flags).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    for (url, says) in [
        (
            "http://gateway.example",
            "add --sidecar-allow-insecure-gateway",
        ),
        ("ftp://gateway.example", "is not an https:// address"),
        (
            "https://u:secret@gateway.example",
            "holds a user or a password",
        ),
        ("https://gateway.example/$(X)", "holds a $"),
    ] {
        let error = try_config(&[&format!("--sidecar-gateway-url={url}")])
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("--sidecar-gateway-url: ") && error.contains(says),
            "{error}"
        );
        assert!(!error.contains("secret@"), "{error}");
    }
    for url in ["http://127.0.0.1:1", "http://localhost", "http://[::1]:1"] {
        assert!(
            try_config(&[&format!("--sidecar-gateway-url={url}")]).is_ok(),
            "{url}"
        );
    }
}
