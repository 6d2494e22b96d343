//! Step 1, resolve: which route, tenant and connection a request means. Pure.

use std::sync::Arc;

use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};
use nexus_crds::matcher::Connection;
use nexus_crds::names::{self, ConnectionId};

use super::guard::is_loopback_name;
use crate::error::{Code, ProxyError};
use crate::routes::{Route, RouteSet, Tenants};

const VIA: &str = "/via/";

/// What a request asks for.
pub struct Target {
    /// The route.
    pub route: Arc<Route>,
    /// The tenant, if one was named or implied.
    pub tenant: Option<HeaderValue>,
    /// Whose credential is applied.
    pub connection: Connection,
    /// Path and query for the upstream: its base path, and what was received behind any prefix.
    pub path_and_query: PathAndQuery,
    /// How the caller addressed the upstream, which is how links are given back.
    pub addressing: Addressing,
}

/// How the caller addressed the upstream.
#[derive(Debug, PartialEq, Eq)]
pub enum Addressing {
    /// By `X-Nexus-*` headers.
    Headers,
    /// By this path prefix, e.g. `/via/github@tenant_123`.
    Prefix(Box<str>),
    /// By an absolute-form target with this scheme.
    Absolute(Box<str>),
}

/// The parts of a path that begins with `/via/`.
#[derive(Debug, PartialEq, Eq)]
struct Via<'a> {
    prefix: &'a str,
    provider: &'a str,
    tenant: Option<&'a str>,
}

/// What a request names before it is looked up.
struct Asked<'a> {
    provider: Option<&'a str>,
    tenant: Option<&'a str>,
    connection: Option<ConnectionId>,
}

/// A route as it was found, with what its address says.
struct Found<'a> {
    route: &'a Arc<Route>,
    tenant: Option<&'a str>,
    /// What follows the prefix, if there was one.
    path_and_query: PathAndQuery,
    addressing: Addressing,
}

/// Finds route, tenant and connection, or says what the request lacks.
pub fn resolve(parts: &Parts, routes: &RouteSet, tenants: &Tenants) -> Result<Target, ProxyError> {
    let asked = asked(&parts.headers)?;
    let path_and_query = path_and_query(parts)?;
    let found = if let Some(provider) = asked.provider {
        let route = by_provider(routes, provider)?;
        Found {
            route,
            tenant: None,
            path_and_query,
            addressing: Addressing::Headers,
        }
    } else if let Some(Via {
        prefix,
        provider,
        tenant,
    }) = via(path_and_query.path())?
    {
        let route = by_provider(routes, provider)?;
        let rest = after_prefix(&path_and_query.as_str()[prefix.len()..])?;
        Found {
            route,
            tenant,
            path_and_query: rest,
            addressing: Addressing::Prefix(prefix.into()),
        }
    } else if let Some(id) = asked.connection {
        let (route, tenant) = by_connection(routes, tenants, id)?;
        Found {
            route,
            tenant,
            path_and_query,
            addressing: Addressing::Headers,
        }
    } else if let Some((scheme, host, port)) = foreign_authority(parts)? {
        let route = by_host(routes, host, port, path_and_query.path())?;
        Found {
            route,
            tenant: None,
            path_and_query,
            addressing: Addressing::Absolute(scheme.into()),
        }
    } else {
        return Err(ProxyError::new(
            Code::ProviderMissing,
            "name a provider in X-Nexus-Provider, or call /via/<provider>[@<tenant>]/<path>",
        ));
    };
    target(routes, tenants, &asked, found)
}

/// Comes first: a tunnel names the host it wants where other requests name ours.
pub fn refuse_method(method: &Method) -> Result<(), ProxyError> {
    // Methods are case-sensitive (RFC 9110 section 9.1), yet servers exist that take `trace`.
    let is = |name: &str| method.as_str().eq_ignore_ascii_case(name);
    let why = if is("CONNECT") {
        "CONNECT would open a tunnel that the sidecar cannot authenticate; send the request itself"
    } else if is("TRACE") || is("TRACK") {
        "TRACE would echo the injected credential to the caller"
    } else {
        return Ok(());
    };
    Err(ProxyError::new(Code::MethodNotAllowed, why))
}

