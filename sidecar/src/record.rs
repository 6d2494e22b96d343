//! Step 9, record: one value collects the facts of a request and is consumed once, also when the agent goes
//! away in the middle: an access log line, an audit event where one is due, and the counters.

pub mod writer;

use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, StatusCode};
use jiff::Timestamp;
use nexus_crds::names::ConnectionId;
use serde::Serialize;

use crate::args::AccessLog;
use crate::error::{Code, ProxyError};
use crate::metrics::{AuditEvent, Held, Metrics, Outcome};
use crate::proxy::resolve::Target;
use crate::record::writer::{AccessWriter, Losses, Priority};
use crate::routes::Route;
use crate::server::activity::InFlight;

/// How long the last lines may take at shutdown.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);

/// Where records go.
pub struct Recorder {
    which: AccessLog,
    writer: AccessWriter,
    metrics: Arc<Metrics>,
    ids: RequestIds,
}

impl Recorder {
    /// `which` requests get a line; audit events always do.
    pub fn new(which: AccessLog, writer: AccessWriter, metrics: Arc<Metrics>) -> Self {
        Self {
            which,
            writer,
            metrics,
            ids: RequestIds::new(),
        }
    }

    /// Starts the record of a request.
    pub fn begin(self: &Arc<Self>, request: &Parts, in_flight: InFlight) -> Record {
        Record {
            recorder: Arc::clone(self),
            _counted: self.metrics.in_flight.hold(),
            _in_flight: in_flight,
            started: Instant::now(),
            id: self.ids.next(),
            method: request.method.clone(),
            path: request.uri.path_and_query().cloned(),
            route: None,
            tenant: None,
            status: None,
            code: None,
            internal: None,
            sent: 0,
            scrubbed: 0,
        }
    }

    /// Writes what is still buffered.
    pub fn flush(&self) {
        if !self.writer.flush(FLUSH_LIMIT) {
            tracing::warn!("standard output does not take the last access lines");
        }
    }

    /// Another table serves: an audit event.
    pub fn table_changed(&self, revision: u64, hash: &str, routes: usize) {
        self.metrics.audit(AuditEvent::TableChange);
        let line = TableLine {
            kind: "audit",
            event: AuditEvent::TableChange.label(),
            time: Timestamp::now(),
            revision,
            hash,
            routes,
        };
        self.writer
            .line(Priority::Audit, |buffer| json(buffer, &line));
    }

    /// A credential was refreshed because an upstream rejected it: an audit event. An agent can provoke these.
    pub fn forced_refresh(&self, connection: ConnectionId, outcome: Result<(), Code>) {
        self.metrics.audit(AuditEvent::ForcedRefresh);
        let line = RefreshLine {
            kind: "audit",
            event: AuditEvent::ForcedRefresh.label(),
            time: Timestamp::now(),
            connection: connection.to_string(),
            error: outcome.err().map(|code| code.class().code),
        };
        self.writer
            .line(Priority::Audit, |buffer| json(buffer, &line));
    }

    /// What the output did not take.
    pub fn losses(&self) -> Losses {
        self.writer.losses()
    }
}

/// The facts of one request.
pub struct Record {
    recorder: Arc<Recorder>,
    _counted: Held,
    _in_flight: InFlight,
    started: Instant,
    id: HeaderValue,
    method: Method,
    path: Option<PathAndQuery>,
    route: Option<Arc<Route>>,
    tenant: Option<HeaderValue>,
    status: Option<StatusCode>,
    code: Option<Code>,
    internal: Option<Box<str>>,
    sent: u64,
    scrubbed: u64,
}

impl Record {
    /// Value of `X-Nexus-Request-Id`.
    pub fn request_id(&self) -> &HeaderValue {
        &self.id
    }

    /// The request was resolved.
    pub fn resolved(&mut self, target: &Target) {
        self.route = Some(Arc::clone(&target.route));
        self.tenant.clone_from(&target.tenant);
        self.path = Some(target.path_and_query.clone());
    }

    /// The upstream answered.
    pub fn status(&mut self, status: StatusCode) {
        self.status = Some(status);
    }

    /// The sidecar answers itself.
    pub fn failed(&mut self, error: &ProxyError) {
        self.status = Some(error.code.class().status);
        self.code = Some(error.code);
        self.internal.clone_from(&error.internal);
    }

    /// The upstream's answer broke off after its head was passed on.
    pub fn broke_off(&mut self, code: Code, error: &dyn std::error::Error) {
        self.code = Some(code);
        self.internal = Some(chain(error).into());
    }

    /// Bytes handed over to the agent.
    pub fn sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
    }

    /// Credentials masked in the answer.
    pub fn scrubbed(&mut self, hits: u64) {
        self.scrubbed += hits;
    }
}

