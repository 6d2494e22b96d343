//! All routes of the cluster compiled together, once per batch of changes.
//!
//! It is one compilation for the whole cluster since namespaces depend on each other: a connection belongs to the one
//! that named it first. That is also how a conflict heals everywhere once the winner is gone. Stores flow in; a
//! [`Snapshot`] flows out, and the namespaces whose outcome changed are marked for the controller.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use kube::{Resource, ResourceExt};
use nexus_crds::compile::{Compiled, compile};
use nexus_crds::grants::Grants;
use nexus_crds::provider::NexusProvider;
use nexus_crds::route::NexusRoute;
use nexus_crds::status::{Kind, Problem, Reason, Verdict, Warning};
use nexus_crds::table::RouteTable;
use tokio::sync::watch;

use crate::metrics::{Metrics, ReasonLabels};
use crate::stores::Stores;

/// The outcome of one compilation. Nothing of it changes any more.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    /// By namespace; one for every namespace that has a route that can be read.
    pub(crate) namespaces: BTreeMap<String, Arc<Outcome>>,
    /// What was decided about each NexusProvider, by name.
    pub(crate) verdicts: BTreeMap<String, Judged>,
    /// The providers it was compiled with.
    pub(crate) providers: Vec<Arc<NexusProvider>>,
    /// The grants it was compiled with.
    pub(crate) grants: Grants,
}

/// The outcome for one namespace. The same object for as long as the outcome is the same.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Everything that was accepted.
    pub(crate) table: Arc<RouteTable>,
    /// The routes, by name, and what was decided.
    pub(crate) routes: BTreeMap<String, (Arc<NexusRoute>, Judged)>,
}

/// What was decided about one object, in one of its generations.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Judged {
    uid: Option<String>,
    generation: Option<i64>,
    /// `Ok` if it is accepted.
    pub(crate) result: Result<(), Problem>,
    /// What is allowed and probably not meant.
    pub(crate) warnings: Vec<Warning>,
}

impl Judged {
    fn new(object: &impl Resource, verdict: Verdict) -> Self {
        Self {
            uid: object.meta().uid.clone(),
            generation: object.meta().generation,
            result: verdict.result,
            warnings: verdict.warnings,
        }
    }

    /// Whether the object is still the one that was judged, in the same generation.
    pub(crate) fn speaks_of(&self, object: &impl Resource) -> bool {
        self.uid == object.meta().uid && self.generation == object.meta().generation
    }
}

impl Outcome {
    fn is_like(&self, other: &Self) -> bool {
        let judged = |outcome: &Self| -> Vec<(String, Judged)> {
            let routes = outcome.routes.iter();
            routes
                .map(|(name, (_, judged))| (name.clone(), judged.clone()))
                .collect()
        };
        self.table.hash == other.table.hash && judged(self) == judged(other)
    }
}

impl Snapshot {
    /// Compiles. What came out as in `previous` is taken from there.
    fn new(
        routes: &[Arc<NexusRoute>],
        providers: Vec<Arc<NexusProvider>>,
        grants: Grants,
        previous: &Self,
    ) -> Self {
        let Compiled { tables, verdicts } = compile(routes, &providers, &grants);
        let mut by_namespace: BTreeMap<String, BTreeMap<_, _>> = BTreeMap::new();
        let mut by_provider = BTreeMap::new();
        for verdict in verdicts {
            match verdict.kind {
                Kind::Provider => {
                    let provider = &providers[verdict.index];
                    by_provider.insert(provider.name_any(), Judged::new(&**provider, verdict));
                }
                Kind::Route => {
                    let route = routes[verdict.index].clone();
                    let judged = Judged::new(&*route, verdict);
                    let namespace = route.namespace().unwrap_or_default();
                    let found = by_namespace.entry(namespace).or_default();
                    found.insert(route.name_any(), (route, judged));
                }
            }
        }
        let namespaces = tables.into_iter().map(|(namespace, table)| {
            let routes = by_namespace.remove(&namespace).unwrap_or_default();
            let table = Arc::new(table);
            let outcome = Outcome { table, routes };
            let known = previous.namespaces.get(&namespace);
            let outcome = match known.filter(|known| known.is_like(&outcome)) {
                Some(known) => known.clone(),
                None => Arc::new(outcome),
            };
            (namespace, outcome)
        });
        Self {
            namespaces: namespaces.collect(),
            verdicts: by_provider,
            providers,
            grants,
        }
    }

    /// Namespaces whose outcome is another one than in `previous`, also those that have none any more.
    fn changed_since<'a>(&'a self, previous: &'a Self) -> impl Iterator<Item = &'a str> {
        let names: BTreeSet<&String> = self
            .namespaces
            .keys()
            .chain(previous.namespaces.keys())
            .collect();
        names.into_iter().map(String::as_str).filter(|name| {
            match (self.namespaces.get(*name), previous.namespaces.get(*name)) {
                (Some(one), Some(other)) => !Arc::ptr_eq(one, other),
                (None, None) => false,
                (Some(_), None) | (None, Some(_)) => true,
            }
        })
    }
}

/// Compiles what the stores hold, and again whenever that changes. Changes are collected for `debounce`.
#[derive(Debug)]
pub(crate) struct Compiler {
    stores: Stores,
    debounce: Duration,
    metrics: Arc<Metrics>,
    snapshots: watch::Sender<Arc<Snapshot>>,
}

