//! A private RabbitMQ node.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use anyhow::Result;

use crate::child::Server;
use crate::net::free_port;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A running node.
#[derive(Debug)]
pub struct RabbitMq {
    server: Option<Server>,
    dir: tempfile::TempDir,
    name: String,
    port: u16,
    dist_port: u16,
    epmd_port: u16,
    epmd: Option<Server>,
}

impl RabbitMq {
    /// Starts one; takes 4 to 10 s.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start() -> Result<Self> {
        let (port, dist_port, epmd_port) = (free_port(LOOPBACK)?, free_port(LOOPBACK)?, free_port(LOOPBACK)?);
        let dir = tempfile::tempdir()?;
        std::fs::write(
            dir.path().join("rabbitmq.conf"),
            "loopback_users = none\nlog.console = false\ndisk_free_limit.absolute = 50MB\n",
        )?;
        std::fs::write(dir.path().join("plugins"), "[].\n")?;
        let mut rabbit =
            Self { server: None, name: format!("test{port}@localhost"), dir, port, dist_port, epmd_port, epmd: None };
        rabbit.restart()?;
        Ok(rabbit)
    }

    /// One node for all tests that run at the same time and use names of their own; it ends with the last.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn shared() -> Result<Arc<Self>> {
        static SHARED: Mutex<Weak<RabbitMq>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(node) = shared.upgrade() {
            return Ok(node);
        }
        let node = Arc::new(Self::start()?);
        *shared = Arc::downgrade(&node);
        Ok(node)
    }

    /// Kills it if it runs, and starts it again with its data and ports.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn restart(&mut self) -> Result<()> {
        self.kill9();
        if self.epmd.is_none() {
            // Started by us, so that it ends with us: one that a node starts by itself outlives it.
            let mut command = Command::new("epmd");
            command.args(["-address", "127.0.0.1", "-port"]).arg(self.epmd_port.to_string());
            self.epmd = Some(Server::start("epmd", self.dir.path(), &mut command)?);
        }
        let at = self.dir.path();
        let mut command = Command::new("/usr/lib/rabbitmq/bin/rabbitmq-server");
        command
            .env("HOME", at)
            .env("RABBITMQ_NODENAME", &self.name)
            .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODE_PORT", self.port.to_string())
            .env("RABBITMQ_DIST_PORT", self.dist_port.to_string())
            .env("RABBITMQ_MNESIA_BASE", at.join("data"))
            .env("RABBITMQ_LOG_BASE", at.join("log"))
            .env("RABBITMQ_CONFIG_FILE", at.join("rabbitmq.conf"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", at.join("plugins"))
            .env("RABBITMQ_CONF_ENV_FILE", at.join("none"))
            .env("RABBITMQ_PID_FILE", at.join("pid"))
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("ERL_EPMD_PORT", self.epmd_port.to_string())
            .env("ERL_MAX_PORTS", "4096");
        let mut server = Server::start("rabbitmq", at, &mut command)?;
        let address = SocketAddr::new(LOOPBACK, self.port);
        server.wait_ready(|| TcpStream::connect(address).is_ok())?;
        self.server = Some(server);
        Ok(())
    }

    /// `kill -9`, of the node itself and not only of the script that started it.
    pub fn kill9(&mut self) {
        self.signal("-9");
        std::fs::remove_file(self.dir.path().join("pid")).unwrap_or_default();
        self.server = None;
    }

    /// Freezes the node (`SIGSTOP`): connections stay, nothing is answered.
    pub fn pause(&self) {
        self.signal("-STOP");
    }

    /// Lets a frozen node go on.
    pub fn resume(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        if let Ok(pid) = std::fs::read_to_string(self.dir.path().join("pid")) {
            Command::new("kill").args([signal, pid.trim()]).status().map(drop).unwrap_or_default();
        }
    }

    /// `amqp://…`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port)
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        SocketAddr::new(LOOPBACK, self.port)
    }
}

impl Drop for RabbitMq {
    fn drop(&mut self) {
        self.kill9();
    }
}
