//! A private Janus with VideoRoom and WebSocket only.

use crate::wait::DEADLINE;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{self, Message, http::HeaderValue};

use crate::child::Server;
use crate::net::{TestNet, free_port};

/// The key that may create rooms.
pub const ADMIN_KEY: &str = "room-admin";
/// The secret of every request.
pub const API_SECRET: &str = "api-secret";
/// The secret that clients' tokens are signed with; a request needs a token or [`API_SECRET`].
pub const TOKEN_SECRET: &str = "token-secret";

/// A running Janus.
#[derive(Debug)]
pub struct Janus {
    server: Option<Server>,
    dir: tempfile::TempDir,
    net: TestNet,
    port: u16,
}

fn links(folder: &Path, source: &str, names: &[&str]) -> Result<()> {
    std::fs::create_dir(folder)?;
    for name in names {
        let file =
            Path::new("/usr/lib").join(format!("{}-linux-gnu/janus", std::env::consts::ARCH)).join(source).join(name);
        if !file.is_file() {
            bail!("{} is missing; `make setup` installs janus", file.display());
        }
        symlink(file, folder.join(name))?;
    }
    Ok(())
}

impl Janus {
    /// Starts one on an address of its own.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start() -> Result<Self> {
        Self::start_telling(None)
    }

    /// Starts one that tells a broker what happens: through the queue of that name, by its event handler.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_telling(broker: Option<(SocketAddr, &str)>) -> Result<Self> {
        let net = TestNet::new()?;
        let dir = tempfile::tempdir()?;
        let port = free_port(net.ip())?;
        let at = dir.path();
        links(&at.join("plugins"), "plugins", &["libjanus_videoroom.so"])?;
        links(&at.join("transports"), "transports", &["libjanus_websockets.so"])?;
        links(&at.join("events"), "events", if broker.is_some() { &["libjanus_rabbitmqevh.so"] } else { &[] })?;
        let (folder, ip) = (at.display(), net.ip());
        let config = |name: &str, text: String| std::fs::write(at.join(name), text);
        config(
            "janus.jcfg",
            format!(
                "general: {{ configs_folder = \"{folder}\" plugins_folder = \"{folder}/plugins\" transports_folder = \"{folder}/transports\" \
                 events_folder = \"{folder}/events\" admin_secret = \"admin\" api_secret = \"{API_SECRET}\" \
                 token_auth = true token_auth_secret = \"{TOKEN_SECRET}\" debug_colors = false server_name = \"kit\" \
                 interface = \"{ip}\" reclaim_session_timeout = 20 }}\n\
                 media: {{ ipv6 = false min_nack_queue = 1000 }}\n\
                 nat: {{ ice_enforce_list = \"{ip}\" ignore_mdns = true }}\n\
                 events: {{ broadcast = {} }}\n",
                broker.is_some()
            ),
        )?;
        config(
            "janus.plugin.videoroom.jcfg",
            format!("general: {{ admin_key = \"{ADMIN_KEY}\" lock_rtp_forward = true string_ids = true }}\n"),
        )?;
        config(
            "janus.transport.websockets.jcfg",
            format!(
                "general: {{ json = \"compact\" ws = true ws_port = {port} ws_ip = \"{ip}\" wss = false }}\nadmin: {{ admin_ws = false }}\n"
            ),
        )?;
        if let Some((address, queue)) = broker {
            config(
                "janus.eventhandler.rabbitmqevh.jcfg",
                format!(
                    "general: {{ enabled = true events = \"plugins,core\" grouping = true json = \"compact\" host = \"{}\" port = {} \
                     route_key = \"{queue}\" heartbeat = 4 declare_outgoing_queue = false }}\n",
                    address.ip(),
                    address.port()
                ),
            )?;
        }
        let mut janus = Self { server: None, dir, net, port };
        janus.restart()?;
        Ok(janus)
    }

    /// Kills it if it runs, and starts it again on the same address. Rooms are gone.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn restart(&mut self) -> Result<()> {
        self.kill9();
        let mut server = Server::start("janus", self.dir.path(), Command::new("janus").arg("-F").arg(self.dir.path()))?;
        server.wait_ready(|| self.answers().is_ok())?;
        self.server = Some(server);
        Ok(())
    }

    /// Asks it for a sign of life. Its port is open before that: a connection that comes between is reset now and then.
    fn answers(&self) -> Result<()> {
        let stream = TcpStream::connect(self.address())?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let (mut socket, _) = tungstenite::client(request(&self.url())?, stream).context("no WebSocket")?;
        socket.send(Message::text(json!({ "janus": "ping", "transaction": "ready" }).to_string()))?;
        let answer: Value = serde_json::from_str(socket.read()?.to_text()?)?;
        ensure!(answer["janus"] == "pong", "another answer: {answer}");
        Ok(socket.close(None)?)
    }

    /// `kill -9`.
    pub fn kill9(&mut self) {
        self.server = None;
    }

    /// The process, to send signals to.
    #[must_use]
    pub const fn process(&self) -> Option<&Server> {
        self.server.as_ref()
    }

    /// `ws://…`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("ws://{}:{}", self.net.ip(), self.port)
    }

    /// Its address, where its media is too.
    #[must_use]
    pub const fn ip(&self) -> std::net::IpAddr {
        self.net.ip()
    }

    /// Where its WebSocket listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        SocketAddr::new(self.net.ip(), self.port)
    }

    /// Creates a room; `more` is added to the request.
    ///
    /// # Errors
    /// When Janus refuses.
    pub async fn create_room(&self, room: &str, more: Value) -> Result<()> {
        let mut body = json!({
            "request": "create", "room": room, "admin_key": ADMIN_KEY, "publishers": 100, "permanent": false,
            "bitrate": 0, "fir_freq": 0,
        });
        for (name, value) in more.as_object().into_iter().flatten() {
            body[name] = value.clone();
        }
        let mut client = Client::connect(&self.url()).await?;
        let answer = client.message(body, None).await?;
        if answer["plugindata"]["data"]["videoroom"] != "created" {
            bail!("Janus did not create the room: {answer}");
        }
        Ok(())
    }

    /// Removes a room.
    ///
    /// # Errors
    /// When Janus refuses.
    pub async fn destroy_room(&self, room: &str) -> Result<()> {
        Client::connect(&self.url()).await?.message(json!({ "request": "destroy", "room": room }), None).await?;
        Ok(())
    }
}

