//! Waiting for a state with a deadline.

use std::future::Future;
use std::time::{Duration, Instant};

/// Deadline of all waiting. Only failing tests reach it, so it is far above what the slowest machine needs. Speed is measured by the
/// benchmarks.
pub const DEADLINE: Duration = Duration::from_secs(400);

/// Shortest time between two checks.
const PAUSE: Duration = Duration::from_millis(20);

/// Calls `check` every 20 ms until it returns `Some`; less often if a call takes long, to leave the processor to the awaited work.
///
/// # Panics
/// When it takes longer than [`DEADLINE`]; `condition` names what was waited for.
pub async fn wait_for<T, F: Future<Output = Option<T>>>(condition: &str, mut check: impl FnMut() -> F) -> T {
    let until = Instant::now() + DEADLINE;
    loop {
        let checked_at = Instant::now();
        if let Some(answer) = check().await {
            return answer;
        }
        assert!(Instant::now() < until, "{condition}: not within {DEADLINE:?}");
        tokio::time::sleep(PAUSE.max(3 * checked_at.elapsed())).await;
    }
}
