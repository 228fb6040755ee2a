//! Corrections of a session's provisional clocks, computed from its sender reports.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::model::ids::{StreamId, TrackId};
use crate::model::media::{ClockStart, SenderReport};
use crate::model::time::{MediaSpan, MediaTime};

const MS: MediaSpan = 1_000_000;
/// A report further from its neighbours' median than this is refused (Janus's can be wrong for a while
/// after a layer switch, janus-gateway#1300).
const OUTLIER_MIN: MediaSpan = 1_000 * MS;
/// A provisional clock is never off by more: it is anchored at arrivals. Drift adds 4 s in 12 h.
const ABSURD_MIN: MediaSpan = 30_000 * MS;
/// Neighbours on each side.
const NEIGHBOURS: usize = 10;
/// Reports are averaged over this long: enough of them to smooth jitter, short enough to follow 200 ppm.
const WINDOW: MediaSpan = 30_000 * MS;
/// Reports on each side of a step, and at least so many.
const STEP_REPORTS: usize = 5;
const STEP_REPORTS_MIN: usize = 3;
/// A step of a clock: it was anchored again, or its sender lost samples that it does not count. Smaller steps cannot be
/// told from jitter, and do no harm.
const STEP_MIN: MediaSpan = 40 * MS;
/// The reports on one side of a step are at least so far from those on the other: else their medians differ by jitter.
const STEP_APART_MIN: MediaSpan = 20 * MS;
/// After this time without a report the clock may be another one.
const SILENCE_MIN: MediaSpan = 15_000 * MS;
/// Streams whose reports are this much apart from the session's are written by another clock.
const SAME_CLOCK_MAX: MediaSpan = 100 * MS;

/// The correction to add to a track's provisional times: a line through knots, constant before and after them. It never
/// falls faster than at half the speed of time, so that corrected times never go back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Correction {
    /// (provisional time, span to add), in the order of time.
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

/// What is known of a track's clock.
#[derive(Debug, Clone, Copy)]
pub struct TrackReports<'a> {
    /// The track.
    pub track: TrackId,
    /// Its sender reports.
    pub reports: &'a [SenderReport],
    /// Where its provisional clock began, in the order of time. Without any, all reports are of one clock.
    pub starts: &'a [ClockStart],
}

/// The corrections of a session's tracks, from their sender reports. A track without usable reports has no entry: its
/// times stay as they are. Reports of one provisional clock say nothing of the next one.
///
/// The reports of all tracks count as written by one clock (the router's) as far as they agree. A stream whose reports
/// do not agree with the others is synchronized only within itself.
#[must_use]
pub fn corrections(tracks: &[TrackReports<'_>]) -> BTreeMap<TrackId, Correction> {
    let Some(session) = offset(tracks.iter().flat_map(|one| one.reports)) else {
        return BTreeMap::new();
    };
    let mut streams: BTreeMap<StreamId, MediaSpan> = BTreeMap::new();
    for stream in tracks.iter().map(|one| one.track.stream) {
        let own = tracks.iter().filter(|other| other.track.stream == stream).flat_map(|other| other.reports);
        streams.entry(stream).or_insert_with(|| match offset(own) {
            Some(own) if (own - session).abs() > SAME_CLOCK_MAX => own,
            _ => session,
        });
    }
    tracks
        .iter()
        .filter_map(|one| {
            let offset = streams.get(&one.track.stream).copied().unwrap_or(session);
            let point = |r: &SenderReport| (r.pts, ntp(r).saturating_add(offset).saturating_sub(r.pts.0));
            let points = one.reports.iter().map(|r| (r.arrived, point(r)));
            correction(points.collect(), one.starts).map(|c| (one.track, c))
        })
        .collect()
}

fn ntp(report: &SenderReport) -> MediaSpan {
    report.ntp.to_wallclock().0.saturating_mul(1000)
}

/// The offset from the reporter's clock to the local one, by its fastest reports. The fastest twentieth is left out.
fn offset<'a>(reports: impl Iterator<Item = &'a SenderReport>) -> Option<MediaSpan> {
    let mut offsets: Vec<MediaSpan> = reports.map(|r| r.arrived.0.saturating_sub(ntp(r))).collect();
    let middle = median(&mut offsets)?;
    offsets.retain(|offset| offset.abs_diff(middle) <= OUTLIER_MIN.unsigned_abs());
    offsets.sort_unstable();
    offsets.get(offsets.len() / 20).copied()
}

