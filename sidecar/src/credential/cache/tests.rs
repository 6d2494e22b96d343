use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::get;
use http::StatusCode;
use nexus_crds::names::ConnectionId;
use tokio::task::JoinSet;

use super::*;
use crate::credential::Application;
use crate::credential::client::{ControlPlaneConfig, Flavour};

/// A gateway whose answers, by connection, can be changed while it runs.
#[derive(Default)]
struct Gateway {
    answers: Mutex<HashMap<String, (u16, String)>>,
    delays: Mutex<HashMap<String, Duration>>,
    calls: AtomicUsize,
}

impl Gateway {
    fn set(&self, id: ConnectionId, status: u16, body: impl Into<String>) {
        self.answers
            .lock()
            .unwrap()
            .insert(id.to_string(), (status, body.into()));
    }

    fn delay(&self, id: ConnectionId, delay: Duration) {
        self.delays.lock().unwrap().insert(id.to_string(), delay);
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

async fn answer(
    State(gateway): State<Arc<Gateway>>,
    Path(id): Path<String>,
) -> (StatusCode, String) {
    gateway.calls.fetch_add(1, Ordering::SeqCst);
    let delay = gateway
        .delays
        .lock()
        .unwrap()
        .get(&id)
        .copied()
        .unwrap_or_default();
    tokio::time::sleep(delay).await;
    let (status, body) = gateway
        .answers
        .lock()
        .unwrap()
        .get(&id)
        .cloned()
        .unwrap_or((404, String::new()));
    (StatusCode::from_u16(status).unwrap(), body)
}

async fn start(settings: CacheSettings) -> (Arc<Gateway>, Arc<CredentialCache>) {
    let gateway = Arc::new(Gateway::default());
    let router = Router::new()
        .route("/v1/token/{id}", get(answer))
        .with_state(Arc::clone(&gateway));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap())
        .parse()
        .unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let control = ControlPlane::new(ControlPlaneConfig::new(Flavour::Gateway, url)).unwrap();
    (
        gateway,
        CredentialCache::new(Arc::new(control), settings, Arc::default()),
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

async fn get_one(
    cache: &Arc<CredentialCache>,
    number: u128,
) -> Result<Arc<Credential>, ProxyError> {
    cache.get(key(number), connection(number), None).await
}

fn bearer(token: &str, rest: &str) -> String {
    format!(
        r#"{{"strategy":{{"type":"oauth2"}},"credentials":{{"access_token":"{token}"{rest}}}}}"#
    )
}

fn value(credential: &Credential) -> String {
    let Application::Headers(headers) = credential.application() else {
        panic!("not headers");
    };
    headers[0].1.to_str().unwrap().to_owned()
}

fn quick() -> CacheSettings {
    CacheSettings {
        max_age: Duration::from_millis(100),
        negative: Duration::from_millis(100),
        attention: Duration::from_millis(200),
        backoff: Duration::from_millis(50),
        ..CacheSettings::default()
    }
}

#[tokio::test]
async fn a_thousand_callers_of_a_cold_key_cause_one_call() {
    let (gateway, cache) = start(CacheSettings::default()).await;
    gateway.set(connection(1).id, 200, bearer("t", ""));
    gateway.delay(connection(1).id, Duration::from_millis(200));
    let mut callers = JoinSet::new();
    for _ in 0..1000 {
        let cache = Arc::clone(&cache);
        callers.spawn(async move { get_one(&cache, 1).await });
    }
    let results = callers.join_all().await;
    assert!(results.iter().all(Result::is_ok));
    assert_eq!(gateway.calls(), 1);
    assert!(cache.cached(&key(1), SystemTime::now()).is_some());
    assert_eq!((cache.stats().fetches(), cache.stats().hits()), (1, 1));
}

#[tokio::test]
async fn a_first_caller_that_goes_away_costs_no_second_call_and_no_error() {
    let (gateway, cache) = start(CacheSettings::default()).await;
    gateway.set(connection(1).id, 200, bearer("t", ""));
    gateway.delay(connection(1).id, Duration::from_millis(200));
    let first = tokio::spawn({
        let cache = Arc::clone(&cache);
        async move { get_one(&cache, 1).await }
    });
    while gateway.calls() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut others = JoinSet::new();
    for _ in 0..100 {
        let cache = Arc::clone(&cache);
        others.spawn(async move { get_one(&cache, 1).await });
    }
    tokio::task::yield_now().await;
    first.abort();
    assert!(others.join_all().await.iter().all(Result::is_ok));
    assert_eq!(gateway.calls(), 1);
}

#[tokio::test]
async fn a_failed_fetch_is_one_error_for_all_and_is_remembered() {
    let (gateway, cache) = start(CacheSettings::default()).await;
    gateway.set(connection(1).id, 409, r#"{"error":"attention_required"}"#);
    gateway.delay(connection(1).id, Duration::from_millis(100));
    let mut callers = JoinSet::new();
    for _ in 0..1000 {
        let cache = Arc::clone(&cache);
        callers.spawn(async move { get_one(&cache, 1).await });
    }
    for result in callers.join_all().await {
        assert_eq!(result.unwrap_err().code, Code::AttentionRequired);
    }
    assert_eq!(
        get_one(&cache, 1).await.unwrap_err().code,
        Code::AttentionRequired
    );
    assert_eq!(gateway.calls(), 1);
    assert_eq!(cache.stats().failures(), 1);
}

#[tokio::test]
async fn a_remembered_failure_ends() {
    let (gateway, cache) = start(CacheSettings {
        negative: Duration::from_millis(500),
        ..quick()
    })
    .await;
    assert_eq!(
        get_one(&cache, 1).await.unwrap_err().code,
        Code::ConnectionUnknown
    );
    gateway.set(connection(1).id, 200, bearer("t", ""));
    assert!(get_one(&cache, 1).await.is_err());
    tokio::time::sleep(Duration::from_millis(550)).await;
    assert!(get_one(&cache, 1).await.is_ok());
}

#[tokio::test]
async fn a_slow_connection_does_not_delay_another() {
    let (gateway, cache) = start(CacheSettings::default()).await;
    gateway.set(connection(1).id, 200, bearer("slow", ""));
    gateway.delay(connection(1).id, Duration::from_secs(2));
    gateway.set(connection(2).id, 200, bearer("quick", ""));
    let slow = tokio::spawn({
        let cache = Arc::clone(&cache);
        async move { get_one(&cache, 1).await }
    });
    let started = std::time::Instant::now();
    assert!(get_one(&cache, 2).await.is_ok());
    assert!(started.elapsed() < Duration::from_secs(1));
    slow.abort();
}

#[tokio::test]
async fn an_expired_credential_is_never_given_out() {
    let (gateway, cache) = start(quick()).await;
    gateway.set(connection(1).id, 200, bearer("t", r#","expired":true"#));
    assert_eq!(
        get_one(&cache, 1).await.unwrap_err().code,
        Code::CredentialInvalid
    );
    gateway.set(connection(2).id, 200, bearer("t", r#","expires_at":1000"#));
    assert_eq!(
        get_one(&cache, 2).await.unwrap_err().code,
        Code::CredentialInvalid
    );
    assert!(cache.cached(&key(2), SystemTime::now()).is_none());
}

#[tokio::test]
async fn a_short_life_is_used_in_part_and_not_to_its_end() {
    let (gateway, cache) = start(CacheSettings::default()).await;
    gateway.set(connection(1).id, 200, bearer("t", r#","expires_in":2"#));
    let expires_at = get_one(&cache, 1).await.unwrap().expires_at().unwrap();
    let before = |left| expires_at - Duration::from_millis(left);
    assert!(cache.cached(&key(1), before(600)).is_some());
    assert!(cache.cached(&key(1), before(400)).is_none());
    assert!(cache.cached(&key(1), expires_at).is_none());
}

#[tokio::test]
async fn a_relative_expiry_counts_from_when_the_value_was_first_seen() {
    let (gateway, cache) = start(quick()).await;
    gateway.set(connection(1).id, 200, bearer("t", r#","expires_in":"1""#));
    let first = get_one(&cache, 1).await.unwrap().expires_at().unwrap();
    tokio::time::sleep(Duration::from_millis(800)).await;
    // Past the margin: read again, the same value has not grown younger.
    let error = get_one(&cache, 1).await;
    let same = error.map_or(first, |credential| credential.expires_at().unwrap());
    assert_eq!(same, first);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(
        get_one(&cache, 1).await.unwrap_err().code,
        Code::CredentialInvalid
    );
    gateway.set(connection(1).id, 200, bearer("new", r#","expires_in":"1""#));
    tokio::time::sleep(Duration::from_millis(120)).await;
    assert!(get_one(&cache, 1).await.unwrap().expires_at().unwrap() > first);
}

#[tokio::test]
async fn a_static_credential_is_read_again_in_the_background() {
    let (gateway, cache) = start(quick()).await;
    gateway.set(connection(1).id, 200, bearer("old", ""));
    get_one(&cache, 1).await.unwrap();
    gateway.set(connection(1).id, 200, bearer("new", ""));
    gateway.delay(connection(1).id, Duration::from_secs(1));
    tokio::time::sleep(Duration::from_millis(120)).await;
    assert!(cache.cached(&key(1), SystemTime::now()).is_none());
    for _ in 0..50 {
        assert_eq!(value(&get_one(&cache, 1).await.unwrap()), "Bearer old");
        assert!(cache.cached(&key(1), SystemTime::now()).is_some());
    }
    assert!(gateway.calls() <= 2);
    while value(&get_one(&cache, 1).await.unwrap()) != "Bearer new" {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_failing_read_keeps_a_valid_credential_and_a_revocation_drops_it() {
    let (gateway, cache) = start(quick()).await;
    gateway.set(connection(1).id, 200, bearer("t", ""));
    get_one(&cache, 1).await.unwrap();
    for (status, body) in [
        (502, ""),
        (404, ""),
        (403, ""),
        (409, ""),
        (200, "<html>"),
        (200, r#"{"token":{}}"#),
    ] {
        gateway.set(connection(1).id, status, body);
        let calls = gateway.calls();
        while gateway.calls() == calls {
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert!(get_one(&cache, 1).await.is_ok(), "{status} {body}");
        }
    }
    gateway.set(connection(1).id, 410, r#"{"error":"connection_revoked"}"#);
    let mut result = get_one(&cache, 1).await;
    for _ in 0..100 {
        if result.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        result = get_one(&cache, 1).await;
    }
    assert_eq!(result.unwrap_err().code, Code::ConnectionInactive);
    assert!(cache.cached(&key(1), SystemTime::now()).is_none());
}

#[tokio::test]
async fn an_unknown_connection_that_worked_lately_is_an_outage() {
    let (gateway, cache) = start(quick()).await;
    gateway.set(connection(1).id, 200, bearer("t", r#","expires_in":1"#));
    get_one(&cache, 1).await.unwrap();
    gateway.set(connection(1).id, 404, "");
    tokio::time::sleep(Duration::from_millis(1050)).await;
    let error = get_one(&cache, 1).await.unwrap_err();
    assert_eq!(error.code, Code::BrokerUnavailable);
    assert!(error.retry_after.is_some());
}

#[tokio::test]
async fn a_table_swap_drops_credentials_and_failures() {
    let (gateway, cache) = start(CacheSettings::default()).await;
    gateway.set(connection(1).id, 200, bearer("t", ""));
    get_one(&cache, 1).await.unwrap();
    assert!(get_one(&cache, 2).await.is_err());
    cache.retain(|key| *key == CredentialKey::new(connection(3), 0));
    assert!(cache.cached(&key(1), SystemTime::now()).is_none());
    gateway.set(connection(2).id, 200, bearer("t", ""));
    assert!(get_one(&cache, 2).await.is_ok());
}

#[tokio::test]
async fn fields_of_a_second_connection_go_under_the_firsts() {
    let (gateway, cache) = start(CacheSettings::default()).await;
    let merged = Connection {
        key_id: Some(connection(2).id),
        ..connection(1)
    };
    gateway.set(
        connection(1).id,
        200,
        r#"{"strategy":{"type":"basic_auth"},"credentials":{"username":"first"}}"#,
    );
    gateway.set(
        connection(2).id,
        200,
        r#"{"strategy":{"type":"header"},"credentials":{"username":"second","password":"p","expires_at":4000000000}}"#,
    );
    let key = CredentialKey::new(merged, 0);
    let credential = cache.get(key, merged, None).await.unwrap();
    assert_eq!(value(&credential), "Basic Zmlyc3Q6cA==");
    assert!(credential.expires_at().is_some());
    assert_eq!(gateway.calls(), 2);
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
