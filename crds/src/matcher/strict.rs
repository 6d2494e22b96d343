//! From the words of a document to the strict types of a route.
//!
//! The compiler and the loader both call [`parse`]: what was accepted loads, since the same code judged it.

use std::sync::Arc;

use crate::matcher::intern::Interner;
use crate::matcher::{
    CompiledRoute, Connection, Connections, HeaderRules, Limits, Rate, Replay, ResponseRules,
    Timeouts, upstream, values,
};
use crate::names::{is_provider, is_tenant};
use crate::selector;
use crate::spec::{Compression, LimitsSpec, ReplaySpec, ResponseSpec, SetCookie, TimeoutsSpec};
use crate::status::{Problem, Reason};
use crate::strategy::{Strategy, StrategyError, StrategySpec};
use crate::table::{TableConnection, TableRoute};

const MAX_SIGNED_BODY: u64 = 64 * 1024 * 1024;
const MAX_REPLAY_BODY: u64 = 32 * 1024 * 1024;

/// Judges a route and makes it strict.
pub(crate) fn parse<'t>(
    namespace: &str,
    route: &'t TableRoute,
    interner: &mut Interner<'t>,
) -> Result<CompiledRoute, Problem> {
    let TableRoute {
        name,
        provider,
        requires: _,
        upstream: upstream_spec,
        connections,
        strategy,
        headers,
        access,
        limits,
        timeouts,
        replay,
        response,
        pod_selector,
        service_accounts: _,
    } = route;
    if !is_provider(provider) {
        return Err(invalid(
            "spec.provider",
            "must match [a-z0-9][a-z0-9._-]{0,62}",
        ));
    }
    if let Some(strategy) = strategy.as_deref() {
        check_strategy(strategy)?;
    }
    if let Some(pod_selector) = pod_selector.as_deref() {
        selector::check(pod_selector, "spec.podSelector")?;
    }
    let headers = match headers.as_deref() {
        Some(headers) => interner.headers(headers, values::header_rules)?,
        None => HeaderRules::default(),
    };
    let access = access
        .as_deref()
        .map(|access| interner.access(access))
        .transpose()
        .map_err(|error| {
            let field = format!("spec.access.{}", error.field);
            Problem::new(Reason::InvalidAccessRule, field, error.reason)
        })?;
    Ok(CompiledRoute {
        name: Arc::from(format!("{namespace}/{name}")),
        provider: interner.text(provider),
        upstream: interner.upstream(upstream_spec, upstream::parse)?,
        connections: parse_connections(connections, interner)?,
        strategy: strategy.as_deref().cloned(),
        headers,
        access,
        limits: parse_limits(&limits.as_deref().cloned().unwrap_or_default())?,
        timeouts: parse_timeouts(&timeouts.as_deref().cloned().unwrap_or_default())?,
        replay: parse_replay(&replay.as_deref().cloned().unwrap_or_default())?,
        response: parse_response(&response.as_deref().cloned().unwrap_or_default())?,
        not_ready: false,
    })
}

/// A route that this version cannot serve, with what is needed to say so to callers.
pub(super) fn not_ready(
    namespace: &str,
    route: &TableRoute,
    interner: &mut Interner<'_>,
) -> CompiledRoute {
    let nowhere = interner.text("");
    CompiledRoute {
        name: Arc::from(format!("{namespace}/{}", route.name)),
        provider: interner.text(&route.provider),
        upstream: super::Upstream {
            tls: true,
            host: Arc::clone(&nowhere),
            port: 0,
            authority: Arc::clone(&nowhere),
            base_path: nowhere,
            protocol: super::UpstreamProtocol::Auto,
            ca_bundle: None,
            allow_private_addresses: false,
        },
        connections: Connections::default(),
        strategy: None,
        headers: HeaderRules::default(),
        access: None,
        limits: Limits::default(),
        timeouts: Timeouts::default(),
        replay: Replay::default(),
        response: ResponseRules::default(),
        not_ready: true,
    }
}

/// A strategy of a later version is accepted; requests fail until a version that has it serves them.
fn check_strategy(spec: &StrategySpec) -> Result<(), Problem> {
    let problem =
        |field: String, message: String| Err(Problem::new(Reason::InvalidStrategy, field, message));
    match Strategy::parse(spec) {
        Ok(_) | Err(StrategyError::Unsupported(_)) => Ok(()),
        Err(error @ (StrategyError::UnknownType(_) | StrategyError::Mismatch { .. })) => {
            problem("spec.strategy.type".to_owned(), error.to_string())
        }
        Err(StrategyError::Config { field, reason }) => {
            problem(format!("spec.strategy.config.{field}"), reason)
        }
    }
}

