//! The API's routes, and the layers around them.

use std::sync::Arc;

use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderName, HeaderValue, header};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::get;
use axum::{Json, Router};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowOrigin, CorsLayer};
use tower_http::request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer};

use super::caller;
use super::error::ApiError;
use super::handlers::downloads;
use super::middleware::{REQUEST_ID, json_rejections, observe, panicked};
use super::openapi::operations;
use super::state::Shared;

/// All routes.
pub(super) fn routes(api: &Shared) -> Router {
    let (routes, document) = operations().split_for_parts();
    let routes = routes
        .route("/links/{application}/{archive}/{file}", get(downloads::serve))
        .route("/openapi.json", get(|| async move { Json(document) }))
        .fallback(|| async { ApiError::not_found("there is no such address; /openapi.json lists all") });
    let body_max = usize::try_from(api.settings.api.body_max.0).unwrap_or(usize::MAX);
    let routes = routes
        .layer(DefaultBodyLimit::max(body_max))
        .layer(from_fn(json_rejections))
        .layer(CatchPanicLayer::custom(|_: Box<dyn std::any::Any + Send>| panicked()))
        .layer(from_fn_with_state(Arc::clone(api), observe))
        .layer(PropagateRequestIdLayer::new(REQUEST_ID))
        .layer(SetRequestIdLayer::new(REQUEST_ID, MakeRequestUuid));
    let origins = &api.settings.api.cors_origins.0;
    let routes = if origins.is_empty() { routes } else { routes.layer(cors(origins)) };
    routes.with_state(Arc::clone(api))
}

fn cors(origins: &[String]) -> CorsLayer {
    use axum::http::Method;
    let known = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.iter().filter_map(|origin| HeaderValue::try_from(origin.as_str()).ok()))
    };
    CorsLayer::new()
        .allow_origin(known)
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
        .allow_headers([header::AUTHORIZATION, header::CONTENT_TYPE, HeaderName::from_static(caller::OPENTOK)])
}
