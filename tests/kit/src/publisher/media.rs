//! Coded pictures and sound, encoded once a machine: a loop is kept in the folder for temporary files.

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use anyhow::{Context, Result};
use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_app::{AppSink, AppSrc};

use crate::shared::fnv;

/// Pictures a second.
pub const FPS: u32 = 30;
/// Length of the loop in seconds; numbers begin again after it.
pub const LOOP_SECONDS: u32 = 64;
/// A keyframe comes so often, in pictures.
pub const KEYFRAME_EVERY: u32 = 30;
/// Cells of a picture: the first two rows carry its number and the complement, the next two the publisher's code.
pub const COLUMNS: u32 = 16;
/// Rows of cells.
pub const ROWS: u32 = 12;
/// Pitch of second 0 in Hz.
pub const PITCH: f64 = 500.0;
/// Added a second, in Hz.
pub const PITCH_STEP: f64 = 50.0;
/// Length of a beep in seconds.
pub const BEEP: f64 = 0.1;

/// A picture's codec.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum VideoCodec {
    Vp8,
    Vp9,
    H264,
    Av1,
}

/// How H.264 is coded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum H264Kind {
    /// As most browsers send it.
    #[default]
    ConstrainedBaseline,
    /// The same pictures, announced as baseline.
    Baseline,
    /// CABAC and transforms of 8x8, without B-frames.
    ConstrainedHigh,
    /// The same with the encoder's looking ahead, announced as high.
    High,
    /// High, with so many B-frames between others: what is sent is not in the order in which it is shown.
    BFrames(u8),
}

impl H264Kind {
    /// `profile-level-id` of the offer (RFC 6184 section 8.1); the library's own list without one.
    #[must_use]
    pub const fn profile_level_id(self) -> Option<u32> {
        match self {
            Self::ConstrainedBaseline => None,
            Self::Baseline => Some(0x42_001f),
            Self::ConstrainedHigh => Some(0x64_0c1f),
            Self::High | Self::BFrames(_) => Some(0x64_001f),
        }
    }

    fn encoder(self, kilobits: u32, distance: u32) -> String {
        let bidirectional;
        let (settings, profile) = match self {
            Self::ConstrainedBaseline => ("speed-preset=ultrafast tune=zerolatency", "constrained-baseline"),
            Self::Baseline => ("speed-preset=ultrafast tune=zerolatency", "baseline"),
            // x264enc has no name for it: high without B-frames and interlacing is constrained high.
            Self::ConstrainedHigh => ("speed-preset=veryfast tune=zerolatency", "high"),
            Self::High => ("speed-preset=veryfast bframes=0 rc-lookahead=5", "high"),
            Self::BFrames(between) => {
                bidirectional = format!("speed-preset=veryfast bframes={between} b-adapt=false b-pyramid=true");
                (bidirectional.as_str(), "high")
            }
        };
        format!(
            "x264enc {settings} key-int-max={distance} bitrate={kilobits} ! video/x-h264,profile={profile},stream-format=byte-stream,alignment=au"
        )
    }
}

/// How a picture is coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct VideoCoding {
    /// The codec.
    pub codec: VideoCodec,
    /// How it is coded if it is H.264.
    pub h264: H264Kind,
    /// Width and height.
    pub size: (u32, u32),
    /// The publisher's code.
    pub code: u16,
    /// Bits a second, in thousands.
    pub kilobits: u32,
    /// Pictures a second.
    pub fps: u32,
}

impl VideoCoding {
    /// The encoder with its settings, and a keyframe at least every `distance` pictures.
    pub(super) fn encoder(&self, distance: u32) -> String {
        match self.codec {
            VideoCodec::H264 => self.h264.encoder(self.kilobits, distance),
            codec => codec.encoder(self.kilobits, distance),
        }
    }

    /// What the encoder is given.
    pub(super) fn caps(&self) -> String {
        let (width, height) = self.size;
        format!("video/x-raw,format=I420,width={width},height={height},framerate={}/1", self.fps)
    }
}

/// How a sound is coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AudioCoding {
    /// The codec.
    pub codec: AudioCodec,
    /// Two channels, for Opus.
    pub stereo: bool,
    /// Each packet has a copy of the one before it, for Opus (RFC 6716 section 2.1.7).
    pub fec: bool,
}

impl AudioCoding {
    fn encoder(&self) -> String {
        let fec = if self.fec { " inband-fec=true packet-loss-percentage=20" } else { "" };
        match self.codec {
            AudioCodec::Opus => format!("opusenc frame-size=20 bitrate=32000 audio-type=voice dtx=false{fec}"),
            AudioCodec::Pcmu | AudioCodec::G722 => "mulawenc".to_owned(),
            AudioCodec::Pcma => "alawenc".to_owned(),
        }
    }
}

/// A sound's codec.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum AudioCodec {
    Opus,
    Pcmu,
    Pcma,
    /// The payload is that of PCMU: nobody here decodes it.
    G722,
}

