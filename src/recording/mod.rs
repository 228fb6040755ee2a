//! The capture log: live media is written to it, and every later stage reads it.
//!
//! ```text
//! <spool>/<archive id>/
//!   job.json                        the archive's descriptor
//!   history.jsonl                   the events of the session
//!   tracks/<stream id>.<kind>/
//!     index.jsonl                   the index: a line for each part, segment and gap
//!     e0001-000001.mkv              a segment: Matroska, one cluster a part, media time in its timestamps
//! ```
//!
//! A *part* is written with one `write`, then its line is added to the index: it survives the process.
//! A *segment* is fsynced and sealed with its SHA-256, then sent to the store: it survives the machine.
//! Data that is not in the index does not exist. A torn last line and bytes behind the last part are cut off when the log
//! is opened again. The index is only ever appended to.
//!
//! Every segment plays with ordinary tools; so does a run of them, joined by [`reader::join`].

pub mod frames;
pub mod history;
pub mod mkv;
pub mod reader;
pub mod restore;
pub mod spool;
mod unshipped;
pub mod upload;
mod writer;

use serde::{Deserialize, Serialize};

use crate::model::fault::{Fault, FaultKind, HasFault};
use crate::model::ids::{Epoch, TrackId};
use crate::model::media::{Gap, SenderReport, TrackFormat, TrackStats};
use crate::model::time::MediaTime;
use crate::runtime::journal::FileError;

pub use reader::LogReader;
pub use writer::{LogOptions, Opened, TrackLog, UnsyncedSegment};

/// The index's file name.
pub const INDEX: &str = "index.jsonl";
/// The session history's file name.
pub const HISTORY: &str = "history.jsonl";
/// The folder of the tracks.
pub const TRACKS: &str = "tracks";

/// One line of a track's index.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "lowercase")]
pub enum Record {
    /// A segment was begun.
    Segment {
        /// Its number: grows, and is another in each epoch, whichever machine it is written on.
        n: u32,
        /// The epoch that began it.
        epoch: Epoch,
        /// Name of its file, which lies beside the index.
        file: String,
        /// Bytes before its first part.
        header: u64,
        /// The format of its frames.
        format: TrackFormat,
    },
    /// A part was written.
    Part {
        /// Its segment.
        n: u32,
        /// Where it begins in the file.
        at: u64,
        /// Its bytes.
        len: u64,
        /// Start of the frame that is shown first. Frames are in decoding order.
        from: MediaTime,
        /// End of the frame that is shown last.
        to: MediaTime,
        /// Frames in it.
        frames: u32,
        /// Start of its first keyframe.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<MediaTime>,
        /// CRC-32 of its bytes.
        crc: u32,
        /// Counts since the line before.
        #[serde(default)]
        stats: TrackStats,
        /// The sender reports since the line before.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        reports: Vec<SenderReport>,
        /// Where the provisional clock began that its frames have their times from, if that was since the part before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        clock: Option<MediaTime>,
    },
    /// Media is missing.
    Gap(Gap),
    /// Counts that belong to no part.
    Stats {
        /// The counts.
        stats: TrackStats,
    },
    /// A segment is complete and fsynced.
    Sealed {
        /// The segment's number.
        n: u32,
        /// Bytes of the file.
        size: u64,
        /// SHA-256 of the file, in hex.
        sha256: String,
    },
    /// A segment, and the index up to a point, are in the store.
    Shipped {
        /// The segment's number.
        n: u32,
        /// The object that holds it.
        key: String,
        /// Length of the index's beginning that is in the store, in bytes.
        index: u64,
    },
}

/// A segment that is complete and fsynced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedSegment {
    /// Its track.
    pub track: TrackId,
    /// Its number.
    pub n: u32,
    /// Bytes.
    pub size: u64,
}

/// Why a capture log cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file system refused.
    #[error(transparent)]
    Io(#[from] FileError),
    /// The spool's quota is used up.
    #[error("the spool is full: {used} of {quota} bytes are used")]
    Full {
        /// Bytes used.
        used: u64,
        /// Bytes allowed.
        quota: u64,
    },
    /// The disk has less room than what is to be written needs.
    #[error("{path} has {free} bytes free, and {needed} are needed")]
    DiskFull {
        /// A folder on it.
        path: String,
        /// Bytes needed.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// Segments of different formats were to become one file: a caller's mistake.
    #[error("the segment {path} has another format than those before it")]
    Mixed {
        /// The file.
        path: String,
    },
}

impl LogError {
    pub(crate) fn io(doing: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let error = FileError::new(doing, path);
        move |source| Self::Io(error(source))
    }
}

impl HasFault for LogError {
    fn fault(&self) -> Fault {
        match self {
            Self::Io(error) => return error.fault(),
            Self::Full { .. } | Self::DiskFull { .. } => FaultKind::SpoolFull,
            Self::Mixed { .. } => FaultKind::Bug,
        }
        .fault()
    }
}

#[cfg(test)]
mod owner_tests;
#[cfg(test)]
mod tests;
