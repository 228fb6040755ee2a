//! One machine of a fleet: a disk, a clock, and a worker process in a runtime of its own. The process can be killed, stopped, paused.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use archiver::app::services::Services;
use archiver::app::worker::{Machine as WorkerMachine, WorkerStartError, run_as};
use archiver::broker::SharedBroker;
use archiver::catalog::{SharedCatalog, WorkerInstance};
use archiver::config::{ByteCount, DurationValue, Settings};
use archiver::model::ids::{InstanceId, RouterName, WorkerId};
use archiver::model::time::SimulatedTime;
use archiver::recording::spool::Spool;
use archiver::webrtc::Engine;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tokio::time::{Instant, advance, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::capture::StandIn;
use super::files::TextFiles;
use super::publishers::Publishers;
use super::randomness::seed_pool_thread;
use super::{Millis, REGION, ROUTER, Timeline};
use crate::{Calls, Chance, FakeRouter, Fault, MemoryBroker, MemoryCatalog, MemoryStore};

/// A runtime's timers have a resolution of a millisecond, since its beginning: those of two runtimes differ by less than this.
const PHASE_MAX: Duration = Duration::from_micros(20);

/// A worker that works for so long without a break has sent what it had of other workers' jobs: it looks through its spool every 15 s.
const WORKED_MIN: Millis = 20_000;

/// A service as one machine reaches it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Service {
    /// The catalog.
    Catalog,
    /// The store.
    Store,
    /// The broker.
    Broker,
    /// The media router's signalling.
    Router,
}

/// How a service fails for a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// It cannot be reached.
    Cut,
    /// It does not answer until that is over.
    Hang,
    /// Each answer takes so long.
    Slow(Duration),
    /// It does what it is asked, and of every fifth call the answer is lost.
    LosesAnswers,
}

/// The process of a worker.
struct Process {
    runtime: Runtime,
    task: JoinHandle<Result<(), WorkerStartError>>,
    stop: CancellationToken,
}

/// A machine.
pub struct Machine {
    number: usize,
    timeline: Timeline,
    capacity: usize,
    disk: PathBuf,
    instance: InstanceId,
    /// Its clock is so much ahead.
    skew_us: i64,
    process: Option<Process>,
    /// Its process stands still.
    is_paused: bool,
    publishers: Publishers,
    /// The services as this machine reaches them.
    pub catalog: MemoryCatalog,
    /// The store.
    pub store: MemoryStore,
    /// The broker.
    pub broker: MemoryBroker,
    /// The router.
    pub router: FakeRouter,
    troubles: BTreeMap<Service, Trouble>,
    /// When it last began or ceased to work without a break, and whether its disk was lost then.
    breaks: Vec<Break>,
    told_to_stop_at: Option<Millis>,
    /// When a process ended that was told to stop, and that had worked without a break for long: all that it had is in the store.
    clean_ends: Vec<Millis>,
}

/// A change that keeps a machine from its work, or lets it work again.
#[derive(Debug, Clone, Copy)]
struct Break {
    at: Millis,
    works: bool,
    disk_lost: bool,
}

/// The services that a machine reaches.
pub(super) struct Reached {
    pub catalog: MemoryCatalog,
    pub store: MemoryStore,
    pub broker: MemoryBroker,
    pub router: FakeRouter,
}

impl Machine {
    pub(super) fn new(
        number: usize,
        timeline: Timeline,
        capacity: usize,
        disk: PathBuf,
        publishers: Publishers,
        reached: Reached,
    ) -> Self {
        let Reached { catalog, store, broker, router } = reached;
        Self {
            number,
            timeline,
            capacity,
            instance: instance(number, 0),
            disk,
            skew_us: 0,
            process: None,
            is_paused: false,
            publishers,
            catalog,
            store,
            broker,
            router,
            troubles: BTreeMap::new(),
            breaks: Vec::new(),
            told_to_stop_at: None,
            clean_ends: Vec::new(),
        }
    }

    /// Whether a process has ended as it should since a moment, with the disk of that moment.
    #[must_use]
    pub fn has_left_nothing_since(&self, at: Millis) -> bool {
        let lost = self.breaks.iter().filter(|one| one.disk_lost && one.at >= at).map(|one| one.at).min();
        self.clean_ends.iter().any(|end| *end >= at && lost.is_none_or(|lost| *end < lost))
    }

