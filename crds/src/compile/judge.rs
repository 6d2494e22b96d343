//! Whether an object is valid by itself, and whether its upstream is granted.

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use kube::ResourceExt;

use crate::access::Access;
use crate::compile::merge::{self, Route};
use crate::compile::{is_provider, warnings};
use crate::grants::{ClusterGrants, Grants, InlineUpstreams, Origin};
use crate::matcher::intern::Interner;
use crate::matcher::strict;
use crate::provider::NexusProvider;
use crate::status::{Kind, Problem, Reason, Verdict};

/// Knows the providers, judged, and the grants.
pub(super) struct Judge<'a> {
    providers: BTreeMap<&'a str, Provider<'a>>,
    grants: &'a Grants,
}

struct Provider<'a> {
    object: &'a NexusProvider,
    /// Where its credentials may be sent.
    origins: Result<Vec<Origin>, Problem>,
}

impl<'a> Judge<'a> {
    pub(super) fn new<P: Borrow<NexusProvider>>(providers: &'a [P], grants: &'a Grants) -> Self {
        let mut known = BTreeMap::new();
        for object in providers.iter().map(Borrow::borrow) {
            // Names are unique in a cluster; of local files the first one counts.
            known
                .entry(object.metadata.name.as_deref().unwrap_or_default())
                .or_insert_with(|| Provider {
                    object,
                    origins: judge_provider(object),
                });
        }
        Self {
            providers: known,
            grants,
        }
    }

    pub(super) fn provider(&self, name: &str) -> Option<&'a NexusProvider> {
        self.providers.get(name).map(|provider| provider.object)
    }

    /// One verdict for each provider.
    pub(super) fn provider_verdicts<P: Borrow<NexusProvider>>(
        &self,
        providers: &[P],
    ) -> Vec<Verdict> {
        let verdict = |(index, object): (usize, &NexusProvider)| {
            let name = object.name_any();
            let known = self.providers.get(name.as_str());
            let result = match known {
                Some(known) if std::ptr::eq(known.object, object) => {
                    known.origins.as_ref().map(|_| ()).map_err(Clone::clone)
                }
                Some(_) | None => Err(Problem::new(
                    Reason::InvalidValue,
                    "metadata.name",
                    format!("another NexusProvider {name:?} comes first"),
                )),
            };
            Verdict {
                kind: Kind::Provider,
                index,
                namespace: String::new(),
                name,
                result,
                warnings: warnings::provider(object),
            }
        };
        let objects = providers.iter().map(Borrow::borrow);
        objects.enumerate().map(verdict).collect()
    }

    /// Judges a merged route by itself.
    pub(super) fn route<'t>(
        &self,
        route: &'t Route,
        fields: &mut Fields<'t>,
    ) -> Result<(), Problem> {
        let provider = self.providers.get(route.table.provider.as_str());
        if let Some(Err(problem)) = provider.map(|provider| &provider.origins) {
            let message = format!(
                "NexusProvider {:?} is not valid: {problem}",
                route.table.provider
            );
            return Err(Problem::new(problem.reason, "spec.provider", message));
        }
        if let Grants::Cluster(cluster) = self.grants
            && cluster
                .unreadable_providers
                .contains(route.table.provider.as_str())
        {
            return Err(Problem::new(
                Reason::InvalidValue,
                "spec.provider",
                format!(
                    "NexusProvider {:?} cannot be read, so what it forbids is not known; an administrator would \
                     mend it",
                    route.table.provider
                ),
            ));
        }
        check_name(route)?;
        if let Some(fault) = &route.fault {
            return Err(fault.clone());
        }
        fields.judge(route)?;
        self.check_origin(route, provider)?;
        self.check_authority(route)
    }

    /// An origin is granted to be shown the credential: who may answer for it is not the route's to say.
    fn check_authority(&self, route: &Route) -> Result<(), Problem> {
        match self.grants {
            Grants::Cluster(cluster)
                if route.own_ca_bundle && cluster.inline_upstreams == InlineUpstreams::Deny =>
            {
                Err(Problem::new(
                    Reason::OriginNotGranted,
                    "spec.upstream.caBundle",
                    format!(
                        "decides who may receive the credential; an administrator would set it in NexusProvider {:?}",
                        route.table.provider
                    ),
                ))
            }
            Grants::Cluster(_) | Grants::Local => Ok(()),
        }
    }

    fn check_origin(&self, route: &Route, provider: Option<&Provider<'_>>) -> Result<(), Problem> {
        let url = route.table.upstream.url.as_deref().unwrap_or_default();
        let origin = Origin::of(url)?;
        let cluster = match self.grants {
            Grants::Local => None,
            Grants::Cluster(cluster) => Some(cluster),
        };
        if let Some(cluster) = cluster {
            check_insecure(cluster, url)?;
            if cluster.inline_upstreams == InlineUpstreams::Allow {
                return Ok(());
            }
        }
        let name = &route.table.provider;
        let refuse = |message: String| {
            Err(Problem::new(
                Reason::OriginNotGranted,
                "spec.upstream.url",
                message,
            ))
        };
        if let Some(provider) = provider {
            let origins = provider.origins.as_deref().unwrap_or_default();
            if origins.iter().any(|granted| granted.covers(&origin)) {
                return Ok(());
            }
            return refuse(format!(
                "{origin} is not among the origins of NexusProvider {name:?}; an administrator would add \
                 {origin:?} to its spec.origins",
                origin = origin.to_string()
            ));
        }
        let Some(cluster) = cluster else {
            return Ok(());
        };
        let gateway = cluster.gateway_urls.get(name).map(|url| Origin::of(url));
        match gateway {
            Some(Ok(granted)) if granted.covers(&origin) => Ok(()),
            Some(Ok(granted)) => refuse(format!(
                "the control plane has {granted} for provider {name:?}, not {origin}; an administrator would \
                 apply a NexusProvider {name:?} with spec.origins: [\"{origin}\"]"
            )),
            Some(Err(_)) | None => refuse(format!(
                "nobody granted {origin} to provider {name:?}; an administrator would apply a NexusProvider \
                 {name:?} with spec.origins: [\"{origin}\"]"
            )),
        }
    }
}

