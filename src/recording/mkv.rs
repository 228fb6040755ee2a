//! The small part of Matroska (RFC 9559) that segments use: one track, clusters of known size, simple
//! blocks. Written and read here; ordinary tools read it too.

use crate::model::ids::TrackKind;
use crate::model::media::{Codec, TrackFormat};
use crate::model::time::MediaTime;

/// Nanoseconds of one timestamp unit: 0.1 ms is exact enough for 20 ms of audio and for 90 kHz video, and a part of 3 s
/// fits the 16 bits of a block's relative time.
pub const TIMESTAMP_SCALE_NS: i64 = 100_000;
/// A cluster's bytes before its first block.
pub const CLUSTER_HEADER: usize = 22;

const CLUSTER: [u8; 4] = [0x1f, 0x43, 0xb6, 0x75];
const SIMPLE_BLOCK: u8 = 0xa3;
const TIMESTAMP: u8 = 0xe7;

fn id(out: &mut Vec<u8>, id: u32) {
    let bytes = id.to_be_bytes();
    let skip = bytes.iter().take_while(|b| **b == 0).count();
    out.extend_from_slice(&bytes[skip..]);
}

fn element(out: &mut Vec<u8>, name: u32, data: &[u8]) {
    id(out, name);
    // Eight bytes of size are always valid.
    out.extend_from_slice(&(data.len() as u64 | 1 << 56).to_be_bytes());
    out.extend_from_slice(data);
}

fn uint(out: &mut Vec<u8>, name: u32, value: u64) {
    element(out, name, &value.to_be_bytes());
}

