//! Credentials by connection and strategy: a key comes in, a usable credential or the one error of its fetch
//! comes out. The proxy asks [`CredentialCache::cached`] first and [`CredentialCache::get`] when that is empty.
//!
//! One fetch per key runs at a time, as a task of its own: a caller that goes away neither causes a second call
//! nor an error for the others. A credential is never handed out at or after its expiry.

mod slot;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{Context, SHA256};
use nexus_crds::matcher::Connection;
use nexus_crds::strategy::StrategySpec;
use quick_cache::sync::Cache;

use super::Credential;
use super::client::ControlPlane;
use super::status::FetchError;
use crate::error::{Code, ProxyError};
use crate::metrics::{ControlCall, Metrics};
use slot::{Entry, Slot};

/// Sizes and times of the cache.
#[derive(Clone, Debug)]
pub struct CacheSettings {
    /// Keys kept; beyond it the least used go. 10,000 by default.
    pub capacity: usize,
    /// A credential without an expiry is read again after this, so that a rotation is noticed. 5 minutes.
    pub max_age: Duration,
    /// How long a definite failure is remembered. 5 seconds.
    pub negative: Duration,
    /// The same where a person has to act. 30 seconds.
    pub attention: Duration,
    /// First pause after an outage; doubles from failure to failure, with jitter. 1 second.
    pub backoff: Duration,
    /// Longest pause after an outage. 30 seconds.
    pub backoff_limit: Duration,
    /// An unknown connection that worked within this time counts as an outage. 1 hour.
    pub outage_window: Duration,
}

impl Default for CacheSettings {
    fn default() -> Self {
        Self {
            capacity: 10_000,
            max_age: Duration::from_mins(5),
            negative: Duration::from_secs(5),
            attention: Duration::from_secs(30),
            backoff: Duration::from_secs(1),
            backoff_limit: Duration::from_secs(30),
            outage_window: Duration::from_hours(1),
        }
    }
}

/// What a cached credential is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CredentialKey {
    /// The connection.
    pub id: u128,
    /// The second connection, if there is one.
    pub key_id: Option<u128>,
    /// [`strategy_digest`] of the route's strategy.
    pub strategy: u128,
}

impl CredentialKey {
    /// The key of a connection under a route's strategy, given by its [digest](strategy_digest).
    pub fn new(connection: Connection, strategy: u128) -> Self {
        Self {
            id: connection.id.as_u128(),
            key_id: connection
                .key_id
                .map(nexus_crds::names::ConnectionId::as_u128),
            strategy,
        }
    }
}

/// A digest of a strategy that is stable across processes: the first half of SHA-256 over its type and its
/// settings sorted by name. Zero stands for no strategy.
pub fn strategy_digest(strategy: Option<&StrategySpec>) -> u128 {
    let Some(StrategySpec { kind, config }) = strategy else {
        return 0;
    };
    let mut settings: Vec<_> = config.iter().collect();
    settings.sort_by_key(|(name, _)| *name);
    let mut context = Context::new(&SHA256);
    let mut part = |text: &str| {
        // Lengths keep one part from running into the next.
        context.update(&(text.len() as u64).to_le_bytes());
        context.update(text.as_bytes());
    };
    part(kind);
    for (name, value) in settings {
        part(name);
        part(&value.to_string());
    }
    let digest = context.finish();
    digest
        .as_ref()
        .first_chunk()
        .map_or(0, |half| u128::from_be_bytes(*half))
}

/// Counters for the metrics; all only grow.
#[derive(Debug, Default)]
pub struct CacheStats {
    hits: AtomicU64,
    fetches: AtomicU64,
    failures: AtomicU64,
}

impl CacheStats {
    /// Look-ups answered at once.
    pub fn hits(&self) -> u64 {
        self.hits.load(Ordering::Relaxed)
    }

    /// Fetches begun. One of a connection with a second one makes two calls.
    pub fn fetches(&self) -> u64 {
        self.fetches.load(Ordering::Relaxed)
    }

    /// Fetches that brought no usable credential.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }
}

/// The cache.
#[derive(Debug)]
pub struct CredentialCache {
    control: Arc<ControlPlane>,
    settings: CacheSettings,
    metrics: Arc<Metrics>,
    slots: Cache<CredentialKey, Arc<Slot>>,
    stats: CacheStats,
}

