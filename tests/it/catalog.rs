//! The catalog's promises, each held in memory, on SQLite and on a real PostgreSQL.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::catalogs::{Backend, on_each_catalog};
use crate::support::databases;
use archiver::catalog::{
    self, Accepted, ArchiveFilter, ArchiveRow, ArchiveStatus, CatalogError, Claimed, DerivedArchiveLimits, HandOver,
    HeldLease, HistoryLine, JobRow, JobState, NameLease, NewJob, NewParked, NoticeFilter, NoticeTarget, ParkedFilter,
    ParkedMark, ParkedState, SegmentsDue, SessionRow, SharedCatalog, StoredDesired, StoredSpec, Wait, WorkerInstance,
    WorkerRow,
};
use archiver::model::archive_options::ArchiveOptions;
use archiver::model::desired::Desired;
use archiver::model::fault::{FaultKind, HasFault, Retry};
use archiver::model::ids::{
    ArchiveId, Epoch, EventId, InstanceId, JobId, ParkedId, Region, SessionId, StreamId, TrackKind, WorkerId,
};
use archiver::model::log_read::LogRead;
use archiver::model::media::{GapCause, MissingMedia};
use archiver::model::session::{ArchiveMode, MediaMode, RouterRoom};
use archiver::model::time::Wallclock;
use archiver_testkit::postgres::Postgres;
use archiver_testkit::proxy::{TcpMode, TcpProxy};
use archiver_testkit::wait::wait_for;
use tokio::task::JoinSet;

const TTL: Duration = Duration::from_secs(8);
const HELD: NameLease = NameLease::Held { drains: false };
const NOW: Wallclock = Wallclock(1_800_000_000_000_000);

fn later(seconds: u64) -> Wallclock {
    NOW + Duration::from_secs(seconds)
}

fn worker(name: &str) -> WorkerId {
    name.parse().unwrap()
}

fn event(session: &str, event: &str) -> NewJob {
    let session: SessionId = session.parse().unwrap();
    let id: EventId = event.parse().unwrap();
    NewJob {
        job: JobId::of_event(&session, &id),
        session,
        application: "app".parse().unwrap(),
        region: "eu".parse().unwrap(),
        event: StoredSpec::read(format!("{{\"id\":\"{event}\"}}")),
        started_at: NOW,
        tag: String::new(),
        is_conversation: true,
    }
}

async fn accepted(catalog: &SharedCatalog, session: &str, id: &str) -> JobRow {
    match catalog.accept(&event(session, id), NOW).await.unwrap() {
        Accepted::New(job) => job,
        other => panic!("{other:?}"),
    }
}

async fn claimed(catalog: &SharedCatalog, job: JobId, who: &str, now: Wallclock) -> Claimed {
    catalog.claim(job, &worker(who), now, TTL).await.unwrap().expect("free")
}

/// The job, if its lease still is this owner's.
async fn beat(catalog: &SharedCatalog, job: JobId, epoch: Epoch, now: Wallclock) -> Option<JobRow> {
    let kept = catalog.heartbeat(&[HeldLease { job, epoch }], now, TTL).await.unwrap().remove(&job);
    kept.map(|row| row.expect("a readable row"))
}

fn line(at: Wallclock, what: &str, who: &str) -> HistoryLine {
    HistoryLine { at, what: what.to_owned(), who: who.to_owned() }
}

fn archive(job: &JobRow, status: ArchiveStatus, at: Wallclock) -> ArchiveRow {
    ArchiveRow {
        archive: job.archive,
        job: job.job,
        session: job.session.clone(),
        application: job.application.clone(),
        name: Some("Team Ümlaut".to_owned()),
        status,
        reason: "session ended".to_owned(),
        output_mode: "individual".to_owned(),
        created_at: NOW,
        updated_at: at,
        duration_s: 62,
        size: 1 << 40,
        sha256: "c2hh".to_owned(),
        object_key: None,
        revision: 1,
        log_read: None,
        missing: None,
        options: ArchiveOptions::default(),
    }
}

fn fenced<T: std::fmt::Debug>(result: Result<T, CatalogError>) {
    assert!(matches!(result, Err(CatalogError::Fenced { .. })), "{result:?}");
}

on_each_catalog! {
    one_event_accepted_by_twenty_tasks_is_one_job => accept_at_once;
    two_events_of_a_session_accepted_at_once_make_one_job => sessions_at_once;
    a_session_may_be_used_again_once_its_archive_has_ended => session_reuse;
    a_session_is_found_by_its_room_and_by_its_newest_job => conversations;
    an_end_ends_no_conversation_that_started_after_it => order_of_events;
    of_many_workers_that_want_an_expired_lease_one_wins => lease_race;
    a_worker_takes_its_own_job_back_at_once => own_jobs;
    leases_of_many_jobs_are_kept_together => many_leases;
    a_worker_s_name_is_one_data_folder_s_at_a_time => names;
    an_offered_job_is_claimed_while_its_owner_keeps_the_lease => hand_over;
    a_worker_that_takes_jobs_of_a_region_is_found_while_it_lives => takers;
    an_owner_that_was_paused_changes_nothing_any_more => fencing;
    of_two_who_ask_for_something_at_once_the_second_asks_again => desires;
    a_job_whose_event_cannot_be_read_is_claimed_and_parked_like_any_other => unreadable;
    a_job_moves_forward_only_and_a_repeated_move_is_harmless => states;
    a_parked_job_goes_on_where_its_media_stands => unparking;
    a_job_without_streams_waits_and_is_resumed_or_empty => waiting;
    an_archive_never_goes_back => statuses;
    archives_are_listed_newest_first_in_pages => listing;
    what_is_left_of_a_deleted_archive_is_known_until_it_is_removed => removal;
    an_archive_of_which_media_came_late_is_made_again => revisions;
    what_is_to_be_made_of_an_archive_is_kept_with_its_entry_or_not_at_all => remakes;
    what_is_parked_twice_is_one_entry_with_a_count => parking;
    marks_of_people_who_act_at_once_all_stay => marks;
    parked_jobs_are_listed_in_pages => pages_of_parked;
    a_worker_hears_that_it_is_to_drain_until_it_is_to_resume => drains;
    text_of_any_kind_can_be_stored => hostile_text;
    [databases only]
    archives_are_counted_anew_while_others_are_written => recount;
    a_row_that_cannot_be_read_stops_no_other_and_is_parked => corrupt_rows;
}

async fn accept_at_once(backend: Backend) {
    let catalog = backend.open().await;
    let mut tasks = JoinSet::new();
    for _ in 0..20 {
        let catalog = catalog.clone();
        tasks.spawn(async move { catalog.accept(&event("s", "e"), NOW).await.unwrap() });
    }
    let all = tasks.join_all().await;
    assert_eq!(all.iter().filter(|a| matches!(a, Accepted::New(_))).count(), 1, "{all:?}");
    assert_eq!(all.iter().filter(|a| matches!(a, Accepted::Duplicate(_))).count(), 19, "{all:?}");
    let jobs = catalog.jobs(&[], 10).await.unwrap();
    assert_eq!(jobs.len(), 1);
    let job = &jobs[0];
    assert_eq!((job.state, job.origin, job.epoch), (JobState::Accepted, NOW, Epoch(0)));
    assert_eq!((job.event.text(), job.archive), ("{\"id\":\"e\"}", ArchiveId::of_job(job.job)));
    assert_eq!(catalog.job_history(job.job).await.unwrap(), [line(NOW, "accepted", "broker")]);
}

async fn sessions_at_once(backend: Backend) {
    let catalog = backend.open().await;
    let mut tasks = JoinSet::new();
    for n in 0..20 {
        let catalog = catalog.clone();
        tasks.spawn(async move { catalog.accept(&event("s", &format!("e{n}")), NOW).await.unwrap() });
    }
    let all = tasks.join_all().await;
    let new: Vec<JobId> =
        all.iter().filter_map(|a| if let Accepted::New(j) = a { Some(j.job) } else { None }).collect();
    assert_eq!(new.len(), 1, "{all:?}");
    assert!(all.iter().all(|a| match a {
        Accepted::New(job) | Accepted::SessionBusy(job) => job.job == new[0],
        Accepted::Duplicate(_) => false,
    }));
    // The same name at another application is another session.
    let other = NewJob { application: "other".parse().unwrap(), ..event("s", "x") };
    assert!(matches!(catalog.accept(&other, NOW).await.unwrap(), Accepted::New(_)));
}

async fn session_reuse(backend: Backend) {
    let catalog = backend.open().await;
    let first = accepted(&catalog, "s", "e1").await;
    let epoch = claimed(&catalog, first.job, "w", NOW).await.job.epoch;
    catalog.advance(first.job, epoch, JobState::Capturing, None, NOW).await.unwrap();
    assert!(
        matches!(catalog.accept(&event("s", "e2"), NOW).await.unwrap(), Accepted::SessionBusy(j) if j.job == first.job)
    );
    assert!(catalog.request_end(&first.application, &first.session, "session ended", NOW, NOW).await.unwrap());
    assert!(
        !catalog.request_end(&first.application, &"other".parse().unwrap(), "session ended", NOW, NOW).await.unwrap()
    );
    // A first reason stays; the owner learns it with its heartbeat.
    assert!(catalog.request_end(&first.application, &first.session, "another", NOW, NOW).await.unwrap());
    let beat = beat(&catalog, first.job, epoch, NOW).await.expect("ours");
    assert_eq!(beat.end_reason.as_deref(), Some("session ended"));
    // While it ends, a new conversation's event is neither taken for the old one's nor lost: it comes again.
    let ending = catalog.accept(&event("s", "e2"), NOW).await;
    assert!(matches!(ending, Err(CatalogError::Ending { job }) if job == first.job), "{ending:?}");
    // The old one's event is still known.
    assert!(matches!(catalog.accept(&event("s", "e1"), NOW).await.unwrap(), Accepted::Duplicate(_)));
    catalog.advance(first.job, epoch, JobState::Finalizing, Some("session ended"), NOW).await.unwrap();
    let second = accepted(&catalog, "s", "e2").await;
    assert_ne!((first.job, first.archive), (second.job, second.archive));
}

