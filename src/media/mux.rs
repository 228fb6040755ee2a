//! One stream's sound and picture into one file, as they are.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_app::AppSrc;
use tokio_util::sync::CancellationToken;

use super::{MediaError, Pipelines, duration, fragment, runner::Pipeline};
use crate::model::cancellable::Cancellable;
use crate::model::ids::TrackKind;
use crate::model::media::{Codec, Frame, TrackFormat};
use crate::model::time::MediaTime;
use crate::rtp::clock::BACK_MAX;
use crate::rtp::depacketize::LayerHider;

/// A pause of sound longer than this is told to the muxer, which otherwise waits for both inputs.
const FRAME_SPAN_MAX_NS: u64 = 1_000_000_000;
/// The step of times in Matroska.
const TIME_STEP_NS: i64 = 1_000_000;

/// Frames of a track whose pictures may be reordered that are read ahead, at most.
const AHEAD_MAX: usize = 256;

/// One track's frames in decoding order, with times already corrected. An iterator of frames is one that does not grow.
pub trait FrameSource: Send {
    /// The next frame. Does not wait.
    fn next_frame(&mut self) -> NextFrame;

    /// Waits until there may be more, but no longer than a fraction of the pipeline's stall deadline, so that a cancellation is seen.
    fn wait(&mut self);
}

/// What a source gives.
#[derive(Debug)]
pub enum NextFrame {
    /// A frame.
    Frame(Frame),
    /// The log has not grown further.
    NotYet,
    /// There is no further frame.
    End,
}

impl<I: Iterator<Item = Frame> + Send> FrameSource for I {
    fn next_frame(&mut self) -> NextFrame {
        self.next().map_or(NextFrame::End, NextFrame::Frame)
    }

    fn wait(&mut self) {}
}

/// One track's format and frames.
pub type MuxTrack = (TrackFormat, Box<dyn FrameSource>);

/// What goes into one file.
pub struct MuxInput {
    /// The picture.
    pub video: Option<MuxTrack>,
    /// The sound.
    pub audio: Option<MuxTrack>,
    /// The media time that becomes zero in the file.
    pub start: MediaTime,
}

/// What came out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Muxed {
    /// Pictures.
    pub video: MuxedTrack,
    /// Packets of sound.
    pub audio: MuxedTrack,
}

/// One track of a muxed file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MuxedTrack {
    /// Its frames.
    pub frames: u64,
    /// Start of the first and of the last frame, and the end of that; `None` without a frame.
    pub times: Option<MuxedTimes>,
}

/// Times of a track's frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MuxedTimes {
    /// Start of the first frame.
    pub first: MediaTime,
    /// Start of the frame that is shown last.
    pub last: MediaTime,
    /// End of that frame.
    pub end: MediaTime,
}

impl Muxed {
    /// End of the last frame in the file; `None` without a frame.
    #[must_use]
    pub fn end(&self) -> Option<MediaTime> {
        [self.video, self.audio].iter().filter_map(|track| Some(track.times?.end)).max()
    }
}

/// Whether these formats fit WebM; others go into Matroska.
#[must_use]
pub fn is_webm(video: Option<Codec>, audio: Option<Codec>) -> bool {
    video.is_none_or(Codec::in_webm) && audio.is_none_or(Codec::in_webm)
}

/// How GStreamer calls a format.
pub(super) fn caps(format: &TrackFormat) -> gst::Caps {
    let private = || gst::Buffer::from_slice(format.codec_private.clone());
    let size = |builder: gst::caps::Builder<gst::caps::NoFeature>| {
        builder
            .field("width", format.width.cast_signed())
            .field("height", format.height.cast_signed())
            .field("framerate", gst::Fraction::new(0, 1))
    };
    let sound = |name: &str, rate: i32| {
        gst::Caps::builder(name).field("rate", rate).field("channels", format.channels.max(1).cast_signed()).build()
    };
    match format.codec {
        Codec::Vp8 => size(gst::Caps::builder("video/x-vp8")).build(),
        Codec::Vp9 => size(gst::Caps::builder("video/x-vp9")).build(),
        Codec::Av1 => size(gst::Caps::builder("video/x-av1"))
            .field("stream-format", "obu-stream")
            .field("alignment", "tu")
            .field("codec_data", private())
            .build(),
        Codec::H264 => size(gst::Caps::builder("video/x-h264"))
            .field("stream-format", "avc")
            .field("alignment", "au")
            .field("codec_data", private())
            .build(),
        Codec::Opus => gst::Caps::builder("audio/x-opus")
            .field("rate", 48_000)
            .field("channels", format.channels.max(1).cast_signed())
            .field("channel-mapping-family", 0)
            .field("stream-count", 1)
            .field("coupled-count", i32::from(format.channels == 2))
            .field("streamheader", gst::Array::new([private(), opus_tags()]))
            .build(),
        Codec::Pcmu => sound("audio/x-mulaw", 8000),
        Codec::Pcma => sound("audio/x-alaw", 8000),
    }
}

