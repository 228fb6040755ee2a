//! RabbitMQ: a virtual host of the shared node, or a private node.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::child::Server;
use crate::net::free_port;
use crate::shared::{StopInfo, addresses, folder};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// `guest:guest` in the header of the management API.
const AUTHORIZATION: &str = "Basic Z3Vlc3Q6Z3Vlc3Q=";
/// A request to the management API takes milliseconds; a busy machine may make it longer.
const REQUEST_MAX: Duration = Duration::from_secs(60);

const PRIVATE: &str = "a test that breaks RabbitMQ starts a private node";
/// Erlang, run by a node: Mnesia's log (queues, bindings) and each table on the disk (the places of quorum queues) are written.
const SYNC: &str = "ok = mnesia:sync_log(), [ok = dets:sync(Table) || Table <- dets:all()], synced.";

/// A virtual host is deleted so long after its test. Where one goes while a queue in it is declared, RabbitMQ's supervisor of
/// dead-lettering ends, and the node takes no queues of ours any more (rabbitmq-server#16652).
const UNUSED_MIN: Duration = Duration::from_secs(10);

/// A broker of a test.
#[derive(Debug)]
pub struct RabbitMq {
    /// A private node; none where the node is shared.
    node: Option<Node>,
    address: SocketAddr,
    /// Of the shared node.
    management: SocketAddr,
    /// As it stands in an address: `%2f` or a name.
    vhost: String,
}

/// A node of its own.
#[derive(Debug)]
struct Node {
    server: Option<Server>,
    dir: tempfile::TempDir,
    name: String,
    address: SocketAddr,
    dist_port: u16,
    epmd_port: u16,
    epmd: Option<Server>,
}

impl RabbitMq {
    /// Makes a virtual host on the node that all tests share. Those of tests that have ended are deleted.
    ///
    /// # Errors
    /// When the shared servers cannot be started.
    pub fn shared() -> Result<Self> {
        let addresses = addresses()?;
        let vhost = format!("t{}", uuid::Uuid::new_v4().simple());
        delete_unused(addresses.management)?;
        request(addresses.management, "PUT", &vhost)?;
        Ok(Self { node: None, address: addresses.amqp, management: addresses.management, vhost })
    }

    /// Starts a private node, to be killed or frozen; takes 4 to 10 s.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start() -> Result<Self> {
        Self::launch("", "[].\n", SocketAddr::new(LOOPBACK, 0))
    }

    /// Starts the node that all tests share: it has a management API.
    pub(crate) fn start_for_sharing() -> Result<Self> {
        let management = SocketAddr::new(LOOPBACK, free_port(LOOPBACK)?);
        let config = format!(
            "management.tcp.ip = {}\nmanagement.tcp.port = {}\nmanagement_agent.disable_metrics_collector = true\n",
            management.ip(),
            management.port()
        );
        Self::launch(&config, "[rabbitmq_management].\n", management)
    }

    fn launch(config: &str, plugins: &str, management: SocketAddr) -> Result<Self> {
        let address = SocketAddr::new(LOOPBACK, free_port(LOOPBACK)?);
        let dir = tempfile::tempdir()?;
        let common = "loopback_users = none\nlog.console = false\ndisk_free_limit.absolute = 50MB\n";
        std::fs::write(dir.path().join("rabbitmq.conf"), format!("{common}{config}"))?;
        std::fs::write(dir.path().join("plugins"), plugins)?;
        let node = Node {
            server: None,
            name: format!("test{}@localhost", address.port()),
            dir,
            address,
            dist_port: free_port(LOOPBACK)?,
            epmd_port: free_port(LOOPBACK)?,
            epmd: None,
        };
        let mut rabbit = Self { node: Some(node), address, management, vhost: "%2f".to_owned() };
        rabbit.restart()?;
        Ok(rabbit)
    }

    /// Kills it if it runs, and starts it again with its data and ports.
    ///
    /// # Errors
    /// When it cannot be started.
    ///
    /// # Panics
    /// On the shared node.
    pub fn restart(&mut self) -> Result<()> {
        self.node_mut().restart()
    }

    /// `kill -9`, of the node itself and not only of the script that started it.
    ///
    /// # Panics
    /// On the shared node.
    pub fn kill9(&mut self) {
        self.node_mut().kill9();
    }

    /// Freezes the node (`SIGSTOP`): connections stay, nothing is answered.
    ///
    /// # Panics
    /// On the shared node.
    pub fn pause(&mut self) {
        self.node_mut().signal("-STOP");
    }

    /// Lets a frozen node go on.
    ///
    /// # Panics
    /// On the shared node.
    pub fn resume(&mut self) {
        self.node_mut().signal("-CONT");
    }

    /// Has a private node write to its disk all that was declared. RabbitMQ 3.10 keeps that in memory for up to two seconds, longer
    /// on a busy machine: killed before, a node forgets a queue with its confirmed messages.
    ///
    /// # Errors
    /// When the node does not do it.
    ///
    /// # Panics
    /// On the shared node.
    pub fn sync(&self) -> Result<()> {
        self.node.as_ref().expect(PRIVATE).sync()
    }

    /// Raises a private node's memory alarm, or ends it: meanwhile the node takes no messages.
    ///
    /// # Errors
    /// When the node does not do it.
    ///
    /// # Panics
    /// On the shared node.
    pub fn alarm(&self, on: bool) -> Result<()> {
        let limit = if on { "0.00001" } else { "0.9" };
        self.node.as_ref().expect(PRIVATE).control(&["set_vm_memory_high_watermark", limit]).map(drop)
    }

    fn node_mut(&mut self) -> &mut Node {
        self.node.as_mut().expect(PRIVATE)
    }

    /// Gives a private node up to the keeper of the shared servers.
    pub(crate) fn into_stop_info(mut self) -> StopInfo {
        let mut node = self.node.take().expect("only a private node becomes the shared one");
        let beam = node.pid().and_then(|pid| pid.parse().ok());
        let servers = [node.server.take(), node.epmd.take()];
        let kill = beam.into_iter().chain(servers.into_iter().flatten().map(Server::into_pid)).collect();
        let folder = std::mem::replace(&mut node.dir, tempfile::tempdir().expect("a temporary folder can be made"));
        StopInfo { kill, folders: vec![folder.keep()], ..StopInfo::default() }
    }

    /// `amqp://…`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@{}/{}", self.address, self.vhost)
    }

    /// The virtual host's name.
    #[must_use]
    pub fn vhost(&self) -> &str {
        if self.vhost == "%2f" { "/" } else { &self.vhost }
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where its management API listens.
    pub(crate) const fn management(&self) -> SocketAddr {
        self.management
    }
}

