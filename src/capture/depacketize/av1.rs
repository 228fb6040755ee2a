//! AV1 (AOM, "RTP Payload Format For AV1" v1.0). Frames leave in the low-overhead format with sizes and
//! without temporal delimiters, as Matroska wants them.

use super::bits::Bits;
use super::{Assembled, Edges, FRAME_BYTES_MAX, PayloadError};
use crate::capture::types::{Codec, TrackFormat};

const SEQUENCE_HEADER: u8 = 1;
const TEMPORAL_DELIMITER: u8 = 2;
const TILE_LIST: u8 = 8;
const HAS_SIZE: u8 = 0x02;
const HAS_EXTENSION: u8 = 0x04;

pub(super) fn edges(payload: &[u8], marker: bool) -> Result<Edges, PayloadError> {
    if payload.len() < 2 {
        return Err(PayloadError::Short);
    }
    // Z says that the first element goes on from the packet before.
    Ok(Edges { first: payload[0] & 0x80 == 0, last: marker, discardable: false })
}

/// Little-endian base 128: (value, bytes).
fn leb128(bytes: &[u8]) -> Result<(usize, usize), PayloadError> {
    let mut value = 0;
    for (at, byte) in bytes.iter().enumerate().take(4) {
        value |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Ok((value, at + 1));
        }
    }
    Err(if bytes.len() < 4 { PayloadError::Short } else { PayloadError::Invalid })
}

#[allow(clippy::cast_possible_truncation)]
fn put_leb128(out: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(super) fn assemble(payloads: &[&[u8]]) -> Result<Assembled, PayloadError> {
    let mut out = Assembled::default();
    let mut fragment: Vec<u8> = Vec::new();
    let mut in_fragment = false;
    for payload in payloads {
        let head = *payload.first().ok_or(PayloadError::Short)?;
        let (goes_on, unfinished, count) = (head & 0x80 != 0, head & 0x40 != 0, usize::from(head >> 4 & 3));
        if goes_on != in_fragment {
            return Err(PayloadError::Invalid);
        }
        let mut rest = &payload[1..];
        let mut element = 0;
        while !rest.is_empty() {
            element += 1;
            let is_last_of_count = count != 0 && element == count;
            let obu;
            if is_last_of_count {
                (obu, rest) = (rest, &[][..]);
            } else {
                let (len, used) = leb128(rest)?;
                let end = used.checked_add(len).ok_or(PayloadError::Invalid)?;
                obu = rest.get(used..end).ok_or(PayloadError::Short)?;
                rest = &rest[end..];
            }
            fragment.extend_from_slice(obu);
            in_fragment = rest.is_empty() && unfinished;
            if !in_fragment {
                push_obu(&std::mem::take(&mut fragment), &mut out)?;
            }
        }
    }
    if in_fragment { Err(PayloadError::Short) } else { Ok(out) }
}

fn push_obu(obu: &[u8], out: &mut Assembled) -> Result<(), PayloadError> {
    let head = *obu.first().ok_or(PayloadError::Short)?;
    let kind = head >> 3 & 0x0f;
    let header_len = if head & HAS_EXTENSION != 0 { 2 } else { 1 };
    let mut payload = obu.get(header_len..).ok_or(PayloadError::Short)?;
    if head & HAS_SIZE != 0 {
        let (len, used) = leb128(payload)?;
        payload = payload.get(used..used + len).ok_or(PayloadError::Short)?;
    }
    if matches!(kind, TEMPORAL_DELIMITER | TILE_LIST) {
        return Ok(());
    }
    if out.data.len() + payload.len() > FRAME_BYTES_MAX {
        return Err(PayloadError::TooLarge);
    }
    let begin = out.data.len();
    out.data.push(head | HAS_SIZE);
    out.data.extend_from_slice(&obu[1..header_len]);
    put_leb128(&mut out.data, payload.len());
    out.data.extend_from_slice(payload);
    if kind == SEQUENCE_HEADER && out.format.is_none() {
        // Encoders send a sequence header with each keyframe, and only there.
        out.format = Some(sequence(payload, &out.data[begin..])?);
        out.keyframe = true;
    }
    Ok(())
}

/// Size and `av1C` (AV1-ISOBMFF section 2.3) from a sequence header (AV1 specification section 5.5).
#[allow(clippy::cast_possible_truncation)]
fn sequence(payload: &[u8], whole: &[u8]) -> Result<TrackFormat, PayloadError> {
    let mut bits = Bits::new(payload);
    let profile = bits.take(3)?;
    bits.bit()?; // still_picture
    let reduced = bits.bit()?;
    let (mut level, mut tier) = (0, false);
    if reduced {
        level = bits.take(5)?;
    } else {
        let mut decoder_model = None;
        if bits.bit()? {
            bits.take(32)?;
            bits.take(32)?;
            if bits.bit()? {
                bits.golomb()?;
            }
            if bits.bit()? {
                decoder_model = Some(bits.take(5)? + 1);
                bits.take(32)?;
                bits.take(10)?;
            }
        }
        let display_delay = bits.bit()?;
        for point in 0..=bits.take(5)? {
            bits.take(12)?;
            let this_level = bits.take(5)?;
            let this_tier = this_level > 7 && bits.bit()?;
            if point == 0 {
                (level, tier) = (this_level, this_tier);
            }
            if let Some(len) = decoder_model
                && bits.bit()?
            {
                bits.take(len)?;
                bits.take(len)?;
                bits.bit()?;
            }
            if display_delay && bits.bit()? {
                bits.take(4)?;
            }
        }
    }
    let (width_bits, height_bits) = (bits.take(4)? + 1, bits.take(4)? + 1);
    let (width, height) = (bits.take(width_bits)? + 1, bits.take(height_bits)? + 1);
    // WebRTC sends 8-bit 4:2:0 (profile 0): high bit depth, mono and chroma flags are those of it.
    let subsampling = 0x0c;
    let mut private = vec![0x81, (profile as u8) << 5 | level as u8, u8::from(tier) << 7 | subsampling, 0];
    private.extend_from_slice(whole);
    Ok(TrackFormat { codec: Codec::Av1, width, height, channels: 0, codec_private: private })
}

#[cfg(test)]
mod tests {
    use super::*;

    // Sequence header OBU payload of 320x240, profile 0, level 0, by libaom in real-time mode.
    const SEQUENCE: [u8; 10] = [0x00, 0x00, 0x00, 0x03, 0xb4, 0xfd, 0xf7, 0xe4, 0x40, 0x40];

    #[test]
    fn fragments_are_joined_and_sizes_are_written() {
        let one = [&[0x40 | 0x20, 11, 0x08][..], &SEQUENCE, &[0x30, 1, 2]].concat();
        let two = [0x80 | 0x10, 3, 4];
        let frame = assemble(&[&one, &two]).expect("frame");
        let begin = [&[0x0a, 10][..], &SEQUENCE].concat();
        assert_eq!(frame.data, [&begin[..], &[0x32, 4, 1, 2, 3, 4]].concat());
        assert!(frame.keyframe);
        assert_eq!(frame.format.expect("format").codec_private[4..], begin[..]);
    }

    #[test]
    fn temporal_delimiters_are_left_out() {
        let frame = assemble(&[&[0x20, 1, 0x10, 0x30, 9]]).expect("frame");
        assert_eq!((frame.data, frame.keyframe), (vec![0x32, 1, 9], false));
    }

    #[test]
    fn a_fragment_without_its_beginning_is_refused() {
        assert_eq!(assemble(&[&[0x90, 1, 2]]), Err(PayloadError::Invalid));
    }
}
