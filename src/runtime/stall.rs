//! Deadlines for work without progress. A process that waits for a processor, because the machine has too much work, has not stalled. Only
//! this machine's own kernel tells of that: what a hypervisor takes away counts as served.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Interval at which the threads of a process without progress are looked at. No more counts of the time between two looks: whoever looks may
/// have waited, too.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// A process without progress has stalled after so many times its deadline, however long it waited for processors: a process with more threads
/// than processors makes itself wait.
const STARVED_MAX: u32 = 4;

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
    /// At the last look, if there was one since the last progress.
    wait_times: Option<WaitTimes>,
    /// Time without progress in which no thread waited for a processor.
    served: Duration,
    has_warned: bool,
}

impl StallTimer {
    /// Work of this process, which has stalled after `deadline` without progress.
    #[must_use]
    pub fn of_this_process(deadline: Duration) -> Self {
        Self::new(PathBuf::from("/proc/self/task"), deadline, Instant::now())
    }

    /// Work of the process `id`, which has stalled after `deadline` without progress.
    #[must_use]
    pub fn of_process(id: u32, deadline: Duration) -> Self {
        Self::new(PathBuf::from(format!("/proc/{id}/task")), deadline, Instant::now())
    }

    fn new(threads: PathBuf, deadline: Duration, now: Instant) -> Self {
        Self {
            threads,
            deadline,
            progressed_at: now,
            looked_at: now,
            wait_times: None,
            served: Duration::ZERO,
            has_warned: false,
        }
    }

    /// Time since the last progress.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.progressed_at.elapsed()
    }

    /// The work made progress: the deadline counts from now on.
    pub fn progressed(&mut self) {
        self.progressed_at(Instant::now());
    }

    fn progressed_at(&mut self, now: Instant) {
        self.progressed_at = now;
        self.looked_at = now;
        self.wait_times = None;
        self.served = Duration::ZERO;
    }

    /// Whether the work has stalled, to be asked several times a second. Reads `/proc` at most once a second, and only without progress.
    pub fn has_stalled(&mut self) -> bool {
        self.has_stalled_at(Instant::now())
    }

    fn has_stalled_at(&mut self, now: Instant) -> bool {
        if now - self.looked_at >= LOOK_INTERVAL {
            self.look(now);
        }
        self.served >= self.deadline || now - self.progressed_at > self.deadline * STARVED_MAX
    }

    fn look(&mut self, now: Instant) {
        let wait_times = wait_times(&self.threads);
        let elapsed = now - self.looked_at;
        let served = self.wait_times.as_ref().map_or(elapsed, |before| served(elapsed, before, &wait_times));
        self.served += served.min(LOOK_INTERVAL);
        self.looked_at = now;
        self.wait_times = Some(wait_times);
        let without_progress = now - self.progressed_at;
        let waits = without_progress > self.deadline && self.served < self.deadline;
        if waits && !std::mem::replace(&mut self.has_warned, true) {
            let elapsed_s = without_progress.as_secs();
            tracing::warn!(
                elapsed_s,
                "work makes no progress, because it waits for a processor: the machine has too much to do"
            );
        }
    }
}

/// The part of `elapsed` in which no thread waited for a processor. The thread that waited longest counts: the others may wait for it.
fn served(elapsed: Duration, before: &WaitTimes, now: &WaitTimes) -> Duration {
    let waited = now.iter().map(|(thread, time)| time.saturating_sub(*before.get(thread).unwrap_or(time)));
    elapsed.saturating_sub(waited.max().unwrap_or_default())
}

/// Reads the second number of each thread's `schedstat`, in nanoseconds (Linux, Documentation/scheduler/sched-stats). A kernel without these
/// numbers tells of no waiting.
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

    /// Asks once a second, `longest_s` times, while there is no progress and a thread has waited for `waits(second)` in all. Returns the second in
    /// which the work has stalled.
    fn seconds_until_stalled(deadline_s: u64, waits: impl Fn(u64) -> u64, longest_s: u64) -> Option<u64> {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("7");
        std::fs::create_dir(&path).expect("folder of a thread");
        let begun = Instant::now();
        let mut timer = StallTimer::new(folder.path().to_owned(), Duration::from_secs(deadline_s), begun);
        (1..=longest_s).find(|second| {
            // What it ran is not what it waited: the first number grows in any case.
            let schedstat = format!("{} {} {second}\n", second * 900_000_000, waits(*second) * 1_000_000_000);
            std::fs::write(path.join("schedstat"), schedstat).expect("schedstat");
            timer.has_stalled_at(begun + Duration::from_secs(*second))
        })
    }

    #[test]
    fn work_stalls_after_its_deadline_or_later_if_it_waits_for_processors() {
        assert_eq!(seconds_until_stalled(60, |_| 0, 300), Some(60), "it sleeps");
        // Before the second look it is not known how long it waited.
        assert_eq!(seconds_until_stalled(60, |second| second / 2 * 2, 300), Some(119), "it waits for half of the time");
        assert_eq!(seconds_until_stalled(60, |second| 2 * second, 240), None, "it waits all the time");
        assert_eq!(
            seconds_until_stalled(60, |second| 2 * second, 300),
            Some(241),
            "no longer than four times its deadline"
        );
    }

    #[test]
    fn progress_begins_the_deadline_anew_and_a_late_look_counts_a_second() {
        let begun = Instant::now();
        let after = |seconds| begun + Duration::from_secs(seconds);
        let mut timer = StallTimer::new(PathBuf::from("/nowhere"), Duration::from_secs(60), begun);
        timer.served = Duration::from_secs(58);
        assert!(!timer.has_stalled_at(after(50)), "{timer:?}");
        assert!(timer.has_stalled_at(after(100)), "{timer:?}");
        timer.progressed_at(after(100));
        assert!(!timer.has_stalled_at(after(100)), "{timer:?}");
    }

    #[test]
    fn the_kernel_tells_how_long_the_threads_of_a_process_wait() {
        for timer in
            [StallTimer::of_this_process(Duration::MAX), StallTimer::of_process(std::process::id(), Duration::MAX)]
        {
            assert!(!wait_times(&timer.threads).is_empty(), "{timer:?}");
        }
    }
}
