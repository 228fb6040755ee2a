//! Which sessions are not recorded as they should be, by their rooms and jobs. Pure.

use std::time::Duration;

use serde::Serialize;

use crate::catalog::{JobRow, JobState};
use crate::model::ids::{JobId, RoomId, RouterName, SessionId};
use crate::model::time::Wallclock;

/// A worker takes a free job within a second, and another's when its lease has expired and it has heard from the catalog for a lease and a beat.
const TAKEN_WITHIN: Duration = Duration::from_secs(30);

/// A room in which somebody publishes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenRoom {
    /// Its router.
    pub router: RouterName,
    /// Its id there.
    pub room: RoomId,
    /// How many clients publish.
    pub publishing: usize,
    /// Whose it is.
    pub owner: RoomOwner,
}

/// Whose a room is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RoomOwner {
    /// A session's that is to be archived by itself.
    Automatic(SessionId),
    /// A session's that is archived when somebody asks for it, or cannot be.
    Manual(SessionId),
    /// The catalog has no session with this room: the platform made it, and tells of it by an event if it is to be archived.
    Unknown,
}

/// What was seen at one moment.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The jobs that somebody may still wait for.
    pub jobs: Vec<JobRow>,
    /// The rooms in which somebody publishes. Those that a job records need not be among them.
    pub rooms: Vec<SeenRoom>,
    /// Routers whose rooms could not be listed, with the reason.
    pub unseen: Vec<(RouterName, String)>,
    /// When, by the catalog's clock.
    pub now: Wallclock,
}

/// The kinds of findings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FindingKind {
    /// A room without a job.
    Room,
    /// A job that waits for its first stream while somebody publishes.
    Waiting,
    /// A job without a worker.
    Job,
    /// A job that needs a person.
    Parked,
}

impl FindingKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Room, Self::Waiting, Self::Job, Self::Parked];

    /// The name in metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Room => "room",
            Self::Waiting => "waiting",
            Self::Job => "job",
            Self::Parked => "parked",
        }
    }
}

/// A session that is not recorded as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase", rename_all_fields = "camelCase")]
pub enum Finding {
    /// Somebody publishes in the room of a session that is to be archived, and no job records it.
    Room {
        /// The router.
        router: RouterName,
        /// The room.
        room: RoomId,
        /// Its session.
        session: SessionId,
        /// How many clients publish.
        publishing: usize,
    },
    /// The session's job waits for its first stream, and somebody publishes.
    Waiting {
        /// The job.
        job: JobId,
        /// Its session.
        session: SessionId,
        /// How many clients publish.
        publishing: usize,
    },
    /// No worker has the job.
    Job {
        /// The job.
        job: JobId,
        /// Its session.
        session: SessionId,
        /// Where it stands.
        state: JobState,
        /// Since when, by the catalog's clock.
        since: Wallclock,
    },
    /// The job is parked.
    Parked {
        /// The job.
        job: JobId,
        /// Its session.
        session: SessionId,
        /// The reason in words.
        reason: String,
    },
}

impl Finding {
    /// Its kind.
    #[must_use]
    pub const fn kind(&self) -> FindingKind {
        match self {
            Self::Room { .. } => FindingKind::Room,
            Self::Waiting { .. } => FindingKind::Waiting,
            Self::Job { .. } => FindingKind::Job,
            Self::Parked { .. } => FindingKind::Parked,
        }
    }

    /// What it is about: the same at each look.
    #[must_use]
    pub fn key(&self) -> String {
        match self {
            Self::Room { router, room, .. } => format!("room {router} {room}"),
            Self::Waiting { job, .. } => format!("waiting {job}"),
            Self::Job { job, .. } => format!("job {job}"),
            Self::Parked { job, .. } => format!("parked {job}"),
        }
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Room { router, room, session, publishing } => write!(
                f,
                "room {room} at {router}: {publishing} publish, and no job records session {session}; look for its event: does the bridge run, does a \
                 worker of its region live, is the event parked?"
            ),
            Self::Waiting { job, session, publishing } => write!(
                f,
                "job {job} of session {session} waits for its first stream, and {publishing} publish; it is resumed by the bridge, or by a worker \
                 that looks at its room"
            ),
            Self::Job { job, session, state, since } => write!(
                f,
                "job {job} of session {session} is {} and has had no worker since {since}; `archiver workers list` shows who could take it",
                state.as_str()
            ),
            Self::Parked { job, session, reason } => write!(
                f,
                "job {job} of session {session} is parked: {reason}; `archiver jobs show {job}` says what to do"
            ),
        }
    }
}

