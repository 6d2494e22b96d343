//! On a paused clock, against a control plane in memory: every rule about time is shown to the millisecond.
#![allow(
    clippy::unchecked_time_subtraction,
    reason = "a difference that is negative fails the test"
)]

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use nexus_crds::names::ConnectionId;
use tokio::task::JoinSet;
use tokio::time::{advance, sleep};

use super::*;
use crate::credential::Application;
use crate::credential::refresh::Role;
use crate::credential::status::Answer;

const MILLI: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);

/// A control plane whose connections are scripted.
#[derive(Default)]
struct Gateway {
    connections: Mutex<HashMap<u128, Scripted>>,
    audited: AtomicUsize,
}

#[derive(Clone)]
struct Scripted {
    status: u16,
    body: String,
    delay: Duration,
    refresh: Refresh,
    reads: usize,
    refreshes: usize,
    in_flight: usize,
    most_in_flight: usize,
    /// A refresh started while another one had not ended.
    raced: bool,
    rejected: Option<[u8; 32]>,
}

impl Default for Scripted {
    fn default() -> Self {
        Self {
            status: 404,
            body: String::new(),
            delay: Duration::ZERO,
            refresh: Refresh::Fails(400, "static_token"),
            reads: 0,
            refreshes: 0,
            in_flight: 0,
            most_in_flight: 0,
            raced: false,
            rejected: None,
        }
    }
}

/// What a refresh does.
#[derive(Clone, Copy)]
enum Refresh {
    /// A new token with this life is stored.
    Issues(Duration),
    /// The same, and the answer is lost.
    Loses(Duration),
    /// Nothing changes, and no answer comes.
    Vanishes,
    /// An answer that changes nothing.
    Fails(u16, &'static str),
    /// Success is claimed and nothing has changed.
    Pretends,
}

impl Gateway {
    fn with<T>(&self, number: u128, act: impl FnOnce(&mut Scripted) -> T) -> T {
        act(self.connections.lock().unwrap().entry(number).or_default())
    }

    fn set(&self, number: u128, status: u16, body: impl Into<String>) {
        self.with(number, |it| (it.status, it.body) = (status, body.into()));
    }

    fn delay(&self, number: u128, delay: Duration) {
        self.with(number, |it| it.delay = delay);
    }

    /// A token with so much life left, and a refresh token.
    fn stores(&self, number: u128, token: &str, left: Duration, refresh: Refresh) {
        self.set(
            number,
            200,
            expiring(token, left, r#","refresh_token":"r""#),
        );
        self.with(number, |it| it.refresh = refresh);
    }

    fn reads(&self, number: u128) -> usize {
        self.with(number, |it| it.reads)
    }

    fn refreshes(&self, number: u128) -> usize {
        self.with(number, |it| it.refreshes)
    }

    async fn call(&self, number: u128, begin: impl FnOnce(&mut Scripted)) -> Scripted {
        let scripted = self.with(number, |it| {
            begin(it);
            it.in_flight += 1;
            it.most_in_flight = it.most_in_flight.max(it.in_flight);
            it.clone()
        });
        sleep(scripted.delay).await;
        self.with(number, |it| it.in_flight -= 1);
        scripted
    }
}

impl Source for Arc<Gateway> {
    async fn token(&self, id: ConnectionId) -> Result<Zeroizing<Vec<u8>>, FetchError> {
        let scripted = self.call(id.as_u128(), |it| it.reads += 1).await;
        if scripted.status == 200 {
            return Ok(Zeroizing::new(scripted.body.into_bytes()));
        }
        Err(failed(scripted.status, &scripted.body))
    }

