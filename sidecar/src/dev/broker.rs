//! The in-process broker of `dev`: the gateway's REST protocol over HTTP, so that the sidecar runs the very path it runs
//! with a real one.
//!
//! Every request but `/health` needs a key. On loopback that is one of this run, which never leaves the process, so that
//! the agent on the same machine cannot read tokens here; where other sidecars may ask, it is the user's.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use axum::middleware::{self, Next};
use axum::routing::{get, post};
use jiff::Timestamp;
use nexus_crds::names::ConnectionId;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value, json};

use super::credentials::Owner;
use super::vault::{Vault, VaultError};

/// The service. `key` is what callers must send as `X-API-Key`.
pub(crate) fn router(vault: Arc<Vault>, key: SecretString) -> Router {
    let key = Arc::new(key);
    Router::new()
        .route("/v1/token/{id}", get(token))
        .route("/v1/refresh/{id}", post(refresh))
        .route("/v1/check-connection/{id}", get(check_connection))
        .route("/v1/providers", get(providers))
        .route("/v1/providers/metadata", get(providers))
        .layer(middleware::from_fn(move |request: Request, next: Next| {
            authenticate(Arc::clone(&key), request, next)
        }))
        .route(
            "/health",
            get(|| async { ok(&json!({"status": "healthy"})) }),
        )
        .fallback(|| async { not_found() })
        .with_state(vault)
}

async fn authenticate(key: Arc<SecretString>, request: Request, next: Next) -> Response<Body> {
    match refusal(request.headers(), key.expose_secret()) {
        Some((status, error, message)) => {
            answer(status, &json!({"error": error, "message": message}))
        }
        None => next.run(request).await,
    }
}

fn refusal(headers: &HeaderMap, key: &str) -> Option<(StatusCode, &'static str, &'static str)> {
    let Some(sent) = headers.get("x-api-key") else {
        return Some((
            StatusCode::UNAUTHORIZED,
            "missing_api_key",
            "missing api key",
        ));
    };
    let sent = sent.as_bytes().trim_ascii();
    aws_lc_rs::constant_time::verify_slices_are_equal(sent, key.as_bytes())
        .is_err()
        .then_some((StatusCode::FORBIDDEN, "invalid_api_key", "invalid api key"))
}

async fn token(State(vault): State<Arc<Vault>>, Path(id): Path<String>) -> Response<Body> {
    match look_up(vault, &id).await {
        Ok(payload) => ok(&payload),
        Err(response) => response,
    }
}

/// No credential here can be refreshed: they are what the user wrote.
async fn refresh(State(vault): State<Arc<Vault>>, Path(id): Path<String>) -> Response<Body> {
    match look_up(vault, &id).await {
        Ok(_) => empty(StatusCode::BAD_REQUEST),
        Err(response) => response,
    }
}

async fn check_connection(
    State(vault): State<Arc<Vault>>,
    Path(id): Path<String>,
) -> Response<Body> {
    let status = match look_up(vault, &id).await {
        Ok(_) => "active",
        Err(response) if response.status().is_server_error() => "pending",
        Err(_) => "failed",
    };
    ok(&json!({"status": status}))
}

async fn look_up(vault: Arc<Vault>, id: &str) -> Result<Value, Response<Body>> {
    let Ok(id) = id.parse::<ConnectionId>() else {
        return Err(empty(StatusCode::BAD_REQUEST));
    };
    let read = move || vault.payload(id, Timestamp::now());
    match tokio::task::spawn_blocking(read).await {
        Ok(Ok(payload)) => Ok(payload),
        Ok(Err(VaultError::Unknown)) => Err(empty(StatusCode::NOT_FOUND)),
        Ok(Err(VaultError::Broken(problems))) => {
            for problem in problems {
                tracing::error!(%problem, "a credential cannot be read");
            }
            Err(unavailable())
        }
        Err(error) => {
            tracing::error!(%error, "reading the credentials failed");
            Err(unavailable())
        }
    }
}