type Point = (MediaTime, MediaSpan);

/// The correction from a track's reports, each with its arrival. A clock has no report before its first packet came.
fn correction(mut reports: Vec<(MediaTime, Point)>, starts: &[ClockStart]) -> Option<Correction> {
    let all = reports.len();
    reports.retain(|(_, (_, c))| c.unsigned_abs() <= ABSURD_MIN.unsigned_abs());
    reports.sort_unstable_by_key(|(_, point)| *point);
    // Neighbours count whichever clock they are of: after a change of tracks all reports of Janus may be wrong by seconds (its
    // `last_rtp_ts` never goes back).
    let points: Vec<Point> = reports.iter().map(|(_, point)| *point).collect();
    let mut at = 0..;
    reports.retain(|_| at.next().is_some_and(|at| is_usable(&points, at)));
    reports.sort_by_key(|(arrived, _)| *arrived);
    let mut found = Correction { used: reports.len(), refused: all - reports.len(), ..Correction::default() };
    // Where the clock began to which no report belongs yet.
    let mut start: Option<ClockStart> = None;
    let mut rest = reports.as_slice();
    for next in starts.iter().map(Some).chain([None]) {
        let count = next.map_or(rest.len(), |next| rest.partition_point(|(arrived, _)| *arrived < next.at));
        let (own, later) = rest.split_at(count);
        rest = later;
        let mut points: Vec<Point> = own.iter().map(|(_, point)| *point).collect();
        points.sort_unstable();
        if found.add_clock(&points, start) {
            start = None;
        }
        start = next.copied().or(start);
    }
    (!found.knots.is_empty()).then(|| found.rising())
}

impl Correction {
    /// Adds what the reports of one provisional clock say, which began at `start`. Returns whether there are any.
    fn add_clock(&mut self, points: &[Point], start: Option<ClockStart>) -> bool {
        let mut pieces = split_at_steps(points).into_iter();
        let (Some(first), Some((mut last, _))) = (pieces.next(), points.first().copied()) else { return false };
        match start {
            Some(ClockStart { after, at, .. }) => append_knots(&mut self.knots, after, at, knots(first)),
            None => self.knots.extend(knots(first)),
        }
        let spacing = median(&mut points.windows(2).map(|w| w[1].0 - w[0].0).collect::<Vec<_>>()).unwrap_or(0);
        for piece in pieces {
            let begin = points.partition_point(|p| p < &piece[0]);
            let before = points.get(begin.wrapping_sub(1)).map_or(last, |p| p.0);
            // The clock was anchored again somewhere between two reports: soon after the earlier one if they are far apart.
            let at = before + ((piece[0].0 - before) / 2).min(spacing);
            append_knots(&mut self.knots, at, at, knots(piece));
            last = piece[0].0;
        }
        true
    }

    /// Corrected times never go back, whatever the reports say.
    fn rising(mut self) -> Self {
        for at in 1..self.knots.len() {
            let (t0, c0) = self.knots[at - 1];
            let (t1, c1) = &mut self.knots[at];
            *c1 = (*c1).max(c0 - (*t1 - t0) / 2);
        }
        self
    }
}

