//! VP9 (RFC 9628). All spatial layers of a picture become one superframe: they share a timestamp, and the
//! marker ends the picture.

use super::bits::Bits;
use super::{AssembledFrame, FrameBoundaries, PayloadError};
use crate::model::media::{Codec, TrackFormat};

/// Width and height in pixels.
pub(super) type Size = (u32, u32);

struct Descriptor {
    len: usize,
    begins: bool,
    inter: bool,
    spatial: u8,
    /// Sizes of the spatial layers, where the packet tells them.
    sizes: Option<[(u32, u32); LAYERS_MAX]>,
}

/// Spatial layers of a picture (RFC 9628 section 4.2: three bits).
const LAYERS_MAX: usize = 8;

fn byte(payload: &[u8], at: &mut usize) -> Result<u8, PayloadError> {
    let byte = *payload.get(*at).ok_or(PayloadError::Short)?;
    *at += 1;
    Ok(byte)
}

fn descriptor(payload: &[u8]) -> Result<Descriptor, PayloadError> {
    let mut at = 0;
    let first = byte(payload, &mut at)?;
    let (picture_id, inter, layers, flexible, begins, scalability) = (
        first & 0x80 != 0,
        first & 0x40 != 0,
        first & 0x20 != 0,
        first & 0x10 != 0,
        first & 0x08 != 0,
        first & 0x02 != 0,
    );
    if picture_id && byte(payload, &mut at)? & 0x80 != 0 {
        at += 1;
    }
    let mut spatial = 0;
    if layers {
        let indices = byte(payload, &mut at)?;
        spatial = indices >> 1 & 0x07;
        if !flexible {
            at += 1; // TL0PICIDX
        }
    }
    if flexible && inter {
        for reference in 0.. {
            if reference == 3 {
                return Err(PayloadError::Invalid);
            }
            if byte(payload, &mut at)? & 1 == 0 {
                break;
            }
        }
    }
    let sizes = if scalability { scalability_structure(payload, &mut at)? } else { None };
    if payload.len() <= at {
        return Err(PayloadError::Short);
    }
    Ok(Descriptor { len: at, begins, inter, spatial, sizes })
}

/// Scalability structure (RFC 9628 section 4.2.1). Returns the layers' sizes, if it has them.
fn scalability_structure(payload: &[u8], at: &mut usize) -> Result<Option<[(u32, u32); LAYERS_MAX]>, PayloadError> {
    let head = byte(payload, at)?;
    let layers = usize::from(head >> 5) + 1;
    let mut sizes = None;
    if head & 0x10 != 0 {
        let sizes = sizes.insert([(0, 0); LAYERS_MAX]);
        for size in sizes.iter_mut().take(layers) {
            let mut number = || Ok(u32::from(byte(payload, at)?) << 8 | u32::from(byte(payload, at)?));
            *size = (number()?, number()?);
        }
    }
    if head & 0x08 != 0 {
        for _ in 0..byte(payload, at)? {
            let references = usize::from(byte(payload, at)? >> 2 & 0x03);
            *at += references;
        }
    }
    Ok(sizes)
}

pub(super) fn boundaries(payload: &[u8], marker: bool) -> Result<FrameBoundaries, PayloadError> {
    let d = descriptor(payload)?;
    // Z says that upper spatial layers do not refer to a frame. Later frames may.
    Ok(FrameBoundaries { first: d.begins && d.spatial == 0, last: marker, discardable: false })
}

pub(super) fn assemble(payloads: &[&[u8]]) -> Result<AssembledFrame, PayloadError> {
    // One entry a layer frame: where it begins in `data`.
    let mut starts = Vec::new();
    let mut data = Vec::with_capacity(payloads.iter().map(|p| p.len()).sum::<usize>() + 34);
    let mut keyframe = false;
    let (mut highest, mut sizes) = (0, None);
    for payload in payloads {
        let d = descriptor(payload)?;
        highest = highest.max(usize::from(d.spatial));
        sizes = sizes.or(d.sizes);
        if d.begins {
            keyframe |= starts.is_empty() && !d.inter;
            starts.push(data.len());
        }
        data.extend_from_slice(&payload[d.len..]);
    }
    let mut format = if keyframe { read_format(&data)? } else { None };
    // The header is the lowest layer's; the highest one is shown.
    if let (Some(format), Some((width @ 1.., height @ 1..))) = (&mut format, sizes.map(|sizes| sizes[highest]))
        && highest > 0
    {
        (format.width, format.height) = (width, height);
    }
    append_superframe_index(&mut data, &starts)?;
    Ok(AssembledFrame { data, keyframe: keyframe && format.is_some(), format, ticks: None })
}

