//! One test a rule: packets to frames.

use super::*;
use proptest::prelude::*;

const KEY: [u8; 10] = [0x10, 0, 0, 0x9d, 0x01, 0x2a, 0x80, 0x02, 0xe0, 0x01];

pub(super) fn ms(ms: i64) -> MediaTime {
    MediaTime::from_millis(ms)
}

/// A VP8 packet: `k` first of a keyframe, `s` of one of 160x120, `f` first of an inter frame, `c` a continuation.
pub(super) fn vp8(what: char, number: u8) -> Bytes {
    Bytes::from(match what {
        'k' => [&[0x10][..], &KEY, &[number]].concat(),
        's' => [&[0x10][..], &KEY[..6], &[0xa0, 0, 0x78, 0], &[number]].concat(),
        'f' => vec![0x10, 0x01, number],
        _ => vec![0x00, number, number],
    })
}

pub(super) struct Track {
    pub rules: TrackRules,
    pub out: Vec<Output>,
}

impl Track {
    pub fn new(kind: TrackKind) -> Self {
        Self { rules: TrackRules::new(kind, TrackOptions::default(), ms(0)), out: Vec::new() }
    }

    pub fn video(&mut self, seq: u64, frame: u32, what: char, marker: bool, at: i64) -> &mut Self {
        let payload = vp8(what, u8::try_from(seq % 251).expect("small"));
        self.rules.push(
            RtpInput { codec: Codec::Vp8, seq, rtp: frame.wrapping_mul(3000), marker, payload, arrived: ms(at) },
            &mut self.out,
        );
        self
    }

    pub fn opus(&mut self, seq: u64, rtp: u32, at: i64) -> &mut Self {
        let payload = Bytes::from_static(&[0x78, 1, 2]);
        let input = RtpInput { codec: Codec::Opus, seq, rtp, marker: false, payload, arrived: ms(at) };
        self.rules.push(input, &mut self.out);
        self
    }

    fn clocks_and_frames(&self) -> Vec<(&'static str, i64)> {
        let of = |output: &Output| match output {
            Output::ClockBegins(at) => Some(("clock", at.as_millis())),
            Output::Frame(frame) => Some(("frame", frame.pts.as_millis())),
            _ => None,
        };
        self.out.iter().filter_map(of).collect()
    }

    pub fn frames(&self) -> Vec<i64> {
        self.out.iter().filter_map(|o| if let Output::Frame(f) = o { Some(f.pts.as_millis()) } else { None }).collect()
    }

    pub fn gaps(&self) -> Vec<(i64, i64, GapCause)> {
        let gap = |o: &Output| match o {
            Output::Gap(g) => Some((g.from.as_millis(), g.to.as_millis(), g.cause)),
            _ => None,
        };
        self.out.iter().filter_map(gap).collect()
    }

    pub fn requests(&self) -> Vec<KeyframeReason> {
        let reason = |o: &Output| if let Output::RequestKeyframe { reason } = o { Some(*reason) } else { None };
        self.out.iter().filter_map(reason).collect()
    }
}

#[test]
fn a_picture_begins_with_a_keyframe_and_what_came_before_is_counted() {
    let mut t = Track::new(TrackKind::Video);
    t.video(1, 0, 'f', true, 0).video(2, 1, 'f', true, 33).video(3, 2, 'k', true, 66).video(4, 3, 'f', true, 100);
    assert_eq!(t.frames(), [66, 100]);
    assert_eq!(t.rules.take_stats().frames_before_keyframe, 2);
    assert_eq!(t.requests(), [KeyframeReason::Begin]);
}

#[test]
fn a_frame_leaves_with_its_last_packet() {
    let mut t = Track::new(TrackKind::Video);
    t.video(1, 0, 'k', false, 0).video(2, 0, 'c', false, 1);
    assert_eq!(t.frames(), [0; 0]);
    t.video(3, 0, 'c', true, 2);
    assert_eq!(t.frames(), [0]);
}

#[test]
fn packets_out_of_order_are_put_in_order() {
    let mut t = Track::new(TrackKind::Video);
    t.video(1, 0, 'k', true, 0).video(3, 1, 'c', true, 34).video(4, 2, 'f', true, 66).video(2, 1, 'f', false, 120);
    assert_eq!(t.frames(), [0, 33, 66]);
    let stats = t.rules.take_stats();
    assert_eq!((stats.packets, stats.repaired, stats.lost), (4, 1, 0));
}

