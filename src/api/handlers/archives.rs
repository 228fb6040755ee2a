//! Archives: start, stop, get, list, delete, layout, streams.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use tokio::time::{Duration, Instant, sleep};

use crate::api::caller::Caller;
use crate::api::dto::archives::{ArchiveStreams, NewArchive, StartArchive};
use crate::api::dto::path::{ArchivePath, ProjectPath};
use crate::api::dto::query::ListQuery;
use crate::api::dto::response;
use crate::api::error::{ALREADY_ARCHIVING, ApiError, ErrorBody, NOT_DELETABLE, NOT_ROUTED, NOT_RUNNING};
use crate::api::extract::{JsonBody, PathParams, QueryParams};
use crate::api::links::PublicUrl;
use crate::api::state::Shared;
use crate::archive::delete;
use crate::archive::delete::DeleteError;
use crate::catalog::{Accepted, ArchiveRow, ArchiveStatus, CatalogError, JobRow, NewJob, SessionRow, StoredSpec};
use crate::job::accept::{accept, give_classes};
use crate::job::change::{DesireError, StreamsChange, desire, select_streams};
use crate::model::archive_options::{ArchiveOptions, OutputMode, StreamMode};
use crate::model::desired::Desired;
use crate::model::ids::{ArchiveId, EventId, SessionId, StreamId};
use crate::model::job_spec::JobSpec;
use crate::model::layout::Layout;
use crate::model::session::{ArchiveMode, MediaMode};
use crate::model::time::Wallclock;

/// How long a start waits for the session's previous archive to end.
const ENDING_MAX: Duration = Duration::from_secs(2);
/// How long a stop waits for the archive to stop: until a worker that died is taken over, too. It then answers with the current status.
const STOPPING_MAX: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(25);

/// Vonage's reason for an archive that was stopped by a request.
const USER_INITIATED: &str = "user initiated";

/// `POST /v2/project/{project}/archive`
#[utoipa::path(
    post, path = "/v2/project/{project}/archive", tag = "archives", operation_id = "startArchive",
    params(ProjectPath), request_body = StartArchive,
    responses((status = 200, body = response::Archive), (status = "4XX", body = ErrorBody)),
)]
pub async fn start(
    State(api): State<Shared>,
    caller: Caller,
    body: JsonBody<StartArchive>,
) -> Result<Json<response::Archive>, ApiError> {
    let NewArchive { session, options } = body.read()?;
    let session = api.session(&caller, &session).await?;
    if session.media_mode == MediaMode::Relayed {
        return Err(ApiError::conflict(NOT_ROUTED, "Only routed sessions are allowed to initiate archives."));
    }
    if session.e2ee {
        return Err(ApiError::conflict(
            NOT_ROUTED,
            "The media of a session with e2ee cannot be read, so it is not archived.",
        ));
    }
    if api.clients(&session).await? == 0 {
        // Vonage's text.
        return Err(ApiError::not_found("Not found. No clients are actively connected to the OpenTok session."));
    }
    if session.archive_mode == ArchiveMode::Always && options.multi_archive_tag.is_none() {
        // Vonage's rule. The automatic archive has no tag and may not have begun yet: this archive would take its place, with other
        // options.
        return Err(ApiError::conflict(
            ALREADY_ARCHIVING,
            "the session is archived by itself: another archive of it needs a multiArchiveTag",
        ));
    }
    let row = begin(&api, &session, options).await?;
    api.wake_workers();
    Ok(Json(response::archive(&row, &caller.application, None, Some(&Desired::default()))))
}

