//! Forwarding: our own pools over `hyper::client::conn`. A request goes in with an origin-form URI and a `Host`, the
//! upstream's answer comes out; `proxy` calls it once per send.
//!
//! `pool` chooses a connection (`h1`: a kept one, `h2`: one with room) or opens one through `dial` and `tls`.

pub mod address;
mod body;
mod dial;
pub mod egress;
mod error;
mod h1;
mod h2;
mod pool;
mod resolve;
mod socket;
mod stream;
mod target;
#[cfg(test)]
mod tests;
mod tls;

use std::collections::HashMap;
use std::error::Error as StdError;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use http_body::Body;
use nexus_crds::matcher::{Upstream, UpstreamProtocol};

pub use body::UpstreamBody;
pub use error::{ConnectError, SendError};
pub use pool::Pool;
pub use resolve::Resolver;
pub use tls::{BundleError, TlsError};

use self::egress::EgressProxy;

/// Rounds of the reaper a connection may stay unused; a round is this part of the idle timeout.
const IDLE_TICKS: u8 = 4;
/// Shortest round, so that no setting makes the reaper busy.
const MIN_TICK: Duration = Duration::from_millis(10);

/// What holds for every upstream.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Addresses this process listens on, as bound; never connected to.
    pub own_listeners: Vec<SocketAddr>,
    /// Host (lower case) and port of the gateway, broker or relay; never connected to.
    pub forbidden: Vec<(String, u16)>,
    /// A connection unused for this long is closed (60 s): it is, after three quarters of it at the earliest.
    pub idle_timeout: Duration,
    /// Unused HTTP/1.1 connections kept per upstream (1,024).
    pub max_idle_per_upstream: usize,
    /// The proxy to go through, if any.
    pub egress: Option<Arc<EgressProxy>>,
    /// Who knows the addresses of names (the system).
    pub resolver: Resolver,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            own_listeners: Vec::new(),
            forbidden: Vec::new(),
            idle_timeout: Duration::from_mins(1),
            max_idle_per_upstream: 1024,
            egress: None,
            resolver: Resolver::System,
        }
    }
}

impl Settings {
    fn forbids(&self, host: &str, port: u16) -> bool {
        let host = host.trim_end_matches('.');
        self.forbidden_at(port)
            .any(|(theirs, _)| theirs.trim_end_matches('.').eq_ignore_ascii_case(host))
    }

    fn forbidden_at(&self, port: u16) -> impl Iterator<Item = &(String, u16)> {
        self.forbidden
            .iter()
            .filter(move |(_, theirs)| *theirs == port)
    }
}

/// A request's body, as the pools take it.
pub trait RequestBody:
    Body<Data = Bytes, Error: Into<Box<dyn StdError + Send + Sync>>> + Send + Unpin + 'static
{
}

impl<B> RequestBody for B where
    B: Body<Data = Bytes, Error: Into<Box<dyn StdError + Send + Sync>>> + Send + Unpin + 'static
{
}

/// The pools of the process, one for each different target.
pub struct Upstreams<B: RequestBody> {
    settings: Settings,
    tls: Arc<tls::Configs>,
    pools: Mutex<HashMap<Key, Arc<Pool<B>>>>,
    reaping: AtomicBool,
}

/// What two routes must agree on to share connections. A client certificate would belong here as well.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    tls: bool,
    host: Arc<str>,
    port: u16,
    protocol: UpstreamProtocol,
    ca_bundle: Option<Arc<str>>,
    allow_private_addresses: bool,
}

impl Key {
    fn new(upstream: &Upstream) -> Self {
        let Upstream {
            tls,
            host,
            port,
            authority: _,
            base_path: _,
            protocol,
            ca_bundle,
            allow_private_addresses,
        } = upstream.clone();
        Self {
            tls,
            host,
            port,
            protocol,
            ca_bundle,
            allow_private_addresses,
        }
    }
}

impl<B: RequestBody> Upstreams<B> {
    /// No pools yet. Nothing is connected, and no certificate read, before a request needs it.
    pub fn new(settings: Settings) -> Arc<Self> {
        Arc::new(Self {
            settings,
            tls: Arc::new(tls::Configs::new()),
            pools: Mutex::default(),
            reaping: AtomicBool::new(false),
        })
    }

    /// The pool of a target, the same one for equal targets. For loading a table, not for requests.
    pub fn pool(self: &Arc<Self>, upstream: &Upstream) -> Result<Arc<Pool<B>>, TlsError> {
        let key = Key::new(upstream);
        let mut pools = self.lock();
        if let Some(pool) = pools.get(&key) {
            return Ok(Arc::clone(pool));
        }
        let pool = Pool::new(self, upstream)?;
        pools.insert(key, Arc::clone(&pool));
        Ok(pool)
    }

    /// Drops the pools nobody else holds, and with them their connections, once a new table has replaced the old.
    /// Requests under way are not disturbed.
    pub fn retain_used(&self) {
        let mut pools = self.lock();
        pools.retain(|_, pool| Arc::strong_count(pool) > 1);
        self.tls
            .retain(|bundle| pools.values().any(|pool| pool.ca_bundle() == Some(bundle)));
    }

    /// Starts the task that closes idle connections, once. It ends with the pools.
    fn start_reaper(self: &Arc<Self>) {
        if self.reaping.swap(true, Ordering::Relaxed) {
            return;
        }
        let upstreams = Arc::downgrade(self);
        let tick = (self.settings.idle_timeout / u32::from(IDLE_TICKS)).max(MIN_TICK);
        tokio::spawn(reap(upstreams, tick));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Arc<Pool<B>>>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn reap<B: RequestBody>(upstreams: Weak<Upstreams<B>>, tick: Duration) {
    loop {
        tokio::time::sleep(tick).await;
        let Some(upstreams) = upstreams.upgrade() else {
            return;
        };
        // Requests of an old table may have kept its pools alive when it was replaced.
        upstreams.retain_used();
        for pool in upstreams.lock().values() {
            pool.reap();
        }
    }
}
