//! The last pictures of a stream are in the composed file, however short they are and whenever the news came that the stream has left.

use std::path::Path;
use std::sync::Mutex;

use crate::support::coded::coded;
use crate::support::h264::{STEP, depacketized, published_units};
use crate::support::logs::{Log, STREAM, add_track};
use archiver::compose::log_follower::{LogProgress, ProgressReceiver};
use archiver::model::ids::{StreamId, TrackId, TrackKind};
use archiver::model::media::{Codec, Frame, TrackFormat, VideoType};
use archiver::model::time::{MediaSpan, MediaTime};
use archiver::recording::history::{EventKind, History};
use archiver_testkit::content::Content;
use archiver_testkit::publisher::media::FPS;

/// A video track's formats and frames, in decoding order.
type Video = Vec<(Option<TrackFormat>, Frame)>;

/// Notes that the log's stream comes at the beginning, leaves at `left`, and comes again at `again` if that is given.
fn note_presence(log: &Log, left: MediaTime, again: Option<MediaTime>) {
    let stream: StreamId = STREAM.parse().expect("id");
    let (history, _) = History::open(&log.path()).expect("history");
    let comes = || EventKind::Stream {
        stream,
        router_id: "alice".into(),
        name: None,
        connection_data: None,
        signed: false,
        video_type: VideoType::Camera,
    };
    history.add(MediaTime::ZERO, comes()).expect("written");
    history.add(left, EventKind::StreamGone { stream }).expect("written");
    if let Some(again) = again {
        history.add(again, comes()).expect("written");
    }
}

/// Adds four seconds of another stream's sound.
fn add_sound(log: &Log) {
    let (format, frames) = coded(Codec::Opus);
    let mut items: Vec<_> = frames.into_iter().map(|frame| (None, frame)).collect();
    items[0].0 = Some(format);
    let stream = "00000000-0000-4000-8000-000000000002".parse().expect("id");
    add_track(log.dir.path(), TrackId { stream, kind: TrackKind::Audio }, &items, usize::MAX);
}

/// The numbers that a composed file shows, each once; none for a frame without a stream.
fn shown(file: &Path) -> Vec<Option<u16>> {
    let content = Content::read(file).expect("file");
    let mut numbers: Vec<Option<u16>> = content.frames.iter().map(|frame| frame.number).collect();
    numbers.dedup();
    numbers
}

/// What the composer shows of a finished log.
fn finished(log: &Log) -> Vec<Option<u16>> {
    shown(&log.composed(FPS, ProgressReceiver::finished()).0)
}

/// What the composer shows of a log that has not ended when its first frames are drawn.
fn followed(log: &Log, frames: u64) -> Vec<Option<u16>> {
    let (sender, receiver) = ProgressReceiver::channel();
    // The log has no sender reports: the composer waits for the first ones for 10 s.
    sender.send(LogProgress::Watermark(MediaTime::from_millis(12_500)));
    let sender = Mutex::new(sender);
    let end_behind = |made| {
        if made >= frames {
            sender.lock().expect("not poisoned").send(LogProgress::Ended);
        }
    };
    shown(&log.composed_with(FPS, receiver, &end_behind).0)
}

/// The numbers of a publisher's pictures.
fn numbers(video: &Video) -> Vec<Option<u16>> {
    let mut numbers: Vec<i64> = video.iter().map(|(_, frame)| frame.pts.0 / STEP).collect();
    numbers.sort_unstable();
    numbers.into_iter().map(|number| u16::try_from(number).ok()).collect()
}

/// A publisher's pictures with two B-frames, up to one that was sent ahead of two that never came.
fn sent_ahead() -> Video {
    let mut video = depacketized(&published_units(2, 60));
    let is_ahead = |n: &usize| {
        let newest = video[..*n].iter().map(|(_, frame)| frame.pts).max();
        newest.is_some_and(|newest| video[*n].1.pts - newest > 2 * STEP)
    };
    let last = (1..video.len()).rev().find(is_ahead).expect("B-frames");
    video.truncate(last + 1);
    video
}

