//! Publishes archive events to the broker with confirms, in the order of each archive's changes, and retries without end.

use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::dispatcher::{CatalogOutage, Dispatcher, SHUTDOWN_MAX};
use super::payload::ArchiveStatusEvent;
use super::retry_policy::Attempt;
use crate::broker::{ArchivePublisher, Broker, BrokerError};
use crate::catalog::{CatalogError, Claim, Disposition, NoticeRow, NoticeTarget};
use crate::model::fault::{Backoff, HasFault, Retry, chain};

/// Events that are claimed at a time. They are published one after another, each within milliseconds.
const CLAIMED_AT_ONCE: u32 = 32;
const RECONNECT: Backoff = Backoff { first: Duration::from_millis(500), max: Duration::from_secs(15) };

/// Publishes until `cancel`. While the broker is unavailable, no event is claimed.
pub(super) async fn run_publisher(dispatcher: &Dispatcher, cancel: &CancellationToken) {
    let Some(broker) = &dispatcher.broker else { return };
    let mut attempt = 0;
    while !cancel.is_cancelled() {
        let aborted = async {
            cancel.cancelled().await;
            sleep(SHUTDOWN_MAX).await;
        };
        let ended = tokio::select! {
            ended = run_connection(dispatcher, broker.as_ref(), cancel, &mut attempt) => ended,
            // Claimed events are published again when their leases expire.
            () = aborted => return,
        };
        match ended {
            Ok(()) => return,
            Err(error) if attempt == 0 => tracing::warn!("archive events cannot be published: {error}"),
            Err(error) => tracing::debug!(attempt, "archive events cannot be published: {error}"),
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = sleep(RECONNECT.delay(attempt, rand::random())) => attempt += 1,
        }
    }
}

/// Publishes on one connection until it fails. `Ok` when cancelled.
async fn run_connection(
    dispatcher: &Dispatcher,
    broker: &dyn Broker,
    cancel: &CancellationToken,
    attempt: &mut u32,
) -> Result<(), String> {
    let connecting = broker.archive_publisher();
    let publisher = tokio::select! {
        () = cancel.cancelled() => return Ok(()),
        connected = connecting => connected.map_err(|e| chain(&e))?,
    };
    let mut outage = CatalogOutage::default();
    while !cancel.is_cancelled() {
        let claim = Claim {
            target: NoticeTarget::Event,
            count: CLAIMED_AT_ONCE,
            of_one: CLAIMED_AT_ONCE,
            without: &[],
            lease: dispatcher.lease(),
        };
        let claimed = outage.check(dispatcher.catalog.claim_notices(&claim, dispatcher.now()).await);
        let mut notices = claimed.iter();
        for notice in notices.by_ref() {
            let Err(error) = publish(dispatcher, publisher.as_ref(), notice).await else {
                *attempt = 0;
                continue;
            };
            // No attempt was made with the events behind it.
            for notice in notices {
                release(dispatcher, notice).await;
            }
            return Err(error);
        }
        if claimed.is_empty() {
            tokio::select! {
                () = cancel.cancelled() => break,
                () = sleep(dispatcher.poll) => {}
            }
        }
    }
    publisher.close().await;
    Ok(())
}

/// Publishes one event and records the result. An error means that the connection cannot be used any more.
async fn publish(dispatcher: &Dispatcher, publisher: &dyn ArchivePublisher, notice: &NoticeRow) -> Result<(), String> {
    let event = match build_event(dispatcher, notice).await {
        Ok(event) => event,
        Err(error) if error.fault().retry == Retry::Never => {
            dispatcher.record(notice, &Attempt::Undeliverable(chain(&error)), &CancellationToken::new()).await;
            return Ok(());
        }
        Err(error) => {
            tracing::warn!("the job of an archive event cannot be read: {}", chain(&error));
            release(dispatcher, notice).await;
            sleep(dispatcher.poll).await;
            return Ok(());
        }
    };
    let body = serde_json::to_vec(&event).expect("plain data");
    let (attempt, result) = match publisher.publish(&event.routing_key(), &notice.notice.to_string(), &body).await {
        Ok(()) => (Attempt::Delivered, Ok(())),
        // A full queue refuses its events; queues of other events may have room.
        Err(error @ BrokerError::Refused { .. }) => (Attempt::Failed(chain(&error)), Ok(())),
        Err(error) => (Attempt::Failed(chain(&error)), Err(chain(&error))),
    };
    dispatcher.record(notice, &attempt, &CancellationToken::new()).await;
    result
}

async fn build_event(dispatcher: &Dispatcher, notice: &NoticeRow) -> Result<ArchiveStatusEvent, CatalogError> {
    let job = dispatcher.catalog.job(notice.told.job).await?;
    let (region, tag) = job.map_or((None, String::new()), |job| (Some(job.region), job.tag));
    Ok(ArchiveStatusEvent::of(notice, region, tag))
}

/// Makes an event due again at once. If this fails, its lease expires.
async fn release(dispatcher: &Dispatcher, notice: &NoticeRow) {
    let released = dispatcher.catalog.settle_notice(notice, Disposition::Untried, None, dispatcher.now()).await;
    if let Err(error) = released {
        tracing::debug!("an archive event is not released before its lease expires: {}", chain(&error));
    }
}
