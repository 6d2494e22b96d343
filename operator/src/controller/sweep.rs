//! Pods that ask for a sidecar and run without one: created while the webhook was not there, or past it. Nothing they
//! send carries a credential, and only their owners can make them anew.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::core::PartialObjectMeta;
use kube::runtime::events::EventType;
use kube::{Api, Client, ResourceExt};
use nexus_crds::names::SIDECAR_LABEL;

use crate::controller::events::Events;
use crate::metrics::Metrics;
use crate::stores::LIVE_PODS;
use crate::stores::pods::asks;

/// Pods of one page of the list.
const PAGE: u32 = 500;
const REASON: &str = "SidecarMissing";
const NOTE: &str = "annotated nexus.io/inject=true and runs without the Nexus sidecar, so nothing it sends carries a \
                    credential; delete the pod so that it is made anew, with one";

/// Looks now and then.
pub(crate) struct Sweep {
    client: Client,
    events: Events,
    metrics: Arc<Metrics>,
    /// UIDs of pods that were told of.
    told: HashSet<String>,
}

impl Sweep {
    pub(crate) fn new(client: Client, events: Events, metrics: Arc<Metrics>) -> Self {
        Self {
            client,
            events,
            metrics,
            told: HashSet::new(),
        }
    }

    /// Looks at once and then again and again.
    pub(crate) async fn run(mut self, every: Duration) -> Infallible {
        loop {
            if let Err(error) = self.look().await {
                let error = format!("{:#}", anyhow::Error::from(error));
                tracing::warn!(
                    error,
                    "cannot look for pods without a sidecar; trying again later"
                );
            }
            tokio::time::sleep(every).await;
        }
    }

    async fn look(&mut self) -> Result<(), kube::Error> {
        let api: Api<PartialObjectMeta<Pod>> = Api::all(self.client.clone());
        let mut page = ListParams::default().fields(LIVE_PODS).limit(PAGE);
        let mut found = HashSet::new();
        loop {
            let list = api.list(&page).await?;
            for pod in list.items.iter().filter(|pod| is_without(pod)) {
                let uid = pod.uid().unwrap_or_default();
                if !self.told.contains(&uid) && !found.contains(&uid) {
                    self.events
                        .tell::<Pod>(EventType::Warning, REASON, NOTE, &pod.metadata);
                }
                found.insert(uid);
            }
            match list.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page.continue_token = Some(token),
                None => break,
            }
        }
        let count = found.len().try_into().unwrap_or(i64::MAX);
        self.metrics.annotated_pods_without_sidecar.set(count);
        self.told = found;
        Ok(())
    }
}

impl Drop for Sweep {
    /// Another replica looks from now on.
    fn drop(&mut self) {
        self.metrics.annotated_pods_without_sidecar.set(0);
    }
}

fn is_without(pod: &PartialObjectMeta<Pod>) -> bool {
    asks(pod) && !pod.labels().contains_key(SIDECAR_LABEL)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_that_asks_and_has_none_is_found() {
        let pod = |metadata| -> PartialObjectMeta<Pod> {
            serde_json::from_value(json!({"metadata": metadata})).unwrap()
        };
        let asks = json!({"nexus.io/inject": "true"});
        let has = json!({"nexus.io/sidecar": "true"});
        assert!(is_without(&pod(json!({"annotations": asks}))));
        assert!(!is_without(&pod(
            json!({"annotations": asks, "labels": has})
        )));
        assert!(!is_without(&pod(
            json!({"annotations": {"nexus.io/inject": "false"}})
        )));
        assert!(!is_without(&pod(json!({}))));
    }
}