impl Record {
    /// One JSON object. The keys are written ready-made: a line is written for every request.
    fn write(&self, priority: Priority, elapsed: Duration, buffer: &mut Vec<u8>) {
        let micros = elapsed.as_micros();
        buffer.extend_from_slice(match priority {
            Priority::Audit => b"{\"type\":\"audit\",\"time\":",
            Priority::Access => b"{\"type\":\"access\",\"time\":",
        });
        json(buffer, &Timestamp::now());
        text(buffer, ",\"requestId\":", self.id.to_str().ok());
        text(
            buffer,
            ",\"route\":",
            self.route.as_ref().map(|route| &*route.compiled.name),
        );
        text(
            buffer,
            ",\"provider\":",
            self.route.as_ref().map(|route| &*route.compiled.provider),
        );
        text(
            buffer,
            ",\"tenant\":",
            self.tenant.as_ref().and_then(|tenant| tenant.to_str().ok()),
        );
        text(buffer, ",\"method\":", Some(self.method.as_str()));
        // Without the query, where some schemes put keys.
        text(
            buffer,
            ",\"path\":",
            self.path.as_ref().map(PathAndQuery::path),
        );
        if let Some(status) = self.status {
            buffer.extend_from_slice(b",\"status\":");
            buffer.extend_from_slice(status.as_str().as_bytes());
        }
        text(
            buffer,
            ",\"error\":",
            self.code.map(|code| code.class().code),
        );
        text(buffer, ",\"reason\":", self.internal.as_deref());
        if self.scrubbed > 0 {
            buffer.extend_from_slice(b",\"scrubbed\":");
            json(buffer, &self.scrubbed);
        }
        buffer.extend_from_slice(b",\"bytesSent\":");
        json(buffer, &self.sent);
        // Writing to a vector cannot fail.
        write!(
            buffer,
            ",\"durationMs\":{}.{:03}}}",
            micros / 1000,
            micros % 1000
        )
        .ok();
    }
}

fn text(buffer: &mut Vec<u8>, key: &str, value: Option<&str>) {
    if let Some(value) = value {
        buffer.extend_from_slice(key.as_bytes());
        json(buffer, value);
    }
}

fn json(buffer: &mut Vec<u8>, value: &(impl Serialize + ?Sized)) {
    if let Err(error) = serde_json::to_writer(buffer, value) {
        tracing::error!(%error, "a line of the access log cannot be written");
    }
}

/// An error and its causes, for the log.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[derive(Serialize)]
struct TableLine<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    event: &'static str,
    time: Timestamp,
    revision: u64,
    hash: &'a str,
    routes: usize,
}

#[derive(Serialize)]
struct RefreshLine {
    #[serde(rename = "type")]
    kind: &'static str,
    event: &'static str,
    time: Timestamp,
    connection: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'static str>,
}

impl Drop for Record {
    fn drop(&mut self) {
        let elapsed = self.started.elapsed();
        let metrics = &self.recorder.metrics;
        let counters = self
            .route
            .as_ref()
            .map_or_else(|| metrics.unrouted(), |route| &route.metrics);
        counters.record(match (self.code, self.status) {
            (Some(code), _) => Outcome::Error(code),
            (None, Some(status)) => Outcome::Upstream(status),
            (None, None) => Outcome::Cancelled,
        });
        metrics.observe_duration(elapsed);
        if self.scrubbed > 0 {
            counters.add_scrub_hits(self.scrubbed);
            metrics.audit(AuditEvent::ScrubHit);
        }
        if self.code.is_some_and(is_refusal) {
            metrics.audit(AuditEvent::Refusal);
        }
        let audit = self.scrubbed > 0 || self.code.is_some_and(is_refusal);
        let wanted = match self.recorder.which {
            AccessLog::All => true,
            AccessLog::Errors => {
                self.code.is_some() || self.status.is_none_or(|status| status.is_server_error())
            }
            AccessLog::Off => false,
        };
        if !wanted && !audit {
            return;
        }
        let priority = if audit {
            Priority::Audit
        } else {
            Priority::Access
        };
        self.recorder
            .writer
            .line(priority, |buffer| self.write(priority, elapsed, buffer));
    }
}

/// Refusals are audit events: somebody asked for what they may not have.
fn is_refusal(code: Code) -> bool {
    match code {
        Code::TenantForbidden
        | Code::RequestDenied
        | Code::OriginForbidden
        | Code::MethodNotAllowed
        | Code::RateLimited
        | Code::UpstreamRefusedAddress
        | Code::LoopDetected => true,
        Code::ProviderMissing
        | Code::TenantMissing
        | Code::BadRequest
        | Code::UpgradeRefused
        | Code::ProviderUnknown
        | Code::ConnectionInactive
        | Code::AttentionRequired
        | Code::ConnectionUnknown
        | Code::BodyTooLarge
        | Code::CredentialInvalid
        | Code::UpstreamUnreachable
        | Code::BrokerRejected
        | Code::BrokerUnavailable
        | Code::NotReady
        | Code::Overloaded
        | Code::UpstreamTimeout => false,
    }
}

/// Request ids: unique in a process and, by the seed, very probably among processes. Not secret.
struct RequestIds {
    seed: u64,
    next: AtomicU64,
}

impl RequestIds {
    fn new() -> Self {
        Self {
            seed: RandomState::new().hash_one(std::process::id()),
            next: AtomicU64::new(0),
        }
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "the lowest four bits are what is wanted"
    )]
    fn next(&self) -> HeaderValue {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let count = self.next.fetch_add(1, Ordering::Relaxed);
        // SplitMix64's output function: a bijection, so that no two counts share an id.
        let mut mixed = self
            .seed
            .wrapping_add(count.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        let text: [u8; 16] =
            std::array::from_fn(|index| DIGITS[(mixed >> (60 - 4 * index)) as usize & 15]);
        HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static("0"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_do_not_repeat() {
        let ids = RequestIds::new();
        let seen: std::collections::HashSet<_> = (0..10_000).map(|_| ids.next()).collect();
        assert_eq!(seen.len(), 10_000);
        assert!(seen.iter().all(|id| id.len() == 16));
    }
}
