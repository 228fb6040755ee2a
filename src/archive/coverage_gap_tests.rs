//! Tables of gaps that the history splits, and of streams between two owners.

use super::coverage::of_lost_histories;
use super::coverage_tests::{
    AUDIO, Case, VIDEO, announce, capture, ended, epoch, gone, joined, live, muted, other, router, s,
};
use crate::model::archive_options::{ArchiveOptions, StreamMode};
use crate::model::ids::StreamId;
use crate::model::media::GapCause;
use crate::recording::history::{Event, EventKind};

#[test]
fn a_gap_that_a_lost_source_opened_has_the_causes_that_the_history_knows() {
    use GapCause::{Limit, NotReceived, NotSent, Refused, Router, Unsupported, Worker};
    for case in [
        Case {
            name: "a router that refuses when it is asked again",
            events: vec![
                announce(0.0, &[VIDEO]),
                live(0.1),
                capture(20.0, None, Some(Router)),
                capture(21.0, None, Some(Refused)),
                live(50.0),
                ended(60.0),
            ],
            captured: &[(0.1, 18.0), (50.5, 60.0)],
            logged: &[(18.0, 50.5, Router)],
            missing: &[(18.0, 21.0, Router), (21.0, 50.5, Refused)],
        },
        Case {
            name: "a codec that is refused after a renegotiation",
            events: vec![
                announce(0.0, &[VIDEO]),
                live(0.1),
                capture(20.0, None, Some(Worker)),
                capture(20.5, Some(VIDEO), Some(Unsupported)),
                live(20.6),
                capture(50.0, Some(VIDEO), None),
                ended(60.0),
            ],
            captured: &[(0.1, 20.0), (50.2, 60.0)],
            logged: &[(20.0, 50.2, Worker)],
            missing: &[(20.0, 50.2, Unsupported)],
        },
        Case {
            name: "a publisher that returns as one stream too many",
            events: vec![
                announce(0.0, &[VIDEO]),
                live(0.1),
                gone(10.0),
                announce(20.0, &[VIDEO]),
                capture(20.0, None, Some(Limit)),
                live(50.0),
                ended(60.0),
            ],
            captured: &[(0.1, 10.0), (50.5, 60.0)],
            logged: &[(10.0, 50.5, NotSent)],
            missing: &[(20.0, 50.5, Limit)],
        },
        Case {
            name: "a camera that is switched off while the connection is made again",
            events: vec![
                announce(0.0, &[VIDEO]),
                live(0.1),
                capture(20.0, None, Some(Router)),
                muted(20.5, VIDEO, true),
                live(21.0),
                muted(50.0, VIDEO, false),
                ended(60.0),
            ],
            captured: &[(0.1, 18.0), (50.2, 60.0)],
            logged: &[(18.0, 50.2, Router)],
            missing: &[(18.0, 20.5, Router), (20.5, 50.2, NotSent)],
        },
        Case {
            name: "a connection that is back, and nothing is sent",
            events: vec![
                announce(0.0, &[VIDEO]),
                live(0.1),
                capture(20.0, None, Some(Router)),
                live(21.0),
                ended(60.0),
            ],
            captured: &[(0.1, 18.0), (50.0, 60.0)],
            logged: &[(18.0, 50.0, Router)],
            missing: &[(18.0, 21.0, Router), (21.0, 50.0, NotSent)],
        },
        Case {
            name: "packets without a keyframe after a camera was off",
            events: vec![
                announce(0.0, &[VIDEO]),
                live(0.1),
                muted(10.0, VIDEO, true),
                muted(20.0, VIDEO, false),
                capture(20.1, Some(VIDEO), Some(NotReceived)),
                capture(50.0, Some(VIDEO), None),
                ended(60.0),
            ],
            captured: &[(0.1, 10.0), (50.0, 60.0)],
            logged: &[(10.0, 50.0, NotSent)],
            missing: &[(10.0, 20.1, NotSent), (20.1, 50.0, NotReceived)],
        },
        Case {
            name: "nothing is sent for long before the connection is lost",
            events: vec![
                announce(0.0, &[VIDEO]),
                live(0.1),
                capture(52.0, None, Some(Router)),
                live(54.0),
                ended(60.0),
            ],
            captured: &[(0.1, 10.0), (54.5, 60.0)],
            logged: &[(10.0, 54.5, Router)],
            missing: &[(10.0, 22.0, NotSent), (22.0, 54.5, Router)],
        },
        Case {
            name: "nothing is sent until the tracks are negotiated again",
            events: vec![
                announce(0.0, &[VIDEO]),
                live(0.1),
                capture(40.0, None, Some(Worker)),
                live(40.5),
                ended(60.0),
            ],
            captured: &[(0.1, 10.0), (50.0, 60.0)],
            logged: &[(10.0, 50.0, Worker)],
            missing: &[(10.0, 50.0, NotSent)],
        },
        Case {
            name: "nothing is sent until the track is taken away",
            events: vec![
                announce(0.0, &[AUDIO, VIDEO]),
                live(0.1),
                announce(40.0, &[AUDIO]),
                capture(40.0, None, Some(Worker)),
                live(40.5),
                announce(50.0, &[AUDIO, VIDEO]),
                ended(60.0),
            ],
            captured: &[(0.1, 10.0), (50.4, 60.0)],
            logged: &[(10.0, 50.4, Worker)],
            missing: &[(10.0, 40.0, NotSent), (50.0, 50.4, Worker)],
        },
        Case {
            name: "packets of a camera that comes again, just before it is received",
            events: vec![
                announce(0.0, &[AUDIO, VIDEO]),
                live(0.1),
                announce(10.0, &[AUDIO]),
                announce(20.0, &[AUDIO, VIDEO]),
                ended(60.0),
            ],
            captured: &[(0.1, 10.0), (20.02, 60.0)],
            logged: &[(10.0, 20.02, NotReceived)],
            missing: &[(20.0, 20.02, NotSent)],
        },
        Case {
            name: "packets of a camera that comes again, long before it is received",
            events: vec![
                announce(0.0, &[AUDIO, VIDEO]),
                live(0.1),
                announce(10.0, &[AUDIO]),
                announce(20.0, &[AUDIO, VIDEO]),
                ended(60.0),
            ],
            captured: &[(0.1, 10.0), (22.0, 60.0)],
            logged: &[(10.0, 22.0, NotReceived)],
            missing: &[(20.0, 22.0, NotReceived)],
        },
        Case {
            name: "a lost router whose loss is noticed late, and that comes back",
            events: vec![
                announce(0.0, &[VIDEO]),
                live(0.1),
                router(18.0, true),
                capture(29.0, None, Some(Router)),
                router(30.0, false),
                live(30.5),
                ended(60.0),
            ],
            captured: &[(0.1, 10.0), (31.0, 60.0)],
            logged: &[(10.0, 31.0, Router)],
            missing: &[(10.0, 31.0, Router)],
        },
        Case {
            name: "a connection that is lost just before its worker dies",
            events: vec![
                announce(0.0, &[VIDEO]),
                live(0.1),
                capture(20.0, None, Some(Router)),
                epoch(30.0, 2),
                joined(30.1),
                announce(30.2, &[VIDEO]),
                live(30.4),
                ended(60.0),
            ],
            captured: &[(0.1, 14.0), (30.5, 60.0)],
            logged: &[(14.0, 30.5, Worker)],
            missing: &[(14.0, 20.0, Router), (20.0, 30.5, Worker)],
        },
        Case {
            name: "a lost router that does not come back",
            events: vec![announce(0.0, &[VIDEO]), live(0.1), router(18.0, true), ended(60.0)],
            captured: &[(0.1, 10.0)],
            logged: &[],
            missing: &[(10.0, 60.0, Router)],
        },
        Case {
            name: "a lost router whose streams leave the room as soon as it is back",
            events: vec![
                announce(0.0, &[VIDEO]),
                live(0.1),
                router(12.0, true),
                router(20.0, false),
                gone(20.1),
                announce(25.0, &[VIDEO]),
                live(25.5),
                ended(60.0),
            ],
            captured: &[(0.1, 10.0), (26.0, 60.0)],
            logged: &[(10.0, 26.0, Router)],
            missing: &[(10.0, 26.0, Router)],
        },
        Case {
            name: "a lost router whose stream comes back without its picture",
            events: vec![
                announce(0.0, &[AUDIO, VIDEO]),
                live(0.1),
                router(12.0, true),
                gone(13.0),
                router(13.0, false),
                announce(20.0, &[AUDIO]),
                live(20.5),
                announce(50.0, &[AUDIO, VIDEO]),
                live(50.5),
                ended(60.0),
            ],
            captured: &[(0.1, 10.0), (50.6, 60.0)],
            logged: &[(10.0, 50.6, Router)],
            missing: &[(10.0, 20.0, Router), (50.0, 50.6, Router)],
        },
        Case {
            name: "a router that is back soon, whose stream is soon subscribed to",
            events: vec![
                announce(0.0, &[VIDEO]),
                live(0.1),
                router(11.5, true),
                capture(11.5, None, Some(Router)),
                gone(11.6),
                router(11.6, false),
                announce(11.9, &[VIDEO]),
                live(12.8),
                ended(60.0),
            ],
            captured: &[(0.1, 11.5), (12.9, 60.0)],
            logged: &[(11.5, 12.9, Router)],
            missing: &[(11.5, 12.9, Router)],
        },
        Case {
            name: "a router that is back soon, whose stream is late subscribed to",
            events: vec![
                announce(0.0, &[VIDEO]),
                live(0.1),
                router(11.5, true),
                capture(11.5, None, Some(Router)),
                gone(11.6),
                router(11.6, false),
                announce(11.9, &[VIDEO]),
                live(13.9),
                ended(60.0),
            ],
            captured: &[(0.1, 11.5), (14.0, 60.0)],
            logged: &[(11.5, 14.0, Router)],
            missing: &[(11.5, 11.9, Router), (11.9, 14.0, Worker)],
        },
        Case {
            name: "signalling is lost while a camera is off",
            events: vec![announce(0.0, &[VIDEO]), live(0.1), router(20.0, true), router(30.0, false), ended(60.0)],
            captured: &[(0.1, 10.0), (50.0, 60.0)],
            logged: &[(10.0, 50.0, NotSent)],
            missing: &[(10.0, 50.0, NotSent)],
        },
        Case {
            name: "a publisher that leaves while the connection is made again",
            events: vec![
                announce(0.0, &[VIDEO]),
                live(0.1),
                capture(10.0, None, Some(Router)),
                gone(15.0),
                announce(40.0, &[VIDEO]),
                live(40.2),
                ended(60.0),
            ],
            captured: &[(0.1, 8.0), (40.4, 60.0)],
            logged: &[(8.0, 40.4, Router)],
            missing: &[(8.0, 15.0, Router), (40.0, 40.4, Router)],
        },
    ] {
        case.check();
    }
}

