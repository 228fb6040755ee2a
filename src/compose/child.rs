//! The composer as a process of its own: codecs parse hostile input in C, and a crash there must not touch a capture.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::composer::{Composed, Options};
use crate::fault::{Fault, FaultKind, HasFault};
use crate::media::Pipelines;

/// A composer that dies is started again over the same log so often.
const STARTS_MAX: u32 = 20;
/// Before it is started again.
const RESTART: Duration = Duration::from_millis(200);
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// The composer's own deadlines come first; then its process is ended.
const GRACE: Duration = Duration::from_secs(5);
/// Longest line that is read from it.
const LINE_BYTES_MAX: u64 = 1 << 20;
/// Address space of a composer: far more than sixteen streams need.
const MEMORY_BYTES_MAX: u64 = 4 << 30;
/// How far it steps back for captures, by `nice`.
const NICENESS: i32 = 10;

/// What a composer is asked for: `archiver compose --task`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Task {
    /// The file.
    pub options: Options,
    /// How it is made.
    pub pipelines: Pipelines,
}

/// A line of `archiver compose --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// Pictures made, and of how many.
    Progress(u64, u64),
    /// The file is there.
    Composed(Composed),
    /// There is no file: the fault's kind, and why.
    Failed(FaultKind, String),
}

/// Why there is no file.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    /// It said so.
    #[error("{1}")]
    Failed(FaultKind, String),
    /// It dies again and again.
    #[error("the composer died {STARTS_MAX} times, the last time with {0}")]
    Died(String),
    /// It made no progress.
    #[error("the composer made no progress for {0} s")]
    Stalled(u64),
    /// It cannot be started.
    #[error("the composer cannot be started")]
    Start(#[source] std::io::Error),
    /// The work was called off.
    #[error("the work was called off")]
    Cancelled,
}

impl HasFault for ChildError {
    fn fault(&self) -> Fault {
        match self {
            Self::Failed(kind, _) => *kind,
            Self::Died(_) | Self::Start(_) => FaultKind::MediaPipeline,
            Self::Stalled(_) | Self::Cancelled => FaultKind::MediaStalled,
        }
        .fault()
    }
}

/// What a composer does first in its own process: it steps back for captures, ends with its worker, and may not take
/// all memory.
pub fn settle() {
    use rustix::process::{Resource, Rlimit, Signal};
    let limit = Rlimit { current: Some(MEMORY_BYTES_MAX), maximum: Some(MEMORY_BYTES_MAX) };
    let settled = [
        rustix::process::nice(NICENESS).map(drop),
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL)),
        rustix::process::setrlimit(Resource::As, limit),
    ];
    for refused in settled.into_iter().filter_map(Result::err) {
        tracing::warn!("the composer's process is not limited as it should be: {refused}");
    }
}

/// Composes a log in a process of its own. Blocking; must stay on its thread, with which the process would end.
///
/// # Errors
/// See [`ChildError`].
pub fn run(dir: &Path, out: &Path, task: &Task, cancel: &CancellationToken) -> Result<Composed, ChildError> {
    let mut died = String::new();
    for start in 0..STARTS_MAX {
        if start > 0 {
            tracing::warn!(start, "the composer died with {died}, it is started again");
            std::thread::sleep(RESTART);
        }
        let mut running = Running(command(dir, out, task).map_err(ChildError::Start)?);
        let lines = lines(&mut running.0).map_err(ChildError::Start)?;
        match follow(&lines, task.pipelines.stall + GRACE, cancel)? {
            Some(Line::Composed(composed)) => return Ok(composed),
            Some(Line::Failed(kind, why)) => return Err(ChildError::Failed(kind, why)),
            Some(Line::Progress(..)) | None => {}
        }
        died = running.0.wait().map_or_else(|e| e.to_string(), |status| status.to_string());
    }
    Err(ChildError::Died(died))
}

/// A process that ends with its handle.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if self.0.kill().and_then(|()| self.0.wait()).is_err() {
            tracing::error!("a composer cannot be ended");
        }
    }
}

fn command(dir: &Path, out: &Path, task: &Task) -> std::io::Result<Child> {
    let task = serde_json::to_string(task).expect("plain data");
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("compose").arg(dir).arg("--out").arg(out).args(["--json", "--task", &task]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()
}

/// Reads what a composer says, until it says no more or something else.
fn lines(child: &mut Child) -> std::io::Result<Receiver<Line>> {
    let (sender, receiver) = sync_channel(16);
    let Some(out) = child.stdout.take() else { return Ok(receiver) };
    let read = move || {
        let mut out = BufReader::new(out);
        let mut text = String::new();
        while matches!(out.by_ref().take(LINE_BYTES_MAX).read_line(&mut text), Ok(1..)) {
            let Ok(line) = serde_json::from_str(&text) else { return };
            if sender.send(line).is_err() {
                return;
            }
            text.clear();
        }
    };
    std::thread::Builder::new().name("composer".to_owned()).spawn(read)?;
    Ok(receiver)
}

/// Waits for the last line; `None` when the process says no more.
fn follow(lines: &Receiver<Line>, stall: Duration, cancel: &CancellationToken) -> Result<Option<Line>, ChildError> {
    let mut moved = (Instant::now(), 0);
    loop {
        match lines.recv_timeout(LOOK) {
            Ok(Line::Progress(made, _)) if made > moved.1 => moved = (Instant::now(), made),
            Ok(Line::Progress(..)) | Err(RecvTimeoutError::Timeout) => {}
            Ok(last) => return Ok(Some(last)),
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
        }
        if cancel.is_cancelled() {
            return Err(ChildError::Cancelled);
        }
        if moved.0.elapsed() > stall {
            return Err(ChildError::Stalled(stall.as_secs()));
        }
    }
}
