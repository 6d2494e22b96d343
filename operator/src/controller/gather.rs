//! Everything that a reconcile of one namespace looks at, read once.

use std::sync::Arc;

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::DynamicObject;
use kube::discovery::ApiResource;
use kube::{Api, ResourceExt};
use nexus_crds::route::{NexusRoute, NexusRouteStatus};
use nexus_crds::table::format_for;

use crate::compiler::{Outcome, Snapshot};
use crate::controller::live::Live;
use crate::controller::memory::Memory;
use crate::controller::{Context, ReconcileError};
use crate::stores::Read;
use crate::stores::pods::InjectedPod;

/// What is, and what was decided.
pub(crate) struct Gathered {
    pub(crate) namespace: String,
    pub(crate) snapshot: Arc<Snapshot>,
    /// What the compiler says; none without a route that can be read.
    pub(crate) outcome: Option<Arc<Outcome>>,
    /// The routes, by name.
    pub(crate) routes: Vec<Seen>,
    /// Why the status of a route is not known. It is left alone, and the reconcile is to be tried again.
    pub(crate) unseen: Option<ReconcileError>,
    /// The ConfigMap as the watch shows it.
    pub(crate) config_map: Option<Arc<ConfigMap>>,
    /// The ConfigMap as it is.
    pub(crate) live: Option<Live>,
    /// The watch is behind what we wrote.
    pub(crate) behind: bool,
    /// Table format to write.
    pub(crate) format: u32,
    /// Whether there is a pod that may read the table.
    pub(crate) injected: bool,
    /// Pods with a sidecar, as last counted.
    pub(crate) pods: Arc<Vec<Arc<InjectedPod>>>,
}

/// A route and its status.
pub(crate) struct Seen {
    pub(crate) object: Read<NexusRoute>,
    /// `resourceVersion` of the status, which a write must name.
    pub(crate) version: Option<String>,
    /// None where the API server did not tell it.
    pub(crate) status: Option<NexusRouteStatus>,
}

impl Seen {
    pub(crate) fn metadata(&self) -> &ObjectMeta {
        crate::stores::metadata(&self.object)
    }

    pub(crate) fn name(&self) -> &str {
        self.metadata().name.as_deref().unwrap_or_default()
    }
}

/// Reads the stores, and where they are behind, what we wrote.
pub(crate) async fn gather(namespace: &str, context: &Context, memory: &mut Memory) -> Gathered {
    let stores = &context.stores;
    let snapshot = context.snapshots.borrow().clone();
    let outcome = snapshot.namespaces.get(namespace).cloned();
    let config_map = stores.config_map(namespace);
    let (live, behind) = memory.config_map.live(config_map.as_deref());
    memory.revision = memory
        .revision
        .max(live.as_ref().and_then(|live| live.revision));
    // A sidecar that appeared since the last count lowers the format at once; that one went raises it at the next count.
    let pods = context.pods.within(namespace);
    let present = stores.pods_within(namespace);
    let readers = pods.iter().chain(&present).map(|pod| pod.table_format());
    let objects = stores.routes_within(namespace);
    let mut routes = Vec::with_capacity(objects.len());
    let mut unseen = None;
    for object in objects {
        let (seen, error) = see(namespace, object, context, memory).await;
        routes.push(seen);
        unseen = unseen.or(error);
    }
    memory
        .statuses
        .retain(|name| routes.binary_search_by_key(&name, Seen::name).is_ok());
    Gathered {
        namespace: namespace.to_owned(),
        snapshot,
        outcome,
        routes,
        unseen,
        config_map,
        live,
        behind,
        format: format_for(readers),
        injected: !pods.is_empty() || !present.is_empty(),
        pods,
    }
}

/// A route with its status, or why that is not known.
async fn see(
    namespace: &str,
    object: Read<NexusRoute>,
    context: &Context,
    memory: &mut Memory,
) -> (Seen, Option<ReconcileError>) {
    let metadata = crate::stores::metadata(&object);
    let name = metadata.name.clone().unwrap_or_default();
    let seen = metadata.resource_version.clone();
    let known = memory.statuses.known(&name, seen.as_deref());
    let ((version, status), error) = match (known, &object) {
        (Some((version, status)), _) => ((version, Some(status)), None),
        (None, Ok(route)) => {
            let status = route.status.clone().unwrap_or_default();
            ((seen, Some(status)), None)
        }
        // The watch kept only its metadata.
        (None, Err(_)) => match fetch(namespace, &name, context).await {
            Ok(fetched) => {
                let (version, status) = fetched.unwrap_or((seen, NexusRouteStatus::default()));
                memory
                    .statuses
                    .set(&name, None, version.clone(), status.clone());
                ((version, Some(status)), None)
            }
            Err(error) => ((seen, None), Some(error)),
        },
    };
    let seen = Seen {
        object,
        version,
        status,
    };
    (seen, error)
}

/// The version and status of a route that cannot be read as a whole.
async fn fetch(
    namespace: &str,
    name: &str,
    context: &Context,
) -> Result<Option<(Option<String>, NexusRouteStatus)>, ReconcileError> {
    let resource = ApiResource::erase::<NexusRoute>(&());
    let api: Api<DynamicObject> =
        Api::namespaced_with(context.client.clone(), namespace, &resource);
    let found = api
        .get_opt(name)
        .await
        .map_err(|source| ReconcileError::api("get", &format!("NexusRoute {name}"), source))?;
    Ok(found.map(|object| {
        let status = object.data.get("status").cloned().unwrap_or_default();
        let status = serde_json::from_value(status).unwrap_or_default();
        (object.resource_version(), status)
    }))
}
