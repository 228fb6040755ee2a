//! Clocks of a log that grows, and of the finished log.

use super::*;
use crate::model::ids::{SessionId, StreamId, TrackKind};
use crate::model::time::{NtpTime, Wallclock};

fn ms(ms: i64) -> MediaTime {
    MediaTime::from_millis(ms)
}

fn track(name: &str) -> TrackId {
    let session: SessionId = "s".parse().expect("id");
    TrackId { stream: StreamId::of_router(&session, name), kind: TrackKind::Audio }
}

/// A report that was right at `at`, of a track whose provisional clock is late by `late` ms.
fn report(at: i64, late: i64) -> (MediaTime, SenderReport) {
    let ntp = NtpTime::from_wallclock(Wallclock(1_795_000_000_000_000 + at * 1000));
    (ms(at), SenderReport { ntp, pts: ms(at + late), arrived: ms(at + 20) })
}

/// A clock that begins at a moment, and its reports.
fn clock(start: MediaTime, reports: impl Iterator<Item = (MediaTime, SenderReport)>) -> Clock {
    let coming: VecDeque<_> = reports.collect();
    let reported = coming.iter().map(|(known, report)| (*known, report.pts)).collect();
    Clock { start: Some(start), coming, reported, ..Clock::default() }
}

/// Two tracks: one is right, the other late by 300 ms and begins at 4 s.
fn clocks() -> Clocks {
    let late = |from: i64, late: i64| clock(ms(from + late), (1..60).map(|n| report(from + n * 1000, late)));
    Clocks { clocks: BTreeMap::from([(track("a"), late(0, 20)), (track("b"), late(4000, 320))]), ..Clocks::default() }
}

#[test]
fn what_follows_and_what_runs_over_the_finished_log_know_the_same() {
    for clocks in [clocks, clocks_that_begin_anew, clocks_of_a_busy_router] {
        follows_as_it_runs_over_the_finished_log(clocks(), clocks());
    }
}

fn follows_as_it_runs_over_the_finished_log(mut following: Clocks, mut finished: Clocks) {
    let mut watermark = 0;
    for at in (0..50_000).step_by(33) {
        while !following.advance(ms(at), ms(watermark)) {
            watermark += 70;
        }
        assert!(finished.advance(ms(at), MediaTime(i64::MAX)));
        for name in ["a", "b"] {
            for raw in [at - 100, at + 50, at + 300] {
                let known = [&following, &finished].map(|clocks| clocks.apply(track(name), ms(raw)));
                assert_eq!(known[0], known[1], "{name} at {at}");
            }
        }
        assert!(watermark <= at + 4400, "{watermark} for {at}");
    }
}

/// A track whose clock was 80 ms late begins anew twice: on time, and after a short while without media 60 ms late.
fn clocks_that_begin_anew() -> Clocks {
    let start = |after: i64, at: i64| ClockStart { known: ms(at), after: ms(after), at: ms(at) };
    let late = |second: i64| match second {
        ..7 => 80,
        7..20 => 0,
        _ => 60,
    };
    let reports = (1..40).filter(|n| *n != 6).map(|n| report(n * 1000, late(n)));
    let starts = vec![start(5580, 6700), start(19_400, 19_700)];
    let changing = Clock { starts, ..clock(ms(80), reports) };
    let steady = clock(ms(0), (1..40).map(|n| report(n * 1000, 0)));
    Clocks { clocks: BTreeMap::from([(track("a"), steady), (track("b"), changing)]), ..Clocks::default() }
}

/// A viewer would see lips 80 ms beside the voice until the third report of the new clock.
#[test]
fn a_clock_that_begins_anew_is_in_step_from_its_first_frame_on() {
    let mut clocks = clocks_that_begin_anew();
    let mut last = MediaTime(i64::MIN);
    for at in (100..38_000).step_by(20) {
        assert!(clocks.advance(ms(at + 600), MediaTime(i64::MAX)));
        let raw = match at {
            ..5500 => at + 80,
            6700..19_400 => at,
            19_700.. => at + 60,
            _ => continue,
        };
        let (a, b) = (clocks.apply(track("a"), ms(at)), clocks.apply(track("b"), ms(raw)));
        assert!((a - b).abs() <= 2 * MS, "at {at}: {a:?} {b:?}");
        assert!(last < b, "at {at}");
        last = b;
    }
}

