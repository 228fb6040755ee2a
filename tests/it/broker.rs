//! The broker's promises, each held in memory and on a real RabbitMQ, and what may happen to the latter.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use archiver::broker::{
    Broker, BrokerConfig, BrokerError, BrokerState, Delivery, ENDED_KEY, Headers, Outcome, RabbitBroker, STARTED_KEY,
    SharedBroker,
};
use archiver::model::fault::{FaultKind, HasFault, chain};
use archiver_sim::MemoryRabbit;
use archiver_testkit::proxy::{TcpMode, TcpProxy};
use archiver_testkit::rabbitmq::RabbitMq;
use archiver_testkit::wait::wait_for;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const REGION: &str = "eu";
const SOON: Duration = Duration::from_secs(20);
/// Long enough for something to happen that must not.
const A_WHILE: Duration = Duration::from_millis(700);

const RETRY_AFTER: Duration = Duration::from_millis(400);

/// The broker of a test, and what the test looks at behind it.
enum Ground {
    /// In this process.
    Memory(MemoryRabbit),
    /// A virtual host of a real one.
    Rabbit { config: BrokerConfig, _node: Box<RabbitMq> },
}

impl Ground {
    async fn rabbit() -> Self {
        let (node, config) = node().await;
        Self::Rabbit { config, _node: Box::new(node) }
    }

    /// The broker as one more process sees it.
    fn broker(&self) -> SharedBroker {
        match self {
            Self::Memory(rabbit) => rabbit.process(&REGION.parse().expect("region"), RETRY_AFTER).shared(),
            Self::Rabbit { config, .. } => Arc::new(RabbitBroker::new(config.clone())),
        }
    }

    async fn publish(&self, key: &str, body: &str) -> Result<(), BrokerError> {
        publish(self.broker(), key, body).await
    }

    async fn waits_for_count(&self, queue: &str, count: usize) {
        let ask = || async {
            let waiting = match self {
                Self::Memory(rabbit) => rabbit.waiting(queue),
                Self::Rabbit { config, .. } => waiting(config, queue).await as usize,
            };
            (waiting == count).then_some(())
        };
        wait_for(&format!("{count} messages in {queue}"), ask).await;
    }

    /// Publishes a hint as a media router's event handler does.
    async fn hint(&self, queue: &str, body: &[u8]) {
        match self {
            Self::Memory(rabbit) => rabbit.hint(queue, body),
            Self::Rabbit { config, .. } => {
                let (_connection, channel) = channel(config).await;
                let (options, properties) = (BasicPublishOptions::default(), lapin::BasicProperties::default());
                let sent = channel.basic_publish("".into(), queue.into(), options, body, properties).await;
                sent.expect("publish").await.expect("sent");
            }
        }
    }

    async fn delete_queue(&self, queue: &str) {
        match self {
            Self::Memory(rabbit) => rabbit.delete_queue(queue),
            Self::Rabbit { config, .. } => {
                let (_connection, channel) = channel(config).await;
                let name = format!("{}.{queue}", config.prefix);
                channel.queue_delete(name.as_str().into(), QueueDeleteOptions::default()).await.expect("delete");
            }
        }
    }
}

/// Each test in memory, where time is simulated, and on RabbitMQ.
macro_rules! on_each_broker {
    ($($name:ident => $test:path;)*) => {
        mod memory {
            use super::*;

            $(#[tokio::test(start_paused = true)]
            async fn $name() {
                $test(Ground::Memory(MemoryRabbit::new())).await;
            })*
        }
        mod rabbit {
            use super::*;

            $(#[tokio::test]
            async fn $name() {
                $test(Ground::rabbit().await).await;
            })*
        }
    };
}

