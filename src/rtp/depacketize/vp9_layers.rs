//! Hides the lower spatial layers of VP9 pictures in files.
//!
//! A sender of spatial layers sets `show_frame` in each of them. libvpx returns one frame for a superframe, the last one. FFmpeg's decoder, which
//! many players use, returns each shown frame: the picture is shown once for each layer. A file is played by all of them.
//! Section numbers are those of the VP9 bitstream specification, version 0.6. Pure.

use bytes::Bytes;

use super::PayloadError;
use super::bits::Bits;
use super::vp9::{Size, append_superframe_index, color_config, frame_size, profile, sync_code};

/// The decoder's state that reading a frame's header takes: the sizes of its reference frames.
#[derive(Debug, Default)]
pub struct LayerHider {
    references: [Option<Size>; 8],
    unreadable: u64,
}

/// What is read of a frame's uncompressed header (section 6.2). Positions are bits from the frame's first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    is_key: bool,
    is_shown: bool,
    is_resilient: bool,
    is_intra: bool,
    show_frame_at: usize,
    size: Size,
    /// The references that the frame replaces, a bit each.
    refreshed: u32,
    end: usize,
}

impl LayerHider {
    /// A picture of which only the highest layer is shown. A picture that cannot be changed without damage stays as it is. Pictures
    /// come in decoding order, from a keyframe on.
    pub fn hide_lower_layers(&mut self, picture: Bytes) -> Bytes {
        match self.hidden(&picture) {
            Ok(Some(hidden)) => hidden.into(),
            Ok(None) => picture,
            Err(_) => {
                self.unreadable += 1;
                picture
            }
        }
    }

    /// Pictures whose headers could not be read: of several layers, a player may show each.
    pub const fn unreadable(&self) -> u64 {
        self.unreadable
    }

    fn hidden(&mut self, picture: &[u8]) -> Result<Option<Vec<u8>>, PayloadError> {
        let frames = frames_of(picture);
        let mut headers = Vec::with_capacity(frames.len());
        for frame in &frames {
            headers.push(self.read(frame)?);
        }
        let Some(last) = headers.iter().rposition(|header| header.is_none_or(|h| h.is_shown)) else { return Ok(None) };
        // A frame that follows a hidden one has no motion vectors to predict from (section 7.2, UsePrevFrameMvs). Of a frame of another
        // size it takes none anyway.
        let depends = |at: usize| match (headers[at], headers.get(at + 1).copied().flatten()) {
            (Some(one), Some(next)) => !next.is_resilient && !next.is_intra && next.size == one.size,
            (Some(_), None) => true,
            (None, _) => false,
        };
        let is_hidden = |at: usize| at < last && headers[at].is_some_and(|header| header.is_shown);
        if !(0..last).any(is_hidden) || (0..last).any(|at| is_hidden(at) && depends(at)) {
            return Ok(None);
        }
        let mut out = Vec::with_capacity(picture.len() + frames.len());
        let mut starts = Vec::with_capacity(frames.len());
        for (at, frame) in frames.iter().enumerate() {
            starts.push(out.len());
            match headers[at].filter(|_| is_hidden(at)) {
                Some(header) => without_show_frame(frame, header, &mut out),
                None => out.extend_from_slice(frame),
            }
        }
        append_superframe_index(&mut out, &starts)?;
        Ok(Some(out))
    }

    /// Reads a frame's header, and notes which references it replaces; `None` for a frame that shows an existing one.
    fn read(&mut self, frame: &[u8]) -> Result<Option<Header>, PayloadError> {
        let header = read_header(frame, &self.references)?;
        if let Some(header) = header {
            for (slot, size) in self.references.iter_mut().enumerate() {
                if header.refreshed >> slot & 1 == 1 {
                    *size = Some(header.size);
                }
            }
        }
        Ok(header)
    }
}

/// The frames of a superframe (annex B), without its index.
fn frames_of(picture: &[u8]) -> Vec<&[u8]> {
    let whole = || vec![picture];
    let Some(marker) = picture.last().copied().filter(|marker| marker & 0xe0 == 0xc0) else { return whole() };
    let (count, bytes) = (usize::from(marker & 7) + 1, usize::from(marker >> 3 & 3) + 1);
    let len = 2 + count * bytes;
    let Some(index) = picture.len().checked_sub(len).map(|at| &picture[at..]) else { return whole() };
    if index[0] != marker {
        return whole();
    }
    let mut rest = &picture[..picture.len() - len];
    let mut frames = Vec::with_capacity(count);
    for size in index[1..=count * bytes].chunks(bytes) {
        let size = size.iter().rev().fold(0, |size, byte| size << 8 | usize::from(*byte));
        let Some((frame, behind)) = rest.split_at_checked(size) else { return whole() };
        frames.push(frame);
        rest = behind;
    }
    frames
}

/// Appends a frame whose `show_frame` is 0. Behind it an inter frame has `intra_only`, which a shown frame has not (section 6.2).
fn without_show_frame(frame: &[u8], header: Header, out: &mut Vec<u8>) {
    let bit = |at: usize| frame[at / 8] >> (7 - at % 8) & 1;
    let behind = header.show_frame_at + 2;
    let intra_only = (!header.is_key).then_some(0);
    let bits = (0..header.show_frame_at)
        .map(bit)
        .chain([0, bit(behind - 1)])
        .chain(intra_only)
        .chain((behind..header.end).map(bit))
        .collect::<Vec<u8>>();
    out.extend(bits.chunks(8).map(|eight| eight.iter().enumerate().fold(0, |byte, (at, bit)| byte | bit << (7 - at))));
    out.extend_from_slice(&frame[header.end.div_ceil(8)..]);
}

