//! Connections with a provider behind them.

use super::*;

#[tokio::test]
async fn a_refresh_brings_new_tokens_on_every_front() {
    for front in FRONTS {
        let broker = Broker::start(front, None).await;
        broker.connect(ID, Provider::new("p").life(Duration::from_secs(5)));
        let caller = Caller::of(&broker);
        let first = caller.access_token().await;
        assert_eq!(
            first,
            caller.access_token().await,
            "{front:?}: GET refreshed"
        );
        let refreshed = caller.refresh().await;
        assert_eq!(refreshed.status, 200, "{front:?}");
        let second = caller.access_token().await;
        assert_ne!(first, second, "{front:?}");
        assert!(refreshed.text().contains(&second), "{front:?}");
        let history = broker.history(ID);
        assert_eq!(history.len(), 2);
        assert_eq!((&history[0].token, &history[1].token), (&first, &second));
        assert!(history[0].superseded.unwrap() >= history[1].stored);
        assert!(history[0].delivered.unwrap() < history[1].stored);
        assert!(history[1].superseded.is_none());
        assert_eq!(broker.issued(&first).unwrap().connection, ID);
        assert_eq!((broker.calls(ID), broker.refreshes(ID)), (3, 1));
    }
}

#[tokio::test]
async fn two_refreshes_at_once_with_a_one_time_token_end_in_attention() {
    let provider = Provider::new("p").latency(Duration::from_millis(100));
    let (broker, caller) = broker_with(provider).await;
    let (one, two) = tokio::join!(caller.refresh(), caller.refresh());
    let mut statuses = [one.status, two.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 409], "{} {}", one.text(), two.text());
    assert_eq!(broker.max_in_flight(ID), 2);
    assert_eq!(broker.standing(ID), Standing::Attention);
    assert_eq!(code(&caller.token().await), says(409, "attention_required"));
    assert_eq!(
        code(&caller.refresh().await),
        says(404, "connection_not_found"),
        "from the second call on"
    );
}

#[tokio::test]
async fn refreshes_one_after_the_other_keep_the_connection() {
    let provider = Provider::new("p").latency(Duration::from_millis(10));
    let (broker, caller) = broker_with(provider).await;
    for _ in 0..10 {
        assert_eq!(caller.refresh().await.status, 200);
    }
    assert_eq!(broker.standing(ID), Standing::Active);
    assert_eq!(
        (broker.history(ID).len(), broker.max_in_flight(ID)),
        (11, 1)
    );
}

#[tokio::test]
async fn a_kept_refresh_token_can_be_used_at_once_by_many() {
    let provider = Provider::new("p").refresh_token(RefreshToken::Kept);
    let (broker, caller) = broker_with(provider.latency(Duration::from_millis(50))).await;
    let (one, two) = tokio::join!(caller.refresh(), caller.refresh());
    assert_eq!((one.status, two.status), (200, 200));
    assert_eq!(broker.standing(ID), Standing::Active);
}

#[tokio::test]
async fn an_omitted_refresh_token_is_lost_with_the_first_refresh() {
    let provider = Provider::new("p").refresh_token(RefreshToken::Omitted);
    let (_broker, caller) = broker_with(provider).await;
    let before = caller.token().await.json();
    assert!(before["credentials"]["refresh_token"].is_string());
    assert_eq!(caller.refresh().await.status, 200);
    let after = caller.token().await.json();
    assert!(after["credentials"]["access_token"].is_string());
    assert!(after["credentials"].get("refresh_token").is_none());
    assert_eq!(code(&caller.refresh().await), says(400, "no_refresh_token"));
    assert_eq!(caller.token().await.json(), after);
}

#[tokio::test]
async fn static_credentials_cannot_be_refreshed() {
    let broker = Broker::start(Front::Broker, None).await;
    let caller = Caller::of(&broker);
    broker.set(ID, Answer::header("X-API-Key", "key"));
    assert_eq!(code(&caller.refresh().await), says(400, "static_token"));
    broker.set(ID, Answer::oauth2("token"));
    assert_eq!(code(&caller.refresh().await), says(400, "no_refresh_token"));
    broker.set_refresh(ID, Answer::status(500, "decrypt_failed"));
    assert_eq!(code(&caller.refresh().await), says(500, "decrypt_failed"));
}

