//! The chart refuses values that it does not know, and the API server takes every object that it renders.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

use nexus_tests::apiserver::Cluster;
use nexus_tests::chart;
use nexus_tests::operator;
use serde_json::{Value, json};

/// Sets of values that differ in what is rendered.
const VARIANTS: [&[(&str, &str)]; 7] = [
    &[],
    &[("sidecar.auth", "token")],
    &[
        ("sidecar.brokerUrl", "http://broker.nexus.svc:8080"),
        ("sidecar.auth", "api-key"),
        ("sidecar.authSecret", "nexus-key"),
        ("sidecar.caConfigMap", "gateway-ca"),
        ("sidecar.allowInsecureGateway", "true"),
        ("sidecar.runAsUser", "null"),
        ("sidecar.resources.limits.cpu", "500m"),
        ("sidecar.image.pullPolicy", "Never"),
    ],
    &[
        ("image.registry", "registry.test/mirror"),
        ("image.tag", "1.2.3"),
        (
            "sidecar.image.digest",
            "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        ),
        ("imagePullSecrets[0].name", "mirror"),
        ("commonLabels.team", "platform"),
        ("serviceAccount.name", "other"),
        ("serviceAccount.annotations.a", "b"),
        ("operator.replicas", "3"),
        ("operator.maxUnavailable", "50%"),
        ("operator.podAnnotations.a", "b"),
        ("operator.podLabels.a", "b"),
        ("operator.nodeSelector.a", "b"),
        ("operator.tolerations[0].operator", "Exists"),
        ("operator.extraArgs[0]", "--lease-duration=30s"),
        ("webhook.excludeNamespaces[0]", "monitoring"),
        ("routes.gatewayUrl", "https://gateway.test"),
        ("routes.allowInsecureUpstreams", "true"),
    ],
    &[("certificates.certManager.enabled", "true")],
    &[
        ("policies.enabled", "false"),
        ("policies.warnings", "false"),
        ("rbac.userRoles", "false"),
        ("crds.keep", "false"),
    ],
    &[
        ("metrics.serviceMonitor.enabled", "true"),
        ("metrics.serviceMonitor.interval", "30s"),
        ("metrics.podMonitor.enabled", "true"),
        ("metrics.podMonitor.labels.release", "prometheus"),
        ("metrics.dashboard.enabled", "true"),
        ("networkPolicy.enabled", "true"),
    ],
];

fn operator_arguments(objects: &[Value]) -> Vec<&str> {
    let deployments = chart::of_kind(objects, "Deployment");
    let arguments = &deployments[0]["spec"]["template"]["spec"]["containers"][0]["args"];
    let arguments = arguments.as_array().unwrap();
    arguments
        .iter()
        .map(|argument| argument.as_str().unwrap())
        .collect()
}

fn refusal(values: &[(&str, &str)]) -> String {
    let output = chart::template(values);
    assert!(!output.status.success(), "rendered with {values:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn it_has_no_fault_that_helm_knows() {
    let output = chart::helm()
        .args(["lint", "--strict", "--kube-version", "1.30.0"])
        .arg(chart::folder())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(!said.contains("[WARNING]"), "{said}");
}

#[test]
fn a_value_that_it_does_not_know_is_refused() {
    for (name, value, why) in [
        (
            "sidecar.gatewayURL",
            "https://g",
            "additional properties 'gatewayURL' not allowed",
        ),
        (
            "replicas",
            "3",
            "additional properties 'replicas' not allowed",
        ),
        (
            "operator.replica",
            "3",
            "additional properties 'replica' not allowed",
        ),
        (
            "sidecar.resources.limit.cpu",
            "1",
            "additional properties 'limit' not allowed",
        ),
        (
            "policies.enable",
            "false",
            "additional properties 'enable' not allowed",
        ),
        ("operator.replicas", "0", "/operator/replicas"),
        ("operator.replicas", "many", "/operator/replicas"),
        ("sidecar.auth", "key", "/sidecar/auth"),
        ("sidecar.gatewayUrl", "gateway.test", "/sidecar/gatewayUrl"),
        (
            "sidecar.image.repository",
            "nexus-sidecar:1",
            "/sidecar/image/repository",
        ),
        ("sidecar.image.digest", "sha256", "/sidecar/image/digest"),
        ("sidecar.port", "70000", "/sidecar/port"),
        ("routes.inlineUpstreams", "yes", "/routes/inlineUpstreams"),
        (
            "operator.extraArgs[0]",
            "lease-duration=30s",
            "/operator/extraArgs/0",
        ),
    ] {
        let said = refusal(&[(name, value)]);
        assert!(said.contains(why), "{name}={value}: {said}");
    }
}

#[test]
fn it_says_what_is_missing() {
    let said = refusal(&[("sidecar.gatewayUrl", "")]);
    assert!(
        said.contains("Say where sidecars get credentials from"),
        "{said}"
    );
    let both = [
        ("sidecar.gatewayUrl", "https://g.test"),
        ("sidecar.brokerUrl", "https://b.test"),
    ];
    assert!(refusal(&both).contains("not both"));
    for auth in ["api-key", "client-certificate"] {
        assert!(
            refusal(&[("sidecar.auth", auth)]).contains("sidecar.authSecret"),
            "{auth}"
        );
    }
    let output = chart::helm()
        .args(["template", "nexus", "--kube-version", "1.29.9"])
        .arg(chart::folder())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("chart requires kubeVersion: >=1.30.0-0"),
        "{said}"
    );
}

#[test]
fn the_api_server_takes_every_object_that_it_renders() {
    let cluster = Cluster::shared();
    cluster
        .kubectl(&["create", "namespace", chart::NAMESPACE])
        .ok();
    for values in VARIANTS {
        let mut items = chart::render(values);
        // Kinds of cert-manager and of the Prometheus operator, which are not here.
        items.retain(|object| {
            let version = object["apiVersion"].as_str().unwrap();
            !["cert-manager.io/v1", "monitoring.coreos.com/v1"].contains(&version)
        });
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        let answer = cluster.kubectl_with(
            &[
                "apply",
                "--server-side",
                "--dry-run=server",
                "--validate=strict",
                "--filename=-",
            ],
            &list.to_string(),
        );
        assert_eq!(answer.stderr, "", "{values:?}");
        let count = answer.ok().lines().count();
        assert_eq!(count, items.len(), "{values:?}");
    }
}

#[test]
fn the_pod_passes_the_restricted_security_standard() {
    let cluster = Cluster::shared();
    let namespace = cluster.namespace("restricted");
    cluster
        .kubectl(&[
            "label",
            "namespace",
            &namespace,
            "pod-security.kubernetes.io/enforce=restricted",
        ])
        .ok();
    cluster
        .kubectl(&[
            "--namespace",
            &namespace,
            "create",
            "serviceaccount",
            "nexus-operator",
        ])
        .ok();
    for values in [&[][..], &[("certificates.certManager.enabled", "true")]] {
        let objects = chart::render(values);
        let template = &chart::of_kind(&objects, "Deployment")[0]["spec"]["template"];
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "spec": template["spec"],
            "metadata": {"name": "operator", "namespace": namespace},
        });
        let dry = [
            "create",
            "--dry-run=server",
            "--validate=strict",
            "--filename=-",
        ];
        let answer = cluster.kubectl_with(&dry, &pod.to_string());
        assert_eq!(answer.stderr, "");
    }
}

