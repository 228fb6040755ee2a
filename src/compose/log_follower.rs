//! A session's log as a composer reads it: finished, or growing while the session runs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::clock::Clocks;
use super::inputs::{AudioInput, Errors, VideoInput};
use super::timeline::{self, Stream};
use crate::model::ids::{StreamId, TrackId, TrackKind};
use crate::model::layout::Layout;
use crate::model::time::{MediaSpan, MediaTime};
use crate::recording;
use crate::recording::LogError;
use crate::recording::history;
use crate::recording::history::Event;
use crate::recording::reader::TrackIndex;

/// What arrived before a moment is from before it by less than this, unless the network held it back.
const JITTER: MediaSpan = 500_000_000;
/// Tracks that begin this soon after the first one may be earlier than it, once their clocks are known.
const BEGINNING: MediaSpan = 1_000_000_000;
/// A stream's clock is known this long before its media is drawn: its first frames may be that much earlier.
const MARGIN: MediaSpan = 500_000_000;
/// How long one wait for the log lasts.
const WAIT: Duration = Duration::from_millis(200);

/// What a composer is told of a log that grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Told {
    /// All that arrived before this moment is in the log.
    Complete(MediaTime),
    /// The session has ended, and all of it is in the log.
    Ended,
}

/// Tells a composer how its log grows. When it is dropped before the log has ended, the composer gives up.
pub struct Teller(Arc<Shared>);

/// What was told last; only that counts.
#[derive(Default)]
struct Shared {
    told: Mutex<Option<Told>>,
    deserted: AtomicBool,
    news: Condvar,
}

impl Teller {
    /// Tells it.
    pub fn tell(&self, what: Told) {
        *self.0.told.lock().unwrap_or_else(PoisonError::into_inner) = Some(what);
        self.0.news.notify_all();
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        self.0.deserted.store(true, Ordering::Relaxed);
        self.0.news.notify_all();
    }
}

/// How far a log can be read.
pub struct Growth {
    told: Option<Arc<Shared>>,
    horizon: MediaTime,
}

impl Growth {
    /// A log that does not grow any more.
    #[must_use]
    pub const fn finished() -> Self {
        Self { told: None, horizon: MediaTime(i64::MAX) }
    }

    /// A log that grows, and whoever tells how.
    #[must_use]
    pub fn following() -> (Teller, Self) {
        let shared = Arc::new(Shared::default());
        (Teller(Arc::clone(&shared)), Self { told: Some(shared), horizon: MediaTime(i64::MIN) })
    }

    const fn has_ended(&self) -> bool {
        self.horizon.0 == i64::MAX
    }

    /// Waits for something new, but not for long.
    fn wait(&mut self) -> Result<(), Deserted> {
        let Some(shared) = self.told.as_ref().filter(|_| !self.has_ended()) else { return Ok(()) };
        let told = shared.told.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = shared.news.wait_timeout_while(told, WAIT, |told| told.is_none());
        let told = waited.map_or_else(|poisoned| poisoned.into_inner().0.take(), |(mut told, _)| told.take());
        match told {
            Some(Told::Complete(at)) => self.horizon = self.horizon.max(MediaTime(at.0.saturating_sub(JITTER))),
            Some(Told::Ended) => self.horizon = MediaTime(i64::MAX),
            None if shared.deserted.load(Ordering::Relaxed) => return Err(Deserted),
            None => {}
        }
        Ok(())
    }
}

/// The log grows, and nobody tells how far.
#[derive(Debug, thiserror::Error)]
#[error("the worker that captures this session is gone")]
pub struct Deserted;

