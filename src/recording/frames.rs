//! The frames of a track's log in the order in which a decoder takes them, whoever of its owners captured them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;

use bytes::Bytes;

use super::reader::{PartIndex, ROUNDING, SegmentIndex, TrackIndex, part_bytes};
use super::{LogError, mkv};
use crate::model::ids::Epoch;
use crate::model::media::{Frame, TrackFormat};
use crate::model::time::{MediaSpan, MediaTime};

/// An item of a track's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogItem {
    /// The frames that follow have this format.
    Format(TrackFormat),
    /// A frame. Its duration is not stored.
    Frame(Frame),
}

/// A part of an epoch that begins so long after the one before it, in nanoseconds, does not go on from it.
const BREAK: MediaSpan = 100_000_000;

/// The clocks of two owners differ by less, in nanoseconds.
const CLOCKS_MAX: MediaSpan = 300_000_000;

/// A frame, to find it in what another owner captured.
#[derive(Debug, Clone)]
struct Mark {
    pts: MediaTime,
    data: Bytes,
}

/// The times of the frames whose bytes no other frame has: frames of silence are all the same.
fn unique(marks: &[Mark]) -> BTreeMap<&[u8], MediaTime> {
    let mut found: BTreeMap<&[u8], Option<MediaTime>> = BTreeMap::new();
    for mark in marks {
        found.entry(&mark.data).and_modify(|pts| *pts = None).or_insert(Some(mark.pts));
    }
    found.into_iter().filter_map(|(data, pts)| Some((data, pts?))).collect()
}

/// The difference of two owners' clocks in nanoseconds: a frame's time by the one minus that by the next, by the frames that both have. Counts
/// the difference that most of them have, and of two such the smaller one.
fn clock_difference(one: &[Mark], next: &[Mark]) -> Option<MediaSpan> {
    let (one, next) = (unique(one), unique(next));
    let pairs = one.iter().filter_map(|(data, pts)| Some(*pts - *next.get(data)?));
    let is_near = |difference: &MediaSpan| (-CLOCKS_MAX..CLOCKS_MAX).contains(difference);
    let mut found: Vec<MediaSpan> = pairs.filter(is_near).collect();
    found.sort_unstable();
    let votes = |difference: MediaSpan| {
        let upto = |end: MediaSpan| found.partition_point(|other| *other <= end);
        upto(difference + ROUNDING) - upto(difference - ROUNDING)
    };
    found.iter().copied().max_by_key(|difference| (votes(*difference), Reverse(difference.abs())))
}

/// How far an epoch was read: up to a part of a segment.
#[derive(Debug, Clone, Copy)]
struct Cursor {
    n: u32,
    part: usize,
}

/// Where a part stands in the index.
#[derive(Debug, Clone, Copy)]
struct Place {
    segment: usize,
    part: usize,
}

/// The epoch that is being read.
#[derive(Debug, Clone, Copy)]
struct ReadEpoch {
    epoch: Epoch,
    /// End of its last part.
    end: MediaTime,
    /// Its frames up to this time were read before.
    before: Option<MediaTime>,
    /// It begins where another epoch was left. Its first frames may have times before the last frame that was read: they are moved behind
    /// that one.
    begins: bool,
    /// The epoch that is read next.
    next: Option<NextOwner>,
    /// The change of owner in whose pause this epoch lies: the epoch that was left, and its next owner.
    in_pause_of: Option<(Epoch, NextOwner)>,
    /// Frames of its last part were left to that owner.
    is_cut: bool,
}

/// A later epoch that begins while another one is being read: the next owner in a hand-over, or one that took over from an owner that stood
/// still. It goes on at its first frame, which is a keyframe.
#[derive(Debug, Clone, Copy)]
struct NextOwner {
    epoch: Epoch,
    /// The time of its first frame by the clock of the epoch that is being read.
    at: MediaTime,
    /// The clocks' difference in nanoseconds: a frame's time in the epoch that is being read minus that in the next one.
    difference: MediaSpan,
}

