//! Which sessions are not recorded as they should be, by their rooms and jobs. Pure.

use std::time::Duration;

use serde::Serialize;

use super::snapshot::{PublishingRoom, RoomSession, Snapshot};
use crate::catalog::{JobRow, JobState, ParkedRow};
use crate::model::ids::{JobId, ParkedId, RoomId, RouterName, SessionId};
use crate::model::time::Wallclock;

/// Longest time for which a job normally has no worker. A free job is claimed within 1 s; a job of a lost owner when its lease has expired, and the
/// claiming worker has had contact with the catalog for a lease and a heartbeat.
const UNOWNED_MAX: Duration = Duration::from_secs(30);

/// The kinds of findings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FindingKind {
    /// A room without a job.
    Room,
    /// A job that waits for its first stream while somebody publishes.
    Waiting,
    /// A job without a worker.
    Job,
    /// A job or an event that needs a person.
    Parked,
    /// A router whose rooms could not all be seen.
    Router,
}

impl FindingKind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Room, Self::Waiting, Self::Job, Self::Parked, Self::Router];

    /// The name in metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Room => "room",
            Self::Waiting => "waiting",
            Self::Job => "job",
            Self::Parked => "parked",
            Self::Router => "router",
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
    /// An event is parked for which there is no job.
    #[serde(rename = "event")]
    Event {
        /// The parked event.
        parked: ParkedId,
        /// The reason in words.
        reason: String,
    },
    /// Something of a router could not be seen.
    Router {
        /// The router.
        router: RouterName,
        /// What, and why.
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
            Self::Parked { .. } | Self::Event { .. } => FindingKind::Parked,
            Self::Router { .. } => FindingKind::Router,
        }
    }

    /// The router that has to be seen to find it.
    #[must_use]
    pub const fn router(&self) -> Option<&RouterName> {
        match self {
            Self::Room { router, .. } => Some(router),
            _ => None,
        }
    }

    /// What it is about: the same in each snapshot.
    #[must_use]
    pub fn key(&self) -> String {
        match self {
            Self::Room { router, room, .. } => format!("room {router} {room}"),
            Self::Waiting { job, .. } => format!("waiting {job}"),
            Self::Job { job, .. } => format!("job {job}"),
            Self::Parked { job, .. } => format!("parked job {job}"),
            Self::Event { parked, .. } => format!("parked event {parked}"),
            Self::Router { router, .. } => format!("router {router}"),
        }
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Room { router, room, session, publishing } => write!(
                f,
                "room {room} at {router} has {publishing} publishing clients, and no job records session {session}: check that the bridge runs, that the \
                 region has a worker (`archiver workers list`), that the event is not parked (`archiver jobs list`), and that nobody ended the \
                 session while the clients stayed"
            ),
            Self::Waiting { job, session, publishing } => write!(
                f,
                "job {job} of session {session} waits for its first stream, and its room has {publishing} publishing clients: the bridge should resume \
                 it, or a worker that looks at its room"
            ),
            Self::Job { job, session, state, since } => write!(
                f,
                "job {job} of session {session} is {} and has had no worker since {since}: `archiver workers list` shows which worker could take it",
                state.as_str()
            ),
            Self::Parked { job, session, reason } => {
                write!(
                    f,
                    "job {job} of session {session} is parked: {reason}; `archiver jobs show {job}` says what to do"
                )
            }
            Self::Event { parked, reason } => {
                write!(f, "event {parked} is parked: {reason}; `archiver jobs show {parked}` says what to do")
            }
            Self::Router { router, reason } => write!(f, "not all of router {router} was seen: {reason}"),
        }
    }
}

/// What is not recorded as it should be, as far as one snapshot shows. A session that begins is among it for a moment.
#[must_use]
pub fn findings(snapshot: &Snapshot) -> Vec<Finding> {
    let rooms = snapshot.rooms.iter().filter_map(|room| of_room(room, &snapshot.jobs));
    let jobs = snapshot.jobs.iter().filter_map(|job| of_job(job, snapshot.now));
    // The event of a parked job is found as its job.
    let has_job = |event: &&ParkedRow| event.job.is_some_and(|job| snapshot.jobs.iter().any(|one| one.job == job));
    let events = snapshot.parked.iter().filter(|event| !has_job(event));
    let events = events.map(|event| Finding::Event { parked: event.parked, reason: event.detail.clone() });
    let routers = snapshot.unseen.iter();
    let routers = routers.map(|(router, reason)| Finding::Router { router: router.clone(), reason: reason.clone() });
    rooms.chain(jobs).chain(events).chain(routers).collect()
}

/// Whether a job is of a room.
fn is_of(job: &JobRow, room: &PublishingRoom) -> bool {
    let place = job.spec().ok().and_then(|spec| spec.router.as_ref());
    place.is_some_and(|place| place.name == room.router && place.room == room.room)
}

/// What is wrong with a room in which somebody publishes.
fn of_room(room: &PublishingRoom, jobs: &[JobRow]) -> Option<Finding> {
    let here = || jobs.iter().filter(|job| is_of(job, room));
    // A job that no worker has is a finding of its own. A further archive of a session, which has a tag, may leave out streams.
    if here().any(|job| job.state.is_recorded() && job.tag.is_empty()) {
        return None;
    }
    if let Some(job) = here().find(|job| job.state == JobState::Waiting) {
        let (job, session) = (job.job, job.session.clone());
        return Some(Finding::Waiting { job, session, publishing: room.publishing });
    }
    let RoomSession::Automatic(session) = &room.session else { return None };
    Some(Finding::Room {
        router: room.router.clone(),
        room: room.room.clone(),
        session: session.clone(),
        publishing: room.publishing,
    })
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
            let is_free = job.lease_expires_at <= now && now.since(since) >= UNOWNED_MAX;
            is_free.then_some(Finding::Job { job: id, session, state, since })
        }
        _ => None,
    }
}

