//! What `archiver check` finds out about a media router. With an `admin_key` it does what a recording needs: it makes a private room,
//! publishes a stream to it, subscribes to that, and waits for its media. Without one it tells what it did not try.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::check_text::result_text;
use crate::config::{RouterSection, Settings};
use crate::model::fault::{HasFault, chain};
use crate::model::ids::{ArchiveId, Epoch, StreamId, TrackKind};
use crate::model::media::GapCause;
use crate::model::session::RouterRoom;
use crate::model::time::{ClockAnchor, MediaClock, MediaTime, Wallclock};
use crate::recording::LogOptions;
use crate::recording::spool::Spool;
use crate::router::{MediaRouter, Room, RoomEvent, StreamInfo};
use crate::rtp::track::TrackOptions;
use crate::session::access::access_at;
use crate::session::room::random_id;
use crate::webrtc::{CaptureEvent, CaptureKey, CaptureOptions, Engine, EngineConfig, TestStream};

/// The description of the room. It is no session's, so the bridge passes it over.
const ABOUT: &str = "archiver-check";
/// A published stream is announced within this.
const ANNOUNCED_MAX: Duration = Duration::from_secs(5);
/// Media that has not come by then does not come.
const MEDIA_MAX: Duration = Duration::from_secs(10);
/// Enough for a test stream, in bytes.
const SPOOL_BYTES: u64 = 64 << 20;
/// Rooms of the configuration that are joined.
const ROOMS_MAX: usize = 20;

/// What most likely stands in the way, and what to do.
const NO_CONNECTION: &str = "no connection for media came up: the router must reach this machine by UDP at [media] bind, or at [media] advertise \
     where addresses are translated, and its candidates (nat_1_1_mapping, interface) must be addresses that this machine reaches";

/// Why a check failed.
#[derive(Debug)]
struct Failure(String);

impl<E: HasFault> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(format!("{}; {}", chain(&error), error.fault().kind.advice()))
    }
}

/// Checks a router. Returns what was found, or the error with advice.
pub(super) async fn check(
    settings: &Settings,
    section: &RouterSection,
    router: &dyn MediaRouter,
) -> Result<String, String> {
    let version = result_text(router.probe().await, |version| version)?;
    let tried = if section.admin_key.is_some() {
        let failed = |Failure(text)| format!("{version}, but {text}");
        check_media(settings, section, router).await.map_err(failed)?
    } else {
        let joined = join_rooms(section, router).await.map_err(|Failure(text)| format!("{version}, but {text}"))?;
        format!("{joined}not tried: making a room, publishing, subscribing (that needs admin_key)")
    };
    Ok(format!("{version}; {tried}"))
}

/// Joins the rooms that the configuration names, and leaves them.
async fn join_rooms(section: &RouterSection, router: &dyn MediaRouter) -> Result<String, Failure> {
    let mut text = String::new();
    for room in section.rooms.keys().take(ROOMS_MAX) {
        let place = RouterRoom::shared(section.name.clone(), room.clone());
        router.join(&place).await?.leave().await;
        text += &format!("room {room} can be joined; ");
    }
    Ok(text)
}

async fn check_media(
    settings: &Settings,
    section: &RouterSection,
    router: &dyn MediaRouter,
) -> Result<String, Failure> {
    let room = random_id(&format!("{ABOUT}-"), section.string_ids).parse().expect("a valid room id");
    let place = RouterRoom { name: section.name.clone(), room, access: access_at(section) };
    router.create_room(&place, &ABOUT.parse().expect("a valid session id")).await?;
    let received = receive(settings, section, router, &place).await;
    if let Err(error) = router.remove_room(&place).await {
        let Failure(left) = Failure::from(error);
        let text = received.err().map_or_else(String::new, |Failure(text)| format!("{text}; "));
        return Err(Failure(format!("{text}room {} of this check could not be removed: {left}", place.room)));
    }
    let after = received?;
    Ok(format!("a room was made, and a stream published and recorded: first media after {} ms", after.as_millis()))
}

