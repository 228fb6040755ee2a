//! Tables of what a log names and has not: gaps between the frames of a part, lost parts, and an end that its machine has taken along.

use std::path::Path;

use super::coverage::{TrackCoverage, correct, of_log, of_lost_histories};
use super::coverage_tests::{AUDIO, VIDEO, announce, ended, epoch, gone, joined, live, muted, router, s, stream};
use crate::model::archive_options::ArchiveOptions;
use crate::model::ids::{Epoch, StreamId, TrackId};
use crate::model::media::{Codec, Gap, GapCause, TrackFormat, TrackStats};
use crate::recording::Record;
use crate::recording::history::{Event, EventKind};
use crate::recording::reader::TrackIndex;
use crate::rtp::clock::Correction;

fn part(at: u64, from: f64, to: f64) -> Record {
    let (stats, reports) = (TrackStats::default(), Vec::new());
    Record::Part {
        n: 1,
        at,
        len: 1,
        from: s(from),
        to: s(to),
        frames: 9,
        key: None,
        crc: 0,
        stats,
        reports,
        clock: None,
    }
}

fn gap(from: f64, to: f64, cause: GapCause) -> Gap {
    Gap { from: s(from), to: s(to), cause }
}

#[test]
fn a_gap_between_the_frames_of_one_part_is_no_part_of_the_log() {
    let format = TrackFormat { codec: Codec::Pcmu, width: 0, height: 0, channels: 1, codec_private: Vec::new() };
    let (lost, between) = (gap(1.1, 1.3, GapCause::Network), gap(2.2, 2.4, GapCause::Worker));
    let records = vec![
        Record::Segment { n: 1, epoch: Epoch(1), file: "e.mkv".to_owned(), header: 0, format },
        part(0, 0.1, 1.0),
        part(1, 1.0, 2.0),
        part(2, 2.0, 59.9),
        Record::Gap(lost),
        // The next owner did not know how far the part goes.
        Record::Gap(between),
    ];
    let id = TrackId { stream: stream(), kind: AUDIO };
    let tracks = [TrackIndex::of_records(id, Path::new("log"), records)];
    let events = [announce(0.0, &[AUDIO]), live(0.1), ended(60.0)];
    let coverage = of_log(&tracks, &events, &ArchiveOptions::default(), None);
    assert_eq!(coverage[&id].gaps, [lost]);
}

#[test]
fn gaps_come_at_the_times_that_the_files_have() {
    // The sender's reports come behind 20 s, and move the clock: by 0.1 s before, and 0.3 s later.
    let knots = vec![(s(1.0), -100_000_000), (s(20.0), -100_000_000), (s(21.0), 300_000_000)];
    let id = |kind| TrackId { stream: stream(), kind };
    let corrections = [(id(VIDEO), Correction { knots, used: 9, refused: 0 })].into();
    let gaps =
        vec![gap(0.0, 1.0, GapCause::Worker), gap(1.0, 1.2, GapCause::Network), gap(5.0, 25.0, GapCause::Router)];
    let covered = TrackCoverage { gaps, ..TrackCoverage::default() };
    let mut coverage = [(id(AUDIO), covered.clone()), (id(VIDEO), covered.clone())].into();
    correct(&mut coverage, &corrections);
    let wanted = [gap(-0.1, 0.9, GapCause::Worker), gap(0.9, 1.1, GapCause::Network), gap(4.9, 25.3, GapCause::Router)];
    assert_eq!((&*coverage[&id(AUDIO)].gaps, &*coverage[&id(VIDEO)].gaps), (&*covered.gaps, &wanted[..]));
}