on_each_broker! {
    what_is_published_is_consumed_once_with_its_headers => consumed_once;
    what_cannot_be_done_now_comes_again_after_a_while_and_counts_its_tries => later;
    an_event_that_makes_the_handler_panic_ends_with_the_dead_and_harms_no_other => poison;
    a_full_worker_leaves_started_events_to_others_and_still_hears_of_ends => full;
    what_was_under_way_to_a_worker_that_fills_up_is_not_kept_from_others => fills_up;
    a_job_that_is_not_claimed_here_blocks_no_more_than_a_moment => not_claimed;
    queues_that_are_deleted_under_a_consumer_are_made_again => deleted_queues;
    what_no_queue_takes_is_an_error_of_the_publisher => unroutable;
    each_nudge_is_heard_by_all_who_listen => nudges;
    hints_are_handed_on_in_order => hints;
}

/// Names of its own for each test, so that many share a node.
fn config_at(url: String) -> BrokerConfig {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let mut config = BrokerConfig::new(url.into(), REGION.parse().expect("region"));
    config.prefix = format!("test{}", COUNT.fetch_add(1, Ordering::Relaxed));
    config.heartbeat = Duration::from_secs(2);
    config.retry_after = RETRY_AFTER;
    config
}

async fn node() -> (RabbitMq, BrokerConfig) {
    let node = tokio::task::spawn_blocking(RabbitMq::shared).await.expect("task").expect("RabbitMQ");
    let config = config_at(node.url());
    (node, config)
}

async fn own_node() -> (RabbitMq, BrokerConfig) {
    // What is printed is shown when the test fails.
    tracing_subscriber::fmt().with_test_writer().with_max_level(tracing::Level::INFO).try_init().unwrap_or_default();
    let node = tokio::task::spawn_blocking(RabbitMq::start).await.expect("task").expect("RabbitMQ");
    let config = config_at(node.url());
    (node, config)
}

async fn publish(broker: SharedBroker, key: &str, body: &str) -> Result<(), BrokerError> {
    let publisher = broker.publisher().await?;
    publisher.publish(&format!("{key}.{REGION}"), body.as_bytes(), &Headers::new()).await?;
    publisher.close().await;
    Ok(())
}

/// A worker's consumer; what it is given can be asked for.
struct Worker {
    deliveries: mpsc::Receiver<Delivery>,
    state: watch::Receiver<BrokerState>,
    room: watch::Sender<usize>,
    cancel: CancellationToken,
    tasks: TaskTracker,
}

impl Worker {
    /// `answer` is called in the handler, after the delivery was noted.
    async fn start(
        broker: SharedBroker,
        room: usize,
        answer: impl Fn(&Delivery) -> Outcome + Send + Sync + 'static,
    ) -> Self {
        let (sender, deliveries) = mpsc::channel(1000);
        let (state_sender, state) = watch::channel(BrokerState::Disconnected);
        let (room, free) = watch::channel(room);
        let (cancel, tasks) = (CancellationToken::new(), TaskTracker::new());
        tasks.spawn({
            let cancel = cancel.clone();
            async move {
                let answer = &answer;
                let handle = |delivery: Delivery| {
                    let sender = sender.clone();
                    async move {
                        sender.send(delivery.clone()).await.expect("the test waits for it");
                        answer(&delivery)
                    }
                };
                broker.consume(free, &state_sender, &cancel, &handle).await;
            }
        });
        tasks.close();
        let mut worker = Self { deliveries, state, room, cancel, tasks };
        worker.becomes(BrokerState::Connected).await;
        worker
    }

    async fn becomes(&mut self, wanted: BrokerState) {
        let changed = self.state.wait_for(|state| *state == wanted);
        tokio::time::timeout(SOON * 2, changed)
            .await
            .unwrap_or_else(|_| panic!("not {wanted:?} in time"))
            .expect("state");
    }

    async fn next(&mut self) -> Delivery {
        tokio::time::timeout(SOON, self.deliveries.recv()).await.expect("a delivery in time").expect("a delivery")
    }

    async fn next_body(&mut self) -> String {
        String::from_utf8(self.next().await.body).expect("text")
    }

    async fn gets_nothing(&mut self) {
        let more = tokio::time::timeout(A_WHILE, self.deliveries.recv()).await;
        assert!(more.is_err(), "{more:?}");
    }

    async fn stop(self) {
        self.cancel.cancel();
        tokio::time::timeout(Duration::from_secs(5), self.tasks.wait()).await.expect("it stops at once");
    }
}