async fn conversations(backend: Backend) {
    let catalog = backend.open().await;
    let place = |router: &str, room: &str| RouterRoom::shared(router.parse().unwrap(), room.parse().unwrap());
    let row = |session: &str, place| SessionRow {
        session: session.parse().unwrap(),
        application: event("s", "e").application,
        media_mode: MediaMode::Routed,
        archive_mode: ArchiveMode::Always,
        e2ee: false,
        location: None,
        region: "eu".parse().unwrap(),
        router: Some(place),
        archive: ArchiveOptions::default(),
        conversation: 0,
        classes: std::collections::BTreeMap::new(),
        created_at: NOW,
    };
    for row in [row("s", place("j1", "r")), row("t", place("j1", "q")), row("u", place("j2", "r"))] {
        catalog.add_session(&row).await.unwrap();
    }
    let j1 = place("j1", "r").name;
    let s = catalog.session_of_room(&j1, &place("j1", "r").room).await.unwrap().unwrap();
    assert_eq!(s, row("s", place("j1", "r")));
    assert!(catalog.recorded_sessions(&j1).await.unwrap().is_empty());
    assert!(catalog.newest_job(&s.application, &s.session, "").await.unwrap().is_none());
    let first = accepted(&catalog, "s", "e1").await;
    let tagged = NewJob { tag: "x".to_owned(), ..event("t", "e1") };
    assert!(matches!(catalog.accept(&tagged, NOW).await.unwrap(), Accepted::New(_)));
    accepted(&catalog, "u", "e1").await;
    let recorded = catalog.recorded_sessions(&j1).await.unwrap();
    let recorded: std::collections::BTreeSet<_> = recorded.iter().map(|s| s.session.as_str()).collect();
    assert_eq!(recorded, ["s", "t"].into());
    let epoch = claimed(&catalog, first.job, "w", NOW).await.job.epoch;
    catalog.advance(first.job, epoch, JobState::Finalizing, Some("session ended"), NOW).await.unwrap();
    assert_eq!(catalog.recorded_sessions(&j1).await.unwrap().len(), 1);
    // One that runs goes before one that ended, whatever their clocks say.
    let Accepted::New(second) = catalog.accept(&event("s", "e2"), Wallclock(NOW.0 - 1)).await.unwrap() else {
        panic!()
    };
    let newest = async |tag: &str| catalog.newest_job(&s.application, &s.session, tag).await.unwrap().map(|j| j.job);
    assert_eq!((newest("").await, newest("x").await), (Some(second.job), None));
    let epoch = claimed(&catalog, second.job, "w", NOW).await.job.epoch;
    catalog.advance(second.job, epoch, JobState::Finalizing, Some("session ended"), NOW).await.unwrap();
    assert_eq!(newest("").await, Some(first.job));
    // Of two who begin a conversation one does.
    let (a, b) = tokio::join!(catalog.begin_conversation(&s.session, 0), catalog.begin_conversation(&s.session, 0));
    assert_ne!(a.unwrap(), b.unwrap());
}

async fn order_of_events(backend: Backend) {
    let catalog = backend.open().await;
    let first = accepted(&catalog, "s", "e1").await;
    let end = async |at: Wallclock| {
        catalog.request_end(&first.application, &first.session, "session ended", at, later(90)).await.unwrap()
    };
    // An end from before the start comes late: it is of an earlier conversation.
    assert!(!end(Wallclock(NOW.0 - 1)).await);
    // The session was used again, and that start comes before the end of the first conversation: the running job
    // has both, and the late end does not end it.
    let again = |id: &str, at: Wallclock| NewJob { started_at: at, ..event("s", id) };
    let outcome = catalog.accept(&again("e2", later(60)), later(61)).await.unwrap();
    assert!(matches!(outcome, Accepted::SessionBusy(_)), "{outcome:?}");
    assert!(!end(later(59)).await);
    // An older start that comes again changes nothing.
    catalog.accept(&again("e0", later(10)), later(62)).await.unwrap();
    assert!(!end(later(59)).await);
    assert!(end(later(80)).await);
}

async fn lease_race(backend: Backend) {
    let catalog = backend.open().await;
    let job = accepted(&catalog, "s", "e").await.job;
    let first = claimed(&catalog, job, "w0", NOW).await;
    assert_eq!((first.job.epoch, first.takeover), (Epoch(1), false));
    // Nobody takes it while the lease runs.
    assert!(catalog.claim(job, &worker("w1"), later(7), TTL).await.unwrap().is_none());
    let region = "eu".parse().unwrap();
    assert!(catalog.claimable(&worker("w1"), &region, later(7), 10).await.unwrap().is_empty());
    beat(&catalog, job, Epoch(1), later(7)).await.expect("ours");
    assert!(catalog.claim(job, &worker("w1"), later(9), TTL).await.unwrap().is_none());
    for round in 1..=3_u32 {
        let now = later(u64::from(round) * 100);
        assert_eq!(catalog.claimable(&worker("w1"), &region, now, 10).await.unwrap().len(), 1);
        let mut tasks = JoinSet::new();
        for n in 0..10 {
            let catalog = catalog.clone();
            let who = worker(&format!("w{round}-{n}"));
            tasks.spawn(async move { catalog.claim(job, &who, now, TTL).await.unwrap() });
        }
        let won: Vec<Claimed> = tasks.join_all().await.into_iter().flatten().collect();
        assert_eq!(won.len(), 1, "{won:?}");
        assert_eq!((won[0].job.epoch, won[0].takeover), (Epoch(round + 1), true));
        assert_eq!(catalog.job(job).await.unwrap().unwrap().owner, won[0].job.owner);
    }
    assert_eq!(catalog.job_history(job).await.unwrap().len(), 1 + 1 + 3);
}

async fn own_jobs(backend: Backend) {
    let catalog = backend.open().await;
    let job = accepted(&catalog, "s", "e").await.job;
    claimed(&catalog, job, "w", NOW).await;
    let region = "eu".parse().unwrap();
    let found = catalog.claimable(&worker("w"), &region, later(1), 10).await.unwrap();
    assert_eq!(found.iter().map(|j| j.job).collect::<Vec<_>>(), [job]);
    assert!(catalog.claimable(&worker("w"), &"us".parse().unwrap(), later(1), 10).await.unwrap().is_empty());
    let again = claimed(&catalog, job, "w", later(1)).await;
    assert_eq!((again.job.epoch, again.takeover), (Epoch(2), true));
    // A lease that is given back is anybody's at once.
    catalog.release(job, Epoch(2), later(2)).await.unwrap();
    assert_eq!(claimed(&catalog, job, "v", later(2)).await.job.epoch, Epoch(3));
    // Giving back what one no longer has takes it from nobody.
    catalog.release(job, Epoch(2), later(2)).await.unwrap();
    assert_eq!(catalog.job(job).await.unwrap().unwrap().owner, Some(worker("v")));
}

async fn many_leases(backend: Backend) {
    let catalog = backend.open().await;
    let mut held = Vec::new();
    // More than one statement has.
    for n in 0..250 {
        let job = accepted(&catalog, &format!("s{n}"), "e").await.job;
        let epoch = claimed(&catalog, job, "w", NOW).await.job.epoch;
        held.push(HeldLease { job, epoch });
    }
    let lost = held[120].job;
    claimed(&catalog, lost, "other", later(60)).await;
    let kept = catalog.heartbeat(&held, later(61), TTL).await.unwrap();
    assert_eq!(kept.len(), 249);
    assert!(!kept.contains_key(&lost));
    assert!(kept.values().flatten().all(|job| job.lease_expires_at == later(61) + TTL));
    assert_eq!(catalog.job(lost).await.unwrap().unwrap().lease_expires_at, later(60) + TTL);
    assert!(catalog.heartbeat(&[], later(62), TTL).await.unwrap().is_empty());
}

async fn names(backend: Backend) {
    let catalog = backend.open().await;
    let (first, second) = (InstanceId::random(), InstanceId::random());
    let who = |instance, since| WorkerInstance { worker: worker("w"), instance, since };
    let hold = async |who: WorkerInstance, now| catalog.hold_name(&who, None, now, TTL).await.unwrap();
    assert_eq!(hold(who(first, NOW), NOW).await, HELD);
    assert_eq!(hold(who(second, later(1)), later(1)).await, NameLease::Others { since: NOW });
    // Another name is free.
    let other = WorkerInstance { worker: worker("v"), ..who(second, later(1)) };
    assert_eq!(hold(other, later(1)).await, HELD);
    // The holder keeps it, and has it again at once when it starts anew.
    assert_eq!(hold(who(first, NOW), later(7)).await, HELD);
    assert_eq!(hold(who(first, later(8)), later(8)).await, HELD);
    assert_eq!(hold(who(second, later(1)), later(9)).await, NameLease::Others { since: later(8) });
    // Whoever does not keep it loses it.
    assert_eq!(hold(who(second, later(1)), later(60)).await, HELD);
    assert_eq!(hold(who(first, later(8)), later(61)).await, NameLease::Others { since: later(1) });
    // It can be given back, by the holder alone.
    catalog.release_name(&who(first, later(8))).await.unwrap();
    assert_eq!(hold(who(first, later(8)), later(61)).await, NameLease::Others { since: later(1) });
    catalog.release_name(&who(second, later(1))).await.unwrap();
    assert_eq!(hold(who(first, later(8)), later(61)).await, HELD);
}

