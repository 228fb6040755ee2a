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

    /// The encoder with its settings: so many kbit/s, and a keyframe at least every `distance` pictures. With `b_frames`, H.264 has so
    /// many of them between two other pictures.
    pub(super) fn encoder(self, kilobits: u32, distance: u32, b_frames: u32) -> String {
        let bits = kilobits * 1000;
        match self {
            Self::H264 if b_frames > 0 => format!(
                "x264enc speed-preset=veryfast bframes={b_frames} b-adapt=false b-pyramid=true key-int-max={distance} bitrate={kilobits} ! video/x-h264,profile=high,stream-format=byte-stream,alignment=au"
            ),
            Self::Vp8 => format!(
                "vp8enc deadline=1 cpu-used=8 keyframe-max-dist={distance} target-bitrate={bits} lag-in-frames=0 end-usage=cbr error-resilient=default"
            ),
            Self::Vp9 => format!(
                "vp9enc deadline=1 cpu-used=8 keyframe-max-dist={distance} target-bitrate={bits} lag-in-frames=0"
            ),
            Self::H264 => format!(
                "x264enc speed-preset=ultrafast tune=zerolatency key-int-max={distance} bitrate={kilobits} ! video/x-h264,profile=constrained-baseline,stream-format=byte-stream,alignment=au"
            ),
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

    const fn encoder(self) -> &'static str {
        match self {
            Self::Opus => "opusenc frame-size=20 bitrate=32000 audio-type=voice dtx=false",
            Self::Pcmu | Self::G722 => "mulawenc",
            Self::Pcma => "alawenc",
        }
    }
}

/// A coded picture or packet of sound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coded {
    /// Its place in the order of presentation. It differs from the place in the loop where pictures are reordered.
    pub number: u32,
    /// Whether a decoder can begin there.
    pub keyframe: bool,
    /// The coded bytes.
    pub data: Vec<u8>,
}

/// An encoded loop, in decoding order: a picture each 1/30 s, or sound each 20 ms.
pub type Loop = Arc<Vec<Coded>>;

type Key = (Option<VideoCodec>, Option<AudioCodec>, (u32, u32), u16, u32, u32);
static LOOPS: LazyLock<Mutex<HashMap<Key, Loop>>> = LazyLock::new(Mutex::default);

fn cached(key: Key, make: impl FnOnce() -> Result<Vec<Coded>>) -> Result<Loop> {
    let mut loops = LOOPS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = loops.get(&key) {
        return Ok(Arc::clone(found));
    }
    let found = Arc::new(on_disk(&key, make)?);
    loops.insert(key, Arc::clone(&found));
    Ok(found)
}

/// Reads a loop that any process has encoded, or encodes it while the others wait.
fn on_disk(key: &Key, make: impl FnOnce() -> Result<Vec<Coded>>) -> Result<Vec<Coded>> {
    // Another version of this file encodes another loop.
    let name = format!("{:016x}", fnv(format!("{key:?}{}", include_str!("media.rs")).as_bytes()));
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

/// A loop as bytes: of each frame its length and its number (32 bits each, little endian), whether it is a keyframe (a byte), and its data.
fn packed(frames: &[Coded]) -> Vec<u8> {
    let mut out = Vec::new();
    for Coded { number, keyframe, data } in frames {
        let length = u32::try_from(data.len()).expect("a frame is small");
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&number.to_le_bytes());
        out.push(u8::from(*keyframe));
        out.extend_from_slice(data);
    }
    out
}

fn unpacked(mut bytes: &[u8]) -> Option<Vec<Coded>> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let (number, rest) = rest.split_first_chunk::<4>()?;
        let (keyframe, rest) = rest.split_first()?;
        let (data, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        frames.push(Coded { number: u32::from_le_bytes(*number), keyframe: *keyframe != 0, data: data.to_vec() });
        bytes = rest;
    }
    (!frames.is_empty()).then_some(frames)
}

/// The pictures of a publisher with a code, at so many kbit/s, with so many B-frames between two other pictures.
///
/// # Errors
/// When GStreamer lacks the encoder.
pub fn video(codec: VideoCodec, size: (u32, u32), code: u16, kilobits: u32, b_frames: u32) -> Result<Loop> {
    cached((Some(codec), None, size, code, kilobits, b_frames), || {
        let caps = format!("video/x-raw,format=I420,width={},height={},framerate={FPS}/1", size.0, size.1);
        let frames = (0..FPS * LOOP_SECONDS).map(move |n| picture(size, n, code));
        let encoder = codec.encoder(kilobits, KEYFRAME_EVERY, b_frames);
        encode(&caps, &encoder, frames, u64::from(1_000_000_000 / FPS))
    })
}

/// The sound of all publishers.
///
/// # Errors
/// When GStreamer lacks the encoder.
pub fn audio(codec: AudioCodec) -> Result<Loop> {
    cached((None, Some(codec), (0, 0), 0, 0, 0), || {
        let rate = codec.rate();
        let caps = format!("audio/x-raw,format=S16LE,layout=interleaved,channels=1,rate={rate}");
        let packets = (0..LOOP_SECONDS * 50).map(move |n| samples(rate, n * rate / 50, rate / 50));
        encode(&caps, codec.encoder(), packets, 20_000_000)
    })
}

/// A picture with its number and the publisher's code in cells, and something that moves below.
#[must_use]
pub fn picture((width, height): (u32, u32), number: u32, code: u16) -> Vec<u8> {
    let luma = (width * height) as usize;
    let mut data = vec![128_u8; luma * 3 / 2];
    let rows = [number & 0xffff, !number & 0xffff, u32::from(code), u32::from(!code)];
    for y in 0..height {
        for x in 0..width {
            let (row, column) = (y * ROWS / height, x * COLUMNS / width);
            let value = match rows.get(row as usize) {
                Some(bits) if bits >> column & 1 == 1 => 235,
                Some(_) => 16,
                None => 60 + u8::try_from((x + y + number * 3) / 2 % 120).unwrap_or(0),
            };
            data[(y * width + x) as usize] = value;
        }
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
    let (mut out, mut first) = (Vec::new(), None);
    while let Ok(sample) = sink.pull_sample() {
        let buffer = sample.buffer().context("no buffer")?;
        let keyframe = !buffer.flags().contains(gst::BufferFlags::DELTA_UNIT);
        let at = buffer.pts().context("no time")?.nseconds();
        let since = at.saturating_sub(*first.get_or_insert(at));
        let number = u32::try_from((since + step_ns / 2) / step_ns)?;
        out.push(Coded { number, keyframe, data: buffer.map_readable()?.to_vec() });
    }
    pipeline.set_state(gst::State::Null)?;
    feeder.join().ok().context("the feeder panicked")?;
    Ok(out)
}
