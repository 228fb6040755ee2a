//! A track's clock: from RTP time to media time, and the corrections that sender reports allow.
//!
//! Frames are written by a *provisional* clock that is anchored at the arrival of the first packet: what
//! is written must not wait for a sender report. The reports are kept raw in the index; when the log is
//! read, [`corrections`] computes over all tracks of a session how far each provisional clock was off.
//! All reports of a session are written by one clock (Janus writes its own), so tracks that lean on them
//! are in step with each other whatever the network did to their first packets.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::capture::types::SenderReport;
use crate::ids::TrackId;
use crate::time::{MediaSpan, MediaTime, RtpUnwrapper, ticks_to_span};

const MS: MediaSpan = 1_000_000;
/// RTP time and arrival may differ by this much from packet to packet before RTP time is not believed.
const JUMP_MAX: MediaSpan = 5_000 * MS;
/// A report further from its track's median than this is refused (Janus's can be wrong for a while after a
/// layer switch, janus-gateway#1300).
const OUTLIER_MIN: MediaSpan = 1_000 * MS;
/// Reports are averaged over this long: enough of them to refuse outliers, short enough to follow 200 ppm.
const WINDOW: MediaSpan = 30_000 * MS;
/// Windows that are slower or faster than this are not clock drift (which is below 0.05 %).
const SLOPE_MAX_PER_MILLE: MediaSpan = 5;

/// How a packet's RTP time fits its arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// It does.
    Good,
    /// RTP time went on, the packet came much later: a pause of the sender, or of the network. Which of the
    /// two only the packets after it tell.
    Late {
        /// How much later than RTP time says.
        by: MediaSpan,
    },
    /// RTP time jumped. The clock was anchored anew at this packet's arrival.
    Jumped,
}

/// The provisional clock of a track.
#[derive(Debug, Clone)]
pub struct TrackClock {
    rate: u32,
    unwrapper: RtpUnwrapper,
    anchor: Option<(i64, MediaTime)>,
    last: Option<(i64, MediaTime)>,
}

impl TrackClock {
    /// A clock with a rate in Hz.
    #[must_use]
    pub const fn new(rate: u32) -> Self {
        Self { rate, unwrapper: RtpUnwrapper::new(), anchor: None, last: None }
    }

    /// Looks at a packet as it arrives, in any order.
    pub fn observe(&mut self, rtp: u32, arrived: MediaTime) -> (i64, Fit) {
        let ticks = self.unwrapper.unwrap(rtp);
        let Some((last_ticks, last_arrived)) = self.last else {
            self.anchor_at(ticks, arrived);
            return (ticks, Fit::Good);
        };
        let passed = arrived - last_arrived;
        let counted = ticks_to_span(ticks - last_ticks, self.rate);
        if (counted - passed).abs() > JUMP_MAX && (counted < -JUMP_MAX || counted > passed + JUMP_MAX) {
            self.anchor_at(ticks, arrived);
            return (ticks, Fit::Jumped);
        }
        if ticks >= last_ticks {
            self.last = Some((ticks, arrived));
        }
        let late = arrived - self.media_time(ticks);
        (ticks, if late > 0 && passed > 500 * MS { Fit::Late { by: late } } else { Fit::Good })
    }

    /// The unwrapped ticks of a packet that is out of order, without learning from it.
    #[must_use]
    pub fn peek(&self, rtp: u32) -> i64 {
        self.unwrapper.clone().unwrap(rtp)
    }

    /// Says that `ticks` was at `at`, whatever was said before.
    pub fn anchor_at(&mut self, ticks: i64, at: MediaTime) {
        self.anchor = Some((ticks, at));
        self.last = Some((ticks, at));
    }

    /// The media time of unwrapped RTP ticks; the origin before the first packet.
    #[must_use]
    pub fn media_time(&self, ticks: i64) -> MediaTime {
        self.anchor.map_or(MediaTime::ZERO, |(from, at)| at + ticks_to_span(ticks - from, self.rate))
    }

    /// The media time of a sender report's RTP time, which may be a little ahead of or behind the packets.
    #[must_use]
    pub fn report_time(&self, rtp: u32) -> Option<MediaTime> {
        self.last?;
        let ticks = self.unwrapper.clone().unwrap(rtp);
        Some(self.media_time(ticks))
    }
}

