//! What is seen from outside: `/livez`, `/readyz`, `/metrics`.

use std::io;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use crate::metrics::Metrics;
use crate::readiness::Readiness;

/// OpenMetrics 1.0 names this type.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone, Debug)]
struct Outside {
    metrics: Arc<Metrics>,
    readiness: Readiness,
}

/// Serves for ever.
///
/// # Errors
///
/// The listener broke.
pub async fn serve(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    readiness: Readiness,
) -> io::Result<()> {
    axum::serve(listener, router(metrics, readiness)).await
}

fn router(metrics: Arc<Metrics>, readiness: Readiness) -> Router {
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(encode_metrics))
        .with_state(Outside { metrics, readiness })
}

/// Answers as long as the process does, except where only a restart helps.
async fn livez(State(outside): State<Outside>) -> Response {
    match outside.readiness.why_dead() {
        None => "ok\n".into_response(),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

/// 503 with a line for each thing that is missing; 200 and `ok` where nothing
/// is. Notes follow, on what is amiss and holds nothing up.
async fn readyz(State(outside): State<Outside>) -> Response {
    let missing = outside.readiness.list();
    let (status, mut lines) = if missing.is_empty() {
        (StatusCode::OK, vec!["ok".to_owned()])
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, missing)
    };
    lines.extend(outside.readiness.notes());
    (status, lines.join("\n") + "\n").into_response()
}

async fn encode_metrics(State(outside): State<Outside>) -> Response {
    match outside.metrics.encode() {
        Ok(text) => ([(CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}
