//! The files of single streams: each begins with a keyframe, has every frame of its log, and plays from its beginning to its end. The logs are
//! written as the capture writes them.

use std::path::{Path, PathBuf};
use std::process::Command;

use archiver::archive::build::build;
use archiver::archive::documents::FileEntry;
use archiver::media::{Pipelines, verify};
use archiver::model::ids::{StreamId, TrackId, TrackKind};
use archiver::model::media::{Codec, Frame, TrackFormat};
use archiver::model::time::MediaTime;
use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use crate::support::coded::coded;
use crate::support::h264::{AccessUnit, access_units, count_ids, depacketized};
use crate::support::logs::{Item, add_track};
use crate::support::matroska::keyframe_marks;

const MS: i64 = 1_000_000;

/// An archive with one stream.
pub struct Archive {
    dir: tempfile::TempDir,
    stream: StreamId,
    pub files: Vec<FileEntry>,
}

impl Archive {
    /// Writes the log of one stream, and makes the files of it.
    pub fn of(video: &[Item], audio: &[Item]) -> Self {
        Self::with(video, audio, &crate::support::archives::pipelines())
    }

    /// The same with these pipelines.
    pub fn with(video: &[Item], audio: &[Item], pipelines: &Pipelines) -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let stream: StreamId = "00000000-0000-4000-8000-000000000001".parse().expect("id");
        let log = dir.path().join("archive");
        for (kind, items) in [(TrackKind::Video, video), (TrackKind::Audio, audio)] {
            if !items.is_empty() {
                add_track(dir.path(), TrackId { stream, kind }, items, usize::MAX);
            }
        }
        let descriptor = crate::support::archives::individual(
            "00000000-0000-4000-8000-000000000002".parse().expect("id"),
            "s".parse().expect("id"),
        );
        let cancel = CancellationToken::new();
        let built = build(&log, &descriptor, "session ended", None, pipelines, &cancel).expect("build");
        let built = built.done().expect("nothing cancels it");
        Self { dir, stream, files: built.manifest.files }
    }

    fn path(&self, file: &FileEntry) -> PathBuf {
        self.dir.path().join("archive/out").join(&file.name)
    }

    /// The one file, which has these frames and is as it should be.
    pub fn one_file(&self, pictures: usize, sounds: usize) -> PathBuf {
        let [file] = self.files.as_slice() else { panic!("{:?}", self.files) };
        self.is_whole(file, pictures, sounds);
        self.path(file)
    }

    /// The file plays whole: as ffmpeg and GStreamer see it, every picture of the log is decoded.
    fn is_whole(&self, file: &FileEntry, pictures: usize, sounds: usize) {
        assert!(!file.raw, "{file:?}");
        assert_eq!((file.video_frames, file.audio_frames), (pictures as u64, sounds as u64), "{file:?}");
        let path = self.path(file);
        assert_eq!((decoded(&path, "v"), decoded(&path, "a") > 0), (pictures, sounds > 0), "{file:?}");
        if pictures > 0 {
            let flags = probe(&path, "v", "packet=flags");
            assert!(flags.starts_with('K'), "the first picture is no keyframe: {file:?}");
            // Where players may seek to is where pictures can be decoded from.
            let marks = keyframe_marks(&path);
            let decoded = probe(&path, "v", "frame=key_frame");
            let keyframes: Vec<bool> =
                decoded.lines().filter(|line| line.starts_with(['0', '1'])).map(|line| line.starts_with('1')).collect();
            assert_eq!(marks, keyframes, "the file's marks of keyframes, and the decoder's keyframes: {file:?}");
        }
        let counted = verify::decode(&path, None, &Pipelines::default(), &CancellationToken::new()).expect("decode");
        let counted = counted.done().expect("nothing cancels it");
        assert_eq!(counted.video_frames, pictures as u64, "{file:?}");
        let seconds: f64 = probe(&path, "", "format=duration").trim().parse().expect("duration");
        let told = (file.end_ms - file.start_ms) as f64 / 1000.0;
        assert!((seconds - told).abs() < 0.01, "{seconds} s instead of {told} s: {file:?}");
    }
}

pub fn items((format, frames): (TrackFormat, Vec<Frame>)) -> Vec<Item> {
    let mut format = Some(format);
    frames.into_iter().map(|frame| (format.take(), frame)).collect()
}

