//! Archives that are made of a log without a worker.

use archiver::archive::object::ArchiveDescriptor;
use archiver::model::archive_options::{ArchiveOptions, OutputMode};
use archiver::model::ids::{ArchiveId, EventId, JobId, SessionId};
use archiver::model::time::Wallclock;

/// An archive with a file for each stream.
pub fn individual(archive: ArchiveId, session: SessionId) -> ArchiveDescriptor {
    ArchiveDescriptor {
        archive,
        job: JobId::of_event(&session, &"e".parse::<EventId>().expect("id")),
        session,
        application: "app".parse().expect("id"),
        name: None,
        origin: Wallclock::now(),
        options: ArchiveOptions { output_mode: OutputMode::Individual, ..ArchiveOptions::default() },
        clip: None,
        ignore_layout_history: false,
    }
}
