//! Deadlines for work without progress. A process that waits for a processor, because the machine has too much work, has not stalled.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Interval at which the threads of a process without progress are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// A process without progress has stalled after so many times its deadline, however long it waited for processors.
const STARVED_MAX: u32 = 10;

/// How long each thread of a process has waited for a processor since it began, by thread id.
type WaitTimes = HashMap<u32, Duration>;

/// Measures for how long a process has made no progress although it had the processors that it wanted.
#[derive(Debug)]
pub struct StallTimer {
    /// The threads' folder in `/proc`.
    threads: PathBuf,
    deadline: Duration,
    progressed_at: Instant,
    looked_at: Instant,
    wait_times: Option<WaitTimes>,
    /// Time without progress in which no thread waited for a processor.
    served: Duration,
}

impl StallTimer {
    /// Work of this process, which has stalled after `deadline` without progress.
    #[must_use]
    pub fn of_this_process(deadline: Duration) -> Self {
        Self::new(PathBuf::from("/proc/self/task"), deadline)
    }

    /// Work of the process `id`, which has stalled after `deadline` without progress.
    #[must_use]
    pub fn of_process(id: u32, deadline: Duration) -> Self {
        Self::new(PathBuf::from(format!("/proc/{id}/task")), deadline)
    }

    fn new(threads: PathBuf, deadline: Duration) -> Self {
        let now = Instant::now();
        Self { threads, deadline, progressed_at: now, looked_at: now, wait_times: None, served: Duration::ZERO }
    }

    /// After how long without progress the work has stalled.
    #[must_use]
    pub const fn deadline(&self) -> Duration {
        self.deadline
    }

    /// The work made progress: the deadline counts from now on.
    pub fn progressed(&mut self) {
        self.progressed_at = Instant::now();
        self.looked_at = self.progressed_at;
        self.wait_times = None;
        self.served = Duration::ZERO;
    }

    /// Whether the work has stalled. It is asked often: what it reads, it reads once a second and only without progress.
    pub fn has_stalled(&mut self) -> bool {
        let elapsed = self.looked_at.elapsed();
        if elapsed >= LOOK_INTERVAL {
            let now = wait_times(&self.threads);
            self.served += self.wait_times.as_ref().map_or(elapsed, |before| served(elapsed, before, &now));
            self.looked_at += elapsed;
            self.wait_times = Some(now);
        }
        let since_look = self.looked_at.elapsed().min(LOOK_INTERVAL);
        self.served + since_look > self.deadline || self.progressed_at.elapsed() > self.deadline * STARVED_MAX
    }
}

/// How much of `elapsed` no thread waited for a processor. The thread that waited longest counts: the others may wait for it.
fn served(elapsed: Duration, before: &WaitTimes, now: &WaitTimes) -> Duration {
    let waited = now.iter().map(|(thread, time)| time.saturating_sub(*before.get(thread).unwrap_or(time)));
    elapsed.saturating_sub(waited.max().unwrap_or_default())
}

/// Reads the second number of each thread's `schedstat`, in nanoseconds (Linux, Documentation/scheduler/sched-stats). Without it nothing is
/// known to wait.
fn wait_times(threads: &Path) -> WaitTimes {
    let Ok(entries) = std::fs::read_dir(threads) else { return WaitTimes::new() };
    let thread = |entry: std::fs::DirEntry| {
        let text = std::fs::read_to_string(entry.path().join("schedstat")).ok()?;
        let waited = text.split_whitespace().nth(1)?.parse().ok()?;
        Some((entry.file_name().to_str()?.parse().ok()?, Duration::from_nanos(waited)))
    };
    entries.filter_map(Result::ok).filter_map(thread).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(of: &[(u32, u64)]) -> WaitTimes {
        of.iter().map(|(thread, ms)| (*thread, Duration::from_millis(*ms))).collect()
    }

    #[test]
    fn time_in_which_a_thread_waits_for_a_processor_does_not_count() {
        let known = times(&[(1, 500), (2, 70)]);
        for (what, now, ms) in [
            ("all threads sleep", &[(1, 500), (2, 70)][..], 1_000),
            ("one waits for most of it", &[(1, 1_400), (2, 70)], 100),
            ("two wait at the same time", &[(1, 1_100), (2, 370)], 400),
            ("a new thread has waited before it was known", &[(1, 500), (2, 70), (3, 800)], 1_000),
            ("a thread has ended", &[(2, 170)], 900),
            ("the kernel's clock and ours differ", &[(1, 1_520), (2, 70)], 0),
        ] {
            let served = served(Duration::from_secs(1), &known, &times(now));
            assert_eq!(served, Duration::from_millis(ms), "{what}");
        }
    }

    #[test]
    fn a_process_that_sleeps_stalls_after_its_deadline() {
        let mut timer = StallTimer::of_this_process(Duration::from_millis(50));
        assert!(!timer.has_stalled());
        timer.progressed_at -= Duration::from_secs(3);
        timer.looked_at = timer.progressed_at;
        assert!(timer.has_stalled(), "{timer:?}");
        timer.progressed();
        assert!(!timer.has_stalled(), "{timer:?}");
    }

    #[test]
    fn a_process_that_waits_for_processors_has_ten_times_its_deadline() {
        let deadline = Duration::from_secs(60);
        let mut timer = StallTimer::of_process(std::process::id(), deadline);
        timer.progressed_at -= deadline * 9;
        assert!(!timer.has_stalled(), "{timer:?}");
        timer.progressed_at -= deadline * 2;
        assert!(timer.has_stalled(), "{timer:?}");
    }

    #[test]
    fn the_kernel_tells_how_long_threads_wait() {
        assert!(!wait_times(Path::new("/proc/self/task")).is_empty(), "schedstat of this process");
    }
}
