//! The tracks' clocks as far as they are known while a log grows.
//!
//! An individual archive corrects its times by all sender reports of a session, see [`corrections`]. A composer that
//! follows a log cannot wait for them, and must come to the same times when it runs over the finished log. So it computes
//! the corrections at each step of a grid, from the reports that came up to a little later and no others. A correction is a
//! line through its values at the steps.

use std::collections::{BTreeMap, VecDeque};

use crate::model::ids::TrackId;
use crate::model::media::{ClockStart, SenderReport};
use crate::model::time::{MediaSpan, MediaTime};
use crate::recording::reader::TrackIndex;
use crate::rtp::clock::{Correction, TrackReports, corrections, session_offset};

const MS: MediaSpan = 1_000_000;
/// From one look at the clocks to the next.
const STEP: MediaSpan = 500 * MS;
/// Reports are used that came up to this long after a step.
const LOOK_AHEAD: MediaSpan = 500 * MS;
/// Where a track's clock begins, its first reports are waited for: Janus sends one a second.
const LOOK_AHEAD_FIRST: MediaSpan = 3_000 * MS;
/// Where none came by then, the first one is waited for up to this long after the beginning. A router that is busy sends it late, and the
/// first packets as well: media that is composed before it would be at another place than what follows, and some of that would be lost.
const LOOK_AHEAD_FIRST_MAX: MediaSpan = 10_000 * MS;
/// Reports, knots and beginnings that are older than this say nothing of the clock now.
const REMEMBERED: MediaSpan = 60_000 * MS;

/// The router's clock was set when its reports are so far from those before.
const SET_MIN: MediaSpan = 3_000 * MS;

/// What is used is at most so far from what is known: layouts, mutings and selections are told in local time.
pub const HELD_MAX: MediaSpan = 500 * MS;

/// How far the local clock is from the router's, which writes the reports.
///
/// A report that comes faster than those before says that it is less than was known. The streams stay where they are all the same:
/// that all of them were earlier by as much would be nothing to a viewer, and twice as much of their sound would be lost on the way.
#[derive(Debug, Clone, Copy)]
struct RouterOffset {
    /// As it is used.
    held: MediaSpan,
    /// As the last step's reports say.
    latest: MediaSpan,
}

impl RouterOffset {
    fn next(known: Option<Self>, latest: MediaSpan) -> Self {
        let Some(known) = known else { return Self { held: latest, latest } };
        let change = latest - known.latest;
        let held = if change.abs() > SET_MIN { known.held + change } else { known.held };
        Self { held: held.clamp(latest - HELD_MAX, latest + HELD_MAX), latest }
    }

    /// What is to be added to corrections that were computed by the latest offset.
    const fn shift(self) -> MediaSpan {
        self.held - self.latest
    }
}

/// One track's clock.
#[derive(Debug, Default)]
struct Clock {
    start: Option<MediaTime>,
    /// Reports that are not used yet, each with the start of the part it came with.
    coming: VecDeque<(MediaTime, SenderReport)>,
    /// Of each report the start of the part it came with, and its provisional time.
    reported: VecDeque<(MediaTime, MediaTime)>,
    reports: VecDeque<SenderReport>,
    /// Where the clock began, in the order of time.
    starts: Vec<ClockStart>,
    /// (provisional time, what to add), a step apart.
    knots: VecDeque<(MediaTime, MediaSpan)>,
}

impl Clock {
    /// Up to where reports are used at a step, so that where the clock began its first ones are.
    fn known_until(&self, step: MediaTime) -> Option<MediaTime> {
        // That it began is known with the first frame, which is known of older logs too, and with each first part.
        let first = self.start.map(|known| (known, MediaTime(i64::MIN)));
        let beginnings = first.into_iter().chain(self.starts.iter().map(|start| (start.known, start.at)));
        let until = |(known, at): (MediaTime, MediaTime)| match known {
            known if step < known => MediaTime(i64::MIN),
            known => (step + LOOK_AHEAD).max(self.first_report(known, at)),
        };
        beginnings.map(until).max()
    }

