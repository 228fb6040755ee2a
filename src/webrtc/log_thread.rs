//! The log thread writes frames into the tracks' logs. The sync thread fsyncs sealed segments, so that no frame waits
//! for a slow fsync.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::messages::{CaptureEvent, CaptureKey, CaptureOptions, EntryData, LogCommand, SyncCommand, send_event};
use crate::model::fault::HasFault;
use crate::model::ids::TrackId;
use crate::model::media::{Gap, GapCause, TrackFormat, TrackStats};
use crate::model::time::MediaTime;
use crate::recording::spool::Spool;
use crate::recording::{LogError, TrackLog};
use crate::rtp::track::Output;

/// After this time, opening a log that could not be opened is tried again.
const REOPEN_INTERVAL: Duration = Duration::from_secs(1);
/// Interval at which parts are checked for their age.
const TICK: Duration = Duration::from_millis(50);

struct Capture {
    options: Box<CaptureOptions>,
    events: mpsc::Sender<CaptureEvent>,
    logs: BTreeMap<TrackId, Log>,
    /// Tracks whose log could not be opened.
    unopened: BTreeMap<TrackId, Unopened>,
    next_seal: Instant,
    /// All frames of packets that arrived before it have come to this thread.
    watermark: MediaTime,
}

/// A track whose log could not be opened, and the data to write first when it can be.
struct Unopened {
    retry: Instant,
    format: Option<TrackFormat>,
    /// Where the clock of its frames began.
    clock: Option<MediaTime>,
    /// The first frame that was dropped.
    since: Option<MediaTime>,
}

impl Unopened {
    fn remember(&mut self, data: EntryData) {
        match data {
            EntryData::Output(Output::Format(format)) => self.format = Some(format),
            EntryData::Output(Output::Frame(frame)) => self.since = self.since.or(Some(frame.pts)),
            EntryData::Output(Output::ClockBegins(at)) => self.clock = Some(at),
            _ => {}
        }
    }

    /// Whether to try to open the log: frames are of use from a keyframe on.
    fn may_open(&self, data: &EntryData, now: Instant) -> bool {
        now >= self.retry && matches!(data, EntryData::Output(Output::Frame(frame)) if frame.keyframe)
    }
}

struct Log {
    log: TrackLog,
    first_media_sent: bool,
    /// A failure was reported, when so many parts had been written.
    failed_at: Option<u64>,
}