#[tokio::test]
async fn a_token_expires_at_the_second_its_payload_names() {
    let (broker, caller) = broker_with(Provider::new("p").life(Duration::from_secs(2))).await;
    let payload = caller.token().await.json();
    assert_eq!(payload["credentials"]["expires_in"], 2);
    assert_eq!(payload["credentials"]["expired"], false);
    let named: jiff::Timestamp = payload["credentials"]["expires_at"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let expires_at = broker.current(ID).expires_at.unwrap();
    assert_eq!(expires_at, std::time::SystemTime::from(named));
    wait::within("the expiry", async {
        while caller.token().await.json()["credentials"]["expired"] != true {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert!(std::time::SystemTime::now() >= expires_at);
    assert_eq!(caller.refresh().await.status, 200, "still refreshable");
    assert_eq!(caller.token().await.json()["credentials"]["expired"], false);
}

#[tokio::test]
async fn a_lost_answer_leaves_the_new_tokens_in_the_broker() {
    let (broker, caller) = broker_with(Provider::new("p")).await;
    let first = caller.access_token().await;
    broker.script_refresh(ID, [Answer::genuine().lost()]);
    assert!(caller.refresh_call(ID).open().await.is_err());
    let second = caller.access_token().await;
    assert_ne!(first, second);
    assert_eq!(second, broker.current(ID).token);
    assert_eq!(caller.refresh().await.status, 200);
    assert_eq!(broker.standing(ID), Standing::Active);
}

#[tokio::test]
async fn a_refresh_goes_on_after_its_caller_has_hung_up() {
    let provider = Provider::new("p").latency(Duration::from_millis(300));
    let (broker, caller) = broker_with(provider).await;
    let first = broker.current(ID).token;
    let call = tokio::spawn(caller.refresh_call(ID).open());
    wait::until("the call", || (broker.refreshes(ID) == 1).then_some(())).await;
    call.abort();
    wait::until("the new token", || {
        (broker.current(ID).token != first).then_some(())
    })
    .await;
    assert_eq!(broker.standing(ID), Standing::Active);
}

#[tokio::test]
async fn provider_troubles_end_as_recorded() {
    let (broker, caller) = broker_with(Provider::new("p").trouble(Trouble::Fails)).await;
    assert_eq!(code(&caller.refresh().await), says(502, "upstream_error"));
    assert_eq!(caller.refresh().await.status, 200, "nothing was lost");

    broker.trouble(ID, Trouble::AnswersWithError);
    let answer = caller.refresh().await;
    assert_eq!(answer.text(), r#"{"error":"bad_refresh_token","ok":false}"#);
    let payload = caller.token().await.json();
    assert!(payload.get("access_token").is_none(), "{payload}");
    assert_eq!(code(&caller.refresh().await), says(400, "no_refresh_token"));

    broker.connect(ID, Provider::new("p").trouble(Trouble::LosesItsAnswer));
    let before = caller.access_token().await;
    assert_eq!(code(&caller.refresh().await), says(502, "upstream_error"));
    assert_eq!(caller.access_token().await, before);
    assert_eq!(
        code(&caller.refresh().await),
        says(409, "attention_required")
    );

    broker.connect(ID, Provider::new("p").trouble(Trouble::Refuses));
    assert_eq!(
        code(&caller.refresh().await),
        says(409, "attention_required")
    );
    assert_eq!(broker.standing(ID), Standing::Attention);
}

#[tokio::test]
async fn every_standing_answers_as_recorded() {
    let (broker, caller) = broker_with(Provider::new("p")).await;
    for (standing, expected) in [
        (Standing::Pending, says(403, "connection_not_active")),
        (Standing::Failed, says(403, "connection_not_active")),
        (Standing::Revoked, says(403, "connection_not_active")),
        (Standing::Attention, says(409, "attention_required")),
    ] {
        broker.set_standing(ID, standing);
        assert_eq!(code(&caller.token().await), expected, "{standing:?}");
        assert_eq!(
            code(&caller.refresh().await),
            says(404, "connection_not_found")
        );
    }
    broker.set_standing(ID, Standing::Active);
    assert_eq!(caller.refresh().await.status, 200);
}

#[tokio::test]
async fn a_rotation_shows_in_the_next_token_and_not_in_one_that_is_being_answered() {
    let (broker, caller) = broker_with(Provider::new("p")).await;
    let first = caller.access_token().await;
    broker.script(ID, [Answer::genuine().after(Duration::from_millis(200))]);
    let (late, ()) = tokio::join!(caller.access_token(), async {
        wait::until("the call", || (broker.calls(ID) == 2).then_some(())).await;
        broker.rotate(ID);
    });
    assert_eq!(late, first, "read before the rotation");
    assert_eq!(caller.access_token().await, broker.current(ID).token);
    assert_ne!(broker.current(ID).token, first);
}

#[tokio::test]
async fn a_rotation_between_refreshes_does_not_use_a_token_up() {
    let provider = Provider::new("p").latency(Duration::from_millis(200));
    let (broker, caller) = broker_with(provider).await;
    let first = broker.current(ID).token;
    let (answer, rotated) = tokio::join!(caller.refresh(), async {
        wait::until("the refresh", || (broker.refreshes(ID) == 1).then_some(())).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        broker.rotate_between_refreshes(ID)
    });
    assert_eq!((answer.status, rotated), (200, false));
    let second = broker.current(ID).token;
    assert!(broker.rotate_between_refreshes(ID));
    let third = broker.current(ID).token;
    assert!(first != second && second != third);
    assert_eq!(caller.refresh().await.status, 200);
    assert_eq!(broker.standing(ID), Standing::Active);
}