#[test]
fn a_missing_packet_is_waited_for_and_then_lost_with_its_frame_only() {
    let mut t = Track::new(TrackKind::Video);
    t.video(1, 0, 'k', true, 0).video(2, 1, 'f', false, 33).video(4, 2, 'f', true, 66).video(5, 3, 'f', true, 100);
    t.rules.tick(ms(1500), &mut t.out);
    assert_eq!(t.frames(), [0]);
    t.rules.tick(ms(1566), &mut t.out);
    assert_eq!(t.frames(), [0, 66, 100]);
    let stats = t.rules.take_stats();
    assert_eq!((stats.lost, stats.frames_damaged, stats.frames), (1, 1, 3));
    assert_eq!(t.requests(), [KeyframeReason::Loss]);
    assert!(t.gaps().is_empty(), "33 ms are no gap");
}

#[test]
fn a_lost_beginning_takes_the_rest_of_its_frame_along() {
    let mut t = Track::new(TrackKind::Video);
    t.video(1, 0, 'k', true, 0).video(3, 1, 'c', true, 33).video(4, 2, 'f', true, 66);
    t.rules.tick(ms(1600), &mut t.out);
    assert_eq!(t.frames(), [0, 66]);
}

#[test]
fn second_copies_and_late_packets_are_told_apart_and_dropped() {
    let mut t = Track::new(TrackKind::Video);
    t.video(1, 0, 'k', true, 0).video(1, 0, 'k', true, 1).video(3, 2, 'f', true, 66);
    t.rules.tick(ms(1600), &mut t.out);
    t.video(2, 1, 'f', true, 1700);
    let stats = t.rules.take_stats();
    assert_eq!((stats.duplicate, stats.late, stats.lost, stats.packets), (1, 1, 1, 2));
    assert_eq!(t.frames(), [0, 66]);
}

#[test]
fn lost_sound_is_counted_and_keeps_its_time() {
    let mut t = Track::new(TrackKind::Audio);
    t.opus(1, 0, 0).opus(2, 960, 20).opus(4, 2880, 60);
    t.rules.tick(ms(270), &mut t.out);
    assert_eq!(t.frames(), [0, 20, 60]);
    assert_eq!(t.rules.take_stats().lost, 1);
    assert!(t.gaps().is_empty());
}

#[test]
fn timestamps_go_on_over_their_wrap() {
    let mut t = Track::new(TrackKind::Audio);
    t.opus(1, u32::MAX - 479, 0).opus(2, 480, 20).opus(3, 1440, 40);
    assert_eq!(t.frames(), [0, 20, 40]);
}

#[test]
fn a_jump_of_timestamps_moves_no_frame() {
    let mut t = Track::new(TrackKind::Audio);
    t.opus(1, 0, 0).opus(2, 960, 20).opus(3, 500_000_000, 40).opus(4, 500_000_960, 60);
    assert_eq!(t.frames(), [0, 20, 40, 60]);
}

#[test]
fn a_network_that_paused_moves_no_frame() {
    let mut t = Track::new(TrackKind::Audio);
    t.opus(1, 0, 0);
    for i in 1..200_u32 {
        t.opus(1 + u64::from(i), i * 960, if i < 100 { 2000 } else { i64::from(i) * 20 });
    }
    assert_eq!(t.frames(), (0..200).map(|i| i * 20).collect::<Vec<_>>());
    assert!(t.gaps().is_empty());
}

#[test]
fn a_change_of_size_is_a_new_format_before_its_frame() {
    let mut t = Track::new(TrackKind::Video);
    t.video(1, 0, 'k', true, 0).video(2, 1, 'k', true, 33);
    let mut other = vp8('k', 1).to_vec();
    other[7] = 0x40;
    let input = RtpInput { codec: Codec::Vp8, seq: 3, rtp: 6000, marker: true, payload: other.into(), arrived: ms(66) };
    t.rules.push(input, &mut t.out);
    let widths: Vec<u32> =
        t.out.iter().filter_map(|o| if let Output::Format(f) = o { Some(f.width) } else { None }).collect();
    assert_eq!(widths, [640, 576]);
    assert!(matches!(t.out[t.out.len() - 2], Output::Format(_)));
}