/// Whether a report is near the median of its neighbours.
fn is_usable(points: &[Point], at: usize) -> bool {
    let near = &points[at.saturating_sub(NEIGHBOURS)..(at + NEIGHBOURS + 1).min(points.len())];
    let middle = median(&mut near.iter().map(|(_, c)| *c).collect::<Vec<_>>());
    middle.is_some_and(|middle| (points[at].1 - middle).abs() <= OUTLIER_MIN)
}

/// Splits the reports where the clock may have been anchored again: at steps, and after a time without reports.
fn split_at_steps(points: &[Point]) -> Vec<&[Point]> {
    let mut pieces = Vec::new();
    for mut rest in points.chunk_by(|a, b| b.0 - a.0 < SILENCE_MIN) {
        while let Some(at) = first_step(rest) {
            let (piece, behind) = rest.split_at(at);
            pieces.push(piece);
            rest = behind;
        }
        pieces.push(rest);
    }
    pieces
}

/// Where the first step is: before the report with this index.
fn first_step(points: &[Point]) -> Option<usize> {
    let last = points.len().checked_sub(STEP_REPORTS_MIN)?;
    let seen = (STEP_REPORTS_MIN..=last).find(|at| is_step(points, *at))?;
    // The medians differ from a little before the step on. It is where both sides are nearest to their own medians.
    let near = &points[..points.len().min(seen + STEP_REPORTS_MIN + STEP_REPORTS)];
    let from = seen.saturating_sub(STEP_REPORTS);
    let misfit = |at: &usize| spread(&near[from..*at]) + spread(&near[*at..]);
    (seen..=last.min(seen + STEP_REPORTS_MIN)).min_by_key(misfit)
}

/// Whether the reports before and behind an index differ by more than jitter.
fn is_step(points: &[Point], at: usize) -> bool {
    let (before, behind) = points.split_at(at);
    let sorted = |side: &[Point]| {
        let mut spans: Vec<MediaSpan> = side.iter().map(|(_, span)| *span).collect();
        spans.sort_unstable();
        spans
    };
    let before = sorted(&before[before.len().saturating_sub(STEP_REPORTS)..]);
    let behind = sorted(&behind[..behind.len().min(STEP_REPORTS)]);
    // One of a whole side may be an outlier.
    let outliers = |side: &[MediaSpan]| usize::from(side.len() == STEP_REPORTS);
    let lowest = |side: &[MediaSpan]| side.get(outliers(side)).copied().unwrap_or(0);
    let highest = |side: &[MediaSpan]| side.iter().rev().nth(outliers(side)).copied().unwrap_or(0);
    let apart = (lowest(&behind) - highest(&before)).max(lowest(&before) - highest(&behind));
    let height = (behind[behind.len() / 2] - before[before.len() / 2]).abs();
    height >= STEP_MIN && apart >= STEP_APART_MIN
}

/// How far reports are from their median, in all.
fn spread(points: &[Point]) -> MediaSpan {
    let middle = median(&mut points.iter().map(|(_, span)| *span).collect::<Vec<_>>()).unwrap_or(0);
    points.iter().map(|(_, span)| (span - middle).abs()).sum()
}

/// A knot for each window of a piece.
fn knots(piece: &[Point]) -> Vec<Point> {
    let Some(((first, _), (last, _))) = piece.first().zip(piece.last()) else { return Vec::new() };
    let windows = ((*last - *first) / WINDOW).max(1);
    let window_of = |at: MediaTime| ((at - *first) / WINDOW).min(windows - 1);
    piece
        .chunk_by(|a, b| window_of(a.0) == window_of(b.0))
        .filter_map(|inside| {
            let (mut times, mut spans): (Vec<i64>, Vec<i64>) = inside.iter().map(|(at, c)| (at.0, *c)).unzip();
            Some((MediaTime(median(&mut times)?), median(&mut spans)?))
        })
        .collect()
}

