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
/// If none has come by then, the first report is waited for up to this long after the beginning. A busy router sends the first packets and
/// the first report late. Media that is composed before that report is misplaced, and some of the media behind it would be lost.
const LOOK_AHEAD_FIRST_MAX: MediaSpan = 10_000 * MS;
/// Reports, knots and beginnings that are older than this say nothing of the clock now.
const REMEMBERED: MediaSpan = 60_000 * MS;

/// When the offset changes by more than this from one step to the next, the router's clock was set.
const SET_MIN: MediaSpan = 3_000 * MS;

/// The offset in use differs at most by this from the latest one: layouts, mutes and selections have local times, which it does not move.
pub const HELD_MAX: MediaSpan = 500 * MS;

/// The offset from the router's clock, which writes the reports, to the local clock.
///
/// A report that comes faster than those before makes the latest offset smaller. The streams stay where they are nevertheless. If all of
/// them moved back together, a viewer would gain nothing, and twice as much of their sound would be lost as they move.
#[derive(Debug, Clone, Copy)]
struct RouterOffset {
    /// The offset in use.
    held: MediaSpan,
    /// The offset by the reports of the last step.
    latest: MediaSpan,
}

impl RouterOffset {
    fn next(known: Option<Self>, latest: MediaSpan) -> Self {
        let Some(known) = known else { return Self { held: latest, latest } };
        let change = latest - known.latest;
        let held = if change.abs() > SET_MIN { known.held + change } else { known.held };
        Self { held: held.clamp(latest - HELD_MAX, latest + HELD_MAX), latest }
    }

    /// The span to add to corrections, which are computed with the latest offset.
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
    /// The moment up to which reports are used at a step. Where the clock begins, that includes its first reports.
    fn known_until(&self, step: MediaTime) -> Option<MediaTime> {
        // A beginning is known from the first frame on (older logs tell no more), and from the first part of each later clock.
        let first = self.start.map(|known| (known, MediaTime(i64::MIN)));
        let beginnings = first.into_iter().chain(self.starts.iter().map(|start| (start.known, start.at)));
        let until = |(known, at): (MediaTime, MediaTime)| match known {
            known if step < known => MediaTime(i64::MIN),
            known => (step + LOOK_AHEAD).max(self.first_reports_until(known, at)),
        };
        beginnings.map(until).max()
    }

    /// The moment up to which the first reports are waited for, of a clock that began at `at`, as the log says from `known` on.
    fn first_reports_until(&self, known: MediaTime, at: MediaTime) -> MediaTime {
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
#[path = "clock_tests.rs"]
mod tests;
