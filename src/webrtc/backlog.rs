//! What waits for the log thread, and what is given up when a disk cannot keep up. Pure.

use std::collections::BTreeMap;

use super::messages::{CaptureKey, EntryData, LogEntry};
use crate::model::ids::TrackId;
use crate::model::media::TrackStats;
use crate::model::time::MediaTime;
use crate::rtp::track::Output;

/// Entries that may wait. Beyond it their frames are lost to storage.
pub(super) const ENTRIES_MAX: usize = 100_000;

/// The frames of one track that were given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LostFrames {
    /// Start of the first one.
    pub from: MediaTime,
    /// How many.
    pub count: u64,
}

/// Gives up all frames that wait. What else waits is kept: formats, gaps, sender reports, and the counts of each track in one entry.
pub(super) fn give_up_frames(entries: &mut Vec<LogEntry>) -> BTreeMap<(CaptureKey, TrackId), LostFrames> {
    let mut lost: BTreeMap<(CaptureKey, TrackId), LostFrames> = BTreeMap::new();
    let mut stats: BTreeMap<(CaptureKey, TrackId), TrackStats> = BTreeMap::new();
    entries.retain(|entry| {
        let of = (entry.capture, entry.track);
        match &entry.data {
            EntryData::Output(Output::Frame(frame)) => {
                lost.entry(of).or_insert(LostFrames { from: frame.pts, count: 0 }).count += 1;
                false
            }
            EntryData::Output(_) => true,
            EntryData::Stats(counted) => {
                stats.entry(of).or_default().add(counted);
                false
            }
        }
    });
    entries.extend(stats.into_iter().map(|((capture, track), stats)| LogEntry::stats(capture, track, stats)));
    lost
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::{SessionId, StreamId, TrackKind};
    use crate::model::media::{Frame, Gap, GapCause};

    #[test]
    fn frames_are_given_up_and_nothing_else() {
        let session: SessionId = "s".parse().expect("id");
        let track = |name: &str| TrackId { stream: StreamId::of_router(&session, name), kind: TrackKind::Video };
        let (capture, alice, bob) = (CaptureKey(1), track("alice"), track("bob"));
        let entry = |track, output| LogEntry { capture, track, data: EntryData::Output(output) };
        let frame = |track, ms| {
            let pts = MediaTime::from_millis(ms);
            entry(track, Output::Frame(Frame { pts, duration: None, keyframe: false, data: vec![1].into() }))
        };
        let gap = Gap { from: MediaTime::ZERO, to: MediaTime::from_millis(5), cause: GapCause::Network };
        let counted = |packets| LogEntry::stats(capture, alice, TrackStats { packets, ..TrackStats::default() });
        let mut entries = vec![
            counted(1),
            frame(alice, 40),
            entry(alice, Output::Gap(gap)),
            frame(alice, 80),
            counted(2),
            frame(bob, 7),
        ];
        let lost = give_up_frames(&mut entries);
        let lost_of = |track| lost.get(&(capture, track)).copied();
        assert_eq!(lost_of(alice), Some(LostFrames { from: MediaTime::from_millis(40), count: 2 }));
        assert_eq!(lost_of(bob), Some(LostFrames { from: MediaTime::from_millis(7), count: 1 }));
        let kept: Vec<bool> = entries.iter().map(|entry| matches!(entry.data, EntryData::Stats(_))).collect();
        assert_eq!(kept, [false, true], "the gap, and all counts in one");
        assert!(matches!(entries[1].data, EntryData::Stats(TrackStats { packets: 3, .. })));
    }
}