async fn channel(config: &BrokerConfig) -> (lapin::Connection, lapin::Channel) {
    use secrecy::ExposeSecret;
    let properties = lapin::ConnectionProperties::default();
    let connection = lapin::Connection::connect(config.url.expose_secret(), properties).await.expect("connection");
    let channel = connection.create_channel().await.expect("channel");
    // What a connection that is dropped has not sent yet is lost: what is published here is confirmed.
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
    (connection, channel)
}

/// Messages in a queue that nobody has taken.
async fn waiting(config: &BrokerConfig, queue: &str) -> u32 {
    let (_connection, channel) = channel(config).await;
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let name = format!("{}.{queue}", config.prefix);
    let queue = channel.queue_declare(name.as_str().into(), passive, FieldTable::default()).await.expect("queue");
    queue.message_count()
}

fn rabbit(config: &BrokerConfig) -> SharedBroker {
    Arc::new(RabbitBroker::new(config.clone()))
}

async fn consumed_once(ground: Ground) {
    let publisher = ground.broker().publisher().await.expect("publisher");
    let headers = Headers::from([("archiver-replayed-by".to_owned(), "alice".to_owned())]);
    publisher.publish("session.started.eu", b"before", &headers).await.expect("confirm");
    let mut worker = Worker::start(ground.broker(), 5, |_| Outcome::Ack).await;
    let first = worker.next().await;
    assert_eq!((first.body.as_slice(), first.routing_key.as_str()), (&b"before"[..], "session.started.eu"));
    assert_eq!((first.headers, first.attempt, first.dead), (headers, 0, false));
    publisher.publish("session.ended.eu", b"after", &Headers::new()).await.expect("confirm");
    assert_eq!(worker.next_body().await, "after");
    worker.gets_nothing().await;
    worker.stop().await;
    // All were acked: a second worker is given nothing.
    let mut second = Worker::start(ground.broker(), 5, |_| Outcome::Ack).await;
    second.gets_nothing().await;
    second.stop().await;
}

async fn later(ground: Ground) {
    let later = |d: &Delivery| if d.attempt < 2 { Outcome::Retry } else { Outcome::Ack };
    let mut worker = Worker::start(ground.broker(), 5, later).await;
    ground.publish(STARTED_KEY, "again").await.expect("confirm");
    let mut last = Instant::now();
    for attempt in 0..3 {
        let delivery = worker.next().await;
        assert_eq!((delivery.attempt, delivery.routing_key.as_str()), (attempt, "session.started.eu"));
        assert!(attempt == 0 || last.elapsed() >= RETRY_AFTER - Duration::from_millis(50));
        last = Instant::now();
    }
    worker.gets_nothing().await;
    worker.stop().await;
    for queue in ["started.eu", "retry.eu", "dead"] {
        ground.waits_for_count(queue, 0).await;
    }
}

async fn poison(ground: Ground) {
    let answer = |d: &Delivery| {
        assert!(d.dead || d.body != b"poison", "poison");
        Outcome::Ack
    };
    let mut worker = Worker::start(ground.broker(), 5, answer).await;
    ground.publish(STARTED_KEY, "poison").await.expect("confirm");
    ground.publish(STARTED_KEY, "good").await.expect("confirm");
    let (mut tries, mut good) = (0, 0);
    loop {
        let delivery = worker.next().await;
        match (delivery.body.as_slice(), delivery.dead) {
            (b"good", _) => good += 1,
            (_, false) => tries += 1,
            (_, true) => break,
        }
    }
    if good == 0 {
        assert_eq!(worker.next_body().await, "good");
    }
    assert!((20..=21).contains(&tries), "{tries} tries");
    worker.gets_nothing().await;
    assert_eq!(*worker.state.borrow(), BrokerState::Connected);
    worker.stop().await;
    ground.waits_for_count("dead", 0).await;
}

