//! What a process costs, as Linux counts it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::time::ClockId;
use nix::unistd::Pid;
use serde::Serialize;

/// The cost of a process over a while.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Cost {
    /// Share of one core, 1.0 is all of it.
    pub cpu: f64,
    /// Resident memory, in MB of 1,000,000 bytes. What it shares counts in full: its part (PSS) would change with
    /// what else runs, such as the worker of the long session.
    pub memory_mb: f64,
    /// Threads.
    pub threads: u64,
}

fn read(pid: u32, name: &str) -> Result<String> {
    let path = PathBuf::from(format!("/proc/{pid}/{name}"));
    std::fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// Time on a core so far, by the process's own clock: nanoseconds, where `stat` has hundredths of a second. It
/// counts the threads that have ended too; both recorders have some that come and go within a measurement.
fn on_core(pid: u32) -> Result<Duration> {
    let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(pid.try_into()?))?;
    Ok(clock.now()?.into())
}

fn field(text: &str, name: &str) -> Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
    Ok(line.split_whitespace().next().context("no value")?.parse()?)
}

/// Watches a process for a while.
///
/// # Errors
/// When it ends.
pub async fn watch(pid: u32, window: Duration) -> Result<Cost> {
    let (start, before) = (Instant::now(), on_core(pid)?);
    tokio::time::sleep(window).await;
    let cpu = (on_core(pid)? - before).as_secs_f64() / start.elapsed().as_secs_f64();
    #[allow(clippy::cast_precision_loss)]
    let memory_mb = field(&read(pid, "smaps_rollup")?, "Rss:")? as f64 * 1024.0 / 1e6;
    let threads = field(&read(pid, "status")?, "Threads:")?;
    Ok(Cost { cpu, memory_mb, threads })
}

/// The median; of an even number, the upper of the two in the middle.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    percentile(values, 50.0)
}

/// The value that so many per cent do not exceed.
///
/// # Panics
/// Without values.
#[must_use]
pub fn percentile(values: &[f64], percent: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let at = (sorted.len() as f64 * percent / 100.0) as usize;
    sorted[at.min(sorted.len() - 1)]
}
