//! What simulated time gives: exact deadlines, hours in milliseconds, equal runs from equal seeds.

use std::time::Duration;

use archiver::broker::{BrokerState, Delivery, Outcome, STARTED_KEY};
use archiver::catalog::{Accepted, Claimed, HeldLease, HistoryLine, JobRow, NewJob, SharedCatalog, StoredSpec};
use archiver::model::ids::{JobId, Region, SessionId, WorkerId};
use archiver::model::time::{SimulatedTime, Wallclock};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{advance, sleep};
use tokio_util::sync::CancellationToken;

use crate::broker::MemoryBroker;
use crate::{Calls, Chance, Fault, MemoryCatalog, MemoryRabbit};

const START: Wallclock = Wallclock(1_800_000_000_000_000);
const LEASE: Duration = Duration::from_secs(3);
const BEAT: Duration = Duration::from_millis(750);

fn region() -> Region {
    "eu".parse().expect("region")
}

fn worker(name: &str) -> WorkerId {
    name.parse().expect("worker")
}

async fn accepted(catalog: &SharedCatalog, session: &str) -> JobRow {
    let session: SessionId = session.parse().expect("session");
    let new = NewJob {
        job: JobId::of_event(&session, &"e".parse().expect("event")),
        session,
        application: "app".parse().expect("application"),
        region: region(),
        event: StoredSpec::read("{}".to_owned()),
        started_at: Wallclock::now(),
        tag: String::new(),
        is_conversation: true,
    };
    match catalog.accept(&new, Wallclock::now()).await.expect("accept") {
        Accepted::New(job) => job,
        other => panic!("wanted a new job, got {other:?}"),
    }
}

async fn claim(catalog: &SharedCatalog, job: JobId, owner: &str) -> Option<Claimed> {
    catalog.claim(job, &worker(owner), Wallclock::now(), LEASE).await.expect("claim")
}

#[tokio::test(start_paused = true)]
async fn a_lease_ends_exactly_when_the_simulated_clock_passes_it() {
    let _time = SimulatedTime::begin(START);
    let catalog = MemoryCatalog::new().shared();
    let job = accepted(&catalog, "s").await.job;
    assert_eq!(claim(&catalog, job, "a").await.expect("free").job.lease_expires_at, START + LEASE);
    advance(LEASE - Duration::from_micros(1)).await;
    assert!(claim(&catalog, job, "b").await.is_none(), "the lease runs for one microsecond more");
    advance(Duration::from_micros(1)).await;
    let taken = claim(&catalog, job, "b").await.expect("the lease has ended");
    assert_eq!((taken.takeover, taken.job.updated_at), (true, START + LEASE));
}

/// A worker as far as leases go: it claims what it can have, and keeps it while the catalog answers.
async fn renew_leases(catalog: SharedCatalog, owner: WorkerId) {
    let mut owned: Vec<JobRow> = Vec::new();
    loop {
        let held: Vec<HeldLease> = owned.iter().map(|job| HeldLease { job: job.job, epoch: job.epoch }).collect();
        if let Ok(kept) = catalog.heartbeat(&held, Wallclock::now(), LEASE).await {
            owned.retain(|job| kept.contains_key(&job.job));
        }
        let found = catalog.claimable(&owner, &region(), Wallclock::now(), 1).await.unwrap_or_default();
        let new: Vec<JobRow> = found.into_iter().filter(|job| owned.iter().all(|owned| owned.job != job.job)).collect();
        for job in new {
            if let Ok(Some(claimed)) = catalog.claim(job.job, &owner, Wallclock::now(), LEASE).await {
                owned.push(claimed.job);
            }
        }
        sleep(BEAT).await;
    }
}

/// Three workers with five jobs for three simulated hours; from time to time one dies and comes back, and the catalog has faults.
/// Returns the jobs' histories, and the processor's time that it took.
async fn fleet(seed: u64) -> (Vec<HistoryLine>, Duration) {
    let begun = processor_time();
    let _time = SimulatedTime::begin(START);
    let (catalog, mut random) = (MemoryCatalog::new(), StdRng::seed_from_u64(seed));
    let mut jobs = Vec::new();
    for n in 0..5 {
        jobs.push(accepted(&catalog.shared(), &format!("s{n}")).await.job);
    }
    let mut workers = Vec::new();
    for n in 0..3 {
        let own = catalog.for_another_process();
        let chances = [Fault::Unavailable, Fault::LostAnswer, Fault::Slow(Duration::from_millis(500))];
        own.faults().randomly(seed + n, &chances.map(|fault| Chance { fault, share: 0.02 }));
        let mut task = JoinSet::new();
        task.spawn(renew_leases(own.shared(), worker(&format!("w{n}"))));
        workers.push((own, task));
    }
    while Wallclock::now() < START + Duration::from_secs(3 * 3600) {
        sleep(Duration::from_secs(random.random_range(10..300))).await;
        let dies = random.random_range(0..workers.len());
        workers[dies].1.abort_all();
        sleep(Duration::from_secs(random.random_range(1..20))).await;
        let own = workers[dies].0.shared();
        workers[dies].1.spawn(renew_leases(own, worker(&format!("w{dies}"))));
    }
    let mut history = Vec::new();
    for job in jobs {
        history.extend(catalog.shared().job_history(job).await.expect("history"));
    }
    (history, processor_time() - begun)
}

