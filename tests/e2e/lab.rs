//! The cluster under test: the chart as a user installs it, and a gateway and an upstream as pods.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nexus_tests::apiserver::Answer;
use nexus_tests::connection;
use nexus_tests::tls::Authority;
use serde_json::{Value, json};

/// How long the cluster may take for anything on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_mins(3);
/// Namespace of the chart.
pub(crate) const SYSTEM: &str = "nexus-system";
/// The chart under test.
pub(crate) const CHART: &str = "charts/nexus";
/// Namespace of the gateway and the upstream.
pub(crate) const SERVICES: &str = "services";
/// Namespace of the gateway that the examples have for a test cluster.
pub(crate) const DEV_GATEWAY: &str = "dev-gateway";
/// What agents ask for is behind this URL.
pub(crate) const UPSTREAM: &str = "https://upstream.services.svc";
/// The second upstream.
pub(crate) const OTHER: &str = "https://other.services.svc";
/// What sidecars get credentials from.
pub(crate) const GATEWAY: &str = "https://gateway.services.svc";
/// A gateway that wants a key.
pub(crate) const KEYED: &str = "https://keyed.services.svc";
/// A broker that wants a certificate.
pub(crate) const BROKER: &str = "https://broker.services.svc";
/// Secret of a namespace with the key.
pub(crate) const KEY_SECRET: &str = "nexus-key";
/// ConfigMap of each namespace with the gateway's authority.
pub(crate) const AUTHORITY: &str = "nexus-ca";
/// Their names there.
const NAMES: [&str; 5] = ["gateway", "keyed", "broker", "upstream", "other"];
/// Connections that the gateway has: numbers below this one.
const CONNECTIONS: u32 = 500;

/// The cluster under test.
pub(crate) struct Lab {
    tokens: BTreeMap<String, String>,
    key: String,
    authority: String,
    client: (String, String),
    next_connection: AtomicU32,
    next_namespace: AtomicU32,
}

/// What the surroundings say; see `cargo xtask e2e`.
fn setting(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: use `cargo xtask e2e`"))
}

/// True where there is a cluster to test.
pub(crate) fn is_there() -> bool {
    std::env::var_os("NEXUS_E2E_KUBECONFIG").is_some()
}

/// The lab of this process.
///
/// # Panics
///
/// Before [`set_up`].
pub(crate) fn lab() -> &'static Lab {
    LAB.get().expect("the lab was set up")
}

static LAB: OnceLock<Lab> = OnceLock::new();

/// Removes all that these tests made from a cluster that is not ours.
pub(crate) fn clear_given() {
    if std::env::var_os("NEXUS_E2E_RESTART").is_none() {
        Lab::remove_what_was_left();
    }
}

/// Starts gateway and upstream. What is in the cluster of an earlier run is removed first.
pub(crate) fn set_up() {
    let tokens = (1..CONNECTIONS)
        .map(|number| (connection(number), token()))
        .collect();
    let (authority, clients) = (Authority::new(), Authority::new());
    let lab = Lab {
        tokens,
        key: token(),
        authority: authority.pem(),
        client: clients.client("sidecars"),
        next_connection: AtomicU32::new(1),
        next_namespace: AtomicU32::new(1),
    };
    Lab::remove_what_was_left();
    lab.start_services(&authority, &clients);
    assert!(LAB.set(lab).is_ok(), "the lab is set up once");
}

