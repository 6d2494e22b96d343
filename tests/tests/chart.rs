//! The chart refuses values that it does not know, and the API server takes every object that it renders.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

use nexus_tests::apiserver::Cluster;
use nexus_tests::chart;
use nexus_tests::clients::repository;
use nexus_tests::operator;
use serde_json::{Value, json};

/// Sets of values that differ in what is rendered.
const VARIANTS: [&[(&str, &str)]; 8] = [
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
        ("routes.gatewayCaConfigMap", "gateway-ca"),
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
    &[
        ("test.connectionId", "7d6f3c1e-5b0a-4c8e-9d2f-3a4b5c6d7e8f"),
        ("test.tenant", "t_1"),
        ("test.path", "/$metadata"),
        ("test.upstream.url", "http://api.team.svc:8080/v1"),
        ("test.upstream.allowInsecure", "true"),
        ("test.upstream.allowPrivateAddresses", "true"),
        ("test.imagePullSecrets[0].name", "mirror"),
        ("test.tolerations[0].operator", "Exists"),
        ("global.imageRegistry", "registry.test/mirror"),
    ],
];
/// What `helm test` makes, and where.
const TEST: &str = "nexus-operator-helm-test";

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
    let clear = ("sidecar.gatewayUrl", "http://gateway.nexus.svc:8080");
    let said = refusal(&[clear]);
    assert!(
        said.contains("sidecar.gatewayUrl is an http:// address"),
        "{said}"
    );
    let broker = [
        ("sidecar.gatewayUrl", ""),
        ("sidecar.brokerUrl", "http://localhost.nexus.test"),
    ];
    assert!(refusal(&broker).contains("sidecar.brokerUrl is an http:// address"));
    for accepted in [
        &[clear, ("sidecar.allowInsecureGateway", "true")][..],
        &[("sidecar.gatewayUrl", "http://127.0.0.1:7070")],
        &[("sidecar.gatewayUrl", "http://localhost/gateway")],
    ] {
        chart::render(accepted);
    }
    let grants = ("routes.gatewayUrl", "http://gateway.nexus.svc");
    assert!(refusal(&[grants]).contains("routes.gatewayUrl is an http:// address"));
    let alone = ("routes.gatewayCaConfigMap", "gateway-ca");
    assert!(refusal(&[alone]).contains("routes.gatewayUrl, which is not set"));
    let same = ("sidecar.adminPort", "8080");
    assert!(refusal(&[same]).contains("are both 8080"));
    let output = chart::helm()
        .args(["template", "nexus", "--kube-version", "1.29.9"])
        .arg(chart::folder())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains(
            "chart requires kubeVersion: >=1.30.0-0 which is incompatible with Kubernetes v1.29.9"
        ),
        "{said}"
    );
}

#[test]
fn what_it_cannot_do_is_refused_with_a_sentence() {
    let relay = refusal(&[("relay.enabled", "true")]);
    assert!(
        relay.contains("This version of the chart has no relay yet"),
        "{relay}"
    );
    let id = ("test.connectionId", "7d6f3c1e-5b0a-4c8e-9d2f-3a4b5c6d7e8f");
    assert!(refusal(&[id]).contains("set test.upstream.url, or test.provider"));
    for namespace in [chart::NAMESPACE, "kube-system", "monitoring"] {
        let said = refusal(&[
            ("test.namespace", namespace),
            ("webhook.excludeNamespaces[0]", "monitoring"),
        ]);
        let why = format!("Nothing is injected in the namespace {namespace}");
        assert!(said.contains(&why), "{said}");
    }
}

/// The names of all values and groups of values.
fn paths(value: &Value, path: &str, all: &mut Vec<String>) {
    for (name, value) in value.as_object().into_iter().flatten() {
        let path = format!("{path}{name}");
        paths(value, &format!("{path}."), all);
        all.push(path);
    }
}

#[test]
fn null_unsets_what_may_be_unset_and_is_refused_by_name_elsewhere() {
    let text = std::fs::read_to_string(chart::folder().join("values.yaml")).unwrap();
    let mut all = Vec::new();
    paths(&yaml_serde::from_str(&text).unwrap(), "", &mut all);
    assert!(all.len() > 100, "{all:?}");
    let mut taken = 0;
    for path in &all {
        let gateway = ("sidecar.gatewayUrl", "https://gateway.test");
        let values = if path == gateway.0 {
            [("sidecar.brokerUrl", "https://broker.test"), (path, "null")]
        } else {
            [gateway, (path, "null")]
        };
        let output = chart::template(&values);
        let said = String::from_utf8_lossy(&output.stderr);
        let name = path.rsplit('.').next().unwrap();
        if output.status.success() {
            taken += 1;
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(!text.contains("%!") && !text.contains("<nil>"), "{path}");
            // Nothing that ends where a value should stand.
            let broken = text
                .lines()
                .find(|line| line.trim().starts_with("- --") && line.ends_with('='));
            assert_eq!(broken, None, "{path}");
        } else {
            let why = format!("missing property '{name}'");
            assert!(said.contains(&why), "{path}: {said}");
        }
    }
    assert!(taken > 40, "{taken}");
    // Not what protects, nor what would take definitions and their objects away.
    for path in ["policies.enabled", "policies", "crds.enabled", "crds.keep"] {
        refusal(&[(path, "null")]);
    }
}

