//! Corrections by sender reports.

use super::*;
use crate::model::ids::{SessionId, StreamId, TrackKind};
use crate::model::time::{NtpTime, Wallclock};
use proptest::prelude::*;

const T0: i64 = 1_795_000_000_000_000;

fn ms(ms: i64) -> MediaTime {
    MediaTime::from_millis(ms)
}

fn track(kind: TrackKind) -> TrackId {
    let session: SessionId = "s".parse().expect("id");
    TrackId { stream: StreamId::of_router(&session, "a"), kind }
}

/// A report that was right at `at_ms`, of a track whose provisional clock is off by `off_ms`.
fn report(at_ms: i64, off_ms: i64, delay_ms: i64) -> SenderReport {
    SenderReport {
        ntp: NtpTime::from_wallclock(Wallclock(T0 + at_ms * 1000)),
        pts: ms(at_ms + off_ms),
        arrived: ms(at_ms + delay_ms),
    }
}

/// All reports of a track.
fn all_of<'a>(track: TrackId, reports: &'a [SenderReport], starts: &'a [ClockStart]) -> TrackReports<'a> {
    TrackReports { track, reports, starts }
}

/// Corrections of clocks that never began anew.
fn of(tracks: &[(TrackId, &[SenderReport])]) -> BTreeMap<TrackId, Correction> {
    let tracks = tracks.iter().map(|(track, reports)| all_of(*track, reports, &[]));
    corrections(&tracks.collect::<Vec<_>>())
}

#[test]
fn reports_bring_two_tracks_into_step() {
    let audio: Vec<_> = (0..20).map(|i| report(i * 1000, 0, 30 + i % 3)).collect();
    let video: Vec<_> = (0..20).map(|i| report(i * 1000, 80, 30 + i % 5)).collect();
    let (a, v) = (track(TrackKind::Audio), track(TrackKind::Video));
    let found = of(&[(a, &audio), (v, &video)]);
    let apart = found[&v].apply(ms(5080)) - found[&a].apply(ms(5000));
    assert!(apart.abs() < MS, "{apart}");
}

#[test]
fn a_wrong_report_is_refused_and_counted() {
    let mut reports: Vec<_> = (0..20).map(|i| report(i * 1000, 10, 30)).collect();
    reports[7].pts = ms(400_000);
    let found = &of(&[(track(TrackKind::Video), &reports)])[&track(TrackKind::Video)];
    assert_eq!((found.used, found.refused), (19, 1));
    assert!((found.at(ms(7000)) - (30 - 10) * MS).abs() < MS);
}

#[test]
fn a_clock_that_drifts_is_followed_for_half_an_hour() {
    // 100 ppm slow: after 1,800 s the provisional clock is 180 ms behind.
    let reports: Vec<_> = (0..1800)
        .map(|i| {
            let mut r = report(i * 1000, 0, 20);
            r.pts = MediaTime(i * 1_000_000_000 - i * 100_000);
            r
        })
        .collect();
    let found = &of(&[(track(TrackKind::Audio), &reports)])[&track(TrackKind::Audio)];
    for i in [0, 500, 1000, 1799_i64] {
        let right = i * 1_000_000_000 + 20 * MS;
        let error = found.apply(MediaTime(i * 1_000_000_000 - i * 100_000)).0 - right;
        assert!(error.abs() < 10 * MS, "at {i} s: {error} ns");
    }
}

#[test]
fn a_step_of_a_clock_is_followed_at_once_and_not_smeared() {
    // Anchored anew after 60 s, 150 ms later than before; and back after 120 s.
    for height in [150, -150] {
        let off = |i: i64| if (60..120).contains(&i) { height } else { 0 };
        let reports: Vec<_> = (0..180).map(|i| report(i * 1000, off(i), 20 + i * 7 % 9)).collect();
        let found = &of(&[(track(TrackKind::Audio), &reports)])[&track(TrackKind::Audio)];
        for i in (0..180).filter(|i| (i % 60) > 1 || *i < 2) {
            let right = (i * 1000 + 20) * MS;
            let error = found.apply(ms(i * 1000 + off(i))).0 - right;
            assert!(error.abs() < 5 * MS, "{height}: at {i} s: {error} ns");
        }
    }
}

