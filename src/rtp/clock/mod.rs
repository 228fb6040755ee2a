//! A track's clock: from RTP time to media time, and the corrections that sender reports allow.
//!
//! Frames are written by a *provisional* clock that is anchored at the arrival of the first packet: what
//! is written must not wait for a sender report. The reports are kept raw in the index; when the log is
//! read, [`corrections`] computes over all tracks of a session how far each provisional clock was off.
//! All reports of a session are written by one clock (Janus writes its own), so tracks that lean on them
//! are in step with each other whatever the network did to their first packets.

mod correct;

pub use correct::{Correction, corrections};

use crate::model::time::{MediaSpan, MediaTime, RtpUnwrapper, ticks_to_span};

const MS: MediaSpan = 1_000_000;
/// A packet with a higher sequence number may go back by this much: pictures that are not in the order of
/// their times. Beyond it RTP time has jumped.
const BACK_MAX: MediaSpan = 500 * MS;
/// RTP time may run ahead of arrival by this much from packet to packet, by jitter; beyond it, it has jumped.
const AHEAD_MAX: MediaSpan = 1_000 * MS;
/// From this on a packet is late enough to ask who slept: the sender, whose RTP time does not count the
/// pause (janus-gateway#2292), or the network.
const LATE_MIN: MediaSpan = 200 * MS;
/// From this on one packet is enough to believe that the sender slept.
const LATE_CERTAIN: MediaSpan = 1_000 * MS;
/// How long packets are watched after a pause, when there are enough of them.
const WATCH: MediaSpan = 500 * MS;
/// How many packets of different times are enough.
const WATCH_TIMES: u32 = 5;
/// How long packets are watched at most.
const WATCH_MAX: MediaSpan = 1_500 * MS;
/// The least delay is remembered this long (and up to twice as long): longer than jitter and bursts, short
/// enough to follow a sender's clock that drifts.
const DELAY_WINDOW: MediaSpan = 5_000 * MS;

/// How a packet's RTP time fits its arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// It does.
    Good,
    /// RTP time went on, the packet came much later: a pause of the sender, or of the network. Which of the
    /// two only the packets after it tell: see [`TrackClock::judge`].
    Late {
        /// How much later than RTP time says.
        by: MediaSpan,
    },
    /// RTP time jumped. The clock was anchored anew at this packet's arrival.
    Jumped,
}

/// What a pause was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pause {
    /// The network's: packets catch up with RTP time. Nothing changes.
    Network,
    /// The sender's: RTP time did not count it. The clock was anchored anew behind it.
    Sender {
        /// How much later the packets are that came since the pause.
        by: MediaSpan,
    },
}

/// The provisional clock of a track.
#[derive(Debug, Clone)]
pub struct TrackClock {
    rate: u32,
    unwrapper: RtpUnwrapper,
    line: Option<Line>,
    delay: LeastDelay,
    watch: Option<Watch>,
}

/// RTP time on media time, from one anchoring to the next.
#[derive(Debug, Clone, Copy)]
struct Line {
    ticks: i64,
    at: MediaTime,
    last_ticks: i64,
    last_arrived: MediaTime,
}

/// The least of (arrival - media time) in two windows. A long silence does not make it forget.
#[derive(Debug, Clone, Copy, Default)]
struct LeastDelay {
    before: Option<MediaSpan>,
    since: MediaTime,
    now: Option<MediaSpan>,
}

#[derive(Debug, Clone, Copy)]
struct Watch {
    began: MediaTime,
    least: MediaSpan,
    last_ticks: i64,
    times: u32,
}

impl Line {
    fn time(&self, ticks: i64, rate: u32) -> MediaTime {
        self.at + ticks_to_span(ticks - self.ticks, rate)
    }
}

impl LeastDelay {
    fn add(&mut self, delay: MediaSpan, arrived: MediaTime) {
        if arrived - self.since >= DELAY_WINDOW {
            (self.before, self.now, self.since) = (self.now.or(self.before), None, arrived);
        }
        self.now = Some(self.now.map_or(delay, |now| now.min(delay)));
    }

    fn get(&self) -> MediaSpan {
        self.now.into_iter().chain(self.before).min().unwrap_or(0)
    }
}