impl VideoCodec {
    /// Janus's name for it.
    #[must_use]
    pub const fn janus(self) -> &'static str {
        match self {
            Self::Vp8 => "vp8",
            Self::Vp9 => "vp9",
            Self::H264 => "h264",
            Self::Av1 => "av1",
        }
    }

    /// The encoder with its settings: so many kbit/s, and a keyframe at least every `distance` pictures.
    pub(super) fn encoder(self, kilobits: u32, distance: u32) -> String {
        let bits = kilobits * 1000;
        match self {
            Self::Vp8 => format!(
                "vp8enc deadline=1 cpu-used=8 keyframe-max-dist={distance} target-bitrate={bits} lag-in-frames=0 end-usage=cbr error-resilient=default"
            ),
            Self::Vp9 => format!(
                "vp9enc deadline=1 cpu-used=8 keyframe-max-dist={distance} target-bitrate={bits} lag-in-frames=0"
            ),
            Self::H264 => H264Kind::default().encoder(kilobits, distance),
            Self::Av1 => format!(
                "av1enc usage-profile=realtime cpu-used=10 keyframe-max-dist={distance} target-bitrate={kilobits} lag-in-frames=0 ! av1parse ! video/x-av1,stream-format=obu-stream,alignment=tu"
            ),
        }
    }
}

impl AudioCodec {
    /// Janus's name for it.
    #[must_use]
    pub const fn janus(self) -> &'static str {
        match self {
            Self::Opus => "opus",
            Self::Pcmu => "pcmu",
            Self::Pcma => "pcma",
            Self::G722 => "g722",
        }
    }

    /// RTP clock rate in Hz, which is also the sample rate here.
    #[must_use]
    pub const fn rate(self) -> u32 {
        match self {
            Self::Opus => 48_000,
            Self::Pcmu | Self::Pcma | Self::G722 => 8_000,
        }
    }
}

/// A coded picture, or 20 ms of sound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coded {
    /// What is sent.
    pub data: Vec<u8>,
    /// Whether a decoder can begin here.
    pub is_key: bool,
    /// Its place in the order in which the loop is shown. The loop has the order in which it is decoded.
    pub shown: u32,
}

/// An encoded loop.
pub type Loop = Arc<Vec<Coded>>;

static LOOPS: LazyLock<Mutex<HashMap<String, Loop>>> = LazyLock::new(Mutex::default);

fn cached(key: String, make: impl FnOnce() -> Result<Vec<Coded>>) -> Result<Loop> {
    let mut loops = LOOPS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = loops.get(&key) {
        return Ok(Arc::clone(found));
    }
    let found = Arc::new(on_disk(&key, make)?);
    loops.insert(key, Arc::clone(&found));
    Ok(found)
}

/// Reads a loop that any process has encoded, or encodes it while the others wait.
fn on_disk(key: &str, make: impl FnOnce() -> Result<Vec<Coded>>) -> Result<Vec<Coded>> {
    // Another version of this file encodes another loop.
    let name = format!("{:016x}", fnv(format!("{key}{}", include_str!("media.rs")).as_bytes()));
    let folder = std::env::temp_dir().join("archiver-tests/loops");
    std::fs::create_dir_all(&folder)?;
    let lock = File::create(folder.join(format!("{name}.lock")))?;
    lock.lock()?;
    let file = folder.join(name);
    if let Some(found) = std::fs::read(&file).ok().as_deref().and_then(unpacked) {
        return Ok(found);
    }
    let made = make()?;
    let new = file.with_extension("new");
    std::fs::write(&new, packed(&made))?;
    std::fs::rename(new, file)?;
    Ok(made)
}

/// A loop as bytes: of each frame its length and its place (32 bits each, little endian), whether it is a keyframe (a byte), and
/// its data.
fn packed(frames: &[Coded]) -> Vec<u8> {
    let mut out = Vec::new();
    for Coded { data, is_key, shown } in frames {
        let length = u32::try_from(data.len()).expect("a frame is small");
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&shown.to_le_bytes());
        out.push(u8::from(*is_key));
        out.extend_from_slice(data);
    }
    out
}

fn unpacked(mut bytes: &[u8]) -> Option<Vec<Coded>> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let (shown, rest) = rest.split_first_chunk::<4>()?;
        let (key, rest) = rest.split_first()?;
        let (data, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        frames.push(Coded { data: data.to_vec(), is_key: *key != 0, shown: u32::from_le_bytes(*shown) });
        bytes = rest;
    }
    (!frames.is_empty()).then_some(frames)
}

/// The pictures of a publisher.
///
/// # Errors
/// When GStreamer lacks the encoder.
pub fn video(coding: VideoCoding) -> Result<Loop> {
    cached(format!("{coding:?}"), || {
        let VideoCoding { size, code, fps, .. } = coding;
        let frames = (0..fps * LOOP_SECONDS).map(move |n| picture(size, n, code));
        encode(&coding.caps(), &coding.encoder(KEYFRAME_EVERY), frames, u64::from(1_000_000_000 / fps))
    })
}