    async fn refresh(&self, id: ConnectionId, rejected: &[u8; 32]) -> Result<(), FetchError> {
        let rejected = *rejected;
        let number = id.as_u128();
        let scripted = self
            .call(number, |it| {
                it.refreshes += 1;
                it.rejected = Some(rejected);
                it.raced |= it.in_flight > 0;
            })
            .await;
        let issue = |life| {
            let token = format!("refreshed-{}", scripted.refreshes);
            self.stores(number, &token, life, scripted.refresh);
        };
        match scripted.refresh {
            Refresh::Issues(life) => issue(life),
            Refresh::Loses(life) => {
                issue(life);
                return Err(FetchError::TimedOut);
            }
            Refresh::Vanishes => return Err(FetchError::TimedOut),
            Refresh::Fails(status, code) => return Err(failed(status, code)),
            Refresh::Pretends => {}
        }
        Ok(())
    }
}

fn failed(status: u16, code: &str) -> FetchError {
    FetchError::Answer(Answer {
        status,
        code: Some(code.to_owned()).filter(|code| !code.is_empty()),
        empty: code.is_empty(),
        retry_after: None,
    })
}

type TestCache = CredentialCache<Arc<Gateway>>;

fn start() -> (Arc<Gateway>, Arc<TestCache>) {
    start_with(CacheSettings::default())
}

fn start_with(settings: CacheSettings) -> (Arc<Gateway>, Arc<TestCache>) {
    let gateway = Arc::new(Gateway::default());
    let cache = another(&gateway, settings);
    (gateway, cache)
}

fn another(gateway: &Arc<Gateway>, settings: CacheSettings) -> Arc<TestCache> {
    let audited = Arc::clone(gateway);
    let audit = move |_, _| {
        audited.audited.fetch_add(1, Ordering::SeqCst);
    };
    CredentialCache::new(
        Arc::clone(gateway),
        settings,
        Arc::default(),
        Box::new(audit),
    )
}

fn connection(number: u128) -> Connection {
    Connection {
        id: uuid::Uuid::from_u128(number).into(),
        key_id: None,
    }
}

fn key(number: u128) -> CredentialKey {
    CredentialKey::new(connection(number), 0)
}

async fn get_one(cache: &Arc<TestCache>, number: u128) -> Result<Arc<Credential>, ProxyError> {
    match cache.cached(&key(number), Moment::now()) {
        Some(credential) => Ok(credential),
        None => cache.get(key(number), connection(number), None).await,
    }
}

/// The header's value, or the code of the error.
async fn got(cache: &Arc<TestCache>, number: u128) -> Result<String, Code> {
    let got = get_one(cache, number).await;
    got.map(|it| value(&it)).map_err(|error| error.code)
}

async fn reject(
    cache: &Arc<TestCache>,
    number: u128,
    rejected: &Arc<Credential>,
) -> Option<String> {
    let next = cache
        .replace(key(number), connection(number), None, rejected, false)
        .await;
    next.map(|it| value(&it))
}

/// Lets what runs in the background end.
async fn settle() {
    sleep(SECOND).await;
}

fn bearer(token: &str, rest: &str) -> String {
    format!(
        r#"{{"strategy":{{"type":"oauth2"}},"credentials":{{"access_token":"{token}"{rest}}}}}"#
    )
}

fn expiring(token: &str, left: Duration, rest: &str) -> String {
    // A little earlier, so that nothing left is nothing left although the number is rounded.
    let at = Now::read().wall + left - MILLI;
    let unix = at
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs_f64();
    bearer(token, &format!(r#","expires_at":{unix}{rest}"#))
}

fn value(credential: &Credential) -> String {
    let Application::Headers(headers) = credential.application() else {
        panic!("not headers");
    };
    headers[0]
        .1
        .to_str()
        .unwrap()
        .trim_start_matches("Bearer ")
        .to_owned()
}

#[tokio::test(start_paused = true)]
async fn a_thousand_callers_of_a_cold_key_cause_one_call() {
    let (gateway, cache) = start();
    gateway.set(1, 200, bearer("t", ""));
    gateway.delay(1, SECOND);
    let mut callers = JoinSet::new();
    for _ in 0..1000 {
        let cache = Arc::clone(&cache);
        callers.spawn(async move { get_one(&cache, 1).await });
    }
    assert!(callers.join_all().await.iter().all(Result::is_ok));
    assert_eq!(gateway.reads(1), 1);
    assert!(cache.cached(&key(1), Moment::now()).is_some());
    assert_eq!((cache.stats().fetches(), cache.stats().hits()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_first_caller_that_goes_away_costs_no_second_call_and_no_error() {
    let (gateway, cache) = start();
    gateway.set(1, 200, bearer("t", ""));
    gateway.delay(1, SECOND);
    let caller = |cache: &Arc<TestCache>| {
        let cache = Arc::clone(cache);
        async move { get_one(&cache, 1).await }
    };
    let first = tokio::spawn(caller(&cache));
    tokio::task::yield_now().await;
    let others: JoinSet<_> = (0..100).map(|_| caller(&cache)).collect();
    tokio::task::yield_now().await;
    first.abort();
    assert!(others.join_all().await.iter().all(Result::is_ok));
    assert_eq!(gateway.reads(1), 1);
}

#[tokio::test(start_paused = true)]
async fn failures_are_one_error_for_all_and_are_remembered_for_their_time() {
    for (status, code, expected, kept) in [
        (
            404,
            "connection_not_found",
            Code::ConnectionUnknown,
            5 * SECOND,
        ),
        (
            403,
            "connection_not_active",
            Code::ConnectionInactive,
            5 * SECOND,
        ),
        (
            409,
            "attention_required",
            Code::AttentionRequired,
            30 * SECOND,
        ),
    ] {
        let (gateway, cache) = start();
        gateway.set(1, status, code);
        gateway.delay(1, SECOND);
        let mut callers = JoinSet::new();
        for _ in 0..100 {
            let cache = Arc::clone(&cache);
            callers.spawn(async move { got(&cache, 1).await });
        }
        let results = callers.join_all().await;
        assert!(results.iter().all(|result| *result == Err(expected)));
        gateway.set(1, 200, bearer("t", ""));
        gateway.delay(1, Duration::ZERO);
        advance(kept - 10 * MILLI).await;
        assert_eq!(got(&cache, 1).await, Err(expected));
        assert_eq!(gateway.reads(1), 1, "{code}");
        advance(20 * MILLI).await;
        assert_eq!(got(&cache, 1).await.as_deref(), Ok("t"), "{code}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_bad_connection_never_delays_another() {
    let (gateway, cache) = start();
    gateway.set(1, 502, "");
    gateway.set(2, 200, bearer("quick", ""));
    for _ in 0..10 {
        assert_eq!(got(&cache, 1).await, Err(Code::BrokerUnavailable));
        advance(30 * SECOND).await;
    }
    gateway.delay(1, HOUR);
    let stuck = tokio::spawn({
        let cache = Arc::clone(&cache);
        async move { got(&cache, 1).await }
    });
    tokio::task::yield_now().await;
    let started = Moment::now();
    assert_eq!(got(&cache, 2).await.as_deref(), Ok("quick"));
    assert_eq!(Moment::now(), started);
    stuck.abort();
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_asked_about_ever_more_rarely_and_callers_are_told_how_long() {
    let (gateway, cache) = start();
    gateway.set(1, 502, "");
    let mut reads = Vec::new();
    for _ in 0..60 {
        for _ in 0..60 {
            let error = get_one(&cache, 1).await.unwrap_err();
            assert_eq!(error.code, Code::BrokerUnavailable);
            let after = error.retry_after.unwrap();
            assert!(!after.is_zero() && after <= 30 * SECOND, "{after:?}");
            advance(SECOND).await;
        }
        reads.push(gateway.reads(1));
    }
    // With full jitter between 3 and 30 seconds, 16 on average.
    let last = reads[59] - reads[49];
    assert!((20..=80).contains(&last), "{reads:?}");
    gateway.set(1, 200, bearer("t", ""));
    advance(30 * SECOND).await;
    assert_eq!(got(&cache, 1).await.as_deref(), Ok("t"));
}

#[tokio::test(start_paused = true)]
async fn an_expired_credential_that_cannot_be_refreshed_is_never_given_out() {
    let (gateway, cache) = start();
    gateway.set(1, 200, bearer("t", r#","expired":true"#));
    gateway.set(2, 200, bearer("t", r#","expires_at":1000"#));
    for number in [1, 2] {
        assert_eq!(got(&cache, number).await, Err(Code::CredentialInvalid));
        assert!(cache.cached(&key(number), Moment::now()).is_none());
        assert_eq!(gateway.refreshes(number), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_credential_is_not_used_to_the_end_of_its_life() {
    let (gateway, cache) = start();
    gateway.set(1, 200, expiring("t", HOUR, ""));
    gateway.set(2, 200, expiring("t", 4 * SECOND, ""));
    for (number, end) in [(1, HOUR - 5 * SECOND), (2, 3 * SECOND)] {
        let began = Moment::now();
        get_one(&cache, number).await.unwrap();
        let slot = cache.slots.peek(&key(number)).unwrap();
        let held = slot.current().unwrap();
        assert!(held.is_usable(began + end - 2 * MILLI));
        assert!(!held.is_usable(began + end + MILLI));
        assert!(cache.cached(&key(number), began + end + MILLI).is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn a_relative_expiry_counts_from_when_the_value_was_first_seen() {
    let (gateway, cache) = start();
    gateway.set(1, 200, bearer("t", r#","expires_in":"100""#));
    let first = get_one(&cache, 1).await.unwrap();
    advance(96 * SECOND).await;
    // Read again, the same value has not grown younger.
    assert_eq!(got(&cache, 1).await, Err(Code::CredentialInvalid));
    gateway.set(1, 200, bearer("new", r#","expires_in":"100""#));
    advance(5 * SECOND + MILLI).await;
    let second = get_one(&cache, 1).await.unwrap();
    assert!(second.expires_at() > first.expires_at());
}

#[tokio::test(start_paused = true)]
async fn a_static_credential_is_read_again_at_its_age_in_the_background() {
    let (gateway, cache) = start();
    gateway.set(1, 200, bearer("old", ""));
    get_one(&cache, 1).await.unwrap();
    gateway.set(1, 200, bearer("new", ""));
    gateway.delay(1, 3 * SECOND);
    advance(5 * MINUTE - MILLI).await;
    assert_eq!(got(&cache, 1).await.as_deref(), Ok("old"));
    assert_eq!(gateway.reads(1), 1);
    advance(2 * MILLI).await;
    for _ in 0..50 {
        assert_eq!(got(&cache, 1).await.as_deref(), Ok("old"));
    }
    assert!(cache.cached(&key(1), Moment::now()).is_some());
    sleep(4 * SECOND).await;
    assert_eq!(got(&cache, 1).await.as_deref(), Ok("new"));
    assert_eq!(gateway.reads(1), 2);
}

#[tokio::test(start_paused = true)]
async fn a_failing_read_keeps_a_valid_credential_and_a_revocation_drops_it() {
    let (gateway, cache) = start();
    gateway.set(1, 200, bearer("t", ""));
    get_one(&cache, 1).await.unwrap();
    for (status, body) in [
        (502, ""),
        (404, "connection_not_found"),
        (403, ""),
        (409, "attention_required"),
        (200, "<html>"),
        (200, r#"{"token":{}}"#),
    ] {
        gateway.set(1, status, body);
        let reads = gateway.reads(1);
        for _ in 0..100 {
            advance(4 * SECOND).await;
            assert_eq!(got(&cache, 1).await.as_deref(), Ok("t"), "{status} {body}");
            settle().await;
        }
        assert!(gateway.reads(1) > reads, "{status} {body}");
    }
    gateway.set(1, 410, "connection_revoked");
    advance(MINUTE).await;
    assert!(got(&cache, 1).await.is_ok(), "it is being read");
    settle().await;
    assert_eq!(got(&cache, 1).await, Err(Code::ConnectionInactive));
    assert!(cache.cached(&key(1), Moment::now()).is_none());
}

#[tokio::test(start_paused = true)]
async fn an_unknown_connection_that_worked_within_the_hour_is_an_outage() {
    let (gateway, cache) = start();
    gateway.set(1, 200, expiring("t", 100 * SECOND, ""));
    get_one(&cache, 1).await.unwrap();
    gateway.set(1, 404, "connection_not_found");
    for _ in 0..3 {
        advance(19 * MINUTE).await;
        let error = get_one(&cache, 1).await.unwrap_err();
        assert_eq!(error.code, Code::BrokerUnavailable);
        assert!(error.retry_after.is_some());
    }
    advance(5 * MINUTE).await;
    assert_eq!(got(&cache, 1).await, Err(Code::ConnectionUnknown));
}

#[tokio::test(start_paused = true)]
async fn a_table_change_drops_credentials_and_failures() {
    let (gateway, cache) = start();
    gateway.set(1, 200, bearer("t", ""));
    get_one(&cache, 1).await.unwrap();
    gateway.set(4, 502, "");
    for number in [2, 3, 4] {
        assert!(get_one(&cache, number).await.is_err());
        gateway.set(number, 200, bearer("t", ""));
    }
    cache.table_changed(|kept| [key(3), key(4)].contains(kept));
    assert!(cache.cached(&key(1), Moment::now()).is_none());
    assert_eq!(cache.entries(), 2);
    assert!(get_one(&cache, 2).await.is_ok(), "dropped");
    assert!(
        get_one(&cache, 3).await.is_ok(),
        "kept, its failure forgotten"
    );
    assert_eq!(
        got(&cache, 4).await,
        Err(Code::BrokerUnavailable),
        "a table says nothing about the control plane's health"
    );
}

#[tokio::test(start_paused = true)]
async fn entries_are_bounded_and_the_least_used_go() {
    let (gateway, cache) = start_with(CacheSettings {
        capacity: 100,
        ..CacheSettings::default()
    });
    for number in 1..=1000 {
        gateway.set(number, 200, bearer("t", ""));
        get_one(&cache, number).await.unwrap();
        get_one(&cache, 1).await.unwrap();
    }
    assert!(cache.entries() <= 100, "{}", cache.entries());
    assert_eq!(gateway.reads(1), 1);
    assert!(cache.gates.lock().unwrap().len() <= 200);
}

#[tokio::test(start_paused = true)]
async fn a_credential_is_renewed_ahead_of_its_end_while_requests_go_on() {
    let (gateway, cache) = start();
    gateway.stores(1, "first", HOUR, Refresh::Issues(HOUR));
    get_one(&cache, 1).await.unwrap();
    gateway.delay(1, 2 * SECOND);
    // Used every second: never an error, never a wait.
    for second in 1..=3600 {
        advance(SECOND).await;
        let began = Moment::now();
        assert!(got(&cache, 1).await.is_ok(), "{second}");
        assert_eq!(Moment::now(), began, "{second}");
        if second < 54 * 60 {
            assert_eq!(gateway.reads(1), 1, "{second}");
        }
    }
    assert_eq!(got(&cache, 1).await.as_deref(), Ok("refreshed-1"));
    assert_eq!((gateway.reads(1), gateway.refreshes(1)), (3, 1));
    assert_eq!(
        gateway.audited.load(Ordering::SeqCst),
        0,
        "nobody forced it"
    );
}

#[tokio::test(start_paused = true)]
async fn a_credential_that_is_not_used_when_its_time_comes_is_renewed_once_and_then_left() {
    let (gateway, cache) = start();
    gateway.stores(1, "first", HOUR, Refresh::Issues(HOUR));
    get_one(&cache, 1).await.unwrap();
    get_one(&cache, 1).await.unwrap();
    sleep(HOUR).await;
    assert_eq!(gateway.refreshes(1), 1, "it was used since it was obtained");
    sleep(10 * HOUR).await;
    assert_eq!(gateway.refreshes(1), 1, "the agent has gone");
    assert_eq!(got(&cache, 1).await.as_deref(), Ok("refreshed-2"));
}

#[tokio::test(start_paused = true)]
async fn renewing_reads_first_and_refreshes_only_if_the_expiry_has_not_moved() {
    let (gateway, cache) = start();
    gateway.stores(1, "first", HOUR, Refresh::Issues(HOUR));
    get_one(&cache, 1).await.unwrap();
    get_one(&cache, 1).await.unwrap();
    // Another sidecar was faster.
    gateway.stores(1, "theirs", 2 * HOUR, Refresh::Issues(HOUR));
    sleep(HOUR).await;
    assert_eq!(got(&cache, 1).await.as_deref(), Ok("theirs"));
    assert_eq!((gateway.reads(1), gateway.refreshes(1)), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn attempts_that_move_nothing_are_repeated_at_half_the_time_left_and_not_under_thirty_seconds()
 {
    let (gateway, cache) = start();
    gateway.stores(1, "t", HOUR, Refresh::Fails(502, "upstream_error"));
    get_one(&cache, 1).await.unwrap();
    let began = Moment::now();
    let end = began + HOUR - 5 * SECOND;
    let mut attempts = Vec::new();
    while Moment::now() + SECOND < end {
        let before = gateway.refreshes(1);
        advance(SECOND / 4).await;
        assert_eq!(got(&cache, 1).await.as_deref(), Ok("t"));
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        if gateway.refreshes(1) > before {
            attempts.push(end.since(Moment::now()));
        }
    }
    assert!(attempts.len() > 2, "{attempts:?}");
    for pair in attempts.windows(2) {
        let expected = (pair[0] / 2).max(30 * SECOND);
        let waited = pair[0] - pair[1];
        assert!(
            waited >= expected && waited <= expected + SECOND,
            "{attempts:?}"
        );
    }
    advance(2 * SECOND).await;
    let error = get_one(&cache, 1).await.unwrap_err();
    assert_eq!(error.code, Code::BrokerUnavailable, "the refresh failed");
    assert!(error.retry_after.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_credential_that_expired_while_nobody_asked_is_refreshed_for_who_asks_next() {
    let (gateway, cache) = start();
    gateway.stores(1, "old", SECOND, Refresh::Issues(HOUR));
    advance(HOUR).await;
    assert_eq!(got(&cache, 1).await.as_deref(), Ok("refreshed-1"));
    assert_eq!(gateway.refreshes(1), 1);
    let sent = gateway.with(1, |it| it.rejected).unwrap();
    assert_eq!(
        sent.as_slice(),
        aws_lc_rs::digest::digest(&SHA256, b"old").as_ref()
    );
}

#[tokio::test(start_paused = true)]
async fn a_refresh_whose_answer_is_lost_is_found_by_reading() {
    let (gateway, cache) = start();
    gateway.stores(1, "old", Duration::ZERO, Refresh::Loses(HOUR));
    assert_eq!(got(&cache, 1).await.as_deref(), Ok("refreshed-1"));
    assert_eq!(gateway.refreshes(1), 1);
}

#[tokio::test(start_paused = true)]
async fn an_expired_credential_whose_refresh_meets_an_outage_fails_closed_and_recovers() {
    let (gateway, cache) = start();
    gateway.stores(
        1,
        "old",
        Duration::ZERO,
        Refresh::Fails(502, "upstream_error"),
    );
    let error = get_one(&cache, 1).await.unwrap_err();
    assert_eq!(error.code, Code::BrokerUnavailable);
    assert!(error.retry_after.is_some());
    assert!(got(&cache, 1).await.is_err(), "left alone");
    assert_eq!(gateway.refreshes(1), 1);
    gateway.with(1, |it| it.refresh = Refresh::Issues(HOUR));
    advance(SECOND).await;
    assert_eq!(got(&cache, 1).await.as_deref(), Ok("refreshed-2"));
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_was_not_answered_is_not_repeated_while_it_may_still_run() {
    let (gateway, cache) = start();
    gateway.stores(1, "old", Duration::ZERO, Refresh::Vanishes);
    let began = Moment::now();
    while Moment::now().since(began) < 29 * SECOND {
        let error = get_one(&cache, 1).await.unwrap_err();
        assert_eq!(error.code, Code::BrokerUnavailable);
        assert!(error.retry_after.is_some_and(|after| after <= 30 * SECOND));
        advance(SECOND).await;
    }
    assert_eq!(gateway.refreshes(1), 1);
    assert!(gateway.reads(1) < 15, "{}", gateway.reads(1));
    gateway.with(1, |it| it.refresh = Refresh::Issues(HOUR));
    advance(10 * SECOND).await;
    assert_eq!(got(&cache, 1).await.as_deref(), Ok("refreshed-2"));
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_changes_nothing_leaves_an_expired_credential_invalid() {
    for refresh in [
        Refresh::Pretends,
        Refresh::Fails(400, "no_refresh_token"),
        Refresh::Fails(500, "unsupported_auth_type"),
    ] {
        let (gateway, cache) = start();
        gateway.stores(1, "old", Duration::ZERO, refresh);
        for _ in 0..20 {
            assert_eq!(got(&cache, 1).await, Err(Code::CredentialInvalid));
            advance(SECOND).await;
        }
        assert_eq!(gateway.refreshes(1), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_ends_the_connection_says_so() {
    let (gateway, cache) = start();
    gateway.stores(
        1,
        "old",
        Duration::ZERO,
        Refresh::Fails(409, "attention_required"),
    );
    gateway.delay(1, SECOND);
    let asking = tokio::spawn({
        let cache = Arc::clone(&cache);
        async move { got(&cache, 1).await }
    });
    while gateway.refreshes(1) == 0 {
        sleep(10 * MILLI).await;
    }
    gateway.set(1, 409, "attention_required");
    assert_eq!(asking.await.unwrap(), Err(Code::AttentionRequired));
}

#[tokio::test(start_paused = true)]
async fn a_thousand_rejections_of_one_value_are_one_decision_and_one_refresh() {
    let (gateway, cache) = start();
    gateway.stores(1, "old", HOUR, Refresh::Issues(HOUR));
    let rejected = get_one(&cache, 1).await.unwrap();
    advance(61 * SECOND).await;
    gateway.delay(1, SECOND);
    let mut rejections = JoinSet::new();
    for _ in 0..1000 {
        let (cache, rejected) = (Arc::clone(&cache), Arc::clone(&rejected));
        rejections.spawn(async move { reject(&cache, 1, &rejected).await });
    }
    for next in rejections.join_all().await {
        assert_eq!(next.as_deref(), Some("refreshed-1"));
    }
    assert_eq!(gateway.refreshes(1), 1);
    assert_eq!(gateway.with(1, |it| it.most_in_flight), 1);
    assert_eq!(gateway.audited.load(Ordering::SeqCst), 1);
    // Who is late finds the new one there.
    let reads = gateway.reads(1);
    assert_eq!(
        reject(&cache, 1, &rejected).await.as_deref(),
        Some("refreshed-1")
    );
    assert_eq!(gateway.reads(1), reads);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_provokes_rejections_for_a_day_causes_few_refreshes() {
    let (gateway, cache) = start();
    gateway.stores(1, "first", 100 * HOUR, Refresh::Issues(100 * HOUR));
    for _ in 0..24 * 60 * 12 {
        let current = get_one(&cache, 1).await.unwrap();
        reject(&cache, 1, &current).await;
        advance(5 * SECOND).await;
    }
    // After 1, 6, 16, 36, 76 minutes, and then once an hour.
    let refreshes = gateway.refreshes(1);
    assert!((25..=29).contains(&refreshes), "{refreshes}");
    assert!(gateway.reads(1) <= 24 * 60 * 12 + 100);
}

#[tokio::test(start_paused = true)]
async fn a_rejected_value_is_read_again_and_not_refreshed_where_that_would_not_help() {
    // Fresh.
    let (gateway, cache) = start();
    gateway.stores(1, "t", HOUR, Refresh::Issues(HOUR));
    let rejected = get_one(&cache, 1).await.unwrap();
    advance(59 * SECOND).await;
    assert_eq!(reject(&cache, 1, &rejected).await, None);
    assert_eq!((gateway.reads(1), gateway.refreshes(1)), (2, 0));
    assert_eq!(
        got(&cache, 1).await.as_deref(),
        Ok("t"),
        "it goes on being used"
    );
    // The verdict is remembered for a while, then read again.
    assert_eq!(reject(&cache, 1, &rejected).await, None);
    assert_eq!(gateway.reads(1), 2);
    advance(6 * SECOND).await;
    assert_eq!(
        reject(&cache, 1, &rejected).await.as_deref(),
        Some("refreshed-1")
    );

    // Other rights are wanted.
    let (gateway, cache) = start();
    gateway.stores(1, "t", HOUR, Refresh::Issues(HOUR));
    let rejected = get_one(&cache, 1).await.unwrap();
    advance(2 * MINUTE).await;
    let scope = cache
        .replace(key(1), connection(1), None, &rejected, true)
        .await;
    assert!(scope.is_none());
    assert_eq!((gateway.reads(1), gateway.refreshes(1)), (2, 0));

    // No refresh token.
    let (gateway, cache) = start();
    gateway.set(1, 200, expiring("t", HOUR, ""));
    let rejected = get_one(&cache, 1).await.unwrap();
    advance(2 * MINUTE).await;
    assert_eq!(reject(&cache, 1, &rejected).await, None);
    assert_eq!((gateway.reads(1), gateway.refreshes(1)), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_rotation_at_the_control_plane_is_found_by_reading_after_a_rejection() {
    let (gateway, cache) = start();
    gateway.set(1, 200, bearer("old", ""));
    let rejected = get_one(&cache, 1).await.unwrap();
    gateway.set(1, 200, bearer("new", ""));
    assert_eq!(reject(&cache, 1, &rejected).await.as_deref(), Some("new"));
    assert_eq!(got(&cache, 1).await.as_deref(), Ok("new"));
    assert_eq!(gateway.reads(1), 2);
}

#[tokio::test(start_paused = true)]
async fn an_outage_during_a_rejection_leaves_the_credential_in_use() {
    let (gateway, cache) = start();
    gateway.set(1, 200, bearer("t", ""));
    let rejected = get_one(&cache, 1).await.unwrap();
    gateway.set(1, 502, "");
    assert_eq!(reject(&cache, 1, &rejected).await, None);
    assert_eq!(reject(&cache, 1, &rejected).await, None, "left alone");
    assert_eq!(gateway.reads(1), 2);
    assert_eq!(got(&cache, 1).await.as_deref(), Ok("t"));
}

#[tokio::test(start_paused = true)]
async fn of_sidecars_that_share_a_connection_one_refreshes_and_the_others_find_it_done() {
    for life in [5 * SECOND, 20 * MINUTE, HOUR] {
        let gateway = Arc::new(Gateway::default());
        gateway.stores(1, "first", life, Refresh::Issues(life));
        gateway.delay(1, 40 * MILLI);
        // Three whose first places are apart; what follows keeps them so.
        let caches = [2, 7, 8].map(|seed| {
            let refresh = RefreshSettings {
                seed,
                ..RefreshSettings::default()
            };
            let settings = CacheSettings {
                refresh,
                ..CacheSettings::default()
            };
            another(&gateway, settings)
        });
        let began = Moment::now();
        while gateway.refreshes(1) < 30 {
            for cache in &caches {
                assert!(got(cache, 1).await.is_ok());
            }
            sleep(life / 100).await;
        }
        assert!(!gateway.with(1, |it| it.raced), "{life:?}");
        let took = Moment::now().since(began);
        assert!(took > life * 15, "{life:?}: {took:?}");
        let roles = caches.each_ref().map(|cache| {
            let slot = cache.slots.peek(&key(1)).unwrap();
            slot.gates.first.budget(|budget| budget.role)
        });
        let led = roles.iter().filter(|role| **role == Role::Leads).count();
        assert_eq!(led, 1, "{life:?}: {roles:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_connection_under_two_strategies_is_asked_about_by_one_call_at_a_time() {
    let (gateway, cache) = start();
    gateway.stores(1, "old", Duration::ZERO, Refresh::Issues(HOUR));
    gateway.delay(1, SECOND);
    let spec: StrategySpec =
        serde_json::from_str(r#"{"type":"header","config":{"header_name":"X-Key"}}"#).unwrap();
    let spec = Arc::new(spec);
    let other = CredentialKey::new(connection(1), strategy_digest(Some(&spec)));
    let (first, second) = tokio::join!(
        cache.get(key(1), connection(1), None),
        cache.get(other, connection(1), Some(&spec))
    );
    assert_eq!(value(&first.unwrap()), "refreshed-1");
    assert_eq!(value(&second.unwrap()), "refreshed-1");
    assert_eq!(gateway.with(1, |it| it.most_in_flight), 1);
    assert_eq!(gateway.refreshes(1), 1);
}

#[tokio::test(start_paused = true)]
async fn fields_of_a_second_connection_go_under_the_firsts() {
    let (gateway, cache) = start();
    let pair = |first: u128, second: u128| Connection {
        key_id: Some(connection(second).id),
        ..connection(first)
    };
    gateway.set(
        1,
        200,
        r#"{"strategy":{"type":"basic_auth"},"credentials":{"username":"first","password":null}}"#,
    );
    gateway.set(
        2,
        200,
        r#"{"strategy":{"type":"basic_auth"},"credentials":{"username":"second","password":"p","expires_at":4000000000}}"#,
    );
    gateway.delay(1, SECOND);
    gateway.delay(2, SECOND);
    // Both ways round at once: neither waits for the other for ever.
    let (merged, reverse) = (pair(1, 2), pair(2, 1));
    let (credential, reversed) = tokio::join!(
        cache.get(CredentialKey::new(merged, 0), merged, None),
        cache.get(CredentialKey::new(reverse, 0), reverse, None)
    );
    let credential = credential.unwrap();
    assert_eq!(value(&credential), "Basic Zmlyc3Q6cA==");
    assert!(credential.expires_at().is_some());
    assert_eq!(value(&reversed.unwrap()), "Basic c2Vjb25kOnA=");
    assert_eq!(gateway.with(1, |it| it.most_in_flight), 1);
}

#[tokio::test(start_paused = true)]
async fn of_two_connections_the_one_that_expires_is_refreshed() {
    let (gateway, cache) = start();
    let both = Connection {
        key_id: Some(connection(2).id),
        ..connection(1)
    };
    let key = CredentialKey::new(both, 0);
    gateway.stores(1, "long", 10 * HOUR, Refresh::Issues(10 * HOUR));
    gateway.stores(2, "under the first", HOUR, Refresh::Issues(HOUR));
    for _ in 0..3 {
        let credential = cache.get(key, both, None).await.unwrap();
        assert_eq!(value(&credential), "long");
        sleep(55 * MINUTE).await;
    }
    assert_eq!(gateway.refreshes(1), 0);
    assert!((2..=3).contains(&gateway.refreshes(2)));
}

#[test]
fn strategies_differ_in_their_digest_where_they_differ() {
    let spec = |json: &str| -> StrategySpec { serde_json::from_str(json).unwrap() };
    let base = spec(r#"{"type":"header","config":{"a":"b","c":"d"}}"#);
    let same = spec(r#"{"config":{"c":"d","a":"b"},"type":"header"}"#);
    assert_eq!(strategy_digest(Some(&base)), strategy_digest(Some(&same)));
    for other in [
        r#"{"type":"header"}"#,
        r#"{"type":"api_key","config":{"a":"b","c":"d"}}"#,
        r#"{"type":"header","config":{"a":"bc","d":""}}"#,
        r#"{"type":"header","config":{"a":"b","c":"e"}}"#,
    ] {
        assert_ne!(
            strategy_digest(Some(&base)),
            strategy_digest(Some(&spec(other)))
        );
    }
    assert_eq!(strategy_digest(None), 0);
}
