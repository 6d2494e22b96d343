//! What an upstream that rejects a credential causes.

use tokio::task::JoinSet;
use tokio::time::advance;

use super::gateway::*;
use super::*;

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
