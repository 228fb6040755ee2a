//! When a conversation of a session begins: from what the catalog knows, what the router says, and what was seen before. Pure.
//!
//! What must survive a restart is in the catalog: how many conversations were begun, and their jobs. What is only remembered
//! here (who was there when an archive ended) decides whether the same people get another archive; a process that has just
//! started knows nothing of it, and then the reason of the archive's end decides alone.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::catalog::{JobRow, JobState, SessionRow};
use crate::event::{Envelope, STARTED, Started};
use crate::job::presence::{EndReason, MAX_DURATION_EXCEEDED};
use crate::model::ids::{EventId, JobId, SessionId};
use crate::model::session::{ArchiveMode, MediaMode};
use crate::model::time::Wallclock;
use crate::router::Participant;

/// The source of the events.
pub const SOURCE: &str = "archiver/bridge";
/// An archive that became as long as one may is followed by another within this, by its worker.
const FOLLOWED_WITHIN: Duration = Duration::from_secs(60);
/// Of a job that was parked before we came, it is not known whether the room was empty since: it is tried once more after this.
const PARKED_LONG_AGO: Duration = Duration::from_secs(10 * 60);

/// Whether a session's archives begin by themselves.
#[must_use]
pub const fn is_automatic(session: &SessionRow) -> bool {
    matches!((session.media_mode, session.archive_mode), (MediaMode::Routed, ArchiveMode::Always)) && !session.e2ee
}

/// The event that begins a conversation. Its id is the same whoever makes it, and so is the job's.
///
/// # Panics
/// Never: a number is short.
#[must_use]
pub fn event_id(conversation: i64) -> EventId {
    format!("bridge-{conversation}").parse().expect("a short id")
}

/// The job of a conversation.
#[must_use]
pub fn job_of(session: &SessionId, conversation: i64) -> JobId {
    JobId::of_event(session, &event_id(conversation))
}

/// The event that tells workers of a conversation.
#[must_use]
pub fn started(session: &SessionRow, conversation: i64, since: Wallclock) -> Envelope<Started> {
    Envelope {
        specversion: "1.0".to_owned(),
        id: event_id(conversation),
        source: SOURCE.to_owned(),
        kind: STARTED.to_owned(),
        time: Some(since.to_rfc3339()),
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

/// The conversation that a job belongs to, if it is one of ours: a successor's event (`~part2`) is of its predecessor's.
fn conversation_of(job: &JobRow) -> Option<i64> {
    let event = job.event.origin()?;
    let id = event.id.as_str().strip_prefix("bridge-")?;
    let number = id.split_once('~').map_or(id, |(number, _)| number);
    (event.source == SOURCE).then(|| number.parse().ok())?
}

/// Why a job's archive ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// All had left, or the platform said that the session is over.
    Over,
    /// A person or program stopped it.
    Stopped,
    /// Nobody published.
    Idle,
    /// It was as long as an archive may be.
    AtMost,
    /// It failed.
    Parked,
}

/// How a session's newest job stands, of those without a tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Newest {
    /// There is none.
    Nothing,
    /// It records, or is about to.
    Active,
    /// It does not any more.
    Ended {
        /// Why.
        end: End,
        /// When it last changed: its end, or later.
        at: Wallclock,
        /// Its conversation, if it is one of ours.
        conversation: Option<i64>,
    },
}

impl Newest {
    /// How a job stands.
    #[must_use]
    pub fn of(job: Option<&JobRow>) -> Self {
        let Some(job) = job else { return Self::Nothing };
        let end = match job.state {
            JobState::Accepted | JobState::Capturing => return Self::Active,
            JobState::Parked | JobState::Discarded => End::Parked,
            JobState::Finalizing | JobState::Available => match job.end_reason.as_deref() {
                Some(reason) if reason == EndReason::UserInitiated.vonage() => End::Stopped,
                Some(reason) if reason == EndReason::NeverPublished.vonage() => End::Idle,
                Some(MAX_DURATION_EXCEEDED) => End::AtMost,
                _ => End::Over,
            },
        };
        Self::Ended { end, at: job.updated_at, conversation: conversation_of(job) }
    }
}

