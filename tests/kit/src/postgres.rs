//! A private PostgreSQL.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::child::Server;
use crate::net::free_port;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// An immediate shutdown ends each backend; PostgreSQL itself gives them 5 s.
const STOP_MAX: Duration = Duration::from_secs(8);

/// A running server.
#[derive(Debug)]
pub struct Postgres {
    server: Option<Server>,
    dir: tempfile::TempDir,
    bin: PathBuf,
    port: u16,
    as_root: bool,
}

impl Postgres {
    /// Makes a cluster in a temporary folder and starts it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start() -> Result<Self> {
        let bin = std::fs::read_dir("/usr/lib/postgresql")
            .context("`make setup` installs postgresql")?
            .flatten()
            .map(|e| e.path().join("bin"))
            .find(|p| p.join("initdb").is_file())
            .context("`make setup` installs postgresql")?;
        let dir = tempfile::tempdir()?;
        let as_root = Command::new("id").arg("-u").output()?.stdout == b"0\n";
        if as_root {
            // PostgreSQL refuses root; Debian's package has made a user for it.
            Command::new("chown").arg("postgres").arg(dir.path()).status()?;
        }
        let mut server = Self { server: None, dir, bin, port: free_port(LOOPBACK)?, as_root };
        let data = server.dir.path().join("data");
        let made = server.command("initdb").args(["-A", "trust", "-U", "archiver", "-D"]).arg(&data).output()?;
        if !made.status.success() {
            bail!("initdb: {}", String::from_utf8_lossy(&made.stderr));
        }
        server.restart()?;
        Ok(server)
    }

    fn command(&self, name: &str) -> Command {
        let program = self.bin.join(name);
        if self.as_root {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
            command
        } else {
            Command::new(program)
        }
    }

    /// Stops it at once if it runs, and starts it again.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn restart(&mut self) -> Result<()> {
        self.stop();
        let mut command = self.command("postgres");
        command
            .arg("-D")
            .arg(self.dir.path().join("data"))
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-k", ""])
            .args(["-c", "fsync=off"]);
        // Its log is beside its data, so that two instances do not share one.
        let mut server = Server::start("postgres", self.dir.path(), &mut command)?;
        let address = SocketAddr::new(LOOPBACK, self.port);
        let (bin, port) = (self.bin.join("pg_isready"), self.port.to_string());
        server.wait_ready(|| {
            TcpStream::connect(address).is_ok()
                && Command::new(&bin).args(["-q", "-h", "127.0.0.1", "-p", &port]).status().is_ok_and(|s| s.success())
        })?;
        self.server = Some(server);
        Ok(())
    }

    /// Stops it at once, as a crash does: connections break, and the next start recovers.
    pub fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.signal("QUIT");
            // A backend that outlives its parent would write to the data of the next start.
            let until = Instant::now() + STOP_MAX;
            while server.runs() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(20));
            }
            drop(server);
            // There only if it had to be killed.
            std::fs::remove_file(self.dir.path().join("data/postmaster.pid")).unwrap_or_default();
        }
    }

    /// Its address, to put a proxy in front of it.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        SocketAddr::new(LOOPBACK, self.port)
    }

    /// Makes a further, empty database and returns its address.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn database(&self, name: &str) -> Result<String> {
        let port = self.port.to_string();
        let made = Command::new(self.bin.join("createdb"))
            .args(["-h", "127.0.0.1", "-p", &port, "-U", "archiver", name])
            .output()?;
        if !made.status.success() {
            bail!("createdb: {}", String::from_utf8_lossy(&made.stderr));
        }
        Ok(format!("postgres://archiver@127.0.0.1:{port}/{name}"))
    }

    /// `postgres://…`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("postgres://archiver@127.0.0.1:{}/postgres", self.port)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop();
    }
}
