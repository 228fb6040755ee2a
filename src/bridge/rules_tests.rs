use super::*;
use crate::catalog::StoredSpec;
use crate::event::SessionEvent;
use crate::model::archive_options::ArchiveOptions;
use crate::model::ids::ArchiveId;
use crate::model::session::RouterRoom;

const NOW: Wallclock = Wallclock(1_800_000_000_000_000);

fn ago(seconds: i64) -> Wallclock {
    Wallclock(NOW.0 - seconds * 1_000_000)
}

/// `a b+` is: a and b are there, b publishes.
fn snapshot(text: &str) -> RoomSnapshot {
    let name = |word: &str| word.trim_end_matches('+').to_owned();
    RoomSnapshot {
        clients: text.split_whitespace().map(name).collect(),
        publishing: text.split_whitespace().filter(|word| word.ends_with('+')).map(name).collect(),
    }
}

fn ended(end: JobEnd, conversation: i64) -> NewestJob {
    NewestJob::Ended { end, at: ago(5), conversation: Some(conversation) }
}

fn waiting_job() -> JobId {
    "00000000-0000-5000-8000-000000000001".parse().expect("id")
}

/// The state of a room after these snapshots, each with whether an archive was being recorded.
fn room_after(snapshots: &[(&str, bool)]) -> RoomState {
    let mut room = RoomState::default();
    for (n, (text, active)) in snapshots.iter().enumerate() {
        let newest = if *active { NewestJob::Active } else { ended(JobEnd::SessionEnded, 1) };
        room.observe(&snapshot(text), newest, ago(100 - i64::try_from(n).expect("few")));
    }
    room
}

#[test]
fn a_conversation_begins_with_its_first_client_and_is_told_until_it_has_a_job() {
    for (conversation, has_job, newest, clients, expected) in [
        (0, false, NewestJob::Absent, "", Action::None),
        (0, false, NewestJob::Absent, "a", Action::BeginConversation),
        // Another archive without a tag, started over the API.
        (0, false, NewestJob::Active, "a", Action::None),
        (1, false, NewestJob::Absent, "a", Action::PublishStart),
        (1, false, NewestJob::Absent, "", Action::None),
        (1, true, NewestJob::Active, "a+", Action::None),
        // It waits for a stream.
        (1, true, NewestJob::Waiting(waiting_job()), "a b", Action::None),
        (1, true, NewestJob::Waiting(waiting_job()), "", Action::None),
        (1, true, NewestJob::Waiting(waiting_job()), "a b+", Action::Resume(waiting_job())),
        // Killed between the number and the event: the next process knows nothing of who was there.
        (2, false, ended(JobEnd::Stopped, 1), "a", Action::PublishStart),
        (2, false, ended(JobEnd::Parked, 1), "a", Action::PublishStart),
        // An archive that was started over the API took its event; the end of that archive decides.
        (1, false, NewestJob::Ended { end: JobEnd::Stopped, at: ago(5), conversation: None }, "a", Action::None),
        (
            1,
            false,
            NewestJob::Ended { end: JobEnd::SessionEnded, at: ago(5), conversation: None },
            "a",
            Action::PublishStart,
        ),
    ] {
        let known = SessionState { conversation, has_job, newest };
        assert_eq!(decide(known, &RoomState::default(), &snapshot(clients), NOW), expected, "{known:?} {clients:?}");
    }
}

