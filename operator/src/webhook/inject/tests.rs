//! Pods in, pods out: each test sends JSON, as the API server would, and looks at what the patch makes of it.

use std::collections::BTreeMap;

use clap::Parser;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use super::{ConfigError, Decision, InjectConfig, inject};
use crate::args::SidecarArgs;

mod again;
mod environment;
mod identity;
mod refusals;
mod resources;
mod sidecar;
mod warnings;
mod whole;

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    sidecar: SidecarArgs,
}

const URL: &str = "--sidecar-gateway-url=https://gateway.example";

fn try_config(flags: &[&str]) -> Result<InjectConfig, ConfigError> {
    let program = ["test", "--sidecar-image=registry.example/nexus-sidecar:1"];
    let all = program.iter().chain(flags);
    let Ok(flags) = Flags::try_parse_from(all) else {
        panic!("{flags:?}: no such flags")
    };
    InjectConfig::try_from(&flags.sidecar)
}

/// The operator's settings with these flags, beside an image and a gateway.
fn config(flags: &[&str]) -> InjectConfig {
    let flags: Vec<&str> = [URL].iter().chain(flags).copied().collect();
    try_config(&flags).unwrap()
}

/// A pod that asks for a sidecar, with more of what `spec` says.
fn pod(spec: Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "agent",
            "labels": {"app": "x"},
            "annotations": {"nexus.io/inject": "true"},
        },
        "spec": {
            "containers": [{"name": "agent", "image": "agent:1"}],
            "serviceAccountName": "research",
        },
    });
    merge(&mut pod["spec"], spec);
    pod
}

fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    } else {
        unreachable!("objects");
    }
}

/// The same pod with these annotations.
fn annotated<const N: usize>(mut pod: Value, annotations: [(&str, &str); N]) -> Value {
    for (name, value) in annotations {
        pod["metadata"]["annotations"][name] = value.into();
    }
    pod
}

/// A pod with one container that has more of what `fields` says.
fn agent(fields: Value) -> Value {
    let mut pod = pod(json!({}));
    merge(&mut pod["spec"]["containers"][0], fields);
    pod
}

fn namespace(tenants: Option<&str>) -> ObjectMeta {
    let tenants = tenants.map(|tenants| ("nexus.io/tenants".to_owned(), tenants.to_owned()));
    ObjectMeta {
        annotations: Some(BTreeMap::from_iter(tenants)),
        ..ObjectMeta::default()
    }
}

fn decide_in(pod: &Value, namespace: &ObjectMeta, config: &InjectConfig) -> Decision {
    let typed: Pod = serde_json::from_value(pod.clone()).unwrap();
    inject(&typed, namespace, "agents", config)
}

/// The pod as the API server would have it after the patch, and the warnings.
fn injected(pod: &Value, config: &InjectConfig) -> (Value, Vec<String>) {
    match decide_in(pod, &namespace(None), config) {
        Decision::Injected { patch, warnings } => {
            let mut after = pod.clone();
            json_patch::patch(&mut after, &patch).unwrap();
            (after, warnings)
        }
        other => panic!("{other:?}"),
    }
}

/// The pod after the patch, about which there is nothing to say.
fn after(pod: &Value, flags: &[&str]) -> Value {
    let (after, warnings) = injected(pod, &config(flags));
    assert_eq!(warnings, [""; 0]);
    after
}

/// The sidecar of a pod after the patch.
fn sidecar(pod: &Value, flags: &[&str]) -> Value {
    let sidecar = after(pod, flags)["spec"]["initContainers"][0].clone();
    assert_eq!(sidecar["name"], "nexus-sidecar");
    sidecar
}

fn refusal(pod: &Value, flags: &[&str]) -> String {
    match decide_in(pod, &namespace(None), &config(flags)) {
        Decision::Refused { message } => message,
        other => panic!("{pod}: {other:?}"),
    }
}
