//! Live media through a real Janus into capture logs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use archiver::model::ids::{ArchiveId, Epoch, EventId, JobId, SessionId, StreamId, TrackId, TrackKind};
use archiver::model::media::GapCause;
use archiver::model::session::RouterRoom;
use archiver::model::time::{ClockAnchor, MediaClock, MediaTime, Wallclock};
use archiver::recording::LogReader;
use archiver::recording::reader::TrackIndex;
use archiver::recording::spool::Spool;
use archiver::router::janus::{JanusConfig, JanusRouter};
use archiver::router::{MediaRouter, Room, RoomControl, RoomEvent, StreamInfo};
use archiver::webrtc::{CaptureEvent, CaptureKey, CaptureOptions, Engine, EngineConfig, PeerKey};
use archiver_testkit::content::Content;
use archiver_testkit::janus::{API_SECRET, Janus};
use archiver_testkit::publisher::{AudioCodec, Options, Publisher, VideoCodec, unix_seconds};
use archiver_testkit::wait::deadline;

fn router(janus: &Janus) -> JanusRouter {
    let mut config = JanusConfig::new("test", &janus.url());
    config.api_secret = Some(API_SECRET.into());
    JanusRouter::new(config)
}

async fn next_stream(room: &mut dyn Room) -> StreamInfo {
    let next = async {
        loop {
            if let Some(RoomEvent::StreamPresent(stream)) = room.next_event().await {
                return stream;
            }
        }
    };
    tokio::time::timeout(deadline(), next).await.expect("a stream")
}

/// An engine that captures one session.
struct Recorder {
    engine: Engine,
    capture: CaptureKey,
    events: tokio::sync::mpsc::Receiver<CaptureEvent>,
    session: SessionId,
    archive: ArchiveId,
    archive_dir: PathBuf,
}

impl Recorder {
    async fn start(janus: &Janus, dir: &Path, config: EngineConfig) -> Self {
        let spool = Arc::new(Spool::open(dir, 1 << 30, 70).expect("spool"));
        let bind = std::net::SocketAddr::new(janus.ip(), 0);
        let engine = Engine::start(EngineConfig { bind, ..config }, Arc::clone(&spool)).expect("engine");
        let session: SessionId = "s".parse().expect("id");
        let archive = ArchiveId::of_job(JobId::of_event(&session, &"e".parse::<EventId>().expect("id")));
        let archive_dir = spool.archive_dir(archive);
        let options = CaptureOptions {
            archive,
            dir: archive_dir.clone(),
            epoch: Epoch(1),
            clock: MediaClock::new(ClockAnchor::now(), Wallclock::now()),
            log: archiver::recording::LogOptions::default(),
            track: archiver::rtp::track::TrackOptions::default(),
            segment: Duration::from_secs(2),
            prior_ends: std::collections::BTreeMap::new(),
            watermark: tokio::sync::watch::Sender::new(MediaTime(i64::MIN)),
        };
        let (capture, events) = engine.open(options).await.expect("open");
        Self { engine, capture, events, session, archive, archive_dir }
    }

    /// Subscribes to a stream.
    async fn subscribe(&self, control: &dyn RoomControl, stream: &StreamInfo) -> (StreamId, PeerKey) {
        let offer = control.subscribe(&stream.router_id, &stream.mids()).await.expect("subscribe");
        let id = StreamId::of_router(&self.session, &stream.router_id);
        let (peer, answer) = self.engine.add_peer(self.capture, id, offer.sdp, offer.mids).await.expect("offer");
        control.answer(offer.subscription, answer.sdp).await.expect("answer");
        (id, peer)
    }

    /// Waits until so many tracks have media.
    async fn tracks_begin(&mut self, count: usize) {
        let mut first = std::collections::BTreeSet::new();
        while first.len() < count {
            let event = tokio::time::timeout(deadline(), self.events.recv()).await;
            match event.unwrap_or_else(|_| panic!("only {first:?} have media")).expect("event") {
                CaptureEvent::FirstMedia { track } => {
                    first.insert(track);
                }
                CaptureEvent::PeerLost { reason, .. } => panic!("{reason}"),
                CaptureEvent::StorageFailed { reason, .. } => panic!("{reason}"),
                CaptureEvent::Connected { .. }
                | CaptureEvent::TrackStarved { .. }
                | CaptureEvent::StorageRecovered { .. }
                | CaptureEvent::Sealed { .. } => {}
            }
        }
    }
}

