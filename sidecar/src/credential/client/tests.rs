use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::Request;
use axum::routing::get;
use http::StatusCode;
use tempfile::NamedTempFile;

use super::*;
use crate::credential::status::Outcome;
use crate::credential::{Credential, wire};
use crate::error::Code;

const ID: &str = "160c6817-f20c-4a5b-9a6f-443f9b22a14f";

fn id() -> ConnectionId {
    ID.parse().unwrap()
}

fn config(flavour: Flavour, address: std::net::SocketAddr) -> ControlPlaneConfig {
    ControlPlaneConfig::new(flavour, format!("http://{address}").parse().unwrap())
}

async fn serve(router: Router) -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    address
}

/// Answers with the request line and the headers that authenticate.
fn mirror() -> Router {
    Router::new().fallback(get(|request: Request| async move {
        let header = |name: &str| {
            let value = request
                .headers()
                .get(name)
                .map(|v| v.to_str().unwrap().to_owned());
            value.unwrap_or_default()
        };
        format!(
            "{} {} {}",
            request.uri(),
            header("x-api-key"),
            header("authorization")
        )
    }))
}

fn file(content: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(content.as_bytes()).unwrap();
    file
}

async fn fetched(config: ControlPlaneConfig) -> String {
    let body = ControlPlane::new(config)
        .unwrap()
        .token(id())
        .await
        .unwrap();
    String::from_utf8(body.to_vec()).unwrap()
}

/// What a recorded answer comes to, from the bytes on the wire to the outcome.
async fn outcome(exchange: wire::Exchange) -> Result<Credential, Outcome> {
    let address = wire::replay(exchange.response).await;
    let mut config = config(Flavour::Gateway, address);
    config.timeout = Duration::from_millis(500);
    let payload = ControlPlane::new(config).unwrap().token(id()).await;
    let payload = payload.map_err(|error| error.outcome())?;
    Credential::parse(&payload, None, wire::recorded_at())
        .map_err(|error| FetchError::Payload(error).outcome())
}

#[tokio::test]
async fn each_flavour_has_its_path_and_keeps_a_base_path() {
    let address = serve(mirror()).await;
    let gateway = fetched(config(Flavour::Gateway, address)).await;
    assert_eq!(gateway.trim(), format!("/v1/token/{ID}"));
    let mut broker = config(Flavour::Broker, address);
    broker.url = format!("http://{address}/nexus/").parse().unwrap();
    assert_eq!(
        fetched(broker).await.trim(),
        format!("/nexus/connections/{ID}/token")
    );
}

#[tokio::test]
async fn keys_and_tokens_are_trimmed_and_follow_their_files() {
    let address = serve(mirror()).await;
    let (key, token) = (file("  key-1 \n"), file("token-1\n"));
    let mut config = config(Flavour::Gateway, address);
    config.api_key_file = Some(key.path().to_owned());
    config.token_file = Some(token.path().to_owned());
    let control = ControlPlane::new(config).unwrap();
    let seen = |body: Zeroizing<Vec<u8>>| String::from_utf8(body.to_vec()).unwrap();
    assert!(seen(control.token(id()).await.unwrap()).ends_with(" key-1 Bearer token-1"));
    std::fs::write(key.path(), "key-2").unwrap();
    assert!(seen(control.token(id()).await.unwrap()).ends_with(" key-2 Bearer token-1"));
    std::fs::write(key.path(), "").unwrap();
    let error = control.token(id()).await.unwrap_err();
    assert_eq!(error.outcome().code, Code::BrokerRejected);
}

