//! The capturing stage: join the room, subscribe to every stream, note what happens, until the session ends.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::desired;
use super::live_composer::Composing;
use super::presence::{EndReason, Limits, Presence};
use super::room_session::Session;
use super::stage::{CaptureOutcome, ControlReceivers, bug};
use super::stream_ids::StreamIds;
use super::{Job, JobFailure};
use crate::catalog::ArchiveRow;
use crate::model::cancellable::Cancellable;
use crate::model::fault::{Backoff, FaultKind, chain};
use crate::model::ids::TrackId;
use crate::model::time::{MediaTime, Wallclock};
use crate::recording::history::{EventKind, History, has_streams};
use crate::recording::restore::restore;
use crate::recording::upload;
use crate::recording::upload::UploadBacklog;
use crate::recording::{LogOptions, LogReader, TrackLog};
use crate::router::{Room, RouterError};
use crate::rtp::track::TrackOptions;
use crate::webrtc::CaptureOptions;

/// What other machines captured is waited for so long before a capture goes on.
const RESTORE: Duration = Duration::from_secs(3);
/// The router may be away for long, and the room may be made later than the event.
const JOIN: Backoff = Backoff { first: Duration::from_millis(250), max: Duration::from_secs(5) };

/// What an earlier epoch left: where each track ends, and how long was recorded.
struct PriorEpochs {
    ends: BTreeMap<TrackId, MediaTime>,
    recorded: Duration,
}

/// Captures a session until it ends, is handed over, or is lost to another owner. A composer that follows it goes on
/// behind its end.
pub(super) async fn capture(
    job: &Job,
    status: &watch::Sender<Option<ArchiveRow>>,
    mut control: ControlReceivers,
    composing: &mut Option<Composing>,
) -> Result<CaptureOutcome, JobFailure> {
    let context = &job.context;
    if !job.has_all_before().await? {
        // How far others came is good to know, but media flows now: what is not here in time comes at the end.
        match tokio::time::timeout(RESTORE, restore(context.store.as_ref(), &job.keys, &job.dir, &job.fenced)).await {
            Ok(Ok(Cancellable::Done(bundles))) => {
                tracing::info!(bundles, "earlier segments were fetched from the store");
            }
            Ok(Ok(Cancellable::Cancelled)) => return Ok(CaptureOutcome::Fenced),
            Ok(Err(error)) => tracing::warn!("earlier segments are not fetched for now: {}", chain(&error)),
            Err(_) => tracing::warn!("earlier segments are not fetched for now: the store is too slow"),
        }
    }
    let earlier = prepare(job).await?;
    let (history, before) = History::open(&job.dir).map_err(|e| JobFailure::of(&e))?;
    let now = Wallclock::now();
    let ever_published = !earlier.ends.is_empty() || has_streams(&before);
    // An automatic archive begins with its first stream: one of nothing is never seen.
    if ever_published || !job.is_automatic() {
        status.send_replace(Some(job.archive_row(now)));
    }
    let limits = Limits::from(&context.settings.limits);
    let mut presence = Presence::new(limits, job.row.origin, now, earlier.recorded, ever_published);
    let began = EventKind::EpochBegan { epoch: job.row.epoch, worker: context.worker.clone() };
    history.add(MediaTime::from_wallclock(now, job.row.origin), began).map_err(|e| JobFailure::of(&e))?;
    let noted = desired::noted(&before);
    if let Some(first) = desired::first(&noted, &job.spec.archive) {
        history.add(first.at, first.kind).map_err(|e| JobFailure::of(&e))?;
    }
    let mut room = match enter(job, &mut presence, &mut control.end_reason).await? {
        JoinOutcome::Room(room) => room,
        JoinOutcome::Ended(captured) => return Ok(captured),
    };
    let complete = watch::Sender::new(MediaTime(i64::MIN));
    *composing = Composing::start(job, complete.clone());
    let (capture, mut events) = context.engine.open(options(job, earlier.ends, complete)).await.map_err(|e| bug(&e))?;
    let mut session =
        Session::new(job, capture, room.control(), history, noted, StreamIds::of_history(&before), presence);
    session.note_at(session.now(), EventKind::Joined);
    let (backlog, stop_shipping, shipping) =
        (Arc::new(UploadBacklog::default()), CancellationToken::new(), TaskTracker::new());
    shipping.spawn(ship_behind(
        Arc::clone(context),
        job.keys.clone(),
        job.dir.clone(),
        job.row.epoch,
        Arc::clone(&backlog),
        stop_shipping.clone(),
    ));
    shipping.close();
    let ended = session.run(room.as_mut(), &mut events, &backlog, status, &mut control).await;
    // Streams are announced until now, however long it takes to leave and to ship what is sealed.
    let (ended_at, ended_wallclock) = (session.now(), Wallclock::now());
    room.leave().await;
    session.end().await;
    let closed = context.engine.close(capture).await;
    stop_shipping.cancel();
    shipping.wait().await;
    closed.map_err(|e| bug(&e))?;
    let ended = match ended {
        CaptureOutcome::Ended(reason) if job.is_automatic() && session.is_empty(&reason, ended_wallclock) => {
            CaptureOutcome::Empty(reason)
        }
        ended => ended,
    };
    // A job that goes on to wait for its first stream has not ended.
    if let CaptureOutcome::Ended(reason) | CaptureOutcome::Empty(reason) = &ended
        && (matches!(ended, CaptureOutcome::Ended(_)) || reason != EndReason::NeverPublished.vonage())
    {
        session.note_at(ended_at, EventKind::Ended { reason: reason.clone() });
    }
    Ok(ended)
}

