//! Reads a session's log for a composer: a finished log, or one that grows while the session runs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::audio_input::AudioInput;
use super::clock::Clocks;
use super::timeline::{self, Stream};
use super::undecodable::TrackCounts;
use super::video_input::VideoInput;
use crate::model::cancellable::Cancellable;
use crate::model::ids::{StreamId, TrackId, TrackKind};
use crate::model::layout::Layout;
use crate::model::time::{MediaSpan, MediaTime};
use crate::recording::LogError;
use crate::recording::history::{self, Event};
use crate::recording::reader::{self, TrackIndex};
use crate::rtp::clock::BACK_MAX;

/// Media of a moment is waited for this long: as long as a packet's place is held for a retransmission, which is longer than most
/// networks delay anything. A composer that follows is behind the session by that much.
const JITTER_MAX: MediaSpan = 1_500_000_000;
/// Tracks that begin this soon after the first one may be earlier than it, once their clocks are known.
const START_SPREAD_MAX: MediaSpan = 1_000_000_000;
/// A stream's clock must be known up to this long after the moment that is drawn: its first frames may be that much earlier.
const CLOCK_MARGIN: MediaSpan = 500_000_000;
// Whether a stream goes on is seen by its frames up to so much later.
const _: () = assert!(BACK_MAX <= CLOCK_MARGIN);
/// Longest single wait for progress of the log.
const WAIT_MAX: Duration = Duration::from_millis(200);

/// A message about how far a capture log has grown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogProgress {
    /// All media that arrived before this moment is in the log.
    #[serde(rename = "complete")]
    Watermark(MediaTime),
    /// The session has ended, and all its media is in the log.
    Ended,
}

/// Reports a log's progress to its composer. If it is dropped before the log has ended, the composer gives up.
pub struct ProgressSender(Arc<Shared>);

/// The latest message; earlier ones do not matter.
#[derive(Default)]
struct Shared {
    latest: Mutex<Option<LogProgress>>,
    sender_dropped: AtomicBool,
    changed: Condvar,
}

impl ProgressSender {
    /// Sends a message.
    pub fn send(&self, message: LogProgress) {
        *self.0.latest.lock().unwrap_or_else(PoisonError::into_inner) = Some(message);
        self.0.changed.notify_all();
    }
}

impl Drop for ProgressSender {
    fn drop(&mut self) {
        self.0.sender_dropped.store(true, Ordering::Relaxed);
        self.0.changed.notify_all();
    }
}

/// Receives a log's progress, up to which the log can be read.
pub struct ProgressReceiver {
    shared: Option<Arc<Shared>>,
    watermark: MediaTime,
}

impl ProgressReceiver {
    /// A log that does not grow any more.
    #[must_use]
    pub const fn finished() -> Self {
        Self { shared: None, watermark: MediaTime(i64::MAX) }
    }

    /// The two ends for a log that grows.
    #[must_use]
    pub fn channel() -> (ProgressSender, Self) {
        let shared = Arc::new(Shared::default());
        (ProgressSender(Arc::clone(&shared)), Self { shared: Some(shared), watermark: MediaTime(i64::MIN) })
    }

    const fn has_ended(&self) -> bool {
        self.watermark.0 == i64::MAX
    }

    /// Waits for a message, at most [`WAIT_MAX`].
    fn wait(&mut self) -> Result<(), WorkerGone> {
        let Some(shared) = self.shared.as_ref().filter(|_| !self.has_ended()) else { return Ok(()) };
        let latest = shared.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = shared.changed.wait_timeout_while(latest, WAIT_MAX, |latest| latest.is_none());
        let latest = waited.map_or_else(|poisoned| poisoned.into_inner().0.take(), |(mut latest, _)| latest.take());
        match latest {
            Some(LogProgress::Watermark(at)) => {
                self.watermark = self.watermark.max(MediaTime(at.0.saturating_sub(JITTER_MAX)));
            }
            Some(LogProgress::Ended) => self.watermark = MediaTime(i64::MAX),
            None if shared.sender_dropped.load(Ordering::Relaxed) => return Err(WorkerGone),
            None => {}
        }
        Ok(())
    }
}

