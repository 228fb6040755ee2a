//! The log keeps its promises when it is cut, flipped, left open and continued.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;

use super::frames::LogItem;
use super::reader::{LogReader, TrackIndex, join};
use super::*;
use crate::model::ids::{SessionId, StreamId, TrackKind};
use crate::model::media::{ClockStart, Codec, Frame, GapCause, SenderReport};
use crate::model::time::NtpTime;
use crate::recording::spool::Spool;
use crate::runtime::journal::{LineFile, read_lines};

fn track(kind: TrackKind) -> TrackId {
    let session: SessionId = "s".parse().expect("id");
    TrackId { stream: StreamId::of_router(&session, "a"), kind }
}

pub(super) fn vp8(width: u32) -> TrackFormat {
    TrackFormat { codec: Codec::Vp8, width, height: 240, channels: 0, codec_private: Vec::new() }
}

pub(super) fn frame(number: i64) -> Frame {
    Frame {
        pts: MediaTime::from_millis(1000 + number * 40),
        duration: None,
        keyframe: number % 10 == 0,
        data: Bytes::from(vec![u8::try_from(number % 256).expect("small"); 50]),
    }
}

pub(super) const fn ms(ms: i64) -> MediaTime {
    MediaTime::from_millis(ms)
}

pub(super) fn open(dir: &Path, epoch: u32) -> (TrackLog, Opened) {
    let spool = Arc::new(Spool::open(dir, 1 << 30, 70).expect("spool"));
    TrackLog::open(dir, track(TrackKind::Video), Epoch(epoch), LogOptions::default(), spool).expect("open")
}

pub(super) fn write(log: &mut TrackLog, numbers: std::ops::Range<i64>) {
    log.format(&vp8(320)).expect("format");
    for number in numbers {
        log.frame(&frame(number)).expect("frame");
    }
}

pub(super) fn read(dir: &Path) -> (Vec<i64>, u64) {
    let index = LogReader::open(dir).expect("reader").tracks.remove(0);
    let mut frames = index.frames();
    let mut numbers = Vec::new();
    for item in frames.by_ref() {
        if let LogItem::Frame(read) = item {
            let number = (read.pts.as_millis() - 1000) / 40;
            assert_eq!(read, Frame { duration: None, ..frame(number) });
            numbers.push(number);
        }
    }
    (numbers, frames.damaged_parts())
}

fn track_dir(dir: &Path) -> std::path::PathBuf {
    dir.join(TRACKS).join(track(TrackKind::Video).to_string())
}

#[test]
fn what_was_written_is_read() {
    let dir = tempfile::tempdir().expect("dir");
    let (mut log, _) = open(dir.path(), 1);
    write(&mut log, 0..100);
    let sealed = log.seal().expect("seal").expect("segment").sync().expect("sync");
    assert_eq!(read(dir.path()), ((0..100).collect(), 0));
    let index = &LogReader::open(dir.path()).expect("reader").tracks[0];
    let bytes = std::fs::read(index.dir.join(&index.segments[0].file)).expect("segment");
    assert_eq!(index.segments[0].sealed.as_ref().expect("sealed").size, sealed.size);
    assert_eq!(bytes.len() as u64, sealed.size);
    assert!(index.segments[0].parts.iter().all(|p| p.to - p.from <= 600_000_000));
}

#[test]
fn the_first_frame_is_on_disk_at_once_and_the_others_within_half_a_second() {
    let dir = tempfile::tempdir().expect("dir");
    let (mut log, _) = open(dir.path(), 1);
    write(&mut log, 0..5);
    assert_eq!(read(dir.path()).0, [0]);
    log.tick(MediaTime::from_millis(1000 + 40 + 499)).expect("tick");
    assert_eq!(read(dir.path()).0, [0]);
    log.tick(MediaTime::from_millis(1000 + 40 + 500)).expect("tick");
    assert_eq!(read(dir.path()).0, [0, 1, 2, 3, 4]);
}

