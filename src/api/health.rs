//! Health and metrics, on an address of their own that stays inside.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio_util::sync::CancellationToken;

/// Says whether this process can do its work now, in words.
pub type Ready = Arc<dyn Fn() -> Result<String, String> + Send + Sync>;

/// Serves `/health/live`, `/health/ready` and `/metrics` until `stop`. A port that is taken is logged; a
/// worker without health checks still records.
pub async fn serve(bind: SocketAddr, ready: Ready, stop: CancellationToken) {
    let routes = Router::new()
        .route("/health/live", get(|| async { "ok\n" }))
        .route("/health/ready", get(is_ready))
        .route("/metrics", get(metrics))
        .with_state(ready);
    let listener = match tokio::net::TcpListener::bind(bind).await {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%bind, "health and metrics cannot be served: {error}"),
    };
    if let Err(error) = axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned()).await {
        tracing::error!("health and metrics have ended: {error}");
    }
}

async fn is_ready(State(ready): State<Ready>) -> impl IntoResponse {
    match ready() {
        Ok(told) => (StatusCode::OK, format!("{told}\n")),
        Err(told) => (StatusCode::SERVICE_UNAVAILABLE, format!("{told}\n")),
    }
}

async fn metrics() -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], crate::metrics::render())
}
