//! Corrections of a session's provisional clocks, computed from its sender reports.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::model::ids::{StreamId, TrackId};
use crate::model::media::{ClockStart, SenderReport};
use crate::model::time::{MediaSpan, MediaTime};

const MS: MediaSpan = 1_000_000;
/// A report further from its neighbours' median than this is refused. Reports that do not fit the packets are not in the log:
/// see `TrackClock::report_time`.
const OUTLIER_MIN: MediaSpan = 1_000 * MS;
/// A report that came so much before or after its own time is refused: the reporter's clock was set.
const OFF_TIME_MAX: MediaSpan = 3_000 * MS;
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
    pub fn at(&self, time: MediaTime) -> MediaSpan {
        on_line(&self.knots, time).unwrap_or(0)
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
    let Some(session) = session_offset(tracks) else {
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
            let sent = |r: &SenderReport| ntp(r).saturating_add(offset);
            let is_on_time = |r: &&SenderReport| r.arrived.0.saturating_sub(sent(r)).saturating_abs() <= OFF_TIME_MAX;
            let reports = one.reports.iter().filter(is_on_time);
            let points = reports.map(|r| (r.pts, sent(r).saturating_sub(r.pts.0)));
            correction(points.collect(), one.starts).map(|c| (one.track, c))
        })
        .collect()
}

/// The span from the clock that writes a session's reports to the local one, as [`corrections`] uses it. `None` without reports. Each report
/// that comes faster than those before makes it less.
#[must_use]
pub fn session_offset(tracks: &[TrackReports<'_>]) -> Option<MediaSpan> {
    offset(tracks.iter().flat_map(|one| one.reports))
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

/// The correction from a track's reports.
fn correction(mut reports: Vec<Point>, starts: &[ClockStart]) -> Option<Correction> {
    let mut found = Correction { refused: reports.len(), ..Correction::default() };
    reports.retain(|(_, c)| c.unsigned_abs() <= ABSURD_MIN.unsigned_abs());
    reports.sort_unstable();
    // Where the clock began to which no report belongs yet.
    let mut start: Option<ClockStart> = None;
    let mut rest = reports.as_slice();
    for next in starts.iter().map(Some).chain([None]) {
        let count = next.map_or(rest.len(), |next| rest.partition_point(|(pts, _)| *pts < next.at));
        let (own, later) = rest.split_at(count);
        rest = later;
        let points: Vec<Point> = (0..own.len()).filter(|at| is_usable(own, *at)).map(|at| own[at]).collect();
        (found.used, found.refused) = (found.used + points.len(), found.refused - points.len());
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
    // What was known of the clock before may have knots beyond its end.
    if let Some(from) = on_line(knots, after) {
        // Downwards at half the speed of time, upwards at once.
        let end = at.max(after + ((from - to) * 2).max(MS));
        knots.retain(|(time, _)| *time < after);
        knots.push((after, from));
        knots.push((end, to));
    }
    let last = knots.last().map_or(MediaTime(i64::MIN), |last| last.0);
    knots.extend(next.into_iter().filter(|(time, _)| *time > last));
}

/// The value at a time of the line through knots; `None` without any.
#[allow(clippy::cast_possible_truncation)]
fn on_line(knots: &[Point], time: MediaTime) -> Option<MediaSpan> {
    let after = knots.partition_point(|(at, _)| *at <= time);
    match (after.checked_sub(1).and_then(|i| knots.get(i)), knots.get(after)) {
        (Some((t0, c0)), Some((t1, c1))) => {
            let share = i128::from(time - *t0) * i128::from(c1 - c0) / i128::from((*t1 - *t0).max(1));
            Some(c0 + share as i64)
        }
        (Some((_, c)), None) | (None, Some((_, c))) => Some(*c),
        (None, None) => None,
    }
}

/// The middle value.
fn median(values: &mut [i64]) -> Option<i64> {
    let middle = values.len() / 2;
    (!values.is_empty()).then(|| *values.select_nth_unstable(middle).1)
}

#[cfg(test)]
#[path = "correct_tests.rs"]
mod tests;
