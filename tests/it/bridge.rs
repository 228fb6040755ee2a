//! Sessions that are found to have started: nothing but a row in the catalog, a room, and clients in it. With real Janus, RabbitMQ
//! and worker.

use crate::BINARY;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use archiver::app::services::{broker, broker_config, routers};
use archiver::bridge::{self, Bridge, rules};
use archiver::broker::{Broker, RabbitBroker};
use archiver::catalog::{JobState, SessionRow, SharedCatalog};
use archiver::config::{BridgeSection, DurationValue, Settings};
use archiver::model::archive_options::{ArchiveOptions, OutputMode};
use archiver::model::ids::SessionId;
use archiver::model::session::{ArchiveMode, MediaMode, RouterRoom};
use archiver::model::time::Wallclock;
use archiver::session::access::{access_at, client_access};
use archiver::session::room::room_of;
use archiver_testkit::janus::Client;
use archiver_testkit::publisher::{Options, Publisher};
use archiver_testkit::wait::wait_for;
use archiver_testkit::world::{APPLICATION, World};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const QUEUE: &str = "archiver.janus";
/// Soon for a process that looks often.
const OFTEN: Duration = Duration::from_millis(300);
/// A process that looks so seldom has heard of it.
const SELDOM: Duration = Duration::from_secs(120);
/// Long enough for something to happen that must not.
const A_WHILE: Duration = Duration::from_secs(3);
/// The worker's own bridge is off: it would take hints from the same queue, and find what this process's should find.
const APART: &str = "[bridge]\nenabled = false\n";
const LIMITS: &str = "[bridge]\nenabled = false\n[limits]\nno_clients = \"4s\"\nnever_published = \"12s\"\n";

/// A running bridge.
struct Running {
    cancel: CancellationToken,
    tasks: TaskTracker,
}

impl Running {
    async fn stop(self) {
        self.cancel.cancel();
        self.tasks.wait().await;
    }
}

/// A deployment, and what the API knows of it.
struct Ground {
    world: World,
    settings: Settings,
    catalog: SharedCatalog,
}

impl Ground {
    async fn of(world: World) -> Self {
        tracing_subscriber::fmt().with_test_writer().with_env_filter("archiver=debug").try_init().unwrap_or_default();
        let settings = Settings::load(Some(world.config()), &BTreeMap::new()).expect("configuration");
        std::fs::create_dir_all(world.data()).expect("folder");
        let catalog = archiver::app::services::catalog(&settings).await.expect("catalog");
        Self { world, settings, catalog }
    }

    fn bridge(&self, poll: Duration) -> Running {
        self.bridge_with(BridgeSection { poll: DurationValue(poll), ..BridgeSection::default() })
    }

    fn bridge_with(&self, settings: BridgeSection) -> Running {
        let (cancel, tasks) = (CancellationToken::new(), TaskTracker::new());
        let deps = Bridge {
            catalog: self.catalog.clone(),
            routers: routers(&self.settings),
            broker: broker(&self.settings).expect("broker"),
            settings,
        };
        tasks.spawn(bridge::run(deps, cancel.clone()));
        tasks.close();
        Running { cancel, tasks }
    }

    /// What the API does when a session is created and its first client asks for the room.
    async fn session(&self, name: &str) -> SessionRow {
        self.session_in(name, "eu").await
    }

    async fn session_in(&self, name: &str, region: &str) -> SessionRow {
        let session: SessionId = name.parse().expect("id");
        let section = &self.settings.routers[0];
        let place =
            RouterRoom { name: section.name.clone(), room: room_of(&session, true), access: access_at(section) };
        let row = SessionRow {
            session,
            application: APPLICATION.parse().expect("id"),
            media_mode: MediaMode::Routed,
            archive_mode: ArchiveMode::Always,
            e2ee: false,
            location: None,
            region: region.parse().expect("region"),
            router: Some(place),
            archive: ArchiveOptions { output_mode: OutputMode::Individual, ..ArchiveOptions::default() },
            conversation: 0,
            classes: BTreeMap::new(),
            created_at: Wallclock::now(),
        };
        self.catalog.add_session(&row).await.expect("session");
        self.room(&row).await;
        row
    }

    async fn room(&self, row: &SessionRow) {
        let place = row.router.as_ref().expect("room");
        routers(&self.settings)[&place.name].create_room(place, &row.session).await.expect("room");
    }

