//! The live end of capture: PeerConnections on one UDP socket, driven by one thread; frames written by
//! a second one. The number of threads does not grow with the number of streams.
//!
//! ```text
//! socket ─► media thread: peers (str0m), track rules ─batches─► log thread: parts ─sealed─► sync thread: fsync
//! ```

mod backlog;
mod engine;
mod formats;
mod local;
mod log_thread;
mod media_thread;
mod messages;
mod nack;
mod peer;
mod sdp;
mod sink;
mod socket;
mod test_stream;

pub use engine::{EVENTS_MAX, Engine, EngineGone};
pub use formats::{Answer, UnsupportedTrack};
pub use messages::{CandidateMap, CaptureEvent, CaptureKey, CaptureOptions, Command, EngineConfig, PeerKey};
pub use test_stream::{TestStream, TestStreamError};

use crate::model::fault::{Fault, FaultKind, HasFault};

/// Why a peer cannot be made or has ended.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum PeerError {
    /// The router's offer cannot be used.
    #[error("the media router's offer cannot be used: {reason}")]
    Offer { reason: String },
    /// The connection broke.
    #[error("the connection to the media router broke: {reason}")]
    Broken { reason: String },
    /// The engine has ended.
    #[error(transparent)]
    EngineGone(#[from] EngineGone),
}

impl HasFault for PeerError {
    fn fault(&self) -> Fault {
        match self {
            Self::Offer { .. } => FaultKind::RouterProtocol,
            Self::Broken { .. } => FaultKind::RouterUnavailable,
            Self::EngineGone(_) => FaultKind::Bug,
        }
        .fault()
    }
}
