//! Child processes that end with their handle.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::wait::deadline;
use crate::warden;

/// A server process. Dropping it kills it; so does the end of this process, however it ends.
#[derive(Debug)]
pub struct Server {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Server {
    /// Starts a command; its output goes to `<dir>/<name>.log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(name: &str, dir: &Path, command: &mut Command) -> Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let out = std::fs::OpenOptions::new().create(true).append(true).open(&log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("{name} cannot be started; `make setup` installs it"))?;
        warden::add(child.id());
        Ok(Self { child, name: name.to_owned(), log })
    }

    /// Gives the process up: it outlives its handle. Returns its process id.
    pub(crate) fn into_pid(self) -> u32 {
        let pid = self.pid();
        warden::remove(pid);
        std::mem::forget(self);
        pid
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal by name, such as `TERM`, `STOP`, `CONT`.
    pub fn signal(&self, signal: &str) {
        send(signal, self.pid());
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill9(&mut self) {
        // An error means that it is gone already.
        self.child.kill().unwrap_or_default();
        self.child.wait().map(drop).unwrap_or_default();
    }

    /// `SIGTERM`, then `kill -9` if it takes longer than `limit`. Returns whether it ended by itself with success.
    pub fn stop(&mut self, limit: Duration) -> bool {
        self.signal("TERM");
        self.ends(limit)
    }

    /// The same for a program that something else runs which would only kill it: the signal goes to the last
    /// in the line of children.
    pub fn stop_innermost(&mut self, limit: Duration) -> bool {
        let mut pid = self.pid();
        while let Some(child) = child_of(pid) {
            pid = child;
        }
        send("TERM", pid);
        self.ends(limit)
    }

    fn ends(&mut self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        while Instant::now() < until {
            if let Ok(Some(status)) = self.child.try_wait() {
                return status.success();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.kill9();
        false
    }

    /// Waits until `ready` says yes.
    ///
    /// # Errors
    /// When it ends or takes too long; the end of its log is in the error.
    pub fn wait_ready(&mut self, mut ready: impl FnMut() -> bool) -> Result<()> {
        let until = Instant::now() + deadline();
        while !ready() {
            if !self.runs() {
                bail!("{} ended: {}", self.name, self.log_tail());
            }
            if Instant::now() > until {
                bail!("{} was not ready in {:?}: {}", self.name, deadline(), self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// The last 2,000 bytes of its log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let mut text = Vec::new();
        if let Ok(mut file) = std::fs::File::open(&self.log) {
            file.read_to_end(&mut text).map(drop).unwrap_or_default();
        }
        String::from_utf8_lossy(&text[text.len().saturating_sub(2000)..]).into_owned()
    }
}

/// A child of any of a process's threads.
fn child_of(pid: u32) -> Option<u32> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    let mut children = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    children.find_map(|children| children.split_whitespace().next()?.parse().ok())
}

fn send(signal: &str, pid: u32) {
    let sent = Command::new("kill").arg(format!("-{signal}")).arg(pid.to_string()).status();
    assert!(sent.is_ok(), "kill is part of every system");
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill9();
        warden::remove(self.pid());
    }
}