/// Walks through a track's frames, one part in memory at a time, and a few where owners change. Parts that cannot be read are counted and
/// passed over; frames that another epoch had already are left out.
///
/// Epochs follow each other in time, but not without exception: an owner that stood still goes on writing for a moment after others had
/// taken its job over, and what it writes lies behind theirs. So an epoch is read until a later one begins, and as long as it goes on without
/// a break in which another one has media.
#[derive(Debug)]
pub struct Frames {
    index: TrackIndex,
    cursors: BTreeMap<Epoch, Cursor>,
    /// The epochs that were left for a next owner, and the difference of their clocks to that of the newest owner. What is read of them
    /// later has its times.
    left: BTreeMap<Epoch, MediaSpan>,
    reading: Option<ReadEpoch>,
    file: Option<(u32, File)>,
    pending: VecDeque<LogItem>,
    format: Option<TrackFormat>,
    /// Start of the frame that is shown last.
    last: Option<MediaTime>,
    damaged: u64,
}

impl Frames {
    /// Parts that could not be read so far.
    #[must_use]
    pub const fn damaged_parts(&self) -> u64 {
        self.damaged
    }

    /// Reads the lines that were added to the log since. The iterator continues after the last frame that it gave.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn refresh(&mut self) -> Result<(), LogError> {
        self.index.forget_before(self.cursors.values().map(|cursor| cursor.n));
        self.index.refresh().map(drop)
    }

    /// The first part of an epoch that was not read.
    fn unread(&self, epoch: Epoch) -> Option<Place> {
        let segments = &self.index.segments;
        let (mut segment, mut part) = match self.cursors.get(&epoch) {
            Some(cursor) => (segments.partition_point(|s| s.n < cursor.n), cursor.part),
            None => (segments.partition_point(|s| s.epoch < epoch), 0),
        };
        while part >= segments.get(segment).filter(|found| found.epoch == epoch)?.parts.len() {
            (segment, part) = (segment + 1, 0);
        }
        Some(Place { segment, part })
    }

    fn part(&self, place: Place) -> PartIndex {
        self.index.segments[place.segment].parts[place.part]
    }

    /// The epoch of a part.
    fn epoch(&self, place: Place) -> Epoch {
        self.index.segments[place.segment].epoch
    }

    /// How much earlier the times of an epoch are given than its index has them.
    fn shift(&self, epoch: Epoch) -> MediaSpan {
        self.left.get(&epoch).copied().unwrap_or_default()
    }

    /// When a part begins, as its times are given.
    fn from(&self, place: Place) -> MediaTime {
        self.part(place).from + -self.shift(self.epoch(place))
    }

    /// The part to read next; `None` if there is none yet.
    fn next_place(&self) -> Option<Place> {
        let own = self.reading.and_then(|reading| Some((reading, self.unread(reading.epoch)?)));
        let Some((reading, own)) = own else {
            let unread = self.index.epochs().filter_map(|epoch| self.unread(epoch));
            return unread.min_by_key(|place| self.from(*place));
        };
        let is_others = |next: &NextOwner| reading.is_cut || self.part(own).from + ROUNDING > next.at;
        let (going_on, ends) = match reading.next.filter(is_others) {
            Some(next) => (self.unread(next.epoch)?, next.at + -self.shift(reading.epoch)),
            None => (own, self.from(own)),
        };
        if ends - reading.end < BREAK {
            return Some(going_on);
        }
        // Another epoch comes first only if it lies in a break of this one: two owners that capture side by side are not read by turns.
        let lies_between = |place: &Place| ends - self.from(*place) >= BREAK;
        let is_other = |epoch: &Epoch| *epoch != reading.epoch && reading.next.is_none_or(|next| next.epoch != *epoch);
        // An epoch that was left has the same pauses of the publisher: it counts only in a break in which media was lost.
        let is_lost = self.is_lost(reading.end, ends);
        let others = self.index.epochs().filter(is_other).filter(|epoch| is_lost || !self.left.contains_key(epoch));
        let places = others.filter_map(|epoch| self.in_break(epoch, reading.end));
        places.filter(lies_between).min_by_key(|place| self.from(*place)).or(Some(going_on))
    }

    /// Whether media was lost within a time.
    fn is_lost(&self, begins: MediaTime, ends: MediaTime) -> bool {
        self.index.gaps.iter().any(|gap| gap.cause.is_loss() && gap.from < ends && begins < gap.to)
    }

    /// The first part of an epoch that was not read and goes beyond the beginning of another one's break.
    fn in_break(&self, epoch: Epoch, begins: MediaTime) -> Option<Place> {
        let begins = begins + self.shift(epoch);
        let Place { mut segment, mut part } = self.unread(epoch)?;
        loop {
            let parts = &self.index.segments.get(segment).filter(|found| found.epoch == epoch)?.parts;
            match parts.get(part) {
                Some(found) if found.to > begins => return Some(Place { segment, part }),
                Some(_) => part += 1,
                None => (segment, part) = (segment + 1, 0),
            }
        }
    }

    /// Looks whether a later epoch begins before, in, or up to [`CLOCKS_MAX`] after the part that is read next.
    fn find_next_owner(&self, own: Place) -> Option<NextOwner> {
        let own_epoch = self.epoch(own);
        let is_new = |epoch: &Epoch| *epoch > own_epoch && !self.cursors.contains_key(epoch);
        let begins = self.index.epochs().filter(is_new).filter_map(|epoch| self.unread(epoch));
        let place = begins.min_by_key(|place| self.part(*place).from)?;
        let (at, epoch) = (self.part(place).from, self.epoch(place));
        // How far apart the clocks are is not known yet.
        if at > self.part(own).to + CLOCKS_MAX {
            return None;
        }
        let until = at + CLOCKS_MAX;
        let difference = clock_difference(&self.marks(own, until), &self.marks(place, until)).unwrap_or_default();
        Some(NextOwner { epoch, at: at + difference, difference })
    }

    /// Looks whether a later epoch begins where the one that is being read goes on.
    fn look_for_next_owner(&mut self) {
        let Some(mut reading) = self.reading.filter(|reading| reading.next.is_none()) else { return };
        reading.next = self.unread(reading.epoch).and_then(|own| self.find_next_owner(own));
        self.reading = Some(reading);
    }

    /// The frames of an epoch from a part on, until a time.
    fn marks(&self, from: Place, until: MediaTime) -> Vec<Mark> {
        let epoch = self.epoch(from);
        let mut marks = Vec::new();
        let segments = self.index.segments.iter().skip(from.segment).take_while(|segment| segment.epoch == epoch);
        for (number, segment) in segments.enumerate() {
            let skipped = if number == 0 { from.part } else { 0 };
            let wanted: Vec<PartIndex> =
                segment.parts.iter().skip(skipped).take_while(|part| part.from <= until).copied().collect();
            let Ok(file) = File::open(self.index.dir.join(&segment.file)) else { break };
            for bytes in wanted.iter().filter_map(|part| part_bytes(&file, *part)).map(Bytes::from) {
                let mark = |block: mkv::Block| Mark { pts: block.pts, data: bytes.slice(block.data) };
                marks.extend(mkv::read_part(&bytes).unwrap_or_default().into_iter().map(mark));
            }
            if wanted.len() + skipped < segment.parts.len() {
                break;
            }
        }
        marks
    }

    /// The epoch of the part that is read next, which begins at a time.
    fn read_epoch(&mut self, epoch: Epoch, from: MediaTime) -> ReadEpoch {
        let last = match self.reading {
            Some(reading) if reading.epoch == epoch => return reading,
            last => last,
        };
        // Which epoch is left for which next owner. An epoch in the pause between the two may come first.
        let change = last.and_then(|last| last.in_pause_of.or_else(|| Some((last.epoch, last.next?))));
        let is_next = change.is_some_and(|(_, next)| next.epoch == epoch);
        let is_near = self.last.is_none_or(|last| last - from < CLOCKS_MAX);
        let begins = is_next && is_near && !self.cursors.contains_key(&epoch);
        if let Some((left, next)) = change.filter(|_| begins) {
            self.left.values_mut().for_each(|difference| *difference += next.difference);
            self.left.insert(left, next.difference);
        }
        let in_pause_of = change.filter(|(left, _)| !is_next && *left != epoch);
        let before = self.last.filter(|_| !begins);
        ReadEpoch { epoch, end: from + -self.shift(epoch), before, begins, next: None, in_pause_of, is_cut: false }
    }

    fn read_part(&mut self, place: Place) -> Option<Bytes> {
        let segment = &self.index.segments[place.segment];
        if self.file.as_ref().is_none_or(|(open, _)| *open != segment.n) {
            self.file = Some((segment.n, File::open(self.index.dir.join(&segment.file)).ok()?));
        }
        part_bytes(&self.file.as_ref()?.1, self.part(place)).map(Bytes::from)
    }

    /// Reads a part's frames, up to those of the next owner. A frame that was read before may seem later by the rounding of times.
    fn read_items(&mut self, reading: &mut ReadEpoch, format: &TrackFormat, bytes: &Bytes) -> Result<(), mkv::BadPart> {
        let shift = self.shift(reading.epoch);
        let tolerance = if self.left.is_empty() { 0 } else { ROUNDING };
        for mkv::Block { mut pts, keyframe, data } in mkv::read_part(bytes)? {
            if reading.next.is_some_and(|next| pts + ROUNDING > next.at) {
                reading.is_cut = true;
                continue;
            }
            pts = pts + -shift;
            if reading.before.is_some_and(|before| pts <= before + tolerance) {
                continue;
            }
            if let Some(last) = self.last.filter(|_| reading.begins) {
                reading.begins = pts <= last;
                pts = if reading.begins { last + ROUNDING } else { pts };
            }
            if self.format.as_ref() != Some(format) {
                self.format = Some(format.clone());
                self.pending.push_back(LogItem::Format(format.clone()));
            }
            self.last = self.last.max(Some(pts));
            self.pending.push_back(LogItem::Frame(Frame { pts, duration: None, keyframe, data: bytes.slice(data) }));
        }
        Ok(())
    }
}

