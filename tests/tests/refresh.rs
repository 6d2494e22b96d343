//! Credentials that expire: when the control plane is asked, when it is told to refresh, and what comes of it.
//!
//! Rules that count in minutes are tested on a paused clock beside the code; here is what shows within seconds.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::time::{Duration, SystemTime};

use nexus_tests::broker::{Answer, Broker, Front, Provider, RefreshToken, Standing, Trouble};
use nexus_tests::guarded::{Accepts, Guarded};
use nexus_tests::route::Route;
use nexus_tests::sidecar::Sidecar;
use nexus_tests::upstream::{Seen, Upstream};
use nexus_tests::wait;

/// Life of tokens that expire during a test: long enough for the sidecar's allowance for skew to leave some of it.
const LIFE: Duration = Duration::from_secs(5);

async fn until_expired(guarded: &Guarded) {
    let expires_at = guarded.broker.current(&Guarded::id()).expires_at.unwrap();
    wait::until("the expiry", || {
        (SystemTime::now() >= expires_at).then_some(())
    })
    .await;
}

/// So many refreshes, each right after a read and right before one.
fn assert_read_around_refreshes(guarded: &Guarded, refreshes: usize) {
    let log = guarded.broker.log(&Guarded::id());
    let order: Vec<bool> = log.iter().map(|call| call.refresh).collect();
    let posts: Vec<usize> = (0..order.len()).filter(|at| order[*at]).collect();
    assert_eq!(posts.len(), refreshes, "{order:?}");
    for at in posts {
        let around = order[..at].last().zip(order.get(at + 1));
        assert_eq!(around, Some((&false, &false)), "{order:?}");
    }
    // Before a refresh that was not planned it is read twice, with a pause between that differs from process to
    // process.
    assert!(order.len() <= 4 * refreshes, "{order:?}");
}

