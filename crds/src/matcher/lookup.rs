//! The look-ups of a table.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;

use crate::matcher::intern::Interner;
use crate::matcher::{CompiledRoute, strict};
use crate::names::ConnectionId;
use crate::table::RouteTable;

/// Why a table cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("route {route}: {reason}")]
pub struct LoadError {
    /// `namespace/name`.
    pub route: String,
    /// What is wrong.
    pub reason: String,
}

/// The look-ups of one table. `R` is what the user of the table keeps for a route.
#[derive(Debug)]
pub struct Matcher<R> {
    routes: Vec<R>,
    by_provider: HashMap<Arc<str>, u32, RandomState>,
    by_host: HashMap<Arc<str>, HostRoutes, RandomState>,
    by_connection: HashMap<ConnectionId, (u32, Option<Arc<str>>), RandomState>,
}

/// The routes of one upstream host.
#[derive(Debug, Default)]
struct HostRoutes {
    /// Sorted by port and base path.
    routes: Vec<(u16, Arc<str>, u32)>,
    /// Segments of the longest base path: longer prefixes of a path need no look-up.
    depth: usize,
}

impl<R> Matcher<R> {
    /// Makes a table ready. `keep` turns each route into what the look-ups return; its first error ends the load.
    ///
    /// Of two routes with one provider, or one upstream URL, the look-ups find the first.
    pub fn load<E: From<LoadError>>(
        table: &RouteTable,
        mut keep: impl FnMut(CompiledRoute) -> Result<R, E>,
    ) -> Result<Self, E> {
        let connections: usize = table
            .routes
            .iter()
            .map(|route| route.connections.len())
            .sum();
        // A tenant for each connection; host, base path and provider for each route.
        let mut interner = Interner::with_capacity(connections + 3 * table.routes.len());
        let mut matcher = Self {
            routes: Vec::with_capacity(table.routes.len()),
            by_provider: map(table.routes.len()),
            by_host: map(0),
            by_connection: map(connections),
        };
        for (index, source) in table.routes.iter().enumerate() {
            let fault = |reason: String| LoadError {
                route: format!("{}/{}", table.namespace, source.name),
                reason,
            };
            let index = u32::try_from(index).map_err(|error| fault(error.to_string()))?;
            let route = if source.requires_unknown() {
                strict::not_ready(&table.namespace, source, &mut interner)
            } else {
                strict::parse(&table.namespace, source, &mut interner)
                    .map_err(|problem| fault(problem.to_string()))?
            };
            matcher.add(index, &route);
            matcher.routes.push(keep(route)?);
        }
        for host in matcher.by_host.values_mut() {
            // Stable, so that of equals the first of the table stays first.
            host.routes.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
            host.routes
                .dedup_by(|later, first| (later.0, &later.1) == (first.0, &first.1));
            host.routes.shrink_to_fit();
        }
        matcher.by_connection.shrink_to_fit();
        Ok(matcher)
    }

    /// The route of a provider.
    pub fn by_provider(&self, provider: &str) -> Option<&R> {
        self.by_provider
            .get(provider)
            .and_then(|index| self.route(*index))
    }

    /// The route of an absolute-form target: same scheme-independent host and port, longest base path first.
    /// `host` is lower case, `port` the explicit one or the default of the target's scheme.
    ///
    /// Agents that use the sidecar as an HTTP proxy write `http://` for an `https://` upstream, so the default port
    /// of either scheme finds an upstream at the default port of the other.
    pub fn by_host(&self, host: &str, port: u16, path: &str) -> Option<&R> {
        let host = self.by_host.get(host)?;
        let other_port = match port {
            80 => Some(443),
            443 => Some(80),
            _ => None,
        };
        let index = host
            .find(port, path)
            .or_else(|| host.find(other_port?, path))?;
        self.route(index)
    }

    /// The route and tenant (`None`: the tenantless one) that use a connection.
    ///
    /// The connection of `tenant: "*"` is not found, since it leaves open which tenant is meant.
    pub fn by_connection(&self, id: ConnectionId) -> Option<(&R, Option<&str>)> {
        let (index, tenant) = self.by_connection.get(&id)?;
        Some((self.route(*index)?, tenant.as_deref()))
    }

    /// Every route, in table order.
    pub fn routes(&self) -> &[R] {
        &self.routes
    }

    fn route(&self, index: u32) -> Option<&R> {
        self.routes.get(usize::try_from(index).ok()?)
    }

    fn add(&mut self, index: u32, route: &CompiledRoute) {
        self.by_provider
            .entry(Arc::clone(&route.provider))
            .or_insert(index);
        if !route.upstream.host.is_empty() {
            let base_path = Arc::clone(&route.upstream.base_path);
            let host = self
                .by_host
                .entry(Arc::clone(&route.upstream.host))
                .or_default();
            host.depth = host.depth.max(base_path.matches('/').count());
            host.routes.push((route.upstream.port, base_path, index));
        }
        let connections = &route.connections;
        if let Some(connection) = connections.tenantless {
            self.by_connection
                .entry(connection.id)
                .or_insert((index, None));
        }
        for (tenant, connection) in &connections.by_tenant {
            let (known, name) = self
                .by_connection
                .entry(connection.id)
                .or_insert_with(|| (index, Some(Arc::clone(tenant))));
            // Maps have no order; the answer must not depend on it.
            if *known == index && name.as_ref().is_some_and(|name| tenant < name) {
                *name = Some(Arc::clone(tenant));
            }
        }
    }
}

impl HostRoutes {
    /// The route whose base path is the longest that the path is under, at a segment boundary.
    fn find(&self, port: u16, path: &str) -> Option<u32> {
        // Ends of the prefixes that a base path could be: the root, then before each further slash, then the whole.
        let slashes = path.match_indices('/').map(|(offset, _)| offset);
        let ends = slashes.chain([path.len()]).take(self.depth + 1);
        let mut found = None;
        for end in ends {
            let wanted = (port, &path[..end]);
            if let Ok(at) = self
                .routes
                .binary_search_by(|(port, base, _)| (*port, &**base).cmp(&wanted))
            {
                found = Some(self.routes[at].2);
            }
        }
        found
    }
}

fn map<K, V>(capacity: usize) -> HashMap<K, V, RandomState> {
    HashMap::with_capacity_and_hasher(capacity, RandomState::default())
}

#[cfg(test)]
mod tests;