    /// Up to where a clock's first reports are waited for, which began at `at`, and is known to have begun at `known`.
    fn first_report(&self, known: MediaTime, at: MediaTime) -> MediaTime {
        let longest = known + LOOK_AHEAD_FIRST_MAX;
        let first = self.reported.iter().find(|(came_with, pts)| *came_with >= known && *pts >= at);
        first.map_or(longest, |(came_with, _)| (*came_with + LOOK_AHEAD).clamp(known + LOOK_AHEAD_FIRST, longest))
    }

    /// Where it began, as far as that is known from what came up to a moment.
    fn starts_until(&self, until: MediaTime) -> &[ClockStart] {
        &self.starts[..self.starts.partition_point(|start| start.known <= until)]
    }

    /// Adds knots up to a step: one there, and where a clock ended and the next one began.
    fn extend(&mut self, step: MediaTime, until: MediaTime, known: Option<&Correction>, shift: MediaSpan) {
        let edges = self.starts_until(until).iter().flat_map(|start| [start.after, start.at]);
        let times: Vec<MediaTime> = edges.filter(|edge| *edge < step).chain([step]).collect();
        for time in times {
            let before = self.knots.back().copied();
            if before.is_some_and(|(last, _)| time <= last) {
                continue;
            }
            let span = known.map(|known| known.at(time) + shift).or(before.map(|(_, span)| span)).unwrap_or(0);
            // Never faster than half of time's speed: corrected times must not go back.
            let span = before.map_or(span, |(at, before)| span.max(before - (time - at) / 2));
            self.knots.push_back((time, span));
        }
        while self.knots.front().is_some_and(|(at, _)| step - *at > REMEMBERED) {
            self.knots.pop_front();
        }
    }
}

/// The clocks of a session's tracks.
#[derive(Debug, Default)]
pub struct Clocks {
    clocks: BTreeMap<TrackId, Clock>,
    /// The last step that was looked at.
    step: Option<MediaTime>,
    offset: Option<RouterOffset>,
}

impl Clocks {
    /// Takes what is new in a track's index.
    pub fn add(&mut self, index: &TrackIndex) {
        let clock = self.clocks.entry(index.track).or_default();
        clock.start = clock.start.or_else(|| index.start());
        clock.starts.extend(&index.clock_starts);
        let reports = index.report_parts.iter().copied().zip(index.reports.iter().copied());
        clock.reported.extend(reports.clone().map(|(known, report)| (known, report.pts)));
        clock.coming.extend(reports);
        // Lines that came from the store later may be of an earlier epoch.
        clock.starts.sort_by_key(|start| start.at);
        if !index.reports.is_empty() {
            clock.coming.make_contiguous().sort_by_key(|(known, _)| *known);
            clock.reported.make_contiguous().sort_by_key(|(known, _)| *known);
        }
    }

    /// Computes corrections step by step until they are known up to a corrected time, or the log's watermark is reached. No
    /// step further, so that the corrections at each moment of a composition do not depend on how far the log has grown.
    /// Returns whether they are known.
    pub fn advance(&mut self, wanted: MediaTime, watermark: MediaTime) -> bool {
        while self.known().is_none_or(|known| known <= wanted) {
            let Some(first) = self.clocks.values().filter_map(|clock| clock.start).min() else { return false };
            let next = self.step.map_or(MediaTime(first.0.div_euclid(STEP) * STEP), |step| step + STEP);
            let Some(until) = self.known_until(next).filter(|until| *until <= watermark) else { return false };
            self.update(next, until);
            self.step = Some(next);
        }
        true
    }

    /// The moment up to which reports are used at a step; `None` before every track.
    fn known_until(&self, step: MediaTime) -> Option<MediaTime> {
        let known = self.clocks.values().filter_map(|clock| clock.known_until(step)).max()?;
        Some(known.max(step + LOOK_AHEAD))
    }

