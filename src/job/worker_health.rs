//! Whether this worker can do its work: whether its disk takes files. How full the disk is, is measured on the way. A worker that cannot takes no jobs and hands those that suffer on,
//! until its disk takes files again.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::Context;
use crate::model::fault::{FaultKind, chain};
use crate::recording::LogError;
use crate::recording::spool::Spool;

/// How often the disk is probed.
const PROBE_EVERY: Duration = Duration::from_secs(10);
/// While the worker is sick, so often.
const PROBE_SICK_EVERY: Duration = Duration::from_secs(2);
/// A disk that takes longer for a few bytes takes no media.
const PROBE_MAX: Duration = Duration::from_secs(5);

/// What is wrong with this worker.
#[derive(Debug)]
pub struct WorkerHealth {
    suspicion: Notify,
    trouble: watch::Sender<Option<String>>,
}

impl Default for WorkerHealth {
    fn default() -> Self {
        Self { suspicion: Notify::new(), trouble: watch::Sender::new(None) }
    }
}

impl WorkerHealth {
    /// Something failed for which this machine may be the cause: it is probed now.
    pub(super) fn suspect(&self) {
        self.suspicion.notify_one();
    }

    /// What is wrong, if anything is.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.trouble.borrow().clone()
    }

    /// Whether anything is wrong.
    #[must_use]
    pub fn is_sick(&self) -> bool {
        self.trouble.borrow().is_some()
    }

    fn set(&self, found: Option<String>) {
        self.trouble.send_if_modified(|known| {
            match (&*known, &found) {
                (None, Some(trouble)) => tracing::error!(
                    fault.kind = %FaultKind::SpoolIo,
                    "this worker takes no jobs until its disk takes files again: {trouble}; {}", FaultKind::SpoolIo.advice()
                ),
                (Some(_), None) => tracing::info!("the disk takes files again: this worker takes jobs again"),
                (None, None) => return false,
                (Some(before), Some(now)) if before == now => return false,
                (Some(_), Some(_)) => {}
            }
            *known = found;
            true
        });
    }
}

/// Whether another worker may be free of a fault, or this one when it tries again: then the job is handed on, and not parked at once.
pub(super) const fn is_of_this_worker(kind: FaultKind) -> bool {
    matches!(kind, FaultKind::SpoolIo | FaultKind::SpoolFull | FaultKind::Bug)
}

fn measure(spool: &Spool) {
    if let Err(error) = spool.measure() {
        tracing::warn!("it is not measured how full the spool is: {}", chain(&error));
    }
}

/// Probes the disk from time to time, and when something failed, until `stop`.
pub async fn run_probes(context: Arc<Context>, stop: CancellationToken) {
    let health = &context.health;
    let mut probing: Option<JoinHandle<Result<(), LogError>>> = None;
    let mut measuring: Option<JoinHandle<()>> = None;
    loop {
        let pause = if health.is_sick() { PROBE_SICK_EVERY } else { PROBE_EVERY };
        tokio::select! {
            () = stop.cancelled() => return,
            () = health.suspicion.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
        // A disk that hangs keeps one thread, not more and more.
        let running = probing.get_or_insert_with(|| {
            let spool = Arc::clone(&context.spool);
            tokio::task::spawn_blocking(move || spool.probe())
        });
        let Some(probed) = stop.run_until_cancelled(timeout(PROBE_MAX, running)).await else { return };
        let found = match probed {
            Err(_) => Some(format!("a few bytes were not on the disk within {} s", PROBE_MAX.as_secs())),
            Ok(result) => {
                probing = None;
                match result {
                    Ok(Ok(())) => None,
                    Ok(Err(error)) => Some(chain(&error)),
                    Err(panic) => Some(panic.to_string()),
                }
            }
        };
        // Counting many files takes long, and says nothing of the disk's health.
        if found.is_none() && measuring.as_ref().is_none_or(JoinHandle::is_finished) {
            let spool = Arc::clone(&context.spool);
            measuring = Some(tokio::task::spawn_blocking(move || measure(&spool)));
        }
        health.set(found);
    }
}
