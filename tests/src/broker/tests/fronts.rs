//! Who is answered, and how each front words it.

use super::*;

#[tokio::test]
async fn gateway_passes_statuses_on_without_a_body() {
    let broker = Broker::gateway().await;
    broker.set(ID, Answer::status(403, "connection_not_active"));
    let answer = Caller::of(&broker).token().await;
    assert_eq!((answer.status, answer.body.len()), (403, 0));
    assert_eq!((broker.calls(ID), broker.max_in_flight(ID)), (1, 1));
}

#[tokio::test]
async fn broker_asks_for_its_key_and_answers_under_its_own_path() {
    let broker = Broker::start(Front::Broker, Some("key")).await;
    broker.set(ID, Answer::oauth2("token"));
    let caller = Caller::of(&broker);
    let with = |key: &str| caller.token_call(ID).header("X-API-Key", key).send();
    assert_eq!(caller.token().await.status, 401);
    assert_eq!(with("no").await.status, 403);
    let answer = with("key").await;
    assert_eq!(answer.json()["credentials"]["access_token"], "token");
    assert_eq!(answer.json()["access_token"], "token");
    let other = caller.agent.get(&format!("/v1/token/{ID}"));
    assert_eq!(other.header("X-API-Key", "key").send().await.status, 404);
    broker.require(Access {
        api_key: None,
        bearer: Some("of-today".to_owned()),
    });
    assert_eq!(with("key").await.status, 401);
    let call = caller.token_call(ID);
    let answer = call.header("Authorization", "Bearer of-today").send().await;
    assert_eq!(answer.status, 200);
    let log = broker.log(ID);
    assert_eq!(log.len(), 2, "refused calls are nobody's: {log:?}");
    assert_eq!(log[0].api_key.as_deref(), Some("key"));
    assert_eq!(log[1].authorization.as_deref(), Some("Bearer of-today"));
}

#[tokio::test]
async fn grpc_front_wraps_the_payload_and_hides_every_status() {
    let broker = Broker::start(Front::Grpc, None).await;
    broker.set(ID, Answer::oauth2("token"));
    let caller = Caller::of(&broker);
    assert_eq!(
        caller.token().await.json()["token"]["strategy"]["type"],
        "oauth2"
    );
    broker.set(ID, Answer::status(404, "connection_not_found"));
    let answer = caller.token().await;
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (200, r#"{"token":{}}"#)
    );
}

#[tokio::test]
async fn ids_that_are_no_uuid_are_refused_and_unknown_paths_are_not_found() {
    let broker = Broker::start(Front::Broker, None).await;
    let caller = Caller::of(&broker);
    let answer = caller.token_call("not-a-uuid").send().await;
    assert_eq!(code(&answer), says(400, "invalid_connection_id"));
    assert_eq!(
        code(&caller.token_call(&connection(9)).send().await),
        says(404, "connection_not_found")
    );
    for (method, path) in [("GET", "/"), ("PUT", "/connections/x/token")] {
        let method = method.parse().unwrap();
        let answer = caller.agent.call(method, path).send().await;
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (404, "404 page not found\n")
        );
    }
}

#[tokio::test]
async fn what_a_caller_says_it_rejected_is_seen() {
    let (broker, caller) = broker_with(Provider::new("p")).await;
    let call = caller.refresh_call(ID);
    call.header("X-Nexus-Rejected", "sha256:00").send().await;
    let log = broker.log(ID);
    assert_eq!(log[0].rejected.as_deref(), Some("sha256:00"));
    assert!(log[0].refresh);
}

#[tokio::test]
async fn a_front_with_tls_can_demand_a_client_certificate_and_says_which_it_saw() {
    let authority = Authority::new();
    let clients = Authority::new();
    let tls = authority.server_for_clients_of(Leaf::Valid, &clients);
    let broker = Broker::secure(Front::Gateway, tls).await;
    broker.set(ID, Answer::oauth2("token"));
    let request = format!("GET /v1/token/{ID} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(broker.url().starts_with("https://"));

    let (certificate, key) = clients.client("one");
    let answer = authority
        .exchange(broker.addr, Some((&certificate, &key)), &request)
        .await
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    let seen = broker.log(ID)[0].client_certificate.clone().unwrap();
    assert_eq!(seen, crate::tls::der(&certificate));

    assert!(
        authority
            .exchange(broker.addr, None, &request)
            .await
            .is_err()
    );
    let (certificate, key) = Authority::new().client("stranger");
    let stranger = Some((certificate.as_str(), key.as_str()));
    assert!(
        authority
            .exchange(broker.addr, stranger, &request)
            .await
            .is_err()
    );
    assert_eq!(broker.calls(ID), 1);
}

#[tokio::test]
async fn credentials_that_are_no_object_reach_the_caller_as_they_are() {
    for front in FRONTS {
        let broker = Broker::start(front, None).await;
        broker.set(
            ID,
            Answer::credential(json!({"type": "oauth2"}), json!(null)),
        );
        let payload = Caller::of(&broker).token().await.json();
        let payload = payload.get("token").unwrap_or(&payload).clone();
        assert_eq!(
            payload,
            json!({"strategy": {"type": "oauth2"}, "credentials": null})
        );
    }
}
