//! The API's server: routes, and what is around every request.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::to_bytes;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, patch, post, put};
use axum::{Json, Router, ServiceExt};
use axum_server::Handle;
use axum_server::tls_rustls::RustlsConfig;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowOrigin, CorsLayer};
use tower_http::normalize_path::NormalizePath;
use tower_http::request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer};
use tracing::Instrument;

use super::error::ApiError;
use super::extract::Base;
use super::{
    Api, Shared, StartError, archives, callbacks, extras, join, limits, links, openapi, operator, removals, sessions,
    wire,
};
use crate::bridge::{Bridge, bridge};
use crate::catalog::{ApplicationRow, ArchiveRow, SharedCatalog};
use crate::config::{ApiSection, Settings};
use crate::notify::{Render, Telling, keep_telling};
use crate::runtime::metrics::{RequestLabels, metrics};
use crate::runtime::supervise;
use crate::runtime::supervise::restart_on_panic;
use crate::services::Services;
use crate::session::geo::Geo;
use crate::session::region::Atlas;

/// Requests that are under way when the service stops have so long.
const DRAIN_MAX: Duration = Duration::from_secs(10);
/// What goes on beside the requests has so long to end then: longer than each of it needs when nothing hangs.
const TASKS_MAX: Duration = Duration::from_secs(20);
/// An address that is in use is tried again for so long.
const BIND_MAX: Duration = Duration::from_secs(3);
const BIND_PAUSE: Duration = Duration::from_millis(50);
/// A client has so long to send the head of a request.
const HEAD_MAX: Duration = Duration::from_secs(15);
/// How often counters of who has not asked for a while are forgotten.
const FORGET_EVERY: Duration = Duration::from_secs(60);
/// As much of an error's text is kept as belongs into a message.
const ERROR_BYTES_MAX: usize = 1000;
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Serves the API until `stop`. `serving` has the catalog while it listens.
///
/// # Errors
/// When it cannot start.
pub async fn run(
    settings: Settings,
    serving: watch::Sender<Option<SharedCatalog>>,
    stop: CancellationToken,
) -> Result<(), StartError> {
    let Some(services) = Services::open(&settings, &stop).await? else { return Ok(()) };
    serve(settings, services, serving, stop).await
}

/// Serves the API with these parts until `stop`. `serving` has the catalog while it listens.
///
/// # Errors
/// When it cannot start.
pub async fn serve(
    settings: Settings,
    services: Services,
    serving: watch::Sender<Option<SharedCatalog>>,
    stop: CancellationToken,
) -> Result<(), StartError> {
    let Services { catalog, store, routers, broker } = services;
    let secret = URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>()).into();
    let secret = catalog.shared_secret(links::SECRET, &secret).await?;
    let database = settings.geo.database.clone();
    let geo = tokio::task::spawn_blocking(move || Geo::open(database.as_deref())).await;
    let geo = geo.expect("reading a database does not panic")?;
    let (removals, mut deleted) = removals::removals();
    let api = Arc::new(Api {
        atlas: Atlas::new(&settings.worker.region, &settings.regions, &settings.routers),
        geo,
        links: links::Links::new(Arc::clone(&store), secret, settings.store.link_valid.0),
        limits: limits::Limits::new(settings.api.requests_per_second),
        routers,
        removals,
        wanted: tokio::sync::Notify::new(),
        catalog,
        store,
        settings,
    });
    let told = Arc::clone(&broker);
    let tasks = TaskTracker::new();
    let ending = stop.child_token();
    let watched = Bridge {
        catalog: api.catalog.clone(),
        routers: api.routers.clone(),
        broker: Arc::clone(&broker),
        settings: api.settings.bridge.clone(),
    };
    tasks.spawn(bridge(watched, ending.clone()));
    tasks.spawn({
        let (api, ending) = (Arc::clone(&api), ending.clone());
        async move {
            let nudging = async || broker.keep_nudging(&api.wanted, &ending).await;
            while supervise::panicked("nudging the workers", &ending, nudging()).await {}
        }
    });
    tasks.spawn({
        let (api, cancel) = (Arc::clone(&api), ending.clone());
        restart_on_panic("counting and forgetting", ending.clone(), move || {
            keep_house(Arc::clone(&api), cancel.clone())
        })
    });
    tasks.spawn({
        let (settings, catalog, store) = (Arc::new(api.settings.clone()), api.catalog.clone(), Arc::clone(&api.store));
        let cancel = ending.clone();
        let making = move || {
            crate::archive::derive::queue::keep_making(
                Arc::clone(&settings),
                catalog.clone(),
                Arc::clone(&store),
                cancel.clone(),
            )
        };
        restart_on_panic("making archives of others", ending.clone(), making)
    });
    tasks.spawn({
        let (catalog, store, ending) = (api.catalog.clone(), Arc::clone(&api.store), ending.clone());
        async move {
            let mut removing = async || removals::keep_removing(catalog.as_ref(), &store, &mut deleted, &ending).await;
            while supervise::panicked("removing deleted archives", &ending, removing()).await {}
        }
    });
    let render = Arc::new(Body(Arc::clone(&api)));
    let telling = Telling::new(api.catalog.clone(), &api.settings.callbacks, Some(told), render);
    tasks.spawn({
        let cancel = ending.clone();
        restart_on_panic("telling of archives", ending.clone(), move || keep_telling(telling.clone(), cancel.clone()))
    });
    let served = listen(&api, &serving, &stop).await;
    serving.send_replace(None);
    ending.cancel();
    tasks.close();
    if timeout(TASKS_MAX, tasks.wait()).await.is_err() {
        tracing::warn!(tasks = tasks.len(), "what goes on beside the requests did not end in time, it is left");
    }
    served
}

