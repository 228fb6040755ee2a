//! From drawn video frames and mixed audio to one file: the encoders and the muxer of a composed archive.

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_app::{AppSink, AppSinkCallbacks, AppSrc};
use gstreamer_video::{VideoColorimetry, VideoFormat, VideoFrameExt, VideoFrameRef, VideoInfo};
use tokio_util::sync::CancellationToken;

use super::mp4::index::Track;
use super::mp4::{self, Mp4Writer, Sample};
use super::plane::PlaneMut;
use super::runner::Pipeline;
use super::{MediaError, Pipelines, SAMPLE_RATE, fragment};
use crate::model::cancellable::Cancellable;

/// Canvases that the encoder may hold; x264's lookahead takes about twenty.
const CANVASES_MAX: usize = 128;
/// The tracks of a composed file, and the encoders' limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Output {
    /// Width, height and frames a second; `None` without video.
    pub video: Option<(u32, u32, u32)>,
    /// Whether it has audio.
    pub audio: bool,
    /// Quality of the video: smaller is better.
    pub quantizer: Option<u8>,
    /// Limit of the video, in bit/s.
    pub bitrate_max: Option<u32>,
    /// Seconds of media for which the file reserves room for its index. The media of a longer file is moved at the end.
    pub seconds_max: u64,
}

impl Output {
    /// The tracks, each with the name of the element that gives its samples. The picture is the first.
    fn tracks(&self) -> Result<Vec<(&'static str, Track)>, MediaError> {
        let side = |pixels: u32| u16::try_from(pixels).map_err(|_| failed("video", "the picture is too large"));
        let mut tracks = Vec::new();
        if let Some((width, height, rate)) = self.video {
            tracks.push(("coded-video", Track::Video { width: side(width)?, height: side(height)?, rate }));
        }
        if self.audio {
            tracks.push(("coded-audio", Track::Audio { rate: SAMPLE_RATE }));
        }
        Ok(tracks)
    }

    /// The range of the file that will not change any more, when it is `len` bytes long so far.
    #[must_use]
    pub fn final_range(&self, len: u64) -> Option<Range<u64>> {
        let tracks: Vec<Track> = self.tracks().ok()?.into_iter().map(|(_, track)| track).collect();
        mp4::final_range(&tracks, self.seconds_max, len)
    }
}

/// Feeds video frames and audio to the encoders.
pub struct Feeder {
    video: Option<(AppSrc, VideoInfo)>,
    audio: Option<AppSrc>,
    canvases: Vec<gst::Buffer>,
    pictures: u64,
    samples: u64,
    fed: Arc<AtomicU64>,
    delay: u64,
}

impl Feeder {
    /// Samples by which the encoder delays audio: as much of the beginning should be left out.
    #[must_use]
    pub const fn delay(&self) -> u64 {
        self.delay
    }

    /// Takes a canvas that the encoder has released, by its number. The same numbers come again, with their content.
    ///
    /// # Errors
    /// When the encoder gives none back.
    pub fn take_canvas(&mut self) -> Result<usize, MediaError> {
        let Some((_, info)) = &self.video else { return Err(failed("video", "there is no picture in this file")) };
        if let Some(free) = self.canvases.iter_mut().position(|buffer| buffer.get_mut().is_some()) {
            return Ok(free);
        }
        if self.canvases.len() >= CANVASES_MAX {
            return Err(failed("video", "the encoder holds too many pictures"));
        }
        let buffer = gst::Buffer::with_size(info.size()).map_err(|e| failed("video", &e.to_string()))?;
        self.canvases.push(buffer);
        Ok(self.canvases.len() - 1)
    }