/// How long a processor has run this thread.
fn processor_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    Duration::from_nanos(text.split(' ').next().and_then(|ns| ns.parse().ok()).expect("a number"))
}

#[tokio::test(start_paused = true)]
async fn hours_of_a_fleet_take_seconds_and_are_the_same_from_the_same_seed() {
    let (first, took) = fleet(1).await;
    let (again, _) = fleet(1).await;
    let (other, _) = fleet(2).await;
    println!("3 simulated hours of 3 workers took {took:?}: {} lines of history", first.len());
    assert!(first.len() > 50, "wanted takeovers, got {first:?}");
    assert_eq!(first, again, "the same seed");
    assert_ne!(first, other, "another seed");
    assert!(took < Duration::from_secs(10), "wanted seconds, took {took:?}");
}

/// A consumer that notes what it gets, and when.
fn consume(
    tasks: &mut JoinSet<()>,
    broker: &MemoryBroker,
    answer: fn(&Delivery) -> Outcome,
) -> (mpsc::Receiver<(Delivery, Wallclock)>, watch::Sender<usize>) {
    let (sender, receiver) = mpsc::channel(100);
    let (room, free) = watch::channel(1);
    let broker = broker.shared();
    tasks.spawn(async move {
        let (state, cancel) = (watch::Sender::new(BrokerState::Disconnected), CancellationToken::new());
        let handle = |delivery: Delivery| {
            let sender = sender.clone();
            async move {
                let outcome = answer(&delivery);
                sender.send((delivery, Wallclock::now())).await.expect("the test reads it");
                outcome
            }
        };
        broker.consume(free, &state, &cancel, &handle).await;
    });
    (receiver, room)
}

#[tokio::test(start_paused = true)]
async fn a_delivery_that_is_put_off_comes_again_after_its_pause_and_one_of_a_dead_worker_at_once() {
    let _time = SimulatedTime::begin(START);
    let (rabbit, later) = (MemoryRabbit::new(), Duration::from_secs(5));
    let [one, two, outside] = [(); 3].map(|()| rabbit.process(&region(), later));
    let mut tasks = JoinSet::new();
    let (mut got, _room) = consume(&mut tasks, &one, |d| if d.attempt == 0 { Outcome::Retry } else { Outcome::Ack });
    let publisher = outside.shared().publisher().await.expect("publisher");
    publisher.publish(&format!("{STARTED_KEY}.eu"), b"x", &Default::default()).await.expect("confirmed");
    let mut attempts = Vec::new();
    for _ in 0..2 {
        let (delivery, at) = got.recv().await.expect("a delivery");
        attempts.push((delivery.attempt, at.since(START)));
    }
    assert_eq!(attempts, [(0, Duration::ZERO), (1, later)]);
    // A worker that dies while it holds one: the next worker has it at the same moment.
    tasks.shutdown().await;
    let mut tasks = JoinSet::new();
    let handle = |_: Delivery| std::future::pending::<Outcome>();
    let holder = one.shared();
    tasks.spawn(async move {
        let (state, cancel) = (watch::Sender::new(BrokerState::Disconnected), CancellationToken::new());
        let (_room, free) = watch::channel(1);
        holder.consume(free, &state, &cancel, &handle).await;
    });
    publisher.publish(&format!("{STARTED_KEY}.eu"), b"held", &Default::default()).await.expect("confirmed");
    sleep(Duration::from_secs(60)).await;
    assert_eq!(rabbit.waiting("started.eu"), 0, "it is held");
    tasks.shutdown().await;
    let (mut got, _room) = consume(&mut tasks, &two, |_| Outcome::Ack);
    let (delivery, at) = got.recv().await.expect("a delivery");
    assert_eq!((delivery.body.as_slice(), at), (&b"held"[..], Wallclock::now()));
    tasks.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_confirm_that_is_lost_leaves_the_event_in_its_queue() {
    let rabbit = MemoryRabbit::new();
    let broker = rabbit.process(&region(), LEASE);
    let publisher = broker.shared().publisher().await.expect("publisher");
    broker.faults().inject(Fault::LostAnswer, Calls::of("publish").times(1));
    let key = format!("{STARTED_KEY}.eu");
    publisher.publish(&key, b"x", &Default::default()).await.expect_err("the confirm is lost");
    assert_eq!(rabbit.waiting("started.eu"), 1);
    broker.faults().inject(Fault::Duplicated, Calls::of("publish").times(1));
    publisher.publish(&key, b"x", &Default::default()).await.expect("confirmed");
    assert_eq!(rabbit.waiting("started.eu"), 3);
    let nowhere = publisher.publish("session.started.mars", b"x", &Default::default()).await;
    assert!(matches!(nowhere, Err(archiver::broker::BrokerError::Unroutable { .. })), "got {nowhere:?}");
}
