//! The muxer against an independent reader (ffprobe): codecs, counts, durations, pauses, late starts.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use archiver::media::decode::{AudioDecoder, DecodedFrame, VideoDecoder};
use archiver::media::fragment::EMBEDDED;
use archiver::media::mux::{FrameSource, MuxInput, MuxTrack, Muxed, NextFrame, mux};
use archiver::media::plane::Plane;
use archiver::media::verify;
use archiver::media::{Pipelines, check};
use archiver::model::cancellable::Cancellable;
use archiver::model::ids::{Epoch, SessionId, StreamId, TrackId, TrackKind};
use archiver::model::media::{Codec, Frame, TrackFormat};
use archiver::model::time::MediaTime;
use archiver::recording::frames::{Frames, LogItem};
use archiver::recording::reader::TrackIndex;
use archiver::recording::spool::Spool;
use archiver::recording::{LogOptions, TrackLog};
use archiver_testkit::wait::deadline;
use tokio_util::sync::CancellationToken;

use crate::support::coded::{VIDEO, coded, coded_by};

type Track = Option<(TrackFormat, Vec<Frame>)>;

fn run(video: Track, audio: Track, path: &Path) -> Muxed {
    let source = |track: Track| track.map(|(format, frames)| -> MuxTrack { (format, Box::new(frames.into_iter())) });
    let input = MuxInput { video: source(video), audio: source(audio), start: MediaTime::ZERO };
    let muxed = mux(input, path, &Pipelines::default(), &CancellationToken::new()).expect("mux");
    muxed.done().expect("not cancelled")
}

#[test]
fn a_file_whose_muxing_is_cancelled_does_not_pass_for_a_whole_one() {
    let dir = tempfile::tempdir().expect("dir");
    let (cancel, (format, frames)) = (CancellationToken::new(), coded(Codec::Vp8));
    let stop = cancel.clone();
    let frames = frames.into_iter().enumerate().inspect(move |(n, _)| {
        if *n == 10 {
            stop.cancel();
        }
    });
    let frames = Box::new(frames.map(|(_, frame)| frame));
    let input = MuxInput { video: Some((format, frames)), audio: None, start: MediaTime::ZERO };
    let muxed = mux(input, &dir.path().join("video.webm"), &Pipelines::default(), &cancel);
    assert!(matches!(muxed, Ok(Cancellable::Cancelled)), "{muxed:?}");
}

/// Frames, and then nothing for ever.
struct Paused(std::vec::IntoIter<Frame>);

impl FrameSource for Paused {
    fn next_frame(&mut self) -> NextFrame {
        self.0.next().map_or(NextFrame::NotYet, NextFrame::Frame)
    }

