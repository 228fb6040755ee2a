//! Tables of histories, and what is missing by them.

use super::announced::{Ends, histories};
use crate::model::ids::{Epoch, StreamId, TrackId, TrackKind, WorkerId};
use crate::model::intervals::{Interval, Intervals};
use crate::model::media::{Gap, GapCause};
use crate::model::time::MediaTime;
use crate::recording::history::{Announced, Event, EventKind};

pub(super) const VIDEO: TrackKind = TrackKind::Video;
pub(super) const AUDIO: TrackKind = TrackKind::Audio;

pub(super) fn s(seconds: f64) -> MediaTime {
    #[allow(clippy::cast_possible_truncation)]
    MediaTime::from_millis((seconds * 1000.0) as i64)
}

pub(super) fn stream() -> StreamId {
    "00000000-0000-4000-8000-000000000001".parse().expect("id")
}

pub(super) fn announce(at: f64, kinds: &[TrackKind]) -> Event {
    let track = |kind: &TrackKind| Announced { mid: kind.as_str().to_owned(), kind: *kind, codec: "any".to_owned() };
    Event { at: s(at), kind: EventKind::Tracks { stream: stream(), tracks: kinds.iter().map(track).collect() } }
}

/// Another stream is announced.
pub(super) fn other(at: f64) -> Event {
    let stream = "00000000-0000-4000-8000-000000000002".parse().expect("id");
    Event { at: s(at), kind: EventKind::Tracks { stream, tracks: vec![] } }
}

pub(super) fn capture(at: f64, kind: Option<TrackKind>, missing: Option<GapCause>) -> Event {
    let detail = missing.map(|cause| format!("because of {}", cause.as_str()));
    Event { at: s(at), kind: EventKind::Capture { stream: stream(), kind, missing, detail } }
}

pub(super) fn live(at: f64) -> Event {
    capture(at, None, None)
}

pub(super) fn muted(at: f64, kind: TrackKind, muted: bool) -> Event {
    Event { at: s(at), kind: EventKind::Muted { stream: stream(), kind, muted } }
}

pub(super) fn gone(at: f64) -> Event {
    Event { at: s(at), kind: EventKind::StreamGone { stream: stream() } }
}

pub(super) fn ended(at: f64) -> Event {
    Event { at: s(at), kind: EventKind::Ended { reason: "session ended".to_owned() } }
}

pub(super) fn epoch(at: f64, epoch: u32) -> Event {
    let worker: WorkerId = "worker-1".parse().expect("id");
    Event { at: s(at), kind: EventKind::EpochBegan { epoch: Epoch(epoch), worker, nothing_before: false } }
}

pub(super) fn joined(at: f64) -> Event {
    Event { at: s(at), kind: EventKind::Joined }
}

pub(super) fn router(at: f64, lost: bool) -> Event {
    Event { at: s(at), kind: if lost { EventKind::RouterLost } else { EventKind::RouterBack } }
}

fn intervals(pairs: &[(f64, f64)]) -> Intervals {
    pairs.iter().map(|(from, to)| Interval::new(s(*from), s(*to))).collect()
}

pub(super) struct Case {
    pub name: &'static str,
    pub events: Vec<Event>,
    pub captured: &'static [(f64, f64)],
    pub logged: &'static [(f64, f64, GapCause)],
    pub missing: &'static [(f64, f64, GapCause)],
}

impl Case {
    pub(super) fn check(self) {
        let Self { name, events, captured, logged, missing } = self;
        let captured = intervals(captured);
        let last = captured.iter().map(|one| one.to).filter(|to| *to <= s(20.0)).max().unwrap_or(MediaTime::ZERO);
        let found = histories(&events, |_, _| last, Ends { log: s(60.0), capture: None });
        let history = found.get(&TrackId { stream: stream(), kind: VIDEO }).cloned().unwrap_or_default();
        let gap = |(from, to, cause): &(f64, f64, GapCause)| Gap { from: s(*from), to: s(*to), cause: *cause };
        let logged: Vec<Gap> = logged.iter().map(gap).collect();
        let wanted: Vec<Gap> = missing.iter().map(gap).collect();
        assert_eq!(history.missing(&captured, &Intervals::default(), &logged), wanted, "{name}");
    }
}

