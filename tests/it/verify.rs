//! Verified means what a player does: one document, sync points that decode, all that was muxed. It is done in a process of its own, whose
//! death is no more than a file that is not verified.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use archiver::compose::verifier::{self, VerifierError};
use archiver::media::mux::{MuxInput, MuxTrack, mux};
use archiver::media::verify::{Inspection, decode_ends};
use archiver::media::{MediaError, Pipelines};
use archiver::model::cancellable::Cancellable;
use archiver::model::media::{Codec, Frame, TrackFormat};
use archiver::model::time::MediaTime;
use archiver_testkit::wait::deadline;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio_util::sync::CancellationToken;

use crate::individual::{Archive, items};
use crate::support::archives::pipelines;
use crate::support::coded::coded;

const BEGINNING: Duration = Duration::from_secs(2);
const MS: i64 = 1_000_000;

type Track = (TrackFormat, Vec<Frame>);

fn muxed(video: Track, audio: Track, path: &Path) {
    let track = |(format, frames): Track| -> Option<MuxTrack> { Some((format, Box::new(frames.into_iter()))) };
    let input = MuxInput { video: track(video), audio: track(audio), start: MediaTime::ZERO };
    let done = mux(input, path, &Pipelines::default(), &CancellationToken::new()).expect("mux");
    assert!(matches!(done, Cancellable::Done(_)));
}

/// A file that is decoded to its end before anybody goes there: the end of that is not the end of what was asked for.
#[test]
fn the_end_of_a_short_file_is_decoded_however_busy_the_machine_is() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("short.mp4");
    let made = std::process::Command::new("ffmpeg")
        .args(["-v", "error", "-f", "lavfi", "-i", "testsrc=size=320x240:rate=30:duration=1.2"])
        .args(["-f", "lavfi", "-i", "sine=frequency=440:duration=1.2", "-pix_fmt", "yuv420p", "-g", "30"])
        .arg(&path)
        .status();
    assert!(made.expect("ffmpeg").success());
    let ends = || {
        let ends = decode_ends(&path, Duration::from_secs(2), &Pipelines::default(), &CancellationToken::new());
        ends.expect("decoded").done().expect("not cancelled")
    };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for round in 0..30 {
                    let (first, last) = ends();
                    for part in [first, last] {
                        assert_eq!(part.video_frames, 36, "round {round}: {first:?} {last:?}");
                        assert!(part.audio_buffers > 20, "round {round}: {first:?} {last:?}");
                    }
                }
            });
        }
    });
}

/// Four seconds of sound.
fn sound() -> Track {
    let (format, mut frames) = coded(Codec::Opus);
    frames.truncate(200);
    (format, frames)
}

/// A file of four seconds, with a keyframe a second.
fn file(dir: &Path) -> PathBuf {
    let path = dir.join("file.webm");
    muxed(coded(Codec::Vp8), sound(), &path);
    path
}

fn inspect(path: &Path) -> Result<Inspection, VerifierError> {
    let found = verifier::inspect(path, BEGINNING, &pipelines(), &CancellationToken::new())?;
    Ok(found.done().expect("nothing cancels it"))
}

/// Pipelines that decode so slowly that there is time to end the process.
fn slow(dir: &Path) -> Pipelines {
    let fragment = "# purpose: a slow reader\n# elements: filesrc (libgstreamer1.0-0)\nfilesrc name=source blocksize=512 ! identity sleep-time=20000 ! decodebin name=decode";
    std::fs::write(dir.join("verify.launch"), fragment).expect("write");
    Pipelines { dir: Some(dir.to_owned()), ..pipelines() }
}

/// The verifier that has these pipelines, if it runs.
fn verifier_with(pipelines: &Pipelines) -> Option<u32> {
    let dir = pipelines.dir.as_deref().expect("a folder of its own").to_str().expect("text");
    std::fs::read_dir("/proc").expect("proc").flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let command = String::from_utf8(std::fs::read(entry.path().join("cmdline")).ok()?).ok()?;
        let mut words = command.split('\0');
        (words.any(|word| word == "verify-file") && words.any(|word| word.contains(dir))).then_some(pid)
    })
}

