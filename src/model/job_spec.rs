//! What a job is to do.

use std::net::IpAddr;

use super::archive_options::ArchiveOptions;
use super::ids::{ApplicationId, EventId, JobId, Region, SessionId};
use super::session::{ArchiveMode, MediaMode, RouterRoom};
use super::time::Wallclock;

/// What a job is to do: archive a session, as an event told or a request asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobSpec {
    /// The event that names the job.
    pub event: EventId,
    /// Who sent the event.
    pub source: String,
    /// When the session started, by the sender's clock. Senders need not say.
    pub started_at: Option<Wallclock>,
    /// The session.
    pub session: SessionId,
    /// Whose session.
    pub application: ApplicationId,
    /// Routed or relayed.
    pub media_mode: MediaMode,
    /// Manual or always.
    pub archive_mode: ArchiveMode,
    /// A hint where the clients are.
    pub location: Option<IpAddr>,
    /// The region whose workers archive the session.
    pub region: Region,
    /// Where the session's room is.
    pub router: Option<RouterRoom>,
    /// What the archive should be like.
    pub archive: ArchiveOptions,
}

impl JobSpec {
    /// The job's id. The same event names the same job.
    #[must_use]
    pub fn job(&self) -> JobId {
        JobId::of_event(&self.session, &self.event)
    }
}
