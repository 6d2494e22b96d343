//! The stand-in against the recordings: with the recorded tokens in its store it answers the recorded bytes.

use std::time::SystemTime;

use serde_json::{Map, Value};

use super::account::{Account, Grant};
use super::render::{self, Saying};
use super::*;
use crate::raw::Message;
use crate::wire;

const ID: &str = "00000000-0000-4000-8000-000000000001";

/// An account that holds what a recorded payload says.
fn account_of(file: &str, exchange: &str) -> Account {
    let recorded = parse(&wire::response(file, exchange));
    let payload: Value = serde_json::from_slice(&recorded.body).unwrap();
    let payload = payload.get("token").unwrap_or(&payload);
    let mut record = payload["credentials"].as_object().unwrap().clone();
    record.remove("expired");
    let expires_at = record.remove("expires_at").map(|at| {
        let at: jiff::Timestamp = at.as_str().unwrap().parse().unwrap();
        SystemTime::from(at)
    });
    let mut account = Account::new(ID, Provider::new("recorded"));
    account.adopt(record, expires_at);
    account
}

fn parse(bytes: &[u8]) -> Message {
    let mut messages = Message::all(bytes).unwrap();
    assert_eq!(messages.len(), 1);
    messages.remove(0)
}

/// Equal to the byte, but for the date and, of the gRPC front, spaces that it puts at random.
fn assert_same(front: Front, ours: &[u8], file: &str, exchange: &str) {
    let what = format!("{front:?} {file}: {exchange}");
    let recorded = parse(&wire::response(file, exchange));
    let ours = parse(ours);
    assert_eq!(ours.start, recorded.start, "{what}");
    if front == Front::Grpc {
        let json = |message: &Message| serde_json::from_slice::<Value>(&message.body).unwrap();
        assert_eq!(json(&ours), json(&recorded), "{what}");
        assert_eq!(sorted_names(&ours), sorted_names(&recorded), "{what}");
        return;
    }
    let text = |message: &Message| String::from_utf8(message.body.clone()).unwrap();
    assert_eq!(text(&ours), text(&recorded), "{what}");
    let headers = |message: &Message| -> Vec<(String, String)> {
        let headers = message.headers.iter().cloned();
        headers
            .map(|(name, value)| match name.as_str() {
                "Date" => (name, "(a date)".to_owned()),
                _ => (name, value),
            })
            .collect()
    };
    assert_eq!(headers(&ours), headers(&recorded), "{what}");
}

fn sorted_names(message: &Message) -> Vec<&str> {
    let mut names: Vec<&str> = message.headers.iter().map(|(n, _)| n.as_str()).collect();
    names.sort_unstable();
    names
}

const FRONTS: [(Front, &str); 3] = [
    (Front::Gateway, "gateway token"),
    (Front::Broker, "broker token"),
    (Front::Grpc, "grpc-gateway HTTP front"),
];

/// The recorded expiry lies in the past by now, or will.
fn token(account: &Account, expired: bool) -> Saying {
    match account.token() {
        Saying::Credential {
            strategy,
            mut credentials,
        } => {
            if let Some(flag) = credentials.get_mut("expired") {
                *flag = expired.into();
            }
            Saying::Credential {
                strategy,
                credentials,
            }
        }
        other => other,
    }
}

#[test]
fn oauth2_credentials_are_the_recorded_bytes() {
    for file in [
        "token-oauth-rotate",
        "token-oauth-rotate-tenant-b",
        "token-oauth-omit-rt",
        "token-oauth-keep-rt",
        "token-oauth-no-rt",
        "token-oauth-no-expiry",
        "token-oauth-short",
    ] {
        for (front, exchange) in FRONTS {
            let account = account_of(file, exchange);
            let ours = token(&account, false).render(front);
            assert_same(front, &ours, file, exchange);
        }
    }
}

