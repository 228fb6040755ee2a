//! The offers of the fake router.

use std::fmt::Write;

use archiver::model::ids::TrackKind;
use archiver::router::{Offer, StreamInfo, SubscriptionId, TrackInfo};

/// The lines of every media section. Candidate, credentials and fingerprint are placeholders.
const TRANSPORT: &str = "c=IN IP4 127.0.0.1\r\na=sendonly\r\na=rtcp-mux\r\na=ice-ufrag:fake\r\na=ice-pwd:fakefakefakefakefakefake\r\n\
     a=setup:actpass\r\na=candidate:1 1 udp 2015363327 127.0.0.1 9 typ host\r\n\
     a=fingerprint:sha-256 00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD:EE:FF:00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD:EE:FF\r\n";

/// The payload type and the map of a codec.
fn codec(track: &TrackInfo) -> (u8, String) {
    match track.codec.as_str() {
        "opus" => (111, "opus/48000/2".to_owned()),
        "vp9" => (98, "VP9/90000".to_owned()),
        "h264" => (102, "H264/90000".to_owned()),
        "av1" => (45, "AV1/90000".to_owned()),
        "vp8" => (96, "VP8/90000".to_owned()),
        other => (120, format!("{other}/90000")),
    }
}

/// An offer of at most one track of each kind, audio first.
pub(super) fn offer(subscription: SubscriptionId, stream: &StreamInfo) -> Offer {
    let track = |kind: &TrackKind| stream.tracks.iter().find(|track| track.kind == *kind);
    let tracks: Vec<&TrackInfo> = [TrackKind::Audio, TrackKind::Video].iter().filter_map(track).collect();
    let mids: Vec<(String, TrackKind)> =
        tracks.iter().enumerate().map(|(mid, track)| (mid.to_string(), track.kind)).collect();
    let group: Vec<&str> = mids.iter().map(|(mid, _)| mid.as_str()).collect();
    let mut sdp = format!(
        "v=0\r\no=- {} 1 IN IP4 127.0.0.1\r\ns=fake\r\nt=0 0\r\na=group:BUNDLE {}\r\n",
        subscription.0,
        group.join(" ")
    );
    for (track, (mid, kind)) in tracks.iter().zip(&mids) {
        let media = if *kind == TrackKind::Audio { "audio" } else { "video" };
        let (payload, map) = codec(track);
        let ssrc = subscription.0 * 2 + u64::from(*kind == TrackKind::Video) + 1;
        write!(
            sdp,
            "m={media} 9 UDP/TLS/RTP/SAVPF {payload}\r\na=mid:{mid}\r\na=rtpmap:{payload} {map}\r\na=ssrc:{ssrc} cname:fake\r\n{TRANSPORT}"
        )
        .expect("a string takes everything");
    }
    Offer { subscription, sdp, mids, encrypted: false }
}
