//! AV1 (AOM, "RTP Payload Format For AV1" v1.0). Frames leave in the low-overhead format with sizes and
//! without temporal delimiters, as Matroska wants them.

use super::bits::Bits;
use super::{AssembledFrame, FRAME_BYTES_MAX, FrameBoundaries, PayloadError};
use crate::model::media::{Codec, TrackFormat};

const SEQUENCE_HEADER: u8 = 1;
const TEMPORAL_DELIMITER: u8 = 2;
const FRAME_HEADER: u8 = 3;
const TILE_GROUP: u8 = 4;
const FRAME: u8 = 6;
const TILE_LIST: u8 = 8;
const HAS_SIZE: u8 = 0x02;
const HAS_EXTENSION: u8 = 0x04;

pub(super) fn boundaries(payload: &[u8], marker: bool) -> Result<FrameBoundaries, PayloadError> {
    if payload.len() < 2 {
        return Err(PayloadError::Short);
    }
    Ok(FrameBoundaries { first: starts_temporal_unit(payload), last: marker, discardable: false })
}

/// Whether a temporal unit can begin with a packet: not with the rest of an OBU (Z), not with tiles, not
/// with a higher spatial layer.
fn starts_temporal_unit(payload: &[u8]) -> bool {
    let (continues, count) = (payload[0] & 0x80 != 0, payload[0] >> 4 & 3);
    // With one element there is no length before it.
    let skip = if count == 1 { 0 } else { leb128(&payload[1..]).map_or(usize::MAX - 1, |(_, used)| used) };
    let obu = payload.get(1 + skip..).unwrap_or_default();
    let spatial = match obu {
        [head, extension, ..] if head & HAS_EXTENSION != 0 => extension >> 3 & 3,
        _ => 0,
    };
    !continues && spatial == 0 && obu.first().is_some_and(|head| obu_kind(*head) != TILE_GROUP)
}

const fn obu_kind(head: u8) -> u8 {
    head >> 3 & 0x0f
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

pub(super) fn assemble(payloads: &[&[u8]]) -> Result<AssembledFrame, PayloadError> {
    let mut out = AssembledFrame::default();
    let mut fragment: Vec<u8> = Vec::new();
    let mut in_fragment = false;
    for payload in payloads {
        let head = *payload.first().ok_or(PayloadError::Short)?;
        let (continues, unfinished, count) = (head & 0x80 != 0, head & 0x40 != 0, usize::from(head >> 4 & 3));
        if continues != in_fragment {
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
                append_obu(&std::mem::take(&mut fragment), &mut out)?;
            }
        }
    }
    if in_fragment { Err(PayloadError::Short) } else { Ok(out) }
}

fn append_obu(obu: &[u8], out: &mut AssembledFrame) -> Result<(), PayloadError> {
    let head = *obu.first().ok_or(PayloadError::Short)?;
    let kind = obu_kind(head);
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
        out.format = Some(parse_sequence_header(payload, &out.data[begin..])?);
    } else if matches!(kind, FRAME_HEADER | FRAME) {
        // Not show_existing_frame, frame_type KEY_FRAME, show_frame (section 5.9.2). Without a sequence
        // header before it nobody can begin there.
        let key = payload.first().is_some_and(|bits| bits & 0xf0 == 0x10);
        out.keyframe |= key && out.format.is_some();
    }
    Ok(())
}

/// Size and `av1C` (AV1-ISOBMFF section 2.3) from a sequence header (AV1 specification section 5.5).
#[allow(clippy::cast_possible_truncation)]
fn parse_sequence_header(payload: &[u8], whole: &[u8]) -> Result<TrackFormat, PayloadError> {
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
    skip_tools(&mut bits, reduced)?;
    let colour = colour_flags(&mut bits, profile)?;
    let mut private = vec![0x81, (profile as u8) << 5 | level as u8, u8::from(tier) << 7 | colour, 0];
    private.extend_from_slice(whole);
    Ok(TrackFormat { codec: Codec::Av1, width, height, channels: 0, codec_private: private })
}

/// The coding tools between the size and the colours (section 5.5.1).
fn skip_tools(bits: &mut Bits<'_>, reduced: bool) -> Result<(), PayloadError> {
    if !reduced && bits.bit()? {
        bits.take(7)?; // lengths of frame ids
    }
    bits.take(3)?; // use_128x128_superblock, enable_filter_intra, enable_intra_edge_filter
    if !reduced {
        bits.take(4)?; // interintra, masked, warped, dual filter
        let order_hint = bits.bit()?;
        if order_hint {
            bits.take(2)?;
        }
        let choose_screen = bits.bit()?;
        let screen = choose_screen || bits.bit()?;
        if screen && !bits.bit()? {
            bits.bit()?; // seq_force_integer_mv
        }
        if order_hint {
            bits.take(3)?;
        }
    }
    bits.take(3)?; // superres, cdef, restoration
    Ok(())
}