#[test]
fn an_expired_credential_is_the_recorded_bytes_and_flagged_by_the_clock() {
    for (front, exchange) in [
        (Front::Gateway, "gateway token 3 s later"),
        (Front::Broker, "broker token 3 s later"),
    ] {
        let mut account = account_of("expired", exchange);
        assert_same(
            front,
            &token(&account, true).render(front),
            "expired",
            exchange,
        );
        let Saying::Credential { credentials, .. } = account.token() else {
            panic!("expiry does not change the status");
        };
        let at: jiff::Timestamp = credentials["expires_at"].as_str().unwrap().parse().unwrap();
        let expired = SystemTime::from(at) <= SystemTime::now();
        assert_eq!(credentials["expired"], expired);
        account.adopt(Map::new(), Some(SystemTime::UNIX_EPOCH));
        let Saying::Credential { credentials, .. } = account.token() else {
            panic!("expiry does not change the status");
        };
        assert_eq!(credentials["expired"], true);
    }
}

#[test]
fn static_credentials_are_the_recorded_bytes() {
    for file in [
        "token-key-plain",
        "token-basic-plain",
        "token-hmac-sha256-hex",
    ] {
        for (front, exchange) in FRONTS {
            let recorded = parse(&wire::response(file, exchange));
            let payload: Value = serde_json::from_slice(&recorded.body).unwrap();
            let payload = payload.get("token").unwrap_or(&payload);
            let ours = Saying::Credential {
                strategy: payload["strategy"].clone(),
                credentials: payload["credentials"].clone(),
            };
            assert_same(front, &ours.render(front), file, exchange);
        }
    }
}

#[test]
fn refreshed_tokens_are_the_recorded_bytes() {
    for (file, front, exchange) in [
        ("refresh-oauth-rotate", Front::Gateway, "gateway refresh 1"),
        ("refresh-oauth-rotate", Front::Broker, "broker refresh 2"),
        ("refresh-oauth-rotate", Front::Grpc, "grpc front refresh"),
        ("refresh-oauth-omit-rt", Front::Gateway, "gateway refresh 1"),
        (
            "refresh-provider-faults",
            Front::Broker,
            "broker refresh, provider says 200 but error object",
        ),
    ] {
        let recorded = parse(&wire::response(file, exchange));
        let answer: Value = serde_json::from_slice(&recorded.body).unwrap();
        let answer = answer.get("token").unwrap_or(&answer);
        let ours = Saying::Refreshed(answer.as_object().unwrap().clone());
        assert_same(front, &ours.render(front), file, exchange);
    }
}

#[test]
fn our_providers_answer_with_the_recorded_fields() {
    for (kind, exchange, fields) in [
        (
            RefreshToken::OneTime,
            "refresh-oauth-rotate",
            "broker refresh 2",
        ),
        (
            RefreshToken::Kept,
            "refresh-oauth-keep-rt",
            "broker refresh 2",
        ),
    ] {
        let recorded = parse(&wire::response(exchange, fields));
        let recorded: Map<String, Value> = serde_json::from_slice(&recorded.body).unwrap();
        let mut account = Account::new(ID, Provider::new("p").refresh_token(kind));
        let refresh_token = account.begin_refresh().ok().unwrap();
        let Grant::Answer(ours) = account.grant(&refresh_token) else {
            panic!("granted");
        };
        let kinds = |fields: &Map<String, Value>| -> Vec<(String, bool)> {
            let fields = fields.iter();
            fields.map(|(n, v)| (n.clone(), v.is_string())).collect()
        };
        assert_eq!(kinds(&ours), kinds(&recorded), "{kind:?}");
        assert_eq!(ours["expires_in"], recorded["expires_in"]);
    }
}

#[test]
fn every_standing_is_the_recorded_bytes() {
    for (file, standing) in [
        ("token-oauth-rotate-attention", Standing::Attention),
        ("token-oauth-rotate-pending", Standing::Pending),
        ("token-oauth-rotate-failed", Standing::Failed),
        ("token-oauth-rotate-revoked", Standing::Revoked),
    ] {
        let mut account = Account::new(ID, Provider::new("p"));
        account.standing = standing;
        for (front, exchange) in FRONTS {
            assert_same(front, &account.token().render(front), file, exchange);
        }
        let name = file.trim_start_matches("token-oauth-rotate-");
        let refused = account.begin_refresh().unwrap_err();
        for (front, who) in [(Front::Gateway, "gateway"), (Front::Broker, "broker")] {
            let exchange = format!("{who} refresh oauth-rotate@{name}");
            assert_same(front, &refused.render(front), "refresh-states", &exchange);
        }
    }
}

