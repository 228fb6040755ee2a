//! The capturing stage: join the room, subscribe to every stream, note what happens, until the session ends.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::absence::Absence;
use super::desired;
use super::enter::{Entered, Entry};
use super::hand_over;
use super::live_composer::Composing;
use super::presence::{EndReason, Limits, Presence};
use super::room_session::{OpenCapture, Session};
use super::stage::{CaptureOutcome, ControlReceivers, bug};
use super::stream_ids::StreamIds;
use super::{Job, JobFailure};
use crate::catalog::ArchiveRow;
use crate::model::cancellable::Cancellable;
use crate::model::fault::{FaultKind, chain};
use crate::model::ids::{Epoch, TrackId};
use crate::model::time::{MediaClock, MediaTime};
use crate::recording::history::{EventKind, History, has_streams};
use crate::recording::restore::restore;
use crate::recording::upload;
use crate::recording::upload::{Shipper, UploadBacklog};
use crate::recording::{LogOptions, LogReader, TrackLog};
use crate::rtp::track::TrackOptions;
use crate::webrtc::{CaptureKey, CaptureOptions};

/// What other machines captured is waited for so long before a capture goes on.
const RESTORE: Duration = Duration::from_secs(3);
/// The catalog is asked for so long what there was before; media flows now.
const NEWS_MAX: Duration = Duration::from_secs(1);
/// The disk opens or seals a log within this time, or it hangs.
const DISK_MAX: Duration = Duration::from_secs(8);
/// The end of what an earlier owner has written may lie so far ahead of the clock though that was not set: that owner may still be writing,
/// and how long its last frame lasts is a guess.
const AHEAD_MAX: Duration = Duration::from_secs(1);
/// The best of so many readings of the catalog's clock counts: the first one may have made a connection.
const CLOCK_READINGS: usize = 3;

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
        let (store, origin) = (context.store.as_ref(), Some(job.row.origin));
        match tokio::time::timeout(RESTORE, restore(store, &job.keys, &job.dir, origin, &job.fenced)).await {
            Ok(Ok(Cancellable::Done(bundles))) => {
                tracing::info!(bundles, "earlier segments were fetched from the store");
            }
            Ok(Ok(Cancellable::Cancelled)) => return Ok(CaptureOutcome::Fenced),
            Ok(Err(error)) => tracing::warn!("earlier segments are not fetched for now: {}", chain(&error)),
            Err(_) => tracing::warn!("earlier segments are not fetched for now: the store is too slow"),
        }
    }
    context.spool.mark_stale();
    // A disk that hangs is another machine's chance.
    let prepared = tokio::time::timeout(DISK_MAX, prepare(job)).await;
    let earlier = prepared.unwrap_or_else(|_| Err(disk_hangs("the log is not opened")))?;
    let (history, before) = History::open(&job.dir).map_err(|e| JobFailure::of(&e))?;
    let clock = media_clock(job, &earlier).await;
    let now = clock.wallclock();
    let ever_published = !earlier.ends.is_empty() || has_streams(&before);
    // An automatic archive begins with its first stream: one of nothing is never seen.
    if ever_published || !job.is_automatic() {
        status.send_replace(Some(job.archive_row(now)));
    }
    let limits = Limits::from(&context.settings.limits);
    let mut presence = Presence::new(limits, job.row.origin, now, earlier.recorded, ever_published);
    let nothing_before = !ever_published && nothing_before(job).await;
    let began = EventKind::EpochBegan { epoch: job.row.epoch, worker: context.worker.clone(), nothing_before };
    history.add(clock.now(), began).map_err(|e| JobFailure::of(&e))?;
    let noted = desired::noted(&before);
    if let Some(first) = desired::first(&noted, &job.spec.archive) {
        history.add(first.at, first.kind).map_err(|e| JobFailure::of(&e))?;
    }
    let entry = Entry { job, clock: &clock, history: &history, presence: &mut presence, absence: Absence::of(job) };
    let mut room = match entry.enter(&mut control.end_reason).await? {
        Entered::Room(room) => room,
        Entered::Ended(ended) => return Ok(ended),
    };
    let complete = watch::Sender::new(MediaTime(i64::MIN));
    let (capture, mut events) =
        context.engine.open(options(job, clock, earlier.ends, complete.clone())).await.map_err(|e| bug(&e))?;
    let open = OpenCapture { key: capture, clock };
    let mut session = Session::new(job, open, room.control(), history, noted, StreamIds::of_history(&before), presence);
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
    // A driver may be dropped, or panic: then the capture ends nevertheless.
    let (_stop_shipping, open) = (stop_shipping.clone().drop_guard(), CloseGuard { context, key: Some(capture) });
    let ended = tokio::select! {
        ended = session.run(room.as_mut(), &mut events, &backlog, status, &mut control) => ended,
        never = compose_behind(job, complete, composing) => match never {},
    };
    session.note_stood_still();
    // Streams are announced until now, however long it takes to leave and to ship what is sealed.
    let (ended_at, ended_wallclock) = (session.now(), clock.wallclock());
    room.leave().await;
    session.end().await;
    open.disarm();
    let closed = tokio::time::timeout(DISK_MAX, context.engine.close(capture)).await;
    stop_shipping.cancel();
    // A disk that hangs holds up what reads it, too.
    tokio::time::timeout(DISK_MAX, shipping.wait()).await.unwrap_or_default();
    match closed {
        Ok(closed) => closed.map_err(|e| bug(&e))?,
        Err(_) => return Err(disk_hangs("the log is not sealed")),
    }
    let ended = match ended {
        CaptureOutcome::Ended(reason) if job.is_automatic() && session.is_empty(&reason, ended_wallclock) => {
            CaptureOutcome::Empty { reason, left_at: ended_wallclock }
        }
        ended => ended,
    };
    // A job that goes on to wait for its first stream has not ended.
    if let CaptureOutcome::Ended(reason) | CaptureOutcome::Empty { reason, .. } = &ended
        && (matches!(ended, CaptureOutcome::Ended(_)) || reason != EndReason::NeverPublished.vonage())
    {
        session.note_at(ended_at, EventKind::Ended { reason: reason.clone() });
    } else {
        session.note_at(ended_at, EventKind::Left);
    }
    Ok(ended)
}

