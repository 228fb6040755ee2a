//! VP8 (RFC 7741).

use super::{AssembledFrame, FrameBoundaries, PayloadError};
use crate::model::media::{Codec, TrackFormat};

/// The payload descriptor (RFC 7741 section 4.2).
struct Descriptor {
    /// Bytes.
    len: usize,
    /// The first partition starts here (S with PID 0).
    starts_frame: bool,
    /// No other frame refers to this one (N).
    non_reference: bool,
}

fn descriptor(payload: &[u8]) -> Result<Descriptor, PayloadError> {
    let first = *payload.first().ok_or(PayloadError::Short)?;
    let mut len = 1;
    if first & 0x80 != 0 {
        let ext = *payload.get(1).ok_or(PayloadError::Short)?;
        len += 1;
        if ext & 0x80 != 0 {
            // PictureID of 7 or 15 bits.
            len += if payload.get(len).ok_or(PayloadError::Short)? & 0x80 != 0 { 2 } else { 1 };
        }
        len += usize::from(ext & 0x40 != 0); // TL0PICIDX
        len += usize::from(ext & 0x30 != 0); // TID, Y, KEYIDX
    }
    if payload.len() <= len {
        return Err(PayloadError::Short);
    }
    let starts_frame = first & 0x10 != 0 && first & 0x07 == 0;
    Ok(Descriptor { len, starts_frame, non_reference: first & 0x20 != 0 })
}

pub(super) fn boundaries(payload: &[u8], marker: bool) -> Result<FrameBoundaries, PayloadError> {
    let descriptor = descriptor(payload)?;
    Ok(FrameBoundaries { first: descriptor.starts_frame, last: marker, discardable: descriptor.non_reference })
}

pub(super) fn assemble(payloads: &[&[u8]]) -> Result<AssembledFrame, PayloadError> {
    let mut data = Vec::with_capacity(payloads.iter().map(|p| p.len()).sum());
    for payload in payloads {
        data.extend_from_slice(&payload[descriptor(payload)?.len..]);
    }
    let keyframe = data.first().ok_or(PayloadError::Short)? & 1 == 0;
    let format = if keyframe { Some(read_format(&data)?) } else { None };
    Ok(AssembledFrame { data, keyframe, format, ticks: None })
}

/// Size from a keyframe's header (RFC 6386 section 9.1).
fn read_format(frame: &[u8]) -> Result<TrackFormat, PayloadError> {
    let header: &[u8; 10] = frame.first_chunk().ok_or(PayloadError::Short)?;
    if header[3..6] != [0x9d, 0x01, 0x2a] {
        return Err(PayloadError::Invalid);
    }
    let width = u32::from(u16::from_le_bytes([header[6], header[7]]) & 0x3fff);
    let height = u32::from(u16::from_le_bytes([header[8], header[9]]) & 0x3fff);
    if width == 0 || height == 0 {
        return Err(PayloadError::Invalid);
    }
    Ok(TrackFormat { codec: Codec::Vp8, width, height, channels: 0, codec_private: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 10] = [0x10, 0, 0, 0x9d, 0x01, 0x2a, 0x80, 0x02, 0xe0, 0x01];

    #[test]
    fn a_keyframe_over_two_packets_is_joined_and_tells_its_size() {
        let one = [&[0x90, 0x80, 0x81, 0x23][..], &KEY[..7]].concat();
        let two = [&[0x80, 0x80, 0x81, 0x23][..], &KEY[7..]].concat();
        assert_eq!(boundaries(&one, false), Ok(FrameBoundaries { first: true, last: false, discardable: false }));
        assert_eq!(boundaries(&two, true), Ok(FrameBoundaries { first: false, last: true, discardable: false }));
        let frame = assemble(&[&one, &two]).expect("frame");
        assert_eq!(frame.data, KEY);
        let format = frame.format.expect("format");
        assert_eq!((frame.keyframe, format.width, format.height), (true, 640, 480));
    }

    #[test]
    fn an_inter_frame_has_no_size_and_may_be_discardable() {
        let packet = [0x30, 0x11, 0x22];
        assert!(boundaries(&packet, true).expect("edges").discardable);
        let frame = assemble(&[&packet]).expect("frame");
        assert_eq!((frame.keyframe, frame.format), (false, None));
    }

    #[test]
    fn a_keyframe_without_its_start_code_is_invalid() {
        assert_eq!(assemble(&[&[0x10, 0x10, 0, 0, 1, 2, 3, 4, 5, 6, 7]]), Err(PayloadError::Invalid));
    }
}
