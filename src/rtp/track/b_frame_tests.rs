//! One test a rule: frames that are shown in another order than that in which they come.

use super::tests::ms;
use super::*;
use proptest::prelude::*;

/// 320x240: main profile, which says nothing of the order of its pictures; constrained baseline.
const MAIN: [u8; 8] = [0x67, 0x4d, 0x00, 0x0d, 0xf4, 0x0a, 0x0f, 0xc8];
const BASELINE: [u8; 24] = [
    0x67, 0x42, 0xc0, 0x0d, 0xd9, 0x01, 0x41, 0xfb, 0x01, 0x10, 0x00, 0x00, 0x03, 0x00, 0x10, 0x00, 0x00, 0x03, 0x03,
    0xc0, 0xf1, 0x42, 0xa4, 0x80,
];
const PPS: [u8; 4] = [0x68, 0xcb, 0x83, 0xcb];
/// Ticks of a picture at 30 a second.
const PICTURE: i64 = 3000;

struct Sender {
    rules: TrackRules,
    out: Vec<Output>,
    seq: u64,
    sps: &'static [u8],
}

impl Sender {
    fn new(sps: &'static [u8]) -> Self {
        Self {
            rules: TrackRules::new(TrackKind::Video, TrackOptions::default(), ms(0)),
            out: Vec::new(),
            seq: 100,
            sps,
        }
    }

    /// Sends a picture: its place in presentation, in ticks, and when it arrives in ms.
    fn send(&mut self, keyframe: bool, ticks: i64, arrived: i64) {
        let slice: &[u8] = if keyframe { &[0x65, 0x88, 0x80, 3, 4] } else { &[0x41, 0x9a, 1, 2, 3] };
        let sets: &[&[u8]] = if keyframe { &[self.sps, &PPS] } else { &[] };
        for (payload, marker) in sets.iter().map(|set| (*set, false)).chain([(slice, true)]) {
            // Near the wrap.
            let rtp = 0xffff_f000_u32.wrapping_add(u32::try_from(ticks + 100_000).expect("small"));
            let payload = Bytes::copy_from_slice(payload);
            let input = RtpInput { codec: Codec::H264, seq: self.seq, rtp, marker, payload, arrived: ms(arrived) };
            self.seq += 1;
            self.rules.push(input, &mut self.out);
        }
    }

    /// Sends pictures by their numbers in presentation, one each 1/30 s.
    fn send_all(&mut self, numbers: &[i64], mut arrived: i64) {
        for number in numbers {
            self.send(*number % 30 == 0, number * PICTURE, arrived);
            arrived += 33;
        }
    }

    fn times(&self) -> Vec<i64> {
        let frame = |o: &Output| if let Output::Frame(f) = o { Some((f.pts.0 + MS / 2) / MS) } else { None };
        self.out.iter().filter_map(frame).collect()
    }

    fn gaps(&self) -> Vec<(i64, i64, GapCause)> {
        let gap = |o: &Output| match o {
            Output::Gap(g) => Some(((g.from.0 + MS / 2) / MS, (g.to.0 + MS / 2) / MS, g.cause)),
            _ => None,
        };
        self.out.iter().filter_map(gap).collect()
    }
}

/// Two B-frames between two other pictures.
const ORDER: [i64; 13] = [0, 3, 1, 2, 6, 4, 5, 9, 7, 8, 12, 10, 11];

#[test]
fn b_frames_keep_their_times_and_their_order() {
    let mut sender = Sender::new(&MAIN);
    sender.send_all(&ORDER, 0);
    assert_eq!(sender.times(), [0, 100, 33, 67, 200, 133, 167, 300, 233, 267, 400, 333, 367]);
    assert_eq!(sender.gaps(), []);
}

#[test]
fn a_format_without_b_frames_never_goes_back() {
    let mut sender = Sender::new(&BASELINE);
    sender.send_all(&ORDER, 0);
    assert_eq!(sender.times(), [0, 100, 100, 100, 200, 200, 200, 300, 300, 300, 400, 400, 400]);
}

