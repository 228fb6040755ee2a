//! A track of a log, frame by frame at the times at which they are composed.

use std::collections::VecDeque;

use super::clock::Clocks;
use crate::model::ids::TrackId;
use crate::model::media::Frame;
use crate::model::time::MediaTime;
use crate::recording::reader::{Frames, LogItem, TrackIndex};
use crate::rtp::clock::BACK_MAX;
use crate::rtp::depacketize::h264;

/// Items that are read ahead where frames are reordered, at most.
const AHEAD_MAX: usize = 128;

/// A track's frames in decoding order, with corrected times.
///
/// Where frames are reordered, one that is due may stand behind others that are shown later. So the reader looks ahead, as far in the log as such a
/// frame can be: not further than the log has grown, so that nothing is waited for.
pub(super) struct TrackReader {
    track: TrackId,
    pub frames: Frames,
    /// The items that were read and not taken.
    ahead: VecDeque<ItemAhead>,
    /// Whether frames of the format that was read last may be shown before others that come earlier.
    may_reorder: bool,
    /// The number of unreadable parts before the item that was taken last.
    damaged: u64,
    /// Up to where frames were taken.
    taken: MediaTime,
    /// Frames that were not there when their time had come.
    pub late: u64,
}

/// An item of the log that waits for its moment.
struct ItemAhead {
    item: LogItem,
    /// The number of unreadable parts before it.
    damaged: u64,
    /// The corrected time of a frame.
    at: MediaTime,
}

impl TrackReader {
    pub fn new(index: &TrackIndex) -> Self {
        let (ahead, taken) = (VecDeque::new(), MediaTime(i64::MIN));
        Self { track: index.track, frames: index.frames(), ahead, may_reorder: false, damaged: 0, taken, late: 0 }
    }

    /// Takes the next item if it is a format, or a frame that is not later than `to` or stands before one. The flag says whether an unreadable
    /// part lies before it.
    pub fn take(&mut self, to: MediaTime, clocks: &Clocks) -> Option<(LogItem, bool)> {
        self.read_ahead(to, clocks);
        let is_due = |ahead: &ItemAhead| matches!(ahead.item, LogItem::Frame(_)) && ahead.at <= to;
        let next = self.ahead.front()?;
        if matches!(next.item, LogItem::Frame(_)) && !self.ahead.iter().any(is_due) {
            self.taken = to;
            return None;
        }
        self.take_next()
    }

    /// Takes the next item whatever its time, of those that were read.
    pub fn take_next(&mut self) -> Option<(LogItem, bool)> {
        let ItemAhead { item, damaged, at } = self.ahead.pop_front()?;
        let torn = std::mem::replace(&mut self.damaged, damaged) != damaged;
        let item = match item {
            LogItem::Frame(frame) => LogItem::Frame(Frame { pts: at, ..frame }),
            format @ LogItem::Format(_) => format,
        };
        Some((item, torn))
    }

    /// The earliest time of the frames that were not taken; `None` when the log has no such frame.
    pub fn next_at(&mut self, clocks: &Clocks) -> Option<MediaTime> {
        self.read_ahead(self.taken, clocks);
        let frames = self.ahead.iter().filter(|ahead| matches!(ahead.item, LogItem::Frame(_)));
        frames.map(|ahead| ahead.at).min()
    }

    /// Reads the next item, and where frames are reordered all behind which there may be one for the moment `to`.
    fn read_ahead(&mut self, to: MediaTime, clocks: &Clocks) {
        for ahead in &mut self.ahead {
            if let LogItem::Frame(frame) = &ahead.item {
                ahead.at = clocks.apply(self.track, frame.pts);
            }
        }
        while match self.ahead.back() {
            None => true,
            Some(_) if !self.may_reorder => false,
            Some(last) => matches!(last.item, LogItem::Format(_)) || last.at <= to + BACK_MAX,
        } && self.ahead.len() < AHEAD_MAX
        {
            let Some(item) = self.frames.next() else { return };
            let at = match &item {
                LogItem::Frame(frame) => clocks.apply(self.track, frame.pts),
                LogItem::Format(format) => {
                    self.may_reorder = h264::may_reorder(format);
                    MediaTime(i64::MIN)
                }
            };
            self.late += u64::from(matches!(item, LogItem::Frame(_)) && at <= self.taken);
            self.ahead.push_back(ItemAhead { item, damaged: self.frames.damaged_parts(), at });
        }
    }
}