async fn takers(backend: Backend) {
    let catalog = backend.open().await;
    let (eu, us) = ("eu".parse().unwrap(), "us".parse().unwrap());
    let hold = async |name, takes, now| {
        let who = WorkerInstance { worker: worker(name), instance: InstanceId::random(), since: now };
        assert_eq!(catalog.hold_name(&who, takes, now, TTL).await.unwrap(), HELD);
        who
    };
    let takes = async |region, but, now| catalog.has_taker(region, &worker(but), now).await.unwrap();
    hold("a", Some(&eu), NOW).await;
    hold("b", None, NOW).await;
    assert!(!takes(&eu, "a", NOW).await, "one that is about to stop, or starts, takes nothing");
    assert!(takes(&eu, "b", NOW).await);
    assert!(!takes(&us, "b", NOW).await, "another region's");
    assert!(!takes(&eu, "b", later(60)).await, "its lease has expired");
    let who = hold("c", Some(&eu), NOW).await;
    assert!(takes(&eu, "a", NOW).await);
    assert_eq!(catalog.hold_name(&who, None, NOW, TTL).await.unwrap(), HELD);
    assert!(!takes(&eu, "a", NOW).await, "it takes nothing any more");
    assert_eq!(catalog.hold_name(&who, Some(&eu), NOW, TTL).await.unwrap(), HELD);
    catalog.release_name(&who).await.unwrap();
    assert!(!takes(&eu, "a", NOW).await, "its name is given back");
}

async fn hand_over(backend: Backend) {
    let catalog = backend.open().await;
    let job = accepted(&catalog, "s", "e").await;
    let (job, whose) = (job.job, job);
    let region = "eu".parse().unwrap();
    let state = async || catalog.hand_over(job).await.unwrap().unwrap();
    let offer = async |epoch, who, now| catalog.offer_job(job, epoch, &worker(who), now).await.unwrap();
    let seen = |epoch, captured_by: Option<u32>, offered_by: Option<u32>| HandOver {
        epoch: Epoch(epoch),
        captured_by: captured_by.map(Epoch),
        offered_by: offered_by.map(Epoch),
        ends: false,
    };
    assert_eq!(state().await, seen(0, None, None));
    assert!(!offer(Epoch(0), "old", NOW).await, "nobody owns it");
    let old = claimed(&catalog, job, "old", NOW).await.job.epoch;
    catalog.report_captured(job, old).await.unwrap();
    assert!(!offer(Epoch(9), "old", NOW).await);
    assert!(catalog.claim(job, &worker("new"), NOW, TTL).await.unwrap().is_none());
    // Its owner keeps the lease, and any worker may have the job.
    assert!(offer(old, "old", NOW).await);
    assert!(offer(old, "old", NOW).await);
    assert!(beat(&catalog, job, old, later(1)).await.is_some());
    assert_eq!(state().await, seen(1, Some(1), Some(1)));
    let found = catalog.claimable(&worker("new"), &region, later(1), 9).await.unwrap();
    assert_eq!(found.iter().map(|found| found.job).collect::<Vec<_>>(), [job]);
    let new = claimed(&catalog, job, "new", later(1)).await;
    assert!(new.takeover);
    assert_eq!(state().await, seen(2, Some(1), Some(1)));
    // It is taken once, and the old owner has lost the lease.
    assert!(catalog.claim(job, &worker("other"), later(1), TTL).await.unwrap().is_none());
    assert!(catalog.claimable(&worker("other"), &region, later(1), 9).await.unwrap().is_empty());
    assert!(beat(&catalog, job, old, later(1)).await.is_none());
    catalog.report_captured(job, old).await.unwrap();
    assert_eq!(state().await, seen(2, Some(1), Some(1)));
    catalog.report_captured(job, new.job.epoch).await.unwrap();
    assert_eq!(state().await, seen(2, Some(2), Some(1)));
    // What the old owner gives back is not its any more.
    catalog.release(job, old, later(2)).await.unwrap();
    assert_eq!(beat(&catalog, job, new.job.epoch, later(2)).await.unwrap().owner, Some(worker("new")));
    // The new one stops, too. Each is waited for until it has sent all.
    assert!(offer(Epoch(2), "new", later(3)).await);
    catalog.release(job, Epoch(2), later(3)).await.unwrap();
    assert_eq!(state().await, seen(2, Some(2), Some(1)));
    catalog.clear_offers(job, Some(&worker("old")), Epoch(9)).await.unwrap();
    assert_eq!(state().await, seen(2, Some(2), Some(2)));
    let last = claimed(&catalog, job, "last", later(4)).await.job.epoch;
    assert_eq!(state().await, seen(3, Some(2), Some(2)));
    catalog.clear_offers(job, None, Epoch(1)).await.unwrap();
    assert_eq!(state().await, seen(3, Some(2), Some(2)), "only up to an epoch");
    catalog.clear_offers(job, None, Epoch(2)).await.unwrap();
    assert_eq!(state().await, seen(3, Some(2), None));
    // Somebody wants it to end.
    assert!(catalog.request_end(&whose.application, &whose.session, "session ended", NOW, later(4)).await.unwrap());
    assert_eq!(state().await, HandOver { ends: true, ..seen(3, Some(2), None) });
    // What is captured is nobody else's to take.
    assert!(offer(last, "last", later(4)).await);
    catalog.advance(job, last, JobState::Capturing, None, later(4)).await.unwrap();
    catalog.advance(job, last, JobState::Finalizing, None, later(4)).await.unwrap();
    assert!(catalog.claim(job, &worker("other"), later(4), TTL).await.unwrap().is_none());
    assert!(!offer(last, "last", later(4)).await);
}

async fn fencing(backend: Backend) {
    let catalog = backend.open().await;
    let job = accepted(&catalog, "s", "e").await;
    let old = claimed(&catalog, job.job, "old", NOW).await.job;
    catalog.advance(job.job, old.epoch, JobState::Capturing, None, NOW).await.unwrap();
    assert!(catalog.put_own_archive(&archive(&job, ArchiveStatus::Started, NOW), old.epoch).await.unwrap());
    let new = claimed(&catalog, job.job, "new", later(60)).await.job;
    assert_eq!(new.state, JobState::Capturing);
    assert!(beat(&catalog, job.job, old.epoch, later(61)).await.is_none());
    fenced(catalog.advance(job.job, old.epoch, JobState::Finalizing, Some("x"), later(61)).await);
    fenced(catalog.park_job(job.job, old.epoch, "bug", "x", later(61)).await);
    catalog.release(job.job, old.epoch, later(61)).await.unwrap();
    assert!(!catalog.put_own_archive(&archive(&job, ArchiveStatus::Failed, later(61)), old.epoch).await.unwrap());
    let found = catalog.job(job.job).await.unwrap().unwrap();
    assert_eq!((found.state, found.owner, found.epoch), (JobState::Capturing, Some(worker("new")), new.epoch));
    assert_eq!(found.lease_expires_at, later(60) + TTL);
    assert_eq!(catalog.archive(job.archive).await.unwrap().unwrap().status, ArchiveStatus::Started);
    // The new owner's writes pass.
    assert!(catalog.put_own_archive(&archive(&job, ArchiveStatus::Stopped, later(62)), new.epoch).await.unwrap());
    catalog.advance(job.job, new.epoch, JobState::Finalizing, Some("session ended"), later(62)).await.unwrap();
    // The next owner may have to know when the capture had ended, whatever is told again.
    catalog.advance(job.job, new.epoch, JobState::Finalizing, None, later(70)).await.unwrap();
    assert_eq!(catalog.job(job.job).await.unwrap().unwrap().ended_at, Some(later(62)));
    let none = JobId::of_event(&job.session, &"none".parse().unwrap());
    assert!(beat(&catalog, none, Epoch(1), NOW).await.is_none());
}

async fn desires(backend: Backend) {
    let catalog = backend.open().await;
    let job = accepted(&catalog, "s", "e").await;
    assert_eq!(job.desired, None);
    let desired = |text: &str| StoredDesired::read(text.to_owned());
    assert!(catalog.desire(&job, &desired("{\"a\":1}"), NOW).await.unwrap());
    assert!(!catalog.desire(&job, &desired("{\"b\":1}"), NOW).await.unwrap(), "it was read before the other asked");
    let epoch = claimed(&catalog, job.job, "w", NOW).await.job.epoch;
    let heard = beat(&catalog, job.job, epoch, NOW).await.expect("ours");
    assert_eq!(heard.desired.as_ref().map(StoredDesired::text), Some("{\"a\":1}"));
    assert!(catalog.desire(&heard, &desired("{\"b\":1}"), NOW).await.unwrap());
    catalog.advance(job.job, epoch, JobState::Finalizing, Some("x"), NOW).await.unwrap();
    let ended = catalog.job(job.job).await.unwrap().unwrap();
    assert!(!catalog.desire(&ended, &desired("{}"), NOW).await.unwrap(), "nothing can be asked of what has ended");
    assert_eq!(ended.desired.as_ref().map(StoredDesired::text), Some("{\"b\":1}"));
}