/// The low seven bits of `av1C`'s third byte, from the colour configuration (section 5.5.2).
fn colour_flags(bits: &mut Bits<'_>, profile: u32) -> Result<u8, PayloadError> {
    const IDENTITY_SRGB: [u32; 3] = [1, 13, 0];
    let high = bits.bit()?;
    let twelve = profile == 2 && high && bits.bit()?;
    let mono = profile != 1 && bits.bit()?;
    let description = if bits.bit()? { [bits.take(8)?, bits.take(8)?, bits.take(8)?] } else { [2; 3] };
    let (x, y, position) = if mono {
        (true, true, 0)
    } else if description == IDENTITY_SRGB {
        (false, false, 0)
    } else {
        bits.bit()?; // color_range
        let (x, y) = match profile {
            0 => (true, true),
            1 => (false, false),
            _ if twelve => {
                let x = bits.bit()?;
                (x, x && bits.bit()?)
            }
            _ => (true, false),
        };
        (x, y, if x && y { u8::from(bits.bit()?) << 1 | u8::from(bits.bit()?) } else { 0 })
    };
    let flag = |on: bool, at: u32| u8::from(on) << at;
    Ok(flag(high, 6) | flag(twelve, 5) | flag(mono, 4) | flag(x, 3) | flag(y, 2) | position)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Sequence header OBU payload of 320x240, profile 0, level 0, by libaom in real-time mode.
    const SEQUENCE: [u8; 10] = [0x00, 0x00, 0x00, 0x03, 0xb4, 0xfd, 0xf7, 0xe4, 0x40, 0x40];

    #[test]
    fn fragments_are_joined_and_sizes_are_written() {
        let one = [&[0x40 | 0x20, 11, 0x08][..], &SEQUENCE, &[0x30, 0x10, 2]].concat();
        let two = [0x80 | 0x10, 3, 4];
        let frame = assemble(&[&one, &two]).expect("frame");
        let begin = [&[0x0a, 10][..], &SEQUENCE].concat();
        assert_eq!(frame.data, [&begin[..], &[0x32, 4, 0x10, 2, 3, 4]].concat());
        assert!(frame.keyframe);
        assert_eq!(frame.format.expect("format").codec_private[4..], begin[..]);
    }

    #[test]
    fn the_codecs_header_is_that_of_another_muxer() {
        // What FFmpeg's Matroska muxer writes for libaom: 4:2:0, 4:4:4, 4:2:0 with 10 bits.
        for private in [
            &[0x81, 0x00, 0x0c, 0, 0x0a, 0x0b, 0, 0, 0, 0x04, 0x3c, 0xff, 0xbc, 0xda, 0xf9, 0x00, 0x40][..],
            &[0x81, 0x20, 0x00, 0, 0x0a, 0x0a, 0x20, 0, 0, 0x04, 0x3c, 0xff, 0xbc, 0xda, 0xf9, 0x02],
            &[0x81, 0x00, 0x4c, 0, 0x0a, 0x0b, 0, 0, 0, 0x04, 0x3c, 0xff, 0xbc, 0xda, 0xf9, 0x40, 0x40],
        ] {
            let format = parse_sequence_header(&private[6..], &private[4..]).expect("sequence header");
            assert_eq!((format.width, format.height), (320, 240));
            assert_eq!(format.codec_private, private);
        }
    }

    #[test]
    fn only_a_shown_keyframe_behind_a_sequence_header_is_a_beginning() {
        let with = |frame: u8| [&[0x20, 11, 0x08][..], &SEQUENCE, &[0x30, frame, 2]].concat();
        for (payload, keyframe) in [
            (with(0x10), true),                 // KEY_FRAME, shown
            (with(0x50), false),                // INTRA_ONLY_FRAME
            (with(0x30), false),                // INTER_FRAME
            (with(0x00), false),                // KEY_FRAME, not shown
            (vec![0x10, 0x30, 0x10, 2], false), // no sequence header
        ] {
            assert_eq!(assemble(&[&payload]).map(|f| f.keyframe), Ok(keyframe), "{payload:x?}");
        }
    }

    #[test]
    fn tiles_rests_and_higher_layers_do_not_begin_a_temporal_unit() {
        for (payload, first) in [
            (&[0x10, 0x30, 1][..], true),      // a frame
            (&[0x20, 2, 0x08, 1, 0x30], true), // a sequence header, with a length before it
            (&[0x10, 0x20, 1], false),         // a tile group
            (&[0x90, 0x30, 1], false),         // the rest of an OBU
            (&[0x10, 0x34, 0x08, 1], false),   // a frame of spatial layer 1
        ] {
            assert_eq!(boundaries(payload, false).map(|e| e.first), Ok(first), "{payload:x?}");
        }
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
