//! Which credential is whose: routes that list no connections get those of their provider, and each side without the
//! other is pointed out.

use std::collections::HashMap;

use nexus_crds::names::ConnectionId;
use nexus_crds::provider::NexusProvider;
use nexus_crds::route::NexusRoute;
use nexus_crds::spec::ConnectionSpec;
use nexus_crds::strategy::{Strategy, StrategySpec};
use url::Url;

use super::banner::RouteLine;
use super::credentials::{Credential, Owner};
use super::vault::{RouteStrategies, Vault, deliver, required_fields};
use crate::manifest::Manifests;
use crate::manifest::objects::Object;
use crate::manifest::problem::Problem;

/// What came of it.
#[derive(Default)]
pub(crate) struct Bound {
    /// For the vault.
    pub(crate) strategies: RouteStrategies,
    /// Errors and warnings.
    pub(crate) problems: Vec<Problem>,
    /// For the banner: routes with a credential.
    pub(crate) lines: Vec<RouteLine>,
}

/// Binds routes and credentials. Routes that list no connections are given some.
pub(crate) fn bind(manifests: &mut Manifests, credentials: &[Credential], vault: &Vault) -> Bound {
    let mut binder = Binder {
        vault,
        credentials: credentials
            .iter()
            .map(|credential| (credential.connection(), (credential, false)))
            .collect(),
        bound: Bound::default(),
    };
    let Manifests {
        routes,
        route_objects,
        providers,
        ..
    } = manifests;
    for (route, object) in routes.iter_mut().zip(route_objects) {
        let listed = attach(route, credentials);
        let strategy = strategy(route, providers).cloned();
        binder.route(route, object, strategy.as_ref(), listed);
    }
    binder.judge_credentials(credentials, routes);
    binder.bound
}

/// Gives a route that lists no connections those of its provider; true if it lists some.
fn attach(route: &mut NexusRoute, credentials: &[Credential]) -> bool {
    if !route.spec.connections.is_empty() {
        return true;
    }
    let name = provider_name(route);
    for credential in credentials {
        if let Owner::Provider { provider, tenant } = &credential.owner
            && *provider == name
        {
            route.spec.connections.push(ConnectionSpec {
                tenant: tenant.clone(),
                connection_id: credential.connection().to_string(),
                ..ConnectionSpec::default()
            });
        }
    }
    false
}

fn provider_name(route: &NexusRoute) -> String {
    let name = route.spec.provider.as_ref();
    name.or(route.metadata.name.as_ref())
        .cloned()
        .unwrap_or_default()
}

/// The strategy of a route, or else of its provider.
fn strategy<'a>(route: &'a NexusRoute, providers: &'a [NexusProvider]) -> Option<&'a StrategySpec> {
    route.spec.strategy.as_ref().or_else(|| {
        let name = provider_name(route);
        let provider = providers
            .iter()
            .find(|provider| provider.metadata.name.as_ref() == Some(&name))?;
        provider.spec.strategy.as_ref()
    })
}

struct Binder<'a> {
    vault: &'a Vault,
    /// With a mark for those that a route uses.
    credentials: HashMap<ConnectionId, (&'a Credential, bool)>,
    bound: Bound,
}

