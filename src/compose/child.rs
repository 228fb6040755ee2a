//! Processes that decode: codecs parse hostile input in C, and a crash there must not harm a capture.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::media::Pipelines;

/// How often, and from when to when, a child that says no more is looked at before it is ended.
const END_POLLS: u32 = 100;
const END_POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Longest line that is read from a child.
const LINE_BYTES_MAX: u64 = 1 << 20;
/// Address space of a child: far more than composing sixteen streams takes.
const MEMORY_BYTES_MAX: u64 = 4 << 30;
/// A child's `nice` value: captures have priority.
const NICENESS: i32 = 10;

/// This program, even after another version has taken its place on the disk (proc(5)).
const THIS_PROGRAM: &str = "/proc/self/exe";

/// A command of the program that decodes.
pub(super) fn command(pipelines: &Pipelines) -> Command {
    let mut command = Command::new(pipelines.program.as_deref().unwrap_or(Path::new(THIS_PROGRAM)));
    command.arg0("archiver");
    command
}

/// Limits this process, which another one started to decode: low priority, an end with its parent, and a limit of memory.
pub fn limit_process() {
    use rustix::process::{Resource, Rlimit, Signal};
    let limit = Rlimit { current: Some(MEMORY_BYTES_MAX), maximum: Some(MEMORY_BYTES_MAX) };
    let limits = [
        rustix::process::nice(NICENESS).map(drop),
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL)),
        rustix::process::setrlimit(Resource::As, limit),
    ];
    for refused in limits.into_iter().filter_map(Result::err) {
        tracing::warn!("a process that decodes is not limited as it should be: {refused}");
    }
}

/// A process that ends with its handle.
pub(super) struct ChildGuard(pub Child);

impl ChildGuard {
    /// How a child ended that says no more. One that lives on, because what it decoded has taken it over, is ended.
    pub fn end(&mut self) -> String {
        for _ in 0..END_POLLS {
            match self.0.try_wait() {
                Ok(Some(status)) => return status.to_string(),
                Ok(None) => std::thread::sleep(END_POLL_INTERVAL),
                Err(error) => return error.to_string(),
            }
        }
        let ended = self.0.kill().and_then(|()| self.0.wait());
        ended.map_or_else(|error| error.to_string(), |status| format!("{status}, ended because it said no more"))
    }
}

impl Drop for ChildGuard {
    fn drop(&mut self) {
        if self.0.kill().and_then(|()| self.0.wait()).is_err() {
            tracing::error!("a process that decodes cannot be ended");
        }
    }
}

/// Reads a child's messages, up to its end or the first line that is no message.
pub(super) fn read_messages<T: DeserializeOwned + Send + 'static>(child: &mut Child) -> std::io::Result<Receiver<T>> {
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
    std::thread::Builder::new().name("child".to_owned()).spawn(read)?;
    Ok(receiver)
}