async fn full(ground: Ground) {
    let mut full = Worker::start(ground.broker(), 1, |_| Outcome::Accepted).await;
    for body in ["one", "two", "three"] {
        ground.publish(STARTED_KEY, body).await.expect("confirm");
    }
    assert_eq!(full.next_body().await, "one");
    full.room.send_replace(0);
    full.gets_nothing().await;
    ground.waits_for_count("started.eu", 2).await;
    ground.publish(ENDED_KEY, "end").await.expect("confirm");
    assert_eq!(full.next_body().await, "end");
    // Another worker gets what waits, at once and in order.
    let mut other = Worker::start(ground.broker(), 1, |_| Outcome::Accepted).await;
    assert_eq!(other.next_body().await, "two");
    other.room.send_replace(0);
    other.gets_nothing().await;
    // Room again: more comes.
    full.room.send_replace(1);
    assert_eq!(full.next_body().await, "three");
    full.stop().await;
    other.stop().await;
}

async fn fills_up(ground: Ground) {
    let mut full = Worker::start(ground.broker(), 3, |_| Outcome::Ack).await;
    for i in 0..200 {
        // Room comes and goes while events stream in.
        full.room.send_replace(i % 2);
        if i % 4 == 0 {
            ground.publish(STARTED_KEY, &format!("{i}")).await.expect("confirm");
        }
    }
    full.room.send_replace(0);
    let mut other = Worker::start(ground.broker(), 9, |_| Outcome::Ack).await;
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < 50 {
        let body = tokio::select! {
            body = full.next_body() => body,
            body = other.next_body() => body,
        };
        seen.insert(body);
    }
    ground.waits_for_count("dead", 0).await;
    full.stop().await;
    other.stop().await;
}

async fn not_claimed(ground: Ground) {
    let mut worker = Worker::start(ground.broker(), 1, |_| Outcome::Accepted).await;
    ground.publish(STARTED_KEY, "one").await.expect("confirm");
    ground.publish(STARTED_KEY, "two").await.expect("confirm");
    assert_eq!(worker.next_body().await, "one");
    // Another worker claimed it: the room here stays as it was.
    assert_eq!(worker.next_body().await, "two");
    worker.stop().await;
}

async fn deleted_queues(ground: Ground) {
    let mut worker = Worker::start(ground.broker(), 5, |_| Outcome::Ack).await;
    for queue in ["started.eu", "ended.eu", "retry.eu", "dead"] {
        ground.delete_queue(queue).await;
    }
    // An event without a queue is refused. By then the consumer may be connected again: its last state is no proof, that it has
    // changed is.
    wait_for("a queue for the event", || async { ground.publish(STARTED_KEY, "start").await.ok() }).await;
    assert_eq!(worker.next_body().await, "start");
    assert!(worker.state.has_changed().expect("state"), "the worker was never told that it was disconnected");
    worker.becomes(BrokerState::Connected).await;
    worker.stop().await;
}

async fn unroutable(ground: Ground) {
    let publisher = ground.broker().publisher().await.expect("publisher");
    let error = publisher.publish("session.started.mars", b"x", &Headers::new()).await.expect_err("nobody is there");
    assert!(
        matches!(&error, BrokerError::Unroutable { routing_key } if routing_key == "session.started.mars"),
        "{error}"
    );
    publisher.publish("session.started.eu", b"x", &Headers::new()).await.expect("the channel goes on");
}

/// Counts the nudges that a process hears until `tasks` ends.
fn listener(ground: &Ground, tasks: &TaskTracker, cancel: &CancellationToken) -> Arc<AtomicU32> {
    let heard = Arc::new(AtomicU32::new(0));
    let (broker, cancel, count) = (ground.broker(), cancel.clone(), Arc::clone(&heard));
    tasks.spawn(async move {
        let nudged = || {
            count.fetch_add(1, Ordering::SeqCst);
        };
        broker.consume_wakeups(&nudged, &cancel).await;
    });
    heard
}