#[test]
fn another_conversation_begins_when_those_who_are_there_are_a_reason_for_it() {
    use JobEnd::{Idle, MaxDuration, Parked, SessionEnded, Stopped};
    for (end, seen, now, begins) in [
        // All had left and came back.
        (SessionEnded, &[("a+", true), ("", true), ("", false)][..], "a", true),
        (SessionEnded, &[("a+", true), ("", false)], "b", true),
        // The platform ended it, and the same people stay.
        (SessionEnded, &[("a+ b", true)], "a+ b", false),
        (SessionEnded, &[("a+ b", true)], "a+", false),
        (SessionEnded, &[("a+ b", true)], "a+ c", true),
        (SessionEnded, &[("a+ b", true), ("a+", false)], "a+ b", false),
        (SessionEnded, &[], "a", true),
        // A person stopped it.
        (Stopped, &[("a+", true)], "a+", false),
        (Stopped, &[("a+", true)], "a+ b", true),
        (Stopped, &[("a+", true), ("", false)], "a+", true),
        (Stopped, &[], "a+ b+", false),
        (Stopped, &[("a+", false)], "a+", false),
        // Nobody published.
        (Idle, &[("a", true)], "a", false),
        (Idle, &[("a", true)], "a b", false),
        (Idle, &[("a", true)], "a+", true),
        (Idle, &[("a", true), ("", false)], "a", true),
        // Something is published that cannot be recorded: once is enough.
        (Idle, &[("a+", true)], "a+", false),
        (Idle, &[("a+", true)], "a+ b+", true),
        (Idle, &[], "a", false),
        (Idle, &[], "a+", true),
        // It failed.
        (Parked, &[("a+", true)], "a+ b+", false),
        (Parked, &[("a+", true), ("", false)], "a", true),
        (Parked, &[], "a", false),
        // Another one follows by itself.
        (MaxDuration, &[("a+", true)], "a+", false),
        (MaxDuration, &[("a+", true)], "a+ b", true),
        (MaxDuration, &[], "a+", false),
    ] {
        let known = SessionState { conversation: 1, has_job: true, newest: ended(end, 1) };
        let expected = if begins { Action::BeginConversation } else { Action::None };
        assert_eq!(decide(known, &room_after(seen), &snapshot(now), NOW), expected, "{end:?} {seen:?} {now:?}");
    }
    for (end, seconds, begins) in
        [(Parked, 599, false), (Parked, 600, true), (MaxDuration, 59, false), (MaxDuration, 60, true)]
    {
        let newest = NewestJob::Ended { end, at: ago(seconds), conversation: Some(1) };
        let known = SessionState { conversation: 1, has_job: true, newest };
        let decided = decide(known, &RoomState::default(), &snapshot("a"), NOW);
        assert_eq!(decided == Action::BeginConversation, begins, "{end:?} {seconds}");
    }
}

#[test]
fn a_job_that_ended_before_anybody_looked_again_is_not_begun_anew_for_the_same_people() {
    for end in [JobEnd::SessionEnded, JobEnd::Stopped, JobEnd::Idle, JobEnd::MaxDuration, JobEnd::Parked] {
        let mut room = RoomState::of_empty_room();
        let known = |newest| SessionState { conversation: 1, has_job: newest != NewestJob::Absent, newest };
        room.observe(&snapshot("a+"), NewestJob::Absent, ago(2));
        room.archive_started(&snapshot("a+"));
        room.observe(&snapshot("a+"), ended(end, 1), NOW);
        assert_eq!(decide(known(ended(end, 1)), &room, &snapshot("a+"), NOW), Action::None, "{end:?}");
    }
}

#[test]
fn somebody_is_there_since_the_first_look_that_found_anybody() {
    let mut room = RoomState::default();
    assert_eq!(room.occupied_since(), None);
    room.observe(&snapshot("a"), NewestJob::Absent, ago(9));
    room.observe(&snapshot("b"), NewestJob::Absent, ago(5));
    assert_eq!(room.occupied_since(), Some(ago(9)));
    room.mark_empty();
    assert_eq!((room.occupied_since(), &room), (None, &RoomState::of_empty_room()));
}

fn session() -> SessionRow {
    SessionRow {
        session: "s1".parse().expect("id"),
        application: "app".parse().expect("id"),
        media_mode: MediaMode::Routed,
        archive_mode: ArchiveMode::Always,
        e2ee: false,
        location: Some("203.0.113.7".parse().expect("address")),
        region: "eu".parse().expect("region"),
        router: Some(RouterRoom::shared("j".parse().expect("name"), "s1".parse().expect("room"))),
        archive: ArchiveOptions { name: Some("N".to_owned()), ..ArchiveOptions::default() },
        conversation: 3,
        classes: std::collections::BTreeMap::new(),
        created_at: NOW,
    }
}