/// The bytes of a segment before its first part.
#[must_use]
pub fn header(format: &TrackFormat) -> Vec<u8> {
    let mut ebml = Vec::new();
    uint(&mut ebml, 0x4286, 1);
    uint(&mut ebml, 0x42f7, 1);
    uint(&mut ebml, 0x42f2, 4);
    uint(&mut ebml, 0x42f3, 8);
    element(&mut ebml, 0x4282, if format.codec.in_webm() { b"webm" } else { b"matroska" });
    uint(&mut ebml, 0x4287, 4);
    uint(&mut ebml, 0x4285, 2);
    let mut info = Vec::new();
    uint(&mut info, 0x2a_d7b1, TIMESTAMP_SCALE_NS.cast_unsigned());
    element(&mut info, 0x4d80, b"archiver");
    element(&mut info, 0x5741, b"archiver");
    let mut tracks = Vec::new();
    element(&mut tracks, 0xae, &track(format));

    let mut out = Vec::with_capacity(320);
    element(&mut out, 0x1a45_dfa3, &ebml);
    id(&mut out, 0x1853_8067);
    // A segment of unknown size: it plays although it still grows.
    out.extend_from_slice(&[0x01, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    element(&mut out, 0x1549_a966, &info);
    element(&mut out, 0x1654_ae6b, &tracks);
    out
}

fn track(format: &TrackFormat) -> Vec<u8> {
    let (codec_id, private) = match format.codec {
        Codec::Vp8 => ("V_VP8", Vec::new()),
        Codec::Vp9 => ("V_VP9", Vec::new()),
        Codec::H264 => ("V_MPEG4/ISO/AVC", format.codec_private.clone()),
        Codec::Av1 => ("V_AV1", format.codec_private.clone()),
        Codec::Opus => ("A_OPUS", format.codec_private.clone()),
        Codec::Pcmu => ("A_MS/ACM", wave_format(7, format.channels)),
        Codec::Pcma => ("A_MS/ACM", wave_format(6, format.channels)),
    };
    let mut entry = Vec::new();
    uint(&mut entry, 0xd7, 1);
    uint(&mut entry, 0x73c5, 1);
    uint(&mut entry, 0x83, if format.codec.kind() == TrackKind::Video { 1 } else { 2 });
    uint(&mut entry, 0x9c, 0);
    element(&mut entry, 0x86, codec_id.as_bytes());
    if !private.is_empty() {
        element(&mut entry, 0x63a2, &private);
    }
    let mut detail = Vec::new();
    if format.codec.kind() == TrackKind::Video {
        uint(&mut detail, 0xb0, u64::from(format.width));
        uint(&mut detail, 0xba, u64::from(format.height));
        element(&mut entry, 0xe0, &detail);
    } else {
        element(&mut detail, 0xb5, &f64::from(format.codec.clock_rate()).to_be_bytes());
        uint(&mut detail, 0x9f, u64::from(format.channels));
        if format.codec == Codec::Opus {
            uint(&mut entry, 0x56aa, 0);
            uint(&mut entry, 0x56bb, 80_000_000);
        }
        element(&mut entry, 0xe1, &detail);
    }
    entry
}

/// `WAVEFORMATEX` for 8 kHz G.711.
fn wave_format(tag: u16, channels: u32) -> Vec<u8> {
    let mut out = tag.to_le_bytes().to_vec();
    let channels = u16::try_from(channels.max(1)).unwrap_or(1);
    out.extend_from_slice(&channels.to_le_bytes());
    out.extend_from_slice(&8_000_u32.to_le_bytes());
    out.extend_from_slice(&(8_000 * u32::from(channels)).to_le_bytes());
    out.extend_from_slice(&channels.to_le_bytes());
    out.extend_from_slice(&8_u16.to_le_bytes());
    out.extend_from_slice(&0_u16.to_le_bytes());
    out
}

/// Media time in timestamp units. Media before the origin is written at the origin.
#[must_use]
pub const fn units(at: MediaTime) -> i64 {
    let units = at.0 / TIMESTAMP_SCALE_NS;
    if units < 0 { 0 } else { units }
}

/// The time that a block has for a frame of this time.
#[must_use]
pub const fn cut(at: MediaTime) -> MediaTime {
    MediaTime(units(at) * TIMESTAMP_SCALE_NS)
}

/// A block's time in a part whose first block is at `first`, both in timestamp units: before that one, if its frame is shown earlier. `None`
/// if 16 bits cannot tell it.
#[must_use]
pub fn relative(units: i64, first: i64) -> Option<i16> {
    units.checked_sub(first).and_then(|units| i16::try_from(units).ok())
}

/// Adds a block to a part whose first [`CLUSTER_HEADER`] bytes are kept free.
pub fn block(part: &mut Vec<u8>, relative: i16, keyframe: bool, data: &[u8]) {
    part.push(SIMPLE_BLOCK);
    part.extend_from_slice(&((data.len() as u64 + 4) | 1 << 56).to_be_bytes());
    part.push(0x81);
    part.extend_from_slice(&relative.to_be_bytes());
    part.push(if keyframe { 0x80 } else { 0 });
    part.extend_from_slice(data);
}

/// Fills in the cluster's header when all blocks are there.
pub fn finish(part: &mut [u8], first: i64) {
    let size = (part.len() - 12) as u64 | 1 << 56;
    part[..4].copy_from_slice(&CLUSTER);
    part[4..12].copy_from_slice(&size.to_be_bytes());
    part[12..14].copy_from_slice(&[TIMESTAMP, 0x88]);
    part[14..22].copy_from_slice(&first.to_be_bytes());
}

/// A part's bytes are not a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("byte {at} of the part is not what it should be")]
pub struct BadPart {
    /// Offset of the wrong byte.
    pub at: usize,
}

/// A frame in a part's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Its media time.
    pub pts: MediaTime,
    /// Whether a decoder can begin here.
    pub keyframe: bool,
    /// The range of its data.
    pub data: std::ops::Range<usize>,
}

/// Reads the blocks of a part that this program wrote.
///
/// # Errors
/// When a byte is not as [`block`] and [`finish`] write it.
pub fn read_part(part: &[u8]) -> Result<Vec<Block>, BadPart> {
    let bad = |at| BadPart { at };
    let head = part.first_chunk::<CLUSTER_HEADER>().ok_or(bad(0))?;
    let size = u64::from_be_bytes(head[4..12].try_into().map_err(|_| bad(4))?);
    if head[..4] != CLUSTER || size != ((part.len() as u64 - 12) | (1 << 56)) || head[12..14] != [TIMESTAMP, 0x88] {
        return Err(bad(0));
    }
    let first = i64::from_be_bytes(head[14..22].try_into().map_err(|_| bad(14))?);
    let (mut at, mut frames) = (CLUSTER_HEADER, Vec::new());
    while at < part.len() {
        let block = part.get(at..).and_then(|rest| rest.first_chunk::<13>()).ok_or(bad(at))?;
        let size = u64::from_be_bytes(block[1..9].try_into().map_err(|_| bad(at))?) ^ 1 << 56;
        let size = usize::try_from(size).map_err(|_| bad(at + 1))?;
        let end = (at + 9).checked_add(size).filter(|end| *end <= part.len() && size >= 4).ok_or(bad(at + 1))?;
        if block[0] != SIMPLE_BLOCK || block[9] != 0x81 || block[12] & 0x7f != 0 {
            return Err(bad(at));
        }
        let units = first.saturating_add(i64::from(i16::from_be_bytes([block[10], block[11]])));
        let pts = MediaTime(units.saturating_mul(TIMESTAMP_SCALE_NS));
        frames.push(Block { pts, keyframe: block[12] == 0x80, data: at + 13..end });
        at = end;
    }
    Ok(frames)
}