/// The log has it with the first keyframe, two seconds after the first packet.
#[test]
fn a_clock_is_not_known_before_its_first_part() {
    let late = |clocks: &mut Clocks| {
        let starts = &mut clocks.clocks.get_mut(&track("b")).expect("clock").starts;
        starts.drain(..).map(|start| ClockStart { known: start.known + 2000 * MS, ..start }).collect::<Vec<_>>()
    };
    let (mut finished, mut following) = (clocks_that_begin_anew(), clocks_that_begin_anew());
    finished.clocks.get_mut(&track("b")).expect("clock").starts = late(&mut clocks_that_begin_anew());
    let mut coming: VecDeque<ClockStart> = late(&mut following).into();
    let mut watermark = 0;
    for at in (0..38_000).step_by(33) {
        while !following.advance(ms(at), ms(watermark)) {
            watermark += 70;
            while coming.front().is_some_and(|start| start.known <= ms(watermark)) {
                let known = following.clocks.get_mut(&track("b")).expect("clock");
                known.starts.extend(coming.pop_front());
            }
        }
        assert!(finished.advance(ms(at), MediaTime(i64::MAX)));
        let known = [&following, &finished].map(|clocks| clocks.apply(track("b"), ms(at)));
        assert_eq!(known[0], known[1], "at {at}");
    }
}

#[test]
fn the_first_reports_of_a_clock_that_begins_anew_are_waited_for() {
    let mut clocks = clocks_that_begin_anew();
    clocks.advance(ms(60_000), ms(9600));
    assert_eq!(clocks.step, Some(ms(6500)));
    clocks.advance(ms(60_000), ms(9700));
    assert_eq!(clocks.step, Some(ms(9000)));
}

#[test]
fn tracks_are_in_step_from_their_first_frame_on() {
    let mut clocks = clocks();
    clocks.advance(ms(22_000), MediaTime(i64::MAX));
    for at in [20, 4320, 4700, 9000, 20_000] {
        let (a, b) = (clocks.apply(track("a"), ms(at)), clocks.apply(track("b"), ms(at + 300)));
        assert!((a - b).abs() <= 2 * MS, "at {at}: {a:?} {b:?}");
    }
}

/// Sound and picture of a device whose clocks are wrong, each in its own way: after half an hour they are 450 ms
/// apart and neither is at its time, if nothing is done.
#[test]
fn nothing_drifts_in_half_an_hour_though_all_clocks_do() {
    const LENGTH_S: i64 = 1800;
    // Parts in a million by which the device's media clock is fast.
    let device = [("a", 150), ("b", -100)];
    let drifted = |at: i64, ppm: i64| ms(at) + at * ppm;
    let reports = |ppm: i64| {
        (0..LENGTH_S).map(move |n| {
            let (at, (_, report)) = (n * 1000, report(n * 1000, 0));
            (ms(at), SenderReport { pts: drifted(at, ppm), ..report })
        })
    };
    let clocks = device.map(|(name, ppm)| (track(name), clock(ms(0), reports(ppm))));
    let (mut clocks, mut first) = (Clocks { clocks: BTreeMap::from(clocks), ..Clocks::default() }, None);
    for at in (5000..LENGTH_S * 1000 - 5000).step_by(40) {
        assert!(clocks.advance(ms(at + 1000), MediaTime(i64::MAX)));
        let shown = device.map(|(name, ppm)| clocks.apply(track(name), drifted(at, ppm)));
        assert!((shown[0] - shown[1]).abs() <= 10 * MS, "at {at}: {shown:?}");
        let late = shown[0] - ms(at);
        let first = *first.get_or_insert(late);
        assert!((late - first).abs() <= 10 * MS, "at {at}: {late} ns late, {first} ns at the beginning");
    }
}

#[test]
fn a_clock_that_has_drifted_by_seconds_is_followed() {
    const LENGTH_S: i64 = 1800;
    // Fast by 2,500 parts in a million: 4.5 s at the end.
    let drifted = |at: i64| ms(at) + at * 2500;
    let reports = (0..LENGTH_S).map(|n| {
        let (at, (_, report)) = (n * 1000, report(n * 1000, 0));
        (ms(at), SenderReport { pts: drifted(at), ..report })
    });
    let mut clocks = Clocks { clocks: BTreeMap::from([(track("a"), clock(ms(0), reports))]), ..Clocks::default() };
    for at in (5000..LENGTH_S * 1000 - 5000).step_by(500) {
        assert!(clocks.advance(ms(at + 1000), MediaTime(i64::MAX)));
        let off = clocks.apply(track("a"), drifted(at)) - ms(at + 20);
        assert!(off.abs() <= 80 * MS, "at {at}: {off} ns");
    }
}