/// Creates the job of an archive that a request starts, and the archive's row.
async fn begin(api: &Shared, session: &SessionRow, options: ArchiveOptions) -> Result<ArchiveRow, ApiError> {
    let now = Wallclock::now();
    let id: EventId = format!("api-{}", uuid::Uuid::new_v4()).parse().expect("a valid id");
    let spec = JobSpec {
        event: id,
        source: "archiver/api".to_owned(),
        started_at: Some(now),
        session: session.session.clone(),
        application: session.application.clone(),
        media_mode: MediaMode::Routed,
        archive_mode: ArchiveMode::Manual,
        location: session.location,
        region: session.region.clone(),
        router: session.router.clone(),
        archive: options,
    };
    let options = spec.archive.clone();
    let new = NewJob {
        job: spec.job(),
        session: session.session.clone(),
        application: session.application.clone(),
        region: session.region.clone(),
        event: StoredSpec::of(spec),
        started_at: now,
        tag: options.multi_archive_tag.clone().unwrap_or_default(),
        is_conversation: false,
    };
    let job = accepted(api, &new).await?;
    let row = ArchiveRow::started(&job, options, now);
    // The job is already durable. An error would make the client retry and start a second archive. The job's owner writes the row
    // too; if it was quicker, its row stays.
    let completed = async {
        give_classes(api.catalog.as_ref(), &job, &session.classes).await?;
        api.catalog.add_archive(&row).await
    };
    if let Err(error) = completed.await {
        let archive = row.archive;
        tracing::warn!(%archive, "begins without its session's layout classes, or is not listed yet: {}", crate::model::fault::chain(&error));
    }
    Ok(row)
}

/// Accepts the job of an archive that a request starts.
async fn accepted(api: &Shared, new: &NewJob) -> Result<JobRow, ApiError> {
    match accept(api.catalog.as_ref(), new, ENDING_MAX).await {
        Ok(Accepted::New(job) | Accepted::Duplicate(job)) => Ok(job),
        Ok(Accepted::SessionBusy(_)) | Err(CatalogError::Ending { .. }) => Err(ApiError::conflict(
            ALREADY_ARCHIVING,
            "the session is archived already: another archive at the same time needs a multiArchiveTag of its own",
        )),
        Err(error) => Err(error.into()),
    }
}

/// `GET /v2/project/{project}/archive`
#[utoipa::path(
    get, path = "/v2/project/{project}/archive", tag = "archives", operation_id = "listArchives",
    params(ProjectPath, ListQuery),
    responses((status = 200, body = response::ArchiveList), (status = "4XX", body = ErrorBody)),
)]
pub async fn list(
    State(api): State<Shared>,
    caller: Caller,
    public_url: PublicUrl,
    QueryParams(query): QueryParams<ListQuery>,
) -> Result<Json<response::ArchiveList>, ApiError> {
    let filter = query.filter(caller.application.application.clone());
    let (rows, count) = api.catalog.archives(&filter).await?;
    let mut items = Vec::with_capacity(rows.len());
    for row in &rows {
        items.push(api.archive_response(row, &caller.application, Some(&public_url)).await?);
    }
    Ok(Json(response::ArchiveList { count, items }))
}

/// `GET /v2/project/{project}/archive/{archive}`
#[utoipa::path(
    get, path = "/v2/project/{project}/archive/{archive}", tag = "archives", operation_id = "getArchive",
    params(ProjectPath, ArchivePath),
    responses((status = 200, body = response::Archive), (status = "4XX", body = ErrorBody)),
)]
pub async fn get(
    State(api): State<Shared>,
    caller: Caller,
    public_url: PublicUrl,
    PathParams(path): PathParams<ArchivePath>,
) -> Result<Json<response::Archive>, ApiError> {
    let row = api.archive(&caller, path.archive).await?;
    Ok(Json(api.archive_response(&row, &caller.application, Some(&public_url)).await?))
}

/// `POST /v2/project/{project}/archive/{archive}/stop`
///
/// An automatic archive goes on: it ends with its session (Vonage's rule).
#[utoipa::path(
    post, path = "/v2/project/{project}/archive/{archive}/stop", tag = "archives", operation_id = "stopArchive",
    params(ProjectPath, ArchivePath),
    responses((status = 200, body = response::Archive), (status = "4XX", body = ErrorBody)),
)]
pub async fn stop(
    State(api): State<Shared>,
    caller: Caller,
    public_url: PublicUrl,
    PathParams(path): PathParams<ArchivePath>,
) -> Result<Json<response::Archive>, ApiError> {
    let archive = path.archive;
    let row = api.archive(&caller, archive).await?;
    if !matches!(row.status, ArchiveStatus::Started | ArchiveStatus::Paused | ArchiveStatus::Stopped) {
        let message =
            format!("the archive is {}: it is not recorded (started, paused or stopped)", row.status.as_str());
        return Err(ApiError::conflict(NOT_RUNNING, message));
    }
    let job = api.catalog.job(row.job).await?;
    if !job.as_ref().is_some_and(is_automatic) && response::is_running(row.status) {
        api.catalog.request_stop(row.job, USER_INITIATED, Wallclock::now()).await?;
        api.wake_workers();
    }
    let row = if job.as_ref().is_some_and(is_automatic) { row } else { stopped(&api, &caller, row).await? };
    Ok(Json(api.archive_response(&row, &caller.application, Some(&public_url)).await?))
}

