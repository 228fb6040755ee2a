//! The last pictures of a stream are in the composed file, however short they are and whenever the news came that the stream has left.

use crate::support::h264::{STEP, depacketized, published_units};
use crate::support::logs::{Log, STREAM};
use archiver::compose::log_follower::ProgressReceiver;
use archiver::model::ids::StreamId;
use archiver::model::media::{Frame, TrackFormat, VideoType};
use archiver::model::time::{MediaSpan, MediaTime};
use archiver::recording::history::{EventKind, History};
use archiver_testkit::content::Content;
use archiver_testkit::publisher::media::FPS;

/// Notes that the log's stream came at the beginning and left at `left`.
fn leaves(log: &Log, left: MediaTime) {
    let stream: StreamId = STREAM.parse().expect("id");
    let (history, _) = History::open(&log.path()).expect("history");
    let came = EventKind::Stream {
        stream,
        router_id: "alice".into(),
        name: None,
        connection_data: None,
        signed: false,
        video_type: VideoType::Camera,
    };
    history.add(MediaTime::ZERO, came).expect("written");
    history.add(left, EventKind::StreamGone { stream }).expect("written");
}

/// The numbers that the composed file shows, each once; none for a picture without a stream.
fn shown(log: &Log) -> Vec<Option<u16>> {
    let (out, _) = log.composed(FPS, ProgressReceiver::finished());
    let content = Content::read(&out).expect("file");
    let mut numbers: Vec<Option<u16>> = content.frames.iter().map(|frame| frame.number).collect();
    numbers.dedup();
    numbers
}

/// The numbers of a publisher's pictures up to that of the frame at `last`.
fn numbers(video: &[(Option<TrackFormat>, Frame)]) -> Vec<Option<u16>> {
    let mut numbers: Vec<i64> = video.iter().map(|(_, frame)| frame.pts.0 / STEP).collect();
    numbers.sort_unstable();
    numbers.into_iter().map(|number| u16::try_from(number).ok()).collect()
}

#[test]
fn a_last_picture_that_comes_right_behind_another_is_shown() {
    let mut video = depacketized(&published_units(0, 12));
    let expected = numbers(&video);
    // At 10.3 and 10.55 steps: the last one is estimated to end at 10.8, before the middle between the two moments that are drawn next.
    video[10].1.pts = MediaTime(10 * STEP + STEP * 30 / 100);
    video[11].1.pts = MediaTime(10 * STEP + STEP * 55 / 100);
    assert_eq!(shown(&Log::of(&video, usize::MAX)), expected);
}

#[test]
fn a_picture_whose_moment_is_drawn_when_its_stream_has_left_is_shown() {
    let mut video = depacketized(&published_units(0, 12));
    let expected = numbers(&video);
    let at = |hundredths: MediaSpan| MediaTime(10 * STEP + STEP * hundredths / 100);
    (video[10].1.pts, video[11].1.pts) = (at(20), at(120));
    let log = Log::of(&video, usize::MAX);
    // The last picture's moment is that at 11 steps if anything, and the stream leaves before it.
    leaves(&log, at(90));
    assert_eq!(shown(&log), expected);
}

#[test]
fn a_picture_that_was_sent_ahead_of_its_moment_is_shown_when_its_stream_has_left() {
    let mut video = depacketized(&published_units(2, 60));
    // Behind the last one there would be the two B-frames before it.
    let is_ahead = |n: &usize| {
        let newest = video[..*n].iter().map(|(_, frame)| frame.pts).max();
        newest.is_some_and(|newest| video[*n].1.pts - newest > 2 * STEP)
    };
    let last = (1..video.len()).rev().find(is_ahead).expect("B-frames");
    video.truncate(last + 1);
    let log = Log::of(&video, usize::MAX);
    leaves(&log, video[last].1.pts + -2 * STEP);
    assert_eq!(shown(&log), numbers(&video));
}