/// What is to be added to a track's provisional times: a line through knots, level before and after them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Correction {
    /// (provisional time, what to add), in the order of time.
    pub knots: Vec<(MediaTime, MediaSpan)>,
    /// Reports that were used.
    pub used: usize,
    /// Reports that were refused as outliers.
    pub refused: usize,
}

impl Correction {
    /// The span to add at a provisional time.
    #[must_use]
    #[allow(clippy::cast_possible_truncation)]
    pub fn at(&self, time: MediaTime) -> MediaSpan {
        let after = self.knots.partition_point(|(at, _)| *at <= time);
        match (after.checked_sub(1).and_then(|i| self.knots.get(i)), self.knots.get(after)) {
            (Some((t0, c0)), Some((t1, c1))) => {
                let share = i128::from(time - *t0) * i128::from(c1 - c0) / i128::from((*t1 - *t0).max(1));
                c0 + share as i64
            }
            (Some((_, c)), None) | (None, Some((_, c))) => *c,
            (None, None) => 0,
        }
    }

    /// The corrected time.
    #[must_use]
    pub fn apply(&self, time: MediaTime) -> MediaTime {
        time + self.at(time)
    }
}

/// What the sender reports of a session's tracks say about their clocks.
#[must_use]
pub fn corrections(tracks: &[(TrackId, &[SenderReport])]) -> BTreeMap<TrackId, Correction> {
    // The fastest report shows how far the reporter's clock is from ours; it is one clock for all tracks.
    let ntp = |r: &SenderReport| r.ntp.to_wallclock().0.saturating_mul(1000);
    let mut offsets: Vec<MediaSpan> =
        tracks.iter().flat_map(|(_, reports)| reports.iter().map(|r| r.arrived.0.saturating_sub(ntp(r)))).collect();
    if offsets.is_empty() {
        return BTreeMap::new();
    }
    let middle = median(&mut offsets);
    let Some(offset) = offsets.iter().copied().filter(|o| (o - middle).abs() <= OUTLIER_MIN).min() else {
        return BTreeMap::new();
    };
    tracks
        .iter()
        .filter_map(|(track, reports)| {
            let points = reports.iter().map(|r| (r.pts, ntp(r).saturating_add(offset).saturating_sub(r.pts.0)));
            correction(points.collect()).map(|c| (*track, c))
        })
        .collect()
}

fn correction(mut points: Vec<(MediaTime, MediaSpan)>) -> Option<Correction> {
    let all = points.len();
    let middle = median(&mut points.iter().map(|(_, c)| *c).collect::<Vec<_>>());
    points.retain(|(_, c)| (c - middle).abs() <= OUTLIER_MIN);
    points.sort_unstable();
    let (first, last) = (points.first()?.0, points.last()?.0);
    let windows = ((last - first) / WINDOW).max(1);
    let mut knots: Vec<(MediaTime, MediaSpan)> = Vec::new();
    for window in 0..windows {
        let from = first + window * WINDOW;
        let inside = points.iter().filter(|(at, _)| *at >= from && (*at < from + WINDOW || window == windows - 1));
        let (mut times, mut spans): (Vec<i64>, Vec<i64>) = inside.map(|(at, c)| (at.0, *c)).unzip();
        if spans.is_empty() {
            continue;
        }
        let knot = (MediaTime(median(&mut times)), median(&mut spans));
        let steep =
            knots.last().is_some_and(|(at, c)| (knot.1 - c).abs() * 1000 > (knot.0 - *at) * SLOPE_MAX_PER_MILLE);
        if !steep {
            knots.push(knot);
        }
    }
    Some(Correction { knots, used: points.len(), refused: all - points.len() })
}

/// The middle value; zero of none.
fn median(values: &mut [i64]) -> i64 {
    if values.is_empty() {
        return 0;
    }
    let middle = values.len() / 2;
    *values.select_nth_unstable(middle).1
}