async fn unreadable(backend: Backend) {
    let catalog = backend.open().await;
    let broken = NewJob { event: StoredSpec::read("no JSON".to_owned()), ..event("broken", "e") };
    let Accepted::New(broken) = catalog.accept(&broken, NOW).await.unwrap() else { panic!("new") };
    let other = catalog.accept(&event("other", "e"), later(1)).await.unwrap();
    assert!(matches!(other, Accepted::New(_)), "{other:?}");
    let region = "eu".parse().unwrap();
    // It hides no other job, and its claim says why it cannot go on.
    assert_eq!(catalog.claimable(&worker("w"), &region, later(2), 10).await.unwrap().len(), 2);
    let job = claimed(&catalog, broken.job, "w", later(2)).await.job;
    assert_eq!(job.spec().unwrap_err().fault().kind, FaultKind::EventMalformed);
    assert_eq!(job.event.text(), "no JSON");
    // What is desired is read anew with each heartbeat, and asked for anew over what cannot be read.
    assert!(catalog.desire(&job, &StoredDesired::read("nor this".to_owned()), NOW).await.unwrap());
    let heard = beat(&catalog, job.job, job.epoch, later(3)).await.expect("ours");
    assert!(heard.desired.as_ref().is_some_and(|desired| desired.value().is_err()), "{heard:?}");
    assert!(!catalog.desire(&job, &StoredDesired::of(Desired::default()), NOW).await.unwrap(), "it was read before");
    assert!(catalog.desire(&heard, &StoredDesired::of(Desired::default()), NOW).await.unwrap());
    let fault = FaultKind::EventMalformed;
    catalog.park_job(job.job, job.epoch, fault.as_str(), "", later(4)).await.unwrap();
    let left = catalog.claimable(&worker("w"), &region, later(5), 10).await.unwrap();
    assert_eq!(left.iter().map(|job| job.session.as_str()).collect::<Vec<_>>(), ["other"]);
}

async fn corrupt_rows(backend: Backend) {
    let catalog = backend.open().await;
    let Backend::Sql(url) = &backend else { panic!("for databases only") };
    let (broken, held) = (accepted(&catalog, "broken", "e1").await, accepted(&catalog, "held", "e2").await);
    let waiting = accepted(&catalog, "waiting", "e3").await;
    let other = accepted(&catalog, "other", "e4").await;
    claimed(&catalog, held.job, "v", NOW).await;
    let epoch = claimed(&catalog, waiting.job, "v", NOW).await.job.epoch;
    catalog.advance(waiting.job, epoch, JobState::Capturing, None, NOW).await.unwrap();
    assert!(catalog.wait_for_stream(waiting.job, epoch, wait(later(1), NOW), NOW).await.is_ok());
    let spoil = |job: JobId| format!("UPDATE jobs SET archive_id = 'no id {job}' WHERE job_id = '{job}'");
    let mend = |job: &JobRow| format!("UPDATE jobs SET archive_id = '{}' WHERE job_id = '{}'", job.archive, job.job);
    for job in [&broken, &held, &waiting] {
        execute(url, &spoil(job.job)).await;
    }
    let region = "eu".parse().unwrap();
    let claimable = async |now| {
        let jobs = catalog.claimable(&worker("w"), &region, now, 10).await.unwrap();
        jobs.into_iter().map(|job| job.job).collect::<Vec<_>>()
    };
    assert_eq!(claimable(later(2)).await, [other.job]);
    assert!(catalog.due_looks(&region, later(2), 10).await.unwrap().is_empty());
    let listed = catalog.jobs(&[], 10).await.unwrap();
    assert_eq!(listed.iter().map(|job| job.job).collect::<Vec<_>>(), [other.job]);
    // Its owner goes on until its lease is over.
    for job in [&broken, &held, &waiting] {
        execute(url, &mend(job)).await;
        let found = catalog.job(job.job).await.unwrap().unwrap();
        let parked = (found.state == JobState::Parked, found.fault.as_deref() == Some("catalog_corrupt"));
        assert_eq!(parked, if job.job == held.job { (false, false) } else { (true, true) }, "{found:?}");
    }
    execute(url, &spoil(held.job)).await;
    let over = later(2) + TTL;
    assert_eq!(claimable(over).await, [other.job]);
    execute(url, &mend(&held)).await;
    assert_eq!(catalog.job(held.job).await.unwrap().unwrap().state, JobState::Parked);
    assert_eq!(catalog.job_history(held.job).await.unwrap().last().unwrap().what, "parked: catalog_corrupt");
    // A person sees it, and a replay takes it on.
    let entries = catalog.parked(&of_fault(FaultKind::CatalogCorrupt), 10).await.unwrap();
    assert!(entries.iter().any(|entry| entry.job == Some(held.job)), "{entries:?}");
    assert!(catalog.unpark_job(held.job, over).await.unwrap());
    let found: BTreeSet<JobId> = claimable(over).await.into_iter().collect();
    assert_eq!(found, BTreeSet::from([held.job, other.job]));
}

async fn states(backend: Backend) {
    let catalog = backend.open().await;
    let job = accepted(&catalog, "s", "e").await.job;
    let epoch = claimed(&catalog, job, "w", NOW).await.job.epoch;
    for (next, reason) in
        [(JobState::Capturing, None), (JobState::Finalizing, Some("session ended")), (JobState::Available, None)]
    {
        // The second is a try whose first answer was lost.
        catalog.advance(job, epoch, next, reason, NOW).await.unwrap();
        catalog.advance(job, epoch, next, reason, NOW).await.unwrap();
    }
    let found = catalog.job(job).await.unwrap().unwrap();
    assert_eq!((found.state, found.end_reason.as_deref()), (JobState::Available, Some("session ended")));
    for back in [JobState::Accepted, JobState::Capturing, JobState::Finalizing] {
        fenced(catalog.advance(job, epoch, back, None, NOW).await);
    }
    // What is done is not parked by a late error, not claimed, not ended.
    fenced(catalog.park_job(job, epoch, "bug", "late", NOW).await);
    assert!(catalog.claim(job, &worker("v"), later(1000), TTL).await.unwrap().is_none());
    assert!(!catalog.discard_job(job, "me", NOW).await.unwrap());
    let lines: Vec<String> = catalog.job_history(job).await.unwrap().into_iter().map(|l| l.what).collect();
    assert_eq!(lines.len(), 5, "{lines:?}");
    assert!(
        matches!(catalog.accept(&event("s", "e"), NOW).await.unwrap(), Accepted::Duplicate(j) if j.state == JobState::Available)
    );
}

/// A job whose owner left at `left`.
fn wait(look_at: Wallclock, left: Wallclock) -> Wait {
    Wait { without_stream_at: left, look_at }
}

async fn waiting(backend: Backend) {
    let catalog = backend.open().await;
    let job = accepted(&catalog, "s", "e").await;
    let region = job.region.clone();
    let epoch = claimed(&catalog, job.job, "w", NOW).await.job.epoch;
    fenced(catalog.wait_for_stream(job.job, epoch, wait(later(2), NOW), NOW).await);
    catalog.advance(job.job, epoch, JobState::Capturing, None, NOW).await.unwrap();
    fenced(catalog.wait_for_stream(job.job, Epoch(epoch.0 + 1), wait(later(2), NOW), NOW).await);
    for _ in 0..2 {
        catalog.wait_for_stream(job.job, epoch, wait(later(2), NOW), NOW).await.unwrap();
    }
    let waits = catalog.job(job.job).await.unwrap().unwrap();
    assert_eq!((waits.state, waits.owner.as_ref(), waits.lease_expires_at), (JobState::Waiting, None, later(2)));
    // Nobody claims it, and its session has no second job.
    assert!(catalog.claim(job.job, &worker("w"), later(100), TTL).await.unwrap().is_none());
    assert!(catalog.claimable(&worker("w"), &region, later(100), 10).await.unwrap().is_empty());
    let busy = catalog.accept(&event("s", "e2"), NOW).await.unwrap();
    assert!(matches!(&busy, Accepted::SessionBusy(found) if found.job == job.job), "{busy:?}");
    assert_eq!(catalog.active_jobs(&job.application, &job.session).await.unwrap().len(), 1);
    // A look is one worker's.
    assert!(catalog.due_looks(&region, later(1), 10).await.unwrap().is_empty());
    assert!(catalog.due_looks(&"elsewhere".parse().unwrap(), later(2), 10).await.unwrap().is_empty());
    let due = catalog.due_looks(&region, later(2), 10).await.unwrap();
    assert_eq!(due.len(), 1);
    let (mut tasks, row) = (JoinSet::new(), due[0].clone());
    for _ in 0..10 {
        let (catalog, row) = (catalog.clone(), row.clone());
        tasks.spawn(async move { catalog.take_look(&row, later(5)).await.unwrap() });
    }
    assert_eq!(tasks.join_all().await.into_iter().filter(|taken| *taken).count(), 1);
    assert!(catalog.due_looks(&region, later(4), 10).await.unwrap().is_empty());
    // When nobody published is known by the last look.
    assert_eq!(waits.without_stream_at, Some(NOW));
    catalog.note_no_stream(job.job, later(5)).await.unwrap();
    catalog.note_no_stream(job.job, later(4)).await.unwrap();
    // A stream comes: its media time begins then.
    assert!(catalog.resume_job(job.job, "w", None, later(7)).await.unwrap());
    assert!(!catalog.resume_job(job.job, "bridge", Some(later(8)), later(8)).await.unwrap());
    catalog.note_no_stream(job.job, later(8)).await.unwrap();
    let again = claimed(&catalog, job.job, "w", later(8)).await.job;
    assert_eq!((again.state, again.origin, again.created_at), (JobState::Accepted, later(7), NOW));
    assert_eq!(again.without_stream_at, Some(later(5)));
    // It waits again, and its session ends. An end of an earlier conversation does not end it.
    catalog.advance(job.job, again.epoch, JobState::Capturing, None, later(8)).await.unwrap();
    catalog.wait_for_stream(job.job, again.epoch, wait(later(9), later(8)), later(8)).await.unwrap();
    let earlier = Wallclock(NOW.0 - 1);
    let end = |at, now| catalog.request_end(&job.application, &job.session, "session ended", at, now);
    assert!(!end(earlier, later(9)).await.unwrap());
    assert!(end(later(9), later(10)).await.unwrap());
    assert!(!end(later(9), later(10)).await.unwrap());
    let found = catalog.job(job.job).await.unwrap().unwrap();
    assert_eq!((found.state, found.end_reason.as_deref()), (JobState::Empty, Some("session ended")));
    assert!(!catalog.resume_job(job.job, "bridge", None, later(11)).await.unwrap());
    // Who resumes a job may have looked later than the worker, or earlier.
    for (seen, noted) in [(Some(later(3)), later(3)), (Some(later(1)), later(2)), (None, later(2))] {
        let job = accepted(&catalog, &format!("seen-{}", noted.0 - seen.map_or(0, |seen| seen.0)), "e").await.job;
        let epoch = claimed(&catalog, job, "w", NOW).await.job.epoch;
        catalog.advance(job, epoch, JobState::Capturing, None, NOW).await.unwrap();
        catalog.wait_for_stream(job, epoch, wait(later(9), later(2)), later(2)).await.unwrap();
        assert!(catalog.resume_job(job, "bridge", seen, later(4)).await.unwrap());
        let resumed = catalog.job(job).await.unwrap().unwrap();
        assert_eq!(resumed.without_stream_at, Some(noted), "{seen:?}");
    }
    assert!(!catalog.end_waiting(job.job, "x", "w", later(11)).await.unwrap());
    let history = catalog.job_history(job.job).await.unwrap();
    let told: Vec<&str> = history.iter().map(|line| line.what.as_str()).collect();
    assert_eq!(told.iter().filter(|what| what.starts_with("waiting")).count(), 2, "{told:?}");
    assert_eq!(told.last(), Some(&"empty: session ended"));
    // Asked to end while its owner let it wait: it does not wait. And one that a request stops.
    for (id, stop_first) in [("first", true), ("then", false)] {
        let job = accepted(&catalog, id, "e").await.job;
        let epoch = claimed(&catalog, job, "w", NOW).await.job.epoch;
        catalog.advance(job, epoch, JobState::Capturing, None, NOW).await.unwrap();
        if stop_first {
            assert!(catalog.request_stop(job, "user initiated", NOW).await.unwrap());
        }
        catalog.wait_for_stream(job, epoch, wait(later(1), NOW), NOW).await.unwrap();
        if !stop_first {
            assert!(catalog.request_stop(job, "user initiated", NOW).await.unwrap());
        }
        let found = catalog.job(job).await.unwrap().unwrap();
        assert_eq!((found.state, found.end_reason.as_deref()), (JobState::Empty, Some("user initiated")), "{id}");
        accepted(&catalog, id, "e2").await;
    }
}

