//! A cold key, failures that are remembered, and how long a credential is used.

use tokio::task::JoinSet;
use tokio::time::{advance, sleep};

use super::gateway::*;
use super::*;

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
async fn a_credential_that_was_taken_back_may_return_and_has_not_grown_younger() {
    let (gateway, cache) = start();
    let payload = bearer("t", r#","expires_in":"100""#);
    gateway.set(1, 200, payload.clone());
    let credential = get_one(&cache, 1).await.unwrap();
    for (back_after, expected) in [
        (6 * SECOND, Ok("t")),
        (95 * SECOND, Err(Code::CredentialInvalid)),
    ] {
        gateway.set(1, 403, "connection_not_active");
        assert_eq!(reject(&cache, 1, &credential).await, None);
        assert_eq!(got(&cache, 1).await, Err(Code::ConnectionInactive));
        gateway.set(1, 200, payload.clone());
        advance(back_after).await;
        let again = got(&cache, 1).await;
        assert_eq!(again.as_deref().map_err(|code| *code), expected);
    }
}
