//! Media as the capture log has it: codecs, formats, frames, gaps, sender reports and counts.

use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::model::ids::{StreamId, TrackKind};
use crate::model::time::{MediaSpan, MediaTime, NtpTime};

/// What a stream shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum VideoType {
    /// A camera.
    #[default]
    Camera,
    /// A shared screen.
    Screen,
    /// Anything else, such as a canvas.
    Custom,
}

/// A codec that is archived as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// RFC 7741.
    Vp8,
    /// RFC 9628.
    Vp9,
    /// RFC 6184.
    H264,
    /// AOM's "RTP Payload Format For AV1".
    Av1,
    /// RFC 7587.
    Opus,
    /// G.711 mu-law, RFC 3551.
    Pcmu,
    /// G.711 A-law, RFC 3551.
    Pcma,
}

impl Codec {
    /// All codecs.
    pub const ALL: [Self; 7] = [Self::Vp8, Self::Vp9, Self::H264, Self::Av1, Self::Opus, Self::Pcmu, Self::Pcma];

    /// Sound or picture.
    #[must_use]
    pub const fn kind(self) -> TrackKind {
        match self {
            Self::Vp8 | Self::Vp9 | Self::H264 | Self::Av1 => TrackKind::Video,
            Self::Opus | Self::Pcmu | Self::Pcma => TrackKind::Audio,
        }
    }

    /// RTP clock rate in Hz.
    #[must_use]
    pub const fn clock_rate(self) -> u32 {
        match self {
            Self::Vp8 | Self::Vp9 | Self::H264 | Self::Av1 => 90_000,
            Self::Opus => 48_000,
            Self::Pcmu | Self::Pcma => 8_000,
        }
    }

    /// The name in metrics, manifests and file names.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Vp8 => "vp8",
            Self::Vp9 => "vp9",
            Self::H264 => "h264",
            Self::Av1 => "av1",
            Self::Opus => "opus",
            Self::Pcmu => "pcmu",
            Self::Pcma => "pcma",
        }
    }

    /// Whether WebM may carry it; what it may not goes into Matroska.
    #[must_use]
    pub const fn in_webm(self) -> bool {
        matches!(self, Self::Vp8 | Self::Vp9 | Self::Av1 | Self::Opus)
    }
}

/// What a decoder must know before the first frame. A change of it begins a new segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrackFormat {
    /// The codec.
    pub codec: Codec,
    /// Picture width in pixels; 0 for sound.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub width: u32,
    /// Picture height in pixels; 0 for sound.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub height: u32,
    /// Channels of sound; 0 for picture.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub channels: u32,
    /// What the container's `CodecPrivate` holds: `avcC` (H.264), `av1C` (AV1), `OpusHead` (Opus), else empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub codec_private: Vec<u8>,
}

#[allow(clippy::trivially_copy_pass_by_ref)]
const fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// Estimates the duration of frames that carry none: the shorter of the two distances before a frame. If the longer one counted, a frame that
/// came late would seem long, and would hide the beginning of a gap behind it. Frames may come in another order than that of their times: a
/// distance is that to the nearest of the frames before.
#[derive(Debug, Clone, Copy, Default)]
pub struct FrameSpans {
    /// The starts of the frames before, the newest first.
    before: [Option<MediaTime>; Self::BEFORE],
    distance: Option<MediaSpan>,
}

impl FrameSpans {
    /// A frame without one before: 30 pictures a second.
    const FIRST: MediaSpan = 33_000_000;
    const MIN: MediaSpan = 1_000_000;
    /// A frame lasts no longer than this when the next one is late.
    const MAX: MediaSpan = 200_000_000;
    /// How many frames are remembered: one is shown next to one of them.
    const BEFORE: usize = 4;

