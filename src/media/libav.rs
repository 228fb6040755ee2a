//! Decoding by libavcodec itself, in the calling thread. GStreamer's elements around it copy each picture, because they
//! make writable what they hold mapped (`gst_video_decoder_finish_frame` of 1.22): a fourteenth of what composing costs.

use std::sync::{LazyLock, Once};

use ac_ffmpeg::codec::audio::{self, AudioFrame, SampleFormat};
use ac_ffmpeg::codec::video::{self, PixelFormat, VideoFrame};
use ac_ffmpeg::codec::{CodecError, Decoder};
use ac_ffmpeg::packet::{Packet, PacketMut};
use ac_ffmpeg::time::TimeBase;

use super::MediaError;
use super::plane::Plane;
use crate::model::media::{Codec, Frame, TrackFormat};
use crate::model::time::MediaTime;

/// What the fragments call it.
pub(super) const NAME: &str = "libavcodec";

/// The decoder of a codec, as libavcodec calls it; none where GStreamer's elements do as well.
const fn decoder_of(codec: Codec) -> Option<&'static str> {
    match codec {
        Codec::Vp8 => Some("vp8"),
        Codec::Vp9 => Some("vp9"),
        Codec::H264 => Some("h264"),
        Codec::Opus => Some("opus"),
        Codec::Av1 | Codec::Pcmu | Codec::Pcma => None,
    }
}

fn failed(what: &str) -> MediaError {
    MediaError::Element { element: NAME.to_owned(), what: what.to_owned() }
}

/// The decoder's name, when libavcodec decodes this format.
fn decoder_for(format: &TrackFormat) -> Result<&'static str, MediaError> {
    redirect_log();
    decoder_of(format.codec).ok_or_else(|| failed(&format!("it is not asked to decode {}", format.codec.as_str())))
}

/// Writes libavcodec's messages to the log, at level debug: its calls return the errors as well.
fn redirect_log() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        ac_ffmpeg::set_log_callback(|level, text| {
            if level <= WARNING {
                tracing::debug!("libav: {}", text.trim_end());
            }
        });
    });
}

/// `AV_LOG_WARNING` of libavutil.
const WARNING: i32 = 24;

/// The time base of packets: media time as it is.
const NANOSECONDS: TimeBase = TimeBase::new(1, 1_000_000_000);

fn packet(frame: &Frame) -> Packet {
    let mut packet = PacketMut::new(frame.data.len()).with_time_base(NANOSECONDS);
    packet.data_mut().copy_from_slice(&frame.data);
    packet.with_raw_pts(frame.pts.0).with_key_flag(frame.keyframe).freeze()
}

/// Everything a decoder has for a packet.
fn decode<D: Decoder>(decoder: &mut D, frame: &Frame) -> Result<Vec<D::Frame>, MediaError> {
    if frame.data.is_empty() {
        // To libavcodec that is the end.
        return Ok(Vec::new());
    }
    let what = |error: CodecError| failed(&error.to_string());
    decoder.try_push(packet(frame)).map_err(what)?;
    take_all(decoder)
}

fn take_all<D: Decoder>(decoder: &mut D) -> Result<Vec<D::Frame>, MediaError> {
    let mut out = Vec::with_capacity(1);
    while let Some(frame) = decoder.take().map_err(|e| failed(&e.to_string()))? {
        out.push(frame);
    }
    Ok(out)
}

/// Decodes pictures.
pub(super) struct VideoDecoder(video::VideoDecoder);

impl VideoDecoder {
    /// One thread, so that each picture comes out as its frame goes in, or as soon as the order of pictures allows.
    pub fn new(format: &TrackFormat) -> Result<Self, MediaError> {
        let builder = video::VideoDecoder::builder(decoder_for(format)?).map_err(|e| failed(&e.to_string()))?;
        let private = Some(&format.codec_private).filter(|private| !private.is_empty());
        let decoder = builder.time_base(NANOSECONDS).set_option("threads", 1).extradata(private).build();
        decoder.map(Self).map_err(|e| failed(&e.to_string()))
    }

