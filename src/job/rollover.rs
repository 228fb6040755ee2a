//! Rollover: when an archive reaches its maximum duration, its session continues in a further archive.

use super::stage::{Transition, advance};
use super::{Job, JobFailure};
use crate::catalog::{Accepted, JobState, NewJob, StoredSpec};
use crate::model::cancellable::Cancellable;
use crate::model::fault::{FaultKind, chain};
use crate::model::ids::{EventId, IdError};
use crate::model::job_spec::JobSpec;
use crate::model::time::Wallclock;
use crate::runtime::retry::{CATALOG, retry_until_cancelled};

/// Ends the job for the catalog, so that a successor may have its session, if there is to be one. Repeating it is harmless.
pub(super) async fn roll_over(job: &Job, reason: &str) -> Result<Transition, JobFailure> {
    if advance(job, JobState::Finalizing, Some(reason)).await? == Transition::Fenced {
        return Ok(Transition::Fenced);
    }
    if job.is_automatic() {
        create_successor(job).await?;
        job.release_slot();
    }
    Ok(Transition::Made)
}

/// Whether an event is one of a session that goes on in a further archive.
pub(super) fn is_successor(event: &EventId) -> bool {
    event.as_str().rsplit_once("~part").is_some_and(|(_, number)| number.parse::<u32>().is_ok())
}

/// The event of the archive after an event's: the second archive of `e` is of `e~part2`.
fn successor_of(event: &EventId) -> Result<EventId, IdError> {
    let (first, number) = match event.as_str().rsplit_once("~part") {
        Some((first, number)) => (first, number.parse::<u32>().unwrap_or(1)),
        None => (event.as_str(), 1),
    };
    format!("{first}~part{}", number + 1).parse()
}

/// A session that goes on when its archive has become as long as one may gets a further archive.
async fn create_successor(job: &Job) -> Result<(), JobFailure> {
    let event = successor_of(&job.spec.event);
    let event = event.map_err(|e| JobFailure { kind: FaultKind::EventInvalid, detail: e.to_string() })?;
    let spec = JobSpec { event, ..job.spec.clone() };
    let new = NewJob {
        job: spec.job(),
        session: job.row.session.clone(),
        application: job.row.application.clone(),
        region: job.row.region.clone(),
        event: StoredSpec::of(spec),
        started_at: job.spec.started_at.unwrap_or(job.row.created_at),
        tag: job.row.tag.clone(),
        is_conversation: true,
    };
    let accept = async || {
        let now = job.context.catalog.clock().await?;
        job.context.catalog.accept(&new, now).await
    };
    let accepted = retry_until_cancelled("accept the next archive's job", CATALOG, &job.fenced, accept).await;
    let Cancellable::Done(accepted) = accepted.map_err(|e| JobFailure::of(&e))? else { return Ok(()) };
    let (Accepted::New(next) | Accepted::Duplicate(next) | Accepted::SessionBusy(next)) = accepted;
    // It goes on as this one was asked to be.
    let catalog = job.context.catalog.as_ref();
    let passed_on = async {
        match catalog.job(job.row.job).await?.and_then(|row| row.desired) {
            Some(desired) => catalog.desire(&next, &desired, Wallclock::now()).await.map(drop),
            None => Ok(()),
        }
    };
    if let Err(error) = passed_on.await {
        tracing::warn!("the next archive begins with its first layout: {}", chain(&error));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_successor_has_the_next_number() {
        for (event, next) in
            [("e", "e~part2"), ("e~part2", "e~part3"), ("e~part41", "e~part42"), ("e~partx", "e~part2")]
        {
            assert_eq!(successor_of(&event.parse().expect("id")), next.parse(), "{event}");
        }
        assert!(successor_of(&"e".repeat(128).parse().expect("id")).is_err(), "an id has a longest length");
    }
}
