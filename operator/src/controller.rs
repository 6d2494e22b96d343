//! The writing half of the operator, at the replica that holds the Lease: tables into ConfigMaps, verdicts into
//! conditions and events.
//!
//! Stores and the compiler's snapshots flow in; a reconcile of one namespace is `gather`, `fit`, `apply` and
//! `status`, in this order. Every write names the version it was decided on, so that a replica that lost the Lease
//! without knowing cannot overwrite. What is as it should be is not written.

mod apply;
mod conditions;
mod error;
mod events;
mod fit;
mod gather;
mod live;
mod memory;
mod pods;
mod providers;
mod status;
mod sweep;

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use k8s_openapi::api::core::v1::Namespace;
use kube::core::PartialObjectMeta;
use kube::runtime::controller::{Action, Config, Controller};
use kube::runtime::reflector::ObjectRef;
use kube::{Client, ResourceExt};
use tokio::sync::watch;

use self::error::{ReconcileError, backoff};
use self::events::Events;
use self::gather::Gathered;
use self::memory::{ECHO_LIMIT, Memory};
use self::pods::Pods;
use self::sweep::Sweep;
use crate::args::ControllerArgs;
use crate::compiler::{Compiler, Snapshot};
use crate::metrics::{Metrics, ReconcileLabels, ReconcileOutcome};
use crate::stores::Stores;

/// Who we are to the API server: owner of the fields we apply, and source of our events.
pub const FIELD_MANAGER: &str = "nexus-operator";

/// How many namespaces are reconciled at a time.
const CONCURRENCY: u16 = 8;

/// What a reconcile needs.
struct Context {
    client: Client,
    stores: Stores,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    pods: Pods,
    events: Events,
    metrics: Arc<Metrics>,
    memories: Mutex<HashMap<String, Memory>>,
}

/// Writes while `leader` says so, until `shutdown` does. Losing the Lease ends what is under way at once.
pub async fn run(
    client: Client,
    stores: Stores,
    args: &ControllerArgs,
    metrics: Arc<Metrics>,
    mut leader: watch::Receiver<bool>,
    mut shutdown: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let work = async {
        loop {
            // The sender lives as long as the process; without it there is no Lease.
            leader.wait_for(|leads| *leads).await?;
            tracing::info!("writing tables and conditions");
            tokio::select! {
                never = lead(&client, &stores, args, &metrics) => match never? {},
                lost = leader.wait_for(|leads| !*leads) => lost?,
            };
            tracing::warn!("the Lease is lost; another replica writes");
        }
    };
    tokio::select! {
        result = work => result,
        _ = shutdown.wait_for(|stop| *stop) => Ok(()),
    }
}

/// Everything that only the leader does. Dropping it ends it.
async fn lead(
    client: &Client,
    stores: &Stores,
    args: &ControllerArgs,
    metrics: &Arc<Metrics>,
) -> anyhow::Result<Infallible> {
    stores.synced().await;
    stores.granted().await;
    let compiler = Compiler::new(stores.clone(), args.debounce, metrics.clone());
    let snapshots = compiler.snapshots();
    compiler.compile().await?;
    let (events, queue) = Events::new();
    let context = Arc::new(Context {
        client: client.clone(),
        stores: stores.clone(),
        snapshots,
        pods: Pods::default(),
        events: events.clone(),
        metrics: metrics.clone(),
        memories: Mutex::default(),
    });
    context.pods.count(stores, metrics);
    for namespace in stores.namespaces_of_interest() {
        stores.changes().namespaces.mark(&namespace);
    }
    let sweep = Sweep::new(client.clone(), events, metrics.clone());
    let _forget = Forget(metrics);
    tokio::select! {
        ended = compiler.run() => ended,
        never = context.pods.run(stores, metrics, args.bound_pods_interval) => match never {},
        never = sweep.run(args.pod_sweep_interval) => match never {},
        never = providers::run(context.clone()) => match never {},
        () = events::publish(queue, client.clone(), metrics.clone()) => anyhow::bail!("nobody tells events"),
        () = reconcile_all(context.clone(), args.debounce) => anyhow::bail!("the controller ended"),
    }
}

/// Takes down what another replica shows from now on.
struct Forget<'a>(&'a Metrics);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.0.sidecars.clear();
    }
}

