//! H.264 as other senders send it: access units with parameter sets in them, and with other ids.

use archiver::model::ids::TrackKind;
use archiver::model::media::{Codec, Frame, TrackFormat};
use archiver::model::time::MediaTime;
use archiver::rtp::depacketize::Depacketizer;
use archiver_testkit::publisher::media::{Coded, FPS, VideoCoding, video};
use archiver_testkit::publisher::{H264Kind, VideoCodec};
use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_app::AppSink;

/// From one picture of a publisher to the next, in nanoseconds.
pub const STEP: i64 = 1_000_000_000 / FPS as i64;

/// One picture: its time, and its NAL units with their parameter sets.
#[derive(Clone)]
pub struct AccessUnit {
    pub pts: MediaTime,
    pub units: Vec<Vec<u8>>,
}

impl AccessUnit {
    pub fn is_keyframe(&self) -> bool {
        self.units.iter().any(|unit| unit[0] & 0x1f == 5)
    }
}

/// What an encoder makes of `source`, from media time zero.
pub fn access_units(source: &str, encoder: &str) -> Vec<AccessUnit> {
    gst::init().expect("gstreamer");
    let caps = "video/x-h264,stream-format=byte-stream,alignment=au";
    let pipeline = gst::parse::launch(&format!("{source} ! {encoder} ! {caps} ! appsink name=out sync=false"));
    let pipeline = pipeline.expect("encoder").downcast::<gst::Pipeline>().expect("pipeline");
    let sink = pipeline.by_name("out").and_then(|e| e.downcast::<AppSink>().ok()).expect("sink");
    pipeline.set_state(gst::State::Playing).expect("playing");
    let mut all = Vec::new();
    let mut first = None;
    while let Some(sample) = sink.try_pull_sample(gst::ClockTime::from_seconds(20)) {
        let buffer = sample.buffer().expect("buffer");
        let pts = i64::try_from(buffer.pts().expect("pts").nseconds()).expect("small");
        let pts = MediaTime(pts - *first.get_or_insert(pts));
        all.push(AccessUnit { pts, units: split(&buffer.map_readable().expect("map")) });
    }
    pipeline.set_state(gst::State::Null).expect("null");
    assert!(!all.is_empty());
    all
}

/// The first pictures of a publisher, numbered, in decoding order, each at its place in presentation.
pub fn published_units(b_frames: u8, pictures: usize) -> Vec<AccessUnit> {
    let h264 = if b_frames > 0 { H264Kind::BFrames(b_frames) } else { H264Kind::default() };
    let coding = VideoCoding { codec: VideoCodec::H264, h264, size: (320, 240), code: 1, kilobits: 400, fps: FPS };
    let unit = |coded: &Coded| AccessUnit { pts: MediaTime(i64::from(coded.shown) * STEP), units: split(&coded.data) };
    video(coding).expect("loop")[..pictures].iter().map(unit).collect()
}

/// The NAL units between start codes.
fn split(bytes: &[u8]) -> Vec<Vec<u8>> {
    let starts: Vec<usize> = (0..bytes.len().saturating_sub(2)).filter(|at| bytes[*at..at + 3] == [0, 0, 1]).collect();
    let ends = starts.iter().skip(1).copied().chain([bytes.len()]);
    let unit = |(start, end): (&usize, usize)| {
        let unit = &bytes[start + 3..end];
        let len = unit.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
        unit[..len].to_vec()
    };
    starts.iter().zip(ends).map(unit).collect()
}

/// The formats and frames that the depacketizer makes of access units; one NAL unit a packet.
pub fn depacketized(units: &[AccessUnit]) -> Vec<(Option<TrackFormat>, Frame)> {
    let mut depacketizer = Depacketizer::new(Codec::H264);
    assert_eq!(Codec::H264.kind(), TrackKind::Video);
    let frame = |unit: &AccessUnit| {
        let payloads: Vec<&[u8]> = unit.units.iter().map(Vec::as_slice).collect();
        let frame = depacketizer.assemble(&payloads).expect("a frame");
        (frame.format, Frame { pts: unit.pts, duration: None, keyframe: frame.keyframe, data: frame.data.into() })
    };
    units.iter().map(frame).collect()
}

/// Gives the parameter sets of each keyframe, and the slices that refer to them, other ids, as OpenH264 counts them. The stream must be
/// CAVLC: slices are shifted by single bits.
pub fn count_ids(units: &mut [AccessUnit]) {
    let mut keyframes = 0;
    for unit in units {
        keyframes += u32::from(unit.is_keyframe());
        let (sps, pps) = ((keyframes - 1) % 32, (keyframes - 1) % 57);
        for nal in &mut unit.units {
            match nal[0] & 0x1f {
                7 => *nal = renumbered(nal, 4, &[Id::New(sps)]),
                8 => *nal = renumbered(nal, 1, &[Id::New(pps), Id::New(sps)]),
                1 | 5 => *nal = renumbered(nal, 1, &[Id::Kept, Id::Kept, Id::New(pps)]),
                _ => {}
            }
        }
    }
}

/// An Exp-Golomb code: kept, or replaced.
enum Id {
    Kept,
    New(u32),
}

/// Replaces the codes after the first `head` bytes.
fn renumbered(nal: &[u8], head: usize, ids: &[Id]) -> Vec<u8> {
    let mut plain = Vec::new();
    for (at, byte) in nal.iter().enumerate() {
        if !(*byte == 3 && at >= 2 && nal[at - 1] == 0 && nal[at - 2] == 0) {
            plain.push(*byte);
        }
    }
    let bits: Vec<bool> =
        plain[head..].iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1 == 1)).collect();
    // The last bit that is set ends the unit.
    let end = bits.iter().rposition(|bit| *bit).expect("a stop bit") + 1;
    let (mut out, mut at) = (Vec::new(), 0);
    for id in ids {
        let zeros = bits[at..].iter().take_while(|bit| !**bit).count();
        let code = &bits[at..=at + 2 * zeros];
        at += code.len();
        match id {
            Id::Kept => out.extend_from_slice(code),
            Id::New(value) => {
                let text = format!("{:b}", value + 1);
                out.extend(std::iter::repeat_n(false, text.len() - 1));
                out.extend(text.chars().map(|bit| bit == '1'));
            }
        }
    }
    out.extend_from_slice(&bits[at..end]);
    let byte = |bits: &[bool]| (0..8).fold(0, |byte, at| byte << 1 | u8::from(*bits.get(at).unwrap_or(&false)));
    let mut escaped = nal[..head].to_vec();
    for byte in out.chunks(8).map(byte) {
        if byte <= 3 && escaped.ends_with(&[0, 0]) {
            escaped.push(3);
        }
        escaped.push(byte);
    }
    escaped
}
