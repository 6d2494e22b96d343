//! The patch of a pod, made of small steps: by key, and in lists by position. What is not ours stays byte for byte as
//! it was sent, fields that this version does not know included.

use std::fmt;

use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, Patch, PatchOperation, RemoveOperation};
use k8s_openapi::api::core::v1::{Container, PodSpec};
use serde_json::Value;

/// Steps so far. Each sees what those before it left.
#[derive(Debug, Default)]
pub(super) struct Patcher(Vec<PatchOperation>);

impl Patcher {
    /// Sets a key of an object that is there.
    pub(super) fn put(&mut self, path: PointerBuf, value: Value) {
        self.0
            .push(PatchOperation::Add(AddOperation { path, value }));
    }

    /// Removes the elements of a list at these positions, which ascend.
    pub(super) fn remove_each(&mut self, list: &PointerBuf, positions: &[usize]) {
        for position in positions.iter().rev() {
            let path = below(list, position);
            self.0
                .push(PatchOperation::Remove(RemoveOperation { path }));
        }
    }

    /// Puts elements in front of a list. An empty list may be absent, so that it is set as a whole.
    pub(super) fn prepend(&mut self, list: &PointerBuf, empty: bool, values: Vec<Value>) {
        if empty {
            self.put(list.clone(), values.into());
        } else {
            for value in values.into_iter().rev() {
                self.put(below(list, 0), value);
            }
        }
    }

    /// Puts elements behind those of a list. An empty list may be absent, so that it is set as a whole.
    pub(super) fn append(&mut self, list: &PointerBuf, empty: bool, values: Vec<Value>) {
        if empty {
            self.put(list.clone(), values.into());
        } else {
            for value in values {
                self.put(below(list, "-"), value);
            }
        }
    }

    /// All steps.
    pub(super) fn into_patch(self) -> Patch {
        Patch(self.0)
    }
}

/// The place of keys that follow each other.
pub(super) fn at<const N: usize>(keys: [&str; N]) -> PointerBuf {
    PointerBuf::from_tokens(keys)
}

/// The place of a key or a position in something.
pub(super) fn below(place: &PointerBuf, key: impl ToString + Copy) -> PointerBuf {
    place.with_trailing_token(key.to_string())
}

/// A container where it stands in its pod. Shown as the field that it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Listed<'a> {
    pub(super) list: &'static str,
    pub(super) position: usize,
    pub(super) container: &'a Container,
}

impl Listed<'_> {
    /// Its place in the pod.
    pub(super) fn place(&self) -> PointerBuf {
        below(&at(["spec", self.list]), self.position)
    }
}

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spec.{}[{}]", self.list, self.container.name)
    }
}

/// Every container of a pod, those first that start first.
pub(super) fn containers(spec: &PodSpec) -> impl Iterator<Item = Listed<'_>> {
    let first = spec.init_containers.as_deref().unwrap_or_default();
    listed(INIT_CONTAINERS, first).chain(listed(CONTAINERS, &spec.containers))
}

fn listed<'a>(list: &'static str, containers: &'a [Container]) -> impl Iterator<Item = Listed<'a>> {
    let containers = containers.iter().enumerate();
    containers.map(move |(position, container)| Listed {
        list,
        position,
        container,
    })
}

/// Field with the containers that start first.
pub(super) const INIT_CONTAINERS: &str = "initContainers";
/// Field with the containers of the agent.
pub(super) const CONTAINERS: &str = "containers";