/// A callback's body: the archive as a request for it would be answered.
struct Body(Shared);

#[async_trait::async_trait]
impl Render for Body {
    async fn render(&self, archive: &ArchiveRow, application: &ApplicationRow) -> Value {
        // Without an address that developers know there can be no link of ours, only the store's own.
        let base = self.0.settings.api.public_url.as_ref().map(|_| Base(self.0.base(None)));
        let body = match self.0.wire(archive, application, base.as_ref()).await {
            Ok(body) => body,
            // Better without a link than not at all: the archive can be asked for.
            Err(_) => wire::archive(archive, application, None, None),
        };
        serde_json::to_value(body).expect("plain data")
    }
}

/// What is looked after while requests are answered.
async fn keep_house(api: Shared, stop: CancellationToken) {
    if let Err(error) = api.catalog.recount_archives().await {
        tracing::warn!("archives are not counted anew: {}", crate::model::fault::chain(&error));
    }
    while stop.run_until_cancelled(sleep(FORGET_EVERY)).await.is_some() {
        api.limits.forget();
    }
}

async fn listen(
    api: &Shared,
    serving: &watch::Sender<Option<SharedCatalog>>,
    stop: &CancellationToken,
) -> Result<(), StartError> {
    let section = &api.settings.api;
    let bind = section.bind;
    let failed = |source| StartError::Bind { bind, source };
    let listener = bound(bind).await.map_err(failed)?;
    // PHP's SDKs end an address with a slash (listStreams), or begin it with two (updateArchiveLayout of vonage/video).
    let routes = NormalizePath::trim_trailing_slash(routes(api));
    let service = ServiceExt::<Request>::into_make_service_with_connect_info::<SocketAddr>(routes);
    let handle = Handle::new();
    let draining = async {
        stop.cancelled().await;
        // Whoever asks whether to send requests here sends them elsewhere from now on.
        serving.send_replace(None);
        handle.graceful_shutdown(Some(DRAIN_MAX));
        std::future::pending::<()>().await;
    };
    let local = listener.local_addr().map_err(failed)?;
    tracing::info!(%local, tls = section.certificate.is_some(), "the API is served");
    let answering = async {
        let tls = tls(section).await?;
        if !stop.is_cancelled() {
            serving.send_replace(Some(api.catalog.clone()));
        }
        match tls {
            Some(tls) => {
                let mut server = axum_server::from_tcp_rustls(listener, tls).map_err(failed)?.handle(handle.clone());
                limited(server.http_builder());
                server.serve(service).await.map_err(failed)
            }
            None => {
                let mut server = axum_server::from_tcp(listener).map_err(failed)?.handle(handle.clone());
                limited(server.http_builder());
                server.serve(service).await.map_err(failed)
            }
        }
    };
    tokio::select! {
        served = answering => served,
        () = draining => Ok(()),
    }
}

