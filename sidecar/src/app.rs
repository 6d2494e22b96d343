//! Build, then run: `build` binds every port and may fail; `run` serves, reloads and drains.

use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use arc_swap::ArcSwapOption;
use nexus_crds::table::RouteTable;
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use crate::admin::{self, Admin};
use crate::args::ServeArgs;
use crate::credential::cache::{CacheSettings, CredentialCache};
use crate::credential::client::ControlPlane;
use crate::drain;
use crate::identity::Identity;
use crate::limiter::RateLimiter;
use crate::metrics::{Metrics, Reading};
use crate::proxy::Proxy;
use crate::proxy::guard::BrowserGuard;
use crate::proxy::streams::Streams;
use crate::ready::Readiness;
use crate::record::Recorder;
use crate::record::writer::AccessWriter;
use crate::routes::reload::Reloader;
use crate::routes::watch::RouteWatch;
use crate::routes::{SharedRoutes, Tenants};
use crate::server::Server;
use crate::server::activity::Connections;
use crate::upstream::egress::EgressProxy;
use crate::upstream::{Settings as UpstreamSettings, Upstreams};

const PROXY_PORT: u16 = 8080;
const ADMIN_PORT: u16 = 9901;
/// Routes and tenants whose rates are remembered.
const LIMITED_KEYS: usize = 10_000;

/// What `run` and `dev` have in common.
pub struct Config {
    /// Listeners and logs.
    pub serve: ServeArgs,
    /// Where routes come from.
    pub routes: RouteSource,
    /// Where credentials come from.
    pub control: ControlPlane,
    /// Settings of the credential cache.
    pub cache: CacheSettings,
    /// Whom it works for, which decides about the routes.
    pub identity: Identity,
    /// Tenants that requests may name.
    pub tenants: Tenants,
    /// The proxy that upstreams are reached through.
    pub egress: Option<EgressProxy>,
}

/// Reads the routes anew at every call. Runs on a blocking thread.
pub type LoadRoutes = dyn Fn() -> anyhow::Result<Option<RouteTable>> + Send + Sync;

/// Where routes come from.
pub struct RouteSource {
    /// Reads them; `None` when there is nothing to read.
    pub load: Arc<LoadRoutes>,
    /// Says when to read them again; started before the first reading, so that no change is missed.
    pub watch: RouteWatch,
}

/// A sidecar with its ports bound.
pub struct Bound {
    server: Server,
    listeners: Vec<TcpListener>,
    admin_listener: TcpListener,
    admin: Admin,
    recorder: Arc<Recorder>,
    credentials: Arc<CredentialCache>,
    reloader: Reloader,
    drain_timeout: Duration,
    proxy_addresses: Vec<SocketAddr>,
    admin_address: SocketAddr,
}

/// Binds the ports, reads the routes and prepares everything that can fail.
pub async fn build(config: Config) -> anyhow::Result<Bound> {
    let Config {
        serve,
        routes,
        control,
        cache,
        identity,
        tenants,
        egress,
    } = config;
    let listeners = bind_proxy(&serve.listen)?;
    let admin_listener = bind_admin(serve.admin)?;
    let proxy_addresses = listeners
        .iter()
        .map(TcpListener::local_addr)
        .collect::<Result<Vec<_>, _>>()?;
    let admin_address = admin_listener.local_addr()?;

    let metrics = Arc::new(Metrics::new());
    let readiness = Arc::new(Readiness::default());
    let mut own_listeners = proxy_addresses.clone();
    own_listeners.push(admin_address);
    let upstreams = Upstreams::new(UpstreamSettings {
        own_listeners,
        forbidden: control.address().into_iter().collect(),
        egress: egress.map(Arc::new),
        ..UpstreamSettings::default()
    });
    let shared: SharedRoutes = Arc::new(ArcSwapOption::empty());
    let recorder = Arc::new(Recorder::new(
        serve.access_log,
        AccessWriter::stdout()?,
        Arc::clone(&metrics),
    ));
    let credentials = credentials(control, cache, &metrics, &recorder);
    let streams = Arc::new(Streams::default());
    let reloader = Reloader {
        source: routes,
        identity,
        shared: Arc::clone(&shared),
        upstreams,
        credentials: Arc::clone(&credentials),
        streams: Arc::clone(&streams),
        metrics: Arc::clone(&metrics),
        readiness: Arc::clone(&readiness),
        recorder: Arc::clone(&recorder),
    };
    reloader.first().await?;

    let proxy = Proxy {
        routes: shared,
        streams,
        tenants,
        credentials: Arc::clone(&credentials),
        limiter: RateLimiter::new(LIMITED_KEYS),
        started: Instant::now(),
        recorder: Arc::clone(&recorder),
        guard: BrowserGuard::new(&serve.allowed_host),
        signed: Arc::default(),
        replays: Arc::default(),
    };
    observe(&metrics, &recorder, &credentials);
    Ok(Bound {
        server: Server {
            proxy: Arc::new(proxy),
            metrics: Arc::clone(&metrics),
            connections: Connections::new(Arc::clone(&metrics)),
        },
        listeners,
        admin_listener,
        admin: Admin { metrics, readiness },
        recorder,
        credentials,
        reloader,
        drain_timeout: serve.drain_timeout,
        proxy_addresses,
        admin_address,
    })
}