async fn reconcile_all(context: Arc<Context>, debounce: Duration) {
    let config = Config::default()
        .debounce(debounce)
        .concurrency(CONCURRENCY);
    let reader = context.stores.namespace_store();
    Controller::for_stream(stream::pending(), reader)
        .with_config(config)
        .reconcile_on(touched(context.stores.clone()))
        .run(reconcile, error_policy, context)
        // Failures are handled by the policy; what remains are namespaces that are gone.
        .for_each(async |_| {})
        .await;
}

/// Namespaces that were marked, for as long as somebody listens.
fn touched(stores: Stores) -> impl Stream<Item = ObjectRef<PartialObjectMeta<Namespace>>> + Send {
    stream::unfold(stores, async |stores| {
        let names = stores.changes().namespaces.take().await;
        Some((names, stores))
    })
    .flat_map(|names| stream::iter(names).map(|name| ObjectRef::new(&name)))
}

async fn reconcile(
    namespace: Arc<PartialObjectMeta<Namespace>>,
    context: Arc<Context>,
) -> Result<Action, ReconcileError> {
    let name = namespace.name_any();
    if namespace.metadata.deletion_timestamp.is_some() {
        // Everything in it goes, and nothing can be made in it.
        context.memories().remove(&name);
        return Ok(Action::await_change());
    }
    let mut memory = context.memories().remove(&name).unwrap_or_default();
    let result = steps(&name, &context, &mut memory).await;
    context.count(result.as_ref().err());
    match &result {
        Ok(_) => memory.failures = 0,
        Err(_) => memory.failures = memory.failures.saturating_add(1),
    }
    context.memories().insert(name, memory);
    result
}

async fn steps(
    namespace: &str,
    context: &Context,
    memory: &mut Memory,
) -> Result<Action, ReconcileError> {
    let gathered = gather::gather(namespace, context, memory).await;
    let fit = match &gathered.outcome {
        Some(outcome) => {
            let known = memory.fit.as_ref();
            let format = gathered.format;
            Some(fit::publishable(outcome, &gathered.snapshot, format, known).await?)
        }
        None => None,
    };
    memory.fit.clone_from(&fit);
    let fit = fit.as_deref();
    if let Err(error) = apply::apply(&gathered, fit, context, memory).await {
        // What passes by itself is not worth a condition.
        if error.is_lasting() {
            let trouble = error.chain();
            status::write(&gathered, fit, Some(&trouble), context, memory).await?;
        }
        return Err(error);
    }
    status::write(&gathered, fit, None, context, memory).await?;
    // Only now, since a route whose status is not known must not keep the others from being served.
    match gathered.unseen {
        Some(error) => Err(error),
        None if gathered.behind => Ok(Action::requeue(ECHO_LIMIT)),
        None => Ok(Action::await_change()),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "as the runtime calls it")]
fn error_policy(
    namespace: Arc<PartialObjectMeta<Namespace>>,
    error: &ReconcileError,
    context: Arc<Context>,
) -> Action {
    let namespace = namespace.name_any();
    let failures = context
        .memories()
        .get(&namespace)
        .map_or(1, |memory| memory.failures);
    let wait = backoff(error, failures);
    if error.is_conflict() {
        tracing::debug!(
            namespace,
            error = error.chain(),
            "again, since something changed meanwhile"
        );
    } else {
        tracing::warn!(namespace, error = error.chain(), retry = ?wait, "cannot reconcile");
    }
    Action::requeue(wait)
}

impl Context {
    fn memories(&self) -> std::sync::MutexGuard<'_, HashMap<String, Memory>> {
        self.memories.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether something else was decided since.
    fn is_outdated(&self, gathered: &Gathered) -> bool {
        let snapshot = self.snapshots.borrow();
        match (
            snapshot.namespaces.get(&gathered.namespace),
            &gathered.outcome,
        ) {
            (Some(now), Some(then)) => !Arc::ptr_eq(now, then),
            (None, None) => false,
            (Some(_), None) | (None, Some(_)) => true,
        }
    }

    fn count(&self, error: Option<&ReconcileError>) {
        let outcome = match error {
            None => ReconcileOutcome::Settled,
            Some(error) if error.is_conflict() => ReconcileOutcome::Conflict,
            Some(_) => ReconcileOutcome::Failed,
        };
        self.metrics
            .reconciles
            .get_or_create(&ReconcileLabels { outcome })
            .inc();
    }
}
