//! Decides when a conversation of a session begins, from the catalog, the router's list of clients, and what was seen before. Pure.
//!
//! The catalog has what must survive a restart: the number of conversations, and their jobs. Who was in the room when an archive
//! ended is only in memory. It decides whether the same clients get another archive. After a restart of this process, the reason of
//! the archive's end decides alone.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::catalog::{JobRow, JobState, SessionRow};
use crate::event::{Envelope, STARTED, Started};
use crate::job::presence::{EndReason, MAX_DURATION_EXCEEDED};
use crate::model::ids::{EventId, JobId, SessionId};
use crate::model::session::{ArchiveMode, MediaMode};
use crate::model::time::Wallclock;
use crate::router::Participant;

/// The `source` of the bridge's events.
pub const SOURCE: &str = "archiver/bridge";
/// The worker creates the successor of an archive that reached its maximum duration within this time.
const SUCCESSOR_WITHIN: Duration = Duration::from_secs(60);
/// When a job was parked before this process started, nobody knows whether the room has been empty since. After this time another
/// archive is tried.
const RETRY_PARKED_AFTER: Duration = Duration::from_secs(10 * 60);

/// Whether the bridge starts archives of a session.
#[must_use]
pub const fn is_automatic(session: &SessionRow) -> bool {
    matches!((session.media_mode, session.archive_mode), (MediaMode::Routed, ArchiveMode::Always)) && !session.e2ee
}

/// The id of the event that starts a conversation. All processes derive the same id, and from it the same job.
///
/// # Panics
/// Never: an id may be longer than a number.
#[must_use]
pub fn event_id(conversation: i64) -> EventId {
    format!("bridge-{conversation}").parse().expect("a short id")
}

/// The job of a conversation.
#[must_use]
pub fn job_of_conversation(session: &SessionId, conversation: i64) -> JobId {
    JobId::of_event(session, &event_id(conversation))
}

/// The `session.started` event of a conversation.
#[must_use]
pub fn start_event(session: &SessionRow, conversation: i64, occupied_since: Wallclock) -> Envelope<Started> {
    Envelope {
        specversion: "1.0".to_owned(),
        id: event_id(conversation),
        source: SOURCE.to_owned(),
        kind: STARTED.to_owned(),
        time: Some(occupied_since.to_rfc3339()),
        data: Started {
            session_id: session.session.clone(),
            application_id: session.application.clone(),
            media_mode: session.media_mode,
            archive_mode: session.archive_mode,
            location: session.location,
            region: session.region.clone(),
            router: session.router.clone(),
            archive: session.archive.clone(),
        },
    }
}

/// The conversation that a job belongs to, if the bridge started it. A successor's event (`~part2`) has its predecessor's number.
fn conversation_of(job: &JobRow) -> Option<i64> {
    let event = job.event.origin()?;
    let id = event.id.as_str().strip_prefix("bridge-")?;
    let number = id.split_once('~').map_or(id, |(number, _)| number);
    (event.source == SOURCE).then(|| number.parse().ok())?
}

/// Why a job's archive ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobEnd {
    /// All clients had left, or the platform ended the session.
    SessionEnded,
    /// An API request or an operator stopped the archive.
    Stopped,
    /// Nobody ever published.
    Idle,
    /// The archive reached its maximum duration.
    MaxDuration,
    /// The job was parked or discarded.
    Parked,
}

/// The state of a session's newest job, of those without a tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewestJob {
    /// The session has no job.
    Absent,
    /// The job records, or is about to.
    Active,
    /// The job waits for the session's first stream.
    Waiting(JobId),
    /// The job does not record any more.
    Ended {
        /// Why its archive ended.
        end: JobEnd,
        /// When the row last changed: at the end, or later.
        at: Wallclock,
        /// Its conversation, if the bridge started it.
        conversation: Option<i64>,
    },
}

impl NewestJob {
    /// The state of a job.
    #[must_use]
    pub fn of(job: Option<&JobRow>) -> Self {
        let Some(job) = job else { return Self::Absent };
        let end = match job.state {
            JobState::Accepted | JobState::Capturing => return Self::Active,
            JobState::Waiting => return Self::Waiting(job.job),
            JobState::Parked | JobState::Discarded => JobEnd::Parked,
            JobState::Finalizing | JobState::Available | JobState::Empty => match job.end_reason.as_deref() {
                Some(reason) if reason == EndReason::UserInitiated.vonage() => JobEnd::Stopped,
                Some(reason) if reason == EndReason::NeverPublished.vonage() => JobEnd::Idle,
                Some(MAX_DURATION_EXCEEDED) => JobEnd::MaxDuration,
                _ => JobEnd::SessionEnded,
            },
        };
        Self::Ended { end, at: job.updated_at, conversation: conversation_of(job) }
    }
}

