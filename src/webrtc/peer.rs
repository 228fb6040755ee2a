//! One PeerConnection to the media router, receiving one stream. The only file that knows `str0m`.
//!
//! `str0m` is sans-IO: datagrams and time go in, datagrams and events come out. RTP mode is used, so that
//! packets reach the track rules as they came: the rules can wait for a retransmission far longer than a
//! live player would.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime};

use str0m::change::SdpOffer;
use str0m::config::DtlsCert;
use str0m::crypto::CryptoProvider;
use str0m::error::IceError;
use str0m::format::{Codec as RtcCodec, FormatParams};
use str0m::media::{Frequency, KeyframeRequestKind, Mid, Pt};
use str0m::net::{Protocol, Receive};
use str0m::rtp::Ssrc;
use str0m::{Candidate, Event, IceConnectionState, Input, Output, Rtc, RtcConfig};

use crate::model::ids::TrackKind;
use crate::model::media::Codec;
use crate::model::time::{NtpTime, Wallclock};

use super::nack::Nacks;
use super::sdp::OfferedPayload;
use super::{PeerError, sdp};

/// Longest SDP offer that is read, in bytes. Janus's offers for two m-lines are about 4 KiB.
const OFFER_BYTES_MAX: usize = 256 * 1024;

/// Interval of receiver reports for video. Janus keeps no packets for retransmission before a report has given it the
/// round trip time, so the first one after its own first sender report must not wait for long.
const RTCP_REPORT_INTERVAL: Duration = Duration::from_millis(300);

/// RTP payload types that may be negotiated in one PeerConnection.
const PAYLOAD_TYPES_MAX: usize = 128;

/// Receives a peer's output after it was fed.
pub(super) trait PeerSink {
    /// A datagram to send.
    fn transmit(&mut self, to: SocketAddr, bytes: &[u8]);
    /// An RTP packet of a track.
    fn packet(&mut self, kind: TrackKind, packet: ReceivedPacket);
    /// A sender report of a track.
    fn sender_report(&mut self, kind: TrackKind, report: SenderReportIn);
    /// ICE and DTLS are up.
    fn connected(&mut self);
}

/// An RTP packet, decrypted, with its payload as it came.
pub(super) struct ReceivedPacket {
    pub codec: Codec,
    /// Extended over the wrap.
    pub seq: u64,
    pub rtp: u32,
    pub marker: bool,
    pub payload: Arc<[u8]>,
    /// When the kernel received it.
    pub arrived: Instant,
}

/// A sender report (RFC 3550 section 6.4.1).
#[derive(Debug, Clone, Copy)]
pub(super) struct SenderReportIn {
    pub ntp: NtpTime,
    pub rtp: u32,
    /// Packets sent since the source began; wraps.
    pub packets: u32,
}

/// What is answered to an offer.
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
    /// The codecs that are offered, with their format parameters.
    pub formats: String,
}

/// Accepts H.264, VP9 and AV1 in the profiles and levels that an offer has. `str0m` knows some profiles by itself, and refuses
/// others. But whatever a router passes on can be written down as it comes: the choice is between recording and losing it.
/// Codecs that the offer does not have keep their defaults, for later offers.
fn take_offered_formats(config: &mut RtcConfig, offer: &str) {
    let payloads = sdp::payloads(offer);
    let config = config.codec_config();
    for codec in [RtcCodec::H264, RtcCodec::Vp9, RtcCodec::Av1] {
        let name = match codec {
            RtcCodec::H264 => "H264",
            RtcCodec::Vp9 => "VP9",
            _ => "AV1",
        };
        let offered: Vec<&OfferedPayload<'_>> =
            payloads.iter().filter(|payload| payload.codec.eq_ignore_ascii_case(name)).collect();
        if offered.is_empty() {
            continue;
        }
        match codec {
            RtcCodec::H264 => config.enable_h264(false),
            RtcCodec::Vp9 => config.enable_vp9(false),
            _ => config.enable_av1(false),
        }
        let mut known: Vec<FormatParams> = Vec::new();
        for payload in offered {
            let format = FormatParams::parse_line(payload.format);
            if !known.contains(&format) {
                known.push(format);
                config.add_config(
                    payload.pt.into(),
                    payload.rtx.map(Pt::from),
                    codec,
                    Frequency::NINETY_KHZ,
                    None,
                    format,
                );
            }
        }
    }
}