/// Whether the session started the archive, not a request.
fn is_automatic(job: &JobRow) -> bool {
    job.spec().map_or(true, |spec| spec.archive_mode == ArchiveMode::Always)
}

/// Waits until the job's owner has stopped the archive, for [`STOPPING_MAX`].
async fn stopped(api: &Shared, caller: &Caller, mut row: ArchiveRow) -> Result<ArchiveRow, ApiError> {
    let deadline = Instant::now() + STOPPING_MAX;
    while response::is_running(row.status) && Instant::now() < deadline {
        sleep(POLL).await;
        row = api.archive(caller, row.archive).await?;
    }
    Ok(row)
}

/// `DELETE /v2/project/{project}/archive/{archive}`
#[utoipa::path(
    delete, path = "/v2/project/{project}/archive/{archive}", tag = "archives", operation_id = "deleteArchive",
    params(ProjectPath, ArchivePath),
    responses((status = 204), (status = "4XX", body = ErrorBody)),
)]
pub async fn delete(
    State(api): State<Shared>,
    caller: Caller,
    PathParams(path): PathParams<ArchivePath>,
) -> Result<StatusCode, ApiError> {
    let row = api.own_archive(&caller, path.archive).await?;
    if row.status == ArchiveStatus::Deleted {
        // A repeated request, as of an SDK that lost its connection before the answer.
        return Ok(StatusCode::NO_CONTENT);
    }
    match delete::mark(api.catalog.as_ref(), &row).await {
        Ok(()) => {
            api.deletions.add(row);
            Ok(StatusCode::NO_CONTENT)
        }
        Err(DeleteError::Unfinished { status, .. }) => Err(ApiError::conflict(
            NOT_DELETABLE,
            format!("the archive is {status}: only what is available, uploaded, expired or failed can be deleted"),
        )),
        Err(error) => Err(ApiError::of(&error)),
    }
}

/// `PUT /v2/project/{project}/archive/{archive}/layout`
#[utoipa::path(
    put, path = "/v2/project/{project}/archive/{archive}/layout", tag = "archives", operation_id = "setArchiveLayout",
    params(ProjectPath, ArchivePath), request_body = Layout,
    responses((status = 200, body = response::Archive), (status = "4XX", body = ErrorBody)),
)]
pub async fn layout(
    State(api): State<Shared>,
    caller: Caller,
    public_url: PublicUrl,
    PathParams(path): PathParams<ArchivePath>,
    body: JsonBody<Layout>,
) -> Result<Json<response::Archive>, ApiError> {
    let row = api.archive(&caller, path.archive).await?;
    let layout = body.read()?;
    if row.options.output_mode == OutputMode::Individual {
        return Err(ApiError::invalid("an individual archive has no layout"));
    }
    desire(api.catalog.as_ref(), row.archive, |desired| desired.layout = Some(layout.clone())).await?;
    api.wake_workers();
    Ok(Json(api.archive_response(&row, &caller.application, Some(&public_url)).await?))
}