/// `OpusTags` (RFC 7845 section 5.2) without comments, which GStreamer wants beside `OpusHead`.
fn opus_tags() -> gst::Buffer {
    let mut tags = b"OpusTags".to_vec();
    tags.extend_from_slice(&8_u32.to_le_bytes());
    tags.extend_from_slice(b"archiver");
    tags.extend_from_slice(&0_u32.to_le_bytes());
    gst::Buffer::from_slice(tags)
}

struct Feed {
    source: AppSrc,
    frames: Box<dyn FrameSource>,
    /// The source has no further frame.
    has_ended: bool,
    /// Frames that were read and not pushed.
    ahead: VecDeque<Frame>,
    is_video: bool,
    /// Whether frames may be shown before others that come earlier.
    may_reorder: bool,
    /// For VP9.
    layers: Option<LayerHider>,
    /// Times of frames that were pushed, and are shown after one that was not.
    pushed: Vec<MediaTime>,
    last_span: u64,
    /// The time of the frame that was pushed last: its own, and the one that it has in the file.
    last: Option<(MediaTime, MediaTime)>,
    fed: MuxedTrack,
}

impl Feed {
    fn new(source: AppSrc, format: &TrackFormat, frames: Box<dyn FrameSource>) -> Self {
        let mut caps = caps(format);
        if format.codec == Codec::H264
            && let Some(caps) = caps.make_mut().structure_mut(0)
        {
            // Keyframes have their parameter sets in them, and those may differ from the header's.
            caps.set("stream-format", "avc3");
        }
        source.set_caps(Some(&caps));
        let may_reorder = format.codec == Codec::H264;
        Self {
            source,
            frames,
            has_ended: false,
            ahead: VecDeque::new(),
            is_video: format.codec.kind() == TrackKind::Video,
            may_reorder,
            layers: (format.codec == Codec::Vp9).then(LayerHider::default),
            pushed: Vec::new(),
            last_span: 20_000_000,
            last: None,
            fed: MuxedTrack::default(),
        }
    }

    /// Reads as far as it takes to know which frame is shown after the next one. Returns whether that is known.
    fn read_ahead(&mut self) -> bool {
        while !self.has_ended {
            let is_enough = match (self.ahead.front(), self.ahead.back()) {
                (Some(_), Some(_)) if self.ahead.len() < 2 => false,
                // All frames behind a keyframe are shown after it.
                (Some(next), Some(last)) => !self.may_reorder || last.keyframe || last.pts - next.pts > BACK_MAX,
                _ => false,
            };
            if is_enough || self.ahead.len() >= AHEAD_MAX {
                break;
            }
            match self.frames.next_frame() {
                NextFrame::Frame(frame) => self.ahead.push_back(frame),
                NextFrame::NotYet => return false,
                NextFrame::End => self.has_ended = true,
            }
        }
        true
    }

    /// The time of the next frame, or the earliest later one that differs in the file from that of the frame before. A router that changes to another layer gives
    /// two pictures nearly the same time.
    fn distinct(&mut self, at: MediaTime) -> MediaTime {
        let distinct = match self.last {
            Some((last, in_file)) if self.is_video && last <= at => at.max(in_file + TIME_STEP_NS),
            _ => at,
        };
        self.last = Some((at, distinct));
        distinct
    }