#[test]
fn a_sequence_that_starts_anew_is_no_loss() {
    let mut t = Track::new(TrackKind::Audio);
    t.opus(40_000, 0, 0).opus(40_001, 960, 20).opus(100, 3_000_000_000, 40).opus(101, 3_000_000_960, 60);
    assert_eq!(t.frames(), [0, 20, 40, 60]);
    assert_eq!(t.rules.take_stats().lost, 0);
}

#[test]
fn an_invalid_payload_is_counted_and_dropped() {
    let mut t = Track::new(TrackKind::Video);
    let input = RtpInput {
        codec: Codec::Vp8,
        seq: 1,
        rtp: 0,
        marker: true,
        payload: Bytes::from_static(&[0x80]),
        arrived: ms(0),
    };
    t.rules.push(input, &mut t.out);
    assert_eq!(t.rules.take_stats().malformed, 1);
}

#[test]
fn a_frame_with_two_holes_is_damaged_once() {
    let mut t = Track::new(TrackKind::Video);
    t.video(1, 0, 'k', true, 0);
    t.video(2, 1, 'f', false, 33).video(4, 1, 'c', false, 34).video(6, 1, 'c', true, 35).video(7, 2, 'f', true, 66);
    t.rules.tick(ms(1600), &mut t.out);
    let stats = t.rules.take_stats();
    assert_eq!((t.frames(), stats.lost, stats.frames_damaged), (vec![0, 66], 2, 1));
}

#[test]
fn a_frame_that_was_joined_in_its_middle_is_dropped() {
    let mut t = Track::new(TrackKind::Video);
    t.video(1, 0, 'c', true, 0).video(2, 1, 'k', true, 33);
    assert_eq!(t.frames(), [33]);
}

#[test]
fn an_invalid_packet_damages_its_frame_and_is_no_loss() {
    let mut t = Track::new(TrackKind::Video);
    t.video(1, 0, 'k', true, 0).video(2, 1, 'f', false, 33);
    let payload = Bytes::from_static(&[0x80]);
    let input = RtpInput { codec: Codec::Vp8, seq: 3, rtp: 3000, marker: false, payload, arrived: ms(34) };
    t.rules.push(input.clone(), &mut t.out);
    t.rules.push(input, &mut t.out);
    t.video(4, 1, 'c', true, 35).video(5, 2, 'f', true, 66);
    let stats = t.rules.take_stats();
    assert_eq!((stats.packets, stats.malformed, stats.duplicate, stats.lost), (4, 1, 1, 0));
    assert_eq!((t.frames(), stats.frames_damaged, t.requests()), (vec![0, 66], 1, vec![KeyframeReason::Loss]));
}

#[test]
fn padding_takes_a_place_and_is_nothing() {
    let mut t = Track::new(TrackKind::Video);
    t.video(1, 0, 'k', true, 0);
    for seq in [2, 3] {
        let payload = Bytes::new();
        t.rules.push(RtpInput { codec: Codec::Vp8, seq, rtp: 0, marker: false, payload, arrived: ms(5) }, &mut t.out);
    }
    t.video(4, 1, 'f', true, 33);
    let stats = t.rules.take_stats();
    assert_eq!((t.frames(), stats.lost, stats.malformed, stats.frames_damaged), (vec![0, 33], 0, 0, 0));
}

#[test]
fn a_frame_without_end_is_given_up_when_it_is_too_large() {
    let mut t = Track::new(TrackKind::Video);
    t.video(1, 0, 'k', false, 0);
    for seq in 2..6000 {
        t.video(seq, 0, 'c', false, 1);
    }
    assert!(t.rules.jitter_buffer.len() <= 4097);
    assert_eq!((t.frames().len(), t.rules.take_stats().frames_damaged), (0, 1));
}

#[test]
fn a_stray_packet_from_far_away_is_late_and_disturbs_nothing() {
    let mut t = Track::new(TrackKind::Audio);
    t.opus(50_000, 0, 0).opus(40_000, 77, 10).opus(50_001, 960, 20).opus(90_000, 77_777_777, 30);
    t.opus(50_002, 1920, 40);
    t.rules.tick(ms(2000), &mut t.out);
    let stats = t.rules.take_stats();
    assert_eq!((t.frames(), stats.late, stats.packets, stats.lost), (vec![0, 20, 40], 2, 3, 0));
}

