//! Live media through a real Janus into capture logs.

use std::sync::Arc;
use std::time::Duration;

use archiver::model::ids::{ArchiveId, Epoch, EventId, JobId, SessionId, StreamId, TrackKind};
use archiver::model::session::RouterRoom;
use archiver::model::time::Wallclock;
use archiver::recording::LogReader;
use archiver::recording::spool::Spool;
use archiver::router::janus::{JanusConfig, JanusRouter};
use archiver::router::{MediaRouter, RoomEvent, StreamInfo};
use archiver::webrtc::{CaptureEvent, CaptureOptions, Engine, EngineConfig};
use archiver_testkit::janus::{API_SECRET, Janus};
use archiver_testkit::publisher::{AudioCodec, Options, Publisher, VideoCodec};
use archiver_testkit::wait::DEADLINE;

fn router(janus: &Janus) -> JanusRouter {
    let mut config = JanusConfig::new("test", &janus.url());
    config.api_secret = Some(API_SECRET.into());
    JanusRouter::new(config)
}

async fn next_stream(room: &mut dyn archiver::router::Room) -> StreamInfo {
    let next = async {
        loop {
            if let Some(RoomEvent::StreamPresent(stream)) = room.next_event().await {
                return stream;
            }
        }
    };
    tokio::time::timeout(DEADLINE, next).await.expect("a stream")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_codec_arrives_whole_in_its_log() {
    let janus = Janus::shared().expect("janus");
    let dir = tempfile::tempdir().expect("dir");
    let spool = Arc::new(Spool::open(dir.path(), 1 << 30, 70).expect("spool"));
    let bind = std::net::SocketAddr::new(janus.ip(), 0);
    let engine = Engine::start(EngineConfig { bind, ..EngineConfig::default() }, Arc::clone(&spool)).expect("engine");
    let session: SessionId = "s".parse().expect("id");
    let archive = ArchiveId::of_job(JobId::of_event(&session, &"e".parse::<EventId>().expect("id")));
    let archive_dir = spool.archive_dir(archive);
    let (capture, mut events) = engine
        .open(CaptureOptions {
            archive,
            dir: archive_dir.clone(),
            epoch: Epoch(1),
            origin: Wallclock::now(),
            log: archiver::recording::LogOptions::default(),
            track: archiver::rtp::track::TrackOptions::default(),
            segment: Duration::from_secs(2),
            prior_ends: std::collections::BTreeMap::new(),
            watermark: tokio::sync::watch::Sender::new(archiver::model::time::MediaTime(i64::MIN)),
        })
        .await
        .expect("open");
    janus
        .create_room("r", serde_json::json!({ "videocodec": "vp8,vp9,h264,av1", "audiocodec": "opus,pcmu,pcma" }))
        .await
        .expect("room");
    let mut room = router(&janus)
        .join(&RouterRoom::shared("test".parse().expect("id"), janus.room("r").parse().expect("id")))
        .await
        .expect("join");
    let control = room.control();
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
        let offer = control.subscribe(&stream.router_id, &stream.mids()).await.expect("subscribe");
        let id = StreamId::of_router(&session, &stream.router_id);
        let (_, answer) = engine.add_peer(capture, id, offer.sdp, offer.mids).await.expect("offer");
        control.answer(offer.subscription, answer.sdp).await.expect("answer");
        streams.push(id);
    }
    let mut first = std::collections::BTreeSet::new();
    while first.len() < 2 * kinds.len() {
        let event = tokio::time::timeout(DEADLINE, events.recv()).await;
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
    tokio::time::sleep(Duration::from_secs(5)).await;
    engine.close(capture).await.expect("close");
    room.leave().await;
    let reader = LogReader::open(&archive_dir).expect("reader");
    for (stream, (video, audio)) in streams.iter().zip(kinds) {
        for track in reader.tracks.iter().filter(|t| t.track.stream == *stream) {
            let codec = track.segments[0].format.codec;
            let expected = if track.track.kind == TrackKind::Video { video.janus() } else { audio.janus() };
            assert_eq!(codec.as_str(), expected);
            assert_eq!(track.stats.lost, 0, "{codec:?} {:?}", track.stats);
            // Who subscribes in the middle of a frame gets the rest of it first.
            assert!(track.stats.frames_damaged <= 1, "{codec:?} {:?}", track.stats);
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
