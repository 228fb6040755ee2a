//! Decodes one track, frame by frame, in the calling thread: a frame's output is there when the call returns, so that the
//! same input always gives the same output. No queue, no thread, no clock.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_video::video_frame::Readable;
use gstreamer_video::{VideoFormat, VideoFrame, VideoFrameExt, VideoInfo};

use super::fragment::Fragment;
use super::mux::caps;
use super::plane::Plane;
use super::{MediaError, fragment, libav};
use crate::model::media::{Codec, Frame, TrackFormat};
use crate::model::time::MediaTime;
use crate::rtp::depacketize::h264;

/// Pictures that a decoder may hold because they are shown later, at most (ITU-T H.264 section A.3.1).
pub const REORDERED_MAX: usize = 16;

/// What came out of a decoder, and its caps at that moment.
type Decoded = (gst::Buffer, gst::Caps);

/// What the decoder's last pad has received.
#[derive(Default)]
struct Received {
    caps: Option<gst::Caps>,
    buffers: VecDeque<Decoded>,
}

/// A chain of elements that decodes one format. Operators choose its elements by the fragment `decode-<codec>`.
struct Decoder {
    name: String,
    bin: gst::Bin,
    bus: gst::Bus,
    /// Ours, that feeds the bin.
    source: gst::Pad,
    /// Ours, that the bin feeds.
    sink: gst::Pad,
    received: Arc<Mutex<Received>>,
    /// Whether frames come in another order than that of their times.
    may_reorder: bool,
}

/// The fragment that decodes a codec.
#[must_use]
pub const fn fragment_of(codec: Codec) -> &'static str {
    match codec {
        Codec::Vp8 => "decode-vp8",
        Codec::Vp9 => "decode-vp9",
        Codec::H264 => "decode-h264",
        Codec::Av1 => "decode-av1",
        Codec::Opus => "decode-opus",
        Codec::Pcmu => "decode-pcmu",
        Codec::Pcma => "decode-pcma",
    }
}

impl Decoder {
    fn new(format: &TrackFormat, fragment: &Fragment) -> Result<Self, MediaError> {
        super::init()?;
        let name = &fragment.name;
        let bad = |what: &str| MediaError::Fragment { name: name.clone(), what: what.to_owned() };
        #[allow(clippy::disallowed_methods)]
        let bin = gst::parse::bin_from_description(&fragment.text, true).map_err(|e| bad(e.message()))?;
        let (Some(into), Some(out)) = (bin.static_pad("sink"), bin.static_pad("src")) else {
            return Err(bad("it is not a chain of elements with one input and one output"));
        };
        let received = Arc::new(Mutex::new(Received::default()));
        let source = gst::Pad::builder(gst::PadDirection::Src).name("frames").build();
        let sink = sink(&received).map_err(|e| bad(&e.to_string()))?;
        let bus = gst::Bus::new();
        bin.set_bus(Some(&bus));
        let may_reorder = h264::may_reorder(format);
        let decoder = Self { name: name.clone(), bin, bus, source, sink, received, may_reorder };
        let linked = decoder.source.link(&into).is_ok() && out.link(&decoder.sink).is_ok();
        let active = decoder.source.set_active(true).is_ok() && decoder.sink.set_active(true).is_ok();
        if !linked || !active || decoder.bin.set_state(gst::State::Playing).is_err() {
            return Err(decoder.failed("it cannot be started"));
        }
        let segment = gst::FormattedSegment::<gst::ClockTime>::new();
        for event in [
            gst::event::StreamStart::new("track"),
            gst::event::Caps::new(&caps(format)),
            gst::event::Segment::new(&segment),
        ] {
            if !decoder.source.push_event(event) {
                return Err(decoder.failed("it does not take the format"));
            }
        }
        Ok(decoder)
    }

    /// Decodes a frame, and hands on what came out.
    fn decode(&self, frame: &Frame) -> Result<Vec<Decoded>, MediaError> {
        let mut buffer = gst::Buffer::from_slice(frame.data.clone());
        {
            let buffer = buffer.get_mut().expect("a new buffer is ours");
            // Times before the origin are none to GStreamer; only their order counts here.
            let at = gst::ClockTime::from_nseconds(frame.pts.0.max(0).cast_unsigned());
            buffer.set_pts(at);
            if !self.may_reorder {
                buffer.set_dts(at);
            }
            if !frame.keyframe {
                buffer.set_flags(gst::BufferFlags::DELTA_UNIT);
            }
        }
        let pushed = self.source.push(buffer);
        let mut received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        let out = received.buffers.drain(..).collect();
        drop(received);
        match pushed {
            Ok(_) => Ok(out),
            Err(error) => Err(self.failed(&error.to_string())),
        }
    }

    fn decode_video(&self, frame: &Frame) -> Result<Vec<DecodedFrame>, MediaError> {
        self.pictures(self.decode(frame)?, frame.pts)
    }