/// Appends the next piece's knots: what was known holds up to `after`, and the next from `at` on.
fn append_knots(knots: &mut Vec<Point>, after: MediaTime, at: MediaTime, next: Vec<Point>) {
    let Some((_, to)) = next.first().copied() else { return };
    if let Some((_, from)) = knots.last().copied() {
        // Downwards at half the speed of time, upwards at once.
        let end = at.max(after + ((from - to) * 2).max(MS));
        knots.retain(|(time, _)| *time < after);
        knots.push((after, from));
        knots.push((end, to));
    }
    let last = knots.last().map_or(MediaTime(i64::MIN), |last| last.0);
    knots.extend(next.into_iter().filter(|(time, _)| *time > last));
}

/// The middle value.
fn median(values: &mut [i64]) -> Option<i64> {
    let middle = values.len() / 2;
    (!values.is_empty()).then(|| *values.select_nth_unstable(middle).1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::{SessionId, StreamId, TrackKind};
    use crate::model::time::{NtpTime, Wallclock};
    use proptest::prelude::*;

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

    /// Corrections of clocks that never began anew.
    fn of(tracks: &[(TrackId, &[SenderReport])]) -> BTreeMap<TrackId, Correction> {
        let tracks = tracks.iter().map(|(track, reports)| TrackReports { track: *track, reports, starts: &[] });
        corrections(&tracks.collect::<Vec<_>>())
    }

    #[test]
    fn reports_bring_two_tracks_into_step() {
        let audio: Vec<_> = (0..20).map(|i| report(i * 1000, 0, 30 + i % 3)).collect();
        let video: Vec<_> = (0..20).map(|i| report(i * 1000, 80, 30 + i % 5)).collect();
        let (a, v) = (track(TrackKind::Audio), track(TrackKind::Video));
        let found = of(&[(a, &audio), (v, &video)]);
        let apart = found[&v].apply(ms(5080)) - found[&a].apply(ms(5000));
        assert!(apart.abs() < MS, "{apart}");
    }

    #[test]
    fn a_wrong_report_is_refused_and_counted() {
        let mut reports: Vec<_> = (0..20).map(|i| report(i * 1000, 10, 30)).collect();
        reports[7].pts = ms(400_000);
        let found = &of(&[(track(TrackKind::Video), &reports)])[&track(TrackKind::Video)];
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
        let found = &of(&[(track(TrackKind::Audio), &reports)])[&track(TrackKind::Audio)];
        for i in [0, 500, 1000, 1799_i64] {
            let right = i * 1_000_000_000 + 20 * MS;
            let error = found.apply(MediaTime(i * 1_000_000_000 - i * 100_000)).0 - right;
            assert!(error.abs() < 10 * MS, "at {i} s: {error} ns");
        }
    }

    #[test]
    fn a_step_of_a_clock_is_followed_at_once_and_not_smeared() {
        // Anchored anew after 60 s, 150 ms later than before; and back after 120 s.
        for height in [150, -150] {
            let off = |i: i64| if (60..120).contains(&i) { height } else { 0 };
            let reports: Vec<_> = (0..180).map(|i| report(i * 1000, off(i), 20 + i * 7 % 9)).collect();
            let found = &of(&[(track(TrackKind::Audio), &reports)])[&track(TrackKind::Audio)];
            for i in (0..180).filter(|i| (i % 60) > 1 || *i < 2) {
                let right = (i * 1000 + 20) * MS;
                let error = found.apply(ms(i * 1000 + off(i))).0 - right;
                assert!(error.abs() < 5 * MS, "{height}: at {i} s: {error} ns");
            }
        }
    }

    /// Of a browser on a busy machine that lost 150 ms of its sound: what its reports say to add, in ms.
    const LOST_SOUND: [i64; 20] =
        [-9, -10, -1, -5, -12, 8, -8, -4, 1, -8, -5, -4, 143, 135, 137, 146, 148, 152, 150, 168];

    #[test]
    fn sound_that_a_sender_lost_and_does_not_count_is_a_step_though_its_edge_is_not_the_highest() {
        let reports: Vec<_> = (0..).zip(LOST_SOUND).map(|(i, add)| report(i * 1000, -add, 20)).collect();
        let found = &of(&[(track(TrackKind::Audio), &reports)])[&track(TrackKind::Audio)];
        for (i, add) in (0..).zip(LOST_SOUND) {
            let right = if i < 12 { -5 } else { 148 };
            let off = found.at(ms(i * 1000 - add)) / MS - 20 - right;
            assert!(off.abs() <= 15, "at {i} s: {off} ms");
        }
    }

    #[test]
    fn after_a_long_silence_the_clock_may_be_another_one() {
        let off = |i: i64| if i < 30 { 0 } else { 30 };
        let seconds = (0..30).chain(90..92);
        let reports: Vec<_> = seconds.map(|i| report(i * 1000, off(i), 20)).collect();
        let found = &of(&[(track(TrackKind::Audio), &reports)])[&track(TrackKind::Audio)];
        for i in [0, 10, 29, 85, 90, 91, 100] {
            let error = found.apply(ms(i * 1000 + off(i))).0 - (i * 1000 + 20) * MS;
            assert!(error.abs() < 2 * MS, "at {i} s: {error} ns");
        }
    }

    /// Each clock has two reports, and is off by less than a step of one clock, or by more.
    #[test]
    fn a_clock_that_begins_anew_has_the_correction_of_its_own_reports() {
        for height in [15, -15, 300, -300] {
            let off = |second: i64| if second < 4 { 0 } else { height };
            let reports: Vec<_> = [1, 2, 6, 7].into_iter().map(|at| report(at * 1000, off(at), 20)).collect();
            let at = ms(5000 + height);
            let starts = [ClockStart { known: at, after: ms(2500), at }];
            let one = TrackReports { track: track(TrackKind::Audio), reports: &reports, starts: &starts };
            let found = &corrections(&[one])[&track(TrackKind::Audio)];
            assert_eq!((found.used, found.refused), (4, 0));
            for at in [0, 1000, 2000, 2500, 5000, 5500, 6000, 7000, 9000] {
                let right = (at + 20) * MS;
                let error = found.apply(ms(at + off(at / 1000))).0 - right;
                assert!(error.abs() < MS, "{height}: at {at}: {error} ns");
            }
        }
    }

    /// Janus's first report may tell of an RTP time long before the first packet, and one of two may be wrong.
    #[test]
    fn a_wrong_report_at_a_clock_s_beginning_is_refused() {
        let starts = [ClockStart { known: ms(1000), after: ms(1000), at: ms(1000) }];
        let right = (2..8).map(|at| report(at * 1000, 0, 20));
        for (pts, count) in [(-9000, 6), (9000, 6), (9000, 1)] {
            let wrong = SenderReport { pts: ms(pts), ..report(1500, 0, 20) };
            let reports: Vec<_> = std::iter::once(wrong).chain(right.clone().take(count)).collect();
            let one = TrackReports { track: track(TrackKind::Video), reports: &reports, starts: &starts };
            let found = &corrections(&[one])[&track(TrackKind::Video)];
            assert_eq!((found.used, found.refused), (count, 1), "{pts} of {count}");
            for at in [1000, 3000, 8000] {
                assert!((found.at(ms(at)) - 20 * MS).abs() < MS, "{pts} of {count}: at {at}");
            }
        }
    }

    #[test]
    fn a_stream_whose_reports_are_by_another_clock_is_in_step_within_itself() {
        let session: SessionId = "s".parse().expect("id");
        let other = |kind| TrackId { stream: StreamId::of_router(&session, "b"), kind };
        let right: Vec<_> = (0..60).map(|i| report(i * 1000, 0, 20)).collect();
        let shifted = |off: i64| -> Vec<SenderReport> {
            let shift = |mut r: SenderReport| {
                r.ntp = NtpTime::from_wallclock(Wallclock(r.ntp.to_wallclock().0 + 7_000_000));
                r
            };
            (0..20).map(|i| shift(report(i * 1000, off, 20))).collect()
        };
        let (audio, video) = (shifted(0), shifted(60));
        let found = of(&[
            (track(TrackKind::Audio), &right),
            (other(TrackKind::Audio), &audio),
            (other(TrackKind::Video), &video),
        ]);
        for (track, off) in [(track(TrackKind::Audio), 0), (other(TrackKind::Audio), 0), (other(TrackKind::Video), 60)]
        {
            let error = found[&track].apply(ms(5000 + off)).0 - 5020 * MS;
            assert!(error.abs() < MS, "{track}: {error} ns");
        }
    }

    #[test]
    fn absurd_reports_alone_change_nothing() {
        let mut reports: Vec<_> = (0..5).map(|i| report(i * 1000, 0, 20)).collect();
        for r in &mut reports {
            r.pts = ms(-90_000_000);
        }
        assert!(of(&[(track(TrackKind::Audio), &reports)]).is_empty());
    }

    #[test]
    fn without_reports_nothing_is_changed() {
        assert!(of(&[(track(TrackKind::Audio), &[])]).is_empty());
        assert_eq!(Correction::default().apply(ms(5)), ms(5));
    }

    #[test]
    fn corrected_times_never_go_back() {
        let reports: Vec<_> = (0..100).map(|i| report(i * 1000, (i * 7919) % 90, 20)).collect();
        let found = &of(&[(track(TrackKind::Audio), &reports)])[&track(TrackKind::Audio)];
        let mut last = MediaTime(i64::MIN);
        for at in 0..100_000 {
            let now = found.apply(ms(at));
            assert!(now >= last, "at {at} ms");
            last = now;
        }
    }

    proptest! {
        #[test]
        fn a_step_is_found_in_any_jitter_that_is_smaller(
            jitter in proptest::collection::vec(0..30_i64, 6..60),
            at in 3..57_usize,
            height in prop_oneof![-400..-80_i64, 80..400_i64],
        ) {
            let at = at.min(jitter.len() - 3);
            let level = |i: usize| if i < at { 0 } else { height };
            let times = (0..).map(|second| ms(second * 1000));
            let spans = jitter.iter().enumerate().map(|(i, jitter)| (level(i) + jitter) * MS);
            let points: Vec<Point> = times.zip(spans).collect();
            let reports = points.iter().map(|point| (point.0, *point)).collect();
            let found = correction(reports, &[]).expect("reports");
            // Downwards it takes a while.
            for (i, (time, _)) in points.iter().enumerate().filter(|(i, _)| *i != at || height > 0) {
                let off = found.at(*time) / MS - level(i);
                prop_assert!((0..=30).contains(&off), "report {i}: {off} ms");
            }
        }

        #[test]
        fn whatever_reports_say_times_never_go_back(
            said in proptest::collection::vec((0_i64..400_000, -40_000_i64..40_000, -2_000_i64..2_000), 0..80),
            begun in proptest::collection::btree_map(0_i64..400_000, 0_i64..5000, 0..5),
        ) {
            let reports: Vec<_> = said.iter().map(|(at, off, delay)| report(*at, *off, *delay)).collect();
            let starts: Vec<_> =
                begun.iter().map(|(at, pause)| ClockStart { known: ms(*at), after: ms(at - pause), at: ms(*at) }).collect();
            let one = TrackReports { track: track(TrackKind::Audio), reports: &reports, starts: &starts };
            let found = corrections(&[one]);
            let found = found.get(&track(TrackKind::Audio)).cloned().unwrap_or_default();
            let mut last = MediaTime(i64::MIN);
            for at in -200..2_300 {
                let now = found.apply(ms(at * 200));
                prop_assert!(now >= last, "at {} ms", at * 200);
                last = now;
            }
        }
    }
}
