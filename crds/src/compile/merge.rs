//! A route with what its NexusProvider fills in.
//!
//! Objects are merged field by field and a route's own fields win; lists are replaced. Two fields only ever add up,
//! since they take away rights: `access.deny` and `access.pathsIgnoreCase`.

use crate::compile::{namespace, provider_name};
use crate::provider::{NexusProvider, NexusProviderSpec};
use crate::route::{NexusRoute, NexusRouteSpec};
use crate::spec::{
    AccessMode, AccessSpec, ConnectionSpec, HeadersSpec, LimitsSpec, ReplaySpec, ResponseSpec,
    TimeoutsSpec, UpstreamSpec,
};
use crate::status::{Problem, Reason};
use crate::table::{TableConnection, TableRoute};

/// A route as it would stand in a table.
pub(super) struct Route {
    pub(super) namespace: String,
    pub(super) table: TableRoute,
    /// What a table cannot even hold.
    pub(super) fault: Option<Problem>,
    /// The route names authorities that its provider does not.
    pub(super) own_ca_bundle: bool,
}

/// Merges a route over its provider.
pub(super) fn route(route: &NexusRoute, provider: Option<&NexusProvider>) -> Route {
    let NexusRouteSpec {
        provider: _,
        upstream,
        connections,
        strategy,
        headers,
        access,
        limits,
        timeouts,
        replay,
        response,
        pod_selector,
        service_accounts,
    } = route.spec.clone();
    let defaults = provider.map(|provider| provider.spec.clone());
    let NexusProviderSpec {
        upstream: default_upstream,
        origins: _,
        strategy: default_strategy,
        headers: default_headers,
        access: default_access,
        limits: default_limits,
        timeouts: default_timeouts,
        replay: default_replay,
        response: default_response,
        sdk: _,
    } = defaults.unwrap_or_default();
    let authorities =
        |upstream: &Option<UpstreamSpec>| upstream.as_ref().and_then(|it| it.ca_bundle.clone());
    let own = authorities(&upstream);
    let own_ca_bundle = own.is_some() && own != authorities(&default_upstream);
    let table = TableRoute {
        name: route.metadata.name.clone().unwrap_or_default(),
        provider: provider_name(route).to_owned(),
        requires: Vec::new(),
        upstream: over(upstream, default_upstream, merge_upstream).unwrap_or_default(),
        connections: Vec::new(),
        strategy: strategy.or(default_strategy).map(Box::new),
        headers: over(headers, default_headers, merge_headers).map(Box::new),
        access: over(access, default_access, merge_access).map(Box::new),
        limits: over(limits, default_limits, merge_limits).map(Box::new),
        timeouts: over(timeouts, default_timeouts, merge_timeouts).map(Box::new),
        replay: over(replay, default_replay, merge_replay).map(Box::new),
        response: over(response, default_response, merge_response).map(Box::new),
        pod_selector: pod_selector.map(Box::new),
        service_accounts,
    };
    let connections = connections.iter().enumerate();
    let (connections, fault) = match connections
        .map(|(index, spec)| connection(index, spec))
        .collect()
    {
        Ok(connections) => (connections, None),
        Err(problem) => (Vec::new(), Some(problem)),
    };
    Route {
        namespace: namespace(route),
        table: TableRoute {
            connections,
            ..table
        },
        fault,
        own_ca_bundle,
    }
}

fn connection(index: usize, spec: &ConnectionSpec) -> Result<TableConnection, Problem> {
    let ConnectionSpec {
        tenant,
        connection_id,
        key_connection_id,
        variables,
    } = spec;
    let parse = |field: &str, id: &str| {
        id.parse().map_err(|_| {
            Problem::new(
                Reason::InvalidValue,
                format!("spec.connections[{index}].{field}"),
                "is not a connection id: it must be a UUID",
            )
        })
    };
    Ok(TableConnection {
        tenant: tenant.as_deref().map(Box::from),
        id: parse("connectionId", connection_id)?,
        key_id: key_connection_id
            .as_deref()
            .map(|id| parse("keyConnectionId", id))
            .transpose()?,
        variables: (!variables.is_empty()).then(|| Box::new(variables.clone())),
    })
}

/// A provider by itself, as a route that adds nothing.
pub(super) fn provider_alone(provider: &NexusProvider) -> Route {
    let name = provider.metadata.name.clone().unwrap_or_default();
    route(
        &NexusRoute::new(&name, NexusRouteSpec::default()),
        Some(provider),
    )
}

