//! Where an application's callbacks go: the endpoints of opentok-node's `registerCallback`, `listCallbacks` and
//! `unregisterCallback`. An application has one address.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::caller::Caller;
use crate::api::dto::callbacks::RegisterCallback;
use crate::api::dto::path::{CallbackPath, ProjectPath};
use crate::api::error::{ApiError, ErrorBody};
use crate::api::extract::{JsonBody, PathParams};
use crate::api::state::Shared;
use crate::auth::applications::set_callback;
use crate::catalog::ApplicationRow;
use crate::model::time::Wallclock;

/// An address that callbacks go to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Callback {
    /// Its id.
    pub id: String,
    /// Always `archive`.
    pub group: &'static str,
    /// Always `status`.
    pub event: &'static str,
    /// The address.
    pub url: String,
    /// Milliseconds since 1970.
    pub created_at: i64,
}

fn callback(application: &ApplicationRow) -> Option<Callback> {
    let url = application.callback_url.clone()?;
    let name = format!("{}\n{url}", application.application);
    let id = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_URL, name.as_bytes()).to_string();
    Some(Callback { id, group: "archive", event: "status", url, created_at: application.updated_at.as_millis() })
}

/// `GET /v2/project/{project}/callback`
#[utoipa::path(
    get, path = "/v2/project/{project}/callback", tag = "callbacks", operation_id = "listCallbacks",
    params(ProjectPath),
    responses((status = 200, body = [Callback]), (status = "4XX", body = ErrorBody)),
)]
pub async fn list(caller: Caller) -> Json<Vec<Callback>> {
    Json(callback(&caller.application).into_iter().collect())
}

/// `POST /v2/project/{project}/callback`
///
/// Replaces the address that was there. What callbacks are signed with is shown by `archiver apps callback`, once.
#[utoipa::path(
    post, path = "/v2/project/{project}/callback", tag = "callbacks", operation_id = "registerCallback",
    params(ProjectPath), request_body = RegisterCallback,
    responses((status = 200, body = Callback), (status = "4XX", body = ErrorBody)),
)]
pub async fn register(
    State(api): State<Shared>,
    caller: Caller,
    body: JsonBody<RegisterCallback>,
) -> Result<Json<Callback>, ApiError> {
    let url = body.read()?;
    let id = &caller.application.application;
    let changed = set_callback(api.catalog.as_ref(), &api.settings, id, Some(url), Wallclock::now()).await;
    let changed = changed.map_err(|e| ApiError::of(&e))?;
    Ok(Json(callback(&changed).expect("it was just set")))
}

/// `DELETE /v2/project/{project}/callback/{callback}`
#[utoipa::path(
    delete, path = "/v2/project/{project}/callback/{callback}", tag = "callbacks", operation_id = "unregisterCallback",
    params(ProjectPath, CallbackPath),
    responses((status = 204), (status = "4XX", body = ErrorBody)),
)]
pub async fn unregister(
    State(api): State<Shared>,
    caller: Caller,
    PathParams(path): PathParams<CallbackPath>,
) -> Result<StatusCode, ApiError> {
    if callback(&caller.application).is_none_or(|known| known.id != path.callback) {
        return Err(ApiError::not_found("there is no such callback"));
    }
    let id = &caller.application.application;
    let changed = set_callback(api.catalog.as_ref(), &api.settings, id, None, Wallclock::now()).await;
    changed.map_err(|e| ApiError::of(&e))?;
    Ok(StatusCode::NO_CONTENT)
}
