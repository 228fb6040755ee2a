//! One test a rule: gaps and their causes.

use super::tests::{Track, ms};
use super::*;

#[test]
fn a_long_loss_is_a_gap_of_the_network() {
    let mut t = Track::new(TrackKind::Video);
    t.video(1, 0, 'k', true, 0).video(11, 10, 'f', true, 333);
    t.rules.tick(ms(2000), &mut t.out);
    assert_eq!(t.gaps(), [(33, 333, GapCause::Network)]);
    assert_eq!(t.rules.take_stats().lost, 9);
}

#[test]
fn silence_is_not_a_loss() {
    let mut t = Track::new(TrackKind::Audio);
    t.opus(1, 0, 0).opus(2, 960, 20).opus(3, 960 + 48 * 400, 420);
    assert_eq!(t.frames(), [0, 20, 420]);
    assert!(t.gaps().is_empty());
    assert_eq!(t.rules.take_stats().lost, 0);
}

#[test]
fn a_pause_that_timestamps_do_not_count_is_a_gap_of_the_publisher() {
    let mut t = Track::new(TrackKind::Audio);
    t.opus(1, 0, 0).opus(2, 960, 20);
    for i in 0..40_u32 {
        t.opus(3 + u64::from(i), 1920 + i * 960, 10_000 + i64::from(i) * 20);
    }
    assert_eq!(t.gaps(), [(40, 10_000, GapCause::NotSent)]);
    assert_eq!(t.frames()[..4], [0, 20, 10_000, 10_020]);
    assert_eq!(t.frames().len(), 42);
}

#[test]
fn a_muted_track_that_resumes_has_a_gap_of_the_publisher_and_wants_a_keyframe() {
    let mut t = Track::new(TrackKind::Video);
    t.video(1, 0, 'k', true, 0);
    t.rules.set_publisher_muted(true, ms(50), &mut t.out);
    t.rules.set_publisher_muted(false, ms(900), &mut t.out);
    t.video(2, 30, 'k', true, 1000);
    assert_eq!(t.gaps(), [(33, 1000, GapCause::NotSent)]);
    assert_eq!(t.requests(), [KeyframeReason::Resume]);
}

#[test]
fn what_is_lost_after_a_track_was_switched_on_is_not_put_down_to_the_publisher() {
    let mut t = Track::new(TrackKind::Audio);
    t.opus(1, 0, 0);
    t.rules.set_publisher_muted(true, ms(20), &mut t.out);
    t.rules.set_publisher_muted(false, ms(1000), &mut t.out);
    // It resumes at once, and the first 50 packets are lost.
    t.opus(52, 96_000, 2000);
    t.rules.tick(ms(2300), &mut t.out);
    assert_eq!(t.gaps(), [(20, 1000, GapCause::NotSent), (1000, 2000, GapCause::Network)]);
}

#[test]
fn what_was_lost_before_a_track_was_switched_off_is_not_put_down_to_the_publisher() {
    let mut t = Track::new(TrackKind::Audio);
    t.opus(1, 0, 0).opus(51, 48_000, 1000);
    t.rules.set_publisher_muted(true, ms(1100), &mut t.out);
    t.rules.tick(ms(1300), &mut t.out);
    t.rules.set_publisher_muted(false, ms(5000), &mut t.out);
    t.opus(52, 240_000, 5000);
    assert_eq!(t.gaps(), [(20, 1000, GapCause::Network), (1020, 5000, GapCause::NotSent)]);
}

#[test]
fn one_lost_packet_does_not_make_a_long_silence_a_loss() {
    let mut t = Track::new(TrackKind::Audio);
    t.opus(1, 0, 0).opus(3, 60 * 48_000, 60_000);
    t.rules.tick(ms(60_300), &mut t.out);
    assert_eq!(t.gaps(), [(20, 4020, GapCause::Network), (4020, 60_000, GapCause::NotSent)]);
}

