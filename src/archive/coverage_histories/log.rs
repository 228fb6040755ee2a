//! The log of a track, as the log thread writes it. Only the index matters: no media is kept.

use crate::model::ids::Epoch;
use crate::model::intervals::Interval;
use crate::model::media::{Codec, Gap, GapCause, TrackFormat, TrackStats};
use crate::model::time::MediaTime;
use crate::recording::Record;

/// A part is as long, in nanoseconds.
const PART_MAX: i64 = 500_000_000;

/// The log of a track.
#[derive(Default)]
pub(super) struct Log {
    pub records: Vec<Record>,
    /// The frames that are in it.
    pub frames: Vec<Interval>,
    part: Vec<Interval>,
    has_media: bool,
    /// Frames from here on are dropped.
    failed: Option<MediaTime>,
    dropped_to: MediaTime,
    /// The driver was told of a failure, and not that it is over.
    pub failing: bool,
}

impl Log {
    pub fn frame(&mut self, frame: Interval, epoch: u32, disk_fails: bool) {
        if let Some(from) = self.failed {
            if disk_fails {
                self.dropped_to = frame.to;
                return;
            }
            self.records.push(Record::Gap(Gap { from, to: frame.from, cause: GapCause::Storage }));
            self.failed = None;
        }
        self.tick(frame.from, epoch, disk_fails);
        if self.failed.is_some() {
            self.dropped_to = frame.to;
            return;
        }
        self.part.push(frame);
        if !self.has_media {
            self.flush(epoch, disk_fails);
        }
    }

    pub fn tick(&mut self, now: MediaTime, epoch: u32, disk_fails: bool) {
        if self.part.first().is_some_and(|first| now - first.from >= PART_MAX) {
            self.flush(epoch, disk_fails);
        }
    }

    fn flush(&mut self, epoch: u32, disk_fails: bool) {
        let (Some(first), Some(last)) = (self.part.first(), self.part.last()) else { return };
        let (from, to) = (first.from, last.to);
        let written = std::mem::take(&mut self.part);
        if disk_fails {
            (self.failed, self.dropped_to, self.failing) = (Some(from), to, true);
            return;
        }
        let n = (epoch << 16) | 1;
        if !self.has_media {
            let format =
                TrackFormat { codec: Codec::Pcmu, width: 0, height: 0, channels: 1, codec_private: Vec::new() };
            let file = "e.mkv".to_owned();
            self.records.push(Record::Segment { n, epoch: Epoch(epoch), file, header: 0, format });
        }
        let (at, frames) = (self.records.len() as u64, u32::try_from(written.len()).expect("few"));
        let (stats, reports) = (TrackStats::default(), Vec::new());
        self.records.push(Record::Part {
            n,
            at,
            len: 1,
            from,
            to,
            frames,
            key: Some(from),
            crc: 0,
            stats,
            reports,
            clock: None,
        });
        self.frames.extend(written);
        (self.has_media, self.failing) = (true, false);
    }

    /// A worker that is killed leaves what is in its memory.
    pub fn close(&mut self, killed: bool, epoch: u32, disk_fails: bool) {
        if killed {
            self.part.clear();
        }
        self.flush(epoch, disk_fails);
        if let Some(from) = self.failed.take().filter(|from| !killed && *from < self.dropped_to) {
            self.records.push(Record::Gap(Gap { from, to: self.dropped_to, cause: GapCause::Storage }));
        }
        (self.has_media, self.failing) = (false, false);
    }

    pub fn end(&self) -> Option<MediaTime> {
        self.frames.iter().map(|frame| frame.to).max()
    }
}