/// Publishes a stream to a room and records it. Returns how long after the subscription media of all tracks was there.
async fn receive(
    settings: &Settings,
    section: &RouterSection,
    router: &dyn MediaRouter,
    place: &RouterRoom,
) -> Result<Duration, Failure> {
    let folder = std::env::temp_dir().join(format!("{ABOUT}-{}", uuid::Uuid::new_v4()));
    let (engine, note) = start_engine(settings, &folder).await?;
    let received = async {
        let (stream, offer) = TestStream::new(source_address(settings, section)?).map_err(|e| Failure(chain(&e)))?;
        let publication = router.publish(place, offer).await?;
        let stop = CancellationToken::new();
        // The sender ends, too, when anything fails before it is told to.
        let sender = stop.clone().drop_guard();
        let answer = publication.answer.clone();
        let sending = tokio::task::spawn_blocking(move || stream.run(&answer, &stop));
        let mut room = router.join(place).await?;
        let recorded = record(&engine, room.as_mut(), &folder).await;
        room.leave().await;
        drop(publication);
        drop(sender);
        match (recorded, sending.await) {
            (Err(Failure(text)), Ok(Err(error))) => Err(Failure(format!("{text}; the sender says: {}", chain(&error)))),
            (recorded, _) => recorded,
        }
    };
    let received = received.await.map_err(|Failure(text)| Failure(text + &note));
    let cleaned = tokio::task::spawn_blocking(move || {
        drop(engine);
        std::fs::remove_dir_all(&folder)
    });
    if let Ok(Err(error)) = cleaned.await {
        tracing::warn!("the folder of the check stays: {error}");
    }
    received
}

/// Starts an engine as a worker would: at the configured port, unless a worker has that.
async fn start_engine(settings: &Settings, folder: &Path) -> Result<(Engine, String), Failure> {
    let (bind, advertise, folder) = (settings.media.bind, settings.media.advertise, folder.to_owned());
    let start = move || {
        let spool = Spool::open(&folder, SPOOL_BYTES, 100).map_err(Failure::from)?;
        let spool = Arc::new(spool);
        let config = |bind| EngineConfig { bind, advertise, ..EngineConfig::default() };
        if let Ok(engine) = Engine::start(config(bind), Arc::clone(&spool)) {
            return Ok((engine, String::new()));
        }
        let any = SocketAddr::new(bind.ip(), 0);
        let engine = Engine::start(config(any), spool)
            .map_err(|e| Failure(format!("[media] bind = {bind} cannot be used: {e}")))?;
        let note =
            format!("; the port of [media] bind = {bind} is in use, by a worker perhaps, so another one was tried");
        Ok((engine, note))
    };
    tokio::task::spawn_blocking(start).await.map_err(|e| Failure(e.to_string()))?
}

/// The address that the test stream is sent from: that of the media socket, or the one that reaches the router's WebSocket.
fn source_address(settings: &Settings, section: &RouterSection) -> Result<IpAddr, Failure> {
    let bind = settings.media.bind.ip();
    if !bind.is_unspecified() {
        return Ok(bind);
    }
    let failed = |e: std::io::Error| Failure(format!("there is no route to {}: {e}", section.url));
    let url = url::Url::parse(&section.url).map_err(|e| Failure(format!("{}: {e}", section.url)))?;
    let addresses = url.socket_addrs(|| Some(8188)).map_err(failed)?;
    let remote = addresses.iter().find(|address| address.is_ipv4() || bind.is_ipv6());
    let remote = remote.ok_or_else(|| Failure(format!("{} has no address that {bind} reaches", section.url)))?;
    let any: SocketAddr = if remote.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
    let probe = UdpSocket::bind(any).and_then(|socket| {
        socket.connect(remote)?;
        socket.local_addr()
    });
    Ok(probe.map_err(failed)?.ip())
}

