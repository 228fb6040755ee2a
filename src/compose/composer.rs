//! The composer: draws and mixes a log into one file, while the log grows or when it is finished.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use tokio_util::sync::CancellationToken;

use super::audio_input::nanoseconds;
use super::canvas::{Canvases, FrameSource, Tile};
use super::clock::HELD_MAX;
use super::css_layout;
use super::geometry::Size;
use super::layout::{Cell, LayoutStream, VIDEO_STREAMS_MAX, place};
use super::limiter::Limiter;
use super::log_follower::{ProgressReceiver, SessionLog, WaitError, WorkerGone};
use super::thumbnails::{self, ThumbnailBuilder};
use super::timeline::Stream;
use super::undecodable::{DecodeCounts, undecodable};
use super::video_input::VideoInput;
use crate::media::decode::DecodedFrame;
use crate::media::encode::{Feeder, Output, encode};
use crate::media::{MediaError, Pipelines, SAMPLE_RATE};
use crate::model::cancellable::Cancellable;
use crate::model::fault::{Fault, FaultKind, HasFault, chain};
use crate::model::ids::{StreamId, TrackId, TrackKind};
use crate::model::layout::{Layout, LayoutType};
use crate::model::stylesheet::Stylesheet;
use crate::model::time::{MediaSpan, MediaTime};
use crate::recording::LogError;
use crate::rtp::clock::BACK_MAX;

/// Options of a composed file.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Options {
    /// Size of the video.
    pub size: Size,
    /// Frames a second.
    pub rate: u32,
    /// Where the streams are drawn.
    pub layout: Layout,
    /// Whether it has video.
    pub video: bool,
    /// Whether it has audio.
    pub audio: bool,
    /// Quality of the video, 15 to 40: smaller is better.
    #[serde(default)]
    pub quantizer: Option<u8>,
    /// Limit of the video, in bit/s.
    #[serde(default)]
    pub bitrate_max: Option<u32>,
    /// Seconds for which the file of a growing log reserves room for its index; a longer file is moved at the end.
    pub seconds_max: u64,
    /// Only a part of the session.
    #[serde(default)]
    pub clip: Option<Clip>,
    /// Compose with `layout` only, and ignore the layouts that the session had.
    #[serde(default, rename = "one_layout")]
    pub ignore_layout_history: bool,
    /// Streams that are neither shown nor heard: nothing of them can be decoded.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub excluded: BTreeSet<StreamId>,
}

impl Options {
    /// The options of the encoders.
    #[must_use]
    pub fn output(&self) -> Output {
        Output {
            video: self.video.then_some((self.size.width, self.size.height, self.rate)),
            audio: self.audio,
            quantizer: self.quantizer,
            bitrate_max: self.bitrate_max,
            seconds_max: self.seconds_max,
        }
    }
}

/// A part of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Clip {
    /// Milliseconds from the session's first media.
    pub from_ms: u32,
    /// Milliseconds from the session's first media; to its end without.
    pub to_ms: Option<u32>,
}

/// The result of a composition.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Composed {
    /// Media time of its beginning.
    pub start: MediaTime,
    /// The router's clock that its frames are placed by: see [`crate::rtp::clock::session_offset`].
    #[serde(default)]
    pub offset: Option<MediaSpan>,
    /// Pictures.
    pub pictures: u64,
    /// Pictures a second.
    pub rate: u32,
    /// Frames that came into the log after their moment was composed: none of a finished log.
    pub late: u64,
    /// What could not be decoded, by stream.
    pub errors: Vec<(StreamId, TrackKind, DecodeCounts)>,
    /// Tracks of which most or all could not be decoded.
    #[serde(default)]
    pub undecodable: BTreeSet<TrackId>,
}