#[test]
fn where_a_clock_begins_is_in_the_index_and_between_two_parts() {
    let dir = tempfile::tempdir().expect("dir");
    let (mut log, _) = open(dir.path(), 1);
    log.clock_begins(ms(990)).expect("clock");
    write(&mut log, 0..20);
    log.clock_begins(ms(2500)).expect("clock");
    write(&mut log, 40..60);
    log.seal().expect("seal");
    let index = &LogReader::open(dir.path()).expect("reader").tracks[0];
    let start = |after, at, known| ClockStart { known: ms(known), after: ms(after), at: ms(at) };
    assert_eq!(index.clock_starts, [start(990, 990, 1000), start(1800, 2500, 2600)]);
    // Another worker's clock.
    drop(log);
    let (mut log, _) = open(dir.path(), 2);
    log.clock_begins(ms(5000)).expect("clock");
    write(&mut log, 110..120);
    log.seal().expect("seal");
    let index = &LogReader::open(dir.path()).expect("reader").tracks[0];
    assert_eq!(index.clock_starts, [start(990, 990, 1000), start(1800, 2500, 2600), start(3400, 5000, 5400)]);
}

#[test]
fn reports_of_a_clock_that_no_frame_was_written_of_are_in_no_line() {
    let dir = tempfile::tempdir().expect("dir");
    let (mut log, _) = open(dir.path(), 1);
    let report = |at| SenderReport { ntp: NtpTime(1), pts: ms(at), arrived: ms(at) };
    log.clock_begins(ms(990)).expect("clock");
    log.sender_report(report(995));
    log.clock_begins(ms(998)).expect("clock");
    log.sender_report(report(999));
    write(&mut log, 0..20);
    log.seal().expect("seal");
    let index = &LogReader::open(dir.path()).expect("reader").tracks[0];
    assert_eq!((index.clock_starts[0].at, index.reports.as_slice()), (ms(998), &[report(999)][..]));
}

#[test]
fn a_folder_with_counts_alone_is_removed_and_one_with_media_stays() {
    let dir = tempfile::tempdir().expect("dir");
    let spool = Arc::new(Spool::open(dir.path(), 1 << 30, 70).expect("spool"));
    let archive = "00000000-0000-4000-8000-000000000001".parse().expect("id");
    let options = LogOptions::default();
    let (mut log, _) =
        TrackLog::open(&spool.archive_dir(archive), track(TrackKind::Video), Epoch(1), options, Arc::clone(&spool))
            .expect("log");
    log.stats(&TrackStats { keyframes_requested: 1, ..TrackStats::default() });
    log.seal().expect("seal");
    let index = track_dir(&spool.archive_dir(archive)).join(INDEX);
    assert!(std::fs::metadata(index).expect("index").len() > 0);
    assert!(spool.remove_without_media(archive).expect("read"), "nothing was captured");
    assert!(!spool.archive_dir(archive).exists());
    let (mut log, _) = TrackLog::open(
        &spool.archive_dir(archive),
        track(TrackKind::Video),
        Epoch(1),
        LogOptions::default(),
        Arc::clone(&spool),
    )
    .expect("log");
    write(&mut log, 0..1);
    assert!(!spool.remove_without_media(archive).expect("read"));
    assert!(spool.archive_dir(archive).exists());
}

#[test]
fn clocks_of_an_earlier_epoch_that_come_from_the_store_later_are_in_the_order_of_time() {
    let part = |n: u32, from: i64, clock: Option<i64>| Record::Part {
        n,
        at: 0,
        len: 1,
        from: ms(from),
        to: ms(from + 500),
        frames: 1,
        key: None,
        crc: 0,
        stats: TrackStats::default(),
        reports: Vec::new(),
        clock: clock.map(ms),
    };
    let first = [part(1, 1000, Some(1000)), part(1, 1500, None)];
    let second = [part(7, 5000, Some(4900)), part(7, 5500, None)];
    let third = [part(9, 8000, Some(7800))];
    let starts = |lines: [&[Record]; 3]| {
        let index = TrackIndex::of_records(track(TrackKind::Video), Path::new("nowhere"), lines.concat());
        index.clock_starts.iter().map(|start| (start.after.as_millis(), start.at.as_millis())).collect::<Vec<_>>()
    };
    assert_eq!(starts([&first, &second, &third]), [(1000, 1000), (2000, 4900), (6000, 7800)]);
    assert_eq!(starts([&first, &third, &second]), [(1000, 1000), (4900, 4900), (6000, 7800)]);
    assert_eq!(starts([&second, &first, &third]), [(1000, 1000), (4900, 4900), (6000, 7800)]);
}

