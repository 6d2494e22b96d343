//! The routes that requests are matched against, swapped as a whole when the table changes.

pub mod reload;
pub mod watch;

use std::collections::HashSet;
use std::num::NonZeroU32;
use std::sync::Arc;

use anyhow::Context;
use arc_swap::ArcSwapOption;
use http::HeaderValue;
use nexus_crds::matcher::{CompiledRoute, Connection, Connections, Matcher};
use nexus_crds::strategy::StrategySpec;
use nexus_crds::table::RouteTable;

use crate::credential::cache::{CredentialKey, strategy_digest};
use crate::limiter::Rate;
use crate::metrics::{Metrics, RouteMetrics};
use crate::proxy::body::RequestBody;
use crate::proxy::streams::Owner;
use crate::upstream::{Pool, Upstreams};

/// One route with what its requests need at hand.
pub struct Route {
    /// What the table says.
    pub compiled: CompiledRoute,
    /// Connections to the upstream.
    pub pool: Arc<Pool<RequestBody>>,
    /// `Host` of every request.
    pub host: HeaderValue,
    /// How to present the credential, where the route says so.
    pub strategy: Option<Arc<StrategySpec>>,
    /// Part of the key of its credentials.
    pub strategy_digest: u128,
    /// Its rate limit.
    pub rate: Option<Rate>,
    /// Its counters.
    pub metrics: Arc<RouteMetrics>,
}

impl Route {
    /// Under which key the credential of a connection is cached for this route.
    pub fn credential_key(&self, connection: Connection) -> CredentialKey {
        CredentialKey::new(connection, self.strategy_digest)
    }

    fn credential_keys(&self) -> impl Iterator<Item = CredentialKey> {
        let Connections {
            tenantless,
            by_tenant,
            any_tenant,
        } = &self.compiled.connections;
        tenantless
            .iter()
            .chain(by_tenant.values())
            .chain(any_tenant)
            .map(|connection| self.credential_key(*connection))
    }
}

/// Every route of one table.
pub struct RouteSet {
    /// The look-ups; `None` is a route that this version cannot serve.
    pub matcher: Matcher<Option<Arc<Route>>>,
    /// Revision of the table.
    pub revision: u64,
    /// Hash of the table.
    pub hash: String,
    /// Tenants that routes name, kept only where a `*` connection needs them.
    named: HashSet<Arc<str>, foldhash::fast::RandomState>,
    /// The tenant meant when a request names none, if the routes name just one.
    only_tenant: Option<HeaderValue>,
}

impl RouteSet {
    /// Makes a table ready to serve.
    pub fn load(
        table: &RouteTable,
        upstreams: &Arc<Upstreams<RequestBody>>,
        metrics: &Metrics,
    ) -> anyhow::Result<Self> {
        let matcher: Matcher<Option<Arc<Route>>> = Matcher::load(table, |compiled| {
            if compiled.not_ready {
                tracing::warn!(route = %compiled.name, "the route uses a feature of a newer version and is not served");
                return Ok(None);
            }
            prepare(compiled, upstreams, metrics).map(|route| Some(Arc::new(route)))
        })?;
        let needs_names = matcher
            .routes()
            .iter()
            .flatten()
            .any(|route| route.compiled.connections.any_tenant.is_some());
        let mut named = HashSet::default();
        let mut only = None::<&str>;
        let mut several = false;
        for tenant in matcher
            .routes()
            .iter()
            .flatten()
            .flat_map(|route| route.compiled.connections.by_tenant.keys())
        {
            several |= only.is_some_and(|known| known != &**tenant);
            only = Some(tenant);
            if needs_names {
                named.insert(tenant.clone());
            }
        }
        let only_tenant = only
            .filter(|_| !several)
            .and_then(|tenant| HeaderValue::from_str(tenant).ok());
        Ok(Self {
            revision: table.revision,
            hash: table.hash.clone(),
            named,
            only_tenant,
            matcher,
        })
    }

    /// Whether a request of this owner would still be given the same connection.
    pub fn serves(&self, owner: &Owner) -> bool {
        let Some(Some(route)) = self.matcher.by_provider(&owner.provider) else {
            return false;
        };
        let connections = &route.compiled.connections;
        let tenant = owner
            .tenant
            .as_ref()
            .map(|tenant| tenant.to_str().unwrap_or_default());
        let now = match tenant {
            None => connections.tenantless,
            Some(tenant) => connections
                .by_tenant
                .get(tenant)
                .copied()
                .or(connections.any_tenant),
        };
        now == Some(owner.connection)
    }

    /// Keys of every credential that the routes may use.
    pub fn credential_keys(&self) -> impl Iterator<Item = CredentialKey> {
        self.matcher
            .routes()
            .iter()
            .flatten()
            .flat_map(|route| route.credential_keys())
    }
}

fn prepare(
    compiled: CompiledRoute,
    upstreams: &Arc<Upstreams<RequestBody>>,
    metrics: &Metrics,
) -> anyhow::Result<Route> {
    let pool = upstreams
        .pool(&compiled.upstream)
        .with_context(|| format!("route {}: spec.upstream", compiled.name))?;
    let host = HeaderValue::from_str(&compiled.upstream.authority)
        .with_context(|| format!("route {}: spec.upstream.url", compiled.name))?;
    Ok(Route {
        pool,
        host,
        strategy: compiled.strategy.clone().map(Arc::new),
        strategy_digest: strategy_digest(compiled.strategy.as_ref()),
        rate: compiled.limits.rate.and_then(|rate| {
            Some(Rate {
                per_second: NonZeroU32::new(rate.per_second)?,
                burst: NonZeroU32::new(rate.burst)?,
            })
        }),
        metrics: metrics.route(&compiled.name, &compiled.provider),
        compiled,
    })
}

/// Which tenants requests may name; fixed for the life of the process.
#[derive(Debug)]
pub enum Tenants {
    /// These.
    Listed(HashSet<Box<str>>),
    /// Those that the routes name (local mode).
    NamedByRoutes,
}

impl Tenants {
    /// Whether a request may name the tenant. `route` is the one it asks for.
    pub fn allow(&self, routes: &RouteSet, route: &Route, tenant: &str) -> bool {
        match self {
            Self::Listed(listed) => listed.contains(tenant),
            Self::NamedByRoutes => {
                route.compiled.connections.by_tenant.contains_key(tenant)
                    || routes.named.contains(tenant)
                    || routes
                        .matcher
                        .routes()
                        .iter()
                        .flatten()
                        .any(|other| other.compiled.connections.by_tenant.contains_key(tenant))
            }
        }
    }

    /// The tenant of requests that name none, if there is just one.
    pub fn only(&self, routes: &RouteSet) -> Option<HeaderValue> {
        match self {
            Self::Listed(listed) if listed.len() == 1 => listed
                .iter()
                .next()
                .and_then(|tenant| HeaderValue::from_str(tenant).ok()),
            Self::Listed(_) => None,
            Self::NamedByRoutes => routes.only_tenant.clone(),
        }
    }
}

/// The current routes; `None` until a table was read.
pub type SharedRoutes = Arc<ArcSwapOption<RouteSet>>;