impl<'a> Binder<'a> {
    fn take(&mut self, id: &str) -> Option<&'a Credential> {
        let (credential, used) = self.credentials.get_mut(&id.parse().ok()?)?;
        *used = true;
        Some(*credential)
    }

    fn route(
        &mut self,
        route: &NexusRoute,
        object: &Object,
        strategy: Option<&StrategySpec>,
        listed: bool,
    ) {
        let mut tenants = Vec::new();
        for connection in &route.spec.connections {
            let key = connection.key_connection_id.as_deref();
            let key = key.and_then(|id| self.take(id));
            let Some(credential) = self.take(&connection.connection_id) else {
                continue;
            };
            tenants.push(connection.tenant.clone());
            if let Err((field, message)) = judge(credential, key, strategy) {
                let problem = Problem::error(self.vault.file(), message)
                    .at(credential.position)
                    .field(field);
                self.bound.problems.push(problem);
            }
            if let Some(strategy) = strategy {
                let id = credential.connection();
                self.bound.strategies.insert(id, strategy.clone());
            }
        }
        if tenants.is_empty() {
            let warning = self.without_credential(route, object, listed);
            self.bound.problems.push(warning);
            return;
        }
        self.bound.lines.push(RouteLine {
            provider: provider_name(route),
            path: example_path(route),
            tenant: example_tenant(tenants),
        });
    }

    fn without_credential(&self, route: &NexusRoute, object: &Object, listed: bool) -> Problem {
        let file = self.vault.file().display();
        if listed {
            let message =
                format!("no connection has a credential: use one of the ids as a key in {file}");
            return object.warning("spec.connections", message);
        }
        let name = provider_name(route);
        let message = format!("no credential for provider {name}: add `{name}: {{...}}` to {file}");
        object.warning("spec.connections", message)
    }

    /// Points out credentials that no route uses or that have no value now.
    fn judge_credentials(&mut self, credentials: &[Credential], routes: &[NexusRoute]) {
        for credential in credentials {
            let used = self.credentials.get(&credential.connection());
            if used.is_some_and(|(_, used)| !used) {
                let problem = Problem::warning(self.vault.file(), unused(credential, routes))
                    .at(credential.position)
                    .field(credential.path());
                self.bound.problems.push(problem);
            }
            if let Err(problems) = self.vault.resolve(credential) {
                self.bound.problems.extend(problems);
            }
        }
        if self.bound.lines.is_empty() && !routes.is_empty() {
            let message = "none of these is the credential of a route";
            let problem = Problem::error(self.vault.file(), message);
            self.bound.problems.push(problem);
        }
    }
}

/// Judges that the strategy will find what it needs; on failure field and message.
fn judge(
    credential: &Credential,
    key: Option<&Credential>,
    route: Option<&StrategySpec>,
) -> Result<(), (String, String)> {
    let path = credential.path();
    let delivered = deliver(credential, route).map_err(|message| (path.clone(), message))?;
    let strategy = Strategy::effective(route, &delivered)
        .map_err(|error| (format!("{path}.strategy"), error.to_string()))?;
    for field in required_fields(&strategy) {
        if !credential.has(field) && !key.is_some_and(|key| key.has(field)) {
            let message = format!("missing; strategy {} needs it", delivered.kind);
            return Err((format!("{path}.{field}"), message));
        }
    }
    Ok(())
}

fn unused(credential: &Credential, routes: &[NexusRoute]) -> String {
    match &credential.owner {
        Owner::Connection(_) => "no route lists this connection".to_owned(),
        Owner::Provider { provider, .. } => {
            if routes.iter().any(|it| provider_name(it) == *provider) {
                return format!(
                    "the route of {provider} lists its own connections: use their ids as keys"
                );
            }
            format!("no route has the provider {provider}")
        }
    }
}

/// The tenant to name in an example: none if that works.
fn example_tenant(tenants: Vec<Option<String>>) -> Option<String> {
    if tenants.contains(&None) {
        return None;
    }
    tenants.into_iter().flatten().find(|tenant| tenant != "*")
}

/// A path to try, behind the base path: one that the rules allow as it stands, if there is one.
fn example_path(route: &NexusRoute) -> String {
    let url = route
        .spec
        .upstream
        .as_ref()
        .and_then(|it| it.url.as_deref());
    let base = url.and_then(|url| Url::parse(url).ok());
    let base = base
        .as_ref()
        .map_or("", |url| url.path())
        .trim_end_matches('/');
    let rules = route
        .spec
        .access
        .as_ref()
        .and_then(|it| it.allow.as_deref());
    rules
        .unwrap_or_default()
        .iter()
        .filter(|rule| {
            let methods = rule.methods.as_deref();
            methods.is_none_or(|it| it.iter().any(|method| method == "GET" || method == "*"))
        })
        .flat_map(|rule| rule.paths.iter().flatten())
        .filter(|path| !path.contains(['*', '{']))
        .find_map(|path| path.strip_prefix(base))
        .filter(|path| path.starts_with('/'))
        .unwrap_or("/")
        .to_owned()
}
