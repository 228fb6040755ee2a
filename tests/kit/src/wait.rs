//! Waiting for a state with a deadline.

use std::future::Future;
use std::time::{Duration, Instant};

/// Asks every 20 ms until the answer is `Some`.
///
/// # Panics
/// When it takes longer than `limit`; `what` says what was waited for.
pub async fn wait_for<T, F: Future<Output = Option<T>>>(what: &str, limit: Duration, mut ask: impl FnMut() -> F) -> T {
    let until = Instant::now() + limit;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < until, "{what}: not within {limit:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
