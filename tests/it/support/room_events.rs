//! Waiting for what a room tells.

use archiver::router::{Room, RoomEvent, StreamInfo, SubscriptionId};
use archiver_testkit::wait::deadline;

/// Reads events until one fits; `what` is in the message if none comes. Events before it are returned too.
pub async fn until<T>(
    room: &mut dyn Room,
    what: &str,
    mut fits: impl FnMut(&RoomEvent) -> Option<T>,
) -> (T, Vec<RoomEvent>) {
    let mut before = Vec::new();
    let reading = async {
        loop {
            let event = room.next_event().await.expect("the room was left");
            if let Some(found) = fits(&event) {
                return found;
            }
            if !matches!(event, RoomEvent::Talking { .. }) {
                before.push(event);
            }
        }
    };
    match tokio::time::timeout(deadline(), reading).await {
        Ok(found) => (found, before),
        Err(_) => panic!("waited for: {what}; there was {before:?}"),
    }
}

pub async fn present(room: &mut dyn Room, stream: &str) -> StreamInfo {
    let fits = |event: &RoomEvent| match event {
        RoomEvent::StreamPresent(info) if info.router_id == stream => Some(info.clone()),
        _ => None,
    };
    until(room, "a stream", fits).await.0
}

/// Waits for a stream and for the number of clients, of which either may come first: the list of participants can overtake the news.
pub async fn present_among(room: &mut dyn Room, stream: &str, wanted: usize) -> StreamInfo {
    let (mut found, mut counted) = (None, false);
    let fits = |event: &RoomEvent| {
        match event {
            RoomEvent::StreamPresent(info) if info.router_id == stream => found = Some(info.clone()),
            RoomEvent::Clients { count } => counted = *count == wanted,
            _ => {}
        }
        found.clone().filter(|_| counted)
    };
    until(room, "a stream and the clients", fits).await.0
}

pub async fn gone(room: &mut dyn Room, stream: &str) {
    until(room, "a stream's end", |e| {
        matches!(e, RoomEvent::StreamGone { router_id } if router_id == stream).then_some(())
    })
    .await;
}

pub async fn clients(room: &mut dyn Room, wanted: usize) {
    until(room, "the clients", |e| matches!(e, RoomEvent::Clients { count } if *count == wanted).then_some(())).await;
}

/// What was said before signalling was back.
pub async fn reconnected(room: &mut dyn Room) -> Vec<RoomEvent> {
    until(room, "the connection", |event| (*event == RoomEvent::Reconnected).then_some(())).await.1
}

/// The subscriptions that were said to be lost.
pub fn lost(events: &[RoomEvent]) -> Vec<SubscriptionId> {
    let lost = |event: &RoomEvent| match event {
        RoomEvent::SubscriptionLost { subscription } => Some(*subscription),
        _ => None,
    };
    events.iter().filter_map(lost).collect()
}