/// Of a browser on a busy machine that lost 150 ms of its sound: what its reports say to add, in ms.
const LOST_SOUND: [i64; 20] = [-9, -10, -1, -5, -12, 8, -8, -4, 1, -8, -5, -4, 143, 135, 137, 146, 148, 152, 150, 168];

#[test]
fn sound_that_a_sender_lost_and_does_not_count_is_a_step_though_its_edge_is_not_the_highest() {
    let reports: Vec<_> = (0..).zip(LOST_SOUND).map(|(i, add)| report(i * 1000, -add, 20)).collect();
    let found = &of(&[(track(TrackKind::Audio), &reports)])[&track(TrackKind::Audio)];
    for (i, add) in (0..).zip(LOST_SOUND) {
        let right = if i < 12 { -5 } else { 148 };
        let off = found.at(ms(i * 1000 - add)) / MS - 20 - right;
        assert!(off.abs() <= 15, "at {i} s: {off} ms");
    }
}

#[test]
fn after_a_long_silence_the_clock_may_be_another_one() {
    let off = |i: i64| if i < 30 { 0 } else { 30 };
    let seconds = (0..30).chain(90..92);
    let reports: Vec<_> = seconds.map(|i| report(i * 1000, off(i), 20)).collect();
    let found = &of(&[(track(TrackKind::Audio), &reports)])[&track(TrackKind::Audio)];
    for i in [0, 10, 29, 85, 90, 91, 100] {
        let error = found.apply(ms(i * 1000 + off(i))).0 - (i * 1000 + 20) * MS;
        assert!(error.abs() < 2 * MS, "at {i} s: {error} ns");
    }
}

/// Each clock has two reports, and is off by less than a step of one clock, or by more.
#[test]
fn a_clock_that_begins_anew_has_the_correction_of_its_own_reports() {
    for height in [15, -15, 300, -300] {
        let off = |second: i64| if second < 4 { 0 } else { height };
        let reports: Vec<_> = [1, 2, 6, 7].into_iter().map(|at| report(at * 1000, off(at), 20)).collect();
        let at = ms(5000 + height);
        let starts = [ClockStart { known: at, after: ms(2500), at }];
        let one = all_of(track(TrackKind::Audio), &reports, &starts);
        let found = &corrections(&[one])[&track(TrackKind::Audio)];
        assert_eq!((found.used, found.refused), (4, 0));
        for at in [0, 1000, 2000, 2500, 5000, 5500, 6000, 7000, 9000] {
            let right = (at + 20) * MS;
            let error = found.apply(ms(at + off(at / 1000))).0 - right;
            assert!(error.abs() < MS, "{height}: at {at}: {error} ns");
        }
    }
}

/// Of three reports one may be wrong.
#[test]
fn a_wrong_report_at_a_clock_s_beginning_is_refused() {
    let starts = [ClockStart { known: ms(1000), after: ms(1000), at: ms(1000) }];
    let right = (2..8).map(|at| report(at * 1000, 0, 20));
    for (pts, count) in [(9000, 6), (9000, 2), (6500, 3)] {
        let wrong = SenderReport { pts: ms(pts), ..report(1500, 0, 20) };
        let reports: Vec<_> = std::iter::once(wrong).chain(right.clone().take(count)).collect();
        let one = all_of(track(TrackKind::Video), &reports, &starts);
        let found = &corrections(&[one])[&track(TrackKind::Video)];
        assert_eq!((found.used, found.refused), (count, 1), "{pts} of {count}");
        for at in [1000, 3000, 8000] {
            assert!((found.at(ms(at)) - 20 * MS).abs() < MS, "{pts} of {count}: at {at}");
        }
    }
}

