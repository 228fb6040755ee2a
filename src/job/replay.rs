//! Replays parked jobs: an event is published again, with a header that says who did it and when.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::broker::{BrokerError, Headers, Publisher};
use crate::catalog::{Catalog, CatalogError, ParkedRow, ParkedState};
use crate::model::time::Wallclock;

/// Header of a replayed event: who replayed it.
pub const REPLAYED_BY: &str = "archiver-replayed-by";
/// Header of a replayed event: when.
pub const REPLAYED_AT: &str = "archiver-replayed-at";
/// Header of a replayed event: the parked job.
pub const REPLAY_OF: &str = "archiver-replay-of";

/// Why a replay did not happen.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The broker.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The catalog.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The entry's body cannot be read.
    #[error("parked job {parked} has no readable body")]
    Body {
        /// Which.
        parked: crate::model::ids::ParkedId,
    },
}

/// Publishes a parked job's event again, by the same road, with a mark of who and when. Any number of replays
/// makes one archive: the event names the job.
///
/// # Errors
/// See [`ReplayError`]. Nothing is marked unless the broker has confirmed the event.
pub async fn replay(
    publisher: &dyn Publisher,
    catalog: &dyn Catalog,
    entry: &ParkedRow,
    who: &str,
) -> Result<(), ReplayError> {
    let now = Wallclock::now();
    let body = STANDARD.decode(&entry.body).map_err(|_| ReplayError::Body { parked: entry.parked })?;
    let headers = Headers::from([
        (REPLAYED_BY.to_owned(), who.to_owned()),
        (REPLAYED_AT.to_owned(), now.to_rfc3339()),
        (REPLAY_OF.to_owned(), entry.parked.to_string()),
    ]);
    // Marked first, so that an event that is refused again at once is parked after it; then confirmed or not.
    catalog.mark_parked(entry.parked, ParkedState::Replayed, who, now).await?;
    if let Err(error) = publisher.publish(&entry.routing_key, &body, &headers).await {
        catalog.mark_parked(entry.parked, ParkedState::Parked, "the broker did not confirm it", now).await?;
        return Err(error.into());
    }
    Ok(())
}