    /// Draws on a canvas: its luma and its two chroma planes. A new one holds anything.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn draw(&mut self, canvas: usize, draw: impl FnOnce([PlaneMut<'_>; 3])) -> Result<(), MediaError> {
        let broken = || failed("video", "a canvas cannot be written");
        let Some((_, info)) = &self.video else { return Err(broken()) };
        let buffer = self.canvases.get_mut(canvas).and_then(|b| b.get_mut()).ok_or_else(broken)?;
        let mut frame = VideoFrameRef::from_buffer_ref_writable(buffer, info).map_err(|_| broken())?;
        let sizes: [(usize, usize); 3] =
            [0, 1, 2].map(|n| (frame.comp_width(n) as usize, frame.comp_height(n) as usize));
        let strides: Vec<usize> = frame.plane_stride().iter().map(|s| usize::try_from(*s).unwrap_or(0)).collect();
        let [luma, blue, red, _] = frame.planes_data_mut();
        let plane = |data, n: usize| PlaneMut { data, stride: strides[n], width: sizes[n].0, height: sizes[n].1 };
        draw([plane(luma, 0), plane(blue, 1), plane(red, 2)]);
        Ok(())
    }

    /// Tells that the caller waits for its own input: the pipeline is idle, and has not stalled.
    pub fn keep_alive(&self) {
        self.fed.fetch_add(1, Ordering::Relaxed);
    }

    /// Hands a canvas to the encoder as the next video frame. Waits while the encoder's queue is full.
    ///
    /// # Errors
    /// When the pipeline has ended.
    #[allow(clippy::missing_panics_doc)]
    pub fn push_video(&mut self, canvas: usize) -> Result<(), MediaError> {
        let Some((source, info)) = &self.video else { return Err(failed("video", "there is no picture")) };
        let rate = u64::try_from(info.fps().numer()).unwrap_or(1).max(1);
        let at = |n: u64| gst::ClockTime::from_nseconds(n * 1_000_000_000 / rate);
        let buffer = &mut self.canvases[canvas];
        {
            let buffer = buffer.get_mut().expect("a canvas that was drawn on is ours");
            let (from, to) = (at(self.pictures), at(self.pictures + 1));
            buffer.set_pts(from);
            buffer.set_duration(to - from);
        }
        source.push_buffer(buffer.clone()).map_err(|e| failed("video", &e.to_string()))?;
        self.pictures += 1;
        self.fed.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Hands samples to the encoder: left and right in turn. Waits while the encoder's queue is full.
    ///
    /// # Errors
    /// When the pipeline has ended.
    #[allow(clippy::missing_panics_doc)]
    pub fn push_audio(&mut self, samples: &[f32]) -> Result<(), MediaError> {
        let Some(source) = &self.audio else { return Err(failed("audio", "there is no sound in this file")) };
        let bytes: Vec<u8> = samples.iter().flat_map(|s| s.to_le_bytes()).collect();
        let mut buffer = gst::Buffer::from_mut_slice(bytes);
        let at = |n: u64| gst::ClockTime::from_nseconds(n * 1_000_000_000 / u64::from(SAMPLE_RATE));
        let (from, to) = (self.samples, self.samples + samples.len() as u64 / 2);
        {
            let buffer = buffer.get_mut().expect("a new buffer is ours");
            buffer.set_pts(at(from));
            buffer.set_duration(at(to) - at(from));
        }
        source.push_buffer(buffer).map_err(|e| failed("audio", &e.to_string()))?;
        self.samples = to;
        self.fed.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn end(&self) {
        // A pipeline that failed has said so already.
        for source in self.video.iter().map(|(source, _)| source).chain(&self.audio) {
            source.end_of_stream().map(drop).unwrap_or_default();
        }
    }
}

fn failed(element: &str, what: &str) -> MediaError {
    MediaError::Element { element: element.to_owned(), what: what.to_owned() }
}

/// Encodes the video frames and audio that `feed` gives, in a thread of its own, into a file. Blocking.
///
/// # Errors
/// The error of `feed`; or when an element fails, or the pipeline stalls.
///
/// # Panics
/// When `feed` does.
pub fn encode<T: Send, E: Send + From<MediaError>>(
    output: Output,
    path: &Path,
    pipelines: &Pipelines,
    cancel: &CancellationToken,
    feed: impl FnOnce(&mut Feeder) -> Result<Cancellable<T>, E> + Send,
) -> Result<Cancellable<T>, E> {
    let pipeline = build_pipeline(output, pipelines)?;
    let writer = Writer::attach(&pipeline, output, path)?;
    let fed = Arc::new(AtomicU64::new(0));
    let mut feeder = Feeder {
        video: configure_video(&pipeline, output)?,
        audio: configure_audio(&pipeline, output)?,
        canvases: Vec::new(),
        pictures: 0,
        samples: 0,
        fed: Arc::clone(&fed),
        delay: fragment::load("compose-audio", pipelines.dir.as_deref())?.delay,
    };
    pipeline.start()?;
    let stop = cancel.child_token();
    let fed = std::thread::scope(|scope| {
        let stopping = stop.clone();
        let feeding = scope.spawn(move || {
            let fed = feed(&mut feeder);
            match fed {
                Ok(Cancellable::Done(_)) => feeder.end(),
                Ok(Cancellable::Cancelled) | Err(_) => stopping.cancel(),
            }
            fed.map(|fed| fed.map(|fed| (fed, feeder.pictures)))
        });
        let ended = pipeline.wait_end(pipelines.stall, &stop, |_| fed.load(Ordering::Relaxed));
        // A feeder that waits for room is let go by the flush that goes with Null.
        drop(pipeline);
        let fed = feeding.join().expect("the feeder does not panic");
        match (ended, fed) {
            (Ok(Cancellable::Done(())), fed) => fed,
            // The pipeline was stopped because the feeder failed.
            (Ok(Cancellable::Cancelled), Err(error)) if !cancel.is_cancelled() => Err(error),
            (Ok(Cancellable::Cancelled), _) => writer.failed().map_or(Ok(Cancellable::Cancelled), |e| Err(e.into())),
            (Err(error), _) => Err(writer.failed().unwrap_or(error).into()),
        }
    })?;
    let Cancellable::Done((fed, pictures)) = fed else { return Ok(Cancellable::Cancelled) };
    writer.finish(output, pictures)?;
    Ok(Cancellable::Done(fed))
}

fn build_pipeline(output: Output, pipelines: &Pipelines) -> Result<Pipeline, MediaError> {
    let folder = pipelines.dir.as_deref();
    let mut text = String::new();
    for (there, name) in [(output.video.is_some(), "compose-video"), (output.audio, "compose-audio")] {
        if there {
            text.push('\n');
            text.push_str(&fragment::load(name, folder)?.text);
        }
    }
    let pipeline = Pipeline::parse("compose", &text)?;
    if output.video.is_some() {
        set_limits(&pipeline, output)?;
    }
    Ok(pipeline)
}

/// Writes the encoders' samples into the file.
struct Writer {
    file: Arc<Mutex<Option<Mp4Writer>>>,
    failed: Arc<Mutex<Option<MediaError>>>,
}

/// Receives a track's samples from an encoder.
struct SampleHandler {
    file: Arc<Mutex<Option<Mp4Writer>>>,
    failed: Arc<Mutex<Option<MediaError>>>,
    track: usize,
    /// Pictures a second; none of sound.
    rate: Option<u64>,
    /// Whether the track's codec data was written.
    has_codec_data: bool,
    /// When the first picture is shown: the encoder counts from anywhere.
    first: Option<gst::ClockTime>,
}

impl Writer {
    fn attach(pipeline: &Pipeline, output: Output, path: &Path) -> Result<Self, MediaError> {
        let tracks = output.tracks()?;
        let kinds: Vec<Track> = tracks.iter().map(|(_, track)| *track).collect();
        let file = Mp4Writer::create(path, &kinds, output.seconds_max).map_err(|e| write_error(path, &e))?;
        let (file, failed) = (Arc::new(Mutex::new(Some(file))), Arc::new(Mutex::new(None)));
        for (number, (name, track)) in tracks.into_iter().enumerate() {
            let rate = match track {
                Track::Video { rate, .. } => Some(u64::from(rate)),
                Track::Audio { .. } => None,
            };
            let (file, failed) = (Arc::clone(&file), Arc::clone(&failed));
            let mut handler = SampleHandler { file, failed, track: number, rate, has_codec_data: false, first: None };
            let handler = move |sink: &AppSink| {
                let sample = sink.pull_sample().map_err(|_| gst::FlowError::Eos)?;
                handler.handle(&sample).map(|()| gst::FlowSuccess::Ok)
            };
            let sink = pipeline.named::<AppSink>(name)?;
            sink.set_callbacks(AppSinkCallbacks::builder().new_sample(handler).build());
        }
        Ok(Self { file, failed })
    }

    /// Why the file could not be written.
    fn failed(&self) -> Option<MediaError> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Puts the file's index into its place, if every picture has come.
    fn finish(self, output: Output, pictures: u64) -> Result<(), MediaError> {
        if let Some(error) = self.failed() {
            return Err(error);
        }
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner).take();
        let file = file.ok_or_else(|| failed("file", "it has been finished before"))?;
        // The picture is the first track.
        let coded = file.samples(0);
        if output.video.is_some() && coded != pictures {
            return Err(failed("encoder", &format!("it gave {coded} pictures of {pictures}")));
        }
        file.finish().map_err(|e| failed("file", &e.to_string()))
    }
}