    /// How long it worked without a break, of the time between two moments. Nothing counts from before its disk was lost.
    #[must_use]
    pub fn worked_since(&self, from: Millis, to: Millis) -> Millis {
        if self.breaks.iter().any(|one| one.disk_lost && one.at >= from) {
            return 0;
        }
        let (mut longest, mut since) = (0, None);
        for one in &self.breaks {
            if let Some(since) = since.take() {
                longest = longest.max(one.at.min(to).saturating_sub(from.max(since)));
            }
            since = one.works.then_some(one.at);
        }
        longest.max(since.map_or(0, |since| to.saturating_sub(from.max(since))))
    }

    /// Notes that something changed that keeps it from its work.
    fn note(&mut self, at: Millis, disk_lost: bool) {
        let works = self.process.is_some() && !self.is_paused && self.troubles.is_empty();
        self.breaks.push(Break { at, works, disk_lost });
    }

    /// The worker's name.
    #[must_use]
    pub fn name(&self) -> WorkerId {
        format!("w{}", self.number).parse().expect("a name")
    }

    /// Whether a process runs, or stands still.
    #[must_use]
    pub const fn is_up(&self) -> bool {
        self.process.is_some()
    }

    /// The folder of its logs.
    #[must_use]
    pub fn spool(&self) -> PathBuf {
        self.disk.join("spool")
    }

    fn settings(&self) -> Settings {
        let mut settings = Settings::default();
        settings.worker.id = Some(self.name());
        settings.worker.region = REGION.parse().expect("a region");
        settings.worker.capacity = self.capacity;
        settings.worker.data_dir.clone_from(&self.disk);
        settings.worker.lease = Some(DurationValue(Duration::from_secs(3)));
        settings.http.bind = ([127, 0, 0, 1], 0).into();
        settings.spool.free_min = ByteCount(0);
        settings
    }

    /// Starts a process at a moment.
    pub(super) fn start(&mut self, now: Millis) {
        assert!(self.process.is_none(), "a process runs on w{}", self.number);
        let (target, stop) = (Instant::from_std(self.timeline.instant(now)), CancellationToken::new());
        let runtime = runtime(target);
        let clock = self.clock();
        // All runtimes agree on the time.
        runtime.block_on(async { advance(target - Instant::now()).await });
        let task = {
            let _context = runtime.enter();
            runtime.spawn(self.process(stop.clone()))
        };
        drop(clock);
        self.is_paused = false;
        self.process = Some(Process { runtime, task, stop });
        self.note(now, false);
    }

    /// What a process does.
    fn process(&self, stop: CancellationToken) -> impl Future<Output = Result<(), WorkerStartError>> + Send + use<> {
        let settings = self.settings();
        let name =
            WorkerInstance { worker: self.name(), instance: self.instance, since: self.timeline.wallclock(self.now()) };
        let (number, timeline, publishers) = (self.number, self.timeline, self.publishers.clone());
        let services = Services {
            catalog: self.catalog.shared() as SharedCatalog,
            store: Arc::new(self.store.clone()),
            routers: BTreeMap::from([(router_name(), self.router.shared())]).into_iter().collect(),
            broker: self.broker.shared() as SharedBroker,
        };
        let (spool_dir, router) = (self.spool(), self.router.clone());
        let work = async move {
            let spool = Spool::open(&spool_dir, 10 << 30, 90)?;
            let spool = Arc::new(spool.with_free_min(0));
            let (engine, commands) = Engine::stand_in();
            let threads = StandIn::new(number, timeline, publishers, router, Arc::clone(&spool));
            let machine = WorkerMachine { engine, spool, stream_files: Arc::new(TextFiles) };
            let (ended, ()) = tokio::join!(run_as(settings, services, machine, name, stop), threads.run(commands));
            ended
        };
        work.instrument(tracing::info_span!("machine", w = self.number))
    }

    fn now(&self) -> Millis {
        self.timeline.now()
    }

    fn clock(&self) -> SimulatedTime {
        SimulatedTime::on_machine(self.timeline.start, Instant::from_std(self.timeline.base), self.skew_us)
    }

