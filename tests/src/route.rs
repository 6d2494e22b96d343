//! `NexusRoute` manifests as tests write them.

use serde_json::{Value, json};

/// A `NexusRoute` under construction. Its manifest is YAML, as a user would write it.
#[derive(Clone, Debug)]
pub struct Route {
    name: String,
    spec: Value,
}

impl Route {
    /// A route of provider `name` to `url`, which may be on loopback and without TLS.
    pub fn new(name: &str, url: &str) -> Self {
        let mut upstream = json!({"url": url, "allowPrivateAddresses": true});
        if url.starts_with("http://") {
            upstream["allowInsecure"] = json!(true);
        }
        Self {
            name: name.to_owned(),
            spec: json!({"provider": name, "upstream": upstream, "connections": []}),
        }
    }

    /// Adds the connection for requests that name no tenant.
    #[must_use]
    pub fn connection(self, id: &str) -> Self {
        self.push_connection(json!({"connectionId": id}))
    }

    /// Adds a tenant's connection.
    #[must_use]
    pub fn tenant(self, tenant: &str, id: &str) -> Self {
        self.push_connection(json!({"tenant": tenant, "connectionId": id}))
    }

    /// Sets a field of `spec.upstream`.
    #[must_use]
    pub fn upstream(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.spec["upstream"][field] = value.into();
        self
    }

    /// Sets a field of `spec`.
    #[must_use]
    pub fn with(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.spec[field] = value.into();
        self
    }

    /// The manifest.
    pub fn yaml(&self) -> String {
        yaml_serde::to_string(&json!({
            "apiVersion": "nexus.io/v1alpha1",
            "kind": "NexusRoute",
            "metadata": {"name": self.name},
            "spec": self.spec,
        }))
        .unwrap()
    }

    /// Name of the manifest's file.
    pub fn file_name(&self) -> String {
        format!("{}.yaml", self.name)
    }

    fn push_connection(mut self, connection: Value) -> Self {
        self.spec["connections"]
            .as_array_mut()
            .unwrap()
            .push(connection);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifest_is_yaml_with_the_upstream_and_every_connection() {
        let yaml = Route::new("github", "http://127.0.0.1:1/base")
            .connection("a")
            .tenant("t", "b")
            .with("replay", json!({"statusCodes": [401]}))
            .yaml();
        let read: Value = yaml_serde::from_str(&yaml).unwrap();
        assert_eq!(read["kind"], "NexusRoute");
        assert_eq!(read["spec"]["upstream"]["allowInsecure"], true);
        assert_eq!(read["spec"]["connections"][1]["tenant"], "t");
        assert_eq!(read["spec"]["replay"]["statusCodes"][0], 401);
    }
}
