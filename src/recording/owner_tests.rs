//! What several owners captured of a track is read as one: in order, and nothing twice.

use std::path::Path;

use bytes::Bytes;

use super::frames::LogItem;
use super::reader::LogReader;
use super::tests::{frame, ms, open, read, vp8, write};
use crate::model::media::{Codec, Frame, Gap, GapCause, TrackFormat};

/// An audio frame of 20 ms whose bytes are its number, by a clock that is late by some milliseconds.
fn audio_frame(number: i64, late: i64) -> Frame {
    let data = Bytes::from(number.to_be_bytes().to_vec());
    Frame { pts: ms(1_000 + 20 * number + late), duration: None, keyframe: true, data }
}

fn opus() -> TrackFormat {
    TrackFormat { codec: Codec::Opus, width: 0, height: 0, channels: 2, codec_private: Vec::new() }
}

/// A video frame a second, by a clock that is late by some milliseconds.
fn video_frame(number: i64, late: i64) -> Frame {
    Frame { pts: ms(1_000 * number + late), keyframe: true, ..frame(number) }
}

/// All frames of the log, whoever captured them.
fn frames(dir: &Path) -> Vec<Frame> {
    let index = LogReader::open(dir).expect("reader").tracks.remove(0);
    let frames = index.frames().filter_map(|item| match item {
        LogItem::Frame(frame) => Some(frame),
        LogItem::Format(_) => None,
    });
    frames.collect()
}

/// The numbers of the video frames.
fn video_numbers(dir: &Path) -> Vec<i64> {
    frames(dir).iter().map(|frame| i64::from(frame.data[0])).collect()
}

/// The numbers of audio frames.
fn audio_numbers(frames: &[Frame]) -> Vec<i64> {
    frames.iter().map(|frame| i64::from_be_bytes(frame.data[..].try_into().expect("a number"))).collect()
}

#[test]
fn what_an_owner_that_stood_still_writes_late_hides_nothing_of_its_successors() {
    let dir = tempfile::tempdir().expect("dir");
    let (mut first, _) = open(dir.path(), 1);
    write(&mut first, 0..50);
    first.seal().expect("seal");
    let (mut second, _) = open(dir.path(), 2);
    write(&mut second, 80..150);
    second.seal().expect("seal");
    // For a moment, before it hears that others have the job.
    write(&mut first, 160..170);
    first.seal().expect("seal");
    let (mut third, _) = open(dir.path(), 3);
    write(&mut third, 165..220);
    third.seal().expect("seal");
    let (numbers, damaged) = read(dir.path());
    assert_eq!(damaged, 0);
    assert_eq!(numbers, (0..50).chain(80..150).chain(160..220).collect::<Vec<_>>());
}

#[test]
fn what_an_owner_has_in_the_pause_of_the_next_one_comes_before_the_third() {
    for (second_late, third_late) in [(0, 0), (-40, 40), (40, -40), (60, 60), (-60, -60)] {
        // The first one stands still, and has what its socket holds when it goes on. So does the second one, or it never goes on.
        for second_later in [340..360, 240..240] {
            let dir = tempfile::tempdir().expect("dir");
            for (epoch, before, later, late) in [
                (1, 0..200, 235..290, 0),
                (2, 150..240, second_later.clone(), second_late),
                (3, 310..400, 400..410, third_late),
            ] {
                let (mut log, _) = open(dir.path(), epoch);
                log.format(&opus()).expect("format");
                let (from, to) = (audio_frame(before.end, late).pts, audio_frame(later.start, late).pts);
                before.for_each(|number| log.frame(&audio_frame(number, late)).expect("frame"));
                if from < to {
                    log.gap(Gap { from, to, cause: GapCause::Network }).expect("gap");
                }
                later.for_each(|number| log.frame(&audio_frame(number, late)).expect("frame"));
                log.seal().expect("seal");
            }
            let frames = frames(dir.path());
            let context = format!("{second_late} ms, {third_late} ms, {second_later:?}");
            let wanted: Vec<i64> = (0..290).chain(310..410).collect();
            assert_eq!(audio_numbers(&frames), wanted, "{context}");
            assert!(frames.windows(2).all(|pair| pair[0].pts < pair[1].pts), "{context}");
        }
    }
}

#[test]
fn two_owners_side_by_side_are_not_read_by_turns() {
    let dir = tempfile::tempdir().expect("dir");
    // A frame a second, each a part: both owners have all from the tenth on, the second a moment later.
    for (epoch, numbers, late) in [(1, 0..30, 0), (2, 10..40, 30)] {
        let (mut log, _) = open(dir.path(), epoch);
        log.format(&vp8(320)).expect("format");
        for number in numbers {
            log.frame(&video_frame(number, late)).expect("frame");
            log.tick(ms(1_000 * number + 900)).expect("part");
        }
        log.seal().expect("seal");
    }
    assert_eq!(video_numbers(dir.path()), (0..40).collect::<Vec<_>>());
}

#[test]
fn slow_pictures_of_two_owners_whose_clocks_differ_are_there_once() {
    for late in [-290, -120, -30, 0, 30, 120, 290] {
        let dir = tempfile::tempdir().expect("dir");
        for (epoch, numbers, late) in [(1, 0..30, 0), (2, 10..40, late)] {
            let (mut log, _) = open(dir.path(), epoch);
            log.format(&vp8(320)).expect("format");
            for number in numbers {
                log.frame(&video_frame(number, late)).expect("frame");
                log.tick(ms(1_000 * number + late + 900)).expect("part");
            }
            log.seal().expect("seal");
        }
        assert_eq!(video_numbers(dir.path()), (0..40).collect::<Vec<_>>(), "{late} ms");
    }
}

#[test]
fn what_a_next_owner_loses_and_the_one_before_has_is_there_once() {
    for late in [-60, 0, 60] {
        let dir = tempfile::tempdir().expect("dir");
        let (mut first, _) = open(dir.path(), 1);
        let (mut second, _) = open(dir.path(), 2);
        for log in [&mut first, &mut second] {
            log.format(&opus()).expect("format");
        }
        (0..400).for_each(|number| first.frame(&audio_frame(number, 0)).expect("frame"));
        (200..250).for_each(|number| second.frame(&audio_frame(number, late)).expect("frame"));
        let gap = Gap { from: audio_frame(250, late).pts, to: audio_frame(300, late).pts, cause: GapCause::Network };
        second.gap(gap).expect("gap");
        (300..500).for_each(|number| second.frame(&audio_frame(number, late)).expect("frame"));
        first.seal().expect("seal");
        second.seal().expect("seal");
        assert_eq!(audio_numbers(&frames(dir.path())), (0..500).collect::<Vec<_>>(), "{late} ms");
    }
}

#[test]
fn where_two_owners_overlap_each_frame_is_there_once_however_far_their_clocks_are_apart() {
    for late in [-80, -59, -30, -5, 0, 5, 30, 80] {
        for begins in [120, 195] {
            let dir = tempfile::tempdir().expect("dir");
            for (epoch, numbers, late) in [(1, 0..200, 0), (2, begins..300, late)] {
                let (mut log, _) = open(dir.path(), epoch);
                log.format(&opus()).expect("format");
                for number in numbers {
                    log.frame(&audio_frame(number, late)).expect("frame");
                }
                log.seal().expect("seal");
            }
            let frames = frames(dir.path());
            let context = format!("{late} ms, from {begins}");
            assert_eq!(audio_numbers(&frames), (0..300).collect::<Vec<_>>(), "{context}");
            assert!(frames.windows(2).all(|pair| pair[0].pts < pair[1].pts), "{context}");
        }
    }
}