fn write_error(path: &Path, error: &std::io::Error) -> MediaError {
    failed("file", &format!("{} cannot be written: {error}", path.display()))
}

impl SampleHandler {
    fn handle(&mut self, sample: &gst::Sample) -> Result<(), gst::FlowError> {
        self.write(sample).map_err(|error| {
            *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            gst::FlowError::Error
        })
    }

    fn write(&mut self, sample: &gst::Sample) -> Result<(), MediaError> {
        let bad = |what: &str| failed("encoder", what);
        let buffer = sample.buffer().ok_or_else(|| bad("it gave a sample without data"))?;
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let file = file.as_mut().ok_or_else(|| bad("it gave a sample behind the end"))?;
        if !self.has_codec_data {
            let caps = sample.caps().and_then(|caps| caps.structure(0));
            let private = caps.and_then(|caps| caps.get::<gst::Buffer>("codec_data").ok());
            let private = private.ok_or_else(|| bad("it does not tell its codec_data"))?;
            file.codec(self.track, &private.map_readable().map_err(|_| bad("its codec_data cannot be read"))?);
            self.has_codec_data = true;
        }
        let number = match (self.rate, buffer.pts()) {
            (None, _) => 0,
            (Some(_), None) => return Err(bad("it gave a picture without a time")),
            (Some(rate), Some(pts)) => {
                let since = pts.saturating_sub(*self.first.get_or_insert(pts));
                // The nearest: times are rounded.
                u32::try_from((since.nseconds() * rate + 500_000_000) / 1_000_000_000).unwrap_or(u32::MAX)
            }
        };
        let data = buffer.map_readable().map_err(|_| bad("its data cannot be read"))?;
        let keyframe = !buffer.flags().contains(gst::BufferFlags::DELTA_UNIT);
        let sample = Sample { data: &data, number, keyframe };
        file.add(self.track, sample).map_err(|e| failed("file", &e.to_string()))
    }
}

