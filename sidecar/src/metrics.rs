//! What the process counts, in the OpenMetrics text format.
//!
//! The record step, the table loader and the control-plane client count into plain atomics; `encode` is called by
//! the admin listener. Labels are route names, providers and our own enums, never a path, a tenant or a host
//! that a caller chose.

mod duration;
mod process;
mod route;

use std::fmt;
use std::sync::Arc;

use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

pub use process::{AuditEvent, ControlCall, Reading};
pub use route::{Outcome, RouteMetrics};

/// Content type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Every metric of the process.
pub struct Metrics {
    /// Requests between their head and the end of their answer.
    pub in_flight: Level,
    /// Connections from agents.
    pub agent_connections: Level,
    /// Heads that were refused before a request could be made of them.
    pub malformed_requests: Counter,
    /// Revision of the route table that serves.
    pub table_revision: Gauge,
    /// Its routes.
    pub table_routes: Gauge,
    /// Tables that were not taken.
    pub table_reload_failures: Counter,
    routes: Arc<route::Routes>,
    unrouted: Arc<RouteMetrics>,
    durations: Arc<duration::Durations>,
    process: Arc<process::Process>,
    registry: Registry,
}

impl Metrics {
    /// Metrics at zero.
    pub fn new() -> Self {
        let routes = Arc::new(route::Routes::default());
        let mut metrics = Self {
            in_flight: Level::default(),
            agent_connections: Level::default(),
            malformed_requests: Counter::default(),
            table_revision: Gauge::default(),
            table_routes: Gauge::default(),
            table_reload_failures: Counter::default(),
            unrouted: routes.handle("", ""),
            routes,
            durations: Arc::default(),
            process: Arc::default(),
            registry: Registry::with_prefix("nexus"),
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "build",
            "The version that runs",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        registry.register(
            "requests_in_flight",
            "Requests between their head and the end of their answer",
            self.in_flight.0.clone(),
        );
        registry.register(
            "agent_connections",
            "Open connections from agents",
            self.agent_connections.0.clone(),
        );
        registry.register(
            "malformed_requests",
            "Request heads refused before they could be routed",
            self.malformed_requests.clone(),
        );
        registry.register(
            "route_table_revision",
            "Revision of the route table that serves",
            self.table_revision.clone(),
        );
        registry.register(
            "route_table_routes",
            "Routes of the table that serves",
            self.table_routes.clone(),
        );
        registry.register(
            "route_table_reload_failures",
            "Route tables that could not be loaded, while the last good one went on serving",
            self.table_reload_failures.clone(),
        );
        registry.register_collector(Box::new(self.routes.clone()));
        registry.register_collector(Box::new(self.durations.clone()));
        registry.register_collector(Box::new(self.process.clone()));
    }

    /// The counters of a route, to be kept with the compiled route.
    ///
    /// The same names give the same counters, so a reloaded table goes on counting; counters that no table and no
    /// request holds any more leave the output.
    pub fn route(&self, route: &str, provider: &str) -> Arc<RouteMetrics> {
        self.routes.handle(route, provider)
    }

    /// The counters of requests that reach no route.
    pub fn unrouted(&self) -> &Arc<RouteMetrics> {
        &self.unrouted
    }

    /// Counts how long a request took, from its head to the end of its answer.
    pub fn observe_duration(&self, duration: std::time::Duration) {
        self.durations.observe(duration);
    }

    /// Counts a call to the control plane; the error is what the caller was told.
    pub fn control_call(&self, call: ControlCall, result: Result<(), crate::error::Code>) {
        self.process.control_call(call, result);
    }

    /// Counts an audit event.
    pub fn audit(&self, event: AuditEvent) {
        self.process.audit(event);
    }

    /// Takes a value from where it is kept already, each time metrics are read.
    pub fn read_from(&self, reading: Reading, source: impl Fn() -> u64 + Send + Sync + 'static) {
        self.process.read_from(reading, Box::new(source));
    }

    /// Everything in the OpenMetrics text format.
    pub fn encode(&self) -> String {
        let mut out = String::new();
        if let Err(error) = text::encode(&mut out, &self.registry) {
            // Without its end marker the text is refused by whoever reads it.
            tracing::error!(%error, "metrics cannot be encoded");
        }
        out
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// How many of something there are.
#[derive(Clone, Debug, Default)]
pub struct Level(Gauge);

impl Level {
    /// One more until the result is dropped.
    #[must_use]
    pub fn hold(&self) -> Held {
        self.0.inc();
        Held(self.0.clone())
    }

    /// How many there are now.
    pub fn get(&self) -> i64 {
        self.0.get()
    }
}

/// Counts in a [`Level`] while it lives.
#[derive(Debug)]
pub struct Held(Gauge);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The unit of durations.
const SECONDS: Unit = Unit::Seconds;

#[cfg(test)]
mod tests;
