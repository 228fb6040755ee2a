//! Callbacks and events of archives' changes: real receivers, databases and broker, and what they may do.

use crate::BINARY;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::catalogs::{Backend, on_each_catalog};
use ArchiveStatus::{Available, Failed, Paused, Started, Stopped};
use archiver::broker::{Broker, BrokerConfig, RabbitBroker};
use archiver::catalog::{
    self, ApplicationKind, ApplicationRow, ArchiveRow, ArchiveStatus, Claim, Disposition, NewJob, NoticeFilter,
    NoticeRow, NoticeState, NoticeTarget, SharedCatalog, StoredSpec,
};
use archiver::config::CallbacksSection;
use archiver::model::archive_options::ArchiveOptions;
use archiver::model::ids::{ArchiveId, Epoch, EventId, JobId, NoticeId, SessionId};
use archiver::model::network::Network;
use archiver::model::time::Wallclock;
use archiver::notify::url_policy::check_url_with;
use archiver::notify::webhook::NOTICE_ID;
use archiver::notify::{self, Dispatcher, Resolver, Sender, SystemResolver};
use archiver_testkit::net::{free_port, listen};
use archiver_testkit::rabbitmq::RabbitMq;
use archiver_testkit::wait::wait_for;
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const NOW: Wallclock = Wallclock(1_800_000_000_000_000);
const SECRET: &str = "a secret of callbacks, 32 bytes long";
const LOOPBACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
/// Long enough for something to happen that must not.
const A_WHILE: Duration = Duration::from_millis(400);

fn later(seconds: u64) -> Wallclock {
    NOW + Duration::from_secs(seconds)
}

fn loopback() -> Vec<Network> {
    vec!["127.0.0.0/8".parse().unwrap()]
}

fn application(name: &str, url: Option<&str>) -> ApplicationRow {
    ApplicationRow {
        application: name.parse().unwrap(),
        kind: ApplicationKind::Unified,
        name: name.to_owned(),
        keys: Vec::new(),
        callback_url: url.map(str::to_owned),
        callback_secret: Some(SECRET.to_owned().into()),
        created_at: NOW,
        updated_at: NOW,
    }
}

fn archive(application: &str, session: &str, status: ArchiveStatus, at: Wallclock) -> ArchiveRow {
    let session: SessionId = session.parse().unwrap();
    let event: EventId = "e".parse().unwrap();
    let job = JobId::of_event(&session, &event);
    ArchiveRow {
        archive: ArchiveId::of_job(job),
        job,
        session,
        application: application.parse().unwrap(),
        name: Some("Team Ümlaut".to_owned()),
        status,
        reason: String::new(),
        output_mode: "composed".to_owned(),
        created_at: NOW,
        updated_at: at,
        duration_s: 0,
        size: 1 << 40,
        sha256: String::new(),
        object_key: None,
        revision: 1,
        log_read: None,
        missing: None,
        options: ArchiveOptions::default(),
    }
}

fn rendered(archive: &ArchiveRow, application: &ApplicationRow) -> Value {
    json!({ "id": archive.archive, "status": archive.status, "applicationId": application.application, "event": "archive" })
}

async fn notices(catalog: &SharedCatalog, filter: NoticeFilter) -> Vec<NoticeRow> {
    let (mut rows, total) = catalog.notices(&NoticeFilter { count: 10_000, ..filter }).await.unwrap();
    // Counted a moment later: it may have become one more.
    assert!(i64::try_from(rows.len()).unwrap() <= total);
    rows.sort_by_key(|row| (row.archive, row.target, row.number));
    rows
}

async fn callbacks(catalog: &SharedCatalog) -> Vec<NoticeRow> {
    notices(catalog, NoticeFilter { target: Some(NoticeTarget::Callback), ..NoticeFilter::default() }).await
}

/// What a receiver does.
#[derive(Debug, Clone)]
enum Does {
    Answer(u16),
    Hang,
    Redirect(String),
}

#[derive(Debug, Clone)]
struct Got {
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
}

impl Got {
    fn id(&self) -> String {
        self.headers[NOTICE_ID].to_str().unwrap().to_owned()
    }

    fn status(&self) -> String {
        serde_json::from_slice::<Value>(&self.body).unwrap()["status"].as_str().unwrap().to_owned()
    }
}

/// A receiver of callbacks.
#[derive(Clone)]
struct Receiver {
    address: SocketAddr,
    does: Arc<Mutex<Does>>,
    got: Arc<Mutex<Vec<Got>>>,
    stop: CancellationToken,
}

impl Receiver {
    async fn start(does: Does) -> Self {
        Self::start_at(SocketAddr::new(LOOPBACK, free_port(LOOPBACK).unwrap()), does).await
    }

