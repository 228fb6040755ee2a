//! A track's clock: from RTP time to media time, and the corrections that sender reports allow.
//!
//! Frames get their times from a *provisional* clock, which is anchored at the arrival of the first packet: writing must
//! not wait for a sender report. The index keeps the reports that fit the packets. When the log is read, [`corrections`] computes from the
//! reports of all tracks of a session how far each provisional clock was off. One clock writes all reports of a session
//! (Janus writes its own reports), so the corrected tracks are in sync whatever the delay of their first packets was.

mod correct;

pub use correct::{Correction, TrackReports, corrections, session_offset};

use crate::model::time::{MediaSpan, MediaTime, RtpUnwrapper, ticks_to_span};

const MS: MediaSpan = 1_000_000;
/// A packet with a higher sequence number may go back by this much, for frames that are not sent in the order of their
/// times. Beyond it RTP time has jumped.
pub const BACK_MAX: MediaSpan = 500 * MS;
/// RTP time may run ahead of arrival by this much from packet to packet, by jitter; beyond it, it has jumped.
const AHEAD_MAX: MediaSpan = 1_000 * MS;
/// From this delay on there was a pause: either of the sender, whose RTP time does not count it (janus-gateway#2292), or
/// of the network.
const LATE_MIN: MediaSpan = 200 * MS;
/// From this delay on, one packet is enough to conclude that the sender paused.
const LATE_CERTAIN: MediaSpan = 1_000 * MS;
/// How long packets are observed after a pause, when there are enough of them.
const OBSERVATION: MediaSpan = 500 * MS;
/// How many packets of different times are enough.
const OBSERVATION_TIMES: u32 = 5;
/// How long packets are observed at most.
const OBSERVATION_MAX: MediaSpan = 1_500 * MS;
/// The least delay is kept for this long (and up to twice as long): longer than jitter and bursts, short enough to follow
/// the drift of a sender's clock.
const DELAY_WINDOW: MediaSpan = 5_000 * MS;

/// How a packet's RTP time fits its arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockFit {
    /// It fits.
    Good,
    /// The packet came much later than its RTP time says: a pause of the sender, or of the network. The packets after it
    /// show which of the two: see [`TrackClock::classify_pause`].
    Late {
        /// How much later than RTP time says.
        by: MediaSpan,
    },
    /// RTP time jumped. The clock was anchored anew at this packet's arrival.
    Jumped,
}

/// The cause of a pause.
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
    mapping: Option<Mapping>,
    delay: MinDelay,
    observation: Option<PauseObservation>,
}

/// Maps RTP time to media time, from one anchoring to the next.
#[derive(Debug, Clone, Copy)]
struct Mapping {
    ticks: i64,
    at: MediaTime,
    last_ticks: i64,
    last_arrived: MediaTime,
}

/// The least of (arrival - media time) in two windows. It outlasts a long silence.
#[derive(Debug, Clone, Copy, Default)]
struct MinDelay {
    before: Option<MediaSpan>,
    since: MediaTime,
    now: Option<MediaSpan>,
}

/// The packets since a pause.
#[derive(Debug, Clone, Copy)]
struct PauseObservation {
    began: MediaTime,
    least: MediaSpan,
    last_ticks: i64,
    times: u32,
}

impl Mapping {
    fn time(&self, ticks: i64, rate: u32) -> MediaTime {
        self.at + ticks_to_span(ticks - self.ticks, rate)
    }
}

