//! A fleet of workers in one thread and in simulated time. The workers are the real ones, from the broker's consumer to the upload of the
//! archive; each runs in a runtime of its own, so that it can be killed, paused and set wrong. Simulated are the services, the media router,
//! the capture threads and the muxers.
//!
//! ```text
//! script (from a seed) ─► fleet: machines, services, publishers ─► checks: what must be in the archives, and what must not be left over
//! ```

mod capture;
mod checks;
mod files;
mod machine;
mod outages;
mod publishers;
mod randomness;
mod script;
mod tests;

use std::time::{Duration, Instant};

use archiver::broker::{ENDED_KEY, Headers, STARTED_KEY};
use archiver::catalog::{JobRow, SharedCatalog};
use archiver::model::ids::{JobId, RoomId, RouterName, SessionId};
use archiver::model::time::Wallclock;
use serde_json::json;
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

use crate::router::stream;
use crate::{FakeRouter, MemoryBroker, MemoryCatalog, MemoryRabbit, MemoryStore};
use machine::{Machine, Reached};
use publishers::Publishers;
use script::{Action, Script};

/// Milliseconds since a simulation began.
pub type Millis = u64;

const REGION: &str = "eu";
const ROUTER: &str = "r1";
const APPLICATION: &str = "app";
/// The wall clock's time when a simulation begins.
const START: Wallclock = Wallclock(1_800_000_000_000_000);
/// Machines run in turn, each for so long.
const STEP: Millis = 20;
/// A simulation's monotonic clock begins so long after the real one's: a runtime's clock can only be advanced.
const AHEAD: Duration = Duration::from_secs(24 * 3600);

/// The time that all machines share.
#[derive(Debug, Clone, Copy)]
pub struct Timeline {
    /// The monotonic clock when the simulation began.
    pub base: Instant,
    /// The wall clock then.
    pub start: Wallclock,
}

impl Timeline {
    fn begin() -> Self {
        Self { base: Instant::now() + AHEAD, start: START }
    }

    /// The time in the present runtime.
    fn now(&self) -> Millis {
        let since = tokio::time::Instant::now().into_std().saturating_duration_since(self.base);
        Millis::try_from(since.as_millis()).expect("a simulation is short")
    }

    /// The wall clock at a moment.
    fn wallclock(&self, at: Millis) -> Wallclock {
        self.start + Duration::from_millis(at)
    }
}

/// An event that the platform sends until the broker has it.
#[derive(Debug, Clone)]
struct Outgoing {
    routing_key: String,
    body: Vec<u8>,
}

/// A fleet and all that it works with.
pub struct Fleet {
    timeline: Timeline,
    now: Millis,
    machines: Vec<Machine>,
    catalog: MemoryCatalog,
    store: MemoryStore,
    rabbit: MemoryRabbit,
    platform: MemoryBroker,
    outgoing: Vec<Outgoing>,
    router: FakeRouter,
    publishers: Publishers,
    /// Disks that were lost so far.
    lost_disks: u32,
    world: Runtime,
    /// What happened, for people.
    log: Vec<String>,
    /// The machines' disks. Dropped last.
    _dir: TempDir,
}

impl Fleet {
    fn new(machines: usize, capacity: usize) -> Self {
        let timeline = Timeline::begin();
        let dir = tempfile::Builder::new().prefix("fleet").tempdir_in(memory_folder()).expect("a folder");
        let router_name: RouterName = ROUTER.parse().expect("a name");
        let (catalog, store, rabbit) = (MemoryCatalog::new(), MemoryStore::new(), MemoryRabbit::new());
        let (router, publishers) = (FakeRouter::new(&router_name), Publishers::default());
        let region = REGION.parse().expect("a region");
        let machine = |number: usize| {
            let reached = Reached {
                catalog: catalog.for_another_process(),
                store: store.for_another_process(),
                broker: rabbit.process(&region, Duration::from_secs(5)),
                router: router.for_another_process(),
            };
            let disk = dir.path().join(format!("w{number}"));
            Machine::new(number, timeline, capacity, disk, publishers.clone(), reached)
        };
        let machines = (0..machines).map(machine).collect();
        let platform = rabbit.process(&region, Duration::from_secs(5));
        let world = Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
        Self {
            timeline,
            now: 0,
            machines,
            catalog,
            store,
            platform,
            rabbit,
            outgoing: Vec::new(),
            router,
            publishers,
            lost_disks: 0,
            world,
            log: Vec::new(),
            _dir: dir,
        }
    }

    fn catalog(&self) -> SharedCatalog {
        self.catalog.shared()
    }

    /// Runs all machines until a moment.
    fn run_until(&mut self, until: Millis) {
        while self.now < until {
            self.now += STEP;
            self.send_events();
            for n in 0..self.machines.len() {
                if let Some(ended) = self.machines[n].run_until(self.now) {
                    self.tell(&format!("w{n} has ended: {ended:?}"));
                    // Faults are over: what a worker kept for itself, it alone can go on with.
                    if self.now >= script::QUIET_AT {
                        self.machines[n].start(self.now);
                    }
                }
            }
        }
    }