    /// Decodes a frame. Returns the pictures that can be shown now, with the times of their frames.
    pub fn decode(&mut self, frame: &Frame) -> Result<Vec<(VideoFrame, MediaTime)>, MediaError> {
        let pictures = decode(&mut self.0, frame)?;
        Ok(pictures.into_iter().map(|picture| with_time(picture, frame.pts)).collect())
    }

    /// The pictures that it still holds.
    pub fn finish(&mut self) -> Result<Vec<(VideoFrame, MediaTime)>, MediaError> {
        self.0.try_flush().map_err(|e| failed(&e.to_string()))?;
        Ok(take_all(&mut self.0)?.into_iter().map(|picture| with_time(picture, MediaTime::ZERO)).collect())
    }
}

/// A picture without a time has that of the frame which went in.
fn with_time(picture: VideoFrame, at: MediaTime) -> (VideoFrame, MediaTime) {
    let pts = picture.pts();
    let pts = if pts.is_null() { at } else { MediaTime(pts.timestamp()) };
    (picture, pts)
}

/// Whether a picture has a plane of luma, and two of chroma of half its width and height, eight bits each.
pub(super) fn is_planar(picture: &VideoFrame) -> bool {
    static PLANAR: LazyLock<Vec<PixelFormat>> =
        LazyLock::new(|| ["yuv420p", "yuvj420p"].iter().filter_map(|name| name.parse().ok()).collect());
    PLANAR.contains(&picture.pixel_format())
}

/// Calls `look` with a plane of a planar frame.
pub(super) fn with_plane<T>(picture: &VideoFrame, n: usize, look: impl FnOnce(Plane<'_>) -> T) -> T {
    let (planes, shift) = (picture.planes(), usize::from(n > 0));
    let (width, height) = ((picture.width() + shift) >> shift, (picture.height() + shift) >> shift);
    look(Plane { data: planes[n].data(), stride: planes[n].line_size(), width, height })
}

/// Decodes Opus.
pub(super) struct AudioDecoder(audio::AudioDecoder);

impl AudioDecoder {
    pub fn new(format: &TrackFormat) -> Result<Self, MediaError> {
        let builder = audio::AudioDecoder::builder(decoder_for(format)?).map_err(|e| failed(&e.to_string()))?;
        // The encoder's look-ahead stays in: the caller, which places the samples, removes it, also where a decoder begins in
        // the middle.
        let decoder = builder.set_option("flags2", "+skip_manual").extradata(Some(&format.codec_private)).build();
        decoder.map(Self).map_err(|e| failed(&e.to_string()))
    }

    /// Decodes a packet, and adds its samples: left and right in turn.
    pub fn decode(&mut self, frame: &Frame, samples: &mut Vec<f32>) -> Result<(), MediaError> {
        for sound in decode(&mut self.0, frame)? {
            interleave(&sound, samples)?;
        }
        Ok(())
    }
}

/// libavcodec gives one plane of numbers for each channel; of one channel both sides are the same.
fn interleave(sound: &AudioFrame, samples: &mut Vec<f32>) -> Result<(), MediaError> {
    let planar = "fltp".parse().is_ok_and(|format: SampleFormat| sound.sample_format() == format);
    let channels = sound.channel_layout().channels();
    if !planar || sound.sample_rate() != super::SAMPLE_RATE || !(1..=2).contains(&channels) {
        return Err(failed("its sound is not of 48 kHz, in one or two channels"));
    }
    let planes = sound.planes();
    let plane = |n: usize| planes[n].data().as_chunks::<4>().0.iter().take(sound.samples());
    let (left, right) = (plane(0), plane(usize::from(channels == 2)));
    samples.extend(left.zip(right).flat_map(|(l, r)| [f32::from_ne_bytes(*l), f32::from_ne_bytes(*r)]));
    Ok(())
}
