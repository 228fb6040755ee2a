use super::*;
use crate::catalog::StoredSpec;
use crate::event::SessionEvent;
use crate::model::archive_options::ArchiveOptions;
use crate::model::ids::{ArchiveId, Epoch};
use crate::model::session::RouterRoom;

const NOW: Wallclock = Wallclock(1_800_000_000_000_000);

fn ago(seconds: i64) -> Wallclock {
    Wallclock(NOW.0 - seconds * 1_000_000)
}

/// `a b+` is: a and b are there, b publishes.
fn look(text: &str) -> Look {
    let name = |word: &str| word.trim_end_matches('+').to_owned();
    Look {
        clients: text.split_whitespace().map(name).collect(),
        publishing: text.split_whitespace().filter(|word| word.ends_with('+')).map(name).collect(),
    }
}

fn ended(end: End, conversation: i64) -> Newest {
    Newest::Ended { end, at: ago(5), conversation: Some(conversation) }
}

/// What is remembered after these looks: each with whether an archive was being recorded.
fn memory(looks: &[(&str, bool)]) -> Memory {
    let mut memory = Memory::default();
    for (n, (text, active)) in looks.iter().enumerate() {
        let newest = if *active { Newest::Active } else { ended(End::Over, 1) };
        memory.saw(&look(text), newest, ago(100 - i64::try_from(n).expect("few")));
    }
    memory
}

#[test]
fn a_conversation_begins_with_its_first_client_and_is_told_until_it_has_a_job() {
    for (conversation, has_job, newest, clients, expected) in [
        (0, false, Newest::Nothing, "", Decision::Nothing),
        (0, false, Newest::Nothing, "a", Decision::Begin),
        // Another archive without a tag: somebody started it by hand.
        (0, false, Newest::Active, "a", Decision::Nothing),
        (1, false, Newest::Nothing, "a", Decision::Publish),
        (1, false, Newest::Nothing, "", Decision::Nothing),
        (1, true, Newest::Active, "a+", Decision::Nothing),
        // Killed between the number and the event: the next process knows nothing of who was there.
        (2, false, ended(End::Stopped, 1), "a", Decision::Publish),
        (2, false, ended(End::Parked, 1), "a", Decision::Publish),
        // It was swallowed by an archive that somebody started by hand: that one's end decides.
        (1, false, Newest::Ended { end: End::Stopped, at: ago(5), conversation: None }, "a", Decision::Nothing),
        (1, false, Newest::Ended { end: End::Over, at: ago(5), conversation: None }, "a", Decision::Publish),
    ] {
        let known = Known { conversation, has_job, newest };
        assert_eq!(decide(known, &Memory::default(), &look(clients), NOW), expected, "{known:?} {clients:?}");
    }
}

#[test]
fn another_conversation_begins_when_those_who_are_there_are_a_reason_for_it() {
    use End::{AtMost, Idle, Over, Parked, Stopped};
    for (end, seen, now, begins) in [
        // All had left and came back.
        (Over, &[("a+", true), ("", true), ("", false)][..], "a", true),
        (Over, &[("a+", true), ("", false)], "b", true),
        // The platform ended it, and the same people stay.
        (Over, &[("a+ b", true)], "a+ b", false),
        (Over, &[("a+ b", true)], "a+", false),
        (Over, &[("a+ b", true)], "a+ c", true),
        (Over, &[("a+ b", true), ("a+", false)], "a+ b", false),
        (Over, &[], "a", true),
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
        (AtMost, &[("a+", true)], "a+", false),
        (AtMost, &[("a+", true)], "a+ b", true),
        (AtMost, &[], "a+", false),
    ] {
        let known = Known { conversation: 1, has_job: true, newest: ended(end, 1) };
        let expected = if begins { Decision::Begin } else { Decision::Nothing };
        assert_eq!(decide(known, &memory(seen), &look(now), NOW), expected, "{end:?} {seen:?} {now:?}");
    }
    for (end, seconds, begins) in [(Parked, 599, false), (Parked, 600, true), (AtMost, 59, false), (AtMost, 60, true)] {
        let newest = Newest::Ended { end, at: ago(seconds), conversation: Some(1) };
        let known = Known { conversation: 1, has_job: true, newest };
        let decided = decide(known, &Memory::default(), &look("a"), NOW);
        assert_eq!(decided == Decision::Begin, begins, "{end:?} {seconds}");
    }
}

