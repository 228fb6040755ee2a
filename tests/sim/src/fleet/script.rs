//! What happens in a simulation, made from a seed.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::Millis;
use super::machine::{Service, Trouble};

/// Sessions that a worker has places for, unless the script is a crowded one.
const CAPACITY: usize = 4;
/// A fault has effects for so long after its end.
const EFFECT: Millis = 20_000;
/// Machines of a fleet.
pub const MACHINES: usize = 3;
/// All faults are over at this time at the latest.
pub const QUIET_AT: Millis = 75_000;

/// One thing that happens.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Action {
    StartSession {
        session: String,
    },
    EndSession {
        session: String,
    },
    Publish {
        session: String,
        id: String,
    },
    Unpublish {
        session: String,
        id: String,
    },
    /// The process dies, as by SIGKILL.
    Kill {
        machine: usize,
    },
    /// The process dies, and its disk is gone.
    LoseMachine {
        machine: usize,
    },
    /// A process starts, unless one runs.
    Start {
        machine: usize,
    },
    /// The process is told to stop, as by SIGTERM.
    Stop {
        machine: usize,
    },
    /// The process stands still, as by SIGSTOP.
    Pause {
        machine: usize,
    },
    GoOn {
        machine: usize,
    },
    Trouble {
        machine: usize,
        service: Service,
        trouble: Trouble,
    },
    Heal {
        machine: usize,
        service: Service,
    },
    SetClock {
        machine: usize,
        skew_us: i64,
    },
    /// The signalling connection to the router is lost; it may connect again.
    Disconnect {
        machine: usize,
    },
    StopBroker,
    StartBroker,
}

/// Something at its time.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// When.
    pub at: Millis,
    /// What.
    pub action: Action,
}

/// What a fault may keep workers from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disturbs {
    /// Archives are made later: the store.
    Delivery,
    /// Nothing: a machine's clock.
    Nothing,
    /// Events come later: the broker.
    Events,
    /// Sessions may change their owner.
    Ownership,
}

/// A fault, and how long it lasts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FaultSpan {
    /// What it keeps workers from.
    pub disturbs: Disturbs,
    /// When it begins.
    pub from: Millis,
    /// When it is over.
    pub until: Millis,
}

/// All that happens, in order.
#[derive(Debug, Clone, PartialEq)]
pub struct Script {
    /// The names of its sessions.
    pub sessions: Vec<String>,
    /// In order.
    pub steps: Vec<Step>,
    /// Its faults.
    pub faults: Vec<FaultSpan>,
    /// Sessions that each worker has places for.
    pub capacity: usize,
}

impl Default for Script {
    fn default() -> Self {
        Self { sessions: Vec::new(), steps: Vec::new(), faults: Vec::new(), capacity: CAPACITY }
    }
}

impl Script {
    /// Adds a step.
    pub fn add(&mut self, at: Millis, action: Action) {
        self.steps.push(Step { at, action });
    }

    /// When a session starts and ends, as the platform says.
    #[must_use]
    pub fn span(&self, name: &str) -> Option<(Millis, Millis)> {
        let at = |fits: &dyn Fn(&Action) -> bool| Some(self.steps.iter().find(|step| fits(&step.action))?.at);
        let start = at(&|action| matches!(action, Action::StartSession { session } if session == name))?;
        let end = at(&|action| matches!(action, Action::EndSession { session } if session == name))?;
        Some((start, end))
    }

    /// How many sessions run at some moment of a span, or ended within five seconds before.
    #[must_use]
    pub fn running(&self, from: Millis, to: Millis) -> usize {
        let spans = self.sessions.iter().filter_map(|session| self.span(session));
        spans.filter(|(start, end)| *start <= to && end + 5_000 >= from).count()
    }

    /// Whether no fault but those of some kinds may have an effect in a span.
    #[must_use]
    pub fn has_only(&self, harmless: &[Disturbs], from: Millis, to: Millis) -> bool {
        let is_harmless = |fault: &FaultSpan| harmless.contains(&fault.disturbs);
        self.faults.iter().all(|fault| is_harmless(fault) || fault.from > to || fault.until + EFFECT < from)
    }

    /// Whether nothing happens that may take a session from its worker.
    #[must_use]
    pub fn keeps_owners(&self) -> bool {
        self.steps.iter().all(|step| match step.action {
            Action::Kill { .. } | Action::LoseMachine { .. } | Action::Stop { .. } => false,
            Action::Pause { .. } | Action::Disconnect { .. } => false,
            Action::Trouble { service, .. } | Action::Heal { service, .. } => service == Service::Broker,
            _ => true,
        })
    }