#[test]
fn a_new_format_begins_a_new_segment() {
    let dir = tempfile::tempdir().expect("dir");
    let (mut log, _) = open(dir.path(), 1);
    write(&mut log, 0..20);
    assert!(log.format(&vp8(640)).expect("format").is_some());
    log.frame(&frame(20)).expect("frame");
    log.seal().expect("seal");
    let index = &LogReader::open(dir.path()).expect("reader").tracks[0];
    let widths: Vec<u32> = index.segments.iter().map(|s| s.format.width).collect();
    assert_eq!(widths, [320, 640]);
    let formats = index.frames().filter(|i| matches!(i, LogItem::Format(_))).count();
    assert_eq!(formats, 2);
}

#[test]
fn a_later_epoch_goes_on_beside_what_an_earlier_one_left_open() {
    let dir = tempfile::tempdir().expect("dir");
    let (mut log, _) = open(dir.path(), 1);
    write(&mut log, 0..50);
    drop(log);
    let survived = read(dir.path()).0.len();
    assert!(survived >= 37, "{survived}: more than half a second is lost");
    let (mut log, opened) = open(dir.path(), 2);
    assert_eq!(opened.sealed.len(), 1);
    assert!(opened.end.is_some());
    // Half of it was there already: no frame is there twice.
    write(&mut log, 30..80);
    log.seal().expect("seal");
    let (numbers, damaged) = read(dir.path());
    assert_eq!(damaged, 0);
    assert!(numbers.windows(2).all(|w| w[0] < w[1]), "{numbers:?}");
    assert_eq!(numbers.last(), Some(&79));
}

#[test]
fn a_full_spool_is_a_gap_of_the_storage_and_writing_goes_on_later() {
    let dir = tempfile::tempdir().expect("dir");
    let spool = Arc::new(Spool::open(dir.path(), 6000, 70).expect("spool"));
    let id = track(TrackKind::Video);
    let (mut log, _) =
        TrackLog::open(dir.path(), id, Epoch(1), LogOptions::default(), Arc::clone(&spool)).expect("open");
    log.format(&vp8(320)).expect("format");
    let failures = (0..300).filter(|n| log.frame(&frame(*n)).is_err()).count();
    assert!(failures > 0, "the quota was never reached");
    assert!(!spool.admits());
    let other = Arc::new(Spool::open(dir.path(), 1 << 30, 70).expect("spool"));
    log.spool = other;
    for number in 300..400 {
        log.frame(&frame(number)).expect("frame");
    }
    log.seal().expect("seal");
    let index = &LogReader::open(dir.path()).expect("reader").tracks[0];
    assert!(index.gaps.iter().any(|g| g.cause == GapCause::Storage && g.to > g.from), "{:?}", index.gaps);
    assert_eq!(read(dir.path()).0.last(), Some(&399));
}

#[test]
fn cut_at_any_byte_the_log_loses_no_more_than_what_was_cut() {
    let source = tempfile::tempdir().expect("dir");
    let (mut log, _) = open(source.path(), 1);
    write(&mut log, 0..60);
    drop(log);
    let whole = read(source.path()).0;
    let index = std::fs::read(track_dir(source.path()).join(INDEX)).expect("index");
    let name = "e0001-000001.mkv";
    let media = std::fs::read(track_dir(source.path()).join(name)).expect("segment");
    let copy = |index: &[u8], media: &[u8]| {
        let dir = tempfile::tempdir().expect("dir");
        let at = track_dir(dir.path());
        std::fs::create_dir_all(&at).expect("dir");
        std::fs::write(at.join(INDEX), index).expect("index");
        std::fs::write(at.join(name), media).expect("segment");
        dir
    };
    for cut in 0..index.len() {
        let dir = copy(&index[..cut], &media);
        let (_, opened) = open(dir.path(), 2);
        let (numbers, damaged) = read(dir.path());
        assert_eq!((numbers.as_slice(), damaged), (&whole[..numbers.len()], 0), "index cut at {cut}");
        assert_eq!(opened.end.is_some(), !numbers.is_empty());
    }
    for cut in (0..media.len()).step_by(7) {
        let dir = copy(&index, &media[..cut]);
        open(dir.path(), 2);
        let (numbers, damaged) = read(dir.path());
        assert!(numbers.is_empty() || damaged == 0);
        assert_eq!(numbers, whole[..numbers.len()], "media cut at {cut}");
    }
}

