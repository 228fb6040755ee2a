//! Archives that are made of a log without a worker.

use crate::BINARY;
use archiver::archive::object::ArchiveDescriptor;
use archiver::media::Pipelines;
use archiver::model::archive_options::{ArchiveOptions, OutputMode};
use archiver::model::ids::{ArchiveId, EventId, JobId, SessionId};
use archiver::model::time::Wallclock;

/// Pipelines whose files are verified by the program under test.
pub fn pipelines() -> Pipelines {
    Pipelines { program: Some(BINARY.into()), ..Pipelines::default() }
}

/// An archive with a file for each stream.
pub fn individual(archive: ArchiveId, session: SessionId) -> ArchiveDescriptor {
    ArchiveDescriptor {
        archive,
        job: JobId::of_event(&session, &"e".parse::<EventId>().expect("id")),
        session,
        application: "app".parse().expect("id"),
        name: None,
        origin: Wallclock::now(),
        ended_at: None,
        options: ArchiveOptions { output_mode: OutputMode::Individual, ..ArchiveOptions::default() },
        clip: None,
        ignore_layout_history: false,
    }
}