#[test]
fn images_are_of_registry_tag_and_digest() {
    let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
    for (values, expected) in [
        (&[][..], "ghcr.io/nexus/nexus-sidecar:0.1.0".to_owned()),
        (
            &[("sidecar.image.registry", "")],
            "nexus-sidecar:0.1.0".to_owned(),
        ),
        (
            &[("sidecar.image.registry", "localhost:5000/")],
            "localhost:5000/nexus-sidecar:0.1.0".to_owned(),
        ),
        (
            &[("sidecar.image.tag", "2.0")],
            "ghcr.io/nexus/nexus-sidecar:2.0".to_owned(),
        ),
        (
            &[("sidecar.image.digest", digest.as_str())],
            format!("ghcr.io/nexus/nexus-sidecar@{digest}"),
        ),
        (
            &[
                ("sidecar.image.tag", "v2"),
                ("sidecar.image.digest", digest.as_str()),
            ],
            format!("ghcr.io/nexus/nexus-sidecar:v2@{digest}"),
        ),
    ] {
        let objects = chart::render(values);
        let argument = format!("--sidecar-image={expected}");
        assert!(
            operator_arguments(&objects).contains(&argument.as_str()),
            "{argument}"
        );
        // The policy that guards the token says the same repository.
        let repository = expected.trim_start_matches("https://");
        let policies = chart::of_kind(&objects, "ValidatingAdmissionPolicy");
        let create = policies
            .iter()
            .find(|policy| policy["metadata"]["name"] == "nexus-pod-create");
        let variables = create.unwrap()["spec"]["variables"].as_array().unwrap();
        let known = variables
            .iter()
            .find(|variable| variable["name"] == "repository")
            .unwrap();
        let known = known["expression"].as_str().unwrap().trim_matches('\'');
        let rest = repository.strip_prefix(known).unwrap();
        assert!(rest.starts_with([':', '@']), "{known} {rest}");
    }
}