/// A clock may be anchored late where no start of it is noted: what all reports say from then on is right.
#[test]
fn a_leap_of_seconds_is_followed() {
    for height in [4250, -4250] {
        let reports: Vec<_> = (0..60).map(|at| report(at * 1000, if at < 20 { 0 } else { height }, 20)).collect();
        let found = &of(&[(track(TrackKind::Audio), &reports)])[&track(TrackKind::Audio)];
        for (at, off) in [(0, 0), (15_000, 0), (50_000, height)] {
            let error = found.apply(ms(at + off)) - ms(at + 20);
            assert!(error.abs() < MS, "{height}: at {at}: {error} ns");
        }
    }
}

#[test]
fn a_router_whose_clock_is_set_moves_no_track() {
    for set in [10_000, -10_000] {
        let shifted = |at: i64| SenderReport {
            ntp: NtpTime::from_wallclock(Wallclock(T0 + (at * 1000 + set) * 1000)),
            ..report(at * 1000, 0, 20)
        };
        let reports: Vec<_> = (0..40).map(|at| if at < 22 { report(at * 1000, 0, 20) } else { shifted(at) }).collect();
        let found = &of(&[(track(TrackKind::Audio), &reports)])[&track(TrackKind::Audio)];
        for at in [0, 21_000, 25_000, 39_000] {
            assert!((found.at(ms(at)) - 20 * MS).abs() < MS, "{set}: at {at}: {} ns", found.at(ms(at)));
        }
    }
}

#[test]
fn a_stray_report_changes_nothing() {
    let mut reports: Vec<_> = (0..60).map(|at| report(at * 1000, -4000, 20)).collect();
    reports[20] = report(20_000, -500, 20);
    let found = &of(&[(track(TrackKind::Audio), &reports)])[&track(TrackKind::Audio)];
    assert_eq!((found.used, found.refused), (59, 1));
    assert!((found.at(ms(30_000)) - 4020 * MS).abs() < MS);
}

/// Its first packet came seconds late, after a pause. A composer waits for two or three reports.
#[test]
fn a_clock_that_is_anchored_seconds_late_is_followed_from_its_first_reports_on() {
    for (off, count) in [(1970, 2), (4000, 3)] {
        let before = (0..15).map(|at| report(at * 1000, 0, 20));
        let first = 20_000 + off;
        let behind = (0..count).map(|n| report(first + 500 + n * 1000, off, 20));
        let reports: Vec<_> = before.chain(behind).collect();
        let starts = [ClockStart { known: ms(first), after: ms(15_000), at: ms(first) }];
        let found = &corrections(&[all_of(track(TrackKind::Audio), &reports, &starts)])[&track(TrackKind::Audio)];
        for at in [20_000, 22_000, 30_000] {
            let error = found.apply(ms(at + off)) - ms(at + 20);
            assert!(error.abs() < MS, "{off}, at {at}: {error} ns");
        }
    }
}

/// Its frames end at 60.3 s. The reports that come without frames say something else.
#[test]
fn what_reports_say_after_a_clock_s_last_frame_moves_no_frame_of_it() {
    let before = (0..61).map(|at| report(at * 1000, 0, 20));
    let without_frames = (70..80).map(|at| report(at * 1000, 500, 20));
    let behind = (85..95).map(|at| report(at * 1000, 0, 20));
    let reports: Vec<_> = before.chain(without_frames).chain(behind).collect();
    let starts = [ClockStart { known: ms(84_000), after: ms(60_300), at: ms(84_000) }];
    let found = &corrections(&[all_of(track(TrackKind::Video), &reports, &starts)])[&track(TrackKind::Video)];
    for at in [0, 30_000, 50_000, 60_000, 60_300, 84_000, 94_000] {
        assert!((found.at(ms(at)) - 20 * MS).abs() < MS, "at {at}: {} ns", found.at(ms(at)));
    }
}

