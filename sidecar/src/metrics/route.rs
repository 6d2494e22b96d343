//! Counters per route, found once when a table is loaded.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use http::StatusCode;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

use crate::error::Code;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The upstream's answer was passed on.
    Upstream(StatusCode),
    /// The sidecar answered.
    Error(Code),
    /// The agent was gone before there was an answer.
    Cancelled,
}

/// Labels of the outcomes that are not codes, by index.
const CLASSES: [&str; 7] = ["other", "1xx", "2xx", "3xx", "4xx", "5xx", "cancelled"];
const CANCELLED: usize = CLASSES.len() - 1;

impl Outcome {
    const COUNT: usize = CLASSES.len() + Code::ALL.len();

    fn index(self) -> usize {
        match self {
            Self::Upstream(status) => match usize::from(status.as_u16() / 100) {
                class @ 1..=5 => class,
                _ => 0,
            },
            Self::Cancelled => CANCELLED,
            Self::Error(code) => CLASSES.len() + code as usize,
        }
    }

    /// The value of the `outcome` label: a status class, `cancelled` or a code of `X-Nexus-Error`.
    pub fn label(self) -> &'static str {
        label(self.index())
    }
}

fn label(index: usize) -> &'static str {
    CLASSES.get(index).copied().unwrap_or_else(|| {
        Code::ALL
            .get(index - CLASSES.len())
            .map_or("other", |code| code.class().code)
    })
}

/// The counters of one route; counting is one atomic addition.
pub struct RouteMetrics {
    route: Box<str>,
    provider: Box<str>,
    outcomes: [AtomicU64; Outcome::COUNT],
    scrub_hits: AtomicU64,
    access_warnings: AtomicU64,
    replays: AtomicU64,
    reconnects: AtomicU64,
}

impl RouteMetrics {
    fn new(route: &str, provider: &str) -> Self {
        Self {
            route: route.into(),
            provider: provider.into(),
            outcomes: std::array::from_fn(|_| AtomicU64::new(0)),
            scrub_hits: AtomicU64::new(0),
            access_warnings: AtomicU64::new(0),
            replays: AtomicU64::new(0),
            reconnects: AtomicU64::new(0),
        }
    }

    /// Counts a finished request.
    pub fn record(&self, outcome: Outcome) {
        self.outcomes[outcome.index()].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts places where an answer held a secret.
    pub fn add_scrub_hits(&self, hits: u64) {
        self.scrub_hits.fetch_add(hits, Ordering::Relaxed);
    }

    /// Counts a request that goes out again with another credential.
    pub fn add_replay(&self) {
        self.replays.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a request that goes out again over another connection.
    pub fn add_reconnect(&self) {
        self.reconnects.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a request that access rules in `Warn` mode would have refused.
    pub fn add_access_warning(&self) {
        self.access_warnings.fetch_add(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for RouteMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RouteMetrics")
            .field("route", &self.route)
            .field("provider", &self.provider)
            .finish_non_exhaustive()
    }
}

/// The counters of every route, locked only to load a table and to read metrics.
#[derive(Debug, Default)]
pub(super) struct Routes(Mutex<BTreeMap<Names, Arc<RouteMetrics>>>);

/// Route and provider.
type Names = (Box<str>, Box<str>);

impl Routes {
    pub(super) fn handle(&self, route: &str, provider: &str) -> Arc<RouteMetrics> {
        let mut routes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        routes
            .entry((route.into(), provider.into()))
            .or_insert_with(|| Arc::new(RouteMetrics::new(route, provider)))
            .clone()
    }

    /// What is counted, and a last time what nobody counts into any more.
    fn take(&self) -> Vec<Arc<RouteMetrics>> {
        let mut routes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all = routes.values().cloned().collect();
        // Two owners: the map and the copy above.
        routes.retain(|_, route| Arc::strong_count(route) > 2);
        all
    }
}

impl Collector for Routes {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let routes = self.take();
        let mut metric = encoder.encode_descriptor(
            "requests",
            "Finished requests by status class of the upstream's answer or by code of the sidecar's own.",
            None,
            MetricType::Counter,
        )?;
        for route in &routes {
            for (index, count) in route.outcomes.iter().enumerate() {
                let labels = [
                    ("route", &*route.route),
                    ("provider", &*route.provider),
                    ("outcome", label(index)),
                ];
                encode_used(&mut metric, &labels, count)?;
            }
        }
        encode_each(
            &mut encoder,
            "scrub_hits",
            "Places in upstream answers where a secret was masked.",
            &routes,
            |route| &route.scrub_hits,
        )?;
        encode_each(
            &mut encoder,
            "access_rule_warnings",
            "Requests that access rules in Warn mode let through and would refuse in Enforce mode.",
            &routes,
            |route| &route.access_warnings,
        )?;
        encode_each(
            &mut encoder,
            "request_replays",
            "Requests sent again with another credential after the upstream rejected the first.",
            &routes,
            |route| &route.replays,
        )?;
        encode_each(
            &mut encoder,
            "request_reconnects",
            "Requests sent again after a connection that had been in use ended without an answer.",
            &routes,
            |route| &route.reconnects,
        )
    }
}

fn encode_each(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    routes: &[Arc<RouteMetrics>],
    counter: impl Fn(&RouteMetrics) -> &AtomicU64,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for route in routes {
        let labels = [("route", &*route.route), ("provider", &*route.provider)];
        encode_used(&mut metric, &labels, counter(route))?;
    }
    Ok(())
}

/// Encodes a counter unless it is zero: ten thousand routes times thirty outcomes are mostly zeros.
pub(super) fn encode_used<const N: usize>(
    metric: &mut prometheus_client::encoding::MetricEncoder<'_>,
    labels: &[(&str, &str); N],
    counter: &AtomicU64,
) -> fmt::Result {
    let count = counter.load(Ordering::Relaxed);
    if count == 0 {
        return Ok(());
    }
    ConstCounter::new(count).encode(metric.encode_family(labels)?)
}
