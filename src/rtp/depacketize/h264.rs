//! H.264, non-interleaved (RFC 6184): single NAL units, STAP-A and FU-A. Frames leave with 4-byte lengths;
//! parameter sets go into `avcC`, not into the frames, as Matroska wants it (V_MPEG4/ISO/AVC).

use super::bits::Bits;
use super::{AssembledFrame, FRAME_BYTES_MAX, FrameBoundaries, PayloadError};
use crate::model::media::{Codec, TrackFormat};

const IDR: u8 = 5;
const SPS: u8 = 7;
const PPS: u8 = 8;
const AUD: u8 = 9;
const FILLER: u8 = 12;
const STAP_A: u8 = 24;
const FU_A: u8 = 28;

/// Parameter sets that are kept; more than this is nonsense or an attack.
const SETS_MAX: usize = 16;

/// The newest parameter sets, by their NAL unit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ParameterSets {
    sps: Option<Vec<u8>>,
    pps: Vec<Vec<u8>>,
}

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
    let mut out = AssembledFrame::default();
    let mut fragment: Option<Vec<u8>> = None;
    for payload in payloads {
        let head = *payload.first().ok_or(PayloadError::Short)?;
        match nal_type(head) {
            1..=23 => add_nal_unit(sets, payload, &mut out)?,
            STAP_A => {
                let mut rest = &payload[1..];
                while !rest.is_empty() {
                    let (len, after) = rest.split_first_chunk::<2>().ok_or(PayloadError::Short)?;
                    let len = usize::from(u16::from_be_bytes(*len));
                    let nal = after.get(..len).ok_or(PayloadError::Short)?;
                    add_nal_unit(sets, nal, &mut out)?;
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
                    add_nal_unit(sets, &fragment.take().unwrap_or_default(), &mut out)?;
                }
            }
            _ => return Err(PayloadError::Unsupported),
        }
    }
    if out.keyframe {
        out.format = Some(sets.format()?);
    }
    Ok(out)
}

fn add_nal_unit(sets: &mut ParameterSets, nal: &[u8], out: &mut AssembledFrame) -> Result<(), PayloadError> {
    let head = *nal.first().ok_or(PayloadError::Short)?;
    match nal_type(head) {
        SPS => sets.sps = Some(nal.to_vec()),
        PPS => {
            // Same id: replaced. The id is the first Exp-Golomb code.
            let id = Bits::new(&nal[1..]).golomb()?;
            sets.pps.retain(|p| Bits::new(&p[1..]).golomb() != Ok(id));
            if sets.pps.len() >= SETS_MAX {
                return Err(PayloadError::Invalid);
            }
            sets.pps.push(nal.to_vec());
        }
        AUD | FILLER => {}
        kind => {
            out.keyframe |= kind == IDR;
            let len = u32::try_from(nal.len()).map_err(|_| PayloadError::TooLarge)?;
            if out.data.len() + nal.len() > FRAME_BYTES_MAX {
                return Err(PayloadError::TooLarge);
            }
            out.data.extend_from_slice(&len.to_be_bytes());
            out.data.extend_from_slice(nal);
        }
    }
    Ok(())
}

impl ParameterSets {
    /// `avcC` (ISO/IEC 14496-15 section 5.3.3.1) and size. Without parameter sets nothing can be decoded.
    #[allow(clippy::cast_possible_truncation)]
    fn format(&self) -> Result<TrackFormat, PayloadError> {
        let sps = self.sps.as_ref().ok_or(PayloadError::Invalid)?;
        let profile: &[u8] = sps.get(1..4).ok_or(PayloadError::Short)?;
        if self.pps.is_empty() {
            return Err(PayloadError::Invalid);
        }
        let picture = parse_sps(sps)?;
        let mut avcc = vec![1, profile[0], profile[1], profile[2], 0xff, 0xe1];
        put_parameter_set(&mut avcc, sps)?;
        avcc.push(self.pps.len() as u8);
        for pps in &self.pps {
            put_parameter_set(&mut avcc, pps)?;
        }
        if matches!(profile[0], 100 | 110 | 122 | 144 | 244) {
            let [chroma, luma_depth, chroma_depth] = picture.sampling;
            avcc.extend_from_slice(&[0xfc | chroma & 3, 0xf8 | luma_depth & 7, 0xf8 | chroma_depth & 7, 0]);
        }
        Ok(TrackFormat {
            codec: Codec::H264,
            width: picture.width,
            height: picture.height,
            channels: 0,
            codec_private: avcc,
        })
    }
}

fn put_parameter_set(avcc: &mut Vec<u8>, nal: &[u8]) -> Result<(), PayloadError> {
    let len = u16::try_from(nal.len()).map_err(|_| PayloadError::TooLarge)?;
    avcc.extend_from_slice(&len.to_be_bytes());
    avcc.extend_from_slice(nal);
    Ok(())
}