    /// Pushes the next frame; `None` when the pipeline takes no more, or there is none.
    fn push(&mut self, start: MediaTime) -> Option<()> {
        let mut frame = self.ahead.pop_front()?;
        frame.pts = self.distinct(frame.pts);
        let in_file = |at: MediaTime| gst::ClockTime::from_nseconds(u64::try_from((at - start).max(0)).unwrap_or(0));
        // A frame is decoded no later than it, or one behind it, is shown.
        let decoded = match self.may_reorder {
            true => self.ahead.iter().map(|later| later.pts).fold(frame.pts, MediaTime::min),
            false => frame.pts,
        };
        let until_next = if self.may_reorder {
            self.pushed.retain(|pushed| *pushed > decoded);
            let others = self.ahead.iter().map(|later| later.pts).chain(self.pushed.iter().copied());
            let next = others.filter(|other| *other > frame.pts).min();
            self.pushed.push(frame.pts);
            next
        } else {
            self.ahead.front().map(|next| next.pts)
        };
        let until_next = until_next.and_then(|next| u64::try_from(next - frame.pts).ok());
        let span = match until_next {
            Some(span) if span <= FRAME_SPAN_MAX_NS => span,
            _ => self.last_span,
        };
        self.last_span = span;
        let data = match &mut self.layers {
            Some(layers) => layers.hide_lower_layers(frame.data),
            None => frame.data,
        };
        let mut buffer = gst::Buffer::from_slice(data);
        {
            let buffer = buffer.get_mut().expect("nobody else has the buffer yet");
            buffer.set_pts(in_file(frame.pts));
            buffer.set_dts(in_file(decoded));
            // The muxer (1.22, `matroska-mux.c`) puts a picture with a duration into a BlockGroup without a reference, which makes each
            // picture a keyframe to players. Without a duration it is a SimpleBlock with its flag. The first one is a keyframe; without
            // its duration a file of one picture would have none.
            if !self.is_video || self.fed.frames == 0 {
                buffer.set_duration(gst::ClockTime::from_nseconds(span));
            }
            if !frame.keyframe {
                buffer.set_flags(gst::BufferFlags::DELTA_UNIT);
            }
        }
        self.source.push_buffer(buffer).ok()?;
        let end = frame.pts + i64::try_from(span).unwrap_or(0);
        self.fed.frames += 1;
        let times = self.fed.times.get_or_insert(MuxedTimes { first: frame.pts, last: frame.pts, end });
        if frame.pts >= times.last {
            (times.last, times.end) = (frame.pts, end);
        }
        Some(())
    }

    /// Whether all frames were pushed.
    fn is_done(&self) -> bool {
        self.has_ended && self.ahead.is_empty()
    }

    /// Where the turn of this input comes: how far it was fed, or `None` at its end. The time of the next
    /// frame would leave the muxer without a frame of this input over a pause, and everything of the other
    /// input would wait in memory for the pause's end. So it waits in the log while a source has nothing yet.
    fn due(&self) -> Option<MediaTime> {
        (!self.is_done()).then(|| self.fed.times.map_or(MediaTime(i64::MIN), |times| times.last))
    }

    fn end(&self) {
        // A pipeline that failed takes no end either; its error is on the bus.
        self.source.end_of_stream().map(drop).unwrap_or_default();
    }

    /// What was fed, to the end.
    fn finish(&self) -> MuxedTrack {
        self.end();
        if let Some(pictures) = self.layers.as_ref().map(LayerHider::unreadable).filter(|pictures| *pictures > 0) {
            tracing::warn!(
                pictures,
                "headers of VP9 pictures cannot be read: a player may show a picture once for each of its layers"
            );
        }
        self.fed
    }
}

