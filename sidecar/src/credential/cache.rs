//! Credentials by connection and strategy: a key comes in, a usable credential or the one error of its flight
//! comes out. The proxy asks [`CredentialCache::cached`] first and [`CredentialCache::get`] when that is empty;
//! [`CredentialCache::replace`] when an upstream has rejected one.
//!
//! One flight per key runs at a time, as a task of its own: a caller that goes away neither causes a second call
//! nor an error for the others. Of one connection there is one call at a time, whatever the keys. A credential is
//! never handed out at or after its expiry; it is renewed ahead of it while requests go on with the valid one.

mod gate;
mod renewal;
mod slot;

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use nexus_crds::matcher::Connection;
use nexus_crds::names::ConnectionId;
use nexus_crds::strategy::StrategySpec;
use quick_cache::sync::Cache;
use tokio::sync::watch;
use zeroize::Zeroizing;

use super::Credential;
use super::client::ControlPlane;
use super::clock::{Moment, Now};
use super::refresh::RefreshSettings;
use super::status::FetchError;
use crate::error::{Code, ProxyError};
use crate::metrics::Metrics;
use gate::Gate;
use renewal::Cause;
use slot::{Entry, Gates, Settled, Slot};

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
    /// Bound of the first pause after an outage; doubles from failure to failure. 1 second.
    pub backoff: Duration,
    /// Longest bound of such a pause. 30 seconds.
    pub backoff_limit: Duration,
    /// An unknown connection that worked within this time counts as an outage. 1 hour.
    pub outage_window: Duration,
    /// When credentials are renewed and refreshed.
    pub refresh: RefreshSettings,
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
            refresh: RefreshSettings::default(),
        }
    }
}

/// Where credentials come from.
pub trait Source: Send + Sync + 'static {
    /// The payload of a connection.
    fn token(
        &self,
        id: ConnectionId,
    ) -> impl Future<Output = Result<Zeroizing<Vec<u8>>, FetchError>> + Send;

    /// Has a new credential made. `rejected` is the SHA-256 of the value that is to be replaced. What comes of it
    /// tells the next [`token`](Self::token).
    fn refresh(
        &self,
        id: ConnectionId,
        rejected: &[u8; 32],
    ) -> impl Future<Output = Result<(), FetchError>> + Send;
}

/// Is told of every refresh that a rejection caused, and what came of it.
pub type RefreshAudit = Box<dyn Fn(ConnectionId, Result<(), Code>) + Send + Sync>;

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
            key_id: connection.key_id.map(ConnectionId::as_u128),
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
pub struct CredentialCache<S = ControlPlane> {
    control: S,
    settings: CacheSettings,
    metrics: Arc<Metrics>,
    audit: RefreshAudit,
    slots: Cache<CredentialKey, Arc<Slot>>,
    /// By connection, as long as a slot has one.
    gates: Mutex<HashMap<u128, Weak<Gate>>>,
    /// Refreshes under way.
    refreshes: watch::Sender<usize>,
    stats: CacheStats,
}

impl<S: Source> CredentialCache<S> {
    /// An empty cache in front of a control plane.
    pub fn new(
        control: S,
        settings: CacheSettings,
        metrics: Arc<Metrics>,
        audit: RefreshAudit,
    ) -> Arc<Self> {
        Arc::new(Self {
            control,
            metrics,
            audit,
            slots: Cache::new(settings.capacity),
            gates: Mutex::default(),
            refreshes: watch::Sender::new(0),
            settings,
            stats: CacheStats::default(),
        })
    }

    /// A credential that can be used at `now` and need not be renewed. Allocates nothing.
    pub fn cached(&self, key: &CredentialKey, now: Moment) -> Option<Arc<Credential>> {
        let credential = self.slots.get(key)?.fresh(now)?;
        self.stats.hits.fetch_add(1, Ordering::Relaxed);
        Some(credential)
    }

    /// A usable credential, fetched if need be. While one that is still valid is renewed, that one is given out at
    /// once. All callers of one flight get its one result.
    pub async fn get(
        self: &Arc<Self>,
        key: CredentialKey,
        connection: Connection,
        strategy: Option<&Arc<StrategySpec>>,
    ) -> Result<Arc<Credential>, ProxyError> {
        let slot = self.slot(key, connection);
        match slot.enter(Moment::now()) {
            Entry::Valid(credential) => Ok(credential),
            Entry::Refused(error) => Err(error),
            Entry::Wait(result) => joined(result).await,
            Entry::Start {
                valid,
                announce,
                result,
            } => {
                self.start(key, connection, slot, strategy, Cause::Needed, announce);
                match valid {
                    Some(credential) => Ok(credential),
                    None => joined(result).await,
                }
            }
            Entry::Unchanged => Err(FetchError::Abandoned.proxy_error()),
        }
    }

