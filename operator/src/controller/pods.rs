//! Pods with a sidecar, counted now and then: `boundPods` follows the count and not the pods, so that a rollout does
//! not write statuses by the second.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::metrics::{Metrics, VersionLabels};
use crate::stores::Stores;
use crate::stores::pods::InjectedPod;

type Counted = BTreeMap<String, Arc<Vec<Arc<InjectedPod>>>>;

/// The pods with a sidecar, by namespace, as last counted.
#[derive(Debug, Default)]
pub(crate) struct Pods(ArcSwap<Counted>);

impl Pods {
    /// Those of one namespace.
    pub(crate) fn within(&self, namespace: &str) -> Arc<Vec<Arc<InjectedPod>>> {
        self.0.load().get(namespace).cloned().unwrap_or_default()
    }

    /// Counts anew and has the namespaces looked at whose pods are others.
    pub(crate) fn count(&self, stores: &Stores, metrics: &Metrics) {
        let namespaces = stores.namespaces_with_pods().into_iter();
        let fresh: Counted = namespaces
            .map(|namespace| {
                let pods = stores.pods_within(&namespace);
                (namespace, Arc::new(pods))
            })
            .collect();
        let old = self.0.load_full();
        let names: BTreeSet<&String> = fresh.keys().chain(old.keys()).collect();
        let changed = names
            .into_iter()
            .filter(|name| fresh.get(*name) != old.get(*name));
        for namespace in changed {
            stores.changes().namespaces.mark(namespace);
        }
        let mut versions: BTreeMap<&str, i64> = BTreeMap::new();
        for pod in fresh.values().flat_map(|pods| pods.iter()) {
            *versions
                .entry(pod.sidecar_version().unwrap_or("unknown"))
                .or_default() += 1;
        }
        metrics.sidecars.clear();
        for (version, count) in versions {
            let version = version.to_owned();
            let labels = VersionLabels { version };
            metrics.sidecars.get_or_create(&labels).set(count);
        }
        self.0.store(Arc::new(fresh));
    }

    /// Counts again and again.
    pub(crate) async fn run(
        &self,
        stores: &Stores,
        metrics: &Metrics,
        every: Duration,
    ) -> Infallible {
        loop {
            tokio::time::sleep(every).await;
            self.count(stores, metrics);
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use tokio::time::{Instant, sleep};

    use super::*;
    use crate::args::ControllerArgs;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        controller: ControllerArgs,
    }

    #[tokio::test(start_paused = true)]
    async fn pods_that_come_one_after_the_other_are_counted_together_every_thirty_seconds() {
        let args = Only::parse_from(["nexus-operator"]).controller;
        let stores = Stores::unwatched(&args);
        let (pods, metrics) = (Pods::default(), Metrics::default());
        let start = Instant::now();
        let rollout = async {
            for number in 0..55 {
                stores.put_pod("a", &format!("agent-{number}"));
                sleep(Duration::from_secs(1)).await;
            }
            std::future::pending::<Infallible>().await
        };
        let marked = async {
            let mut counts = Vec::new();
            while counts.len() < 2 {
                let names = stores.changes().namespaces.take().await;
                assert!(names.iter().eq(["a"]));
                counts.push((start.elapsed().as_secs(), pods.within("a").len()));
            }
            counts
        };
        let counts = tokio::select! {
            never = pods.run(&stores, &metrics, args.bound_pods_interval) => match never {},
            never = rollout => match never {},
            counts = marked => counts,
        };
        let at: Vec<u64> = counts.iter().map(|(at, _)| *at).collect();
        assert_eq!(at, [30, 60]);
        assert!((30..=31).contains(&counts[0].1), "{counts:?}");
        assert_eq!(counts[1].1, 55);
    }
}
