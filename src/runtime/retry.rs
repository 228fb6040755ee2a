//! Retries for as long as it takes.

use std::future::Future;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::model::fault::{Backoff, HasFault, Retry, chain};
use crate::runtime::metrics::metrics;

/// Storage outages last minutes to hours.
pub const STORE: Backoff = Backoff { first: Duration::from_millis(250), max: Duration::from_secs(15) };

/// Catalog outages: a short first pause, because every job waits for the catalog.
pub const CATALOG: Backoff = Backoff { first: Duration::from_millis(200), max: Duration::from_secs(5) };

/// Calls `act` until it succeeds, fails for good, or `cancel` says so (`None`). Faults that pass are met
/// with back-off, counted, and logged when they begin and each minute.
///
/// # Errors
/// What `act` says last, when its fault is not to be tried again.
pub async fn retry_until_cancelled<T, E: HasFault, F: Future<Output = Result<T, E>>>(
    what: &str,
    backoff: Backoff,
    cancel: &CancellationToken,
    mut act: impl FnMut() -> F,
) -> Option<Result<T, E>> {
    let mut waited = Duration::ZERO;
    for attempt in 0.. {
        let error = tokio::select! {
            () = cancel.cancelled() => return None,
            result = act() => match result {
                Ok(value) => return Some(Ok(value)),
                Err(error) => error,
            },
        };
        let fault = error.fault();
        if fault.retry == Retry::Never {
            return Some(Err(error));
        }
        metrics().retries.get_or_create(&fault.kind.into()).inc();
        let delay = backoff.delay(attempt, rand::random());
        if attempt == 0 || (waited + delay).as_secs() / 60 > waited.as_secs() / 60 {
            tracing::warn!(fault.kind = %fault.kind, attempt, "cannot {what}, trying again: {}", chain(&error));
        }
        waited += delay;
        tokio::select! {
            () = cancel.cancelled() => return None,
            () = tokio::time::sleep(delay) => {}
        }
    }
    None
}
