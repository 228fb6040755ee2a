//! The sending PeerConnection.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use str0m::change::{SdpAnswer, SdpPendingOffer};
use str0m::format::Codec;
use str0m::format::FormatParams;
use str0m::media::{Direction, Frequency, MediaKind};
use str0m::net::{Protocol, Receive};
use str0m::{Candidate, Event, Input, Output, Rtc, RtcConfig};

use super::media::{AudioCodec, VideoCodec};
use super::track::{MediaSource, Sent, TrackSender};
use super::{Change, Options, Switches, Truth};

/// The payload type of telephone events.
const TELEPHONE: u8 = 110;

/// A PeerConnection that has made its offer.
pub(super) struct Connection {
    rtc: Rtc,
    socket: UdpSocket,
    /// What the other side knows as our address.
    local: SocketAddr,
    pending: Option<SdpPendingOffer>,
    video: Option<TrackSender>,
    audio: Option<TrackSender>,
    screen: Option<TrackSender>,
    options: Options,
}

/// A PeerConnection that is driven by a thread.
pub(super) struct DrivenConnection {
    sender: Connection,
    switches: Arc<Switches>,
    truth: Arc<Mutex<Truth>>,
    connected: bool,
    timeout: Instant,
    buffer: Vec<u8>,
    /// The kind of track that an offer is under way for.
    changing: Option<MediaKind>,
    /// Takes the offers of changes.
    offers: tokio::sync::mpsc::Sender<String>,
}

impl Connection {
    /// Binds a socket, prepares the media and makes the offer.
    pub fn offer(options: &Options) -> Result<(Self, String)> {
        let mut rtc = codecs(options).build(Instant::now());
        let socket = UdpSocket::bind(SocketAddr::new(options.local, 0))?;
        socket.set_nonblocking(true)?;
        let mut local = socket.local_addr()?;
        if let Some(proxy) = &options.proxy {
            local.set_ip(proxy.ip());
        }
        rtc.add_local_candidate(Candidate::host(local, "udp")?);
        let mut changes = rtc.sdp_api();
        let mut mid = |kind| changes.add_media(kind, Direction::SendOnly, Some("stream".to_owned()), None, None);
        let mut audio = None;
        if let Some(codec) = options.audio {
            let name = match codec {
                AudioCodec::Opus => Codec::Opus,
                AudioCodec::Pcmu => Codec::PCMU,
                AudioCodec::Pcma => Codec::PCMA,
                AudioCodec::G722 => Codec::G722,
            };
            let source = MediaSource::audio(options)?;
            audio =
                Some(TrackSender::new(mid(MediaKind::Audio), name, codec.rate(), source, Duration::from_millis(20)));
        }
        let (mut video, mut screen) = (None, None);
        if let Some(codec) = options.video {
            let name = match codec {
                VideoCodec::Vp8 => Codec::Vp8,
                VideoCodec::Vp9 => Codec::Vp9,
                VideoCodec::H264 => Codec::H264,
                VideoCodec::Av1 => Codec::Av1,
            };
            let mut sender = |code| -> Result<TrackSender> {
                let source = MediaSource::video(options, options.size, code)?;
                Ok(TrackSender::new(mid(MediaKind::Video), name, 90_000, source, Duration::from_secs(1) / options.fps))
            };
            video = Some(sender(options.code)?);
            screen = options.screen.map(&mut sender).transpose()?;
        }
        let (offer, pending) = changes.apply().context("nothing to publish")?;
        let options = options.clone();
        Ok((Self { rtc, socket, local, pending: Some(pending), video, audio, screen, options }, offer.to_sdp_string()))
    }

    /// The mids of the offer, sound first.
    pub fn mids(&self) -> (Option<String>, Option<String>) {
        let mid = |flow: &Option<TrackSender>| flow.as_ref().map(|f| f.mid.to_string());
        (mid(&self.audio), mid(&self.video))
    }

    /// The mid of the second picture.
    pub fn screen_mid(&self) -> Option<String> {
        self.screen.as_ref().map(|flow| flow.mid.to_string())
    }

    /// Takes Janus's answer.
    pub fn answer(&mut self, sdp: &str) -> Result<()> {
        let pending = self.pending.take().context("there was no offer")?;
        let sdp = match &self.options.proxy {
            Some(proxy) => map_candidates(sdp, |remote| proxy.map(remote)),
            None => sdp.to_owned(),
        };
        self.rtc.sdp_api().accept_answer(pending, SdpAnswer::from_sdp_string(&sdp)?)?;
        Ok(())
    }