/// The fields of a sequence parameter set that are used.
struct SpsInfo {
    width: u32,
    height: u32,
    /// chroma_format_idc, bit_depth_luma_minus8, bit_depth_chroma_minus8.
    sampling: [u8; 3],
}

/// Reads a sequence parameter set (ITU-T H.264 section 7.3.2.1.1).
#[allow(clippy::cast_possible_truncation)]
fn parse_sps(sps: &[u8]) -> Result<SpsInfo, PayloadError> {
    // Emulation prevention bytes are not part of the syntax (section 7.4.1.1).
    let mut plain = Vec::with_capacity(sps.len());
    for (at, byte) in sps.iter().enumerate().skip(1) {
        if !(*byte == 3 && at >= 3 && sps[at - 1] == 0 && sps[at - 2] == 0) {
            plain.push(*byte);
        }
    }
    let mut bits = Bits::new(&plain);
    let profile = bits.take(8)?;
    bits.take(16)?;
    bits.golomb()?;
    let mut chroma = 1;
    let mut depths = [0, 0];
    if matches!(profile, 100 | 110 | 122 | 244 | 44 | 83 | 86 | 118 | 128 | 138 | 139 | 134 | 135) {
        chroma = bits.golomb()?;
        if chroma == 3 {
            bits.bit()?;
        }
        depths = [bits.golomb()? as u8, bits.golomb()? as u8];
        bits.bit()?;
        if bits.bit()? {
            scaling_lists(&mut bits, if chroma == 3 { 12 } else { 8 })?;
        }
    }
    bits.golomb()?;
    match bits.golomb()? {
        0 => {
            bits.golomb()?;
        }
        1 => {
            bits.bit()?;
            bits.signed_golomb()?;
            bits.signed_golomb()?;
            for _ in 0..bits.golomb()?.min(255) {
                bits.signed_golomb()?;
            }
        }
        _ => {}
    }
    bits.golomb()?;
    bits.bit()?;
    let (w, h) = (bits.golomb()?, bits.golomb()?);
    let frame_only = bits.bit()?;
    if !frame_only {
        bits.bit()?;
    }
    bits.bit()?;
    let fields = if frame_only { 1 } else { 2 };
    let mut crop = [0; 4];
    if bits.bit()? {
        for side in &mut crop {
            *side = bits.golomb()?;
        }
    }
    let (unit_x, unit_y) = match chroma {
        0 | 3 => (1, fields),
        2 => (2, fields),
        _ => (2, 2 * fields),
    };
    let whole = |units: u32, factor: u32| units.checked_add(1).and_then(|u| u.checked_mul(factor));
    let cut = |a: u32, b: u32, unit: u32| a.checked_add(b).and_then(|c| c.checked_mul(unit));
    let width = whole(w, 16).zip(cut(crop[0], crop[1], unit_x)).and_then(|(w, c)| w.checked_sub(c));
    let height = whole(h, 16 * fields).zip(cut(crop[2], crop[3], unit_y)).and_then(|(h, c)| h.checked_sub(c));
    match (width, height) {
        (Some(width @ 1..=16_384), Some(height @ 1..=16_384)) => {
            Ok(SpsInfo { width, height, sampling: [chroma as u8, depths[0], depths[1]] })
        }
        _ => Err(PayloadError::Invalid),
    }
}

fn scaling_lists(bits: &mut Bits<'_>, count: usize) -> Result<(), PayloadError> {
    for list in 0..count {
        if !bits.bit()? {
            continue;
        }
        let (mut last, mut next) = (8_i64, 8_i64);
        for _ in 0..if list < 6 { 16 } else { 64 } {
            if next != 0 {
                next = (last + bits.signed_golomb()? + 256) % 256;
            }
            if next != 0 {
                last = next;
            }
        }
    }
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

    #[test]
    fn a_keyframe_carries_its_parameter_sets_in_the_format() {
        let mut stap = vec![STAP_A | 0x60];
        for nal in [&SPS_NAL[..], &PPS_NAL] {
            stap.extend_from_slice(&u16::try_from(nal.len()).expect("short").to_be_bytes());
            stap.extend_from_slice(nal);
        }
        let fu = [[0x7c, 0x85, 1, 2], [0x7c, 0x45, 3, 4]];
        let mut sets = ParameterSets::default();
        let frame = assemble(&mut sets, &[&stap, &fu[0], &fu[1]]).expect("frame");
        assert!(frame.keyframe);
        assert_eq!(frame.data, [0, 0, 0, 5, 0x65, 1, 2, 3, 4]);
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
        let frame = assemble(&mut ParameterSets::default(), &[&avcc[8..35], &avcc[38..44], &[0x65, 0x88, 1]]);
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
        assert_eq!(assemble(&mut ParameterSets::default(), &[&[0x65, 1, 2]]), Err(PayloadError::Invalid));
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