/// Subscribes to the stream that is announced, and waits for media of each of its tracks.
async fn record(engine: &Engine, room: &mut dyn Room, folder: &Path) -> Result<Duration, Failure> {
    let archive = ArchiveId::from_uuid(uuid::Uuid::new_v4());
    let opened = engine.open(options(archive, folder.join(archive.to_string()))).await;
    let (capture, mut events) = opened.map_err(|e| Failure(e.to_string()))?;
    let stream = timeout(ANNOUNCED_MAX, announced(room)).await;
    let stream = stream.map_err(|_| {
        let seconds = ANNOUNCED_MAX.as_secs();
        Failure(format!("a stream that was published is not announced within {seconds} s; {NO_CONNECTION}"))
    })?;
    let stream = stream.ok_or_else(|| Failure("the room was left".to_owned()))?;
    let began = Instant::now();
    let recorded = subscribe(engine, room, capture, &stream, &mut events).await;
    engine.close(capture).await.map_err(|e| Failure(e.to_string()))?;
    recorded.map(|()| began.elapsed())
}

async fn announced(room: &mut dyn Room) -> Option<StreamInfo> {
    loop {
        match room.next_event().await? {
            RoomEvent::StreamPresent(stream) if stream.tracks.len() == 2 => return Some(stream),
            _ => {}
        }
    }
}

async fn subscribe(
    engine: &Engine,
    room: &mut dyn Room,
    capture: CaptureKey,
    stream: &StreamInfo,
    events: &mut mpsc::Receiver<CaptureEvent>,
) -> Result<(), Failure> {
    let control = room.control();
    let offer = control.subscribe(&stream.router_id, &stream.mids()).await?;
    let subscription = offer.subscription;
    let id = StreamId::from_uuid(uuid::Uuid::new_v4());
    let (peer, answer) = engine.add_peer(capture, id, offer.sdp, offer.mids).await?;
    control.on_candidate(subscription, engine.candidate_sink(peer));
    control.answer(subscription, answer.sdp).await?;
    let mut missing = BTreeSet::from([TrackKind::Audio, TrackKind::Video]);
    let mut connected = false;
    let deadline = tokio::time::sleep(MEDIA_MAX);
    tokio::pin!(deadline);
    while !missing.is_empty() {
        tokio::select! {
            () = &mut deadline => return Err(no_media(&missing, connected, engine.local_addr())),
            event = events.recv() => match event {
                Some(CaptureEvent::FirstMedia { track }) => drop(missing.remove(&track.kind)),
                Some(CaptureEvent::Connected { .. }) => connected = true,
                Some(CaptureEvent::PeerLost { reason, .. }) => {
                    return Err(Failure(format!("{}: {reason}", no_media(&missing, connected, engine.local_addr()).0)));
                }
                Some(_) => {}
                None => return Err(Failure("the capture threads have ended".to_owned())),
            },
            // The room's task must not wait for us.
            event = room.next_event() => if event.is_none() { return Err(Failure("the room was left".to_owned())) },
        }
    }
    engine.remove_peer(peer, GapCause::NotSent).map_err(|e| Failure(e.to_string()))
}

fn no_media(missing: &BTreeSet<TrackKind>, connected: bool, local: SocketAddr) -> Failure {
    let kinds: Vec<&str> = missing.iter().map(|kind| kind.as_str()).collect();
    let advice = if connected { "the connection for media is up: look at the router's log" } else { NO_CONNECTION };
    Failure(format!(
        "no {} came from the router to {local} within {} s; {advice}",
        kinds.join(" and "),
        MEDIA_MAX.as_secs()
    ))
}

fn options(archive: ArchiveId, dir: PathBuf) -> CaptureOptions {
    let second = Duration::from_secs(1);
    CaptureOptions {
        archive,
        dir,
        epoch: Epoch(1),
        clock: MediaClock::new(ClockAnchor::now(), Wallclock::now()),
        log: LogOptions::default(),
        track: TrackOptions {
            video_hold: second,
            audio_hold: second,
            stall: second * 2,
            keyframe_interval_min: second,
            keyframe_interval_max: None,
        },
        segment: second * 5,
        prior_ends: BTreeMap::new(),
        watermark: tokio::sync::watch::Sender::new(MediaTime(i64::MIN)),
    }
}