impl MinDelay {
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
        Self { rate, unwrapper: RtpUnwrapper::new(), mapping: None, delay: MinDelay::default(), observation: None }
    }

    /// Its rate in Hz.
    #[must_use]
    pub const fn rate(&self) -> u32 {
        self.rate
    }

    /// Whether a packet came: from the first one on it has times.
    #[must_use]
    pub const fn has_begun(&self) -> bool {
        self.mapping.is_some()
    }

    /// Takes a packet with the highest sequence number so far. Returns its media time.
    pub fn observe(&mut self, rtp: u32, arrived: MediaTime) -> (MediaTime, ClockFit) {
        let ticks = self.unwrapper.unwrap(rtp);
        let Some(mut mapping) = self.mapping else {
            self.mapping = Some(Mapping { ticks, at: arrived, last_ticks: ticks, last_arrived: arrived });
            self.delay = MinDelay { since: arrived, now: Some(0), before: None };
            return (arrived, ClockFit::Good);
        };
        let time = mapping.time(ticks, self.rate);
        let (delay, usual) = (arrived - time, self.delay.get());
        let passed = arrived - mapping.last_arrived;
        let counted = ticks_to_span(ticks - mapping.last_ticks, self.rate);
        if counted < -BACK_MAX || (counted > passed + AHEAD_MAX && delay < usual - AHEAD_MAX) {
            let at = arrived + -usual;
            self.mapping = Some(Mapping { ticks, at, last_ticks: ticks, last_arrived: arrived });
            self.observation = None;
            return (at, ClockFit::Jumped);
        }
        // A frame that is shown before one that came earlier is late by nature.
        let newest = mapping.last_ticks;
        if ticks >= newest {
            (mapping.last_ticks, mapping.last_arrived) = (ticks, arrived);
            self.mapping = Some(mapping);
        }
        let late = delay - usual;
        if let Some(observation) = &mut self.observation {
            observation.least = observation.least.min(late);
            observation.times += u32::from(ticks != observation.last_ticks);
            observation.last_ticks = ticks;
        } else if late >= LATE_MIN && passed >= LATE_MIN && ticks >= newest {
            self.observation = Some(PauseObservation { began: arrived, least: late, last_ticks: ticks, times: 1 });
            return (time, ClockFit::Late { by: late });
        } else {
            self.delay.add(delay, arrived);
        }
        (time, ClockFit::Good)
    }

    /// Whether a pause is being classified. Until then the times of the packets after it are unknown.
    #[must_use]
    pub const fn is_classifying_pause(&self) -> bool {
        self.observation.is_some()
    }

    /// Classifies a pause, if there was one and enough packets came since, or (`immediately`) by those that came.
    pub fn classify_pause(&mut self, now: MediaTime, immediately: bool) -> Option<Pause> {
        let observation = self.observation?;
        let observed = now - observation.began;
        let enough = observed >= OBSERVATION && observation.times >= OBSERVATION_TIMES;
        if observation.least >= LATE_MIN && !enough && observed < OBSERVATION_MAX && !immediately {
            return None;
        }
        self.observation = None;
        // With a low frame rate, two packets say little about a short pause.
        let certain = enough || observation.times > 2 || observation.least >= LATE_CERTAIN;
        match &mut self.mapping {
            Some(mapping) if observation.least >= LATE_MIN && certain => {
                mapping.at = mapping.at + observation.least;
                Some(Pause::Sender { by: observation.least })
            }
            _ => Some(Pause::Network),
        }
    }

    /// The media time of an RTP time near that of the newest packet; the origin before the first.
    #[must_use]
    pub fn media_time(&self, rtp: u32) -> MediaTime {
        self.mapping.map_or(MediaTime::ZERO, |mapping| mapping.time(self.unwrapper.clone().unwrap(rtp), self.rate))
    }

    /// Whether the RTP time of a packet, or of a sender report, is near the one that its arrival suggests.
    #[must_use]
    pub fn is_plausible(&self, rtp: u32, arrived: MediaTime) -> bool {
        let usual = self.delay.get();
        self.mapping.is_some() && (arrived - self.media_time(rtp) - usual).abs() <= AHEAD_MAX
    }

    /// The media time of a sender report's RTP time. `None` before the first packet, while a pause is being classified, and of a
    /// report of a time before that packet, or that does not fit the packets' arrivals: then the report is wrong. Janus's are, after a track was off for some seconds, by as
    /// much and for as long (in its `ice.c`, `last_rtp_ts` never goes back), and for a while after a change of layers
    /// (janus-gateway#1300).
    #[must_use]
    pub fn report_time(&self, rtp: u32, arrived: MediaTime) -> Option<MediaTime> {
        let is_right = !self.is_classifying_pause() && self.is_plausible(rtp, arrived);
        let begins = self.mapping.map(|mapping| mapping.at)?;
        is_right.then(|| self.media_time(rtp)).filter(|time| *time >= begins)
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
        assert_eq!(clock.observe(0xffff_ff00_u32.wrapping_add(9000), ms(1103)), (ms(1100), ClockFit::Good));
    }

    #[test]
    fn a_jump_of_rtp_time_anchors_the_clock_anew() {
        for jump in [180_000_u32, 900_000, 0x7000_0000, 0x9000_0000, 0_u32.wrapping_sub(90_000)] {
            let mut clock = TrackClock::new(90_000);
            clock.observe(1000, ms(0));
            assert_eq!(clock.observe(1000_u32.wrapping_add(jump), ms(40)), (ms(40), ClockFit::Jumped), "{jump:#x}");
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
            assert!(matches!(fit, ClockFit::Late { .. }), "{fit:?}");
            let mut verdict = None;
            for i in 51..100 {
                clock.observe(at_48k(i * 20), ms(i * 20 + pause));
                verdict = verdict.or_else(|| clock.classify_pause(ms(i * 20 + pause), false));
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
            verdict = verdict.or_else(|| clock.classify_pause(arrived, false));
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
            assert_eq!((time, fit), (ms(i * 20), ClockFit::Good), "packet {i}");
        }
    }

    #[test]
    fn a_report_of_a_time_before_the_first_packet_is_wrong() {
        let mut clock = TrackClock::new(48_000);
        assert_eq!(clock.report_time(at_48k(900), ms(1000)), None);
        clock.observe(at_48k(1000), ms(1000));
        assert_eq!(clock.report_time(at_48k(900), ms(1010)), None);
        assert_eq!(clock.report_time(at_48k(1010), ms(1010)), Some(ms(1010)));
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
            assert_eq!(fit, ClockFit::Good, "at {at} ms");
        }
    }
}
