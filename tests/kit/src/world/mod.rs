//! A whole deployment: broker, media router, store, and the `archiver` program as a process.

mod machines;

pub use machines::Machine;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::child::Server;
use crate::janus::{ADMIN_KEY, API_SECRET, EventQueue, Janus, JanusOptions, TOKEN_SECRET};
use crate::net::free_port;
use crate::rabbitmq::RabbitMq;
use crate::s3::{ACCESS_KEY, BUCKET, S3Server, SECRET_KEY};
use crate::wait::wait_for;

/// The application of all sessions here.
pub const APPLICATION: &str = "78d335fa-323d-0114-9c3d-d6f0d48968cf";

/// The key from which the pins of rooms are derived that the program creates.
pub const ROOM_KEY: &str = "room-key";

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Time limit of a worker's shutdown: it hands its jobs over, and does not wait for the ends of sessions.
const STOP_MAX: Duration = Duration::from_secs(15);

/// Time limit of a command of the program. Only one that hangs reaches it.
const COMMAND_MAX: Duration = Duration::from_secs(180);
/// What `timeout` returns for a command that it ended.
const TIMED_OUT: i32 = 124;

/// A deployment.
#[derive(Debug)]
pub struct World {
    /// The media router, called `janus-1`.
    pub janus: Janus,
    /// The broker.
    pub rabbit: RabbitMq,
    /// The store.
    pub s3: S3Server,
    dir: tempfile::TempDir,
    binary: PathBuf,
    worker: Option<Server>,
    /// Workers on further machines, by machine.
    others: BTreeMap<String, Server>,
    /// The name of the machine that the worker is on.
    machine: String,
    config: PathBuf,
    /// The address of health checks and metrics.
    http: SocketAddr,
    /// The address of the API.
    api: SocketAddr,
    events: u32,
}

/// Lines of the worker's log that a test that fails shows.
const LOG_LINES: usize = 60;

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for machine in std::iter::once("worker").chain(self.others.keys().map(String::as_str)) {
                let log = self.log_of(machine);
                let lines: Vec<&str> = log.lines().collect();
                let last = &lines[lines.len().saturating_sub(LOG_LINES)..];
                eprintln!("the end of the log of {machine}:\n{}", last.join("\n"));
            }
        }
    }
}

impl World {
    /// Everything but the worker, with the servers that all tests share: a virtual host, and rooms of its own. `more` is added
    /// to the configuration; `catalog` is a database's address, SQLite without one.
    ///
    /// # Errors
    /// When a server cannot be started.
    pub async fn start(binary: &str, catalog: Option<&str>, more: &str) -> Result<Self> {
        let servers = tokio::task::spawn_blocking(|| Ok::<_, anyhow::Error>((RabbitMq::shared()?, Janus::shared()?)));
        let (rabbit, janus) = servers.await??;
        Self::with_servers(binary, rabbit, janus, catalog, more).await
    }

    /// The same with a private RabbitMQ and a private Janus, which the test may kill and freeze.
    ///
    /// # Errors
    /// When a server cannot be started.
    pub async fn start_private(binary: &str, catalog: Option<&str>, more: &str) -> Result<Self> {
        let rabbit = tokio::task::spawn_blocking(RabbitMq::start);
        let janus = tokio::task::spawn_blocking(Janus::start);
        let (rabbit, janus) = (rabbit.await??, janus.await??);
        Self::with_servers(binary, rabbit, janus, catalog, more).await
    }

    /// The same with the shared RabbitMQ and a private Janus, for tests that look at all rooms of a router.
    ///
    /// # Errors
    /// When a server cannot be started.
    pub async fn start_with_own_router(binary: &str, more: &str) -> Result<Self> {
        Self::start_with_router(binary, JanusOptions::default(), more).await
    }

    /// The same with a private Janus that is configured like this.
    ///
    /// # Errors
    /// When a server cannot be started.
    pub async fn start_with_router(binary: &str, router: JanusOptions, more: &str) -> Result<Self> {
        let servers =
            tokio::task::spawn_blocking(|| Ok::<_, anyhow::Error>((RabbitMq::shared()?, Janus::start_with(router)?)));
        let (rabbit, janus) = servers.await??;
        Self::with_servers(binary, rabbit, janus, None, more).await
    }

