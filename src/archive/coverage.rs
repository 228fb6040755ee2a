//! Which time of which announced track is missing from the log, and why. Pure.
//!
//! The promise of an archive: each second of each announced track is in the log, or in a gap that has one cause. The log notes
//! the gaps that its writer saw: between two frames. Nobody writes down a track that never came, nor the end of one that fell
//! silent. Both follow from the session's history: it has which tracks were announced, and what stood in the way of capturing.

use std::collections::BTreeMap;

use super::announced::{TrackHistory, histories};
use crate::model::archive_options::ArchiveOptions;
use crate::model::ids::{Epoch, TrackId};
use crate::model::intervals::{Interval, Intervals};
use crate::model::media::{Gap, GapCause, MissingMedia};
use crate::model::time::{MediaSpan, MediaTime};
use crate::recording::history::Event;
use crate::recording::reader::TrackIndex;

const SECOND: MediaSpan = 1_000_000_000;
const MILLISECOND: MediaSpan = 1_000_000;
/// Frames may be this far apart: the earlier one lasts as long. By default the log notes a longer pause (`[capture] stall`).
const FRAME_MAX: MediaSpan = 2 * SECOND;
/// What is missing at the beginning or end of an announced track for less than this is the time that signalling takes.
const EDGE_MAX: MediaSpan = SECOND;

impl TrackHistory {
    fn cause_at(&self, at: MediaTime) -> GapCause {
        self.blame.iter().take_while(|(from, _)| *from <= at).last().map_or(GapCause::Worker, |(_, cause)| *cause)
    }

    /// An interval in pieces of one cause each. A piece that is no longer than signalling takes goes with the piece after it: the
    /// time to subscribe is no cause of its own.
    fn split(&self, whole: Interval) -> Vec<Gap> {
        let inner = self.blame.iter().map(|(from, _)| *from).filter(|at| whole.from < *at && *at < whole.to);
        let mut edges: Vec<MediaTime> = std::iter::once(whole.from).chain(inner).collect();
        edges.push(whole.to);
        let mut gaps: Vec<Gap> = Vec::new();
        let mut begun = whole.from;
        for piece in edges.windows(2).map(|w| Interval::new(w[0], w[1])).filter(|piece| !piece.is_empty()) {
            if piece.len() < EDGE_MAX {
                continue;
            }
            gaps.push(Gap { from: begun, to: piece.to, cause: self.cause_at(piece.from) });
            begun = piece.to;
        }
        match gaps.last_mut() {
            Some(last) => last.to = whole.to,
            None => gaps.push(Gap { from: whole.from, to: whole.to, cause: self.cause_at(whole.to + (-1)) }),
        }
        gaps
    }

    /// All that is missing of the track, in order and without overlap. `captured` is the time of its frames, `logged` the gaps
    /// that the log has.
    pub(super) fn missing(&self, captured: &Intervals, logged: &[Gap]) -> Vec<Gap> {
        // While a track is not announced, nothing is sent, and a worker need not be there. What a router or a disk lost was sent: a
        // router that is restarted forgets its streams. Older versions noted no announcements: all that is known is the log.
        let counts = |gap: &Gap| {
            let whole = Intervals::from(Interval::new(gap.from, gap.to));
            match gap.cause {
                GapCause::NotSent | GapCause::Worker if !self.announced.is_empty() => {
                    whole.intersection(&self.announced)
                }
                _ => whole,
            }
        };
        let mut known = captured.clone();
        let mut gaps = Vec::new();
        for gap in logged {
            let rest = counts(gap).without(&known);
            gaps.extend(rest.iter().map(|one| Gap { from: one.from, to: one.to, cause: gap.cause }));
            known = known.union(&rest);
        }
        let rest = self.announced.without(&known.bridged(FRAME_MAX));
        gaps.extend(rest.iter().filter(|one| one.len() >= EDGE_MAX).flat_map(|one| self.split(one)));
        gaps.sort_by_key(|gap| gap.from);
        joined(gaps)
    }
}

/// Gaps that touch and have one cause become one.
fn joined(gaps: Vec<Gap>) -> Vec<Gap> {
    let mut out: Vec<Gap> = Vec::with_capacity(gaps.len());
    for gap in gaps {
        match out.last_mut() {
            Some(last) if last.to == gap.from && last.cause == gap.cause => last.to = gap.to,
            _ => out.push(gap),
        }
    }
    out
}

/// What a report says of a track's coverage.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct TrackCoverage {
    /// The codec's name as it was announced; empty if it was not.
    pub codec: String,
    /// What stood in the way of capturing.
    pub details: Vec<String>,
    /// What is missing, in order and without overlap.
    pub gaps: Vec<Gap>,
}

/// The coverage of all tracks that were announced or captured, of the kinds that the archive has.
pub(super) fn of_log(
    tracks: &[TrackIndex],
    events: &[Event],
    options: &ArchiveOptions,
) -> BTreeMap<TrackId, TrackCoverage> {
    let parts = || tracks.iter().flat_map(|track| &track.segments).flat_map(|s| s.parts.iter().map(|p| (s.epoch, p)));
    let alive = |epoch: Epoch| parts().filter(|(of, _)| *of < epoch).map(|(_, p)| p.to).max().unwrap_or_default();
    let end = parts().map(|(_, part)| part.to).max().unwrap_or_default();
    let mut found = histories(events, alive, end);
    for track in tracks {
        found.entry(track.track).or_default();
    }
    let log = |id: &TrackId| tracks.iter().find(|track| track.track == *id);
    let covered = |(id, history): (TrackId, TrackHistory)| {
        let (captured, logged) = log(&id).map(|track| (captured(track), track.missing())).unwrap_or_default();
        let gaps = history.missing(&captured, &logged);
        (id, TrackCoverage { codec: history.codec, details: history.reasons, gaps })
    };
    found.into_iter().filter(|(id, _)| options.has(id.kind)).map(covered).collect()
}

/// The time of a track's frames.
fn captured(track: &TrackIndex) -> Intervals {
    track.segments.iter().flat_map(|segment| &segment.parts).map(|part| Interval::new(part.from, part.to)).collect()
}

/// The media that an archive lacks, the longest first.
pub(super) fn lacking(coverage: &BTreeMap<TrackId, TrackCoverage>) -> Vec<MissingMedia> {
    let mut all = Vec::new();
    for (track, covered) in coverage {
        let mut by_cause: BTreeMap<GapCause, MediaSpan> = BTreeMap::new();
        for gap in covered.gaps.iter().filter(|gap| gap.cause.is_loss()) {
            *by_cause.entry(gap.cause).or_default() += gap.to - gap.from;
        }
        all.extend(by_cause.into_iter().map(|(cause, span)| MissingMedia {
            stream_id: track.stream,
            kind: track.kind,
            cause,
            duration_ms: span / MILLISECOND,
            details: covered.details.clone(),
        }));
    }
    all.sort_by_key(|one| std::cmp::Reverse(one.duration_ms));
    all
}
