//! Scripts, failures, outages, and what is counted meanwhile.

use super::*;

#[tokio::test]
async fn who_has_hung_up_is_not_in_flight() {
    let broker = Broker::start(Front::Broker, None).await;
    broker.set(ID, Answer::hang());
    let caller = Caller::of(&broker);
    for call in 1..4 {
        let hung = tokio::spawn(caller.token_call(ID).open());
        wait::until("the call", || (broker.calls(ID) == call).then_some(())).await;
        hung.abort();
        assert!(hung.await.unwrap_err().is_cancelled());
        // The connection's own task closes the socket once the request is gone.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(broker.max_in_flight(ID), 1);
    let _waiting = tokio::spawn(caller.token_call(ID).open());
    wait::until("the call", || (broker.calls(ID) == 4).then_some(())).await;
    assert_eq!(broker.max_in_flight(ID), 1);
    caller.refresh().await;
    assert_eq!(broker.max_in_flight(ID), 2, "a refresh counts as a call");
}

#[tokio::test]
async fn a_script_is_used_up_in_order_and_then_the_connection_speaks_for_itself() {
    let (broker, caller) = broker_with(Provider::new("p")).await;
    broker.script(
        ID,
        [
            Answer::status(502, "upstream_error"),
            Answer::genuine(),
            Answer::status(404, "connection_not_found"),
        ],
    );
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(caller.token().await.status);
    }
    assert_eq!(statuses, [502, 200, 404, 200]);
}

#[tokio::test]
async fn a_trickled_answer_takes_as_long_as_its_bytes() {
    let broker = Broker::start(Front::Broker, None).await;
    let bytes = raw::response(404, "", "");
    let pause = Duration::from_millis(2);
    let length = u32::try_from(bytes.len()).unwrap();
    let trickled = Answer::raw(bytes).trickled(pause);
    broker.set(ID, trickled.clone());
    broker.script(ID, [trickled]);
    for _ in 0..2 {
        let start = Instant::now();
        assert_eq!(Caller::of(&broker).token().await.status, 404);
        assert!(start.elapsed() >= pause * (length - 1));
    }
    broker.set(ID, Answer::oauth2("token").lost());
    assert!(Caller::of(&broker).token_call(ID).open().await.is_err());
}

#[tokio::test]
async fn outages_begin_and_end_and_keep_the_port() {
    let (broker, caller) = broker_with(Provider::new("p")).await;
    let first = caller.access_token().await;
    for _ in 0..2 {
        broker.outage(Outage::Refused).await;
        let refused = tokio::net::TcpStream::connect(broker.addr).await;
        assert_eq!(
            refused.unwrap_err().kind(),
            std::io::ErrorKind::ConnectionRefused
        );
        broker.outage(Outage::None).await;
        assert_eq!(caller.access_token().await, first);
    }
    broker.outage(Outage::Unavailable).await;
    assert_eq!(caller.token().await.status, 502);
    broker.outage(Outage::Database).await;
    assert_eq!(
        code(&caller.token().await),
        says(404, "connection_not_found")
    );
    assert_eq!(
        code(&caller.refresh().await),
        says(404, "connection_not_found")
    );
    broker.outage(Outage::Hangs).await;
    let hung = caller.token_call(ID).open();
    assert!(
        tokio::time::timeout(Duration::from_millis(200), hung)
            .await
            .is_err()
    );
    broker.outage(Outage::None).await;
    assert_eq!(caller.access_token().await, first);
}

#[tokio::test]
async fn an_outage_resets_connections_that_were_kept() {
    let (broker, _) = broker_with(Provider::new("p")).await;
    let mut kept = raw::RawAgent::connect(broker.addr).await;
    let request = format!("GET /connections/{ID}/token HTTP/1.1\r\nHost: b\r\n\r\n");
    kept.send(&request).await;
    assert!(matches!(kept.receive().await, raw::Outcome::Response(_)));
    broker.outage(Outage::Refused).await;
    kept.send(&request).await;
    assert_eq!(kept.receive().await, raw::Outcome::Closed);
}

#[tokio::test]
async fn random_failures_have_the_rate_and_repeat_with_the_seed() {
    const CALLS: usize = 400;
    let kinds = [Failure::Status(500), Failure::Status(503), Failure::Cut];
    let mut runs = Vec::new();
    for seed in [7, 7, 8] {
        let (broker, caller) = broker_with(Provider::new("p")).await;
        broker.unreliable(seed, 0.2, &kinds);
        let mut outcomes = Vec::new();
        for _ in 0..CALLS {
            let answer = caller.token_call(ID).open().await;
            outcomes.push(answer.map_or(0, |answer| answer.status().as_u16()));
        }
        let failed = outcomes.iter().filter(|status| **status != 200).count();
        assert_eq!(failed, broker.failures().values().sum::<usize>());
        assert_eq!(broker.failures().len(), kinds.len());
        // Five standard deviations either way.
        assert!((40..=120).contains(&failed), "{failed} of {CALLS}");
        broker.reliable();
        for _ in 0..50 {
            assert_eq!(caller.token().await.status, 200);
        }
        assert_eq!(failed, broker.failures().values().sum::<usize>());
        runs.push(outcomes);
    }
    assert_eq!(runs[0], runs[1]);
    assert_ne!(runs[0], runs[2]);
}

#[tokio::test]
async fn random_failures_of_a_refresh_do_not_use_its_token_up() {
    let (broker, caller) = broker_with(Provider::new("p")).await;
    let kinds = [Failure::Status(502), Failure::Cut];
    broker.unreliable(3, 0.5, &kinds);
    let mut lost = 0;
    for _ in 0..100 {
        let before = broker.current(ID).number;
        let answered = caller.refresh_call(ID).open().await;
        let stored = broker.current(ID).number - before;
        match answered {
            Ok(answer) if answer.status() == 200 => assert_eq!(stored, 1),
            Ok(_) => assert_eq!(stored, 0),
            Err(_) => lost += stored,
        }
    }
    assert!(lost > 0, "{:?}", broker.failures());
    assert_eq!(broker.standing(ID), Standing::Active);
}
