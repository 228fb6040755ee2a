//! H.264, non-interleaved (RFC 6184): single NAL units, STAP-A and FU-A. Frames leave with 4-byte lengths, as Matroska wants
//! them (V_MPEG4/ISO/AVC). Each keyframe has the parameter sets that it needs, for senders that change them.

use bytes::Bytes;

use super::parameter_sets::{self, ParameterSets, pps_id_of_slice};
use super::{AssembledFrame, FRAME_BYTES_MAX, FrameBoundaries, PayloadError};
use crate::model::media::{Codec, TrackFormat};

const IDR: u8 = 5;
const SPS: u8 = 7;
const PPS: u8 = 8;
const AUD: u8 = 9;
const FILLER: u8 = 12;
const STAP_A: u8 = 24;
const FU_A: u8 = 28;

fn nal_type(byte: u8) -> u8 {
    byte & 0x1f
}

pub(super) fn boundaries(payload: &[u8], marker: bool) -> Result<FrameBoundaries, PayloadError> {
    let head = *payload.first().ok_or(PayloadError::Short)?;
    let (unit, slice) = match nal_type(head) {
        FU_A => {
            let header = *payload.get(1).ok_or(PayloadError::Short)?;
            let begins = header & 0x80 != 0;
            (nal_type(header), payload.get(2).filter(|_| begins))
        }
        1..=23 => (nal_type(head), payload.get(1)),
        // A header and a length before its first unit.
        STAP_A => (nal_type(*payload.get(3).ok_or(PayloadError::Short)?), payload.get(4)),
        _ => return Err(PayloadError::Unsupported),
    };
    let first = match unit {
        // The first slice of a picture has first_mb_in_slice 0, which is a single bit (section 7.3.3).
        1..=5 => slice.is_some_and(|byte| byte & 0x80 != 0),
        // Parameter sets, SEI and delimiters come before the slices.
        _ => slice.is_some(),
    };
    // NRI 0: no other picture refers to this slice.
    Ok(FrameBoundaries { first, last: marker, discardable: unit == 1 && head & 0x60 == 0 })
}

pub(super) fn assemble(sets: &mut ParameterSets, payloads: &[&[u8]]) -> Result<AssembledFrame, PayloadError> {
    let mut picture = Picture::default();
    let mut fragment: Option<Vec<u8>> = None;
    for payload in payloads {
        let head = *payload.first().ok_or(PayloadError::Short)?;
        match nal_type(head) {
            1..=23 => picture.add(sets, payload)?,
            STAP_A => {
                let mut rest = &payload[1..];
                while !rest.is_empty() {
                    let (len, after) = rest.split_first_chunk::<2>().ok_or(PayloadError::Short)?;
                    let len = usize::from(u16::from_be_bytes(*len));
                    let nal = after.get(..len).ok_or(PayloadError::Short)?;
                    picture.add(sets, nal)?;
                    rest = &after[len..];
                }
            }
            FU_A => {
                let header = *payload.get(1).ok_or(PayloadError::Short)?;
                if header & 0x80 != 0 {
                    fragment = Some(vec![head & 0xe0 | nal_type(header)]);
                }
                let whole = fragment.as_mut().ok_or(PayloadError::Invalid)?;
                whole.extend_from_slice(&payload[2..]);
                if header & 0x40 != 0 {
                    picture.add(sets, &fragment.take().unwrap_or_default())?;
                }
            }
            _ => return Err(PayloadError::Unsupported),
        }
    }
    picture.finish(sets)
}

/// The NAL units of one picture, without its parameter sets.
#[derive(Default)]
struct Picture {
    units: Vec<u8>,
    /// The picture parameter set of the first slice from which a decoder can begin.
    keyframe: Option<u32>,
}

impl Picture {
    fn add(&mut self, sets: &mut ParameterSets, nal: &[u8]) -> Result<(), PayloadError> {
        let head = *nal.first().ok_or(PayloadError::Short)?;
        match nal_type(head) {
            SPS => sets.add_sps(nal),
            PPS => sets.add_pps(nal),
            AUD | FILLER => Ok(()),
            kind => {
                if kind == IDR && self.keyframe.is_none() {
                    self.keyframe = Some(pps_id_of_slice(nal)?);
                }
                put_nal_unit(&mut self.units, nal)
            }
        }
    }