async fn unparking(backend: Backend) {
    let catalog = backend.open().await;
    for (session, reason, expected) in
        [("begun", None, JobState::Accepted), ("captured", Some("session ended"), JobState::Finalizing)]
    {
        let job = accepted(&catalog, session, "e").await.job;
        let epoch = claimed(&catalog, job, "w", NOW).await.job.epoch;
        catalog.advance(job, epoch, JobState::Capturing, None, NOW).await.unwrap();
        if reason.is_some() {
            catalog.advance(job, epoch, JobState::Finalizing, reason, NOW).await.unwrap();
        }
        for _ in 0..2 {
            catalog.park_job(job, epoch, "store_refused", "no such bucket", NOW).await.unwrap();
        }
        let parked = catalog.job(job).await.unwrap().unwrap();
        assert_eq!((parked.state, parked.fault.as_deref()), (JobState::Parked, Some("store_refused")));
        assert!(catalog.claim(job, &worker("w"), later(100), TTL).await.unwrap().is_none());
        assert!(catalog.unpark_job(job, later(1)).await.unwrap());
        assert!(!catalog.unpark_job(job, later(1)).await.unwrap());
        let again = claimed(&catalog, job, "w", later(1)).await.job;
        assert_eq!((again.state, again.epoch, again.fault), (expected, Epoch(2), None));
    }
    // Parked before it captured, although its session had ended: a replay begins anew.
    let ended = accepted(&catalog, "ended", "e").await;
    let epoch = claimed(&catalog, ended.job, "w", NOW).await.job.epoch;
    catalog.advance(ended.job, epoch, JobState::Capturing, None, NOW).await.unwrap();
    assert!(catalog.request_end(&ended.application, &ended.session, "session ended", NOW, NOW).await.unwrap());
    catalog.park_job(ended.job, epoch, "router_unavailable", "x", NOW).await.unwrap();
    assert!(catalog.unpark_job(ended.job, NOW).await.unwrap());
    let again = claimed(&catalog, ended.job, "w", later(1)).await.job;
    assert_eq!((again.state, again.end_reason), (JobState::Accepted, None));
    // A parked job whose session is used again waits for that to end.
    let old = accepted(&catalog, "again", "e1").await.job;
    let epoch = claimed(&catalog, old, "w", NOW).await.job.epoch;
    catalog.park_job(old, epoch, "bug", "x", NOW).await.unwrap();
    let new = accepted(&catalog, "again", "e2").await.job;
    let conflict = catalog.unpark_job(old, NOW).await.unwrap_err();
    assert!(matches!(conflict, CatalogError::Conflict { .. }), "{conflict:?}");
    let epoch = claimed(&catalog, new, "w", NOW).await.job.epoch;
    catalog.advance(new, epoch, JobState::Finalizing, Some("session ended"), NOW).await.unwrap();
    assert!(catalog.unpark_job(old, NOW).await.unwrap());
}

async fn statuses(backend: Backend) {
    let catalog = backend.open().await;
    let job = accepted(&catalog, "s", "e").await;
    let mut row = archive(&job, ArchiveStatus::Started, NOW);
    for (status, written) in [
        (ArchiveStatus::Started, true),
        (ArchiveStatus::Paused, true),
        (ArchiveStatus::Started, true),
        (ArchiveStatus::Stopped, true),
        (ArchiveStatus::Paused, false),
        (ArchiveStatus::Available, true),
        (ArchiveStatus::Available, true),
        (ArchiveStatus::Failed, false),
        (ArchiveStatus::Deleted, true),
        (ArchiveStatus::Available, false),
    ] {
        row.status = status;
        assert_eq!(catalog.put_archive(&row).await.unwrap(), written, "{status:?}");
    }
    row.status = ArchiveStatus::Deleted;
    assert_eq!(catalog.archive(job.archive).await.unwrap(), Some(row));
    assert_eq!(
        catalog.archive(ArchiveId::of_job(JobId::of_event(&job.session, &"no".parse().unwrap()))).await.unwrap(),
        None
    );
}

async fn listing(backend: Backend) {
    let catalog = backend.open().await;
    for n in 0..30_u64 {
        let job = accepted(&catalog, &format!("s{}", n % 3), &format!("e{n}")).await;
        let status = if n % 10 == 0 { ArchiveStatus::Deleted } else { ArchiveStatus::Available };
        let row = ArchiveRow { created_at: later(n), ..archive(&job, status, NOW) };
        assert!(catalog.put_archive(&row).await.unwrap());
        let epoch = claimed(&catalog, job.job, "w", NOW).await.job.epoch;
        catalog.advance(job.job, epoch, JobState::Finalizing, None, NOW).await.unwrap();
    }
    let page = |offset, count| ArchiveFilter { offset, count, ..ArchiveFilter::default() };
    let (first, total) = catalog.archives(&page(0, 10)).await.unwrap();
    let (second, _) = catalog.archives(&page(10, 10)).await.unwrap();
    assert_eq!((first.len(), second.len(), total), (10, 10, 27));
    let order: Vec<i64> = first.iter().chain(&second).map(|a| a.created_at.0).collect();
    assert!(order.is_sorted_by(|a, b| a > b), "{order:?}");
    assert!(catalog.archives(&page(27, 10)).await.unwrap().0.is_empty());
    let filter = ArchiveFilter {
        application: Some("app".parse().unwrap()),
        session: Some("s1".parse().unwrap()),
        status: Some(ArchiveStatus::Available),
        ..page(0, 100)
    };
    let (found, total) = catalog.archives(&filter).await.unwrap();
    assert_eq!((found.len(), total), (9, 9));
    assert!(found.iter().all(|a| a.session.as_str() == "s1"));
    let deleted = ArchiveFilter { status: Some(ArchiveStatus::Deleted), ..page(0, 100) };
    assert_eq!(catalog.archives(&deleted).await.unwrap().1, 3);
    let nobody = ArchiveFilter { application: Some("nobody".parse().unwrap()), ..page(0, 100) };
    assert_eq!(catalog.archives(&nobody).await.unwrap(), (Vec::new(), 0));
    // An application's are not counted one by one, but as they are written; deleting one twice is once.
    let of_app = ArchiveFilter { application: Some("app".parse().unwrap()), ..page(0, 100) };
    assert_eq!(catalog.archives(&of_app).await.unwrap().1, 27);
    let gone = ArchiveRow { status: ArchiveStatus::Deleted, ..found[0].clone() };
    for _ in 0..2 {
        assert!(catalog.put_archive(&gone).await.unwrap());
    }
    assert!(!catalog.add_archive(&found[1]).await.unwrap());
    let (rows, total) = catalog.archives(&of_app).await.unwrap();
    assert_eq!((rows.len(), total), (26, 26));
    catalog.recount_archives().await.unwrap();
    assert_eq!(catalog.archives(&of_app).await.unwrap().1, 26);
    assert_eq!(catalog.jobs(&[JobState::Finalizing], 7).await.unwrap().len(), 7);
    assert!(catalog.jobs(&[JobState::Accepted, JobState::Parked], 7).await.unwrap().is_empty());
}

