//! A worker that does not reach a server which others reach, and servers that work badly: nothing is lost, or the loss is told.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use archiver_testkit::content::{Content, Matched};
use archiver_testkit::postgres::Database;
use archiver_testkit::proxy::{TcpMode, TcpProxy};
use archiver_testkit::publisher::{Options, Publisher};
use archiver_testkit::s3::S3Fault;
use archiver_testkit::wait::wait_for;
use archiver_testkit::world::{Downloaded, Machine, World, gap_lengths};
use serde_json::{Value, json};

use crate::BINARY;
use crate::support::databases;

/// The worker whose way to the servers is cut off.
const OWNER: &str = "worker-2";
/// A worker that reaches all servers.
const OTHER: &str = "worker-3";
/// A worker that is told to stop ends within `offer` (10 s) and 45 s, as the README promises: the store gets 5 s of them.
const STOPPED_WITHIN: Duration = Duration::from_secs(55);
/// Pictures a second.
const FPS: usize = 30;

/// A session that the first of two workers records, which reaches each server through a proxy of its own.
struct Recorded {
    world: World,
    publisher: Publisher,
    catalog: TcpProxy,
    broker: TcpProxy,
    store: TcpProxy,
    router: TcpProxy,
    _database: Database,
}

/// Starts the worker, and a session of one publisher that it records.
async fn recording(world: &mut World, session: &str) -> Publisher {
    world.start_worker().expect("worker");
    world.janus.create_room(session, json!({})).await.expect("room");
    let started = world.started(session);
    world.publish(&started).expect("publish");
    let publisher = Publisher::start(Options::new(&world.janus, session, "alice")).await.expect("publisher");
    world.recording(2).await;
    publisher
}

/// The address in a URL.
fn address_in(url: &str) -> SocketAddr {
    let (_, behind) = url.split_once("://").expect("a URL");
    let authority = behind.split('/').next().unwrap_or_default();
    authority.rsplit('@').next().unwrap_or_default().parse().expect("an address")
}

impl Recorded {
    async fn start(session: &str) -> Self {
        let database = databases::with_tables();
        let mut world = World::start(BINARY, Some(&database.url()), "").await.expect("world");
        let proxy = |to: SocketAddr| TcpProxy::start(IpAddr::V4(Ipv4Addr::LOCALHOST), to).expect("a proxy");
        let servers = [
            address_in(&database.url()),
            world.rabbit.address(),
            address_in(&world.s3.endpoint()),
            address_in(&world.janus.url()),
        ];
        let [catalog, broker, store, router] = servers.map(proxy);
        let proxies = [&catalog, &broker, &store, &router].map(|proxy| proxy.address().to_string());
        let instead: Vec<_> = servers.map(|server| server.to_string()).into_iter().zip(proxies).collect();
        world.start_another(&Machine { instead: &instead, ..Machine::new(OWNER) }).expect("worker");
        takes_jobs(&world, OWNER).await;
        world.janus.create_room(session, json!({})).await.expect("room");
        let started = world.started(session);
        world.publish(&started).expect("publish");
        let publisher = Publisher::start(Options::new(&world.janus, session, "alice")).await.expect("publisher");
        says(&world, OWNER, "first media is on disk").await;
        world.start_another(&Machine::new(OTHER)).expect("worker");
        takes_jobs(&world, OTHER).await;
        publisher.pictures_pass(2 * FPS).await;
        Self { world, publisher, catalog, broker, store, router, _database: database }
    }

    /// Ends the session, and holds its archive against what was sent.
    async fn ended(mut self, session: &str) -> (Downloaded, Matched) {
        let ended = self.world.ended(session);
        self.world.publish(&ended).expect("publish");
        let row = self.world.archive(session, "available").await;
        let truth = self.publisher.crash().timeline();
        let archive = self.world.download(&row).expect("download");
        let [file] = archive.files("alice").try_into().expect("one file");
        let content = Content::read(&file).expect("file");
        assert_eq!(content.errors, Vec::<String>::new());
        let matched = content.against(&truth);
        assert_eq!(matched.strange, 0, "pictures that were never sent, come twice, or out of order");
        (archive, matched)
    }
}

async fn takes_jobs(world: &World, machine: &str) {
    says(world, machine, "source=Events").await;
}

/// Waits until the worker of a machine has logged a text.
async fn says(world: &World, machine: &str, text: &str) {
    wait_for(&format!("{machine} to say {text:?}"), || async { world.log_of(machine).contains(text).then_some(()) })
        .await;
}

