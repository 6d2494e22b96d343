//! Judges a NexusRoute or NexusProvider that is about to be stored, by the compiler that will judge it afterwards.
//!
//! The object, what the cluster has beside it and the grants flow in; a refusal or warnings flow out, to `webhook`, which
//! answers with them. Refused is only what no other object can heal: what may become valid when another route goes or an
//! administrator grants something is stored with a warning, since its order of arrival is nobody's fault.

mod related;
mod warnings;

use std::sync::Arc;

use kube::ResourceExt;
use nexus_crds::compile::{Compiled, compile};
use nexus_crds::grants::{ClusterGrants, Grants, InlineUpstreams};
use nexus_crds::provider::NexusProvider;
use nexus_crds::route::NexusRoute;
use nexus_crds::status::{Kind, Problem, Verdict};

use self::related::{granting, related_to_provider, related_to_route};
use self::warnings::{Viewpoint, Warnings};

/// Stands for an upstream that a NexusProvider may still give.
const ANY_UPSTREAM: &str = "https://upstream.invalid";
/// Stands for a name that the API server has not made yet.
const ANY_NAME: &str = "unnamed";

/// What to answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// Why the object must not be stored; `None` lets it pass.
    pub refusal: Option<String>,
    /// What its author should know, most important first. Short and few enough for the API server to pass them on whole.
    pub warnings: Vec<String>,
}

/// Judges a NexusRoute. `old` is what it takes the place of; `routes` and `providers` are those of the cluster, with or
/// without it.
///
/// An update that leaves the spec alone passes, as does any of an object that is being deleted; one that leaves a fault
/// that was there before passes with a warning, so that the other fields can be changed.
pub fn route(
    route: &NexusRoute,
    old: Option<&NexusRoute>,
    routes: &[Arc<NexusRoute>],
    providers: &[Arc<NexusProvider>],
    grants: &ClusterGrants,
) -> Judgement {
    if is_settled(route, old.is_some_and(|old| old.spec == route.spec)) {
        return Judgement::default();
    }
    let route = named(route);
    let others = related_to_route(&route, old, routes);
    let providers = granting(
        providers,
        others.iter().map(AsRef::as_ref).chain([&route]).chain(old),
    );
    let cluster = Grants::Cluster(grants.clone());
    let with = |route: Option<&NexusRoute>| {
        let route = route.cloned().map(Arc::new);
        let all: Vec<_> = others.iter().cloned().chain(route).collect();
        compile(&all, &providers, &cluster)
    };
    let (before, after) = (with(old), with(Some(&route)));
    let mut warnings = Warnings::default();
    if let Some(verdict) = verdicts(&after, Kind::Route).last() {
        if let Err(problem) = &verdict.result {
            let fault = fault(&route, grants);
            let known = fault.is_some() && fault == old.and_then(|old| self::fault(old, grants));
            match fault {
                Some(fault) if !known => return refused(&fault),
                Some(_) | None => warnings.not_accepted(problem),
            }
        }
        warnings.losses(
            Viewpoint::Of(&verdict.namespace),
            &losses(&before, &after, others.len()),
        );
        warnings.compiler(&verdict.warnings);
    }
    Judgement {
        refusal: None,
        warnings: warnings.finish(),
    }
}

/// Judges a NexusProvider, see [`route()`]. Warns of the routes that are accepted now and would not be with it.
pub fn provider(
    provider: &NexusProvider,
    old: Option<&NexusProvider>,
    routes: &[Arc<NexusRoute>],
    providers: &[Arc<NexusProvider>],
    grants: &ClusterGrants,
) -> Judgement {
    if is_settled(provider, old.is_some_and(|old| old.spec == provider.spec)) {
        return Judgement::default();
    }
    let name = provider.name_any();
    let routes = related_to_provider(&name, routes);
    let mut others = granting(providers, routes.iter().map(AsRef::as_ref));
    others.retain(|other| other.name_any() != name);
    let cluster = Grants::Cluster(grants.clone());
    let with = |provider: Option<&NexusProvider>| {
        let provider = provider.cloned().map(Arc::new);
        let all: Vec<_> = others.iter().cloned().chain(provider).collect();
        compile(&routes, &all, &cluster)
    };
    let (before, after) = (with(old), with(Some(provider)));
    let mut warnings = Warnings::default();
    if let Some(verdict) = verdicts(&after, Kind::Provider).last() {
        if let Err(fault) = &verdict.result {
            let known = old.is_some()
                && verdicts(&before, Kind::Provider)
                    .last()
                    .is_some_and(|old| old.result == verdict.result);
            if !known {
                return refused(fault);
            }
            warnings.not_accepted(fault);
        }
        warnings.losses(
            Viewpoint::Administrator,
            &losses(&before, &after, routes.len()),
        );
        warnings.compiler(&verdict.warnings);
    }
    Judgement {
        refusal: None,
        warnings: warnings.finish(),
    }
}

/// Whether there is nothing to judge: whoever only changes labels or takes finalizers away must not be stopped.
fn is_settled(object: &impl ResourceExt, same_spec: bool) -> bool {
    same_spec || object.meta().deletion_timestamp.is_some()
}

fn named(route: &NexusRoute) -> NexusRoute {
    let mut route = route.clone();
    if route.metadata.name.is_none() {
        let name = route.metadata.generate_name.clone();
        route.metadata.name = Some(name.unwrap_or_else(|| ANY_NAME.to_owned()));
    }
    route
}

/// What is wrong with a route whatever else there is in the cluster.
fn fault(route: &NexusRoute, grants: &ClusterGrants) -> Option<Problem> {
    let mut route = route.clone();
    let upstream = route.spec.upstream.get_or_insert_default();
    if upstream.url.is_none() {
        upstream.url = Some(ANY_UPSTREAM.to_owned());
        // May not fit this one.
        upstream.protocol = None;
    }
    let everything = Grants::Cluster(ClusterGrants {
        inline_upstreams: InlineUpstreams::Allow,
        allow_insecure_upstreams: grants.allow_insecure_upstreams,
        ..ClusterGrants::default()
    });
    let nobody: [NexusProvider; 0] = [];
    let compiled = compile(&[route], &nobody, &everything);
    compiled.verdicts.into_iter().next()?.result.err()
}

fn refused(fault: &Problem) -> Judgement {
    Judgement {
        refusal: Some(format!("{fault} ({})", fault.reason)),
        warnings: Vec::new(),
    }
}

fn verdicts(compiled: &Compiled, kind: Kind) -> impl Iterator<Item = &Verdict> {
    let verdicts = compiled.verdicts.iter();
    verdicts.filter(move |verdict| verdict.kind == kind)
}

/// Verdicts on the first routes that were accepted before.
fn losses<'a>(
    before: &'a Compiled,
    after: &'a Compiled,
    routes: usize,
) -> Vec<(&'a Verdict, &'a Problem)> {
    let (before, after) = (verdicts(before, Kind::Route), verdicts(after, Kind::Route));
    before
        .zip(after)
        .take(routes)
        .filter(|(before, _)| before.accepted())
        .filter_map(|(_, after)| Some((after, after.result.as_ref().err()?)))
        .collect()
}

#[cfg(test)]
mod tests;