    /// Has the decoder hand on what it still holds.
    fn finish_video(&self) -> Result<Vec<DecodedFrame>, MediaError> {
        if !self.source.push_event(gst::event::Eos::new()) {
            return Err(self.failed("it does not take the end"));
        }
        let decoded = self.received.lock().unwrap_or_else(PoisonError::into_inner).buffers.drain(..).collect();
        self.pictures(decoded, MediaTime::ZERO)
    }

    /// Pictures without a time have that of the frame which went in.
    fn pictures(&self, decoded: Vec<Decoded>, at: MediaTime) -> Result<Vec<DecodedFrame>, MediaError> {
        let mut pictures = Vec::with_capacity(decoded.len());
        for (buffer, caps) in decoded {
            let time = buffer.pts().and_then(|pts| i64::try_from(pts.nseconds()).ok());
            let info = VideoInfo::from_caps(&caps).map_err(|e| self.failed(&e.to_string()))?;
            if info.format() != VideoFormat::I420 {
                return Err(self.failed("its pictures are not I420"));
            }
            let frame = VideoFrame::from_buffer_readable(buffer, &info);
            let frame = frame.map_err(|_| self.failed("its pictures cannot be read"))?;
            let pts = time.map_or(at, MediaTime);
            pictures.push(DecodedFrame { data: FrameData::Element(Box::new(frame)), pts });
        }
        Ok(pictures)
    }

    fn decode_audio(&self, frame: &Frame, samples: &mut Vec<f32>) -> Result<(), MediaError> {
        for (buffer, _) in self.decode(frame)? {
            let bytes = buffer.map_readable().map_err(|_| self.failed("its samples cannot be read"))?;
            let sample = |four: &[u8]| f32::from_le_bytes(four.try_into().expect("four bytes"));
            samples.extend(bytes.chunks_exact(4).map(sample));
        }
        Ok(())
    }

    /// The error of the bus, or else one with the text `what`.
    fn failed(&self, what: &str) -> MediaError {
        let message = self.bus.pop_filtered(&[gst::MessageType::Error]);
        message
            .and_then(|m| super::runner::message_error(&m))
            .unwrap_or_else(|| MediaError::Element { element: self.name.clone(), what: what.to_owned() })
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        let inactive = self.source.set_active(false).is_ok() & self.sink.set_active(false).is_ok();
        if self.bin.set_state(gst::State::Null).is_err() || !inactive {
            tracing::error!(name = self.name, "a decoder did not go to Null");
        }
    }
}

/// A decoded picture, as the decoder laid it out: I420.
pub struct DecodedFrame {
    data: FrameData,
    pts: MediaTime,
}

enum FrameData {
    Element(Box<VideoFrame<Readable>>),
    Libav(ac_ffmpeg::codec::video::VideoFrame),
}

impl DecodedFrame {
    /// The time of the frame that it was made of.
    #[must_use]
    pub const fn pts(&self) -> MediaTime {
        self.pts
    }

    /// Width and height in pixels.
    #[must_use]
    pub fn size(&self) -> (u32, u32) {
        let side = |pixels: usize| u32::try_from(pixels).unwrap_or(u32::MAX);
        match &self.data {
            FrameData::Element(frame) => (frame.info().width(), frame.info().height()),
            FrameData::Libav(frame) => (side(frame.width()), side(frame.height())),
        }
    }

    /// Calls `look` with luma (0) or one of the chroma planes (1, 2).
    ///
    /// # Errors
    /// When the decoder's buffer has no such plane.
    pub fn with_plane<T>(&self, n: usize, look: impl FnOnce(Plane<'_>) -> T) -> Result<T, MediaError> {
        let frame = match &self.data {
            FrameData::Element(frame) => frame,
            FrameData::Libav(frame) => return Ok(libav::with_plane(frame, n, look)),
        };
        let broken = |_| MediaError::Element { element: "decoder".to_owned(), what: format!("no plane {n}") };
        let plane = u32::try_from(n).unwrap_or(u32::MAX);
        let data = frame.plane_data(plane).map_err(broken)?;
        let stride = usize::try_from(frame.plane_stride()[n]).unwrap_or(0);
        let (width, height) = (frame.comp_width(plane) as usize, frame.comp_height(plane) as usize);
        Ok(look(Plane { data, stride, width, height }))
    }
}

/// Decodes pictures.
pub struct VideoDecoder {
    format: TrackFormat,
    fragment: Fragment,
    by: VideoBackend,
}

enum VideoBackend {
    Elements(Decoder),
    /// With the frames that went in before the first picture came out: elements need them, if they must take over.
    Libav(libav::VideoDecoder, Vec<Frame>),
}

impl VideoDecoder {
    /// A decoder for frames of this format.
    ///
    /// # Errors
    /// When an element is missing, or refuses the format.
    pub fn new(format: &TrackFormat, pipelines: Option<&Path>) -> Result<Self, MediaError> {
        let fragment = fragment::load(fragment_of(format.codec), pipelines)?;
        let by = if fragment.directly {
            VideoBackend::Libav(libav::VideoDecoder::new(format)?, Vec::new())
        } else {
            VideoBackend::Elements(Decoder::new(format, &fragment)?)
        };
        Ok(Self { format: format.clone(), fragment, by })
    }