#[test]
fn clear_text_to_another_machine_needs_permission() {
    let config = |url: &str| ControlPlaneConfig::new(Flavour::Gateway, url.parse().unwrap());
    for url in [
        "http://localhost:1",
        "http://127.9.9.9",
        "http://[::1]:1",
        "https://nexus.example",
    ] {
        assert!(ControlPlane::new(config(url)).is_ok(), "{url}");
    }
    for url in ["http://10.0.0.1", "http://localhost.example"] {
        let error = ControlPlane::new(config(url)).unwrap_err();
        assert!(matches!(error, ConfigError::Insecure(_)), "{url}");
    }
    for url in [
        "https://user:hunter2@nexus.example",
        "http://user@localhost",
    ] {
        let error = ControlPlane::new(config(url)).unwrap_err();
        assert!(matches!(error, ConfigError::UserInfo), "{url}");
        assert!(!error.to_string().contains("hunter2"));
    }
    let mut permitted = config("http://nexus.example");
    permitted.allow_insecure = true;
    assert!(ControlPlane::new(permitted).is_ok());
    assert!(matches!(
        ControlPlane::new(config("ftp://nexus.example")),
        Err(ConfigError::Url(_))
    ));
}

#[test]
fn a_mistaken_file_is_named_at_the_start() {
    let base = || ControlPlaneConfig::new(Flavour::Gateway, "https://localhost".parse().unwrap());
    let mut missing = base();
    missing.api_key_file = Some("/nonexistent/key".into());
    assert!(
        ControlPlane::new(missing)
            .unwrap_err()
            .to_string()
            .contains("/nonexistent/key")
    );
    let mut half = base();
    half.client_cert_file = Some("cert.pem".into());
    assert!(matches!(
        ControlPlane::new(half),
        Err(ConfigError::HalfAnIdentity)
    ));
    let ca = file("not a certificate");
    let mut bad = base();
    bad.ca_file = Some(ca.path().to_owned());
    let error = ControlPlane::new(bad).unwrap_err().to_string();
    assert!(error.contains(ca.path().to_str().unwrap()), "{error}");
}

#[tokio::test]
async fn a_refresh_is_a_post_without_a_body_that_names_what_was_rejected() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let router = Router::new().fallback(move |request: Request| async move {
        let header = |name| {
            request
                .headers()
                .get(name)
                .map(|v| v.to_str().unwrap().to_owned())
        };
        log.lock().unwrap().push((
            format!("{} {}", request.method(), request.uri()),
            header("x-nexus-rejected"),
            header("content-length"),
            header("x-api-key"),
        ));
        r#"{"access_token":"new"}"#
    });
    let address = serve(router).await;
    let key = file("key");
    for (flavour, line) in [
        (Flavour::Gateway, format!("POST /v1/refresh/{ID}")),
        (Flavour::Broker, format!("POST /connections/{ID}/refresh")),
    ] {
        let mut config = config(flavour, address);
        config.api_key_file = Some(key.path().to_owned());
        ControlPlane::new(config)
            .unwrap()
            .refresh(id(), [0xab; 32])
            .await
            .unwrap();
        let (sent, rejected, length, key) = seen.lock().unwrap().pop().unwrap();
        assert_eq!(sent, line);
        assert_eq!(rejected, Some(format!("sha256:{}", "ab".repeat(32))));
        assert_eq!(
            (length.as_deref(), key.as_deref()),
            (Some("0"), Some("key"))
        );
    }
}

/// File, start of the exchange's title, then what the refresh came to.
const REFRESHED: &str = "
    refresh-oauth-rotate | gateway refresh 1 | refreshed
    refresh-oauth-rotate | broker refresh 2 | refreshed
    refresh-oauth-rotate | grpc front refresh | refreshed
    refresh-oauth-no-expiry | gateway refresh 1 | refreshed
    refresh-oauth-omit-rt | broker refresh 2 | denied credential_invalid
    refresh-oauth-omit-rt | gateway refresh 3 | denied credential_invalid
    refresh-oauth-omit-rt | grpc front refresh | open broker_unavailable
    refresh-oauth-no-rt | gateway refresh 1 | denied credential_invalid
    refresh-oauth-basic-client | gateway refresh 1 | denied attention_required
    refresh-oauth-basic-client | broker refresh 2 | open connection_unknown
    refresh-states | gateway refresh oauth-rotate@pending | open connection_unknown
    refresh-states | broker refresh oauth-rotate@attention | open connection_unknown
    refresh-provider-faults | broker refresh, provider says 400 | denied attention_required
    refresh-provider-faults | broker refresh, provider says 429 | denied attention_required
    refresh-provider-faults | broker refresh, provider says 500 | open broker_unavailable";

