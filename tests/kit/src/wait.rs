//! Waiting for a state with a deadline.

use std::future::Future;
use std::time::{Duration, Instant};

use crate::machine::known_slowness;

/// The deadline on a machine that is not slow.
const DEADLINE: Duration = Duration::from_secs(400);

/// Shortest time between two checks.
const PAUSE: Duration = Duration::from_millis(20);

/// Deadline of all waiting: 400 s, and as much longer as `with-servers` found this machine slow. Only failing tests reach it. Speed is
/// measured by the benchmarks.
#[must_use]
pub fn deadline() -> Duration {
    DEADLINE.mul_f64(known_slowness())
}

/// Calls `check` every 20 ms until it returns `Some`; less often if a call takes long, to leave the processor to the awaited work.
///
/// # Panics
/// When it takes longer than [`deadline`]; `condition` names what was waited for.
pub async fn wait_for<T, F: Future<Output = Option<T>>>(condition: &str, mut check: impl FnMut() -> F) -> T {
    let until = Instant::now() + deadline();
    loop {
        let checked_at = Instant::now();
        if let Some(answer) = check().await {
            return answer;
        }
        assert!(Instant::now() < until, "{condition}: not within {:?}", deadline());
        tokio::time::sleep(PAUSE.max(3 * checked_at.elapsed())).await;
    }
}