/// One pass over the few headers there are, instead of a look-up for each name.
fn asked(headers: &HeaderMap) -> Result<Asked<'_>, ProxyError> {
    let (mut provider, mut tenant, mut connection) = (None, None, None);
    for (name, value) in headers {
        let found = match name.as_str() {
            names::PROVIDER_HEADER => &mut provider,
            names::TENANT_HEADER => &mut tenant,
            names::CONNECTION_ID_HEADER => &mut connection,
            _ => continue,
        };
        if found.replace(single(name, value)?).is_some() {
            return Err(bad_request(format!("{name} occurs more than once")));
        }
    }
    if provider.is_some_and(|name| !names::is_provider(name)) {
        return Err(bad_request(
            "X-Nexus-Provider is not a provider name: [a-z0-9][a-z0-9._-]{0,62}",
        ));
    }
    tenant.map_or(Ok(()), check_tenant)?;
    let connection = connection
        .map(|id| {
            id.parse()
                .map_err(|_| bad_request("X-Nexus-Connection-ID is not a UUID"))
        })
        .transpose()?;
    Ok(Asked {
        provider,
        tenant,
        connection,
    })
}

fn single<'a>(name: &HeaderName, value: &'a HeaderValue) -> Result<&'a str, ProxyError> {
    match value.to_str() {
        Ok(text) if text.as_bytes().contains(&b',') => {
            Err(bad_request(format!("{name} holds a list; give one value")))
        }
        Ok(text) => Ok(text),
        Err(_) => Err(bad_request(format!("{name} is not ASCII"))),
    }
}

fn check_tenant(tenant: &str) -> Result<(), ProxyError> {
    if names::is_tenant(tenant) {
        return Ok(());
    }
    Err(bad_request(
        "the tenant is not a tenant name: [A-Za-z0-9._:-]{1,128}; a caller may not say *",
    ))
}

fn path_and_query(parts: &Parts) -> Result<PathAndQuery, ProxyError> {
    match parts.uri.path_and_query() {
        Some(target) if target.as_str().starts_with('/') => Ok(target.clone()),
        Some(target) if target.as_str().starts_with('?') => {
            PathAndQuery::try_from(format!("/{}", target.as_str()))
                .map_err(|_| bad_request("the target is not a path"))
        }
        None if parts.uri.scheme().is_some() => Ok(PathAndQuery::from_static("/")),
        _ => Err(bad_request(
            "the request target is not a path; `*` is not forwarded",
        )),
    }
}

/// Splits `/via/<provider>[@<tenant>]` off a raw path, never decoding it.
fn via(path: &str) -> Result<Option<Via<'_>>, ProxyError> {
    let Some(rest) = path.strip_prefix(VIA) else {
        return Ok(None);
    };
    let segment = rest.split('/').next().unwrap_or_default();
    let (provider, tenant) = match segment.split_once('@') {
        Some((provider, tenant)) => (provider, Some(tenant)),
        None => (segment, None),
    };
    if !names::is_provider(provider) {
        return Err(bad_request(
            "the path does not name a provider: /via/<provider>[@<tenant>]/<path>",
        ));
    }
    tenant.map_or(Ok(()), check_tenant)?;
    let prefix = &path[..VIA.len() + segment.len()];
    Ok(Some(Via {
        prefix,
        provider,
        tenant,
    }))
}

/// The authority of an absolute-form target. Over HTTP/2 every target has one, so there only a host that is
/// not the sidecar's own counts.
fn foreign_authority(parts: &Parts) -> Result<Option<(&str, &str, u16)>, ProxyError> {
    let (Some(scheme), Some(host)) = (parts.uri.scheme_str(), parts.uri.host()) else {
        return Ok(None);
    };
    if parts.version == Version::HTTP_2 && is_loopback_name(host) {
        return Ok(None);
    }
    let default_port = match scheme {
        "http" => 80,
        "https" => 443,
        _ => {
            return Err(bad_request(
                "the scheme of the target is neither http nor https",
            ));
        }
    };
    let port = parts.uri.port_u16().unwrap_or(default_port);
    Ok(Some((scheme, host, port)))
}

fn by_provider<'a>(routes: &'a RouteSet, provider: &str) -> Result<&'a Arc<Route>, ProxyError> {
    let found = routes.matcher.by_provider(provider);
    served(found, || {
        let detail = format!("no route has the provider {provider:?}");
        ProxyError::new(Code::ProviderUnknown, detail)
    })
}