    fn poll(&mut self, truth: &Mutex<Truth>) -> Result<Instant> {
        loop {
            match self.rtc.poll_output()? {
                Output::Timeout(at) => return Ok(at),
                Output::Transmit(t) => {
                    // What the kernel does not take is lost, as on any network.
                    self.socket.send_to(&t.contents, t.destination).map(drop).unwrap_or_default();
                }
                Output::Event(Event::KeyframeRequest(request)) => {
                    lock(truth).keyframe_requests += 1;
                    let pictures = [&mut self.video, &mut self.screen].into_iter().flatten();
                    pictures.filter(|flow| flow.mid == request.mid).for_each(|flow| flow.keyframe_wanted = true);
                }
                Output::Event(_) => {}
            }
        }
    }
}

impl DrivenConnection {
    pub fn new(
        sender: Connection,
        switches: Arc<Switches>,
        truth: Arc<Mutex<Truth>>,
        offers: tokio::sync::mpsc::Sender<String>,
    ) -> Self {
        Self {
            sender,
            switches,
            truth,
            connected: false,
            timeout: Instant::now(),
            buffer: vec![0; 2000],
            changing: None,
            offers,
        }
    }

    /// Does what is to be done now. Returns when it wants to be called again; none when it has ended.
    pub fn drive(&mut self) -> Option<Instant> {
        let again = if self.switches.stop.load(Ordering::Relaxed) { None } else { self.drive_or_fail().ok().flatten() };
        if again.is_none() {
            self.switches.ended.store(true, Ordering::Relaxed);
        }
        again
    }

    fn drive_or_fail(&mut self) -> Result<Option<Instant>> {
        while let Ok((len, from)) = self.sender.socket.recv_from(&mut self.buffer) {
            // What is neither STUN, DTLS nor RTP is somebody's noise.
            let Ok(receive) = Receive::new(Protocol::Udp, from, self.sender.local, &self.buffer[..len]) else {
                continue;
            };
            self.sender.rtc.handle_input(Input::Receive(Instant::now(), receive))?;
            self.timeout = self.sender.poll(&self.truth)?;
        }
        let now = Instant::now();
        if self.timeout <= now {
            self.sender.rtc.handle_input(Input::Timeout(now))?;
            self.timeout = self.sender.poll(&self.truth)?;
        }
        if !self.sender.rtc.is_alive() {
            return Ok(None);
        }
        if !self.connected && self.sender.rtc.is_connected() {
            self.connected = true;
            let Connection { video, audio, screen, .. } = &mut self.sender;
            [video, audio, screen].into_iter().flatten().for_each(|flow| flow.due = now);
            self.switches.connected.store(true, Ordering::Relaxed);
        }
        let mut wake = self.timeout;
        if self.connected {
            self.change()?;
            self.send_due(now)?;
            for flow in [&self.sender.video, &self.sender.audio, &self.sender.screen].into_iter().flatten() {
                wake = wake.min(flow.due);
            }
        }
        Ok(Some(wake))
    }

    /// Takes a track out of the connection or adds it, and takes the answer to that.
    fn change(&mut self) -> Result<()> {
        if let Some(answer) = lock(&self.switches.answer).take() {
            self.sender.answer(&answer)?;
            let rtc = &self.sender.rtc;
            let is_off = |track: &Option<TrackSender>| {
                track.as_ref().is_some_and(|t| !rtc.media(t.mid).is_some_and(|m| m.direction().is_sending()))
            };
            for (track, kind) in [(&self.sender.video, MediaKind::Video), (&self.sender.audio, MediaKind::Audio)] {
                // A muted track stays muted.
                if self.changing == Some(kind) {
                    self.switches.off(kind).store(is_off(track), Ordering::Relaxed);
                }
            }
            self.changing = None;
            self.switches.changes.fetch_add(1, Ordering::Relaxed);
        }
        let Some(Change { kind, added }) = lock(&self.switches.change).take() else { return Ok(()) };
        let track = if kind == MediaKind::Video { &self.sender.video } else { &self.sender.audio };
        let mid = track.as_ref().context("there is no such track")?.mid;
        self.switches.off(kind).store(true, Ordering::Relaxed);
        let mut changes = self.sender.rtc.sdp_api();
        changes.set_direction(mid, if added { Direction::SendOnly } else { Direction::Inactive });
        let (offer, pending) = changes.apply().context("nothing changes")?;
        self.sender.pending = Some(pending);
        self.changing = Some(kind);
        self.offers.try_send(offer.to_sdp_string()).context("an offer is under way")
    }

