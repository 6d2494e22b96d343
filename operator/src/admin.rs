//! `/metrics`, `/healthz` and `/readyz`.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::metrics::{CONTENT_TYPE as OPEN_METRICS, Exposition};
use crate::ready::Readiness;

/// What the endpoints show.
#[derive(Clone, Debug)]
pub struct Admin {
    /// Counters.
    pub exposition: Arc<Exposition>,
    /// What has not happened yet.
    pub readiness: Arc<Readiness>,
}

/// The endpoints.
pub fn router(admin: Admin) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .with_state(admin)
}

async fn metrics(State(admin): State<Admin>) -> Response {
    ([(CONTENT_TYPE, OPEN_METRICS)], admin.exposition.encode()).into_response()
}

async fn readyz(State(admin): State<Admin>) -> Response {
    let waiting = admin.readiness.waiting_for();
    if waiting.is_empty() {
        return "ok\n".into_response();
    }
    let text = format!("waiting for {}\n", waiting.join(", "));
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}
