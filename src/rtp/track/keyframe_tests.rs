//! One test a rule: when keyframes are requested.

use super::tests::{Track, ms};
use super::*;

#[test]
fn a_keyframe_is_asked_for_at_subscription_and_again_each_second_until_it_comes() {
    let mut t = Track::new(TrackKind::Video);
    for at in (0..2500).step_by(50) {
        t.rules.tick(ms(at), &mut t.out);
    }
    assert_eq!(t.requests(), [KeyframeReason::Begin; 3]);
}

#[test]
fn nobody_is_asked_while_there_is_no_source_and_the_next_one_is_asked_at_once() {
    for by_packet in [false, true] {
        let mut t = Track::new(TrackKind::Video);
        t.video(1, 0, 'k', true, 0);
        t.rules.source_lost(GapCause::Router, ms(100), &mut t.out);
        for second in 1..20 {
            t.rules.tick(ms(second * 1000), &mut t.out);
        }
        assert!(t.requests().is_empty());
        if by_packet {
            t.video(500, 600, 'f', true, 20_000);
        } else {
            t.rules.source_connected(ms(20_000), &mut t.out);
        }
        assert_eq!(t.requests(), [KeyframeReason::Begin]);
    }
}

#[test]
fn keyframes_are_not_asked_for_without_a_reason_unless_told_to() {
    for (interval, requests) in [(None, 0), (Some(Duration::from_secs(30)), 2)] {
        let options = TrackOptions { keyframe_interval_max: interval, ..TrackOptions::default() };
        let mut t = Track { rules: TrackRules::new(TrackKind::Video, options, ms(0)), out: Vec::new() };
        let mut answered = 0;
        for second in 0..65_u32 {
            let asked = t.requests().len();
            let what = if second == 0 || asked > answered { 'k' } else { 'f' };
            answered = asked;
            t.video(u64::from(second), second * 30, what, true, i64::from(second) * 1000);
        }
        assert_eq!(t.requests(), vec![KeyframeReason::Interval; requests]);
    }
}

#[test]
fn a_keyframe_that_does_not_come_is_asked_for_with_growing_pauses() {
    let mut t = Track::new(TrackKind::Video);
    let mut asked = Vec::new();
    for second in 0..40 {
        t.rules.tick(ms(second * 1000), &mut t.out);
        if t.requests().len() > asked.len() {
            asked.push(second);
        }
    }
    assert_eq!(asked, [0, 1, 2, 4, 8, 16, 31]);
}

#[test]
fn a_picture_that_became_smaller_is_asked_for_until_it_is_larger() {
    let mut t = Track::new(TrackKind::Video);
    let (mut asked, mut answers) = (Vec::new(), 0);
    for n in 0..1000_u32 {
        let what = match n {
            0 | 275 => 'k',
            150 => 's',
            // What is asked for comes, and is as small.
            _ if asked.len() > answers => 's',
            _ => 'f',
        };
        answers = asked.len();
        let at = i64::from(n) * 33;
        let before = t.requests().len();
        t.video(u64::from(n), n, what, true, at);
        asked.extend(t.requests()[before..].iter().map(|reason| (*reason, at / 1000)));
    }
    // It is 160x120 from 4.95 s to 9.07 s.
    assert_eq!(asked, [(KeyframeReason::Smaller, 5), (KeyframeReason::Smaller, 7)]);
}

#[test]
fn a_muted_publisher_is_not_asked_for_keyframes() {
    let mut t = Track::new(TrackKind::Video);
    t.rules.set_publisher_muted(true, ms(0), &mut t.out);
    for second in 0..10 {
        t.rules.tick(ms(second * 1000), &mut t.out);
    }
    assert!(t.requests().is_empty());
    t.video(1, 300, 'f', true, 10_000);
    assert_eq!(t.requests(), [KeyframeReason::Begin], "media says more than the router");
}

#[test]
fn a_keyframe_behind_a_loss_makes_a_request_needless() {
    let mut t = Track::new(TrackKind::Video);
    t.video(1, 0, 'k', true, 0).video(3, 2, 'f', true, 66).video(4, 3, 'k', true, 100);
    t.rules.tick(ms(1600), &mut t.out);
    assert_eq!((t.frames().len(), t.requests().len()), (3, 0));
}

#[test]
fn a_loss_that_no_repair_is_known_for_is_told_at_once_and_another_one_when_it_is_given_up() {
    // Whether an earlier loss was repaired, and the moments at which a keyframe is requested for the one at 1,000 ms.
    for (repaired, expected) in [(false, vec![1099]), (true, vec![2551])] {
        let mut t = Track::new(TrackKind::Video);
        t.video(1, 0, 'k', true, 0);
        if repaired {
            t.video(3, 2, 'f', true, 33).video(2, 1, 'f', true, 40);
        }
        let (mut moments, mut seq) = (Vec::new(), 4);
        for at in (1033..4000).step_by(33) {
            let requests = t.requests().len();
            seq += 1;
            // What is requested comes a tenth of a second later.
            let answer = moments.last().is_some_and(|last| at - last == 99);
            t.video(seq, u32::try_from(seq).expect("small") + 26, if answer { 'k' } else { 'f' }, true, at);
            moments.extend((t.requests().len() > requests).then_some(at));
        }
        assert_eq!(moments, expected, "repaired {repaired}");
        assert_eq!(t.rules.take_stats().lost, if repaired { 1 } else { 3 });
    }
}

#[test]
fn a_packet_that_was_only_overtaken_is_no_reason_for_a_keyframe() {
    let mut t = Track::new(TrackKind::Video);
    t.video(1, 0, 'k', true, 0).video(3, 2, 'f', true, 66).video(2, 1, 'f', true, 80).video(4, 3, 'f', true, 133);
    assert_eq!((t.frames().len(), t.requests().len()), (4, 0));
}

#[test]
fn the_frame_that_had_begun_before_the_subscription_is_not_damaged() {
    let mut t = Track::new(TrackKind::Video);
    t.video(1, 0, 'c', false, 0).video(2, 0, 'c', true, 1).video(3, 1, 'k', true, 33).video(4, 2, 'c', true, 66);
    let stats = t.rules.take_stats();
    assert_eq!((t.frames(), stats.frames_before_keyframe, stats.frames_damaged), (vec![33], 1, 1));
}

#[test]
fn the_loss_of_a_frame_that_nothing_leans_on_needs_no_keyframe() {
    for (descriptor, requests) in [(0x30, 0), (0x10, 1)] {
        let mut t = Track::new(TrackKind::Video);
        t.video(1, 0, 'k', true, 0);
        let input = RtpInput {
            codec: Codec::Vp8,
            seq: 2,
            rtp: 3000,
            marker: false,
            payload: Bytes::copy_from_slice(&[descriptor, 0x01, 2]),
            arrived: ms(33),
        };
        t.rules.push(input, &mut t.out);
        t.video(4, 2, 'f', true, 66);
        t.rules.tick(ms(1600), &mut t.out);
        assert_eq!((t.frames(), t.requests().len()), (vec![0, 66], requests));
        assert_eq!(t.rules.take_stats().frames_damaged, 1);
    }
}
