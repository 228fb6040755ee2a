//! The senders of the matrix.

use archiver_testkit::chromium::ChromiumOptions;
use archiver_testkit::publisher::{AudioCodec, H264Kind, Options, VideoCodec};
use serde_json::{Value, json};

/// How a browser sends its picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layers {
    One,
    Simulcast,
    /// The name of the structure, such as `L3T3_KEY`.
    Svc(&'static str),
}

/// What makes the media.
#[derive(Debug, Clone, Copy)]
pub enum Source {
    /// A real Chromium.
    Browser(VideoCodec, Layers),
    /// GStreamer's encoders behind the kit's own connection, with these changes to its options.
    Kit(fn(&mut Options)),
}

/// A sender of the matrix.
#[derive(Debug, Clone, Copy)]
pub struct Sender {
    pub name: &'static str,
    pub source: Source,
    pub has_video: bool,
    /// Pictures are not sent in the order in which they are shown.
    pub has_b_frames: bool,
    /// Width and height.
    pub size: (u32, u32),
    /// The size that the picture changes to. It has the same shape, so that it is at the same place in the composed file.
    pub other_size: (u32, u32),
}

const fn browser(name: &'static str, codec: VideoCodec, layers: Layers) -> Sender {
    let source = Source::Browser(codec, layers);
    Sender { name, source, has_video: true, has_b_frames: false, size: (640, 480), other_size: (480, 360) }
}

const fn kit(name: &'static str, change: fn(&mut Options)) -> Sender {
    let source = Source::Kit(change);
    Sender { name, source, has_video: true, has_b_frames: false, size: (320, 240), other_size: (480, 360) }
}

const fn heard(name: &'static str, change: fn(&mut Options)) -> Sender {
    Sender { has_video: false, ..kit(name, change) }
}

const fn of_size(sender: Sender, size: (u32, u32), other_size: (u32, u32)) -> Sender {
    Sender { size, other_size, ..sender }
}

fn h264(options: &mut Options, kind: H264Kind) {
    (options.video, options.h264) = (Some(VideoCodec::H264), kind);
    // The others look ahead: they have no picture when it is due.
    options.live = matches!(kind, H264Kind::ConstrainedBaseline | H264Kind::Baseline | H264Kind::ConstrainedHigh);
}

/// All senders.
pub const SENDERS: &[Sender] = &[
    browser("chromium-vp8", VideoCodec::Vp8, Layers::One),
    browser("chromium-vp9", VideoCodec::Vp9, Layers::One),
    browser("chromium-h264", VideoCodec::H264, Layers::One),
    browser("chromium-av1", VideoCodec::Av1, Layers::One),
    browser("chromium-vp8-simulcast", VideoCodec::Vp8, Layers::Simulcast),
    browser("chromium-h264-simulcast", VideoCodec::H264, Layers::Simulcast),
    browser("chromium-vp9-svc", VideoCodec::Vp9, Layers::Svc("L3T3_KEY")),
    kit("h264-baseline", |options| h264(options, H264Kind::Baseline)),
    kit("h264-constrained-high", |options| h264(options, H264Kind::ConstrainedHigh)),
    kit("h264-high", |options| h264(options, H264Kind::High)),
    Sender { has_b_frames: true, ..kit("h264-b-frames", |options| h264(options, H264Kind::BFrames(2))) },
    kit("vp8-1fps", |options| options.fps = 1),
    kit("h264-5fps", |options| {
        h264(options, H264Kind::ConstrainedBaseline);
        options.fps = 5;
    }),
    kit("vp8-15fps", |options| options.fps = 15),
    kit("h264-60fps", |options| {
        h264(options, H264Kind::ConstrainedBaseline);
        options.fps = 60;
    }),
    of_size(kit("portrait", |_| ()), (240, 320), (360, 480)),
    // In VP8: the pictures of H.264's encoders here are of even sizes.
    of_size(kit("odd-size", |_| ()), (853, 481), (427, 241)),
    heard("opus-dtx", |options| options.dtx = true),
    heard("opus-fec", |options| options.fec = true),
    heard("opus-stereo", |options| options.stereo = true),
    heard("pcmu", |options| options.audio = Some(AudioCodec::Pcmu)),
    heard("pcma", |options| options.audio = Some(AudioCodec::Pcma)),
    heard("telephone-event", |options| options.telephone = true),
];

impl Sender {
    /// The options of the kit's publisher; none of a browser.
    pub fn kit_options(&self, mut options: Options) -> Option<Options> {
        let Source::Kit(change) = self.source else { return None };
        (options.size, options.live) = (self.size, true);
        change(&mut options);
        options.video = options.video.filter(|_| self.has_video);
        Some(options)
    }

    /// The options of a browser; none of the kit's publisher.
    pub fn browser_options(&self, options: ChromiumOptions) -> Option<ChromiumOptions> {
        let Source::Browser(codec, layers) = self.source else { return None };
        let svc = if let Layers::Svc(name) = layers { Some(name.to_owned()) } else { None };
        let simulcast = layers == Layers::Simulcast;
        Some(ChromiumOptions { codec, svc, simulcast, size: self.size, notes_coded: true, ..options })
    }

    /// A room that takes what is sent.
    pub fn room(&self, options: Option<&Options>) -> Value {
        let (video, audio) = match (self.source, options) {
            (Source::Browser(codec, _), _) => (Some(codec), Some(AudioCodec::Opus)),
            (_, Some(options)) => (options.video, options.audio),
            (Source::Kit(_), None) => (None, None),
        };
        let mut room = json!({ "audiocodec": audio.map_or("opus", AudioCodec::janus), "opus_fec": true });
        room["videocodec"] = json!(video.map_or("vp8", VideoCodec::janus));
        if let Some(profile) = options.and_then(|options| options.h264.profile_level_id()) {
            room["h264_profile"] = json!(format!("{profile:06x}"));
        }
        if matches!(self.source, Source::Browser(_, Layers::Svc(_))) {
            room["video_svc"] = json!(true);
        }
        room
    }
}
