//! One PeerConnection to the media router, receiving one stream. Only this file, `formats.rs` and `test_stream.rs` know `str0m`.
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
use str0m::format::Codec as RtcCodec;
use str0m::media::{KeyframeRequestKind, Mid, Pt};
use str0m::net::{Protocol, Receive};
use str0m::rtp::Ssrc;
use str0m::{Candidate, Event, IceConnectionState, Input, Output, Rtc, RtcConfig};

use crate::model::ids::TrackKind;
use crate::model::media::Codec;
use crate::model::time::{NtpTime, Wallclock};

use super::PeerError;
use super::formats::{self, Answer};
use super::nack::Nacks;

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
    /// ICE and DTLS are up. `kinds` are those of the peer's tracks.
    fn connected(&mut self, kinds: &[TrackKind]);
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
    /// When the kernel received it.
    pub arrived: Instant,
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
        check_length(offer)?;
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
        formats::take_offered(config.codec_config(), offer);
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
        check_length(text)?;
        let offer = SdpOffer::from_sdp_string(text).map_err(|e| PeerError::Offer { reason: e.to_string() })?;
        let answer = self.rtc.sdp_api().accept_offer(offer).map_err(|e| PeerError::Offer { reason: e.to_string() })?;
        self.mids = mids.iter().map(|(mid, kind)| (Mid::from(mid.as_str()), *kind)).collect();
        self.ssrcs.clear();
        self.learn_codecs();
        Ok(Answer { sdp: answer.to_sdp_string(), unsupported: formats::unsupported(&self.rtc, text, mids) })
    }

    /// The kinds of the tracks that are received.
    pub fn kinds(&self) -> Vec<TrackKind> {
        self.mids.iter().map(|(_, kind)| *kind).collect()
    }

    /// Adds a candidate of the router that is not in its offer, and our addresses that reach it. The text is that of a `candidate`
    /// attribute.
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
                sink.connected(&self.kinds());
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
                    let (ntp, packets) = (ntp_of(info.ntp_time), info.sender_packet_count);
                    sink.sender_report(kind, SenderReportIn { ntp, rtp, packets, arrived: feedback.received_at });
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

fn check_length(offer: &str) -> Result<(), PeerError> {
    match offer.len() {
        0..=OFFER_BYTES_MAX => Ok(()),
        bytes => Err(PeerError::Offer { reason: format!("{bytes} bytes are too many") }),
    }
}

fn ntp_of(at: SystemTime) -> NtpTime {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    NtpTime::from_wallclock(Wallclock(i64::try_from(since.as_micros()).unwrap_or(0)))
}
