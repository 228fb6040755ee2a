//! The sending PeerConnection.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use str0m::change::{SdpAnswer, SdpPendingOffer};
use str0m::format::Codec;
use str0m::media::{Direction, Frequency, MediaKind, MediaTime, Mid};
use str0m::net::{Protocol, Receive};
use str0m::{Candidate, Event, Input, Output, Rtc, RtcConfig};

use super::media::{self, AudioCodec, FPS, Loop, VideoCodec};
use super::{Options, Switches, Truth};

pub(super) struct Sender {
    rtc: Rtc,
    socket: UdpSocket,
    local: SocketAddr,
    pending: Option<SdpPendingOffer>,
    video: Option<Flow>,
    audio: Option<Flow>,
}

struct Flow {
    mid: Mid,
    codec: Codec,
    rate: u32,
    media: Loop,
    /// Next entry of the loop.
    next: usize,
    /// Entries sent or skipped since the start, which give the RTP time.
    ticks: u64,
    step: Duration,
    ticks_a_step: u64,
    due: Instant,
}

impl Sender {
    pub fn offer(options: &Options) -> Result<(Self, String)> {
        let mut config = RtcConfig::new().clear_codecs();
        config = match options.video {
            Some(VideoCodec::Vp8) => config.enable_vp8(true),
            Some(VideoCodec::Vp9) => config.enable_vp9(true),
            Some(VideoCodec::H264) => config.enable_h264(true),
            Some(VideoCodec::Av1) => config.enable_av1(true),
            None => config,
        };
        config = match options.audio {
            Some(AudioCodec::Opus) => config.enable_opus(true, false),
            Some(AudioCodec::Pcmu) => config.enable_pcmu(true, false),
            Some(AudioCodec::Pcma) => config.enable_pcma(true, false),
            None => config,
        };
        let mut rtc = config.build(Instant::now());
        let socket = UdpSocket::bind(SocketAddr::new(options.local, 0))?;
        let local = socket.local_addr()?;
        rtc.add_local_candidate(Candidate::host(local, "udp")?);
        let mut changes = rtc.sdp_api();
        let now = Instant::now();
        let mut flow = |kind, codec, rate, media, step: Duration, ticks_a_step| Flow {
            mid: changes.add_media(kind, Direction::SendOnly, Some("stream".to_owned()), None, None),
            codec,
            rate,
            media,
            next: 0,
            ticks: 0,
            step,
            ticks_a_step,
            due: now,
        };
        let audio = match options.audio {
            None => None,
            Some(codec) => {
                let name = match codec {
                    AudioCodec::Opus => Codec::Opus,
                    AudioCodec::Pcmu => Codec::PCMU,
                    AudioCodec::Pcma => Codec::PCMA,
                };
                let step = Duration::from_millis(20);
                Some(flow(
                    MediaKind::Audio,
                    name,
                    codec.rate(),
                    media::audio(codec)?,
                    step,
                    u64::from(codec.rate() / 50),
                ))
            }
        };
        let video = match options.video {
            None => None,
            Some(codec) => {
                let name = match codec {
                    VideoCodec::Vp8 => Codec::Vp8,
                    VideoCodec::Vp9 => Codec::Vp9,
                    VideoCodec::H264 => Codec::H264,
                    VideoCodec::Av1 => Codec::Av1,
                };
                let media = media::video(codec, options.size, options.code)?;
                Some(flow(MediaKind::Video, name, 90_000, media, Duration::from_secs(1) / FPS, u64::from(90_000 / FPS)))
            }
        };
        let (offer, pending) = changes.apply().context("nothing to publish")?;
        Ok((Self { rtc, socket, local, pending: Some(pending), video, audio }, offer.to_sdp_string()))
    }

    pub fn answer(&mut self, sdp: &str) -> Result<()> {
        let pending = self.pending.take().context("there was no offer")?;
        self.rtc.sdp_api().accept_answer(pending, SdpAnswer::from_sdp_string(sdp)?)?;
        Ok(())
    }

