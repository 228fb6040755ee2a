//! The sending PeerConnection.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use str0m::change::{SdpAnswer, SdpPendingOffer};
use str0m::format::Codec;
use str0m::media::{Direction, Frequency, MediaKind, MediaTime, Mid};
use str0m::net::{Protocol, Receive};
use str0m::{Candidate, Event, Input, Output, Rtc, RtcConfig};

use super::encrypt::encrypt;
use super::live::LiveEncoder;
use super::media::{self, AudioCodec, FPS, Loop, VideoCodec};
use super::{Options, Switches, Truth};

/// Opus packets that carry nothing but silence are so short, in bytes.
const SILENCE_BYTES: usize = 3;
/// With DTX one of so many of them is sent (RFC 7587 section 3.1.3: one each 400 ms).
const DTX_EVERY: u64 = 20;

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
    /// Takes the offers of changes.
    offers: tokio::sync::mpsc::Sender<String>,
}

enum MediaSource {
    Loop(Loop),
    Live(Box<LiveEncoder>),
}

/// A picture or packet that was sent.
struct Sent {
    number: u32,
    /// When it was taken.
    taken: Instant,
}

struct TrackSender {
    mid: Mid,
    codec: Codec,
    rate: u32,
    source: MediaSource,
    /// The picture or packet that is next.
    number: u32,
    /// After so many the numbers begin again.
    numbers: u32,
    /// The highest number of a picture since the last keyframe. Pictures that are shown before it may be still to come.
    shown_last: u32,
    /// Pictures are sent so many steps after they were taken: so long an encoder waits for what B-frames refer to.
    lag: u32,
    keyframe_wanted: bool,
    encrypted: bool,
    /// RTP time.
    ticks: u64,
    step: Duration,
    ticks_a_step: u64,
    silent: u64,
    due: Instant,
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
            let source = MediaSource::Loop(media::audio(codec)?);
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
                let source = video_source(options, options.size, code)?;
                let sender =
                    TrackSender::new(mid(MediaKind::Video), name, 90_000, source, Duration::from_secs(1) / FPS);
                Ok(TrackSender { lag: options.b_frames, ..sender })
            };
            video = Some(sender(options.code)?);
            screen = options.screen.map(&mut sender).transpose()?;
        }
        for flow in [&mut video, &mut audio, &mut screen].into_iter().flatten() {
            flow.encrypted = options.encrypted;
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
        Self { sender, switches, truth, connected: false, timeout: Instant::now(), buffer: vec![0; 2000], offers }
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

    /// Takes the picture out of the connection or adds it, and takes the answer to that.
    fn change(&mut self) -> Result<()> {
        if let Some(answer) = lock(&self.switches.answer).take() {
            self.sender.answer(&answer)?;
            let sends = self.sender.video.as_ref().and_then(|video| self.sender.rtc.media(video.mid));
            let off = !sends.is_some_and(|media| media.direction().is_sending());
            self.switches.video_off.store(off, Ordering::Relaxed);
            self.switches.changes.fetch_add(1, Ordering::Relaxed);
        }
        let (Some(added), Some(video)) = (lock(&self.switches.video_added).take(), &self.sender.video) else {
            return Ok(());
        };
        self.switches.video_off.store(true, Ordering::Relaxed);
        let mut changes = self.sender.rtc.sdp_api();
        changes.set_direction(video.mid, if added { Direction::SendOnly } else { Direction::Inactive });
        let (offer, pending) = changes.apply().context("nothing changes")?;
        self.sender.pending = Some(pending);
        self.offers.try_send(offer.to_sdp_string()).context("an offer is under way")
    }

    fn send_due(&mut self, now: Instant) -> Result<()> {
        let resize = lock(&self.switches.size).take();
        if let (Some(size), Some(video)) = (resize, &mut self.sender.video) {
            video.source = video_source(&self.sender.options, size, self.sender.options.code)?;
            video.keyframe_wanted = true;
        }
        let off = |switch: &std::sync::atomic::AtomicBool| switch.load(Ordering::Relaxed);
        while let Some(video) = self.sender.video.as_mut().filter(|f| f.due <= now) {
            let video_off = off(&self.switches.video_off);
            if let Some(sent) = video.send(&mut self.sender.rtc, video_off, false)? {
                lock(&self.truth).frames.push((sent.number, sent.taken));
            } else if video_off {
                lock(&self.truth).frames_left_out += 1;
            }
            self.timeout = self.sender.poll(&self.truth)?;
        }
        while let Some(screen) = self.sender.screen.as_mut().filter(|f| f.due <= now) {
            if let Some(sent) = screen.send(&mut self.sender.rtc, false, false)? {
                lock(&self.truth).screen_frames.push((sent.number, sent.taken));
            }
            self.timeout = self.sender.poll(&self.truth)?;
        }
        while let Some(audio) = self.sender.audio.as_mut().filter(|f| f.due <= now) {
            let dtx = self.sender.options.dtx;
            if let Some(sent) = audio.send(&mut self.sender.rtc, off(&self.switches.audio_off), dtx)? {
                let mut truth = lock(&self.truth);
                truth.audio_packets += 1;
                if sent.number.is_multiple_of(50) {
                    truth.beeps.push((sent.number / 50, sent.taken));
                }
            }
            self.timeout = self.sender.poll(&self.truth)?;
        }
        Ok(())
    }
}

