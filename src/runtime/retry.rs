//! Retries with back-off, without a limit.

use std::future::Future;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::model::fault::{Backoff, HasFault, Retry, chain};
use crate::runtime::metrics::metrics;

/// For the store, whose outages last minutes to hours.
pub const STORE: Backoff = Backoff { first: Duration::from_millis(250), max: Duration::from_secs(15) };

/// For the catalog: the first pause is short, because every job waits for the catalog.
pub const CATALOG: Backoff = Backoff { first: Duration::from_millis(200), max: Duration::from_secs(5) };

/// Calls `attempt_once` until it succeeds, or fails with a fault that is not retried; `None` after `cancel`. Retries are counted, and
/// logged at the first failure and once a minute.
///
/// # Errors
/// The error of `attempt_once` whose fault is not retried.
pub async fn retry_until_cancelled<T, E: HasFault, F: Future<Output = Result<T, E>>>(
    operation: &str,
    backoff: Backoff,
    cancel: &CancellationToken,
    mut attempt_once: impl FnMut() -> F,
) -> Option<Result<T, E>> {
    let mut waited = Duration::ZERO;
    for attempt in 0.. {
        let error = tokio::select! {
            () = cancel.cancelled() => return None,
            result = attempt_once() => match result {
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
            tracing::warn!(fault.kind = %fault.kind, attempt, "cannot {operation}, trying again: {}", chain(&error));
        }
        waited += delay;
        tokio::select! {
            () = cancel.cancelled() => return None,
            () = tokio::time::sleep(delay) => {}
        }
    }
    None
}