#[test]
fn a_damaged_line_costs_itself_and_not_what_follows() {
    let dir = tempfile::tempdir().expect("dir");
    let (mut log, _) = open(dir.path(), 1);
    write(&mut log, 0..100);
    drop(log);
    let whole = read(dir.path()).0;
    let path = track_dir(dir.path()).join(INDEX);
    let mut index = std::fs::read(&path).expect("index");
    // In the third line: the second part.
    let third = index.iter().enumerate().filter(|(_, b)| **b == b'\n').nth(1).expect("lines").0 + 10;
    index[third] ^= 1;
    std::fs::write(&path, index).expect("index");
    let numbers = read(dir.path()).0;
    assert!(numbers.len() + 14 >= whole.len() && numbers.len() < whole.len(), "{numbers:?}");
    assert_eq!(numbers.last(), whole.last());
    let (_, opened) = open(dir.path(), 2);
    assert_eq!(opened.sealed.len(), 1);
    assert_eq!(read(dir.path()).0, numbers);
}

#[test]
fn lines_are_added_while_others_open_the_same_index() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join(INDEX);
    let (file, _) = LineFile::open::<u32>(&path).expect("open");
    std::thread::scope(|scope| {
        scope.spawn(|| (0..2000_u32).for_each(|n| file.append(&n).expect("append")));
        // Whoever opens it cuts off what is torn: never a line that is just being added.
        scope.spawn(|| {
            for n in 10_000..10_200_u32 {
                LineFile::open::<u32>(&path).expect("open").0.append(&n).expect("append");
            }
        });
    });
    let (lines, _) = read_lines::<u32>(&path, 0).expect("read");
    assert_eq!(lines.iter().filter(|n| **n < 10_000).copied().collect::<Vec<_>>(), (0..2000).collect::<Vec<_>>());
    assert_eq!(lines.len(), 2200);
}

#[test]
fn a_disk_that_refuses_is_a_gap_and_the_quota_is_not_charged_for_it() {
    let dir = tempfile::tempdir().expect("dir");
    let (mut log, _) = open(dir.path(), 1);
    write(&mut log, 0..20);
    log.seal().expect("seal");
    let used = log.spool.used();
    // A file in the way of the next segment, as a disk that does not let one be made.
    let way = track_dir(dir.path()).join("e0001-000002.mkv");
    std::fs::write(&way, b"x").expect("file");
    let failures = (20..60).filter(|n| log.frame(&frame(*n)).is_err()).count();
    assert_eq!(failures, 1);
    assert!(log.spool.used() < used + 3000, "a part that was not written is charged");
    assert_eq!(std::fs::read(&way).expect("file"), b"x", "nothing is written over");
    write(&mut log, 60..100);
    log.seal().expect("seal");
    let gaps = &LogReader::open(dir.path()).expect("reader").tracks[0].gaps;
    let missing: i64 = gaps.iter().map(|g| g.to - g.from).sum();
    let (numbers, _) = read(dir.path());
    let dropped = 100 - i64::try_from(numbers.len()).expect("few");
    assert!((missing - dropped * 40_000_000).abs() <= 40_000_000, "{dropped} frames dropped, gaps {gaps:?}");
    assert_eq!(numbers.last(), Some(&99));
}

#[test]
fn what_a_dying_machine_left_in_the_index_alone_is_not_there() {
    let dir = tempfile::tempdir().expect("dir");
    let (mut log, _) = open(dir.path(), 1);
    write(&mut log, 0..60);
    drop(log);
    let path = track_dir(dir.path()).join("e0001-000001.mkv");
    let mut media = std::fs::read(&path).expect("segment");
    // The file has its length, and zeros where its last half should be.
    let half = media.len() / 2;
    media[half..].fill(0);
    std::fs::write(&path, media).expect("segment");
    let (_, opened) = open(dir.path(), 2);
    let (numbers, damaged) = read(dir.path());
    assert_eq!(damaged, 0);
    let last = MediaTime::from_millis(1000 + numbers.last().expect("frames") * 40);
    let end = opened.end.expect("media");
    assert!(end > last && end - last <= 40_000_000, "{end:?} {last:?}");
}