    /// Lets the process run until a moment. Returns how it ended, if it has.
    pub(super) fn run_until(&mut self, until: Millis) -> Option<Result<(), WorkerStartError>> {
        if self.is_paused {
            return None;
        }
        let (clock, at) = (self.clock(), until);
        let process = self.process.as_mut()?;
        let until = Instant::from_std(self.timeline.instant(until));
        process.runtime.block_on(async {
            let behind = until.saturating_duration_since(Instant::now());
            // It stood still: all that was due meanwhile is due now.
            if behind > Duration::from_millis(500) {
                advance(behind).await;
            }
            sleep_until(until).await;
        });
        if !process.task.is_finished() {
            return None;
        }
        let process = self.process.take()?;
        let ended = process.runtime.block_on(process.task).expect("a worker does not panic");
        drop((process.runtime, clock));
        let told = self.told_to_stop_at.take().filter(|_| ended.is_ok());
        let works = self.breaks.last().is_some_and(|one| one.works);
        let has_worked = |told: &Millis| works && !self.breaks.iter().any(|one| one.at + WORKED_MIN >= *told);
        self.clean_ends.extend(told.filter(has_worked).map(|_| at));
        self.note(at, false);
        Some(ended)
    }

    /// The process dies at once.
    pub(super) fn kill(&mut self, now: Millis) {
        let clock = self.clock();
        self.told_to_stop_at = None;
        // What its tasks hold is dropped with them.
        drop(self.process.take());
        drop(clock);
        self.note(now, false);
    }

    /// The machine is lost, and another one has its name.
    pub(super) fn lose_disk(&mut self, life: u32, now: Millis) {
        self.kill(now);
        self.note(now, true);
        std::fs::remove_dir_all(&self.disk).unwrap_or_default();
        self.instance = instance(self.number, life);
    }

    /// The process is told to stop.
    pub(super) fn stop(&mut self, now: Millis) {
        if let Some(process) = &self.process {
            self.told_to_stop_at = Some(now);
            process.stop.cancel();
        }
    }

    /// The process stands still, or goes on.
    pub(super) fn pause(&mut self, is_paused: bool, now: Millis) {
        self.is_paused = is_paused;
        self.note(now, false);
    }

    /// Sets the machine's clock.
    pub(super) fn set_skew(&mut self, skew_us: i64) {
        self.skew_us = skew_us;
    }

    /// A service is in trouble for this machine, or not any more.
    pub(super) fn trouble(&mut self, service: Service, trouble: Option<Trouble>, now: Millis) {
        match trouble {
            Some(trouble) => self.troubles.insert(service, trouble),
            None => self.troubles.remove(&service),
        };
        self.note(now, false);
        match service {
            Service::Broker if trouble.is_some() => self.broker.cut_off(),
            Service::Broker => self.broker.rejoin(),
            Service::Router if trouble.is_some() => self.router.cut_off(),
            Service::Router => self.router.rejoin(),
            Service::Catalog | Service::Store => {}
        }
        let faults = match service {
            Service::Catalog => self.catalog.faults(),
            Service::Store => self.store.faults(),
            Service::Broker | Service::Router => return,
        };
        faults.heal();
        match self.troubles.get(&service) {
            None => {}
            Some(Trouble::Cut) => faults.inject(Fault::Unavailable, Calls::all()),
            Some(Trouble::Hang) => faults.inject(Fault::Hang, Calls::all()),
            Some(Trouble::Slow(delay)) => faults.inject(Fault::Slow(*delay), Calls::all()),
            Some(Trouble::LosesAnswers) => {
                faults.randomly(self.number as u64, &[Chance { fault: Fault::LostAnswer, share: 0.2 }]);
            }
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill(Millis::MAX);
    }
}

/// The id of a data folder.
fn instance(machine: usize, life: u32) -> InstanceId {
    format!("00000000-0000-4000-8000-{machine:06}{life:06}").parse().expect("an id")
}

fn router_name() -> RouterName {
    ROUTER.parse().expect("a name")
}

/// A runtime for a process that begins at a moment. Files are written and read one after the other, and what they wake runs behind what is
/// ready: the order does not depend on how fast the machine is.
fn runtime(begin: Instant) -> Runtime {
    let mut builder = Builder::new_current_thread();
    builder.enable_all().start_paused(true).max_blocking_threads(1).global_queue_interval(u32::MAX);
    builder.on_thread_start(seed_pool_thread);
    loop {
        let runtime = builder.build().expect("a runtime");
        let until = begin - runtime.block_on(async { Instant::now() });
        if Duration::from_nanos(u64::from(until.subsec_nanos() % 1_000_000)) < PHASE_MAX {
            return runtime;
        }
    }
}