impl Composed {
    /// Media time of its beginning by the `offset` of all of the session's reports, which individual files go by.
    #[must_use]
    pub fn start_by(&self, offset: Option<MediaSpan>) -> MediaTime {
        let later = self.offset.zip(offset).map(|(own, all)| all - own);
        // A larger difference is that of a router whose clock was set: individual files do not move with it.
        self.start + later.filter(|later| later.abs() <= HELD_MAX).unwrap_or(0)
    }
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
    /// The worker no longer reports progress.
    #[error(transparent)]
    WorkerGone(#[from] WorkerGone),
}

impl From<WaitError> for ComposeError {
    fn from(error: WaitError) -> Self {
        match error {
            WaitError::Log(error) => error.into(),
            WaitError::WorkerGone(error) => error.into(),
        }
    }
}

impl HasFault for ComposeError {
    fn fault(&self) -> Fault {
        match self {
            Self::Log(e) => e.fault(),
            Self::Media(e) => e.fault(),
            Self::WorkerGone(_) => FaultKind::MediaStalled.fault(),
        }
    }
}

/// Composes an archive's log into a file, as far as the log has grown and while it grows. Blocking. `progress` gets the
/// number of frames made and of those known so far, repeatedly while the composer waits for the log.
///
/// # Errors
/// See [`ComposeError`].
pub fn compose(
    dir: &Path,
    out: &Path,
    options: &Options,
    pipelines: &Pipelines,
    log_progress: ProgressReceiver,
    cancel: &CancellationToken,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Cancellable<Composed>, ComposeError> {
    for old in thumbnails::paths(out) {
        // There may be none.
        std::fs::remove_file(old).unwrap_or_default();
    }
    let mut session = SessionLog::new(dir.to_owned(), options.excluded.clone(), pipelines.dir.clone(), log_progress);
    session.refresh()?;
    let output = Output { seconds_max: session.seconds_total().unwrap_or(options.seconds_max), ..options.output() };
    encode(output, out, pipelines, cancel, move |feeder| {
        let mut composition = Composition { session: &mut session, feeder, cancel, progress };
        let Cancellable::Done(begin) = composition.wait_for_start()? else { return Ok(Cancellable::Cancelled) };
        let span = |ms: u32| i64::from(ms) * 1_000_000;
        let start = begin + options.clip.map_or(0, |clip| span(clip.from_ms));
        let end = options.clip.and_then(|clip| clip.to_ms).map(|to| begin + span(to));
        let (mut renderer, mut limiter) = (FrameRenderer::new(options), Limiter::new());
        // The encoder puts as much before it.
        let delay = composition.feeder.delay();
        let (mut mixed, mut made, mut composed) = (delay, 0, MediaTime(i64::MIN));
        loop {
            let more = composition.wait_for_media(start, made, options, end)?;
            let Cancellable::Done(more) = more else { return Ok(Cancellable::Cancelled) };
            // A file has one picture at least.
            if !more && made > 0 {
                break;
            }
            composition.session.open_tracks(start, composed)?;
            if options.video {
                renderer.draw_frame(composition.session, composition.feeder, start, made)?;
            }
            composed = moment(start, made, options.rate) + interval(options.rate) / 2;
            made += 1;
            if options.audio {
                let to = delay + samples_until(made, options.rate);
                mixed = mix_audio(composition.session, &mut limiter, composition.feeder, start, (mixed, to))?;
            }
            composition.report_progress(start, made, options.rate);
        }
        progress(made, made);
        if options.video {
            // The archive is complete without thumbnails, too.
            let written = renderer.thumbnails.write(out, made, pipelines);
            written.unwrap_or_else(|error| tracing::warn!("there are no small pictures: {}", chain(&error)));
        }
        let (mut errors, late) = (composition.session.counts(), composition.session.late());
        let undecodable = undecodable(&errors);
        errors.retain(|(_, _, counts)| counts.has_failures());
        let offset = composition.session.clocks.offset();
        let (pictures, rate) = (made, options.rate);
        Ok(Cancellable::Done(Composed { start, offset, pictures, rate, late, errors, undecodable }))
    })
}

/// A composition under way.
struct Composition<'a> {
    session: &'a mut SessionLog,
    feeder: &'a mut Feeder,
    cancel: &'a CancellationToken,
    progress: &'a (dyn Fn(u64, u64) + Sync),
}

impl Composition<'_> {
    /// Waits for the first media. A session without any begins at its origin.
    fn wait_for_start(&mut self) -> Result<Cancellable<MediaTime>, ComposeError> {
        loop {
            if let Some(start) = self.session.file_start() {
                return Ok(Cancellable::Done(start));
            }
            if self.session.has_media_at(MediaTime::ZERO).is_none() {
                return Ok(Cancellable::Done(MediaTime::ZERO));
            }
            let Cancellable::Done(()) = self.wait(0)? else { return Ok(Cancellable::Cancelled) };
        }
    }

