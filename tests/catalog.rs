//! One suite over both databases: SQLite in a file, and a private PostgreSQL.
#![allow(missing_docs)]

use std::time::Duration;

use archiver::catalog::{
    Accepted, ArchiveFilter, ArchiveRow, ArchiveStatus, Catalog, CatalogError, JobState, NewJob, NewParked, ParkedState,
};
use archiver::fault::FaultKind;
use archiver::ids::{ArchiveId, Epoch, EventId, JobId, SessionId, WorkerId};
use archiver::time::Wallclock;
use archiver_testkit::postgres::Postgres;

const LEASE: Duration = Duration::from_secs(8);

const fn at(seconds: i64) -> Wallclock {
    Wallclock(1_795_000_000_000_000 + seconds * 1_000_000)
}

fn new_job(session: &str, event: &str) -> NewJob {
    let session: SessionId = session.parse().expect("id");
    let event: EventId = event.parse().expect("id");
    NewJob {
        job: JobId::of_event(&session, &event),
        session,
        application: "app".parse().expect("id"),
        region: "eu".parse().expect("id"),
        event: "{}".to_owned(),
    }
}

fn worker(name: &str) -> WorkerId {
    name.parse().expect("id")
}

async fn one_job_a_conversation(catalog: &Catalog) {
    let tasks = (0..20).map(|_| {
        let (catalog, job) = (catalog.clone(), new_job("s1", "e1"));
        async move { catalog.accept(&job, at(0)).await.expect("accept") }
    });
    let accepted = futures_util::future::join_all(tasks).await;
    assert_eq!(accepted.iter().filter(|a| matches!(a, Accepted::New(_))).count(), 1);
    assert!(matches!(catalog.accept(&new_job("s1", "e2"), at(1)).await, Ok(Accepted::SessionBusy(_))));
    let job = new_job("s1", "e1").job;
    let claimed = catalog.claim(job, &worker("w1"), at(1), LEASE).await.expect("claim").expect("ours");
    assert_eq!((claimed.job.epoch, claimed.takeover), (Epoch(1), false));
    for state in [JobState::Capturing, JobState::Capturing, JobState::Finalizing, JobState::Available] {
        catalog.advance(job, Epoch(1), state, Some("session ended"), at(2)).await.expect("advance");
    }
    assert!(catalog.advance(job, Epoch(1), JobState::Capturing, None, at(3)).await.is_err(), "states never go back");
    // The session is used again: a new job. The old event again: nothing.
    assert!(matches!(catalog.accept(&new_job("s1", "e3"), at(4)).await, Ok(Accepted::New(_))));
    assert!(matches!(catalog.accept(&new_job("s1", "e1"), at(5)).await, Ok(Accepted::Duplicate(_))));
}

async fn leases(catalog: &Catalog) {
    let job = new_job("s2", "e1");
    catalog.accept(&job, at(0)).await.expect("accept");
    let job = job.job;
    catalog.claim(job, &worker("w1"), at(0), LEASE).await.expect("claim").expect("ours");
    assert!(catalog.claim(job, &worker("w2"), at(7), LEASE).await.expect("claim").is_none(), "the lease holds");
    let again =
        catalog.claim(job, &worker("w1"), at(1), LEASE).await.expect("claim").expect("a restart takes its own back");
    assert_eq!((again.job.epoch, again.takeover), (Epoch(2), true));
    catalog.heartbeat(job, Epoch(2), at(5), LEASE).await.expect("heartbeat");
    assert!(catalog.claim(job, &worker("w2"), at(12), LEASE).await.expect("claim").is_none(), "it was kept");
    let claims = (0..8).map(|n| {
        let catalog = catalog.clone();
        async move { catalog.claim(job, &worker(&format!("x{n}")), at(14), LEASE).await.expect("claim") }
    });
    let winners = futures_util::future::join_all(claims).await.into_iter().flatten().count();
    assert_eq!(winners, 1, "an expired lease has one next owner");
    // The old owner, paused until now, changes nothing any more.
    for refused in [
        catalog.heartbeat(job, Epoch(2), at(15), LEASE).await.map(drop),
        catalog.advance(job, Epoch(2), JobState::Finalizing, None, at(15)).await,
        catalog.park_job(job, Epoch(2), "bug", "x", at(15)).await,
    ] {
        assert!(matches!(refused, Err(CatalogError::Fenced { .. })), "{refused:?}");
    }
    assert!(
        catalog
            .request_end(&"app".parse().expect("id"), &"s2".parse().expect("id"), "session ended", at(16))
            .await
            .expect("end")
    );
    let row = catalog.heartbeat(job, Epoch(3), at(16), LEASE).await.expect("heartbeat");
    assert_eq!(row.end_reason.as_deref(), Some("session ended"));
    catalog.release(job, Epoch(3), at(17)).await.expect("release");
    let claimable = catalog.claimable(&worker("w9"), &"eu".parse().expect("id"), at(17), 10).await.expect("claimable");
    assert!(claimable.iter().any(|j| j.job == job));
}