    fn tell(&mut self, what: &str) {
        self.log.push(format!("{:7.2} s  {what}", self.now as f64 / 1e3));
    }

    /// The broker may be away, and has no queue before the first worker comes.
    fn send_events(&mut self) {
        let (world, platform) = (&self.world, &self.platform);
        self.outgoing.retain(|event| {
            let sent = world.block_on(async {
                let publisher = archiver::broker::Broker::publisher(platform).await?;
                publisher.publish(&event.routing_key, &event.body, &Headers::new()).await?;
                publisher.close().await;
                Ok::<_, archiver::broker::BrokerError>(())
            });
            sent.is_err()
        });
    }

    fn send(&mut self, key: &str, kind: &str, session: &str, data: &serde_json::Value) {
        let time = self.timeline.wallclock(self.now).to_rfc3339();
        let body = json!({
            "specversion": "1.0", "id": format!("{session}-{kind}"), "source": "platform", "time": time,
            "type": format!("archiver.session.{kind}.v1"), "data": data,
        });
        let routing_key = format!("{key}.{REGION}");
        self.outgoing.push(Outgoing { routing_key, body: body.to_string().into_bytes() });
    }

    /// A session starts.
    fn start_session(&mut self, session: &str) {
        self.router.add_room(&room(session));
        let data = json!({
            "sessionId": session, "applicationId": APPLICATION, "mediaMode": "routed", "archiveMode": "always",
            "region": REGION, "router": { "name": ROUTER, "room": session },
            "archive": { "outputMode": "individual" },
        });
        self.send(STARTED_KEY, "started", session, &data);
    }

    /// A session ends: all leave, and the platform says so.
    fn end_session(&mut self, session: &str) {
        for publication in self.publishers.all() {
            if publication.room == room(session) && publication.to.is_none() {
                self.unpublish(session, &publication.router_id);
            }
        }
        let data = json!({ "sessionId": session, "applicationId": APPLICATION, "region": REGION });
        self.send(ENDED_KEY, "ended", session, &data);
    }

    fn publish(&mut self, session: &str, id: &str) {
        self.publishers.begin(&room(session), id, self.now);
        self.router.publish(&room(session), stream(id));
    }

    fn unpublish(&mut self, session: &str, id: &str) {
        self.publishers.end(&room(session), id, self.now);
        self.router.leave(&room(session), id);
    }

    /// The job of a session, if its event was accepted.
    fn job(&self, session: &str) -> Option<JobRow> {
        let job = JobId::of_event(&session_id(session), &format!("{session}-started").parse().expect("an id"));
        self.world.block_on(self.catalog().job(job)).expect("this handle has no faults")
    }

    /// What is noted of a session's job, in order.
    fn history(&self, session: &str) -> Vec<String> {
        let Some(job) = self.job(session) else { return Vec::new() };
        let lines = self.world.block_on(self.catalog().job_history(job.job)).expect("this handle has no faults");
        lines.into_iter().map(|line| line.what).collect()
    }

    /// Does what the script says, and then lets everything settle.
    fn play(&mut self, script: &Script) {
        for machine in &mut self.machines {
            machine.start(0);
        }
        for step in &script.steps {
            self.run_until(step.at);
            self.tell(&format!("{:?}", step.action));
            self.act(&step.action);
        }
    }

    fn act(&mut self, action: &Action) {
        let now = self.now;
        match action {
            Action::StartSession { session } => self.start_session(session),
            Action::EndSession { session } => self.end_session(session),
            Action::Publish { session, id } => self.publish(session, id),
            Action::Unpublish { session, id } => self.unpublish(session, id),
            Action::Kill { machine } => self.machines[*machine].kill(now),
            Action::LoseMachine { machine } => {
                self.lost_disks += 1;
                self.machines[*machine].lose_disk(self.lost_disks, now);
            }
            Action::Start { machine } => {
                if !self.machines[*machine].is_up() {
                    self.machines[*machine].start(now);
                }
            }
            Action::Stop { machine } => self.machines[*machine].stop(now),
            Action::Pause { machine } => self.machines[*machine].pause(true, now),
            Action::GoOn { machine } => self.machines[*machine].pause(false, now),
            Action::Trouble { machine, service, trouble } => {
                self.machines[*machine].trouble(*service, Some(*trouble), now);
            }
            Action::Heal { machine, service } => self.machines[*machine].trouble(*service, None, now),
            Action::SetClock { machine, skew_us } => self.machines[*machine].set_skew(*skew_us),
            Action::Disconnect { machine } => self.machines[*machine].router.disconnect(),
            Action::StopBroker => self.rabbit.stop(),
            Action::StartBroker => self.rabbit.start(),
        }
    }
}

/// Files that no disk delays.
fn memory_folder() -> std::path::PathBuf {
    let memory = std::path::PathBuf::from("/dev/shm");
    if memory.is_dir() { memory } else { std::env::temp_dir() }
}

fn room(session: &str) -> RoomId {
    session.parse().expect("a room")
}

fn session_id(session: &str) -> SessionId {
    session.parse().expect("a session")
}
