//! Counters of the process: control-plane calls, audit events and values that are kept elsewhere.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::route::encode_used;
use crate::error::Code;

/// What the control plane is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlCall {
    /// The credential of a connection.
    Get,
    /// A new one.
    Refresh,
}

impl ControlCall {
    const ALL: [Self; 2] = [Self::Get, Self::Refresh];

    fn label(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Refresh => "refresh",
        }
    }
}

/// The kinds of audit lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuditEvent {
    /// A request was refused.
    Refusal,
    /// An answer held a secret.
    ScrubHit,
    /// A refresh was asked for because a credential was rejected.
    ForcedRefresh,
    /// Another route table serves.
    TableChange,
}

impl AuditEvent {
    const ALL: [Self; 4] = [
        Self::Refusal,
        Self::ScrubHit,
        Self::ForcedRefresh,
        Self::TableChange,
    ];

    /// The value of the `event` label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Refusal => "refusal",
            Self::ScrubHit => "scrub_hit",
            Self::ForcedRefresh => "forced_refresh",
            Self::TableChange => "table_change",
        }
    }
}

/// Values that other parts keep and that are read when metrics are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reading {
    /// Credentials in the cache.
    CredentialCacheEntries,
    /// Connections opened to upstreams since the start.
    UpstreamConnectionsOpened,
    /// Access lines dropped since the start.
    AccessLinesDropped,
    /// Batches of access and audit lines that the output did not take.
    AccessWritesFailed,
    /// Access and audit lines in those batches.
    AccessLinesUnwritten,
}

impl Reading {
    fn describe(self) -> (&'static str, &'static str, MetricType) {
        match self {
            Self::CredentialCacheEntries => (
                "credential_cache_entries",
                "Credentials in the cache.",
                MetricType::Gauge,
            ),
            Self::UpstreamConnectionsOpened => (
                "upstream_connections_opened",
                "Connections opened to upstreams.",
                MetricType::Counter,
            ),
            Self::AccessLinesDropped => (
                "access_log_lines_dropped",
                "Access lines dropped because the output is too slow.",
                MetricType::Counter,
            ),
            Self::AccessWritesFailed => (
                "access_log_write_failures",
                "Batches of access and audit lines that the output did not take.",
                MetricType::Counter,
            ),
            Self::AccessLinesUnwritten => (
                "access_log_lines_unwritten",
                "Access and audit lines lost because the output failed.",
                MetricType::Counter,
            ),
        }
    }
}

/// Reads a value.
pub(super) type Source = Box<dyn Fn() -> u64 + Send + Sync>;

/// Success, and every code.
const RESULTS: usize = 1 + Code::ALL.len();

pub(super) struct Process {
    control_calls: [[AtomicU64; RESULTS]; ControlCall::ALL.len()],
    audit_events: [AtomicU64; AuditEvent::ALL.len()],
    readings: Mutex<Vec<(Reading, Source)>>,
}

impl Process {
    pub(super) fn control_call(&self, call: ControlCall, result: Result<(), Code>) {
        let result = result.map_or_else(|code| 1 + code as usize, |()| 0);
        self.control_calls[call as usize][result].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn audit(&self, event: AuditEvent) {
        self.audit_events[event as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn read_from(&self, reading: Reading, source: Source) {
        let mut readings = self.readings.lock().unwrap_or_else(PoisonError::into_inner);
        readings.retain(|(other, _)| *other != reading);
        readings.push((reading, source));
        readings.sort_by_key(|(reading, _)| *reading);
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut metric = encoder.encode_descriptor(
            "control_plane_calls",
            "Calls to the gateway or broker by what came of them.",
            None,
            MetricType::Counter,
        )?;
        let outcomes = std::iter::once("success").chain(Code::ALL.map(|code| code.class().code));
        for (call, results) in ControlCall::ALL.iter().zip(&self.control_calls) {
            for (outcome, count) in outcomes.clone().zip(results) {
                encode_used(
                    &mut metric,
                    &[("call", call.label()), ("outcome", outcome)],
                    count,
                )?;
            }
        }
        let mut metric = encoder.encode_descriptor(
            "audit_events",
            "Audit lines written.",
            None,
            MetricType::Counter,
        )?;
        for (event, count) in AuditEvent::ALL.iter().zip(&self.audit_events) {
            let count = ConstCounter::new(count.load(Ordering::Relaxed));
            count.encode(metric.encode_family(&[("event", event.label())])?)?;
        }
        for (reading, source) in &*self.readings.lock().unwrap_or_else(PoisonError::into_inner) {
            let (name, help, kind) = reading.describe();
            let metric = encoder.encode_descriptor(name, help, None, kind)?;
            if matches!(kind, MetricType::Gauge) {
                ConstGauge::new(i64::try_from(source()).unwrap_or(i64::MAX)).encode(metric)?;
            } else {
                ConstCounter::new(source()).encode(metric)?;
            }
        }
        Ok(())
    }
}

impl Default for Process {
    fn default() -> Self {
        Self {
            control_calls: std::array::from_fn(|_| std::array::from_fn(|_| AtomicU64::new(0))),
            audit_events: std::array::from_fn(|_| AtomicU64::new(0)),
            readings: Mutex::default(),
        }
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process").finish_non_exhaustive()
    }
}
