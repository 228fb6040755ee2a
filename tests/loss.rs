//! What a bad network does to a capture: a proxy between Janus and the engine loses and delays packets.
#![allow(missing_docs)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use archiver::archive::build::{About, build};
use archiver::capture::log::{LogOptions, LogReader};
use archiver::capture::peer::{CaptureOptions, Engine, EngineConfig};
use archiver::capture::spool::Spool;
use archiver::capture::track::TrackOptions;
use archiver::ids::{ArchiveId, Epoch, EventId, JobId, RoomId, SessionId, StreamId, TrackKind};
use archiver::router::MediaRouter;
use archiver::router::janus::{JanusConfig, JanusRouter};
use archiver::time::Wallclock;
use archiver_testkit::content::Content;
use archiver_testkit::janus::{API_SECRET, Janus};
use archiver_testkit::proxy::{Conditions, UdpProxy};
use archiver_testkit::publisher::{Options, Publisher};

/// Captures one publisher over a bad network for a while: the share of pictures in the file, and the shares of
/// sound packets that are missing and that the proxy dropped.
async fn lossy(loss: f64, seconds: u64) -> (f64, f64) {
    let janus = Janus::start().expect("janus");
    let proxy = Arc::new(UdpProxy::start(Conditions::lossy(loss, Duration::from_millis(60)), 7).expect("proxy"));
    let dir = tempfile::tempdir().expect("dir");
    let spool = Arc::new(Spool::open(dir.path(), 1 << 30, 70).expect("spool"));
    let map = Arc::clone(&proxy);
    let config = EngineConfig {
        // The proxy is on the loopback: every local address must be reachable from there.
        bind: SocketAddr::from(([0, 0, 0, 0], 0)),
        candidate_map: Some(Arc::new(move |remote| map.map(remote))),
        ..EngineConfig::default()
    };
    let engine = Engine::start(config, Arc::clone(&spool)).expect("engine");
    let session: SessionId = "lossy".parse().expect("id");
    let job = JobId::of_event(&session, &"e".parse::<EventId>().expect("id"));
    let archive = ArchiveId::of_job(job);
    let (archive_dir, origin) = (spool.archive_dir(archive), Wallclock::now());
    let options = CaptureOptions {
        archive,
        dir: archive_dir.clone(),
        epoch: Epoch(1),
        origin,
        log: LogOptions::default(),
        track: TrackOptions::default(),
        segment: Duration::from_secs(5),
        earlier: BTreeMap::new(),
    };
    let (capture, mut events) = engine.open(options).await.expect("open");
    janus.create_room("r", serde_json::json!({})).await.expect("room");
    let mut janus_config = JanusConfig::new("test", &janus.url());
    janus_config.api_secret = Some(API_SECRET.into());
    let publisher = Publisher::start(Options::new(&janus, "r", "alice")).await.expect("publisher");
    let room = JanusRouter::new(janus_config).join(&"r".parse::<RoomId>().expect("id"), "test").await.expect("join");
    let offer = room.control().subscribe("alice").await.expect("subscribe");
    let stream = StreamId::of_router(&session, "alice");
    let (_, answer) = engine.add_peer(capture, stream, offer.sdp, offer.mids).await.expect("engine").expect("offer");
    room.control().answer(offer.subscription, answer).await.expect("answer");
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    engine.close(capture).await.expect("close");
    events.close();
    room.leave().await;
    let truth = publisher.crash().timeline();
    let about = About { archive, job, session, application: "app".parse().expect("id"), name: None, origin };
    let cancel = tokio_util::sync::CancellationToken::new();
    let built =
        tokio::task::block_in_place(|| build(&archive_dir, &about, "session ended", None, &cancel)).expect("build");
    let file = archive_dir.join("out").join(&built.manifest.files[0].name);
    let matched = Content::read(&file).expect("file").against(&truth);
    assert_eq!(matched.strange, 0, "pictures that were never sent, come twice, or out of order");
    let reader = LogReader::open(&archive_dir).expect("reader");
    let audio = reader.tracks.iter().find(|t| t.track.kind == TrackKind::Audio).expect("audio");
    #[allow(clippy::cast_precision_loss)]
    let missing = audio.stats.lost as f64 / (audio.stats.lost + audio.stats.packets) as f64;
    println!(
        "{:.0} % loss: {} of {} pictures, {:.2} % of sound missing; {:?}",
        loss * 100.0,
        matched.frames.len(),
        matched.frames.len() + matched.missing.len(),
        missing * 100.0,
        reader.tracks.iter().map(|t| (t.track.kind, t.stats)).collect::<Vec<_>>()
    );
    (matched.share(), missing)
}

#[tokio::test(flavor = "multi_thread")]
async fn two_percent_loss_costs_at_most_one_picture_in_a_thousand() {
    let (share, missing) = lossy(0.02, 30).await;
    assert!(share >= 0.999, "{share}");
    assert!(missing <= 0.04, "{missing}");
}

#[tokio::test(flavor = "multi_thread")]
async fn five_percent_loss_costs_at_most_five_pictures_in_a_thousand() {
    let (share, missing) = lossy(0.05, 30).await;
    assert!(share >= 0.995, "{share}");
    assert!(missing <= 0.08, "{missing}");
}