    /// Waits until a frame can be made. `false` when there is no further one: its middle is behind all media, and each picture was drawn.
    /// (The end of a track's last picture is an estimate. That end may be before the middle of the only frame that can show it.)
    fn wait_for_media(
        &mut self,
        start: MediaTime,
        picture: u64,
        options: &Options,
        end: Option<MediaTime>,
    ) -> Result<Cancellable<bool>, ComposeError> {
        let middle = moment(start, picture, options.rate) + interval(options.rate) / 2;
        if end.is_some_and(|end| middle > end) {
            return Ok(Cancellable::Done(false));
        }
        loop {
            match self.session.has_media_at(middle) {
                Some(true) => return Ok(Cancellable::Done(true)),
                None => return Ok(Cancellable::Done(options.video && self.session.has_further_picture())),
                Some(false) => {}
            }
            let Cancellable::Done(()) = self.wait(picture)? else { return Ok(Cancellable::Cancelled) };
        }
    }

    fn wait(&mut self, made: u64) -> Result<Cancellable<()>, ComposeError> {
        self.feeder.keep_alive();
        (self.progress)(made, made + 1);
        Ok(self.session.wait(self.cancel)?)
    }

    fn report_progress(&self, start: MediaTime, made: u64, rate: u32) {
        let length = self.session.end().map_or(0, |end| end - start);
        let of = u64::try_from(length).unwrap_or(0).saturating_mul(u64::from(rate)) / 1_000_000_000;
        (self.progress)(made, of.max(made + 1));
    }
}

/// From one picture to the next, in nanoseconds.
fn interval(rate: u32) -> i64 {
    1_000_000_000 / i64::from(rate.max(1))
}

/// The moment of a picture.
fn moment(start: MediaTime, picture: u64, rate: u32) -> MediaTime {
    let picture = i64::try_from(picture).unwrap_or(i64::MAX);
    start + picture.saturating_mul(1_000_000_000) / i64::from(rate.max(1))
}

/// Samples up to the beginning of a picture.
fn samples_until(picture: u64, rate: u32) -> u64 {
    picture * u64::from(SAMPLE_RATE) / u64::from(rate.max(1))
}

/// Mixes the audio of all streams from one sample to another.
fn mix_audio(
    session: &mut SessionLog,
    limiter: &mut Limiter,
    feeder: &mut Feeder,
    start: MediaTime,
    (from, to): (u64, u64),
) -> Result<u64, MediaError> {
    let mut block = vec![0.0; usize::try_from(2 * (to - from)).unwrap_or(0)];
    let at = i64::try_from(from).unwrap_or(i64::MAX);
    let audible = session.audible_streams(start + nanoseconds(at));
    for (id, input) in &mut session.audio {
        input.mix(at, &mut block, &session.clocks, audible.contains(id))?;
    }
    limiter.limit(&mut block);
    feeder.push_audio(&block)?;
    Ok(to)
}

/// The style sheet of a custom layout. One that cannot be used was refused when it was asked for; without it the layout is
/// bestFit.
fn parse_stylesheet(layout: &Layout) -> Option<Stylesheet> {
    let text = layout.stylesheet.as_deref().filter(|_| layout.kind == LayoutType::Custom)?;
    Stylesheet::parse(text).ok()
}

/// Draws the frames, and keeps the state that is the same from one frame to the next.
struct FrameRenderer<'a> {
    options: &'a Options,
    canvases: Canvases,
    layout: Layout,
    /// Of a custom layout.
    sheet: Option<Stylesheet>,
    /// The streams that `cells` is computed for.
    shown: Vec<(StreamId, LayoutStream)>,
    cells: Vec<Cell>,
    thumbnails: ThumbnailBuilder,
}

impl<'a> FrameRenderer<'a> {
    fn new(options: &'a Options) -> Self {
        let (canvases, thumbnails) = (Canvases::new(options.size), ThumbnailBuilder::new(options.size, options.rate));
        let (layout, sheet) = (options.layout.clone(), parse_stylesheet(&options.layout));
        Self { options, canvases, layout, sheet, shown: Vec::new(), cells: Vec::new(), thumbnails }
    }

    /// Changes to the layout that the session has at a moment.
    fn update_layout(&mut self, session: &SessionLog, at: MediaTime) {
        let now = session.layout_at(at).filter(|_| !self.options.ignore_layout_history).unwrap_or(&self.options.layout);
        if *now != self.layout {
            (self.layout, self.sheet) = (now.clone(), parse_stylesheet(now));
            // All streams are placed again.
            self.shown.clear();
            self.cells.clear();
        }
    }