/// What the catalog knows of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// The newest conversation that was begun; 0 before the first.
    pub conversation: i64,
    /// Whether that has a job.
    pub has_job: bool,
    /// The newest job.
    pub newest: Newest,
}

/// Who is in a room: the ids at the router.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Look {
    /// All clients.
    pub clients: BTreeSet<String>,
    /// Those that publish.
    pub publishing: BTreeSet<String>,
}

impl Look {
    /// Reads a list of clients.
    #[must_use]
    pub fn of(list: &[Participant]) -> Self {
        let id = |client: &Participant| client.router_id.clone();
        Self {
            clients: list.iter().map(id).collect(),
            publishing: list.iter().filter(|client| client.publishing).map(id).collect(),
        }
    }
}

/// What is remembered of a room.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    /// Since when somebody is there.
    since: Option<Wallclock>,
    /// Who was there when an archive was last being recorded; nobody if the room was seen empty since. `None` when neither was
    /// seen.
    before: Option<Look>,
}

impl Memory {
    /// Of a room that nobody was in when it was last looked for.
    #[must_use]
    pub fn of_empty() -> Self {
        Self { since: None, before: Some(Look::default()) }
    }

    /// Somebody looked, and nobody is there.
    pub fn empty(&mut self) {
        *self = Self::of_empty();
    }

    /// Somebody looked. `newest` must have been read after the look.
    pub fn saw(&mut self, look: &Look, newest: Newest, now: Wallclock) {
        if look.clients.is_empty() {
            return self.empty();
        }
        self.since.get_or_insert(now);
        if newest == Newest::Active {
            self.before = Some(look.clone());
        }
    }

    /// An archive begins for those who are there: should it end before anybody looks again, they are no reason for another.
    pub fn began(&mut self, look: &Look) {
        self.before = Some(look.clone());
    }

    /// Since when somebody is there.
    #[must_use]
    pub const fn since(&self) -> Option<Wallclock> {
        self.since
    }

    /// Whether those who are there now are reason enough for another archive.
    fn is_anew(&self, look: &Look, end: End, at: Wallclock, now: Wallclock) -> bool {
        let Some(before) = &self.before else {
            return match end {
                // All had left: who is there has come since.
                End::Over => true,
                End::Idle => !look.publishing.is_empty(),
                // Who stopped it does not want it back because this program was restarted.
                End::Stopped => false,
                End::AtMost => now.since(at) >= FOLLOWED_WITHIN,
                End::Parked => now.since(at) >= PARKED_LONG_AGO,
            };
        };
        let was_empty = before.clients.is_empty();
        match end {
            End::Over | End::Stopped | End::AtMost => !look.clients.is_subset(&before.clients),
            End::Idle => was_empty || !look.publishing.is_subset(&before.publishing),
            // The next would most likely fail as this one did.
            End::Parked => was_empty,
        }
    }
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Nothing.
    Nothing,
    /// The newest conversation has no job yet: its event is published, again if need be.
    Publish,
    /// Another conversation begins.
    Begin,
}

/// Decides on a session of automatic archives.
#[must_use]
pub fn decide(known: Known, memory: &Memory, look: &Look, now: Wallclock) -> Decision {
    if look.clients.is_empty() {
        return Decision::Nothing;
    }
    let anew = match known.newest {
        Newest::Active => return Decision::Nothing,
        Newest::Nothing => true,
        // It was decided already, after that job had ended: the event was lost, or is still on its way.
        Newest::Ended { conversation: Some(of_job), .. } if !known.has_job && of_job < known.conversation => true,
        Newest::Ended { end, at, .. } => memory.is_anew(look, end, at, now),
    };
    match (anew, known.conversation > 0 && !known.has_job) {
        (false, _) => Decision::Nothing,
        (true, true) => Decision::Publish,
        (true, false) => Decision::Begin,
    }
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
