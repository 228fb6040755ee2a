//! One track of a publisher: what is sent next, and when.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use str0m::format::Codec;
use str0m::media::{Frequency, MediaTime, Mid, TelephoneEvent};
use str0m::{Input, Rtc};

use super::Options;
use super::encrypt::encrypt;
use super::live::LiveEncoder;
use super::media::{self, AudioCoding, Loop, VideoCoding};

/// Opus packets that carry nothing but silence are so short, in bytes.
const SILENCE_BYTES: usize = 3;
/// With DTX one of so many of them is sent (RFC 7587 section 3.1.3: one each 400 ms).
const DTX_EVERY: u64 = 20;
/// A key is pressed each two seconds of sound, in packets, half a second after a beep.
const TONE_EVERY: u32 = 100;
const TONE_AT: u32 = 25;
/// And held so long.
const TONE: Duration = Duration::from_millis(160);

pub(super) enum MediaSource {
    Loop(Loop),
    Live(Box<LiveEncoder>),
}

impl MediaSource {
    /// The picture as it is at first, or of another size.
    pub fn video(options: &Options, size: (u32, u32), code: u16) -> Result<Self> {
        let codec = options.video.context("no video")?;
        let coding =
            VideoCoding { codec, h264: options.h264, size, code, kilobits: options.kilobits, fps: options.fps };
        Ok(if options.live {
            Self::Live(Box::new(LiveEncoder::new(coding)?))
        } else {
            Self::Loop(media::video(coding)?)
        })
    }

    /// The sound.
    pub fn audio(options: &Options) -> Result<Self> {
        let codec = options.audio.context("no audio")?;
        Ok(Self::Loop(media::audio(AudioCoding { codec, stereo: options.stereo, fec: options.fec })?))
    }
}

/// What was sent at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sent {
    /// The number of the picture, or of the packet of sound.
    pub number: u32,
    /// When it was taken.
    pub taken: Instant,
    /// Whether a telephone event begins with it.
    pub tone: bool,
}

pub(super) struct TrackSender {
    pub mid: Mid,
    codec: Codec,
    rate: u32,
    source: MediaSource,
    /// Follows at the next place where no picture waits for an earlier one.
    next_source: Option<MediaSource>,
    /// So many numbers are left out there.
    jump: u32,
    /// The place in the loop, or the number of the picture, that is next.
    position: u32,
    /// After so many the numbers begin again.
    numbers: u32,
    pub keyframe_wanted: bool,
    /// RTP time.
    ticks: u64,
    step: Duration,
    ticks_a_step: u64,
    silent: u64,
    /// How many of the pictures that were sent are shown after one that was not yet.
    ahead: i64,
    pub due: Instant,
}

impl TrackSender {
    pub fn new(mid: Mid, codec: Codec, rate: u32, source: MediaSource, step: Duration) -> Self {
        let ticks_a_step = u64::from(rate) * u64::try_from(step.as_nanos()).unwrap_or(0);
        Self {
            mid,
            codec,
            rate,
            numbers: numbers(&source),
            source,
            next_source: None,
            jump: 0,
            position: 0,
            keyframe_wanted: true,
            ticks: 0,
            step,
            ticks_a_step: (ticks_a_step + 500_000_000) / 1_000_000_000,
            silent: 0,
            ahead: 0,
            due: Instant::now(),
        }
    }

    /// Sends another source from now on, and jumps so many numbers forward.
    pub fn switch(&mut self, source: Option<MediaSource>, jump: u32) {
        self.next_source = source.or(self.next_source.take());
        self.jump += jump;
    }

    /// Sends what is due, or lets its time pass. Returns what was sent.
    pub fn send(&mut self, rtc: &mut Rtc, off: bool, options: &Options) -> Result<Option<Sent>> {
        let (ticks, due) = (self.ticks, self.due);
        self.ticks += self.ticks_a_step;
        self.due += self.step;
        // An encoder that reorders gives away what it has before anything changes.
        let whole = self.ahead == 0;
        if off && whole {
            // Whoever comes back begins with a keyframe.
            self.keyframe_wanted = true;
            self.position = (self.position + 1) % self.numbers;
            return Ok(None);
        }
        if let Some(source) = self.next_source.take_if(|_| whole) {
            self.numbers = numbers(&source);
            (self.source, self.keyframe_wanted) = (source, true);
        }
        if whole {
            self.position = (self.position + std::mem::take(&mut self.jump)) % self.numbers;
        }
        let keyframe = whole && std::mem::take(&mut self.keyframe_wanted);
        let (mut data, later) = match &mut self.source {
            MediaSource::Live(live) => (live.encode(self.position, keyframe)?, 0),
            MediaSource::Loop(media) => {
                while keyframe && !media[self.position as usize].is_key {
                    self.position = (self.position + 1) % self.numbers;
                }
                let coded = &media[self.position as usize];
                (coded.data.clone(), i64::from(coded.shown) - i64::from(self.position))
            }
        };
        let position = self.position;
        self.position = (position + 1) % self.numbers;
        self.ahead += later;
        self.silent = if data.len() <= SILENCE_BYTES { self.silent + 1 } else { 0 };
        if options.dtx && self.silent > 0 && !self.silent.is_multiple_of(DTX_EVERY) {
            return Ok(None);
        }
        let Some(writer) = rtc.writer(self.mid) else { return Ok(None) };
        let Some(pt) = writer.payload_params().find(|p| p.spec().codec == self.codec).map(|p| p.pt()) else {
            return Ok(None);
        };
        let is_telephone = writer.payload_params().any(|p| p.spec().codec == Codec::Tele);
        let tone = is_telephone && position % TONE_EVERY == TONE_AT;
        let writer = if tone {
            let event = u8::try_from(position / TONE_EVERY % 10).unwrap_or_default();
            writer.telephone_event(TelephoneEvent { event, end: true, volume: 10, duration: TONE })
        } else {
            writer
        };
        let ticks = ticks.saturating_add_signed(later * i64::try_from(self.ticks_a_step).unwrap_or(0));
        let time = MediaTime::new(ticks, Frequency::new(self.rate).unwrap_or(Frequency::NINETY_KHZ));
        let shift = self.step * u32::try_from(later.unsigned_abs()).unwrap_or(0);
        let taken = if later < 0 { due - shift } else { due + shift };
        if options.encrypted {
            encrypt(self.codec, &mut data, ticks);
        }
        writer.write(pt, due, time, data)?;
        rtc.handle_input(Input::Timeout(Instant::now()))?;
        let number = u32::try_from(i64::from(position) + later).unwrap_or(position);
        Ok(Some(Sent { number, taken, tone }))
    }
}

fn numbers(source: &MediaSource) -> u32 {
    match source {
        MediaSource::Loop(media) => u32::try_from(media.len()).unwrap_or(u32::MAX),
        // Sixteen cells of the picture hold its number.
        MediaSource::Live(_) => 1 << 16,
    }
}