fn owners(archive: &Downloaded) -> usize {
    archive.report["epochsMs"].as_array().expect("epochs").len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_cut_off_from_store_and_broker_and_the_router_s_signalling_goes_on() {
    let recorded = Recorded::start("cut-off").await;
    for proxy in [&recorded.store, &recorded.broker, &recorded.router] {
        proxy.set(TcpMode::BlackHole);
        recorded.publisher.pictures_pass(8 * FPS).await;
        proxy.set(TcpMode::Forward);
        recorded.publisher.pictures_pass(3 * FPS).await;
    }
    for proxy in [&recorded.store, &recorded.broker] {
        proxy.set(TcpMode::Refuse);
        recorded.publisher.pictures_pass(3 * FPS).await;
        proxy.set(TcpMode::Forward);
    }
    let (archive, matched) = recorded.ended("cut-off").await;
    assert_eq!(matched.missing.len(), 0, "{:?}", matched.holes());
    assert_eq!((owners(&archive), &archive.manifest["complete"]), (1, &json!(true)), "{}", archive.report);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_cut_off_from_the_catalog_captures_on_beside_the_next_owner() {
    let recorded = Recorded::start("no-catalog").await;
    recorded.catalog.set(TcpMode::BlackHole);
    says(&recorded.world, OTHER, "job begins").await;
    recorded.publisher.pictures_pass(5 * FPS).await;
    recorded.catalog.set(TcpMode::Forward);
    says(&recorded.world, OWNER, "the end of a log that another worker goes on with is in the store now").await;
    recorded.publisher.pictures_pass(3 * FPS).await;
    let (archive, matched) = recorded.ended("no-catalog").await;
    assert_eq!(matched.missing.len(), 0, "{:?}", matched.holes());
    assert_eq!((owners(&archive), &archive.manifest["complete"]), (2, &json!(true)), "{}", archive.report);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_told_to_stop_while_the_store_hangs_says_what_it_alone_has() {
    let mut recorded = Recorded::start("no-store").await;
    // Into the second segment (5 s): the first is in the store, or on its way.
    recorded.publisher.pictures_pass(4 * FPS).await;
    recorded.store.set(TcpMode::BlackHole);
    recorded.publisher.pictures_pass(4 * FPS).await;
    assert!(recorded.world.stop_another_within(OWNER, STOPPED_WITHIN), "{}", recorded.world.log_of(OWNER));
    let log = recorded.world.log_of(OWNER);
    assert!(log.contains("the end of the log is on this disk alone"), "{log}");
    recorded.publisher.pictures_pass(4 * FPS).await;
    let Recorded { mut world, publisher, store, _database, .. } = recorded;
    let ended = world.ended("no-store");
    world.publish(&ended).expect("publish");
    let row = world.archive("no-store", "available").await;
    let truth = publisher.crash().timeline();
    let made = |archive: &Downloaded| {
        let [file] = archive.files("alice").try_into().expect("one file");
        let content = Content::read(&file).expect("file");
        assert_eq!(content.errors, Vec::<String>::new());
        let matched = content.against(&truth);
        assert_eq!(matched.strange, 0, "pictures that were never sent, come twice, or out of order");
        matched
    };
    // Until the disk is read again, the archive lacks what it has, and says so.
    let first = world.download(&row).expect("download");
    let (holes, told) = (made(&first).holes(), gap_lengths(first.track("alice", "video").expect("track"), "worker"));
    let [missing, told]: [f64; 2] = [holes.iter().map(|(from, to)| to - from).sum(), told.iter().sum()];
    assert!(
        missing > 3.0 && (missing - told).abs() <= 0.1,
        "{missing:.3} s are missing, {told:.3} s are told: {holes:?}"
    );
    assert_eq!(first.manifest["complete"], json!(false), "{}", first.manifest);
    store.set(TcpMode::Forward);
    world.start_another(&Machine::new(OWNER)).expect("worker");
    let second = wait_for("the archive to be made again", || async {
        let now = world.download(&row).ok()?;
        (now.manifest["revision"] == 2).then_some(now)
    })
    .await;
    assert_eq!(made(&second).missing.len(), 0, "{:?}", made(&second).holes());
    assert_eq!(second.manifest["complete"], json!(true), "{}", second.report);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_fails_in_every_way_loses_nothing() {
    let mut world = World::start(BINARY, None, "").await.expect("world");
    let publisher = recording(&mut world, "faulty").await;
    for fault in [S3Fault::Unavailable, S3Fault::Cut, S3Fault::LostAnswer] {
        for method in ["PUT ", "GET ", "HEAD "] {
            world.s3.inject(fault, method, 1);
        }
    }
    publisher.pictures_pass(8 * FPS).await;
    let ended = world.ended("faulty");
    world.publish(&ended).expect("publish");
    let row = world.archive("faulty", "available").await;
    let truth = publisher.crash().timeline();
    assert_eq!(world.s3.faults_left(), 0, "faults that no request met");
    let archive = world.download(&row).expect("download");
    let matched = Content::read(&archive.files("alice")[0]).expect("file").against(&truth);
    assert_eq!((matched.missing.len(), matched.strange), (0, 0), "{:?}", matched.holes());
    assert_eq!(archive.manifest["complete"], json!(true), "{}", archive.report);
}

/// What the command says that publishes an event, and whether it succeeds.
fn publishes(world: &World, event: &Value) -> (bool, String) {
    let file = world.scratch().join("event.json");
    std::fs::write(&file, event.to_string()).expect("the event");
    let done = world.command(&["events", "publish", "--force", &file.to_string_lossy()]).expect("command");
    (done.status.success(), String::from_utf8_lossy(&done.stderr).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_short_of_memory_says_so_and_sessions_go_on() {
    let mut world = World::start_private(BINARY, None, "").await.expect("world");
    let publisher = recording(&mut world, "alarm").await;
    world.rabbit.alarm(true).expect("an alarm");
    let ended = world.ended("alarm");
    let (is_published, said) = publishes(&world, &ended);
    assert!(
        !is_published && said.contains("accepts no messages") && said.contains("rabbitmq-diagnostics alarms"),
        "{said}"
    );
    let checked = world.command(&["check"]).expect("command");
    let checked = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(checked.contains("accepts no messages"), "{checked}");
    publisher.pictures_pass(3 * FPS).await;
    world.rabbit.alarm(false).expect("no alarm");
    wait_for("the broker to take messages", || async { publishes(&world, &ended).0.then_some(()) }).await;
    let row = world.archive("alarm", "available").await;
    let truth = publisher.crash().timeline();
    let archive = world.download(&row).expect("download");
    let matched = Content::read(&archive.files("alice")[0]).expect("file").against(&truth);
    assert_eq!((matched.missing.len(), matched.strange), (0, 0), "{:?}", matched.holes());
    assert_eq!((owners(&archive), &archive.manifest["complete"]), (1, &json!(true)), "{}", archive.report);
}