    pub fn run(mut self, switches: &Switches, truth: &Mutex<Truth>) {
        let mut buffer = vec![0; 2000];
        let mut connected = false;
        while !switches.stop.load(Ordering::Relaxed) && self.rtc.is_alive() {
            let now = Instant::now();
            let mut wake = now + Duration::from_millis(50);
            match self.poll(truth) {
                Ok((timeout, now_connected)) => {
                    if now_connected && !connected {
                        connected = true;
                        for flow in [&mut self.video, &mut self.audio].into_iter().flatten() {
                            flow.due = now;
                        }
                        switches.connected.store(true, Ordering::Relaxed);
                    }
                    wake = wake.min(timeout);
                }
                Err(_) => return,
            }
            if connected {
                for flow in [&self.video, &self.audio].into_iter().flatten() {
                    wake = wake.min(flow.due);
                }
            }
            let wait = wake.saturating_duration_since(Instant::now());
            let received = if wait.is_zero() {
                None
            } else {
                self.socket.set_read_timeout(Some(wait.max(Duration::from_millis(1)))).unwrap_or_default();
                self.socket.recv_from(&mut buffer).ok()
            };
            let now = Instant::now();
            let input = match received {
                Some((len, from)) => match Receive::new(Protocol::Udp, from, self.local, &buffer[..len]) {
                    Ok(receive) => Input::Receive(now, receive),
                    Err(_) => continue,
                },
                None => Input::Timeout(now),
            };
            if self.rtc.handle_input(input).is_err() {
                return;
            }
            if connected {
                self.send_due(now, switches, truth);
            }
        }
    }

    fn poll(&mut self, truth: &Mutex<Truth>) -> Result<(Instant, bool)> {
        loop {
            match self.rtc.poll_output()? {
                Output::Timeout(at) => return Ok((at, self.rtc.is_connected())),
                Output::Transmit(t) => {
                    // What the kernel does not take is lost, as on any network.
                    self.socket.send_to(&t.contents, t.destination).map(drop).unwrap_or_default();
                }
                Output::Event(Event::KeyframeRequest(_)) => {
                    truth.lock().unwrap_or_else(PoisonError::into_inner).keyframe_requests += 1;
                    if let Some(video) = &mut self.video {
                        video.skip_to_keyframe();
                    }
                }
                Output::Event(_) => {}
            }
        }
    }

    fn send_due(&mut self, now: Instant, switches: &Switches, truth: &Mutex<Truth>) {
        while let Some(video) = self.video.as_mut().filter(|f| f.due <= now) {
            let number = u32::try_from(video.next).unwrap_or(0);
            let taken = video.due;
            if video.send(&mut self.rtc, taken, switches.video_off.load(Ordering::Relaxed)) {
                truth.lock().unwrap_or_else(PoisonError::into_inner).frames.push((number, taken));
            }
        }
        while let Some(audio) = self.audio.as_mut().filter(|f| f.due <= now) {
            let (packet, taken) = (audio.next, audio.due);
            if audio.send(&mut self.rtc, taken, switches.audio_off.load(Ordering::Relaxed)) {
                let mut truth = truth.lock().unwrap_or_else(PoisonError::into_inner);
                truth.audio_packets += 1;
                if packet % 50 == 0 {
                    truth.beeps.push((u32::try_from(packet / 50).unwrap_or(0), taken));
                }
            }
        }
    }
}

impl Flow {
    /// Sends what is due, or lets its time pass. Returns whether it was sent.
    fn send(&mut self, rtc: &mut Rtc, taken: Instant, off: bool) -> bool {
        let (data, _) = self.media[self.next].clone();
        let time = MediaTime::new(self.ticks, Frequency::new(self.rate).unwrap_or(Frequency::NINETY_KHZ));
        self.next = (self.next + 1) % self.media.len();
        self.ticks += self.ticks_a_step;
        self.due += self.step;
        if off {
            return false;
        }
        let Some(writer) = rtc.writer(self.mid) else { return false };
        let Some(pt) = writer.payload_params().find(|p| p.spec().codec == self.codec).map(|p| p.pt()) else {
            return false;
        };
        let sent = writer.write(pt, taken, time, data).is_ok();
        // Each write wants a poll; what comes out is sent by the next turn of the loop.
        sent && rtc.handle_input(Input::Timeout(Instant::now())).is_ok()
    }

    fn skip_to_keyframe(&mut self) {
        for _ in 0..self.media.len() {
            if self.media[self.next].1 {
                return;
            }
            self.next = (self.next + 1) % self.media.len();
        }
    }
}