async fn join(janus: &Janus, room: &str) -> Box<dyn Room> {
    let place = RouterRoom::shared("test".parse().expect("id"), janus.room(room).parse().expect("id"));
    router(janus).join(&place).await.expect("join")
}

/// What was sent this long ago is in the engine's socket, in seconds, also on a busy machine.
const ON_THE_WAY: f64 = 0.25;

/// The engine reads its socket once a second: what waits there when the publisher is taken away is up to a second of media.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_packets_of_a_publisher_that_leaves_are_in_the_log() {
    let janus = Janus::shared().expect("janus");
    let dir = tempfile::tempdir().expect("dir");
    janus.create_room("last", serde_json::json!({})).await.expect("room");
    let slow =
        EngineConfig { batch: Duration::from_secs(1), connect_max: Duration::from_secs(60), ..EngineConfig::default() };
    let mut recorder = Recorder::start(&janus, dir.path(), slow).await;
    let mut room = join(&janus, "last").await;
    // Of several publishers, one may leave when next to nothing waits.
    let mut lasts = Vec::new();
    for name in ["a", "b", "c"] {
        let publisher = Publisher::start(Options::new(&janus, "last", name)).await.expect("publish");
        let stream = next_stream(room.as_mut()).await;
        let (id, peer) = recorder.subscribe(room.control().as_ref(), &stream).await;
        recorder.tracks_begin(2).await;
        publisher.pictures_pass(30).await;
        let removed = unix_seconds(Instant::now());
        recorder.engine.remove_peer(peer, GapCause::NotSent).expect("engine");
        let sent = publisher.crash().timeline();
        let there = sent.frames.iter().rfind(|(_, at)| *at < removed - ON_THE_WAY).expect("pictures");
        lasts.push((id, there.0));
    }
    recorder.engine.close(recorder.capture).await.expect("close");
    room.leave().await;
    let reader = LogReader::open(&recorder.archive_dir).expect("reader");
    for (stream, last) in lasts {
        let video = TrackId { stream, kind: TrackKind::Video };
        let track = reader.tracks.iter().find(|track| track.track == video).expect("track");
        let content = joined(track, dir.path());
        let seen = content.frames.last().expect("pictures").number.map(u32::from);
        assert!(seen >= Some(last), "of {stream}: {last} was sent, {seen:?} is the last one in the log");
    }
}