/// The log thread.
pub(super) fn run_log(queue: &Receiver<LogCommand>, syncs: &SyncSender<SyncCommand>, spool: &Arc<Spool>) {
    let mut captures: HashMap<CaptureKey, Capture> = HashMap::new();
    let mut tick_at = now();
    loop {
        match queue.recv_timeout(TICK) {
            Ok(LogCommand::Open { key, options, events }) => {
                let next_seal = now() + options.segment;
                captures.insert(key, Capture::new(options, events, next_seal));
            }
            Ok(LogCommand::Entries { entries, watermarks }) => {
                for entry in entries {
                    if let Some(capture) = captures.get_mut(&entry.capture) {
                        capture.entry(entry.track, entry.data, syncs, spool);
                    }
                }
                for (key, at) in watermarks {
                    if let Some(capture) = captures.get_mut(&key) {
                        capture.watermark = at;
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
            capture.tick(capture.options.clock.at(now));
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
        Self { options, events, logs, unopened, next_seal, watermark: MediaTime(i64::MIN) }
    }

    fn entry(&mut self, track: TrackId, data: EntryData, syncs: &SyncSender<SyncCommand>, spool: &Arc<Spool>) {
        if !self.logs.contains_key(&track) && !self.open(track, &data, spool) {
            if let Some(unopened) = self.unopened.get_mut(&track) {
                unopened.remember(data);
            }
            return;
        }
        let log = self.logs.get_mut(&track).expect("it is open");
        let result = match data {
            EntryData::Stats(stats) => {
                log.log.stats(&stats);
                Ok(None)
            }
            EntryData::Output(Output::Format(format)) => log.log.format(&format),
            EntryData::Output(Output::Frame(frame)) => log.log.frame(&frame).map(|()| None),
            EntryData::Output(Output::Gap(gap)) => log.log.gap(gap).map(|()| None),
            EntryData::Output(Output::SenderReport(report)) => {
                log.log.sender_report(report);
                Ok(None)
            }
            EntryData::Output(Output::ClockBegins(at)) => log.log.clock_begins(at).map(|()| None),
            EntryData::Output(Output::RequestKeyframe { .. }) => Ok(None),
        };
        match result {
            Ok(None) => {}
            Ok(Some(segment)) => {
                let events = self.events.clone();
                send_sync(syncs, SyncCommand::Sync { segments: vec![segment], events });
            }
            Err(error) => log.failed(track, &error, &self.events),
        }
        log.report_first_media(track, &self.events);
        log.report_recovery(track, &self.events);
    }

    /// Opens a track's log if it is time. Returns whether it is open.
    fn open(&mut self, track: TrackId, data: &EntryData, spool: &Arc<Spool>) -> bool {
        // Without anything to write, nothing is created on disk.
        if matches!(data, EntryData::Stats(stats) if *stats == TrackStats::default()) {
            return false;
        }
        let now = now();
        if self.unopened.get(&track).is_some_and(|unopened| !unopened.may_open(data, now)) {
            return false;
        }
        let options = &self.options;
        match TrackLog::open(&options.dir, track, options.epoch, options.log.clone(), Arc::clone(spool)) {
            Ok((log, _)) => {
                let mut log = Log { log, first_media_sent: false, failed_at: None };
                if let Some(unopened) = self.unopened.remove(&track) {
                    // That it could not be opened was reported.
                    log.failed_at = Some(0);
                    log.record_missed(track, &unopened, data, &self.events);
                }
                self.logs.insert(track, log);
                true
            }
            Err(error) => {
                let retry = now + REOPEN_INTERVAL;
                let known = self.unopened.len();
                self.unopened
                    .entry(track)
                    .or_insert(Unopened { retry, format: None, clock: None, since: None })
                    .retry = retry;
                if self.unopened.len() > known {
                    send_event(
                        &self.events,
                        CaptureEvent::StorageFailed { track, reason: crate::model::fault::chain(&error) },
                    );
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
        let watermark = open.fold(self.watermark, MediaTime::min);
        // There may be no composer that listens.
        self.options.watermark.send_if_modified(|known| {
            let grown = watermark > *known;
            *known = watermark.max(*known);
            grown
        });
    }

    /// Seals all tracks at one moment, so that their segments can be sent as one object.
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
    /// Records the format that came while the log could not be opened, and a gap for the missing frames.
    fn record_missed(
        &mut self,
        track: TrackId,
        unopened: &Unopened,
        data: &EntryData,
        events: &mpsc::Sender<CaptureEvent>,
    ) {
        let format = unopened.format.as_ref().map(|format| self.log.format(format).map(drop));
        let gap = match (unopened.since, data) {
            (Some(from), EntryData::Output(Output::Frame(frame))) if from < frame.pts => {
                Some(self.log.gap(Gap { from, to: frame.pts, cause: GapCause::Storage }))
            }
            _ => None,
        };
        let clock = unopened.clock.map(|at| self.log.clock_begins(at));
        for error in [format, gap, clock].into_iter().flatten().filter_map(Result::err) {
            self.failed(track, &error, events);
        }
    }

    /// Reports a failing disk once, not for each frame.
    fn failed(&mut self, track: TrackId, error: &LogError, events: &mpsc::Sender<CaptureEvent>) {
        if self.failed_at.is_none() {
            self.failed_at = Some(self.log.parts_written());
            send_event(events, CaptureEvent::StorageFailed { track, reason: crate::model::fault::chain(error) });
        }
    }

    /// A disk that takes a part again has recovered. Another failure is reported again.
    fn report_recovery(&mut self, track: TrackId, events: &mpsc::Sender<CaptureEvent>) {
        if self.failed_at.take_if(|parts| self.log.parts_written() > *parts).is_some() {
            send_event(events, CaptureEvent::StorageRecovered { track });
        }
    }

    fn report_first_media(&mut self, track: TrackId, events: &mpsc::Sender<CaptureEvent>) {
        if !self.first_media_sent && self.log.has_media() {
            self.first_media_sent = true;
            send_event(events, CaptureEvent::FirstMedia { track });
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
                send_event(&events, CaptureEvent::Sealed { segments: sealed });
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
    use crate::model::time::{ClockAnchor, MediaClock, Wallclock};
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
            clock: MediaClock::new(ClockAnchor::now(), Wallclock(0)),
            log: LogOptions::default(),
            track: crate::rtp::track::TrackOptions::default(),
            segment: Duration::from_secs(5),
            prior_ends: BTreeMap::new(),
            watermark: tokio::sync::watch::Sender::new(MediaTime(i64::MIN)),
        };
        let mut capture = Capture::new(Box::new(options), events, now());
        // A file is where the folder of the tracks should be.
        std::fs::write(dir.path().join(TRACKS), "").expect("file");
        let format = TrackFormat { codec: Codec::Vp8, width: 320, height: 240, channels: 0, codec_private: vec![] };
        let frame = |n: i64, keyframe| {
            let pts = MediaTime::from_millis(n * 40);
            EntryData::Output(Output::Frame(Frame { pts, duration: None, keyframe, data: vec![1; 10].into() }))
        };
        capture.entry(track, EntryData::Output(Output::Format(format)), &syncs, &spool);
        for n in 0..10 {
            capture.entry(track, frame(n, n == 0), &syncs, &spool);
        }
        assert!(matches!(told.try_recv(), Ok(CaptureEvent::StorageFailed { .. })));
        assert!(told.try_recv().is_err(), "it is told once");
        std::fs::remove_file(dir.path().join(TRACKS)).expect("file");
        capture.unopened.get_mut(&track).expect("it waits").retry = now();
        for n in 10..20 {
            capture.entry(track, frame(n, n == 15), &syncs, &spool);
        }
        capture.seal(&syncs);
        let index = LogReader::open(dir.path()).expect("log").tracks.remove(0);
        assert_eq!(index.frames_total(), 5, "from the next keyframe on");
        let gap = Gap { from: MediaTime::ZERO, to: MediaTime::from_millis(600), cause: GapCause::Storage };
        assert_eq!(index.missing(), [gap]);
        assert!(matches!(told.try_recv(), Ok(CaptureEvent::FirstMedia { .. })));
        assert!(matches!(told.try_recv(), Ok(CaptureEvent::StorageRecovered { .. })));
    }
}