/// The sound of all publishers.
///
/// # Errors
/// When GStreamer lacks the encoder.
pub fn audio(coding: AudioCoding) -> Result<Loop> {
    cached(format!("{coding:?}"), || {
        let (rate, channels) = (coding.codec.rate(), if coding.stereo { 2 } else { 1 });
        let caps = format!("audio/x-raw,format=S16LE,layout=interleaved,channels={channels},rate={rate}");
        let packets = (0..LOOP_SECONDS * 50).map(move |n| {
            let mono = samples(rate, n * rate / 50, rate / 50);
            if channels == 1 { mono } else { mono.chunks_exact(2).flat_map(|sample| sample.repeat(2)).collect() }
        });
        encode(&caps, &coding.encoder(), packets, 20_000_000)
    })
}

/// A picture with its number and the publisher's code in cells, and something that moves below. I420 as GStreamer has it: lines of
/// whole words, and planes for an even number of lines.
#[must_use]
pub fn picture((width, height): (u32, u32), number: u32, code: u16) -> Vec<u8> {
    let (stride, lines) = (width.next_multiple_of(4), height.next_multiple_of(2));
    let chroma = width.div_ceil(2).next_multiple_of(4) * (lines / 2);
    let mut data = vec![128_u8; (stride * lines + 2 * chroma) as usize];
    let rows = [number & 0xffff, !number & 0xffff, u32::from(code), u32::from(!code)];
    let cells = |bits: &u32| -> Vec<u8> {
        (0..width).map(|x| if bits >> (x * COLUMNS / width) & 1 == 1 { 235 } else { 16 }).collect()
    };
    let cells: Vec<Vec<u8>> = rows.iter().map(cells).collect();
    // A line of what moves is the line above it, one pixel on. Whole lines are copied: a test's build is slow with pixels.
    let moves: Vec<u8> = (0..width + 240).map(|at| 60 + u8::try_from(at / 2 % 120).unwrap_or(0)).collect();
    for (y, line) in (0..height).zip(data.chunks_exact_mut(stride as usize)) {
        let first = ((y + number * 3) % 240) as usize;
        let moving = &moves[first..first + width as usize];
        line[..width as usize].copy_from_slice(cells.get((y * ROWS / height) as usize).map_or(moving, Vec::as_slice));
    }
    data
}

#[allow(clippy::cast_possible_truncation)]
/// Samples of the sound, 16 bits little endian: from the `first` on, `count` of them, at `rate` Hz.
#[must_use]
pub fn samples(rate: u32, first: u32, count: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(count as usize * 2);
    for n in first..first + count {
        let (second, at) = (n / rate, f64::from(n % rate) / f64::from(rate));
        let pitch = PITCH + PITCH_STEP * f64::from(second);
        let value = if at < BEEP { (at * pitch * std::f64::consts::TAU).sin() * 12_000.0 } else { 0.0 };
        out.extend_from_slice(&(value as i16).to_le_bytes());
    }
    out
}

#[allow(clippy::disallowed_methods)]
fn encode(
    caps: &str,
    encoder: &str,
    input: impl Iterator<Item = Vec<u8>> + Send + 'static,
    step_ns: u64,
) -> Result<Vec<Coded>> {
    gst::init()?;
    let text =
        format!("appsrc name=in format=time caps=\"{caps}\" block=true ! {encoder} ! appsink name=out sync=false");
    let pipeline = gst::parse::launch(&text)?.downcast::<gst::Pipeline>().ok().context("no pipeline")?;
    let source = pipeline.by_name("in").and_then(|e| e.downcast::<AppSrc>().ok()).context("no appsrc")?;
    let sink = pipeline.by_name("out").and_then(|e| e.downcast::<AppSink>().ok()).context("no appsink")?;
    pipeline.set_state(gst::State::Playing)?;
    let feeder = std::thread::spawn(move || {
        for (n, data) in (0_u64..).zip(input) {
            let mut buffer = gst::Buffer::from_mut_slice(data);
            if let Some(buffer) = buffer.get_mut() {
                buffer.set_pts(gst::ClockTime::from_nseconds(n * step_ns));
                buffer.set_duration(gst::ClockTime::from_nseconds(step_ns));
            }
            if source.push_buffer(buffer).is_err() {
                return;
            }
        }
        source.end_of_stream().map(drop).unwrap_or_default();
    });
    let mut out = Vec::new();
    while let Ok(sample) = sink.pull_sample() {
        let buffer = sample.buffer().context("no buffer")?;
        let is_key = !buffer.flags().contains(gst::BufferFlags::DELTA_UNIT);
        let at = buffer.pts().context("no time")?.nseconds();
        out.push((at, Coded { data: buffer.map_readable()?.to_vec(), is_key, shown: 0 }));
    }
    pipeline.set_state(gst::State::Null)?;
    feeder.join().ok().context("the feeder panicked")?;
    // Encoders may move all times by one value.
    let mut times: Vec<u64> = out.iter().map(|(at, _)| *at).collect();
    times.sort_unstable();
    let place = |at: u64| u32::try_from(times.partition_point(|other| *other < at)).unwrap_or(u32::MAX);
    Ok(out.into_iter().map(|(at, coded)| Coded { shown: place(at), ..coded }).collect())
}