#[test]
fn a_job_that_ended_before_anybody_looked_again_is_not_begun_anew_for_the_same_people() {
    for end in [End::Over, End::Stopped, End::Idle, End::AtMost, End::Parked] {
        let mut memory = Memory::of_empty();
        let known = |newest| Known { conversation: 1, has_job: newest != Newest::Nothing, newest };
        memory.saw(&look("a+"), Newest::Nothing, ago(2));
        memory.began(&look("a+"));
        memory.saw(&look("a+"), ended(end, 1), NOW);
        assert_eq!(decide(known(ended(end, 1)), &memory, &look("a+"), NOW), Decision::Nothing, "{end:?}");
    }
}

#[test]
fn somebody_is_there_since_the_first_look_that_found_anybody() {
    let mut memory = Memory::default();
    assert_eq!(memory.since(), None);
    memory.saw(&look("a"), Newest::Nothing, ago(9));
    memory.saw(&look("b"), Newest::Nothing, ago(5));
    assert_eq!(memory.since(), Some(ago(9)));
    memory.empty();
    assert_eq!((memory.since(), &memory), (None, &Memory::of_empty()));
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
    let job = job_of(&session.session, 3);
    JobRow {
        job,
        archive: ArchiveId::of_job(job),
        session: session.session,
        application: session.application,
        region: session.region,
        event: StoredSpec::read(event.to_owned()),
        state,
        origin: NOW,
        owner: None,
        lease_expires_at: NOW,
        epoch: Epoch(1),
        end_reason: reason.map(str::to_owned),
        fault: None,
        detail: None,
        created_at: NOW,
        updated_at: ago(7),
        desired: None,
        tag: String::new(),
    }
}

#[test]
fn the_event_is_one_that_workers_accept_and_names_the_job() {
    let event = started(&session(), 3, ago(2));
    let body = serde_json::to_vec(&event).expect("json");
    let Ok(SessionEvent::Started(read)) = crate::event::parse(&body) else { panic!("{event:?}") };
    assert_eq!(*read, event);
    assert_eq!(read.job(), job_of(&session().session, 3));
    assert_ne!(read.job(), job_of(&session().session, 4));
    assert_eq!(read.at(), Some(ago(2)));
    assert_eq!((read.data.archive.name.as_deref(), read.source.as_str()), (Some("N"), SOURCE));
}

#[test]
fn how_a_job_stands_is_read_from_its_row() {
    let event = |id: &str, source: &str| {
        let mut event = started(&session(), 3, NOW);
        (event.id, event.source) = (id.parse().expect("id"), source.to_owned());
        serde_json::to_string(&event).expect("json")
    };
    let ours = event("bridge-3", SOURCE);
    for (state, reason, end) in [
        (JobState::Finalizing, Some("session ended"), End::Over),
        (JobState::Available, Some("user initiated"), End::Stopped),
        (JobState::Available, Some("maximum idle time exceeded"), End::Idle),
        (JobState::Finalizing, Some("maximum duration exceeded"), End::AtMost),
        (JobState::Available, None, End::Over),
        (JobState::Parked, Some("session ended"), End::Parked),
        (JobState::Discarded, None, End::Parked),
    ] {
        let expected = Newest::Ended { end, at: ago(7), conversation: Some(3) };
        assert_eq!(Newest::of(Some(&job(state, reason, &ours))), expected, "{state:?} {reason:?}");
    }
    assert_eq!(Newest::of(None), Newest::Nothing);
    // Somebody wants it to end, but it has not.
    assert_eq!(Newest::of(Some(&job(JobState::Capturing, Some("user initiated"), &ours))), Newest::Active);
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