    fn update(&mut self, step: MediaTime, until: MediaTime) {
        for clock in self.clocks.values_mut() {
            while clock.coming.front().is_some_and(|(known, _)| *known <= until) {
                clock.reports.extend(clock.coming.pop_front().map(|(_, report)| report));
            }
            while clock.reports.front().is_some_and(|report| step - report.arrived > REMEMBERED) {
                clock.reports.pop_front();
            }
            while clock.reported.front().is_some_and(|(known, _)| step - *known > REMEMBERED) {
                clock.reported.pop_front();
            }
            clock.starts.retain(|start| step - start.at <= REMEMBERED);
        }
        for clock in self.clocks.values_mut() {
            clock.reports.make_contiguous();
        }
        let reports = self.clocks.iter().map(|(track, clock)| TrackReports {
            track: *track,
            reports: clock.reports.as_slices().0,
            starts: clock.starts_until(until),
        });
        let reports: Vec<TrackReports> = reports.collect();
        let known = corrections(&reports);
        if let Some(latest) = session_offset(&reports) {
            self.offset = Some(RouterOffset::next(self.offset, latest));
        }
        let shift = self.offset.map_or(0, RouterOffset::shift);
        for (track, clock) in &mut self.clocks {
            if clock.start.is_some_and(|start| start <= step) {
                clock.extend(step, until, known.get(track), shift);
            }
        }
    }

    /// A track's corrected time.
    #[must_use]
    pub fn apply(&self, track: TrackId, time: MediaTime) -> MediaTime {
        let Some(clock) = self.clocks.get(&track) else { return time };
        let after = clock.knots.partition_point(|(at, _)| *at <= time);
        let span = match (after.checked_sub(1).and_then(|n| clock.knots.get(n)), clock.knots.get(after)) {
            (Some((t0, c0)), Some((t1, c1))) => {
                let share = i128::from(time - *t0) * i128::from(c1 - c0) / i128::from((*t1 - *t0).max(1));
                // Between two spans.
                c0 + i64::try_from(share).unwrap_or(0)
            }
            (Some((_, c)), None) | (None, Some((_, c))) => *c,
            (None, None) => 0,
        };
        time + span
    }

    /// The offset of the router's clock that frames are placed by; `None` without reports.
    pub fn offset(&self) -> Option<MediaSpan> {
        self.offset.map(|offset| offset.held)
    }

