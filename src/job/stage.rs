//! What the stages of a job have in common: what is asked of them, how they end, and how the job moves on in the catalog.

use tokio::sync::watch;

use super::{Job, JobFailure};
use crate::catalog::{CatalogError, JobState};
use crate::model::cancellable::Cancellable;
use crate::model::desired::Desired;
use crate::model::fault::{FaultKind, chain};
use crate::model::time::Wallclock;
use crate::runtime::retry::{CATALOG, retry_until_cancelled};

/// What somebody wants of a job, as it hears it.
pub(super) struct ControlReceivers {
    pub end_reason: watch::Receiver<Option<String>>,
    pub desired: watch::Receiver<Desired>,
}

/// How capturing ended.
pub(super) enum CaptureOutcome {
    /// The session ended: one of Vonage's reasons.
    Ended(String),
    /// The session ended, or its first minute did, and nobody had published.
    Empty {
        /// One of Vonage's reasons.
        reason: String,
        /// Until then it was seen that nobody publishes.
        left_at: Wallclock,
    },
    /// Another owner has the job.
    Fenced,
    /// The worker stops; all is sealed.
    Drained,
    /// This machine cannot write media any more.
    Failing(String),
}

/// Whether a job's state was changed in the catalog.
#[derive(PartialEq, Eq)]
pub(super) enum Transition {
    /// It was, or was before.
    Made,
    /// Another owner has the job.
    Fenced,
}

/// Moves the job in the catalog, however long that is away.
pub(super) async fn advance(job: &Job, next: JobState, reason: Option<&str>) -> Result<Transition, JobFailure> {
    // By the clock that all owners share: the next one may have to know when the capture had ended.
    let now = job.context.clock.anchor().wallclock(tokio::time::Instant::now().into_std());
    let act = || job.context.catalog.advance(job.row.job, job.row.epoch, next, reason, now);
    match retry_until_cancelled("move a job in the catalog", CATALOG, &job.fenced, act).await {
        Ok(Cancellable::Done(())) => Ok(Transition::Made),
        Ok(Cancellable::Cancelled) | Err(CatalogError::Fenced { .. }) => Ok(Transition::Fenced),
        Err(error) => Err(JobFailure::of(&error)),
    }
}

pub(super) fn bug(error: &dyn std::error::Error) -> JobFailure {
    JobFailure { kind: FaultKind::Bug, detail: chain(error) }
}