async fn nudges(ground: Ground) {
    let (cancel, tasks, wanted) = (CancellationToken::new(), TaskTracker::new(), Arc::new(tokio::sync::Notify::new()));
    let heard = [listener(&ground, &tasks, &cancel), listener(&ground, &tasks, &cancel)];
    let count = || heard.each_ref().map(|heard| heard.load(Ordering::SeqCst));
    // What was asked for before somebody listened.
    wait_for("both to listen", || async { (count() == [1, 1]).then_some(()) }).await;
    let (broker, until, wanted_too) = (ground.broker(), cancel.clone(), Arc::clone(&wanted));
    tasks.spawn(async move { broker.publish_wakeups(&wanted_too, &until).await });
    for nth in 2..4 {
        wanted.notify_one();
        wait_for("a nudge", || async { (count() == [nth, nth]).then_some(()) }).await;
    }
    cancel.cancel();
    tasks.close();
    tokio::time::timeout(SOON, tasks.wait()).await.expect("it stops at once");
}

async fn hints(ground: Ground) {
    let (cancel, tasks, queue) =
        (CancellationToken::new(), TaskTracker::new(), format!("hints-{}", uuid::Uuid::new_v4()));
    let (sender, mut got) = mpsc::channel(100);
    let (broker, until, name) = (ground.broker(), cancel.clone(), queue.clone());
    tasks.spawn(async move {
        let take = |body: &[u8]| sender.try_send(body.to_vec()).expect("the test reads it");
        broker.consume_hints(&name, &take, &until).await;
    });
    // A hint before the queue is declared is lost: published again until one is heard.
    let mut sent = 0;
    let first = loop {
        sent += 1;
        ground.hint(&queue, sent.to_string().as_bytes()).await;
        match tokio::time::timeout(A_WHILE, got.recv()).await {
            Ok(hint) => break hint.expect("it listens"),
            Err(_) => assert!(sent < 60, "no hint of {sent} was heard"),
        }
    };
    let first: u32 = String::from_utf8(first).expect("text").parse().expect("number");
    for nth in sent + 1..sent + 5 {
        ground.hint(&queue, nth.to_string().as_bytes()).await;
    }
    for nth in first + 1..sent + 5 {
        let hint = tokio::time::timeout(SOON, got.recv()).await.expect("a hint in time").expect("a hint");
        assert_eq!(hint, nth.to_string().as_bytes());
    }
    cancel.cancel();
    tasks.close();
    tokio::time::timeout(SOON, tasks.wait()).await.expect("it stops at once");
}

#[tokio::test]
async fn a_wrong_login_and_a_queue_that_was_declared_otherwise_are_refusals_without_secrets() {
    let (node, mut config) = node().await;
    config.url = node.url().replace("guest:guest@", "guest:hunter2@").into();
    let error = RabbitBroker::new(config.clone()).probe().await.expect_err("wrong password");
    assert_eq!(error.fault().kind, FaultKind::BrokerRefused, "{}", chain(&error));
    for text in [chain(&error), format!("{error:?}"), format!("{config:?}")] {
        assert!(!text.contains("hunter2"), "{text}");
    }
    let config = config_at(node.url());
    let (_connection, channel) = channel(&config).await;
    let name = format!("{}.started.eu", config.prefix);
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(name.as_str().into(), durable, FieldTable::default()).await.expect("queue");
    let error = RabbitBroker::new(config.clone()).probe().await.expect_err("another queue");
    assert_eq!(error.fault().kind, FaultKind::BrokerRefused, "{}", chain(&error));
    assert!(chain(&error).contains(&name), "{}", chain(&error));
}

#[tokio::test]
async fn a_black_hole_is_noticed_left_and_outlived() {
    let (node, mut config) = node().await;
    let direct = config.clone();
    let proxy = TcpProxy::start("127.0.0.1".parse().expect("ip"), node.address()).expect("proxy");
    config.url = node.url().replace(&node.address().to_string(), &proxy.address().to_string()).into();
    let mut worker = Worker::start(rabbit(&config), 5, |_| Outcome::Ack).await;
    let publisher = RabbitBroker::new(config.clone()).publisher().await.expect("publisher");
    proxy.set(TcpMode::BlackHole);
    let begun = Instant::now();
    let error = publisher.publish("session.started.eu", b"lost", &Headers::new()).await.expect_err("no confirm");
    assert_eq!(error.fault().kind, FaultKind::BrokerUnavailable, "{}", chain(&error));
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    // What cannot be closed is let go.
    let closing = tokio::spawn(tokio::time::timeout(Duration::from_secs(10), publisher.close()));
    worker.becomes(BrokerState::Disconnected).await;
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    closing.await.expect("task").expect("closed");
    publish(rabbit(&direct), STARTED_KEY, "meanwhile").await.expect("confirm");
    proxy.cut();
    proxy.set(TcpMode::Forward);
    worker.becomes(BrokerState::Connected).await;
    assert_eq!(worker.next_body().await, "meanwhile");
    worker.stop().await;
}

