//! A server that speaks WebSocket as Janus does, and answers whatever it is told to.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::Result;
use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::Response;

/// What is answered to a request; nothing if `None`.
pub type Lie = fn(&Value) -> Option<Vec<Message>>;

/// Starts one on the loopback, and returns its address. It ends with the runtime.
///
/// # Errors
/// When no port is free.
pub async fn liar(lie: Lie) -> Result<String> {
    let listener = TcpListener::bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0)).await?;
    let url = format!("ws://{}", listener.local_addr()?);
    // Its connections are in a set that goes with it.
    #[allow(clippy::disallowed_methods)]
    tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(converse(stream, lie));
        }
    });
    Ok(url)
}

async fn converse(stream: TcpStream, lie: Lie) {
    #[allow(clippy::result_large_err)]
    let subprotocol = |_: &_, mut response: Response| {
        response.headers_mut().insert("Sec-WebSocket-Protocol", "janus-protocol".parse().expect("a header's value"));
        Ok(response)
    };
    let Ok(mut socket) = tokio_tungstenite::accept_hdr_async(stream, subprotocol).await else { return };
    while let Some(Ok(message)) = socket.next().await {
        let Ok(text) = message.to_text() else { return };
        let request = serde_json::from_str(text).unwrap_or_default();
        for answer in lie(&request).unwrap_or_default() {
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