    fn finish(self, sets: &mut ParameterSets) -> Result<AssembledFrame, PayloadError> {
        if self.units.is_empty() {
            return Ok(AssembledFrame::default());
        }
        let format = self.keyframe.map(|pps| sets.format(pps)).transpose()?;
        let mut data = Vec::new();
        for set in sets.take_for_picture(self.keyframe) {
            put_nal_unit(&mut data, set)?;
        }
        if data.len() + self.units.len() > FRAME_BYTES_MAX {
            return Err(PayloadError::TooLarge);
        }
        data.extend_from_slice(&self.units);
        Ok(AssembledFrame { data, keyframe: self.keyframe.is_some(), format, ticks: None })
    }
}

/// Whether frames of this format may be shown in another order than that in which they come and are decoded.
#[must_use]
pub fn may_reorder(format: &TrackFormat) -> bool {
    format.codec == Codec::H264 && parameter_sets::may_reorder(&format.codec_private)
}

/// A keyframe with its parameter sets. Logs of older versions have them in the format alone.
#[must_use]
pub fn with_parameter_sets(format: &TrackFormat, keyframe: Bytes) -> Bytes {
    let has_sets = keyframe.get(4).is_some_and(|head| matches!(nal_type(*head), SPS | PPS));
    if format.codec != Codec::H264 || has_sets {
        return keyframe;
    }
    let mut data = Vec::new();
    for set in parameter_sets::of_avcc(&format.codec_private) {
        data.extend_from_slice(&u32::try_from(set.len()).unwrap_or(0).to_be_bytes());
        data.extend_from_slice(set);
    }
    data.extend_from_slice(&keyframe);
    data.into()
}