impl TrackClock {
    /// A clock with a rate in Hz.
    #[must_use]
    pub fn new(rate: u32) -> Self {
        Self { rate, unwrapper: RtpUnwrapper::new(), line: None, delay: LeastDelay::default(), watch: None }
    }

    /// Its rate in Hz.
    #[must_use]
    pub const fn rate(&self) -> u32 {
        self.rate
    }

    /// Looks at a packet with the highest sequence number so far. Returns its media time.
    pub fn observe(&mut self, rtp: u32, arrived: MediaTime) -> (MediaTime, Fit) {
        let ticks = self.unwrapper.unwrap(rtp);
        let Some(mut line) = self.line else {
            self.line = Some(Line { ticks, at: arrived, last_ticks: ticks, last_arrived: arrived });
            self.delay = LeastDelay { since: arrived, now: Some(0), before: None };
            return (arrived, Fit::Good);
        };
        let time = line.time(ticks, self.rate);
        let (delay, usual) = (arrived - time, self.delay.get());
        let passed = arrived - line.last_arrived;
        let counted = ticks_to_span(ticks - line.last_ticks, self.rate);
        if counted < -BACK_MAX || (counted > passed + AHEAD_MAX && delay < usual - AHEAD_MAX) {
            let at = arrived + -usual;
            self.line = Some(Line { ticks, at, last_ticks: ticks, last_arrived: arrived });
            self.watch = None;
            return (at, Fit::Jumped);
        }
        if ticks >= line.last_ticks {
            (line.last_ticks, line.last_arrived) = (ticks, arrived);
            self.line = Some(line);
        }
        let late = delay - usual;
        if let Some(watch) = &mut self.watch {
            watch.least = watch.least.min(late);
            watch.times += u32::from(ticks != watch.last_ticks);
            watch.last_ticks = ticks;
        } else if late >= LATE_MIN && passed >= LATE_MIN {
            self.watch = Some(Watch { began: arrived, least: late, last_ticks: ticks, times: 1 });
            return (time, Fit::Late { by: late });
        } else {
            self.delay.add(delay, arrived);
        }
        (time, Fit::Good)
    }

    /// Whether a pause is being judged. Until it is, nobody knows the times of the packets after it.
    #[must_use]
    pub const fn is_judging(&self) -> bool {
        self.watch.is_some()
    }

    /// Judges a pause, if there was one and enough was seen since, or (`at_once`) by what was seen.
    pub fn judge(&mut self, now: MediaTime, at_once: bool) -> Option<Pause> {
        let watch = self.watch?;
        let watched = now - watch.began;
        let enough = watched >= WATCH && watch.times >= WATCH_TIMES;
        if watch.least >= LATE_MIN && !enough && watched < WATCH_MAX && !at_once {
            return None;
        }
        self.watch = None;
        // Few packets of a slow picture say little of a short pause.
        let slept = watch.least >= LATE_MIN && (enough || watch.times > 2 || watch.least >= LATE_CERTAIN);
        match &mut self.line {
            Some(line) if slept => {
                line.at = line.at + watch.least;
                Some(Pause::Sender { by: watch.least })
            }
            _ => Some(Pause::Network),
        }
    }

    /// The media time of an RTP time near that of the newest packet; the origin before the first.
    #[must_use]
    pub fn media_time(&self, rtp: u32) -> MediaTime {
        self.line.map_or(MediaTime::ZERO, |line| line.time(self.unwrapper.clone().unwrap(rtp), self.rate))
    }

    /// Whether a packet's RTP time is about what its arrival lets expect.
    #[must_use]
    pub fn expects(&self, rtp: u32, arrived: MediaTime) -> bool {
        let usual = self.delay.get();
        self.line.is_some() && (arrived - self.media_time(rtp) - usual).abs() <= AHEAD_MAX
    }

    /// The media time of a sender report's RTP time. `None` before the first packet, and while a pause is
    /// being judged.
    #[must_use]
    pub fn report_time(&self, rtp: u32) -> Option<MediaTime> {
        (self.line.is_some() && !self.is_judging()).then(|| self.media_time(rtp))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: i64) -> MediaTime {
        MediaTime::from_millis(ms)
    }

