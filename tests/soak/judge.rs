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

#[cfg(test)]
mod tests {
    use nexus_tests::broker::{Front, Provider};
    use nexus_tests::upstream::hex;
    use sha2::{Digest, Sha256};

    use super::*;

    /// A judge over the connections of two tenants, which rejects nothing by itself.
    struct Court {
        broker: Arc<Broker>,
        judge: Judge,
    }

    impl Court {
        async fn new() -> Self {
            let broker = Arc::new(Broker::start(Front::Broker, None).await);
            for tenant in 0..2 {
                broker.connect(&connection_of(0, tenant), Provider::new("soak"));
            }
            let judge = Judge::new(Arc::clone(&broker), Instant::now(), 1);
            Self { broker, judge }
        }

        fn token(&self) -> String {
            self.broker.current(&connection_of(0, 0)).token
        }

        fn rotate(&self) -> String {
            self.broker.rotate(&connection_of(0, 0));
            self.token()
        }

        /// A request of tenant 0 that is sent and arrives now.
        fn request(&self, id: u64, token: &str) -> Seen {
            let sent = self.judge.started.elapsed().as_micros();
            let sha256 = hex(&Sha256::digest(b""));
            let headers = [
                ("authorization", format!("Bearer {token}")),
                (ID, id.to_string()),
                (SENT, sent.to_string()),
                (SHA, sha256.clone()),
            ];
            Seen {
                version: "HTTP/1.1".to_owned(),
                method: "GET".to_owned(),
                target: "/0/0".to_owned(),
                authority: "u".to_owned(),
                headers: headers.map(|(name, value)| (name.to_owned(), value)).into(),
                body: bytes::Bytes::new(),
                length: 0,
                sha256,
                trailers: Vec::new(),
                arrived: Instant::now(),
            }
        }

        fn judge(&self, seen: &Seen) -> Verdicts {
            // Whether chance rejects it as well does not matter here.
            let _ = self.judge.judge(seen);
            self.judge.inner.lock().unwrap().pending.clear();
            self.judge.verdicts()
        }

        fn reject(&self, id: u64, token: &str) {
            let mut inner = self.judge.inner.lock().unwrap();
            inner.rejected.insert(token.to_owned(), Instant::now());
            inner.pending.insert(id, (token.to_owned(), Instant::now()));
        }
    }

    #[tokio::test]
    async fn a_good_request_is_not_objected_to() {
        let court = Court::new().await;
        let v = court.judge(&court.request(1, &court.token()));
        let wrong = v.unknown + v.wrong_tenant + v.expired + v.superseded + v.corrupt;
        assert_eq!((v.arrived, wrong), (1, 0));
    }

    #[tokio::test]
    async fn other_tokens_tenants_and_contents_are_noticed() {
        let court = Court::new().await;
        assert_eq!(court.judge(&court.request(1, "made up")).unknown, 1);
        let mut without = court.request(2, "");
        without.headers.remove(0);
        assert_eq!(court.judge(&without).unknown, 2);
        let other = court.broker.current(&connection_of(0, 1)).token;
        assert_eq!(court.judge(&court.request(3, &other)).wrong_tenant, 1);
        let mut cut = court.request(4, &court.token());
        cut.sha256 = hex(&Sha256::digest(b"cut"));
        assert_eq!(court.judge(&cut).corrupt, 1);
    }

    #[tokio::test]
    async fn an_expired_token_is_noticed_to_the_second_its_payload_names() {
        let court = Court::new().await;
        let id = connection_of(0, 0);
        court
            .broker
            .connect(&id, Provider::new("soak").life(Duration::from_secs(1)));
        let expires_at = court.broker.current(&id).expires_at.unwrap();
        nexus_tests::wait::until("the expiry", || {
            (SystemTime::now() >= expires_at).then_some(())
        })
        .await;
        assert_eq!(court.judge(&court.request(1, &court.token())).expired, 1);
    }

    #[tokio::test]
    async fn a_rejected_token_is_superseded_once_the_sidecar_has_used_a_newer_one() {
        let court = Court::new().await;
        let old = court.token();
        court.reject(1, &old);
        let before = court.request(2, &old);
        assert_eq!(
            court.judge(&court.request(3, &old)).superseded,
            0,
            "there is no other"
        );
        let new = court.rotate();
        assert_eq!(
            court.judge(&court.request(4, &old)).superseded,
            0,
            "nobody has it"
        );
        court.judge(&court.request(5, &new));
        assert_eq!(court.judge(&before).superseded, 0, "sent before that");
        assert_eq!(court.judge(&court.request(6, &old)).superseded, 1);
        assert_eq!(court.judge(&court.request(7, &new)).superseded, 1);
    }

    #[tokio::test]
    async fn a_rejected_token_is_superseded_once_a_newer_one_was_delivered_and_read() {
        let court = Court::new().await;
        let old = court.token();
        court.reject(1, &old);
        court.rotate();
        let address = court
            .broker
            .url()
            .trim_start_matches("http://")
            .parse()
            .unwrap();
        let path = format!("/connections/{}/token", connection_of(0, 0));
        let agent = nexus_tests::agent::Agent::new(address);
        assert_eq!(agent.get(&path).send().await.status, 200);
        nexus_tests::wait::until("the delivery", || court.broker.newer_delivered(&old)).await;
        tokio::time::sleep(READING).await;
        assert_eq!(court.judge(&court.request(2, &old)).superseded, 1);
    }

    #[tokio::test]
    async fn a_request_that_is_sent_again_must_carry_another_token() {
        let court = Court::new().await;
        let old = court.token();
        let first = court.request(1, &old);
        court.reject(1, &old);
        assert_eq!(court.judge(&first).replayed_unchanged, 1);
        let new = court.rotate();
        court.reject(1, &old);
        let again = Seen {
            headers: court.request(1, &new).headers,
            ..first
        };
        let v = court.judge(&again);
        assert_eq!((v.replayed, v.replayed_unchanged), (2, 1));
    }
}
