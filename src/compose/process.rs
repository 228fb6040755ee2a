//! The composer as a process of its own: codecs parse hostile input in C, and a crash there must not touch a capture.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::composer::{Composed, Options};
use super::log_follower::{Growth, Told};
use crate::media::Pipelines;
use crate::model::fault::{Fault, FaultKind, HasFault};
use crate::model::time::MediaTime;
use crate::runtime::metrics::metrics;

/// A composer that dies while it follows a session is started again over the same log so often.
const STARTS_MAX: u32 = 20;
/// One that dies over a finished log.
const STARTS_FINISHED_MAX: u32 = 3;
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
    /// Whether the log grows: how, its input tells in lines of [`Told`].
    pub follow: bool,
}

/// A line of `archiver compose --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// Pictures made, and of how many.
    Progress(u64, u64),
    /// It waits for the log to grow.
    Waiting,
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
    #[error("the composer died {0} times, the last time with {1}")]
    Died(u32, String),
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
            Self::Died(..) | Self::Start(_) => FaultKind::MediaPipeline,
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

/// What a composer's process reads from its input, in a thread of its own.
///
/// # Errors
/// When there can be no such thread.
pub fn listen() -> std::io::Result<Growth> {
    let (teller, growth) = Growth::following();
    let listen = move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            match serde_json::from_str(&line) {
                Ok(told) => teller.tell(told),
                Err(error) => tracing::error!(line, "the worker says something unknown: {error}"),
            }
        }
    };
    std::thread::Builder::new().name("growth".to_owned()).spawn(listen)?;
    Ok(growth)
}

/// A log that grows, and who wants to know what becomes of it.
#[derive(Debug)]
pub struct Following {
    /// The moment up to which the log is complete, `i64::MAX` when it has ended.
    pub growth: watch::Receiver<MediaTime>,
    /// Counts how often the file was begun.
    pub begun: watch::Sender<u32>,
}

/// Composes a log in a process of its own: a finished one, or one that is followed. Blocking; must stay on its thread, with which the process would end.
///
/// # Errors
/// See [`ChildError`].
pub fn run(
    dir: &Path,
    out: &Path,
    options: &Options,
    pipelines: &Pipelines,
    following: Option<&Following>,
    cancel: &CancellationToken,
) -> Result<Composed, ChildError> {
    let task = Task { options: options.clone(), pipelines: pipelines.clone(), follow: following.is_some() };
    let starts = if following.is_some() { STARTS_MAX } else { STARTS_FINISHED_MAX };
    let mut died = String::new();
    for start in 0..starts {
        if start > 0 {
            tracing::warn!(start, "the composer died with {died}, it is started again");
            std::thread::sleep(RESTART);
        }
        if let Some(following) = following {
            following.begun.send_modify(|begun| *begun += 1);
        }
        let mut running = Running(command(dir, out, &task).map_err(ChildError::Start)?);
        let lines = lines(&mut running.0).map_err(ChildError::Start)?;
        let mut telling = following.map(|f| f.growth.clone()).zip(running.0.stdin.take());
        match follow(&lines, &mut telling, options.rate, pipelines.stall + GRACE, cancel)? {
            Some(Line::Composed(composed)) => return Ok(composed),
            Some(Line::Failed(kind, why)) => return Err(ChildError::Failed(kind, why)),
            Some(Line::Progress(..) | Line::Waiting) | None => {}
        }
        died = running.0.wait().map_or_else(|e| e.to_string(), |status| status.to_string());
    }
    Err(ChildError::Died(starts, died))
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
    let json = serde_json::to_string(task).expect("plain data");
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("compose").arg(dir).arg("--out").arg(out).args(["--json", "--task", &json]);
    let input = if task.follow { Stdio::piped() } else { Stdio::null() };
    command.stdin(input).stdout(Stdio::piped()).spawn()
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

/// How far a log has grown, and who wants to know.
type Telling = Option<(watch::Receiver<MediaTime>, ChildStdin)>;

/// Tells the process what is new. One that does not listen any more says so by its end.
fn tell(telling: &mut Telling, always: bool) {
    let Some((growth, input)) = telling else { return };
    if always || growth.has_changed().unwrap_or(false) {
        let told = match *growth.borrow_and_update() {
            MediaTime(i64::MAX) => Told::Ended,
            at => Told::Complete(at),
        };
        let mut line = serde_json::to_vec(&told).expect("plain data");
        line.push(b'\n');
        input.write_all(&line).unwrap_or_default();
    }
}

/// Waits for the last line; `None` when the process says no more.
fn follow(
    lines: &Receiver<Line>,
    telling: &mut Telling,
    rate: u32,
    stall: Duration,
    cancel: &CancellationToken,
) -> Result<Option<Line>, ChildError> {
    let (mut moved, follows) = ((Instant::now(), 0), telling.is_some());
    tell(telling, true);
    let behind = |pictures: u64| {
        if follows {
            #[allow(clippy::cast_precision_loss)]
            metrics().compose_behind.observe(pictures as f64 / f64::from(rate.max(1)));
        }
    };
    loop {
        tell(telling, false);
        match lines.recv_timeout(LOOK) {
            Ok(Line::Progress(made, of)) if made > moved.1 => {
                behind(of.saturating_sub(made));
                moved = (Instant::now(), made);
            }
            Ok(Line::Waiting) => {
                behind(0);
                moved.0 = Instant::now();
            }
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
