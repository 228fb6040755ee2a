//! H.264, non-interleaved (RFC 6184): single NAL units, STAP-A and FU-A. Frames leave with 4-byte lengths;
//! parameter sets go into `avcC`, not into the frames, as Matroska wants it (V_MPEG4/ISO/AVC).

use super::bits::Bits;
use super::{Assembled, Edges, FRAME_BYTES_MAX, PayloadError};
use crate::capture::types::{Codec, TrackFormat};

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

fn kind(byte: u8) -> u8 {
    byte & 0x1f
}

pub(super) fn edges(payload: &[u8], marker: bool) -> Result<Edges, PayloadError> {
    let head = *payload.first().ok_or(PayloadError::Short)?;
    let first = match kind(head) {
        FU_A => payload.get(1).ok_or(PayloadError::Short)? & 0x80 != 0,
        1..=23 => true,
        STAP_A if payload.len() > 3 => true,
        STAP_A => return Err(PayloadError::Short),
        _ => return Err(PayloadError::Unsupported),
    };
    // A frame may have several slices, each of which looks like a beginning: the rules take a timestamp's
    // first packet. NRI 0 means that nothing refers to it.
    Ok(Edges { first, last: marker, discardable: head & 0x60 == 0 })
}

pub(super) fn assemble(sets: &mut ParameterSets, payloads: &[&[u8]]) -> Result<Assembled, PayloadError> {
    let mut out = Assembled::default();
    let mut fragment: Option<Vec<u8>> = None;
    for payload in payloads {
        let head = *payload.first().ok_or(PayloadError::Short)?;
        match kind(head) {
            1..=23 => unit(sets, payload, &mut out)?,
            STAP_A => {
                let mut rest = &payload[1..];
                while !rest.is_empty() {
                    let (len, after) = rest.split_first_chunk::<2>().ok_or(PayloadError::Short)?;
                    let len = usize::from(u16::from_be_bytes(*len));
                    let nal = after.get(..len).ok_or(PayloadError::Short)?;
                    unit(sets, nal, &mut out)?;
                    rest = &after[len..];
                }
            }
            FU_A => {
                let header = *payload.get(1).ok_or(PayloadError::Short)?;
                if header & 0x80 != 0 {
                    fragment = Some(vec![head & 0xe0 | kind(header)]);
                }
                let whole = fragment.as_mut().ok_or(PayloadError::Invalid)?;
                whole.extend_from_slice(&payload[2..]);
                if header & 0x40 != 0 {
                    unit(sets, &fragment.take().unwrap_or_default(), &mut out)?;
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

fn unit(sets: &mut ParameterSets, nal: &[u8], out: &mut Assembled) -> Result<(), PayloadError> {
    let head = *nal.first().ok_or(PayloadError::Short)?;
    match kind(head) {
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
        let (width, height) = sps_size(sps)?;
        let mut avcc = vec![1, profile[0], profile[1], profile[2], 0xff, 0xe1];
        let mut push = |nal: &[u8]| -> Result<(), PayloadError> {
            let len = u16::try_from(nal.len()).map_err(|_| PayloadError::TooLarge)?;
            avcc.extend_from_slice(&len.to_be_bytes());
            avcc.extend_from_slice(nal);
            Ok(())
        };
        push(sps)?;
        avcc_count(&mut avcc, self.pps.len() as u8);
        for pps in &self.pps {
            let len = u16::try_from(pps.len()).map_err(|_| PayloadError::TooLarge)?;
            avcc.extend_from_slice(&len.to_be_bytes());
            avcc.extend_from_slice(pps);
        }
        Ok(TrackFormat { codec: Codec::H264, width, height, channels: 0, codec_private: avcc })
    }
}

fn avcc_count(avcc: &mut Vec<u8>, count: u8) {
    avcc.push(count);
}

/// Picture size from a sequence parameter set (ITU-T H.264 section 7.3.2.1.1).
fn sps_size(sps: &[u8]) -> Result<(u32, u32), PayloadError> {
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
    if matches!(profile, 100 | 110 | 122 | 244 | 44 | 83 | 86 | 118 | 128 | 138 | 139 | 134 | 135) {
        chroma = bits.golomb()?;
        if chroma == 3 {
            bits.bit()?;
        }
        bits.golomb()?;
        bits.golomb()?;
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
        (Some(w @ 1..=16_384), Some(h @ 1..=16_384)) => Ok((w, h)),
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
    fn parameter_sets_alone_are_no_picture() {
        let frame = assemble(&mut ParameterSets::default(), &[&SPS_NAL]).expect("frame");
        assert!(frame.data.is_empty() && !frame.keyframe);
    }

    #[test]
    fn a_keyframe_without_parameter_sets_cannot_be_used() {
        assert_eq!(assemble(&mut ParameterSets::default(), &[&[0x65, 1, 2]]), Err(PayloadError::Invalid));
    }

    #[test]
    fn interleaved_packets_are_refused() {
        assert_eq!(edges(&[25, 0, 0], true), Err(PayloadError::Unsupported));
    }
}