/// Writes the file. Blocking: to be called on a thread of its own. After an error or a cancellation the file must be discarded.
///
/// # Errors
/// When an element fails, or the pipeline stalls.
pub fn mux(
    input: MuxInput,
    path: &Path,
    pipelines: &Pipelines,
    cancel: &CancellationToken,
) -> Result<Cancellable<Muxed>, MediaError> {
    let codec = |t: &Option<MuxTrack>| t.as_ref().map(|(format, _)| format.codec);
    let muxer = if is_webm(codec(&input.video), codec(&input.audio)) { "mux-webm" } else { "mux-mkv" };
    let mut text = fragment::load(muxer, pipelines.dir.as_deref())?.text;
    for (there, name) in [(input.video.is_some(), "mux-input-video"), (input.audio.is_some(), "mux-input-audio")] {
        if there {
            text.push('\n');
            text.push_str(&fragment::load(name, pipelines.dir.as_deref())?.text);
        }
    }
    let pipeline = Pipeline::parse(muxer, &text)?;
    pipeline.named::<gst::Element>("sink")?.set_property("location", path.to_string_lossy().as_ref());
    let feed = |name: &str, track: Option<MuxTrack>| -> Result<Option<Feed>, MediaError> {
        let Some((format, frames)) = track else { return Ok(None) };
        let mut feed = Feed::new(pipeline.named::<AppSrc>(name)?, &format, frames);
        // Finding the first frame may take longer than the stall deadline, which counts once the pipeline runs.
        feed.read_ahead();
        Ok(Some(feed))
    };
    let (video, audio) = (feed("video", input.video)?, feed("audio", input.audio)?);
    pipeline.start()?;
    let fed = Arc::new(AtomicU64::new(0));
    let stop = cancel.child_token();
    let feeder = {
        let (fed, cancel, start) = (Arc::clone(&fed), stop.clone(), input.start);
        std::thread::Builder::new()
            .name("mux-feed".to_owned())
            .spawn(move || feed_all(video, audio, start, &fed, &cancel))
    };
    let feeder = feeder.map_err(|e| MediaError::Element { element: "mux-feed".to_owned(), what: e.to_string() })?;
    let ended = pipeline.wait_end(pipelines.stall, cancel, |_| fed.load(Ordering::Relaxed));
    if !matches!(ended, Ok(Cancellable::Done(()))) {
        // A feeder that waits for its source ends, one that waits for room is let go by the flush that goes with Null.
        stop.cancel();
        drop(pipeline);
    }
    let muxed = feeder.join().expect("the feeder does not panic");
    let (Cancellable::Done(()), Cancellable::Done(muxed)) = (ended?, muxed) else { return Ok(Cancellable::Cancelled) };
    let length = u64::try_from(muxed.end().unwrap_or(input.start) - input.start).unwrap_or(0);
    let set = duration::set(path, length).map_err(|e| e.to_string());
    match set {
        Ok(true) => Ok(Cancellable::Done(muxed)),
        Ok(false) => Err("its header has no duration".to_owned()),
        Err(error) => Err(error),
    }
    .map_err(|what| MediaError::Element { element: muxer.to_owned(), what })
}

/// Feeds whichever input lags behind, so that the muxer never waits for one while the other is full: it has
/// the first frame after a pause as soon as the other input comes to the pause's beginning.
fn feed_all(
    mut video: Option<Feed>,
    mut audio: Option<Feed>,
    start: MediaTime,
    fed: &AtomicU64,
    cancel: &CancellationToken,
) -> Cancellable<Muxed> {
    loop {
        // The inputs are not ended: the muxer must not finish a file that lacks frames.
        if cancel.is_cancelled() {
            return Cancellable::Cancelled;
        }
        let (v, a) = (video.as_ref().and_then(Feed::due), audio.as_ref().and_then(Feed::due));
        let turn = match (v, a) {
            (None, None) => break,
            (Some(v), Some(a)) if v <= a => &mut video,
            (Some(_), None) => &mut video,
            (_, Some(_)) => &mut audio,
        };
        let Some(feed) = turn else { break };
        if !feed.read_ahead() {
            feed.frames.wait();
        } else if !feed.is_done() && feed.push(start).is_none() {
            break;
        } else if feed.is_done() {
            // The muxer waits for an input that has not ended.
            feed.end();
        }
        fed.fetch_add(1, Ordering::Relaxed);
    }
    let finish = |feed: &Option<Feed>| feed.as_ref().map_or_else(MuxedTrack::default, Feed::finish);
    Cancellable::Done(Muxed { video: finish(&video), audio: finish(&audio) })
}
