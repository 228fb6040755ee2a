//! The composer as a child process: codecs parse hostile input in C, and a crash there must not harm a capture.

use std::io::{BufRead, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::child::{self, ChildGuard, read_messages};
use super::composer::{Composed, Options};
use super::log_follower::{LogProgress, ProgressReceiver};
use crate::media::Pipelines;
use crate::model::cancellable::Cancellable;
use crate::model::fault::{Fault, FaultKind, HasFault};
use crate::model::time::MediaTime;
use crate::runtime::metrics::metrics;
use crate::runtime::stall::StallTimer;

/// Starts of a composer that follows a session, when it dies again and again over the same log.
const STARTS_MAX: u32 = 20;
/// Starts of a composer of a finished log.
const STARTS_FINISHED_MAX: u32 = 3;
/// Pause before the next start.
const RESTART: Duration = Duration::from_millis(200);
/// Interval at which its messages, and the cancellation, are checked.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// The composer's own deadlines come first; then its process is ended.
const GRACE_PERIOD: Duration = Duration::from_secs(5);

/// A composer's task: `archiver compose --task`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Task {
    /// Options of the file.
    pub options: Options,
    /// The pipelines' settings.
    pub pipelines: Pipelines,
    /// Whether the log grows. If so, the standard input has lines of [`LogProgress`].
    pub follow: bool,
}

/// A line of `archiver compose --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ComposerMessage {
    /// Video frames made, and frames known so far.
    Progress(u64, u64),
    /// The composer waits for the log to grow.
    Waiting,
    /// The file is finished.
    Composed(Composed),
    /// There is no file: the fault's kind, and the error.
    Failed(FaultKind, String),
}

/// Why there is no file.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    /// The composer reported an error.
    #[error("{1}")]
    Failed(FaultKind, String),
    /// The process died at each start.
    #[error("the composer died {0} times, the last time with {1}")]
    Died(u32, String),
    /// It made no progress.
    #[error("the composer made no progress for {0} s")]
    Stalled(u64),
    /// It cannot be started.
    #[error("the composer cannot be started")]
    Start(#[source] std::io::Error),
}

impl HasFault for ChildError {
    fn fault(&self) -> Fault {
        match self {
            Self::Failed(kind, _) => *kind,
            Self::Died(..) | Self::Start(_) => FaultKind::MediaPipeline,
            Self::Stalled(_) => FaultKind::MediaStalled,
        }
        .fault()
    }
}

/// Receives the log's progress from the standard input, in a thread of its own.
///
/// # Errors
/// When the thread cannot be started.
pub fn receive_progress() -> std::io::Result<ProgressReceiver> {
    let (sender, receiver) = ProgressReceiver::channel();
    let listen = move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            match serde_json::from_str(&line) {
                Ok(message) => sender.send(message),
                Err(error) => tracing::error!(line, "the worker says something unknown: {error}"),
            }
        }
    };
    std::thread::Builder::new().name("growth".to_owned()).spawn(listen)?;
    Ok(receiver)
}

/// A log that grows while it is composed.
#[derive(Debug)]
pub struct LiveLog {
    /// The log's watermark; `i64::MAX` when the log has ended.
    pub watermark: watch::Receiver<MediaTime>,
    /// Counts how often the file was begun.
    pub starts: watch::Sender<u32>,
}

