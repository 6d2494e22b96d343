//! Reads the routes at start and whenever they change: validate, then swap; a table that cannot be used leaves
//! the last good one serving and is reported in the log, in `/readyz` and in the metrics.

use std::collections::HashSet;
use std::sync::Arc;

use anyhow::Context;
use jiff::Timestamp;
use nexus_crds::table::{RouteTable, next_revision};

use crate::app::RouteSource;
use crate::credential::cache::{CredentialCache, CredentialKey};
use crate::identity::Identity;
use crate::metrics::Metrics;
use crate::proxy::body::RequestBody;
use crate::proxy::streams::Streams;
use crate::ready::Readiness;
use crate::record::Recorder;
use crate::routes::{RouteSet, SharedRoutes};
use crate::upstream::Upstreams;

/// Revision of a table that was compiled here, from manifests: nobody else has numbered it.
const UNNUMBERED: u64 = 0;

/// Keeps the shared routes up to date.
pub struct Reloader {
    /// Where they come from.
    pub source: RouteSource,
    /// Whom they are for.
    pub identity: Identity,
    /// Where they go.
    pub shared: SharedRoutes,
    /// Pools for their upstreams.
    pub upstreams: Arc<Upstreams<RequestBody>>,
    /// Credentials to drop with the connections that leave.
    pub credentials: Arc<CredentialCache>,
    /// Answers to end with the routes that leave.
    pub streams: Arc<Streams>,
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
            self.swap(table)?;
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
        if let Some(current) = self.shared.load().as_ref()
            && !is_news(&table, current.revision, &current.hash)?
        {
            self.readiness.update(|state| state.last_error = None);
            return Ok(());
        }
        self.swap(table)
    }

    async fn read(&self) -> anyhow::Result<Option<RouteTable>> {
        let load = Arc::clone(&self.source.load);
        tokio::task::spawn_blocking(move || load())
            .await
            .context("reading the routes")?
    }

    fn swap(&self, mut table: RouteTable) -> anyhow::Result<()> {
        if table.revision == UNNUMBERED {
            let now = Timestamp::now().as_millisecond().unsigned_abs();
            let previous = self.shared.load().as_ref().map(|routes| routes.revision);
            table.revision = next_revision(previous, now);
        }
        self.identity.narrow(&mut table);
        let routes = Arc::new(RouteSet::load(&table, &self.upstreams, &self.metrics)?);
        let keys: HashSet<CredentialKey> = routes.credential_keys().collect();
        let (revision, hash, count) = (
            routes.revision,
            routes.hash.clone(),
            routes.matcher.routes().len(),
        );
        let changed = self.shared.swap(Some(Arc::clone(&routes))).is_some();
        self.streams.end_unserved(&routes);
        self.credentials.table_changed(|key| keys.contains(key));
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

/// Whether a table is to replace the one that serves. Equal content under a higher revision is: what is between the two
/// must not be taken for news later.
fn is_news(table: &RouteTable, revision: u64, hash: &str) -> anyhow::Result<bool> {
    let same = table.hash == hash;
    anyhow::ensure!(
        same || table.revision == UNNUMBERED || table.revision >= revision,
        "the table's revision {} is older than the one that serves, {revision}",
        table.revision,
    );
    Ok(!same || table.revision > revision)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn news(revision: u64, hash: &str) -> Option<bool> {
        let table: RouteTable = serde_json::from_value(serde_json::json!({
            "format": 1, "minReader": 1, "revision": revision, "hash": hash, "namespace": "n",
        }))
        .unwrap();
        is_news(&table, 5, "a").ok()
    }

    #[test]
    fn other_content_is_news_unless_it_is_older() {
        assert_eq!(news(6, "b"), Some(true));
        assert_eq!(news(5, "b"), Some(true));
        assert_eq!(news(4, "b"), None);
        assert_eq!(news(UNNUMBERED, "b"), Some(true));
    }

    #[test]
    fn equal_content_is_news_only_under_a_higher_revision() {
        assert_eq!(news(6, "a"), Some(true));
        assert_eq!(news(5, "a"), Some(false));
        assert_eq!(news(4, "a"), Some(false));
        assert_eq!(news(UNNUMBERED, "a"), Some(false));
    }
}