#[test]
fn a_short_pause_that_timestamps_do_not_count_keeps_the_time_after_it() {
    let mut t = Track::new(TrackKind::Audio);
    for i in 0..100_u32 {
        let at = i64::from(i) * 20 + if i < 50 { 0 } else { 600 };
        t.opus(u64::from(i), i * 960, at);
    }
    assert_eq!(t.gaps(), [(1000, 1600, GapCause::NotSent)]);
    assert_eq!(t.frames(), (0..100).map(|i| i * 20 + if i < 50 { 0 } else { 600 }).collect::<Vec<_>>());
}

#[test]
fn timestamps_that_jump_back_while_a_packet_is_missing_move_no_frame() {
    let mut t = Track::new(TrackKind::Video);
    t.video(1, 1000, 'k', true, 0).video(3, 1002, 'f', true, 66);
    t.video(4, 10, 'f', true, 100).video(5, 11, 'f', true, 133).video(2, 1001, 'f', true, 150);
    assert_eq!(t.frames(), [0, 33, 66, 100, 133]);
}

#[test]
fn another_codec_begins_with_its_format_and_a_keyframe_and_keeps_the_clock() {
    let mut t = Track::new(TrackKind::Video);
    t.video(1, 0, 'k', true, 0);
    let vp9 = [&[0x88, 0x81, 0x23][..], &[0x82, 0x49, 0x83, 0x42, 0x00, 0x27, 0xf0, 0x1d, 0xf0]].concat();
    let inter = vec![0xc8, 0x81, 0x24, 0x86, 0x00];
    for (seq, payload) in [(2, inter), (3, vp9)] {
        let rtp = u32::try_from(seq - 1).expect("small") * 3000;
        let arrived = ms(i64::try_from(seq).expect("small") * 33);
        let input = RtpInput { codec: Codec::Vp9, seq, rtp, marker: true, payload: payload.into(), arrived };
        t.rules.push(input, &mut t.out);
    }
    // The old codec's packet comes too late.
    t.rules.push(
        RtpInput { codec: Codec::Vp8, seq: 1, rtp: 0, marker: true, payload: vp8('k', 1), arrived: ms(120) },
        &mut t.out,
    );
    let codecs: Vec<Codec> =
        t.out.iter().filter_map(|o| if let Output::Format(f) = o { Some(f.codec) } else { None }).collect();
    assert_eq!((codecs, t.frames()), (vec![Codec::Vp8, Codec::Vp9], vec![0, 66]));
    let stats = t.rules.take_stats();
    assert_eq!((stats.frames_before_keyframe, stats.duplicate, stats.lost), (1, 1, 0));
}

#[test]
fn reports_are_given_on_the_tracks_own_clock() {
    let mut t = Track::new(TrackKind::Audio);
    t.rules.sender_report(NtpTime(1), 5, ms(0), &mut t.out);
    t.opus(1, 0, 100);
    t.rules.sender_report(NtpTime(7), 48_000, ms(1105), &mut t.out);
    let report = SenderReport { ntp: NtpTime(7), pts: ms(1100), arrived: ms(1105) };
    assert_eq!(t.out.iter().filter(|o| matches!(o, Output::SenderReport(_))).count(), 1);
    assert_eq!(t.out.last(), Some(&Output::SenderReport(report)));
}

/// A camera was off for 15 s: then Janus's reports are wrong by as much, for as long, or by less and less.
#[test]
fn reports_that_do_not_fit_the_packets_are_not_kept() {
    let mut t = Track::new(TrackKind::Audio);
    for n in 0..1500_u32 {
        let arrived = 20 * i64::from(n);
        t.opus(u64::from(n), n * 960, arrived);
        let wrong = match arrived {
            10_000..20_000 => 15_000,
            20_000..23_000 => 24_000 - arrived,
            _ => 30 * (arrived % 3),
        };
        if arrived % 1000 == 20 {
            let rtp = u32::try_from((arrived - 20 + wrong) * 48).expect("positive");
            t.rules.sender_report(NtpTime(1), rtp, ms(arrived), &mut t.out);
        }
    }
    let kept: Vec<_> =
        t.out.iter().filter_map(|o| if let Output::SenderReport(r) = o { Some(r) } else { None }).collect();
    assert_eq!((kept.len(), t.rules.take_stats().reports_refused), (30 - 13, 13));
    assert!(kept.iter().all(|report| (report.arrived - report.pts).abs() <= 100 * MS));
}