/// The request for a WebSocket of Janus.
fn request(url: &str) -> Result<tungstenite::handshake::client::Request> {
    let mut request = url.into_client_request()?;
    request.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static("janus-protocol"));
    Ok(request)
}

/// A client of Janus with one VideoRoom handle.
#[derive(Debug)]
pub struct Client {
    stream: tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>,
    session: u64,
    handle: u64,
    transaction: u64,
    /// What each request carries: the secret, or a token.
    key: (&'static str, String),
}

impl Client {
    /// Connects and attaches.
    ///
    /// # Errors
    /// When Janus is away or refuses.
    pub async fn connect(url: &str) -> Result<Self> {
        Self::connect_with(url, ("apisecret", API_SECRET.to_owned())).await
    }

    /// Connects and attaches as a client does that has nothing but a token.
    ///
    /// # Errors
    /// When Janus is away or refuses.
    pub async fn connect_with_token(url: &str, token: &str) -> Result<Self> {
        Self::connect_with(url, ("token", token.to_owned())).await
    }

    async fn connect_with(url: &str, key: (&'static str, String)) -> Result<Self> {
        let (stream, _) = tokio_tungstenite::connect_async(request(url)?).await?;
        let mut client = Self { stream, session: 0, handle: 0, transaction: 0, key };
        let id =
            |answer: &Value| answer["data"]["id"].as_u64().with_context(|| format!("no id in the answer: {answer}"));
        client.session = id(&client.ask(json!({ "janus": "create" })).await?)?;
        client.handle = id(&client.ask(json!({ "janus": "attach", "plugin": "janus.plugin.videoroom" })).await?)?;
        Ok(client)
    }

    /// Sends a message to the plugin and waits for its answer (not the ack).
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn message(&mut self, body: Value, jsep: Option<Value>) -> Result<Value> {
        let mut request = json!({ "janus": "message", "body": body });
        if let Some(jsep) = jsep {
            request["jsep"] = jsep;
        }
        self.ask(request).await
    }

    /// Keeps the session.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn keep_alive(&mut self) -> Result<()> {
        self.send(json!({ "janus": "keepalive" })).await.map(drop)
    }

    /// Reads and forgets what came meanwhile.
    pub async fn drain(&mut self) {
        while let Ok(Some(Ok(_))) = tokio::time::timeout(Duration::from_millis(1), self.stream.next()).await {}
    }

    async fn send(&mut self, mut request: Value) -> Result<String> {
        self.transaction += 1;
        let transaction = format!("k{}", self.transaction);
        request["transaction"] = json!(transaction);
        request[self.key.0] = json!(self.key.1);
        if self.session != 0 {
            request["session_id"] = json!(self.session);
        }
        if self.handle != 0 {
            request["handle_id"] = json!(self.handle);
        }
        self.stream.send(Message::text(request.to_string())).await?;
        Ok(transaction)
    }

    async fn ask(&mut self, request: Value) -> Result<Value> {
        let transaction = self.send(request).await?;
        let answer = async {
            while let Some(message) = self.stream.next().await {
                let Message::Text(text) = message? else { continue };
                let value: Value = serde_json::from_str(&text)?;
                if value["transaction"] == transaction.as_str() && value["janus"] != "ack" {
                    return Ok(value);
                }
            }
            bail!("Janus closed the connection")
        };
        tokio::time::timeout(DEADLINE, answer).await.context("Janus does not answer")?
    }
}
