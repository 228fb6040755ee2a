//! GStreamer and libavcodec, and nothing about archives: pipeline fragments as data, a runner, muxing, decoding.
//!
//! Fragments are files in `pipelines/`; they are part of the binary, and a folder given by configuration goes
//! before them, so that an operator can try another element without a build.

pub mod check;
pub mod clip;
pub mod decode;
mod duration;
pub mod encode;
pub mod fragment;
mod libav;
mod matroska;
mod mp4;
pub mod mux;
pub mod plane;
mod runner;
pub mod still;
pub mod verify;

use std::path::PathBuf;
use std::time::Duration;

use crate::model::fault::{Fault, FaultKind, HasFault};

/// Samples a second, of two channels.
pub const SAMPLE_RATE: u32 = 48_000;

/// Why a pipeline failed.
#[derive(Debug, thiserror::Error)]
pub enum MediaError {
    /// GStreamer cannot be started.
    #[error("GStreamer cannot be started")]
    Init(#[source] gstreamer::glib::Error),
    /// A fragment cannot be read or does not fit.
    #[error("pipeline fragment {name}: {what}")]
    Fragment {
        /// Its name.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// An element reported an error.
    #[error("element {element}: {what}")]
    Element {
        /// Its name.
        element: String,
        /// What it said.
        what: String,
    },
    /// A file cannot be read from the disk.
    #[error("it cannot be read: {0}")]
    Io(#[source] std::io::Error),
    /// A deadline passed.
    #[error("the pipeline did not {doing} within {seconds} s")]
    Stalled {
        /// What it should have done.
        doing: &'static str,
        /// Time without progress.
        seconds: u64,
    },
}

impl HasFault for MediaError {
    fn fault(&self) -> Fault {
        match self {
            Self::Init(_) | Self::Fragment { .. } | Self::Element { .. } => FaultKind::MediaPipeline,
            Self::Io(_) => FaultKind::SpoolIo,
            Self::Stalled { .. } => FaultKind::MediaStalled,
        }
        .fault()
    }
}

/// Settings that all pipelines of a deployment share.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Pipelines {
    /// A folder with fragments that go before those of this build.
    pub dir: Option<PathBuf>,
    /// A pipeline without progress for this time has stalled.
    pub stall: Duration,
    /// The program that decodes hostile media in a process of its own; this one without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<PathBuf>,
}

impl Pipelines {
    /// Pipelines of this program.
    #[must_use]
    pub const fn new(dir: Option<PathBuf>, stall: Duration) -> Self {
        Self { dir, stall, program: None }
    }
}

impl Default for Pipelines {
    fn default() -> Self {
        Self::new(None, Duration::from_secs(30))
    }
}

/// Starts GStreamer once; cheap to repeat.
///
/// # Errors
/// When its registry cannot be made.
pub fn init() -> Result<(), MediaError> {
    gstreamer::init().map_err(MediaError::Init)
}
