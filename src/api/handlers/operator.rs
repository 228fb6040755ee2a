//! What operators ask: jobs, parked jobs, callbacks of all applications. With a token of their own.

use axum::Json;
use axum::extract::{RawQuery, State};
use serde_json::{Value, json};

use crate::api::error::ApiError;
use crate::api::extract::{Operator, Segments};
use crate::api::state::Shared;
use crate::catalog::{JobState, NoticeFilter, NoticeState, NoticeTarget, ParkedState};
use crate::model::time::Wallclock;

/// Rows of an answer at most.
const ROWS_MAX: u32 = 1000;

fn parameter(query: Option<&str>, name: &str) -> Option<String> {
    let mut found = url::form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    found.find(|(known, value)| known == name && !value.is_empty()).map(|(_, value)| value.into_owned())
}

fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(
    query: Option<&str>,
    name: &str,
) -> Result<Option<T>, ApiError> {
    let value = parameter(query, name).map(|text| text.parse::<T>());
    value.transpose().map_err(|e| ApiError::invalid(format!("{name}: {e}")))
}

/// `GET /operator/jobs`
#[utoipa::path(
    get, path = "/operator/jobs", tag = "operators", operation_id = "listJobs", security(("operator" = [])),
    params(("state" = Option<String>, Query, description = "accepted, capturing, finalizing, available, parked or discarded")),
    responses((status = 200, body = Object), (status = "4XX", body = crate::api::error::ErrorBody)),
)]
pub async fn jobs(State(api): State<Shared>, _: Operator, RawQuery(query): RawQuery) -> Result<Json<Value>, ApiError> {
    let state: Option<JobState> = parsed(query.as_deref(), "state")?;
    let live = [JobState::Accepted, JobState::Capturing, JobState::Finalizing, JobState::Parked];
    let states = state.map_or(live.to_vec(), |state| vec![state]);
    Ok(Json(json!({ "items": api.catalog.jobs(&states, ROWS_MAX).await? })))
}

/// `GET /operator/parked`
#[utoipa::path(
    get, path = "/operator/parked", tag = "operators", operation_id = "listParked", security(("operator" = [])),
    params(("state" = Option<String>, Query, description = "parked (without it), replayed, resolved or discarded")),
    responses((status = 200, body = Object), (status = "4XX", body = crate::api::error::ErrorBody)),
)]
pub async fn parked(
    State(api): State<Shared>,
    _: Operator,
    RawQuery(query): RawQuery,
) -> Result<Json<Value>, ApiError> {
    let state = parsed(query.as_deref(), "state")?.unwrap_or(ParkedState::Parked);
    Ok(Json(json!({ "items": api.catalog.parked(Some(state), None, ROWS_MAX).await? })))
}

/// `GET /operator/callbacks`
#[utoipa::path(
    get, path = "/operator/callbacks", tag = "operators", operation_id = "listAllCallbacks", security(("operator" = [])),
    params(
        ("state" = Option<String>, Query, description = "waiting, delivered or undelivered"),
        ("application" = Option<String>, Query, description = "Only of this application"),
    ),
    responses((status = 200, body = Object), (status = "4XX", body = crate::api::error::ErrorBody)),
)]
pub async fn callbacks(
    State(api): State<Shared>,
    _: Operator,
    RawQuery(query): RawQuery,
) -> Result<Json<Value>, ApiError> {
    let state: Option<NoticeState> = parsed(query.as_deref(), "state")?;
    let filter = NoticeFilter {
        target: Some(NoticeTarget::Callback),
        state,
        application: parsed(query.as_deref(), "application")?,
        count: ROWS_MAX,
        ..NoticeFilter::default()
    };
    let (items, count) = api.catalog.notices(&filter).await?;
    Ok(Json(json!({ "count": count, "items": items })))
}

/// `POST /operator/callbacks/{archive}/resend`: sends those of an archive again that were given up.
#[utoipa::path(
    post, path = "/operator/callbacks/{archive}/resend", tag = "operators", operation_id = "resendCallbacks",
    security(("operator" = [])), params(crate::api::dto::document::OfArchive),
    responses((status = 200, body = Object), (status = "4XX", body = crate::api::error::ErrorBody)),
)]
pub async fn resend(State(api): State<Shared>, _: Operator, path: Segments) -> Result<Json<Value>, ApiError> {
    let again = api.catalog.resend_notices(path.archive()?, None, Wallclock::now()).await?;
    Ok(Json(json!({ "resent": again })))
}