impl TrackSender {
    fn new(mid: Mid, codec: Codec, rate: u32, source: MediaSource, step: Duration) -> Self {
        let numbers = match &source {
            MediaSource::Loop(media) => u32::try_from(media.len()).unwrap_or(u32::MAX),
            // Sixteen cells of the picture hold its number.
            MediaSource::Live(_) => 1 << 16,
        };
        let ticks_a_step = u64::from(rate) * u64::try_from(step.as_nanos()).unwrap_or(0);
        Self {
            mid,
            codec,
            rate,
            source,
            number: 0,
            numbers,
            shown_last: numbers - 1,
            lag: 0,
            keyframe_wanted: true,
            encrypted: false,
            ticks: 0,
            step,
            ticks_a_step: (ticks_a_step + 500_000_000) / 1_000_000_000,
            silent: 0,
            due: Instant::now(),
        }
    }

    /// Whether all pictures that are shown before those that come were sent.
    const fn is_in_order(&self) -> bool {
        self.lag == 0 || self.number == (self.shown_last + 1) % self.numbers
    }

    /// Sends what is due, or lets its time pass. Returns what was sent.
    fn send(&mut self, rtc: &mut Rtc, off: bool, dtx: bool) -> Result<Option<Sent>> {
        let (due, ticks) = (self.due, self.ticks);
        self.ticks += self.ticks_a_step;
        self.due += self.step;
        if off {
            // Whoever comes back begins with a keyframe.
            self.keyframe_wanted = true;
            self.shown_last = self.number;
            self.number = (self.number + 1) % self.numbers;
            return Ok(None);
        }
        // A keyframe in the middle of reordered pictures would come before some that are shown earlier.
        let keyframe = self.is_in_order() && std::mem::take(&mut self.keyframe_wanted);
        let (mut data, number) = match &mut self.source {
            MediaSource::Live(live) => (live.encode(self.number, keyframe)?, self.number),
            MediaSource::Loop(media) => {
                while keyframe && !media[self.number as usize].keyframe {
                    self.number = (self.number + 1) % self.numbers;
                }
                let coded = &media[self.number as usize];
                self.shown_last = if coded.keyframe { coded.number } else { self.shown_last.max(coded.number) };
                (coded.data.clone(), coded.number)
            }
        };
        // How many steps it is shown after its turn.
        let later = i64::from(number) - i64::from(self.number);
        self.number = (self.number + 1) % self.numbers;
        let ticks = (i64::try_from(ticks)? + later * i64::try_from(self.ticks_a_step)?).cast_unsigned();
        let time = MediaTime::new(ticks, Frequency::new(self.rate).unwrap_or(Frequency::NINETY_KHZ));
        let before = u32::try_from(i64::from(self.lag) - later)?;
        let taken = due.checked_sub(self.step * before).context("the clock has just begun")?;
        self.silent = if data.len() <= SILENCE_BYTES { self.silent + 1 } else { 0 };
        if dtx && self.silent > 0 && !self.silent.is_multiple_of(DTX_EVERY) {
            return Ok(None);
        }
        let Some(writer) = rtc.writer(self.mid) else { return Ok(None) };
        let Some(pt) = writer.payload_params().find(|p| p.spec().codec == self.codec).map(|p| p.pt()) else {
            return Ok(None);
        };
        if self.encrypted {
            encrypt(self.codec, &mut data, self.ticks);
        }
        writer.write(pt, taken, time, data)?;
        rtc.handle_input(Input::Timeout(Instant::now()))?;
        Ok(Some(Sent { number, taken }))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn codecs(options: &Options) -> RtcConfig {
    let config = RtcConfig::new().clear_codecs();
    let config = match options.video {
        Some(VideoCodec::Vp8) => config.enable_vp8(true),
        Some(VideoCodec::Vp9) => config.enable_vp9(true),
        Some(VideoCodec::H264) => h264(config, options.h264_profile),
        Some(VideoCodec::Av1) => config.enable_av1(true),
        None => config,
    };
    match options.audio {
        Some(AudioCodec::Opus) => config.enable_opus(true, false),
        Some(AudioCodec::Pcmu) => config.enable_pcmu(true, false),
        Some(AudioCodec::Pcma) => config.enable_pcma(true, false),
        Some(AudioCodec::G722) => config.enable_g722(true, false),
        None => config,
    }
}

fn h264(mut config: RtcConfig, profile_level_id: Option<u32>) -> RtcConfig {
    let Some(profile_level_id) = profile_level_id else { return config.enable_h264(true) };
    config.codec_config().add_h264(96.into(), Some(97.into()), true, profile_level_id);
    config
}

fn video_source(options: &Options, size: (u32, u32), code: u16) -> Result<MediaSource> {
    let codec = options.video.context("no video")?;
    Ok(if options.live {
        MediaSource::Live(Box::new(LiveEncoder::new(codec, size, code, options.kilobits)?))
    } else {
        MediaSource::Loop(media::video(codec, size, code, options.kilobits, options.b_frames)?)
    })
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