/// The worker no longer reports progress.
#[derive(Debug, thiserror::Error)]
#[error("the worker that captures this session is gone")]
pub struct WorkerGone;

/// A session's streams, tracks and clocks, as far as its log has grown.
pub(super) struct SessionLog {
    dir: PathBuf,
    /// Streams that are neither shown nor heard.
    excluded: BTreeSet<StreamId>,
    pipelines: Option<PathBuf>,
    progress: ProgressReceiver,
    indexes: BTreeMap<TrackId, TrackIndex>,
    /// Of each track the start of its first frame and the end of its last, provisional.
    spans: BTreeMap<TrackId, (MediaTime, MediaTime)>,
    events: Vec<Event>,
    events_read: u64,
    pub clocks: Clocks,
    pub streams: BTreeMap<StreamId, Stream>,
    /// The layouts that the session had, each from when on.
    layouts: Vec<(MediaTime, Layout)>,
    pub video: BTreeMap<StreamId, VideoInput>,
    pub audio: BTreeMap<StreamId, AudioInput>,
    /// Where the file begins.
    start: Option<MediaTime>,
}

impl SessionLog {
    pub fn new(
        dir: PathBuf,
        excluded: BTreeSet<StreamId>,
        pipelines: Option<PathBuf>,
        progress: ProgressReceiver,
    ) -> Self {
        Self {
            dir,
            excluded,
            pipelines,
            progress,
            indexes: BTreeMap::new(),
            spans: BTreeMap::new(),
            events: Vec::new(),
            events_read: 0,
            clocks: Clocks::default(),
            streams: BTreeMap::new(),
            layouts: Vec::new(),
            video: BTreeMap::new(),
            audio: BTreeMap::new(),
            start: None,
        }
    }

    /// Reads what was added to the log.
    pub fn refresh(&mut self) -> Result<(), LogError> {
        let known = self.spans.len();
        for (track, dir) in reader::tracks(&self.dir)? {
            let index = match self.indexes.get_mut(&track) {
                Some(index) => {
                    index.refresh()?;
                    index
                }
                None => self.indexes.entry(track).or_insert(TrackIndex::open(&dir, track)?),
            };
            if let (Some(from), Some(to)) = (index.start(), index.end()) {
                let span = self.spans.entry(track).or_insert((from, to));
                span.1 = span.1.max(to);
            }
            self.clocks.add(index);
            let last = index.segments.last().map(|segment| segment.n);
            index.forget_before(last.into_iter());
        }
        let (events, read) = history::read_from(&self.dir, self.events_read)?;
        self.events_read = read;
        // A decoder would make noise of their sound.
        self.excluded.extend(history::encrypted(&events));
        self.video.retain(|stream, _| !self.excluded.contains(stream));
        self.audio.retain(|stream, _| !self.excluded.contains(stream));
        if !events.is_empty() || self.spans.len() > known {
            self.events.extend(events);
            self.events.sort_by_key(|event| event.at);
            let mut media: BTreeMap<StreamId, MediaTime> = BTreeMap::new();
            for (track, (from, _)) in &self.spans {
                let start = media.entry(track.stream).or_insert(*from);
                *start = (*start).min(*from);
            }
            self.streams = timeline::streams(&media, &self.events);
            self.layouts = timeline::layouts(&self.events);
        }
        for input in self.video.values_mut() {
            input.refresh()?;
        }
        for input in self.audio.values_mut() {
            input.refresh()?;
        }
        Ok(())
    }

    /// Where the file begins, once it is known: at the first media of any track.
    pub fn file_start(&mut self) -> Option<MediaTime> {
        if self.start.is_none() {
            let first = self.spans.values().map(|(from, _)| *from).min()?;
            if !self.clocks.advance(first + START_SPREAD_MAX, self.progress.watermark) {
                return None;
            }
            let early = self.spans.iter().filter(|(_, (from, _))| *from - first <= START_SPREAD_MAX);
            self.start = early.map(|(track, (from, _))| self.clocks.apply(*track, *from)).min();
        }
        self.start
    }

