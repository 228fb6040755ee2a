//! Layers around every request: time limit, log span, metrics, and errors in the form that the SDKs parse.

use axum::body::to_bytes;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::time::{Instant, timeout};
use tracing::Instrument;

use super::error::ApiError;
use super::state::Shared;
use crate::runtime::metrics::{RequestLabels, metrics};

/// Longest text of an error, in bytes.
const ERROR_BYTES_MAX: usize = 1000;
/// The header of a request's id.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The answer to a request whose handler panicked.
pub(super) fn panic_response() -> Response {
    tracing::error!(fault.kind = "bug", "a request's handler panicked");
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "bug: the service's log says more").into_response()
}

/// Limits, counts and logs a request: its route, but never its query or headers, which contain tokens and signatures.
pub(super) async fn observe(State(api): State<Shared>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let method = request.method().clone();
    let id = request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok()).unwrap_or_default();
    // The client chooses this text of our log: limited in length, without control characters.
    let id: String = id.chars().filter(|c| c.is_ascii_graphic()).take(64).collect();
    let span = tracing::info_span!("request", id, %method, route);
    let answered = timeout(api.settings.api.timeout.0, next.run(request)).instrument(span.clone()).await;
    let response = answered.unwrap_or_else(|_| {
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the request took too long: try again").into_response()
    });
    let (status, took) = (response.status().as_u16(), begun.elapsed());
    span.in_scope(|| tracing::debug!(status, took_ms = took.as_millis(), "answered"));
    let class = match status {
        200..=399 => "ok",
        400..=499 => "refused",
        _ => "failed",
    };
    metrics().api_requests.get_or_create(&RequestLabels { route, outcome: class }).inc();
    metrics().api_seconds.observe(took.as_secs_f64());
    response
}

/// Converts an error that a library answered with plain text to the form that the SDKs parse.
pub(super) async fn json_rejections(request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    let status = response.status();
    let typed = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
    if !(status.is_client_error() || status.is_server_error()) || typed || status == StatusCode::RANGE_NOT_SATISFIABLE {
        return response;
    }
    let (parts, body) = response.into_parts();
    let text = to_bytes(body, ERROR_BYTES_MAX).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let message = if text.is_empty() { status.canonical_reason().unwrap_or("refused").to_owned() } else { text };
    let mut converted = ApiError::new(status, message).into_response();
    // Such as `Allow`, which lists the methods of the address.
    for (name, value) in &parts.headers {
        if !converted.headers().contains_key(name) && name != header::CONTENT_LENGTH {
            converted.headers_mut().insert(name.clone(), value.clone());
        }
    }
    converted
}
