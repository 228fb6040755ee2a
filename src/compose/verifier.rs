//! The verifier as a child process: it decodes files of hostile media, and a crash there must not harm a capture.

use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::child::{self, ChildGuard, read_messages};
use crate::media::verify::{self, Counts, Inspection};
use crate::media::{MediaError, Pipelines};
use crate::model::cancellable::Cancellable;
use crate::model::fault::{Fault, FaultKind, HasFault, chain};
use crate::runtime::stall::StallTimer;

/// A verifier stalls on a machine that is busy, and its process may be ended by others: a file is given up only after so many times.
const TRIES: u32 = 3;
/// Interval at which the cancellation is checked.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// A disk that is slower than this has stalled.
const BYTES_A_SECOND_MIN: u64 = 4 << 20;
/// The verifier's own deadlines come first; then its process is ended.
const GRACE_PERIOD: Duration = Duration::from_secs(5);

/// A verifier's task: `archiver verify-file --task`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Task {
    /// The pipelines' settings.
    pub pipelines: Pipelines,
    /// What to look at.
    pub scope: Scope,
}

/// What of a file is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// The structure of a Matroska file, samples of its pictures, and so much of its beginning.
    Inspect(Duration),
    /// The beginning and the end of a file, each so long.
    Ends(Duration),
}

/// The line of `archiver verify-file`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VerifierMessage {
    /// The result of [`Scope::Inspect`].
    Inspected(Inspection),
    /// The result of [`Scope::Ends`].
    Ends(Counts, Counts),
    /// The file cannot be read or decoded, and why.
    BadFile(String),
    /// Nothing is known of the file: the fault's kind, and the error.
    Failed(FaultKind, String),
}

/// Why a file is not verified.
#[derive(Debug, thiserror::Error)]
pub enum VerifierError {
    /// The file cannot be read or decoded.
    #[error("{0}")]
    BadFile(String),
    /// The verifier failed, and not by the file.
    #[error("{1}")]
    Failed(FaultKind, String),
    /// The process died.
    #[error("the verifier died with {0}")]
    Died(String),
    /// It did not end in time.
    #[error("the verifier stalled: {0}")]
    Stalled(String),
    /// It cannot be started.
    #[error("the verifier cannot be started")]
    Start(#[source] std::io::Error),
}

impl HasFault for VerifierError {
    fn fault(&self) -> Fault {
        match self {
            Self::Failed(kind, _) => *kind,
            Self::BadFile(_) | Self::Died(_) | Self::Start(_) => FaultKind::MediaPipeline,
            Self::Stalled(_) => FaultKind::MediaStalled,
        }
        .fault()
    }
}

/// Does a task in this process, which was started for it.
#[must_use]
pub fn perform(path: &Path, task: &Task) -> VerifierMessage {
    let (pipelines, cancel) = (&task.pipelines, CancellationToken::new());
    let result = match task.scope {
        Scope::Inspect(beginning) => {
            verify::inspect(path, beginning, pipelines, &cancel).map(|found| found.map(VerifierMessage::Inspected))
        }
        Scope::Ends(part) => verify::decode_ends(path, part, pipelines, &cancel)
            .map(|found| found.map(|(first, last)| VerifierMessage::Ends(first, last))),
    };
    match result {
        Ok(found) => found.done().expect("nothing cancels the new token"),
        Err(error @ MediaError::Element { .. }) => VerifierMessage::BadFile(chain(&error)),
        Err(error) => VerifierMessage::Failed(error.fault().kind, chain(&error)),
    }
}

/// Verifies again when the verifier dies or stalls. `retried` gets the error before another try.
///
/// # Errors
/// That of the last try.
pub fn patiently<T>(
    mut verify: impl FnMut() -> Result<T, VerifierError>,
    retried: impl Fn(&VerifierError),
) -> Result<T, VerifierError> {
    for _ in 1..TRIES {
        match verify() {
            Err(error @ (VerifierError::Died(_) | VerifierError::Stalled(_))) => retried(&error),
            other => return other,
        }
    }
    verify()
}

/// Reads the structure of a Matroska file and decodes samples of it, in a child process. Blocking. It must stay on its thread: the child
/// process ends with the thread that started it.
///
/// # Errors
/// See [`VerifierError`].
pub fn inspect(
    path: &Path,
    beginning: Duration,
    pipelines: &Pipelines,
    cancel: &CancellationToken,
) -> Result<Cancellable<Inspection>, VerifierError> {
    match run(path, Scope::Inspect(beginning), pipelines, cancel)? {
        Cancellable::Done(VerifierMessage::Inspected(found)) => Ok(Cancellable::Done(found)),
        Cancellable::Done(other) => Err(unexpected(&other)),
        Cancellable::Cancelled => Ok(Cancellable::Cancelled),
    }
}

/// Decodes the beginning and the end of a file, each as long as `part`, in a child process. As [`inspect`].
///
/// # Errors
/// See [`VerifierError`].
pub fn decode_ends(
    path: &Path,
    part: Duration,
    pipelines: &Pipelines,
    cancel: &CancellationToken,
) -> Result<Cancellable<(Counts, Counts)>, VerifierError> {
    match run(path, Scope::Ends(part), pipelines, cancel)? {
        Cancellable::Done(VerifierMessage::Ends(first, last)) => Ok(Cancellable::Done((first, last))),
        Cancellable::Done(other) => Err(unexpected(&other)),
        Cancellable::Cancelled => Ok(Cancellable::Cancelled),
    }
}

fn unexpected(message: &VerifierMessage) -> VerifierError {
    VerifierError::Died(format!("an answer to another question: {message:?}"))
}

fn run(
    path: &Path,
    scope: Scope,
    pipelines: &Pipelines,
    cancel: &CancellationToken,
) -> Result<Cancellable<VerifierMessage>, VerifierError> {
    let task = Task { pipelines: pipelines.clone(), scope };
    let mut child = ChildGuard(command(path, &task).map_err(VerifierError::Start)?);
    let lines = read_messages::<VerifierMessage>(&mut child.0).map_err(VerifierError::Start)?;
    // A pipeline that decodes slowly is ended here, and one that stands still by its own deadline.
    let size = std::fs::metadata(path).map_or(0, |file| file.len());
    let reading = Duration::from_secs(size / BYTES_A_SECOND_MIN);
    let longest = 2 * pipelines.stall + GRACE_PERIOD + reading;
    let mut stall_timer = StallTimer::of_process(child.0.id(), longest);
    loop {
        match lines.recv_timeout(POLL_INTERVAL) {
            Ok(VerifierMessage::BadFile(what)) => return Err(VerifierError::BadFile(what)),
            Ok(VerifierMessage::Failed(FaultKind::MediaStalled, what)) => return Err(VerifierError::Stalled(what)),
            Ok(VerifierMessage::Failed(kind, what)) => return Err(VerifierError::Failed(kind, what)),
            Ok(found) => return Ok(Cancellable::Done(found)),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(VerifierError::Died(child.end()));
            }
            Err(RecvTimeoutError::Timeout) if cancel.is_cancelled() => return Ok(Cancellable::Cancelled),
            Err(RecvTimeoutError::Timeout) if stall_timer.has_stalled() => {
                return Err(VerifierError::Stalled(format!(
                    "it did not end within {} s",
                    stall_timer.elapsed().as_secs()
                )));
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

fn command(path: &Path, task: &Task) -> std::io::Result<Child> {
    let json = serde_json::to_string(task).expect("plain data");
    let mut command = child::command(&task.pipelines);
    command.arg("verify-file").arg(path).args(["--task", &json]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()
}