/// A token that no other text contains.
fn token() -> String {
    format!("e2e-{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..))
}

/// Chart and tag of an earlier revision, if the upgrade from it is to be tested.
pub(crate) fn older() -> Option<(String, String)> {
    let chart = std::env::var("NEXUS_E2E_OLDER_CHART").ok()?;
    Some((chart, setting("NEXUS_E2E_OLDER_TAG")))
}

/// True if a line of the upstream's log has all of these.
pub(crate) fn arrived(parts: &[&str]) -> bool {
    log_of("upstream")
        .lines()
        .any(|line| parts.iter().all(|part| line.contains(part)))
}

/// The log of a service.
pub(crate) fn log_of(service: &str) -> String {
    let deployment = format!("deployment/{service}");
    let namespace = format!("--namespace={SERVICES}");
    kubectl(&[&namespace, "logs", &deployment, "--tail=-1"]).ok()
}

/// Tag of the images under test.
pub(crate) fn tag() -> String {
    setting("NEXUS_E2E_TAG")
}

/// An image of the product.
pub(crate) fn image(name: &str) -> String {
    format!("{}/{name}:{}", setting("NEXUS_E2E_REGISTRY"), tag())
}

/// Python, requests, kubectl and a shell.
pub(crate) fn python() -> String {
    "localhost/agent-python:1".to_owned()
}

/// The kubeconfig of an administrator.
pub(crate) fn kubeconfig() -> String {
    setting("NEXUS_E2E_KUBECONFIG")
}

/// The program `helm`.
pub(crate) fn helm_program() -> PathBuf {
    setting("NEXUS_HELM").into()
}

/// A `kubectl` of an administrator.
pub(crate) fn kubectl_command(arguments: &[&str]) -> Command {
    let mut command = Command::new("kubectl");
    command.args(arguments).env("KUBECONFIG", kubeconfig());
    command
}

/// `kubectl` of an administrator.
pub(crate) fn kubectl(arguments: &[&str]) -> Answer {
    Answer::of(&mut kubectl_command(arguments), "")
}

/// `kubectl apply` of objects.
pub(crate) fn apply(objects: &[Value]) -> Answer {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    Answer::of(
        &mut kubectl_command(&["apply", "--filename=-"]),
        &list.to_string(),
    )
}

/// An object; `None` if there is none of that name.
pub(crate) fn get(namespace: &str, kind: &str, name: &str) -> Option<Value> {
    let namespace = format!("--namespace={namespace}");
    let text = kubectl(&[
        &namespace,
        "get",
        kind,
        name,
        "--output=json",
        "--ignore-not-found",
    ])
    .ok();
    (!text.is_empty()).then(|| serde_json::from_str(&text).unwrap())
}

/// `helm`, with the repository as its working directory.
pub(crate) fn helm(arguments: &[&str]) -> Answer {
    let mut command = Command::new(helm_program());
    command
        .args(arguments)
        .env("KUBECONFIG", kubeconfig())
        .current_dir(nexus_tests::clients::repository());
    Answer::of(&mut command, "")
}

/// `helm install` or `upgrade` of a chart with these arguments. Returns when the operator is the new one.
pub(crate) fn release(action: &str, chart: &str, arguments: &[String]) {
    let command = [action, "nexus", chart, "--namespace", SYSTEM];
    let arguments = arguments.iter().map(String::as_str);
    helm(&command.into_iter().chain(arguments).collect::<Vec<_>>()).ok();
    rolled_out(SYSTEM, "deployment/nexus-operator");
}

/// [`release`] of an upgrade to the chart under test.
pub(crate) fn upgrade(arguments: &[String]) {
    release("upgrade", CHART, arguments);
}

/// Values that make the chart find what runs in this cluster.
pub(crate) fn values() -> Vec<String> {
    values_of(&tag())
}

/// The same for images of this tag.
pub(crate) fn values_of(tag: &str) -> Vec<String> {
    let registry = setting("NEXUS_E2E_REGISTRY");
    [
        format!("image.registry={registry}"),
        format!("image.tag={tag}"),
        format!("sidecar.image.registry={registry}"),
        format!("sidecar.image.tag={tag}"),
        format!("sidecar.gatewayUrl={GATEWAY}"),
        format!("sidecar.caConfigMap={AUTHORITY}"),
        "sidecar.auth=token".to_owned(),
    ]
    .iter()
    .map(|value| format!("--set={value}"))
    .collect()
}

/// Asks again and again until there is an answer; `Err` says what is missing.
///
/// # Panics
///
/// When the answer does not come.
pub(crate) fn until<T>(what: &str, mut ask: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(missing) => assert!(start.elapsed() < LIMIT, "{what}: {missing}"),
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

impl Lab {
    /// The access token of a connection.
    pub(crate) fn token(&self, id: &str) -> &str {
        &self.tokens[id]
    }

    /// A connection that nobody used yet.
    pub(crate) fn connection(&self) -> String {
        let number = self.next_connection.fetch_add(1, Ordering::Relaxed);
        assert!(
            number < CONNECTIONS,
            "more connections are used than there are"
        );
        connection(number)
    }

    /// The key of the gateway that wants one.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// A certificate that the broker takes and its private key, in PEM.
    pub(crate) fn client(&self) -> (&str, &str) {
        (&self.client.0, &self.client.1)
    }

    /// The authority of gateway and upstream, in PEM.
    pub(crate) fn authority(&self) -> &str {
        &self.authority
    }

    /// A name that nobody used yet.
    pub(crate) fn unused(&self, prefix: &str) -> String {
        let number = self.next_namespace.fetch_add(1, Ordering::Relaxed);
        format!("{prefix}-{number}")
    }

    /// Removes what an earlier run left, and nothing that is somebody else's: a cluster may be given.
    fn remove_what_was_left() {
        for namespace in [SYSTEM, SERVICES, DEV_GATEWAY, "agents"] {
            if let Some(object) = get("default", "namespace", namespace) {
                assert_eq!(
                    object["metadata"]["labels"]["e2e"], "true",
                    "the cluster has a namespace {namespace} that these tests did not make; give them one without Nexus"
                );
            }
        }
        let ours = get("default", "namespace", SYSTEM).is_some();
        let routes = [
            "get",
            "crd",
            "--ignore-not-found",
            "--output=name",
            "nexusroutes.nexus.io",
        ];
        assert!(
            ours || kubectl(&routes).ok().is_empty(),
            "the cluster has NexusRoutes that these tests did not make; give them one without Nexus"
        );
        if !ours {
            return;
        }
        helm(&[
            "uninstall",
            "nexus",
            "--namespace",
            SYSTEM,
            "--ignore-not-found",
            "--wait",
        ])
        .ok();
        for kind in [
            "validatingadmissionpolicies",
            "validatingadmissionpolicybindings",
        ] {
            kubectl(&["delete", kind, "--selector=app.kubernetes.io/part-of=nexus"]).ok();
        }
        kubectl(&[
            "delete",
            "namespace",
            "--selector=e2e=true",
            "--timeout=180s",
        ])
        .ok();
        for definition in ["nexusroutes.nexus.io", "nexusproviders.nexus.io"] {
            kubectl(&["delete", "crd", "--ignore-not-found", definition]).ok();
        }
    }

    fn start_services(&self, authority: &Authority, clients: &Authority) {
        let names = NAMES.map(|name| format!("{name}.{SERVICES}.svc"));
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let (certificate, key) = authority.serving_as(&names);
        let secret = |name: &str, type_: &str, data: Value| {
            json!({
                "apiVersion": "v1", "kind": "Secret", "type": type_,
                "metadata": {"name": name, "namespace": SERVICES}, "stringData": data,
            })
        };
        let tokens = json!({
            "tokens.json": json!(self.tokens).to_string(),
            "api-key": self.key,
            "client-ca.crt": clients.pem(),
        });
        let mut objects = vec![
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SERVICES, "labels": {"e2e": "true"}}}),
            secret(
                "tls",
                "kubernetes.io/tls",
                json!({"tls.crt": certificate, "tls.key": key}),
            ),
            secret("credentials", "Opaque", tokens),
        ];
        objects.extend(service("gateway", &["gateway"]));
        let keyed = ["gateway", "--api-key-file=/etc/standin/credentials/api-key"];
        objects.extend(service("keyed", &keyed));
        let broker = [
            "broker",
            "--client-ca-file=/etc/standin/credentials/client-ca.crt",
        ];
        objects.extend(service("broker", &broker));
        objects.extend(service("upstream", &["upstream"]));
        objects.extend(service("other", &["upstream"]));
        apply(&objects).ok();
        for name in NAMES {
            rolled_out(SERVICES, &format!("deployment/{name}"));
        }
    }
}