    /// Whether all media of a moment is in the log and its clocks are known: `None` when the log ends before it.
    pub fn has_media_at(&mut self, at: MediaTime) -> Option<bool> {
        let known = self.clocks.advance(at + CLOCK_MARGIN, self.progress.watermark);
        // The last frame's end is an estimate: less than half of a frame does not count.
        if known && self.spans.iter().any(|(track, (_, to))| self.clocks.apply(*track, *to) >= at) {
            return Some(true);
        }
        (!self.progress.has_ended()).then_some(false)
    }

    /// Whether there are pictures later than the moment that was drawn last.
    pub fn has_further_picture(&mut self) -> bool {
        self.video.values_mut().any(|input| input.next_at(&self.clocks).is_some())
    }

    /// Whether the log does not grow any more.
    pub const fn has_ended(&self) -> bool {
        self.progress.has_ended()
    }

    /// Opens tracks that have begun, in a file that begins at `start` and is composed up to `composed`.
    pub fn open_tracks(&mut self, start: MediaTime, composed: MediaTime) -> Result<(), LogError> {
        let mut begun: Vec<(MediaTime, TrackId)> = self.spans.iter().map(|(track, span)| (span.0, *track)).collect();
        begun.sort_unstable();
        for (_, track) in begun.into_iter().filter(|(_, track)| !self.excluded.contains(&track.stream)) {
            let Some(index) = self.indexes.get(&track) else { continue };
            let open = || TrackIndex::open(&index.dir, track);
            match track.kind {
                TrackKind::Video if !self.video.contains_key(&track.stream) => {
                    self.video.insert(track.stream, VideoInput::new(&open()?, composed, self.pipelines.clone()));
                }
                TrackKind::Audio if !self.audio.contains_key(&track.stream) => {
                    self.audio.insert(track.stream, AudioInput::new(&open()?, start, composed, self.pipelines.clone()));
                }
                TrackKind::Video | TrackKind::Audio => {}
            }
        }
        Ok(())
    }

    /// The streams whose audio is mixed at a moment.
    pub fn audible_streams(&self, at: MediaTime) -> BTreeSet<StreamId> {
        timeline::audible_streams(self.audio.keys().filter_map(|id| self.streams.get(id)), at)
    }

    /// The layout at a moment, if it is another than the first one.
    pub fn layout_at(&self, at: MediaTime) -> Option<&Layout> {
        self.layouts.iter().take_while(|(since, _)| *since <= at).last().map(|(_, layout)| layout)
    }

    /// Waits until the log has grown, and reads it. Returns at once when it does not grow any more.
    pub fn wait(&mut self, cancel: &CancellationToken) -> Result<Cancellable<()>, WaitError> {
        if cancel.is_cancelled() {
            return Ok(Cancellable::Cancelled);
        }
        self.progress.wait()?;
        self.refresh()?;
        Ok(Cancellable::Done(()))
    }

    /// The end of the media that is known so far.
    pub fn end(&self) -> Option<MediaTime> {
        self.spans.iter().map(|(track, (_, to))| self.clocks.apply(*track, *to)).max()
    }

    /// The length in seconds, if the log does not grow any more.
    pub fn seconds_total(&self) -> Option<u64> {
        let (first, last) = (self.spans.values().map(|s| s.0).min()?, self.spans.values().map(|s| s.1).max()?);
        self.progress.has_ended().then(|| first.until(last).as_secs() + 2)
    }

    /// What came of decoding each track.
    pub fn counts(&self) -> Vec<TrackCounts> {
        let video = self.video.iter().map(|(id, input)| (*id, TrackKind::Video, input.counts));
        let audio = self.audio.iter().map(|(id, input)| (*id, TrackKind::Audio, input.counts));
        video.chain(audio).collect()
    }

    /// Frames that came into the log after their moment was composed.
    pub fn late(&self) -> u64 {
        self.video.values().map(VideoInput::late).chain(self.audio.values().map(AudioInput::late)).sum()
    }
}

/// Why the log cannot be waited for.
#[derive(Debug, thiserror::Error)]
pub(super) enum WaitError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    WorkerGone(#[from] WorkerGone),
}
