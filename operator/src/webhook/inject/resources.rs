//! What the sidecar may use of CPU and memory.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use serde_json::{Map, Value, json};

use super::annotations::ResourceWishes;
use super::config::InjectConfig;
use super::patch::containers;
use super::quantity::Quantity;
use super::{SIDECAR_CONTAINER, is_sidecar};

const CPU: &str = "cpu";
const MEMORY: &str = "memory";
/// Fewest thousandths of a core that a sidecar is limited to unasked. Less, and it is paused in the middle of a handshake.
const LEAST_CPU_LIMIT: &str = "100m";
/// What the sidecar is limited to at most, unless something is asked for, beside containers that are all limited.
const CPU_LIMIT_AMONG_LIMITED: &str = "500m";
/// Annotation in which the LimitRanger plugin says what it set.
const LIMIT_RANGER: &str = "kubernetes.io/limit-ranger";
/// Resources that the LimitRanger may set beside ours.
const LIMITABLE: [&str; 2] = [CPU, "ephemeral-storage"];

/// A request and a limit.
#[derive(Debug)]
struct Share {
    request: Quantity,
    limit: Option<Quantity>,
}

/// The field `resources` of the sidecar.
pub(super) fn resources(
    wishes: &ResourceWishes,
    config: &InjectConfig,
    spec: &PodSpec,
    annotations: &BTreeMap<String, String>,
) -> Value {
    let mut share = Shares::default();
    // A pod that has a budget as a whole may have given all of it to its containers: what ours requested on top would be
    // refused by the API server. The budget limits ours as well.
    let budget = |resource: &str| {
        spec.resources.as_ref().is_some_and(|whole| {
            amount(whole.requests.as_ref(), resource).is_some()
                || amount(whole.limits.as_ref(), resource).is_some()
        })
    };
    let guaranteed = is_guaranteed(spec);
    let cpu_asked = wishes.cpu_request.is_some() || wishes.cpu_limit.is_some();
    if cpu_asked || !budget(CPU) {
        let mut cpu = cpu(wishes, config, guaranteed);
        if cpu.limit.is_none() {
            cpu.limit = cpu_limit_among_limited(spec).map(|limit| limit.max(cpu.request.clone()));
        }
        share.insert(CPU, cpu);
    }
    let memory_asked = wishes.memory_request.is_some() || wishes.memory_limit.is_some();
    if memory_asked || !budget(MEMORY) {
        share.insert(MEMORY, memory(wishes, config, guaranteed));
    }
    share.keep_limit_ranger(spec, annotations);
    share.into_value()
}

/// What is asked for counts, and bends what is not: a request above the usual limit lifts it.
fn bent(
    asked_request: Option<&Quantity>,
    asked_limit: Option<&Quantity>,
    usual_request: &Quantity,
    usual_limit: Option<&Quantity>,
) -> Share {
    let limit = match (asked_limit, usual_limit) {
        (Some(asked), _) => Some(asked.clone()),
        (None, Some(usual)) => Some(usual.max(asked_request.unwrap_or(usual)).clone()),
        (None, None) => None,
    };
    let request = match (asked_request, &limit) {
        (Some(asked), _) => asked.clone(),
        (None, Some(limit)) => usual_request.min(limit).clone(),
        (None, None) => usual_request.clone(),
    };
    Share { request, limit }
}

fn memory(wishes: &ResourceWishes, config: &InjectConfig, guaranteed: bool) -> Share {
    let mut share = bent(
        wishes.memory_request.as_ref(),
        wishes.memory_limit.as_ref(),
        &config.memory_request,
        Some(&config.memory_limit),
    );
    if guaranteed && let Some(limit) = &share.limit {
        share.request = limit.clone();
    }
    share
}

fn cpu(wishes: &ResourceWishes, config: &InjectConfig, guaranteed: bool) -> Share {
    let mut share = bent(
        wishes.cpu_request.as_ref(),
        wishes.cpu_limit.as_ref(),
        &config.cpu_request,
        config.cpu_limit.as_ref(),
    );
    if guaranteed {
        let both = share.limit.unwrap_or_else(|| {
            let least = wishes
                .cpu_request
                .is_none()
                .then(|| Quantity::cpu(LEAST_CPU_LIMIT).ok());
            least
                .flatten()
                .into_iter()
                .fold(share.request, Quantity::max)
        });
        share = Share {
            request: both.clone(),
            limit: Some(both),
        };
    }
    share
}

