//! Statuses of NexusRoutes: written where they do not say what was decided, one write for each.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use http::HeaderValue;
use http::header::ACCEPT;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{Patch, PatchParams};
use kube::core::{PartialObjectMeta, Request};
use kube::{Client, Resource, ResourceExt};
use nexus_crds::admitted::Admitted;
use nexus_crds::route::{NexusRoute, NexusRouteStatus};
use nexus_crds::table::TableRoute;
use serde::Serialize;
use serde_json::json;

use crate::controller::conditions::{self, Programmed, Wanted};
use crate::controller::fit::Fit;
use crate::controller::gather::{Gathered, Seen};
use crate::controller::live;
use crate::controller::memory::Memory;
use crate::controller::{Context, FIELD_MANAGER, ReconcileError};
use crate::metrics::{Metrics, WriteLabels, Written};
use crate::stores::pods::InjectedPod;

/// How many statuses of a namespace are written at a time.
const CONCURRENT: usize = 8;
/// How long statuses are written before a newer outcome goes first.
const PATIENCE: Duration = Duration::from_secs(1);
/// Only metadata is sent back: routes are large, and we know what we sent.
const METADATA: HeaderValue =
    HeaderValue::from_static("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1");

/// A status to write.
struct Due<'a> {
    seen: &'a Seen,
    /// What its status says now.
    live: &'a [Condition],
    wanted: [Wanted; 2],
    status: NexusRouteStatus,
}

/// Writes what differs. `trouble` says why the ConfigMap cannot be written.
pub(crate) async fn write(
    gathered: &Gathered,
    fit: Option<&Fit>,
    trouble: Option<&str>,
    context: &Context,
    memory: &mut Memory,
) -> Result<(), ReconcileError> {
    let judge = Judge::new(gathered, fit, trouble);
    let now = Timestamp::now();
    let routes = gathered.routes.iter();
    let due: Vec<Due<'_>> = routes.filter_map(|seen| judge.due(seen, now)).collect();
    let start = Instant::now();
    let writes = due.into_iter().map(|due| {
        async move {
            // What was decided anew goes first: the compiler has marked the namespace for another reconcile.
            if start.elapsed() > PATIENCE && context.is_outdated(gathered) {
                return (due, Ok(None));
            }
            let answer = patch::<NexusRoute, _>(
                &context.client,
                Some(&gathered.namespace),
                due.seen.name(),
                due.seen.version.as_deref(),
                &due.status,
                &context.metrics,
            );
            let answer = answer.await;
            (due, answer)
        }
        .boxed()
    });
    // Boxed, since the compiler does not see that a closure's future may be sent whatever it borrows.
    let writes: Vec<BoxFuture<'_, _>> = writes.collect();
    let mut answers = futures::stream::iter(writes).buffer_unordered(CONCURRENT);
    let mut result: Result<(), ReconcileError> = Ok(());
    while let Some((due, answer)) = answers.next().await {
        match answer {
            Ok(Some(version)) => {
                let Due {
                    seen,
                    live,
                    wanted,
                    status,
                } = due;
                context
                    .events
                    .verdict::<NexusRoute>(seen.metadata(), &wanted, live);
                let over = seen.metadata().resource_version.clone();
                memory
                    .statuses
                    .set(seen.name(), over, Some(version), status);
            }
            Ok(None) => {}
            // The others get theirs all the same; of several troubles a real one is told before a conflict.
            Err(error) => match (&result, &error) {
                (Err(known), _) if !known.is_conflict() => {}
                (Ok(()) | Err(_), _) => result = Err(error),
            },
        }
    }
    result
}

/// Applies a status over the version read. `None`: there is no such object any more. The answer is its new version.
pub(crate) async fn patch<K, S>(
    client: &Client,
    namespace: Option<&str>,
    name: &str,
    version: Option<&str>,
    status: &S,
    metrics: &Metrics,
) -> Result<Option<String>, ReconcileError>
where
    K: Resource<DynamicType = ()>,
    S: Serialize,
{
    let body = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": {"name": name, "namespace": namespace, "resourceVersion": version},
        "status": status,
    });
    let failed = |source| {
        let what = format!("status of {} {name}", K::kind(&()));
        ReconcileError::api("write", &what, source)
    };
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    let mut request = Request::new(K::url_path(&(), namespace))
        .patch_subresource("status", name, &parameters, &Patch::Apply(body))
        .map_err(|error| failed(kube::Error::BuildRequest(error)))?;
    request.headers_mut().insert(ACCEPT, METADATA);
    match client.request::<PartialObjectMeta<K>>(request).await {
        Ok(written) => {
            let object = Written::Status;
            metrics.writes.get_or_create(&WriteLabels { object }).inc();
            Ok(written.resource_version())
        }
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(None),
        Err(source) => Err(failed(source)),
    }
}