async fn parked(catalog: &Catalog) {
    let job = new_job("s3", "e1");
    catalog.accept(&job, at(0)).await.expect("accept");
    catalog.claim(job.job, &worker("w1"), at(0), LEASE).await.expect("claim").expect("ours");
    catalog.park_job(job.job, Epoch(1), "archive_invalid", "x", at(1)).await.expect("park");
    let entry = NewParked {
        job: Some(job.job),
        fault: FaultKind::ArchiveInvalid,
        detail: "x",
        routing_key: "session.started.eu",
        body: b"{}",
    };
    let id = catalog.park(&entry, at(1)).await.expect("park");
    assert_eq!(catalog.park(&entry, at(2)).await.expect("park again"), id);
    let row = catalog.parked_entry(id).await.expect("find").expect("there");
    assert_eq!((row.times, row.state, row.first_at, row.last_at), (2, ParkedState::Parked, at(1), at(2)));
    catalog.mark_parked(id, ParkedState::Replayed, "me", at(3)).await.expect("mark");
    assert!(catalog.unpark_job(job.job, at(3)).await.expect("unpark"));
    assert!(!catalog.unpark_job(job.job, at(3)).await.expect("unpark again"));
    catalog.resolve_parked(job.job).await.expect("resolve");
    let row = catalog.parked_entry(id).await.expect("find").expect("there");
    assert_eq!((row.state, row.history.len()), (ParkedState::Resolved, 1));
    assert!(catalog.job_history(job.job).await.expect("history").iter().any(|(_, what, _)| what == "replayed"));
}

async fn archives(catalog: &Catalog) {
    for n in 0..30_u32 {
        let session: SessionId = format!("list-{}", n % 3).parse().expect("id");
        let job = JobId::of_event(&session, &format!("e{n}").parse().expect("id"));
        let row = ArchiveRow {
            archive: ArchiveId::of_job(job),
            job,
            session,
            application: "app-list".parse().expect("id"),
            name: None,
            status: ArchiveStatus::Started,
            reason: String::new(),
            output_mode: "individual".to_owned(),
            created_at: at(i64::from(n)),
            updated_at: at(i64::from(n)),
            duration_s: 0,
            size: 0,
            sha256: String::new(),
            object_key: None,
        };
        assert!(catalog.put_archive(&row).await.expect("put"));
        let available = ArchiveRow { status: ArchiveStatus::Available, size: 1 << 40, ..row.clone() };
        assert!(catalog.put_archive(&available).await.expect("put"));
        assert!(!catalog.put_archive(&row).await.expect("put"), "a status never goes back");
    }
    let filter = ArchiveFilter {
        application: Some("app-list".parse().expect("id")),
        count: 4,
        offset: 1,
        ..ArchiveFilter::default()
    };
    let (rows, total) = catalog.archives(&filter).await.expect("list");
    assert_eq!((rows.len(), total, rows[0].created_at, rows[0].size), (4, 30, at(28), 1 << 40), "newest first");
    let filter = ArchiveFilter { session: Some("list-1".parse().expect("id")), ..filter };
    assert_eq!(catalog.archives(&filter).await.expect("list").1, 10);
}

async fn suite(catalog: &Catalog) {
    one_job_a_conversation(catalog).await;
    leases(catalog).await;
    parked(catalog).await;
    archives(catalog).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_keeps_the_contract() {
    let dir = tempfile::tempdir().expect("dir");
    let url = format!("sqlite:{}", dir.path().join("catalog.sqlite").display());
    let catalog = Catalog::open(&url).await.expect("open");
    suite(&catalog).await;
    drop(catalog);
    // What was written is there after a restart, and the tables are not made again.
    let again = Catalog::open(&url).await.expect("open");
    assert!(again.job(new_job("s1", "e1").job).await.expect("job").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_keeps_the_contract_and_comes_back() {
    let mut postgres = tokio::task::spawn_blocking(Postgres::start).await.expect("task").expect("postgres");
    let url = postgres.url();
    // A fleet that starts at once makes the tables once.
    let opened = futures_util::future::join_all((0..4).map(|_| Catalog::open(&url))).await;
    let catalog = opened.into_iter().collect::<Result<Vec<_>, _>>().expect("open").remove(0);
    suite(&catalog).await;
    postgres.stop();
    let away = catalog.job(new_job("s1", "e1").job).await;
    assert!(matches!(away, Err(CatalogError::Unavailable { .. })), "{away:?}");
    postgres.restart().expect("postgres");
    archiver_testkit::wait::wait_for("the catalog", Duration::from_secs(20), || async {
        catalog.job(new_job("s1", "e1").job).await.ok().flatten()
    })
    .await;
}
