//! What is allowed and probably not meant.

mod reach;

use crate::compile::merge::{self, Route};
use crate::compile::warning;
use crate::grants::Grants;
use crate::matcher::Scrub;
use crate::provider::NexusProvider;
use crate::spec::AccessMode;
use crate::status::Warning;
use crate::strategy::{Strategy, StrategyError};
use crate::table::{TableConnection, TableRoute};

/// Warnings for a route, its provider's fields included.
pub(super) fn route(route: &Route, grants: &Grants) -> Vec<Warning> {
    let mut warnings = Vec::new();
    connections(&route.table, route.fault.is_some(), &mut warnings);
    shared(&route.table, &mut warnings);
    reach::endpoints(&route.table, &mut warnings);
    no_effect_yet(&route.table, grants, &mut warnings);
    warnings
}

/// Warnings for a provider by itself.
pub(super) fn provider(provider: &NexusProvider) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let route = merge::provider_alone(provider);
    shared(&route.table, &mut warnings);
    no_effect_yet(&route.table, &Grants::Local, &mut warnings);
    if provider.spec.sdk.is_some() {
        warnings.push(later("spec.sdk"));
    }
    let url = provider.spec.upstream.as_ref().and_then(|u| u.url.as_ref());
    if url.is_none() && provider.spec.origins.is_none() {
        warnings.push(warning(
            "spec.origins",
            "neither origins nor upstream.url are set, so no route of this provider will be accepted",
        ));
    }
    warnings
}

fn connections(route: &TableRoute, faulty: bool, warnings: &mut Vec<Warning>) {
    if route.connections.is_empty() && !faulty {
        warnings.push(warning(
            "spec.connections",
            "is empty, so no request finds a credential; add {connectionId: ...}, with a tenant where you have several",
        ));
    }
    let any = |connection: &TableConnection| connection.tenant.as_deref() == Some("*");
    if let Some(index) = route.connections.iter().position(any)
        && route.access.is_none()
    {
        warnings.push(warning(
            format!("spec.connections[{index}].tenant"),
            "every tenant shares this connection and no access rules limit what it is used for; add spec.access",
        ));
    }
}

/// What can be said of a route and of a provider.
fn shared(route: &TableRoute, warnings: &mut Vec<Warning>) {
    if let Some(access) = route.access.as_deref() {
        let denies = access.deny.as_ref().is_some_and(|deny| !deny.is_empty());
        if denies && access.allow.is_none() {
            warnings.push(warning(
                "spec.access.deny",
                "without allow rules, whatever no deny rule names is allowed, new endpoints and aliases included; \
                 prefer to list what the agent needs",
            ));
        }
        if access.mode == Some(AccessMode::Warn) {
            warnings.push(warning(
                "spec.access.mode",
                "rules only count and log what they would refuse; set Enforce once the log is quiet",
            ));
        }
    }
    if route.response.as_ref().and_then(|response| response.scrub) == Some(Scrub::Off) {
        warnings.push(warning(
            "spec.response.scrub",
            "a credential that the upstream repeats reaches the agent; use Redact or Block",
        ));
    }
    if let Some(url) = route.upstream.url.as_deref()
        && url.starts_with("http://")
        && !is_loopback(url)
    {
        warnings.push(warning(
            "spec.upstream.url",
            "the credential travels unencrypted to this upstream",
        ));
    }
    unknown_settings(route, warnings);
}

fn is_loopback(url: &str) -> bool {
    use crate::matcher::upstream::UpstreamUrl;
    UpstreamUrl::parse(url).is_ok_and(|url| {
        url.host == "localhost"
            || url.host.ends_with(".localhost")
            || url
                .host
                .parse::<std::net::IpAddr>()
                .is_ok_and(|address| address.is_loopback())
    })
}

fn unknown_settings(route: &TableRoute, warnings: &mut Vec<Warning>) {
    let Some(strategy) = route.strategy.as_deref() else {
        return;
    };
    let Some(known) = crate::strategy::settings(&strategy.kind) else {
        return;
    };
    for key in strategy.config.keys() {
        if !known.contains(&key.as_str()) {
            let known = if known.is_empty() {
                "none".to_owned()
            } else {
                known.join(", ")
            };
            warnings.push(warning(
                format!("spec.strategy.config.{key}"),
                format!("is no setting of {}, which has {known}", strategy.kind),
            ));
        }
    }
}

/// Fields that are parsed and judged and whose behaviour a later version brings.
fn no_effect_yet(route: &TableRoute, grants: &Grants, warnings: &mut Vec<Warning>) {
    if let Some(strategy) = route.strategy.as_deref()
        && let Err(StrategyError::Unsupported(kind)) = Strategy::parse(strategy)
    {
        warnings.push(warning(
            "spec.strategy.type",
            format!("{kind} comes with a later version; until then requests fail with credential_invalid"),
        ));
    }
    selectors(route, grants, warnings);
    for (index, connection) in route.connections.iter().enumerate() {
        if connection.variables.is_some() {
            warnings.push(later(format!("spec.connections[{index}].variables")));
            break;
        }
    }
}

fn selectors(route: &TableRoute, grants: &Grants, warnings: &mut Vec<Warning>) {
    for (set, field) in [
        (route.pod_selector.is_some(), "spec.podSelector"),
        (!route.service_accounts.is_empty(), "spec.serviceAccounts"),
    ] {
        if set && matches!(grants, Grants::Local) {
            warnings.push(warning(
                field,
                "has no effect outside a pod (run without --admitted): the route is for every caller",
            ));
        }
    }
}

fn later(field: impl Into<String>) -> Warning {
    warning(field, "has no effect yet; it comes with a later version")
}
