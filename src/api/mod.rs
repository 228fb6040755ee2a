//! HTTP: health and metrics.

pub mod token;

use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio_util::sync::CancellationToken;

use crate::broker::BrokerState;
use crate::worker::Status;

/// Serves `/health/live`, `/health/ready` and `/metrics` until `stop`. A port that is taken is logged; a
/// worker without health checks still records.
pub async fn serve(bind: SocketAddr, status: Status, stop: CancellationToken) {
    let routes = Router::new()
        .route("/health/live", get(|| async { "ok\n" }))
        .route("/health/ready", get(ready))
        .route("/metrics", get(metrics))
        .with_state(status);
    let listener = match tokio::net::TcpListener::bind(bind).await {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%bind, "health and metrics cannot be served: {error}"),
    };
    if let Err(error) = axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned()).await {
        tracing::error!("health and metrics have ended: {error}");
    }
}

async fn ready(State(status): State<Status>) -> impl IntoResponse {
    let jobs = status.jobs.load(Ordering::Relaxed);
    match *status.broker.borrow() {
        BrokerState::Connected => (StatusCode::OK, format!("ready, {jobs} jobs\n")),
        BrokerState::Disconnected => (StatusCode::SERVICE_UNAVAILABLE, format!("no broker, {jobs} jobs go on\n")),
    }
}

async fn metrics() -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], crate::metrics::render())
}
