//! What is done with an event: a job is accepted, an event is skipped, refused and parked, or tried again.

use std::time::Duration;

use tokio::sync::Notify;

use super::Context;
use super::accept::{self, accept};
use crate::broker::{Delivery, Outcome};
use crate::catalog::{Accepted, CatalogError, JobRow, JobState, NewJob, NewParked, StoredSpec};
use crate::event::policy::{Decision, Skip, decide};
use crate::event::{SessionEvent, parse};
use crate::model::fault::{FaultKind, HasFault, chain};
use crate::model::ids::JobId;
use crate::model::time::Wallclock;
use crate::runtime::metrics::{EventLabels, EventOutcome, metrics};

/// A job that is asked to end does so within this, if its worker lives.
const ENDING_MAX: Duration = Duration::from_secs(1);

fn count(outcome: EventOutcome) {
    metrics().events.get_or_create(&EventLabels { outcome }).inc();
}

/// Handles one delivery. `nudge` wakes the scheduler when there is a job to claim.
pub async fn handle(context: &Context, nudge: &Notify, delivery: Delivery) -> Outcome {
    match process_event(context, nudge, &delivery).await {
        Ok(outcome) => {
            count(outcome);
            if outcome == EventOutcome::Accepted { Outcome::Accepted } else { Outcome::Ack }
        }
        Err(error) => {
            count(EventOutcome::Retried);
            tracing::warn!(attempt = delivery.attempt, "an event cannot be handled for now: {}", chain(&error));
            Outcome::Retry
        }
    }
}

async fn process_event(context: &Context, nudge: &Notify, delivery: &Delivery) -> Result<EventOutcome, CatalogError> {
    if delivery.dead {
        let detail = "RabbitMQ gave it up: it was delivered too often without an answer; look at the worker's log";
        return park_event(context, delivery, FaultKind::Bug, detail, None).await;
    }
    let event = match parse(&delivery.body) {
        Ok(event) => event,
        Err(error) => return park_event(context, delivery, error.fault().kind, &error.to_string(), None).await,
    };
    let event = match event {
        SessionEvent::Started(event) => event,
        SessionEvent::Ended(event) => {
            let reason = crate::job::presence::session_ended();
            let (application, session, now) = (&event.data.application_id, &event.data.session_id, Wallclock::now());
            let at = event.at().unwrap_or(now);
            if !context.catalog.request_end(application, session, reason, at, now).await? {
                tracing::info!(%session, ended_at = %at, "a session's end changes nothing: it is not recorded, or was used again since");
            }
            context.wake();
            return Ok(EventOutcome::Ended);
        }
    };
    if delivery.headers.contains_key(crate::job::replay::REPLAYED_BY)
        && let Some(job) = context.catalog.job(event.job()).await?
        && job.state == JobState::Parked
    {
        // A job that was accepted is not decided on again: one that somebody started over the API is of a manual session.
        context.catalog.unpark_job(job.job, Wallclock::now()).await?;
        nudge.notify_one();
        return Ok(EventOutcome::Duplicate);
    }
    match decide(&event.data, |name| context.routers.contains_key(name)) {
        Decision::Skip(Skip::Relayed) => Ok(EventOutcome::SkippedRelayed),
        Decision::Skip(Skip::Manual) => Ok(EventOutcome::SkippedManual),
        Decision::Refuse(kind, detail) => park_event(context, delivery, kind, &detail, Some(event.job())).await,
        Decision::Archive => {
            let new = NewJob {
                job: event.job(),
                session: event.data.session_id.clone(),
                application: event.data.application_id.clone(),
                region: event.data.region.clone(),
                event: StoredSpec::read(String::from_utf8_lossy(&delivery.body).into_owned()),
                started_at: event.at().unwrap_or_else(Wallclock::now),
                tag: event.data.archive.multi_archive_tag.clone().unwrap_or_default(),
                is_conversation: true,
            };
            let outcome = match accept(context.catalog.as_ref(), &new, ENDING_MAX).await? {
                Accepted::New(job) => {
                    context.catalog.resolve_parked(job.job).await?;
                    give_classes(context, &job).await;
                    EventOutcome::Accepted
                }
                Accepted::Duplicate(_) => EventOutcome::Duplicate,
                Accepted::SessionBusy(job) => {
                    // Another conversation of a session in which nobody had published so far.
                    if job.state == JobState::Waiting {
                        let now = context.catalog.clock().await?;
                        // Before the conversation nobody published. A look that came later knows it better.
                        let without_stream_at = Some(new.started_at.min(now));
                        context.catalog.resume_job(job.job, "broker", without_stream_at, now).await?;
                    }
                    EventOutcome::SessionBusy
                }
            };
            nudge.notify_one();
            Ok(outcome)
        }
    }
}

/// An archive begins with the layout classes that the session's first clients brought with their tokens.
async fn give_classes(context: &Context, job: &JobRow) {
    let given = async {
        let session = context.catalog.session(&job.application, &job.session).await?;
        match session {
            Some(session) => accept::give_classes(context.catalog.as_ref(), job, &session.classes).await,
            None => Ok(()),
        }
    };
    if let Err(error) = given.await {
        tracing::warn!(job = %job.job, "the archive begins without layout classes: {}", chain(&error));
    }
}

async fn park_event(
    context: &Context,
    delivery: &Delivery,
    kind: FaultKind,
    detail: &str,
    job: Option<JobId>,
) -> Result<EventOutcome, CatalogError> {
    let detail = format!("{detail}; {}", kind.advice());
    let entry =
        NewParked { job, fault: kind, detail: &detail, routing_key: &delivery.routing_key, body: &delivery.body };
    let parked = context.catalog.park(&entry, Wallclock::now()).await?;
    metrics().jobs_parked.get_or_create(&kind.into()).inc();
    tracing::warn!(%parked, fault.kind = %kind, "an event is parked: {detail}");
    Ok(EventOutcome::Parked)
}