fn nothing_before(at: f64, number: u32) -> Event {
    let mut event = epoch(at, number);
    if let EventKind::EpochBegan { nothing_before, .. } = &mut event.kind {
        *nothing_before = true;
    }
    event
}

#[test]
fn what_an_owner_finds_behind_a_lost_history_is_missing_since_the_last_that_is_known() {
    use GapCause::Worker;
    for case in [
        Case {
            name: "the first owner's machine is lost",
            events: vec![epoch(9.0, 2), joined(9.2), announce(9.2, &[VIDEO]), live(9.4), ended(60.0)],
            captured: &[(9.6, 60.0)],
            logged: &[],
            missing: &[(0.0, 9.6, Worker)],
        },
        Case {
            name: "another owner's machine, and a stream that came in its time",
            events: vec![
                epoch(0.0, 1),
                joined(0.1),
                gone(20.0),
                epoch(40.0, 3),
                joined(40.2),
                announce(40.3, &[VIDEO]),
                live(40.5),
                ended(60.0),
            ],
            captured: &[(40.6, 60.0)],
            logged: &[],
            missing: &[(20.0, 40.6, Worker)],
        },
        Case {
            name: "a stream that comes later",
            events: vec![epoch(9.0, 2), joined(9.2), announce(20.0, &[VIDEO]), live(20.2), ended(60.0)],
            captured: &[(20.4, 60.0)],
            logged: &[],
            missing: &[],
        },
        Case {
            name: "options that are noted at the origin",
            events: vec![
                Event { at: s(0.0), kind: EventKind::StreamMode { mode: StreamMode::Manual } },
                epoch(9.0, 2),
                joined(9.2),
                announce(9.2, &[VIDEO]),
                live(9.4),
                ended(60.0),
            ],
            captured: &[(9.6, 60.0)],
            logged: &[],
            missing: &[(0.0, 9.6, Worker)],
        },
        Case {
            name: "an owner that stood still before it began, and none that is lost",
            events: vec![
                epoch(0.0, 1),
                epoch(15.0, 3),
                epoch(20.0, 2),
                epoch(40.0, 4),
                joined(40.1),
                announce(40.1, &[VIDEO]),
            ],
            captured: &[(40.3, 60.0)],
            logged: &[],
            missing: &[],
        },
        Case {
            name: "an owner before whom nobody published, as the catalog says",
            events: vec![nothing_before(9.0, 2), joined(9.2), announce(9.2, &[VIDEO]), live(9.4), ended(60.0)],
            captured: &[(9.6, 60.0)],
            logged: &[],
            missing: &[],
        },
        Case {
            name: "a job that waited for its first stream",
            events: vec![epoch(0.6, 2), joined(0.7), announce(0.7, &[VIDEO]), live(0.8), ended(60.0)],
            captured: &[(1.2, 60.0)],
            logged: &[],
            missing: &[],
        },
    ] {
        case.check();
    }
}

