//! Which time of which announced track is missing from the log, and why. Pure.
//!
//! The promise of an archive: each second of each announced track is in the log, or in a gap that has one cause. The log notes
//! the gaps that its writer saw: between two frames. Nobody writes down a track that never came, nor the end of one that fell
//! silent. Both follow from the session's history: it has which tracks were announced, and what stood in the way of capturing.

use std::collections::{BTreeMap, BTreeSet};

use super::announced::{Blame, Ends, TrackHistory, Unknown, UnknownTime, histories, unknown};
use crate::model::archive_options::ArchiveOptions;
use crate::model::ids::{Epoch, StreamId, TrackId, TrackKind};
use crate::model::intervals::{Interval, Intervals};
use crate::model::media::{Gap, GapCause, MissingMedia};
use crate::model::time::{MediaSpan, MediaTime};
use crate::recording::history::Event;
use crate::recording::reader::{PartIndex, TrackIndex};
use crate::rtp::clock::Correction;

const SECOND: MediaSpan = 1_000_000_000;
const MILLISECOND: MediaSpan = 1_000_000;
/// Frames may be this far apart: the earlier one lasts as long. By default the log notes a longer pause (`[capture] stall`).
const FRAME_MAX: MediaSpan = 2 * SECOND;
/// What is missing at the beginning or end of an announced track for less than this is the time that signalling takes.
const EDGE_MAX: MediaSpan = SECOND;
/// From this on, the time between the last frame of one owner and the first of the next is missing.
const HANDOVER_MIN: MediaSpan = 100 * MILLISECOND;
/// A lost router, or a lost connection to it, is noticed within this: three polls that are not answered, or ICE that hears nothing.
/// A peer's consent to receive expires after this (RFC 7675, section 5.1).
const NOTICE_MAX: MediaSpan = 30 * SECOND;

/// A part of a gap, and what it is put down to.
#[derive(Debug, Clone, Copy)]
struct Piece {
    at: Interval,
    cause: GapCause,
    /// A shorter one is no cause of its own.
    min: MediaSpan,
}

impl TrackHistory {
    /// What the history blames in an interval, and at its beginning and end for no time, in order. `logged` is the cause that the log
    /// has.
    fn blamed(&self, whole: Interval, logged: Option<GapCause>) -> Vec<(Interval, Option<GapCause>)> {
        let cause_of = |blame: Blame| match blame {
            Blame::Nothing => None,
            // The log says that the connection for media was there.
            Blame::Signalling if matches!(logged, Some(GapCause::NotSent | GapCause::Storage)) => None,
            Blame::Signalling => Some(GapCause::Router),
            Blame::Cause(cause) => Some(cause),
        };
        let first = self.blame.partition_point(|(from, _)| *from < whole.from);
        let before = first.checked_sub(1).map_or(Blame::Nothing, |before| self.blame[before].1);
        let inside = self.blame[first..].iter().take_while(|(from, _)| *from <= whole.to).copied();
        let mut out: Vec<(Interval, Option<GapCause>)> = Vec::new();
        for (from, blame) in std::iter::once((whole.from, before)).chain(inside) {
            if let Some((last, _)) = out.last_mut() {
                last.to = from;
            }
            let cause = cause_of(blame);
            if out.last().is_none_or(|(_, before)| *before != cause) {
                out.push((Interval::new(from, whole.to), cause));
            }
        }
        if let Some((last, _)) = out.last_mut() {
            last.to = whole.to;
        }
        out
    }

    /// A gap in pieces of one cause each, of which some may be short. `logged` is the gap of the log that it is of.
    fn pieces(&self, whole: Interval, logged: Option<Gap>) -> Vec<Piece> {
        let opened = logged.map(|gap| gap.cause);
        let blamed = self.blamed(whole, opened);
        let mut out: Vec<Piece> = Vec::new();
        for (number, (at, cause)) in blamed.iter().enumerate() {
            let (at, next) = (*at, blamed.get(number + 1).and_then(|(_, next)| *next));
            let piece = |from, to, cause, min| Piece { at: Interval::new(from, to), cause, min };
            match (cause, opened) {
                (Some(cause), _) => out.push(piece(at.from, at.to, *cause, EDGE_MAX)),
                // Frames came, and were dropped.
                (None, Some(GapCause::Storage)) => out.push(piece(at.from, at.to, GapCause::Storage, EDGE_MAX)),
                // What opened the gap stands until the history knows better.
                (None, Some(GapCause::Unsupported)) if number == 0 => {
                    out.push(piece(at.from, at.to, GapCause::Unsupported, EDGE_MAX));
                }
                // The history has when a source was lost. Before that nothing was sent, as far as is known, but for the time in
                // which a lost router is not noticed.
                _ => {
                    let lost = if next == Some(GapCause::Router) { at.from.max(at.to + -NOTICE_MAX) } else { at.to };
                    out.push(piece(at.from, lost, GapCause::NotSent, FRAME_MAX));
                    out.push(piece(lost, at.to, GapCause::Router, EDGE_MAX));
                }
            }
        }
        out.retain(|piece| !piece.at.is_empty());
        out.dedup_by(|next, piece| {
            let same = next.cause == piece.cause;
            if same {
                (piece.at.to, piece.min) = (next.at.to, piece.min.min(next.min));
            }
            same
        });
        out
    }

