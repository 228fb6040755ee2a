//! A WebSocket to Janus: requests with their answers, and messages that Janus sends unsolicited.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use super::{JanusConfig, wire};
use crate::router::RouterError;

/// Largest message that is read, in bytes. A list of rooms has some 700 bytes for each room.
const MESSAGE_BYTES_MAX: usize = 32 << 20;
/// Messages that are kept while an answer is waited for.
const UNSOLICITED_MAX: usize = 1000;

/// The VideoRoom plugin.
pub(super) const PLUGIN: &str = "janus.plugin.videoroom";

/// A connected WebSocket.
pub(super) struct Socket {
    config: JanusConfig,
    stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
    next: u64,
    /// Messages that came while an answer was waited for.
    pub unsolicited: VecDeque<Value>,
}

pub(super) fn unavailable(config: &JanusConfig, doing: &'static str, source: Error) -> RouterError {
    RouterError::Unavailable { router: config.name.clone(), doing, source: Box::new(source) }
}

impl Socket {
    /// Connects and upgrades.
    pub async fn connect(config: &JanusConfig) -> Result<Self, RouterError> {
        const DOING: &str = "connect";
        let mut request = config.url.as_str().into_client_request().map_err(|e| unavailable(config, DOING, e))?;
        request.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static("janus-protocol"));
        let limits = WebSocketConfig::default()
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX));
        let connecting = tokio_tungstenite::connect_async_with_config(request, Some(limits), true);
        let (stream, _) = timeout(config.timeout, connecting)
            .await
            .map_err(|_| timed_out(config, DOING))?
            .map_err(|e| unavailable(config, DOING, e))?;
        Ok(Self { config: config.clone(), stream, next: 0, unsolicited: VecDeque::new() })
    }

    /// How to reach the Janus that it is connected to.
    pub const fn config(&self) -> &JanusConfig {
        &self.config
    }

    /// Adds the credentials to a request, and a transaction if it has none.
    pub fn with_credentials(&mut self, mut request: Value) -> Value {
        if request.get("transaction").is_none() {
            self.next += 1;
            request["transaction"] = json!(format!("own-{}", self.next));
        }
        if let Some(secret) = &self.config.api_secret {
            request["apisecret"] = json!(secret.expose_secret());
        }
        if let Some(token) = &self.config.token {
            request["token"] = json!(token.expose_secret());
        }
        request
    }

    /// Sends a request with credentials.
    pub async fn send(&mut self, request: &Value) -> Result<(), RouterError> {
        let message = Message::text(request.to_string());
        timeout(self.config.timeout, self.stream.send(message))
            .await
            .map_err(|_| timed_out(&self.config, "take a request"))?
            .map_err(|e| unavailable(&self.config, "take a request", e))
    }

    /// The next message that is a JSON object. Cancel-safe.
    pub async fn next(&mut self) -> Result<Value, RouterError> {
        loop {
            let message = self.stream.next().await.unwrap_or(Err(Error::ConnectionClosed));
            let message = message.map_err(|e| unavailable(&self.config, "send a message", e))?;
            if let Message::Text(text) = message {
                match serde_json::from_str::<Value>(text.as_str()) {
                    Ok(value) if value.is_object() => return Ok(value),
                    // serde_json limits the depth. Janus sends objects only.
                    _ => tracing::debug!(router = self.config.name, "a message is not a JSON object"),
                }
            }
        }
    }

    /// Sends a request and waits for its answer. An error in the answer is returned as an error.
    pub async fn request_ok(&mut self, request: Value, doing: &'static str) -> Result<Value, RouterError> {
        let answer = self.request(request, doing).await?;
        wire::error(&self.config.name, None, doing, &answer).map_or(Ok(answer), Err)
    }

    /// Sends a request and waits for its answer, which may contain an error. Other messages are kept in `unsolicited`.
    pub async fn request(&mut self, request: Value, doing: &'static str) -> Result<Value, RouterError> {
        let request = self.with_credentials(request);
        let transaction = request["transaction"].clone();
        self.send(&request).await?;
        let limit = self.config.timeout;
        let answer = async {
            loop {
                let message = self.next().await?;
                if message.get("transaction") != Some(&transaction) {
                    if self.unsolicited.len() < UNSOLICITED_MAX {
                        self.unsolicited.push_back(message);
                    }
                } else if message.get("janus").and_then(Value::as_str) != Some("ack") {
                    return Ok(message);
                }
            }
        };
        timeout(limit, answer).await.map_err(|_| timed_out(&self.config, doing))?
    }

    /// Creates a Janus session.
    pub async fn create_session(&mut self) -> Result<u64, RouterError> {
        let answer = self.request_ok(json!({ "janus": "create" }), "create a session").await?;
        self.data_id(&answer, "create a session")
    }

    /// Reclaims a session whose WebSocket was lost.
    pub async fn claim(&mut self, session: u64) -> Result<(), RouterError> {
        self.request_ok(json!({ "janus": "claim", "session_id": session }), "claim a session").await.map(drop)
    }

    /// Attaches a handle to the VideoRoom plugin.
    pub async fn attach(&mut self, session: u64) -> Result<u64, RouterError> {
        let request = json!({ "janus": "attach", "session_id": session, "plugin": PLUGIN });
        let answer = self.request_ok(request, "attach to VideoRoom").await?;
        self.data_id(&answer, "attach to VideoRoom")
    }

    fn data_id(&self, answer: &Value, doing: &'static str) -> Result<u64, RouterError> {
        data_id(answer).ok_or_else(|| RouterError::Protocol {
            router: self.config.name.clone(),
            doing,
            problem: "the answer has no id".to_owned(),
        })
    }

    /// Closes the WebSocket.
    pub async fn close(mut self) {
        let closing = self.stream.close(None);
        if timeout(Duration::from_secs(1), closing).await.is_err() {
            tracing::debug!(router = self.config.name, "the WebSocket did not close in time");
        }
    }
}

/// The id in the answer to `create` and `attach`.
pub(super) fn data_id(answer: &Value) -> Option<u64> {
    answer.get("data")?.get("id")?.as_u64()
}

pub(super) fn timed_out(config: &JanusConfig, doing: &'static str) -> RouterError {
    let after_ms = u64::try_from(config.timeout.as_millis()).unwrap_or(u64::MAX);
    RouterError::Timeout { router: config.name.clone(), doing, after_ms }
}
