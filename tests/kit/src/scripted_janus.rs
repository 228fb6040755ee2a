//! A WebSocket server in place of Janus that sends whatever a test wants.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::Result;
use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::Response;

/// Returns the messages that answer a request; `None` sends nothing.
pub type Script = fn(&Value) -> Option<Vec<Message>>;

/// Starts the server on the loopback interface, and returns its URL. It ends with the runtime.
///
/// # Errors
/// When no port is free.
pub async fn scripted_janus(script: Script) -> Result<String> {
    let listener = TcpListener::bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0)).await?;
    let url = format!("ws://{}", listener.local_addr()?);
    // The set owns the connections: they end with this task.
    #[allow(clippy::disallowed_methods)]
    tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(converse(stream, script));
        }
    });
    Ok(url)
}

async fn converse(stream: TcpStream, script: Script) {
    #[allow(clippy::result_large_err)]
    let subprotocol = |_: &_, mut response: Response| {
        response.headers_mut().insert("Sec-WebSocket-Protocol", "janus-protocol".parse().expect("a header's value"));
        Ok(response)
    };
    let Ok(mut socket) = tokio_tungstenite::accept_hdr_async(stream, subprotocol).await else { return };
    while let Some(Ok(message)) = socket.next().await {
        let Ok(text) = message.to_text() else { return };
        let request = serde_json::from_str(text).unwrap_or_default();
        for answer in script(&request).unwrap_or_default() {
            if socket.send(answer).await.is_err() {
                return;
            }
        }
    }
}

/// An answer to a request.
#[must_use]
pub fn reply(request: &Value, mut answer: Value) -> Message {
    answer["transaction"] = request["transaction"].clone();
    Message::text(answer.to_string())
}