#[test]
fn nothing_is_shown_before_the_last_keyframe_or_far_before_the_newest_frame() {
    let mut sender = Sender::new(&MAIN);
    sender.send(true, 0, 0);
    sender.send(false, 30 * PICTURE, 1000);
    // 200 ms back, 500 ms back, and further than RTP time may go back: that is a jump.
    for back in [6, 15] {
        sender.send(false, (30 - back) * PICTURE, 1000);
    }
    sender.send(true, 31 * PICTURE, 1033);
    sender.send(false, 28 * PICTURE, 1066);
    assert_eq!(sender.times(), [0, 1000, 800, 500, 1033, 1033]);
    sender.send(false, 10 * PICTURE, 1100);
    assert!(sender.times()[6] >= 1033, "{:?}", sender.times());
}

#[test]
fn pictures_that_are_sent_ahead_of_others_leave_no_gap_behind_them() {
    // Slow pictures: one each 200 ms, so that two B-frames are 400 ms.
    let mut sender = Sender::new(&MAIN);
    let mut arrived = 0;
    for number in [0, 3, 1, 2, 6, 4, 5, 9, 7, 8] {
        if number == 6 {
            // Lost, after the order is known.
            sender.seq += 1;
        }
        sender.send(number == 0, number * 18_000, arrived);
        // The lost one is given up.
        sender.rules.tick(ms(arrived + if number == 6 { 1600 } else { 0 }), &mut sender.out);
        arrived += 200;
    }
    assert_eq!(sender.gaps(), [], "{:?}", sender.times());
}

#[test]
fn a_group_of_pictures_that_is_lost_is_a_gap_of_its_length() {
    let mut sender = Sender::new(&MAIN);
    sender.send_all(&ORDER, 0);
    // Six pictures, of 200 ms.
    sender.seq += 6;
    let mut arrived = 700;
    for number in [21, 19, 20, 24, 22, 23] {
        sender.send(false, number * PICTURE, arrived);
        arrived += 33;
    }
    sender.rules.tick(ms(arrived + 2000), &mut sender.out);
    assert_eq!(sender.gaps(), [(433, 633, GapCause::Network)], "{:?}", sender.times());
}

#[test]
fn pictures_that_come_late_because_they_were_reordered_are_no_pause() {
    // One each 200 ms: a B-frame comes 600 ms later than a picture that is not reordered.
    let mut sender = Sender::new(&MAIN);
    for (n, number) in [0, 3, 1, 2, 6, 4, 5, 9, 7, 8, 12, 10, 11].into_iter().enumerate() {
        let arrived = i64::try_from(n).expect("few") * 200;
        sender.send(number == 0, number * 18_000, arrived);
        assert_eq!(sender.times().len(), n + 1, "it leaves at once");
        assert_eq!(sender.rules.watermark(ms(arrived)), ms(arrived));
    }
    assert_eq!(sender.times(), [0, 600, 200, 400, 1200, 800, 1000, 1800, 1400, 1600, 2400, 2000, 2200]);
}

proptest! {
    #[test]
    fn whatever_a_sender_says_times_stay_near_and_behind_the_keyframe(
        sent in proptest::collection::vec((any::<bool>(), -200_000_i64..200_000, 0_i64..300), 1..120),
    ) {
        let mut sender = Sender::new(&MAIN);
        sender.send(true, 0, 0);
        let (mut ticks, mut arrived) = (0_i64, 0);
        for (keyframe, step, later) in sent {
            ticks = (ticks + step).max(-90_000);
            arrived += later;
            sender.send(keyframe, ticks, arrived);
        }
        sender.rules.tick(ms(arrived + 5000), &mut sender.out);
        let (mut newest, mut floor) = (MediaTime(i64::MIN / 2), MediaTime(i64::MIN / 2));
        for out in &sender.out {
            if let Output::Frame(frame) = out {
                prop_assert!(frame.pts >= floor && frame.pts >= newest + -500 * MS);
                if frame.keyframe {
                    prop_assert!(frame.pts > newest);
                    floor = frame.pts;
                }
                newest = newest.max(frame.pts);
            }
            if let Output::Gap(gap) = out {
                prop_assert!(gap.from < gap.to);
            }
        }
    }
}