/// One PeerConnection.
pub(super) struct Peer {
    rtc: Rtc,
    mids: Vec<(Mid, TrackKind)>,
    ssrcs: HashMap<Ssrc, TrackKind>,
    codecs: [Option<Codec>; PAYLOAD_TYPES_MAX],
    /// Missing packets of the video track.
    nacks: Nacks,
    /// The RTP stream that `nacks` is about.
    nacks_ssrc: Option<Ssrc>,
    /// When [`Peer::tick`] is due.
    pub next_timeout: Instant,
    /// When ICE lost its last working pair.
    disconnected_since: Option<Instant>,
    opened: Instant,
    connected: bool,
}

/// Crypto and certificate are made once: a key pair costs more than all else in a handshake.
static CRYPTO: LazyLock<(Arc<CryptoProvider>, Option<DtlsCert>)> = LazyLock::new(|| {
    let provider = Arc::new(str0m::crypto::from_feature_flags());
    let cert = provider.dtls_provider.generate_certificate();
    (provider, cert)
});

impl Peer {
    /// Accepts the router's offer.
    ///
    /// `local` has our addresses; without any, they are added with the router's candidates that come later. `mids` tells which mid of
    /// the offer carries which track; others are refused by ignoring them.
    pub fn accept(
        offer: &str,
        mids: &[(String, TrackKind)],
        local: &[SocketAddr],
        now: Instant,
    ) -> Result<(Self, Answer), PeerError> {
        let (provider, cert) = &*CRYPTO;
        let mut config = RtcConfig::new()
            .set_crypto_provider(Arc::clone(provider))
            .clear_codecs()
            .enable_opus(true, false)
            .enable_pcmu(true, false)
            .enable_pcma(true, false)
            .enable_vp8(true)
            .enable_vp9(true)
            .enable_h264(true)
            .enable_av1(true)
            .set_rtcp_report_interval_video(RTCP_REPORT_INTERVAL)
            .set_rtp_mode(true);
        take_offered_formats(&mut config, offer);
        if let Some(cert) = cert {
            config = config.set_dtls_cert(cert.clone());
        }
        let mut rtc = config.build(now);
        add_local_candidates(&mut rtc, local).map_err(|e| PeerError::Offer { reason: e.to_string() })?;
        let mut peer = Self {
            rtc,
            mids: Vec::new(),
            ssrcs: HashMap::new(),
            codecs: [None; PAYLOAD_TYPES_MAX],
            nacks: Nacks::default(),
            nacks_ssrc: None,
            next_timeout: now,
            disconnected_since: None,
            opened: now,
            connected: false,
        };
        let answer = peer.renegotiate(offer, mids)?;
        Ok((peer, answer))
    }

    /// Accepts a further offer of the same PeerConnection.
    pub fn renegotiate(&mut self, text: &str, mids: &[(String, TrackKind)]) -> Result<Answer, PeerError> {
        if text.len() > OFFER_BYTES_MAX {
            return Err(PeerError::Offer { reason: format!("{} bytes are too many", text.len()) });
        }
        let offer = SdpOffer::from_sdp_string(text).map_err(|e| PeerError::Offer { reason: e.to_string() })?;
        let answer = self.rtc.sdp_api().accept_offer(offer).map_err(|e| PeerError::Offer { reason: e.to_string() })?;
        self.mids = mids.iter().map(|(mid, kind)| (Mid::from(mid.as_str()), *kind)).collect();
        self.ssrcs.clear();
        self.learn_codecs();
        Ok(Answer { sdp: answer.to_sdp_string(), unsupported: self.unsupported(text) })
    }

    /// The tracks of an accepted offer for which no payload was accepted.
    fn unsupported(&self, offer: &str) -> Vec<UnsupportedTrack> {
        let is_refused = |mid: &Mid| self.rtc.media(*mid).is_none_or(|media| media.remote_pts().is_empty());
        let one = |(mid, kind): &(Mid, TrackKind)| {
            let payloads = sdp::payloads(offer).into_iter().filter(|payload| Mid::from(payload.mid) == *mid);
            let formats = payloads.filter(|payload| !payload.codec.eq_ignore_ascii_case("rtx")).map(|payload| {
                match payload.format {
                    "" => payload.codec.to_owned(),
                    format => format!("{} ({format})", payload.codec),
                }
            });
            UnsupportedTrack { kind: *kind, formats: formats.collect::<Vec<_>>().join(", ") }
        };
        self.mids.iter().filter(|(mid, _)| is_refused(mid)).map(one).collect()
    }