impl Compiler {
    /// The first snapshot is empty, until [`Self::compile`] returns for the first time.
    pub(crate) fn new(stores: Stores, debounce: Duration, metrics: Arc<Metrics>) -> Self {
        Self {
            stores,
            debounce,
            metrics,
            snapshots: watch::Sender::default(),
        }
    }

    /// Where snapshots are published.
    pub(crate) fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.subscribe()
    }

    /// Compiles after every batch of changes.
    pub(crate) async fn run(self) -> anyhow::Result<Infallible> {
        loop {
            self.stores.changes().compiler.notified().await;
            tokio::time::sleep(self.debounce).await;
            // What was told meanwhile is in the stores.
            self.stores.changes().compiler.notified().now_or_never();
            self.compile().await?;
        }
    }

    /// Compiles, publishes, and marks the namespaces whose outcome changed.
    pub(crate) async fn compile(&self) -> anyhow::Result<()> {
        let routes = self.stores.routes();
        let providers = self.stores.providers();
        let grants = Grants::Cluster(self.stores.grants());
        let previous = self.snapshots.borrow().clone();
        let (snapshot, previous) = tokio::task::spawn_blocking(move || {
            let snapshot = Snapshot::new(&routes, providers, grants, &previous);
            (Arc::new(snapshot), previous)
        })
        .await?;
        self.metrics.compilations.inc();
        self.count(&snapshot);
        self.snapshots.send_replace(snapshot.clone());
        for namespace in snapshot.changed_since(&previous) {
            self.stores.changes().namespaces.mark(namespace);
        }
        if snapshot.verdicts != previous.verdicts {
            self.stores.changes().providers.notify_one();
        }
        Ok(())
    }

    fn count(&self, snapshot: &Snapshot) {
        let mut counts: BTreeMap<&str, i64> = BTreeMap::new();
        for (_, judged) in snapshot
            .namespaces
            .values()
            .flat_map(|ns| ns.routes.values())
        {
            let reason = match &judged.result {
                Ok(()) => Reason::Accepted,
                Err(problem) => problem.reason,
            };
            *counts.entry(reason.as_str()).or_default() += 1;
        }
        let unreadable = self.stores.unreadable_routes();
        if unreadable > 0 {
            *counts.entry(Reason::InvalidValue.as_str()).or_default() += unreadable;
        }
        self.metrics.routes.clear();
        for (reason, count) in counts {
            let labels = ReasonLabels { reason };
            self.metrics.routes.get_or_create(&labels).set(count);
        }
    }
}

impl Drop for Compiler {
    /// Another replica has them from now on.
    fn drop(&mut self) {
        self.metrics.routes.clear();
    }
}

#[cfg(test)]
mod tests {
    use nexus_crds::grants::{ClusterGrants, InlineUpstreams};
    use serde_json::json;

    use super::*;

    fn route(namespace: &str, name: &str, created: u8, generation: i64) -> Arc<NexusRoute> {
        let route = json!({
            "apiVersion": "nexus.io/v1alpha1",
            "kind": "NexusRoute",
            "metadata": {
                "namespace": namespace,
                "name": name,
                "uid": format!("{namespace}-{name}"),
                "generation": generation,
                "creationTimestamp": format!("2026-01-01T00:00:{created:02}Z"),
            },
            "spec": {
                "provider": "github",
                "upstream": {"url": "https://api.github.com"},
                "connections": [{"connectionId": "11111111-1111-4111-8111-111111111111"}],
            },
        });
        Arc::new(serde_json::from_value(route).unwrap())
    }

    fn snapshot(routes: &[Arc<NexusRoute>], previous: &Snapshot) -> Snapshot {
        let grants = Grants::Cluster(ClusterGrants {
            inline_upstreams: InlineUpstreams::Allow,
            ..ClusterGrants::default()
        });
        Snapshot::new(routes, Vec::new(), grants, previous)
    }

    fn changed(snapshot: &Snapshot, previous: &Snapshot) -> Vec<String> {
        snapshot
            .changed_since(previous)
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn only_namespaces_whose_outcome_differs_are_changed() {
        let (a, b) = (route("a", "x", 1, 1), route("b", "x", 2, 1));
        let before = snapshot(&[a.clone(), b.clone()], &Snapshot::default());
        assert_eq!(changed(&before, &Snapshot::default()), ["a", "b"]);

        // The same objects with another status: nobody looks.
        let again = snapshot(&[a.clone(), b.clone()], &before);
        assert!(changed(&again, &before).is_empty());

        // A generation that changes nothing has to be observed all the same.
        let after = snapshot(&[route("a", "x", 1, 2), b.clone()], &before);
        assert_eq!(changed(&after, &before), ["a"]);

        // The connection's owner goes: its namespace is empty, and the other one heals.
        let healed = snapshot(&[b], &before);
        assert_eq!(changed(&healed, &before), ["a", "b"]);
        let judged = |snapshot: &Snapshot| snapshot.namespaces["b"].routes["x"].1.result.is_ok();
        assert!(!judged(&before) && judged(&healed));
    }

    #[test]
    fn a_verdict_speaks_of_one_generation_of_one_object() {
        let old = route("a", "x", 1, 1);
        let snapshot = snapshot(std::slice::from_ref(&old), &Snapshot::default());
        let (_, judged) = &snapshot.namespaces["a"].routes["x"];
        assert!(judged.speaks_of(&*old));
        assert!(!judged.speaks_of(&*route("a", "x", 1, 2)));
        assert!(!judged.speaks_of(&*route("a", "y", 1, 1)));
    }
}