#[test]
fn a_stream_whose_reports_are_by_another_clock_is_in_step_within_itself() {
    let session: SessionId = "s".parse().expect("id");
    let other = |kind| TrackId { stream: StreamId::of_router(&session, "b"), kind };
    let right: Vec<_> = (0..60).map(|i| report(i * 1000, 0, 20)).collect();
    let shifted = |off: i64| -> Vec<SenderReport> {
        let shift = |mut r: SenderReport| {
            r.ntp = NtpTime::from_wallclock(Wallclock(r.ntp.to_wallclock().0 + 7_000_000));
            r
        };
        (0..20).map(|i| shift(report(i * 1000, off, 20))).collect()
    };
    let (audio, video) = (shifted(0), shifted(60));
    let found =
        of(&[(track(TrackKind::Audio), &right), (other(TrackKind::Audio), &audio), (other(TrackKind::Video), &video)]);
    for (track, off) in [(track(TrackKind::Audio), 0), (other(TrackKind::Audio), 0), (other(TrackKind::Video), 60)] {
        let error = found[&track].apply(ms(5000 + off)).0 - 5020 * MS;
        assert!(error.abs() < MS, "{track}: {error} ns");
    }
}

#[test]
fn absurd_reports_alone_change_nothing() {
    let mut reports: Vec<_> = (0..5).map(|i| report(i * 1000, 0, 20)).collect();
    for r in &mut reports {
        r.pts = ms(-90_000_000);
    }
    assert!(of(&[(track(TrackKind::Audio), &reports)]).is_empty());
}

#[test]
fn without_reports_nothing_is_changed() {
    assert!(of(&[(track(TrackKind::Audio), &[])]).is_empty());
    assert_eq!(Correction::default().apply(ms(5)), ms(5));
}

#[test]
fn corrected_times_never_go_back() {
    let reports: Vec<_> = (0..100).map(|i| report(i * 1000, (i * 7919) % 90, 20)).collect();
    let found = &of(&[(track(TrackKind::Audio), &reports)])[&track(TrackKind::Audio)];
    let mut last = MediaTime(i64::MIN);
    for at in 0..100_000 {
        let now = found.apply(ms(at));
        assert!(now >= last, "at {at} ms");
        last = now;
    }
}

proptest! {
    #[test]
    fn a_step_is_found_in_any_jitter_that_is_smaller(
        jitter in proptest::collection::vec(0..30_i64, 6..60),
        at in 3..57_usize,
        height in prop_oneof![-400..-80_i64, 80..400_i64],
    ) {
        let at = at.min(jitter.len() - 3);
        let level = |i: usize| if i < at { 0 } else { height };
        let times = (0..).map(|second| ms(second * 1000));
        let spans = jitter.iter().enumerate().map(|(i, jitter)| (level(i) + jitter) * MS);
        let points: Vec<Point> = times.zip(spans).collect();
        let found = correction(points.clone(), &[]).expect("reports");
        // Downwards it takes a while.
        for (i, (time, _)) in points.iter().enumerate().filter(|(i, _)| *i != at || height > 0) {
            let off = found.at(*time) / MS - level(i);
            prop_assert!((0..=30).contains(&off), "report {i}: {off} ms");
        }
    }

    #[test]
    fn whatever_reports_say_times_never_go_back(
        said in proptest::collection::vec((0_i64..400_000, -40_000_i64..40_000, -2_000_i64..2_000), 0..80),
        begun in proptest::collection::btree_map(0_i64..400_000, 0_i64..5000, 0..5),
    ) {
        let reports: Vec<_> = said.iter().map(|(at, off, delay)| report(*at, *off, *delay)).collect();
        let starts: Vec<_> =
            begun.iter().map(|(at, pause)| ClockStart { known: ms(*at), after: ms(at - pause), at: ms(*at) }).collect();
        let one = all_of(track(TrackKind::Audio), &reports, &starts);
        let found = corrections(&[one]);
        let found = found.get(&track(TrackKind::Audio)).cloned().unwrap_or_default();
        let mut last = MediaTime(i64::MIN);
        for at in -200..2_300 {
            let now = found.apply(ms(at * 200));
            prop_assert!(now >= last, "at {} ms", at * 200);
            last = now;
        }
    }
}