    /// Adds a candidate of the router that is not in its offer, and our addresses that reach it. The text is that of a `candidate` attribute.
    pub fn add_candidate(&mut self, candidate: &str, local: &[SocketAddr]) -> Result<(), IceError> {
        let remote = Candidate::from_sdp_string(candidate.strip_prefix("a=").unwrap_or(candidate))?;
        add_local_candidates(&mut self.rtc, local)?;
        self.rtc.add_remote_candidate(remote);
        Ok(())
    }

    fn learn_codecs(&mut self) {
        self.codecs = [None; PAYLOAD_TYPES_MAX];
        for params in self.rtc.codec_config().params() {
            let codec = match params.spec().codec {
                RtcCodec::Opus => Codec::Opus,
                RtcCodec::PCMU => Codec::Pcmu,
                RtcCodec::PCMA => Codec::Pcma,
                RtcCodec::H264 => Codec::H264,
                RtcCodec::Vp8 => Codec::Vp8,
                RtcCodec::Vp9 => Codec::Vp9,
                RtcCodec::Av1 => Codec::Av1,
                _ => continue,
            };
            if let Some(slot) = self.codecs.get_mut(usize::from(*params.pt())) {
                *slot = Some(codec);
            }
        }
    }

    fn codec(&self, pt: Pt) -> Option<Codec> {
        self.codecs.get(usize::from(*pt)).copied().flatten()
    }

    /// Whether a datagram from an address that no peer is known for belongs to this one.
    pub fn accepts(&self, from: SocketAddr, to: SocketAddr, bytes: &[u8], at: Instant) -> bool {
        Receive::new(Protocol::Udp, from, to, bytes).is_ok_and(|receive| self.rtc.accepts(&Input::Receive(at, receive)))
    }

    /// Feeds a datagram.
    pub fn receive(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
        bytes: &[u8],
        at: Instant,
        sink: &mut dyn PeerSink,
    ) -> Result<(), PeerError> {
        // Datagrams that are neither STUN, DTLS nor RTP are ignored.
        let Ok(receive) = Receive::new(Protocol::Udp, from, to, bytes) else { return Ok(()) };
        self.rtc.handle_input(Input::Receive(at, receive)).map_err(|e| PeerError::Broken { reason: e.to_string() })?;
        self.poll(sink)?;
        self.send_nacks(at, sink)
    }

    /// Lets time pass.
    pub fn tick(&mut self, now: Instant, sink: &mut dyn PeerSink) -> Result<(), PeerError> {
        self.rtc.handle_input(Input::Timeout(now)).map_err(|e| PeerError::Broken { reason: e.to_string() })?;
        self.poll(sink)?;
        self.send_nacks(now, sink)
    }

    /// Lets `str0m` send NACKs when they are due, and only then.
    fn send_nacks(&mut self, now: Instant, sink: &mut dyn PeerSink) -> Result<(), PeerError> {
        if let Some(ssrc) = self.nacks_ssrc
            && self.nacks.take_due(now)
        {
            self.suppress_nacks(ssrc, false);
            self.rtc.handle_input(Input::Timeout(now)).map_err(|e| PeerError::Broken { reason: e.to_string() })?;
            self.poll(sink)?;
            self.suppress_nacks(ssrc, true);
            self.poll(sink)?;
        }
        if let Some(at) = self.nacks.next() {
            self.next_timeout = self.next_timeout.min(at);
        }
        Ok(())
    }

    fn suppress_nacks(&mut self, ssrc: Ssrc, suppress: bool) {
        let mut api = self.rtc.direct_api();
        let Some(stream) = api.stream_rx(&ssrc) else { return };
        stream.suppress_nack(suppress);
        let mid = stream.mid();
        // Only a look-up by mid makes `str0m` compute again whether NACKs are due.
        if let Some(stream) = api.stream_rx_by_mid(mid, None) {
            stream.suppress_nack(suppress);
        }
    }

