//! Sessions: creating them, their streams and layout classes.

use std::collections::BTreeSet;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::time::sleep;
use utoipa::ToSchema;

use crate::api::caller::Caller;
use crate::api::dto::path::{ProjectPath, SessionPath, StreamPath};
use crate::api::dto::query::PageQuery;
use crate::api::dto::response;
use crate::api::dto::sessions::{LayoutClasses, SessionForm};
use crate::api::error::{ApiError, ErrorBody};
use crate::api::extract::{JsonBody, PathParams, QueryParams};
use crate::api::state::Shared;
use crate::catalog::{ApplicationKind, Classes, SessionRow};
use crate::job::change::{DesireError, desire};
use crate::model::archive_options::ArchiveOptions;
use crate::model::ids::StreamId;
use crate::model::session::MediaMode;
use crate::model::time::Wallclock;
use crate::session::id;

/// How often classes are written when others write some at the same time.
const TRIES: u32 = 10;
/// Longest pause between these tries.
const PAUSE: Duration = Duration::from_millis(50);
/// Streams of one session whose classes are kept: those of a session that never ends must not grow for ever.
const CLASSES_MAX: usize = 1000;

/// A new session, as Vonage answers: many fields that are null, and read by nobody.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct CreatedSession {
    /// Its id.
    pub session_id: String,
    /// The application, or the project's key.
    pub project_id: String,
    /// The same.
    pub partner_id: String,
    /// The same, of unified applications.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub application_id: Option<String>,
    /// Such as `Sun Sep 15 21:56:28 UTC 2024`.
    pub create_dt: String,
    /// Always null.
    pub session_status: Option<String>,
    /// Always null.
    pub status_invalid: Option<String>,
    /// Always null.
    pub media_server_hostname: Option<String>,
    /// Always empty.
    pub media_server_url: &'static str,
    /// Always null.
    pub messaging_server_url: Option<String>,
    /// Always null.
    pub messaging_url: Option<String>,
    /// Always null.
    pub symphony_address: Option<String>,
    /// Always null.
    pub properties: Option<String>,
    /// Always null.
    pub ice_server: Option<String>,
    /// Always null.
    pub ice_servers: Option<String>,
    /// Seconds.
    pub ice_credential_expiration: u32,
}

/// `POST /session/create`
///
/// XML unless `Accept` names JSON, which must be labelled by `application/json` and nothing more (opentok-python).
#[utoipa::path(
    post, path = "/session/create", tag = "sessions", operation_id = "createSession",
    request_body(content = SessionForm, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200, body = [CreatedSession]), (status = "4XX", body = ErrorBody)),
)]
pub async fn create(
    State(api): State<Shared>,
    caller: Caller,
    headers: HeaderMap,
    form: SessionForm,
) -> Result<Response, ApiError> {
    let row = session_row(&api, &caller, form)?;
    api.catalog.add_session(&row).await?;
    let created = created(&caller, &row);
    let accepts = |value: &HeaderValue| value.to_str().is_ok_and(|accept| accept.contains("application/json"));
    if headers.get_all(header::ACCEPT).iter().any(accepts) {
        return Ok(Json([created]).into_response());
    }
    let number = response::project_number(&row.application).map_or(created.partner_id, |number| number.to_string());
    // Ids are of letters, digits and a few signs that mean nothing in XML.
    let xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\" standalone=\"yes\"?><sessions><Session><session_id>{}</session_id>\
         <partner_id>{number}</partner_id><create_dt>{}</create_dt></Session></sessions>",
        created.session_id, created.create_dt
    );
    Ok(([(header::CONTENT_TYPE, "text/xml")], xml).into_response())
}

fn session_row(api: &Shared, caller: &Caller, form: SessionForm) -> Result<SessionRow, ApiError> {
    let (now, application) = (Wallclock::now(), caller.application.application.clone());
    let fields = id::SessionIdFields { application: application.clone(), location: form.location, created_at: now };
    let session = id::encode(&fields, rand::random());
    let (region, router) = match form.media_mode {
        MediaMode::Relayed => (api.settings.worker.region.clone(), None),
        MediaMode::Routed => {
            let (region, router) = api.place(&session, form.location)?;
            (region, Some(router))
        }
    };
    Ok(SessionRow {
        session,
        application,
        media_mode: form.media_mode,
        archive_mode: form.archive_mode,
        e2ee: form.e2ee,
        location: form.location,
        region,
        router,
        archive: ArchiveOptions {
            name: form.archive_name,
            resolution: form.archive_resolution,
            output_mode: form.archive_output_mode.unwrap_or_default(),
            layout: form.archive_layout,
            ..ArchiveOptions::default()
        },
        conversation: 0,
        classes: Classes::new(),
        created_at: now,
    })
}

fn created(caller: &Caller, row: &SessionRow) -> CreatedSession {
    let unified = caller.application.kind == ApplicationKind::Unified;
    CreatedSession {
        session_id: row.session.to_string(),
        project_id: row.application.to_string(),
        partner_id: row.application.to_string(),
        application_id: unified.then(|| row.application.to_string()),
        create_dt: row.created_at.to_words(),
        session_status: None,
        status_invalid: None,
        media_server_hostname: None,
        media_server_url: "",
        messaging_server_url: None,
        messaging_url: None,
        symphony_address: None,
        properties: None,
        ice_server: None,
        ice_servers: None,
        ice_credential_expiration: 86_100,
    }
}

/// A stream of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SessionStream {
    /// A UUID.
    pub id: String,
    /// `camera`, `screen` or `custom`.
    pub video_type: &'static str,
    /// Empty if it has none.
    pub name: String,
    /// Its layout classes.
    pub layout_class_list: Vec<String>,
}