    /// How long the frame that begins at `pts` lasts.
    pub fn next(&mut self, pts: MediaTime) -> MediaSpan {
        let nearest = self.before.iter().flatten().map(|before| (pts - *before).abs()).min();
        let distance = nearest.map(|nearest| nearest.clamp(Self::MIN, Self::MAX));
        let spans = [distance, self.distance].into_iter().flatten();
        let span = spans.min().unwrap_or(Self::FIRST);
        self.before.rotate_right(1);
        (self.before[0], self.distance) = (Some(pts), distance);
        span
    }
}

/// One coded picture, or one packet of sound, as the container wants it: VP8 and VP9 frames as they are,
/// H.264 with 4-byte lengths (no start codes), AV1 as OBUs with sizes and without temporal delimiters,
/// Opus packets and G.711 bytes as they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// When it is shown or heard, by the track's provisional clock (see `clock`).
    pub pts: MediaTime,
    /// How long it lasts, where the frame itself says so (sound).
    pub duration: Option<MediaSpan>,
    /// Whether a decoder can begin here. Always true for sound.
    pub keyframe: bool,
    /// The coded bytes.
    pub data: Bytes,
}

/// Why media is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GapCause {
    /// The publisher sent nothing: camera off, muted, a screen that stands still. Nothing is lacking.
    #[serde(alias = "publisher")]
    NotSent,
    /// Sender reports or other news show media, but no packets came, or none that a decoder can begin with.
    NotReceived,
    /// A codec, profile or payload that this program or the negotiation refused.
    Unsupported,
    /// The media router does not let this program subscribe.
    Refused,
    /// The session has more streams than are captured.
    Limit,
    /// Packets were lost and not repaired.
    Network,
    /// The media router was away.
    Router,
    /// No worker was there: it died, took over late, or had not subscribed yet.
    Worker,
    /// There was no room, or the disk failed.
    Storage,
}

impl GapCause {
    /// All causes.
    pub const ALL: [Self; 9] = [
        Self::NotSent,
        Self::NotReceived,
        Self::Unsupported,
        Self::Refused,
        Self::Limit,
        Self::Network,
        Self::Router,
        Self::Worker,
        Self::Storage,
    ];

    /// The name in metrics and reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotSent => "not_sent",
            Self::NotReceived => "not_received",
            Self::Unsupported => "unsupported",
            Self::Refused => "refused",
            Self::Limit => "limit",
            Self::Network => "network",
            Self::Router => "router",
            Self::Worker => "worker",
            Self::Storage => "storage",
        }
    }

    /// Whether an archive with such a gap lacks something that was sent.
    #[must_use]
    pub const fn is_loss(self) -> bool {
        !matches!(self, Self::NotSent)
    }
}

/// A span of media time that is known to be missing from a track.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Gap {
    /// End of the last frame before it.
    #[schemars(with = "i64")]
    pub from: MediaTime,
    /// Start of the first frame after it.
    #[schemars(with = "i64")]
    pub to: MediaTime,
    /// Why.
    pub cause: GapCause,
}

/// Media that an archive lacks: of one track, put down to one cause.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MissingMedia {
    /// The stream.
    #[schema(value_type = String)]
    pub stream_id: StreamId,
    /// Audio or video.
    #[schema(value_type = String)]
    pub kind: TrackKind,
    /// Why: any cause but `not_sent`.
    #[schema(value_type = String)]
    pub cause: GapCause,
    /// Milliseconds in all.
    pub duration_ms: i64,
    /// What stood in the way, in the words of the router or of the negotiation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<String>,
}

/// What a sender report says: this RTP time was this NTP time (RFC 3550 section 6.4.1). Kept raw in the
/// index; the correction is computed over all tracks of a session when the log is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SenderReport {
    /// The report's NTP time, by the clock of whoever wrote it (Janus writes its own).
    pub ntp: NtpTime,
    /// The report's RTP time on the track's provisional clock, as a frame's `pts` would be.
    pub pts: MediaTime,
    /// When it arrived here.
    pub arrived: MediaTime,
}