/// What https is spoken with, if the configuration has a certificate.
async fn tls(section: &ApiSection) -> Result<Option<RustlsConfig>, StartError> {
    let (Some(certificate), Some(key)) = (section.certificate.clone(), section.key.clone()) else { return Ok(None) };
    let read = tokio::task::spawn_blocking(move || {
        crate::runtime::tls::server(&certificate, &key).map_err(|why| StartError::Certificate { certificate, key, why })
    });
    let server = read.await.expect("reading a certificate does not panic")?;
    Ok(Some(RustlsConfig::from_config(Arc::new(server))))
}

/// Listens. Who listened before may be about to end: it is waited for.
async fn bound(bind: SocketAddr) -> std::io::Result<std::net::TcpListener> {
    let deadline = Instant::now() + BIND_MAX;
    loop {
        match std::net::TcpListener::bind(bind) {
            Ok(listener) => return listener.set_nonblocking(true).map(|()| listener),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                sleep(BIND_PAUSE).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Nobody holds a connection by sending nothing. The limit of time begins with the connection only where the protocol is known
/// before the first byte.
fn limited(builder: &mut hyper_util::server::conn::auto::Builder<hyper_util::rt::TokioExecutor>) {
    *builder = builder.clone().http1_only();
    builder.http1().timer(hyper_util::rt::TokioTimer::new()).header_read_timeout(HEAD_MAX).max_headers(100);
}

fn routes(api: &Shared) -> Router {
    let archive = "/v2/project/{project}/archive/{archive}";
    let session = "/v2/project/{project}/session/{session}";
    let routes = Router::new()
        .route("/session/create", post(sessions::create))
        .route("/v2/project/{project}/archive", get(archives::list).post(archives::start))
        .route(archive, get(archives::get).delete(archives::delete))
        .route(&format!("{archive}/stop"), post(archives::stop))
        .route(&format!("{archive}/layout"), put(archives::layout))
        .route(&format!("{archive}/streams"), patch(archives::streams))
        .route(&format!("{archive}/report"), get(extras::report))
        .route(&format!("{archive}/thumbnail"), get(extras::thumbnail))
        .route(&format!("{archive}/clip"), post(extras::clip))
        .route(&format!("{archive}/recompose"), post(extras::recompose))
        .route("/v2/project/{project}/callback", get(callbacks::list).post(callbacks::register))
        .route("/v2/project/{project}/callback/{callback}", delete(callbacks::unregister))
        .route("/operator/jobs", get(operator::jobs))
        .route("/operator/parked", get(operator::parked))
        .route("/operator/callbacks", get(operator::callbacks))
        .route("/operator/callbacks/{archive}/resend", post(operator::resend))
        .route(&format!("{session}/stream"), get(sessions::streams).put(sessions::classes))
        .route(&format!("{session}/stream/{{stream}}"), get(sessions::stream))
        .route("/session/{session}/join", post(join::join))
        .route("/links/{application}/{archive}/{file}", get(links::serve))
        .route("/openapi.json", get(|| async { Json(openapi::document()) }))
        .fallback(|| async { ApiError::not_found("there is no such address; /openapi.json lists all") });
    let body_max = usize::try_from(api.settings.api.body_max.0).unwrap_or(usize::MAX);
    let routes = routes
        .layer(DefaultBodyLimit::max(body_max))
        .layer(from_fn(told_in_json))
        .layer(CatchPanicLayer::custom(|_: Box<dyn std::any::Any + Send>| panicked()))
        .layer(from_fn_with_state(Arc::clone(api), watched))
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
        .allow_headers([header::AUTHORIZATION, header::CONTENT_TYPE, HeaderName::from_static(super::auth::OPENTOK)])
}

fn panicked() -> Response {
    tracing::error!(fault.kind = "bug", "a request's handler panicked");
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "bug: the service's log says more").into_response()
}

/// Limits, counts and logs a request: its route, never its query or headers, where tokens and signatures are.
async fn watched(State(api): State<Shared>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let method = request.method().clone();
    let id = request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok()).unwrap_or_default();
    // Whoever sends an id of their own chooses what stands in our log: so much of it, and no control characters.
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

/// An error that a library answered with plain text, in the shape that the SDKs parse.
async fn told_in_json(request: Request, next: Next) -> Response {
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
    let mut told = ApiError::new(status, message).into_response();
    // Such as `Allow`, which says what can be asked instead.
    for (name, value) in &parts.headers {
        if !told.headers().contains_key(name) && name != header::CONTENT_LENGTH {
            told.headers_mut().insert(name.clone(), value.clone());
        }
    }
    told
}