/// Sets the encoder's properties as the archive requests, if the encoder has x264enc's properties. The fragment of another
/// encoder sets its own.
fn set_limits(pipeline: &Pipeline, output: Output) -> Result<(), MediaError> {
    let encoder = pipeline.named::<gst::Element>("encoder")?;
    if let Some(quantizer) = output.quantizer.filter(|_| encoder.has_property("quantizer")) {
        encoder.set_property("quantizer", u32::from(quantizer));
    }
    let has_limit = encoder.has_property("bitrate") && encoder.has_property("vbv-buf-capacity");
    if let Some(bits) = output.bitrate_max.filter(|_| has_limit) {
        encoder.set_property("bitrate", bits / 1000);
        // In milliseconds.
        encoder.set_property("vbv-buf-capacity", 1000_u32);
    }
    Ok(())
}

fn configure_video(pipeline: &Pipeline, output: Output) -> Result<Option<(AppSrc, VideoInfo)>, MediaError> {
    let Some((width, height, rate)) = output.video else { return Ok(None) };
    let rate = i32::try_from(rate).map_err(|_| failed("video", "so many pictures a second cannot be made"))?;
    // Browsers send what BT.601 describes, at every size.
    let colours: VideoColorimetry = "bt601".parse().map_err(|_| failed("video", "BT.601 is not known"))?;
    let info = VideoInfo::builder(VideoFormat::I420, width, height)
        .fps(gst::Fraction::new(rate, 1))
        .par(gst::Fraction::new(1, 1))
        .colorimetry(&colours)
        .build();
    let info = info.map_err(|e| failed("video", &e.to_string()))?;
    let source = pipeline.named::<AppSrc>("video")?;
    let caps = info.to_caps().map_err(|e| failed("video", &e.to_string()))?;
    source.set_caps(Some(&caps));
    Ok(Some((source, info)))
}

fn configure_audio(pipeline: &Pipeline, output: Output) -> Result<Option<AppSrc>, MediaError> {
    if !output.audio {
        return Ok(None);
    }
    let source = pipeline.named::<AppSrc>("audio")?;
    let caps = gst::Caps::builder("audio/x-raw")
        .field("format", "F32LE")
        .field("rate", SAMPLE_RATE.cast_signed())
        .field("channels", 2)
        .field("layout", "interleaved")
        .build();
    source.set_caps(Some(&caps));
    Ok(Some(source))
}
