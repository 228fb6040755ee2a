//! Reads and decodes a finished file, and discards the output: an archive must be complete and decodable.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use gstreamer as gst;
use gstreamer::prelude::*;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::decode::VideoDecoder;
use super::matroska::{self, BadFile, BlockAt, Track};
use super::{MediaError, Pipelines, fragment, runner::Pipeline};
use crate::model::cancellable::Cancellable;
use crate::model::media::{Codec, Frame, TrackFormat};
use crate::model::time::MediaTime;

/// Sync points of a file that are decoded, at most.
const SYNC_POINTS_MAX: usize = 8;

/// What a Matroska file holds, and what decoders make of samples of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspection {
    /// The pictures.
    pub video: Option<TrackFound>,
    /// The sound.
    pub audio: Option<TrackFound>,
    /// The duration that the container tells, in nanoseconds.
    pub duration_ns: u64,
    /// Whether each of some sync points, from the first to the last of the file, decodes by itself.
    pub sync_points: Vec<bool>,
    /// What a player decodes of the file's beginning.
    pub beginning: Counts,
}

/// A track of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrackFound {
    /// Its codec, if it is one that is archived.
    pub codec: Option<Codec>,
    /// Its frames.
    pub frames: u64,
    /// Whether a decoder can begin with the first one.
    pub begins_with_keyframe: bool,
    /// Start of the frame that is shown or heard last, in nanoseconds.
    pub last_ns: u64,
}

/// Reads the structure of a whole Matroska file, and decodes its beginning and some of its sync points. Blocking.
///
/// # Errors
/// When the file is not one whole document, its beginning cannot be read by a player, or the pipeline stalls.
pub fn inspect(
    path: &Path,
    beginning: Duration,
    pipelines: &Pipelines,
    cancel: &CancellationToken,
) -> Result<Cancellable<Inspection>, MediaError> {
    super::init()?;
    let bad = |what: String| MediaError::Element { element: "matroska".to_owned(), what };
    let contents = matroska::contents(path).map_err(|error| match error {
        // A disk that fails says nothing of the file.
        BadFile::Io(error) if error.kind() != std::io::ErrorKind::UnexpectedEof => MediaError::Io(error),
        other => bad(other.to_string()),
    })?;
    let of_kind = |is_video| {
        let mut tracks = contents.tracks.iter().filter(|track| track.is_video == is_video);
        match (tracks.next(), tracks.next()) {
            (track, None) => Ok(track),
            _ => Err(bad("it has two tracks of one kind".to_owned())),
        }
    };
    let (video, audio) = (of_kind(true)?, of_kind(false)?);
    let sync_points = match video.and_then(|video| Some((video, format(video)?))) {
        Some((video, format)) => decode_sync_points(path, video, &format, pipelines).map_err(MediaError::Io)?,
        None => Vec::new(),
    };
    let decoded = decode(path, Some(beginning), pipelines, cancel)?;
    let duration_ns = contents.duration_ns;
    Ok(decoded.map(|beginning| Inspection {
        video: video.map(found),
        audio: audio.map(found),
        duration_ns,
        sync_points,
        beginning,
    }))
}

fn found(track: &Track) -> TrackFound {
    let (frames, last_ns) = (track.blocks, track.last_ns);
    TrackFound { codec: codec(track), frames, begins_with_keyframe: track.begins_with_keyframe, last_ns }
}

/// The codec by its name in Matroska (RFC 9559 section 23.1).
fn codec(track: &Track) -> Option<Codec> {
    match track.codec_id.as_str() {
        "V_VP8" => Some(Codec::Vp8),
        "V_VP9" => Some(Codec::Vp9),
        "V_AV1" => Some(Codec::Av1),
        "V_MPEG4/ISO/AVC" => Some(Codec::H264),
        "A_OPUS" => Some(Codec::Opus),
        // The first field of WAVEFORMATEX.
        "A_MS/ACM" if track.codec_private.starts_with(&[7, 0]) => Some(Codec::Pcmu),
        "A_MS/ACM" if track.codec_private.starts_with(&[6, 0]) => Some(Codec::Pcma),
        _ => None,
    }
}

fn format(track: &Track) -> Option<TrackFormat> {
    let (codec_private, (width, height)) = (track.codec_private.clone(), track.size);
    Some(TrackFormat { codec: codec(track)?, width, height, channels: 0, codec_private })
}

