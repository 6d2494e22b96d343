//! One pure function that turns objects into tables, for everyone.
//!
//! The controller, the admission check, the relay, the sidecar's local mode, `check` and the tests call it, so that
//! "accepted" always means "will load".

mod claims;
mod fit;
mod judge;
mod merge;
mod selector;
mod warnings;

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashSet};

use kube::ResourceExt;

pub use self::fit::{CONFIG_MAP_LIMIT, Fitted, fit};
use crate::compile::claims::Claims;
use crate::compile::judge::{Fields, Judge};
use crate::compile::merge::Route;
use crate::grants::Grants;
use crate::names::is_provider;
use crate::provider::NexusProvider;
use crate::route::NexusRoute;
use crate::status::{Kind, Problem, Reason, Verdict, Warning};
use crate::table::{RouteTable, TableRoute};

/// Namespace of a local manifest that names none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// Tables and verdicts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Compiled {
    /// By namespace; one for every namespace that has a route, accepted or not.
    pub tables: BTreeMap<String, RouteTable>,
    /// One per object: providers first, then routes, each in the order given.
    pub verdicts: Vec<Verdict>,
}

/// Judges objects and makes the tables of those that pass.
///
/// Where two routes collide the older one wins: by `creationTimestamp`, then namespace and name; with
/// [`Grants::Local`] by the order given. Routes that differ in nothing but their connections become one.
///
/// Objects may be owned or shared (`Arc`), so that a store need not be copied.
pub fn compile<R: Borrow<NexusRoute>, P: Borrow<NexusProvider>>(
    routes: &[R],
    providers: &[P],
    grants: &Grants,
) -> Compiled {
    let judge = Judge::new(providers, grants);
    let merged: Vec<Route> = routes
        .iter()
        .map(Borrow::borrow)
        .map(|route| merge::route(route, judge.provider(provider_name(route))))
        .collect();

    let mut fields = Fields::default();
    let mut accepted = Accepted::default();
    let mut results = vec![Ok(()); routes.len()];
    for index in by_age(routes, grants) {
        results[index] = judge
            .route(&merged[index], &mut fields)
            .and_then(|()| accepted.add(&merged[index], grants));
    }

    let mut verdicts = judge.provider_verdicts(providers);
    verdicts.extend(
        results
            .into_iter()
            .enumerate()
            .map(|(index, result)| Verdict {
                kind: Kind::Route,
                index,
                namespace: merged[index].namespace.clone(),
                name: merged[index].table.name.clone(),
                warnings: warnings::route(&merged[index], grants),
                result,
            }),
    );
    let mut tables: BTreeMap<String, Vec<TableRoute>> = BTreeMap::new();
    for route in &merged {
        tables.entry(route.namespace.clone()).or_default();
    }
    for (namespace, route) in accepted.routes {
        tables.entry(namespace).or_default().push(route);
    }
    Compiled {
        tables: tables
            .into_iter()
            .map(|(namespace, routes)| (namespace.clone(), RouteTable::new(namespace, routes)))
            .collect(),
        verdicts,
    }
}

/// The provider of a route: the one it names, else its own name.
pub fn provider_name(route: &NexusRoute) -> &str {
    let name = route.metadata.name.as_deref().unwrap_or_default();
    route.spec.provider.as_deref().unwrap_or(name)
}

fn namespace(route: &NexusRoute) -> String {
    route
        .namespace()
        .unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned())
}

/// Indices of the routes, oldest first.
fn by_age<R: Borrow<NexusRoute>>(routes: &[R], grants: &Grants) -> Vec<usize> {
    let mut order: Vec<usize> = (0..routes.len()).collect();
    match grants {
        Grants::Local => {}
        Grants::Cluster(_) => order.sort_by_cached_key(|index| {
            let route: &NexusRoute = routes[*index].borrow();
            // An object without a timestamp is one that is being created.
            let created = route.creation_timestamp().map(|time| time.0);
            (
                created.is_none(),
                created,
                namespace(route),
                route.name_any(),
            )
        }),
    }
    order
}

/// The routes accepted so far, oldest first.
#[derive(Default)]
struct Accepted {
    routes: Vec<(String, TableRoute)>,
    /// Places in `routes` by namespace and provider.
    by_provider: BTreeMap<(String, String), Vec<usize>>,
    claims: Claims,
}

impl Accepted {
    /// Adds a valid route, unless an older one stands against it.
    fn add(&mut self, route: &Route, grants: &Grants) -> Result<(), Problem> {
        let key = (route.namespace.clone(), route.table.provider.clone());
        let rivals = self.by_provider.entry(key).or_default();
        let rival = rivals
            .iter()
            .copied()
            .find(|at| selector::overlap(&self.routes[*at].1, &route.table));
        if let Some(at) = rival {
            check_mergeable(&self.routes[at].1, &route.table)?;
        }
        self.claims.claim(route, grants)?;
        if let Some(at) = rival {
            let connections = route.table.connections.iter().cloned();
            self.routes[at].1.connections.extend(connections);
        } else {
            rivals.push(self.routes.len());
            self.routes
                .push((route.namespace.clone(), route.table.clone()));
        }
        Ok(())
    }
}

/// Routes merge if they differ in nothing but disjoint connections.
fn check_mergeable(older: &TableRoute, newer: &TableRoute) -> Result<(), Problem> {
    if let Some(field) = merge::difference(older, newer) {
        let message = format!(
            "NexusRoute {:?} is older, has provider {:?} and overlapping selectors, and another {field}; \
             make them equal but for their connections, or tell them apart by provider, podSelector or serviceAccounts",
            older.name, older.provider
        );
        return Err(Problem::new(
            Reason::ProviderConflict,
            "spec.provider",
            message,
        ));
    }
    let taken: HashSet<Option<&str>> = older
        .connections
        .iter()
        .map(|connection| connection.tenant.as_deref())
        .collect();
    let double = newer
        .connections
        .iter()
        .position(|connection| taken.contains(&connection.tenant.as_deref()));
    match double {
        None => Ok(()),
        Some(index) => {
            let who = match newer.connections[index].tenant.as_deref() {
                Some(tenant) => format!("tenant {tenant:?}"),
                None => "a connection without tenant".to_owned(),
            };
            let message = format!(
                "NexusRoute {:?}, which this one would merge with, has {who} already",
                older.name
            );
            let field = format!("spec.connections[{index}].tenant");
            Err(Problem::new(Reason::DuplicateTenant, field, message))
        }
    }
}

fn warning(field: impl Into<String>, message: impl Into<String>) -> Warning {
    Warning {
        field: field.into(),
        message: message.into(),
    }
}

#[cfg(test)]
mod tests;