    async fn start_at(address: SocketAddr, does: Does) -> Self {
        let receiver =
            Self { address, does: Arc::new(Mutex::new(does)), got: Arc::default(), stop: CancellationToken::new() };
        let listener = listen(address).await.unwrap();
        let app = Router::new().fallback(Self::receive).with_state(receiver.clone());
        let stop = receiver.stop.clone();
        tokio::spawn(async move {
            let server = axum::serve(listener, app);
            tokio::select! { _ = server => {} () = stop.cancelled() => {} }
        });
        receiver
    }

    async fn receive(State(receiver): State<Self>, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
        receiver.got.lock().unwrap().push(Got { uri, headers, body });
        let does = receiver.does.lock().unwrap().clone();
        match does {
            Does::Answer(status) => StatusCode::from_u16(status).unwrap().into_response(),
            Does::Hang => std::future::pending().await,
            Does::Redirect(to) => (StatusCode::TEMPORARY_REDIRECT, [("location", to)]).into_response(),
        }
    }

    fn url(&self) -> String {
        format!("http://{}/callback?key=hidden-in-the-query", self.address)
    }

    fn got(&self) -> Vec<Got> {
        self.got.lock().unwrap().clone()
    }

    fn does(&self, does: Does) {
        *self.does.lock().unwrap() = does;
    }

    async fn got_all(&self, count: usize) -> Vec<Got> {
        wait_for(&format!("{count} callbacks"), || async { (self.got().len() >= count).then(|| self.got()) }).await
    }
}

/// The loops, with a clock that the test sets.
struct Teller {
    clock: Arc<AtomicI64>,
    cancel: CancellationToken,
    tasks: TaskTracker,
}

impl Teller {
    fn start(catalog: &SharedCatalog, change: impl FnOnce(&mut Dispatcher)) -> Self {
        let clock = Arc::new(AtomicI64::new(NOW.0));
        let section = CallbacksSection::default();
        let mut dispatcher = Dispatcher::new(catalog.clone(), &section, None, Arc::new(rendered));
        dispatcher.sender = Sender::new(loopback(), Duration::from_secs(2), Arc::new(SystemResolver));
        dispatcher.timeout = Duration::from_secs(2);
        dispatcher.poll = Duration::from_millis(10);
        let of_test = Arc::clone(&clock);
        dispatcher.clock = Arc::new(move || Wallclock(of_test.load(Ordering::SeqCst)));
        change(&mut dispatcher);
        let teller = Self { clock, cancel: CancellationToken::new(), tasks: TaskTracker::new() };
        teller.tasks.spawn(notify::run(dispatcher, teller.cancel.clone()));
        teller.tasks.close();
        teller
    }

    fn set(&self, now: Wallclock) {
        self.clock.store(now.0, Ordering::SeqCst);
    }

    async fn stop(self) {
        self.cancel.cancel();
        tokio::time::timeout(Duration::from_secs(8), self.tasks.wait()).await.expect("it stops in time");
    }
}

async fn sqlite() -> (tempfile::TempDir, SharedCatalog) {
    let dir = tempfile::tempdir().unwrap();
    let catalog = catalog::open(&format!("sqlite:{}", dir.path().join("catalog.sqlite").display())).await.unwrap();
    (dir, catalog)
}

on_each_catalog! {
    a_notice_is_owed_when_the_status_changes_and_only_then => written;
    the_oldest_of_each_archive_is_taken_by_one_of_many => taken;
    what_became_of_a_notice_is_noted_and_it_can_be_sent_again => settled;
    two_senders_send_each_callback_once_and_in_order => two_senders;
}

async fn written(backend: Backend) {
    let catalog = backend.open().await;
    let put = async |status, at| catalog.put_archive(&archive("app", "s", status, at)).await.unwrap();
    let owed = async || {
        let rows = notices(&catalog, NoticeFilter::default()).await;
        let short: Vec<_> = rows.iter().map(|r| (r.target.as_str(), r.number, r.status.as_str())).collect();
        assert!(rows.iter().all(|r| r.told.status == r.status && r.state == NoticeState::Waiting));
        assert!(rows.iter().all(|r| r.told.name.as_deref() == Some("Team Ümlaut") && r.told.created_at == NOW));
        short.into_iter().map(|(t, n, s)| format!("{t} {n} {s}")).collect::<Vec<_>>()
    };
    // Nobody to call.
    assert!(put(Started, NOW).await);
    assert!(put(Started, later(1)).await);
    assert_eq!(owed().await, ["event 1 started"]);
    catalog.add_application(&application("app", Some("https://example.com/x"))).await.unwrap();
    assert!(put(Paused, later(2)).await);
    assert!(put(Started, later(3)).await);
    assert!(put(Available, later(4)).await);
    let all = [
        "callback 2 paused",
        "callback 3 started",
        "callback 4 available",
        "event 1 started",
        "event 2 paused",
        "event 3 started",
        "event 4 available",
    ];
    assert_eq!(owed().await, all);
    // Refused: a status never goes back, nor does somebody else's epoch count.
    assert!(!put(Failed, later(5)).await);
    assert!(!catalog.put_own_archive(&archive("app", "other", Started, later(6)), Epoch(1)).await.unwrap());
    assert_eq!(owed().await, all);
    // As the archive was then.
    let rows = callbacks(&catalog).await;
    assert_eq!(rows[0].told, archive("app", "s", Paused, later(2)));
    assert_eq!(rows[0].notice, NoticeId::of(rows[0].archive, "callback", 2));
    // An empty address is none.
    catalog.add_application(&application("mute", Some(""))).await.unwrap();
    catalog.put_archive(&archive("mute", "m", Started, NOW)).await.unwrap();
    assert_eq!(callbacks(&catalog).await.len(), 3);
    // Two that write the same change at once owe one notice.
    let at_once = (0..8).map(|_| {
        let catalog = catalog.clone();
        async move { catalog.put_archive(&archive("app", "race", Started, NOW)).await.unwrap() }
    });
    futures_util::future::join_all(at_once).await;
    let race = archive("app", "race", Started, NOW).archive;
    assert_eq!(notices(&catalog, NoticeFilter { archive: Some(race), ..NoticeFilter::default() }).await.len(), 2);
}