/// Starts the composer, which follows the log. What an earlier owner still captures comes first: a composer that had passed that time would
/// have to begin anew when the session has ended.
async fn compose_behind(
    job: &Job,
    complete: watch::Sender<MediaTime>,
    composing: &mut Option<Composing>,
) -> Infallible {
    if job.row.epoch > Epoch(1) {
        hand_over::wait_for_prior_owners(job).await;
        let (store, origin) = (job.context.store.as_ref(), Some(job.row.origin));
        match restore(store, &job.keys, &job.dir, origin, &job.fenced).await {
            Ok(_) => job.context.spool.mark_stale(),
            Err(error) => tracing::warn!("what the owner before sent is not fetched for now: {}", chain(&error)),
        }
    }
    *composing = Composing::start(job, complete);
    std::future::pending().await
}

/// Whether no earlier owner of an automatic job can have captured anything: its archive is in the catalog from its first stream on.
async fn nothing_before(job: &Job) -> bool {
    if job.row.epoch <= Epoch(1) || !job.is_automatic() {
        return false;
    }
    let known = tokio::time::timeout(NEWS_MAX, job.context.catalog.archive(job.row.archive)).await;
    matches!(known, Ok(Ok(None)))
}

fn disk_hangs(what: &str) -> JobFailure {
    JobFailure { kind: FaultKind::SpoolIo, detail: format!("{what} after {} s: the disk hangs", DISK_MAX.as_secs()) }
}

/// The catalog's clock, which earlier owners used, too. If it was set back since, media goes on right behind theirs: what lies before
/// the end of a log would be taken for what the log has already.
async fn media_clock(job: &Job, earlier: &PriorEpochs) -> MediaClock {
    let context = &job.context;
    for _ in 0..CLOCK_READINGS {
        if let Err(error) = context.clock.read(context.catalog.as_ref()).await {
            tracing::warn!("the catalog's clock is not read for now, and taken from before: {}", chain(&error));
            break;
        }
    }
    let clock = MediaClock::new(context.clock.anchor(), job.row.origin);
    let (now, end) = (clock.now(), earlier.ends.values().copied().max());
    match end {
        Some(end) if now.until(end) > AHEAD_MAX => {
            let missing = now.until(end);
            tracing::warn!(
                missing_ms = missing.as_millis(),
                "the catalog's clock is behind the log: media goes on behind its end"
            );
            clock.ahead_by(missing)
        }
        Some(end) if end > now => {
            let ahead_ms = now.until(end).as_millis();
            tracing::info!(
                ahead_ms,
                "the log's end is ahead of the catalog's clock: an earlier owner may still write it"
            );
            clock
        }
        _ => clock,
    }
}

/// Closes a capture whose driver is gone.
struct CloseGuard<'a> {
    context: &'a super::Context,
    key: Option<CaptureKey>,
}

impl CloseGuard<'_> {
    /// The capture is closed in order.
    fn disarm(mut self) {
        self.key = None;
    }
}

impl Drop for CloseGuard<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.context.engine.abandon(key);
        }
    }
}

/// Seals what an earlier epoch left open, and looks how far it came.
async fn prepare(job: &Job) -> Result<PriorEpochs, JobFailure> {
    let (dir, epoch, spool) = (job.dir.clone(), job.row.epoch, Arc::clone(&job.context.spool));
    let descriptor = serde_json::to_vec_pretty(&job.descriptor()).expect("plain data");
    let work = move || -> Result<PriorEpochs, crate::recording::LogError> {
        std::fs::create_dir_all(&dir).map_err(crate::recording::LogError::io("create", &dir))?;
        let path = dir.join(upload::JOB);
        // A crash must not leave half of it: nobody would know whose log it is.
        let temp = path.with_extension("json.tmp");
        std::fs::write(&temp, descriptor).map_err(crate::recording::LogError::io("write", &temp))?;
        std::fs::rename(&temp, &path).map_err(crate::recording::LogError::io("rename", &temp))?;
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

fn options(
    job: &Job,
    clock: MediaClock,
    earlier: BTreeMap<TrackId, MediaTime>,
    complete: watch::Sender<MediaTime>,
) -> CaptureOptions {
    let settings = &job.context.settings.capture;
    let interval_max = settings.keyframe_interval_max.0;
    CaptureOptions {
        archive: job.row.archive,
        dir: job.dir.clone(),
        epoch: job.row.epoch,
        clock,
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

/// Sends sealed segments to the store while the session runs. An outage delays it, and nothing else.
async fn ship_behind(
    context: Arc<super::Context>,
    keys: crate::store::keys::Keys,
    dir: PathBuf,
    epoch: crate::model::ids::Epoch,
    backlog: Arc<UploadBacklog>,
    stop: CancellationToken,
) {
    let mut shipper = Shipper::new(keys, dir, epoch);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = backlog.more() => {}
        }
        match shipper.ship(context.store.as_ref(), &stop).await {
            Ok(Cancellable::Done(bytes)) => backlog.shipped(bytes),
            Ok(Cancellable::Cancelled) => {}
            Err(error) => tracing::warn!("segments are not shipped for now: {}", chain(&error)),
        }
    }
}