    /// A sender of 50 packets a second: `rtp` of a sending time in ms.
    fn at_48k(ms: i64) -> u32 {
        u32::try_from(ms * 48).expect("small")
    }

    #[test]
    fn rtp_time_counts_from_the_first_arrival_over_the_wrap() {
        let mut clock = TrackClock::new(90_000);
        assert_eq!(clock.observe(0xffff_ff00, ms(1000)).0, ms(1000));
        assert_eq!(clock.observe(0xffff_ff00_u32.wrapping_add(9000), ms(1103)), (ms(1100), Fit::Good));
    }

    #[test]
    fn a_jump_of_rtp_time_anchors_the_clock_anew() {
        for jump in [180_000_u32, 900_000, 0x7000_0000, 0x9000_0000, 0_u32.wrapping_sub(90_000)] {
            let mut clock = TrackClock::new(90_000);
            clock.observe(1000, ms(0));
            assert_eq!(clock.observe(1000_u32.wrapping_add(jump), ms(40)), (ms(40), Fit::Jumped), "{jump:#x}");
        }
    }

    #[test]
    fn after_a_jump_the_least_delay_stays_what_it_was() {
        let mut clock = TrackClock::new(48_000);
        clock.observe(0, ms(80));
        clock.observe(at_48k(20), ms(40));
        // The first packet had 60 ms more delay than the second.
        assert_eq!(clock.observe(0x8000_0000, ms(60)).0, ms(120));
    }

    #[test]
    fn a_pause_that_rtp_time_does_not_count_is_the_senders() {
        for pause in [250, 1000, 10_000] {
            let mut clock = TrackClock::new(48_000);
            for i in 0..50 {
                clock.observe(at_48k(i * 20), ms(i * 20));
            }
            let (_, fit) = clock.observe(at_48k(1000), ms(1000 + pause));
            assert!(matches!(fit, Fit::Late { .. }), "{fit:?}");
            let mut verdict = None;
            for i in 51..100 {
                clock.observe(at_48k(i * 20), ms(i * 20 + pause));
                verdict = verdict.or_else(|| clock.judge(ms(i * 20 + pause), false));
            }
            assert_eq!(verdict, Some(Pause::Sender { by: pause * MS }), "{pause} ms");
            assert_eq!(clock.media_time(at_48k(2000)), ms(2000 + pause));
        }
    }

    #[test]
    fn a_pause_of_the_network_is_caught_up_and_changes_nothing() {
        let mut clock = TrackClock::new(48_000);
        clock.observe(0, ms(0));
        let mut verdict = None;
        for i in 1..200_i64 {
            let arrived = ms((i * 20).max(2000 + i));
            clock.observe(at_48k(i * 20), arrived);
            verdict = verdict.or_else(|| clock.judge(arrived, false));
        }
        assert_eq!(verdict, Some(Pause::Network));
        assert_eq!(clock.media_time(at_48k(5000)), ms(5000));
    }

    #[test]
    fn jitter_and_delay_that_grows_anchor_nothing_anew() {
        let mut clock = TrackClock::new(48_000);
        for i in 0..3000_i64 {
            let delay = (i * 7919) % 150 + (i / 10).min(900);
            let (time, fit) = clock.observe(at_48k(i * 20), ms(i * 20 + delay));
            assert_eq!((time, fit), (ms(i * 20), Fit::Good), "packet {i}");
        }
    }

    #[test]
    fn a_clock_that_drifts_for_hours_is_no_pause_and_no_jump() {
        // 300 ppm slow, with a silence of 400 ms now and then: after 4 h it is 4 s behind.
        let mut clock = TrackClock::new(8_000);
        let mut at = 0_i64;
        while at < 4 * 3600 * 1000 {
            at += if at % 10_000 < 9600 { 20 } else { 400 };
            let rtp = u32::try_from((at * 8) - at * 8 * 3 / 10_000).expect("small");
            let (_, fit) = clock.observe(rtp, ms(at));
            assert_eq!(fit, Fit::Good, "at {at} ms");
        }
    }
}