impl CredentialCache {
    /// An empty cache in front of a control plane.
    pub fn new(
        control: Arc<ControlPlane>,
        settings: CacheSettings,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        Arc::new(Self {
            control,
            metrics,
            slots: Cache::new(settings.capacity),
            settings,
            stats: CacheStats::default(),
        })
    }

    /// A credential that can be used at `now` and needs no reading again. Allocates nothing.
    pub fn cached(&self, key: &CredentialKey, now: SystemTime) -> Option<Arc<Credential>> {
        let credential = self.slots.get(key)?.fresh(now)?;
        self.stats.hits.fetch_add(1, Ordering::Relaxed);
        Some(credential)
    }

    /// A usable credential, fetched if need be. While one that is still valid is read again, that one is given
    /// out at once. All callers of one fetch get its one result.
    pub async fn get(
        self: &Arc<Self>,
        key: CredentialKey,
        connection: Connection,
        strategy: Option<&Arc<StrategySpec>>,
    ) -> Result<Arc<Credential>, ProxyError> {
        let slot = self.slot(key);
        let mut result = match slot.enter(SystemTime::now())? {
            Entry::Valid(credential) => return Ok(credential),
            Entry::Wait(result) => result,
            Entry::Fetch {
                valid,
                announce,
                result,
            } => {
                self.stats.fetches.fetch_add(1, Ordering::Relaxed);
                let (cache, slot) = (Arc::clone(self), Arc::clone(&slot));
                let strategy = strategy.map(Arc::clone);
                tokio::spawn(async move {
                    let fetched = cache.fetch(connection, strategy.as_deref()).await;
                    let settled = cache.settle(&slot, connection, fetched);
                    // Nobody listens when every caller has gone or a valid credential was given out.
                    announce.send_replace(Some(settled));
                });
                if let Some(credential) = valid {
                    return Ok(credential);
                }
                result
            }
        };
        match result.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(result)) => result.clone(),
            Ok(None) | Err(_) => Err(FetchError::Abandoned.proxy_error()),
        }
    }

    /// Drops every key, its remembered failure included, that `keep` does not want.
    pub fn retain(&self, keep: impl Fn(&CredentialKey) -> bool) {
        self.slots.retain(|key, _| keep(key));
    }

    /// Keys that are held, those of remembered failures among them.
    pub fn entries(&self) -> usize {
        self.slots.len()
    }

    /// Counters for the metrics.
    pub fn stats(&self) -> &CacheStats {
        &self.stats
    }

    fn slot(&self, key: CredentialKey) -> Arc<Slot> {
        let made: Result<_, std::convert::Infallible> =
            self.slots.get_or_insert_with(&key, || Ok(Arc::default()));
        match made {
            Ok(slot) => slot,
        }
    }

    async fn fetch(
        &self,
        connection: Connection,
        strategy: Option<&StrategySpec>,
    ) -> Result<Credential, FetchError> {
        let Connection { id, key_id } = connection;
        let (payload, key_payload) = match key_id {
            None => (self.control.token(id).await?, None),
            Some(key_id) => {
                let (payload, key_payload) =
                    tokio::try_join!(self.control.token(id), self.control.token(key_id))?;
                (payload, Some(key_payload))
            }
        };
        let key_payload = key_payload.as_ref().map(|payload| payload.as_slice());
        Credential::parse_merged(&payload, key_payload, strategy, SystemTime::now())
            .map_err(FetchError::Payload)
    }

    fn settle(
        &self,
        slot: &Slot,
        connection: Connection,
        fetched: Result<Credential, FetchError>,
    ) -> Result<Arc<Credential>, ProxyError> {
        let settled = slot.settle(fetched, &self.settings, SystemTime::now());
        let outcome = settled.as_ref().map(|_| ()).map_err(|error| error.code);
        self.metrics.control_call(ControlCall::Get, outcome);
        if let Err(error) = &settled {
            self.stats.failures.fetch_add(1, Ordering::Relaxed);
            report(connection, error);
        }
        settled
    }
}

/// The one log line of a failed fetch. Being refused needs a person, so it is louder.
fn report(connection: Connection, error: &ProxyError) {
    let connection = connection.id;
    let code = error.code.class().code;
    let cause = error.internal.as_deref().unwrap_or_default();
    if error.code == Code::BrokerRejected {
        tracing::error!(%connection, code, cause, "the control plane refuses this sidecar");
    } else {
        tracing::warn!(%connection, code, cause, "no credential from the control plane");
    }
}

#[cfg(test)]
mod tests;