fn check_name(route: &Route) -> Result<(), Problem> {
    if route.table.name.is_empty() {
        return Err(Problem::new(
            Reason::InvalidValue,
            "metadata.name",
            "is missing",
        ));
    }
    if is_provider(&route.table.provider) {
        return Ok(());
    }
    Err(Problem::new(
        Reason::InvalidValue,
        "spec.provider",
        format!(
            "{:?} is no provider name: it must match [a-z0-9][a-z0-9._-]{{0,62}}",
            route.table.provider
        ),
    ))
}

fn check_insecure(cluster: &ClusterGrants, url: &str) -> Result<(), Problem> {
    if cluster.allow_insecure_upstreams || url.starts_with("https://") {
        return Ok(());
    }
    Err(Problem::new(
        Reason::InvalidUpstream,
        "spec.upstream.url",
        "is http://, which this cluster does not allow; an administrator would start the operator with \
         --allow-insecure-upstreams",
    ))
}

/// Judges fields by making them strict, as the reader of the table will, and builds what it builds at first use.
#[derive(Default)]
pub(super) struct Fields<'t> {
    interner: Interner<'t>,
    /// Rule sets that were built; most routes of a provider share one.
    built: HashSet<*const Access>,
}

impl<'t> Fields<'t> {
    fn judge(&mut self, route: &'t Route) -> Result<(), Problem> {
        let compiled = strict::parse(&route.namespace, &route.table, &mut self.interner)?;
        let Some(access) = &compiled.access else {
            return Ok(());
        };
        if self.built.insert(Arc::as_ptr(access)) {
            access.build().map_err(|error| {
                let field = format!("spec.access.{}", error.field);
                Problem::new(Reason::InvalidAccessRule, field, error.reason)
            })?;
        }
        Ok(())
    }
}

/// Judges a provider by itself; `Ok` are the origins it grants.
fn judge_provider(provider: &NexusProvider) -> Result<Vec<Origin>, Problem> {
    let mut route = merge::provider_alone(provider);
    let has_url = route.table.upstream.url.is_some();
    if !is_provider(&route.table.name) {
        let message = "must match [a-z0-9][a-z0-9._-]{0,62}";
        return Err(Problem::new(Reason::InvalidValue, "metadata.name", message));
    }
    if !has_url {
        // Stands for the one a route will have.
        route.table.upstream.url = Some("https://upstream.invalid".to_owned());
        route.table.upstream.protocol = None;
    }
    Fields::default().judge(&route)?;
    match (&provider.spec.origins, &route.table.upstream.url) {
        (Some(origins), _) => origins
            .iter()
            .enumerate()
            .map(|(index, origin)| {
                Origin::parse(origin).map_err(|message| {
                    let field = format!("spec.origins[{index}]");
                    Problem::new(Reason::InvalidUpstream, field, message)
                })
            })
            .collect(),
        (None, Some(url)) if has_url => Ok(vec![Origin::of(url)?]),
        (None, _) => Ok(Vec::new()),
    }
}