#[test]
fn definitions_are_left_out_or_left_behind_as_told() {
    let definitions = |values: &[(&str, &str)]| -> Vec<Value> {
        let objects = chart::render(values);
        chart::of_kind(&objects, "CustomResourceDefinition")
            .into_iter()
            .cloned()
            .collect()
    };
    let policy = |definition: &Value| {
        definition["metadata"]["annotations"]["helm.sh/resource-policy"].clone()
    };
    let kept = definitions(&[]);
    assert_eq!(kept.len(), 2);
    assert!(kept.iter().all(|it| policy(it) == "keep"));
    let gone = definitions(&[("crds.keep", "false")]);
    assert_eq!(gone.len(), 2);
    assert!(gone.iter().all(|it| policy(it).is_null()));
    assert!(definitions(&[("crds.enabled", "false")]).is_empty());
}

#[test]
fn the_operator_understands_every_argument() {
    for values in VARIANTS {
        let objects = chart::render(values);
        let arguments = operator_arguments(&objects);
        assert_eq!(arguments[0], "run");
        // It complains of the first that it does not understand.
        let output = Command::new(operator::binary())
            .args(arguments)
            .arg("--unheard-of")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            said.contains("unexpected argument '--unheard-of'"),
            "{values:?}: {said}"
        );
    }
}

#[test]
fn the_webhook_for_pods_is_called_for_annotated_ones_alone_and_never_left_out() {
    let objects = chart::render(&[("webhook.excludeNamespaces[0]", "monitoring")]);
    let configuration = chart::of_kind(&objects, "MutatingWebhookConfiguration")[0];
    let webhooks = configuration["webhooks"].as_array().unwrap();
    let [webhook] = &webhooks[..] else {
        panic!("one webhook: {webhooks:?}")
    };
    let rules = json!([{
        "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"], "scope": "Namespaced",
    }]);
    assert_eq!(webhook["rules"], rules);
    let conditions = json!([{
        "name": "annotated",
        "expression": "object.metadata.?annotations[?'nexus.io/inject'].orValue('') == 'true'",
    }]);
    assert_eq!(webhook["matchConditions"], conditions);
    let excluded = [
        "kube-system",
        "kube-node-lease",
        chart::NAMESPACE,
        "monitoring",
    ];
    let selector = &webhook["namespaceSelector"]["matchExpressions"][0];
    assert_eq!(selector["values"], json!(excluded));
    assert_eq!(selector["operator"], "NotIn");
    assert_eq!(webhook["failurePolicy"], "Fail");
    assert_eq!(webhook["reinvocationPolicy"], "IfNeeded");
    assert_eq!(webhook["sideEffects"], "None");
    assert_eq!(webhook["timeoutSeconds"], 5);
    // The operator's: an upgrade would take away what stood here.
    for kind in [
        "MutatingWebhookConfiguration",
        "ValidatingWebhookConfiguration",
    ] {
        let text = chart::of_kind(&objects, kind)[0].to_string();
        assert!(!text.contains("caBundle"), "{kind}");
    }
}
