//! Waiting for a state with a deadline.

use std::future::Future;
use std::time::{Duration, Instant};

/// What has not come after so long does not come. Only a test that fails waits so long, so it is far above what the
/// slowest machine takes: how fast something is, is for the benches to say.
pub const DEADLINE: Duration = Duration::from_secs(180);

/// Less often than this nobody asks for what comes soon.
const PAUSE: Duration = Duration::from_millis(20);

/// Asks every 20 ms until the answer is `Some`; less often when asking takes long, so that it leaves the processor to
/// what is waited for.
///
/// # Panics
/// When it takes longer than [`DEADLINE`]; `what` says what was waited for.
pub async fn wait_for<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let until = Instant::now() + DEADLINE;
    loop {
        let asked = Instant::now();
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < until, "{what}: not within {DEADLINE:?}");
        tokio::time::sleep(PAUSE.max(3 * asked.elapsed())).await;
    }
}