/// The same, each frame `span` after the one before, from `first` on.
fn spaced(items: &[Item], first: i64, span: i64) -> Vec<Item> {
    let at = |n: usize| MediaTime(first + i64::try_from(n).expect("few") * span);
    let item = |(n, (format, frame)): (usize, &Item)| (format.clone(), Frame { pts: at(n), ..frame.clone() });
    items.iter().enumerate().map(item).collect()
}

fn probe(path: &Path, select: &str, entries: &str) -> String {
    let mut ffprobe = Command::new("ffprobe");
    ffprobe.args(["-v", "error", "-select_streams", select, "-show_entries", entries, "-of", "csv=p=0"]);
    String::from_utf8(ffprobe.arg(path).output().expect("ffprobe").stdout).expect("text")
}

/// Frames that ffmpeg decodes of a kind of track, without an error.
fn decoded(path: &Path, kind: &str) -> usize {
    if probe(path, kind, "stream=index").trim().is_empty() {
        return 0;
    }
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-v", "error", "-i"]).arg(path).args(["-map", &format!("0:{kind}"), "-fps_mode", "passthrough"]);
    let out = ffmpeg.args(["-f", "framecrc", "-"]).output().expect("ffmpeg");
    assert!(out.stderr.is_empty(), "{}: {}", path.display(), String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).lines().filter(|line| !line.starts_with('#')).count()
}

#[test]
fn a_further_file_begins_with_its_keyframe() {
    let (first, second) = (items(coded(Codec::Vp8)), items(coded(Codec::Av1)));
    // Times of the log's blocks are cut to 100 µs.
    for begins in [1_000_052_000, 1_000_000_000, 1_000_099_999] {
        let video = [&first[..25], &spaced(&second[..50], begins, 40 * MS)].concat();
        let archive = Archive::of(&video, &[]);
        let [one, other] = archive.files.as_slice() else { panic!("{:?}", archive.files) };
        archive.is_whole(one, 25, 0);
        archive.is_whole(other, 50, 0);
        assert_eq!([one, other].map(|file| file.video), [Some(Codec::Vp8), Some(Codec::Av1)]);
    }
}

#[test]
fn pictures_that_come_slowly_are_a_file_that_plays() {
    let (video, audio) = (items(coded(Codec::Vp8)), items(coded(Codec::Opus)));
    for (name, span) in [("0.333 s", 333 * MS), ("1 s", 1000 * MS), ("3 s", 3000 * MS), ("10 s", 10_000 * MS)] {
        let slow = spaced(&video[..8], 0, span);
        println!("a picture each {name}, alone");
        Archive::of(&slow, &[]).one_file(8, 0);
        println!("a picture each {name}, beside sound");
        Archive::of(&slow, &audio).one_file(8, audio.len());
    }
    println!("one picture");
    Archive::of(&video[..1], &[]).one_file(1, 0);
    println!("one picture beside sound");
    Archive::of(&video[..1], &audio).one_file(1, audio.len());
}

/// A router that changes to another layer gives the first picture of the new one the time of the last of the old one, or nearly.
#[test]
fn pictures_that_come_at_the_same_time_have_times_of_their_own_in_the_file() {
    for codec in [Codec::Vp8, Codec::H264] {
        let mut video = items(coded(codec));
        for (n, (_, frame)) in video.iter_mut().enumerate().take(24).skip(20) {
            frame.pts = MediaTime(20 * 40 * MS + i64::try_from(n - 20).expect("few") / 2 * MS / 5);
        }
        let archive = Archive::of(&video, &[]);
        let file = archive.one_file(video.len(), 0);
        let times = probe(&file, "v", "packet=pts_time");
        let times: Vec<f64> = times.lines().filter_map(|line| line.trim_end_matches(',').parse().ok()).collect();
        assert_eq!(times.len(), video.len());
        assert!(times.is_sorted_by(|a, b| a < b), "{codec:?}: {times:?}");
        assert_eq!(times[19..25], [0.76, 0.8, 0.801, 0.802, 0.803, 0.96], "{codec:?}");
    }
}

/// 4 s of H.264 of such a size, a keyframe a second, from `begins` on.
fn baseline(width: u32, height: u32, begins: i64) -> Vec<AccessUnit> {
    let source =
        format!("videotestsrc num-buffers=100 pattern=ball ! video/x-raw,width={width},height={height},framerate=25/1");
    let mut units = access_units(&source, "x264enc tune=zerolatency speed-preset=ultrafast key-int-max=25");
    units.iter_mut().for_each(|unit| unit.pts = unit.pts + begins);
    units
}