/// The streams of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct SessionStreams {
    /// How many there are in all.
    pub count: usize,
    /// Each of them, or of the part that was asked for.
    pub items: Vec<SessionStream>,
}

/// `GET /v2/project/{project}/session/{session}/stream`
#[utoipa::path(
    get, path = "/v2/project/{project}/session/{session}/stream", tag = "sessions", operation_id = "listStreams",
    params(ProjectPath, SessionPath, PageQuery),
    responses((status = 200, body = SessionStreams), (status = "4XX", body = ErrorBody)),
)]
pub async fn streams(
    State(api): State<Shared>,
    caller: Caller,
    QueryParams(page): QueryParams<PageQuery>,
    PathParams(path): PathParams<SessionPath>,
) -> Result<Json<SessionStreams>, ApiError> {
    // PHP's vonage/video asks for page after page until one is empty.
    let session = api.session(&caller, &path.session).await?;
    let items = api.streams(&session).await?;
    let count = items.len();
    Ok(Json(SessionStreams { count, items: page.of(items) }))
}

/// `GET /v2/project/{project}/session/{session}/stream/{stream}`
#[utoipa::path(
    get, path = "/v2/project/{project}/session/{session}/stream/{stream}", tag = "sessions", operation_id = "getStream",
    params(ProjectPath, StreamPath),
    responses((status = 200, body = SessionStream), (status = "4XX", body = ErrorBody)),
)]
pub async fn stream(
    State(api): State<Shared>,
    caller: Caller,
    PathParams(path): PathParams<StreamPath>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let session = api.session(&caller, &path.session).await?;
    // Vonage's status for an id that cannot be one.
    let no_id = |e| ApiError::new(StatusCode::REQUEST_TIMEOUT, format!("stream in the address: {e}"));
    let stream = path.stream.parse::<StreamId>().map_err(no_id)?.to_string();
    let found = api.streams(&session).await?.into_iter().find(|known| known.id == stream);
    let found = found.ok_or_else(|| ApiError::not_found("nobody publishes such a stream in this session now"))?;
    let mut response = Json(found).into_response();
    if parses_twice(&headers) {
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/json"));
    }
    Ok(response)
}

/// Whether opentok-node asks. What is labelled as `application/json` it parses, and then it parses a stream once more, which
/// fails (its `getStream`, seen with 2.23.2); by another label it is right.
fn parses_twice(headers: &HeaderMap) -> bool {
    let agent = headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok());
    agent.is_some_and(|agent| agent.starts_with("OpenTok-Node-SDK/"))
}

/// `PUT /v2/project/{project}/session/{session}/stream`
#[utoipa::path(
    put, path = "/v2/project/{project}/session/{session}/stream", tag = "sessions", operation_id = "setLayoutClasses",
    params(ProjectPath, SessionPath), request_body = LayoutClasses,
    responses((status = 200, body = SessionStreams), (status = "4XX", body = ErrorBody)),
)]
pub async fn classes(
    State(api): State<Shared>,
    caller: Caller,
    PathParams(path): PathParams<SessionPath>,
    body: JsonBody<LayoutClasses>,
) -> Result<Json<SessionStreams>, ApiError> {
    let session = api.session(&caller, &path.session).await?;
    let changed = body.read()?;
    api.give_classes(session, &changed).await?;
    let session = api.session(&caller, &path.session).await?;
    let items = api.streams(&session).await?;
    Ok(Json(SessionStreams { count: items.len(), items }))
}

impl crate::api::state::Api {
    /// Gives streams of a session layout classes: for archives to come, and for those that run.
    pub(super) async fn give_classes(
        &self,
        mut session: SessionRow,
        changed: &[(StreamId, Vec<String>)],
    ) -> Result<(), ApiError> {
        for again in 0..TRIES {
            if again > 0 {
                // Those who wrote at the same time try again at other moments.
                sleep(PAUSE.mul_f64(rand::random())).await;
            }
            let mut classes = session.classes.clone();
            classes.extend(changed.iter().cloned());
            classes.retain(|_, list| !list.is_empty());
            if classes.len() > CLASSES_MAX {
                // Most of them left long ago.
                let there: BTreeSet<_> = self.streams(&session).await?.into_iter().map(|stream| stream.id).collect();
                let new = |id: &StreamId| changed.iter().any(|(stream, _)| stream == id);
                classes.retain(|id, _| there.contains(&id.to_string()) || new(id));
            }
            if classes.len() > CLASSES_MAX {
                return Err(ApiError::invalid("too many streams of this session have layout classes: take some away"));
            }
            if self.catalog.keep_classes(&session, &classes).await? {
                return self.pass_classes_on(&session, changed).await;
            }
            let newer = self.catalog.session(&session.application, &session.session).await?;
            session = newer.ok_or_else(|| ApiError::not_found("there is no such session"))?;
        }
        Err(ApiError::new(StatusCode::CONFLICT, "others change the layout classes all the time: try again"))
    }

    async fn pass_classes_on(&self, session: &SessionRow, changed: &[(StreamId, Vec<String>)]) -> Result<(), ApiError> {
        for job in self.catalog.active_jobs(&session.application, &session.session).await? {
            let wished =
                desire(self.catalog.as_ref(), job.archive, |desired| desired.classes.extend(changed.iter().cloned()));
            match wished.await {
                // An archive that ended, or has not begun, meanwhile; or one that was told of more streams than it takes.
                Ok(_)
                | Err(DesireError::NotRecording { .. } | DesireError::NotFound(_) | DesireError::Selection(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.nudge();
        Ok(())
    }
}
