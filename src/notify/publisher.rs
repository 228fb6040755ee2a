//! Changes of archives as events at the broker: with confirms, in the order of each archive, for as long as it takes.

use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::dispatcher::{Away, STOP_MAX, Telling};
use super::payload::ArchiveStatusEvent;
use super::retry_policy::Tried;
use crate::broker::{ArchivePublisher, Broker, BrokerError};
use crate::catalog::{CatalogError, Claim, Disposition, NoticeRow, NoticeTarget};
use crate::model::fault::{Backoff, HasFault, Retry, chain};

/// Events that are taken at a time; they are published one after another, within milliseconds each.
const TAKEN: u32 = 32;
const RECONNECT: Backoff = Backoff { first: Duration::from_millis(500), max: Duration::from_secs(15) };

/// Publishes until `cancel`. While the broker is away nothing is taken; what waits is published when it is back.
pub(super) async fn keep_publishing(telling: &Telling, cancel: &CancellationToken) {
    let Some(broker) = &telling.broker else { return };
    let mut attempt = 0;
    while !cancel.is_cancelled() {
        let left = async {
            cancel.cancelled().await;
            sleep(STOP_MAX).await;
        };
        let ended = tokio::select! {
            ended = session(telling, broker.as_ref(), cancel, &mut attempt) => ended,
            // What was taken is published again when its lease has ended.
            () = left => return,
        };
        match ended {
            Ok(()) => return,
            Err(why) if attempt == 0 => tracing::warn!("events of archives wait: {why}"),
            Err(why) => tracing::debug!(attempt, "events of archives wait: {why}"),
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = sleep(RECONNECT.delay(attempt, rand::random())) => attempt += 1,
        }
    }
}

/// One connection's life. `Ok` when it was cancelled.
async fn session(
    telling: &Telling,
    broker: &dyn Broker,
    cancel: &CancellationToken,
    attempt: &mut u32,
) -> Result<(), String> {
    let connecting = broker.archive_publisher();
    let publisher = tokio::select! {
        () = cancel.cancelled() => return Ok(()),
        connected = connecting => connected.map_err(|e| chain(&e))?,
    };
    let mut away = Away::default();
    while !cancel.is_cancelled() {
        let claim =
            Claim { target: NoticeTarget::Event, count: TAKEN, of_one: TAKEN, without: &[], lease: telling.lease() };
        let taken = away.heard(telling.catalog.claim_notices(&claim, telling.now()).await);
        let mut notices = taken.iter();
        for notice in notices.by_ref() {
            let Err(why) = publish(telling, publisher.as_ref(), notice).await else {
                *attempt = 0;
                continue;
            };
            // Those behind it were not tried.
            for notice in notices {
                give_back(telling, notice).await;
            }
            return Err(why);
        }
        if taken.is_empty() {
            tokio::select! {
                () = cancel.cancelled() => break,
                () = sleep(telling.poll) => {}
            }
        }
    }
    publisher.close().await.map_err(|e| chain(&e))
}

/// Publishes one, and notes what became of it. An error when the connection is no good any more.
async fn publish(telling: &Telling, publisher: &dyn ArchivePublisher, notice: &NoticeRow) -> Result<(), String> {
    let event = match event(telling, notice).await {
        Ok(event) => event,
        Err(error) if error.fault().retry == Retry::Never => {
            telling.note(notice, &Tried::Gone(chain(&error)), &CancellationToken::new()).await;
            return Ok(());
        }
        Err(error) => {
            tracing::warn!("an event waits for its job's row: {}", chain(&error));
            give_back(telling, notice).await;
            sleep(telling.poll).await;
            return Ok(());
        }
    };
    let body = serde_json::to_vec(&event).expect("plain data");
    let (tried, result) = match publisher.publish(&event.routing_key(), &notice.notice.to_string(), &body).await {
        Ok(()) => (Tried::Delivered, Ok(())),
        // A queue that is full refuses its events; those of other archives may have room.
        Err(error @ BrokerError::Refused { .. }) => (Tried::Failed(chain(&error)), Ok(())),
        Err(error) => (Tried::Failed(chain(&error)), Err(chain(&error))),
    };
    telling.note(notice, &tried, &CancellationToken::new()).await;
    result
}

async fn event(telling: &Telling, notice: &NoticeRow) -> Result<ArchiveStatusEvent, CatalogError> {
    let job = telling.catalog.job(notice.told.job).await?;
    let (region, tag) = job.map_or((None, String::new()), |job| (Some(job.region), job.tag));
    Ok(ArchiveStatusEvent::of(notice, region, tag))
}

/// Its lease ends by itself if this fails.
async fn give_back(telling: &Telling, notice: &NoticeRow) {
    let given = telling.catalog.settle_notice(notice, Disposition::Untried, None, telling.now()).await;
    if let Err(error) = given {
        tracing::debug!("an event waits until its lease ends: {}", chain(&error));
    }
}