    fn send_due(&mut self, now: Instant) -> Result<()> {
        let Connection { video, audio, options, .. } = &mut self.sender;
        let due = [video.as_ref(), audio.as_ref()].into_iter().flatten().map(|track| track.due).min();
        let late = due.map(|due| now.saturating_duration_since(due)).unwrap_or_default();
        {
            let mut truth = lock(&self.truth);
            truth.late_max = truth.late_max.max(late);
        }
        let size = lock(&self.switches.size).take();
        if let (Some(size), Some(video)) = (size, video.as_mut()) {
            video.switch(Some(MediaSource::video(options, size, options.code)?), 0);
        }
        let seconds = self.switches.jump.swap(0, Ordering::Relaxed);
        if seconds > 0 {
            [video.as_mut().map(|v| (v, options.fps)), audio.as_mut().map(|a| (a, 50))]
                .into_iter()
                .flatten()
                .for_each(|(track, a_second)| track.switch(None, seconds * a_second));
        }
        let off = |switch: &std::sync::atomic::AtomicBool| switch.load(Ordering::Relaxed);
        while let Some(video) = self.sender.video.as_mut().filter(|f| f.due <= now) {
            let video_off = off(&self.switches.video_off);
            if let Some(sent) = video.send(&mut self.sender.rtc, video_off, &self.sender.options)? {
                note(&mut lock(&self.truth).frames, sent);
            } else if video_off {
                lock(&self.truth).frames_left_out += 1;
            }
            self.timeout = self.sender.poll(&self.truth)?;
        }
        while let Some(screen) = self.sender.screen.as_mut().filter(|f| f.due <= now) {
            if let Some(sent) = screen.send(&mut self.sender.rtc, false, &self.sender.options)? {
                note(&mut lock(&self.truth).screen_frames, sent);
            }
            self.timeout = self.sender.poll(&self.truth)?;
        }
        while let Some(audio) = self.sender.audio.as_mut().filter(|f| f.due <= now) {
            let audio_off = off(&self.switches.audio_off);
            if let Some(sent) = audio.send(&mut self.sender.rtc, audio_off, &self.sender.options)? {
                let mut truth = lock(&self.truth);
                truth.audio_packets += 1;
                truth.tones += u64::from(sent.tone);
                if sent.number.is_multiple_of(50) {
                    truth.beeps.push((sent.number / 50, sent.taken));
                }
            }
            self.timeout = self.sender.poll(&self.truth)?;
        }
        Ok(())
    }
}

/// Notes a picture in the order in which pictures are taken, which need not be that in which they are sent.
fn note(frames: &mut Vec<(u32, Instant)>, sent: Sent) {
    let earlier = frames.iter().rev().take_while(|(_, taken)| *taken > sent.taken).count();
    frames.insert(frames.len() - earlier, (sent.number, sent.taken));
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn codecs(options: &Options) -> RtcConfig {
    let config = RtcConfig::new().clear_codecs();
    let config = match options.video {
        Some(VideoCodec::Vp8) => config.enable_vp8(true),
        Some(VideoCodec::Vp9) => config.enable_vp9(true),
        Some(VideoCodec::H264) => h264(config, options.h264_profile.or_else(|| options.h264.profile_level_id())),
        Some(VideoCodec::Av1) => config.enable_av1(true),
        None => config,
    };
    let mut config = match options.audio {
        Some(AudioCodec::Opus) => config.enable_opus(true, false),
        Some(AudioCodec::Pcmu) => config.enable_pcmu(true, false),
        Some(AudioCodec::Pcma) => config.enable_pcma(true, false),
        Some(AudioCodec::G722) => config.enable_g722(true, false),
        None => config,
    };
    if let Some(rate) = options.audio.filter(|_| options.telephone).and_then(|codec| Frequency::new(codec.rate())) {
        config.codec_config().add_config(TELEPHONE.into(), None, Codec::Tele, rate, None, FormatParams::default());
    }
    config
}

fn h264(mut config: RtcConfig, profile_level_id: Option<u32>) -> RtcConfig {
    let Some(profile_level_id) = profile_level_id else { return config.enable_h264(true) };
    config.codec_config().add_h264(96.into(), Some(97.into()), true, profile_level_id);
    config
}

/// The same SDP with the address of each UDP candidate (RFC 8839 section 5.1) replaced.
fn map_candidates(sdp: &str, map: impl Fn(SocketAddr) -> SocketAddr) -> String {
    let mut known: BTreeMap<SocketAddr, SocketAddr> = BTreeMap::new();
    let mut mapped = String::with_capacity(sdp.len());
    for line in sdp.lines() {
        let mut fields: Vec<String> = line.split(' ').map(str::to_owned).collect();
        if line.starts_with("a=candidate:")
            && fields.len() > 5
            && fields[2].eq_ignore_ascii_case("udp")
            && let Ok(remote) = format!("{}:{}", fields[4], fields[5]).parse()
        {
            let to = *known.entry(remote).or_insert_with(|| map(remote));
            (fields[4], fields[5]) = (to.ip().to_string(), to.port().to_string());
        }
        mapped.push_str(&fields.join(" "));
        mapped.push_str("\r\n");
    }
    mapped
}