    fn wait(&mut self) {
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_muxer_that_fails_says_so_while_its_log_does_not_grow() {
    let dir = tempfile::tempdir().expect("dir");
    let muxer = EMBEDDED.iter().find(|(name, _)| *name == "mux-webm").expect("fragment").1;
    let failing = muxer.replace("filesink", "identity error-after=1 ! filesink");
    std::fs::write(dir.path().join("mux-webm.launch"), failing).expect("fragment");
    let (format, frames) = coded(Codec::Vp8);
    let video: Option<MuxTrack> = Some((format, Box::new(Paused(frames.into_iter()))));
    let input = MuxInput { video, audio: None, start: MediaTime::ZERO };
    let pipelines = Pipelines::new(Some(dir.path().to_owned()), Duration::from_secs(600));
    let failed = mux(input, &dir.path().join("video.webm"), &pipelines, &CancellationToken::new());
    assert!(failed.is_err(), "{failed:?}");
}

/// A track's log that somebody else writes.
struct GrowingTrack {
    frames: Frames,
    ended: Arc<AtomicBool>,
    waited: Arc<AtomicU64>,
}

impl FrameSource for GrowingTrack {
    fn next_frame(&mut self) -> NextFrame {
        // In this order: what was written before the end is read.
        let has_ended = self.ended.load(Ordering::SeqCst);
        self.frames.refresh().expect("index");
        let frame = self.frames.find_map(|item| if let LogItem::Frame(frame) = item { Some(frame) } else { None });
        match frame {
            Some(frame) => NextFrame::Frame(frame),
            None if has_ended => NextFrame::End,
            None => NextFrame::NotYet,
        }
    }

    fn wait(&mut self) {
        self.waited.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A session's log is written part by part while its file is made. Its pictures pause for a second in the middle, and both inputs
/// have nothing more often than not; the file is the one that is made of the finished log.
#[test]
fn a_file_is_made_while_its_log_grows() {
    let dir = tempfile::tempdir().expect("dir");
    let spool = Arc::new(Spool::open(dir.path(), 1 << 30, 70).expect("spool"));
    let session: SessionId = "s".parse().expect("id");
    let (ended, waited) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (mut logs, mut growing, mut finished) = (Vec::new(), Vec::new(), Vec::new());
    for (kind, codec) in [(TrackKind::Video, Codec::Vp8), (TrackKind::Audio, Codec::Opus)] {
        let track = TrackId { stream: StreamId::of_router(&session, "a"), kind };
        let options = LogOptions::default();
        let (mut log, _) = TrackLog::open(dir.path(), track, Epoch(1), options, Arc::clone(&spool)).expect("log");
        let (format, frames) = coded(codec);
        log.format(&format).expect("format");
        let folder = dir.path().join("tracks").join(track.to_string());
        let frames_of = |dir: &Path| TrackIndex::open(dir, track).expect("index").frames();
        let source =
            GrowingTrack { frames: frames_of(&folder), ended: Arc::clone(&ended), waited: Arc::clone(&waited) };
        growing.push((format.clone(), source));
        finished.push((format, folder, track));
        let is_there = move |frame: &Frame| kind == TrackKind::Audio || !(1500..2500).contains(&frame.pts.as_millis());
        logs.push((log, frames.into_iter().filter(is_there).collect::<Vec<_>>()));
    }
    let mut growing = growing.into_iter().map(|(format, source)| -> MuxTrack { (format, Box::new(source)) });
    let (video, audio) = (growing.next(), growing.next());
    let path = dir.path().join("growing.webm");
    let muxing = std::thread::spawn({
        let path = path.clone();
        let pipelines = Pipelines { stall: Duration::from_secs(2), ..Pipelines::default() };
        move || mux(MuxInput { video, audio, start: MediaTime::ZERO }, &path, &pipelines, &CancellationToken::new())
    });
    for now in (0..4000).step_by(100).map(MediaTime::from_millis) {
        for (log, frames) in &mut logs {
            let due = frames.partition_point(|frame| frame.pts < now);
            frames.drain(..due).for_each(|frame| log.frame(&frame).expect("frame"));
            log.tick(now).expect("tick");
        }
        let before = waited.load(Ordering::SeqCst);
        let until = Instant::now() + deadline();
        while waited.load(Ordering::SeqCst) == before {
            assert!(Instant::now() < until, "the muxer does not wait for the log at {now:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    for (log, frames) in &mut logs {
        frames.drain(..).for_each(|frame| log.frame(&frame).expect("frame"));
        log.seal().expect("seal");
    }
    ended.store(true, Ordering::SeqCst);
    let muxed = muxing.join().expect("muxer").expect("mux").done().expect("not cancelled");
    let whole = dir.path().join("finished.webm");
    let mut finished = finished.into_iter().map(|(format, folder, track)| {
        let items = TrackIndex::open(&folder, track).expect("index").frames();
        let frames = items.filter_map(|item| if let LogItem::Frame(frame) = item { Some(frame) } else { None });
        (format, frames.collect::<Vec<_>>())
    });
    let (video, audio) = (finished.next(), finished.next());
    let counts = [&video, &audio].map(|track| track.as_ref().map_or(0, |(_, frames)| frames.len()) as u64);
    assert_eq!(muxed, run(video, audio, &whole));
    assert_eq!([muxed.video.frames, muxed.audio.frames], counts);
    let packets = |path: &Path| ["v", "a"].map(|kind| probe(path, kind, "packet=pts_time,dts_time,size,flags"));
    assert_eq!(packets(&path), packets(&whole));
    plays(&path);
}

/// `key=value` lines of ffprobe for one kind of stream, with packets counted.
fn probe(path: &Path, select: &str, entries: &str) -> String {
    let out = Command::new("ffprobe")
        .args([
            "-v",
            "error",
            "-count_packets",
            "-select_streams",
            select,
            "-show_entries",
            entries,
            "-of",
            "default=nw=1",
        ])
        .arg(path)
        .output()
        .expect("ffprobe");
    String::from_utf8(out.stdout).expect("text")
}

fn plays(path: &Path) {
    let out =
        Command::new("ffmpeg").args(["-v", "error", "-xerror", "-i"]).arg(path).args(["-f", "null", "-"]).output();
    let out = out.expect("ffmpeg");
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && text.trim().is_empty(), "{}: {text}", path.display());
}

fn duration(path: &Path) -> f64 {
    probe(path, "", "format=duration").trim().trim_start_matches("duration=").parse().expect("duration")
}

#[test]
fn every_pair_of_codecs_is_muxed_whole_and_plays() {
    let dir = tempfile::tempdir().expect("dir");
    for (video, v) in [(Codec::Vp8, "vp8"), (Codec::Vp9, "vp9"), (Codec::H264, "h264"), (Codec::Av1, "av1")] {
        for (audio, a) in [(Codec::Opus, "opus"), (Codec::Pcmu, "pcm_mulaw"), (Codec::Pcma, "pcm_alaw")] {
            let path = dir.path().join(format!("{v}-{a}"));
            let (video, audio) = (coded(video), coded(audio));
            let counts = (video.1.len(), audio.1.len());
            let muxed = run(Some(video), Some(audio), &path);
            assert_eq!((muxed.video.frames, muxed.audio.frames), (counts.0 as u64, counts.1 as u64), "{v} {a}");
            let text = probe(&path, "v", "stream=codec_name,nb_read_packets");
            assert!(text.contains(&format!("codec_name={v}\n")), "{v} {a}: {text}");
            assert!(text.contains(&format!("nb_read_packets={}", counts.0)), "{v} {a}: {text}");
            let text = probe(&path, "a", "stream=codec_name,nb_read_packets");
            assert!(text.contains(&format!("codec_name={a}\n")), "{v} {a}: {text}");
            assert!(text.contains(&format!("nb_read_packets={}", counts.1)), "{v} {a}: {text}");
            assert!((duration(&path) - 4.0).abs() < 0.05, "{v} {a}: {}", duration(&path));
            plays(&path);
        }
    }
}

#[test]
fn a_pause_of_the_sound_of_an_hour_stays_a_pause_and_holds_nothing_up() {
    let dir = tempfile::tempdir().expect("dir");
    let (video, mut audio) = (coded(Codec::Vp8), coded(Codec::Opus));
    // Pictures go on for an hour; sound is there for two seconds at either end.
    let hour = 3_600_000_000_000_i64;
    let mut frames = Vec::new();
    for round in 0..900_i64 {
        frames.extend(video.1.iter().map(|f| Frame { pts: f.pts + round * 4_000_000_000, ..f.clone() }));
    }
    for frame in audio.1.iter_mut().skip(100) {
        frame.pts = frame.pts + (hour - 4_000_000_000);
    }
    let counts = (frames.len(), audio.1.len());
    let path = dir.path().join("pause.webm");
    let began = Instant::now();
    let muxed = run(Some((video.0, frames)), Some(audio), &path);
    println!("an hour of VP8 and Opus muxed in {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(60));
    assert_eq!((muxed.video.frames, muxed.audio.frames), (counts.0 as u64, counts.1 as u64));
    assert!((duration(&path) - 3600.0).abs() < 0.05, "{}", duration(&path));
}

#[test]
fn sound_that_begins_late_and_sound_alone_are_right() {
    let dir = tempfile::tempdir().expect("dir");
    let (video, mut audio) = (coded(Codec::Vp8), coded(Codec::Opus));
    for frame in &mut audio.1 {
        frame.pts = frame.pts + 5_000_000_000;
    }
    let path = dir.path().join("late.webm");
    run(Some(video.clone()), Some(audio.clone()), &path);
    assert!((duration(&path) - 9.0).abs() < 0.05, "{}", duration(&path));
    plays(&path);
    let counted = verify::count(&path, &Pipelines::default(), &CancellationToken::new()).expect("count");
    let counted = counted.done().expect("not cancelled");
    assert_eq!((counted.video_frames, counted.audio_buffers), (video.1.len() as u64, audio.1.len() as u64));
    let path = dir.path().join("audio.webm");
    run(None, Some(coded(Codec::Opus)), &path);
    assert!((duration(&path) - 4.0).abs() < 0.05, "{}", duration(&path));
    plays(&path);
}

/// A folder with this build's fragments for decoding, without the line that passes the elements by.
fn elements() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("dir");
    for (name, text) in EMBEDDED.iter().filter(|(name, _)| name.starts_with("decode-")) {
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("# directly:")).collect();
        std::fs::write(dir.path().join(format!("{name}.launch")), lines.join("\n")).expect("write");
    }
    dir
}

/// What can be seen of each picture: its three planes.
fn pictures(format: &TrackFormat, frames: &[Frame], pipelines: Option<&Path>) -> Vec<Vec<u8>> {
    let mut decoder = VideoDecoder::new(format, pipelines).expect("decoder");
    let mut decoded: Vec<DecodedFrame> =
        frames.iter().flat_map(|frame| decoder.decode(frame).expect("decoded")).collect();
    decoded.extend(decoder.finish().expect("finished"));
    // They come in the order of presentation.
    assert!(decoded.windows(2).all(|two| two[0].pts() < two[1].pts()), "pictures are out of order");
    let seen = |picture: DecodedFrame| {
        assert_eq!(picture.size(), (320, 240));
        let rows = |plane: Plane<'_>| (0..plane.height).flat_map(|y| plane.row(y).to_vec()).collect::<Vec<u8>>();
        (0..3).flat_map(|n| picture.with_plane(n, rows).expect("plane")).collect()
    };
    decoded.into_iter().map(seen).collect()
}

#[test]
fn a_library_that_is_called_directly_decodes_what_the_elements_do() {
    let elements = elements();
    let fine =
        format!("{}vp9enc deadline=1 cpu-used=8 keyframe-max-dist=25", VIDEO.replace("width", "format=Y444,width"));
    let reordered = format!(
        "{VIDEO}x264enc speed-preset=veryfast bframes=3 b-adapt=false b-pyramid=true key-int-max=25 ! video/x-h264,profile=high,stream-format=avc,alignment=au"
    );
    for (name, (format, frames)) in [
        ("VP8", coded(Codec::Vp8)),
        ("VP9", coded(Codec::Vp9)),
        ("H.264", coded(Codec::H264)),
        ("H.264 with B-frames", coded_by(Codec::H264, &reordered)),
        // Its chroma is as large as its luma: that is for elements to convert.
        ("VP9, 4:4:4", coded_by(Codec::Vp9, &fine)),
    ] {
        let directly = pictures(&format, &frames, None);
        assert!(directly.len() == frames.len() && directly[0].len() == 320 * 240 * 3 / 2, "{name}: {}", directly.len());
        assert!(directly == pictures(&format, &frames, Some(elements.path())), "{name}: the pictures differ");
    }
}

#[test]
fn sound_that_is_decoded_directly_is_what_the_elements_make_of_it() {
    let (elements, (format, frames)) = (elements(), coded(Codec::Opus));
    let decoded = |pipelines: Option<&Path>| {
        let mut decoder = AudioDecoder::new(&format, pipelines).expect("decoder");
        let mut samples = Vec::new();
        frames.iter().for_each(|frame| decoder.decode(frame, &mut samples).expect("decoded"));
        samples
    };
    let (directly, theirs) = (decoded(None), decoded(Some(elements.path())));
    assert_eq!(directly.len(), theirs.len());
    let power = |samples: &mut dyn Iterator<Item = f32>| samples.map(|s| f64::from(s * s)).sum::<f64>();
    let error = power(&mut directly.iter().zip(&theirs).map(|(a, b)| a - b)) / power(&mut theirs.iter().copied());
    // Two programs that do the same, and round otherwise.
    assert!(error < 1e-5, "they differ by {error}");
}

#[test]
fn what_cannot_be_called_directly_is_told() {
    let (dir, (format, _)) = (tempfile::tempdir().expect("dir"), coded(Codec::Vp8));
    let text = "# purpose: pictures\n# directly: libvpx\n# elements: vp8dec (gstreamer1.0-plugins-good)\nvp8dec";
    std::fs::write(dir.path().join("decode-vp8.launch"), text).expect("write");
    let error = VideoDecoder::new(&format, Some(dir.path())).err().expect("refused").to_string();
    assert!(error.contains("decode-vp8") && error.contains("libvpx") && error.contains("libavcodec is"), "{error}");
    // `archiver check` finds it before an archive does.
    assert_eq!(check::elements(Some(dir.path())).expect_err("refused").to_string(), error);
}
