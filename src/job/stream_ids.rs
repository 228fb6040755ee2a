//! Which id each stream in the room has. A platform's stream id belongs to one stream at the router at a time: to the one that came last.
//! Two have the same id when a second tab is open, when a client comes again beside its ghost, or when somebody copies another's `display`.
//! The one that came before becomes a stream of its own, so that both are captured. An id that is signed for one stream stays with it: then
//! whoever else claims the id is a stream of its own. Pure.

use std::collections::BTreeMap;

use crate::model::ids::{SessionId, StreamId};
use crate::recording::history::{Event, EventKind};
use crate::router::{Signature, StreamInfo};

/// The ids of the streams in a room, by their ids at the router.
#[derive(Debug, Default)]
pub(super) struct StreamIds {
    present: BTreeMap<String, Holder>,
    /// Those that an earlier owner of the job gave, of streams that were not gone.
    earlier: BTreeMap<String, StreamId>,
}

/// A stream that is present.
#[derive(Debug, Clone, Copy)]
struct Holder {
    id: StreamId,
    /// The id is signed for it.
    signed: bool,
}

/// The id of a stream that is present.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Assigned {
    pub id: StreamId,
    /// The stream at the router that had this id until now. It must be announced anew, and gets another.
    pub displaced: Option<String>,
}

impl StreamIds {
    /// Keeps the ids of an earlier owner's history: which stream came last is not known after it.
    pub fn of_history(events: &[Event]) -> Self {
        let mut earlier = BTreeMap::new();
        for event in events {
            match &event.kind {
                EventKind::Stream { stream, router_id, .. } => {
                    earlier.insert(router_id.clone(), *stream);
                }
                EventKind::StreamGone { stream } => earlier.retain(|_, known| known != stream),
                _ => {}
            }
        }
        Self { present: BTreeMap::new(), earlier }
    }

    /// The id of a stream that is announced.
    pub fn assign(&mut self, session: &SessionId, info: &StreamInfo) -> Assigned {
        if let Some(known) = self.present.get(&info.router_id) {
            return Assigned { id: known.id, displaced: None };
        }
        let signed = info.signature == Signature::Valid;
        let platform = StreamId::of_router(session, info.stream_id.as_deref().unwrap_or(&info.router_id));
        let own = StreamId::of_router(session, &format!("{platform}\n{}", info.router_id));
        let earlier = self.earlier.remove(&info.router_id).filter(|id| *id == platform || *id == own);
        let mut id = earlier.unwrap_or(platform);
        let holder = self.present.iter().find(|(_, known)| known.id == id).map(|(name, known)| (name.clone(), *known));
        let displaced = match holder {
            Some((_, holder)) if holder.signed && !signed => {
                id = own;
                None
            }
            Some((holder, _)) => {
                let other = StreamId::of_router(session, &format!("{id}\n{holder}"));
                self.present.insert(holder.clone(), Holder { id: other, signed: false });
                Some(holder)
            }
            None => None,
        };
        self.present.insert(info.router_id.clone(), Holder { id, signed });
        Assigned { id, displaced }
    }

    /// A stream is gone.
    pub fn gone(&mut self, router_id: &str) {
        self.present.remove(router_id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::media::VideoType;
    use crate::model::time::MediaTime;

    fn session() -> SessionId {
        "s".parse().expect("id")
    }

    fn info(router_id: &str, stream_id: Option<&str>) -> StreamInfo {
        StreamInfo {
            router_id: router_id.to_owned(),
            stream_id: stream_id.map(str::to_owned),
            name: None,
            connection_data: None,
            signature: Signature::Absent,
            video_type: VideoType::Camera,
            tracks: Vec::new(),
        }
    }

    fn of_router(text: &str) -> StreamId {
        StreamId::of_router(&session(), text)
    }

    /// The id of a stream whose platform's id another one took.
    fn own(platform: &str, router_id: &str) -> StreamId {
        of_router(&format!("{}\n{router_id}", of_router(platform)))
    }

    #[test]
    fn an_id_belongs_to_the_stream_that_came_last() {
        let mut ids = StreamIds::default();
        for (name, info, id, displaced) in [
            ("a feed without an id", info("a", None), of_router("a"), None),
            ("an id of the platform", info("b", Some("x")), of_router("x"), None),
            ("the same again", info("b", Some("x")), of_router("x"), None),
            ("another feed with that id", info("c", Some("x")), of_router("x"), Some("b")),
            ("the earlier one announces again", info("b", Some("x")), own("x", "b"), None),
            ("a third one", info("d", Some("x")), of_router("x"), Some("c")),
            ("the second one announces again", info("c", Some("x")), own("x", "c"), None),
            ("a feed whose id is another's name", info("e", Some("a")), of_router("a"), Some("a")),
        ] {
            let displaced = displaced.map(str::to_owned);
            assert_eq!(ids.assign(&session(), &info), Assigned { id, displaced }, "{name}");
        }
        // The newest leaves; who comes again has its id.
        ids.gone("d");
        let again = ids.assign(&session(), &info("f", Some("x")));
        assert_eq!(again, Assigned { id: of_router("x"), displaced: None });
    }

    #[test]
    fn a_new_owner_gives_the_ids_of_its_history_in_whatever_order_the_streams_are_listed() {
        let stream = |stream, router_id: &str| EventKind::Stream {
            stream,
            router_id: router_id.to_owned(),
            name: None,
            connection_data: None,
            signed: false,
            video_type: VideoType::Camera,
        };
        let events: Vec<Event> = [
            stream(of_router("x"), "ghost"),
            stream(of_router("x"), "live"),
            stream(own("x", "ghost"), "ghost"),
            stream(of_router("gone"), "gone"),
            EventKind::StreamGone { stream: of_router("gone") },
        ]
        .map(|kind| Event { at: MediaTime::ZERO, kind })
        .into();
        for order in [["ghost", "live"], ["live", "ghost"]] {
            let mut ids = StreamIds::of_history(&events);
            for router_id in order {
                let expected = if router_id == "live" { of_router("x") } else { own("x", "ghost") };
                let assigned = ids.assign(&session(), &info(router_id, Some("x")));
                assert_eq!(assigned, Assigned { id: expected, displaced: None }, "{order:?}");
            }
        }
        // A feed that another platform's id has now is not what the history knew.
        let other = StreamIds::of_history(&events).assign(&session(), &info("live", Some("y")));
        assert_eq!(other.id, of_router("y"));
    }

    #[test]
    fn a_signed_id_stays_with_the_stream_that_it_was_signed_for() {
        let signed = |router_id| StreamInfo { signature: Signature::Valid, ..info(router_id, Some("x")) };
        let copied = |router_id| StreamInfo { signature: Signature::Invalid, ..info(router_id, Some("x")) };
        let mut ids = StreamIds::default();
        let alice = ids.assign(&session(), &signed("alice"));
        let copy = ids.assign(&session(), &copied("mallory"));
        assert_eq!((alice.displaced, copy.displaced), (None, None));
        assert!(copy.id != alice.id && ids.assign(&session(), &signed("alice")).id == alice.id);
        // The copy was there first.
        let mut ids = StreamIds::default();
        let copy = ids.assign(&session(), &copied("mallory"));
        assert_eq!(copy.id, alice.id);
        let late = ids.assign(&session(), &signed("alice"));
        assert_eq!((late.id, late.displaced.as_deref()), (alice.id, Some("mallory")));
        assert_ne!(ids.assign(&session(), &copied("mallory")).id, alice.id);
    }
}
