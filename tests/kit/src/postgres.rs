//! A private PostgreSQL.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::child::Server;
use crate::net::free_port;
use crate::shared::StopInfo;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// An immediate shutdown ends each backend; PostgreSQL itself gives them 5 s.
const STOP_MAX: Duration = Duration::from_secs(8);
/// A template is free again within this.
const COPY_MAX: Duration = Duration::from_secs(20);

/// A running server.
#[derive(Debug)]
pub struct Postgres {
    server: Option<Server>,
    dir: tempfile::TempDir,
    bin: PathBuf,
    port: u16,
    as_root: bool,
}

/// A database on the server that all tests share; dropped with its handle.
#[derive(Debug)]
pub struct Database {
    name: String,
    server: SocketAddr,
    bin: PathBuf,
}

impl Database {
    /// Makes a database with a name of its own. `prepare` makes the tables: it is called once for all tests of the run, with
    /// the address of the template that each further database is a copy of.
    ///
    /// # Errors
    /// When the shared server cannot be started or refuses.
    pub fn new(prepare: impl FnOnce(&str) -> Result<()>) -> Result<Self> {
        const TEMPLATE: &str = "archiver_template";
        let server = crate::shared::addresses()?.postgres;
        let bin = bin()?;
        let template = Self { name: TEMPLATE.to_owned(), server, bin: bin.clone() };
        crate::shared::once("template", || {
            // Half a template may be left of a process that was killed.
            template.drop_if_exists();
            template.create(None)?;
            prepare(&template.url())
        })?;
        std::mem::forget(template);
        let database = Self { name: format!("t{}", uuid::Uuid::new_v4().simple()), server, bin };
        database.create(Some(TEMPLATE))?;
        Ok(database)
    }

    /// An empty database, without tables.
    ///
    /// # Errors
    /// When the shared server cannot be started or refuses.
    pub fn empty() -> Result<Self> {
        let server = crate::shared::addresses()?.postgres;
        let database = Self { name: format!("t{}", uuid::Uuid::new_v4().simple()), server, bin: bin()? };
        database.create(None)?;
        Ok(database)
    }

    fn create(&self, template: Option<&str>) -> Result<()> {
        let more = template.map(|name| ["-T", name]).into_iter().flatten();
        createdb(&self.bin, self.server.port(), more, &self.name)
    }

    fn drop_if_exists(&self) {
        let port = self.server.port().to_string();
        let mut command = Command::new(self.bin.join("dropdb"));
        command.args(["-h", "127.0.0.1", "-p", &port, "-U", "archiver", "--if-exists", "--force", &self.name]);
        // A database that stays goes with its server.
        command.output().map(drop).unwrap_or_default();
    }

    /// `postgres://…`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("postgres://archiver@{}/{}", self.server, self.name)
    }

    /// The server's address, to put a proxy in front of it.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.server
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        self.drop_if_exists();
    }
}

fn createdb<'a>(bin: &Path, port: u16, more: impl IntoIterator<Item = &'a str>, name: &str) -> Result<()> {
    let mut command = Command::new(bin.join("createdb"));
    command.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-U", "archiver"]).args(more).arg(name);
    let until = Instant::now() + COPY_MAX;
    loop {
        let made = command.output()?;
        let why = String::from_utf8_lossy(&made.stderr);
        // A template is copied only while nobody is connected to it; a connection that was closed may linger.
        let busy = why.contains("is being accessed by other users") && Instant::now() < until;
        ensure!(made.status.success() || busy, "createdb: {why}");
        if made.status.success() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The folder of PostgreSQL's programs.
fn bin() -> Result<PathBuf> {
    std::fs::read_dir("/usr/lib/postgresql")
        .context("`make setup` installs postgresql")?
        .flatten()
        .map(|e| e.path().join("bin"))
        .find(|p| p.join("initdb").is_file())
        .context("`make setup` installs postgresql")
}

impl Postgres {
    /// Makes a cluster in a temporary folder and starts it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start() -> Result<Self> {
        let bin = bin()?;
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
            .args(["-c", "fsync=off", "-c", "max_connections=300"]);
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

    /// Gives the server up to the keeper of the shared servers.
    pub(crate) fn into_stop_info(mut self) -> StopInfo {
        let quit = self.server.take().map(Server::into_pid).into_iter().collect();
        let folder = std::mem::replace(&mut self.dir, tempfile::tempdir().expect("a temporary folder can be made"));
        StopInfo { quit, folders: vec![folder.keep()], ..StopInfo::default() }
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
        createdb(&self.bin, self.port, [], name)?;
        Ok(format!("postgres://archiver@127.0.0.1:{}/{name}", self.port))
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