/// The machine was busy: the first packets come late, and catch up.
#[test]
fn reports_of_a_clock_that_began_late_are_kept() {
    let mut t = Track::new(TrackKind::Audio);
    for n in 0..200_u32 {
        let sent = 20 * i64::from(n);
        t.opus(u64::from(n), n * 960, (2000 + sent / 2).max(sent));
    }
    t.rules.sender_report(NtpTime(1), 48 * 4000, ms(4020), &mut t.out);
    let report = SenderReport { ntp: NtpTime(1), pts: ms(6000), arrived: ms(4020) };
    assert_eq!(t.out.last(), Some(&Output::SenderReport(report)));
}

#[test]
fn each_source_has_a_clock_that_begins_before_its_frames() {
    let mut t = Track::new(TrackKind::Audio);
    t.opus(1, 0, 100).opus(2, 960, 120);
    t.rules.source_lost(GapCause::Network, ms(200), &mut t.out);
    t.rules.source_connected(ms(3000), &mut t.out);
    t.opus(1, 7_000_000, 3200).opus(2, 7_000_960, 3220);
    let frames = [("clock", 100), ("frame", 100), ("frame", 120), ("clock", 3200), ("frame", 3200), ("frame", 3220)];
    assert_eq!(t.clocks_and_frames(), frames);
}

/// A composer waits there for the clock's first reports: reports from before say nothing of it.
#[test]
fn a_clock_that_is_anchored_anew_begins_again_before_its_frames() {
    let mut t = Track::new(TrackKind::Audio);
    for n in 0..10_i64 {
        t.opus(u64::try_from(n).expect("small"), u32::try_from(n * 960).expect("small"), n * 20);
    }
    // RTP time jumps; later the publisher pauses for 2 s, which RTP time does not count.
    t.opus(10, 9_000_000, 200);
    for n in 0..40_u32 {
        t.opus(11 + u64::from(n), 9_000_960 + n * 960, 2220 + i64::from(n) * 20);
    }
    let seen = t.clocks_and_frames();
    let clocks: Vec<_> = seen.iter().enumerate().filter(|(_, (what, _))| *what == "clock").collect();
    assert_eq!(clocks, [(0, &("clock", 0)), (11, &("clock", 200)), (13, &("clock", 2220))], "{seen:?}");
    assert_eq!((seen[12], seen[14]), (("frame", 200), ("frame", 2220)));
    assert_eq!(seen.len(), 3 + 10 + 1 + 40);
}

/// Each start ends a part of the log.
#[test]
fn a_clock_that_is_anchored_all_the_time_begins_a_few_times_a_minute() {
    let mut t = Track::new(TrackKind::Audio);
    for n in 0..6000_u32 {
        t.opus(u64::from(n), n.wrapping_mul(0x4000_0000), i64::from(n) * 20);
    }
    let clocks = t.clocks_and_frames().iter().filter(|(what, _)| *what == "clock").count();
    assert_eq!((clocks, t.frames().len()), (2 * 10, 6000));
}

/// What the network does with one packet.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Lost,
    Once { delay: i64 },
    Twice { delay: i64, again: i64 },
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        1 => Just(Fate::Lost),
        // NACK and retransmission, well within the hold.
        2 => (0_i64..600).prop_map(|delay| Fate::Once { delay }),
        1 => (0_i64..100, 0_i64..900).prop_map(|(delay, again)| Fate::Twice { delay, again }),
        12 => (0_i64..3).prop_map(|delay| Fate::Once { delay }),
    ]
}