    /// A gap in pieces of one cause each. A short piece goes with the piece after it: the time to subscribe is no cause of its own.
    /// Short ones in which a second is lost together are a gap.
    fn split(&self, whole: Interval, logged: Option<Gap>) -> Vec<Gap> {
        // Packets show these two: no source was lost meanwhile, and none was switched off.
        let certain = |gap: &Gap| matches!(gap.cause, GapCause::Network | GapCause::NotReceived);
        let knows = |gap: &Gap| self.blamed(whole, Some(gap.cause)).iter().any(|(_, cause)| cause.is_some());
        if let Some(gap) = logged.filter(|gap| certain(gap) || !knows(gap)) {
            return vec![Gap { from: whole.from, to: whole.to, cause: gap.cause }];
        }
        let mut gaps: Vec<Gap> = Vec::new();
        // Of the short pieces since `begun`: how long media is lost in them, and why at first. The time to subscribe follows from that.
        let (mut begun, mut lost, mut loss) = (whole.from, 0, None);
        for Piece { at, cause, min } in self.pieces(whole, logged) {
            // What a router loses in an instant is not put down to a worker that takes long to subscribe again.
            if let Some(first) = loss.filter(|first| *first != GapCause::Worker)
                && cause == GapCause::Worker
                && at.len() >= min
            {
                gaps.push(Gap { from: begun, to: at.from, cause: first });
                (begun, lost, loss) = (at.from, 0, None);
            }
            if cause.is_loss() {
                lost += at.len();
                loss = loss.or(Some(cause));
            }
            let long = at.len() >= min;
            if long || lost >= EDGE_MAX {
                let cause = if long { cause } else { loss.unwrap_or(cause) };
                gaps.push(Gap { from: begun, to: at.to, cause });
                (begun, lost, loss) = (at.to, 0, None);
            }
        }
        let rest_is_short = whole.to - begun < FRAME_MAX;
        match (gaps.last_mut(), loss) {
            (Some(last), loss) if loss.is_none() || rest_is_short => last.to = whole.to,
            (last, loss) => {
                let opened = logged.filter(|_| last.is_none()).map(|gap| gap.cause);
                let cause = opened.or(loss).unwrap_or(GapCause::NotSent);
                gaps.push(Gap { from: begun, to: whole.to, cause });
            }
        }
        gaps
    }

    /// The part of a gap of the log that counts. While a track is not announced, nothing is sent, and a worker need not be there.
    /// What a router lost was sent: a router that is restarted forgets its streams. Older versions noted no announcements: all that
    /// is known is the log.
    fn counted(&self, gap: &Gap) -> Intervals {
        let whole = Intervals::from(Interval::new(gap.from, gap.to));
        match gap.cause {
            GapCause::NotSent | GapCause::Worker if !self.announced.is_empty() => whole.intersection(&self.announced),
            _ => whole.without(&self.absent),
        }
    }

    /// A gap of the log in parts that count, in pieces of one cause each. Sender reports tell that packets were sent which did not come,
    /// and not when: where the track was not announced in between, a short part at that edge is the time that signalling takes.
    fn of_logged(&self, gap: &Gap) -> Vec<Gap> {
        let mut pieces = Vec::new();
        for part in self.counted(gap).iter() {
            let is_edge = part.from > gap.from || part.to < gap.to;
            if gap.cause == GapCause::NotReceived && is_edge && part.len() < EDGE_MAX {
                pieces.push(Gap { from: part.from, to: part.to, cause: GapCause::NotSent });
            } else {
                pieces.extend(self.split(part, Some(*gap)));
            }
        }
        pieces
    }