fn parse_connections(
    entries: &[TableConnection],
    interner: &mut Interner<'_>,
) -> Result<Connections, Problem> {
    let mut connections = Connections::default();
    connections.by_tenant.reserve(entries.len());
    for (index, entry) in entries.iter().enumerate() {
        let TableConnection {
            tenant,
            id,
            key_id,
            variables: _,
        } = entry;
        let connection = Connection {
            id: *id,
            key_id: *key_id,
        };
        let taken = match tenant.as_deref() {
            None => connections.tenantless.replace(connection).is_some(),
            Some("*") => connections.any_tenant.replace(connection).is_some(),
            Some(tenant) if is_tenant(tenant) => connections
                .by_tenant
                .insert(interner.text(tenant), connection)
                .is_some(),
            Some(_) => {
                let field = format!("spec.connections[{index}].tenant");
                return Err(invalid(field, "must match [A-Za-z0-9._:-]{1,128} or be *"));
            }
        };
        if taken {
            let field = format!("spec.connections[{index}].tenant");
            let message = match tenant {
                Some(tenant) => format!("{tenant:?} has an entry already"),
                None => "a connection without tenant has an entry already".to_owned(),
            };
            return Err(Problem::new(Reason::DuplicateTenant, field, message));
        }
    }
    Ok(connections)
}

fn parse_limits(spec: &LimitsSpec) -> Result<Limits, Problem> {
    let LimitsSpec {
        max_signed_body_bytes,
        requests_per_second,
        burst,
    } = spec;
    let defaults = Limits::default();
    let max_signed_body_bytes = max_signed_body_bytes.unwrap_or(defaults.max_signed_body_bytes);
    if max_signed_body_bytes > MAX_SIGNED_BODY {
        let message = format!("must not exceed {MAX_SIGNED_BODY}");
        return Err(invalid("spec.limits.maxSignedBodyBytes", message));
    }
    let rate = match (*requests_per_second, *burst) {
        (Some(0), _) => {
            return Err(invalid(
                "spec.limits.requestsPerSecond",
                "must be at least 1",
            ));
        }
        (_, Some(0)) => return Err(invalid("spec.limits.burst", "must be at least 1")),
        (None, Some(_)) => return Err(invalid("spec.limits.burst", "needs requestsPerSecond")),
        (None, None) => None,
        (Some(per_second), burst) => Some(Rate {
            per_second,
            burst: burst.unwrap_or(per_second),
        }),
    };
    Ok(Limits {
        max_signed_body_bytes,
        rate,
    })
}

fn parse_timeouts(spec: &TimeoutsSpec) -> Result<Timeouts, Problem> {
    let TimeoutsSpec {
        connect,
        response_header,
        idle,
        request,
    } = spec;
    let defaults = Timeouts::default();
    let parse = |field: &str, text: &Option<String>, default| match text {
        None => Ok(default),
        Some(text) => values::duration(text)
            .map_err(|message| invalid(format!("spec.timeouts.{field}"), message)),
    };
    Ok(Timeouts {
        connect: parse("connect", connect, Some(defaults.connect))?
            .ok_or_else(|| invalid("spec.timeouts.connect", "must have a limit"))?,
        response_header: parse("responseHeader", response_header, defaults.response_header)?,
        idle: parse("idle", idle, defaults.idle)?,
        request: parse("request", request, defaults.request)?,
    })
}

fn parse_replay(spec: &ReplaySpec) -> Result<Replay, Problem> {
    let ReplaySpec {
        status_codes,
        max_body_bytes,
        methods,
    } = spec;
    let defaults = Replay::default();
    let on = status_codes.clone().unwrap_or(defaults.on);
    if let Some(status) = on.iter().find(|status| !(400..600).contains(*status)) {
        let message = format!("{status} is no error status (400 to 599)");
        return Err(invalid("spec.replay.statusCodes", message));
    }
    let max_body_bytes = max_body_bytes.unwrap_or(defaults.max_body_bytes);
    if max_body_bytes > MAX_REPLAY_BODY {
        let message = format!("must not exceed {MAX_REPLAY_BODY}");
        return Err(invalid("spec.replay.maxBodyBytes", message));
    }
    let methods = match methods.as_deref() {
        Some(methods) => values::methods(methods)
            .map_err(|message| invalid("spec.replay.methods", message))?
            .unwrap_or_default(),
        None => defaults.methods,
    };
    Ok(Replay {
        on,
        max_body_bytes,
        methods,
    })
}

fn parse_response(spec: &ResponseSpec) -> Result<ResponseRules, Problem> {
    let ResponseSpec {
        scrub,
        compression,
        set_cookie,
        rewrite_links,
        link_headers,
    } = spec;
    Ok(ResponseRules {
        scrub: scrub.unwrap_or_default(),
        pass_compression: compression.unwrap_or_default() == Compression::Pass,
        pass_cookies: set_cookie.unwrap_or_default() == SetCookie::Pass,
        rewrite_links: rewrite_links.unwrap_or_default(),
        link_headers: values::header_names(
            link_headers.as_deref().unwrap_or_default(),
            "spec.response.linkHeaders",
        )?,
    })
}

fn invalid(field: impl Into<String>, message: impl Into<String>) -> Problem {
    Problem::new(Reason::InvalidValue, field, message)
}