    /// Decodes a frame. Pictures come out in the order of presentation. There may be none: not every frame is shown, and where frames are
    /// reordered, a picture comes out when a later frame goes in.
    ///
    /// # Errors
    /// When it cannot be decoded. The decoder should not be used any more then.
    pub fn decode(&mut self, frame: &Frame) -> Result<Vec<DecodedFrame>, MediaError> {
        let (decoder, before) = match &mut self.by {
            VideoBackend::Elements(decoder) => return decoder.decode_video(frame),
            VideoBackend::Libav(decoder, before) => (decoder, before),
        };
        let pictures = decoder.decode(frame)?;
        if pictures.iter().all(|(picture, _)| libav::is_planar(picture)) {
            match pictures.is_empty() {
                true if before.len() < REORDERED_MAX => before.push(frame.clone()),
                true => {}
                false => before.clear(),
            }
            return Ok(pictures.into_iter().map(of_libav).collect());
        }
        // They are converted by elements: from a keyframe on they have all that they need.
        let elements = Decoder::new(&self.format, &self.fragment)?;
        let mut converted = Vec::new();
        for frame in before.iter().chain([frame]) {
            converted.extend(elements.decode_video(frame)?);
        }
        self.by = VideoBackend::Elements(elements);
        Ok(converted)
    }

    /// The pictures that are still to come when no frame follows. The decoder must not be used any more then.
    ///
    /// # Errors
    /// When the decoder fails.
    pub fn finish(&mut self) -> Result<Vec<DecodedFrame>, MediaError> {
        match &mut self.by {
            VideoBackend::Elements(decoder) => decoder.finish_video(),
            VideoBackend::Libav(decoder, _) => Ok(decoder.finish()?.into_iter().map(of_libav).collect()),
        }
    }
}

fn of_libav((picture, pts): (ac_ffmpeg::codec::video::VideoFrame, MediaTime)) -> DecodedFrame {
    DecodedFrame { data: FrameData::Libav(picture), pts }
}

/// Decodes sound to two channels of 48 kHz.
pub struct AudioDecoder(AudioBackend);

enum AudioBackend {
    Elements(Decoder),
    Libav(libav::AudioDecoder),
}

impl AudioDecoder {
    /// A decoder for frames of this format.
    ///
    /// # Errors
    /// When an element is missing, or refuses the format.
    pub fn new(format: &TrackFormat, pipelines: Option<&Path>) -> Result<Self, MediaError> {
        let fragment = fragment::load(fragment_of(format.codec), pipelines)?;
        Ok(Self(if fragment.directly {
            AudioBackend::Libav(libav::AudioDecoder::new(format)?)
        } else {
            AudioBackend::Elements(Decoder::new(format, &fragment)?)
        }))
    }

    /// Decodes a packet, and adds its samples: left and right in turn.
    ///
    /// # Errors
    /// When it cannot be decoded. The decoder should not be used any more then.
    pub fn decode(&mut self, frame: &Frame, samples: &mut Vec<f32>) -> Result<(), MediaError> {
        match &mut self.0 {
            AudioBackend::Elements(decoder) => decoder.decode_audio(frame, samples),
            AudioBackend::Libav(decoder) => decoder.decode(frame, samples),
        }
    }
}

/// A pad that keeps what it receives.
fn sink(received: &Arc<Mutex<Received>>) -> Result<gst::Pad, gstreamer::glib::BoolError> {
    let (of_buffers, of_events) = (Arc::clone(received), Arc::clone(received));
    // Without a template a pad takes no other caps than its first ones: pictures change their size.
    let any = gst::Caps::new_any();
    let template = gst::PadTemplate::new("decoded", gst::PadDirection::Sink, gst::PadPresence::Always, &any)?;
    let pad = gst::Pad::builder_from_template(&template)
        .name("decoded")
        .chain_function(move |_, _, buffer| {
            let mut received = of_buffers.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(caps) = received.caps.clone() else { return Err(gst::FlowError::NotNegotiated) };
            received.buffers.push_back((buffer, caps));
            Ok(gst::FlowSuccess::Ok)
        })
        .event_function(move |_, _, event| {
            if let gst::EventView::Caps(caps) = event.view() {
                of_events.lock().unwrap_or_else(PoisonError::into_inner).caps = Some(caps.caps_owned());
            }
            true
        })
        .query_function(|pad, parent, query| match query.view_mut() {
            // Pictures with lines as long as the decoder likes are welcome: else it copies each of them.
            gst::QueryViewMut::Allocation(query) => {
                query.add_allocation_meta::<gstreamer_video::VideoMeta>(None);
                true
            }
            _ => gst::Pad::query_default(pad, parent, query),
        })
        .build();
    Ok(pad)
}