/// No token reached the upstream at or after its expiry.
fn assert_none_expired(broker: &Broker, arrived: &[Seen]) {
    for seen in arrived {
        let token = seen
            .header("authorization")
            .strip_prefix("Bearer ")
            .unwrap();
        let issued = broker.issued(token).expect("a token of this broker");
        let at = SystemTime::now() - seen.arrived.elapsed();
        assert!(
            at < issued.expires_at.unwrap(),
            "token {} was sent expired",
            issued.number
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_expired_before_its_first_use_is_refreshed_on_demand() {
    let guarded = Guarded::by(Provider::new("p").life(LIFE)).await;
    until_expired(&guarded).await;
    assert_eq!((guarded.calls(), guarded.refreshes()), (0, 0), "idle");
    let answer = guarded.get("/").send().await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_read_around_refreshes(&guarded, 1);
    assert_eq!(guarded.sent(), [guarded.current()]);
    assert_none_expired(&guarded.broker, &guarded.upstream.seen());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_in_use_is_refreshed_ahead_and_never_sent_expired() {
    let guarded = Guarded::by(Provider::new("p").life(LIFE)).await;
    let end = tokio::time::Instant::now() + 3 * LIFE;
    while tokio::time::Instant::now() < end {
        let answer = guarded.get("/").send().await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_none_expired(&guarded.broker, &guarded.upstream.seen());
    let issued = guarded.broker.history(&Guarded::id()).len();
    assert!(issued >= 3, "{issued} tokens in three lives");
    assert!(
        issued <= 9,
        "{issued} tokens in three lives: refreshed without need"
    );
    assert_eq!(guarded.broker.max_in_flight(&Guarded::id()), 1);
    assert_eq!(guarded.broker.standing(&Guarded::id()), Standing::Active);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_token_that_cannot_be_refreshed_is_invalid() {
    let provider = Provider::new("p").life(LIFE);
    let guarded = Guarded::by(provider.refresh_token(RefreshToken::None)).await;
    assert_eq!(guarded.get("/").send().await.status, 200);
    until_expired(&guarded).await;
    let answer = guarded.get("/").send().await;
    assert_eq!((answer.status, answer.error()), (502, "credential_invalid"));
    assert_eq!(guarded.refreshes(), 0, "there is nothing to refresh with");
    assert_eq!(guarded.upstream.seen().len(), 1);
    assert!(!answer.text().contains(&guarded.current()));
    // New tokens are picked up.
    wait::within("a new token", async {
        while guarded.get("/").send().await.status != 200 {
            guarded.broker.rotate(&Guarded::id());
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_token_that_the_provider_omits_is_used_once() {
    let provider = Provider::new("p").life(LIFE);
    let guarded = Guarded::by(provider.refresh_token(RefreshToken::Omitted)).await;
    until_expired(&guarded).await;
    assert_eq!(guarded.get("/").send().await.status, 200);
    assert_eq!(guarded.refreshes(), 1);
    until_expired(&guarded).await;
    let answer = guarded.get("/").send().await;
    assert_eq!((answer.status, answer.error()), (502, "credential_invalid"));
    assert_eq!(guarded.refreshes(), 1, "the payload held no refresh token");
    assert_none_expired(&guarded.broker, &guarded.upstream.seen());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_whose_answer_is_lost_is_not_repeated() {
    let guarded = Guarded::by(Provider::new("p").life(LIFE)).await;
    until_expired(&guarded).await;
    guarded
        .broker
        .script_refresh(&Guarded::id(), [Answer::genuine().lost()]);
    wait::within("a token", async {
        while guarded.get("/").send().await.status != 200 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    assert_eq!(guarded.refreshes(), 1, "the token had been stored");
    assert_eq!(guarded.broker.standing(&Guarded::id()), Standing::Active);
    assert_none_expired(&guarded.broker, &guarded.upstream.seen());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_that_failed_before_the_provider_is_repeated_after_a_reread() {
    let guarded = Guarded::by(Provider::new("p").life(LIFE)).await;
    until_expired(&guarded).await;
    guarded
        .broker
        .script_refresh(&Guarded::id(), [Answer::status(502, "upstream_error")]);
    wait::within("a token", async {
        loop {
            let answer = guarded.get("/").send().await;
            if answer.status == 200 {
                break;
            }
            assert_eq!((answer.status, answer.error()), (503, "broker_unavailable"));
            assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    assert_read_around_refreshes(&guarded, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_refresh_asks_for_attention_and_is_not_repeated() {
    let guarded = Guarded::by(Provider::new("p").life(LIFE).trouble(Trouble::Refuses)).await;
    until_expired(&guarded).await;
    for _ in 0..5 {
        let answer = guarded.get("/").send().await;
        assert_eq!((answer.status, answer.error()), (403, "attention_required"));
    }
    assert_eq!(guarded.refreshes(), 1);
    assert_eq!(guarded.upstream.seen().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_object_with_200_is_no_token() {
    let trouble = Trouble::AnswersWithError;
    let guarded = Guarded::by(Provider::new("p").life(LIFE).trouble(trouble)).await;
    until_expired(&guarded).await;
    for _ in 0..5 {
        let answer = guarded.get("/").send().await;
        let got = (answer.status, answer.error().to_owned());
        let expected = [(502, "credential_invalid"), (503, "broker_unavailable")];
        assert!(expected.contains(&(got.0, got.1.as_str())), "{got:?}");
    }
    assert_eq!(guarded.refreshes(), 1, "the refresh token is gone");
    assert_eq!(guarded.upstream.seen().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_of_an_expired_token_share_one_refresh() {
    const AT_ONCE: usize = 100;
    let provider = Provider::new("p")
        .life(LIFE)
        .latency(Duration::from_millis(300));
    let guarded = Guarded::by(provider).await;
    until_expired(&guarded).await;
    let mut agents = tokio::task::JoinSet::new();
    for _ in 0..AT_ONCE {
        agents.spawn(guarded.get("/").send());
    }
    while let Some(answer) = agents.join_next().await {
        assert_eq!(answer.unwrap().status, 200);
    }
    assert_read_around_refreshes(&guarded, 1);
    assert_eq!(guarded.broker.max_in_flight(&Guarded::id()), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_goes_away_does_not_take_the_refresh_with_it() {
    let provider = Provider::new("p")
        .life(LIFE)
        .latency(Duration::from_millis(500));
    let guarded = Guarded::by(provider).await;
    until_expired(&guarded).await;
    let impatient = tokio::spawn(guarded.get("/").open());
    wait::until("the refresh", || (guarded.refreshes() == 1).then_some(())).await;
    impatient.abort();
    assert_eq!(guarded.get("/").send().await.status, 200);
    assert_read_around_refreshes(&guarded, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_is_told_to_end_waits_for_its_refresh() {
    let provider = Provider::new("p")
        .life(LIFE)
        .latency(Duration::from_secs(2));
    let mut guarded = Guarded::by(provider).await;
    until_expired(&guarded).await;
    let impatient = tokio::spawn(guarded.get("/").open());
    wait::until("the refresh", || (guarded.refreshes() == 1).then_some(())).await;
    impatient.abort();
    guarded.sidecar.terminate();
    assert!(guarded.sidecar.ended().await.success());
    let stored = guarded.broker.history(&Guarded::id()).len();
    assert_eq!(stored, 2, "it ended before its refresh did");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sidecars_share_a_connection_with_one_time_refresh_tokens_for_ten_rotations() {
    const ROTATIONS: usize = 10;
    let broker = Broker::start(Front::Broker, None).await;
    let id = Guarded::id();
    let latency = Duration::from_millis(20);
    broker.connect(&id, Provider::new("p").life(LIFE).latency(latency));
    let upstream = Upstream::start().await;
    let route = Route::new("p", &upstream.url()).connection(&id);
    let sidecars = [
        Sidecar::with(&broker, &route).await,
        Sidecar::with(&broker, &route).await,
    ];
    let limit = tokio::time::Instant::now() + LIFE * 4 * u32::try_from(ROTATIONS).unwrap();
    let mut agents = tokio::task::JoinSet::new();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    // Who goes first is chosen at random, and two could choose nearly the same time. What is shown here is what comes
    // after that: the second has the first token too, and lets the first sidecar renew it.
    let [first, second] = &sidecars;
    let once = second.agent().get("/").provider("p").send().await;
    assert_eq!(once.status, 200, "{}", once.text());
    for sidecar in [first, second] {
        for _ in 0..2 {
            let (call, stopped) = (sidecar.agent().get("/").provider("p"), stopped.clone());
            agents.spawn(async move {
                let mut answers = 0;
                while !*stopped.borrow() {
                    let answer = call.clone().send().await;
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    answers += 1;
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                answers
            });
        }
        wait::until("a rotation", || {
            (broker.history(&id).len() > 1).then_some(())
        })
        .await;
    }
    while broker.history(&id).len() <= ROTATIONS {
        assert!(
            tokio::time::Instant::now() < limit,
            "{} rotations",
            broker.history(&id).len()
        );
        assert_eq!(
            broker.standing(&id),
            Standing::Active,
            "refreshed twice at once"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stop.send(true).unwrap();
    while let Some(answers) = agents.join_next().await {
        assert!(answers.unwrap() > 0);
    }
    assert_eq!(broker.standing(&id), Standing::Active);
    assert_none_expired(&broker, &upstream.seen());
}

/// A token that is less than a minute old is trusted, so this one has to grow older; the other tests run meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_agent_provoked_rejections_cause_one_refresh() {
    let guarded = Guarded::by(Provider::new("p")).await;
    assert_eq!(guarded.get("/").send().await.status, 200);
    tokio::time::sleep(Duration::from_secs(61)).await;
    guarded.accept(Accepts::Nothing);
    let mut agents = tokio::task::JoinSet::new();
    for _ in 0..1000 {
        agents.spawn(guarded.get("/").send());
    }
    while let Some(answer) = agents.join_next().await {
        let answer = answer.unwrap();
        assert_eq!((answer.status, answer.error()), (401, ""));
    }
    assert_eq!(guarded.refreshes(), 1);
    assert_eq!(guarded.broker.max_in_flight(&Guarded::id()), 1);
    assert!(guarded.calls() <= 10, "{}", guarded.calls());
    let tokens: std::collections::BTreeSet<_> = guarded.sent().into_iter().collect();
    assert_eq!(
        tokens.len(),
        2,
        "the first, and the one that the refresh brought"
    );
    assert!(guarded.sent().len() <= 1 + 2 * 1000, "one replay each");
    assert_eq!(guarded.broker.standing(&Guarded::id()), Standing::Active);
}
