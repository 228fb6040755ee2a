//! Janus with VideoRoom and WebSocket only: the one that all tests share, or a private one.

use crate::wait::deadline;
use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::{self, Message, http::HeaderValue};

use crate::child::Server;
use crate::net::{TestNet, free_port};
use crate::shared::StopInfo;

/// How often a connection is tried.
const HANDSHAKES: u32 = 3;
/// The key that may create rooms.
pub const ADMIN_KEY: &str = "room-admin";
/// The secret of every request.
pub const API_SECRET: &str = "api-secret";
/// The secret that clients' tokens are signed with; a request needs a token or [`API_SECRET`].
pub const TOKEN_SECRET: &str = "token-secret";

/// A media router of a test.
#[derive(Debug)]
pub struct Janus {
    /// A private process; none where it is shared.
    own: Option<PrivateProcess>,
    address: SocketAddr,
    /// Each test's rooms begin with this at a shared Janus, so that two tests may use the same name; empty at a private one.
    prefix: String,
    /// The names that this test uses for its rooms, without the prefix.
    rooms: Mutex<BTreeSet<String>>,
}

/// A private Janus process.
#[derive(Debug)]
struct PrivateProcess {
    server: Option<Server>,
    dir: tempfile::TempDir,
    net: TestNet,
}

/// The queue that Janus's event handler publishes to.
#[derive(Debug, Clone)]
pub struct EventQueue {
    /// The broker's address.
    pub broker: SocketAddr,
    /// The virtual host's name.
    pub vhost: String,
    /// The queue.
    pub queue: String,
}

/// The addresses that the candidates of a private Janus have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CandidateAddresses {
    /// IPv4, as those of the shared one.
    #[default]
    V4,
    /// IPv6.
    V6,
    /// Both.
    Both,
}

/// How a private Janus differs from the shared one.
#[derive(Debug, Clone, Default)]
pub struct JanusOptions {
    /// Its event handler publishes here.
    pub event_queue: Option<EventQueue>,
    /// Its offers have no candidates: they follow in messages of their own (`full_trickle`).
    pub full_trickle: bool,
    /// The addresses of its candidates.
    pub candidates: CandidateAddresses,
}