/// The findings of a later snapshot that an earlier one had, too: a session that begins or ends is not among them.
#[must_use]
pub fn confirmed(before: &[Finding], now: &[Finding]) -> Vec<Finding> {
    let was = |finding: &&Finding| before.iter().any(|one| one.key() == finding.key());
    now.iter().filter(was).cloned().collect()
}

/// The rooms in which somebody publishes that belong to no session and no open job.
#[must_use]
pub fn rooms_without_session(snapshot: &Snapshot) -> Vec<&PublishingRoom> {
    let has_job = |room: &PublishingRoom| snapshot.jobs.iter().any(|job| is_of(job, room));
    snapshot.rooms.iter().filter(|room| room.session == RoomSession::None && !has_job(room)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

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

    fn room(room: &str, session: RoomSession) -> PublishingRoom {
        PublishingRoom { router: "j".parse().expect("name"), room: room.parse().expect("room"), publishing: 2, session }
    }

    fn snapshot(jobs: Vec<JobRow>, rooms: Vec<PublishingRoom>) -> Snapshot {
        Snapshot { jobs, parked: Vec::new(), rooms, unseen: BTreeMap::new(), now: NOW }
    }

    #[test]
    fn a_room_or_job_that_nobody_cares_for_is_found() {
        use JobState::{Accepted, Capturing, Finalizing, Parked, Waiting};
        let automatic = || RoomSession::Automatic(name("s"));
        for (case, jobs, rooms, expected) in [
            ("nothing", vec![], vec![], vec![]),
            ("a room without a job", vec![], vec![room("r", automatic())], vec!["room j r"]),
            ("a room of nobody's", vec![], vec![room("r", RoomSession::None)], vec![]),
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
                vec![room("r", RoomSession::None)],
                vec!["waiting"],
            ),
            ("no worker for 29 s", vec![job(Capturing, "r", 29)], vec![], vec![]),
            ("no worker for 30 s", vec![job(Capturing, "r", 30)], vec![room("r", automatic())], vec!["job"]),
            ("nobody makes the archive", vec![job(Finalizing, "r", 31)], vec![], vec!["job"]),
            ("parked", vec![job(Parked, "r", 31)], vec![room("r", automatic())], vec!["room j r", "parked job"]),
            (
                "a further archive",
                vec![JobRow { tag: "t".to_owned(), ..job(Capturing, "r", -3) }],
                vec![room("r", automatic())],
                vec!["room j r"],
            ),
        ] {
            let found: Vec<String> = findings(&snapshot(jobs, rooms)).iter().map(Finding::key).collect();
            let is_as_expected = std::iter::zip(&found, &expected).all(|(found, expected)| found.starts_with(expected));
            assert!(found.len() == expected.len() && is_as_expected, "{case}: {found:?}, not {expected:?}");
        }
    }

    #[test]
    fn what_is_found_once_is_not_told() {
        let of = |rooms| findings(&snapshot(Vec::new(), rooms));
        let room = |name: &str| room(name, RoomSession::Automatic(self::name("s")));
        let (before, now) = (of(vec![room("a"), room("b")]), of(vec![room("b"), room("c")]));
        let keys: Vec<String> = confirmed(&before, &now).iter().map(Finding::key).collect();
        assert_eq!(keys, ["room j b"]);
    }

    #[test]
    fn a_room_that_no_session_and_no_event_tells_of_is_unknown() {
        let rooms = vec![
            room("a", RoomSession::None),
            room("b", RoomSession::None),
            room("c", RoomSession::Automatic(name("s"))),
        ];
        let snapshot = snapshot(vec![job(JobState::Waiting, "a", -3)], rooms);
        let unknown: Vec<&str> = rooms_without_session(&snapshot).iter().map(|room| room.room.as_str()).collect();
        assert_eq!(unknown, ["b"]);
    }

    #[test]
    fn a_parked_event_without_a_job_and_a_router_that_is_not_seen_are_found() {
        let event = |job: Option<JobId>, reason: &str| ParkedRow {
            parked: ParkedId::from_uuid(uuid::Uuid::from_u128(7)),
            job,
            fault: "event_invalid".to_owned(),
            detail: reason.to_owned(),
            routing_key: "session.started.eu".to_owned(),
            body: String::new(),
            state: crate::catalog::ParkedState::Parked,
            times: 1,
            first_at: NOW,
            last_at: NOW,
            history: Vec::new(),
        };
        let parked = job(JobState::Parked, "r", 3);
        let events = vec![event(None, "no session"), event(Some(parked.job), "of the job")];
        let unseen = BTreeMap::from([("j".parse().expect("name"), "no answer".to_owned())]);
        let snapshot = Snapshot { parked: events, unseen, ..snapshot(vec![parked], Vec::new()) };
        let found = findings(&snapshot);
        let kinds: Vec<FindingKind> = found.iter().map(Finding::kind).collect();
        assert_eq!(kinds, [FindingKind::Parked, FindingKind::Parked, FindingKind::Router]);
        assert!(found[1].to_string().contains("no session") && found[2].to_string().contains("no answer"), "{found:?}");
        assert!(snapshot.lacks(&"j".parse().expect("name")) && !snapshot.lacks(&"k".parse().expect("name")));
    }
}