impl Iterator for Frames {
    type Item = LogItem;

    fn next(&mut self) -> Option<LogItem> {
        loop {
            if let Some(item) = self.pending.pop_front() {
                return Some(item);
            }
            self.look_for_next_owner();
            let place = self.next_place()?;
            let SegmentIndex { n, epoch, format, .. } = &self.index.segments[place.segment];
            let (n, epoch, format, part) = (*n, *epoch, format.clone(), self.part(place));
            let mut reading = self.read_epoch(epoch, part.from);
            if reading.next.is_none() {
                reading.next = self.find_next_owner(place);
                if reading.next.is_some_and(|next| part.from + ROUNDING > next.at) {
                    self.reading = Some(reading);
                    continue;
                }
            }
            reading.end = part.to + -self.shift(epoch);
            let read = self.read_part(place);
            if read.is_none_or(|bytes| self.read_items(&mut reading, &format, &bytes).is_err()) {
                self.damaged += 1;
            }
            // Should the next owner lose media soon, a part that was cut is read again, as far as it was not.
            let part = if reading.is_cut { place.part } else { place.part + 1 };
            self.cursors.insert(epoch, Cursor { n, part });
            self.reading = Some(reading);
        }
    }
}

impl TrackIndex {
    /// All frames in decoding order, with the format before the first and where it changes.
    #[must_use]
    pub fn frames(&self) -> Frames {
        Frames {
            index: self.clone(),
            cursors: BTreeMap::new(),
            left: BTreeMap::new(),
            reading: None,
            file: None,
            pending: VecDeque::new(),
            format: None,
            last: None,
            damaged: 0,
        }
    }
}
