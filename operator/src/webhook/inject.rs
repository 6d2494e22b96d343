//! Gives a pod its sidecar. Pure: a pod, its Namespace and the operator's settings go in, a patch or a refusal comes out.
//!
//! Everything of our names is removed and then made anew, so that a pod that was forged, copied, injected by another
//! version or sent here a second time ends as one that never was. Nothing that a pod says about having been admitted is
//! believed. The steps, in the order of the files: `annotations` are read and the rest of the pod is `judge`d; then
//! the `environment` of the agent's containers, the `sidecar` with its `volumes` and `resources`, the label and
//! what was decided go into the `patch`.

use std::collections::BTreeMap;

use json_patch::Patch;
use json_patch::jsonptr::PointerBuf;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use nexus_crds::admitted::{Admitted, VERSION};
use nexus_crds::names::{
    ADMITTED_ANNOTATION, INJECT_ANNOTATION, SIDECAR_CONTAINER, SIDECAR_LABEL, TENANTS_ANNOTATION,
};
use nexus_crds::table::FORMAT;
use serde_json::{Value, json};

use annotations::Wishes;
use environment::Environment;
use findings::Findings;
use patch::{CONTAINERS, INIT_CONTAINERS, Patcher, at, below};
use sidecar::Parts;
use volumes::Volumes;

mod annotations;
mod config;
mod environment;
mod findings;
mod judge;
mod patch;
mod quantity;
mod resources;
mod sidecar;
mod volumes;

pub use config::{ConfigError, InjectConfig};

/// The sidecar reads what was decided from its environment, where Linux allows 128 KiB for one variable.
const MAX_ADMITTED: usize = 120 * 1024;
/// The user that a pod has that names none.
const DEFAULT_SERVICE_ACCOUNT: &str = "default";
const ALWAYS: &str = "Always";

/// What becomes of a pod.
#[derive(Debug)]
pub enum Decision {
    /// It gets a sidecar.
    Injected {
        /// What to change in the pod as it was sent.
        patch: Patch,
        /// What its owner should know, a sentence each.
        warnings: Vec<String>,
    },
    /// It asks for a sidecar and cannot have one.
    Refused {
        /// Every reason, each with the field and what to do.
        message: String,
    },
    /// It does not ask for a sidecar.
    Untouched,
}

/// Decides about a pod that is about to be created in the namespace of this name and metadata.
pub fn inject(
    pod: &Pod,
    namespace: &ObjectMeta,
    namespace_name: &str,
    config: &InjectConfig,
) -> Decision {
    let none = BTreeMap::new();
    let annotations = pod.metadata.annotations.as_ref().unwrap_or(&none);
    if annotations
        .get(INJECT_ANNOTATION)
        .is_none_or(|value| value != "true")
    {
        return Decision::Untouched;
    }
    let Some(spec) = &pod.spec else {
        let message = "spec: is missing".to_owned();
        return Decision::Refused { message };
    };
    let mut findings = Findings::default();
    let wishes = Wishes::read(
        annotations,
        namespace,
        namespace_name,
        config,
        &mut findings,
    );
    judge::judge(pod, spec, config, &wishes, &mut findings);
    let admitted = admitted(pod, spec, &wishes);
    if admitted.len() > MAX_ADMITTED {
        let why = format!(
            "with the pod's labels it makes {} bytes of the {MAX_ADMITTED} that a sidecar can be told; name fewer tenants",
            admitted.len()
        );
        findings.refuse(format_args!("annotation {TENANTS_ANNOTATION}"), why);
    }
    let mut patcher = Patcher::default();
    if !findings.refuses() {
        write(
            pod,
            spec,
            &wishes,
            &admitted,
            config,
            &mut patcher,
            &mut findings,
        );
    }
    match findings.into_warnings() {
        Ok(warnings) => Decision::Injected {
            patch: patcher.into_patch(),
            warnings,
        },
        Err(message) => Decision::Refused { message },
    }
}

