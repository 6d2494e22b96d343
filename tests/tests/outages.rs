//! A control plane that is gone, and its return: what is still valid keeps serving, what has expired fails closed, and
//! nobody waits for another's trouble.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::time::{Duration, Instant, SystemTime};

use nexus_tests::agent;
use nexus_tests::broker::{Answer, Broker, Front, Outage, Provider, Standing};
use nexus_tests::connection;
use nexus_tests::guarded::{Accepts, Guarded, REFUSED};
use nexus_tests::route::Route;
use nexus_tests::sidecar::Sidecar;
use nexus_tests::upstream::Upstream;
use nexus_tests::wait;

const OUTAGES: [Outage; 4] = [
    Outage::Refused,
    Outage::Unavailable,
    Outage::Hangs,
    Outage::Database,
];
/// Long enough for the sidecar's allowance for skew to leave some of it.
const LIFE: Duration = Duration::from_secs(5);

fn assert_unavailable(answer: &agent::Answer, what: &str) {
    assert_eq!(
        (answer.status, answer.error()),
        (503, "broker_unavailable"),
        "{what}: {}",
        answer.text()
    );
    let after: u64 = answer.header("retry-after").parse().unwrap();
    assert!(after >= 1, "{what}");
}

async fn until_expired(guarded: &Guarded) {
    let expires_at = guarded.broker.current(&Guarded::id()).expires_at.unwrap();
    wait::until("the expiry", || {
        (SystemTime::now() >= expires_at).then_some(())
    })
    .await;
}

