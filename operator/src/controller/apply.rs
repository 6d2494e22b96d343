//! The ConfigMap of a namespace: written where it is not what it should be, and nothing otherwise.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::core::PartialObjectMeta;
use nexus_crds::names::ROUTES_CONFIG_MAP;
use nexus_crds::table::{Encoded, RouteTable, next_revision};

use crate::controller::fit::Fit;
use crate::controller::gather::Gathered;
use crate::controller::live::{self, Live};
use crate::controller::memory::Memory;
use crate::controller::{Context, FIELD_MANAGER, ReconcileError};
use crate::metrics::{WriteLabels, Written};

/// What to do about a ConfigMap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    /// It is as it should be.
    Keep,
    /// Write it.
    Write,
    /// Nobody needs it.
    Delete,
}

/// `wanted` are hash and format of the table; none without a route. `injected`: there are pods that may read it.
fn plan(
    live: Option<&Live>,
    wanted: Option<(&str, u32)>,
    empty: (&str, u32),
    injected: bool,
) -> Plan {
    let is = |(hash, format): (&str, u32)| {
        let exact = live.and_then(|live| live.exact.as_ref());
        exact.is_some_and(|(found, of)| found == hash && *of == format)
    };
    match wanted {
        Some(wanted) if is(wanted) => Plan::Keep,
        // One that ends waits for somebody else.
        None if live.is_none_or(|live| live.ending) => Plan::Keep,
        None if !injected => Plan::Delete,
        // A sidecar keeps its last table when the file goes; an empty one takes it away.
        None if is(empty) => Plan::Keep,
        Some(_) | None => Plan::Write,
    }
}

/// Brings the ConfigMap to what was decided.
pub(crate) async fn apply(
    gathered: &Gathered,
    fit: Option<&Fit>,
    context: &Context,
    memory: &mut Memory,
) -> Result<(), ReconcileError> {
    let empty = RouteTable::new(gathered.namespace.as_str(), Vec::new());
    // A route that cannot be read is one all the same: its namespace keeps its table.
    let wanted = match fit {
        Some(fit) => Some((fit.table.hash.as_str(), fit.format)),
        None if gathered.routes.is_empty() => None,
        None if gathered.live.is_none() => return Ok(()),
        None => Some((empty.hash.as_str(), gathered.format)),
    };
    let as_empty = (empty.hash.as_str(), gathered.format);
    let live = gathered.live.as_ref();
    match plan(live, wanted, as_empty, gathered.injected) {
        Plan::Keep => Ok(()),
        Plan::Delete => delete(gathered, context, memory).await,
        Plan::Write => {
            let table = fit.map_or_else(|| Arc::new(empty), |fit| fit.table.clone());
            write(gathered, table, context, memory).await
        }
    }
}

async fn delete(
    gathered: &Gathered,
    context: &Context,
    memory: &mut Memory,
) -> Result<(), ReconcileError> {
    let Some(live) = &gathered.live else {
        return Ok(());
    };
    let api = api(gathered, context);
    let parameters = DeleteParams::default().preconditions(Preconditions {
        resource_version: live.version.clone(),
        uid: live.uid.clone(),
    });
    match api.delete(ROUTES_CONFIG_MAP, &parameters).await {
        Ok(_) => count(context),
        Err(kube::Error::Api(status)) if status.is_not_found() => {}
        Err(source) => return Err(failed("delete", source)),
    }
    memory.config_map.written(live.version.clone(), None);
    Ok(())
}

