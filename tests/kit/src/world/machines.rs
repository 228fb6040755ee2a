//! Workers on further machines, beside a deployment's first worker. The catalog must be a PostgreSQL.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{LOOPBACK, STOP_MAX, World};
use crate::child::Server;
use crate::net::free_port;

/// The library of the package `faketime`; the loader knows what `$LIB` is.
const FAKETIME: &str = "/usr/$LIB/faketime/libfaketimeMT.so.1";

/// A further machine with a worker, and a disk of its own.
#[derive(Debug, Clone, Copy)]
pub struct Machine<'a> {
    /// Its name.
    pub name: &'a str,
    /// The worker's name.
    pub worker: &'a str,
    /// By how much its clock is wrong, as `faketime` takes it (`+10s`).
    pub skew: Option<&'a str>,
    /// The size of a disk for its spool alone, as `mount` takes it (`32m`). It is mounted for the worker's process only, and ends with it.
    pub disk: Option<&'a str>,
    /// What its configuration has instead of what the first machine's has, such as the addresses of proxies: from, to.
    pub instead: &'a [(String, String)],
}

impl<'a> Machine<'a> {
    /// A machine whose worker has its name.
    #[must_use]
    pub const fn new(name: &'a str) -> Self {
        Self { name, worker: name, skew: None, disk: None, instead: &[] }
    }
}

impl World {
    /// Starts the worker of another machine, or starts it again.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_another(&mut self, machine: &Machine<'_>) -> Result<()> {
        let own_id = format!("id = \"{}\"", machine.name);
        let text = std::fs::read_to_string(&self.config)?.replace(&self.machine, machine.name);
        let mut text = text.replace(&own_id, &format!("id = \"{}\"", machine.worker));
        for address in [self.http, self.api] {
            let other = SocketAddr::new(LOOPBACK, free_port(LOOPBACK)?);
            text = text.replace(&address.to_string(), &other.to_string());
        }
        for (from, to) in machine.instead {
            ensure!(text.contains(from), "the configuration has no {from}");
            text = text.replace(from, to);
        }
        let config = self.dir.path().join(format!("{}.toml", machine.name));
        std::fs::write(&config, text)?;
        let mut command = match (machine.skew, machine.disk) {
            (None, None) => Command::new(&self.binary),
            (Some(skew), _) => {
                let mut command = Command::new(&self.binary);
                // Without the program `faketime`, whose child would outlive it. The monotonic clock knows nothing of a wrong wall clock.
                command.env("LD_PRELOAD", FAKETIME).env("FAKETIME", skew).env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
                command
            }
            (None, Some(size)) => {
                let mut command = Command::new("unshare");
                let script = "mkdir -p \"$0\" && mount -t tmpfs -o size=\"$1\" tmpfs \"$0\" && shift && exec \"$@\"";
                command.args(["--mount", "sh", "-c", script]);
                command.arg(self.data_of(machine.name).join("spool")).arg(size).arg(&self.binary);
                command
            }
        };
        command.arg("serve").env("ARCHIVER_CONFIG", &config).env("RUST_BACKTRACE", "0").env("NO_COLOR", "1");
        let server = Server::start(machine.name, self.dir.path(), &mut command)?;
        self.others.insert(machine.name.to_owned(), server);
        Ok(())
    }

    /// `SIGTERM` for the worker of another machine; returns whether it ended by itself with success, within 15 s.
    pub fn stop_another(&mut self, machine: &str) -> bool {
        self.stop_another_within(machine, STOP_MAX)
    }

    /// The same within a time limit.
    pub fn stop_another_within(&mut self, machine: &str, limit: Duration) -> bool {
        self.others.remove(machine).is_some_and(|mut worker| worker.stop(limit))
    }

    /// `kill -9` for the worker of another machine.
    pub fn kill_another(&mut self, machine: &str) {
        self.others.remove(machine);
    }

    /// Whether the worker of another machine runs.
    pub fn runs_at(&mut self, machine: &str) -> bool {
        self.others.get_mut(machine).is_some_and(Server::runs)
    }

    /// Fills the disk of a machine that has one of its own, to the last byte.
    ///
    /// # Errors
    /// When it cannot be done.
    pub fn fill_disk_of(&self, machine: &str) -> Result<()> {
        let mut file = std::fs::File::create(self.filler(machine)?)?;
        let (block, mut len) = (vec![0; 1 << 20], 1 << 20);
        while len > 0 {
            match file.write_all(&block[..len]) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => len /= 2,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Gives the disk of a machine its room back.
    ///
    /// # Errors
    /// When it cannot be done.
    pub fn empty_disk_of(&self, machine: &str) -> Result<()> {
        Ok(std::fs::remove_file(self.filler(machine)?)?)
    }

    /// A file on the disk of a machine, which only its worker's process has mounted.
    fn filler(&self, machine: &str) -> Result<PathBuf> {
        let pid = self.others.get(machine).context("no such machine")?.pid();
        let spool = self.data_of(machine).join("spool");
        Ok(PathBuf::from(format!("/proc/{pid}/root{}", spool.display())).join("filler"))
    }

    /// The data folder of a worker.
    #[must_use]
    pub fn data_of(&self, machine: &str) -> PathBuf {
        self.dir.path().join(format!("data-{machine}"))
    }

    /// The whole log of another machine's worker.
    #[must_use]
    pub fn log_of(&self, machine: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(format!("{machine}.log"))).unwrap_or_default()
    }
}