proptest! {
    /// Whatever the network does, every packet has one fate, and every frame that arrived whole leaves once,
    /// in order, at its time.
    #[test]
    fn every_packet_is_counted_once_and_every_whole_frame_leaves_once_in_order(
        frames in proptest::collection::vec(proptest::collection::vec(fate(), 1..5), 30..150),
        first_seq in 0_u64..140_000,
        first_rtp: u32,
    ) {
        let mut arrivals = Vec::new();
        let (mut seq, mut whole, mut missing, mut last_arrived) = (first_seq, Vec::new(), Vec::new(), 0);
        for (number, fates) in frames.iter().enumerate() {
            let number = u32::try_from(number).expect("small");
            let sent = i64::from(number) * 100 / 3;
            // The first frame always arrives: it is the keyframe that all begins with.
            let is_whole = number == 0 || fates.iter().all(|fate| !matches!(fate, Fate::Lost));
            for (part, fate) in fates.iter().enumerate() {
                let what = match part { 0 if number == 0 => 'k', 0 => 'f', _ => 'c' };
                let packet = (seq, number, what, part + 1 == fates.len());
                match fate {
                    _ if number == 0 => arrivals.push((sent, packet)),
                    Fate::Lost => missing.push(seq),
                    Fate::Once { delay } => arrivals.push((sent + delay, packet)),
                    Fate::Twice { delay, again } => arrivals.extend([(sent + delay, packet), (sent + delay + again, packet)]),
                }
                if number == 0 || !matches!(fate, Fate::Lost) {
                    last_arrived = seq;
                }
                seq += 1;
            }
            if is_whole {
                whole.push(sent);
            }
        }
        missing.retain(|seq| *seq < last_arrived);
        arrivals.sort_by_key(|(at, packet)| (*at, packet.0));
        let mut t = Track::new(TrackKind::Video);
        let mut next_tick = 0;
        for (at, (seq, number, what, marker)) in &arrivals {
            while next_tick <= *at {
                t.rules.tick(ms(next_tick), &mut t.out);
                next_tick += 50;
            }
            let payload = vp8(*what, 0);
            let rtp = first_rtp.wrapping_add(number.wrapping_mul(3000));
            let input = RtpInput { codec: Codec::Vp8, seq: *seq, rtp, marker: *marker, payload, arrived: ms(*at) };
            t.rules.push(input, &mut t.out);
        }
        t.rules.source_lost(GapCause::Worker, ms(1_000_000), &mut t.out);
        let stats = t.rules.take_stats();
        prop_assert_eq!(stats.packets + stats.duplicate + stats.late + stats.malformed, arrivals.len() as u64);
        prop_assert_eq!((stats.lost, stats.late), (missing.len() as u64, 0));
        prop_assert_eq!(stats.frames, whole.len() as u64);
        prop_assert_eq!(t.frames(), whole);
        prop_assert!(t.gaps().iter().all(|(from, to, cause)| to - from >= 99 && *cause == GapCause::Network));
    }

    /// Whatever bytes a publisher sends, in whatever order: nothing panics, every packet has one fate, times
    /// go on. The fuzz target `webrtc_input` does the same for longer.
    #[test]
    fn no_packets_make_the_rules_panic_or_lose_count(
        kind in 0_usize..2,
        packets in proptest::collection::vec(
            (0_u64..70_000, any::<u32>(), any::<bool>(), proptest::collection::vec(any::<u8>(), 0..40), 0_i64..3000, 0_usize..4),
            1..60,
        ),
        near in any::<bool>(),
    ) {
        let kind = [TrackKind::Video, TrackKind::Audio][kind];
        let codecs: Vec<Codec> = Codec::ALL.into_iter().filter(|c| c.kind() == kind).collect();
        let mut t = Track::new(kind);
        let (fed, mut now) = (packets.len() as u64, 0);
        for (number, (seq, rtp, marker, payload, passed, codec)) in packets.into_iter().enumerate() {
            now += passed;
            let (seq, rtp) = if near { (number as u64 + seq % 3, rtp % 9000) } else { (seq, rtp) };
            // The codec changes now and then only.
            let codec = codecs[if codec == 3 { number % codecs.len() } else { 0 }];
            let input = RtpInput { codec, seq, rtp, marker, payload: payload.into(), arrived: ms(now) };
            t.rules.push(input, &mut t.out);
            t.rules.tick(ms(now), &mut t.out);
        }
        t.rules.source_lost(GapCause::Worker, ms(now), &mut t.out);
        let stats = t.rules.take_stats();
        prop_assert_eq!(stats.packets + stats.duplicate + stats.late + stats.malformed, fed);
        let starts: Vec<MediaTime> =
            t.out.iter().filter_map(|o| if let Output::Frame(f) = o { Some(f.pts) } else { None }).collect();
        prop_assert!(starts.is_sorted_by(|a, b| a < b));
        prop_assert_eq!(starts.len() as u64, stats.frames);
    }
}
