//! What publishers sent against what is in the finished files: real Janus, real WebRTC, a bad network.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use archiver::archive::build::build;
use archiver::archive::object::{ArchiveDescriptor, Built};
use archiver::model::archive_options::{ArchiveOptions, OutputMode};
use archiver::model::ids::{ArchiveId, Epoch, EventId, JobId, SessionId, StreamId, TrackKind};
use archiver::model::session::RouterRoom;
use archiver::model::time::{ClockAnchor, MediaClock, Wallclock};
use archiver::recording::spool::Spool;
use archiver::router::janus::{JanusConfig, JanusRouter};
use archiver::router::{MediaRouter, Room, RoomEvent};
use archiver::webrtc::{CaptureEvent, CaptureKey, CaptureOptions, Engine, EngineConfig};
use archiver_testkit::chromium::{ChromiumOptions, ChromiumPublisher};
use archiver_testkit::content::{Content, Matched, Timeline, apart, percentile};
use archiver_testkit::janus::{API_SECRET, Janus};
use archiver_testkit::proxy::{Conditions, UdpProxy};
use archiver_testkit::publisher::{AudioCodec, Options, Publisher, VideoCodec};
use archiver_testkit::wait::deadline;
use tokio::sync::mpsc::Receiver;

/// One session's capture without a job: what comes up in the room is subscribed to.
struct Session {
    engine: Engine,
    capture: CaptureKey,
    events: Receiver<CaptureEvent>,
    room: Box<dyn Room>,
    descriptor: ArchiveDescriptor,
    dir: PathBuf,
    _spool: tempfile::TempDir,
}

impl Session {
    async fn start(janus: &Janus, proxy: Option<&Arc<UdpProxy>>) -> Self {
        let folder = tempfile::tempdir().expect("dir");
        let spool = Arc::new(Spool::open(folder.path(), 1 << 30, 70).expect("spool"));
        let mut config = EngineConfig { bind: std::net::SocketAddr::new(janus.ip(), 0), ..EngineConfig::default() };
        if let Some(proxy) = proxy.map(Arc::clone) {
            config.advertise = Some(proxy.ip());
            config.candidate_map = Some(Arc::new(move |remote| proxy.map(remote)));
        }
        let engine = Engine::start(config, Arc::clone(&spool)).expect("engine");
        let session: SessionId = "s".parse().expect("id");
        let job = JobId::of_event(&session, &"e".parse::<EventId>().expect("id"));
        let archive = ArchiveId::of_job(job);
        let dir = spool.archive_dir(archive);
        let origin = Wallclock::now();
        let (capture, events) = engine
            .open(CaptureOptions {
                archive,
                dir: dir.clone(),
                epoch: Epoch(1),
                clock: MediaClock::new(ClockAnchor::now(), origin),
                log: archiver::recording::LogOptions::default(),
                track: archiver::rtp::track::TrackOptions::default(),
                segment: Duration::from_secs(2),
                prior_ends: std::collections::BTreeMap::new(),
                watermark: tokio::sync::watch::Sender::new(archiver::model::time::MediaTime(i64::MIN)),
            })
            .await
            .expect("open");
        let mut router = JanusConfig::new("test", &janus.url());
        router.api_secret = Some(API_SECRET.into());
        let place = RouterRoom::shared("test".parse().expect("name"), janus.room("r").parse().expect("id"));
        let room = JanusRouter::new(router).join(&place).await.expect("join");
        let application = "app".parse().expect("id");
        let options = ArchiveOptions { output_mode: OutputMode::Individual, ..ArchiveOptions::default() };
        let descriptor = ArchiveDescriptor {
            archive,
            job,
            session,
            application,
            name: None,
            origin,
            ended_at: None,
            options,
            clip: None,
            ignore_layout_history: false,
        };
        Self { engine, capture, events, room, descriptor, dir, _spool: folder }
    }