impl Drop for RabbitMq {
    fn drop(&mut self) {
        if self.node.is_none() && self.vhost != "%2f" {
            // A virtual host that stays goes with its node.
            unused().and_then(|unused| Ok(std::fs::write(unused.join(&self.vhost), [])?)).unwrap_or_default();
        }
    }
}

/// The folder with a file for each virtual host whose test has ended.
fn unused() -> Result<PathBuf> {
    let folder = folder()?.join("unused-vhosts");
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

fn delete_unused(management: SocketAddr) -> Result<()> {
    for file in std::fs::read_dir(unused()?)?.flatten() {
        let since = file.metadata().and_then(|metadata| metadata.modified());
        let is_due = since.is_ok_and(|since| since.elapsed().is_ok_and(|age| age >= UNUSED_MIN));
        // Of many tests that begin at once, one removes the file.
        if is_due && std::fs::remove_file(file.path()).is_ok() {
            // It may be of a node that has ended.
            request(management, "DELETE", &file.file_name().to_string_lossy()).unwrap_or_default();
        }
    }
    Ok(())
}

impl Node {
    fn restart(&mut self) -> Result<()> {
        self.kill9();
        if self.epmd.is_none() {
            // Started by us, so that it ends with us: one that a node starts by itself outlives it.
            let mut command = Command::new("epmd");
            command.args(["-address", "127.0.0.1", "-port"]).arg(self.epmd_port.to_string());
            self.epmd = Some(Server::start("epmd", self.dir.path(), &mut command)?);
        }
        let mut server = Server::start("rabbitmq", self.dir.path(), &mut self.command("rabbitmq-server"))?;
        let address = self.address;
        server.wait_ready(|| TcpStream::connect(address).is_ok())?;
        self.server = Some(server);
        Ok(())
    }

    /// A program of RabbitMQ's with what it has to know of this node.
    fn command(&self, program: &str) -> Command {
        let at = self.dir.path();
        let mut command = Command::new(Path::new("/usr/lib/rabbitmq/bin").join(program));
        command
            .env("HOME", at)
            .env("RABBITMQ_NODENAME", &self.name)
            .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODE_PORT", self.address.port().to_string())
            .env("RABBITMQ_DIST_PORT", self.dist_port.to_string())
            .env("RABBITMQ_MNESIA_BASE", at.join("data"))
            .env("RABBITMQ_LOG_BASE", at.join("log"))
            .env("RABBITMQ_CONFIG_FILE", at.join("rabbitmq.conf"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", at.join("plugins"))
            .env("RABBITMQ_CONF_ENV_FILE", at.join("none"))
            .env("RABBITMQ_PID_FILE", at.join("pid"))
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("ERL_EPMD_PORT", self.epmd_port.to_string())
            .env("ERL_MAX_PORTS", "4096")
            // Schedulers that spin while they wait take the CPU from what is tested.
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "+sbwt none +sbwtdcpu none +sbwtdio none");
        command
    }

    /// Runs `rabbitmqctl`, and returns what it says.
    fn control(&self, arguments: &[&str]) -> Result<String> {
        let output = self.command("rabbitmqctl").args(["--node", &self.name]).args(arguments).output();
        let output = output.context("rabbitmqctl")?;
        let [said, complained] = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        ensure!(output.status.success(), "rabbitmqctl {arguments:?}: {said}{complained}");
        Ok(said)
    }

    fn sync(&self) -> Result<()> {
        let said = self.control(&["eval", SYNC])?;
        ensure!(said.trim() == "synced", "RabbitMQ did not write its tables: {said}");
        Ok(())
    }

    fn kill9(&mut self) {
        self.signal("-9");
        std::fs::remove_file(self.dir.path().join("pid")).unwrap_or_default();
        self.server = None;
    }

    fn pid(&self) -> Option<String> {
        Some(std::fs::read_to_string(self.dir.path().join("pid")).ok()?.trim().to_owned())
    }

    fn signal(&self, signal: &str) {
        if let Some(pid) = self.pid() {
            Command::new("kill").args([signal, &pid]).status().map(drop).unwrap_or_default();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// Makes or deletes a virtual host. Who makes one may use it.
fn request(management: SocketAddr, method: &str, vhost: &str) -> Result<()> {
    let mut connection = TcpStream::connect(management).context("RabbitMQ's management API")?;
    connection.set_read_timeout(Some(REQUEST_MAX))?;
    let head = format!(
        "{method} /api/vhosts/{vhost} HTTP/1.1\r\nHost: {management}\r\nAuthorization: {AUTHORIZATION}\r\n\
         Content-Length: 0\r\nConnection: close\r\n\r\n"
    );
    connection.write_all(head.as_bytes())?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).unwrap_or_default();
    ensure!(status.starts_with('2'), "RabbitMQ: {method} virtual host {vhost}: {answer}");
    Ok(())
}