fn link_plugins(folder: &Path, source: &str, names: &[&str]) -> Result<()> {
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
    /// The one that all tests share.
    ///
    /// # Errors
    /// When the shared servers cannot be started.
    pub fn shared() -> Result<Self> {
        let address = crate::shared::addresses()?.janus;
        let prefix = format!("{}-", &uuid::Uuid::new_v4().simple().to_string()[..8]);
        Ok(Self { own: None, address, prefix, rooms: Mutex::default() })
    }

    /// Starts a private one on an address of its own.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start() -> Result<Self> {
        Self::start_with(JanusOptions::default())
    }

    /// Starts a private one with a configuration of its own.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_with(options: JanusOptions) -> Result<Self> {
        let JanusOptions { event_queue, full_trickle, candidates } = options;
        let net = TestNet::new()?;
        let (mut enforced, ipv6) = (Vec::new(), candidates != CandidateAddresses::V4);
        if candidates != CandidateAddresses::V6 {
            enforced.push(net.ip().to_string());
        }
        if ipv6 {
            net.add_ipv6()?;
            enforced.push(net.ipv6().to_string());
        }
        let enforced = enforced.join(",");
        let dir = tempfile::tempdir()?;
        let port = free_port(net.ip())?;
        let at = dir.path();
        link_plugins(&at.join("plugins"), "plugins", &["libjanus_videoroom.so"])?;
        link_plugins(&at.join("transports"), "transports", &["libjanus_websockets.so"])?;
        link_plugins(
            &at.join("events"),
            "events",
            if event_queue.is_some() { &["libjanus_rabbitmqevh.so"] } else { &[] },
        )?;
        let (folder, ip) = (at.display(), net.ip());
        let config = |name: &str, text: String| std::fs::write(at.join(name), text);
        config(
            "janus.jcfg",
            format!(
                "general: {{ configs_folder = \"{folder}\" plugins_folder = \"{folder}/plugins\" transports_folder = \"{folder}/transports\" \
                 events_folder = \"{folder}/events\" admin_secret = \"admin\" api_secret = \"{API_SECRET}\" \
                 token_auth = true token_auth_secret = \"{TOKEN_SECRET}\" debug_colors = false server_name = \"kit\" \
                 interface = \"{ip}\" reclaim_session_timeout = 20 }}\n\
                 media: {{ ipv6 = {ipv6} min_nack_queue = 1000 }}\n\
                 nat: {{ ice_enforce_list = \"{enforced}\" ignore_mdns = true full_trickle = {full_trickle} }}\n\
                 events: {{ broadcast = {} }}\n",
                event_queue.is_some()
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
        if let Some(EventQueue { broker, vhost, queue }) = event_queue {
            config(
                "janus.eventhandler.rabbitmqevh.jcfg",
                format!(
                    "general: {{ enabled = true events = \"plugins,core\" grouping = true json = \"compact\" host = \"{}\" port = {} vhost = \"{vhost}\" \
                     route_key = \"{queue}\" heartbeat = 4 declare_outgoing_queue = false }}\n",
                    broker.ip(),
                    broker.port()
                ),
            )?;
        }
        let address = SocketAddr::new(net.ip(), port);
        let own = Some(PrivateProcess { server: None, dir, net });
        let mut janus = Self { own, address, prefix: String::new(), rooms: Mutex::default() };
        janus.restart()?;
        Ok(janus)
    }

    fn own_mut(&mut self) -> &mut PrivateProcess {
        self.own.as_mut().expect("a test that breaks Janus starts a private one")
    }

    /// Gives a private one up to the keeper of the shared servers.
    pub(crate) fn into_stop_info(mut self) -> StopInfo {
        let own = self.own.take().expect("only a private Janus becomes the shared one");
        let kill = own.server.into_iter().map(Server::into_pid).collect();
        StopInfo { kill, folders: vec![own.dir.keep()], interface: Some(own.net.into_parts()), ..StopInfo::default() }
    }

    /// Kills it if it runs, and starts it again on the same address. Rooms are gone.
    ///
    /// # Errors
    /// When it cannot be started.
    ///
    /// # Panics
    /// On the shared one.
    pub fn restart(&mut self) -> Result<()> {
        self.kill9();
        let folder = self.own_mut().dir.path().to_owned();
        let mut server = Server::start("janus", &folder, Command::new("janus").arg("-F").arg(&folder))?;
        server.wait_ready(|| self.answers().is_ok())?;
        self.own_mut().server = Some(server);
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
    ///
    /// # Panics
    /// On the shared one.
    pub fn kill9(&mut self) {
        self.own_mut().server = None;
    }

    /// The private process, to send signals to.
    #[must_use]
    pub fn process(&self) -> Option<&Server> {
        self.own.as_ref()?.server.as_ref()
    }

    /// `ws://…`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("ws://{}", self.address)
    }

    /// Its address, where its media is too.
    #[must_use]
    pub const fn ip(&self) -> std::net::IpAddr {
        self.address.ip()
    }

    /// Its IPv6 address, for media.
    ///
    /// # Panics
    /// On the shared one.
    #[must_use]
    pub fn ipv6(&self) -> std::net::IpAddr {
        self.own.as_ref().expect("only a private Janus has an IPv6 address").net.ipv6()
    }

    /// Where its WebSocket listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The name at Janus of a room that this test calls `name`: the test's own if it was made by [`Janus::create_room`] or named to
    /// [`Janus::own_room`], else `name` as it is, as for rooms that the program made.
    #[must_use]
    pub fn room(&self, name: &str) -> String {
        let rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        if rooms.contains(name) { format!("{}{name}", self.prefix) } else { name.to_owned() }
    }

    /// The same for a room that need not be there yet, and is this test's.
    #[must_use]
    pub fn own_room(&self, name: &str) -> String {
        self.rooms.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
        format!("{}{name}", self.prefix)
    }

    /// Creates a room; `more` is added to the request.
    ///
    /// # Errors
    /// When Janus refuses.
    pub async fn create_room(&self, room: &str, more: Value) -> Result<()> {
        self.create_room_named(&self.own_room(room), more).await
    }

    /// Creates a room with exactly this name, which no other test uses, such as a session's id.
    ///
    /// # Errors
    /// When Janus refuses.
    pub async fn create_room_named(&self, room: &str, more: Value) -> Result<()> {
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

    /// Gives a room another pin. Who is in it stays.
    ///
    /// # Errors
    /// When Janus refuses.
    pub async fn change_pin(&self, room: &str, pin: &str) -> Result<()> {
        let body = json!({ "request": "edit", "room": self.own_room(room), "new_pin": pin });
        let answer = Client::connect(&self.url()).await?.message(body, None).await?;
        if answer["plugindata"]["data"]["videoroom"] != "edited" {
            bail!("Janus did not change the room: {answer}");
        }
        Ok(())
    }

    /// Removes a room.
    ///
    /// # Errors
    /// When Janus refuses.
    pub async fn destroy_room(&self, room: &str) -> Result<()> {
        Client::connect(&self.url())
            .await?
            .message(json!({ "request": "destroy", "room": self.room(room) }), None)
            .await?;
        Ok(())
    }
}

impl Drop for Janus {
    fn drop(&mut self) {
        let rooms = std::mem::take(self.rooms.get_mut().unwrap_or_else(PoisonError::into_inner));
        if self.own.is_none() && !rooms.is_empty() {
            let rooms: Vec<String> = rooms.iter().map(|name| format!("{}{name}", self.prefix)).collect();
            // Rooms that stay go with their Janus; more of them make its lists longer.
            destroy(&self.url(), self.address, &rooms).unwrap_or_default();
        }
    }
}

/// Removes rooms, without a runtime.
fn destroy(url: &str, address: SocketAddr, rooms: &[String]) -> Result<()> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let (mut socket, _) = tungstenite::client(request(url)?, stream).context("no WebSocket")?;
    let mut ask = |mut body: Value| -> Result<Value> {
        body["apisecret"] = json!(API_SECRET);
        body["transaction"] = json!("drop");
        socket.send(Message::text(body.to_string()))?;
        loop {
            let answer: Value = serde_json::from_str(socket.read()?.to_text()?)?;
            if answer["transaction"] == "drop" && answer["janus"] != "ack" {
                return Ok(answer);
            }
        }
    };
    let session = ask(json!({ "janus": "create" }))?["data"]["id"].clone();
    let attach = json!({ "janus": "attach", "plugin": "janus.plugin.videoroom", "session_id": session });
    let handle = ask(attach)?["data"]["id"].clone();
    for room in rooms {
        let body = json!({ "request": "destroy", "room": room });
        ask(json!({ "janus": "message", "session_id": session, "handle_id": handle, "body": body }))?;
    }
    ask(json!({ "janus": "destroy", "session_id": session })).map(drop)
}

