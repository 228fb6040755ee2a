//! How it is with a track in each step of a random history, by what happens and not by what is noted of it.

use super::truth::{Truth, step_at};
use super::worker::Worker;
use super::world::{Path, World};
use crate::model::media::GapCause;
use GapCause::{Limit, Network, NotReceived, NotSent, Refused, Router, Storage, Unsupported};

impl World {
    pub fn truth(&self, kind: usize) -> Truth {
        let added = self.present && self.sources[kind].added;
        let offered = added && self.published;
        let Some(worker) = self.recorder.worker.as_ref().filter(|worker| worker.joined.is_some()) else {
            return self.truth_without_worker(kind, offered);
        };
        let told = worker.stream.and_then(|tracks| tracks[kind]);
        let muted = self.now() < self.sources[kind].muted_until;
        match told {
            None if !offered && (self.forgot || worker.router_lost) => Truth::Forgotten,
            None if !offered => Truth::Absent,
            // A router that is restarted has forgotten it.
            Some(true) if !self.published && self.forgot && worker.router_lost => Truth::Missing(NotSent),
            Some(false) if self.forgot && added && worker.router_lost => Truth::Missing(Router),
            Some(false) if self.forgot && added => match self.trouble(kind, worker) {
                None if worker.receives(kind) && !self.is_silent(kind) => Truth::Open(Router),
                _ => Truth::Unknown,
            },
            Some(true) if self.is_heard_of() && offered && muted && !self.unmuted[kind] => Truth::Missing(NotSent),
            Some(false) if self.is_heard_of() && offered && !muted => match worker.is_connected() {
                true => self.truth_of_connection(kind, worker),
                false => self.truth_without_connection(worker),
            },
            // The news is under way.
            _ => Truth::Unknown,
        }
    }

    /// No worker is there, or it has not joined the room.
    fn truth_without_worker(&self, kind: usize, offered: bool) -> Truth {
        match (self.known[kind], &self.recorder.worker) {
            (Some(_), None) if offered => Truth::Missing(GapCause::Worker),
            (Some(_), Some(_)) if offered => Truth::Open(GapCause::Worker),
            (None, _) if !offered && !self.forgot && self.heard_all => Truth::Absent,
            _ => Truth::Unknown,
        }
    }

    /// The stream is known, and its media is not subscribed to.
    fn truth_without_connection(&self, worker: &Worker) -> Truth {
        let supports_none = self.sources.iter().all(|source| !source.added || !source.supported);
        match () {
            () if worker.router_lost => Truth::Missing(Router),
            () if worker.over_limit => Truth::Missing(Limit),
            // What it says is not heard any more.
            () if self.outage.is_some() => Truth::Unknown,
            () if self.now() < self.refuses_until => Truth::Missing(Refused),
            () if supports_none => Truth::Missing(Unsupported),
            // It is being subscribed to.
            () => Truth::Unknown,
        }
    }

    /// There is a connection for the stream's media.
    fn truth_of_connection(&self, kind: usize, worker: &Worker) -> Truth {
        let or_router = |cause| if worker.router_lost { Truth::Either(cause, Router) } else { Truth::Missing(cause) };
        let now = self.now();
        if !self.sources[kind].supported {
            return or_router(Unsupported);
        }
        if !worker.receives(kind) {
            return Truth::Unknown;
        }
        let (trouble, silent) = (self.trouble(kind, worker), self.is_silent(kind));
        match (&self.path, trouble) {
            (_, Some(Truth::Unknown)) => Truth::Unknown,
            (Path::Up, None) if silent => or_router(NotSent),
            // Nor do reports come that would show it.
            (_, None) if silent && !worker.router_lost => Truth::Either(NotSent, NotReceived),
            (Path::Up, Some(Truth::Missing(cause))) if silent && !worker.router_lost && cause != Network => {
                Truth::Either(NotSent, cause)
            }
            _ if silent => Truth::Unknown,
            (Path::Broken(_), None | Some(Truth::Missing(Network))) => Truth::Open(Router),
            (Path::Broken(_), Some(Truth::Missing(cause))) => Truth::Either(cause, Router),
            (Path::Lossy(_), None | Some(Truth::Missing(Network))) if self.heard[kind].is_some() => {
                Truth::Open(Network)
            }
            (Path::Up, None | Some(Truth::Missing(NotReceived))) if now < self.blocked_until => or_router(NotReceived),
            (Path::Up, Some(Truth::Missing(Network))) if now < self.blocked_until => {
                Truth::Either(NotReceived, Network)
            }
            (Path::Up, None | Some(Truth::Missing(Storage)))
                if self.recorder.disk_fails && now >= self.blocked_until =>
            {
                or_router(Storage)
            }
            (Path::Up, None) => Truth::Arrives,
            _ => Truth::Unknown,
        }
    }

    /// What is wrong since the last frame, as the worker may know it; unknown if it is more than one thing.
    fn trouble(&self, kind: usize, worker: &Worker) -> Option<Truth> {
        let all = [
            (worker.unsupported[kind], Unsupported),
            (self.unseen[kind], NotReceived),
            // How long the packets lasted that were lost, nobody knows.
            (self.lossy[kind], Network),
            (self.recorder.is_failing(kind), Storage),
        ];
        let mut all = all.into_iter().filter(|(is, _)| *is).map(|(_, cause)| cause);
        let first = all.next()?;
        Some(if all.next().is_some() { Truth::Unknown } else { Truth::Missing(first) })
    }

    /// What was open with a track is noticed now, and has this cause.
    pub fn noticed(&mut self, kind: usize, cause: GapCause) {
        for truths in self.truths.iter_mut().rev() {
            match truths[kind] {
                Truth::Open(open) if open == cause => truths[kind] = Truth::Missing(cause),
                Truth::Missing(GapCause::Worker) => {}
                _ => break,
            }
        }
    }

    /// Packets were lost while none came for other reasons, too: how long those lasted that were lost, nobody knows.
    pub fn lossy_since_the_last_frame(&mut self, kind: usize) {
        let heard = self.heard[kind].unwrap_or(self.truths.len());
        for truths in self.truths[heard..].iter_mut().rev().take_while(|truths| truths[kind] != Truth::Arrives) {
            match truths[kind] {
                Truth::Missing(Network) => {}
                Truth::Missing(cause) => truths[kind] = Truth::Either(cause, Network),
                _ => truths[kind] = Truth::Unknown,
            }
        }
    }

    /// The worker has ended: what it did not get to write is known to nobody.
    pub fn unwritten(&mut self) {
        let (alive, written) = (self.recorder.last_sign(), [0, 1].map(|kind| self.recorder.written(kind)));
        for (step, truths) in self.truths.iter_mut().enumerate() {
            for (kind, truth) in truths.iter_mut().enumerate() {
                *truth = match *truth {
                    // The frames behind a loss show it.
                    Truth::Missing(Network) if step_at(step) >= written[kind] => Truth::Unknown,
                    // A worker that has nothing to write cannot be told from one that is dead.
                    Truth::Missing(cause) if step_at(step) >= alive => Truth::Either(cause, GapCause::Worker),
                    Truth::Either(..) if step_at(step) >= alive => Truth::Unknown,
                    known => known,
                };
            }
        }
    }
}
