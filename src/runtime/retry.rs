//! Retries with back-off, without a limit.

use std::future::Future;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::model::cancellable::Cancellable;
use crate::model::fault::{Backoff, HasFault, Retry, chain};
use crate::runtime::metrics::metrics;

/// For the store, whose outages last minutes to hours.
pub const STORE: Backoff = Backoff { first: Duration::from_millis(250), max: Duration::from_secs(15) };

/// For the catalog: the first pause is short, because every job waits for the catalog.
pub const CATALOG: Backoff = Backoff { first: Duration::from_millis(200), max: Duration::from_secs(5) };

/// Calls `attempt_once` until it succeeds, fails with a fault that is not retried, or `cancel` is cancelled. Retries are counted, and
/// logged at the first failure and once a minute.
///
/// # Errors
/// The error of `attempt_once` whose fault is not retried.
pub async fn retry_until_cancelled<T, E: HasFault, F: Future<Output = Result<T, E>>>(
    operation: &str,
    backoff: Backoff,
    cancel: &CancellationToken,
    mut attempt_once: impl FnMut() -> F,
) -> Result<Cancellable<T>, E> {
    let mut waited = Duration::ZERO;
    for attempt in 0.. {
        let error = tokio::select! {
            () = cancel.cancelled() => return Ok(Cancellable::Cancelled),
            result = attempt_once() => match result {
                Ok(value) => return Ok(Cancellable::Done(value)),
                Err(error) => error,
            },
        };
        let fault = error.fault();
        if fault.retry == Retry::Never {
            return Err(error);
        }
        metrics().retries.get_or_create(&fault.kind.into()).inc();
        let delay = backoff.delay(attempt, rand::random());
        if attempt == 0 || (waited + delay).as_secs() / 60 > waited.as_secs() / 60 {
            tracing::warn!(fault.kind = %fault.kind, attempt, "cannot {operation}, trying again: {}", chain(&error));
        }
        waited += delay;
        tokio::select! {
            () = cancel.cancelled() => return Ok(Cancellable::Cancelled),
            () = tokio::time::sleep(delay) => {}
        }
    }
    Ok(Cancellable::Cancelled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fault::{Fault, FaultKind};

    #[derive(Debug, PartialEq, thiserror::Error)]
    #[error("{0}")]
    struct Failed(FaultKind);

    impl HasFault for Failed {
        fn fault(&self) -> Fault {
            self.0.fault()
        }
    }

    async fn retry(results: &[Result<u8, FaultKind>], cancel: &CancellationToken) -> Result<Cancellable<u8>, Failed> {
        let mut results = results.iter();
        retry_until_cancelled("test", CATALOG, cancel, || {
            let result = results.next().copied();
            if result.is_none() {
                cancel.cancel();
            }
            async move { result.unwrap_or(Err(FaultKind::CatalogUnavailable)).map_err(Failed) }
        })
        .await
    }

    #[tokio::test(start_paused = true)]
    async fn a_retry_ends_with_success_an_error_that_stays_or_a_cancellation() {
        let (away, wrong) = (Err(FaultKind::CatalogUnavailable), Err(FaultKind::CatalogCorrupt));
        let calm = CancellationToken::new();
        assert_eq!(retry(&[away, away, Ok(1)], &calm).await, Ok(Cancellable::Done(1)));
        assert_eq!(retry(&[away, wrong, Ok(1)], &calm).await, Err(Failed(FaultKind::CatalogCorrupt)));
        assert_eq!(retry(&[away, away], &CancellationToken::new()).await, Ok(Cancellable::Cancelled));
    }
}