async fn removal(backend: Backend) {
    let catalog = backend.open().await;
    let job = accepted(&catalog, "s", "e").await;
    let kept = async |complete, deleted| {
        let due = SegmentsDue { complete, incomplete: NOW, deleted };
        let rows = catalog.with_segments(&due).await.unwrap();
        rows.iter().map(|row| row.status).collect::<Vec<_>>()
    };
    assert!(catalog.put_archive(&archive(&job, ArchiveStatus::Available, NOW)).await.unwrap());
    assert_eq!(kept(NOW, later(1)).await, [], "it is kept for longer");
    assert_eq!(kept(later(1), NOW).await, [ArchiveStatus::Available]);
    // Its segments are swept; its file is there until it is deleted, and then until that is removed, too.
    catalog.segments_deleted(job.archive).await.unwrap();
    assert_eq!(kept(later(1), later(1)).await, []);
    let deleted = archive(&job, ArchiveStatus::Deleted, later(5));
    assert!(catalog.put_archive(&deleted).await.unwrap());
    assert_eq!(kept(later(9), later(5)).await, [], "whoever deletes it may be at it");
    assert_eq!(kept(NOW, later(6)).await, [ArchiveStatus::Deleted], "without the time that segments are kept for");
    catalog.segments_deleted(job.archive).await.unwrap();
    // Deleting it once more does not bring it back.
    assert!(catalog.put_archive(&deleted).await.unwrap());
    assert_eq!(kept(later(9), later(9)).await, []);
}

async fn revisions(backend: Backend) {
    let catalog = backend.open().await;
    let job = accepted(&catalog, "s", "e").await;
    let (id, region) = (job.job, job.region.clone());
    let reopen = async |since| catalog.reopen_job(id, since, "late", later(9)).await.unwrap();
    let lack = || MissingMedia {
        stream_id: StreamId::of_router(&job.session, "a"),
        kind: TrackKind::Audio,
        cause: GapCause::Worker,
        duration_ms: 5,
        details: Vec::new(),
    };
    let read = |last| LogRead::new(Epoch(2), [(Epoch(1), last)].into_iter(), 5_000);
    let made = |revision, missing, at| ArchiveRow {
        revision,
        missing: Some(missing),
        log_read: Some(read(7)),
        ..archive(&job, ArchiveStatus::Available, at)
    };
    let segments_due = async |complete, incomplete| {
        let due = SegmentsDue { complete, incomplete, deleted: NOW };
        catalog.with_segments(&due).await.unwrap().len()
    };
    let finalize = async |who: &str, row: ArchiveRow| {
        let epoch = claimed(&catalog, id, who, later(1)).await.job.epoch;
        if epoch == Epoch(1) {
            catalog.advance(id, epoch, JobState::Capturing, None, later(1)).await.unwrap();
        }
        catalog.advance(id, epoch, JobState::Finalizing, None, later(1)).await.unwrap();
        assert!(catalog.put_own_archive(&row, epoch).await.unwrap());
        // Its answer was lost.
        assert!(catalog.put_own_archive(&row, epoch).await.unwrap());
        catalog.advance(id, epoch, JobState::Available, None, later(1)).await.unwrap();
    };
    assert!(!reopen(NOW).await, "it is not made");
    finalize("first", made(1, vec![lack()], later(2))).await;
    assert_eq!(segments_due(later(3), later(2)).await, 0, "what it lacks may come yet");
    assert_eq!(segments_due(later(3), later(3)).await, 1);
    assert!(!reopen(later(3)).await, "it was made before");
    assert!(reopen(later(2)).await);
    assert!(!reopen(later(2)).await, "it is being made");
    assert_eq!(segments_due(later(3), later(3)).await, 0, "the log is being read");
    let found = catalog.claimable(&worker("second"), &region, later(9), 9).await.unwrap();
    assert_eq!(
        found.iter().map(|found| (found.state, found.owner.clone())).collect::<Vec<_>>(),
        [(JobState::Finalizing, None)]
    );
    // Developers see the first one until the second is there.
    assert_eq!(catalog.archive(job.archive).await.unwrap().unwrap().status, ArchiveStatus::Available);
    finalize("second", made(2, vec![], later(4))).await;
    let now = catalog.archive(job.archive).await.unwrap().unwrap();
    assert_eq!((now.revision, now.is_complete(), now.updated_at), (2, Some(true), later(4)));
    assert_eq!(now.log_read, Some(read(7)));
    // Whoever writes it without saying what was read changes nothing of that.
    assert!(catalog.put_archive(&ArchiveRow { log_read: None, ..now.clone() }).await.unwrap());
    assert_eq!(catalog.archive(job.archive).await.unwrap().unwrap(), now);
    assert_eq!(segments_due(later(5), NOW).await, 1);
    let filter = NoticeFilter { target: Some(NoticeTarget::Event), count: 9, ..NoticeFilter::default() };
    let (mut told, _) = catalog.notices(&filter).await.unwrap();
    told.sort_by_key(|notice| notice.number);
    let told: Vec<_> = told.iter().map(|notice| (notice.number, notice.status, notice.told.revision)).collect();
    assert_eq!(told, [(1, ArchiveStatus::Available, 1), (2, ArchiveStatus::Available, 2)]);
    // Nobody can make it again: what is there stays.
    assert!(reopen(NOW).await);
    let third = claimed(&catalog, id, "third", later(9)).await.job.epoch;
    catalog.park_job(id, third, "store_refused", "", later(9)).await.unwrap();
    assert_eq!(segments_due(later(5), later(5)).await, 0, "somebody may replay it");
    assert!(catalog.discard_job(id, "somebody", later(9)).await.unwrap());
    assert_eq!(catalog.job(id).await.unwrap().unwrap().state, JobState::Discarded);
    assert_eq!(catalog.archive(job.archive).await.unwrap().unwrap().status, ArchiveStatus::Available);
    assert!(!reopen(NOW).await, "a person gave it up");
    for unwanted in ["swept", "deleted", "made-too-often"] {
        let job = accepted(&catalog, unwanted, "e").await;
        let epoch = claimed(&catalog, job.job, "first", later(1)).await.job.epoch;
        for next in [JobState::Capturing, JobState::Finalizing, JobState::Available] {
            catalog.advance(job.job, epoch, next, None, later(1)).await.unwrap();
        }
        let row = |status, revision| ArchiveRow { revision, ..archive(&job, status, later(2)) };
        let often = if unwanted == "made-too-often" { catalog::REVISIONS_MAX } else { 1 };
        assert!(catalog.put_archive(&row(ArchiveStatus::Available, often)).await.unwrap());
        match unwanted {
            "swept" => catalog.segments_deleted(job.archive).await.unwrap(),
            "deleted" => assert!(catalog.put_archive(&row(ArchiveStatus::Deleted, 1)).await.unwrap()),
            _ => {}
        }
        assert!(!catalog.reopen_job(job.job, NOW, "late", later(9)).await.unwrap(), "{unwanted}");
    }
    // Media comes of a session in which nobody seemed to have published.
    let job = accepted(&catalog, "empty", "e").await;
    let epoch = claimed(&catalog, job.job, "first", later(1)).await.job.epoch;
    let reopen_empty = async |origin| catalog.reopen_empty_job(job.job, origin, "late", later(9)).await.unwrap();
    catalog.advance(job.job, epoch, JobState::Capturing, None, later(1)).await.unwrap();
    assert!(!reopen_empty(job.origin).await, "it is captured");
    catalog.wait_for_stream(job.job, epoch, wait(later(3), later(2)), later(2)).await.unwrap();
    assert!(!reopen_empty(job.origin).await, "it waits");
    assert!(catalog.end_waiting(job.job, "session ended", "platform", later(4)).await.unwrap());
    assert!(!reopen_empty(later(1)).await, "its media time began at another moment");
    assert!(reopen_empty(job.origin).await);
    assert!(!reopen_empty(job.origin).await, "it is finalized");
    let now = catalog.job(job.job).await.unwrap().unwrap();
    assert_eq!((now.state, now.owner, now.ended_at), (JobState::Finalizing, None, Some(later(4))));
    assert_eq!((now.origin, now.end_reason.as_deref()), (job.origin, Some("session ended")));
    assert_eq!(claimed(&catalog, job.job, "second", later(9)).await.job.epoch, Epoch(2));
    let lines = catalog.job_history(id).await.unwrap();
    let again: Vec<&str> =
        lines.iter().filter(|line| line.what.contains("late")).map(|line| line.who.as_str()).collect();
    assert_eq!(again, ["late", "late"]);
}

