//! The part of a cluster that an object's verdict depends on, or that depends on the object: with thousands of routes an
//! admission must not compile them all.
//!
//! A verdict depends on routes of the same namespace and provider, and on routes that name the same connections; theirs
//! depend on others in the same way.

use std::collections::HashSet;
use std::sync::Arc;

use kube::ResourceExt;
use nexus_crds::compile::provider_name;
use nexus_crds::names::ConnectionId;
use nexus_crds::provider::NexusProvider;
use nexus_crds::route::NexusRoute;

/// Routes that matter for one, without itself.
pub(super) fn related_to_route(
    route: &NexusRoute,
    old: Option<&NexusRoute>,
    routes: &[Arc<NexusRoute>],
) -> Vec<Arc<NexusRoute>> {
    let identity = (route.namespace(), route.name_any());
    let others = routes
        .iter()
        .filter(|other| (other.namespace(), other.name_any()) != identity);
    let mut known = Known::default();
    for own in old.into_iter().chain([route]) {
        known.add(own);
    }
    closure(known, others.cloned().collect(), |_| false)
}

/// Routes that matter for a provider: its own, and what matters for them.
pub(super) fn related_to_provider(name: &str, routes: &[Arc<NexusRoute>]) -> Vec<Arc<NexusRoute>> {
    closure(Known::default(), routes.to_vec(), |route| {
        provider_name(route) == name
    })
}

/// The providers of routes.
pub(super) fn granting<'a>(
    providers: &[Arc<NexusProvider>],
    routes: impl Iterator<Item = &'a NexusRoute>,
) -> Vec<Arc<NexusProvider>> {
    let names: HashSet<&str> = routes.map(provider_name).collect();
    let granting = |provider: &&Arc<NexusProvider>| {
        let name = provider.metadata.name.as_deref();
        name.is_some_and(|name| names.contains(name))
    };
    providers.iter().filter(granting).cloned().collect()
}

/// Namespaces and providers, and connections, of what matters.
#[derive(Default)]
struct Known {
    groups: HashSet<(Option<String>, String)>,
    connections: HashSet<ConnectionId>,
}

impl Known {
    fn add(&mut self, route: &NexusRoute) {
        self.groups.insert(group(route));
        self.connections.extend(connections(route));
    }

    fn concerns(&self, route: &NexusRoute) -> bool {
        self.groups.contains(&group(route))
            || connections(route).any(|id| self.connections.contains(&id))
    }
}

fn group(route: &NexusRoute) -> (Option<String>, String) {
    (route.namespace(), provider_name(route).to_owned())
}

fn connections(route: &NexusRoute) -> impl Iterator<Item = ConnectionId> {
    let entries = route.spec.connections.iter();
    entries
        .flat_map(|entry| [Some(&entry.connection_id), entry.key_connection_id.as_ref()])
        .filter_map(|id| id?.parse().ok())
}

/// What is concerned, until nothing more is; in the order in which it was found.
fn closure(
    mut known: Known,
    mut rest: Vec<Arc<NexusRoute>>,
    is_own: impl Fn(&NexusRoute) -> bool,
) -> Vec<Arc<NexusRoute>> {
    let mut related = Vec::new();
    loop {
        let found = related.len();
        rest.retain(|route| {
            let concerned = is_own(route) || known.concerns(route);
            if concerned {
                known.add(route);
                related.push(Arc::clone(route));
            }
            !concerned
        });
        if related.len() == found {
            return related;
        }
    }
}
