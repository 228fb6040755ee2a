//! Time limits of requests to the broker. `lapin` (4.12.3) has none, and may lose an answer: the future of a request that is made while the
//! connection ends is never ready. One of some 250 connections that `archiver check` closed was never closed.

use std::time::Duration;

use tokio::time::timeout;

use super::{BrokerError, failed};

/// Time limit of connecting and of all that is declared then, for a host that does not answer at all.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// Time limit of one request. A connection on which a request takes longer is dead.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Limits the time of connecting and declaring.
pub(super) async fn connecting<T>(
    doing: &'static str,
    opening: impl Future<Output = Result<T, BrokerError>>,
) -> Result<T, BrokerError> {
    timeout(CONNECT_MAX, opening).await.map_err(|_| BrokerError::Timeout { doing, seconds: CONNECT_MAX.as_secs() })?
}

/// Limits the time of one request.
pub(super) async fn request<T>(
    doing: &'static str,
    operation: impl Future<Output = lapin::Result<T>>,
) -> Result<T, BrokerError> {
    timeout(ANSWER_MAX, operation)
        .await
        .map_err(|_| BrokerError::Timeout { doing, seconds: ANSWER_MAX.as_secs() })?
        .map_err(failed(doing))
}

/// Closes a connection on which nothing is waited for any more. One that cannot be closed in time ends with its socket.
pub(super) async fn close(connection: lapin::Connection, reason: &'static str) {
    // The only place that closes one: it has a time limit.
    #[allow(clippy::disallowed_methods)]
    let closing = connection.close(200, reason.into());
    if let Err(error) = request("close a connection", closing).await {
        tracing::debug!("{}", crate::model::fault::chain(&error));
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_never_comes_is_waited_for_a_while() {
        let error = request::<()>("close a connection", pending()).await.expect_err("no answer");
        assert_eq!(error.to_string(), "the broker did not close a connection within 5 s");
        let error = connecting::<()>("take a connection", pending()).await.expect_err("no answer");
        assert_eq!(error.to_string(), "the broker did not take a connection within 10 s");
    }
}