/// What the catalog has about a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionState {
    /// The number of the newest conversation; 0 before the first.
    pub conversation: i64,
    /// Whether this conversation has a job.
    pub has_job: bool,
    /// The newest job.
    pub newest: NewestJob,
}

/// Who is in a room now, by their ids at the router.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RoomSnapshot {
    /// All clients.
    pub clients: BTreeSet<String>,
    /// The clients that publish.
    pub publishing: BTreeSet<String>,
}

impl RoomSnapshot {
    /// From the router's list of clients.
    #[must_use]
    pub fn of(list: &[Participant]) -> Self {
        let id = |client: &Participant| client.router_id.clone();
        Self {
            clients: list.iter().map(id).collect(),
            publishing: list.iter().filter(|client| client.publishing).map(id).collect(),
        }
    }
}

/// What the bridge remembers about a room.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RoomState {
    /// When the first client was seen since the room was last empty.
    occupied_since: Option<Wallclock>,
    /// Who was in the room when an archive was last being recorded; empty if the room has been seen empty since. `None` when neither
    /// was seen.
    recorded: Option<RoomSnapshot>,
}

impl RoomState {
    /// The state of a room that was empty when it was last seen.
    #[must_use]
    pub fn of_empty_room() -> Self {
        Self { occupied_since: None, recorded: Some(RoomSnapshot::default()) }
    }

    /// The room was seen empty.
    pub fn mark_empty(&mut self) {
        *self = Self::of_empty_room();
    }

    /// Takes a snapshot into account. `newest` must have been read from the catalog after the snapshot was taken.
    pub fn observe(&mut self, snapshot: &RoomSnapshot, newest: NewestJob, now: Wallclock) {
        if snapshot.clients.is_empty() {
            return self.mark_empty();
        }
        self.occupied_since.get_or_insert(now);
        if newest == NewestJob::Active {
            self.recorded = Some(snapshot.clone());
        }
    }

    /// An archive was started for the clients in the room. If it ends before the next snapshot, the same clients do not get another.
    pub fn archive_started(&mut self, snapshot: &RoomSnapshot) {
        self.recorded = Some(snapshot.clone());
    }

    /// When the first client was seen since the room was last empty.
    #[must_use]
    pub const fn occupied_since(&self) -> Option<Wallclock> {
        self.occupied_since
    }

    /// Whether the clients in the room justify another archive.
    fn justifies_archive(&self, snapshot: &RoomSnapshot, end: JobEnd, at: Wallclock, now: Wallclock) -> bool {
        let Some(recorded) = &self.recorded else {
            return match end {
                // All clients had left, so those in the room came later.
                JobEnd::SessionEnded => true,
                JobEnd::Idle => !snapshot.publishing.is_empty(),
                // A restart of this program must not start an archive again that was stopped on purpose.
                JobEnd::Stopped => false,
                JobEnd::MaxDuration => now.since(at) >= SUCCESSOR_WITHIN,
                JobEnd::Parked => now.since(at) >= RETRY_PARKED_AFTER,
            };
        };
        let was_empty = recorded.clients.is_empty();
        match end {
            JobEnd::SessionEnded | JobEnd::Stopped | JobEnd::MaxDuration => {
                !snapshot.clients.is_subset(&recorded.clients)
            }
            JobEnd::Idle => was_empty || !snapshot.publishing.is_subset(&recorded.publishing),
            // Another one for the same clients would most likely fail, too.
            JobEnd::Parked => was_empty,
        }
    }
}

/// What the bridge does about a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    None,
    /// Resume the job that waits for the session's first stream.
    Resume(JobId),
    /// Publish the event of the newest conversation (again), because it has no job yet.
    PublishStart,
    /// Begin another conversation.
    BeginConversation,
}

/// Decides what to do about a session whose archives are automatic.
#[must_use]
pub fn decide(session: SessionState, room: &RoomState, snapshot: &RoomSnapshot, now: Wallclock) -> Action {
    if snapshot.clients.is_empty() {
        return Action::None;
    }
    let justified = match session.newest {
        NewestJob::Active => return Action::None,
        NewestJob::Waiting(_) if snapshot.publishing.is_empty() => return Action::None,
        NewestJob::Waiting(job) => return Action::Resume(job),
        NewestJob::Absent => true,
        // The newest conversation began after this job had ended. Its event was lost, or is still on its way.
        NewestJob::Ended { conversation: Some(of_job), .. } if !session.has_job && of_job < session.conversation => {
            true
        }
        NewestJob::Ended { end, at, .. } => room.justifies_archive(snapshot, end, at, now),
    };
    match (justified, session.conversation > 0 && !session.has_job) {
        (false, _) => Action::None,
        (true, true) => Action::PublishStart,
        (true, false) => Action::BeginConversation,
    }
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