/// Reads a frame's uncompressed header; `None` for a frame that shows an existing one.
fn read_header(frame: &[u8], references: &[Option<Size>; 8]) -> Result<Option<Header>, PayloadError> {
    let mut bits = Bits::new(frame);
    let profile = profile(&mut bits)?;
    if bits.bit()? {
        return Ok(None);
    }
    let is_key = !bits.bit()?;
    let show_frame_at = bits.position();
    let (is_shown, is_resilient) = (bits.bit()?, bits.bit()?);
    let mut is_intra = is_key;
    let (size, refreshed);
    if is_key {
        sync_code(&mut bits)?;
        color_config(&mut bits, profile)?;
        (size, refreshed) = (frame_size(&mut bits)?, 0xff);
        render_size(&mut bits)?;
    } else {
        is_intra = !is_shown && bits.bit()?;
        if !is_resilient {
            bits.take(2)?; // reset_frame_context
        }
        if is_intra {
            sync_code(&mut bits)?;
            if profile > 0 {
                color_config(&mut bits, profile)?;
            }
            refreshed = bits.take(8)?;
            size = frame_size(&mut bits)?;
            render_size(&mut bits)?;
        } else {
            refreshed = bits.take(8)?;
            size = size_with_references(&mut bits, references)?;
            bits.bit()?; // allow_high_precision_mv
            if !bits.bit()? {
                bits.take(2)?; // raw_interpolation_filter
            }
        }
    }
    if !is_resilient {
        bits.take(2)?; // refresh_frame_context, frame_parallel_decoding_mode
    }
    bits.take(2)?; // frame_context_idx
    loop_filter(&mut bits)?;
    quantization(&mut bits)?;
    segmentation(&mut bits)?;
    tiles(&mut bits, size.0)?;
    // header_size_in_bytes: a compressed header follows.
    if bits.take(16)? == 0 {
        return Err(PayloadError::Invalid);
    }
    let end = bits.position();
    Ok(Some(Header { is_key, is_shown, is_resilient, is_intra, show_frame_at, size, refreshed, end }))
}

fn render_size(bits: &mut Bits) -> Result<(), PayloadError> {
    if bits.bit()? {
        bits.take(32)?;
    }
    Ok(())
}

fn size_with_references(bits: &mut Bits, references: &[Option<Size>; 8]) -> Result<Size, PayloadError> {
    let mut used = [0; 3];
    for slot in &mut used {
        *slot = bits.take(3)? as usize;
        bits.bit()?; // ref_frame_sign_bias
    }
    let mut size = None;
    for slot in used {
        if bits.bit()? {
            size = Some(references[slot].ok_or(PayloadError::Invalid)?);
            break;
        }
    }
    let size = size.map_or_else(|| frame_size(bits), Ok)?;
    render_size(bits)?;
    Ok(size)
}

fn loop_filter(bits: &mut Bits) -> Result<(), PayloadError> {
    bits.take(9)?; // level, sharpness
    // mode_ref_delta_enabled, mode_ref_delta_update
    if bits.bit()? && bits.bit()? {
        for _ in 0..4 + 2 {
            if bits.bit()? {
                bits.take(7)?;
            }
        }
    }
    Ok(())
}

fn quantization(bits: &mut Bits) -> Result<(), PayloadError> {
    bits.take(8)?; // base_q_idx
    for _ in 0..3 {
        if bits.bit()? {
            bits.take(5)?;
        }
    }
    Ok(())
}

fn segmentation(bits: &mut Bits) -> Result<(), PayloadError> {
    /// Bits of a feature's value, and whether a sign follows.
    const FEATURES: [(u32, bool); 4] = [(8, true), (6, true), (2, false), (0, false)];
    let probabilities = |bits: &mut Bits, count: u32| -> Result<(), PayloadError> {
        for _ in 0..count {
            if bits.bit()? {
                bits.take(8)?;
            }
        }
        Ok(())
    };
    if !bits.bit()? {
        return Ok(());
    }
    if bits.bit()? {
        // segmentation_update_map
        probabilities(bits, 7)?;
        if bits.bit()? {
            probabilities(bits, 3)?;
        }
    }
    if bits.bit()? {
        // segmentation_update_data
        bits.bit()?;
        for (len, is_signed) in FEATURES.iter().cycle().take(8 * FEATURES.len()) {
            if bits.bit()? {
                bits.take(len + u32::from(*is_signed))?;
            }
        }
    }
    Ok(())
}

/// Section 6.2.13. A tile is 256 to 4,096 pixels wide.
fn tiles(bits: &mut Bits, width: u32) -> Result<(), PayloadError> {
    let superblocks = width.div_ceil(8).div_ceil(8);
    let mut columns = 0;
    while 64 << columns < superblocks {
        columns += 1;
    }
    let mut most = 1;
    while superblocks >> most >= 4 {
        most += 1;
    }
    while columns < most - 1 && bits.bit()? {
        columns += 1;
    }
    // tile_rows_log2
    if bits.bit()? {
        bits.bit()?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "vp9_layers_tests.rs"]
mod tests;
