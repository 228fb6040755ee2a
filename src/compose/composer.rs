//! The composer: draws and mixes a finished log into one file.

use std::path::Path;

use tokio_util::sync::CancellationToken;

use super::canvas::{Canvases, Tile};
use super::geometry::Size;
use super::inputs::{AudioInput, Errors, VideoInput};
use super::layout::{Cell, Shown, place};
use super::timeline::{Timeline, timeline};
use crate::capture::clock::corrections;
use crate::capture::history;
use crate::capture::log::{LogError, LogReader};
use crate::event::Layout;
use crate::fault::{Fault, HasFault};
use crate::ids::{StreamId, TrackId, TrackKind};
use crate::media::encode::{Feeder, Output, SAMPLE_RATE, encode};
use crate::media::{MediaError, Pipelines};
use crate::time::MediaTime;

/// Streams whose sound is mixed (Vonage's limit).
const AUDIO_STREAMS_MAX: usize = 50;

/// What a composed archive should be like.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Options {
    /// Its picture.
    pub size: Size,
    /// Pictures a second.
    pub rate: u32,
    /// Where the streams are drawn.
    pub layout: Layout,
    /// Whether it has a picture.
    pub video: bool,
    /// Whether it has sound.
    pub audio: bool,
}

/// What came out.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Composed {
    /// Media time of its beginning.
    pub start: MediaTime,
    /// Pictures.
    pub pictures: u64,
    /// Pictures a second.
    pub rate: u32,
    /// What could not be decoded, by stream.
    pub errors: Vec<(StreamId, TrackKind, Errors)>,
}

/// Why there is no file.
#[derive(Debug, thiserror::Error)]
pub enum ComposeError {
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// GStreamer.
    #[error(transparent)]
    Media(#[from] MediaError),
}

impl HasFault for ComposeError {
    fn fault(&self) -> Fault {
        match self {
            Self::Log(e) => e.fault(),
            Self::Media(e) => e.fault(),
        }
    }
}

/// The tracks of a session, in the order of their streams' priority.
struct Session {
    timeline: Timeline,
    video: Vec<(usize, VideoInput)>,
    audio: Vec<(usize, AudioInput)>,
}

impl Session {
    fn open(dir: &Path, pipelines: &Pipelines) -> Result<Self, LogError> {
        let log = LogReader::open(dir)?;
        let events = history::read(dir)?;
        let reports: Vec<(TrackId, &[_])> = log.tracks.iter().map(|t| (t.track, t.reports.as_slice())).collect();
        let corrections = corrections(&reports);
        let timeline = timeline(&log.tracks, &corrections, &events);
        let (mut video, mut audio) = (Vec::new(), Vec::new());
        for (at, stream) in timeline.streams.iter().enumerate() {
            for track in log.tracks.iter().filter(|t| t.track.stream == stream.id) {
                let correction = corrections.get(&track.track).cloned().unwrap_or_default();
                let folder = pipelines.dir.clone();
                match track.track.kind {
                    TrackKind::Video => video.push((at, VideoInput::new(track, correction, folder))),
                    TrackKind::Audio if audio.len() < AUDIO_STREAMS_MAX => {
                        audio.push((at, AudioInput::new(track, correction, timeline.start, folder)));
                    }
                    TrackKind::Audio => {}
                }
            }
        }
        Ok(Self { timeline, video, audio })
    }

