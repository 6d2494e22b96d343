//! The chart as `helm` renders it: values go in, the objects that `helm install` would apply come out. The harness of
//! the operator takes its permissions, webhooks and policies from here, so that tests run with the chart's own.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde::Deserialize;
use serde_json::Value;

use crate::apiserver::Cluster;

/// Namespace that [`render`] renders for.
pub const NAMESPACE: &str = "nexus-system";

/// Version of Kubernetes that the chart is rendered for; `helm` built from source believes in a very old one.
const KUBERNETES: &str = "1.35.4";

/// The chart's objects with these values set, e.g. `[("sidecar.auth", "token")]`, for the namespace [`NAMESPACE`]; not
/// what `helm test` makes. Sidecars get `https://gateway.test` unless the values name a gateway or a broker.
///
/// # Panics
///
/// Where there is no `helm`, or the chart refuses the values.
pub fn render(values: &[(&str, &str)]) -> Vec<Value> {
    objects(&set(values).arg("--skip-tests").output().unwrap())
}

/// The same and what `helm test` makes.
///
/// # Panics
///
/// Where there is no `helm`, or the chart refuses the values.
pub fn render_with_tests(values: &[(&str, &str)]) -> Vec<Value> {
    objects(&template(values))
}

/// What `helm template` says, also where it refuses.
///
/// # Panics
///
/// Where there is no `helm`.
pub fn template(values: &[(&str, &str)]) -> Output {
    set(values).output().unwrap()
}

fn set(values: &[(&str, &str)]) -> Command {
    let mut command = command();
    let named = |name: &&str| matches!(*name, "sidecar.gatewayUrl" | "sidecar.brokerUrl");
    if !values.iter().any(|(name, _)| named(name)) {
        command.args(["--set", "sidecar.gatewayUrl=https://gateway.test"]);
    }
    for (name, value) in values {
        command.arg("--set").arg(format!("{name}={value}"));
    }
    command
}

/// `helm template` of the chart for the namespace [`NAMESPACE`], without values.
///
/// # Panics
///
/// Where there is no `helm`.
pub fn command() -> Command {
    let mut command = helm();
    command.args(["template", "nexus"]).arg(folder()).args([
        "--namespace",
        NAMESPACE,
        "--kube-version",
        KUBERNETES,
    ]);
    command
}

fn objects(output: &Output) -> Vec<Value> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "helm: {}", text(&output.stderr));
    yaml_serde::Deserializer::from_str(&text(&output.stdout))
        .map(|document| Value::deserialize(document).expect("helm renders YAML"))
        .filter(|object| !object.is_null())
        .collect()
}

/// The folder of the chart.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/nexus")
}

/// `helm` itself: `NEXUS_HELM`, else the one beside the API server's binaries, else the one on `PATH`.
///
/// # Panics
///
/// Where there is none.
pub fn helm() -> Command {
    let given = std::env::var_os("NEXUS_HELM").map(PathBuf::from);
    let asset =
        std::env::var_os("KUBEBUILDER_ASSETS").map(|folder| Path::new(&folder).join("helm"));
    let program = given
        .or_else(|| asset.filter(|file| file.exists()))
        .unwrap_or_else(|| "helm".into());
    let works = Command::new(&program)
        .args(["version", "--short"])
        .output()
        .is_ok_and(|output| output.status.success());
    assert!(
        works,
        "there is no helm: `cargo xtask assets` builds it, or set NEXUS_HELM to one"
    );
    Command::new(program)
}

/// `helm` on a cluster, as an administrator; what it keeps of its own is removed with the cluster.
///
/// # Panics
///
/// Where there is none.
pub fn helm_on(cluster: &Cluster) -> Command {
    let mut command = helm();
    let home = cluster.scratch("helm");
    for kind in ["CACHE", "CONFIG", "DATA"] {
        command.env(format!("HELM_{kind}_HOME"), home.join(kind));
    }
    command
        .env("KUBECONFIG", cluster.kubeconfig())
        .env("HOME", home);
    command
}

/// The objects of a kind, e.g. `ClusterRole`.
pub fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects
        .iter()
        .filter(|object| object["kind"] == kind)
        .collect()
}
