//! The promises of a media router, each held by the one in memory and by Janus.

use std::collections::BTreeMap;
use std::time::Duration;

use archiver::model::ids::{SessionId, TrackKind};
use archiver::model::media::VideoType;
use archiver::model::session::RouterRoom;
use archiver::router::janus::{JanusConfig, JanusRouter};
use archiver::router::{MediaRouter, Room, RoomEvent, RouterError, StreamInfo};
use archiver_sim::FakeRouter;
use archiver_testkit::janus::{ADMIN_KEY, API_SECRET, Client, Janus};
use archiver_testkit::proxy::{TcpMode, TcpProxy};
use archiver_testkit::publisher::{Options, Publisher};
use serde_json::{Value, json};

use crate::support::room_events::{clients, gone, lost, present, present_among, reconnected, until};

/// A Janus with a proxy before it, and who is in its room.
struct JanusStage {
    janus: Janus,
    proxy: TcpProxy,
    publishers: BTreeMap<String, Publisher>,
    lookers: BTreeMap<String, Client>,
}

/// A router with a room in which a test lets clients act.
enum Stage {
    /// In this process.
    Fake(FakeRouter),
    Janus(Box<JanusStage>),
}

impl Stage {
    async fn fake() -> Self {
        let stage = Self::Fake(FakeRouter::new(&"test".parse().expect("name")));
        stage.create_room().await;
        stage
    }

    async fn janus() -> Self {
        let janus = Janus::shared().expect("janus");
        let proxy = TcpProxy::start(janus.ip(), janus.address()).expect("proxy");
        let (publishers, lookers) = (BTreeMap::new(), BTreeMap::new());
        let stage = Self::Janus(Box::new(JanusStage { janus, proxy, publishers, lookers }));
        stage.create_room().await;
        stage
    }

    /// The room.
    fn place(&self) -> RouterRoom {
        let room = match self {
            Self::Fake(_) => "r".to_owned(),
            Self::Janus(stage) => stage.janus.room("r"),
        };
        RouterRoom::shared("test".parse().expect("name"), room.parse().expect("room"))
    }

    fn router(&self) -> Box<dyn MediaRouter> {
        match self {
            Self::Fake(router) => Box::new(router.clone()),
            Self::Janus(stage) => {
                let mut config = JanusConfig::new("test", &format!("ws://{}", stage.proxy.address()));
                config.api_secret = Some(API_SECRET.into());
                config.admin_key = Some(ADMIN_KEY.into());
                config.poll = Duration::from_millis(300);
                Box::new(JanusRouter::new(config))
            }
        }
    }

    async fn join(&self) -> Box<dyn Room> {
        self.router().join(&self.place()).await.expect("join")
    }

    async fn create_room(&self) {
        match self {
            Self::Fake(router) => router.add_room(&self.place().room),
            Self::Janus(stage) => stage.janus.create_room("r", json!({})).await.expect("room"),
        }
    }

    async fn destroy_room(&self) {
        match self {
            Self::Fake(router) => router.destroy_room(&self.place().room),
            Self::Janus(stage) => stage.janus.destroy_room("r").await.expect("destroy"),
        }
    }

    /// A client comes and publishes a screen with sound.
    async fn publish(&mut self, id: &str) {
        let room = self.place().room;
        match self {
            Self::Fake(router) => {
                let (name, connection_data) = (Some(format!("The {id}")), Some("u=7".to_owned()));
                let stream = archiver_sim::router::stream(id);
                router.publish(&room, StreamInfo { name, connection_data, video_type: VideoType::Screen, ..stream });
            }
            Self::Janus(stage) => {
                let mut options = Options::new(&stage.janus, "r", id);
                let display = json!({ "name": options.display, "connectionData": "u=7", "videoType": "screen" });
                options.display = display.to_string();
                let publisher = Publisher::start(options).await.expect("publisher");
                stage.publishers.insert(id.to_owned(), publisher);
            }
        }
    }

    /// A client comes and only looks on.
    async fn look_on(&mut self, name: &str) {
        let room = self.place().room;
        match self {
            Self::Fake(router) => router.enter(&room, name, Some(name), None),
            Self::Janus(stage) => {
                let mut looker = Client::connect(&stage.janus.url()).await.expect("client");
                let join = json!({ "request": "join", "ptype": "publisher", "room": room, "display": name });
                looker.message(join, None).await.expect("join");
                stage.lookers.insert(name.to_owned(), looker);
            }
        }
    }

    /// A client goes.
    async fn leave(&mut self, id: &str) {
        let room = self.place().room;
        match self {
            Self::Fake(router) => router.leave(&room, id),
            Self::Janus(stage) => {
                drop(stage.lookers.remove(id));
                if let Some(publisher) = stage.publishers.remove(id) {
                    publisher.leave().await.expect("leave");
                }
            }
        }
    }