    fn errors(&self) -> Vec<(StreamId, TrackKind, Errors)> {
        let id = |at: &usize| self.timeline.streams[*at].id;
        let video = self.video.iter().map(|(at, input)| (id(at), TrackKind::Video, input.errors));
        let audio = self.audio.iter().map(|(at, input)| (id(at), TrackKind::Audio, input.errors));
        video.chain(audio).filter(|(_, _, errors)| *errors != Errors::default()).collect()
    }
}

/// Composes an archive's log into a file. Blocking. `progress` is told the pictures that are made, and of how many.
///
/// # Errors
/// See [`ComposeError`].
pub fn compose(
    dir: &Path,
    out: &Path,
    options: &Options,
    pipelines: &Pipelines,
    cancel: &CancellationToken,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Composed, ComposeError> {
    let video = options.video.then_some((options.size.width, options.size.height, options.rate));
    encode(Output { video, audio: options.audio }, out, pipelines, cancel, |feeder| {
        let mut session = Session::open(dir, pipelines)?;
        let pictures = pictures(&session.timeline, options.rate);
        let mut drawing = Drawing::new(options);
        // The encoder puts as much before it.
        let delay = feeder.delay();
        let mut mixed = delay;
        for n in 0..pictures {
            if cancel.is_cancelled() {
                return Err(MediaError::Cancelled.into());
            }
            if options.video {
                drawing.picture(&mut session, feeder, n)?;
            }
            if options.audio {
                mixed = mix(&mut session, feeder, mixed, delay + samples_until(n + 1, options.rate))?;
            }
            progress(n + 1, pictures);
        }
        Ok(Composed { start: session.timeline.start, pictures, rate: options.rate, errors: session.errors() })
    })
}

/// The pictures that cover a session; one at least.
fn pictures(timeline: &Timeline, rate: u32) -> u64 {
    let length = u64::try_from(timeline.end - timeline.start).unwrap_or(0);
    (length.saturating_mul(u64::from(rate)) + 500_000_000).div_euclid(1_000_000_000).max(1)
}

/// Samples up to the beginning of a picture.
fn samples_until(picture: u64, rate: u32) -> u64 {
    picture * u64::from(SAMPLE_RATE) / u64::from(rate.max(1))
}

/// Mixes the sound of all streams from one sample to another.
fn mix(session: &mut Session, feeder: &mut Feeder, from: u64, to: u64) -> Result<u64, MediaError> {
    let mut block = vec![0.0; usize::try_from(2 * (to - from)).unwrap_or(0)];
    let at = i64::try_from(from).unwrap_or(i64::MAX);
    for (_, input) in &mut session.audio {
        input.mix(at, &mut block)?;
    }
    block.iter_mut().for_each(|sample| *sample = sample.clamp(-1.0, 1.0));
    feeder.sound(&block)?;
    Ok(to)
}

/// What is drawn, as far as it is the same from one picture to the next.
struct Drawing<'a> {
    options: &'a Options,
    canvases: Canvases,
    /// The streams in the picture, and what the layout made of them.
    shown: Vec<(usize, Shown)>,
    cells: Vec<Cell>,
}

impl<'a> Drawing<'a> {
    fn new(options: &'a Options) -> Self {
        Self { options, canvases: Canvases::new(options.size), shown: Vec::new(), cells: Vec::new() }
    }

    /// Draws the picture of one moment: of each stream the frame that is nearest to it.
    fn picture(&mut self, session: &mut Session, feeder: &mut Feeder, n: u64) -> Result<(), MediaError> {
        let interval = 1_000_000_000 / i64::from(self.options.rate.max(1));
        let at = session.timeline.start
            + i64::try_from(n).unwrap_or(i64::MAX).saturating_mul(1_000_000_000) / i64::from(self.options.rate.max(1));
        let mut shown = Vec::new();
        for (slot, (stream, input)) in session.video.iter_mut().enumerate() {
            input.advance(at + interval / 2)?;
            let stream = &session.timeline.streams[*stream];
            if let Some((picture, _, newest)) = input.newest()
                && stream.is_shown(at, newest)
            {
                let (screen, classes) = (stream.screen, stream.classes.clone());
                shown.push((slot, Shown { size: Some(picture.size()), screen, classes }));
            }
        }
        if shown != self.shown {
            let streams: Vec<Shown> = shown.iter().map(|(_, s)| s.clone()).collect();
            self.cells = place(&self.options.layout, self.options.size, &streams);
            self.shown = shown;
        }
        let mut tiles = Vec::with_capacity(self.cells.len());
        for cell in &self.cells {
            let slot = self.shown[cell.stream].0;
            if let Some((picture, number, _)) = session.video[slot].1.newest() {
                tiles.push((Tile { slot, number, cell: *cell, size: picture.size() }, picture));
            }
        }
        let canvas = self.canvases.draw(feeder, &tiles)?;
        feeder.picture(canvas)
    }
}
