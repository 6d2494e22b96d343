//! Endpoints within reach of a route that make its rules worth less than they look.
//!
//! The list holds well-known APIs and shapes. It finds common oversights; what it does not name is not thereby safe.

use http::{HeaderMap, Method};

use crate::access::{Access, AccessRequest};
use crate::compile::warning;
use crate::matcher::upstream::UpstreamUrl;
use crate::status::Warning;
use crate::table::TableRoute;

/// What an endpoint does that rules cannot see or undo.
#[derive(Clone, Copy)]
enum Peril {
    /// Hands out credentials.
    Mints,
    /// Carries other calls in its body.
    Batches,
    /// Carries queries in its body.
    Graphql,
}

impl Peril {
    fn message(self) -> &'static str {
        match self {
            Self::Mints => "hands out credentials that work without the sidecar",
            Self::Batches => "carries other calls in its body, which the rules do not see",
            Self::Graphql => "carries queries in its body, which the rules do not see",
        }
    }
}

struct Endpoint {
    /// Upstream host; a leading dot means any subdomain. Empty is any host.
    host: &'static str,
    method: Method,
    /// Full path, with stand-ins for ids.
    path: &'static str,
    peril: Peril,
}

const fn endpoint(
    host: &'static str,
    method: Method,
    path: &'static str,
    peril: Peril,
) -> Endpoint {
    Endpoint {
        host,
        method,
        path,
        peril,
    }
}

/// At hosts that have them for certain.
const KNOWN: &[Endpoint] = &[
    endpoint("api.github.com", Method::POST, "/graphql", Peril::Graphql),
    endpoint(
        "api.github.com",
        Method::POST,
        "/app/installations/1/access_tokens",
        Peril::Mints,
    ),
    endpoint("api.github.com", Method::POST, "/user/keys", Peril::Mints),
    endpoint(
        "api.github.com",
        Method::POST,
        "/repos/o/r/keys",
        Peril::Mints,
    ),
    endpoint(
        "api.github.com",
        Method::POST,
        "/repos/o/r/actions/runners/registration-token",
        Peril::Mints,
    ),
    endpoint("gitlab.com", Method::POST, "/api/graphql", Peril::Graphql),
    endpoint(
        "gitlab.com",
        Method::POST,
        "/api/v4/user/personal_access_tokens",
        Peril::Mints,
    ),
    endpoint(
        "gitlab.com",
        Method::POST,
        "/api/v4/projects/1/access_tokens",
        Peril::Mints,
    ),
    endpoint(
        "api.openai.com",
        Method::POST,
        "/v1/realtime/client_secrets",
        Peril::Mints,
    ),
    endpoint(
        "api.openai.com",
        Method::POST,
        "/v1/organization/admin_api_keys",
        Peril::Mints,
    ),
    endpoint(
        "graph.microsoft.com",
        Method::POST,
        "/v1.0/$batch",
        Peril::Batches,
    ),
    endpoint(
        "graph.microsoft.com",
        Method::POST,
        "/v1.0/applications/1/addPassword",
        Peril::Mints,
    ),
    endpoint(".googleapis.com", Method::POST, "/batch", Peril::Batches),
    endpoint(
        "app.asana.com",
        Method::POST,
        "/api/1.0/batch",
        Peril::Batches,
    ),
    endpoint("api.trello.com", Method::GET, "/1/batch", Peril::Batches),
    endpoint(
        ".salesforce.com",
        Method::POST,
        "/services/data/v60.0/composite",
        Peril::Batches,
    ),
    endpoint("api.linear.app", Method::POST, "/graphql", Peril::Graphql),
    endpoint(
        "api.cloudflare.com",
        Method::POST,
        "/client/v4/graphql",
        Peril::Graphql,
    ),
    endpoint(
        "api.cloudflare.com",
        Method::POST,
        "/client/v4/user/tokens",
        Peril::Mints,
    ),
    endpoint(
        "api.zoom.us",
        Method::GET,
        "/v2/users/me/token",
        Peril::Mints,
    ),
];

