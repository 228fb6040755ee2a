//! Jobs whose drivers failed here though another worker may succeed: they panicked, or met a fault of this machine. Each is tried again
//! after a pause. What fails by a defect of the program too often is parked; a disk can recover.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::JobFailure;
use crate::model::fault::{Backoff, FaultKind};
use crate::model::ids::JobId;

/// A job that failed here so often in a row by a defect is parked.
const SETBACKS_MAX: u32 = 4;
/// The lease expires in the longer pauses: another worker may have more luck.
const PAUSE: Backoff = Backoff { first: Duration::from_secs(2), max: Duration::from_secs(30) };

/// What may be done with a job.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Attempt {
    /// Its driver may run.
    Run,
    /// Its driver failed a moment ago.
    Wait,
    /// Its driver always fails, the last time for this.
    Park(JobFailure),
}

/// The jobs whose drivers failed here, until one succeeds.
#[derive(Debug, Default)]
pub(super) struct Setbacks(HashMap<JobId, Setback>);

#[derive(Debug)]
struct Setback {
    count: u32,
    not_before: Instant,
    last: JobFailure,
}

impl Setbacks {
    /// A job's driver failed.
    pub fn failed(&mut self, job: JobId, failure: JobFailure, now: Instant) {
        let count = self.0.get(&job).map_or(0, |known| known.count);
        let not_before = now + PAUSE.delay(count, 0.5);
        self.0.insert(job, Setback { count: count + 1, not_before, last: failure });
    }

    /// A job's driver ended by itself.
    pub fn ended(&mut self, job: JobId) {
        self.0.remove(&job);
    }

    /// What may be done with a job.
    pub fn attempt(&self, job: JobId, now: Instant) -> Attempt {
        match self.0.get(&job) {
            Some(known) if now < known.not_before => Attempt::Wait,
            Some(known) if known.count >= SETBACKS_MAX && known.last.kind == FaultKind::Bug => {
                Attempt::Park(known.last.clone())
            }
            _ => Attempt::Run,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_whose_driver_fails_waits_longer_each_time_and_is_parked() {
        let (job, other) = (JobId::from_uuid(uuid::Uuid::from_u128(1)), JobId::from_uuid(uuid::Uuid::from_u128(2)));
        let (mut setbacks, mut now) = (Setbacks::default(), Instant::now());
        let failure = |n: u32| JobFailure { kind: FaultKind::Bug, detail: format!("number {n}") };
        let mut pauses = Vec::new();
        for n in 1..=SETBACKS_MAX {
            assert_eq!(setbacks.attempt(job, now), Attempt::Run);
            setbacks.failed(job, failure(n), now);
            let begin = now;
            while setbacks.attempt(job, now) == Attempt::Wait {
                now += Duration::from_millis(100);
            }
            pauses.push(now - begin);
        }
        assert!(pauses.is_sorted() && pauses[0] >= Duration::from_secs(1), "{pauses:?}");
        assert_eq!(setbacks.attempt(job, now), Attempt::Park(failure(SETBACKS_MAX)));
        assert_eq!(setbacks.attempt(other, now), Attempt::Run);
        // A disk may be mended at any time.
        let disk = JobFailure { kind: FaultKind::SpoolIo, detail: String::new() };
        for _ in 0..=SETBACKS_MAX {
            setbacks.failed(other, disk.clone(), now);
        }
        assert_eq!(setbacks.attempt(other, now), Attempt::Wait);
        assert_eq!(setbacks.attempt(other, now + Duration::from_secs(60)), Attempt::Run);
        // A person who replays it has mended it.
        setbacks.ended(job);
        assert_eq!(setbacks.attempt(job, now), Attempt::Run);
    }
}
