//! Restarts long-running tasks that panic. Otherwise the panic would surface only when the task is joined, at shutdown.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// Time from a panic to the restart.
const AFTER_PANIC: Duration = Duration::from_secs(1);

/// Runs `work` once. Returns whether it panicked and must be restarted; `false` when it has ended, and after `cancel`.
pub async fn panicked(task: &str, cancel: &CancellationToken, work: impl Future<Output = ()>) -> bool {
    if AssertUnwindSafe(work).catch_unwind().await.is_ok() {
        return false;
    }
    tracing::error!(fault.kind = "bug", "{task} panicked, restarting it");
    cancel.run_until_cancelled(sleep(AFTER_PANIC)).await.is_some()
}

/// Runs `work` until it ends. Restarts it after each panic, until `cancel`.
pub async fn restart_on_panic<F: Future<Output = ()>>(
    task: &'static str,
    cancel: CancellationToken,
    work: impl Fn() -> F,
) {
    // The call is inside the future, because it may panic, too.
    while panicked(task, &cancel, async { work().await }).await {}
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_is_restarted_until_it_ends_or_is_cancelled() {
        let (cancel, begun) = (CancellationToken::new(), AtomicU32::new(0));
        let work = || async { assert!(begun.fetch_add(1, Ordering::SeqCst) > 0, "the first time it panics") };
        restart_on_panic("a test", cancel.clone(), work).await;
        assert_eq!(begun.load(Ordering::SeqCst), 2);
        // What it works with is still there.
        let mut seen = Vec::new();
        while panicked("a test", &cancel, async {
            seen.push(seen.len());
            assert!(seen.len() > 1);
        })
        .await
        {}
        assert_eq!(seen, [0, 1]);
        cancel.cancel();
        begun.store(0, Ordering::SeqCst);
        restart_on_panic("a test", cancel, work).await;
        assert_eq!(begun.load(Ordering::SeqCst), 1, "nothing is restarted at shutdown");
    }
}