#[test]
fn a_lost_history_of_which_no_stream_is_found_again_is_told_without_one() {
    let lost = vec![epoch(9.0, 2), joined(9.2), ended(60.0)];
    let told = of_lost_histories(&[], &lost, &ArchiveOptions::default(), None);
    let what: Vec<_> = told.iter().map(|one| (one.stream_id, one.kind, one.cause, one.duration_ms)).collect();
    assert_eq!(what, [AUDIO, VIDEO].map(|kind| (StreamId::UNKNOWN, kind, GapCause::Worker, 9_000)));
    let found = vec![epoch(9.0, 2), joined(9.2), announce(9.2, &[VIDEO]), ended(60.0)];
    let waited = vec![epoch(0.6, 2), joined(0.7), ended(60.0)];
    let empty = vec![nothing_before(9.0, 2), joined(9.2), ended(60.0)];
    for events in [found, waited, empty, vec![epoch(0.1, 1), joined(0.2), ended(60.0)]] {
        assert_eq!(of_lost_histories(&[], &events, &ArchiveOptions::default(), None), [], "{events:?}");
    }
}

#[test]
fn a_stream_was_present_all_the_time_if_the_next_owner_finds_it_when_it_joins() {
    use GapCause::{NotSent, Refused, Worker};
    for case in [
        Case {
            name: "an owner that joins late",
            events: vec![
                announce(0.0, &[VIDEO]),
                live(0.1),
                epoch(30.0, 2),
                joined(50.0),
                announce(50.1, &[VIDEO]),
                live(50.4),
                ended(60.0),
            ],
            captured: &[(0.1, 20.0), (50.6, 60.0)],
            logged: &[(20.0, 50.6, Worker)],
            missing: &[(20.0, 50.6, Worker)],
        },
        Case {
            name: "a publisher that returns long after the next owner joined",
            events: vec![
                announce(0.0, &[VIDEO]),
                live(0.1),
                epoch(30.0, 2),
                joined(30.2),
                announce(50.0, &[VIDEO]),
                live(50.1),
                ended(60.0),
            ],
            captured: &[(0.1, 20.0), (50.2, 60.0)],
            logged: &[(20.0, 50.2, Worker)],
            missing: &[(20.0, 30.0, Worker), (50.0, 50.2, Worker)],
        },
        Case {
            name: "a publisher that returns long after the next owner joined, and is refused",
            events: vec![
                announce(0.0, &[VIDEO]),
                live(0.1),
                epoch(30.0, 2),
                joined(30.2),
                announce(40.0, &[VIDEO]),
                capture(40.0, None, Some(Refused)),
                ended(60.0),
            ],
            captured: &[(0.1, 20.0)],
            logged: &[],
            missing: &[(20.0, 30.0, Worker), (40.0, 60.0, Refused)],
        },
        Case {
            name: "the same in the history of an older version",
            events: vec![
                announce(0.0, &[VIDEO]),
                live(0.1),
                epoch(30.0, 2),
                other(30.2),
                announce(40.0, &[VIDEO]),
                capture(40.0, None, Some(Refused)),
                ended(60.0),
            ],
            captured: &[(0.1, 20.0)],
            logged: &[],
            missing: &[(20.0, 30.0, Worker), (40.0, 60.0, Refused)],
        },
        Case {
            name: "an owner that never joined, between two that did",
            events: vec![
                joined(0.0),
                announce(0.0, &[VIDEO]),
                live(0.1),
                epoch(30.0, 2),
                epoch(40.0, 3),
                joined(40.2),
                announce(40.3, &[VIDEO]),
                live(40.4),
                ended(60.0),
            ],
            captured: &[(0.1, 20.0), (40.5, 60.0)],
            logged: &[(20.0, 40.5, Worker)],
            missing: &[(20.0, 40.5, Worker)],
        },
        Case {
            name: "a camera that was off when the owner before died",
            events: vec![
                joined(0.0),
                announce(0.0, &[VIDEO]),
                live(0.1),
                muted(10.0, VIDEO, true),
                epoch(30.0, 2),
                joined(30.1),
                announce(30.2, &[VIDEO]),
                capture(32.0, None, Some(Refused)),
                ended(60.0),
            ],
            captured: &[(0.1, 10.0)],
            logged: &[],
            missing: &[(10.0, 32.0, Worker), (32.0, 60.0, Refused)],
        },
        Case {
            name: "a codec that the owner before refused",
            events: vec![
                joined(0.0),
                announce(0.0, &[VIDEO]),
                capture(0.1, Some(VIDEO), Some(GapCause::Unsupported)),
                live(0.2),
                other(29.9),
                epoch(30.0, 2),
                joined(30.1),
                announce(30.2, &[VIDEO]),
                live(30.4),
                ended(60.0),
            ],
            captured: &[(32.0, 40.0)],
            logged: &[],
            missing: &[(0.0, 29.9, GapCause::Unsupported), (29.9, 32.0, Worker), (40.0, 60.0, NotSent)],
        },
    ] {
        case.check();
    }
}
