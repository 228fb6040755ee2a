//! RTP as a hostile publisher could send it: payloads of every codec, in any order, at any time, into the
//! depacketizers and the track rules. Nothing may panic, every packet has one fate, frames are in order.
//!
//! The input is a list of operations: one byte says which, the bytes after it are its arguments.

#![no_main]

use std::time::Duration;

use archiver::rtp::clock::{TrackReports, corrections};
use archiver::rtp::depacketize::{Depacketizer, FRAME_BYTES_MAX};
use archiver::rtp::track::{Output, RtpInput, TrackOptions, TrackRules};
use archiver::model::media::{ClockStart, Codec, GapCause, SenderReport};
use archiver::model::ids::{SessionId, StreamId, TrackId, TrackKind};
use archiver::model::time::{MediaTime, NtpTime};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn word(&mut self) -> Option<u32> {
        let (first, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        Some(u32::from_le_bytes(*first))
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = usize::from(self.byte()?).min(self.0.len());
        let (bytes, rest) = self.0.split_at(len);
        self.0 = rest;
        Some(bytes)
    }
}

/// What a run has fed and seen.
#[derive(Default)]
struct Seen {
    fed: u64,
    frames: u64,
    last: Option<MediaTime>,
    reports: Vec<SenderReport>,
    starts: Vec<ClockStart>,
    outputs: Vec<Output>,
}

impl Seen {
    fn look(&mut self) {
        for output in self.outputs.drain(..) {
            match output {
                Output::Frame(frame) => {
                    assert!(self.last.is_none_or(|last| last < frame.pts), "{:?} after {:?}", frame.pts, self.last);
                    assert!(!frame.data.is_empty());
                    self.last = Some(frame.pts);
                    self.frames += 1;
                }
                Output::Gap(gap) => assert!(gap.from < gap.to, "{gap:?}"),
                Output::SenderReport(report) => self.reports.push(report),
                Output::ClockBegins(at) => {
                    let after = self.last.map_or(at, |last| last.min(at));
                    self.starts.push(ClockStart { known: at, after, at });
                }
                Output::Format(_) | Output::RequestKeyframe { .. } => {}
            }
        }
    }
}

fn run(input: &mut Input<'_>) -> Option<()> {
    let head = input.byte()?;
    let kind = if head & 1 == 0 { TrackKind::Video } else { TrackKind::Audio };
    let codecs: Vec<Codec> = Codec::ALL.into_iter().filter(|c| c.kind() == kind).collect();
    let mut codec = codecs[usize::from(head >> 1) % codecs.len()];
    let options = TrackOptions {
        keyframe_interval_max: (head & 0x80 != 0).then_some(Duration::from_secs(30)),
        ..TrackOptions::default()
    };
    let mut now = MediaTime::ZERO;
    let mut rules = TrackRules::new(kind, options, now);
    let (mut seq, mut rtp) = (u64::from(input.word()?), input.word()?);
    let mut seen = Seen::default();
    while let Some(operation) = input.byte() {
        let argument = input.byte().unwrap_or_default();
        let mut packet = |seq: u64, rtp: u32, marker: bool, payload: &[u8], seen: &mut Seen, now| {
            seen.fed += 1;
            let payload = Bytes::copy_from_slice(payload);
            rules.push(RtpInput { codec, seq, rtp, marker, payload, arrived: now }, &mut seen.outputs);
        };
        match operation % 12 {
            // The next packet, of the same frame or of another.
            0..=3 => {
                seq += 1;
                if operation & 0x10 != 0 {
                    rtp = rtp.wrapping_add(u32::from(argument) * 30);
                }
                let payload = input.bytes().unwrap_or_default();
                packet(seq, rtp, operation & 0x20 != 0, payload, &mut seen, now);
            }
            // A packet from elsewhere in the sequence.
            4 => {
                let other = seq.saturating_sub(u64::from(argument));
                packet(other, rtp, operation & 0x20 != 0, input.bytes().unwrap_or_default(), &mut seen, now);
            }
            5 => seq += u64::from(argument),
            6 => {
                rtp = input.word().unwrap_or_default();
                if argument & 1 == 0 {
                    seq = u64::from(input.word().unwrap_or_default());
                }
            }
            7 => {
                now = now + i64::from(argument) * i64::from(argument) * 1_000_000;
                rules.tick(now, &mut seen.outputs);
            }
            8 => {
                let ntp = NtpTime((u64::from(input.word().unwrap_or_default()) << 32) | u64::from(argument) << 24);
                rules.sender_report(ntp, rtp, now, &mut seen.outputs);
            }
            9 => rules.set_publisher_muted(argument & 1 == 0, now, &mut seen.outputs),
            10 => {
                let cause = [GapCause::Router, GapCause::Worker, GapCause::Network][usize::from(argument) % 3];
                rules.source_lost(cause, now, &mut seen.outputs);
            }
            _ => codec = codecs[usize::from(argument) % codecs.len()],
        }
        seen.look();
    }
    rules.source_lost(GapCause::Worker, now, &mut seen.outputs);
    seen.look();
    let stats = rules.take_stats();
    assert_eq!(stats.packets + stats.late + stats.duplicate + stats.malformed, seen.fed, "{stats:?}");
    assert_eq!(stats.frames, seen.frames);
    check_corrections(&seen.reports, &seen.starts);
    Some(())
}

/// Whatever the reports say, corrected times do not go back.
fn check_corrections(reports: &[SenderReport], starts: &[ClockStart]) {
    let session: SessionId = "fuzz".parse().expect("id");
    let track = TrackId { stream: StreamId::of_router(&session, "a"), kind: TrackKind::Video };
    for correction in corrections(&[TrackReports { track, reports, starts }]).values() {
        let mut last = MediaTime(i64::MIN);
        for at in (0..200).map(|i| MediaTime::from_millis(i * 500)) {
            let corrected = correction.apply(at);
            assert!(corrected >= last, "{corrected:?} after {last:?}");
            last = corrected;
        }
    }
}

fuzz_target!(|data: &[u8]| {
    // The depacketizers by themselves, with all payloads taken for one frame.
    let mut input = Input(data);
    let codec = Codec::ALL[usize::from(input.byte().unwrap_or_default()) % Codec::ALL.len()];
    let mut depacketizer = Depacketizer::new(codec);
    let mut payloads = Vec::new();
    while let Some(payload) = input.bytes() {
        payloads.push(payload);
    }
    if payloads.iter().all(|payload| depacketizer.boundaries(payload, true).is_ok())
        && let Ok(frame) = depacketizer.assemble(&payloads)
    {
        assert!(frame.data.len() <= FRAME_BYTES_MAX * 2);
    }
    run(&mut Input(data)).unwrap_or_default();
});