/// Decides what the status of each route should say.
struct Judge<'a> {
    gathered: &'a Gathered,
    fit: Option<&'a Fit>,
    trouble: Option<(&'a str, Vec<TableRoute>)>,
    admitted: Vec<&'a Admitted>,
}

impl<'a> Judge<'a> {
    fn new(gathered: &'a Gathered, fit: Option<&'a Fit>, trouble: Option<&'a str>) -> Self {
        let published = || {
            let config_map = gathered.config_map.as_deref();
            let table = config_map.and_then(live::table);
            table.map(|table| table.routes).unwrap_or_default()
        };
        let admitted = |pod: &'a Arc<InjectedPod>| pod.admitted.as_ref();
        Self {
            gathered,
            fit,
            trouble: trouble.map(|trouble| (trouble, published())),
            admitted: gathered.pods.iter().filter_map(admitted).collect(),
        }
    }

    /// The status to write, if the route needs another one than it is known to have and was judged as it is now.
    fn due(&self, seen: &'a Seen, now: Timestamp) -> Option<Due<'a>> {
        let present = seen.status.as_ref()?;
        let generation = seen.metadata().generation;
        let (wanted, bound) = match &seen.object {
            Err(unreadable) => (
                [
                    conditions::unreadable(&unreadable.error),
                    conditions::programmed(None),
                ],
                0,
            ),
            Ok(route) => {
                let outcome = self.gathered.outcome.as_ref()?;
                let (_, judged) = outcome.routes.get(seen.name())?;
                if !judged.speaks_of(&**route) {
                    return None;
                }
                let accepted = judged.result.is_ok();
                let programmed = accepted.then(|| self.programmed(route));
                let wanted = [
                    conditions::accepted(&judged.result, &judged.warnings),
                    conditions::programmed(programmed.as_ref()),
                ];
                (wanted, if accepted { self.bound(route) } else { 0 })
            }
        };
        let live = &present.conditions;
        let same = present.observed_generation == generation
            && present.bound_pods == Some(bound)
            && wanted.iter().all(|wanted| wanted.is_in(live, generation));
        if same {
            return None;
        }
        let conditions = wanted
            .iter()
            .map(|wanted| wanted.condition(live, generation, now));
        let status = NexusRouteStatus {
            observed_generation: generation,
            conditions: conditions.collect(),
            bound_pods: Some(bound),
        };
        Some(Due {
            seen,
            live,
            wanted,
            status,
        })
    }

    fn programmed(&self, route: &NexusRoute) -> Programmed {
        let Some(fit) = self.fit else {
            return Programmed::Pending("the table is being compiled".to_owned());
        };
        if fit.left_out.contains(&route.name_any()) {
            return Programmed::TooLarge;
        }
        let Some((trouble, published)) = &self.trouble else {
            return Programmed::Yes;
        };
        // What the old table has of it already still counts.
        let selectors = selectors(route);
        let in_table = fit.table.routes.iter().find(|entry| {
            entry.provider
                == route
                    .spec
                    .provider
                    .clone()
                    .unwrap_or_else(|| route.name_any())
                && entry.pod_selector == selectors.pod_selector
                && entry.service_accounts == selectors.service_accounts
        });
        if in_table.is_some_and(|entry| published.contains(entry)) {
            return Programmed::Yes;
        }
        Programmed::Pending((*trouble).to_owned())
    }

    fn bound(&self, route: &NexusRoute) -> i32 {
        let selectors = selectors(route);
        let pods = self.admitted.iter();
        let count = pods
            .filter(|admitted| admitted.is_given(&selectors))
            .count();
        count.try_into().unwrap_or(i32::MAX)
    }
}

/// An entry of a table with nothing but the pods it is for.
fn selectors(route: &NexusRoute) -> TableRoute {
    TableRoute {
        pod_selector: route.spec.pod_selector.clone().map(Box::new),
        service_accounts: route.spec.service_accounts.clone(),
        ..TableRoute::default()
    }
}