/// The limit of a sidecar whose neighbours all have one. A quota on `limits.cpu` refuses a pod with a container that
/// has none, and a LimitRange one that has more than its maximum, which the neighbours' limits are known to be within.
fn cpu_limit_among_limited(spec: &PodSpec) -> Option<Quantity> {
    let limits: Option<Vec<Quantity>> = containers(spec)
        .filter(|listed| !is_sidecar(listed.container))
        .map(|listed| {
            let resources = listed.container.resources.as_ref()?;
            amount(resources.limits.as_ref(), CPU).filter(|limit| !limit.is_zero())
        })
        .collect();
    let largest = limits?.into_iter().reduce(Quantity::max)?;
    let usual = Quantity::cpu(CPU_LIMIT_AMONG_LIMITED).ok()?;
    Some(usual.min(largest))
}

/// Whether the pod without its sidecar is of the quality of service Guaranteed by what its containers have.
fn is_guaranteed(spec: &PodSpec) -> bool {
    let mut others = containers(spec)
        .filter(|listed| !is_sidecar(listed.container))
        .peekable();
    others.peek().is_some() && others.all(|listed| has_fixed_resources(listed.container))
}

fn has_fixed_resources(container: &Container) -> bool {
    let Some(resources) = &container.resources else {
        return false;
    };
    [CPU, MEMORY].into_iter().all(|resource| {
        let Some(limit) = amount(resources.limits.as_ref(), resource) else {
            return false;
        };
        // Without a request the limit is the request.
        let request = amount(resources.requests.as_ref(), resource);
        !limit.is_zero() && request.is_none_or(|request| request == limit)
    })
}

fn amount(amounts: Option<&BTreeMap<String, Text>>, resource: &str) -> Option<Quantity> {
    amounts?.get(resource)?.0.parse().ok()
}

/// The requests and limits of the sidecar as they are collected.
#[derive(Default)]
struct Shares {
    requests: Map<String, Value>,
    limits: Map<String, Value>,
}

impl Shares {
    fn insert(&mut self, resource: &str, share: Share) {
        self.requests
            .insert(resource.to_owned(), share.request.as_str().into());
        if let Some(limit) = share.limit {
            self.limits
                .insert(resource.to_owned(), limit.as_str().into());
        }
    }

    /// The LimitRanger runs again after our patch and gives the sidecar the namespace's defaults; then this webhook may be
    /// asked again. Taking them off would have the pod refused, since nothing sets them a third time.
    fn keep_limit_ranger(&mut self, spec: &PodSpec, annotations: &BTreeMap<String, String>) {
        let sidecar = spec
            .init_containers
            .iter()
            .flatten()
            .find(|c| is_sidecar(c));
        let Some(resources) = sidecar.and_then(|sidecar| sidecar.resources.as_ref()) else {
            return;
        };
        let said = annotations.get(LIMIT_RANGER).map_or("", String::as_str);
        let ResourceRequirements {
            requests, limits, ..
        } = resources;
        for (ours, theirs, what) in [
            (&mut self.requests, requests, "request"),
            (&mut self.limits, limits, "limit"),
        ] {
            for resource in LIMITABLE
                .into_iter()
                .filter(|name| was_set(said, name, what))
            {
                if let Some(Text(text)) = theirs.as_ref().and_then(|amounts| amounts.get(resource))
                {
                    ours.entry(resource).or_insert_with(|| text.as_str().into());
                }
            }
        }
    }

    fn into_value(self) -> Value {
        let mut value = Map::new();
        for (name, amounts) in [("requests", self.requests), ("limits", self.limits)] {
            if !amounts.is_empty() {
                value.insert(name.to_owned(), amounts.into());
            }
        }
        json!(value)
    }
}

/// Reads `LimitRanger plugin set: cpu, memory limit for init container nexus-sidecar; cpu request for container x`.
fn was_set(said: &str, resource: &str, what: &str) -> bool {
    let ours = format!(" {what} for init container {SIDECAR_CONTAINER}");
    let list = said
        .strip_prefix("LimitRanger plugin set: ")
        .unwrap_or(said);
    list.split("; ")
        .filter_map(|part| part.strip_suffix(&ours))
        .flat_map(|names| names.split(", "))
        .any(|name| name == resource)
}