/// Appends the superframe index (VP9 bitstream specification, annex B) when there is more than one layer.
#[allow(clippy::cast_possible_truncation)]
pub(super) fn append_superframe_index(data: &mut Vec<u8>, starts: &[usize]) -> Result<(), PayloadError> {
    let frames = starts.len();
    if frames < 2 {
        return Ok(());
    }
    if frames > 8 {
        return Err(PayloadError::Invalid);
    }
    let marker = 0b1100_0000 | 3 << 3 | (frames as u8 - 1);
    let end = data.len();
    data.push(marker);
    for (at, start) in starts.iter().enumerate() {
        let next = starts.get(at + 1).copied().unwrap_or(end);
        data.extend_from_slice(&((next - start) as u32).to_le_bytes());
    }
    data.push(marker);
    Ok(())
}

/// Size from the uncompressed header of a keyframe (VP9 bitstream specification, section 6.2); `None` if
/// it is no keyframe.
fn read_format(frame: &[u8]) -> Result<Option<TrackFormat>, PayloadError> {
    let mut bits = Bits::new(frame);
    let profile = profile(&mut bits)?;
    let (show_existing, inter) = (bits.bit()?, bits.bit()?);
    if show_existing || inter {
        return Ok(None);
    }
    bits.take(2)?; // show_frame, error_resilient_mode
    sync_code(&mut bits)?;
    color_config(&mut bits, profile)?;
    let (width, height) = frame_size(&mut bits)?;
    Ok(Some(TrackFormat { codec: Codec::Vp9, width, height, channels: 0, codec_private: Vec::new() }))
}

/// The frame marker, and the profile.
pub(super) fn profile(bits: &mut Bits) -> Result<u32, PayloadError> {
    if bits.take(2)? != 2 {
        return Err(PayloadError::Invalid);
    }
    let profile = u32::from(bits.bit()?) | u32::from(bits.bit()?) << 1;
    if profile == 3 {
        bits.bit()?; // reserved_zero
    }
    Ok(profile)
}

pub(super) fn sync_code(bits: &mut Bits) -> Result<(), PayloadError> {
    if bits.take(24)? == 0x49_83_42 { Ok(()) } else { Err(PayloadError::Invalid) }
}

pub(super) fn color_config(bits: &mut Bits, profile: u32) -> Result<(), PayloadError> {
    if profile >= 2 {
        bits.bit()?; // ten_or_twelve_bit
    }
    let rgb = bits.take(3)? == 7;
    if !rgb {
        bits.bit()?; // color_range
    }
    if profile & 1 == 1 {
        bits.take(if rgb { 1 } else { 3 })?; // subsampling_x, subsampling_y, reserved_zero
    }
    Ok(())
}

pub(super) fn frame_size(bits: &mut Bits) -> Result<Size, PayloadError> {
    Ok((bits.take(16)? + 1, bits.take(16)? + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    // Profile 0 keyframe header of 640x480.
    const KEY: [u8; 9] = [0x82, 0x49, 0x83, 0x42, 0x00, 0x27, 0xf0, 0x1d, 0xf0];

    #[test]
    fn a_keyframe_tells_its_size() {
        let packet = [&[0x88, 0x81, 0x23][..], &KEY].concat();
        assert_eq!(boundaries(&packet, true), Ok(FrameBoundaries { first: true, last: true, discardable: false }));
        let frame = assemble(&[&packet]).expect("frame");
        let format = frame.format.expect("format");
        assert_eq!((frame.keyframe, format.width, format.height, &frame.data[..]), (true, 640, 480, &KEY[..]));
    }

    #[test]
    fn the_size_is_that_of_the_highest_layer_that_is_there() {
        // Two layers: 320x240 and 640x480; L, B, V.
        let structure = [0x30, 1, 0x40, 0, 0xf0, 2, 0x80, 1, 0xe0];
        let low = [&[0x2a, 0x00, 0x00][..], &structure, &KEY].concat();
        let high = [0x6c, 0x02, 0x00, 0xaa, 0xbb];
        let size = |payloads: &[&[u8]]| assemble(payloads).ok()?.format.map(|f| (f.width, f.height));
        assert_eq!(size(&[&low, &high]), Some((640, 480)));
        let small: [u8; 9] = [0x82, 0x49, 0x83, 0x42, 0x00, 0x13, 0xf0, 0x0e, 0xf0];
        let low = [&[0x2a, 0x00, 0x00][..], &structure, &small].concat();
        assert_eq!(size(&[&low]), Some((320, 240)));
    }

    #[test]
    fn spatial_layers_become_one_superframe() {
        let low = [&[0x2c, 0x00, 0x00][..], &KEY].concat();
        let high = [0x6c, 0x02, 0x00, 0xaa, 0xbb];
        let frame = assemble(&[&low, &high]).expect("frame");
        assert_eq!(frame.data.len(), 9 + 2 + 10);
        assert_eq!(frame.data[11], frame.data[20]);
        assert_eq!(frame.data[12..20], [9, 0, 0, 0, 2, 0, 0, 0]);
    }
}