    async fn has_room(&self, row: &SessionRow) -> bool {
        let place = row.router.as_ref().expect("room");
        let listed = routers(&self.settings)[&place.name].list_rooms().await;
        listed.is_ok_and(|rooms| rooms.iter().any(|room| room.room == place.room))
    }

    /// A client, with what the API gives it.
    async fn client(&self, row: &SessionRow, id: &str) -> Publisher {
        let place = row.router.as_ref().expect("room");
        let expires = Wallclock::now() + Duration::from_secs(600);
        let access = client_access(&self.settings.routers[0], place, expires);
        let options = Options::new(&self.world.janus, place.room.as_str(), id);
        Publisher::start(Options { pin: access.pin, token: access.token, ..options }).await.expect("client")
    }

    /// Waits until a conversation is being recorded.
    async fn recorded(&self, row: &SessionRow, conversation: i64) {
        let job = rules::job_of_conversation(&row.session, conversation);
        wait_for(&format!("{} recorded, conversation {conversation}", row.session), || async {
            let job = self.catalog.job(job).await.ok()??;
            (job.state == JobState::Capturing).then_some(())
        })
        .await;
    }

    /// Waits until a conversation's archive is made.
    async fn available(&self, row: &SessionRow, conversation: i64) {
        let job = rules::job_of_conversation(&row.session, conversation);
        wait_for(&format!("{} available, conversation {conversation}", row.session), || async {
            let job = self.catalog.job(job).await.ok()??;
            (job.state == JobState::Available).then_some(())
        })
        .await;
    }

    async fn jobs(&self, row: &SessionRow) -> usize {
        let jobs = self.catalog.jobs(&[], 1000).await.expect("jobs");
        jobs.iter().filter(|job| job.session == row.session).count()
    }