fn job(state: JobState, reason: Option<&str>, event: &str) -> JobRow {
    let session = session();
    let job = job_of_conversation(&session.session, 3);
    JobRow {
        job,
        archive: ArchiveId::of_job(job),
        session: session.session,
        event: StoredSpec::read(event.to_owned()),
        state,
        origin: NOW,
        end_reason: reason.map(str::to_owned),
        created_at: NOW,
        updated_at: ago(7),
        ..JobRow::capturing()
    }
}

#[test]
fn the_event_is_one_that_workers_accept_and_names_the_job() {
    let event = start_event(&session(), 3, ago(2));
    let body = serde_json::to_vec(&event).expect("json");
    let Ok(SessionEvent::Started(read)) = crate::event::parse(&body) else { panic!("{event:?}") };
    assert_eq!(*read, event);
    assert_eq!(read.job(), job_of_conversation(&session().session, 3));
    assert_ne!(read.job(), job_of_conversation(&session().session, 4));
    assert_eq!(read.at(), Some(ago(2)));
    assert_eq!((read.data.archive.name.as_deref(), read.source.as_str()), (Some("N"), SOURCE));
}

#[test]
fn how_a_job_stands_is_read_from_its_row() {
    let event = |id: &str, source: &str| {
        let mut event = start_event(&session(), 3, NOW);
        (event.id, event.source) = (id.parse().expect("id"), source.to_owned());
        serde_json::to_string(&event).expect("json")
    };
    let ours = event("bridge-3", SOURCE);
    for (state, reason, end) in [
        (JobState::Finalizing, Some("session ended"), JobEnd::SessionEnded),
        (JobState::Available, Some("user initiated"), JobEnd::Stopped),
        (JobState::Available, Some("maximum idle time exceeded"), JobEnd::Idle),
        (JobState::Finalizing, Some("maximum duration exceeded"), JobEnd::MaxDuration),
        (JobState::Available, None, JobEnd::SessionEnded),
        (JobState::Parked, Some("session ended"), JobEnd::Parked),
        (JobState::Discarded, None, JobEnd::Parked),
    ] {
        let expected = NewestJob::Ended { end, at: ago(7), conversation: Some(3) };
        assert_eq!(NewestJob::of(Some(&job(state, reason, &ours))), expected, "{state:?} {reason:?}");
    }
    assert_eq!(NewestJob::of(None), NewestJob::Absent);
    // Somebody wants it to end, but it has not.
    assert_eq!(NewestJob::of(Some(&job(JobState::Capturing, Some("user initiated"), &ours))), NewestJob::Active);
    for (id, source, expected) in [
        ("bridge-3", SOURCE, Some(3)),
        ("bridge-3~part2", SOURCE, Some(3)),
        ("bridge-3", "platform", None),
        ("started-3", SOURCE, None),
        ("bridge-x", SOURCE, None),
    ] {
        assert_eq!(conversation_of(&job(JobState::Available, None, &event(id, source))), expected, "{id} {source}");
    }
    assert_eq!(conversation_of(&job(JobState::Available, None, "no JSON")), None);
}

#[test]
fn only_routed_sessions_of_archive_mode_always_without_e2ee_are_automatic() {
    for (media_mode, archive_mode, e2ee, expected) in [
        (MediaMode::Routed, ArchiveMode::Always, false, true),
        (MediaMode::Routed, ArchiveMode::Always, true, false),
        (MediaMode::Routed, ArchiveMode::Manual, false, false),
        (MediaMode::Relayed, ArchiveMode::Always, false, false),
    ] {
        assert_eq!(is_automatic(&SessionRow { media_mode, archive_mode, e2ee, ..session() }), expected);
    }
}
