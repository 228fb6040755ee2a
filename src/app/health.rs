//! Serves health checks and metrics on a separate, internal address.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::catalog::SharedCatalog;

/// Time limit of the catalog's answer: health checks time out soon after.
const CATALOG_MAX: Duration = Duration::from_secs(2);

/// Returns whether this process is ready, with a text.
pub type Readiness = Arc<dyn Fn() -> BoxFuture<'static, Result<String, String>> + Send + Sync>;

/// An API is ready while it listens (then `serving` holds the catalog) and the catalog answers.
#[must_use]
pub fn api_readiness(serving: watch::Receiver<Option<SharedCatalog>>) -> Readiness {
    Arc::new(move || {
        let catalog = serving.borrow().clone();
        Box::pin(async move {
            let Some(catalog) = catalog else { return Err("the API does not listen".to_owned()) };
            match timeout(CATALOG_MAX, catalog.probe()).await {
                Ok(Ok(_)) => Ok("ready".to_owned()),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err(format!("the catalog has not answered within {} s", CATALOG_MAX.as_secs())),
            }
        })
    })
}

/// Serves `/health/live`, `/health/ready` and `/metrics` until `stop`. If the port is taken, this is only logged: a worker without
/// health checks still records.
pub async fn serve(bind: SocketAddr, ready: Readiness, stop: CancellationToken) {
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

async fn is_ready(State(ready): State<Readiness>) -> impl IntoResponse {
    match ready().await {
        Ok(text) => (StatusCode::OK, format!("{text}\n")),
        Err(text) => (StatusCode::SERVICE_UNAVAILABLE, format!("{text}\n")),
    }
}

async fn metrics() -> impl IntoResponse {
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, content_type)], crate::runtime::metrics::render())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_api_is_ready_while_it_listens_and_its_catalog_answers() {
        let (serving, seen) = watch::channel(None);
        let ready = api_readiness(seen);
        assert_eq!(ready().await, Err("the API does not listen".to_owned()));
        let dir = tempfile::tempdir().expect("folder");
        let file = dir.path().join("catalog.sqlite");
        let catalog = crate::catalog::open(&format!("sqlite:{}", file.display())).await.expect("catalog");
        serving.send_replace(Some(catalog));
        assert_eq!(ready().await, Ok("ready".to_owned()));
        serving.send_replace(None);
        ready().await.expect_err("it does not listen any more");
    }
}
