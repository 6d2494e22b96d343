//! Ahead of an expiry and after it.

use tokio::time::{advance, sleep};

use super::gateway::*;
use super::*;

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
async fn a_process_that_ends_can_wait_for_its_refreshes() {
    let (gateway, cache) = start();
    cache.refreshes_ended().await;
    gateway.stores(1, "old", Duration::ZERO, Refresh::Issues(HOUR));
    gateway.delay(1, SECOND);
    let gone = tokio::spawn({
        let cache = Arc::clone(&cache);
        async move { got(&cache, 1).await }
    });
    while gateway.refreshes(1) == 0 {
        sleep(10 * MILLI).await;
    }
    gone.abort();
    cache.refreshes_ended().await;
    assert!(gateway.with(1, |it| it.body.contains("refreshed-1")));
}