    /// A moderator does something to a client of the room.
    async fn moderate(&self, mut request: Value) {
        let Self::Janus(stage) = self else { panic!("for Janus only") };
        request["room"] = json!(self.place().room);
        let mut admin = Client::connect(&stage.janus.url()).await.expect("client");
        admin.message(request, None).await.expect("moderate");
    }

    async fn mute(&self, id: &str, mid: &str, mute: bool) {
        match self {
            Self::Fake(router) => router.mute(&self.place().room, id, mid, mute),
            Self::Janus(_) => self.moderate(json!({ "request": "moderate", "id": id, "mid": mid, "mute": mute })).await,
        }
    }

    /// A moderator sends a client out.
    async fn kick(&self, id: &str) {
        match self {
            Self::Fake(router) => router.leave(&self.place().room, id),
            Self::Janus(_) => self.moderate(json!({ "request": "kick", "id": id })).await,
        }
    }

    /// The signalling is lost, and can be had again at once.
    fn disconnect(&self) {
        match self {
            Self::Fake(router) => router.disconnect(),
            Self::Janus(stage) => stage.proxy.cut(),
        }
    }

    /// The signalling is lost until [`Self::rejoin`].
    fn cut_off(&self) {
        match self {
            Self::Fake(router) => router.cut_off(),
            Self::Janus(stage) => stage.proxy.set(TcpMode::Refuse),
        }
    }

    fn rejoin(&self) {
        match self {
            Self::Fake(router) => router.rejoin(),
            Self::Janus(stage) => stage.proxy.set(TcpMode::Forward),
        }
    }
}

/// Each test with the router in memory, where time is simulated, and with Janus.
macro_rules! on_each_router {
    ($($name:ident => $test:path;)*) => {
        mod memory {
            use super::*;

            $(#[tokio::test(start_paused = true)]
            async fn $name() {
                $test(Stage::fake().await).await;
            })*
        }
        mod janus {
            use super::*;

            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                $test(Stage::janus().await).await;
            })*
        }
    };
}

on_each_router! {
    a_room_tells_who_comes_publishes_is_muted_and_goes => who_is_there;
    a_stream_is_offered_and_a_bad_answer_harms_only_its_subscription => offers;
    signalling_that_is_lost_comes_back_and_subscriptions_live_on => lost_signalling;
    a_room_that_is_removed_and_made_again_is_noticed => removed_room;
    rooms_are_created_listed_looked_into_and_removed => rooms;
}

async fn who_is_there(mut stage: Stage) {
    let mut room = stage.join().await;
    clients(room.as_mut(), 0).await;
    stage.publish("alice").await;
    let info = present_among(room.as_mut(), "alice", 1).await;
    assert_eq!((info.name.as_deref(), info.connection_data.as_deref()), (Some("The alice"), Some("u=7")));
    assert_eq!(info.video_type, VideoType::Screen);
    let mut codecs: Vec<(TrackKind, &str)> = info.tracks.iter().map(|t| (t.kind, t.codec.as_str())).collect();
    codecs.sort();
    assert_eq!(codecs, [(TrackKind::Audio, "opus"), (TrackKind::Video, "vp8")]);
    // One that only looks on is a client, a second archiver is none.
    let other = stage.join().await;
    stage.look_on("bob").await;
    clients(room.as_mut(), 2).await;
    stage.leave("bob").await;
    other.leave().await;
    let mid = info.tracks.iter().find(|t| t.kind == TrackKind::Video).expect("video").mid.clone();
    for mute in [true, false] {
        stage.mute("alice", &mid, mute).await;
        let info = present(room.as_mut(), "alice").await;
        let muted: Vec<&str> = info.tracks.iter().filter(|t| t.muted).map(|t| t.mid.as_str()).collect();
        assert_eq!(muted, if mute { vec![mid.as_str()] } else { vec![] });
    }
    stage.leave("alice").await;
    gone(room.as_mut(), "alice").await;
    stage.publish("carol").await;
    present(room.as_mut(), "carol").await;
    stage.kick("carol").await;
    gone(room.as_mut(), "carol").await;
    room.leave().await;
}