    /// All that is missing of the track, in order and without overlap. `captured` is the time of its frames, `logged` the gaps
    /// that the log has. `lost` is the time of frames that the log names and that are gone.
    pub(super) fn missing(&self, captured: &Intervals, lost: &Intervals, logged: &[Gap]) -> Vec<Gap> {
        let lost = lost.without(captured);
        let mut known = captured.union(&lost);
        let mut gaps: Vec<Gap> =
            lost.iter().map(|one| Gap { from: one.from, to: one.to, cause: GapCause::Worker }).collect();
        // Within a gap of the storage, the rules of the track noted when no frames came that could have been written.
        let (storage, others): (Vec<Gap>, Vec<Gap>) = logged.iter().partition(|gap| gap.cause == GapCause::Storage);
        for gap in others.iter().chain(&storage) {
            for piece in self.of_logged(gap) {
                let rest = Intervals::from(Interval::new(piece.from, piece.to)).without(&known);
                gaps.extend(rest.iter().map(|one| Gap { from: one.from, to: one.to, cause: piece.cause }));
                known = known.union(&rest);
            }
        }
        let rest = self.announced.without(&known.bridged(FRAME_MAX));
        gaps.extend(rest.iter().filter(|one| one.len() >= EDGE_MAX).flat_map(|one| self.split(one, None)));
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

/// The parts that the indexes of all tracks name, with their epochs: lost ones, too.
fn named_parts(tracks: &[TrackIndex]) -> impl Iterator<Item = (Epoch, &PartIndex)> {
    let segments = tracks.iter().flat_map(|track| &track.segments);
    segments.flat_map(|segment| segment.parts.iter().chain(&segment.lost).map(|part| (segment.epoch, part)))
}

/// The last that is known of a session: of its log, and of when its capture had ended. `ended_at` is the catalog's.
fn ends(tracks: &[TrackIndex], ended_at: Option<MediaTime>) -> Ends {
    Ends { log: named_parts(tracks).map(|(_, part)| part.to).max().unwrap_or_default(), capture: ended_at }
}

/// When the owners before an epoch were last seen to work. One that stood still may go on writing after the epoch began.
fn alive(tracks: &[TrackIndex], epoch: Epoch, began: MediaTime) -> MediaTime {
    let before = named_parts(tracks).filter(|(of, part)| *of < epoch && part.from < began);
    before.map(|(_, part)| part.to.min(began)).max().unwrap_or_default()
}

/// What an archive lacks of times of which there is no history: nobody knows which streams there were. `ended_at`: see [`of_log`].
pub(super) fn of_lost_histories(
    tracks: &[TrackIndex],
    events: &[Event],
    options: &ArchiveOptions,
    ended_at: Option<MediaTime>,
) -> Vec<MissingMedia> {
    let unknown = unknown(events, |epoch, began| alive(tracks, epoch, began), ends(tracks, ended_at));
    let kinds = [TrackKind::Audio, TrackKind::Video].into_iter().filter(|kind| options.has(*kind));
    let causes: BTreeSet<GapCause> = unknown.iter().map(|one| one.why.cause()).collect();
    let missing = |kind, cause: GapCause| {
        let times: Vec<&UnknownTime> = unknown.iter().filter(|one| one.why.cause() == cause).collect();
        MissingMedia {
            stream_id: StreamId::UNKNOWN,
            kind,
            cause,
            duration_ms: times.iter().map(|one| one.span.len()).sum::<MediaSpan>() / MILLISECOND,
            details: times.iter().map(|one| told(one)).collect(),
        }
    };
    kinds
        .flat_map(|kind| causes.iter().map(move |cause| (kind, *cause)))
        .map(|(kind, cause)| missing(kind, cause))
        .collect()
}

/// Why it is not known who published in a time.
fn told(unknown: &UnknownTime) -> String {
    let (from, to) = (unknown.span.from.as_secs_f64(), unknown.span.to.as_secs_f64());
    let (lack, why) = match unknown.why {
        Unknown::HistoryLost => ("no history is left of the time", "its worker did not send it"),
        Unknown::Unseen(GapCause::Router) => ("no worker was in the room", "the router could not be reached"),
        Unknown::Unseen(_) => ("no worker was in the room", "the event came late, or no worker had a place"),
    };
    format!("{lack} from {from:.1} to {to:.1} s: {why}, and it is not known who published then")
}

/// The coverage of all tracks that were announced or captured, of the kinds that the archive has. `ended_at`: when the capture had ended,
/// as far as the catalog knows.
pub(super) fn of_log(
    tracks: &[TrackIndex],
    events: &[Event],
    options: &ArchiveOptions,
    ended_at: Option<MediaTime>,
) -> BTreeMap<TrackId, TrackCoverage> {
    let mut found = histories(events, |epoch, began| alive(tracks, epoch, began), ends(tracks, ended_at));
    for track in tracks {
        found.entry(track.track).or_default();
    }
    let log = |id: &TrackId| tracks.iter().find(|track| track.track == *id);
    let covered = |(id, history): (TrackId, TrackHistory)| {
        let of_track = |track| (captured(track), lost(track), [track.missing(), between_owners(track)].concat());
        let (captured, lost, logged) = log(&id).map(of_track).unwrap_or_default();
        let gaps = history.missing(&captured, &lost, &logged);
        (id, TrackCoverage { codec: history.codec, details: history.reasons, gaps })
    };
    found.into_iter().filter(|(id, _)| options.has(id.kind)).map(covered).collect()
}

/// Moves gaps from the provisional times of the log to the times that the archive's files have. A correction never turns time back: gaps
/// stay in order and do not overlap.
pub(super) fn correct(coverage: &mut BTreeMap<TrackId, TrackCoverage>, corrections: &BTreeMap<TrackId, Correction>) {
    for (track, covered) in coverage {
        if let Some(correction) = corrections.get(track) {
            let at = |time| correction.apply(time);
            covered.gaps.iter_mut().for_each(|gap| (gap.from, gap.to) = (at(gap.from), at(gap.to)));
        }
    }
}

/// The media of a log, over all tracks, in milliseconds.
pub fn captured_ms(tracks: &[TrackIndex]) -> i64 {
    let of_track = |track| captured(track).iter().map(|one| one.to.as_millis() - one.from.as_millis()).sum::<i64>();
    tracks.iter().map(of_track).sum()
}

/// The time of a track's frames: that of its parts without the gaps between the frames of a part. The later of two owners notes the
/// gap between them, and a part of the earlier one may go beyond that: such a gap is none between frames. A gap within a part of one owner is
/// missing though another one has that time: the reader changes owners between parts.
fn captured(track: &TrackIndex) -> Intervals {
    let mut parts: Vec<Interval> =
        track.segments.iter().flat_map(|s| &s.parts).map(|part| Interval::new(part.from, part.to)).collect();
    parts.sort_by_key(|part| part.from);
    let epochs: BTreeSet<Epoch> = track.segments.iter().map(|segment| segment.epoch).collect();
    let is_within_a_part = |gap: &&Gap| {
        let begun = &parts[..parts.partition_point(|part| part.from < gap.from)];
        begun.iter().rev().take(epochs.len()).any(|part| gap.to < part.to)
    };
    let gaps = track.gaps.iter().filter(|gap| gap.cause != GapCause::Worker).filter(is_within_a_part);
    let holes: Intervals = gaps.map(|gap| Interval::new(gap.from, gap.to)).collect();
    parts.iter().copied().collect::<Intervals>().without(&holes)
}

/// The time of the frames that a track's index names and whose bytes are gone.
fn lost(track: &TrackIndex) -> Intervals {
    track.segments.iter().flat_map(|s| &s.lost).map(|part| Interval::new(part.from, part.to)).collect()
}

/// The time between two owners. The later one notes it, unless that owner could not fetch what the earlier one had captured.
fn between_owners(track: &TrackIndex) -> Vec<Gap> {
    let parts = track.segments.iter().flat_map(|s| s.parts.iter().map(move |part| (s.epoch, part)));
    let mut parts: Vec<_> = parts.collect();
    parts.sort_by_key(|(_, part)| part.from);
    let (mut gaps, mut last): (Vec<Gap>, Option<(Epoch, MediaTime)>) = (Vec::new(), None);
    let mut begun = BTreeSet::new();
    for (epoch, part) in parts {
        // Two owners may go on side by side, with pauses of the publisher: what counts is where one begins.
        if let Some((_, to)) = last
            && begun.insert(epoch)
            && part.from - to >= HANDOVER_MIN
            && !is_still_captured(track, epoch, to, part.from)
        {
            gaps.push(Gap { from: to, to: part.from, cause: GapCause::Worker });
        }
        begun.insert(epoch);
        last = Some(last.filter(|(_, to)| *to > part.to).unwrap_or((epoch, part.to)));
    }
    gaps
}

/// Whether an owner before an epoch captures on when that begins: its frames are no further apart than those of a slow picture.
fn is_still_captured(track: &TrackIndex, epoch: Epoch, since: MediaTime, begins: MediaTime) -> bool {
    let earlier = track.segments.iter().filter(|segment| segment.epoch < epoch).flat_map(|segment| &segment.parts);
    earlier.filter(|part| part.from >= begins).any(|part| part.from - since < FRAME_MAX)
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