/// Over the wire: what no account is needed for.
#[tokio::test]
async fn refusals_are_the_recorded_bytes() {
    let broker = Broker::start(Front::Broker, None).await;
    let ask = |path: String, method: &str, key: Option<&str>| {
        let key = key.map_or_else(String::new, |key| format!("X-API-Key: {key}\r\n"));
        let request = format!("{method} {path} HTTP/1.1\r\nHost: b\r\n{key}\r\n");
        exchange(&broker, request)
    };
    let token = |id: &str| format!("/connections/{id}/token");
    let refresh = |id: &str| format!("/connections/{id}/refresh");
    for (ours, file, exchange) in [
        (
            ask(token(ID), "GET", None).await,
            "token-unknown",
            "broker token",
        ),
        (
            ask(refresh(ID), "POST", None).await,
            "refresh-states",
            "broker refresh unknown",
        ),
        (
            ask(token("not-a-uuid"), "GET", None).await,
            "ids",
            "broker  malformed",
        ),
        (
            ask(refresh("not-a-uuid"), "POST", None).await,
            "refresh-states",
            "broker refresh malformed",
        ),
    ] {
        assert_same(Front::Broker, &ours, file, exchange);
    }
    broker.outage(Outage::Database).await;
    for (ours, exchange) in [
        (ask(token(ID), "GET", None).await, "broker token"),
        (ask(refresh(ID), "POST", None).await, "broker refresh"),
    ] {
        assert_same(Front::Broker, &ours, "database-down", exchange);
    }
    broker.outage(Outage::None).await;
    broker.set(ID, Answer::header("X-API-Key", "key"));
    let ours = ask(refresh(ID), "POST", None).await;
    assert_same(
        Front::Broker,
        &ours,
        "refresh-static",
        "broker refresh key-plain",
    );
    broker.require(Access {
        api_key: Some("key".to_owned()),
        bearer: None,
    });
    for (ours, exchange) in [
        (ask(token(ID), "GET", None).await, "no key"),
        (ask(token(ID), "GET", Some("nope")).await, "wrong key"),
        (ask(refresh(ID), "POST", None).await, "refresh, no key"),
        (ask(token("x"), "GET", None).await, "malformed id, no key"),
    ] {
        assert_same(Front::Broker, &ours, "auth-broker", exchange);
    }
}

#[tokio::test]
async fn refreshing_twice_at_once_answers_the_recorded_refusal() {
    let broker = Broker::start(Front::Broker, None).await;
    broker.connect(ID, Provider::new("p").trouble(Trouble::Refuses));
    let request = format!("POST /connections/{ID}/refresh HTTP/1.1\r\nHost: b\r\n\r\n");
    let ours = exchange(&broker, request.clone()).await;
    let file = "refresh-provider-faults";
    let recorded = "broker refresh, provider says 400 invalid_grant";
    assert_same(Front::Broker, &ours, file, recorded);
    let ours = exchange(&broker, request).await;
    let recorded = "  then broker refresh again (provider well)";
    assert_same(Front::Broker, &ours, file, recorded);
}

#[test]
fn an_unreachable_broker_is_the_recorded_bytes() {
    for exchange in ["gateway token, broker port closed", "gateway refresh"] {
        let ours = Saying::Unavailable.render(Front::Gateway);
        assert_same(Front::Gateway, &ours, "broker-down", exchange);
    }
    let ours = parse(&Saying::Unavailable.render(Front::Grpc));
    let recorded = parse(&wire::response("grpc-front-broker-down", "token"));
    assert_eq!(ours.start, recorded.start);
    assert_eq!(sorted_names(&ours), sorted_names(&recorded));
    let keys = |message: &Message| -> Vec<String> {
        let body: Map<String, Value> = serde_json::from_slice(&message.body).unwrap();
        body.into_iter().map(|(name, _)| name).collect()
    };
    assert_eq!(keys(&ours), keys(&recorded));
}

#[test]
fn an_unknown_path_is_the_recorded_bytes() {
    let ours = render::no_such_path(Front::Gateway);
    assert_same(Front::Gateway, &ours, "ids", "gateway unknown path");
}

/// Sends a request and returns the bytes of the answer.
async fn exchange(broker: &Broker, request: String) -> Vec<u8> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(broker.addr).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    while Message::take(&mut bytes.clone()).unwrap().is_none() {
        assert_ne!(stream.read_buf(&mut bytes).await.unwrap(), 0);
    }
    bytes
}