/// Auth type -> name -> facts, as the gateway lists them.
async fn providers(State(vault): State<Arc<Vault>>) -> Response<Body> {
    let Ok(Ok(credentials)) = tokio::task::spawn_blocking(move || vault.credentials()).await else {
        return unavailable();
    };
    let mut types = Map::new();
    for credential in &credentials {
        let Owner::Provider { provider, .. } = &credential.owner else {
            continue;
        };
        let auth_type = match () {
            () if credential.has("access_token") => "oauth2",
            () if credential.has("password") => "basic_auth",
            () => "api_key",
        };
        let names = types
            .entry(auth_type)
            .or_insert_with(|| Value::Object(Map::new()));
        names[provider] = json!({
            "api_base_url": "", "category": "", "description": "",
            "id": credential.connection().to_string(), "scopes": [], "user_info_endpoint": "",
        });
    }
    ok(&types.into())
}

fn ok(body: &Value) -> Response<Body> {
    answer(StatusCode::OK, body)
}

fn answer(status: StatusCode, body: &Value) -> Response<Body> {
    with_body(status, "application/json", body.to_string())
}

fn unavailable() -> Response<Body> {
    let body = json!({"error": "broker_unavailable", "message": "the credentials cannot be read"});
    answer(StatusCode::BAD_GATEWAY, &body)
}

fn not_found() -> Response<Body> {
    with_body(
        StatusCode::NOT_FOUND,
        "text/plain; charset=utf-8",
        "404 page not found\n".to_owned(),
    )
}

fn with_body(status: StatusCode, content_type: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// The gateway passes statuses of the broker on without their bodies.
fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::super::vault::CredentialSource;
    use super::*;

    const ID: &str = "160c6817-f20c-4a5b-9a6f-443f9b22a14f";

    async fn exchange(request: &str, key: Option<&str>) -> (u16, String) {
        let text =
            format!("credentials: {{{ID}: {{api_key: plain-key-1}}, github: {{access_token: t}}}}");
        let vault = Vault::new(CredentialSource::BuiltIn(text), |_| None);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = router(Arc::new(vault), "run-key".to_owned().into());
        let server = tokio::spawn(async move { axum::serve(listener, router).await });
        let key = key.map_or(String::new(), |key| format!("X-API-Key: {key}\r\n"));
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{key}\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        server.abort();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), body.to_owned())
    }

    #[tokio::test]
    async fn without_the_key_of_the_run_nothing_is_answered() {
        for path in [format!("/v1/token/{ID}"), "/v1/providers".into()] {
            let request = format!("GET {path}");
            assert_eq!(
                exchange(&request, None).await,
                (
                    401,
                    r#"{"error":"missing_api_key","message":"missing api key"}"#.into()
                )
            );
            assert_eq!(
                exchange(&request, Some("nope")).await,
                (
                    403,
                    r#"{"error":"invalid_api_key","message":"invalid api key"}"#.into()
                )
            );
        }
        assert_eq!(exchange("GET /health", None).await.0, 200);
    }

    #[tokio::test]
    async fn tokens_are_answered_as_the_gateway_answers_them() {
        let key = Some(" run-key ");
        let (status, body) = exchange(&format!("GET /v1/token/{}", ID.to_uppercase()), key).await;
        assert_eq!(status, 200);
        assert_eq!(
            serde_json::from_str::<Value>(&body).unwrap(),
            json!({"strategy": {"config": {"credential_field": "api_key", "header_name": "X-API-Key"}, "type": "header"},
                "credentials": {"api_key": "plain-key-1"}})
        );
        let unknown = "GET /v1/token/00000000-0000-4000-8000-000000000000";
        assert_eq!(exchange(unknown, key).await, (404, String::new()));
        let malformed = "GET /v1/token/not-a-uuid";
        assert_eq!(exchange(malformed, key).await, (400, String::new()));
        let slash = format!("GET /v1/token/{ID}/");
        assert_eq!(
            exchange(&slash, key).await,
            (404, "404 page not found\n".into())
        );
        let refresh = format!("POST /v1/refresh/{ID}");
        assert_eq!(exchange(&refresh, key).await, (400, String::new()));
        assert_eq!(exchange(&format!("POST /v1/token/{ID}"), key).await.0, 405);
    }

    #[tokio::test]
    async fn status_and_providers_are_answered() {
        let key = Some("run-key");
        let active = exchange(&format!("GET /v1/check-connection/{ID}"), key).await;
        assert_eq!(active, (200, r#"{"status":"active"}"#.into()));
        let (_, body) = exchange("GET /v1/providers", key).await;
        let body: Value = serde_json::from_str(&body).unwrap();
        assert!(body["oauth2"]["github"]["id"].is_string(), "{body}");
    }
}