/// At hosts that may have them; told only of routes whose allow rules let them through.
const COMMON: &[Endpoint] = &[
    endpoint("", Method::POST, "/graphql", Peril::Graphql),
    endpoint("", Method::POST, "/$batch", Peril::Batches),
    endpoint("", Method::POST, "/batch", Peril::Batches),
    endpoint("", Method::POST, "/composite", Peril::Batches),
];

/// Services whose action stands in `X-Amz-Target` or the body, while the path is always `/`.
const AWS_BY_PATH: [&str; 5] = ["s3", "execute-api", "lambda", "bedrock", "es"];

/// Warns of endpoints that the rules let through.
pub(super) fn endpoints(route: &TableRoute, warnings: &mut Vec<Warning>) {
    aws_bodies(route, warnings);
    let url = route.upstream.url.as_deref().unwrap_or_default();
    let Ok(url) = UpstreamUrl::parse(url) else {
        return;
    };
    let Ok(access) = route.access.as_deref().map(Access::compile).transpose() else {
        return;
    };
    let reach = Reach {
        url: &url,
        access: access.as_ref(),
    };
    let lists_allowed = route
        .access
        .as_ref()
        .is_some_and(|access| access.allow.is_some());
    let common = COMMON
        .iter()
        .filter(|_| lists_allowed)
        .filter_map(|endpoint| {
            let path = format!("{}{}", url.base_path, endpoint.path);
            reach.has(endpoint, &path).then_some((endpoint, path))
        });
    let known = KNOWN
        .iter()
        .filter(|endpoint| host_matches(endpoint.host, &url.host))
        .filter(|endpoint| reach.has(endpoint, endpoint.path))
        .map(|endpoint| (endpoint, endpoint.path.to_owned()));
    let mut told: Vec<String> = Vec::new();
    for (endpoint, path) in known.chain(common) {
        if told.contains(&path) {
            continue;
        }
        warnings.push(warning(
            "spec.access",
            format!(
                "{} {path} is within reach and {}; add a deny rule",
                endpoint.method,
                endpoint.peril.message()
            ),
        ));
        told.push(path);
    }
}

struct Reach<'a> {
    url: &'a UpstreamUrl<'a>,
    access: Option<&'a Access>,
}

impl Reach<'_> {
    fn has(&self, endpoint: &Endpoint, path: &str) -> bool {
        let under = path
            .strip_prefix(self.url.base_path)
            .is_some_and(|rest| rest.starts_with('/'));
        let headers = HeaderMap::new();
        let request = AccessRequest {
            method: &endpoint.method,
            path,
            query: None,
            headers: &headers,
        };
        under && self.access.is_none_or(|access| access.allows(&request))
    }
}

fn host_matches(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix('.') {
        Some(domain) => host
            .strip_suffix(domain)
            .is_some_and(|label| label.ends_with('.')),
        None => pattern == host,
    }
}

fn aws_bodies(route: &TableRoute, warnings: &mut Vec<Warning>) {
    let (Some(strategy), Some(access)) = (&route.strategy, &route.access) else {
        return;
    };
    let service = strategy
        .config
        .get("service")
        .and_then(|service| service.as_str());
    let by_path = service.is_some_and(|service| AWS_BY_PATH.contains(&service));
    if strategy.kind != "aws_sigv4" || by_path {
        return;
    }
    let rules = access.allow.iter().chain(&access.deny).flatten();
    let by_target = rules
        .flat_map(|rule| rule.headers.keys())
        .any(|name| name.eq_ignore_ascii_case("x-amz-target"));
    if !by_target {
        warnings.push(warning(
            "spec.access",
            "most AWS services name the action in X-Amz-Target or in the body and have one path, so rules on methods \
             and paths do not see it; add headers: {X-Amz-Target: ...} to the rules where the service has it",
        ));
    }
}