/// Seals what an earlier epoch left open, and looks how far it came.
async fn prepare(job: &Job) -> Result<PriorEpochs, JobFailure> {
    let (dir, epoch, spool) = (job.dir.clone(), job.row.epoch, Arc::clone(&job.context.spool));
    let descriptor = serde_json::to_vec_pretty(&job.descriptor()).expect("plain data");
    let work = move || -> Result<PriorEpochs, crate::recording::LogError> {
        std::fs::create_dir_all(&dir).map_err(crate::recording::LogError::io("create", &dir))?;
        let path = dir.join(upload::JOB);
        std::fs::write(&path, descriptor).map_err(crate::recording::LogError::io("write", &path))?;
        let mut earlier = PriorEpochs { ends: BTreeMap::new(), recorded: Duration::ZERO };
        for track in LogReader::open_present(&dir)?.tracks {
            let (_, opened) = TrackLog::open(&dir, track.track, epoch, LogOptions::default(), Arc::clone(&spool))?;
            if let (Some(start), Some(end)) = (track.start(), opened.end) {
                earlier.ends.insert(track.track, end);
                earlier.recorded = earlier.recorded.max(start.until(end));
            }
        }
        Ok(earlier)
    };
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| bug(&e))?.map_err(|e| JobFailure::of(&e))
}

fn options(job: &Job, earlier: BTreeMap<TrackId, MediaTime>, complete: watch::Sender<MediaTime>) -> CaptureOptions {
    let settings = &job.context.settings.capture;
    let interval_max = settings.keyframe_interval_max.0;
    CaptureOptions {
        archive: job.row.archive,
        dir: job.dir.clone(),
        epoch: job.row.epoch,
        origin: job.row.origin,
        log: LogOptions { part_max: settings.part.0, ..LogOptions::default() },
        track: TrackOptions {
            video_hold: settings.video_hold.0,
            audio_hold: settings.audio_hold.0,
            stall: settings.stall.0,
            keyframe_interval_min: settings.keyframe_interval_min.0,
            keyframe_interval_max: (!interval_max.is_zero()).then_some(interval_max),
        },
        segment: settings.segment.0,
        prior_ends: earlier,
        watermark: complete,
    }
}

enum JoinOutcome {
    Room(Box<dyn Room>),
    Ended(CaptureOutcome),
}

/// Joins the room. A router that is away is waited for until the session ends or has become too old; a room that
/// is not there is waited for as long as a session without streams would last.
async fn enter(
    job: &Job,
    presence: &mut Presence,
    end_reason: &mut watch::Receiver<Option<String>>,
) -> Result<JoinOutcome, JobFailure> {
    let Some(place) = &job.spec.router else {
        return Err(JobFailure { kind: FaultKind::EventInvalid, detail: "the event names no router".to_owned() });
    };
    let Some(router) = job.context.routers.get(&place.name) else {
        let detail = format!("the configuration of this worker has no media router called {}", place.name);
        return Err(JobFailure { kind: FaultKind::RouterUnknown, detail });
    };
    let mut told = false;
    for attempt in 0.. {
        let error = tokio::select! {
            () = job.fenced.cancelled() => return Ok(JoinOutcome::Ended(CaptureOutcome::Fenced)),
            () = job.drain.cancelled() => return Ok(JoinOutcome::Ended(CaptureOutcome::Drained)),
            joined = router.join(place) => match joined {
                Ok(room) => {
                    presence.router_back(Wallclock::now());
                    return Ok(JoinOutcome::Room(room));
                }
                Err(error) => error,
            },
        };
        let now = Wallclock::now();
        match &error {
            RouterError::Refused { .. } => return Err(JobFailure::of(&error)),
            // Nobody can be there, so the session's own rules say how long to wait.
            RouterError::RoomNotFound { .. } => presence.router_back(now),
            // Somebody may be there.
            _ => presence.router_lost(now),
        }
        let asked = end_reason.borrow().clone();
        if let Some(reason) = asked.or_else(|| presence.ended(now).map(|r| r.vonage().to_owned())) {
            let recorded = presence.recorded(now) > Duration::ZERO;
            return if recorded {
                Ok(JoinOutcome::Ended(CaptureOutcome::Ended(reason)))
            } else {
                Err(JobFailure::of(&error))
            };
        }
        if !std::mem::replace(&mut told, true) {
            tracing::warn!("the room cannot be entered, trying again: {}", chain(&error));
        }
        tokio::select! {
            () = job.fenced.cancelled() => return Ok(JoinOutcome::Ended(CaptureOutcome::Fenced)),
            () = job.drain.cancelled() => return Ok(JoinOutcome::Ended(CaptureOutcome::Drained)),
            Ok(()) = end_reason.changed() => {}
            () = tokio::time::sleep(JOIN.delay(attempt, rand::random())) => {}
        }
    }
    Ok(JoinOutcome::Ended(CaptureOutcome::Fenced))
}

/// Sends sealed segments to the store while the session runs. An outage delays it, and nothing else.
async fn ship_behind(
    context: Arc<super::Context>,
    keys: crate::store::keys::Keys,
    dir: PathBuf,
    epoch: crate::model::ids::Epoch,
    backlog: Arc<UploadBacklog>,
    stop: CancellationToken,
) {
    let mut next = 1;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = backlog.more() => {}
        }
        match upload::ship(context.store.as_ref(), &keys, &dir, epoch, &mut next, &stop).await {
            Ok(Cancellable::Done(bytes)) => backlog.shipped(bytes),
            Ok(Cancellable::Cancelled) => {}
            Err(error) => tracing::warn!("segments are not shipped for now: {}", chain(&error)),
        }
    }
}
