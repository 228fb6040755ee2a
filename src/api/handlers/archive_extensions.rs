//! Extensions to Vonage's API of archives: report, thumbnail, clip, recompose.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::api::caller::Caller;
use crate::api::dto::archive_extensions::{ClipArchive, RecomposeArchive};
use crate::api::dto::lenient::JsonRequest;
use crate::api::dto::path::{ArchivePath, ProjectPath};
use crate::api::dto::response;
use crate::api::error::{ApiError, ErrorBody};
use crate::api::extract::{JsonBody, PathParams};
use crate::api::links::PublicUrl;
use crate::api::state::Shared;
use crate::archive::derive::queue::{DerivedArchive, request_derived_archive};
use crate::model::time::Wallclock;
use crate::store::StoreError;
use crate::store::keys::{Keys, Kind};

/// `GET /v2/project/{project}/archive/{archive}/report`: ours. What was lost, repaired and missing, and why.
#[utoipa::path(
    get, path = "/v2/project/{project}/archive/{archive}/report", tag = "archives (ours)", operation_id = "getReport",
    params(ProjectPath, ArchivePath),
    responses((status = 200, body = Object, content_type = "application/json"), (status = "4XX", body = ErrorBody)),
)]
pub async fn report(
    State(api): State<Shared>,
    caller: Caller,
    PathParams(path): PathParams<ArchivePath>,
) -> Result<Response, ApiError> {
    object(&api, &caller, &path, Kind::Report).await
}

/// `GET /v2/project/{project}/archive/{archive}/thumbnail`: ours. A picture of a composed archive.
#[utoipa::path(
    get, path = "/v2/project/{project}/archive/{archive}/thumbnail", tag = "archives (ours)", operation_id = "getThumbnail",
    params(ProjectPath, ArchivePath),
    responses((status = 200, body = String, content_type = "image/jpeg"), (status = "4XX", body = ErrorBody)),
)]
pub async fn thumbnail(
    State(api): State<Shared>,
    caller: Caller,
    PathParams(path): PathParams<ArchivePath>,
) -> Result<Response, ApiError> {
    object(&api, &caller, &path, Kind::Thumbnail).await
}

async fn object(api: &Shared, caller: &Caller, path: &ArchivePath, kind: Kind) -> Result<Response, ApiError> {
    let row = api.archive(caller, path.archive).await?;
    let key = Keys::new(row.application.clone(), row.archive).key(kind);
    match api.store.get(&key, None).await {
        Ok(flow) => Ok(([(header::CONTENT_TYPE, kind.content_type())], Body::from_stream(flow)).into_response()),
        Err(StoreError::NotFound { .. }) => Err(ApiError::not_found("this archive has none, or not yet")),
        Err(error) => Err(error.into()),
    }
}

/// `POST /v2/project/{project}/archive/{archive}/clip`: ours. Makes a new archive of a part of a composed one, by copying: the
/// part begins at a keyframe, of which there is one in two seconds.
#[utoipa::path(
    post, path = "/v2/project/{project}/archive/{archive}/clip", tag = "archives (ours)", operation_id = "clipArchive",
    params(ProjectPath, ArchivePath), request_body = ClipArchive,
    responses((status = 202, body = response::Archive), (status = "4XX", body = ErrorBody)),
)]
pub async fn clip(
    State(api): State<Shared>,
    caller: Caller,
    public_url: PublicUrl,
    PathParams(path): PathParams<ArchivePath>,
    body: JsonBody<ClipArchive>,
) -> Result<(StatusCode, Json<response::Archive>), ApiError> {
    derive_archive(&api, &caller, &public_url, &path, &body).await
}

/// `POST /v2/project/{project}/archive/{archive}/recompose`: ours. Makes a new archive of the segments that are kept of another
/// one: with another layout or size, or of exactly a part.
#[utoipa::path(
    post, path = "/v2/project/{project}/archive/{archive}/recompose", tag = "archives (ours)", operation_id = "recomposeArchive",
    params(ProjectPath, ArchivePath), request_body = RecomposeArchive,
    responses((status = 202, body = response::Archive), (status = "4XX", body = ErrorBody)),
)]
pub async fn recompose(
    State(api): State<Shared>,
    caller: Caller,
    public_url: PublicUrl,
    PathParams(path): PathParams<ArchivePath>,
    body: JsonBody<RecomposeArchive>,
) -> Result<(StatusCode, Json<response::Archive>), ApiError> {
    derive_archive(&api, &caller, &public_url, &path, &body).await
}

/// The new archive is `stopped` until it is made, then `available` or `failed`. Callbacks report the change.
async fn derive_archive(
    api: &Shared,
    caller: &Caller,
    public_url: &PublicUrl,
    path: &ArchivePath,
    body: &JsonBody<impl JsonRequest<Checked = DerivedArchive>>,
) -> Result<(StatusCode, Json<response::Archive>), ApiError> {
    let of = api.archive(caller, path.archive).await?;
    let new = request_derived_archive(api.catalog.as_ref(), &of, &body.read()?, Wallclock::now())
        .await
        .map_err(|e| ApiError::of(&e))?;
    Ok((StatusCode::ACCEPTED, Json(api.archive_response(&new, &caller.application, Some(public_url)).await?)))
}
