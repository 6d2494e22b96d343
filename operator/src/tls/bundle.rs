//! The `caBundle` of the webhook configurations: of each webhook that there is, this field alone is applied, so that
//! whoever owns the rest (Helm) can change it as it likes. An upgrade may reset the field; it is put back.

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
};
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

/// Owner of the fields that the operator applies.
pub const FIELD_MANAGER: &str = "nexus-operator";

/// What is seen of a webhook configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configuration {
    kind: &'static str,
    name: String,
    version: Option<String>,
    /// Name and `caBundle` of each webhook.
    webhooks: Vec<(String, Vec<u8>)>,
}

impl Configuration {
    /// Whether every webhook has this bundle.
    pub fn holds(&self, bundle: &str) -> bool {
        self.webhooks
            .iter()
            .all(|(_, held)| held == bundle.as_bytes())
    }

    /// Its kind.
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// The patch that gives every webhook this bundle. It names the version that was seen: a webhook that was removed
    /// meanwhile must not come back as a bundle without a webhook.
    pub fn patch(&self, bundle: &str) -> Value {
        let bundle = ByteString(bundle.as_bytes().to_vec());
        let webhooks: Vec<Value> = self
            .webhooks
            .iter()
            .map(|(name, _)| json!({"name": name, "clientConfig": {"caBundle": bundle}}))
            .collect();
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": self.kind,
            "metadata": {"name": self.name, "resourceVersion": self.version},
            "webhooks": webhooks,
        })
    }

    fn new<K: ResourceExt>(
        object: &K,
        kind: &'static str,
        webhooks: impl Iterator<Item = (String, WebhookClientConfig)>,
    ) -> Self {
        Self {
            kind,
            name: object.name_any(),
            version: object.resource_version(),
            webhooks: webhooks
                .map(|(name, config)| (name, config.ca_bundle.unwrap_or_default().0))
                .collect(),
        }
    }
}

impl From<MutatingWebhookConfiguration> for Configuration {
    fn from(mut object: MutatingWebhookConfiguration) -> Self {
        let webhooks = object.webhooks.take().unwrap_or_default();
        let webhooks = webhooks.into_iter().map(|it| (it.name, it.client_config));
        Self::new(&object, "MutatingWebhookConfiguration", webhooks)
    }
}

impl From<ValidatingWebhookConfiguration> for Configuration {
    fn from(mut object: ValidatingWebhookConfiguration) -> Self {
        let webhooks = object.webhooks.take().unwrap_or_default();
        let webhooks = webhooks.into_iter().map(|it| (it.name, it.client_config));
        Self::new(&object, "ValidatingWebhookConfiguration", webhooks)
    }
}

/// Applies the bundle to one configuration.
pub async fn apply<K>(
    api: &Api<K>,
    seen: &Configuration,
    bundle: &str,
) -> Result<Configuration, kube::Error>
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug + Into<Configuration>,
{
    // Forced, since whoever set another bundle took the field, and with it every admission, from us.
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let patch = Patch::Apply(seen.patch(bundle));
    api.patch(&seen.name, &params, &patch).await.map(Into::into)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::admissionregistration::v1::MutatingWebhook;
    use kube::api::ObjectMeta;

    use super::*;

    fn configuration(bundles: &[&str]) -> Configuration {
        let webhook = |(index, bundle): (usize, &&str)| MutatingWebhook {
            name: format!("w{index}.nexus.io"),
            client_config: WebhookClientConfig {
                ca_bundle: (!bundle.is_empty()).then(|| ByteString(bundle.as_bytes().to_vec())),
                url: Some("https://example.com".into()),
                ..WebhookClientConfig::default()
            },
            ..MutatingWebhook::default()
        };
        MutatingWebhookConfiguration {
            metadata: ObjectMeta {
                name: Some("nexus-operator".into()),
                resource_version: Some("7".into()),
                ..ObjectMeta::default()
            },
            webhooks: Some(bundles.iter().enumerate().map(webhook).collect()),
        }
        .into()
    }

    #[test]
    fn every_webhook_must_have_the_bundle() {
        assert!(configuration(&["a", "a"]).holds("a"));
        assert!(!configuration(&["a", "b"]).holds("a"));
        assert!(!configuration(&["a", ""]).holds("a"));
        assert!(configuration(&[]).holds("a"));
    }

    #[test]
    fn nothing_but_the_bundle_is_applied() {
        let expected = json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": "nexus-operator", "resourceVersion": "7"},
            "webhooks": [
                {"name": "w0.nexus.io", "clientConfig": {"caBundle": "bmV3"}},
                {"name": "w1.nexus.io", "clientConfig": {"caBundle": "bmV3"}},
            ],
        });
        assert_eq!(configuration(&["", "old"]).patch("new"), expected);
    }
}