#[tokio::test]
async fn a_broker_that_is_killed_or_frozen_loses_nothing() {
    let (mut node, config) = own_node().await;
    let mut worker = Worker::start(rabbit(&config), 5, |_| Outcome::Ack).await;
    publish(rabbit(&config), STARTED_KEY, "first").await.expect("confirm");
    assert_eq!(worker.next_body().await, "first");
    worker.room.send_replace(0);
    tokio::time::sleep(A_WHILE).await;
    publish(rabbit(&config), STARTED_KEY, "kept").await.expect("confirm");
    node.sync().expect("synced");
    node.kill9();
    worker.becomes(BrokerState::Disconnected).await;
    assert_eq!(
        publish(rabbit(&config), STARTED_KEY, "nobody").await.expect_err("it is dead").fault().kind,
        FaultKind::BrokerUnavailable
    );
    let mut node =
        tokio::task::spawn_blocking(move || node.restart().map(|()| node)).await.expect("task").expect("node");
    worker.becomes(BrokerState::Connected).await;
    worker.room.send_replace(5);
    assert_eq!(worker.next_body().await, "kept");
    node.pause();
    worker.becomes(BrokerState::Disconnected).await;
    node.resume();
    worker.becomes(BrokerState::Connected).await;
    publish(rabbit(&config), STARTED_KEY, "last").await.expect("confirm");
    assert_eq!(worker.next_body().await, "last");
    node.kill9();
    worker.becomes(BrokerState::Disconnected).await;
    worker.stop().await;
}

/// What finds its connection lost goes over the next one.
#[tokio::test(flavor = "multi_thread")]
async fn a_nudge_outlives_the_connection_that_it_finds_lost() {
    let (node, config) = node().await;
    let proxy = TcpProxy::start([127, 0, 0, 1].into(), node.address()).expect("proxy");
    let url = node.url().replace(&node.address().to_string(), &proxy.address().to_string());
    let mut behind = config_at(url);
    behind.prefix.clone_from(&config.prefix);
    let (wanted, heard) = (Arc::new(tokio::sync::Notify::new()), Arc::new(AtomicU32::new(0)));
    let (cancel, tasks) = (CancellationToken::new(), TaskTracker::new());
    tasks.spawn({
        let (heard, cancel) = (Arc::clone(&heard), cancel.clone());
        let nudged = move || {
            heard.fetch_add(1, Ordering::SeqCst);
        };
        async move { RabbitBroker::new(config).consume_wakeups(&nudged, &cancel).await }
    });
    let count = || heard.load(Ordering::SeqCst);
    wait_for("somebody to hear", || async { (count() > 0).then_some(()) }).await;
    tasks.spawn({
        let (wanted, cancel) = (Arc::clone(&wanted), cancel.clone());
        async move { RabbitBroker::new(behind).publish_wakeups(&wanted, &cancel).await }
    });
    wanted.notify_one();
    wait_for("a nudge", || async { (count() == 2).then_some(()) }).await;
    // It is noticed at the next one only, which is the last.
    proxy.set(TcpMode::Refuse);
    tokio::time::sleep(A_WHILE).await;
    wanted.notify_one();
    tokio::time::sleep(A_WHILE).await;
    proxy.set(TcpMode::Forward);
    wait_for("the nudge", || async { (count() >= 3).then_some(()) }).await;
    cancel.cancel();
    tasks.close();
    tasks.wait().await;
}