/// Ends a verifier as soon as it runs; not `but`. Returns its pid.
fn kill_verifier(pipelines: &Pipelines, but: Option<u32>) -> u32 {
    let began = Instant::now();
    loop {
        if let Some(pid) = verifier_with(pipelines).filter(|pid| Some(*pid) != but) {
            let killed = Command::new("kill").args(["-9", &pid.to_string()]).status().expect("kill");
            assert!(killed.success());
            return pid;
        }
        assert!(began.elapsed() < deadline(), "no verifier is started");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_whole_file_is_found_with_its_tracks_its_duration_and_sync_points_that_decode() {
    let dir = tempfile::tempdir().expect("dir");
    let found = inspect(&file(dir.path())).expect("a good file");
    let (video, audio) = (found.video.expect("video"), found.audio.expect("audio"));
    assert_eq!((video.codec, video.frames, video.begins_with_keyframe), (Some(Codec::Vp8), 100, true));
    assert_eq!((audio.codec, audio.frames), (Some(Codec::Opus), 200));
    let heard_last = sound().1.last().expect("sound").pts.0.cast_unsigned();
    // The muxer adds Opus's pre-skip (Matroska's CodecDelay), of 312 samples here.
    assert!(audio.last_ns.abs_diff(heard_last + 6_500_000) < 1_000_000, "{audio:?}, {heard_last}");
    assert!(video.last_ns == 3_960_000_000 && found.duration_ns.abs_diff(4_000_000_000) < 20_000_000, "{found:?}");
    assert_eq!(found.sync_points, [true; 4]);
    assert!(found.beginning.video_frames >= 50 && found.beginning.audio_buffers >= 100, "{:?}", found.beginning);
}

#[test]
fn two_documents_in_one_file_and_a_file_that_is_cut_are_refused() {
    let dir = tempfile::tempdir().expect("dir");
    let one = std::fs::read(file(dir.path())).expect("file");
    for (name, bytes, why) in [
        ("two documents", [&one[..], &one].concat(), "another one follows"),
        ("cut", one[..one.len() - 1000].to_vec(), "goes on behind the end"),
        ("text", b"not a film at all, for many bytes".to_vec(), "not one Matroska document"),
    ] {
        let path = dir.path().join("bad.webm");
        std::fs::write(&path, bytes).expect("write");
        match inspect(&path) {
            Err(VerifierError::BadFile(what)) => assert!(what.contains(why), "{name}: {what}"),
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn a_file_whose_first_picture_does_not_decode_is_kept_as_captured_and_one_with_a_damaged_later_one_plays() {
    let (good, sound) = (items(coded(Codec::Vp8)), items(coded(Codec::Opus)));
    for (keyframe, raw) in [(0, true), (50, false)] {
        let mut video = good.clone();
        assert!(video[keyframe].1.keyframe);
        video[keyframe].1.data = Bytes::from(vec![0xa5; 200]);
        let archive = Archive::of(&video, &sound);
        assert_eq!(archive.files.iter().any(|file| file.raw), raw, "{keyframe}: {:?}", archive.files);
        assert!(archive.files.iter().any(|file| !file.raw && file.audio.is_some()), "{:?}", archive.files);
    }
}

#[test]
fn a_verifier_that_is_killed_is_an_error_and_not_the_end_of_its_parent() {
    let dir = tempfile::tempdir().expect("dir");
    let (path, pipelines) = (file(dir.path()), slow(dir.path()));
    let result = std::thread::scope(|scope| {
        let inspecting = scope
            .spawn(|| verifier::inspect(&path, BEGINNING, &pipelines, &CancellationToken::new()).expect_err("dies"));
        kill_verifier(&pipelines, None);
        inspecting.join().expect("no panic")
    });
    assert!(matches!(&result, VerifierError::Died(how) if how.contains("signal: 9")), "{result:?}");
}

#[test]
fn a_verification_that_died_is_made_again_and_its_file_is_whole() {
    let dir = tempfile::tempdir().expect("dir");
    let (pipelines, video) = (slow(dir.path()), items(coded(Codec::Vp8)));
    let archive = std::thread::scope(|scope| {
        let building = scope.spawn(|| Archive::with(&video, &[], &pipelines));
        let first = kill_verifier(&pipelines, None);
        kill_verifier(&pipelines, Some(first));
        building.join().expect("no panic")
    });
    archive.one_file(video.len(), 0);
}

#[test]
fn a_verifier_ends_when_it_is_cancelled_and_leaves_no_process() {
    let dir = tempfile::tempdir().expect("dir");
    let (path, pipelines, cancel) = (file(dir.path()), slow(dir.path()), CancellationToken::new());
    let result = std::thread::scope(|scope| {
        let inspecting = scope.spawn(|| verifier::inspect(&path, BEGINNING, &pipelines, &cancel).expect("cancelled"));
        let began = Instant::now();
        while verifier_with(&pipelines).is_none() {
            assert!(began.elapsed() < deadline(), "no verifier is started");
            std::thread::sleep(Duration::from_millis(2));
        }
        cancel.cancel();
        inspecting.join().expect("no panic")
    });
    assert_eq!((result, verifier_with(&pipelines)), (Cancellable::Cancelled, None));
}

#[test]
fn hostile_files_are_refused_or_read_and_nothing_else() {
    let dir = tempfile::tempdir().expect("dir");
    let one = std::fs::read(file(dir.path())).expect("file");
    let mut rng = StdRng::seed_from_u64(14);
    for n in 0..24 {
        let (path, mut bytes) = (dir.path().join("hostile.webm"), one.clone());
        // The header of every second one, where sizes are.
        let reach = if n % 2 == 0 { 600 } else { bytes.len() };
        for _ in 0..rng.random_range(1..=8) {
            let at = rng.random_range(0..reach);
            bytes[at] = rng.random();
        }
        std::fs::write(&path, bytes).expect("write");
        let (began, result) = (Instant::now(), inspect(&path));
        assert!(
            matches!(
                result,
                Ok(_) | Err(VerifierError::BadFile(_) | VerifierError::Died(_) | VerifierError::Stalled(_))
            ),
            "file {n}: {result:?}"
        );
        assert!(began.elapsed() < deadline(), "file {n} took {:?}", began.elapsed());
    }
}

#[test]
fn a_file_of_an_hour_is_verified_by_samples() {
    let dir = tempfile::tempdir().expect("dir");
    let repeated = |(format, frames): Track| -> Track {
        let again = |n: i64, frame: &Frame| Frame { pts: frame.pts + n * 4000 * MS, ..frame.clone() };
        let all = (0..900).flat_map(|n| frames.iter().map(move |frame| again(n, frame))).collect();
        (format, all)
    };
    let path = dir.path().join("hour.webm");
    muxed(repeated(coded(Codec::Vp8)), repeated(sound()), &path);
    let size = std::fs::metadata(&path).expect("file").len();
    let (began, found) = (Instant::now(), inspect(&path).expect("a good file"));
    println!("an hour, {} MB: {:.2} s", size >> 20, began.elapsed().as_secs_f64());
    let (video, audio) = (found.video.expect("video"), found.audio.expect("audio"));
    assert_eq!((video.frames, audio.frames), (90_000, 180_000));
    assert!(found.duration_ns.abs_diff(3_600_000_000_000) < 20_000_000, "{}", found.duration_ns);
    assert_eq!(found.sync_points, [true; 8]);
    assert!(found.beginning.video_frames < 1000, "{:?}", found.beginning);
}

#[test]
fn errors_of_elements_are_about_the_file_and_a_missing_fragment_is_not() {
    let dir = tempfile::tempdir().expect("dir");
    let path = file(dir.path());
    std::fs::write(dir.path().join("verify.launch"), "no header").expect("write");
    let pipelines = Pipelines { dir: Some(dir.path().to_owned()), ..pipelines() };
    let error = verifier::inspect(&path, BEGINNING, &pipelines, &CancellationToken::new()).expect_err("no fragment");
    let told = MediaError::Fragment { name: "verify".to_owned(), what: "the header has no `elements`".to_owned() };
    assert!(matches!(&error, VerifierError::Failed(_, what) if *what == told.to_string()), "{error:?}");
}