/// A session's streams, tracks and clocks, as far as its log has grown.
pub(super) struct Session {
    dir: PathBuf,
    pipelines: Option<PathBuf>,
    growth: Growth,
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

impl Session {
    pub fn new(dir: PathBuf, pipelines: Option<PathBuf>, growth: Growth) -> Self {
        Self {
            dir,
            pipelines,
            growth,
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
        for (track, dir) in recording::reader::tracks(&self.dir)? {
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
            index.forget_before(index.segments.len().saturating_sub(1));
        }
        let (events, read) = history::read_from(&self.dir, self.events_read)?;
        self.events_read = read;
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
    pub fn begin(&mut self) -> Option<MediaTime> {
        if self.start.is_none() {
            let first = self.spans.values().map(|(from, _)| *from).min()?;
            if !self.clocks.advance(first + BEGINNING, self.growth.horizon) {
                return None;
            }
            let early = self.spans.iter().filter(|(_, (from, _))| *from - first <= BEGINNING);
            self.start = early.map(|(track, (from, _))| self.clocks.apply(*track, *from)).min();
        }
        self.start
    }

    /// Whether everything is known that is to be seen and heard at a moment: `None` when the log has no more.
    pub fn has(&mut self, at: MediaTime) -> Option<bool> {
        let known = self.clocks.advance(at + MARGIN, self.growth.horizon);
        // The last frame's end is a guess: what is not half there is not there.
        if known && self.spans.iter().any(|(track, (_, to))| self.clocks.apply(*track, *to) >= at) {
            return Some(true);
        }
        (!self.growth.has_ended()).then_some(false)
    }

    /// Opens tracks that have begun.
    pub fn open(&mut self, start: MediaTime) -> Result<(), LogError> {
        let mut begun: Vec<(MediaTime, TrackId)> = self.spans.iter().map(|(track, span)| (span.0, *track)).collect();
        begun.sort_unstable();
        for (_, track) in begun {
            let Some(index) = self.indexes.get(&track) else { continue };
            let open = || TrackIndex::open(&index.dir, track);
            match track.kind {
                TrackKind::Video if !self.video.contains_key(&track.stream) => {
                    self.video.insert(track.stream, VideoInput::new(&open()?, self.pipelines.clone()));
                }
                TrackKind::Audio if !self.audio.contains_key(&track.stream) => {
                    self.audio.insert(track.stream, AudioInput::new(&open()?, start, self.pipelines.clone()));
                }
                TrackKind::Video | TrackKind::Audio => {}
            }
        }
        Ok(())
    }

    /// Whose sound is heard at a moment.
    pub fn heard(&self, at: MediaTime) -> BTreeSet<StreamId> {
        timeline::heard(self.audio.keys().filter_map(|id| self.streams.get(id)), at)
    }

    /// The layout at a moment, if it is another than the one that was asked for at first.
    pub fn layout(&self, at: MediaTime) -> Option<&Layout> {
        self.layouts.iter().take_while(|(since, _)| *since <= at).last().map(|(_, layout)| layout)
    }

    /// Waits until the log has grown, and reads it. Returns at once when it does not grow any more.
    pub fn wait(&mut self, cancel: &CancellationToken) -> Result<(), WaitError> {
        if cancel.is_cancelled() {
            return Err(WaitError::Cancelled);
        }
        self.growth.wait()?;
        Ok(self.refresh()?)
    }

    /// The end of the media that is known so far.
    pub fn end(&self) -> Option<MediaTime> {
        self.spans.iter().map(|(track, (_, to))| self.clocks.apply(*track, *to)).max()
    }

    /// How many seconds there are in all, if the log does not grow any more.
    pub fn length(&self) -> Option<u64> {
        let (first, last) = (self.spans.values().map(|s| s.0).min()?, self.spans.values().map(|s| s.1).max()?);
        self.growth.has_ended().then(|| first.until(last).as_secs() + 2)
    }

    pub fn errors(&self) -> Vec<(StreamId, TrackKind, Errors)> {
        let video = self.video.iter().map(|(id, input)| (*id, TrackKind::Video, input.errors));
        let audio = self.audio.iter().map(|(id, input)| (*id, TrackKind::Audio, input.errors));
        video.chain(audio).filter(|(_, _, errors)| *errors != Errors::default()).collect()
    }

    /// Frames that were not in the log when their time had come.
    pub fn late(&self) -> u64 {
        self.video.values().map(VideoInput::late).chain(self.audio.values().map(AudioInput::late)).sum()
    }
}

/// Why waiting ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum WaitError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Deserted(#[from] Deserted),
    #[error("the work was called off")]
    Cancelled,
}
