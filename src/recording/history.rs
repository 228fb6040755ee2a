//! The history of a session, beside its media: streams that came and went, their names, and when the router or a worker was
//! unavailable. One line file for each archive, `history.jsonl`.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{HISTORY, LogError};
use crate::model::archive_options::StreamMode;
use crate::model::desired::Selection;
use crate::model::ids::{Epoch, StreamId, TrackKind, WorkerId};
use crate::model::layout::Layout;
use crate::model::media::{GapCause, VideoType};
use crate::model::time::MediaTime;
use crate::runtime::journal::{LineFile, read_lines};

/// An event at a media time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its media time.
    pub at: MediaTime,
    /// Its kind and details.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// A track that a publisher announces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announced {
    /// Its mid at the publisher.
    pub mid: String,
    /// Audio or video.
    pub kind: TrackKind,
    /// The codec's name, as the router gives it.
    pub codec: String,
}

/// The kinds of events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum EventKind {
    /// A worker began to own the job.
    EpochBegan {
        epoch: Epoch,
        worker: WorkerId,
        /// The catalog says that nobody has published before: there is nothing that an earlier epoch could have captured.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        nothing_before: bool,
    },
    /// The worker has joined the room. It announces at once what is there. Older versions do not note it, and skip it when they
    /// read.
    Joined,
    /// The owner joins the room now. As far as it knows, no owner was there since `since`: streams that it finds may have been published all that
    /// time. `cause` is what kept owners away. Older versions do not note it, and skip it when they read.
    Unseen {
        since: MediaTime,
        cause: GapCause,
        /// When the catalog heard from the owner before for the last time. It counts if the history of that owner comes later, and says that it had
        /// joined.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        owner_seen: Option<MediaTime>,
    },
    /// The worker has left the room, or leaves it now. Older versions do not note it, and skip it when they read.
    Left,
    /// A stream is present, or has other properties than before.
    Stream {
        stream: StreamId,
        /// Its id at the router.
        router_id: String,
        name: Option<String>,
        /// The data of the client's token.
        connection_data: Option<String>,
        /// Id and connection data are signed for what is at the router under `router_id`. Older versions do not note it.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        signed: bool,
        video_type: VideoType,
    },
    /// The tracks that a stream's publisher announces, from now on.
    Tracks {
        /// The stream.
        stream: StreamId,
        /// All of them.
        tracks: Vec<Announced>,
    },
    /// From now on a stream, or one track of it, is captured, or is not.
    Capture {
        /// The stream.
        stream: StreamId,
        /// One track; all of the stream without it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        kind: Option<TrackKind>,
        /// Why it is not captured; captured without it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        missing: Option<GapCause>,
        /// The router's words, or ours.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        detail: Option<String>,
    },
    /// The router says that a stream's media is encrypted end to end.
    Encrypted { stream: StreamId },
    /// A stream is gone.
    StreamGone { stream: StreamId },
    /// A publisher switched a track off or on.
    Muted { stream: StreamId, kind: TrackKind, muted: bool },
    /// The router sends another layer.
    Layer {
        stream: StreamId,
        /// Simulcast substream or spatial layer.
        spatial: Option<u32>,
        temporal: Option<u32>,
    },
    /// The composed video has another layout from now on.
    Layout { layout: Layout },
    /// A stream has other layout classes from now on.
    Classes {
        stream: StreamId,
        /// All of them.
        classes: Vec<String>,
    },
    /// The composed archive has all streams, or only those that are selected, from now on.
    StreamMode { mode: StreamMode },
    /// The selection of a stream changed. It counts while the stream mode is manual, and is kept while it is not.
    Selected { stream: StreamId, selection: Selection },
    /// Signalling with the router was lost.
    RouterLost,
    /// Signalling with the router is back.
    RouterBack,
    /// The archive ended.
    Ended {
        /// Vonage's reason.
        reason: String,
    },
}

/// The history of an archive, open for writing.
#[derive(Debug)]
pub struct History {
    file: LineFile,
}

impl History {
    /// Opens or begins an archive's history. Returns what an earlier epoch wrote.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub fn open(archive_dir: &Path) -> Result<(Self, Vec<Event>), LogError> {
        std::fs::create_dir_all(archive_dir).map_err(LogError::io("create", archive_dir))?;
        let (file, events) = LineFile::open(&archive_dir.join(HISTORY))?;
        Ok((Self { file }, events))
    }

    /// Adds an event.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add(&self, at: MediaTime, kind: EventKind) -> Result<(), LogError> {
        Ok(self.file.append(&Event { at, kind })?)
    }
}

