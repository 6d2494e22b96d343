//! Looks at every request that reaches the upstream, knowing everything about every token.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use nexus_tests::broker::{Broker, Issued};
use nexus_tests::upstream::{Refusal, Seen};

use crate::connection_of;

/// Share of requests that the upstream rejects.
const REJECTED: f64 = 0.01;
/// From the last byte of a token answer until the sidecar must have read it. Its own use of the newer token proves
/// that it has, and then no time at all is allowed.
const READING: Duration = Duration::from_millis(500);

/// Header with the number of the request.
pub(crate) const ID: &str = "x-soak-id";
/// Header with the time of sending, in microseconds from the start.
pub(crate) const SENT: &str = "x-soak-sent";
/// Header with the SHA-256 of the content.
pub(crate) const SHA: &str = "x-soak-sha256";

/// What was wrong with requests that arrived, and what is worth knowing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Verdicts {
    /// Requests that arrived.
    pub(crate) arrived: u64,
    /// Rejected at random.
    pub(crate) rejected: u64,
    /// Of these, with a token that was replaced at that moment.
    pub(crate) rotated: u64,
    /// Sent again after a rejection.
    pub(crate) replayed: u64,
    /// With no token, or one that was never issued.
    pub(crate) unknown: u64,
    /// With another connection's token.
    pub(crate) wrong_tenant: u64,
    /// With a token at or past its expiry.
    pub(crate) expired: u64,
    /// With a rejected token although the sidecar had a newer one when they were sent.
    pub(crate) superseded: u64,
    /// Sent again with the value that was rejected.
    pub(crate) replayed_unchanged: u64,
    /// With other content than the agent sent.
    pub(crate) corrupt: u64,
    /// The first of each, in words.
    pub(crate) examples: BTreeMap<String, String>,
}

pub(crate) struct Judge {
    broker: Arc<Broker>,
    started: Instant,
    inner: Mutex<Inner>,
}

struct Inner {
    random: fastrand::Rng,
    verdicts: Verdicts,
    /// Rejected tokens, and when.
    rejected: HashMap<String, Instant>,
    /// The highest number of a token that arrived, and when it first did, by connection.
    newest: HashMap<String, Vec<(usize, Instant)>>,
    /// Requests that were rejected and whose agent has no answer yet.
    pending: HashMap<u64, (String, Instant)>,
}

impl Judge {
    pub(crate) fn new(broker: Arc<Broker>, started: Instant, seed: u64) -> Self {
        Self {
            broker,
            started,
            inner: Mutex::new(Inner {
                random: fastrand::Rng::with_seed(seed ^ 0x0075_0d6e),
                verdicts: Verdicts::default(),
                rejected: HashMap::new(),
                newest: HashMap::new(),
                pending: HashMap::new(),
            }),
        }
    }

    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    pub(crate) fn verdicts(&self) -> Verdicts {
        self.inner.lock().unwrap().verdicts.clone()
    }

    /// The agent has its answer.
    pub(crate) fn answered(&self, id: u64) {
        self.inner.lock().unwrap().pending.remove(&id);
    }

    /// Judges a request, and rejects some.
    pub(crate) fn judge(&self, seen: &Seen) -> Option<Refusal> {
        let token = seen.values("authorization").first().copied();
        let token = token.and_then(|value| value.strip_prefix("Bearer "));
        let issued = token.and_then(|token| self.broker.issued(token));
        let mut inner = self.inner.lock().unwrap();
        inner.verdicts.arrived += 1;
        let Some(issued) = issued else {
            inner.verdicts.unknown += 1;
            inner.example("no token that was ever issued", seen, None);
            return None;
        };
        if seen.header(SHA) != seen.sha256 {
            inner.verdicts.corrupt += 1;
            inner.example("other content than was sent", seen, Some(&issued));
        }
        if expected_connection(seen).as_ref() != Some(&issued.connection) {
            inner.verdicts.wrong_tenant += 1;
            inner.example("another connection's token", seen, Some(&issued));
        }
        let arrived = SystemTime::now() - seen.arrived.elapsed();
        if issued.expires_at.is_some_and(|at| arrived >= at) {
            inner.verdicts.expired += 1;
            inner.example("an expired token", seen, Some(&issued));
        }
        self.judge_rejected(&mut inner, seen, &issued);
        inner.note_newest(&issued, seen.arrived);

        if inner.random.f64() >= REJECTED {
            return None;
        }
        let now = Instant::now();
        inner.verdicts.rejected += 1;
        inner.rejected.entry(issued.token.clone()).or_insert(now);
        // Half of the rejected were replaced behind the sidecar's back.
        if inner.random.bool() && self.broker.rotate_between_refreshes(&issued.connection) {
            inner.verdicts.rotated += 1;
        }
        let id = number(seen, ID);
        inner.pending.insert(id, (issued.token, now));
        Some(Refusal::new(401, "rejected at random"))
    }

    fn judge_rejected(&self, inner: &mut Inner, seen: &Seen, issued: &Issued) {
        // A request that is sent again is sent when its rejection is known, not when the agent sent it.
        let mut sent = self.started + Duration::from_micros(number(seen, SENT));
        if let Some((token, rejected)) = inner.pending.remove(&number(seen, ID)) {
            inner.verdicts.replayed += 1;
            sent = sent.max(rejected);
            if token == issued.token {
                inner.verdicts.replayed_unchanged += 1;
                inner.example("sent again with the rejected token", seen, Some(issued));
            }
        }
        let rejected = inner.rejected.get(&issued.token);
        if rejected.is_none_or(|rejected| *rejected >= sent) {
            return;
        }
        let used = inner.newer_used(issued);
        let read = self.broker.newer_delivered(&issued.token);
        let obtained = used.into_iter().chain(read.map(|at| at + READING)).min();
        if obtained.is_some_and(|obtained| obtained < sent) {
            inner.verdicts.superseded += 1;
            inner.example("a rejected token that had a successor", seen, Some(issued));
        }
    }
}

impl Inner {
    fn note_newest(&mut self, issued: &Issued, at: Instant) {
        let newest = self.newest.entry(issued.connection.clone()).or_default();
        if newest
            .last()
            .is_none_or(|(number, _)| *number < issued.number)
        {
            newest.push((issued.number, at));
        }
    }

    /// When a newer token of the same connection first arrived.
    fn newer_used(&self, issued: &Issued) -> Option<Instant> {
        let newest = self.newest.get(&issued.connection)?;
        let newer = newest.iter().find(|(number, _)| *number > issued.number)?;
        Some(newer.1)
    }

    fn example(&mut self, what: &str, seen: &Seen, issued: Option<&Issued>) {
        let text = format!(
            "{} {} at {:?}, token {issued:?}",
            seen.method, seen.target, seen.arrived
        );
        self.verdicts
            .examples
            .entry(what.to_owned())
            .or_insert(text);
    }
}

/// The connection whose token a request must carry, by its path `/{route}/{tenant}`.
fn expected_connection(seen: &Seen) -> Option<String> {
    let mut parts = seen.target.split('/').skip(1);
    let route = parts.next()?.parse().ok()?;
    let tenant = parts.next()?.parse().ok()?;
    Some(connection_of(route, tenant))
}

fn number(seen: &Seen, name: &str) -> u64 {
    seen.header(name).parse().expect("agents send numbers")
}