/// The first field, connections apart, in which two routes differ.
pub(super) fn difference(one: &TableRoute, other: &TableRoute) -> Option<&'static str> {
    let TableRoute {
        name: _,
        provider,
        requires,
        upstream,
        connections: _,
        strategy,
        headers,
        access,
        limits,
        timeouts,
        replay,
        response,
        pod_selector,
        service_accounts,
    } = one;
    let equal = [
        ("provider", *provider == other.provider),
        ("requirements", *requires == other.requires),
        ("upstream", *upstream == other.upstream),
        ("strategy", *strategy == other.strategy),
        ("headers", *headers == other.headers),
        ("access", *access == other.access),
        ("limits", *limits == other.limits),
        ("timeouts", *timeouts == other.timeouts),
        ("replay", *replay == other.replay),
        ("response", *response == other.response),
        ("podSelector", *pod_selector == other.pod_selector),
        (
            "serviceAccounts",
            *service_accounts == other.service_accounts,
        ),
    ];
    equal
        .into_iter()
        .find(|(_, equal)| !equal)
        .map(|(field, _)| field)
}

fn over<T>(own: Option<T>, default: Option<T>, merge: impl FnOnce(T, T) -> T) -> Option<T> {
    match (own, default) {
        (Some(own), Some(default)) => Some(merge(own, default)),
        (own, default) => own.or(default),
    }
}

fn merge_upstream(own: UpstreamSpec, default: UpstreamSpec) -> UpstreamSpec {
    let UpstreamSpec {
        url,
        protocol,
        allow_insecure,
        ca_bundle,
        allow_private_addresses,
    } = own;
    UpstreamSpec {
        url: url.or(default.url),
        protocol: protocol.or(default.protocol),
        allow_insecure: allow_insecure.or(default.allow_insecure),
        ca_bundle: ca_bundle.or(default.ca_bundle),
        allow_private_addresses: allow_private_addresses.or(default.allow_private_addresses),
    }
}

fn merge_headers(own: HeadersSpec, default: HeadersSpec) -> HeadersSpec {
    let HeadersSpec {
        set: own_set,
        remove,
        keep,
    } = own;
    // Header names have no case, so a route's `accept` takes the place of a provider's `Accept`.
    let mut set = default.set;
    set.retain(|name, _| !own_set.keys().any(|own| own.eq_ignore_ascii_case(name)));
    set.extend(own_set);
    HeadersSpec {
        set,
        remove: remove.or(default.remove),
        keep: keep.or(default.keep),
    }
}

fn merge_access(own: AccessSpec, default: AccessSpec) -> AccessSpec {
    let AccessSpec {
        mode,
        allow,
        deny,
        paths_ignore_case,
    } = own;
    // What an administrator denies stays denied, whatever a route says of its own rules.
    let binding = default.deny.as_ref().is_some_and(|deny| !deny.is_empty())
        && default.mode.unwrap_or_default() == AccessMode::Enforce;
    let mode = match mode {
        Some(AccessMode::Warn) if binding => Some(AccessMode::Enforce),
        mode => mode.or(default.mode),
    };
    // The route's come first, so that an index in a message is one that its author knows.
    let deny = over(deny, default.deny, |mut own, default| {
        own.extend(default);
        own
    });
    AccessSpec {
        mode,
        allow: allow.or(default.allow),
        deny,
        paths_ignore_case: over(paths_ignore_case, default.paths_ignore_case, |a, b| a || b),
    }
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "like its siblings, which have owned fields"
)]
fn merge_limits(own: LimitsSpec, default: LimitsSpec) -> LimitsSpec {
    let LimitsSpec {
        max_signed_body_bytes,
        requests_per_second,
        burst,
    } = own;
    LimitsSpec {
        max_signed_body_bytes: max_signed_body_bytes.or(default.max_signed_body_bytes),
        // A burst belongs to its rate: a provider's would not fit the rate of a route.
        burst: match requests_per_second {
            Some(_) => burst,
            None => burst.or(default.burst),
        },
        requests_per_second: requests_per_second.or(default.requests_per_second),
    }
}

fn merge_timeouts(own: TimeoutsSpec, default: TimeoutsSpec) -> TimeoutsSpec {
    let TimeoutsSpec {
        connect,
        response_header,
        idle,
        request,
    } = own;
    TimeoutsSpec {
        connect: connect.or(default.connect),
        response_header: response_header.or(default.response_header),
        idle: idle.or(default.idle),
        request: request.or(default.request),
    }
}

fn merge_replay(own: ReplaySpec, default: ReplaySpec) -> ReplaySpec {
    let ReplaySpec {
        status_codes,
        max_body_bytes,
        methods,
    } = own;
    ReplaySpec {
        status_codes: status_codes.or(default.status_codes),
        max_body_bytes: max_body_bytes.or(default.max_body_bytes),
        methods: methods.or(default.methods),
    }
}

fn merge_response(own: ResponseSpec, default: ResponseSpec) -> ResponseSpec {
    let ResponseSpec {
        scrub,
        compression,
        set_cookie,
        rewrite_links,
        link_headers,
    } = own;
    ResponseSpec {
        scrub: scrub.or(default.scrub),
        compression: compression.or(default.compression),
        set_cookie: set_cookie.or(default.set_cookie),
        rewrite_links: rewrite_links.or(default.rewrite_links),
        link_headers: link_headers.or(default.link_headers),
    }
}