/// Whether a stream was ever announced.
#[must_use]
pub fn has_streams(events: &[Event]) -> bool {
    events.iter().any(|event| matches!(event.kind, EventKind::Stream { .. } | EventKind::Tracks { .. }))
}

/// The streams of which the router says that their media is encrypted end to end.
pub fn encrypted(events: &[Event]) -> impl Iterator<Item = StreamId> {
    events.iter().filter_map(|event| match &event.kind {
        EventKind::Encrypted { stream } => Some(*stream),
        _ => None,
    })
}

/// Reads an archive's history, sorted by time: the lines of several machines may be in another order in the file.
///
/// # Errors
/// When the file cannot be read.
pub fn read(archive_dir: &Path) -> Result<Vec<Event>, LogError> {
    let (mut events, _) = read_from(archive_dir, 0)?;
    events.sort_by_key(|event| event.at);
    Ok(events)
}

/// Reads the lines of an archive's history from an offset on, in the file's order. Returns also the offset behind them.
///
/// # Errors
/// When the file cannot be read.
pub fn read_from(archive_dir: &Path, from: u64) -> Result<(Vec<Event>, u64), LogError> {
    Ok(read_lines::<Event>(&archive_dir.join(HISTORY), from)?)
}

/// Whether every epoch before this one is in a history: then no other machine has media of the archive.
#[must_use]
pub fn has_all_before(events: &[Event], epoch: Epoch) -> bool {
    let began = |wanted: u32| {
        events.iter().any(|e| matches!(&e.kind, EventKind::EpochBegan { epoch, .. } if epoch.0 == wanted))
    };
    (1..epoch.0).all(began)
}

/// The epoch that wrote the history on a worker's disk: this worker's last one. If the worker's name is not in the history, the worker was renamed,
/// and the last epoch wrote it.
#[must_use]
pub fn epoch_of_local_history(events: &[Event], worker: &WorkerId) -> Option<Epoch> {
    let began = || {
        events.iter().rev().filter_map(|event| match &event.kind {
            EventKind::EpochBegan { epoch, worker, .. } => Some((*epoch, worker)),
            _ => None,
        })
    };
    began().find(|(_, of)| *of == worker).or_else(|| began().next()).map(|(epoch, _)| epoch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_belongs_to_the_worker_s_last_epoch_also_when_it_had_another_name() {
        let worker = |name: &str| name.parse::<WorkerId>().expect("id");
        let began = |epoch: u32, of: &str| Event {
            at: MediaTime(i64::from(epoch)),
            kind: EventKind::EpochBegan { epoch: Epoch(epoch), worker: worker(of), nothing_before: false },
        };
        let events = [began(1, "here"), began(2, "there"), began(3, "here"), began(4, "there")];
        for (name, events, me, expected) in [
            ("nobody's", &events[..0], "here", None),
            ("mine", &events[..], "here", Some(3)),
            ("mine and the last", &events[..3], "here", Some(3)),
            ("of a name that is no more", &events[..], "new", Some(4)),
        ] {
            assert_eq!(epoch_of_local_history(events, &worker(me)), expected.map(Epoch), "{name}");
        }
    }

    #[test]
    fn an_event_that_only_a_later_version_knows_is_skipped() {
        let dir = tempfile::tempdir().expect("dir");
        let (history, _) = History::open(dir.path()).expect("history");
        history.add(MediaTime(1), EventKind::Joined).expect("added");
        let later = serde_json::json!({ "at": 2, "what": "of_a_later_version", "stream": 7 });
        history.file.append(&later).expect("added");
        history.add(MediaTime(3), EventKind::RouterLost).expect("added");
        let event = |at, kind| Event { at: MediaTime(at), kind };
        assert_eq!(read(dir.path()).expect("read"), [event(1, EventKind::Joined), event(3, EventKind::RouterLost)]);
        let text = std::fs::read_to_string(dir.path().join(HISTORY)).expect("text");
        assert!(text.starts_with("{\"at\":1,\"what\":\"joined\"}\t"), "{text}");
    }
}
