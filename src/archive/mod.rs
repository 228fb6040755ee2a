//! An archive's files, manifest and quality report, and their objects in the store.

mod announced;
pub mod build;
pub(crate) mod composed;
mod coverage;
#[cfg(test)]
mod coverage_gap_tests;
#[cfg(test)]
mod coverage_histories;
#[cfg(test)]
mod coverage_log_tests;
#[cfg(test)]
mod coverage_tests;
pub mod delete;
pub mod deliver;
pub mod derive;
pub mod documents;
mod individual;
pub mod object;
pub mod retention;
mod stream_files;
mod zip;

pub use individual::{Plan, Run};
pub use stream_files::StreamFiles;

use crate::compose::verifier::VerifierError;
use crate::media::MediaError;
use crate::model::fault::{Fault, FaultKind, HasFault};
use crate::recording::LogError;

/// Why an archive cannot be built from a log.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// GStreamer.
    #[error("file {file} cannot be made")]
    Media {
        /// Its name.
        file: String,
        /// The cause.
        #[source]
        source: MediaError,
    },
    /// The composer.
    #[error(transparent)]
    Composer(#[from] crate::compose::process::ChildError),
    /// A finished file could not be verified.
    #[error("file {file} is not verified")]
    Verifier {
        /// Its name.
        file: String,
        /// The cause.
        #[source]
        source: VerifierError,
    },
    /// A finished file is not what the log says.
    #[error("file {file} is not right: {what}")]
    Invalid {
        /// Its name.
        file: String,
        /// The problem.
        what: String,
    },
    /// No track of a composed archive can be decoded.
    #[error("nothing of the session's media can be decoded: it is encrypted end to end, or damaged")]
    Undecodable,
    /// A local file.
    #[error("{path} cannot be {doing}")]
    Io {
        /// The operation.
        doing: &'static str,
        /// The file.
        path: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

impl ArchiveError {
    fn io(doing: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.display().to_string();
        move |source| Self::Io { doing, path, source }
    }
}

impl HasFault for ArchiveError {
    fn fault(&self) -> Fault {
        match self {
            Self::Log(e) => e.fault(),
            Self::Media { source, .. } => source.fault(),
            Self::Composer(e) => e.fault(),
            Self::Verifier { source, .. } => source.fault(),
            Self::Invalid { .. } => FaultKind::ArchiveInvalid.fault(),
            Self::Undecodable => FaultKind::MediaUndecodable.fault(),
            Self::Io { .. } => FaultKind::SpoolIo.fault(),
        }
    }
}
