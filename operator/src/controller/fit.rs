//! The table that a namespace's ConfigMap has room for, in the format that its oldest sidecar reads.

use std::collections::BTreeSet;
use std::sync::Arc;

use kube::ResourceExt;
use nexus_crds::compile::{CONFIG_MAP_LIMIT, Fitted, fit};
use nexus_crds::route::NexusRoute;
use nexus_crds::table::RouteTable;

use crate::compiler::{Outcome, Snapshot};
use crate::controller::ReconcileError;

/// What is to be published.
#[derive(Debug)]
pub(crate) struct Fit {
    /// What it was made from.
    outcome: Arc<Outcome>,
    /// Format to write.
    pub(crate) format: u32,
    /// The table; its revision is not set.
    pub(crate) table: Arc<RouteTable>,
    /// Accepted routes that there is no room for.
    pub(crate) left_out: BTreeSet<String>,
}

/// Leaves out what there is no room for. `known` is the last answer, taken again where nothing changed.
pub(crate) async fn publishable(
    outcome: &Arc<Outcome>,
    snapshot: &Arc<Snapshot>,
    format: u32,
    known: Option<&Arc<Fit>>,
) -> Result<Arc<Fit>, ReconcileError> {
    let same = known.filter(|fit| Arc::ptr_eq(&fit.outcome, outcome) && fit.format == format);
    if let Some(fit) = same {
        return Ok(fit.clone());
    }
    let (outcome, snapshot) = (outcome.clone(), snapshot.clone());
    let fit = tokio::task::spawn_blocking(move || make(outcome, &snapshot, format))
        .await
        .map_err(ReconcileError::Task)??;
    Ok(Arc::new(fit))
}

fn make(outcome: Arc<Outcome>, snapshot: &Snapshot, format: u32) -> Result<Fit, ReconcileError> {
    let routes = outcome.routes.values();
    let accepted: Vec<Arc<NexusRoute>> = routes
        .filter(|(_, judged)| judged.result.is_ok())
        .map(|(route, _)| route.clone())
        .collect();
    let Fitted { table, left_out } = fit(
        (*outcome.table).clone(),
        &accepted,
        &snapshot.providers,
        &snapshot.grants,
        format,
        CONFIG_MAP_LIMIT,
    )
    .map_err(ReconcileError::Table)?;
    let table = if left_out.is_empty() {
        outcome.table.clone()
    } else {
        Arc::new(table)
    };
    let left_out = left_out.into_iter().map(|index| accepted[index].name_any());
    Ok(Fit {
        format,
        table,
        left_out: left_out.collect(),
        outcome,
    })
}