#[test]
fn what_an_index_from_the_store_names_and_its_machine_never_sent_is_not_there() {
    let dir = tempfile::tempdir().expect("dir");
    let (mut log, _) = open(dir.path(), 1);
    write(&mut log, 0..50);
    log.seal().expect("seal").expect("segment").sync().expect("sync");
    write(&mut log, 50..100);
    drop(log);
    // The open segment was on the machine that is lost; the index that came with the sealed one names parts of it.
    let index = TrackIndex::open(&track_dir(dir.path()), track(TrackKind::Video)).expect("index");
    std::fs::remove_file(index.dir.join(&index.segments[1].file)).expect("removed");
    let sealed_to = index.segments[0].parts.last().expect("parts").to;
    assert!(index.end().expect("end") > sealed_to + 500_000_000);
    let log = LogReader::open_present(dir.path()).expect("log");
    assert_eq!(log.tracks[0].end(), Some(sealed_to));
    // The gap of the next owner begins there.
    let (_, opened) = open(dir.path(), 2);
    assert_eq!(opened.end, Some(sealed_to));
}

#[test]
fn a_run_of_segments_plays_with_ordinary_tools() {
    // G.711, for which any bytes are right; the other codecs are looked at in the tests with real media.
    let dir = tempfile::tempdir().expect("dir");
    let (mut log, _) = open(dir.path(), 1);
    let format = TrackFormat { codec: Codec::Pcmu, width: 0, height: 0, channels: 1, codec_private: Vec::new() };
    log.format(&format).expect("format");
    for number in 0..100 {
        if number == 50 {
            log.seal().expect("seal");
        }
        log.frame(&Frame { keyframe: true, ..frame(number) }).expect("frame");
    }
    log.seal().expect("seal");
    let index = TrackIndex::open(&track_dir(dir.path()), track(TrackKind::Video)).expect("index");
    let path = dir.path().join("run.webm");
    let mut file = std::fs::File::create(&path).expect("file");
    join(&index, 0..2, &mut file).expect("join");
    for (file, packets) in [(path, "100"), (track_dir(dir.path()).join("e0001-000002.mkv"), "50")] {
        let out = std::process::Command::new("ffprobe")
            .args([
                "-v",
                "error",
                "-count_packets",
                "-show_entries",
                "stream=codec_name,nb_read_packets",
                "-of",
                "csv=p=0",
            ])
            .arg(&file)
            .output()
            .expect("ffprobe is installed by `make setup`");
        assert_eq!(String::from_utf8_lossy(&out.stdout).trim(), format!("pcm_mulaw,{packets}"));
        assert_eq!(String::from_utf8_lossy(&out.stderr), "");
    }
}

proptest! {
    #[test]
    fn flipped_bits_never_panic_and_never_lie(flips in proptest::collection::vec((any::<prop::sample::Index>(), 0_u8..8, any::<bool>()), 1..6)) {
        let dir = tempfile::tempdir().expect("dir");
        let (mut log, _) = open(dir.path(), 1);
        write(&mut log, 0..40);
        log.seal().expect("seal");
        let at = track_dir(dir.path());
        for (place, bit, in_index) in flips {
            let path = at.join(if in_index { INDEX } else { "e0001-000001.mkv" });
            let mut bytes = std::fs::read(&path).expect("file");
            let place = place.index(bytes.len());
            bytes[place] ^= 1 << bit;
            std::fs::write(&path, bytes).expect("file");
        }
        open(dir.path(), 2);
        let (numbers, _) = read(dir.path());
        prop_assert!(numbers.windows(2).all(|w| w[0] < w[1]));
    }

    #[test]
    fn no_bytes_make_the_part_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(mkv::read_part(&bytes).is_err() || bytes.len() >= mkv::CLUSTER_HEADER);
    }
}