/// Waits until all pods of a Deployment or StatefulSet are new and ready.
pub(crate) fn rolled_out(namespace: &str, workload: &str) {
    let namespace = format!("--namespace={namespace}");
    let timeout = format!("--timeout={}s", LIMIT.as_secs());
    let answer = kubectl(&[&namespace, "rollout", "status", &timeout, workload]);
    if !answer.success {
        let pods = kubectl(&[&namespace, "describe", "pods"]).stdout;
        panic!("{workload}: {}\n{pods}", answer.stderr);
    }
}

fn service(name: &str, arguments: &[&str]) -> [Value; 2] {
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name, "namespace": SERVICES},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "containers": [{
                        "name": "standin",
                        "image": "localhost/nexus-standin:1",
                        "args": arguments,
                        "ports": [{"containerPort": 8443}],
                        "readinessProbe": {"tcpSocket": {"port": 8443}, "periodSeconds": 1},
                        "volumeMounts": [
                            {"name": "tls", "mountPath": "/etc/standin/tls"},
                            {"name": "credentials", "mountPath": "/etc/standin/credentials"},
                        ],
                    }],
                    "volumes": [
                        {"name": "tls", "secret": {"secretName": "tls"}},
                        {"name": "credentials", "secret": {"secretName": "credentials"}},
                    ],
                },
            },
        },
    });
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": SERVICES},
        "spec": {"selector": {"app": name}, "ports": [{"port": 443, "targetPort": 8443}]},
    });
    [deployment, service]
}

/// A file of the tests.
pub(crate) fn file(name: &str) -> String {
    let path: PathBuf = nexus_tests::clients::repository()
        .join("tests/e2e")
        .join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