/// Decodes some sync points, each by a decoder of its own: what a player does that goes there.
fn decode_sync_points(
    path: &Path,
    video: &Track,
    format: &TrackFormat,
    pipelines: &Pipelines,
) -> std::io::Result<Vec<bool>> {
    let file = File::open(path)?;
    let (count, last) = (video.sync_points.len().min(SYNC_POINTS_MAX), video.sync_points.len().saturating_sub(1));
    let chosen = (0..count).map(|n| video.sync_points[n * last / count.saturating_sub(1).max(1)]);
    let decodes = |point: BlockAt| -> std::io::Result<bool> {
        let frame = Frame { pts: MediaTime::ZERO, duration: None, keyframe: true, data: point.read(&file)?.into() };
        let picture = VideoDecoder::new(format, pipelines.dir.as_deref()).and_then(|mut decoder| {
            let decoded = decoder.decode(&frame)?;
            Ok(!decoded.is_empty() || !decoder.finish()?.is_empty())
        });
        Ok(picture.unwrap_or_else(|error| {
            tracing::debug!(at = point.ns, "a sync point cannot be decoded: {error}");
            false
        }))
    };
    chosen.map(decodes).collect()
}

/// Counts of a file's content.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Video frames.
    pub video_frames: u64,
    /// Buffers of audio.
    pub audio_buffers: u64,
    /// Whether a decoder can begin with the first video frame.
    pub begins_with_keyframe: bool,
    /// Start of the last frame, in nanoseconds.
    pub last_ns: u64,
    /// The duration that the container tells, in nanoseconds.
    pub duration_ns: u64,
}

/// Reads a file to its end without decoding, and counts what is in it. Blocking.
///
/// # Errors
/// As for [`decode`].
pub fn count(
    path: &Path,
    pipelines: &Pipelines,
    cancel: &CancellationToken,
) -> Result<Cancellable<Counts>, MediaError> {
    run("count", "demux", path, Part::All, pipelines, cancel)
}

/// Decodes a file, or its first `limit` of media time. Blocking.
///
/// # Errors
/// When the container or a frame cannot be read, or the pipeline stalls.
pub fn decode(
    path: &Path,
    limit: Option<Duration>,
    pipelines: &Pipelines,
    cancel: &CancellationToken,
) -> Result<Cancellable<Counts>, MediaError> {
    run("verify", "decode", path, limit.map_or(Part::All, Part::First), pipelines, cancel)
}

/// Decodes the beginning and the end of a file, each as long as `part`: as fast for a long file as for a short one.
/// Blocking.
///
/// # Errors
/// As for [`decode`], and when one cannot go to its end.
pub fn decode_ends(
    path: &Path,
    part: Duration,
    pipelines: &Pipelines,
    cancel: &CancellationToken,
) -> Result<Cancellable<(Counts, Counts)>, MediaError> {
    let first = run("verify", "decode", path, Part::First(part), pipelines, cancel)?;
    let Cancellable::Done(first) = first else { return Ok(Cancellable::Cancelled) };
    let last = run("verify", "decode", path, Part::Last(part), pipelines, cancel)?;
    Ok(last.map(|last| (first, last)))
}

/// The part of a file to read.
#[derive(Clone, Copy)]
enum Part {
    All,
    First(Duration),
    Last(Duration),
}