    async fn conversation(&self, row: &SessionRow) -> i64 {
        let found = self.catalog.session(&row.application, &row.session).await.expect("catalog");
        found.expect("session").conversation
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_the_router_tells_of_is_recorded_at_once_by_one_job() {
    let mut ground =
        Ground::of(World::start_with_event_handler(BINARY, QUEUE, false, LIMITS).await.expect("world")).await;
    ground.world.start_worker().expect("worker");
    let running = ground.bridge(SELDOM);
    let row = ground.session("told").await;
    wait_for("the queue to be listened to", || async { (consumers(&ground.world).await? == 1).then_some(()) }).await;
    let begun = Instant::now();
    let alice = ground.client(&row, "alice").await;
    let bob = ground.client(&row, "bob").await;
    ground.recorded(&row, 1).await;
    assert!(begun.elapsed() < SELDOM / 2, "{:?}", begun.elapsed());
    ground.world.recording(4).await;
    tokio::time::sleep(A_WHILE).await;
    drop((alice.leave().await.expect("leave"), bob.leave().await.expect("leave")));
    let archive = ground.world.archive("told", "available").await;
    assert_eq!(archive["reason"], "session ended");
    assert_eq!((ground.jobs(&row).await, ground.conversation(&row).await), (1, 1));
    // What is no message of Janus's is passed over.
    let (_connection, channel) = channel(&ground.world).await;
    let properties = lapin::BasicProperties::default();
    channel.basic_publish("".into(), QUEUE.into(), Default::default(), b"nonsense", properties).await.expect("publish");
    wait_for("nonsense to be counted", || async {
        archiver::runtime::metrics::render().contains("router_hints_total{outcome=\"Malformed\"}").then_some(())
    })
    .await;
    // It goes on: somebody comes back.
    let again = ground.client(&row, "alice").await;
    ground.recorded(&row, 2).await;
    drop(again);
    running.stop().await;
}

/// A channel to the world's broker; it ends with its connection.
async fn channel(world: &World) -> (lapin::Connection, lapin::Channel) {
    let properties = lapin::ConnectionProperties::default();
    let connection = lapin::Connection::connect(&world.rabbit.url(), properties).await.expect("broker");
    let channel = connection.create_channel().await.expect("channel");
    (connection, channel)
}

/// How many listen to the queue of hints; `None` while it is not there, which closes the channel that names it.
async fn consumers(world: &World) -> Option<u32> {
    let (_connection, channel) = channel(world).await;
    let passive = lapin::options::QueueDeclareOptions { passive: true, ..Default::default() };
    let queue = channel.queue_declare(QUEUE.into(), passive, Default::default()).await.ok()?;
    Some(queue.consumer_count())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_hints_each_conversation_is_found_and_a_stopped_one_stays_stopped() {
    let mut ground = Ground::of(World::start_with_own_router(BINARY, LIMITS).await.expect("world")).await;
    ground.world.start_worker().expect("worker");
    let running = ground.bridge(OFTEN);
    let row = ground.session("found").await;
    let manual =
        SessionRow { archive_mode: ArchiveMode::Manual, session: "manual".parse().expect("id"), ..row.clone() };
    let place = RouterRoom { room: room_of(&manual.session, true), ..row.router.clone().expect("room") };
    let manual = SessionRow { router: Some(place), ..manual };
    ground.catalog.add_session(&manual).await.expect("session");
    ground.room(&manual).await;
    let _by_hand = ground.client(&manual, "mallory").await;

    let alice = ground.client(&row, "alice").await;
    ground.recorded(&row, 1).await;
    // Back within the limit: the same archive.
    drop(alice.leave().await.expect("leave"));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let alice = ground.client(&row, "alice").await;
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(ground.jobs(&row).await, 1);
    // Back after it: another one.
    drop(alice.leave().await.expect("leave"));
    ground.available(&row, 1).await;
    let alice = ground.client(&row, "alice").await;
    ground.recorded(&row, 2).await;
    // Somebody stops it: that alone is no reason for another, and neither is a restart of the bridge.
    let job = rules::job_of_conversation(&row.session, 2);
    tokio::time::sleep(Duration::from_secs(1)).await;
    ground.catalog.request_stop(job, "user initiated", Wallclock::now()).await.expect("stop");
    ground.available(&row, 2).await;
    tokio::time::sleep(A_WHILE).await;
    running.stop().await;
    let running = ground.bridge(OFTEN);
    tokio::time::sleep(A_WHILE).await;
    assert_eq!((ground.jobs(&row).await, ground.conversation(&row).await), (2, 2));
    // Then all leave, and somebody comes.
    drop(alice.leave().await.expect("leave"));
    tokio::time::sleep(A_WHILE).await;
    let _carol = ground.client(&row, "carol").await;
    ground.recorded(&row, 3).await;
    assert_eq!((ground.jobs(&row).await, ground.jobs(&manual).await), (3, 0));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_that_was_begun_and_never_told_of_is_told_by_the_next_process() {
    let mut ground = Ground::of(World::start_with_own_router(BINARY, LIMITS).await.expect("world")).await;
    let row = ground.session("killed").await;
    let _alice = ground.client(&row, "alice").await;
    // The process that began it was killed here.
    assert!(ground.catalog.begin_conversation(&row.session, 0).await.expect("begin"));
    // Two others, and no worker yet: both tell of it.
    let running = [ground.bridge(OFTEN), ground.bridge(OFTEN)];
    let others = [ground.session("other-1").await, ground.session("other-2").await];
    let _clients = [ground.client(&others[0], "a").await, ground.client(&others[1], "b").await];
    tokio::time::sleep(A_WHILE).await;
    ground.world.start_worker().expect("worker");
    for row in others.iter().chain([&row]) {
        ground.recorded(row, 1).await;
    }
    tokio::time::sleep(A_WHILE).await;
    for row in others.iter().chain([&row]) {
        assert_eq!((ground.jobs(row).await, ground.conversation(row).await), (1, 1), "{}", row.session);
    }
    for running in running {
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_router_or_the_broker_neither_loses_nor_doubles_a_session() {
    let limits = format!("{APART}[limits]\nno_clients = \"60s\"\n");
    let mut ground =
        Ground::of(World::start_with_event_handler(BINARY, QUEUE, true, &limits).await.expect("world")).await;
    ground.world.start_worker().expect("worker");
    let running = ground.bridge(OFTEN);
    let row = ground.session("restarted").await;
    let alice = ground.client(&row, "alice").await;
    ground.recorded(&row, 1).await;
    ground.world.recording(2).await;
    ground.world.janus.restart().expect("restart");
    drop(alice);
    // Nobody has called the API, and the room is there again.
    wait_for("the room", || async { ground.has_room(&row).await.then_some(()) }).await;
    // Under another name, so that her tracks are others.
    let _alice = ground.client(&row, "alice-again").await;
    ground.world.recording(4).await;

    // A session begins while the broker is away.
    ground.world.rabbit.kill9();
    let late = ground.session("late").await;
    let _bob = ground.client(&late, "bob").await;
    wait_for("the conversation", || async { (ground.conversation(&late).await == 1).then_some(()) }).await;
    ground.world.rabbit.restart().expect("restart");
    ground.recorded(&late, 1).await;
    tokio::time::sleep(A_WHILE).await;
    for row in [&row, &late] {
        assert_eq!((ground.jobs(row).await, ground.conversation(row).await), (1, 1), "{}", row.session);
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_who_begins_to_publish_late_is_recorded_by_the_job_of_the_first_client() {
    let limits = LIMITS.replace("12s", "3s");
    let mut ground = Ground::of(World::start_with_own_router(BINARY, &limits).await.expect("world")).await;
    ground.world.start_worker().expect("worker");
    let running = ground.bridge(OFTEN);
    let row = ground.session("quiet").await;
    let place = row.router.as_ref().expect("room");
    let access = client_access(&ground.settings.routers[0], place, Wallclock::now() + Duration::from_secs(600));
    let mut viewer =
        Client::connect_with_token(&ground.world.janus.url(), &access.token.expect("token")).await.expect("client");
    let join = json!({ "request": "join", "ptype": "publisher", "room": place.room.as_str(), "id": "carol", "pin": access.pin });
    let joined = viewer.message(join, None).await.expect("joined");
    assert_eq!(joined["plugindata"]["data"]["videoroom"], "joined", "{joined}");
    let job = rules::job_of_conversation(&row.session, 1);
    let state = async || ground.catalog.job(job).await.ok().flatten().map(|job| job.state);
    wait_for("the job to wait", || async { (state().await == Some(JobState::Waiting)).then_some(()) }).await;
    viewer.keep_alive().await.expect("alive");
    let alice = ground.client(&row, "alice").await;
    ground.recorded(&row, 1).await;
    ground.world.recording(2).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    drop((alice.leave().await.expect("leave"), viewer));
    ground.available(&row, 1).await;
    assert_eq!((ground.jobs(&row).await, ground.conversation(&row).await), (1, 1));
    // The bridge saw at once that somebody publishes: nothing is missing.
    let archive = ground.world.archive(row.session.as_str(), "available").await;
    let report = ground.world.download(&archive).expect("download").report;
    assert_eq!(report["complete"], true, "{report:#}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unused_rooms_are_removed_and_a_region_without_workers_is_told_again() {
    let ground = Ground::of(World::start_with_own_router(BINARY, APART).await.expect("world")).await;
    let (unused, used) = (ground.session("unused").await, ground.session_in("used", "mars").await);
    ground.world.janus.create_room("the-platform-s", json!({ "description": "the-platform-s" })).await.expect("room");
    let _alice = ground.client(&used, "alice").await;
    let remove_rooms_after = DurationValue(Duration::from_secs(2));
    let running = ground.bridge_with(BridgeSection {
        poll: DurationValue(OFTEN),
        remove_rooms_after,
        ..BridgeSection::default()
    });
    wait_for("the room to be removed", || async { (!ground.has_room(&unused).await).then_some(()) }).await;
    assert!(ground.has_room(&used).await);
    let router = &routers(&ground.settings)[&ground.settings.routers[0].name];
    assert!(router.list_rooms().await.expect("list").iter().any(|room| room.room.as_str() == "the-platform-s"));

    wait_for("a start that nobody takes", || async {
        archiver::runtime::metrics::render().contains("session_starts_total{outcome=\"Unroutable\"}").then_some(())
    })
    .await;
    // A worker's first deed is to declare its region's queues.
    let mut mars = broker_config(&ground.settings).expect("broker");
    mars.region = "mars".parse().expect("region");
    RabbitBroker::new(mars).publisher().await.expect("broker").close().await;
    let (_connection, channel) = channel(&ground.world).await;
    let event = wait_for("the start", || async {
        let got = channel.basic_get("archiver.started.mars".into(), Default::default()).await.expect("get")?;
        Some(serde_json::from_slice::<serde_json::Value>(&got.delivery.data).expect("JSON"))
    })
    .await;
    assert_eq!((&event["id"], &event["data"]["sessionId"]), (&"bridge-1".into(), &"used".into()));
    running.stop().await;
}