#[test]
fn what_is_missing_has_one_cause() {
    use GapCause::{Limit, Network, NotReceived, NotSent, Refused, Router, Storage, Unsupported, Worker};
    for case in [
        Case {
            name: "all of it is there",
            events: vec![announce(0.0, &[VIDEO]), live(0.3), ended(60.0)],
            captured: &[(0.4, 20.0), (20.0, 59.9)],
            logged: &[],
            missing: &[],
        },
        Case {
            name: "a router that refuses",
            events: vec![announce(1.0, &[VIDEO]), capture(1.0, None, Some(Refused)), ended(61.0)],
            captured: &[],
            logged: &[],
            missing: &[(1.0, 61.0, Refused)],
        },
        Case {
            name: "a codec that is refused, beside sound that is taken",
            events: vec![
                announce(0.0, &[AUDIO, VIDEO]),
                live(0.2),
                capture(0.2, Some(VIDEO), Some(Unsupported)),
                gone(9.0),
            ],
            captured: &[],
            logged: &[],
            missing: &[(0.0, 9.0, Unsupported)],
        },
        Case {
            name: "one stream too many, until there is room",
            events: vec![announce(0.0, &[VIDEO]), capture(0.0, None, Some(Limit)), live(30.0), ended(60.0)],
            captured: &[(30.5, 60.0)],
            logged: &[],
            missing: &[(0.0, 30.5, Limit)],
        },
        Case {
            name: "a camera that is off from the beginning",
            events: vec![announce(0.0, &[VIDEO]), live(0.2), muted(0.2, VIDEO, true), ended(60.0)],
            captured: &[],
            logged: &[],
            missing: &[(0.0, 60.0, NotSent)],
        },
        Case {
            name: "sender reports without packets at the end",
            events: vec![
                announce(0.0, &[VIDEO]),
                live(0.2),
                capture(40.0, Some(VIDEO), Some(NotReceived)),
                ended(60.0),
            ],
            captured: &[(0.2, 38.0)],
            logged: &[],
            missing: &[(38.0, 40.0, NotSent), (40.0, 60.0, NotReceived)],
        },
        Case {
            name: "a disk that never takes the track",
            events: vec![announce(0.0, &[VIDEO]), live(0.2), capture(0.3, Some(VIDEO), Some(Storage)), ended(60.0)],
            captured: &[],
            logged: &[],
            missing: &[(0.0, 60.0, Storage)],
        },
        Case {
            name: "slow pictures are no gap, a logged pause is",
            events: vec![announce(0.0, &[VIDEO]), live(0.1), ended(30.0)],
            captured: &[(0.2, 0.4), (2.0, 2.2), (3.9, 4.1), (10.0, 29.9)],
            logged: &[(4.1, 10.0, NotSent)],
            missing: &[(4.1, 10.0, NotSent)],
        },
        Case {
            name: "a short loss stays in the log's words",
            events: vec![announce(0.0, &[VIDEO]), live(0.1), ended(30.0)],
            captured: &[(0.1, 10.0), (10.4, 30.0)],
            logged: &[(10.0, 10.4, Network)],
            missing: &[(10.0, 10.4, Network)],
        },
        Case {
            name: "a gap of the log over time in which the track was not announced",
            events: vec![
                announce(0.0, &[AUDIO, VIDEO]),
                live(0.1),
                announce(10.0, &[AUDIO]),
                announce(50.0, &[AUDIO, VIDEO]),
                ended(60.0),
            ],
            captured: &[(0.1, 10.0), (50.6, 60.0)],
            logged: &[(10.0, 50.6, Worker)],
            missing: &[(50.0, 50.6, Worker)],
        },
        Case {
            name: "a router that is away",
            events: vec![announce(0.0, &[VIDEO]), live(0.1), router(20.0, true), router(50.0, false), ended(60.0)],
            captured: &[(0.1, 20.0)],
            logged: &[],
            missing: &[(20.0, 50.0, Router), (50.0, 60.0, NotSent)],
        },
        Case {
            name: "a router that is restarted, and forgets its streams",
            events: vec![
                announce(0.0, &[VIDEO]),
                live(0.1),
                router(12.0, true),
                gone(13.0),
                router(13.0, false),
                announce(20.0, &[VIDEO]),
                live(20.2),
                ended(60.0),
            ],
            captured: &[(0.1, 10.0), (20.5, 60.0)],
            logged: &[(10.0, 20.5, Router)],
            missing: &[(10.0, 20.5, Router)],
        },
        Case {
            name: "a worker that died, and a stream that left meanwhile",
            events: vec![announce(0.0, &[VIDEO]), live(0.1), epoch(30.0, 2), ended(60.0)],
            captured: &[(0.1, 20.0)],
            logged: &[],
            missing: &[(20.0, 30.0, Worker)],
        },
        Case {
            name: "a worker that died while another went on sending",
            events: vec![
                announce(0.0, &[VIDEO]),
                live(0.1),
                epoch(30.0, 2),
                announce(30.2, &[VIDEO]),
                live(30.4),
                ended(60.0),
            ],
            captured: &[(0.1, 20.0), (30.5, 60.0)],
            logged: &[(20.0, 30.5, Worker)],
            missing: &[(20.0, 30.5, Worker)],
        },
        Case {
            name: "a worker that died, and a publisher that came back long after it had left",
            events: vec![
                announce(0.0, &[VIDEO]),
                live(0.1),
                epoch(30.0, 2),
                other(30.2),
                announce(50.0, &[VIDEO]),
                live(50.1),
                ended(60.0),
            ],
            captured: &[(0.1, 20.0), (50.2, 60.0)],
            logged: &[(20.0, 50.2, Worker)],
            missing: &[(20.0, 30.0, Worker), (50.0, 50.2, Worker)],
        },
        Case {
            name: "a log without announcements, of an older version",
            events: vec![ended(60.0)],
            captured: &[(0.1, 20.0), (30.5, 60.0)],
            logged: &[(20.0, 30.5, Network)],
            missing: &[(20.0, 30.5, Network)],
        },
        Case {
            name: "a router that is lost while a disk fails, after the stream was announced again",
            events: vec![
                announce(0.0, &[VIDEO]),
                live(0.1),
                capture(10.0, Some(VIDEO), Some(Storage)),
                gone(15.0),
                announce(20.0, &[VIDEO]),
                live(20.2),
                router(30.0, true),
                capture(40.0, None, Some(Router)),
                router(40.0, false),
                live(40.5),
                capture(50.0, Some(VIDEO), None),
                ended(60.0),
            ],
            captured: &[(0.1, 10.0), (50.0, 60.0)],
            logged: &[(10.0, 50.0, Storage), (15.0, 20.4, NotSent), (28.0, 40.6, Router)],
            missing: &[
                (10.0, 15.0, Storage),
                (20.0, 20.4, NotSent),
                (20.4, 28.0, Storage),
                (28.0, 40.6, Router),
                (40.6, 50.0, Storage),
            ],
        },
        Case {
            name: "no time is in the log and in a gap, nor in two gaps",
            events: vec![announce(0.0, &[VIDEO]), live(0.1), ended(30.0)],
            captured: &[(0.1, 10.0), (14.0, 30.0)],
            logged: &[(9.0, 12.0, Network), (11.0, 15.0, Worker)],
            missing: &[(10.0, 12.0, Network), (12.0, 14.0, Worker)],
        },
    ] {
        case.check();
    }
}

#[test]
fn a_reason_is_kept_once() {
    let events = [
        announce(0.0, &[AUDIO, VIDEO]),
        capture(1.0, None, Some(GapCause::Refused)),
        capture(2.0, None, Some(GapCause::Refused)),
        capture(3.0, Some(VIDEO), Some(GapCause::Unsupported)),
        ended(60.0),
    ];
    let found = histories(&events, |_, _| MediaTime::ZERO, Ends { log: s(60.0), capture: None });
    let reasons = |kind| found[&TrackId { stream: stream(), kind }].reasons.join(", ");
    assert_eq!(reasons(AUDIO), "because of refused");
    assert_eq!(reasons(VIDEO), "because of refused, because of unsupported");
}