async fn offers(mut stage: Stage) {
    stage.publish("alice").await;
    let mut room = stage.join().await;
    let mids = present(room.as_mut(), "alice").await.mids();
    let control = room.control();
    assert!(matches!(control.subscribe("nobody", &["0".to_owned()]).await, Err(RouterError::StreamNotFound { .. })));
    let offer = control.subscribe("alice", &mids).await.expect("offer");
    assert!(offer.sdp.starts_with("v=0"), "{}", offer.sdp);
    let kinds: Vec<TrackKind> = offer.mids.iter().map(|(_, kind)| *kind).collect();
    assert_eq!(kinds, [TrackKind::Audio, TrackKind::Video]);
    for (mid, _) in &offer.mids {
        assert!(offer.sdp.contains(&format!("a=mid:{mid}\r\n")), "{mid} is not in {}", offer.sdp);
    }
    control.prefer_highest_layer(offer.subscription).await.expect("layer");
    assert!(control.answer(offer.subscription, "not SDP".to_owned()).await.is_err());
    control.unsubscribe(offer.subscription).await;
    assert!(matches!(control.prefer_highest_layer(offer.subscription).await, Err(RouterError::StreamNotFound { .. })));
    // One track alone.
    let offer = control.subscribe("alice", &mids[..1]).await.expect("a second offer");
    assert_eq!(offer.mids.iter().map(|(_, kind)| *kind).collect::<Vec<_>>(), [TrackKind::Audio]);
    assert!(control.subscribe("alice", &["no such track".to_owned()]).await.is_err());
    room.leave().await;
}

async fn lost_signalling(mut stage: Stage) {
    stage.publish("alice").await;
    let mut room = stage.join().await;
    let mids = present(room.as_mut(), "alice").await.mids();
    let control = room.control();
    let offer = control.subscribe("alice", &mids).await.expect("offer");
    stage.disconnect();
    let before = reconnected(room.as_mut()).await;
    assert!(before.contains(&RoomEvent::Disconnected) && lost(&before).is_empty(), "{before:?}");
    present(room.as_mut(), "alice").await;
    control.prefer_highest_layer(offer.subscription).await.expect("the subscription is still there");
    // Who came and went while nobody listened.
    stage.cut_off();
    until(room.as_mut(), "the loss", |e| (*e == RoomEvent::Disconnected).then_some(())).await;
    assert!(control.prefer_highest_layer(offer.subscription).await.is_err(), "nobody can be asked");
    stage.leave("alice").await;
    stage.publish("bob").await;
    stage.rejoin();
    assert_eq!(lost(&reconnected(room.as_mut()).await), []);
    gone(room.as_mut(), "alice").await;
    present(room.as_mut(), "bob").await;
    room.leave().await;
}

async fn removed_room(mut stage: Stage) {
    stage.publish("alice").await;
    let mut room = stage.join().await;
    present(room.as_mut(), "alice").await;
    stage.destroy_room().await;
    gone(room.as_mut(), "alice").await;
    until(room.as_mut(), "the room's end", |e| (*e == RoomEvent::RoomDestroyed).then_some(())).await;
    let missing = stage.router().join(&stage.place()).await.map(drop);
    assert!(matches!(missing, Err(RouterError::RoomNotFound { .. })), "{missing:?}");
    stage.create_room().await;
    stage.publish("bob").await;
    let mids = present_among(room.as_mut(), "bob", 1).await.mids();
    room.control().subscribe("bob", &mids).await.expect("offer");
    room.leave().await;
}

async fn rooms(mut stage: Stage) {
    let (router, place) = (stage.router(), stage.place());
    let session: SessionId = "2_MX4xMjM0NTY-fn5-".parse().expect("session");
    stage.destroy_room().await;
    assert!(router.create_room(&place, &session).await.expect("create"));
    assert!(!router.create_room(&place, &session).await.expect("create again"));
    let listed = async || {
        let rooms = router.list_rooms().await.expect("list");
        let room = rooms.into_iter().find(|listed| listed.room == place.room);
        room.map(|room| (room.about, room.participants))
    };
    assert_eq!(listed().await, Some((session.to_string(), 0)));
    assert!(router.streams(&place).await.expect("streams").is_empty());
    stage.publish("alice").await;
    let archiver = stage.join().await;
    assert_eq!(listed().await, Some((session.to_string(), 2)));
    let seen = router.participants(&place.room).await.expect("participants");
    let seen: Vec<_> = seen.iter().map(|p| (p.router_id.as_str(), p.name.as_deref(), p.publishing)).collect();
    assert_eq!(seen, [("alice", Some("The alice"), true)]);
    let streams = router.streams(&place).await.expect("streams");
    assert_eq!(streams.iter().map(|s| (s.router_id.as_str(), s.tracks.len())).collect::<Vec<_>>(), [("alice", 2)]);
    archiver.leave().await;
    assert!(router.remove_room(&place).await.expect("remove"));
    assert!(!router.remove_room(&place).await.expect("remove again"));
    assert_eq!(listed().await, None);
    let gone = router.participants(&place.room).await.expect_err("no room");
    assert!(matches!(gone, RouterError::RoomNotFound { .. }), "{gone}");
}
