//! The log thread writes frames into the tracks' logs; the sync thread fsyncs sealed segments, which may
//! take as long as a disk likes without a frame waiting for it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::messages::{CaptureEvent, CaptureKey, CaptureOptions, LogCommand, SyncCommand, What, media_time, tell};
use crate::model::fault::HasFault;
use crate::model::ids::TrackId;
use crate::model::media::{Gap, GapCause, TrackFormat, TrackStats};
use crate::model::time::{ClockAnchor, MediaTime};
use crate::recording::spool::Spool;
use crate::recording::{LogError, TrackLog};
use crate::rtp::track::Output;

/// A log that could not be opened is tried again after this.
const OPEN_AGAIN: Duration = Duration::from_secs(1);
/// How often parts are looked at for their age.
const TICK: Duration = Duration::from_millis(50);

struct Capture {
    options: Box<CaptureOptions>,
    events: mpsc::Sender<CaptureEvent>,
    logs: BTreeMap<TrackId, Log>,
    /// Tracks whose log could not be opened.
    unopened: BTreeMap<TrackId, Unopened>,
    next_seal: Instant,
    /// What arrived before has come here.
    settled: MediaTime,
}

/// A track whose log could not be opened: what must not be forgotten until it can be.
struct Unopened {
    retry: Instant,
    format: Option<TrackFormat>,
    /// The first frame that was dropped.
    since: Option<MediaTime>,
}

impl Unopened {
    fn note(&mut self, what: What) {
        match what {
            What::Output(Output::Format(format)) => self.format = Some(format),
            What::Output(Output::Frame(frame)) => self.since = self.since.or(Some(frame.pts)),
            _ => {}
        }
    }

    /// Whether it is worth trying: pictures are of use again from a keyframe on.
    fn may_open(&self, what: &What, now: Instant) -> bool {
        now >= self.retry && matches!(what, What::Output(Output::Frame(frame)) if frame.keyframe)
    }
}

struct Log {
    log: TrackLog,
    told_first: bool,
    told_failed: bool,
}