#[test]
fn one_registry_can_stand_in_for_all() {
    let objects = chart::render_with_tests(&[
        ("global.imageRegistry", "mirror.test/nexus/"),
        ("image.registry", "elsewhere.test"),
    ]);
    let arguments = operator_arguments(&objects);
    assert!(arguments.contains(&"--sidecar-image=mirror.test/nexus/nexus-sidecar:0.1.0"));
    let operator = &chart::of_kind(&objects, "Deployment")[0]["spec"]["template"]["spec"];
    let test = &chart::of_kind(&objects, "Pod")[0]["spec"];
    let image = |pod: &Value| pod["containers"][0]["image"].as_str().unwrap().to_owned();
    assert_eq!(image(operator), "mirror.test/nexus/nexus-operator:0.1.0");
    assert!(image(test).starts_with("mirror.test/nexus/busybox:"));
}

#[test]
fn the_test_uses_what_is_told_and_its_own_otherwise() {
    let id = ("test.connectionId", "7d6f3c1e-5b0a-4c8e-9d2f-3a4b5c6d7e8f");
    let objects = |values: &[(&str, &str)]| {
        let mut objects = chart::render_with_tests(values);
        objects.retain(|object| object["metadata"]["annotations"]["helm.sh/hook"] == "test");
        objects
    };
    let kinds = |objects: &[Value]| {
        let kinds = objects
            .iter()
            .map(|object| object["kind"].as_str().unwrap());
        let mut kinds: Vec<String> = kinds.map(str::to_owned).collect();
        kinds.sort();
        kinds.join(" ")
    };
    let own = objects(&[]);
    let all = "Namespace Namespace NexusProvider NexusRoute Pod ServiceAccount";
    assert_eq!(kinds(&own), all);
    let there = objects(&[
        ("test.namespace", "agents"),
        id,
        ("test.provider", "github"),
    ]);
    assert_eq!(kinds(&there), "NexusRoute Pod ServiceAccount");
    for object in there {
        assert_eq!(object["metadata"]["namespace"], "agents");
    }
    assert!(objects(&[("test.enabled", "false")]).is_empty());

    // A namespace that is made for the test has no Secret: then there is no use in waiting for it.
    let key = [("sidecar.auth", "api-key"), ("sidecar.authSecret", "key")];
    let pod = |values: &[(&str, &str)]| chart::of_kind(&objects(values), "Pod")[0].clone();
    let stuck = pod(&key);
    assert!(stuck["metadata"]["annotations"]["nexus.io/inject"].is_null());
    assert!(
        stuck["spec"]
            .to_string()
            .contains("sidecars need the Secret key")
    );
    let fine = pod(&[key[0], key[1], ("test.namespace", "agents")]);
    assert_eq!(fine["metadata"]["annotations"]["nexus.io/inject"], "true");
    assert!(!fine["spec"].to_string().contains("sidecars need"));
}

#[test]
fn the_api_server_takes_every_object_that_it_renders() {
    let cluster = Cluster::shared();
    for namespace in [chart::NAMESPACE, TEST] {
        cluster.kubectl(&["create", "namespace", namespace]).ok();
    }
    let account = ["--namespace", TEST, "create", "serviceaccount", TEST];
    cluster.kubectl(&account).ok();
    let definitions = json!({
        "apiVersion": "v1", "kind": "List",
        "items": chart::of_kind(&chart::render(&[]), "CustomResourceDefinition"),
    });
    let apply = ["apply", "--server-side", "--filename=-"];
    cluster.kubectl_with(&apply, &definitions.to_string()).ok();
    // Of cert-manager and of the Prometheus operator.
    let others =
        std::env::var("NEXUS_DEFINITIONS").expect("`cargo xtask assets` says where they are");
    let others = ["apply", "--server-side", "--filename", &others];
    assert_eq!(cluster.kubectl(&others).ok().lines().count(), 4);
    let established = [
        "wait",
        "--for=condition=Established",
        "--timeout=60s",
        "crd",
        "--all",
    ];
    cluster.kubectl(&established).ok();
    for values in VARIANTS {
        let items = chart::render_with_tests(values);
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
fn the_example_of_a_gateway_is_of_this_version() {
    let example = repository().join("examples/kubernetes/gateway.yaml");
    let image = format!(
        "image: ghcr.io/nexus/nexus-sidecar:{}\n",
        env!("CARGO_PKG_VERSION")
    );
    assert!(std::fs::read_to_string(example).unwrap().contains(&image));
}

#[test]
fn every_pod_passes_the_restricted_security_standard() {
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
    for name in ["nexus-operator", TEST] {
        let account = ["--namespace", &namespace, "create", "serviceaccount", name];
        cluster.kubectl(&account).ok();
    }
    for values in [
        &[][..],
        &[("certificates.certManager.enabled", "true")],
        &[("sidecar.runAsUser", "null")],
    ] {
        let objects = chart::render_with_tests(values);
        let template = &chart::of_kind(&objects, "Deployment")[0]["spec"]["template"];
        let test = chart::of_kind(&objects, "Pod")[0];
        for spec in [&template["spec"], &test["spec"]] {
            let pod = json!({
                "apiVersion": "v1", "kind": "Pod", "spec": spec,
                "metadata": {"name": "pod", "namespace": namespace},
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