    /// Subscribes to the next stream that comes up, and waits for the media of so many tracks.
    async fn subscribe(&mut self, tracks: usize) -> StreamId {
        let next = async {
            loop {
                if let Some(RoomEvent::StreamPresent(stream)) = self.room.next_event().await {
                    return stream;
                }
            }
        };
        let stream = tokio::time::timeout(deadline(), next).await.expect("a stream");
        let control = self.room.control();
        let offer = control.subscribe(&stream.router_id, &stream.mids()).await.expect("subscribe");
        let id = StreamId::of_router(&self.descriptor.session, &stream.router_id);
        let peer = self.engine.add_peer(self.capture, id, offer.sdp, offer.mids).await;
        control.answer(offer.subscription, peer.expect("offer").1.sdp).await.expect("answer");
        let mut media = 0;
        while media < tracks {
            let event = tokio::time::timeout(deadline(), self.events.recv()).await;
            match event.expect("media in time").expect("event") {
                CaptureEvent::FirstMedia { track } if track.stream == id => media += 1,
                CaptureEvent::PeerLost { reason, .. } => panic!("{reason}"),
                _ => {}
            }
        }
        id
    }

    /// Closes the capture and makes the archive.
    async fn finish(self) -> (Built, PathBuf, tempfile::TempDir) {
        self.engine.close(self.capture).await.expect("close");
        self.room.leave().await;
        let cancel = tokio_util::sync::CancellationToken::new();
        let built = tokio::task::block_in_place(|| {
            build(&self.dir, &self.descriptor, "session ended", None, &crate::support::archives::pipelines(), &cancel)
        });
        (built.expect("build").done().expect("not cancelled"), self.dir.join("out"), self._spool)
    }
}

/// Reads the file of a stream, with its times moved to the archive's time line.
fn read(built: &Built, out: &std::path::Path, stream: StreamId) -> Content {
    let file = built.manifest.files.iter().find(|f| f.stream_id == stream).expect("the stream's file");
    let mut content = Content::read(&out.join(&file.name)).expect("read");
    assert_eq!(content.errors, Vec::<String>::new(), "{}", file.name);
    assert_eq!(content.frames.len() as u64, file.video_frames, "{}", file.name);
    assert!(content.in_order(), "{}", file.name);
    #[allow(clippy::cast_precision_loss)]
    let start = file.start_ms as f64 / 1000.0;
    content.frames.iter_mut().for_each(|f| f.pts += start);
    content.beeps.iter_mut().for_each(|b| b.at += start);
    content
}

fn millis(seconds: &[f64], percent: f64) -> f64 {
    percentile(seconds, percent).expect("values") * 1000.0
}

fn absolute(values: &[f64]) -> Vec<f64> {
    values.iter().map(|v| v.abs()).collect()
}