    /// The same with a private Janus whose event handler publishes to a queue of the broker, which is private if the test kills it.
    ///
    /// # Errors
    /// When a server cannot be started.
    pub async fn start_with_event_handler(binary: &str, queue: &str, private_broker: bool, more: &str) -> Result<Self> {
        let queue = queue.to_owned();
        let servers = tokio::task::spawn_blocking(move || {
            let rabbit = if private_broker { RabbitMq::start()? } else { RabbitMq::shared()? };
            let event_queue = EventQueue { broker: rabbit.address(), vhost: rabbit.vhost().to_owned(), queue };
            let options = JanusOptions { event_queue: Some(event_queue), ..JanusOptions::default() };
            Ok::<_, anyhow::Error>((rabbit, Janus::start_with(options)?))
        });
        let (rabbit, janus) = servers.await??;
        Self::with_servers(binary, rabbit, janus, None, more).await
    }

    async fn with_servers(
        binary: &str,
        rabbit: RabbitMq,
        janus: Janus,
        catalog: Option<&str>,
        more: &str,
    ) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let s3 = S3Server::start().await?;
        let catalog = catalog.map(|url| format!("[catalog]\nurl = \"{url}\"\n")).unwrap_or_default();
        let ip = janus.ip();
        let http = SocketAddr::new(LOOPBACK, free_port(LOOPBACK)?);
        let api = SocketAddr::new(LOOPBACK, free_port(LOOPBACK)?);
        let text = format!(
            "[worker]\nid = \"worker-1\"\nregion = \"eu\"\ndata_dir = \"{}\"\n\
             [broker]\nurl = \"{}\"\n{catalog}\
             [store]\nkind = \"s3\"\nbucket = \"{BUCKET}\"\nendpoint = \"{}\"\naccess_key = \"{ACCESS_KEY}\"\nsecret_key = \"{SECRET_KEY}\"\n\
             [[router]]\nname = \"janus-1\"\nurl = \"{}\"\napi_secret = \"{API_SECRET}\"\nadmin_key = \"{ADMIN_KEY}\"\n\
             room_key = \"{ROOM_KEY}\"\ntoken_secret = \"{TOKEN_SECRET}\"\n\
             [media]\nbind = \"{ip}:0\"\n[http]\nbind = \"{http}\"\n\
             [api]\nbind = \"{api}\"\n{more}\n",
            dir.path().join("data-worker-1").display(),
            rabbit.url(),
            s3.endpoint(),
            janus.url(),
        );
        let config = dir.path().join("archiver.toml");
        std::fs::write(&config, text)?;
        Ok(Self {
            janus,
            rabbit,
            s3,
            dir,
            binary: PathBuf::from(binary),
            worker: None,
            others: BTreeMap::new(),
            machine: "worker-1".to_owned(),
            config,
            http,
            api,
            events: 0,
        })
    }

    /// Starts the worker, or starts it again. With `ARCHIVER_IMAGE` (`make image`) it runs in that container.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_worker(&mut self) -> Result<()> {
        let mut command = match std::env::var_os("ARCHIVER_IMAGE").filter(|name| !name.is_empty()) {
            Some(container) => self.in_container(&container)?,
            None => Command::new(&self.binary),
        };
        command.arg("serve").env("ARCHIVER_CONFIG", &self.config).env("RUST_BACKTRACE", "0").env("NO_COLOR", "1");
        self.worker = Some(Server::start("worker", self.dir.path(), &mut command)?);
        Ok(())
    }

    /// The program in a container of `buildah`, as the image's own user, with this deployment's folder.
    fn in_container(&self, container: &std::ffi::OsStr) -> Result<Command> {
        let dir = self.dir.path();
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o777))?;
        let mut command = Command::new("buildah");
        command.args(["run", "--network", "host"]);
        command.arg("--volume").arg(format!("{0}:{0}", dir.display()));
        command.arg("--env").arg(format!("ARCHIVER_CONFIG={}", self.config.display()));
        command.arg(container).args(["--", "archiver"]);
        Ok(command)
    }

    /// `kill -9`.
    pub fn kill_worker(&mut self) {
        self.worker = None;
    }

    /// `SIGTERM`; returns whether it ended by itself with success, within 15 s.
    pub fn stop_worker(&mut self) -> bool {
        let Some(mut worker) = self.worker.take() else { return false };
        if std::env::var_os("ARCHIVER_IMAGE").is_some_and(|name| !name.is_empty()) {
            return worker.stop_innermost(STOP_MAX);
        }
        worker.stop(STOP_MAX)
    }

    /// The worker's process.
    #[must_use]
    pub fn worker_pid(&self) -> Option<u32> {
        self.worker.as_ref().map(Server::pid)
    }

    /// The worker's whole log.
    #[must_use]
    pub fn log(&self) -> String {
        self.log_of("worker")
    }

    /// The configuration file.
    #[must_use]
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// The worker's data folder.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.data_of(&self.machine)
    }

    /// The worker that is started next is on another machine: it has another name and a disk of its own. The
    /// catalog should be a PostgreSQL then.
    ///
    /// # Errors
    /// When the configuration cannot be written.
    pub fn move_to(&mut self, machine: &str) -> Result<()> {
        let text = std::fs::read_to_string(&self.config)?.replace(&self.machine, machine);
        std::fs::write(&self.config, text)?;
        self.machine = machine.to_owned();
        Ok(())
    }

    /// Where the API is served.
    #[must_use]
    pub const fn api(&self) -> SocketAddr {
        self.api
    }

    /// The worker's metrics, as Prometheus reads them.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn metrics(&self) -> Result<String> {
        let mut connection = TcpStream::connect(self.http)?;
        connection.write_all(format!("GET /metrics HTTP/1.0\r\nHost: {}\r\n\r\n", self.http).as_bytes())?;
        let mut text = String::new();
        connection.read_to_string(&mut text)?;
        Ok(text)
    }

    /// Changes the catalog, an SQLite, as a person with a database client would: one row. The worker must not run.
    ///
    /// # Errors
    /// When it cannot be done, or changes another number of rows.
    pub fn sql(&self, statement: &str, values: &[&str]) -> Result<()> {
        let script = "import sqlite3,sys; db=sqlite3.connect(sys.argv[1]); \
                      n=db.execute(sys.argv[2],sys.argv[3:]).rowcount; db.commit(); sys.exit(0 if n==1 else 1)";
        let file = self.data().join("catalog.sqlite");
        let status = Command::new("python3").args(["-c", script]).arg(file).arg(statement).args(values).status()?;
        ensure!(status.success(), "{statement}");
        Ok(())
    }

    /// Changes the configuration file: what is started next reads it. Each replacement must be found.
    ///
    /// # Errors
    /// When the file cannot be written, or does not have what is to be replaced.
    pub fn configure(&self, replacements: &[(&str, &str)], more: &str) -> Result<()> {
        let mut text = std::fs::read_to_string(&self.config)?;
        for (from, to) in replacements {
            ensure!(text.contains(from), "the configuration has no {from}");
            text = text.replacen(from, to, 1);
        }
        Ok(std::fs::write(&self.config, text + more)?)
    }

    /// A scratch folder.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        self.dir.path()
    }

    /// Runs an `archiver` command.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn command(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new("timeout");
        command.arg(COMMAND_MAX.as_secs().to_string()).arg(&self.binary).args(arguments);
        let out = command.env("ARCHIVER_CONFIG", &self.config).output()?;
        ensure!(out.status.code() != Some(TIMED_OUT), "archiver {arguments:?} did not end in {COMMAND_MAX:?}: {out:?}");
        Ok(out)
    }

    /// Runs an `archiver` command that must succeed, and reads its output as JSON.
    ///
    /// # Errors
    /// When it fails.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let out = self.command(arguments)?;
        if !out.status.success() {
            bail!("archiver {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
        }
        serde_json::from_slice(&out.stdout).with_context(|| format!("archiver {arguments:?}: {:?}", out.stdout))
    }

    /// A `session.started` event for a session whose room has its name.
    pub fn started(&mut self, session: &str) -> Value {
        self.events += 1;
        json!({
            "specversion": "1.0", "id": format!("started-{}", self.events), "source": "test",
            "type": "archiver.session.started.v1",
            "data": {
                "sessionId": session, "applicationId": APPLICATION, "mediaMode": "routed", "archiveMode": "always",
                "region": "eu", "router": { "name": "janus-1", "room": self.janus.own_room(session) },
                "archive": { "outputMode": "individual" },
            },
        })
    }

    /// A `session.ended` event.
    pub fn ended(&mut self, session: &str) -> Value {
        self.events += 1;
        json!({
            "specversion": "1.0", "id": format!("ended-{}", self.events), "source": "test",
            "type": "archiver.session.ended.v1",
            "data": { "sessionId": session, "applicationId": APPLICATION, "region": "eu" },
        })
    }

    /// Publishes an event with the program's own command.
    ///
    /// # Errors
    /// When it fails.
    pub fn publish(&self, event: &Value) -> Result<()> {
        self.publish_bytes(event.to_string().as_bytes())
    }

    /// Publishes any bytes.
    ///
    /// # Errors
    /// When it fails.
    pub fn publish_bytes(&self, bytes: &[u8]) -> Result<()> {
        let file = tempfile::NamedTempFile::new_in(self.dir.path())?;
        std::fs::write(file.path(), bytes)?;
        let out = self.command(&["events", "publish", "--force", &file.path().to_string_lossy()])?;
        if !out.status.success() {
            bail!("{}", String::from_utf8_lossy(&out.stderr));
        }
        Ok(())
    }

    /// All archives of a session.
    ///
    /// # Errors
    /// When the command fails.
    pub fn archives(&self, session: &str) -> Result<Vec<Value>> {
        let list = self.json(&["archives", "list", "--json", "--session", session])?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// Waits until a session has an archive with a status, and it is the only one.
    ///
    /// # Panics
    /// When it takes longer than [`crate::wait::deadline`].
    pub async fn archive(&self, session: &str, status: &str) -> Value {
        let condition = format!("an archive of {session} that is {status}");
        let found = wait_for(&condition, || async {
            let archives = self.archives(session).ok()?;
            archives.into_iter().find(|a| a["status"] == status)
        });
        let found = found.await;
        let all = self.archives(session).unwrap_or_default();
        assert_eq!(all.len(), 1, "{all:?}");
        found
    }

    /// Waits until media of a session is being recorded.
    ///
    /// # Panics
    /// When it takes longer than [`crate::wait::deadline`].
    pub async fn recording(&self, tracks: usize) {
        wait_for(&format!("{tracks} tracks in the spool\n{}", self.log()), || async {
            let mut found = 0;
            for archive in std::fs::read_dir(self.data().join("spool")).ok()?.flatten() {
                found += std::fs::read_dir(archive.path().join("tracks")).map_or(0, |d| d.flatten().count());
            }
            (found >= tracks).then_some(())
        })
        .await;
    }

    /// Downloads an archive, unpacks it, and returns the folder with its manifest and report.
    ///
    /// # Errors
    /// When it cannot be fetched.
    pub fn download(&self, archive: &Value) -> Result<Downloaded> {
        let id = archive["archive"].as_str().context("no id")?;
        let dir = self.dir.path().join(format!("download-{id}"));
        let out = self.command(&["archives", "download", id, "--out", &dir.to_string_lossy()])?;
        if !out.status.success() {
            bail!("{}", String::from_utf8_lossy(&out.stderr));
        }
        let read = |name: &str| -> Result<Value> { Ok(serde_json::from_slice(&std::fs::read(dir.join(name))?)?) };
        let (manifest, report) = (read("manifest.json")?, read("report.json")?);
        if !dir.join("archive.zip").exists() {
            return Ok(Downloaded { dir, manifest, report, vonage: Value::Null });
        }
        let unzip = "import sys,zipfile; zipfile.ZipFile(sys.argv[1]).extractall(sys.argv[2])";
        let status = Command::new("python3").args(["-c", unzip]).arg(dir.join("archive.zip")).arg(&dir).status()?;
        if !status.success() {
            bail!("the ZIP cannot be read");
        }
        let vonage = read(&format!("{id}.json"))?;
        Ok(Downloaded { dir, manifest, report, vonage })
    }
}