async fn recovers(guarded: &Guarded, what: &str) {
    wait::within(what, async {
        while guarded.get("/").send().await.status != 200 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_still_valid_keeps_serving_through_every_outage() {
    for outage in OUTAGES {
        let guarded = Guarded::by(Provider::new("p")).await;
        assert_eq!(guarded.get("/").send().await.status, 200);
        guarded.broker.outage(outage).await;
        for _ in 0..20 {
            assert_eq!(guarded.get("/").send().await.status, 200, "{outage:?}");
        }
        // A rejection makes it ask, which tells nothing, and takes nothing away.
        guarded.accept(Accepts::Nothing);
        let answer = guarded.get("/").send().await;
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (401, REFUSED),
            "{outage:?}"
        );
        guarded.accept(Accepts::Everything);
        assert_eq!(guarded.get("/").send().await.status, 200, "{outage:?}");
        assert_eq!(guarded.refreshes(), 0, "{outage:?}");
        let tokens = guarded.sent();
        assert!(
            tokens.iter().all(|token| *token == guarded.current()),
            "{outage:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_static_key_outlives_an_outage_past_its_age() {
    for outage in OUTAGES {
        let broker = Broker::start(Front::Broker, None).await;
        let id = connection(1);
        broker.set(&id, Answer::header("X-API-Key", "key-of-the-outage"));
        let upstream = Upstream::start().await;
        let route = Route::new("p", &upstream.url()).connection(&id);
        let builder = Sidecar::run().route(&route).control(&broker);
        let sidecar = builder.arg("--credential-max-age=1s").start().await;
        let get = || sidecar.agent().get("/").provider("p").send();
        assert_eq!(get().await.status, 200);
        broker.outage(outage).await;
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(3) {
            let answer = get().await;
            assert_eq!(answer.status, 200, "{outage:?}: {}", answer.text());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        broker.set(&id, Answer::header("X-API-Key", "key-after-the-outage"));
        broker.outage(Outage::None).await;
        wait::within("the new key", async {
            loop {
                assert_eq!(get().await.status, 200, "{outage:?}");
                if upstream.last().header("x-api-key") == "key-after-the-outage" {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_expired_fails_closed_and_recovers() {
    let mut tests = tokio::task::JoinSet::new();
    for outage in OUTAGES {
        tests.spawn(async move {
            let what = format!("{outage:?}");
            let guarded = Guarded::by(Provider::new("p").life(LIFE)).await;
            assert_eq!(guarded.get("/").send().await.status, 200, "{what}");
            guarded.broker.outage(outage).await;
            until_expired(&guarded).await;
            let before = guarded.upstream.seen().len();
            for _ in 0..3 {
                assert_unavailable(&guarded.get("/").send().await, &what);
            }
            assert_eq!(
                guarded.upstream.seen().len(),
                before,
                "{what}: sent all the same"
            );
            guarded.broker.outage(Outage::None).await;
            recovers(&guarded, &what).await;
            assert_eq!(guarded.sent().last().unwrap(), &guarded.current(), "{what}");
            assert_eq!(guarded.broker.max_in_flight(&Guarded::id()), 1, "{what}");
            let standing = guarded.broker.standing(&Guarded::id());
            assert_eq!(standing, Standing::Active, "{what}");
        });
    }
    while let Some(test) = tests.join_next().await {
        test.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_never_worked_is_unavailable_but_unknown_to_a_broker_without_database() {
    for outage in OUTAGES {
        let guarded = Guarded::by(Provider::new("p")).await;
        guarded.broker.outage(outage).await;
        let answer = guarded.get("/").send().await;
        if outage == Outage::Database {
            assert_eq!((answer.status, answer.error()), (404, "connection_unknown"));
        } else {
            assert_unavailable(&answer, &format!("{outage:?}"));
        }
        guarded.broker.outage(Outage::None).await;
        recovers(&guarded, &format!("{outage:?}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_not_made_worse_by_many_callers() {
    const CALLERS: usize = 200;
    let guarded = Guarded::by(Provider::new("p")).await;
    let failing = Answer::status(503, "broker_unavailable");
    guarded
        .broker
        .script(&Guarded::id(), vec![failing; CALLERS]);
    let start = Instant::now();
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..CALLERS {
        callers.spawn(guarded.get("/").send());
    }
    while let Some(answer) = callers.join_next().await {
        assert_unavailable(&answer.unwrap(), "a caller");
    }
    // Pauses are a tenth of a second at least, however few of them this machine found time for.
    let most = 1 + start.elapsed().as_millis() / 100;
    let calls = guarded.calls() as u128;
    assert!(calls <= most, "{calls} calls in {:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_in_trouble_does_not_delay_another() {
    const BAD: u32 = 12;
    const GOOD: u32 = 12;
    // What one good connection takes is the measure for all.
    let takes = Duration::from_millis(400);
    let broker = Broker::start(Front::Broker, None).await;
    let upstream = Upstream::start().await;
    let mut route = Route::new("p", &upstream.url());
    for number in 0..BAD + GOOD {
        let answer = match number {
            0..BAD if number % 3 == 0 => Answer::hang(),
            0..BAD if number % 3 == 1 => Answer::status(502, "upstream_error"),
            0..BAD => Answer::oauth2("never comes").trickled(Duration::from_secs(1)),
            _ => Answer::oauth2("token-of-the-good").after(takes),
        };
        broker.set(&connection(number), answer);
        route = route.tenant(&format!("t{number}"), &connection(number));
    }
    let sidecar = Sidecar::with(&broker, &route).await;
    let call = |number: u32| {
        let call = sidecar.agent().get("/").provider("p");
        call.tenant(&format!("t{number}"))
    };
    let start = Instant::now();
    assert_eq!(call(BAD).send().await.status, 200);
    let alone = start.elapsed();

    let stuck: Vec<_> = (0..BAD).map(|bad| tokio::spawn(call(bad).send())).collect();
    wait::until("every bad connection's call", || {
        (0..BAD)
            .all(|bad| broker.calls(&connection(bad)) > 0)
            .then_some(())
    })
    .await;
    let start = Instant::now();
    let mut good = tokio::task::JoinSet::new();
    for number in BAD + 1..BAD + GOOD {
        good.spawn(call(number).send());
    }
    while let Some(answer) = good.join_next().await {
        assert_eq!(answer.unwrap().status, 200);
    }
    let among = start.elapsed();
    assert!(
        among < 5 * alone,
        "{among:?} among bad ones, {alone:?} alone"
    );
    for stuck in stuck {
        assert_unavailable(&stuck.await.unwrap(), "a bad connection");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_connection_is_dropped_as_soon_as_it_is_read() {
    let guarded = Guarded::by(Provider::new("p")).await;
    assert_eq!(guarded.get("/").send().await.status, 200);
    guarded
        .broker
        .set_standing(&Guarded::id(), Standing::Revoked);
    guarded.accept(Accepts::Nothing);
    assert_eq!(guarded.get("/").send().await.status, 401);
    let arrived = guarded.upstream.seen().len();
    let answer = guarded.get("/").send().await;
    assert_eq!(
        (answer.status, answer.error()),
        (403, "connection_inactive")
    );
    assert_eq!(guarded.upstream.seen().len(), arrived);
    // Consented to again.
    guarded
        .broker
        .set_standing(&Guarded::id(), Standing::Active);
    guarded.rotate();
    recovers(&guarded, "the new consent").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_connection_recovers_from_an_outage_that_all_expired_in() {
    const TENANTS: u32 = 40;
    let broker = Broker::start(Front::Broker, None).await;
    let upstream = Upstream::start().await;
    let mut route = Route::new("p", &upstream.url());
    for number in 0..TENANTS {
        let provider = Provider::new("p").life(LIFE);
        broker.connect(
            &connection(number),
            provider.latency(Duration::from_millis(20)),
        );
        route = route.tenant(&format!("t{number}"), &connection(number));
    }
    let sidecar = Sidecar::with(&broker, &route).await;
    let call = |number: u32| {
        let call = sidecar.agent().get("/").provider("p");
        call.tenant(&format!("t{number}"))
    };
    for number in 0..TENANTS {
        assert_eq!(call(number).send().await.status, 200);
    }
    broker.outage(Outage::Refused).await;
    tokio::time::sleep(LIFE).await;
    for number in 0..TENANTS {
        assert_unavailable(&call(number).send().await, "during the outage");
    }
    broker.outage(Outage::None).await;
    let mut agents = tokio::task::JoinSet::new();
    for number in 0..TENANTS {
        let call = call(number);
        agents.spawn(async move {
            while call.clone().send().await.status != 200 {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
    }
    wait::within("all to recover", agents.join_all()).await;
    for number in 0..TENANTS {
        let id = connection(number);
        assert_eq!(broker.standing(&id), Standing::Active);
        assert_eq!(broker.max_in_flight(&id), 1);
    }
    assert!(broker.max_in_flight_of_all() <= 32);
}