fn claim(count: u32) -> Claim<'static> {
    let lease = Duration::from_secs(30);
    Claim { target: NoticeTarget::Callback, count, of_one: count, without: &[], lease }
}

async fn taken(backend: Backend) {
    let catalog = backend.open().await;
    for app in ["a", "b"] {
        catalog.add_application(&application(app, Some("https://example.com/x"))).await.unwrap();
    }
    for n in 0..20 {
        let app = if n < 15 { "a" } else { "b" };
        for (status, at) in [(Started, NOW), (Stopped, later(1)), (Available, later(2))] {
            catalog.put_archive(&archive(app, &format!("s{n}"), status, at)).await.unwrap();
        }
    }
    // Bounded, and of one application no more than its share.
    let some = catalog.claim_notices(&Claim { of_one: 3, ..claim(100) }, later(5)).await.unwrap();
    let of = |app: &str| some.iter().filter(|n| n.application.as_str() == app).count();
    assert_eq!((some.len(), of("a"), of("b")), (6, 3, 3));
    let busy = ["a".parse().unwrap()];
    let others = catalog.claim_notices(&Claim { without: &busy, ..claim(100) }, later(5)).await.unwrap();
    assert!(others.len() == 2 && others.iter().all(|n| n.application.as_str() == "b"), "{others:?}");
    // Many at once take each of the rest once, and none that has an older one before it.
    let claims = (0..8).map(|_| {
        let catalog = catalog.clone();
        tokio::spawn(async move {
            let mut mine = Vec::new();
            for _ in 0..6 {
                mine.extend(catalog.claim_notices(&claim(3), later(5)).await.unwrap());
            }
            mine
        })
    });
    let rest: Vec<NoticeRow> =
        futures_util::future::join_all(claims).await.into_iter().flat_map(Result::unwrap).collect();
    let archives: BTreeSet<ArchiveId> = rest.iter().map(|n| n.archive).collect();
    assert_eq!((rest.len(), archives.len()), (12, 12), "{rest:?}");
    assert!(rest.iter().chain(&some).all(|n| n.number == 1 && n.first_at == Some(later(5))));
    // Nobody has them while they are leased; then anybody.
    assert!(catalog.claim_notices(&claim(100), later(34)).await.unwrap().is_empty());
    assert_eq!(catalog.claim_notices(&claim(100), later(35)).await.unwrap().len(), 20);
}