    /// Another credential in place of one that an upstream has rejected, if there is one to be had: read again first,
    /// refreshed where the rules allow it. All who saw the same value rejected share what comes of it.
    ///
    /// `insufficient_scope` says that the upstream wants other rights (RFC 6750 section 3.1), which no refresh brings.
    pub async fn replace(
        self: &Arc<Self>,
        key: CredentialKey,
        connection: Connection,
        strategy: Option<&Arc<StrategySpec>>,
        rejected: &Arc<Credential>,
        insufficient_scope: bool,
    ) -> Option<Arc<Credential>> {
        let slot = self.slot(key, connection);
        let result = match slot.enter_rejected(rejected, Moment::now()) {
            Entry::Valid(credential) => return Some(credential),
            Entry::Refused(_) | Entry::Unchanged => return None,
            Entry::Wait(result) => result,
            Entry::Start {
                announce, result, ..
            } => {
                let cause = Cause::Rejected {
                    credential: Arc::clone(rejected),
                    insufficient_scope,
                };
                self.start(key, connection, slot, strategy, cause, announce);
                result
            }
        };
        let credential = joined(result).await.ok()?;
        (!credential.has_same_value(rejected)).then_some(credential)
    }

    /// Another table serves: drops every key that `keep` does not want, and what is remembered about the others'
    /// connections.
    pub fn table_changed(&self, keep: impl Fn(&CredentialKey) -> bool) {
        self.slots.retain(|key, slot| {
            slot.forget_failures();
            keep(key)
        });
    }

    /// Resolves when no refresh is under way. A process that ends in the middle of one may take the connection with it:
    /// the provider has used up the refresh token, and the broker may drop what it got for a caller that is gone.
    pub async fn refreshes_ended(&self) {
        let mut refreshes = self.refreshes.subscribe();
        // The sender is part of `self`.
        refreshes.wait_for(|under_way| *under_way == 0).await.ok();
    }

    /// Keys that are held, those of remembered failures among them.
    pub fn entries(&self) -> usize {
        self.slots.len()
    }

    /// Counters for the metrics.
    pub fn stats(&self) -> &CacheStats {
        &self.stats
    }

    fn slot(&self, key: CredentialKey, connection: Connection) -> Arc<Slot> {
        let made: Result<_, std::convert::Infallible> = self.slots.get_or_insert_with(&key, || {
            Ok(Slot::new(Gates {
                first: self.gate(connection.id),
                second: connection
                    .key_id
                    .filter(|id| *id != connection.id)
                    .map(|id| self.gate(id)),
            }))
        });
        match made {
            Ok(slot) => slot,
        }
    }

    fn gate(&self, id: ConnectionId) -> Arc<Gate> {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gate) = gates.get(&id.as_u128()).and_then(Weak::upgrade) {
            return gate;
        }
        if gates.len() >= 2 * self.settings.capacity {
            gates.retain(|_, gate| gate.strong_count() > 0);
        }
        let gate = Gate::new(id);
        gates.insert(id.as_u128(), Arc::downgrade(&gate));
        gate
    }

    /// Starts a flight as a task of its own.
    fn start(
        self: &Arc<Self>,
        key: CredentialKey,
        connection: Connection,
        slot: Arc<Slot>,
        strategy: Option<&Arc<StrategySpec>>,
        cause: Cause,
        announce: watch::Sender<Settled>,
    ) {
        self.stats.fetches.fetch_add(1, Ordering::Relaxed);
        let (cache, strategy) = (Arc::clone(self), strategy.map(Arc::clone));
        tokio::spawn(async move {
            let brought = cache.renew(&slot, strategy.as_deref(), &cause).await;
            let now = Now::read();
            let (settled, renew_at) = slot.settle(brought, &cause, &cache.settings, now);
            if let Err(error) = &settled {
                cache.stats.failures.fetch_add(1, Ordering::Relaxed);
                report(connection, error);
            }
            if let Some(at) = renew_at {
                let weak = Arc::downgrade(&cache);
                let wait = at.since(now.moment);
                let ahead = renew_ahead(weak, key, connection, strategy, wait);
                slot.set_timer(tokio::spawn(ahead).abort_handle());
            }
            // Nobody listens when every caller has gone or a valid credential was given out.
            announce.send_replace(Some(settled));
        });
    }
}

/// Renews a credential at its time although no request asks for it then, if one did since it was obtained: an agent
/// that pauses for a while finds a fresh one, and one that has gone leaves no trace at the control plane.
async fn renew_ahead<S: Source>(
    cache: Weak<CredentialCache<S>>,
    key: CredentialKey,
    connection: Connection,
    strategy: Option<Arc<StrategySpec>>,
    wait: Duration,
) {
    tokio::time::sleep(wait).await;
    let Some(cache) = cache.upgrade() else {
        return;
    };
    let Some(slot) = cache.slots.peek(&key).filter(|slot| slot.was_used()) else {
        return;
    };
    if let Entry::Start { announce, .. } = slot.enter(Moment::now()) {
        cache.start(
            key,
            connection,
            slot,
            strategy.as_ref(),
            Cause::Needed,
            announce,
        );
    }
}

async fn joined(mut result: watch::Receiver<Settled>) -> Result<Arc<Credential>, ProxyError> {
    match result.wait_for(Option::is_some).await.as_deref() {
        Ok(Some(result)) => result.clone(),
        Ok(None) | Err(_) => Err(FetchError::Abandoned.proxy_error()),
    }
}

impl<S> fmt::Debug for CredentialCache<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CredentialCache")
            .field("entries", &self.slots.len())
            .finish_non_exhaustive()
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