/// What is not recorded as it should be, as far as one look can tell. A session that begins is among it for a moment.
#[must_use]
pub fn findings(seen: &Seen) -> Vec<Finding> {
    let rooms = seen.rooms.iter().filter_map(|room| of_room(room, &seen.jobs));
    let jobs = seen.jobs.iter().filter_map(|job| of_job(job, seen.now));
    rooms.chain(jobs).collect()
}

/// Whether a job is of a room.
fn is_of(job: &JobRow, room: &SeenRoom) -> bool {
    let place = job.spec().ok().and_then(|spec| spec.router.as_ref());
    place.is_some_and(|place| place.name == room.router && place.room == room.room)
}

/// What is wrong with a room in which somebody publishes.
fn of_room(room: &SeenRoom, jobs: &[JobRow]) -> Option<Finding> {
    let here = || jobs.iter().filter(|job| is_of(job, room));
    // A job that no worker has is a finding of its own.
    if here().any(|job| job.state.is_recorded()) {
        return None;
    }
    if let Some(job) = here().find(|job| job.state == JobState::Waiting) {
        let (job, session) = (job.job, job.session.clone());
        return Some(Finding::Waiting { job, session, publishing: room.publishing });
    }
    match &room.owner {
        RoomOwner::Automatic(session) => Some(Finding::Room {
            router: room.router.clone(),
            room: room.room.clone(),
            session: session.clone(),
            publishing: room.publishing,
        }),
        RoomOwner::Manual(_) | RoomOwner::Unknown => None,
    }
}

/// What is wrong with a job.
fn of_job(job: &JobRow, now: Wallclock) -> Option<Finding> {
    let (id, session) = (job.job, job.session.clone());
    match job.state {
        JobState::Parked => {
            let reason = job.detail.clone().or_else(|| job.fault.clone()).unwrap_or_default();
            Some(Finding::Parked { job: id, session, reason })
        }
        state if state.is_live() => {
            // A job that nobody has had yet has no lease; one that was given back has changed then.
            let since = job.lease_expires_at.max(job.updated_at);
            let is_free = job.lease_expires_at <= now && now.since(since) >= TAKEN_WITHIN;
            is_free.then_some(Finding::Job { job: id, session, state, since })
        }
        _ => None,
    }
}

/// The findings of a later look that an earlier one had, too: a session that begins or ends is not among them.
#[must_use]
pub fn confirmed(before: &[Finding], now: &[Finding]) -> Vec<Finding> {
    let was = |finding: &&Finding| before.iter().any(|one| one.key() == finding.key());
    now.iter().filter(was).cloned().collect()
}