/// The request for a WebSocket of Janus.
fn request(url: &str) -> Result<tungstenite::handshake::client::Request> {
    let mut request = url.into_client_request()?;
    request.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static("janus-protocol"));
    Ok(request)
}

type Stream = tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>;

/// A client of Janus with one VideoRoom handle.
#[derive(Debug)]
pub struct Client {
    stream: Stream,
    session: u64,
    handle: u64,
    transaction: u64,
    /// What each request carries: the secret, or a token.
    key: (&'static str, String),
    /// Candidates that came while an answer was waited for.
    trickled: Vec<Value>,
}

/// Connects to Janus's WebSocket. On a very busy machine Janus may close a connection whose handshake is not finished. Then another one
/// is tried.
async fn connected(url: &str) -> Result<Stream> {
    for _ in 1..HANDSHAKES {
        match tokio_tungstenite::connect_async(request(url)?).await {
            Ok((stream, _)) => return Ok(stream),
            Err(tungstenite::Error::Protocol(ProtocolError::HandshakeIncomplete)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(tokio_tungstenite::connect_async(request(url)?).await?.0)
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
        let connecting = tokio::time::timeout(deadline(), connected(url));
        let stream = connecting.await.context("Janus takes no connection")??;
        let mut client = Self { stream, session: 0, handle: 0, transaction: 0, key, trickled: Vec::new() };
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

    /// The candidates that Janus sends one by one (`full_trickle`), as lines of SDP.
    ///
    /// # Errors
    /// When the connection is lost, or they do not end in time.
    pub async fn later_candidates(&mut self) -> Result<String> {
        let candidates = async {
            let mut lines = self.trickled.drain(..).collect::<Vec<_>>();
            while !lines.iter().any(|line| line["completed"] == true) {
                let message = self.stream.next().await.context("Janus closed the connection")??;
                let Message::Text(text) = message else { continue };
                let value: Value = serde_json::from_str(&text)?;
                if value["janus"] == "trickle" {
                    lines.push(value["candidate"].clone());
                }
            }
            let texts = lines.iter().filter_map(|line| line["candidate"].as_str());
            Ok(texts.map(|text| format!("a={text}\r\n")).collect())
        };
        tokio::time::timeout(deadline(), candidates).await.context("Janus's candidates do not end")?
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
                if value["janus"] == "trickle" {
                    self.trickled.push(value["candidate"].clone());
                }
                if value["transaction"] == transaction.as_str() && value["janus"] != "ack" {
                    return Ok(value);
                }
            }
            bail!("Janus closed the connection")
        };
        tokio::time::timeout(deadline(), answer).await.context("Janus does not answer")?
    }
}
