//! The log thread writes frames into the tracks' logs; the sync thread fsyncs sealed segments, which may
//! take as long as a disk likes without a frame waiting for it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::engine::{CaptureEvent, CaptureKey, CaptureOptions, media_time};
use super::media::tell;
use crate::capture::log::{LogError, TrackLog, UnsyncedSegment};
use crate::capture::spool::Spool;
use crate::capture::track::Output;
use crate::capture::types::TrackStats;
use crate::fault::HasFault;
use crate::ids::TrackId;
use crate::time::{ClockAnchor, MediaTime};

/// How often parts are looked at for their age.
const TICK: Duration = Duration::from_millis(50);

/// One thing for a track's log.
pub(super) struct Item {
    pub capture: CaptureKey,
    pub track: TrackId,
    pub what: What,
}

pub(super) enum What {
    Output(Output),
    Stats(TrackStats),
}

pub(super) enum LogCommand {
    Open { key: CaptureKey, options: Box<CaptureOptions>, events: mpsc::Sender<CaptureEvent> },
    Items(Vec<Item>),
    Close { key: CaptureKey, done: oneshot::Sender<()> },
}

pub(super) enum SyncCommand {
    Sync { segments: Vec<UnsyncedSegment>, events: mpsc::Sender<CaptureEvent> },
    Done(oneshot::Sender<()>),
}

impl Item {
    pub const fn stats(capture: CaptureKey, track: TrackId, stats: TrackStats) -> Self {
        Self { capture, track, what: What::Stats(stats) }
    }

    pub const fn is_frame(&self) -> bool {
        matches!(self.what, What::Output(Output::Frame(_)))
    }
}

struct Capture {
    options: Box<CaptureOptions>,
    events: mpsc::Sender<CaptureEvent>,
    logs: BTreeMap<TrackId, Log>,
    next_seal: Instant,
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
                captures.insert(key, Capture { options, events, logs: BTreeMap::new(), next_seal });
            }
            Ok(LogCommand::Items(items)) => {
                for item in items {
                    if let Some(capture) = captures.get_mut(&item.capture) {
                        capture.item(item.track, item.what, syncs, spool);
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
    fn item(&mut self, track: TrackId, what: What, syncs: &SyncSender<SyncCommand>, spool: &Arc<Spool>) {
        let log = match self.logs.entry(track) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => {
                // Nothing is made on disk before there is something to write.
                if matches!(&what, What::Stats(stats) if *stats == TrackStats::default()) {
                    return;
                }
                let options = &self.options;
                match TrackLog::open(&options.dir, track, options.epoch, options.log.clone(), Arc::clone(spool)) {
                    Ok((log, _)) => entry.insert(Log { log, told_first: false, told_failed: false }),
                    Err(error) => {
                        let why = crate::fault::chain(&error);
                        return tell(&self.events, CaptureEvent::StorageFailed { track, why });
                    }
                }
            }
        };
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
        log.tell_first(track, &self.events);
    }

    fn tick(&mut self, at: MediaTime) {
        for (track, log) in &mut self.logs {
            if let Err(error) = log.log.tick(at) {
                log.failed(*track, &error, &self.events);
            }
        }
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
    /// Says once that a disk fails, not with each frame.
    fn failed(&mut self, track: TrackId, error: &LogError, events: &mpsc::Sender<CaptureEvent>) {
        if !self.told_failed {
            self.told_failed = true;
            tell(events, CaptureEvent::StorageFailed { track, why: crate::fault::chain(error) });
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
                            tracing::error!(fault.kind = %error.fault().kind, "{}", crate::fault::chain(&error));
                        }
                    }
                }
                crate::metrics::metrics().segments_sealed.inc_by(sealed.len() as u64);
                tell(&events, CaptureEvent::Sealed { segments: sealed });
            }
        }
    }
}

fn now() -> Instant {
    Instant::now()
}