/// A provisional clock began: with a PeerConnection, with another worker, or anchored anew behind a pause or a jump of RTP time. Reports
/// from before say nothing of this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockStart {
    /// Start of the part that the log has it with: a composer that follows the log knows it from then on.
    pub known: MediaTime,
    /// End of the last frame that has its time from the clock before; `at` where that is not known.
    pub after: MediaTime,
    /// Time of the first packet on the new clock.
    pub at: MediaTime,
}

/// What happened to a track's packets. Every packet is counted once, when its fate is final.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct TrackStats {
    /// Packets that arrived in time, first copies only.
    pub packets: u64,
    /// Payload bytes of them.
    pub bytes: u64,
    /// Packets that came out of order but in time: most are repaired by retransmission.
    pub repaired: u64,
    /// Packets that never came, or came too late.
    pub lost: u64,
    /// Second copies.
    pub duplicate: u64,
    /// Packets that came when their place was already given up.
    pub late: u64,
    /// Packets that are no valid payload of the codec.
    pub malformed: u64,
    /// Frames written.
    pub frames: u64,
    /// Of them, keyframes.
    pub keyframes: u64,
    /// Frames dropped because no keyframe had come yet: whole ones, and the one that had begun when the subscription began.
    pub frames_before_keyframe: u64,
    /// Frames dropped because a packet of them was lost, or because they lean on such a frame.
    pub frames_damaged: u64,
    /// Keyframes asked for.
    pub keyframes_requested: u64,
    /// Sender reports that say nothing of the track's times: they did not fit the packets, or came while a pause was classified.
    pub reports_refused: u64,
}

impl TrackStats {
    /// Adds another count. What a damaged index says may be any number.
    pub fn add(&mut self, other: &Self) {
        self.packets = self.packets.saturating_add(other.packets);
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.repaired = self.repaired.saturating_add(other.repaired);
        self.lost = self.lost.saturating_add(other.lost);
        self.duplicate = self.duplicate.saturating_add(other.duplicate);
        self.late = self.late.saturating_add(other.late);
        self.malformed = self.malformed.saturating_add(other.malformed);
        self.frames = self.frames.saturating_add(other.frames);
        self.keyframes = self.keyframes.saturating_add(other.keyframes);
        self.frames_before_keyframe = self.frames_before_keyframe.saturating_add(other.frames_before_keyframe);
        self.frames_damaged = self.frames_damaged.saturating_add(other.frames_damaged);
        self.keyframes_requested = self.keyframes_requested.saturating_add(other.keyframes_requested);
        self.reports_refused = self.reports_refused.saturating_add(other.reports_refused);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_late_frame_makes_the_next_no_longer() {
        for (name, starts, spans) in [
            ("even", &[0, 33, 66, 99][..], &[33, 33, 33, 33][..]),
            ("one late picture, and what was sent behind it", &[0, 33, 266, 267, 300], &[33, 33, 33, 1, 1]),
            ("slow", &[0, 150, 300, 450], &[33, 150, 150, 150]),
            ("slower than a frame may last", &[0, 1000, 2000, 3000], &[33, 200, 200, 200]),
            ("faster from now on", &[0, 100, 200, 220, 240], &[33, 100, 100, 20, 20]),
            ("a B-frame", &[0, 80, 40, 160, 120, 240, 200], &[33, 80, 40, 40, 40, 40, 40]),
            ("two B-frames", &[0, 120, 40, 80, 240, 160, 200], &[33, 120, 40, 40, 40, 40, 40]),
            (
                "three, one of them a reference",
                &[0, 160, 80, 40, 120, 320, 240, 200, 280],
                &[33, 160, 80, 40, 40, 40, 80, 40, 40],
            ),
        ] {
            let mut estimate = FrameSpans::default();
            let found: Vec<i64> =
                starts.iter().map(|ms| estimate.next(MediaTime::from_millis(*ms)) / 1_000_000).collect();
            assert_eq!(found, spans, "{name}");
        }
    }
}