fn credentials(
    control: ControlPlane,
    settings: CacheSettings,
    metrics: &Arc<Metrics>,
    recorder: &Arc<Recorder>,
) -> Arc<CredentialCache> {
    let audit = Arc::clone(recorder);
    CredentialCache::new(
        control,
        settings,
        Arc::clone(metrics),
        Box::new(move |connection, outcome| audit.forced_refresh(connection, outcome)),
    )
}

impl Bound {
    /// Addresses agents connect to.
    pub fn proxy_addresses(&self) -> &[SocketAddr] {
        &self.proxy_addresses
    }

    /// Serves until SIGTERM or SIGINT, then finishes what is in flight within the drain timeout.
    ///
    /// Prints `listening proxy=ADDR admin=ADDR` and then `banner` on standard output once it accepts.
    pub async fn run(self, banner: &str) -> anyhow::Result<()> {
        let Self {
            server,
            listeners,
            admin_listener,
            admin,
            recorder,
            credentials,
            reloader,
            drain_timeout,
            proxy_addresses,
            admin_address,
        } = self;
        let (trigger, watcher) = drain::pair();
        let mut background = JoinSet::new();
        background.spawn(Arc::clone(&server.connections).watch());
        background.spawn(reloader.follow());
        let router = admin::router(admin);
        background.spawn(async move {
            if let Err(error) = axum::serve(admin_listener, router).await {
                tracing::error!(%error, "the admin endpoint failed");
            }
        });
        for listener in listeners {
            tokio::spawn(server.clone().accept(listener, watcher.clone()));
        }
        drop((server, watcher));
        announce(&proxy_addresses, admin_address, banner)?;

        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let ended = tokio::select! {
            _ = terminate.recv() => None,
            _ = interrupt.recv() => None,
            ended = background.join_next() => ended,
        };
        if ended.is_some() {
            recorder.flush();
            // None of them ends by itself: serving on without it would hide the fault.
            anyhow::bail!("a background task ended");
        }
        tracing::info!(timeout = ?drain_timeout, "shutting down: no new connections, requests in flight finish");
        trigger.start();
        let drained = async {
            trigger.finished().await;
            credentials.refreshes_ended().await;
        };
        if tokio::time::timeout(drain_timeout, drained).await.is_err() {
            tracing::warn!(
                "requests or refreshes were still in flight at the end of --drain-timeout"
            );
        }
        recorder.flush();
        Ok(())
    }
}

/// Values that are kept elsewhere and read when the metrics are.
fn observe(metrics: &Metrics, recorder: &Arc<Recorder>, credentials: &Arc<CredentialCache>) {
    let cache = Arc::clone(credentials);
    metrics.read_from(Reading::CredentialCacheEntries, move || {
        cache.entries() as u64
    });
    let log = Arc::downgrade(recorder);
    let losses = move || {
        log.upgrade()
            .map(|recorder| recorder.losses())
            .unwrap_or_default()
    };
    let (dropped, failed) = (losses.clone(), losses.clone());
    metrics.read_from(Reading::AccessLinesDropped, move || dropped().dropped);
    metrics.read_from(Reading::AccessWritesFailed, move || failed().failed_writes);
    metrics.read_from(Reading::AccessLinesUnwritten, move || losses().unwritten);
}

fn announce(proxy: &[SocketAddr], admin: SocketAddr, banner: &str) -> anyhow::Result<()> {
    let proxy: Vec<String> = proxy.iter().map(SocketAddr::to_string).collect();
    let mut out = std::io::stdout().lock();
    writeln!(out, "listening proxy={} admin={admin}", proxy.join(","))?;
    out.write_all(banner.as_bytes())?;
    out.flush().context("standard output")
}

fn bind_proxy(listen: &[SocketAddr]) -> anyhow::Result<Vec<TcpListener>> {
    if !listen.is_empty() {
        return listen.iter().map(|address| bind(*address)).collect();
    }
    let mut listeners = vec![bind((Ipv4Addr::LOCALHOST, PROXY_PORT).into())?];
    // A machine without IPv6 has no [::1]; there the IPv4 listener is all there is to bind.
    match bind((Ipv6Addr::LOCALHOST, PROXY_PORT).into()) {
        Ok(listener) => listeners.push(listener),
        Err(error) => tracing::debug!(error = %format!("{error:#}"), "not listening on [::1]"),
    }
    Ok(listeners)
}

fn bind_admin(admin: Option<SocketAddr>) -> anyhow::Result<TcpListener> {
    match admin {
        Some(address) => bind(address),
        None => bind((Ipv6Addr::UNSPECIFIED, ADMIN_PORT).into())
            .or_else(|_| bind((Ipv4Addr::UNSPECIFIED, ADMIN_PORT).into())),
    }
}

fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listen = || {
        let socket = if address.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            TcpSocket::new_v6()?
        };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(4096)
    };
    listen().with_context(|| format!("cannot listen on {address}; is something else there? Choose another with --listen or --admin"))
}