/// A span as a duration; zero if negative.
#[must_use]
pub fn positive(span: MediaSpan) -> Duration {
    Duration::from_nanos(u64::try_from(span).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{SessionId, StreamId, TrackKind};
    use crate::time::{NtpTime, Wallclock};

    const T0: i64 = 1_795_000_000_000_000;

    fn ms(ms: i64) -> MediaTime {
        MediaTime::from_millis(ms)
    }

    fn track(kind: TrackKind) -> TrackId {
        let session: SessionId = "s".parse().expect("id");
        TrackId { stream: StreamId::of_router(&session, "a"), kind }
    }

    /// A report that was right at `at_ms`, of a track whose provisional clock is off by `off_ms`.
    fn report(at_ms: i64, off_ms: i64, delay_ms: i64) -> SenderReport {
        SenderReport {
            ntp: NtpTime::from_wallclock(Wallclock(T0 + at_ms * 1000)),
            pts: ms(at_ms + off_ms),
            arrived: ms(at_ms + delay_ms),
        }
    }

    #[test]
    fn rtp_time_counts_from_the_first_arrival_over_the_wrap() {
        let mut clock = TrackClock::new(90_000);
        let (first, _) = clock.observe(0xffff_ff00, ms(1000));
        assert_eq!(clock.media_time(first), ms(1000));
        let (second, fit) = clock.observe(0xffff_ff00_u32.wrapping_add(9000), ms(1103));
        assert_eq!((clock.media_time(second), fit), (ms(1100), Fit::Good));
    }

    #[test]
    fn a_jump_of_rtp_time_anchors_the_clock_anew() {
        for jump in [900_000_u32, 0x7000_0000, 0x9000_0000] {
            let mut clock = TrackClock::new(90_000);
            clock.observe(1000, ms(0));
            let (ticks, fit) = clock.observe(1000_u32.wrapping_add(jump), ms(40));
            assert_eq!((fit, clock.media_time(ticks)), (Fit::Jumped, ms(40)), "{jump:#x}");
        }
    }

    #[test]
    fn a_pause_that_rtp_time_does_not_count_is_noticed() {
        let mut clock = TrackClock::new(90_000);
        clock.observe(0, ms(0));
        let (_, fit) = clock.observe(3000, ms(10_033));
        assert!(matches!(fit, Fit::Late { by } if (9_990 * MS..=10_010 * MS).contains(&by)), "{fit:?}");
    }

    #[test]
    fn reports_bring_two_tracks_into_step() {
        let audio: Vec<_> = (0..20).map(|i| report(i * 1000, 0, 30 + i % 3)).collect();
        let video: Vec<_> = (0..20).map(|i| report(i * 1000, 80, 30 + i % 5)).collect();
        let (a, v) = (track(TrackKind::Audio), track(TrackKind::Video));
        let found = corrections(&[(a, &audio), (v, &video)]);
        let apart = found[&v].apply(ms(5080)) - found[&a].apply(ms(5000));
        assert!(apart.abs() < MS, "{apart}");
    }

    #[test]
    fn a_wrong_report_is_refused_and_counted() {
        let mut reports: Vec<_> = (0..20).map(|i| report(i * 1000, 10, 30)).collect();
        reports[7].pts = ms(400_000);
        let found = &corrections(&[(track(TrackKind::Video), &reports)])[&track(TrackKind::Video)];
        assert_eq!((found.used, found.refused), (19, 1));
        assert!((found.at(ms(7000)) - (30 - 10) * MS).abs() < MS);
    }

    #[test]
    fn a_clock_that_drifts_is_followed_for_half_an_hour() {
        // 100 ppm slow: after 1,800 s the provisional clock is 180 ms behind.
        let reports: Vec<_> = (0..1800)
            .map(|i| {
                let mut r = report(i * 1000, 0, 20);
                r.pts = MediaTime(i * 1_000_000_000 - i * 100_000);
                r
            })
            .collect();
        let found = &corrections(&[(track(TrackKind::Audio), &reports)])[&track(TrackKind::Audio)];
        for i in [0, 500, 1000, 1799_i64] {
            let right = i * 1_000_000_000 + 20 * MS;
            let error = found.apply(MediaTime(i * 1_000_000_000 - i * 100_000)).0 - right;
            assert!(error.abs() < 10 * MS, "at {i} s: {error} ns");
        }
    }

    #[test]
    fn without_reports_nothing_is_changed() {
        assert!(corrections(&[(track(TrackKind::Audio), &[])]).is_empty());
        assert_eq!(Correction::default().apply(ms(5)), ms(5));
    }

    #[test]
    fn corrected_times_never_go_back() {
        let reports: Vec<_> = (0..100).map(|i| report(i * 1000, (i * 7919) % 90, 20)).collect();
        let found = &corrections(&[(track(TrackKind::Audio), &reports)])[&track(TrackKind::Audio)];
        let mut last = MediaTime(i64::MIN);
        for at in 0..100_000 {
            let now = found.apply(ms(at));
            assert!(now >= last, "at {at} ms");
            last = now;
        }
    }
}