async fn settled(backend: Backend) {
    let catalog = backend.open().await;
    catalog.add_application(&application("a", Some("https://example.com/x"))).await.unwrap();
    for (status, at) in [(Started, NOW), (Stopped, later(1)), (Available, later(2))] {
        catalog.put_archive(&archive("a", "s", status, at)).await.unwrap();
    }
    let take = async |at| {
        let taken = catalog.claim_notices(&claim(10), at).await.unwrap();
        assert!(taken.len() <= 1, "{taken:?}");
        taken.into_iter().next()
    };
    let first = take(later(10)).await.unwrap();
    assert!(catalog.settle_notice(&first, Disposition::Again(later(15)), Some("500"), later(11)).await.unwrap());
    // Our lease is over: nothing more is noted with it, but that it was delivered.
    assert!(!catalog.settle_notice(&first, Disposition::Undelivered, None, later(11)).await.unwrap());
    assert!(take(later(14)).await.is_none(), "the others wait for it");
    let again = take(later(15)).await.unwrap();
    assert_eq!((again.number, again.failures, again.first_at), (1, 1, Some(later(10))));
    assert_eq!((again.detail.as_deref(), again.notice), (Some("500"), first.notice));
    assert!(catalog.settle_notice(&again, Disposition::Undelivered, Some("given up"), later(16)).await.unwrap());
    let second = take(later(16)).await.unwrap();
    assert!(catalog.settle_notice(&second, Disposition::Untried, None, later(16)).await.unwrap());
    let second = take(later(16)).await.unwrap();
    assert_eq!((second.number, second.failures), (2, 0));
    assert!(catalog.settle_notice(&second, Disposition::Delivered, None, later(17)).await.unwrap());
    let third = take(later(17)).await.unwrap();
    assert!(catalog.settle_notice(&third, Disposition::Delivered, None, later(18)).await.unwrap());
    let states = async || {
        let rows = callbacks(&catalog).await;
        rows.iter().map(|r| r.state.as_str()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(states().await, "undelivered delivered delivered");
    let undelivered = NoticeFilter { state: Some(NoticeState::Undelivered), ..NoticeFilter::default() };
    assert_eq!(notices(&catalog, undelivered).await[0].detail.as_deref(), Some("given up"));
    // What was given up, or one that was delivered.
    assert_eq!(catalog.resend_notices(first.archive, None, later(20)).await.unwrap(), 1);
    assert_eq!(catalog.resend_notices(first.archive, Some(3), later(20)).await.unwrap(), 1);
    assert_eq!(catalog.resend_notices(first.archive, Some(9), later(20)).await.unwrap(), 0);
    assert_eq!(states().await, "waiting delivered waiting");
    let anew = take(later(21)).await.unwrap();
    assert_eq!((anew.number, anew.failures, anew.first_at), (1, 0, Some(later(21))));
    assert!(catalog.settle_notice(&anew, Disposition::Undelivered, None, later(22)).await.unwrap());
    // Newest first, in pages.
    let filter = NoticeFilter { target: Some(NoticeTarget::Callback), count: 1, offset: 1, ..NoticeFilter::default() };
    let (page, total) = catalog.notices(&filter).await.unwrap();
    assert_eq!((page[0].number, page.len(), total), (2, 1, 3));
    // Old ones go, those that wait never.
    assert_eq!(catalog.delete_old_notices(later(17), later(22)).await.unwrap(), 0);
    assert_eq!(catalog.delete_old_notices(later(18), later(22)).await.unwrap(), 1);
    assert_eq!(catalog.delete_old_notices(later(18), later(23)).await.unwrap(), 1);
    assert_eq!(states().await, "waiting");
    // A number is never used again: receivers would take it for one that they know.
    catalog.put_archive(&archive("a", "s", ArchiveStatus::Deleted, later(30))).await.unwrap();
    assert_eq!(callbacks(&catalog).await.last().unwrap().number, 4);
}

async fn two_senders(backend: Backend) {
    let catalog = backend.open().await;
    let receiver = Receiver::start(Does::Answer(204)).await;
    catalog.add_application(&application("a", Some(&receiver.url()))).await.unwrap();
    let another = backend.open().await;
    let tellers = [&catalog, &another].map(|catalog| Teller::start(catalog, |_| {}));
    for n in 0..30 {
        for status in [Started, Stopped, Available] {
            catalog.put_archive(&archive("a", &format!("s{n}"), status, NOW)).await.unwrap();
        }
    }
    let got = receiver.got_all(90).await;
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(receiver.got().len(), 90, "each once");
    let mut of: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for one in got {
        let body: Value = serde_json::from_slice(&one.body).unwrap();
        of.entry(body["id"].as_str().unwrap().to_owned()).or_default().push(one.status());
    }
    assert_eq!(of.len(), 30);
    for (archive, order) in of {
        assert_eq!(order, ["started", "stopped", "available"], "{archive}");
    }
    for teller in tellers {
        teller.stop().await;
    }
    assert!(callbacks(&catalog).await.iter().all(|n| n.state == NoticeState::Delivered));
}

/// Lets time pass until a callback is due, again and again, until the state of the first is `until`. Returns the pauses, in seconds.
async fn pass(catalog: &SharedCatalog, teller: &Teller, until: impl Fn(&NoticeRow) -> bool) -> Vec<u64> {
    let (mut pauses, mut now) = (Vec::new(), None);
    let mut failures = 0;
    loop {
        let head = wait_for("the next try", || async {
            let head = callbacks(catalog).await.into_iter().next().unwrap();
            (until(&head) || head.failures > failures).then_some(head)
        })
        .await;
        if until(&head) {
            return pauses;
        }
        failures = head.failures;
        pauses.extend(now.map(|now: Wallclock| head.due_at.since(now).as_secs()));
        now = Some(head.due_at);
        teller.set(head.due_at);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_is_down_for_an_hour_hears_all_in_order() {
    let (_dir, catalog) = sqlite().await;
    let address = SocketAddr::new(LOOPBACK, free_port(LOOPBACK).unwrap());
    let url = format!("http://{address}/callback?key=hidden-in-the-query");
    catalog.add_application(&application("a", Some(&url))).await.unwrap();
    for status in [Started, Stopped, Available] {
        catalog.put_archive(&archive("a", "s", status, NOW)).await.unwrap();
    }
    let teller = Teller::start(&catalog, |_| {});
    let pauses = pass(&catalog, &teller, |head| head.due_at >= later(3600) && head.failures > 0).await;
    assert_eq!(pauses[..6], [10, 20, 40, 80, 160, 320], "after the first of 5 s");
    let head = &callbacks(&catalog).await[0];
    let detail = head.detail.as_deref().unwrap();
    assert!(detail.contains("cannot be reached") && !detail.contains("hidden"), "{detail}");
    assert!(callbacks(&catalog).await[1..].iter().all(|n| n.failures == 0 && n.first_at.is_none()));
    let receiver = Receiver::start_at(address, Does::Answer(200)).await;
    teller.set(later(4600));
    let got = receiver.got_all(3).await;
    assert_eq!(got.iter().map(Got::status).collect::<Vec<_>>(), ["started", "stopped", "available"]);
    teller.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_for_a_day_is_kept_and_can_be_sent_again() {
    let (_dir, catalog) = sqlite().await;
    let receiver = Receiver::start(Does::Answer(500)).await;
    catalog.add_application(&application("a", Some(&receiver.url()))).await.unwrap();
    for status in [Started, Stopped] {
        catalog.put_archive(&archive("a", "s", status, NOW)).await.unwrap();
    }
    let teller = Teller::start(&catalog, |_| {});
    let pauses = pass(&catalog, &teller, |head| head.state == NoticeState::Undelivered).await;
    let day: u64 = 5 + pauses.iter().sum::<u64>();
    assert!((24 * 3600 - 900..=24 * 3600).contains(&day), "{day}");
    let rows = callbacks(&catalog).await;
    assert_eq!(rows[0].detail.as_deref(), Some("the receiver answered 500"));
    // The same id and the same body, each time; then the next one's.
    let got = receiver.got();
    assert_eq!(got.iter().filter(|g| g.id() == rows[0].notice.to_string()).count(), rows[0].failures as usize);
    assert!(got.iter().filter(|g| g.id() == rows[0].notice.to_string()).all(|g| g.status() == "started"));
    receiver.does(Does::Answer(200));
    teller.set(later(3 * 24 * 3600));
    wait_for("the next one", || async { (callbacks(&catalog).await[1].state == NoticeState::Delivered).then_some(()) })
        .await;
    assert_eq!(catalog.resend_notices(rows[0].archive, None, later(3 * 24 * 3600)).await.unwrap(), 1);
    wait_for("the first one", || async {
        (callbacks(&catalog).await[0].state == NoticeState::Delivered).then_some(())
    })
    .await;
    assert_eq!(receiver.got().last().unwrap().id(), rows[0].notice.to_string());
    teller.stop().await;
}

/// What is damaged stays damaged: it is given up once, told as such, and can be sent again when somebody has mended it.
#[tokio::test(flavor = "multi_thread")]
async fn notices_whose_rows_are_damaged_are_given_up_and_keep_no_other() {
    let (dir, catalog) = sqlite().await;
    let node = tokio::task::spawn_blocking(RabbitMq::shared).await.unwrap().unwrap();
    let receiver = Receiver::start(Does::Answer(200)).await;
    for name in ["damaged", "good"] {
        catalog.add_application(&application(name, Some(&receiver.url()))).await.unwrap();
    }
    let damaged = archive("damaged", "s1", Started, NOW);
    let job = NewJob {
        job: damaged.job,
        session: damaged.session.clone(),
        application: damaged.application.clone(),
        region: "eu".parse().unwrap(),
        event: StoredSpec::read("{}".to_owned()),
        started_at: NOW,
        tag: String::new(),
        is_conversation: true,
    };
    catalog.accept(&job, NOW).await.unwrap();
    catalog.put_archive(&damaged).await.unwrap();
    catalog.put_archive(&archive("good", "s2", Started, NOW)).await.unwrap();
    {
        use sqlx::{Connection, Executor};
        let url = format!("sqlite://{}", dir.path().join("catalog.sqlite").display());
        let mut connection = sqlx::AnyConnection::connect(&url).await.unwrap();
        connection.execute("UPDATE applications SET kind = 'nonsense' WHERE application_id = 'damaged'").await.unwrap();
        connection.execute("UPDATE jobs SET state = 'nonsense'").await.unwrap();
        connection.close().await.unwrap();
    }
    let teller =
        Teller::start(&catalog, |dispatcher| dispatcher.broker = Some(Arc::new(RabbitBroker::new(broker(&node)))));
    let settled = async || {
        let rows = notices(&catalog, NoticeFilter::default()).await;
        rows.iter().all(|row| row.state != NoticeState::Waiting).then_some(rows)
    };
    let rows = wait_for("all to be settled", settled).await;
    assert_eq!(rows.len(), 4);
    for row in rows {
        let expected = if row.archive == damaged.archive { NoticeState::Undelivered } else { NoticeState::Delivered };
        assert_eq!(row.state, expected, "{row:?}");
        let why = row.detail.unwrap_or_default();
        assert_eq!(why.contains("nonsense"), expected == NoticeState::Undelivered, "{why}");
    }
    assert_eq!(receiver.got().len(), 1);
    teller.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callback_is_signed_and_goes_where_the_application_wants_it_now() {
    let (_dir, catalog) = sqlite().await;
    let old = Receiver::start(Does::Answer(503)).await;
    let new = Receiver::start(Does::Answer(201)).await;
    let mut app = application("78d335fa-323d-0114-9c3d-d6f0d48968cf", Some(&old.url()));
    let id = app.application.to_string();
    catalog.add_application(&app).await.unwrap();
    for status in [Started, Stopped] {
        catalog.put_archive(&archive(&id, "s", status, NOW)).await.unwrap();
    }
    let teller = Teller::start(&catalog, |_| {});
    old.got_all(1).await;
    app.callback_url = Some(new.url());
    app.updated_at = later(1);
    assert!(catalog.change_application(&app, NOW).await.unwrap());
    wait_for("a failure", || async { (callbacks(&catalog).await[0].failures == 1).then_some(()) }).await;
    teller.set(later(10));
    let got = new.got_all(2).await;
    assert_eq!(old.got().len(), 1);
    assert_eq!(got[0].id(), old.got()[0].id());
    // As the SDKs' verifySignature does it.
    let token = got[0].headers["authorization"].to_str().unwrap().strip_prefix("Bearer ").unwrap().to_owned();
    let mut rules = Validation::new(Algorithm::HS256);
    rules.validate_exp = false;
    let claims = decode::<Value>(&token, &DecodingKey::from_secret(SECRET.as_bytes()), &rules).unwrap().claims;
    let hash: String = Sha256::digest(&got[0].body).iter().map(|b| format!("{b:02x}")).collect();
    let issued = later(10).0 / 1_000_000;
    let expected = json!({ "iss": "archiver", "iat": issued, "exp": issued + 300, "jti": got[0].id(),
        "payload_hash": hash, "application_id": id });
    assert_eq!(claims, expected);
    assert!(decode::<Value>(&token, &DecodingKey::from_secret(b"another"), &rules).is_err());
    assert_eq!(got[0].headers["content-type"], "application/json");
    assert_eq!(got[0].uri.query(), Some("key=hidden-in-the-query"));
    let body: Value = serde_json::from_slice(&got[0].body).unwrap();
    assert_eq!((&body["status"], &body["applicationId"]), (&json!("started"), &json!(id)));
    // Nobody to call any more.
    new.does(Does::Answer(500));
    catalog.put_archive(&archive(&id, "s", Available, later(20))).await.unwrap();
    teller.set(later(20));
    new.got_all(3).await;
    app.callback_url = None;
    app.updated_at = later(21);
    assert!(catalog.change_application(&app, later(1)).await.unwrap());
    wait_for("a failure", || async { (callbacks(&catalog).await[2].failures == 1).then_some(()) }).await;
    teller.set(later(100));
    let last = wait_for("it is given up", || async {
        let last = callbacks(&catalog).await.pop().unwrap();
        (last.state == NoticeState::Undelivered).then_some(last)
    });
    assert_eq!(last.await.detail.as_deref(), Some("the application has no callback URL any more"));
    assert_eq!(new.got().len(), 3);
    teller.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_hangs_keeps_nobody_else_waiting() {
    let (_dir, catalog) = sqlite().await;
    let (slow, good) = (Receiver::start(Does::Hang).await, Receiver::start(Does::Answer(200)).await);
    catalog.add_application(&application("slow", Some(&slow.url()))).await.unwrap();
    catalog.add_application(&application("good", Some(&good.url()))).await.unwrap();
    for n in 0..40 {
        catalog.put_archive(&archive("slow", &format!("slow{n}"), Started, NOW)).await.unwrap();
    }
    let teller = Teller::start(&catalog, |dispatcher| {
        dispatcher.sender = Sender::new(loopback(), Duration::from_secs(5), Arc::new(SystemResolver));
        dispatcher.timeout = Duration::from_secs(5);
    });
    // A quarter of 16, plus what was taken with the last free places of its share.
    slow.got_all(4).await;
    for n in 0..20 {
        catalog.put_archive(&archive("good", &format!("good{n}"), Started, NOW)).await.unwrap();
    }
    good.got_all(20).await;
    assert!(slow.got().len() < 8, "{}", slow.got().len());
    let failed = wait_for("a try to end", || async { callbacks(&catalog).await.into_iter().find(|n| n.failures > 0) });
    assert_eq!(failed.await.detail.as_deref(), Some("the receiver did not answer within 5 s"));
    teller.stop().await;
}

/// Answers each time with the next address, the last one for ever.
struct Rebinding(Vec<IpAddr>, AtomicUsize);

#[async_trait::async_trait]
impl Resolver for Rebinding {
    async fn addresses(&self, host: &str) -> std::io::Result<Vec<IpAddr>> {
        assert_eq!(host, "rebinding.example");
        let asked = self.1.fetch_add(1, Ordering::SeqCst);
        Ok(vec![self.0[asked.min(self.0.len() - 1)]])
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_redirects_nor_rebound_names_lead_inside() {
    let (_dir, catalog) = sqlite().await;
    let inside = Receiver::start(Does::Answer(200)).await;
    let outside = Receiver::start(Does::Redirect(inside.url())).await;
    // The one receiver that may be called has an address of its own, as a public one would.
    let allowed: Vec<Network> = vec!["127.0.0.1/32".parse().unwrap()];
    let resolver =
        Arc::new(Rebinding(vec!["93.184.216.34".parse().unwrap(), "127.0.0.2".parse().unwrap()], AtomicUsize::new(0)));
    let deep = Receiver::start_at(
        SocketAddr::new("127.0.0.2".parse().unwrap(), free_port(LOOPBACK).unwrap()),
        Does::Answer(200),
    )
    .await;
    let rebound = format!("http://rebinding.example:{}/", deep.address.port());
    check_url_with(&rebound, &allowed, resolver.as_ref()).await.expect("public when it is set");
    let odd = format!("http://{}:{}/", u32::from(std::net::Ipv4Addr::new(127, 0, 0, 2)), deep.address.port());
    for (app, url) in [("redirects", &outside.url()), ("rebinds", &rebound), ("odd", &odd)] {
        catalog.add_application(&application(app, Some(url))).await.unwrap();
        catalog.put_archive(&archive(app, app, Started, NOW)).await.unwrap();
    }
    let of_loop = Arc::clone(&resolver);
    let teller = Teller::start(&catalog, |t| t.sender = Sender::new(allowed, Duration::from_secs(2), of_loop));
    let failed = wait_for("all to fail", || async {
        let rows = callbacks(&catalog).await;
        rows.iter().all(|n| n.failures == 1).then_some(rows)
    })
    .await;
    let detail = |app: &str| {
        let row = failed.iter().find(|n| n.application.as_str() == app).unwrap();
        row.detail.clone().unwrap()
    };
    assert_eq!(detail("redirects"), "the receiver answered 307, and redirects are not followed");
    assert!(detail("rebinds").starts_with("the name rebinding.example stands for an address"), "{}", detail("rebinds"));
    assert!(detail("odd").starts_with("callbacks may not go to 127.0.0.2"), "{}", detail("odd"));
    assert_eq!((outside.got().len(), inside.got().len(), deep.got().len()), (1, 0, 0));
    teller.stop().await;
    // The same name goes where it may: it was the address that was refused.
    let both = vec!["127.0.0.0/8".parse().unwrap()];
    let teller = Teller::start(&catalog, |t| t.sender = Sender::new(both, Duration::from_secs(2), resolver));
    teller.set(later(60));
    // The name, and the number.
    deep.got_all(2).await;
    teller.stop().await;
}

/// A broker's settings with names of their own.
fn broker(node: &RabbitMq) -> BrokerConfig {
    let mut config = BrokerConfig::new(node.url().into(), "eu".parse().unwrap());
    config.prefix = "told".to_owned();
    config
}

/// So many messages of a queue that were not `heard` before, in order; then it has no others. Ids tell, as they should: what
/// was acked just before the broker was killed comes again.
async fn messages(
    node: &RabbitMq,
    queue: &str,
    count: usize,
    heard: &mut BTreeSet<String>,
) -> Vec<(String, lapin::BasicProperties, Value)> {
    use lapin::options::{BasicAckOptions, BasicGetOptions, BasicNackOptions};
    let connection = lapin::Connection::connect(&node.url(), lapin::ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let mut got = Vec::new();
    loop {
        let next = channel.basic_get(queue.into(), BasicGetOptions::default()).await.unwrap();
        let Some(message) = next else {
            if got.len() >= count {
                break;
            }
            let more = async || channel.basic_get(queue.into(), BasicGetOptions { no_ack: false }).await.unwrap();
            let message = wait_for("a message", more).await;
            message.nack(BasicNackOptions { requeue: true, ..BasicNackOptions::default() }).await.unwrap();
            continue;
        };
        message.ack(BasicAckOptions::default()).await.unwrap();
        let body: Value = serde_json::from_slice(&message.data).unwrap();
        if heard.insert(format!("{queue} {}", body["id"])) {
            got.push((message.routing_key.to_string(), message.properties.clone(), body));
        }
    }
    assert_eq!(got.len(), count, "{got:?}");
    got
}

async fn listen_to_archives(node: &RabbitMq, queue: &str, key: &str) {
    use lapin::options::{QueueBindOptions, QueueDeclareOptions};
    let connection = lapin::Connection::connect(&node.url(), lapin::ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.into(), options, Default::default()).await.unwrap();
    let bind = QueueBindOptions::default();
    channel.queue_bind(queue.into(), "told.archives".into(), key.into(), bind, Default::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_published_in_order_over_a_restart_of_the_broker() {
    let (_dir, catalog) = sqlite().await;
    let mut node = tokio::task::spawn_blocking(RabbitMq::start).await.unwrap().unwrap();
    let config = broker(&node);
    let events = async |state| {
        let target = Some(NoticeTarget::Event);
        notices(&catalog, NoticeFilter { target, state: Some(state), ..NoticeFilter::default() }).await
    };
    let delivered = async |count| {
        let all = async || (events(NoticeState::Delivered).await.len() == count).then_some(());
        wait_for(&format!("{count} events"), all).await;
    };
    let put = async |session: &str, status| {
        assert!(catalog.put_archive(&archive("a", session, status, NOW)).await.unwrap());
    };
    let broker = RabbitBroker::new(config.clone());
    let teller = Teller::start(&catalog, |dispatcher| dispatcher.broker = Some(Arc::new(broker)));
    // Nobody listens: it is published all the same.
    put("unheard", Started).await;
    delivered(1).await;
    RabbitBroker::new(config.clone()).archive_publisher().await.unwrap().close().await;
    listen_to_archives(&node, "all", "archive.#").await;
    listen_to_archives(&node, "available", "archive.available.*").await;
    let one = archive("a", "one", Started, NOW);
    let job = NewJob {
        job: one.job,
        session: one.session.clone(),
        application: one.application.clone(),
        region: "eu".parse().unwrap(),
        event: StoredSpec::read("{}".to_owned()),
        started_at: NOW,
        tag: "second".to_owned(),
        is_conversation: true,
    };
    catalog.accept(&job, NOW).await.unwrap();
    put("one", Started).await;
    put("one", Paused).await;
    delivered(3).await;
    let mut heard = BTreeSet::new();
    let got = messages(&node, "all", 2, &mut heard).await;
    assert_eq!((got[0].0.as_str(), got[1].0.as_str()), ("archive.started.eu", "archive.paused.eu"));
    let schema: Value = serde_json::from_str(include_str!("../../fixtures/events/archive-status.schema.json")).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    for (number, (_, properties, body)) in (1..).zip(&got) {
        assert!(validator.is_valid(body), "{body}");
        let id = NoticeId::of(one.archive, "event", number).to_string();
        assert_eq!(
            (body["id"].as_str(), body["subject"].as_str()),
            (Some(id.as_str()), Some(&*one.archive.to_string()))
        );
        assert_eq!((&body["data"]["number"], &body["data"]["multiArchiveTag"]), (&json!(number), &json!("second")));
        assert_eq!(properties.delivery_mode(), &Some(2));
        assert_eq!(properties.message_id().as_ref().map(ToString::to_string), Some(id));
    }
    // It dies, and comes back.
    node.sync().expect("synced");
    node.kill9();
    for status in [Started, Stopped, Available] {
        put("one", status).await;
        put("two", status).await;
    }
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(events(NoticeState::Waiting).await.len(), 6);
    let mut node = tokio::task::spawn_blocking(move || node.restart().map(|()| node)).await.unwrap().unwrap();
    // A first try may have failed with the old connection: it is due again within half a minute.
    teller.set(later(60));
    delivered(9).await;
    let got = messages(&node, "all", 6, &mut heard).await;
    for (session, region) in [("one", "eu"), ("two", "default")] {
        let id = archive("a", session, Started, NOW).archive.to_string();
        let keys: Vec<&str> = got.iter().filter(|m| m.2["subject"] == *id).map(|m| m.0.as_str()).collect();
        let expected = ["started", "stopped", "available"].map(|status| format!("archive.{status}.{region}"));
        assert_eq!(keys, expected, "{session}");
    }
    assert_eq!(messages(&node, "available", 2, &mut heard).await.len(), 2);
    teller.stop().await;
    node.kill9();
}

#[test]
fn the_command_says_where_callbacks_may_go_and_what_was_not_delivered() {
    let dir = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let out = std::process::Command::new(BINARY)
            .arg("callbacks")
            .args(arguments)
            .env("ARCHIVER__CATALOG__URL", format!("sqlite:{}", dir.path().join("catalog.sqlite").display()))
            .env("ARCHIVER__CALLBACKS__ALLOW", "10.1.0.0/16")
            .output()
            .unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        (out.status.success(), text)
    };
    for (url, may) in [
        ("https://10.1.2.3/x", true),
        ("https://93.184.216.34/x", true),
        ("http://2130706433/", false),
        ("http://[::ffff:127.0.0.1]/", false),
        ("http://localhost/", false),
        ("ftp://93.184.216.34/", false),
    ] {
        let (good, text) = run(&["check", url]);
        assert_eq!(good, may, "{url}: {text}");
    }
    let (good, text) = run(&["list", "--state", "undelivered", "--json"]);
    assert!(good && text.contains("\"count\": 0"), "{text}");
    assert!(!run(&["list", "--state", "lost"]).0);
    let (good, text) = run(&["resend", "2f6f2d9a-8d1c-4b1e-9c41-0b8a7d1f4c11"]);
    assert!(!good && text.contains("no callback of this archive was given up"), "{text}");
}