async fn write(
    gathered: &Gathered,
    table: Arc<RouteTable>,
    context: &Context,
    memory: &mut Memory,
) -> Result<(), ReconcileError> {
    if gathered.live.as_ref().is_some_and(|live| live.immutable) {
        // Only a new one can be another one; what follows sees it gone and writes it.
        delete(gathered, context, memory).await?;
        return Err(ReconcileError::Conflict {
            what: format!("ConfigMap {ROUTES_CONFIG_MAP}, which was immutable"),
        });
    }
    let now = u64::try_from(Timestamp::now().as_millisecond()).unwrap_or_default();
    let revision = next_revision(memory.revision, now);
    let (hash, format) = (table.hash.clone(), gathered.format);
    let encoded = tokio::task::spawn_blocking(move || {
        let mut table = RouteTable::clone(&table);
        table.revision = revision;
        table.encode_as(format)
    })
    .await
    .map_err(ReconcileError::Task)?
    .map_err(ReconcileError::Table)?;

    let api = api(gathered, context);
    let over = gathered.live.as_ref().and_then(|live| live.version.clone());
    let keys = match encoded {
        Encoded::Json(_) => (true, false),
        Encoded::Gzip(_) => (false, true),
    };
    let strays = gathered.live.as_ref().map(|live| live.strays(&encoded));
    let mut manifest = live::manifest(
        &gathered.namespace,
        ROUTES_CONFIG_MAP,
        over.as_deref(),
        encoded,
    );
    if let Some(strays) = strays.filter(|strays| !strays.is_empty()) {
        // Server-side apply leaves what others own.
        let patch = Patch::Merge(strays.removal(&manifest));
        let cleared = api
            .patch(ROUTES_CONFIG_MAP, &PatchParams::default(), &patch)
            .await
            .map_err(|source| failed("clear", source))?;
        manifest.metadata.resource_version = cleared.resource_version();
        count(context);
    }
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    let written = api
        .patch(ROUTES_CONFIG_MAP, &parameters, &Patch::Apply(manifest))
        .await
        .map_err(|source| failed("write", source))?;
    count(context);
    memory.revision = Some(revision);
    let live = Live {
        version: written.resource_version(),
        uid: written.uid(),
        revision: Some(revision),
        exact: Some((hash, format)),
        foreign: live::Foreign::default(),
        keys,
        immutable: false,
        ending: false,
    };
    memory.config_map.written(over, Some(live));
    Ok(())
}

/// Answers with metadata only: we know what we sent.
fn api(gathered: &Gathered, context: &Context) -> Api<PartialObjectMeta<ConfigMap>> {
    Api::namespaced(context.client.clone(), &gathered.namespace)
}

fn failed(verb: &'static str, source: kube::Error) -> ReconcileError {
    ReconcileError::api(verb, &format!("ConfigMap {ROUTES_CONFIG_MAP}"), source)
}

fn count(context: &Context) {
    let object = Written::ConfigMap;
    context
        .metrics
        .writes
        .get_or_create(&WriteLabels { object })
        .inc();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_map_is_written_only_where_it_is_not_what_it_should_be() {
        let exact = |hash: &str, format| Live {
            version: None,
            uid: None,
            revision: None,
            exact: Some((hash.to_owned(), format)),
            foreign: live::Foreign::default(),
            keys: (true, false),
            immutable: false,
            ending: false,
        };
        let (want, empty) = (Some(("want", 2)), ("empty", 2));
        let damaged = Live {
            exact: None,
            ..exact("want", 2)
        };
        for injected in [true, false] {
            let plan = |live: Option<&Live>, wanted| plan(live, wanted, empty, injected);
            assert_eq!(plan(None, want), Plan::Write);
            assert_eq!(plan(Some(&exact("want", 2)), want), Plan::Keep);
            assert_eq!(plan(Some(&exact("want", 1)), want), Plan::Write);
            assert_eq!(plan(Some(&exact("other", 2)), want), Plan::Write);
            assert_eq!(plan(Some(&damaged), want), Plan::Write);
            assert_eq!(plan(None, None), Plan::Keep);
        }
        assert_eq!(
            plan(Some(&exact("want", 2)), None, empty, true),
            Plan::Write
        );
        assert_eq!(
            plan(Some(&exact("empty", 2)), None, empty, true),
            Plan::Keep
        );
        assert_eq!(
            plan(Some(&exact("empty", 2)), None, empty, false),
            Plan::Delete
        );
        assert_eq!(plan(Some(&damaged), None, empty, false), Plan::Delete);
        let ending = Live {
            ending: true,
            ..exact("want", 2)
        };
        assert_eq!(plan(Some(&ending), None, empty, false), Plan::Keep);
    }
}