/// Pictures are at the distances at which they were taken, in the whole.
fn assert_even(name: &str, matched: &Matched) {
    let zeros: Vec<f64> = matched.frames.iter().map(|p| p.zero()).collect();
    let middle = percentile(&zeros, 50.0).expect("values");
    let jitter: Vec<f64> = zeros.iter().map(|z| (z - middle).abs()).collect();
    assert!(millis(&jitter, 99.0) < 40.0, "{name}: pictures are {} ms off their place", millis(&jitter, 99.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_picture_is_there_once_in_order_and_in_sync() {
    let janus = Janus::shared().expect("janus");
    janus
        .create_room("r", serde_json::json!({ "videocodec": "vp8,h264,vp9,av1", "audiocodec": "opus,pcmu" }))
        .await
        .expect("room");
    let mut session = Session::start(&janus, None).await;
    let mut publishers = Vec::new();
    for (n, (video, audio)) in
        [(VideoCodec::Vp8, AudioCodec::Opus), (VideoCodec::H264, AudioCodec::Pcmu)].into_iter().enumerate()
    {
        let mut options = Options::new(&janus, "r", video.janus());
        (options.video, options.audio, options.code) = (Some(video), Some(audio), u16::try_from(n).expect("few"));
        publishers.push((Publisher::start(options).await.expect("publish"), video.janus()));
    }
    let mut streams = Vec::new();
    for _ in &publishers {
        streams.push(session.subscribe(2).await);
    }
    let mut browser = ChromiumPublisher::start(&ChromiumOptions::new(&janus, "r", "browser")).await.expect("browser");
    let browser_stream = session.subscribe(2).await;
    let until = tokio::time::Instant::now() + deadline();
    tokio::time::sleep(Duration::from_secs(20)).await;
    // On a busy machine a browser sends few pictures a second.
    while !browser.stats().await.expect("stats").iter().any(|layer| layer.width == 640 && layer.frames > 480) {
        assert!(tokio::time::Instant::now() < until, "the browser sends too few pictures");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let (built, out, _spool) = session.finish().await;
    let mut all = Vec::new();
    for (publisher, name) in publishers {
        let stream = StreamId::of_router(&"s".parse().expect("id"), name);
        assert!(streams.contains(&stream));
        all.push((name, read(&built, &out, stream).against(&publisher.leave().await.expect("leave").timeline())));
    }
    let seen = read(&built, &out, browser_stream);
    let drawn = browser.leave().await.expect("leave");
    // The browser's encoder may leave pictures out: what it sent is in the file, but which it sent it does not tell.
    let browser = seen.against(&drawn);
    assert!(browser.strange == 0 && browser.frames.len() > 400, "{} {}", browser.strange, browser.frames.len());
    assert!(seen.frames.iter().skip(150).all(|f| f.size == (640, 480)), "the highest layer");
    for (name, matched) in &all {
        assert!(matched.frames.len() > 500, "{name}: {}", matched.frames.len());
        assert_eq!((matched.missing.len(), matched.strange), (0, 0), "{name}: {:?}", matched.missing);
    }
    all.push(("browser", browser));
    for (name, matched) in &all {
        assert_even(name, matched);
        let sync = matched.sound_after_picture();
        println!(
            "{name}: {} beeps, sound after picture p1 {:.1} p50 {:.1} p99 {:.1} ms",
            sync.len(),
            millis(&sync, 1.0),
            millis(&sync, 50.0),
            millis(&sync, 99.0)
        );
        assert!(sync.len() >= 15, "{name}: {} beeps", sync.len());
        // What the browser itself adds between its sound and its picture is its own.
        let own = if *name == "browser" { percentile(&sync, 50.0).expect("values") } else { 0.0 };
        assert!(own.abs() < 0.060, "{name}: {own}");
        let off: Vec<f64> = sync.iter().map(|s| (s - own).abs()).collect();
        assert!(millis(&off, 99.0) < 40.0, "{name}: {sync:?}");
    }
    for (name, matched) in &all[1..] {
        let distance = apart(&matched.frames, &all[0].1.frames);
        println!("{name} against {}: p50 {:.1} ms", all[0].0, millis(&distance, 50.0));
        assert!(millis(&absolute(&distance), 99.0) < 40.0, "{name}: {}", millis(&absolute(&distance), 99.0));
    }
}

/// How long the lossy sessions last. Janus keeps nothing for retransmission until it has had a receiver report that answers one of its
/// sender reports: up to 2 s, as it sends the first one then. A packet that is lost before is lost: at 2 % one of a stream, one in a thousand of
/// the pictures of half a minute. So a session is long enough that the goal is about what is repaired, too.
const LOSSY_SESSION: Duration = Duration::from_secs(150);
/// By then, in seconds behind a stream's first picture, lost packets are repaired on the slowest machine.
const REPAIRED_FROM: f64 = 5.0;
/// Of ten thousand pictures that are repaired, at most so many may be missing.
const UNREPAIRED_MAX: usize = 2;

async fn under_loss(loss: f64, wanted: f64) {
    let janus = Janus::shared().expect("janus");
    janus.create_room("r", serde_json::json!({ "videocodec": "vp8", "audiocodec": "opus" })).await.expect("room");
    let proxy = Arc::new(UdpProxy::start(Conditions::lossy(loss, Duration::from_millis(60)), 1).expect("proxy"));
    let mut session = Session::start(&janus, Some(&proxy)).await;
    let mut publishers = Vec::new();
    for name in ["a", "b", "c", "d"] {
        publishers.push((Publisher::start(Options::new(&janus, "r", name)).await.expect("publish"), name));
        session.subscribe(2).await;
    }
    tokio::time::sleep(LOSSY_SESSION).await;
    // The archive takes its time on a busy machine. Numbers that come again meanwhile are not in it.
    let mut sent: Vec<(&str, Timeline)> = Vec::new();
    for (publisher, name) in publishers {
        sent.push((name, publisher.leave().await.expect("leave").timeline()));
    }
    let (built, out, _spool) = session.finish().await;
    let down = proxy.down();
    assert!(down.received > 10_000 && down.dropped > 0, "nothing went through the proxy: {down:?}");
    let (mut found, mut missing, mut unrepaired, mut zeros) = (0, 0, 0, Vec::new());
    for (name, truth) in sent {
        let stream = StreamId::of_router(&"s".parse().expect("id"), name);
        let matched = read(&built, &out, stream).against(&truth);
        assert_even(name, &matched);
        let sync = matched.sound_after_picture();
        let off = absolute(&sync);
        let first = matched.frames[0].sent;
        let missing_at: Vec<f64> = matched.missing.iter().map(|sent| sent - first).collect();
        println!(
            "{name}: {} pictures, {} damaged, missing {missing_at:.2?} s behind the first one, {} beeps, sync p99 {:.1} ms",
            matched.frames.len(),
            matched.damaged,
            sync.len(),
            millis(&off, 99.0)
        );
        assert!(matched.strange <= 5, "{name}: {} strange pictures", matched.strange);
        assert!(millis(&off, 99.0) < 40.0, "{name}: {sync:?}");
        found += matched.frames.len() + matched.damaged;
        missing += missing_at.len();
        unrepaired += missing_at.iter().filter(|at| **at >= REPAIRED_FROM).count();
        zeros.push(matched.frames);
    }
    for report in built.report.streams.iter().flat_map(|s| &s.tracks) {
        println!("{:?} {:?}", report.kind, report.stats);
        report.gaps.iter().for_each(|gap| println!("  gap {gap:?}"));
        report.gaps.iter().for_each(|gap| println!("  gap {gap:?}"));
        if report.kind == TrackKind::Audio {
            #[allow(clippy::cast_precision_loss)]
            let lost = report.stats.lost as f64 / (report.stats.lost + report.stats.packets) as f64;
            assert!(lost > 0.0 && lost < loss * 1.5, "{lost} of the sound is lost");
        }
    }
    #[allow(clippy::cast_precision_loss)]
    let share = f64::from(u32::try_from(found).expect("few")) / (found + missing) as f64;
    assert!(share >= wanted, "{found} pictures, {missing} missing: {share}");
    assert!(unrepaired * 10_000 <= found * UNREPAIRED_MAX, "{unrepaired} of {found} pictures were not repaired");
    for (other, name) in zeros[1..].iter().zip(["b", "c", "d"]) {
        let distance = apart(other, &zeros[0]);
        let off = millis(&absolute(&distance), 99.0);
        println!("{name} against a: p50 {:.1} ms, 99 of 100 within {off:.1} ms", millis(&distance, 50.0));
        assert!(off < 40.0, "{name} is {off} ms from a");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn at_two_percent_loss_999_pictures_of_1000_are_there() {
    under_loss(0.02, 0.999).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_five_percent_loss_995_pictures_of_1000_are_there() {
    under_loss(0.05, 0.995).await;
}