    fn poll(&mut self, sink: &mut dyn PeerSink) -> Result<(), PeerError> {
        loop {
            match self.rtc.poll_output().map_err(|e| PeerError::Broken { reason: e.to_string() })? {
                Output::Timeout(at) => {
                    self.next_timeout = at;
                    return Ok(());
                }
                Output::Transmit(t) => sink.transmit(t.destination, &t.contents),
                Output::Event(event) => self.event(event, sink),
            }
        }
    }

    fn event(&mut self, event: Event, sink: &mut dyn PeerSink) {
        match event {
            Event::Connected => {
                self.connected = true;
                sink.connected();
            }
            Event::RtpPacket(packet) => {
                let Some(codec) = self.codec(packet.header.payload_type) else { return };
                let Some(kind) = self.kind_of(packet.header.ssrc) else { return };
                if codec.kind() != kind {
                    return;
                }
                if kind == TrackKind::Video {
                    if self.nacks_ssrc != Some(packet.header.ssrc) {
                        self.nacks.reset();
                        self.nacks_ssrc = Some(packet.header.ssrc);
                        self.suppress_nacks(packet.header.ssrc, true);
                    }
                    self.nacks.received(*packet.seq_no, packet.timestamp);
                }
                sink.packet(
                    kind,
                    ReceivedPacket {
                        codec,
                        seq: *packet.seq_no,
                        rtp: packet.header.timestamp,
                        marker: packet.header.marker,
                        payload: packet.payload,
                        arrived: packet.timestamp,
                    },
                );
            }
            Event::SenderFeedback(feedback) => {
                let kind = self.mids.iter().find(|(mid, _)| *mid == feedback.mid).map(|(_, kind)| *kind);
                if let Some(kind) = kind {
                    let info = feedback.sender_info;
                    #[allow(clippy::cast_possible_truncation)]
                    let rtp = info.rtp_time.numer() as u32;
                    sink.sender_report(
                        kind,
                        SenderReportIn { ntp: ntp_of(info.ntp_time), rtp, packets: info.sender_packet_count },
                    );
                }
            }
            Event::IceConnectionStateChange(state) => {
                self.disconnected_since = match state {
                    IceConnectionState::Disconnected => self.disconnected_since.or(Some(self.next_timeout)),
                    _ => None,
                };
            }
            _ => {}
        }
    }

    fn kind_of(&mut self, ssrc: Ssrc) -> Option<TrackKind> {
        if let Some(kind) = self.ssrcs.get(&ssrc) {
            return Some(*kind);
        }
        let mid = self.rtc.direct_api().stream_rx(&ssrc)?.mid();
        let kind = self.mids.iter().find(|(m, _)| *m == mid).map(|(_, kind)| *kind)?;
        self.ssrcs.insert(ssrc, kind);
        Some(kind)
    }

    /// Requests a keyframe from the sender of the video (PLI).
    pub fn request_keyframe(&mut self) {
        let mid = self.mids.iter().find(|(_, kind)| *kind == TrackKind::Video).map(|(mid, _)| *mid);
        if let Some(mid) = mid
            && let Some(stream) = self.rtc.direct_api().stream_rx_by_mid(mid, None)
        {
            stream.request_keyframe(KeyframeRequestKind::Pli);
        }
    }

    /// Whether the connection did not come up in time, or is down for too long, so that a new one is needed.
    pub fn is_dead(&self, now: Instant, connect_max: Duration, disconnected_max: Duration) -> bool {
        if !self.rtc.is_alive() {
            return true;
        }
        if !self.connected && now.saturating_duration_since(self.opened) > connect_max {
            return true;
        }
        self.disconnected_since.is_some_and(|since| now.saturating_duration_since(since) > disconnected_max)
    }
}

/// Adds our addresses. An address that is known already is passed over.
fn add_local_candidates(rtc: &mut Rtc, local: &[SocketAddr]) -> Result<(), IceError> {
    for address in local {
        rtc.add_local_candidate(Candidate::host(*address, "udp")?);
    }
    Ok(())
}

fn ntp_of(at: SystemTime) -> NtpTime {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    NtpTime::from_wallclock(Wallclock(i64::try_from(since.as_micros()).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

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
