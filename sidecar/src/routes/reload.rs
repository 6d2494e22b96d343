//! Reads the routes at start and whenever they change: validate, then swap; a table that cannot be used leaves
//! the last good one serving and is reported in the log, in `/readyz` and in the metrics.

use std::collections::HashSet;
use std::sync::Arc;

use anyhow::Context;
use jiff::Timestamp;
use nexus_crds::table::{RouteTable, next_revision};

use crate::app::RouteSource;
use crate::credential::cache::{CredentialCache, CredentialKey};
use crate::metrics::Metrics;
use crate::proxy::body::RequestBody;
use crate::ready::Readiness;
use crate::record::Recorder;
use crate::routes::{RouteSet, SharedRoutes};
use crate::upstream::Upstreams;

/// Keeps the shared routes up to date.
pub struct Reloader {
    /// Where they come from.
    pub source: RouteSource,
    /// Where they go.
    pub shared: SharedRoutes,
    /// Pools for their upstreams.
    pub upstreams: Arc<Upstreams<RequestBody>>,
    /// Credentials to drop with the connections that leave.
    pub credentials: Arc<CredentialCache>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// What `/readyz` shows.
    pub readiness: Arc<Readiness>,
    /// Table changes are audit events.
    pub recorder: Arc<Recorder>,
}

impl Reloader {
    /// Reads the routes for the first time; what is wrong with them is an error here.
    pub async fn first(&self) -> anyhow::Result<()> {
        if let Some(table) = self.read().await? {
            self.swap(&table)?;
        } else {
            tracing::warn!(
                "there are no routes yet; requests are answered with not_ready until they come"
            );
        }
        self.readiness.update(|state| state.ready = true);
        Ok(())
    }

    /// Follows the changes for as long as the process lives.
    pub async fn follow(mut self) {
        while self.source.watch.changed().await.is_ok() {
            if let Err(error) = self.reload().await {
                let error = format!("{error:#}");
                tracing::error!(%error, "the changed routes cannot be used; the last good ones serve on");
                self.metrics.table_reload_failures.inc();
                self.readiness
                    .update(|state| state.last_error = Some(error));
            }
        }
    }

    async fn reload(&self) -> anyhow::Result<()> {
        // A file that is gone says nothing: the last good routes serve on. To serve nothing, write an empty table.
        let Some(table) = self.read().await? else {
            return Ok(());
        };
        if let Some(current) = self.shared.load().as_ref() {
            if table.hash == current.hash {
                self.readiness.update(|state| state.last_error = None);
                return Ok(());
            }
            anyhow::ensure!(
                table.revision >= current.revision,
                "the table's revision {} is older than the one that serves, {}",
                table.revision,
                current.revision
            );
        }
        self.swap(&table)
    }

    async fn read(&self) -> anyhow::Result<Option<RouteTable>> {
        let load = Arc::clone(&self.source.load);
        let mut table = tokio::task::spawn_blocking(move || load())
            .await
            .context("reading the routes")??;
        if let Some(table) = table.as_mut().filter(|table| table.revision == 0) {
            // Compiled here, from manifests: nobody else has numbered it.
            let now = Timestamp::now().as_millisecond().unsigned_abs();
            let previous = self.shared.load().as_ref().map(|routes| routes.revision);
            table.revision = next_revision(previous, now);
        }
        Ok(table)
    }

    fn swap(&self, table: &RouteTable) -> anyhow::Result<()> {
        let routes = Arc::new(RouteSet::load(table, &self.upstreams, &self.metrics)?);
        let keys: HashSet<CredentialKey> = routes.credential_keys().collect();
        let (revision, hash, count) = (
            routes.revision,
            routes.hash.clone(),
            routes.matcher.routes().len(),
        );
        let changed = self.shared.swap(Some(routes)).is_some();
        self.credentials.retain(|key| keys.contains(key));
        self.upstreams.retain_used();
        self.metrics
            .table_revision
            .set(i64::try_from(revision).unwrap_or(i64::MAX));
        self.metrics
            .table_routes
            .set(i64::try_from(count).unwrap_or(i64::MAX));
        if changed {
            self.recorder.table_changed(revision, &hash, count);
        }
        tracing::info!(revision, hash, routes = count, "routes loaded");
        self.readiness.update(|state| {
            state.revision = Some(revision);
            state.hash = Some(hash);
            state.routes = count;
            state.last_error = None;
        });
        Ok(())
    }
}
