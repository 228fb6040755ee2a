//! Which codecs, in which profiles and levels, are accepted of an offer, and which are not.

use str0m::Rtc;
use str0m::format::{Codec, CodecConfig, FormatParams};
use str0m::media::{Frequency, Mid};

use super::sdp;
use crate::model::ids::TrackKind;

/// The answer to an offer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The SDP answer.
    pub sdp: String,
    /// The wanted tracks that it refuses.
    pub unsupported: Vec<UnsupportedTrack>,
}

/// A track that is offered in no codec or profile that can be received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnsupportedTrack {
    /// Audio or video.
    pub kind: TrackKind,
    /// The offered codecs with their format parameters.
    pub formats: String,
}

type EnableDefaults = fn(&mut CodecConfig, bool);

/// Codecs with profiles: their names in SDP, and how `str0m` is told to have its default profiles or none.
const PROFILED: [(Codec, &str, EnableDefaults); 3] = [
    (Codec::H264, "H264", CodecConfig::enable_h264),
    (Codec::Vp9, "VP9", CodecConfig::enable_vp9),
    (Codec::Av1, "AV1", CodecConfig::enable_av1),
];

/// Accepts the profiles and levels that an offer has, instead of those that `str0m` has by default. A recorder does not decode:
/// whatever a router passes on can be written as it comes, and the alternative is to lose it. A codec that the offer does not have
/// keeps its defaults, for later offers.
pub(super) fn take_offered(config: &mut CodecConfig, offer: &str) {
    let payloads = sdp::payloads(offer);
    for (codec, name, enable) in PROFILED {
        let mut formats: Vec<FormatParams> = Vec::new();
        for payload in payloads.iter().filter(|payload| payload.codec.eq_ignore_ascii_case(name)) {
            let format = FormatParams::parse_line(payload.format);
            if formats.is_empty() {
                enable(config, false);
            }
            if !formats.contains(&format) {
                formats.push(format);
                let rtx = payload.rtx.map(Into::into);
                config.add_config(payload.pt.into(), rtx, codec, Frequency::NINETY_KHZ, None, format);
            }
        }
    }
}

/// The wanted tracks of an accepted offer for which no payload type was accepted.
pub(super) fn unsupported(rtc: &Rtc, offer: &str, mids: &[(String, TrackKind)]) -> Vec<UnsupportedTrack> {
    let is_refused =
        |mid: &String| rtc.media(Mid::from(mid.as_str())).is_none_or(|media| media.remote_pts().is_empty());
    let one =
        |(mid, kind): &(String, TrackKind)| UnsupportedTrack { kind: *kind, formats: offered_formats(offer, mid) };
    mids.iter().filter(|(mid, _)| is_refused(mid)).map(one).collect()
}

fn offered_formats(offer: &str, mid: &str) -> String {
    let payloads = sdp::payloads(offer).into_iter().filter(|payload| payload.mid == mid);
    let formats =
        payloads.filter(|payload| !payload.codec.eq_ignore_ascii_case("rtx")).map(|payload| match payload.format {
            "" => payload.codec.to_owned(),
            format => format!("{} ({format})", payload.codec),
        });
    formats.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::webrtc::peer::Peer;

    /// An offer of one m-line, as Janus makes them.
    fn offer(kind: &str, payloads: &str) -> String {
        let pts: Vec<&str> = payloads.lines().filter_map(|l| l.strip_prefix("a=rtpmap:")?.split(' ').next()).collect();
        let lines = payloads.lines().map(|line| format!("{line}\r\n")).collect::<String>();
        format!(
            "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0\r\na=ice-options:trickle\r\n\
             a=fingerprint:sha-256 D2:B9:31:8F:DF:24:D8:0E:ED:D2:EF:25:9E:AF:6F:B8:34:AE:53:9C:E6:F3:8F:F2:64:15:FA:E8:7F:53:2D:38\r\n\
             m={kind} 9 UDP/TLS/RTP/SAVPF {}\r\nc=IN IP4 127.0.0.1\r\na=sendonly\r\na=mid:0\r\na=rtcp-mux\r\n\
             a=ice-ufrag:abcd\r\na=ice-pwd:0123456789012345678901\r\na=setup:actpass\r\n{lines}\
             a=candidate:1 1 udp 2015363327 127.0.0.1 40001 typ host\r\n",
            pts.join(" ")
        )
    }

    fn accept(kind: TrackKind, payloads: &str) -> Answer {
        let name = if kind == TrackKind::Audio { "audio" } else { "video" };
        let (local, mids) = ("127.0.0.1:5000".parse().expect("address"), [("0".to_owned(), kind)]);
        Peer::accept(&offer(name, payloads), &mids, &[local], Instant::now()).expect("an answer").1
    }

    #[test]
    fn every_profile_and_level_of_a_codec_is_accepted() {
        for format in [
            "H264/90000\na=fmtp:96 profile-level-id=640c1f;level-asymmetry-allowed=1;packetization-mode=1",
            "H264/90000\na=fmtp:96 profile-level-id=42e01f;packetization-mode=1",
            "H264/90000\na=fmtp:96 profile-level-id=640034;packetization-mode=0",
            "H264/90000\na=fmtp:96 profile-level-id=f4001f;packetization-mode=1",
            "H264/90000\na=fmtp:96 profile-level-id=4d0032",
            "H264/90000\na=fmtp:96 profile-level-id=nonsense",
            "H264/90000",
            "VP9/90000\na=fmtp:96 profile-id=2",
            "VP9/90000",
            "AV1/90000\na=fmtp:96 level-idx=13;profile=1;tier=1",
            "AV1/90000",
            "VP8/90000",
        ] {
            let answer = accept(TrackKind::Video, &format!("a=rtpmap:96 {format}"));
            assert_eq!(answer.unsupported, [], "{format}");
            assert!(
                answer.sdp.contains("m=video 9 ") && answer.sdp.contains("a=rtpmap:96 "),
                "{format}: {}",
                answer.sdp
            );
        }
    }

    #[test]
    fn a_codec_that_cannot_be_received_is_named() {
        for (kind, payloads, formats) in [
            (TrackKind::Audio, "a=rtpmap:9 G722/8000", "G722"),
            (
                TrackKind::Audio,
                "a=rtpmap:96 multiopus/48000/6\na=fmtp:96 channel_mapping=0,4,1,2,3,5",
                "multiopus (channel_mapping=0,4,1,2,3,5)",
            ),
            (TrackKind::Video, "a=rtpmap:96 H265/90000\na=rtpmap:97 rtx/90000\na=fmtp:97 apt=96", "H265"),
        ] {
            let unsupported = UnsupportedTrack { kind, formats: formats.to_owned() };
            assert_eq!(accept(kind, payloads).unsupported, [unsupported], "{payloads}");
        }
    }

    #[test]
    fn several_formats_of_one_codec_are_accepted_side_by_side() {
        let two = "a=rtpmap:96 H264/90000\na=fmtp:96 profile-level-id=640c1f;packetization-mode=1\na=rtpmap:97 rtx/90000\n\
            a=fmtp:97 apt=96\na=rtpmap:98 H264/90000\na=fmtp:98 profile-level-id=42e01f;packetization-mode=1\n\
            a=rtpmap:101 VP8/90000";
        let answer = accept(TrackKind::Video, two);
        assert_eq!(answer.unsupported, []);
        assert!(answer.sdp.contains("a=rtpmap:96 H264") && answer.sdp.contains("a=rtpmap:98 H264"), "{}", answer.sdp);
    }
}
