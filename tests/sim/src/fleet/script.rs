//! What happens in a simulation, made from a seed.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::Millis;
use super::machine::{Service, Trouble};

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

/// All that happens, in order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Script {
    /// The names of its sessions.
    pub sessions: Vec<String>,
    /// In order.
    pub steps: Vec<Step>,
}

impl Script {
    /// Adds a step.
    pub fn add(&mut self, at: Millis, action: Action) {
        self.steps.push(Step { at, action });
    }

    /// A session with publishers that come and go.
    fn add_session(&mut self, random: &mut StdRng) {
        let session = format!("s{}", self.sessions.len());
        let (from, length) = (random.random_range(1..100) * 100, random.random_range(150..500) * 100);
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
        let until = (at + lasts).min(QUIET_AT - 1_000);
        let trouble = |this: &mut Self, machines: &[usize], service: Service, trouble: Trouble| {
            for machine in machines.iter().copied() {
                this.add(at, Action::Trouble { machine, service, trouble });
                this.add(until, Action::Heal { machine, service });
            }
        };
        let (one, all): (&[usize], &[usize]) = (&[machine], &[0, 1, 2]);
        let whom = if random.random_bool(0.5) { one } else { all };
        match random.random_range(0..15) {
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
                self.add(until.max(at + 30_000).min(QUIET_AT - 500), Action::Start { machine });
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
    }

    /// The script of a seed: one to three sessions, and up to four faults.
    #[must_use]
    pub fn of_seed(seed: u64) -> Self {
        let (mut script, mut random) = (Self::default(), StdRng::seed_from_u64(seed));
        for _ in 0..random.random_range(1..=3) {
            script.add_session(&mut random);
        }
        for _ in 0..random.random_range(1..=4) {
            script.add_fault(&mut random);
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