#[test]
fn a_last_picture_that_comes_right_behind_another_is_shown() {
    for b_frames in [0, 2] {
        let mut video = depacketized(&published_units(b_frames, 60));
        let expected = numbers(&video);
        // The last two in the order of presentation come at 0.3 and 0.55 of a step. The estimated end is 0.8, before the middle between
        // the two moments that are drawn next.
        let end = video.iter().map(|(_, frame)| frame.pts).max().expect("pictures");
        for (_, frame) in &mut video {
            match (end - frame.pts) / STEP {
                0 => frame.pts = end + STEP * -45 / 100,
                1 => frame.pts = frame.pts + STEP * 30 / 100,
                _ => {}
            }
        }
        assert_eq!(finished(&Log::of(&video, usize::MAX)), expected, "{b_frames} B-frames");
    }
}

#[test]
fn a_picture_whose_moment_is_drawn_when_its_stream_has_left_is_shown() {
    let mut video = depacketized(&published_units(0, 12));
    let expected = numbers(&video);
    let at = |hundredths: MediaSpan| MediaTime(10 * STEP + STEP * hundredths / 100);
    (video[10].1.pts, video[11].1.pts) = (at(20), at(120));
    let log = Log::of(&video, usize::MAX);
    // The last picture's moment is that at 11 steps, and the stream leaves before it.
    note_presence(&log, at(90), None);
    assert_eq!(finished(&log), expected);
}

#[test]
fn pictures_that_were_sent_ahead_are_shown_when_their_stream_leaves_in_the_middle_of_a_session() {
    let video = sent_ahead();
    let expected = [numbers(&video), vec![None]].concat();
    for left in [-2, 1, 4] {
        let log = Log::of(&video, usize::MAX);
        add_sound(&log);
        note_presence(&log, video[video.len() - 1].1.pts + left * STEP, None);
        assert_eq!(finished(&log), expected, "finished, {left} steps");
        assert_eq!(followed(&log, 75), expected, "followed, {left} steps");
    }
}

#[test]
fn a_stream_that_comes_again_is_not_in_the_picture_in_between() {
    let mut video = sent_ahead();
    let last = video[video.len() - 1].1.pts;
    let again = last + 45 * STEP;
    // The same pictures, from the same encoder: no format comes between.
    let second: Video =
        video.iter().map(|(_, frame)| (None, Frame { pts: again + frame.pts.0, ..frame.clone() })).collect();
    let first = numbers(&video);
    video.extend(second);
    let log = Log::of(&video, usize::MAX);
    note_presence(&log, last + STEP, Some(again));
    assert_eq!(finished(&log), [first.clone(), vec![None], first].concat());
}

/// A publisher with B-frames is silent for some seconds, without leaving, and goes on without a keyframe.
#[test]
fn the_last_pictures_before_a_pause_are_shown_and_those_behind_the_pause_too() {
    let video = depacketized(&published_units(2, 40));
    let expected = numbers(&video);
    let is_whole = |n: &usize| numbers(&video[..*n].to_vec()) == expected[..*n] && !video[*n].1.keyframe;
    let cut = (1..=25).rev().find(is_whole).expect("a place without a keyframe");
    let (before, behind) = video.split_at(cut);
    assert!(behind.iter().take(3).all(|(_, frame)| !frame.keyframe), "{cut}");
    let log = Log::of(before, usize::MAX);
    add_sound(&log);
    let pause = MediaTime::from_millis(5000);
    let later = |frame: &Frame| Frame { pts: pause + frame.pts.0, ..frame.clone() };
    let mut behind: Video = behind.iter().map(|(_, frame)| (None, later(frame))).collect();
    // The log is opened again for it.
    behind[0].0.clone_from(&before[0].0);
    let (sender, receiver) = ProgressReceiver::channel();
    sender.send(LogProgress::Watermark(MediaTime::from_millis(12_500)));
    let rest = Mutex::new(Some((sender, behind)));
    // The sound ends after four seconds: the composer waits, and the log goes on.
    let go_on = |made| {
        let rest = (made > 100).then(|| rest.lock().expect("not poisoned").take()).flatten();
        if let Some((sender, behind)) = rest {
            let track = TrackId { stream: STREAM.parse().expect("id"), kind: TrackKind::Video };
            add_track(log.dir.path(), track, &behind, usize::MAX);
            sender.send(LogProgress::Ended);
            // Dropped, it would end the composition.
            std::mem::forget(sender);
        }
    };
    let shown = shown(&log.composed_with(FPS, receiver, &go_on).0);
    assert_eq!(shown.into_iter().flatten().collect::<Vec<_>>(), expected.into_iter().flatten().collect::<Vec<_>>());
}
