//! Media as GStreamer's own encoders make it: formats and frames, as a log has them.

use archiver::model::media::{Codec, Frame, TrackFormat};
use archiver::model::time::MediaTime;
use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_app::AppSink;

pub const VIDEO: &str =
    "videotestsrc num-buffers=100 pattern=ball ! video/x-raw,width=320,height=240,framerate=25/1 ! ";
const AUDIO: &str = "audiotestsrc num-buffers=200 samplesperbuffer=960 ! audio/x-raw,rate=48000,channels=2 ! ";
const AUDIO8: &str = "audiotestsrc num-buffers=200 samplesperbuffer=160 ! audio/x-raw,rate=8000,channels=1 ! ";

/// Four seconds of a codec, made by GStreamer's own encoder.
pub fn coded(codec: Codec) -> (TrackFormat, Vec<Frame>) {
    let encoder = match codec {
        Codec::Vp8 => format!("{VIDEO}vp8enc deadline=1 keyframe-max-dist=25"),
        Codec::Vp9 => format!("{VIDEO}vp9enc deadline=1 cpu-used=8 keyframe-max-dist=25"),
        Codec::H264 => format!(
            "{VIDEO}x264enc tune=zerolatency speed-preset=ultrafast key-int-max=25 ! video/x-h264,stream-format=avc,alignment=au"
        ),
        Codec::Av1 => format!(
            "{VIDEO}av1enc cpu-used=8 usage-profile=realtime lag-in-frames=0 ! av1parse ! video/x-av1,stream-format=obu-stream,alignment=tu"
        ),
        Codec::Opus => format!("{AUDIO}opusenc frame-size=20"),
        Codec::Pcmu => format!("{AUDIO8}mulawenc"),
        Codec::Pcma => format!("{AUDIO8}alawenc"),
    };
    coded_by(codec, &encoder)
}

pub fn coded_by(codec: Codec, encoder: &str) -> (TrackFormat, Vec<Frame>) {
    gst::init().expect("gstreamer");
    let pipeline = gst::parse::launch(&format!("{encoder} ! appsink name=out sync=false")).expect("encoder");
    let pipeline = pipeline.downcast::<gst::Pipeline>().expect("pipeline");
    let sink = pipeline.by_name("out").and_then(|e| e.downcast::<AppSink>().ok()).expect("sink");
    pipeline.set_state(gst::State::Playing).expect("playing");
    let (mut frames, mut private, mut first) = (Vec::new(), Vec::new(), None);
    while let Some(sample) = sink.try_pull_sample(gst::ClockTime::from_seconds(20)) {
        if let Some(data) = sample.caps().and_then(|c| c.structure(0)?.get::<gst::Buffer>("codec_data").ok()) {
            private = data.map_readable().expect("codec data").to_vec();
        }
        let buffer = sample.buffer().expect("buffer");
        let pts = i64::try_from(buffer.pts().expect("pts").nseconds()).expect("small");
        let first = *first.get_or_insert(pts);
        frames.push(Frame {
            pts: MediaTime(pts - first),
            duration: None,
            keyframe: !buffer.flags().contains(gst::BufferFlags::DELTA_UNIT),
            data: buffer.map_readable().expect("map").to_vec().into(),
        });
    }
    pipeline.set_state(gst::State::Null).expect("null");
    let (width, height, channels) = match codec {
        Codec::Opus => (0, 0, 2),
        Codec::Pcmu | Codec::Pcma => (0, 0, 1),
        _ => (320, 240, 0),
    };
    if codec == Codec::Opus {
        private = b"OpusHead\x01\x02\x38\x01\x80\xbb\0\0\0\0\0".to_vec();
    }
    assert!(frames.len() >= 100, "{codec:?} {}", frames.len());
    (TrackFormat { codec, width, height, channels, codec_private: private }, frames)
}
