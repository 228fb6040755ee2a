//! Endpoints for operators, who have a token of their own: jobs, parked jobs, callbacks of all applications.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use crate::api::dto::path::ArchivePath;
use crate::api::dto::query::{CallbacksQuery, JobsQuery, ParkedQuery};
use crate::api::error::{ApiError, ErrorBody};
use crate::api::extract::{Operator, OperatorQuery, PathParams};
use crate::api::state::Shared;
use crate::catalog::{JobState, NoticeFilter, NoticeTarget, ParkedFilter, ParkedState};
use crate::job::parked::Criteria;
use crate::model::time::Wallclock;

/// Most rows of an answer.
const ROWS_MAX: u32 = 1000;

/// `GET /operator/jobs`
#[utoipa::path(
    get, path = "/operator/jobs", tag = "operators", operation_id = "listJobs", security(("operator" = [])),
    params(JobsQuery),
    responses((status = 200, body = Object), (status = "4XX", body = ErrorBody)),
)]
pub async fn jobs(
    State(api): State<Shared>,
    _: Operator,
    OperatorQuery(query): OperatorQuery<JobsQuery>,
) -> Result<Json<Value>, ApiError> {
    let states = query.state.map_or(JobState::OPEN.to_vec(), |state| vec![state]);
    Ok(Json(json!({ "items": api.catalog.jobs(&states, ROWS_MAX).await? })))
}

/// `GET /operator/parked`
#[utoipa::path(
    get, path = "/operator/parked", tag = "operators", operation_id = "listParked", security(("operator" = [])),
    params(ParkedQuery),
    responses((status = 200, body = Object), (status = "4XX", body = ErrorBody)),
)]
pub async fn parked(
    State(api): State<Shared>,
    _: Operator,
    OperatorQuery(query): OperatorQuery<ParkedQuery>,
) -> Result<Json<Value>, ApiError> {
    let state = Some(query.state.unwrap_or(ParkedState::Parked));
    let filter = ParkedFilter { state, fault: query.fault, ..ParkedFilter::default() };
    let criteria = Criteria { filter, session: query.session, application: query.application, region: query.region };
    Ok(Json(json!({ "items": criteria.select(api.catalog.as_ref(), ROWS_MAX as usize).await? })))
}

/// `GET /operator/callbacks`
#[utoipa::path(
    get, path = "/operator/callbacks", tag = "operators", operation_id = "listAllCallbacks", security(("operator" = [])),
    params(CallbacksQuery),
    responses((status = 200, body = Object), (status = "4XX", body = ErrorBody)),
)]
pub async fn callbacks(
    State(api): State<Shared>,
    _: Operator,
    OperatorQuery(query): OperatorQuery<CallbacksQuery>,
) -> Result<Json<Value>, ApiError> {
    let filter = NoticeFilter {
        target: Some(NoticeTarget::Callback),
        state: query.state,
        application: query.application,
        count: ROWS_MAX,
        ..NoticeFilter::default()
    };
    let (items, count) = api.catalog.notices(&filter).await?;
    Ok(Json(json!({ "count": count, "items": items })))
}

/// `POST /operator/callbacks/{archive}/resend`: sends those of an archive again that were given up.
#[utoipa::path(
    post, path = "/operator/callbacks/{archive}/resend", tag = "operators", operation_id = "resendCallbacks",
    security(("operator" = [])), params(ArchivePath),
    responses((status = 200, body = Object), (status = "4XX", body = ErrorBody)),
)]
pub async fn resend(
    State(api): State<Shared>,
    _: Operator,
    PathParams(path): PathParams<ArchivePath>,
) -> Result<Json<Value>, ApiError> {
    let again = api.catalog.resend_notices(path.archive, None, Wallclock::now()).await?;
    Ok(Json(json!({ "resent": again })))
}