    /// Draws the frame of one moment: of each stream the frame that is nearest to it.
    fn draw_frame(
        &mut self,
        session: &mut SessionLog,
        feeder: &mut Feeder,
        start: MediaTime,
        n: u64,
    ) -> Result<(), MediaError> {
        let (at, half) = (moment(start, n, self.options.rate), interval(self.options.rate) / 2);
        self.update_layout(session, at);
        let (mut there, has_ended) = (Vec::new(), session.has_ended());
        for (id, input) in &mut session.video {
            let Some(stream) = session.streams.get(id) else { continue };
            // A stream that has left and comes again begins with a keyframe.
            let leaves = !stream.is_present(at + BACK_MAX);
            let newest = input.read(at + half, &session.clocks, has_ended || leaves);
            let next = input.next_at(&session.clocks);
            let goes_on = at - newest <= half || next.is_some_and(|next| next - newest <= BACK_MAX);
            if stream.is_shown(at, newest, goes_on) {
                there.push(stream);
            }
        }
        there.sort_by_key(|stream| stream.priority(at));
        let shown = |stream: &Stream| {
            let (screen, classes) = (stream.is_screen(at), stream.classes(at).to_vec());
            (stream.id, LayoutStream { size: None, screen, classes })
        };
        let there: Vec<_> = there.into_iter().take(VIDEO_STREAMS_MAX).map(shown).collect();
        let (canvas, tiles) = loop {
            let tiles = self.tiles(&there, &mut session.video)?;
            // Without: a picture became another size. Now that it is decoded, its tile can be made.
            if let Some(canvas) = self.canvases.draw(feeder, &tiles, &mut session.video)? {
                break (canvas, tiles.len());
            }
        };
        // Those that the layout hides go on, too: with another layout they are there without waiting for a keyframe.
        for (id, _) in &there {
            session.video.newest(*id)?;
        }
        if self.thumbnails.wants(n) {
            feeder.draw(canvas, |planes| self.thumbnails.add(n, tiles, &planes))?;
        }
        feeder.push_video(canvas)
    }

    /// The places of the streams' pictures.
    fn tiles(
        &mut self,
        there: &[(StreamId, LayoutStream)],
        inputs: &mut BTreeMap<StreamId, VideoInput>,
    ) -> Result<Vec<Tile>, MediaError> {
        let mut shown = Vec::with_capacity(there.len());
        for (id, stream) in there {
            let size = inputs.get_mut(id).map(VideoInput::size).transpose()?.flatten();
            if size.is_some() {
                shown.push((*id, LayoutStream { size, ..stream.clone() }));
            }
        }
        if shown != self.shown {
            let streams: Vec<LayoutStream> = shown.iter().map(|(_, s)| s.clone()).collect();
            self.cells = match &self.sheet {
                Some(sheet) => css_layout::place(sheet, self.options.size, &streams),
                None => place(&self.layout, self.options.size, &streams),
            };
            self.shown = shown;
        }
        let tile = |cell: &Cell| {
            let (stream, shown) = &self.shown[cell.stream];
            shown.size.map(|size| Tile { stream: *stream, cell: *cell, size })
        };
        Ok(self.cells.iter().filter_map(tile).collect())
    }
}

impl FrameSource for BTreeMap<StreamId, VideoInput> {
    fn newest(&mut self, stream: StreamId) -> Result<Option<(&DecodedFrame, u64)>, MediaError> {
        self.get_mut(&stream).map_or(Ok(None), VideoInput::newest_frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_begins_where_individual_files_say_unless_the_routers_clock_was_set() {
        let ms = |ms: i64| ms * 1_000_000;
        // The offset that its frames are placed by, that of all reports, and when it begins by that one, in milliseconds.
        let cases = [
            (Some(320), Some(20), 700),
            (Some(20), Some(20), 1000),
            (Some(20), Some(60_020), 1000),
            (None, Some(20), 1000),
            (Some(20), None, 1000),
        ];
        for (own, all, expected) in cases {
            let composed = Composed {
                start: MediaTime::from_millis(1000),
                offset: own.map(ms),
                pictures: 1,
                rate: 30,
                late: 0,
                errors: Vec::new(),
                undecodable: BTreeSet::new(),
            };
            assert_eq!(composed.start_by(all.map(ms)), MediaTime::from_millis(expected), "{own:?}, {all:?}");
        }
    }
}