/// The log thread.
pub(super) fn run_log(
    queue: &Receiver<LogCommand>,
    syncs: &SyncSender<SyncCommand>,
    spool: &Arc<Spool>,
    anchor: ClockAnchor,
) {
    let mut captures: HashMap<CaptureKey, Capture> = HashMap::new();
    let mut tick_at = anchor.instant();
    loop {
        match queue.recv_timeout(TICK) {
            Ok(LogCommand::Open { key, options, events }) => {
                let next_seal = now() + options.segment;
                captures.insert(key, Capture::new(options, events, next_seal));
            }
            Ok(LogCommand::Items { items, settled }) => {
                for item in items {
                    if let Some(capture) = captures.get_mut(&item.capture) {
                        capture.item(item.track, item.what, syncs, spool);
                    }
                }
                for (key, at) in settled {
                    if let Some(capture) = captures.get_mut(&key) {
                        capture.settled = at;
                    }
                }
            }
            Ok(LogCommand::Close { key, done }) => {
                if let Some(mut capture) = captures.remove(&key) {
                    capture.seal(syncs);
                }
                send_sync(syncs, SyncCommand::Done(done));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let now = now();
        if now < tick_at {
            continue;
        }
        tick_at = now + TICK;
        for capture in captures.values_mut() {
            let at = media_time(anchor.wallclock(now), capture.options.origin);
            capture.tick(at);
            if now >= capture.next_seal {
                capture.next_seal = now + capture.options.segment;
                capture.seal(syncs);
            }
        }
    }
}

impl Capture {
    fn new(options: Box<CaptureOptions>, events: mpsc::Sender<CaptureEvent>, next_seal: Instant) -> Self {
        let (logs, unopened) = (BTreeMap::new(), BTreeMap::new());
        Self { options, events, logs, unopened, next_seal, settled: MediaTime(i64::MIN) }
    }

    fn item(&mut self, track: TrackId, what: What, syncs: &SyncSender<SyncCommand>, spool: &Arc<Spool>) {
        if !self.logs.contains_key(&track) && !self.open(track, &what, spool) {
            if let Some(unopened) = self.unopened.get_mut(&track) {
                unopened.note(what);
            }
            return;
        }
        let log = self.logs.get_mut(&track).expect("it is open");
        let result = match what {
            What::Stats(stats) => {
                log.log.stats(&stats);
                Ok(None)
            }
            What::Output(Output::Format(format)) => log.log.format(&format),
            What::Output(Output::Frame(frame)) => log.log.frame(&frame).map(|()| None),
            What::Output(Output::Gap(gap)) => log.log.gap(gap).map(|()| None),
            What::Output(Output::SenderReport(report)) => {
                log.log.sender_report(report);
                Ok(None)
            }
            What::Output(Output::RequestKeyframe { .. }) => Ok(None),
        };
        match result {
            Ok(None) => {}
            Ok(Some(segment)) => {
                let events = self.events.clone();
                send_sync(syncs, SyncCommand::Sync { segments: vec![segment], events });
            }
            Err(error) => log.failed(track, &error, &self.events),
        }
        // What fails next is news again.
        log.told_failed &= log.log.is_failing();
        log.tell_first(track, &self.events);
    }

    /// Opens a track's log if it is time. Returns whether it is open.
    fn open(&mut self, track: TrackId, what: &What, spool: &Arc<Spool>) -> bool {
        // Nothing is made on disk before there is something to write.
        if matches!(what, What::Stats(stats) if *stats == TrackStats::default()) {
            return false;
        }
        let now = now();
        if self.unopened.get(&track).is_some_and(|unopened| !unopened.may_open(what, now)) {
            return false;
        }
        let options = &self.options;
        match TrackLog::open(&options.dir, track, options.epoch, options.log.clone(), Arc::clone(spool)) {
            Ok((log, _)) => {
                let mut log = Log { log, told_first: false, told_failed: false };
                if let Some(unopened) = self.unopened.remove(&track) {
                    log.go_on(track, &unopened, what, &self.events);
                }
                self.logs.insert(track, log);
                true
            }
            Err(error) => {
                let retry = now + OPEN_AGAIN;
                let known = self.unopened.len();
                self.unopened.entry(track).or_insert(Unopened { retry, format: None, since: None }).retry = retry;
                if self.unopened.len() > known {
                    tell(&self.events, CaptureEvent::StorageFailed { track, why: crate::model::fault::chain(&error) });
                }
                false
            }
        }
    }

    fn tick(&mut self, at: MediaTime) {
        for (track, log) in &mut self.logs {
            if let Err(error) = log.log.tick(at) {
                log.failed(*track, &error, &self.events);
            }
        }
        let open = self.logs.values().filter_map(|log| log.log.open_since());
        let complete = open.fold(self.settled, MediaTime::min);
        // Nobody may be listening.
        self.options.complete.send_if_modified(|known| {
            let more = complete > *known;
            *known = complete.max(*known);
            more
        });
    }

    /// All tracks at one moment, so that what they seal can travel as one object.
    fn seal(&mut self, syncs: &SyncSender<SyncCommand>) {
        let mut segments = Vec::new();
        for (track, log) in &mut self.logs {
            match log.log.seal() {
                Ok(segment) => segments.extend(segment),
                Err(error) => log.failed(*track, &error, &self.events),
            }
        }
        if !segments.is_empty() {
            send_sync(syncs, SyncCommand::Sync { segments, events: self.events.clone() });
        }
    }
}

impl Log {
    /// What came while the log could not be opened: the format, and that frames are missing.
    fn go_on(&mut self, track: TrackId, unopened: &Unopened, what: &What, events: &mpsc::Sender<CaptureEvent>) {
        let format = unopened.format.as_ref().map(|format| self.log.format(format).map(drop));
        let gap = match (unopened.since, what) {
            (Some(from), What::Output(Output::Frame(frame))) if from < frame.pts => {
                Some(self.log.gap(Gap { from, to: frame.pts, cause: GapCause::Storage }))
            }
            _ => None,
        };
        for error in [format, gap].into_iter().flatten().filter_map(Result::err) {
            self.failed(track, &error, events);
        }
    }

    /// Says once that a disk fails, not with each frame.
    fn failed(&mut self, track: TrackId, error: &LogError, events: &mpsc::Sender<CaptureEvent>) {
        if !self.told_failed {
            self.told_failed = true;
            tell(events, CaptureEvent::StorageFailed { track, why: crate::model::fault::chain(error) });
        }
    }

    fn tell_first(&mut self, track: TrackId, events: &mpsc::Sender<CaptureEvent>) {
        if !self.told_first && self.log.has_media() {
            self.told_first = true;
            tell(events, CaptureEvent::FirstMedia { track });
        }
    }
}

/// Segments wait for a slow disk; frames do not come this way.
fn send_sync(syncs: &SyncSender<SyncCommand>, command: SyncCommand) {
    if syncs.send(command).is_err() {
        tracing::error!("the sync thread has ended");
    }
}

/// The sync thread.
pub(super) fn run_sync(queue: &Receiver<SyncCommand>) {
    for command in queue {
        match command {
            SyncCommand::Done(done) => done.send(()).unwrap_or_default(),
            SyncCommand::Sync { segments, events } => {
                let mut sealed = Vec::new();
                for segment in segments {
                    match segment.sync() {
                        Ok(segment) => sealed.push(segment),
                        Err(error) => {
                            tracing::error!(fault.kind = %error.fault().kind, "{}", crate::model::fault::chain(&error));
                        }
                    }
                }
                crate::runtime::metrics::metrics().segments_sealed.inc_by(sealed.len() as u64);
                tell(&events, CaptureEvent::Sealed { segments: sealed });
            }
        }
    }
}

fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::{Epoch, SessionId, StreamId, TrackKind};
    use crate::model::media::{Codec, Frame};
    use crate::recording::{LogOptions, LogReader, TRACKS};

    #[test]
    fn a_log_that_cannot_be_opened_is_tried_again_and_what_is_missing_is_known() {
        let dir = tempfile::tempdir().expect("dir");
        let spool = Arc::new(Spool::open(dir.path(), 1 << 30, 70).expect("spool"));
        let session: SessionId = "s".parse().expect("id");
        let track = TrackId { stream: StreamId::of_router(&session, "a"), kind: TrackKind::Video };
        let (events, mut told) = mpsc::channel(16);
        let (syncs, _segments) = std::sync::mpsc::sync_channel(16);
        let options = CaptureOptions {
            archive: "2f6f2d9a-8d1c-4b1e-9c41-0b8a7d1f4c11".parse().expect("id"),
            dir: dir.path().to_owned(),
            epoch: Epoch(1),
            origin: crate::model::time::Wallclock(0),
            log: LogOptions::default(),
            track: crate::rtp::track::TrackOptions::default(),
            segment: Duration::from_secs(5),
            earlier: BTreeMap::new(),
            complete: tokio::sync::watch::Sender::new(MediaTime(i64::MIN)),
        };
        let mut capture = Capture::new(Box::new(options), events, now());
        // A file is where the folder of the tracks should be.
        std::fs::write(dir.path().join(TRACKS), "").expect("file");
        let format = TrackFormat { codec: Codec::Vp8, width: 320, height: 240, channels: 0, codec_private: vec![] };
        let frame = |n: i64, keyframe| {
            let pts = MediaTime::from_millis(n * 40);
            What::Output(Output::Frame(Frame { pts, duration: None, keyframe, data: vec![1; 10].into() }))
        };
        capture.item(track, What::Output(Output::Format(format)), &syncs, &spool);
        for n in 0..10 {
            capture.item(track, frame(n, n == 0), &syncs, &spool);
        }
        assert!(matches!(told.try_recv(), Ok(CaptureEvent::StorageFailed { .. })));
        assert!(told.try_recv().is_err(), "it is told once");
        std::fs::remove_file(dir.path().join(TRACKS)).expect("file");
        capture.unopened.get_mut(&track).expect("it waits").retry = now();
        for n in 10..20 {
            capture.item(track, frame(n, n == 15), &syncs, &spool);
        }
        capture.seal(&syncs);
        let index = LogReader::open(dir.path()).expect("log").tracks.remove(0);
        assert_eq!(index.frames_total(), 5, "from the next keyframe on");
        let gap = Gap { from: MediaTime::ZERO, to: MediaTime::from_millis(600), cause: GapCause::Storage };
        assert_eq!(index.missing(), [gap]);
        assert!(matches!(told.try_recv(), Ok(CaptureEvent::FirstMedia { .. })));
    }
}