/// Writes the patch of a pod that may have a sidecar.
fn write(
    pod: &Pod,
    spec: &PodSpec,
    wishes: &Wishes,
    admitted: &str,
    config: &InjectConfig,
    patcher: &mut Patcher,
    findings: &mut Findings,
) {
    let none = BTreeMap::new();
    let ObjectMeta {
        labels,
        annotations,
        ..
    } = &pod.metadata;
    let environment = Environment::new(wishes);
    for listed in patch::containers(spec).filter(|listed| !is_sidecar(listed.container)) {
        environment.apply(listed, patcher, findings);
    }
    let Volumes { volumes, mounts } = Volumes::new(config);
    let parts = Parts {
        mounts,
        resources: resources::resources(
            &wishes.resources,
            config,
            spec,
            annotations.as_ref().unwrap_or(&none),
        ),
        forced_pull_policy: forced_pull_policy(spec),
    };
    replace_containers(spec, sidecar::container(config, wishes, parts), patcher);
    replace_volumes(spec, volumes, patcher);
    mark(
        &at(["metadata", "labels"]),
        labels.as_ref(),
        SIDECAR_LABEL,
        "true",
        patcher,
    );
    let place = at(["metadata", "annotations"]);
    mark(
        &place,
        annotations.as_ref(),
        ADMITTED_ANNOTATION,
        admitted,
        patcher,
    );
}

/// Whether a container is a sidecar, ours or what passes itself off as one.
fn is_sidecar(container: &Container) -> bool {
    container.name == SIDECAR_CONTAINER
}

/// What is decided about the pod for as long as it lives, as JSON.
fn admitted(pod: &Pod, spec: &PodSpec, wishes: &Wishes) -> String {
    let mut labels = pod.metadata.labels.clone().unwrap_or_default();
    labels.remove(SIDECAR_LABEL);
    let named = |name: &Option<String>| name.clone().filter(|name| !name.is_empty());
    let admitted = Admitted {
        version: VERSION,
        tenants: wishes.tenants.clone(),
        labels,
        service_account: named(&spec.service_account_name)
            // The name that the field once had, which the API server still takes.
            .or_else(|| named(&spec.service_account))
            .unwrap_or_else(|| DEFAULT_SERVICE_ACCOUNT.to_owned()),
        table_format: FORMAT,
        sidecar_version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    json!(admitted).to_string()
}

/// AlwaysPullImages runs again after our patch, and refuses what it finds undone.
fn forced_pull_policy(spec: &PodSpec) -> Option<String> {
    let mut sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|c| is_sidecar(c));
    let forced = sidecars.any(|sidecar| sidecar.image_pull_policy.as_deref() == Some(ALWAYS));
    forced.then(|| ALWAYS.to_owned())
}

/// The sidecar is the first container to start: those behind it find it serving.
fn replace_containers(spec: &PodSpec, sidecar: Value, patcher: &mut Patcher) {
    let init = spec.init_containers.as_deref().unwrap_or_default();
    for (list, containers) in [(INIT_CONTAINERS, init), (CONTAINERS, &spec.containers)] {
        let sidecars = positions(containers, is_sidecar);
        patcher.remove_each(&at(["spec", list]), &sidecars);
    }
    let empty = init.iter().all(is_sidecar);
    patcher.prepend(&at(["spec", INIT_CONTAINERS]), empty, vec![sidecar]);
}

fn replace_volumes(spec: &PodSpec, volumes: Vec<Value>, patcher: &mut Patcher) {
    let present = spec.volumes.as_deref().unwrap_or_default();
    let ours = positions(present, |volume| volume.name.starts_with(volumes::PREFIX));
    let place = at(["spec", "volumes"]);
    patcher.remove_each(&place, &ours);
    patcher.append(&place, ours.len() == present.len(), volumes);
}

fn positions<T>(list: &[T], is_ours: impl Fn(&T) -> bool) -> Vec<usize> {
    let ours = list
        .iter()
        .enumerate()
        .filter(|(_, element)| is_ours(element));
    ours.map(|(position, _)| position).collect()
}

/// Sets one key of a map that may not be there yet.
fn mark(
    place: &PointerBuf,
    present: Option<&BTreeMap<String, String>>,
    key: &str,
    value: &str,
    patcher: &mut Patcher,
) {
    if present.is_none_or(BTreeMap::is_empty) {
        patcher.put(place.clone(), json!({key: value}));
    } else {
        patcher.put(below(place, key), value.into());
    }
}

#[cfg(test)]
mod tests;
