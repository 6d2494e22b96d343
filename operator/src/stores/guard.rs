//! An object whose faults stay its own: what the API server sends is read whole, or down to its metadata and the field
//! that cannot be read.
//!
//! Beside the runtime's own wrapper, this one names the field and copies nothing.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// An object, or what can be said of it.
#[derive(Clone, Debug)]
pub(crate) struct Guard<K>(pub(crate) Result<K, Unreadable>);

/// An object that cannot be read.
#[derive(Clone, Debug)]
pub(crate) struct Unreadable {
    /// The field, and what is wrong with it.
    pub(crate) error: String,
    /// Which object it is.
    pub(crate) metadata: ObjectMeta,
}

impl<'de, K: DeserializeOwned> Deserialize<'de> for Guard<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let error = match serde_path_to_error::deserialize(&value) {
            Ok(object) => return Ok(Self(Ok(object))),
            Err(error) => error.to_string(),
        };
        let metadata = ObjectMeta::deserialize(&value["metadata"]).map_err(D::Error::custom)?;
        Ok(Self(Err(Unreadable { error, metadata })))
    }
}

impl<K: Resource> Resource for Guard<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(dynamic: &K::DynamicType) -> Cow<'_, str> {
        K::kind(dynamic)
    }

    fn group(dynamic: &K::DynamicType) -> Cow<'_, str> {
        K::group(dynamic)
    }

    fn version(dynamic: &K::DynamicType) -> Cow<'_, str> {
        K::version(dynamic)
    }

    fn plural(dynamic: &K::DynamicType) -> Cow<'_, str> {
        K::plural(dynamic)
    }

    fn meta(&self) -> &ObjectMeta {
        match &self.0 {
            Ok(object) => object.meta(),
            Err(unreadable) => &unreadable.metadata,
        }
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        match &mut self.0 {
            Ok(object) => object.meta_mut(),
            Err(unreadable) => &mut unreadable.metadata,
        }
    }
}

#[cfg(test)]
mod tests {
    use nexus_crds::route::NexusRoute;
    use serde_json::json;

    use super::*;

    fn read(spec: &Value) -> Guard<NexusRoute> {
        serde_json::from_value(json!({
            "apiVersion": "nexus.io/v1alpha1",
            "kind": "NexusRoute",
            "metadata": {"name": "r", "namespace": "n"},
            "spec": spec,
        }))
        .unwrap()
    }

    #[test]
    fn an_object_is_read_whole_or_down_to_its_metadata_and_the_field() {
        assert!(read(&json!({"provider": "p"})).0.is_ok());
        let guard = read(&json!({"upstream": {"url": 5}}));
        assert_eq!(guard.meta().name.as_deref(), Some("r"));
        let error = guard.0.unwrap_err().error;
        assert!(error.starts_with("spec.upstream.url: "), "{error}");
    }
}