#[test]
fn the_end_of_a_log_that_its_machine_has_taken_along_is_missing_until_the_capture_had_ended() {
    let format = TrackFormat { codec: Codec::Pcmu, width: 0, height: 0, channels: 1, codec_private: Vec::new() };
    let records = vec![
        Record::Segment { n: 1, epoch: Epoch(1), file: "e.mkv".to_owned(), header: 0, format },
        part(0, 0.1, 20.0),
        part(1, 20.0, 42.0),
    ];
    let id = TrackId { stream: stream(), kind: AUDIO };
    let tracks = [TrackIndex::of_records(id, Path::new("log"), records)];
    let lost = [announce(0.0, &[AUDIO]), live(0.1)];
    let there = [announce(0.0, &[AUDIO]), live(0.1), ended(42.3)];
    for (name, events, ended_at, gaps) in [
        ("the catalog knows when it had ended", &lost[..], Some(s(60.0)), vec![gap(42.0, 60.0, GapCause::Worker)]),
        ("an earlier version did not note that", &lost, None, Vec::new()),
        ("nothing is lost: the catalog was told later", &there, Some(s(43.0)), Vec::new()),
    ] {
        let coverage = of_log(&tracks, events, &ArchiveOptions::default(), ended_at);
        assert_eq!(coverage[&id].gaps, gaps, "{name}");
    }
}

#[test]
fn the_end_of_a_history_that_its_machine_has_taken_along_is_told_without_a_stream() {
    let nobody = vec![epoch(0.1, 1), joined(0.2)];
    let left = vec![epoch(0.1, 1), joined(0.2), announce(0.3, &[VIDEO]), gone(30.0)];
    let there = vec![epoch(0.1, 1), joined(0.2), announce(0.3, &[VIDEO])];
    let whole = vec![epoch(0.1, 1), joined(0.2), announce(0.3, &[VIDEO]), gone(30.0), ended(60.0)];
    for (name, events, ended_at, missing_ms) in [
        ("streams may have come behind the last that is known", &left, Some(s(60.0)), Some(30_000)),
        ("those that are known are told with their names", &there, Some(s(60.0)), None),
        ("its machine has sent all", &whole, Some(s(60.2)), None),
        ("it ended at once", &left, Some(s(30.9)), None),
        ("an earlier version did not note that", &nobody, None, None),
    ] {
        let told = of_lost_histories(&[], events, &ArchiveOptions::default(), ended_at);
        let told: Vec<_> = told.iter().map(|one| (one.stream_id, one.kind, one.cause, one.duration_ms)).collect();
        let wanted = missing_ms
            .into_iter()
            .flat_map(|ms| [AUDIO, VIDEO].map(|kind| (StreamId::UNKNOWN, kind, GapCause::Worker, ms)));
        assert_eq!(told, wanted.collect::<Vec<_>>(), "{name}");
    }
}

#[test]
fn frames_that_the_log_names_and_that_are_gone_are_missing_though_the_history_goes_on() {
    let format = TrackFormat { codec: Codec::Pcmu, width: 0, height: 0, channels: 1, codec_private: Vec::new() };
    let log = |kind, seal: Option<u64>| {
        let mut records = vec![
            Record::Segment { n: 1, epoch: Epoch(1), file: "e.mkv".to_owned(), header: 0, format: format.clone() },
            part(0, 0.1, 20.0),
            part(1, 20.0, 42.0),
            part(2, 42.0, 43.5),
        ];
        records.extend(seal.map(|size| Record::Sealed { n: 1, size, sha256: String::new() }));
        TrackIndex::of_records(TrackId { stream: stream(), kind }, Path::new("log"), records)
    };
    let tracks = [log(AUDIO, None), log(VIDEO, Some(1))];
    let events = [announce(0.0, &[AUDIO, VIDEO]), live(0.1), ended(43.5)];
    let coverage = of_log(&tracks, &events, &ArchiveOptions::default(), None);
    let gaps = |kind| coverage[&TrackId { stream: stream(), kind }].gaps.clone();
    assert_eq!((gaps(AUDIO), gaps(VIDEO)), (vec![], vec![gap(20.0, 43.5, GapCause::Worker)]));
}

