//! A track of a log, frame by frame at the times at which they are composed.

use std::collections::VecDeque;

use super::clock::Clocks;
use crate::model::ids::TrackId;
use crate::model::media::Frame;
use crate::model::time::{MediaSpan, MediaTime};
use crate::recording::frames::{Frames, LogItem};
use crate::recording::reader::TrackIndex;
use crate::rtp::clock::BACK_MAX;
use crate::rtp::depacketize::h264;

/// How far frames are read ahead where they are reordered: farther than a frame can be displaced, so that a decoder that holds pictures back gets
/// enough frames. The log may not be complete there.
const AHEAD_SPAN: MediaSpan = 3 * BACK_MAX;
/// Items that are read ahead where frames are reordered, at most.
const AHEAD_MAX: usize = 128;

/// A track's frames in decoding order, with corrected times.
///
/// Where frames are reordered, one that is due may stand behind others that are shown later. So the reader looks ahead, farther than such a frame
/// can be, but not further than the log has grown, so that nothing is waited for.
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
    /// `taken`: the moment that was composed last. The track's frames up to it are late.
    pub fn new(index: &TrackIndex, taken: MediaTime) -> Self {
        let ahead = VecDeque::new();
        Self { track: index.track, frames: index.frames(), ahead, may_reorder: false, damaged: 0, taken, late: 0 }
    }

    /// Takes the next item if it is a format, or a frame that is not later than `to` or stands before one. The flag says whether an unreadable
    /// part lies before it.
    pub fn take(&mut self, to: MediaTime, clocks: &Clocks) -> Option<(LogItem, bool)> {
        self.read_ahead(to, clocks);
        let is_due = |ahead: &ItemAhead| matches!(ahead.item, LogItem::Frame(_)) && ahead.at <= to;
        let Some(next) = self.ahead.front() else {
            // What comes into the log for this moment from now on is late.
            self.taken = to;
            return None;
        };
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

    /// Reads the next item, and where frames are reordered those of [`AHEAD_SPAN`] behind the moment `to`.
    fn read_ahead(&mut self, to: MediaTime, clocks: &Clocks) {
        for ahead in &mut self.ahead {
            if let LogItem::Frame(frame) = &ahead.item {
                ahead.at = clocks.apply(self.track, frame.pts);
            }
        }
        while match self.ahead.back() {
            None => true,
            Some(_) if !self.may_reorder => false,
            Some(last) => matches!(last.item, LogItem::Format(_)) || last.at <= to + AHEAD_SPAN,
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

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::model::ids::{Epoch, SessionId, StreamId, TrackKind};
    use crate::model::media::{Codec, TrackFormat};
    use crate::recording::spool::Spool;
    use crate::recording::{LogOptions, TrackLog};

    fn log(dir: &Path) -> TrackLog {
        let session: SessionId = "s".parse().expect("id");
        let track = TrackId { stream: StreamId::of_router(&session, "a"), kind: TrackKind::Audio };
        let spool = Arc::new(Spool::open(dir, 1 << 30, 70).expect("spool"));
        let (mut log, _) = TrackLog::open(dir, track, Epoch(1), LogOptions::default(), spool).expect("log");
        let format = TrackFormat { codec: Codec::Pcmu, width: 0, height: 0, channels: 1, codec_private: vec![] };
        log.format(&format).expect("format");
        log
    }

    /// Writes frames of 20 ms, as a part.
    fn write(log: &mut TrackLog, ms: std::ops::Range<i64>) {
        for at in ms.clone().step_by(20) {
            let (pts, data) = (MediaTime::from_millis(at), vec![7; 160].into());
            log.frame(&Frame { pts, duration: None, keyframe: true, data }).expect("frame");
        }
        log.tick(MediaTime::from_millis(ms.end + 10_000)).expect("part");
    }

    fn index(dir: &Path) -> TrackIndex {
        crate::recording::LogReader::open(dir).expect("log").tracks.remove(0)
    }

    /// Takes all frames up to a moment.
    fn take(reader: &mut TrackReader, to: i64) -> usize {
        reader.frames.refresh().expect("log");
        let clocks = Clocks::default();
        let taken = std::iter::from_fn(|| reader.take(MediaTime::from_millis(to), &clocks));
        taken.filter(|(item, _)| matches!(item, LogItem::Frame(_))).count()
    }

    #[test]
    fn frames_that_come_after_their_moment_are_late_though_the_log_had_no_others() {
        let dir = tempfile::tempdir().expect("dir");
        let mut log = log(dir.path());
        write(&mut log, 0..500);
        let mut reader = TrackReader::new(&index(dir.path()), MediaTime(i64::MIN));
        assert_eq!((take(&mut reader, 480), reader.late), (25, 0));
        // The composer goes on with other tracks; this one has nothing.
        assert_eq!((take(&mut reader, 980), reader.late), (0, 0));
        write(&mut log, 500..1500);
        assert_eq!((take(&mut reader, 1480), reader.late), (50, 25));
    }

    #[test]
    fn the_frames_of_a_track_that_appears_after_their_moment_are_late() {
        let dir = tempfile::tempdir().expect("dir");
        write(&mut log(dir.path()), 0..1000);
        let mut reader = TrackReader::new(&index(dir.path()), MediaTime::from_millis(480));
        assert_eq!((take(&mut reader, 980), reader.late), (50, 25));
    }
}