async fn recount(backend: Backend) {
    let catalog = backend.open().await;
    let Backend::Sql(url) = &backend else { panic!("for databases only") };
    let row = |of: &str, event: &str| {
        let session: SessionId = "s".parse().unwrap();
        let job = JobId::of_event(&session, &event.parse().unwrap());
        ArchiveRow {
            archive: ArchiveId::of_job(job),
            job,
            session,
            application: of.parse().unwrap(),
            name: None,
            status: ArchiveStatus::Available,
            reason: String::new(),
            output_mode: "composed".to_owned(),
            created_at: NOW,
            updated_at: NOW,
            duration_s: 0,
            size: 0,
            sha256: String::new(),
            object_key: None,
            revision: 1,
            log_read: None,
            missing: None,
            options: ArchiveOptions::default(),
        }
    };
    let total = async |of: &str| {
        let filter = ArchiveFilter { application: Some(of.parse().unwrap()), count: 1, ..ArchiveFilter::default() };
        catalog.archives(&filter).await.unwrap().1
    };
    let mut tasks = JoinSet::new();
    for writer in 0..4 {
        let catalog = catalog.clone();
        tasks.spawn(async move {
            for n in 0..50 {
                let row = row("busy", &format!("{writer}-{n}"));
                assert!(catalog.put_archive(&row).await.unwrap());
                if n % 2 == 0 {
                    let deleted = ArchiveRow { status: ArchiveStatus::Deleted, ..row };
                    assert!(catalog.put_archive(&deleted).await.unwrap());
                }
            }
        });
    }
    let mut recounts = 0;
    while !tasks.is_empty() {
        catalog.recount_archives().await.unwrap();
        recounts += 1;
        while let Some(ended) = tasks.try_join_next() {
            ended.unwrap();
        }
    }
    assert!(recounts > 3, "{recounts}");
    assert_eq!(total("busy").await, 100, "after {recounts} recounts");
    // What others wrote without counting it: one too many, and none where one was.
    assert!(catalog.put_archive(&row("few", "few")).await.unwrap());
    assert!(catalog.put_archive(&ArchiveRow { status: ArchiveStatus::Deleted, ..row("none", "none") }).await.unwrap());
    execute(url, "INSERT INTO archive_counts (application_id, archives) VALUES ('none', 7)").await;
    execute(url, "UPDATE archive_counts SET archives = 0 WHERE application_id = 'few'").await;
    assert_eq!((total("none").await, total("few").await), (7, 0));
    catalog.recount_archives().await.unwrap();
    assert_eq!((total("none").await, total("few").await, total("busy").await), (0, 1, 100));
}

async fn remakes(backend: Backend) {
    let catalog = backend.open().await;
    let source = accepted(&catalog, "s", "e").await;
    let row = |of: &str, n: u64| {
        let id = JobId::of_event(&source.session, &format!("{of}-{n}").parse().unwrap());
        let application = of.parse().unwrap();
        let base = archive(&source, ArchiveStatus::Stopped, NOW);
        ArchiveRow { archive: ArchiveId::of_job(id), application, ..base }
    };
    let limits = DerivedArchiveLimits { all: 25, of_one: 10 };
    let mut tasks = JoinSet::new();
    for (of, n) in (0..45).map(|n| (["a", "b", "c"][n as usize % 3], n)) {
        let (catalog, row, source) = (catalog.clone(), row(of, n), source.archive);
        tasks.spawn(async move { catalog.add_derived_archive(&row, source, "{}", limits, later(n)).await.unwrap() });
    }
    let added = tasks.join_all().await.into_iter().filter(|added| *added).count();
    assert_eq!(added, 25, "so many of all, whoever asks at the same time");
    let total = async |of: &str| {
        let filter = ArchiveFilter { application: Some(of.parse().unwrap()), count: 100, ..ArchiveFilter::default() };
        let (rows, total) = catalog.archives(&filter).await.unwrap();
        assert_eq!(i64::try_from(rows.len()).unwrap(), total);
        total
    };
    let totals = [total("a").await, total("b").await, total("c").await];
    assert!(totals.iter().all(|total| *total <= 10) && totals.iter().sum::<i64>() == 25, "{totals:?}");
    // What was refused left nothing behind, nor anything to tell.
    let (_, told) = catalog.notices(&NoticeFilter::default()).await.unwrap();
    assert_eq!(told, 25);
    // Each is taken once at a time, and every try is counted; one that was given back was none.
    let one = catalog.claim_derived_archive(later(100), later(130)).await.unwrap().expect("one waits");
    assert_eq!(one.tries, 1);
    let again = catalog.claim_derived_archive(later(100), later(130)).await.unwrap().expect("another one waits");
    assert_ne!(one.archive, again.archive);
    catalog.release_derived_archive(&one, later(101)).await.unwrap();
    let back = catalog.claim_derived_archive(later(101), later(131)).await.unwrap().expect("it is back");
    assert_eq!((back.archive, back.tries), (one.archive, 1));
    let died = catalog.claim_derived_archive(later(131), later(160)).await.unwrap().expect("its time is over");
    assert!(died.archive == back.archive || died.archive == again.archive);
    assert_eq!(died.tries, 2);
    catalog.finish_derived_archive(died.archive).await.unwrap();
    let free = ["a", "b", "c"].into_iter().zip(totals).find(|(_, total)| *total < 10).expect("25 of 30").0;
    assert!(
        catalog.add_derived_archive(&row(free, 99), source.archive, "{}", limits, NOW).await.unwrap(),
        "there is room again"
    );
}

/// Does what a person with a database client would do.
async fn execute(url: &str, sql: &str) {
    use sqlx::{Connection, Executor};
    let url = url.replace("sqlite:", "sqlite://").replace('%', "%25");
    let mut connection = sqlx::AnyConnection::connect(&url).await.unwrap();
    connection.execute(sqlx::AssertSqlSafe(sql)).await.unwrap();
    connection.close().await.unwrap();
}

async fn parking(backend: Backend) {
    let catalog = backend.open().await;
    let job = event("s", "e").job;
    let body = b"{\"broken\": \xff\x00";
    let entry = |fault, body| NewParked { job: None, fault, detail: "why", routing_key: "session.started.eu", body };
    let mut tasks = JoinSet::new();
    for n in 0..10 {
        let catalog = catalog.clone();
        tasks.spawn(async move { catalog.park(&entry(FaultKind::EventMalformed, body), later(n)).await.unwrap() });
    }
    let ids = tasks.join_all().await;
    assert!(ids.iter().all(|id| *id == ids[0]));
    let found = catalog.parked_entry(ids[0]).await.unwrap().unwrap();
    assert_eq!((found.times, found.state, found.job), (10, ParkedState::Parked, None));
    assert_eq!(found.fault, "event_malformed");
    {
        use base64::Engine;
        assert_eq!(base64::engine::general_purpose::STANDARD.decode(&found.body).unwrap(), body);
    }
    let other = NewParked { job: Some(job), ..entry(FaultKind::EventInvalid, b"x") };
    let other = catalog.park(&other, later(100)).await.unwrap();
    assert_eq!(catalog.parked(&ParkedFilter::default(), 10).await.unwrap().len(), 2);
    assert_eq!(catalog.parked(&of_fault(FaultKind::EventInvalid), 10).await.unwrap()[0].parked, other);
    assert_eq!(catalog.parked(&ParkedFilter::default(), 1).await.unwrap()[0].parked, other, "newest first");
    // Replayed, and refused again: it waits again. Its job done: it needs nobody.
    catalog.mark_parked(other, &mark(ParkedState::Replayed, "ann"), later(101)).await.unwrap();
    assert_eq!(catalog.parked(&in_state(ParkedState::Replayed), 10).await.unwrap().len(), 1);
    catalog.park(&NewParked { job: Some(job), ..entry(FaultKind::EventInvalid, b"x") }, later(102)).await.unwrap();
    assert_eq!(catalog.parked(&in_state(ParkedState::Parked), 10).await.unwrap().len(), 2);
    catalog.resolve_parked(job).await.unwrap();
    let found = catalog.parked_entry(other).await.unwrap().unwrap();
    assert_eq!(
        (found.state, found.times, found.first_at, found.last_at),
        (ParkedState::Resolved, 2, later(100), later(102))
    );
    assert_eq!(found.history, [line(later(101), "replayed", "ann")]);
    // What a person gave up stays given up, however often it comes.
    catalog.mark_parked(ids[0], &mark(ParkedState::Discarded, "bob"), later(103)).await.unwrap();
    catalog.park(&entry(FaultKind::EventMalformed, body), later(104)).await.unwrap();
    assert_eq!(catalog.parked_entry(ids[0]).await.unwrap().unwrap().state, ParkedState::Discarded);
    // An id that nobody knows is no error.
    catalog.mark_parked(ParkedId::of_content("no", b""), &mark(ParkedState::Replayed, "bob"), NOW).await.unwrap();
}

fn of_fault(fault: FaultKind) -> ParkedFilter {
    ParkedFilter { fault: Some(fault), ..ParkedFilter::default() }
}

fn in_state(state: ParkedState) -> ParkedFilter {
    ParkedFilter { state: Some(state), ..ParkedFilter::default() }
}

fn mark(state: ParkedState, who: &str) -> ParkedMark<'_> {
    ParkedMark { state, who, why: None }
}

async fn drains(backend: Backend) {
    let catalog = backend.open().await;
    let (worker, eu): (WorkerId, Region) = ("w".parse().expect("id"), "eu".parse().expect("region"));
    let who = WorkerInstance { worker: worker.clone(), instance: InstanceId::random(), since: NOW };
    assert!(!catalog.drain_worker(&worker, Some("ann"), NOW).await.unwrap(), "nobody knows it yet");
    assert_eq!(catalog.hold_name(&who, Some(&eu), NOW, TTL).await.unwrap(), HELD);
    assert!(catalog.drain_worker(&worker, Some("ann"), later(1)).await.unwrap());
    let drained = NameLease::Held { drains: true };
    assert_eq!(catalog.hold_name(&who, None, later(2), TTL).await.unwrap(), drained);
    // So it is when it has started again, until somebody tells it to resume.
    let again = WorkerInstance { since: later(3), ..who.clone() };
    assert_eq!(catalog.hold_name(&again, None, later(3), TTL).await.unwrap(), drained);
    let rows = catalog.workers().await.unwrap();
    let row = WorkerRow {
        worker: worker.clone(),
        since: later(3),
        lease_expires_at: later(3) + TTL,
        takes: None,
        drain_at: Some(later(1)),
        drain_by: Some("ann".to_owned()),
    };
    assert_eq!(rows, [row]);
    assert!(catalog.drain_worker(&worker, None, later(4)).await.unwrap());
    assert_eq!(catalog.hold_name(&again, Some(&eu), later(5), TTL).await.unwrap(), HELD);
    assert_eq!(catalog.workers().await.unwrap()[0].drain_at, None);
}