#[test]
fn h264_whose_parameter_sets_have_other_ids_at_each_keyframe_is_one_file() {
    // 70 keyframes: both counters go round.
    let source = "videotestsrc num-buffers=280 pattern=ball ! video/x-raw,width=160,height=120,framerate=25/1";
    let mut units = access_units(source, "x264enc tune=zerolatency speed-preset=ultrafast key-int-max=4");
    assert_eq!(units.iter().filter(|unit| unit.is_keyframe()).count(), 70);
    count_ids(&mut units);
    let video = depacketized(&units);
    Archive::of(&video, &[]).one_file(280, 0);
}

#[test]
fn h264_that_changes_its_size_is_one_file_with_its_sound_in_one_piece() {
    let mut units = baseline(320, 240, 0);
    units.extend(baseline(640, 480, 4000 * MS));
    units.extend(baseline(176, 144, 8000 * MS));
    let sound = items(coded(Codec::Opus));
    let audio = spaced(&[&sound[..], &sound, &sound].concat(), 0, 20 * MS);
    let archive = Archive::of(&depacketized(&units), &audio);
    let path = archive.one_file(300, audio.len());
    let sizes = probe(&path, "v", "frame=width");
    for width in ["320", "640", "176"] {
        let pictures = sizes.lines().filter(|line| line.trim_end_matches(',') == width).count();
        assert_eq!(pictures, 100, "pictures {width} wide");
    }
}

#[test]
fn h264_of_logs_whose_frames_have_no_parameter_sets_is_one_file_too() {
    // As the log was written before frames had them.
    let stripped = |units: Vec<AccessUnit>| -> Vec<Item> {
        let strip = |(format, frame): Item| {
            let mut data = Vec::new();
            let mut rest = &frame.data[..];
            while let Some((len, after)) = rest.split_first_chunk::<4>() {
                let (unit, behind) = after.split_at(u32::from_be_bytes(*len) as usize);
                if !matches!(unit[0] & 0x1f, 7 | 8) {
                    data.extend_from_slice(len);
                    data.extend_from_slice(unit);
                }
                rest = behind;
            }
            (format, Frame { data: Bytes::from(data), ..frame })
        };
        depacketized(&units).into_iter().map(strip).collect()
    };
    let video = [stripped(baseline(320, 240, 0)), stripped(baseline(640, 480, 4000 * MS))].concat();
    Archive::of(&video, &[]).one_file(200, 0);
}

#[test]
fn a_picture_that_no_decoder_takes_is_kept_as_captured_beside_sound_that_plays() {
    let (mut video, audio) = (items(coded(Codec::Vp8)), items(coded(Codec::Opus)));
    for (_, frame) in &mut video {
        frame.data = Bytes::from(vec![0xa5; 200]);
    }
    let archive = Archive::of(&video, &audio);
    let (raw, files): (Vec<_>, Vec<_>) = archive.files.iter().partition(|file| file.raw);
    let ([raw], [file]) = (raw.as_slice(), files.as_slice()) else { panic!("{:?}", archive.files) };
    archive.is_whole(file, 0, audio.len());
    assert_eq!(
        (file.name.clone(), file.video, file.audio),
        (format!("{}.webm", archive.stream), None, Some(Codec::Opus))
    );
    assert_eq!(
        (raw.name.clone(), raw.video, raw.audio),
        (format!("{}-video.webm", archive.stream), Some(Codec::Vp8), None)
    );
    // One document, with the frames as they came.
    let packets = probe(&archive.path(raw), "v", "packet=size");
    assert_eq!(packets.lines().filter(|line| line.trim_end_matches(',') == "200").count(), video.len());
}

#[test]
fn sound_that_pauses_where_a_further_file_begins_leaves_the_file_as_it_should_be() {
    let (first, second) = (items(coded(Codec::Vp8)), items(coded(Codec::Av1)));
    let video = [&first[..], &spaced(&second, 4000 * MS, 40 * MS)].concat();
    // Sound is silent from before the second file to behind the part of it that is decoded to verify it.
    let audio = items(coded(Codec::Opus));
    let audio = [&audio[..100], &spaced(&audio[100..120], 7000 * MS, 20 * MS)].concat();
    let archive = Archive::of(&video, &audio);
    let [one, other] = archive.files.as_slice() else { panic!("{:?}", archive.files) };
    archive.is_whole(one, 100, 100);
    archive.is_whole(other, 100, 20);
}
