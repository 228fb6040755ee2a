//! Replays parked jobs: an event is published again, with a header that says who did it and when.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::broker::{BrokerError, Headers, Publisher};
use crate::catalog::{Catalog, CatalogError, ParkedMark, ParkedRow, ParkedState};
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

/// Who replays, and why.
#[derive(Debug, Clone, Copy)]
pub struct Replayer<'a> {
    /// Who.
    pub who: &'a str,
    /// Why, in that person's words.
    pub why: Option<&'a str>,
}

/// What is published in place of a parked event: somebody mended it.
#[derive(Debug, Clone)]
pub struct MendedEvent {
    /// Where it goes to.
    pub routing_key: String,
    /// The event.
    pub body: Vec<u8>,
}

/// Publishes a parked job's event again, by the same road, with a mark of who and when; or the `mended` event. Any number of replays makes one
/// archive: the event names the job.
///
/// # Errors
/// See [`ReplayError`]. An entry whose event the broker has not confirmed waits for a person again.
pub async fn replay(
    publisher: &dyn Publisher,
    catalog: &dyn Catalog,
    entry: &ParkedRow,
    mended: Option<MendedEvent>,
    by: Replayer<'_>,
) -> Result<(), ReplayError> {
    let now = Wallclock::now();
    let MendedEvent { routing_key, body } = match mended {
        Some(mended) => mended,
        None => MendedEvent {
            routing_key: entry.routing_key.clone(),
            body: STANDARD.decode(&entry.body).map_err(|_| ReplayError::Body { parked: entry.parked })?,
        },
    };
    let headers = Headers::from([
        (REPLAYED_BY.to_owned(), by.who.to_owned()),
        (REPLAYED_AT.to_owned(), now.to_rfc3339()),
        (REPLAY_OF.to_owned(), entry.parked.to_string()),
    ]);
    // Marked first, so that an event that is refused again at once is parked after it; then confirmed or not.
    let mark = ParkedMark { state: ParkedState::Replayed, who: by.who, why: by.why };
    catalog.mark_parked(entry.parked, &mark, now).await?;
    if let Err(error) = publisher.publish(&routing_key, &body, &headers).await {
        let back = ParkedMark { state: ParkedState::Parked, why: Some("the broker did not confirm it"), ..mark };
        catalog.mark_parked(entry.parked, &back, now).await?;
        return Err(error.into());
    }
    Ok(())
}