async fn pages_of_parked(backend: Backend) {
    let catalog = backend.open().await;
    let mut parked = Vec::new();
    for n in 0..7_u8 {
        let body = [n];
        let entry = NewParked { job: None, fault: FaultKind::Bug, detail: "", routing_key: "", body: &body };
        // Three moments: entries of one moment are in the order of their ids.
        let at = later(u64::from(n / 3));
        parked.push((at, catalog.park(&entry, at).await.unwrap()));
    }
    parked.sort_unstable();
    parked.reverse();
    let (mut seen, mut filter) = (Vec::new(), ParkedFilter::default());
    loop {
        let page = catalog.parked(&filter, 2).await.unwrap();
        let Some(last) = page.last() else { break };
        filter.behind = Some(last.place());
        seen.extend(page.iter().map(|row| (row.last_at, row.parked)));
    }
    assert_eq!(seen, parked);
    let count = async |since, before| {
        let filter = ParkedFilter { since, before, ..ParkedFilter::default() };
        catalog.parked(&filter, 10).await.unwrap().len()
    };
    assert_eq!(count(Some(later(1)), None).await, 4);
    assert_eq!(count(None, Some(later(1))).await, 3);
    assert_eq!(count(Some(later(1)), Some(later(2))).await, 3);
    let why = ParkedMark { state: ParkedState::Replayed, who: "ann", why: Some("the router is back") };
    catalog.mark_parked(parked[0].1, &why, later(9)).await.unwrap();
    let found = catalog.parked_entry(parked[0].1).await.unwrap().unwrap();
    assert_eq!(found.history, [line(later(9), "replayed: the router is back", "ann")]);
}

async fn marks(backend: Backend) {
    let catalog = backend.open().await;
    let entry = NewParked { job: None, fault: FaultKind::Bug, detail: "", routing_key: "", body: b"x" };
    let id = catalog.park(&entry, NOW).await.unwrap();
    let mut tasks = JoinSet::new();
    for n in 0..20 {
        let catalog = catalog.clone();
        tasks.spawn(async move {
            catalog.mark_parked(id, &mark(ParkedState::Replayed, &format!("person {n}")), NOW).await.unwrap();
        });
    }
    tasks.join_all().await;
    assert_eq!(catalog.parked_entry(id).await.unwrap().unwrap().history.len(), 20);
}

async fn hostile_text(backend: Backend) {
    let catalog = backend.open().await;
    let text = "a\0b ' \" ; DROP TABLE jobs; -- \u{1F600} $1 ?1 %s \\";
    let stored = text.replace('\0', "\u{fffd}");
    let new = NewJob { event: StoredSpec::read(text.to_owned()), ..event("s", "e") };
    let Accepted::New(job) = catalog.accept(&new, NOW).await.unwrap() else { panic!("new") };
    assert_eq!(job.event.text(), stored);
    let row = ArchiveRow {
        name: Some(text.to_owned()),
        reason: text.to_owned(),
        ..archive(&job, ArchiveStatus::Started, NOW)
    };
    assert!(catalog.put_archive(&row).await.unwrap());
    assert_eq!(catalog.archive(job.archive).await.unwrap().unwrap().name, Some(stored.clone()));
    let entry = NewParked { job: None, fault: FaultKind::Bug, detail: text, routing_key: text, body: &[0, 255, 0] };
    let id = catalog.park(&entry, NOW).await.unwrap();
    catalog.mark_parked(id, &mark(ParkedState::Discarded, text), NOW).await.unwrap();
    let found = catalog.parked_entry(id).await.unwrap().unwrap();
    assert_eq!((found.detail, found.history[0].who.clone()), (stored.clone(), stored.clone()));
    catalog.request_end(&job.application, &job.session, text, NOW, NOW).await.unwrap();
    let epoch = claimed(&catalog, job.job, "w", NOW).await.job.epoch;
    catalog.park_job(job.job, epoch, text, text, NOW).await.unwrap();
    assert_eq!(catalog.job(job.job).await.unwrap().unwrap().detail, Some(stored));
    // A long one too: an event may have 64 KiB and more.
    let long = "x".repeat(1 << 20);
    catalog.note(job.job, &long, "w", later(1)).await.unwrap();
    assert_eq!(catalog.job_history(job.job).await.unwrap().last().unwrap().what.len(), 1 << 20);
}

async fn migrations(url: String) {
    let mut tasks = JoinSet::new();
    for _ in 0..8 {
        let url = url.clone();
        tasks.spawn(async move { catalog::open(&url).await.expect("opens") });
    }
    let all = tasks.join_all().await;
    let job = accepted(&all[0], "s", "e").await.job;
    for catalog in &all {
        assert!(catalog.job(job).await.unwrap().is_some());
        catalog.probe().await.unwrap();
    }
    // And again, over tables with something in them.
    assert!(catalog::open(&url).await.unwrap().job(job).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_sqlite_are_made_by_many_at_once_and_only_once() {
    let dir = tempfile::tempdir().unwrap();
    migrations(format!("sqlite:{}", dir.path().join("catalog.sqlite").display())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_postgres_are_made_by_many_at_once_and_only_once() {
    migrations(databases::empty().url()).await;
}

/// Two processes on one SQLite file (a worker and an operator's command): each waits for the other.
#[tokio::test(flavor = "multi_thread")]
async fn two_users_of_one_sqlite_file_wait_for_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", dir.path().join("catalog.sqlite").display());
    let (one, two) = (catalog::open(&url).await.unwrap(), catalog::open(&url).await.unwrap());
    let mut tasks = JoinSet::new();
    for (who, catalog) in [("a", one.clone()), ("b", two.clone())] {
        tasks.spawn(async move {
            for n in 0..50 {
                let job = accepted(&catalog, &format!("{who}{n}"), "e").await.job;
                claimed(&catalog, job, who, NOW).await;
            }
        });
    }
    tasks.join_all().await;
    assert_eq!(one.jobs(&[], 1000).await.unwrap().len(), 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_database_is_not_taken_for_one_that_is_away() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("catalog.sqlite");
    std::fs::write(&path, "this is no database, and it is long enough to be looked at".repeat(100)).unwrap();
    let error = catalog::open(&format!("sqlite:{}", path.display())).await.unwrap_err();
    assert_eq!(error.fault().kind, FaultKind::CatalogCorrupt, "{error:?}");
    let error = catalog::open("sqlite:/proc/nowhere/catalog.sqlite").await.unwrap_err();
    assert_eq!(error.fault().kind, FaultKind::CatalogUnavailable, "{error:?}");
    let error = catalog::open("postgres://archiver@127.0.0.1:1/none").await.unwrap_err();
    assert_eq!(error.fault().kind, FaultKind::CatalogUnavailable, "{error:?}");
}

/// What was captured waits for the catalog: it must be told that it is away, and the same handle must work again.
#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_stops_is_unavailable_and_then_works_again() {
    let mut server = Postgres::start().expect("postgres");
    let catalog = catalog::open(&server.url()).await.unwrap();
    let job = accepted(&catalog, "s", "e").await.job;
    let epoch = claimed(&catalog, job, "w", NOW).await.job.epoch;
    server.stop();
    let stopped = Instant::now();
    while stopped.elapsed() < Duration::from_secs(5) {
        let error = catalog.heartbeat(&[HeldLease { job, epoch }], NOW, TTL).await.expect_err("it is stopped");
        let fault = error.fault();
        assert_eq!((fault.kind, fault.retry), (FaultKind::CatalogUnavailable, Retry::Backoff), "{error:?}");
    }
    server.restart().expect("starts again");
    let beat = beat(&catalog, job, epoch, later(1)).await.expect("the same handle works");
    assert_eq!(beat.lease_expires_at, later(1) + TTL);
    assert!(matches!(catalog.accept(&event("s", "e"), NOW).await.unwrap(), Accepted::Duplicate(_)));
}

/// A host that vanished: no reset, no answer. Calls end in time, and no connection stays hung.
#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_does_not_answer_is_given_up_in_time() {
    let database = databases::with_tables();
    let proxy = TcpProxy::start([127, 0, 0, 1].into(), database.address()).expect("proxy");
    let url = database.url().replace(&database.address().to_string(), &proxy.address().to_string());
    let catalog = catalog::open(&url).await.unwrap();
    let job = accepted(&catalog, "s", "e").await.job;
    proxy.set(TcpMode::BlackHole);
    let began = Instant::now();
    // More than there are connections.
    let mut tasks = JoinSet::new();
    for _ in 0..12 {
        let catalog = Arc::new(catalog.clone());
        tasks.spawn(async move { catalog.job(job).await.map(drop) });
    }
    for result in tasks.join_all().await {
        assert!(matches!(result, Err(CatalogError::Unavailable { .. })), "{result:?}");
    }
    assert!(began.elapsed() < Duration::from_secs(25), "{:?}", began.elapsed());
    proxy.set(TcpMode::Forward);
    wait_for("the catalog is back", || async { catalog.job(job).await.ok().flatten() }).await;
}