    /// The corrected time up to which all tracks' clocks are known; `None` before the first look.
    fn known(&self) -> Option<MediaTime> {
        let step = self.step?;
        let begun = self.clocks.iter().filter(|(_, clock)| !clock.knots.is_empty());
        Some(begun.map(|(track, _)| self.apply(*track, step)).fold(step, MediaTime::min))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::{SessionId, StreamId, TrackKind};
    use crate::model::time::{NtpTime, Wallclock};

    fn ms(ms: i64) -> MediaTime {
        MediaTime::from_millis(ms)
    }

    fn track(name: &str) -> TrackId {
        let session: SessionId = "s".parse().expect("id");
        TrackId { stream: StreamId::of_router(&session, name), kind: TrackKind::Audio }
    }

    /// A report that was right at `at`, of a track whose provisional clock is late by `late` ms.
    fn report(at: i64, late: i64) -> (MediaTime, SenderReport) {
        let ntp = NtpTime::from_wallclock(Wallclock(1_795_000_000_000_000 + at * 1000));
        (ms(at), SenderReport { ntp, pts: ms(at + late), arrived: ms(at + 20) })
    }

    /// A clock that begins at a moment, and its reports.
    fn clock(start: MediaTime, reports: impl Iterator<Item = (MediaTime, SenderReport)>) -> Clock {
        let coming: VecDeque<_> = reports.collect();
        let reported = coming.iter().map(|(known, report)| (*known, report.pts)).collect();
        Clock { start: Some(start), coming, reported, ..Clock::default() }
    }

    /// Two tracks: one is right, the other late by 300 ms and begins at 4 s.
    fn clocks() -> Clocks {
        let late = |from: i64, late: i64| clock(ms(from + late), (1..60).map(|n| report(from + n * 1000, late)));
        Clocks {
            clocks: BTreeMap::from([(track("a"), late(0, 20)), (track("b"), late(4000, 320))]),
            ..Clocks::default()
        }
    }

    #[test]
    fn what_follows_and_what_runs_over_the_finished_log_know_the_same() {
        for clocks in [clocks, clocks_that_begin_anew, clocks_of_a_busy_router] {
            follows_as_it_runs_over_the_finished_log(clocks(), clocks());
        }
    }

    fn follows_as_it_runs_over_the_finished_log(mut following: Clocks, mut finished: Clocks) {
        let mut watermark = 0;
        for at in (0..50_000).step_by(33) {
            while !following.advance(ms(at), ms(watermark)) {
                watermark += 70;
            }
            assert!(finished.advance(ms(at), MediaTime(i64::MAX)));
            for name in ["a", "b"] {
                for raw in [at - 100, at + 50, at + 300] {
                    let known = [&following, &finished].map(|clocks| clocks.apply(track(name), ms(raw)));
                    assert_eq!(known[0], known[1], "{name} at {at}");
                }
            }
            assert!(watermark <= at + 4400, "{watermark} for {at}");
        }
    }

    /// A track whose clock was 80 ms late begins anew twice: on time, and after a short while without media 60 ms late.
    fn clocks_that_begin_anew() -> Clocks {
        let start = |after: i64, at: i64| ClockStart { known: ms(at), after: ms(after), at: ms(at) };
        let late = |second: i64| match second {
            ..7 => 80,
            7..20 => 0,
            _ => 60,
        };
        let reports = (1..40).filter(|n| *n != 6).map(|n| report(n * 1000, late(n)));
        let starts = vec![start(5580, 6700), start(19_400, 19_700)];
        let changing = Clock { starts, ..clock(ms(80), reports) };
        let steady = clock(ms(0), (1..40).map(|n| report(n * 1000, 0)));
        Clocks { clocks: BTreeMap::from([(track("a"), steady), (track("b"), changing)]), ..Clocks::default() }
    }

    /// A viewer would see lips 80 ms beside the voice until the third report of the new clock.
    #[test]
    fn a_clock_that_begins_anew_is_in_step_from_its_first_frame_on() {
        let mut clocks = clocks_that_begin_anew();
        let mut last = MediaTime(i64::MIN);
        for at in (100..38_000).step_by(20) {
            assert!(clocks.advance(ms(at + 600), MediaTime(i64::MAX)));
            let raw = match at {
                ..5500 => at + 80,
                6700..19_400 => at,
                19_700.. => at + 60,
                _ => continue,
            };
            let (a, b) = (clocks.apply(track("a"), ms(at)), clocks.apply(track("b"), ms(raw)));
            assert!((a - b).abs() <= 2 * MS, "at {at}: {a:?} {b:?}");
            assert!(last < b, "at {at}");
            last = b;
        }
    }

    /// The log has it with the first keyframe, two seconds after the first packet.
    #[test]
    fn a_clock_is_not_known_before_its_first_part() {
        let late = |clocks: &mut Clocks| {
            let starts = &mut clocks.clocks.get_mut(&track("b")).expect("clock").starts;
            starts.drain(..).map(|start| ClockStart { known: start.known + 2000 * MS, ..start }).collect::<Vec<_>>()
        };
        let (mut finished, mut following) = (clocks_that_begin_anew(), clocks_that_begin_anew());
        finished.clocks.get_mut(&track("b")).expect("clock").starts = late(&mut clocks_that_begin_anew());
        let mut coming: VecDeque<ClockStart> = late(&mut following).into();
        let mut watermark = 0;
        for at in (0..38_000).step_by(33) {
            while !following.advance(ms(at), ms(watermark)) {
                watermark += 70;
                while coming.front().is_some_and(|start| start.known <= ms(watermark)) {
                    let known = following.clocks.get_mut(&track("b")).expect("clock");
                    known.starts.extend(coming.pop_front());
                }
            }
            assert!(finished.advance(ms(at), MediaTime(i64::MAX)));
            let known = [&following, &finished].map(|clocks| clocks.apply(track("b"), ms(at)));
            assert_eq!(known[0], known[1], "at {at}");
        }
    }

    #[test]
    fn the_first_reports_of_a_clock_that_begins_anew_are_waited_for() {
        let mut clocks = clocks_that_begin_anew();
        clocks.advance(ms(60_000), ms(9600));
        assert_eq!(clocks.step, Some(ms(6500)));
        clocks.advance(ms(60_000), ms(9700));
        assert_eq!(clocks.step, Some(ms(9000)));
    }

    #[test]
    fn tracks_are_in_step_from_their_first_frame_on() {
        let mut clocks = clocks();
        clocks.advance(ms(22_000), MediaTime(i64::MAX));
        for at in [20, 4320, 4700, 9000, 20_000] {
            let (a, b) = (clocks.apply(track("a"), ms(at)), clocks.apply(track("b"), ms(at + 300)));
            assert!((a - b).abs() <= 2 * MS, "at {at}: {a:?} {b:?}");
        }
    }

    /// Sound and picture of a device whose clocks are wrong, each in its own way: after half an hour they are 450 ms
    /// apart and neither is at its time, if nothing is done.
    #[test]
    fn nothing_drifts_in_half_an_hour_though_all_clocks_do() {
        const LENGTH_S: i64 = 1800;
        // Parts in a million by which the device's media clock is fast.
        let device = [("a", 150), ("b", -100)];
        let drifted = |at: i64, ppm: i64| ms(at) + at * ppm;
        let reports = |ppm: i64| {
            (0..LENGTH_S).map(move |n| {
                let (at, (_, report)) = (n * 1000, report(n * 1000, 0));
                (ms(at), SenderReport { pts: drifted(at, ppm), ..report })
            })
        };
        let clocks = device.map(|(name, ppm)| (track(name), clock(ms(0), reports(ppm))));
        let (mut clocks, mut first) = (Clocks { clocks: BTreeMap::from(clocks), ..Clocks::default() }, None);
        for at in (5000..LENGTH_S * 1000 - 5000).step_by(40) {
            assert!(clocks.advance(ms(at + 1000), MediaTime(i64::MAX)));
            let shown = device.map(|(name, ppm)| clocks.apply(track(name), drifted(at, ppm)));
            assert!((shown[0] - shown[1]).abs() <= 10 * MS, "at {at}: {shown:?}");
            let late = shown[0] - ms(at);
            let first = *first.get_or_insert(late);
            assert!((late - first).abs() <= 10 * MS, "at {at}: {late} ns late, {first} ns at the beginning");
        }
    }

    #[test]
    fn a_clock_that_has_drifted_by_seconds_is_followed() {
        const LENGTH_S: i64 = 1800;
        // Fast by 2,500 parts in a million: 4.5 s at the end.
        let drifted = |at: i64| ms(at) + at * 2500;
        let reports = (0..LENGTH_S).map(|n| {
            let (at, (_, report)) = (n * 1000, report(n * 1000, 0));
            (ms(at), SenderReport { pts: drifted(at), ..report })
        });
        let mut clocks = Clocks { clocks: BTreeMap::from([(track("a"), clock(ms(0), reports))]), ..Clocks::default() };
        for at in (5000..LENGTH_S * 1000 - 5000).step_by(500) {
            assert!(clocks.advance(ms(at + 1000), MediaTime(i64::MAX)));
            let off = clocks.apply(track("a"), drifted(at)) - ms(at + 20);
            assert!(off.abs() <= 80 * MS, "at {at}: {off} ns");
        }
    }

    #[test]
    fn the_first_reports_of_a_track_are_waited_for() {
        let mut clocks = clocks();
        let far = ms(60_000);
        clocks.advance(far, ms(2900));
        assert_eq!(clocks.step, Some(ms(0)), "a step before all tracks, of which nothing is to be known");
        clocks.advance(far, ms(3100));
        assert_eq!(clocks.step, Some(ms(2500)));
        clocks.advance(far, ms(7300));
        // Before the second track's beginning nothing waits for it.
        assert_eq!(clocks.step, Some(ms(4000)));
        clocks.advance(far, ms(7400));
        assert_eq!(clocks.step, Some(ms(6500)));
    }

    /// A busy router sends the first packets 1.5 s late, and its first report after 6 s: what was composed by then would be 1.5 s late, and
    /// of the sound that follows as much would be lost.
    #[test]
    fn a_first_report_that_comes_late_is_waited_for_and_places_the_first_frame_too() {
        let late = || {
            let reports = (6..40).map(|n| report(n * 1000, 1500));
            Clocks { clocks: BTreeMap::from([(track("a"), clock(ms(1500), reports))]), ..Clocks::default() }
        };
        let mut clocks = late();
        clocks.advance(ms(60_000), ms(6400));
        assert!(clocks.step < Some(ms(1500)), "{:?}", clocks.step);
        assert!(clocks.advance(ms(20_000), MediaTime(i64::MAX)));
        for at in (0..20_000).step_by(20) {
            let off = clocks.apply(track("a"), ms(at + 1500)) - ms(at + 20);
            assert!(off.abs() <= MS, "at {at}: {off} ns");
        }
        // Without any report it goes on all the same.
        let mut silent =
            Clocks { clocks: BTreeMap::from([(track("a"), clock(ms(0), [].into_iter()))]), ..Clocks::default() };
        assert!(!silent.advance(ms(5000), ms(9900)));
        assert!(silent.advance(ms(5000), ms(10_100)));
    }

    /// A busy router's first reports come 300 ms late, its later ones at once.
    fn clocks_of_a_busy_router() -> Clocks {
        let reports = || {
            (1..40).map(|n| {
                let (known, report) = report(n * 1000, 20);
                let delay = if n < 6 { 300 * MS } else { 0 };
                (known, SenderReport { arrived: report.arrived + delay, ..report })
            })
        };
        let clocks = ["a", "b"].map(|name| (track(name), clock(ms(20), reports())));
        Clocks { clocks: BTreeMap::from(clocks), ..Clocks::default() }
    }

    #[test]
    fn reports_that_come_faster_than_those_before_move_nothing() {
        let mut clocks = clocks_of_a_busy_router();
        let mut last = None;
        for at in (20..30_000).step_by(20) {
            assert!(clocks.advance(ms(at + 500), MediaTime(i64::MAX)));
            let placed = clocks.apply(track("a"), ms(at));
            let passed = last.replace(placed).map_or(20 * MS, |last| placed - last);
            assert!((passed - 20 * MS).abs() <= MS, "at {at}: {passed} ns after the frame before");
        }
        // The file begins so much later than its reports say in the end.
        let late = clocks.offset().expect("reports") - clocks.offset.expect("reports").latest;
        assert!((late - 300 * MS).abs() <= MS, "{late}");
    }

    #[test]
    fn a_router_whose_clock_is_set_is_followed_and_no_offset_is_held_by_more_than_may_be() {
        let offset = |latest: &[i64]| {
            let known = latest.iter().fold(None, |known, latest| Some(RouterOffset::next(known, latest * MS)));
            known.map(|known| (known.held / MS, known.shift() / MS))
        };
        assert_eq!(offset(&[300, 20, 40]), Some((300, 260)));
        assert_eq!(offset(&[300, 20, 60_020]), Some((60_300, 280)));
        assert_eq!(offset(&[300, 20, -9_980, -9_990]), Some((-9_700, 290)));
        assert_eq!(offset(&[1500, 20]), Some((520, 500)), "no further from what is told in local time");
        assert_eq!(offset(&[20, 1500]), Some((1000, -500)));
    }
}