fn by_connection<'a>(
    routes: &'a RouteSet,
    tenants: &Tenants,
    id: ConnectionId,
) -> Result<(&'a Arc<Route>, Option<&'a str>), ProxyError> {
    let unknown = || {
        let detail = "no route of this sidecar uses the connection";
        ProxyError::new(Code::ConnectionUnknown, detail)
    };
    let (route, tenant) = routes.matcher.by_connection(id).unzip();
    let (route, tenant) = (served(route, unknown)?, tenant.flatten());
    // Whoever guesses ids does not learn which ones other tenants have.
    if tenant.is_some_and(|tenant| !tenants.allow(routes, route, tenant)) {
        return Err(unknown());
    }
    Ok((route, tenant))
}

fn by_host<'a>(
    routes: &'a RouteSet,
    host: &str,
    port: u16,
    path: &str,
) -> Result<&'a Arc<Route>, ProxyError> {
    let host = host.to_ascii_lowercase();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    served(routes.matcher.by_host(host, port, path), || {
        let detail = "no route has this upstream host and path; the sidecar is not an open proxy";
        ProxyError::new(Code::ProviderUnknown, detail)
    })
}

fn served(
    found: Option<&Option<Arc<Route>>>,
    unknown: impl FnOnce() -> ProxyError,
) -> Result<&Arc<Route>, ProxyError> {
    found.ok_or_else(unknown)?.as_ref().ok_or_else(|| {
        let detail = "the route uses a feature that this sidecar does not know; upgrade it";
        ProxyError::new(Code::NotReady, detail)
    })
}

fn target(
    routes: &RouteSet,
    tenants: &Tenants,
    asked: &Asked<'_>,
    found: Found<'_>,
) -> Result<Target, ProxyError> {
    let Found {
        route,
        tenant: named,
        path_and_query,
        addressing,
    } = found;
    let tenant = match (asked.tenant, named) {
        (Some(header), Some(named)) if header != named => {
            return Err(bad_request(
                "X-Nexus-Tenant and the request's other address name different tenants",
            ));
        }
        (tenant, named) => tenant.or(named),
    };
    let (tenant, connection) = connection(routes, tenants, route, tenant)?;
    if asked.connection.is_some_and(|id| id != connection.id) {
        return Err(bad_request(
            "X-Nexus-Connection-ID is not the connection of this provider and tenant",
        ));
    }
    let path_and_query = match addressing {
        Addressing::Headers | Addressing::Prefix(_) => under_base_path(route, path_and_query)?,
        Addressing::Absolute(_) => path_and_query,
    };
    Ok(Target {
        route: Arc::clone(route),
        tenant,
        connection,
        path_and_query,
        addressing,
    })
}

/// What follows a `/via/` prefix; nothing is the root.
fn after_prefix(rest: &str) -> Result<PathAndQuery, ProxyError> {
    let rest = if rest.starts_with('/') {
        rest.to_owned()
    } else {
        format!("/{rest}")
    };
    PathAndQuery::try_from(rest)
        .map_err(|_| bad_request("what follows the /via/ prefix is not a path"))
}

fn under_base_path(
    route: &Route,
    path_and_query: PathAndQuery,
) -> Result<PathAndQuery, ProxyError> {
    let base_path = &route.compiled.upstream.base_path;
    if base_path.is_empty() {
        return Ok(path_and_query);
    }
    PathAndQuery::try_from(format!("{base_path}{path_and_query}"))
        .map_err(|_| bad_request("the target is not a path"))
}