    /// A session with publishers that come and go.
    fn add_session(&mut self, random: &mut StdRng) {
        let (from, length) = (random.random_range(1..100) * 100, random.random_range(150..500) * 100);
        self.add_session_of(random, from, length);
    }

    fn add_session_of(&mut self, random: &mut StdRng, from: Millis, length: Millis) {
        let session = format!("s{}", self.sessions.len());
        let to = from + length;
        self.add(from, Action::StartSession { session: session.clone() });
        for n in 0..random.random_range(1..=2) {
            let id = format!("{session}p{n}");
            let begins = from + random.random_range(0..30) * 100;
            self.add(begins, Action::Publish { session: session.clone(), id: id.clone() });
            if random.random_bool(0.3) {
                let leaves = random.random_range(begins + 2_000..to);
                self.add(leaves, Action::Unpublish { session: session.clone(), id });
            }
        }
        self.add(to, Action::EndSession { session: session.clone() });
        self.sessions.push(session);
    }

    /// A fault, and its end.
    fn add_fault(&mut self, random: &mut StdRng) {
        let machine = random.random_range(0..MACHINES);
        let (at, lasts) = (random.random_range(20..550) * 100, random.random_range(5..200) * 100);
        let mut until = (at + lasts).min(QUIET_AT - 1_000);
        let trouble = |this: &mut Self, machines: &[usize], service: Service, trouble: Trouble| {
            for machine in machines.iter().copied() {
                this.add(at, Action::Trouble { machine, service, trouble });
                this.add(until, Action::Heal { machine, service });
            }
        };
        let (one, all): (&[usize], &[usize]) = (&[machine], &[0, 1, 2]);
        let whom = if random.random_bool(0.5) { one } else { all };
        let kind = random.random_range(0..15);
        let mut disturbs = match kind {
            6 => Disturbs::Nothing,
            7 | 13 => Disturbs::Events,
            11 | 12 => Disturbs::Delivery,
            _ => Disturbs::Ownership,
        };
        match kind {
            0 | 1 => {
                self.add(at, Action::Kill { machine });
                self.add(until, Action::Start { machine });
            }
            2 => {
                self.add(at, Action::LoseMachine { machine });
                self.add(until, Action::Start { machine });
            }
            3 | 4 => {
                self.add(at, Action::Stop { machine });
                until = until.max(at + 30_000).min(QUIET_AT - 500);
                self.add(until, Action::Start { machine });
            }
            5 => {
                self.add(at, Action::Pause { machine });
                self.add(until, Action::GoOn { machine });
            }
            6 => {
                let skew_us = random.random_range(-15_000_000..15_000_000);
                self.add(at, Action::SetClock { machine, skew_us });
                self.add(until, Action::SetClock { machine, skew_us: 0 });
            }
            7 => {
                self.add(at, Action::StopBroker);
                self.add(until, Action::StartBroker);
            }
            8 => trouble(self, whom, Service::Catalog, Trouble::Cut),
            9 => trouble(self, whom, Service::Catalog, Trouble::LosesAnswers),
            10 => {
                let slow = Trouble::Slow(Duration::from_millis(random.random_range(50..900)));
                let service = if random.random_bool(0.5) { Service::Catalog } else { Service::Store };
                if service == Service::Store {
                    disturbs = Disturbs::Delivery;
                }
                trouble(self, whom, service, slow);
            }
            11 => trouble(self, whom, Service::Store, Trouble::Cut),
            12 => {
                let how = if random.random_bool(0.5) { Trouble::Hang } else { Trouble::LosesAnswers };
                trouble(self, whom, Service::Store, how);
            }
            13 => trouble(self, one, Service::Broker, Trouble::Cut),
            _ => match random.random_bool(0.5) {
                true => trouble(self, one, Service::Router, Trouble::Cut),
                false => self.add(at, Action::Disconnect { machine }),
            },
        }
        self.faults.push(FaultSpan { disturbs, from: at, until });
    }

    /// The store is away for long, for all.
    fn add_store_outage(&mut self, random: &mut StdRng) {
        let (from, lasts) = (random.random_range(50..300) * 100, random.random_range(150..400) * 100);
        let trouble = if random.random_bool(0.5) { Trouble::Cut } else { Trouble::Hang };
        for machine in 0..MACHINES {
            self.add(from, Action::Trouble { machine, service: Service::Store, trouble });
            self.add(from + lasts, Action::Heal { machine, service: Service::Store });
        }
        self.faults.push(FaultSpan { disturbs: Disturbs::Delivery, from, until: from + lasts });
    }