#[test]
fn what_an_owner_finds_when_it_joins_is_missing_since_the_last_that_anybody_saw() {
    use GapCause::{Router, Worker};
    let unseen = |at, since, cause, seen: Option<f64>| {
        let kind = EventKind::Unseen { since: s(since), cause, owner_seen: seen.map(s) };
        Event { at: s(at), kind }
    };
    let late = |cause| vec![epoch(0.1, 1), unseen(30.0, -600.0, cause, None), joined(30.0)];
    let with = |mut events: Vec<Event>, more: &[Event]| {
        events.extend_from_slice(more);
        events
    };
    let found = [announce(30.1, &[VIDEO]), live(30.2), ended(60.0)];
    let comes = [announce(33.0, &[VIDEO]), live(33.1), ended(60.0)];
    let seen_before =
        [epoch(0.1, 1), joined(0.2), epoch(29.0, 2), unseen(30.0, -600.0, Worker, Some(28.5)), joined(30.0)];
    let between = [epoch(0.1, 1), joined(0.2), epoch(29.0, 2), unseen(30.0, 12.0, Worker, Some(12.0)), joined(30.0)];
    let away = [epoch(0.1, 1), joined(0.2), router(12.0, true), router(30.0, false)];
    let lost_before = [epoch(29.0, 2), unseen(30.0, 0.0, Worker, None), joined(30.0)];
    let lost_soon = [epoch(5.0, 2), unseen(5.0, -0.001, Worker, Some(2.5)), joined(5.0)];
    for (name, events, known, unknown) in [
        ("it finds a stream", with(late(Worker), &found), Some((-600.0, Worker)), None),
        ("the router could not be reached", with(late(Router), &found), Some((-600.0, Router)), None),
        ("it finds nobody", with(late(Worker), &comes), None, Some((630_000, Worker))),
        ("another owner was there all the time", with(seen_before.to_vec(), &comes), None, None),
        ("nobody was there between two owners", with(between.to_vec(), &found), Some((12.0, Worker)), None),
        ("nobody came between two owners", with(between.to_vec(), &comes), None, Some((18_000, Worker))),
        ("somebody came while the router was away", with(away.to_vec(), &found), Some((12.0, Router)), None),
        ("an owner before was lost", with(lost_before.to_vec(), &found), Some((0.0, Worker)), None),
        ("one was lost soon, and nobody is there", with(lost_soon.to_vec(), &comes), None, Some((5_001, Worker))),
    ] {
        let coverage = of_log(&[], &events, &ArchiveOptions::default(), None);
        let gaps = &coverage[&TrackId { stream: stream(), kind: VIDEO }].gaps;
        assert_eq!(
            gaps.first().filter(|gap| gap.from < s(29.0)).map(|gap| (gap.from, gap.cause)),
            known.map(|(from, cause)| (s(from), cause)),
            "{name}"
        );
        let told = of_lost_histories(&[], &events, &ArchiveOptions::default(), None);
        let told: Vec<_> = told.iter().map(|one| (one.kind, one.duration_ms, one.cause)).collect();
        let wanted = unknown.into_iter().flat_map(|(ms, cause)| [AUDIO, VIDEO].map(|kind| (kind, ms, cause)));
        assert_eq!(told, wanted.collect::<Vec<_>>(), "{name}");
    }
}

#[test]
fn a_track_that_was_switched_off_when_its_owner_died_is_missing_since_that_was_seen_last() {
    let seen = |at, seen| {
        let kind = EventKind::Unseen { since: s(0.0), cause: GapCause::Worker, owner_seen: Some(s(seen)) };
        Event { at: s(at), kind }
    };
    let events = [
        epoch(0.0, 1),
        joined(0.1),
        announce(0.1, &[AUDIO]),
        live(0.2),
        muted(1.0, AUDIO, true),
        epoch(50.0, 2),
        seen(50.1, 46.0),
        joined(50.1),
        announce(50.2, &[AUDIO]),
        muted(50.2, AUDIO, true),
        live(50.4),
        ended(60.0),
    ];
    let gaps = &of_log(&[], &events, &ArchiveOptions::default(), None)[&TrackId { stream: stream(), kind: AUDIO }].gaps;
    let lost: Vec<_> = gaps.iter().filter(|gap| gap.cause.is_loss()).map(|gap| (gap.from, gap.to)).collect();
    assert_eq!(lost, [(s(46.0), s(50.2))], "{gaps:?}");
}
