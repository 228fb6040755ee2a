//! Rollover: when an archive reaches its maximum duration, its session continues in a further archive.

use super::stage::{Moved, advance};
use super::{Job, Stuck};
use crate::catalog::{Accepted, JobState, NewJob};
use crate::model::fault::{FaultKind, chain};
use crate::model::ids::EventId;
use crate::model::time::Wallclock;
use crate::runtime::retry::{CATALOG, retry_until_cancelled};

/// Ends the job for the catalog, so that a successor may have its session, if there is to be one. Repeating it is harmless.
pub(super) async fn roll_over(job: &Job, reason: &str) -> Result<Moved, Stuck> {
    if advance(job, JobState::Finalizing, Some(reason)).await? == Moved::Fenced {
        return Ok(Moved::Fenced);
    }
    if job.goes_on() {
        create_successor(job).await?;
        job.gives_on();
    }
    Ok(Moved::Yes)
}

/// A session that goes on when its archive has become as long as one may gets a further archive.
async fn create_successor(job: &Job) -> Result<(), Stuck> {
    let mut event = job.event.clone();
    let (base, number) = match event.id.as_str().rsplit_once("~part") {
        Some((base, number)) => (base.to_owned(), number.parse::<u32>().unwrap_or(1)),
        None => (event.id.as_str().to_owned(), 1),
    };
    let id: Result<EventId, _> = format!("{base}~part{}", number + 1).parse();
    event.id = id.map_err(|e| Stuck { kind: FaultKind::EventInvalid, detail: e.to_string() })?;
    let new = NewJob {
        job: event.job(),
        session: job.row.session.clone(),
        application: job.row.application.clone(),
        region: job.row.region.clone(),
        event: serde_json::to_string(&event).expect("plain data"),
        started_at: event.at().unwrap_or(job.row.created_at),
        tag: job.row.tag.clone(),
        is_conversation: true,
    };
    let accept = || job.context.catalog.accept(&new, Wallclock::now());
    let next = match retry_until_cancelled("accept the next archive's job", CATALOG, &job.fenced, accept).await {
        None => return Ok(()),
        Some(Err(error)) => return Err(Stuck::of(&error)),
        Some(Ok(Accepted::New(next) | Accepted::Duplicate(next) | Accepted::SessionBusy(next))) => next,
    };
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