#[test]
fn frames_that_cannot_be_written_are_a_gap_of_the_storage_until_the_next_keyframe() {
    let mut t = Track::new(TrackKind::Video);
    t.video(1, 0, 'k', true, 0).video(2, 1, 'f', true, 33).video(3, 2, 'f', true, 66);
    t.rules.frames_lost(ms(33));
    assert_eq!(t.rules.starved(ms(70)), Some(GapCause::Storage));
    t.video(4, 30, 'f', true, 1000).video(5, 31, 'k', true, 1033);
    assert_eq!(t.gaps(), [(33, 1033, GapCause::Storage)]);
    assert_eq!(t.frames(), [0, 33, 66, 1033], "what builds on the lost ones is not written");
    assert_eq!((t.requests(), t.rules.starved(ms(1040))), (vec![KeyframeReason::Loss], None));
}

#[test]
fn a_track_that_is_sent_and_does_not_come_starves_and_its_gap_says_so() {
    let mut t = Track::new(TrackKind::Video);
    t.rules.packets_sent(100, ms(0));
    t.video(1, 0, 'k', true, 0);
    t.rules.packets_sent(101, ms(20));
    assert_eq!(t.rules.starved(ms(5000)), None, "a camera that is off");
    t.rules.packets_sent(400, ms(900));
    assert_eq!(t.rules.starved(ms(1000)), None, "too early to tell");
    assert_eq!(t.rules.starved(ms(5000)), Some(GapCause::NotReceived));
    t.video(2, 180, 'k', true, 6000);
    assert_eq!(t.gaps(), [(33, 6000, GapCause::NotReceived)]);
    assert_eq!(t.rules.starved(ms(6010)), None);
}

#[test]
fn a_silence_that_ends_with_packets_that_do_not_come_is_not_lost() {
    let mut t = Track::new(TrackKind::Video);
    t.video(1, 0, 'k', true, 0);
    for (at, packets) in [(0, 100), (5000, 100), (10_000, 100), (15_000, 130)] {
        t.rules.packets_sent(packets, ms(at));
    }
    t.video(2, 540, 'k', true, 18_000);
    assert_eq!(t.gaps(), [(33, 10_000, GapCause::NotSent), (10_000, 18_000, GapCause::NotReceived)]);
}

#[test]
fn media_that_stalls_without_a_word_is_a_gap_of_the_publisher() {
    let mut t = Track::new(TrackKind::Video);
    t.video(1, 0, 'k', true, 0).video(2, 90, 'f', true, 3000);
    assert_eq!(t.gaps(), [(33, 3000, GapCause::NotSent)]);
    assert_eq!(t.requests(), [KeyframeReason::Resume]);
}

#[test]
fn another_connection_goes_on_after_a_gap_of_the_router_and_with_a_keyframe() {
    let mut t = Track::new(TrackKind::Video);
    t.video(1, 0, 'k', true, 0);
    t.rules.source_lost(GapCause::Router, ms(100), &mut t.out);
    t.video(9000, 7, 'f', true, 2000).video(9001, 8, 'k', true, 2033);
    assert_eq!(t.frames(), [0, 2033]);
    assert_eq!(t.gaps(), [(33, 2033, GapCause::Router)]);
}

#[test]
fn a_track_of_an_earlier_epoch_goes_on_after_a_gap_of_the_worker() {
    let mut t = Track::new(TrackKind::Audio);
    t.rules.continue_from(ms(5000), GapCause::Worker);
    t.opus(77, 960, 7000);
    assert_eq!(t.gaps(), [(5000, 7000, GapCause::Worker)]);
}

#[test]
fn a_very_long_loss_is_counted_and_is_a_gap_of_the_network() {
    let mut t = Track::new(TrackKind::Audio);
    t.opus(1, 0, 0).opus(2, 960, 20);
    // 100 s without the network, RTP time goes on.
    t.opus(5002, 4_800_960, 100_020);
    assert_eq!(t.gaps(), [(40, 100_020, GapCause::Network)]);
    assert_eq!(t.rules.take_stats().lost, 4999);
}

#[test]
fn what_the_publisher_had_stopped_before_is_not_put_down_to_the_router() {
    let mut t = Track::new(TrackKind::Audio);
    t.opus(1, 0, 0);
    t.rules.set_publisher_muted(true, ms(20), &mut t.out);
    t.rules.source_lost(GapCause::Router, ms(500), &mut t.out);
    t.opus(7, 960, 1000);
    assert_eq!(t.gaps(), [(20, 1000, GapCause::NotSent)]);
}