#[test]
fn the_first_reports_of_a_track_are_waited_for() {
    let mut clocks = clocks();
    let far = ms(60_000);
    clocks.advance(far, ms(2900));
    assert_eq!(clocks.step, Some(ms(0)), "a step before all tracks, of which nothing is to be known");
    clocks.advance(far, ms(3100));
    assert_eq!(clocks.step, Some(ms(2500)));
    clocks.advance(far, ms(7300));
    // Before the second track's beginning nothing waits for it.
    assert_eq!(clocks.step, Some(ms(4000)));
    clocks.advance(far, ms(7400));
    assert_eq!(clocks.step, Some(ms(6500)));
}

/// A busy router sends the first packets 1.5 s late, and its first report after 6 s: what was composed by then would be 1.5 s late, and
/// of the sound that follows as much would be lost.
#[test]
fn a_first_report_that_comes_late_is_waited_for_and_places_the_first_frame_too() {
    let late = || {
        let reports = (6..40).map(|n| report(n * 1000, 1500));
        Clocks { clocks: BTreeMap::from([(track("a"), clock(ms(1500), reports))]), ..Clocks::default() }
    };
    let mut clocks = late();
    clocks.advance(ms(60_000), ms(6400));
    assert!(clocks.step < Some(ms(1500)), "{:?}", clocks.step);
    assert!(clocks.advance(ms(20_000), MediaTime(i64::MAX)));
    for at in (0..20_000).step_by(20) {
        let off = clocks.apply(track("a"), ms(at + 1500)) - ms(at + 20);
        assert!(off.abs() <= MS, "at {at}: {off} ns");
    }
    // Without any report it goes on all the same.
    let mut silent =
        Clocks { clocks: BTreeMap::from([(track("a"), clock(ms(0), [].into_iter()))]), ..Clocks::default() };
    assert!(!silent.advance(ms(5000), ms(9900)));
    assert!(silent.advance(ms(5000), ms(10_100)));
}

/// A busy router's first reports come 300 ms late, its later ones at once.
fn clocks_of_a_busy_router() -> Clocks {
    let reports = || {
        (1..40).map(|n| {
            let (known, report) = report(n * 1000, 20);
            let delay = if n < 6 { 300 * MS } else { 0 };
            (known, SenderReport { arrived: report.arrived + delay, ..report })
        })
    };
    let clocks = ["a", "b"].map(|name| (track(name), clock(ms(20), reports())));
    Clocks { clocks: BTreeMap::from(clocks), ..Clocks::default() }
}

#[test]
fn reports_that_come_faster_than_those_before_move_nothing() {
    let mut clocks = clocks_of_a_busy_router();
    let mut last = None;
    for at in (20..30_000).step_by(20) {
        assert!(clocks.advance(ms(at + 500), MediaTime(i64::MAX)));
        let placed = clocks.apply(track("a"), ms(at));
        let passed = last.replace(placed).map_or(20 * MS, |last| placed - last);
        assert!((passed - 20 * MS).abs() <= MS, "at {at}: {passed} ns after the frame before");
    }
    // The file begins so much later than its reports say in the end.
    let late = clocks.offset().expect("reports") - clocks.offset.expect("reports").latest;
    assert!((late - 300 * MS).abs() <= MS, "{late}");
}

#[test]
fn a_router_whose_clock_is_set_is_followed_and_no_offset_is_held_by_more_than_may_be() {
    let offset = |latest: &[i64]| {
        let known = latest.iter().fold(None, |known, latest| Some(RouterOffset::next(known, latest * MS)));
        known.map(|known| (known.held / MS, known.shift() / MS))
    };
    assert_eq!(offset(&[300, 20, 40]), Some((300, 260)));
    assert_eq!(offset(&[300, 20, 60_020]), Some((60_300, 280)));
    assert_eq!(offset(&[300, 20, -9_980, -9_990]), Some((-9_700, 290)));
    assert_eq!(offset(&[1500, 20]), Some((520, 500)), "no further from what is told in local time");
    assert_eq!(offset(&[20, 1500]), Some((1000, -500)));
}