/// Composes a log in a child process: a finished log, or one that is followed. Blocking. It must stay on its thread: the
/// child process ends with the thread that started it.
///
/// # Errors
/// See [`ChildError`].
pub fn run(
    dir: &Path,
    out: &Path,
    options: &Options,
    pipelines: &Pipelines,
    live_log: Option<&LiveLog>,
    cancel: &CancellationToken,
) -> Result<Cancellable<Composed>, ChildError> {
    let task = Task { options: options.clone(), pipelines: pipelines.clone(), follow: live_log.is_some() };
    let starts_max = if live_log.is_some() { STARTS_MAX } else { STARTS_FINISHED_MAX };
    let mut died = String::new();
    for start in 0..starts_max {
        if start > 0 {
            tracing::warn!(start, "the composer died with {died}, it is started again");
            std::thread::sleep(RESTART);
        }
        if let Some(live_log) = live_log {
            live_log.starts.send_modify(|starts| *starts += 1);
        }
        let mut child = ChildGuard(command(dir, out, &task).map_err(ChildError::Start)?);
        let lines = read_messages::<ComposerMessage>(&mut child.0).map_err(ChildError::Start)?;
        let input = child.0.stdin.take();
        let mut progress_pipe =
            live_log.zip(input).map(|(log, input)| ProgressPipe { watermark: log.watermark.clone(), input });
        let stall = pipelines.stall + GRACE_PERIOD;
        let stall_timer = StallTimer::of_process(child.0.id(), stall);
        let result = wait_for_result(&lines, &mut progress_pipe, options.rate, stall_timer, cancel)?;
        let Cancellable::Done(result) = result else { return Ok(Cancellable::Cancelled) };
        match result {
            Some(ComposerMessage::Composed(composed)) => return Ok(Cancellable::Done(composed)),
            Some(ComposerMessage::Failed(kind, why)) => return Err(ChildError::Failed(kind, why)),
            Some(ComposerMessage::Progress(..) | ComposerMessage::Waiting) | None => {}
        }
        died = child.end();
    }
    Err(ChildError::Died(starts_max, died))
}

fn command(dir: &Path, out: &Path, task: &Task) -> std::io::Result<Child> {
    let json = serde_json::to_string(task).expect("plain data");
    let mut command = child::command(&task.pipelines);
    command.arg("compose").arg(dir).arg("--out").arg(out).args(["--json", "--task", &json]);
    let input = if task.follow { Stdio::piped() } else { Stdio::null() };
    command.stdin(input).stdout(Stdio::piped()).spawn()
}

/// Reports a log's watermark to a composer's process.
struct ProgressPipe {
    watermark: watch::Receiver<MediaTime>,
    input: ChildStdin,
}

impl ProgressPipe {
    /// Sends the watermark. A process that does not read it has ended, which [`wait_for_result`] sees.
    fn send(&mut self) {
        let message = match *self.watermark.borrow_and_update() {
            MediaTime(i64::MAX) => LogProgress::Ended,
            at => LogProgress::Watermark(at),
        };
        let mut line = serde_json::to_vec(&message).expect("plain data");
        line.push(b'\n');
        self.input.write_all(&line).unwrap_or_default();
    }

    fn send_if_changed(&mut self) {
        if self.watermark.has_changed().unwrap_or(false) {
            self.send();
        }
    }
}

/// Waits for the result; `None` when the process ends without one.
fn wait_for_result(
    lines: &Receiver<ComposerMessage>,
    progress_pipe: &mut Option<ProgressPipe>,
    rate: u32,
    mut stall_timer: StallTimer,
    cancel: &CancellationToken,
) -> Result<Cancellable<Option<ComposerMessage>>, ChildError> {
    let (mut frames_made, follows) = (0, progress_pipe.is_some());
    progress_pipe.iter_mut().for_each(ProgressPipe::send);
    let behind = |pictures: u64| {
        if follows {
            #[allow(clippy::cast_precision_loss)]
            metrics().compose_behind.observe(pictures as f64 / f64::from(rate.max(1)));
        }
    };
    loop {
        progress_pipe.iter_mut().for_each(ProgressPipe::send_if_changed);
        match lines.recv_timeout(POLL_INTERVAL) {
            Ok(ComposerMessage::Progress(made, of)) if made > frames_made => {
                behind(of.saturating_sub(made));
                frames_made = made;
                stall_timer.progressed();
            }
            Ok(ComposerMessage::Waiting) => {
                behind(0);
                stall_timer.progressed();
            }
            Ok(ComposerMessage::Progress(..)) | Err(RecvTimeoutError::Timeout) => {}
            Ok(last) => return Ok(Cancellable::Done(Some(last))),
            Err(RecvTimeoutError::Disconnected) => return Ok(Cancellable::Done(None)),
        }
        if cancel.is_cancelled() {
            return Ok(Cancellable::Cancelled);
        }
        if stall_timer.has_stalled() {
            return Err(ChildError::Stalled(stall_timer.elapsed().as_secs()));
        }
    }
}
