//! From drawn pictures and mixed sound to one file: the encoders and the muxer of a composed archive.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_app::AppSrc;
use gstreamer_video::{VideoColorimetry, VideoFormat, VideoFrameExt, VideoFrameRef, VideoInfo};
use tokio_util::sync::CancellationToken;

use super::picture::PlaneMut;
use super::runner::Pipeline;
use super::{MediaError, Pipelines, fragment};

/// Canvases that the encoder may hold; x264's lookahead takes about twenty.
const CANVASES_MAX: usize = 128;
/// Samples a second, of two channels.
pub const SAMPLE_RATE: u32 = 48_000;

/// What a composed file has in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Output {
    /// Width, height and pictures a second; no picture without.
    pub video: Option<(u32, u32, u32)>,
    /// Whether it has sound.
    pub audio: bool,
    /// Quality of the picture: smaller is better.
    pub quantizer: Option<u8>,
    /// Limit of the picture, in bit/s.
    pub bitrate_max: Option<u32>,
}

/// Where pictures and sound go.
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
    /// Samples by which the encoder's sound comes late: so much of the beginning should be left out.
    #[must_use]
    pub const fn delay(&self) -> u64 {
        self.delay
    }

    /// A canvas that the encoder has done with, by its number: the same numbers come again, with what was drawn on
    /// them then.
    ///
    /// # Errors
    /// When the encoder gives none back.
    pub fn canvas(&mut self) -> Result<usize, MediaError> {
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

    /// Whoever feeds waits for something else than the pipeline, which does not hang.
    pub fn waits(&self) {
        self.fed.fetch_add(1, Ordering::Relaxed);
    }

    /// Hands a canvas to the encoder as the next picture. Waits while it has enough.
    ///
    /// # Errors
    /// When the pipeline has ended.
    #[allow(clippy::missing_panics_doc)]
    pub fn picture(&mut self, canvas: usize) -> Result<(), MediaError> {
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

    /// Hands samples to the encoder: left and right in turn. Waits while it has enough.
    ///
    /// # Errors
    /// When the pipeline has ended.
    #[allow(clippy::missing_panics_doc)]
    pub fn sound(&mut self, samples: &[f32]) -> Result<(), MediaError> {
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

/// Makes a file of what `feed` draws and mixes, in a thread of its own. Blocking.
///
/// # Errors
/// What `feed` says; or when an element fails, nothing moves any more, or `cancel` says so.
///
/// # Panics
/// When `feed` does.
pub fn encode<T: Send, E: Send + From<MediaError>>(
    output: Output,
    path: &Path,
    pipelines: &Pipelines,
    cancel: &CancellationToken,
    feed: impl FnOnce(&mut Feeder) -> Result<T, E> + Send,
) -> Result<T, E> {
    let pipeline = built(output, path, pipelines)?;
    let fed = Arc::new(AtomicU64::new(0));
    let mut feeder = Feeder {
        video: video(&pipeline, output)?,
        audio: audio(&pipeline, output)?,
        canvases: Vec::new(),
        pictures: 0,
        samples: 0,
        fed: Arc::clone(&fed),
        delay: fragment::load("compose-audio", pipelines.dir.as_deref())?.delay,
    };
    pipeline.start()?;
    let stop = cancel.child_token();
    std::thread::scope(|scope| {
        let stopping = stop.clone();
        let feeding = scope.spawn(move || {
            let fed = feed(&mut feeder);
            match fed {
                Ok(_) => feeder.end(),
                Err(_) => stopping.cancel(),
            }
            fed
        });
        let ended = pipeline.wait_end(pipelines.stall, &stop, |_| fed.load(Ordering::Relaxed));
        if ended.is_err() {
            // A feeder that waits for room is let go by the flush that goes with Null.
            drop(pipeline);
        }
        let fed = feeding.join().expect("the feeder does not panic");
        match (ended, fed) {
            (Ok(()), Ok(fed)) => Ok(fed),
            // Called off because the feeder failed.
            (Err(MediaError::Cancelled), Err(error)) if !cancel.is_cancelled() => Err(error),
            (Err(error), _) => Err(error.into()),
            (Ok(()), Err(error)) => Err(error),
        }
    })
}

fn built(output: Output, path: &Path, pipelines: &Pipelines) -> Result<Pipeline, MediaError> {
    let folder = pipelines.dir.as_deref();
    let mut text = fragment::load("compose-mp4", folder)?.text;
    for (there, name) in [(output.video.is_some(), "compose-video"), (output.audio, "compose-audio")] {
        if there {
            text.push('\n');
            text.push_str(&fragment::load(name, folder)?.text);
        }
    }
    let pipeline = Pipeline::parse("compose-mp4", &text)?;
    if output.video.is_some() {
        limit(&pipeline, output)?;
    }
    pipeline.named::<gst::Element>("sink")?.set_property("location", path.to_string_lossy().as_ref());
    let mux = pipeline.named::<gst::Element>("mux")?;
    // Beside the file: the folder for temporary files may be small.
    if mux.has_property("faststart-file") {
        mux.set_property("faststart-file", path.with_extension("media").to_string_lossy().as_ref());
    }
    Ok(pipeline)
}

/// Tells the encoder what the archive asks for, as far as it has such properties: x264enc's. Another encoder's fragment
/// says it in its own way.
fn limit(pipeline: &Pipeline, output: Output) -> Result<(), MediaError> {
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

fn video(pipeline: &Pipeline, output: Output) -> Result<Option<(AppSrc, VideoInfo)>, MediaError> {
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

fn audio(pipeline: &Pipeline, output: Output) -> Result<Option<AppSrc>, MediaError> {
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