/// The rooms in which somebody publishes that belong to no session and no job.
#[must_use]
pub fn unknown_rooms(seen: &Seen) -> Vec<&SeenRoom> {
    let has_job = |room: &SeenRoom| seen.jobs.iter().any(|job| is_of(job, room));
    seen.rooms.iter().filter(|room| room.owner == RoomOwner::Unknown && !has_job(room)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::StoredSpec;
    use crate::model::archive_options::ArchiveOptions;
    use crate::model::job_spec::JobSpec;
    use crate::model::session::{ArchiveMode, MediaMode, RouterRoom};

    const NOW: Wallclock = Wallclock(1_000_000_000);

    fn name(text: &str) -> SessionId {
        text.parse().expect("id")
    }

    /// A job of the room `room` that has had no worker for so many seconds; one that has one with a negative number.
    fn job(state: JobState, room: &str, without_worker_s: i64) -> JobRow {
        let row = JobRow::capturing();
        let spec = JobSpec {
            event: "e".parse().expect("id"),
            source: "test".to_owned(),
            started_at: None,
            session: row.session.clone(),
            application: row.application.clone(),
            media_mode: MediaMode::Routed,
            archive_mode: ArchiveMode::Always,
            location: None,
            region: row.region.clone(),
            router: Some(RouterRoom::shared("j".parse().expect("name"), room.parse().expect("room"))),
            archive: ArchiveOptions::default(),
        };
        let lease_expires_at = Wallclock(NOW.0 - without_worker_s * 1_000_000);
        JobRow { state, lease_expires_at, event: StoredSpec::of(spec), ..row }
    }

    fn room(room: &str, owner: RoomOwner) -> SeenRoom {
        SeenRoom { router: "j".parse().expect("name"), room: room.parse().expect("room"), publishing: 2, owner }
    }

    #[test]
    fn a_room_or_job_that_nobody_cares_for_is_found() {
        use JobState::{Accepted, Capturing, Finalizing, Parked, Waiting};
        let automatic = || RoomOwner::Automatic(name("s"));
        let manual = || RoomOwner::Manual(name("s"));
        for (case, jobs, rooms, expected) in [
            ("nothing", vec![], vec![], vec![]),
            ("a room without a job", vec![], vec![room("r", automatic())], vec!["room j r"]),
            ("a room that is not archived by itself", vec![], vec![room("r", manual())], vec![]),
            ("a room of nobody's", vec![], vec![room("r", RoomOwner::Unknown)], vec![]),
            ("recorded", vec![job(Capturing, "r", -3)], vec![room("r", automatic())], vec![]),
            ("about to be", vec![job(Accepted, "r", 3)], vec![room("r", automatic())], vec![]),
            ("another room's job", vec![job(Capturing, "q", -3)], vec![room("r", automatic())], vec!["room j r"]),
            ("the conversation before", vec![job(Finalizing, "r", -3)], vec![room("r", automatic())], vec!["room j r"]),
            ("waits, and nobody publishes", vec![job(Waiting, "r", -3)], vec![], vec![]),
            (
                "waits, and somebody publishes",
                vec![job(Waiting, "r", -3)],
                vec![room("r", automatic())],
                vec!["waiting"],
            ),
            (
                "waits in a room of the platform's",
                vec![job(Waiting, "r", 3)],
                vec![room("r", RoomOwner::Unknown)],
                vec!["waiting"],
            ),
            ("no worker for 29 s", vec![job(Capturing, "r", 29)], vec![], vec![]),
            ("no worker for 30 s", vec![job(Capturing, "r", 30)], vec![room("r", automatic())], vec!["job"]),
            ("nobody makes the archive", vec![job(Finalizing, "r", 31)], vec![], vec!["job"]),
            ("parked", vec![job(Parked, "r", 31)], vec![room("r", automatic())], vec!["room j r", "parked"]),
        ] {
            let seen = Seen { jobs, rooms, unseen: Vec::new(), now: NOW };
            let found: Vec<String> = findings(&seen).iter().map(Finding::key).collect();
            let is_as_expected = std::iter::zip(&found, &expected).all(|(found, expected)| found.starts_with(expected));
            assert!(found.len() == expected.len() && is_as_expected, "{case}: {found:?}, not {expected:?}");
        }
    }

    #[test]
    fn what_is_found_once_is_not_told() {
        let seen = |rooms| Seen { jobs: Vec::new(), rooms, unseen: Vec::new(), now: NOW };
        let of = |rooms| findings(&seen(rooms));
        let room = |name: &str| room(name, RoomOwner::Automatic(self::name("s")));
        let (before, now) = (of(vec![room("a"), room("b")]), of(vec![room("b"), room("c")]));
        let keys: Vec<String> = confirmed(&before, &now).iter().map(Finding::key).collect();
        assert_eq!(keys, ["room j b"]);
    }

    #[test]
    fn a_room_that_no_session_and_no_event_tells_of_is_unknown() {
        let rooms =
            vec![room("a", RoomOwner::Unknown), room("b", RoomOwner::Unknown), room("c", RoomOwner::Manual(name("s")))];
        let seen = Seen { jobs: vec![job(JobState::Capturing, "a", -3)], rooms, unseen: Vec::new(), now: NOW };
        let unknown: Vec<&str> = unknown_rooms(&seen).iter().map(|room| room.room.as_str()).collect();
        assert_eq!(unknown, ["b"]);
    }
}