fn connection(
    routes: &RouteSet,
    tenants: &Tenants,
    route: &Route,
    tenant: Option<&str>,
) -> Result<(Option<HeaderValue>, Connection), ProxyError> {
    let connections = &route.compiled.connections;
    let (name, implied) = match tenant {
        Some(tenant) => (HeaderValue::from_str(tenant).ok(), false),
        None => match connections.tenantless {
            Some(connection) => return Ok((None, connection)),
            None => (tenants.only(routes), true),
        },
    };
    let Some(tenant) = name.as_ref().and_then(|name| name.to_str().ok()) else {
        return Err(ProxyError::new(
            Code::TenantMissing,
            "the route has credentials per tenant; name one in X-Nexus-Tenant or as /via/<provider>@<tenant>",
        ));
    };
    if !implied && !tenants.allow(routes, route, tenant) {
        return Err(ProxyError::new(
            Code::TenantForbidden,
            format!("the tenant {tenant:?} is not one this sidecar may act for"),
        ));
    }
    match connections
        .by_tenant
        .get(tenant)
        .copied()
        .or(connections.any_tenant)
    {
        Some(connection) => Ok((name, connection)),
        None if implied => Err(ProxyError::new(
            Code::TenantMissing,
            "the route has no connection without a tenant; name one",
        )),
        None => Err(ProxyError::new(
            Code::ConnectionUnknown,
            format!("the route has no connection for the tenant {tenant:?}"),
        )),
    }
}

pub(super) fn bad_request(detail: impl Into<std::borrow::Cow<'static, str>>) -> ProxyError {
    ProxyError::new(Code::BadRequest, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(request: http::request::Builder) -> Parts {
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn a_via_prefix_is_split_raw() {
        let split = |path| {
            via(path).ok().flatten().map(
                |Via {
                     prefix,
                     provider,
                     tenant,
                 }| (prefix, provider, tenant),
            )
        };
        assert_eq!(
            split("/via/github/user"),
            Some(("/via/github", "github", None))
        );
        assert_eq!(split("/via/github"), Some(("/via/github", "github", None)));
        assert_eq!(
            split("/via/gh@t:1//a%2Fb"),
            Some(("/via/gh@t:1", "gh", Some("t:1")))
        );
        assert_eq!(split("/user"), None);
        for bad in [
            "/via/",
            "/via//x",
            "/via/GitHub/x",
            "/via/git%68ub/x",
            "/via/github@*/x",
            "/via/github@/x",
        ] {
            assert_eq!(via(bad).map_err(|e| e.code), Err(Code::BadRequest), "{bad}");
        }
    }

    #[test]
    fn repeated_and_listed_nexus_headers_are_refused() {
        let twice = parts(
            http::Request::get("/")
                .header("x-nexus-provider", "a")
                .header("x-nexus-provider", "b"),
        );
        assert!(asked(&twice.headers).is_err());
        for (name, value) in [
            ("x-nexus-provider", "a,b"),
            ("x-nexus-tenant", "*"),
            ("x-nexus-tenant", "a, b"),
            ("x-nexus-connection-id", "x"),
        ] {
            assert!(
                asked(&parts(http::Request::get("/").header(name, value)).headers).is_err(),
                "{name}: {value}"
            );
        }
    }

    #[test]
    fn an_absolute_target_without_a_path_is_the_root() {
        for (target, expected) in [
            ("http://h.example", "/"),
            ("http://h.example?x=1", "/?x=1"),
            ("http://h.example/", "/"),
        ] {
            let found = path_and_query(&parts(http::Request::get(target))).unwrap();
            assert_eq!(found.as_str(), expected, "{target}");
        }
        assert!(path_and_query(&parts(http::Request::options("*"))).is_err());
    }

    #[test]
    fn an_absolute_target_is_http_or_https() {
        let authority = |target| {
            let parts = parts(http::Request::get(target));
            foreign_authority(&parts)
                .map(|found| found.map(|(scheme, host, port)| format!("{scheme} {host} {port}")))
                .map_err(|error| error.code)
        };
        for (target, expected) in [
            ("/x", None),
            ("http://h.example/x", Some("http h.example 80")),
            ("HTTPS://h.example/x", Some("https h.example 443")),
            ("https://h.example:80/x", Some("https h.example 80")),
        ] {
            assert_eq!(
                authority(target),
                Ok(expected.map(str::to_owned)),
                "{target}"
            );
        }
        for target in ["ftp://h.example:80/x", "ws://h.example:443/x"] {
            assert_eq!(authority(target), Err(Code::BadRequest), "{target}");
        }
    }

    #[test]
    fn tunnels_and_traces_are_refused_with_a_reason() {
        for method in ["CONNECT", "TRACE", "TRACK", "trace", "Track"] {
            let error = refuse_method(&method.parse().unwrap()).unwrap_err();
            assert_eq!(error.code, Code::MethodNotAllowed);
            assert!(error.detail.len() > 30);
        }
    }
}