#[tokio::test]
async fn recorded_refreshes_come_to_their_rows() {
    for row in REFRESHED.trim().lines() {
        let [file, title, expected] = row.trim().split(" | ").collect::<Vec<_>>()[..] else {
            panic!("{row}");
        };
        let address = wire::replay(wire::named(file, title).response).await;
        let control = ControlPlane::new(config(Flavour::Gateway, address)).unwrap();
        let came_to = match control.refresh(id(), [0; 32]).await {
            Ok(()) => "refreshed".to_owned(),
            Err(error) => {
                let denied = if error.denies_refresh() {
                    "denied"
                } else {
                    "open"
                };
                format!("{denied} {}", error.refresh_code().class().code)
            }
        };
        assert_eq!(came_to, expected, "{row}");
    }
}

#[tokio::test]
async fn success_without_a_token_is_no_refresh() {
    for body in [
        "",
        "{}",
        r#"{"token":{}}"#,
        r#"{"access_token":""}"#,
        r#"{"access_token":null}"#,
        r#"{"access_token":5}"#,
        r#"{"ok":false,"error":"invalid_refresh_token"}"#,
        r#"{"error":"broker_unavailable"}"#,
    ] {
        let address = serve(Router::new().fallback(move || async move { body })).await;
        let control = ControlPlane::new(config(Flavour::Gateway, address)).unwrap();
        let error = control.refresh(id(), [0; 32]).await.unwrap_err();
        assert!(matches!(error, FetchError::Payload(_)), "{body}");
    }
}

#[tokio::test]
async fn hung_refreshes_leave_room_for_reading() {
    let router = Router::new().fallback(|request: Request| async move {
        if request.method() == "POST" {
            tokio::time::sleep(Duration::from_mins(5)).await;
        }
        "{}"
    });
    let mut config = config(Flavour::Gateway, serve(router).await);
    config.timeout = Duration::from_millis(500);
    let control = Arc::new(ControlPlane::new(config).unwrap());
    let mut refreshes = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let control = Arc::clone(&control);
        refreshes.spawn(async move { control.refresh(id(), [0; 32]).await });
    }
    // Those that have not got their turn give up.
    for _ in 0..100 - MAX_REFRESHES {
        let given_up = refreshes.join_next().await.unwrap().unwrap();
        assert!(matches!(given_up, Err(FetchError::Busy)));
    }
    assert!(control.token(id()).await.is_ok());
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let hits = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&hits);
    let router = Router::new()
        .route(
            "/elsewhere",
            get(move || async move {
                counted.fetch_add(1, Ordering::SeqCst);
                "{}"
            }),
        )
        .fallback(get(|| async {
            (StatusCode::FOUND, [("location", "/elsewhere")])
        }));
    let control = ControlPlane::new(config(Flavour::Gateway, serve(router).await)).unwrap();
    let error = control.token(id()).await.unwrap_err();
    assert_eq!(error.outcome().code, Code::BrokerUnavailable);
    assert_eq!(hits.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn at_most_32_calls_run_at_once() {
    let (now, peak) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (counted, highest) = (Arc::clone(&now), Arc::clone(&peak));
    let router = Router::new().fallback(get(move || async move {
        highest.fetch_max(counted.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(300)).await;
        counted.fetch_sub(1, Ordering::SeqCst);
        "{}"
    }));
    let control = ControlPlane::new(config(Flavour::Gateway, serve(router).await)).unwrap();
    let control = Arc::new(control);
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let control = Arc::clone(&control);
        calls.spawn(async move { control.token(id()).await.unwrap() });
    }
    calls.join_all().await;
    let peak = peak.load(Ordering::SeqCst);
    assert!(peak <= MAX_CALLS && peak > MAX_CALLS / 2, "{peak}");
}