/// Runs a file through a fragment whose element `opens` has a pad for each track.
fn run(
    name: &str,
    opens: &str,
    path: &Path,
    part: Part,
    pipelines: &Pipelines,
    cancel: &CancellationToken,
) -> Result<Cancellable<Counts>, MediaError> {
    let fragment = fragment::load(name, pipelines.dir.as_deref())?;
    let pipeline = Pipeline::parse(name, &fragment.text)?;
    pipeline.named::<gst::Element>("source")?.set_property("location", path.to_string_lossy().as_ref());
    let seen = Arc::new(Seen::default());
    // Of a file that is read from its beginning, one track may begin long after another: nothing waits for it.
    let prerolls = matches!(part, Part::Last(_));
    {
        let (seen, weak) = (Arc::clone(&seen), pipeline.inner().downgrade());
        pipeline.named::<gst::Element>(opens)?.connect_pad_added(move |_, pad| {
            let Some(pipeline) = weak.upgrade() else { return };
            let is_video = pad.current_caps().is_some_and(|c| c.to_string().starts_with("video/"));
            count_buffers(&pipeline, pad, is_video, prerolls, Arc::clone(&seen));
        });
    }
    let nanoseconds = |span: Duration| u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
    let limit = if let Part::First(limit) = part { nanoseconds(limit) } else { u64::MAX };
    if let Part::Last(span) = part {
        // While the pipeline is paused nothing passes: it cannot come to the end of another part than the one that is sought.
        let Cancellable::Done(()) = pipeline.preroll(pipelines.stall, cancel)? else {
            return Ok(Cancellable::Cancelled);
        };
        seen.clear();
        if let Some(length) = pipeline.inner().query_duration::<gst::ClockTime>() {
            let to = gst::ClockTime::from_nseconds(length.nseconds().saturating_sub(nanoseconds(span)));
            let flags = gst::SeekFlags::FLUSH | gst::SeekFlags::KEY_UNIT | gst::SeekFlags::SNAP_BEFORE;
            pipeline.inner().seek_simple(flags, to).map_err(|error| MediaError::Element {
                element: name.to_owned(),
                what: format!("one cannot go to its end: {error}"),
            })?;
        }
    }
    pipeline.start()?;
    let duration = Arc::new(AtomicU64::new(0));
    let progress = |inner: &gst::Pipeline| {
        if duration.load(Ordering::Relaxed) == 0
            && let Some(length) = inner.query_duration::<gst::ClockTime>()
        {
            duration.store(length.nseconds(), Ordering::Relaxed);
        }
        if seen.last_ns.load(Ordering::Relaxed) >= limit {
            inner.send_event(gst::event::Eos::new());
        }
        seen.video_frames.load(Ordering::Relaxed) + seen.audio_buffers.load(Ordering::Relaxed)
    };
    let ended = pipeline.wait_end(pipelines.stall, cancel, progress)?;
    let Cancellable::Done(()) = ended else { return Ok(Cancellable::Cancelled) };
    if duration.load(Ordering::Relaxed) == 0
        && let Some(length) = pipeline.inner().query_duration::<gst::ClockTime>()
    {
        duration.store(length.nseconds(), Ordering::Relaxed);
    }
    Ok(Cancellable::Done(Counts {
        video_frames: seen.video_frames.load(Ordering::Relaxed),
        audio_buffers: seen.audio_buffers.load(Ordering::Relaxed),
        begins_with_keyframe: seen.begins_with_keyframe.load(Ordering::Relaxed),
        last_ns: seen.last_ns.load(Ordering::Relaxed),
        duration_ns: duration.load(Ordering::Relaxed),
    }))
}

/// What came out of a file so far.
#[derive(Default)]
struct Seen {
    video_frames: AtomicU64,
    audio_buffers: AtomicU64,
    begins_with_keyframe: AtomicBool,
    last_ns: AtomicU64,
}

impl Seen {
    fn clear(&self) {
        for count in [&self.video_frames, &self.audio_buffers, &self.last_ns] {
            count.store(0, Ordering::Relaxed);
        }
    }

    fn buffer(&self, is_video: bool, buffer: &gst::BufferRef) {
        let counter = if is_video { &self.video_frames } else { &self.audio_buffers };
        if counter.fetch_add(1, Ordering::Relaxed) == 0 && is_video {
            let is_keyframe = !buffer.flags().contains(gst::BufferFlags::DELTA_UNIT);
            self.begins_with_keyframe.store(is_keyframe, Ordering::Relaxed);
        }
        if let Some(pts) = buffer.pts() {
            self.last_ns.fetch_max(pts.nseconds(), Ordering::Relaxed);
        }
    }
}

/// Ends a decoded pad in a sink that only counts. A failure shows as an error on the bus: not linked.
fn count_buffers(pipeline: &gst::Pipeline, pad: &gst::Pad, is_video: bool, prerolls: bool, seen: Arc<Seen>) {
    let Ok(sink) = gst::ElementFactory::make("fakesink").property("sync", false).property("async", prerolls).build()
    else {
        return;
    };
    let linked = pipeline.add(&sink).is_ok()
        && sink.static_pad("sink").is_some_and(|to| pad.link(&to).is_ok())
        && sink.sync_state_with_parent().is_ok();
    if !linked {
        return;
    }
    pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
        if let Some(buffer) = info.buffer() {
            seen.buffer(is_video, buffer);
        }
        gst::PadProbeReturn::Ok
    });
}
