//! Whom the sidecar works for: decided when the process starts, and applied to every table that it reads.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use nexus_crds::admitted::Admitted;
use nexus_crds::table::RouteTable;

/// The pod, as far as it is known; fixed for the life of the process.
#[derive(Debug)]
pub struct Identity {
    pod: Option<Admitted>,
    /// Names of the routes that the last table had beside another one of their provider.
    second: Mutex<HashSet<String>>,
}

impl Identity {
    /// In a cluster: this was decided when the pod was admitted.
    pub fn pod(admitted: Admitted) -> Self {
        Self {
            pod: Some(admitted),
            second: Mutex::default(),
        }
    }

    /// Outside of a cluster there is no pod, and each route is for whoever asks.
    pub fn unknown() -> Self {
        Self {
            pod: None,
            second: Mutex::default(),
        }
    }

    /// Leaves in a table what it has for this pod: the routes whose `podSelector` and `serviceAccounts` are met (all of
    /// them where the pod is not known), and of these the first of each provider. A second one is warned about, though
    /// not again for as long as every table has it. The table's hash still tells the whole table.
    pub fn narrow(&self, table: &mut RouteTable) {
        let mut providers = HashSet::with_capacity(table.routes.len());
        let mut second = HashSet::new();
        let mut known = self.second.lock().unwrap_or_else(PoisonError::into_inner);
        let mut given = Vec::with_capacity(table.routes.len());
        for route in &table.routes {
            if !self.pod.as_ref().is_none_or(|pod| pod.is_given(route)) {
                given.push(false);
                continue;
            }
            let first = providers.insert(route.provider.as_str());
            if !first {
                if !known.contains(&route.name) {
                    self.warn(&route.name, &route.provider);
                }
                second.insert(route.name.clone());
            }
            given.push(first);
        }
        *known = second;
        let mut given = given.into_iter();
        table.routes.retain(|_| given.next().unwrap_or_default());
    }

    fn warn(&self, route: &str, provider: &str) {
        if self.pod.is_some() {
            tracing::warn!(
                route,
                provider,
                "the table has an earlier route of the provider for this pod, which is served instead"
            );
        } else {
            tracing::warn!(
                route,
                provider,
                "an earlier route has the provider and is served instead: without --admitted there is no pod that podSelector and serviceAccounts could tell apart"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(json: &Value) -> Identity {
        Identity::pod(Admitted::parse(&json.to_string()).unwrap())
    }

    /// Two routes of provider `p` for disjoint pods, one of `q` for a service account, and one of `r` for all.
    fn table() -> RouteTable {
        let app = |app: &str| json!({"matchLabels": {"app": app}});
        let routes = json!([
            {"name": "p-a", "provider": "p", "podSelector": app("a")},
            {"name": "p-b", "provider": "p", "podSelector": app("b")},
            {"name": "q", "provider": "q", "serviceAccounts": ["robot"]},
            {"name": "r", "provider": "r"},
        ]);
        RouteTable::new("ns", serde_json::from_value(routes).unwrap())
    }

    fn names(identity: &Identity, mut table: RouteTable) -> Vec<String> {
        identity.narrow(&mut table);
        table.routes.into_iter().map(|route| route.name).collect()
    }

    #[test]
    fn a_pod_has_the_routes_that_are_for_it() {
        for (admitted, expected) in [
            (
                json!({"version": 1, "labels": {"app": "a"}}),
                &["p-a", "r"][..],
            ),
            (
                json!({"version": 1, "labels": {"app": "b"}, "serviceAccount": "robot"}),
                &["p-b", "q", "r"],
            ),
            (json!({"version": 1, "labels": {"app": "c"}}), &["r"]),
        ] {
            assert_eq!(names(&pod(&admitted), table()), expected, "{admitted}");
        }
    }

    #[test]
    fn without_a_pod_each_provider_has_its_first_route() {
        assert_eq!(names(&Identity::unknown(), table()), ["p-a", "q", "r"]);
    }

    #[test]
    fn a_second_route_is_remembered_for_as_long_as_it_is_there() {
        let identity = Identity::unknown();
        let second = || identity.second.lock().unwrap().clone();
        names(&identity, table());
        assert_eq!(second(), HashSet::from(["p-b".to_owned()]));
        names(&identity, RouteTable::new("ns", Vec::new()));
        assert!(second().is_empty());
    }

    #[test]
    fn the_hash_stays_that_of_the_whole_table() {
        let mut narrowed = table();
        Identity::unknown().narrow(&mut narrowed);
        assert_eq!(narrowed.hash, table().hash);
    }
}