fn put_nal_unit(out: &mut Vec<u8>, nal: &[u8]) -> Result<(), PayloadError> {
    let len = u32::try_from(nal.len()).map_err(|_| PayloadError::TooLarge)?;
    if out.len() + nal.len() > FRAME_BYTES_MAX {
        return Err(PayloadError::TooLarge);
    }
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(nal);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    // x264, 320x240, constrained baseline 1.3.
    const SPS_NAL: [u8; 24] = [
        0x67, 0x42, 0xc0, 0x0d, 0xd9, 0x01, 0x41, 0xfb, 0x01, 0x10, 0x00, 0x00, 0x03, 0x00, 0x10, 0x00, 0x00, 0x03,
        0x03, 0xc0, 0xf1, 0x42, 0xa4, 0x80,
    ];
    const PPS_NAL: [u8; 4] = [0x68, 0xcb, 0x83, 0xcb];
    /// The first slice of a keyframe, which refers to picture parameter set 0, behind its length.
    const SLICE: [u8; 9] = [0, 0, 0, 5, 0x65, 0x88, 0x80, 3, 4];

    #[test]
    fn a_keyframe_carries_its_parameter_sets_in_the_format_and_before_its_slices() {
        let mut stap = vec![STAP_A | 0x60];
        for nal in [&SPS_NAL[..], &PPS_NAL] {
            stap.extend_from_slice(&u16::try_from(nal.len()).expect("short").to_be_bytes());
            stap.extend_from_slice(nal);
        }
        let fu = [[0x7c, 0x85, 0x88, 0x80], [0x7c, 0x45, 3, 4]];
        let mut sets = ParameterSets::default();
        let frame = assemble(&mut sets, &[&stap, &fu[0], &fu[1]]).expect("frame");
        assert!(frame.keyframe);
        assert_eq!(frame.data, [&[0, 0, 0, 24][..], &SPS_NAL, &[0, 0, 0, 4], &PPS_NAL, &SLICE].concat());
        let format = frame.format.expect("format");
        assert_eq!((format.width, format.height), (320, 240));
        assert_eq!(format.codec_private[..6], [1, 0x42, 0xc0, 0x0d, 0xff, 0xe1]);
    }

    #[test]
    fn the_codecs_header_is_that_of_another_muxer() {
        // What FFmpeg's Matroska muxer writes for x264's high profile, 322x242.
        let avcc = [
            0x01, 0x64, 0x00, 0x0c, 0xff, 0xe1, 0x00, 0x1b, 0x67, 0x64, 0x00, 0x0c, 0xac, 0xd9, 0x41, 0x50, 0x87, 0x88,
            0x88, 0xc0, 0x44, 0x00, 0x00, 0x03, 0x00, 0x04, 0x00, 0x00, 0x03, 0x00, 0x50, 0x3c, 0x50, 0xa6, 0x58, 0x01,
            0x00, 0x06, 0x68, 0xeb, 0xe3, 0xcb, 0x22, 0xc0, 0xfd, 0xf8, 0xf8, 0x00,
        ];
        let frame = assemble(&mut ParameterSets::default(), &[&avcc[8..35], &avcc[38..44], &[0x65, 0x88, 0x80]]);
        let format = frame.expect("frame").format.expect("format");
        assert_eq!((format.width, format.height), (322, 242));
        assert_eq!(format.codec_private, avcc);
    }

    #[test]
    fn parameter_sets_alone_are_no_picture() {
        let frame = assemble(&mut ParameterSets::default(), &[&SPS_NAL]).expect("frame");
        assert!(frame.data.is_empty() && !frame.keyframe);
    }

    #[test]
    fn a_keyframe_without_parameter_sets_cannot_be_used() {
        assert_eq!(assemble(&mut ParameterSets::default(), &[&SLICE[4..]]), Err(PayloadError::Invalid));
    }

    #[test]
    fn parameter_sets_that_come_alone_are_in_the_next_picture_and_known_ones_in_keyframes_alone() {
        let mut sets = ParameterSets::default();
        let changed = [0x68, 0xcb, 0x83, 0xcc];
        let picture = [0x41, 0x9a, 1];
        for (name, payloads, written) in [
            ("sets alone", &[&SPS_NAL[..], &PPS_NAL][..], &[][..]),
            ("the keyframe after them", &[&SLICE[4..]], &[&SPS_NAL[..], &PPS_NAL, &SLICE[4..]]),
            ("a picture with the same sets", &[&SPS_NAL, &PPS_NAL, &picture], &[&picture]),
            ("a set that changed, alone", &[&changed], &[]),
            ("the picture after it", &[&picture], &[&changed, &picture]),
            ("a keyframe without sets", &[&SLICE[4..]], &[&SPS_NAL, &changed, &SLICE[4..]]),
        ] {
            let frame = assemble(&mut sets, payloads).expect(name);
            let mut expected = Vec::new();
            written.iter().for_each(|nal| put_nal_unit(&mut expected, nal).expect("short"));
            assert_eq!(frame.data, expected, "{name}");
        }
    }

    #[test]
    fn only_the_first_slice_of_a_picture_is_a_beginning() {
        for (payload, first) in [
            (&[0x41, 0x9a, 1][..], true),       // single slice, first_mb 0
            (&[0x41, 0x5a, 1], false),          // a later slice
            (&[0x7c, 0x85, 0xb8, 1], true),     // FU-A, start of the first slice
            (&[0x7c, 0x85, 0x40, 1], false),    // FU-A, start of a later slice
            (&[0x7c, 0x05, 0xb8, 1], false),    // FU-A, middle
            (&SPS_NAL, true),                   // parameter set
            (&[0x78, 0, 2, 0x67, 0x42], true),  // STAP-A that begins with one
            (&[0x78, 0, 2, 0x41, 0x40], false), // STAP-A of later slices
        ] {
            assert_eq!(boundaries(payload, false).map(|e| e.first), Ok(first), "{payload:x?}");
        }
    }

    #[test]
    fn a_slice_that_nothing_refers_to_is_discardable() {
        let discardable = |payload: &[u8]| boundaries(payload, true).map(|e| e.discardable);
        assert_eq!(discardable(&[0x01, 0x9a, 1]), Ok(true));
        assert_eq!(discardable(&[0x1c, 0x81, 0x9a]), Ok(true));
        assert_eq!(discardable(&[0x41, 0x9a, 1]), Ok(false));
        assert_eq!(discardable(&[0x06, 5, 1]), Ok(false), "SEI goes with a picture that is not known yet");
    }

    #[test]
    fn interleaved_packets_are_refused() {
        assert_eq!(boundaries(&[25, 0, 0], true), Err(PayloadError::Unsupported));
    }
}