/// `PATCH /v2/project/{project}/archive/{archive}/streams`
#[utoipa::path(
    patch, path = "/v2/project/{project}/archive/{archive}/streams", tag = "archives", operation_id = "selectArchiveStreams",
    params(ProjectPath, ArchivePath), request_body = ArchiveStreams,
    responses((status = 204), (status = "4XX", body = ErrorBody)),
)]
pub async fn streams(
    State(api): State<Shared>,
    caller: Caller,
    PathParams(path): PathParams<ArchivePath>,
    body: JsonBody<ArchiveStreams>,
) -> Result<Response, ApiError> {
    let row = api.archive(&caller, path.archive).await?;
    let change = body.read()?;
    api.knows_streams(&row, &change).await?;
    match select_streams(api.catalog.as_ref(), row.archive, &change).await {
        Ok(_) => {
            api.wake_workers();
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        // The SDKs report 405 as "streamMode is auto".
        Err(error @ DesireError::AllStreams(_)) => {
            Err(ApiError::new(StatusCode::METHOD_NOT_ALLOWED, error.to_string()))
        }
        Err(error) => Err(error.into()),
    }
}

fn no_archive() -> ApiError {
    ApiError::not_found("there is no such archive")
}

impl crate::api::state::Api {
    /// An archive of the caller's application that is not deleted.
    pub(super) async fn archive(&self, caller: &Caller, archive: ArchiveId) -> Result<ArchiveRow, ApiError> {
        let row = self.own_archive(caller, archive).await?;
        if row.status == ArchiveStatus::Deleted { Err(no_archive()) } else { Ok(row) }
    }

    /// An archive of the caller's application, deleted or not. Archives of other applications do not exist for the caller (404).
    async fn own_archive(&self, caller: &Caller, archive: ArchiveId) -> Result<ArchiveRow, ApiError> {
        let row = self.catalog.archive(archive).await?;
        row.filter(|row| row.application == caller.application.application).ok_or_else(no_archive)
    }

    /// Checks that the streams to add to a manual archive are published, and that those to remove are published or selected. Skips
    /// sessions that the API did not create: only their workers know the room.
    ///
    /// # Errors
    /// 404, which opentok-node reports as "Archive or stream not found".
    async fn knows_streams(&self, row: &ArchiveRow, change: &StreamsChange) -> Result<(), ApiError> {
        let session = self.catalog.session(&row.application, &row.session).await?;
        let (Some(session), Some(job)) = (session, self.catalog.job(row.job).await?) else { return Ok(()) };
        let desired = crate::job::lease::desired(&job);
        if desired.stream_mode.unwrap_or(row.options.stream_mode) == StreamMode::Auto
            || !response::is_running(row.status)
        {
            // Refused for another reason than its streams.
            return Ok(());
        }
        let there = self.streams(&session).await?;
        let is_there = |id: &&StreamId| there.iter().any(|stream| stream.id == id.to_string());
        let added = change.add.iter().find(|id| !is_there(id));
        let removed = || change.remove.iter().find(|id| !is_there(id) && !desired.selected.contains_key(id));
        match added.or_else(removed) {
            Some(unknown) => {
                Err(ApiError::not_found(format!("nobody publishes stream {unknown} in the archive's session")))
            }
            None => Ok(()),
        }
    }

    /// A session of the caller's application.
    pub(super) async fn session(&self, caller: &Caller, session: &SessionId) -> Result<SessionRow, ApiError> {
        let found = self.catalog.session(&caller.application.application, session).await?;
        found.ok_or_else(|| ApiError::not_found("there is no such session: was it created here, by this application?"))
    }

    /// The archive of an answer, with a link if it has a file. Without a `public_url` only a store that presigns URLs has links.
    pub(in crate::api) async fn archive_response(
        &self,
        row: &ArchiveRow,
        application: &crate::catalog::ApplicationRow,
        public_url: Option<&PublicUrl>,
    ) -> Result<response::Archive, ApiError> {
        let url = match &row.object_key {
            Some(key) if row.status == ArchiveStatus::Available => {
                self.links.link(key, &crate::api::links::file_name(row, key), public_url).await?
            }
            _ => None,
        };
        // Only a running archive with stream mode manual lists its streams.
        let desired = match response::is_running(row.status) && row.options.stream_mode == StreamMode::Manual {
            true => self.catalog.job(row.job).await?.as_ref().map(crate::job::lease::desired),
            false => None,
        };
        Ok(response::archive(row, application, url, desired.as_ref()))
    }
}
