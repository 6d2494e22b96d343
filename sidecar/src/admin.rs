//! `/metrics`, `/healthz` and `/readyz`. None of them depends on the control plane or an upstream.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::metrics::{self, Metrics};
use crate::ready::Readiness;

/// What the endpoints show.
#[derive(Clone)]
pub struct Admin {
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// State of the table.
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
    (
        [(CONTENT_TYPE, metrics::CONTENT_TYPE)],
        admin.metrics.encode(),
    )
        .into_response()
}

async fn readyz(State(admin): State<Admin>) -> Response {
    let state = admin.readiness.state();
    let status = if state.ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, axum::Json(state)).into_response()
}
