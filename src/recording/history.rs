//! What happened in a session, beside its media: who came and went, what they are called, when the router
//! or a worker was away. One line file an archive, `history.jsonl`.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{HISTORY, LogError};
use crate::model::archive_options::StreamMode;
use crate::model::desired::Selection;
use crate::model::ids::{Epoch, StreamId, TrackKind, WorkerId};
use crate::model::layout::Layout;
use crate::model::media::VideoType;
use crate::model::time::MediaTime;
use crate::runtime::journal::{LineFile, read_lines};

/// One thing that happened, at a media time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When.
    pub at: MediaTime,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// What can happen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum What {
    /// A worker began to own the job.
    EpochBegan {
        /// Its number.
        epoch: Epoch,
        /// Who.
        worker: WorkerId,
    },
    /// A stream is there, or is called otherwise than before.
    Stream {
        /// Which.
        stream: StreamId,
        /// Its id at the router.
        router_id: String,
        /// Its name.
        name: Option<String>,
        /// What the client's token carried.
        connection_data: Option<String>,
        /// What it shows.
        video_type: VideoType,
    },
    /// A stream is gone.
    StreamGone {
        /// Which.
        stream: StreamId,
    },
    /// A publisher switched a track off or on.
    Muted {
        /// Which stream.
        stream: StreamId,
        /// Which track.
        kind: TrackKind,
        /// Off or on.
        muted: bool,
    },
    /// The router sends another layer.
    Layer {
        /// Which stream.
        stream: StreamId,
        /// Simulcast substream or spatial layer.
        spatial: Option<u32>,
        /// Temporal layer.
        temporal: Option<u32>,
    },
    /// The composed picture has another layout from now on.
    Layout {
        /// Which.
        layout: Layout,
    },
    /// A stream has other layout classes from now on.
    Classes {
        /// Which stream.
        stream: StreamId,
        /// All of them.
        classes: Vec<String>,
    },
    /// The composed archive has all streams, or only those that are selected, from now on.
    StreamMode {
        /// Which.
        mode: StreamMode,
    },
    /// Other of a stream is selected from now on. It counts while the stream mode is manual, and is kept while it is not.
    Selected {
        /// Which stream.
        stream: StreamId,
        /// What of it.
        selection: Selection,
    },
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
    pub fn add(&self, at: MediaTime, what: What) -> Result<(), LogError> {
        Ok(self.file.append(&Event { at, what })?)
    }
}

/// Reads an archive's history, in the order of its times: what several machines noted may stand in the file in
/// the order in which it came there.
///
/// # Errors
/// When the file cannot be read.
pub fn read(archive_dir: &Path) -> Result<Vec<Event>, LogError> {
    let (mut events, _) = read_from(archive_dir, 0)?;
    events.sort_by_key(|event| event.at);
    Ok(events)
}

/// Reads what was added to an archive's history behind an offset, as it stands there, and the offset behind it.
///
/// # Errors
/// When the file cannot be read.
pub fn read_from(archive_dir: &Path, from: u64) -> Result<(Vec<Event>, u64), LogError> {
    Ok(read_lines::<Event>(&archive_dir.join(HISTORY), from)?)
}

/// Whether every epoch before this one is in a history: then no other machine has media of the archive.
#[must_use]
pub fn has_all_before(events: &[Event], epoch: Epoch) -> bool {
    let began =
        |wanted: u32| events.iter().any(|e| matches!(&e.what, What::EpochBegan { epoch, .. } if epoch.0 == wanted));
    (1..epoch.0).all(began)
}