#[tokio::test]
async fn a_refused_connection_and_a_hung_service_are_outages() {
    let mut refused = config(Flavour::Gateway, "127.0.0.1:1".parse().unwrap());
    refused.timeout = Duration::from_millis(300);
    let error = ControlPlane::new(refused)
        .unwrap()
        .token(id())
        .await
        .unwrap_err();
    assert!(matches!(error, FetchError::Unreachable(_)), "{error}");
    assert!(!error.to_string().contains(ID));

    let mut hung = config(Flavour::Gateway, wire::replay(Vec::new()).await);
    hung.timeout = Duration::from_millis(300);
    let error = ControlPlane::new(hung)
        .unwrap()
        .token(id())
        .await
        .unwrap_err();
    assert!(matches!(error, FetchError::TimedOut), "{error}");
}

#[tokio::test]
async fn an_endless_answer_is_cut_off() {
    let router = Router::new().fallback(get(|| async { "x".repeat(MAX_PAYLOAD + 1) }));
    let control = ControlPlane::new(config(Flavour::Gateway, serve(router).await)).unwrap();
    assert!(matches!(
        control.token(id()).await,
        Err(FetchError::TooLarge)
    ));
}

/// File, start of the exchange's title, then what it comes to.
const RECORDED: &str = "
    auth-broker | no key | broker_rejected Backoff Outage
    auth-broker | wrong key | broker_rejected Backoff Outage
    auth-broker | source outside | broker_rejected Backoff Outage
    auth-gateway | gateway with a wrong | connection_inactive Short Outage
    auth-gateway | gateway with no | broker_rejected Backoff Outage
    token-oauth-rotate-pending | gateway | connection_inactive Short Outage
    token-oauth-rotate-pending | broker | connection_inactive Short Gone
    token-oauth-rotate-pending | grpc | broker_unavailable Backoff Outage
    token-oauth-rotate-revoked | broker | connection_inactive Short Gone
    token-oauth-rotate-failed | broker | connection_inactive Short Gone
    token-oauth-rotate-expired | broker | connection_inactive Short Gone
    token-oauth-rotate-attention | gateway | attention_required Long Outage
    token-oauth-rotate-attention | broker | attention_required Long Outage
    token-unknown | gateway | connection_unknown Short Unknown
    token-unknown | broker | connection_unknown Short Unknown
    token-unknown | grpc | broker_unavailable Backoff Outage
    odd-data | gateway: active connection, no token | connection_unknown Short Unknown
    database-down | broker token | connection_unknown Short Unknown
    database-down | gateway token | connection_unknown Short Unknown
    broker-500 | broker token | broker_unavailable Backoff Outage
    broker-500 | gateway token | broker_unavailable Backoff Outage
    broker-down | gateway token | broker_unavailable Backoff Outage
    broker-hang | gateway token | broker_unavailable Backoff Outage
    grpc-front-broker-down | token | broker_unavailable Backoff Outage
    odd-data | gateway: provider sent expiry not | broker_unavailable Backoff Outage
    odd-data | gateway: credentials null | credential_invalid Short Gone
    odd-data | broker: credentials null | credential_invalid Short Gone
    odd-data | broker: credentials empty | credential_invalid Short Gone
    odd-data | broker: numeric and | credential_invalid Short Gone
    odd-data | broker: auth_strategy without | credential_invalid Short Gone
    odd-data | broker: config with a | credential_invalid Short Gone
    odd-data | broker: unknown strategy | credential_invalid Short Gone
    token-type-aws | broker | credential_invalid Short Gone";

#[tokio::test]
async fn recorded_failures_come_to_their_rows() {
    for row in RECORDED.trim().lines() {
        let [file, title, expected] = row.trim().split(" | ").collect::<Vec<_>>()[..] else {
            panic!("{row}");
        };
        let outcome = outcome(wire::named(file, title)).await.unwrap_err();
        assert_eq!(outcome.summary(), expected, "{row}");
    }
}

#[tokio::test]
async fn whatever_a_broken_broker_makes_the_gateway_say_on_a_fetch_is_an_outage() {
    let mut seen = 0;
    for exchange in wire::exchanges("broker-garbage") {
        // Whatever a refresh answers may one day be met on a fetch.
        let title = exchange.title.clone();
        let outcome = outcome(exchange).await.unwrap_err();
        assert_eq!(outcome.code, Code::BrokerUnavailable, "{title}");
        seen += 1;
    }
    assert!(seen >= 18, "{seen}");
}
