//! A stream that this program publishes to itself, to see that a media router passes media on: silence, and a picture of one pixel.
//! Beside `peer.rs` and `formats.rs` this file knows `str0m`.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use str0m::change::{SdpAnswer, SdpPendingOffer};
use str0m::format::Codec;
use str0m::media::{Direction, Frequency, MediaKind, MediaTime, Mid};
use str0m::net::{Protocol, Receive};
use str0m::{Candidate, Input, Output, Rtc, RtcConfig, RtcError};
use tokio_util::sync::CancellationToken;

/// Opus: a packet of 20 ms of silence.
const SILENCE: &[u8] = &[0xf8, 0xff, 0xfe];
/// VP8: a keyframe of one pixel.
const PICTURE: &[u8] = &[
    0x30, 0x01, 0x00, 0x9d, 0x01, 0x2a, 0x01, 0x00, 0x01, 0x00, 0x03, 0x00, 0x34, 0x25, 0xa4, 0x00, 0x03, 0x70, 0x00,
    0xfe, 0xfb, 0x94, 0x00, 0x00,
];
const PACKET: Duration = Duration::from_millis(20);
/// Packets of sound from one picture to the next.
const PACKETS_A_PICTURE: u64 = 5;
/// Longest wait for a datagram: the stop is heard within this time.
const WAIT_MAX: Duration = Duration::from_millis(20);

/// Why the stream cannot be published.
#[derive(Debug, thiserror::Error)]
pub enum TestStreamError {
    /// The socket.
    #[error("no datagrams can be sent from {local}")]
    Socket {
        /// The local address.
        local: IpAddr,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The negotiation, or the connection.
    #[error("the media router's answer cannot be used")]
    Connection(#[from] RtcError),
    /// The router's SDP.
    #[error("the media router's answer cannot be read: {0}")]
    Answer(String),
}

/// A connection that has made its offer.
pub struct TestStream {
    rtc: Rtc,
    socket: UdpSocket,
    local: SocketAddr,
    pending: SdpPendingOffer,
    audio: Mid,
    video: Mid,
}

impl TestStream {
    /// Binds a socket at `local` and makes the offer.
    ///
    /// # Errors
    /// When the address cannot be bound.
    ///
    /// # Panics
    /// Never: an offer of two tracks is one.
    pub fn new(local: IpAddr) -> Result<(Self, String), TestStreamError> {
        let failed = |source| TestStreamError::Socket { local, source };
        let socket = UdpSocket::bind(SocketAddr::new(local, 0)).map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        let mut rtc = RtcConfig::new().clear_codecs().enable_opus(true, false).enable_vp8(true).build(Instant::now());
        let candidate = Candidate::host(address, "udp").map_err(|e| TestStreamError::Answer(e.to_string()))?;
        rtc.add_local_candidate(candidate);
        let mut changes = rtc.sdp_api();
        let audio = changes.add_media(MediaKind::Audio, Direction::SendOnly, None, None, None);
        let video = changes.add_media(MediaKind::Video, Direction::SendOnly, None, None, None);
        let (offer, pending) = changes.apply().expect("two tracks were added");
        Ok((Self { rtc, socket, local: address, pending, audio, video }, offer.to_sdp_string()))
    }

    /// Takes the router's answer and sends until `stop`. Blocking.
    ///
    /// # Errors
    /// When the answer cannot be used, or the connection breaks.
    pub fn run(self, answer: &str, stop: &CancellationToken) -> Result<(), TestStreamError> {
        let Self { mut rtc, socket, local, pending, audio, video } = self;
        let answer = SdpAnswer::from_sdp_string(answer).map_err(|e| TestStreamError::Answer(e.to_string()))?;
        rtc.sdp_api().accept_answer(pending, answer)?;
        let mut sender = Sender { rtc, audio, video, sent: 0 };
        let failed = |source| TestStreamError::Socket { local: local.ip(), source };
        let (mut buffer, mut due) = (vec![0; 2000], Instant::now());
        while !stop.is_cancelled() && sender.rtc.is_alive() {
            let timeout = sender.transmit(&socket)?;
            let now = Instant::now();
            let wait = timeout.min(due).saturating_duration_since(now).clamp(Duration::from_millis(1), WAIT_MAX);
            socket.set_read_timeout(Some(wait)).map_err(failed)?;
            if let Ok((len, from)) = socket.recv_from(&mut buffer)
                && let Ok(receive) = Receive::new(Protocol::Udp, from, local, &buffer[..len])
            {
                sender.rtc.handle_input(Input::Receive(Instant::now(), receive))?;
            }
            let now = Instant::now();
            sender.rtc.handle_input(Input::Timeout(now))?;
            if sender.rtc.is_connected() && due <= now {
                sender.send(now, &socket)?;
                due = now + PACKET;
            }
        }
        Ok(())
    }
}

struct Sender {
    rtc: Rtc,
    audio: Mid,
    video: Mid,
    /// Packets of sound.
    sent: u64,
}

impl Sender {
    /// Sends what is ready. Returns when the connection wants to be called again.
    fn transmit(&mut self, socket: &UdpSocket) -> Result<Instant, TestStreamError> {
        loop {
            match self.rtc.poll_output()? {
                Output::Timeout(at) => return Ok(at),
                // What the kernel does not take is lost, as on any network.
                Output::Transmit(t) => drop(socket.send_to(&t.contents, t.destination)),
                Output::Event(_) => {}
            }
        }
    }

    fn send(&mut self, now: Instant, socket: &UdpSocket) -> Result<(), TestStreamError> {
        self.write(self.audio, Codec::Opus, 48_000, self.sent * 960, SILENCE, now)?;
        self.transmit(socket)?;
        if self.sent.is_multiple_of(PACKETS_A_PICTURE) {
            self.write(self.video, Codec::Vp8, 90_000, self.sent * 1_800, PICTURE, now)?;
            self.transmit(socket)?;
        }
        self.sent += 1;
        Ok(())
    }

    fn write(
        &mut self,
        mid: Mid,
        codec: Codec,
        rate: u32,
        ticks: u64,
        data: &[u8],
        now: Instant,
    ) -> Result<(), TestStreamError> {
        // The router may have refused a track: the check then says that nothing comes of it.
        let Some(writer) = self.rtc.writer(mid) else { return Ok(()) };
        let params = writer.payload_params().find(|params| params.spec().codec == codec);
        let Some(pt) = params.map(|params| params.pt()) else { return Ok(()) };
        let frequency = Frequency::new(rate).unwrap_or(Frequency::NINETY_KHZ);
        writer.write(pt, now, MediaTime::new(ticks, frequency), data.to_vec())?;
        self.rtc.handle_input(Input::Timeout(now))?;
        Ok(())
    }
}