    /// Workers die while they take the event of the first session: the catalog is slow.
    fn add_crashes_at_start(&mut self, random: &mut StdRng) {
        let Some((start, _)) = self.sessions.first().and_then(|session| self.span(session)) else { return };
        let (from, until) = (start.saturating_sub(100), start + 2_000);
        for machine in 0..MACHINES {
            let slow = Trouble::Slow(Duration::from_millis(random.random_range(100..600)));
            self.add(from, Action::Trouble { machine, service: Service::Catalog, trouble: slow });
            self.add(until, Action::Heal { machine, service: Service::Catalog });
            if random.random_bool(0.7) {
                self.add(start + random.random_range(1..80) * 20, Action::Kill { machine });
                self.add(start + random.random_range(200..500) * 10, Action::Start { machine });
            }
        }
        self.faults.push(FaultSpan { disturbs: Disturbs::Ownership, from, until: start + 5_000 });
    }

    /// Workers stand still for long while they end the capture of a session and make its archive, with a statement to a slow catalog or an
    /// upload to a slow store on its way: one of them at the end of each session.
    fn add_pauses_at_end(&mut self, random: &mut StdRng) {
        for session in self.sessions.clone() {
            let Some((_, end)) = self.span(&session) else { continue };
            let (from, until) = (end.saturating_sub(300), end + 6_000);
            let service = if random.random_bool(0.5) { Service::Catalog } else { Service::Store };
            for machine in 0..MACHINES {
                let trouble = Trouble::Slow(Duration::from_millis(random.random_range(100..700)));
                self.add(from, Action::Trouble { machine, service, trouble });
                self.add(until, Action::Heal { machine, service });
            }
            let (machine, at) = (random.random_range(0..MACHINES), end + random.random_range(0..200) * 20);
            let on = (at + random.random_range(60..150) * 100).min(QUIET_AT - 500);
            self.add(at, Action::Pause { machine });
            self.add(on, Action::GoOn { machine });
            self.faults.push(FaultSpan { disturbs: Disturbs::Ownership, from, until: on });
        }
    }

    /// Of machines that are told to stop, hardly any comes back with its disk.
    fn lose_stopped_machines(&mut self) {
        let stops = self.steps.iter().filter_map(|step| match step.action {
            Action::Stop { machine } => Some((step.at, machine)),
            _ => None,
        });
        // Most workers that are told to stop have ended within 25 s.
        let lost: Vec<Step> =
            stops.map(|(at, machine)| Step { at: at + 29_000, action: Action::LoseMachine { machine } }).collect();
        self.steps.extend(lost.into_iter().filter(|step| step.at < QUIET_AT - 500));
    }

    /// The script of a seed: one to three sessions, and up to four faults. Of five seeds one is crowded: more sessions, workers with one place
    /// each, and a store that is away for long. In another one, hardly any machine that was told to stop comes back with its disk; in a third,
    /// workers die while they take an event; in a fourth, one stands still at the end of each session.
    #[must_use]
    pub fn of_seed(seed: u64) -> Self {
        let (mut script, mut random) = (Self::default(), StdRng::seed_from_u64(seed));
        if seed % 5 == 4 {
            script.capacity = 1;
            for _ in 0..random.random_range(4..=7) {
                let (from, length) = (random.random_range(1..450) * 100, random.random_range(80..200) * 100);
                script.add_session_of(&mut random, from, length);
            }
            script.add_store_outage(&mut random);
            if random.random_bool(0.3) {
                script.add_fault(&mut random);
            }
        } else {
            for _ in 0..random.random_range(1..=3) {
                script.add_session(&mut random);
            }
            for _ in 0..random.random_range(1..=4) {
                script.add_fault(&mut random);
            }
        }
        match seed % 5 {
            1 => script.add_pauses_at_end(&mut random),
            2 => script.add_crashes_at_start(&mut random),
            3 => script.lose_stopped_machines(),
            _ => {}
        }
        for machine in 0..MACHINES {
            script.add(QUIET_AT, Action::GoOn { machine });
            script.add(QUIET_AT, Action::Start { machine });
        }
        // Steps at one moment stay in the order in which they were added.
        script.steps.sort_by_key(|step| step.at);
        script
    }
}