/// An archive on this machine.
#[derive(Debug)]
pub struct Downloaded {
    /// Where its files are.
    pub dir: PathBuf,
    /// Our manifest.
    pub manifest: Value,
    /// The quality report.
    pub report: Value,
    /// Vonage's manifest; null without individual files.
    pub vonage: Value,
}

impl Downloaded {
    /// The id of the stream that had an id at the router.
    #[must_use]
    pub fn stream(&self, router_id: &str) -> Option<&Value> {
        self.report["streams"].as_array()?.iter().find(|s| s["routerId"] == router_id)
    }

    /// The files of a stream with an id at the router, in order.
    #[must_use]
    pub fn files(&self, router_id: &str) -> Vec<PathBuf> {
        let Some(stream) = self.stream(router_id) else { return Vec::new() };
        let files = self.manifest["files"].as_array().map_or(&[][..], Vec::as_slice);
        let of_stream = files.iter().filter(|f| f["streamId"] == stream["streamId"]);
        of_stream.filter_map(|f| f["name"].as_str()).map(|name| self.dir.join(name)).collect()
    }

    /// A track of a stream's report.
    #[must_use]
    pub fn track(&self, router_id: &str, kind: &str) -> Option<&Value> {
        self.stream(router_id)?["tracks"].as_array()?.iter().find(|t| t["kind"] == kind)
    }
}

/// The lengths of the gaps that the report has of a track with a cause, in seconds.
///
/// # Panics
/// When the track has no list of gaps.
#[must_use]
pub fn gap_lengths(track: &Value, cause: &str) -> Vec<f64> {
    let second = |value: &Value| value.as_f64().expect("a number") / 1e9;
    let gaps = track["gaps"].as_array().expect("gaps").iter().filter(|gap| gap["cause"] == cause);
    gaps.map(|gap| second(&gap["to"]) - second(&gap["from"])).collect()
}
