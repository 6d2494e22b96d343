//! Statuses of NexusProviders. They are few, so all of them are looked at after every change.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::api::DynamicObject;
use kube::discovery::ApiResource;
use kube::{Api, ResourceExt};
use nexus_crds::provider::{NexusProvider, NexusProviderStatus};

use crate::controller::memory::Statuses;
use crate::controller::{Context, ReconcileError, backoff, conditions, status};
use crate::stores::{Read, metadata};

/// Looks after every change, and again where a write failed.
pub(crate) async fn run(context: Arc<Context>) -> Infallible {
    let mut memory = Statuses::default();
    let mut failures = 0;
    loop {
        let result = write_all(&context, &mut memory).await;
        context.count(result.as_ref().err());
        let wait = match result {
            Ok(()) => {
                failures = 0;
                Duration::MAX
            }
            Err(error) => {
                failures += 1;
                if !error.is_conflict() {
                    tracing::warn!(
                        error = error.chain(),
                        "cannot write a NexusProvider's status"
                    );
                }
                backoff(&error, failures)
            }
        };
        let changed = context.stores.changes().providers.notified();
        // Time passing is a reason to look, too.
        tokio::time::timeout(wait, changed).await.ok();
    }
}

async fn write_all(
    context: &Context,
    memory: &mut Statuses<NexusProviderStatus>,
) -> Result<(), ReconcileError> {
    let providers = context.stores.all_providers();
    let names: HashSet<&str> = providers
        .iter()
        .filter_map(|provider| metadata(provider).name.as_deref())
        .collect();
    memory.retain(|name| names.contains(name));
    let mut result = Ok(());
    for provider in &providers {
        if let Err(error) = write(context, memory, provider).await {
            result = Err(error);
        }
    }
    result
}

async fn write(
    context: &Context,
    memory: &mut Statuses<NexusProviderStatus>,
    provider: &Read<NexusProvider>,
) -> Result<(), ReconcileError> {
    let meta = metadata(provider);
    let name = meta.name.as_deref().unwrap_or_default();
    let wanted = match provider {
        Err(unreadable) => conditions::unreadable(&unreadable.error),
        Ok(provider) => {
            let snapshot = context.snapshots.borrow().clone();
            let judged = snapshot.verdicts.get(name);
            let Some(judged) = judged.filter(|judged| judged.speaks_of(&**provider)) else {
                // It will be compiled, and then we are told.
                return Ok(());
            };
            conditions::accepted(&judged.result, &judged.warnings)
        }
    };
    let seen = meta.resource_version.clone();
    let (version, live) = match (memory.known(name, seen.as_deref()), provider) {
        (Some(known), _) => known,
        (None, Ok(provider)) => (seen.clone(), provider.status.clone().unwrap_or_default()),
        (None, Err(_)) => fetch(context, name).await?,
    };
    let generation = meta.generation;
    if live.observed_generation == generation && wanted.is_in(&live.conditions, generation) {
        memory.set(name, None, version, live);
        return Ok(());
    }
    let status = NexusProviderStatus {
        observed_generation: generation,
        conditions: vec![wanted.condition(&live.conditions, generation, Timestamp::now())],
    };
    let written = status::patch::<NexusProvider, _>(
        &context.client,
        None,
        name,
        version.as_deref(),
        &status,
        &context.metrics,
    );
    if let Some(version) = written.await? {
        context
            .events
            .verdict::<NexusProvider>(meta, &[wanted], &live.conditions);
        memory.set(name, seen, Some(version), status);
    }
    Ok(())
}

/// The version and status of a provider that cannot be read as a whole.
async fn fetch(
    context: &Context,
    name: &str,
) -> Result<(Option<String>, NexusProviderStatus), ReconcileError> {
    let resource = ApiResource::erase::<NexusProvider>(&());
    let api: Api<DynamicObject> = Api::all_with(context.client.clone(), &resource);
    let object = api
        .get(name)
        .await
        .map_err(|source| ReconcileError::api("get", &format!("NexusProvider {name}"), source))?;
    let status = object.data.get("status").cloned().unwrap_or_default();
    let status = serde_json::from_value(status).unwrap_or_default();
    Ok((object.resource_version(), status))
}