/// What a track's segments show.
fn joined(track: &TrackIndex, dir: &Path) -> Content {
    let path = dir.join("joined.mkv");
    let mut file = std::fs::File::create(&path).expect("file");
    archiver::recording::reader::join(track, 0..track.segments.len(), &mut file).expect("join");
    tokio::task::block_in_place(|| Content::read(&path)).expect("content")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_codec_arrives_whole_in_its_log() {
    let janus = Janus::shared().expect("janus");
    let dir = tempfile::tempdir().expect("dir");
    let mut recorder = Recorder::start(&janus, dir.path(), EngineConfig::default()).await;
    janus
        .create_room("r", serde_json::json!({ "videocodec": "vp8,vp9,h264,av1", "audiocodec": "opus,pcmu,pcma" }))
        .await
        .expect("room");
    let mut room = join(&janus, "r").await;
    let kinds = [
        (VideoCodec::Vp8, AudioCodec::Opus),
        (VideoCodec::Vp9, AudioCodec::Pcmu),
        (VideoCodec::H264, AudioCodec::Pcma),
        (VideoCodec::Av1, AudioCodec::Opus),
    ];
    let mut publishers = Vec::new();
    let mut streams = Vec::new();
    for (video, audio) in kinds {
        let mut options = Options::new(&janus, "r", video.janus());
        (options.video, options.audio) = (Some(video), Some(audio));
        publishers.push(Publisher::start(options).await.expect("publish"));
        let stream = next_stream(room.as_mut()).await;
        assert_eq!(stream.router_id, video.janus());
        streams.push(recorder.subscribe(room.control().as_ref(), &stream).await.0);
    }
    recorder.tracks_begin(2 * kinds.len()).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    recorder.engine.close(recorder.capture).await.expect("close");
    room.leave().await;
    let Recorder { session, archive, archive_dir, .. } = recorder;
    let reader = LogReader::open(&archive_dir).expect("reader");
    for (stream, (video, audio)) in streams.iter().zip(kinds) {
        for track in reader.tracks.iter().filter(|t| t.track.stream == *stream) {
            let codec = track.segments[0].format.codec;
            let expected = if track.track.kind == TrackKind::Video { video.janus() } else { audio.janus() };
            assert_eq!(codec.as_str(), expected);
            assert_eq!(track.stats.lost, 0, "{codec:?} {:?}", track.stats);
            assert_eq!(track.stats.frames_damaged, 0, "{codec:?} {:?}", track.stats);
            assert_eq!(track.frames().count() as u64, track.stats.frames + 1, "{codec:?}");
            let seconds = (track.end().expect("end") - track.start().expect("start")) / 1_000_000_000;
            assert!((4..40).contains(&seconds), "{codec:?} {seconds}");
            assert!(track.segments.len() >= 2 && track.segments.iter().all(|s| s.sealed.is_some()));
            if track.track.kind == TrackKind::Video {
                assert_eq!((track.segments[0].format.width, track.segments[0].format.height), (320, 240));
            }
            // Every segment that begins with a keyframe plays with an ordinary tool, as does a run.
            let path = dir.path().join("run.mkv");
            let mut run = std::fs::File::create(&path).expect("file");
            archiver::recording::reader::join(track, 0..track.segments.len(), &mut run).expect("join");
            let out = std::process::Command::new("ffmpeg")
                .args(["-v", "error", "-xerror", "-i"])
                .arg(&path)
                .args(["-f", "null", "-"])
                .output()
                .expect("ffmpeg");
            assert!(
                out.status.success() && out.stderr.is_empty(),
                "{codec:?}: {}",
                String::from_utf8_lossy(&out.stderr)
            );
        }
    }
    assert_eq!(reader.tracks.len(), 8);

    let descriptor = crate::support::archives::individual(archive, session);
    let cancel = tokio_util::sync::CancellationToken::new();
    let build = || {
        archiver::archive::build::build(
            &archive_dir,
            &descriptor,
            "session ended",
            None,
            &crate::support::archives::pipelines(),
            &cancel,
        )
        .expect("build")
        .done()
        .expect("not cancelled")
    };
    let built = tokio::task::block_in_place(build);
    assert_eq!(built.manifest.files.len(), 4);
    for file in &built.manifest.files {
        assert!(!file.raw, "{file:?}");
        let path = archive_dir.join("out").join(&file.name);
        let probe = std::process::Command::new("ffprobe")
            .args([
                "-v",
                "error",
                "-count_packets",
                "-show_entries",
                "stream=codec_type,nb_read_packets:format=duration",
                "-of",
                "csv",
            ])
            .arg(&path)
            .output()
            .expect("ffprobe");
        let probe = String::from_utf8_lossy(&probe.stdout).into_owned();
        assert!(probe.contains(&format!("stream,video,{}\n", file.video_frames)), "{file:?} {probe}");
        assert!(probe.contains(&format!("stream,audio,{}\n", file.audio_frames)), "{file:?} {probe}");
        let out = std::process::Command::new("ffmpeg")
            .args(["-v", "error", "-xerror", "-i"])
            .arg(&path)
            .args(["-f", "null", "-"])
            .output()
            .expect("ffmpeg");
        assert!(out.status.success() && out.stderr.is_empty(), "{file:?}: {}", String::from_utf8_lossy(&out.stderr));
    }
    // Muxers write random ids, so the bytes differ; everything else is the same when it is made again.
    let again = tokio::task::block_in_place(build);
    assert_eq!(again.report, built.report);
    assert_eq!(again.manifest.files.len(), built.manifest.files.len());
}
