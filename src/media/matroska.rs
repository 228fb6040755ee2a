//! What is in a finished Matroska file by its structure (RFC 8794, RFC 9559): one document, its tracks, the place of each block. Nothing is
//! decoded, and nothing that the file says is believed before the file is large enough for it.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes that are read at once. Blocks are passed over.
const READ_BYTES: usize = 4096;
/// The longest value of an element that is kept: `CodecPrivate` with all parameter sets.
const VALUE_BYTES_MAX: u64 = 1 << 20;
/// Tracks that are told apart, at most.
const TRACKS_MAX: usize = 16;

const EBML: u32 = 0x1A45_DFA3;
const SEGMENT: u32 = 0x1853_8067;
const INFO: u32 = 0x1549_A966;
const TIMESTAMP_SCALE: u32 = 0x002A_D7B1;
const DURATION: u32 = 0x4489;
const TRACKS: u32 = 0x1654_AE6B;
const TRACK_ENTRY: u32 = 0xAE;
const TRACK_NUMBER: u32 = 0xD7;
const TRACK_TYPE: u32 = 0x83;
const CODEC_ID: u32 = 0x86;
const CODEC_PRIVATE: u32 = 0x63A2;
const VIDEO: u32 = 0xE0;
const PIXEL_WIDTH: u32 = 0xB0;
const PIXEL_HEIGHT: u32 = 0xBA;
const CLUSTER: u32 = 0x1F43_B675;
const TIMESTAMP: u32 = 0xE7;
const SIMPLE_BLOCK: u32 = 0xA3;
const BLOCK_GROUP: u32 = 0xA0;
const BLOCK: u32 = 0xA1;
const REFERENCE_BLOCK: u32 = 0xFB;
const CUES: u32 = 0x1C53_BB6B;
const CUE_POINT: u32 = 0xBB;
const CUE_TRACK_POSITIONS: u32 = 0xB7;
const CUE_CLUSTER_POSITION: u32 = 0xF1;

/// What a file holds.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Contents {
    /// What the header tells, in nanoseconds; 0 without.
    pub duration_ns: u64,
    pub tracks: Vec<Track>,
}

/// A track and its blocks.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Track {
    number: u64,
    pub is_video: bool,
    pub codec_id: String,
    pub codec_private: Vec<u8>,
    /// Width and height in pixels.
    pub size: (u32, u32),
    pub blocks: u64,
    /// Whether a decoder can begin with the first block.
    pub begins_with_keyframe: bool,
    /// Where a decoder can begin; of video only.
    pub sync_points: Vec<BlockAt>,
    /// Start of the block that is shown last, in nanoseconds.
    pub last_ns: u64,
}

/// A block in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BlockAt {
    /// The frame's first byte.
    pub at: u64,
    /// The frame's bytes.
    pub size: u64,
    /// Its start, in nanoseconds.
    pub ns: u64,
}

impl BlockAt {
    /// Reads the frame.
    pub fn read(self, file: &File) -> std::io::Result<Vec<u8>> {
        let mut data = vec![0; usize::try_from(self.size).unwrap_or(usize::MAX)];
        file.read_exact_at(&mut data, self.at)?;
        Ok(data)
    }
}

/// Why a file is not as it should be.
#[derive(Debug, thiserror::Error)]
pub(super) enum BadFile {
    #[error("it cannot be read: {0}")]
    Io(#[from] std::io::Error),
    #[error("it is not one Matroska document: {0}")]
    Structure(&'static str),
}

use BadFile::Structure;

/// An element's name, and the bytes of its content.
struct Element {
    id: u32,
    /// `None`: it goes on as far as its parent.
    size: Option<u64>,
}

/// Reads a file from its beginning to its end.
struct Walk {
    reader: BufReader<File>,
    at: u64,
    len: u64,
}

impl Walk {
    fn open(path: &Path) -> Result<Self, BadFile> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        Ok(Self { reader: BufReader::with_capacity(READ_BYTES, file), at: 0, len })
    }

    fn byte(&mut self) -> Result<u8, BadFile> {
        let byte = *self.reader.fill_buf()?.first().ok_or(Structure("it ends within an element"))?;
        self.reader.consume(1);
        self.at += 1;
        Ok(byte)
    }

    /// A number of which the first byte tells the length (RFC 8794 section 4), and that length.
    fn number(&mut self, keep_marker: bool, longest: u32) -> Result<(u64, u32), BadFile> {
        let first = self.byte()?;
        let length = first.leading_zeros() + 1;
        if length > longest {
            return Err(Structure("a number is too long"));
        }
        let mut value = u64::from(first);
        if !keep_marker {
            value &= (1 << (8 - length)) - 1;
        }
        for _ in 1..length {
            value = value << 8 | u64::from(self.byte()?);
        }
        Ok((value, length))
    }

    fn element(&mut self) -> Result<Element, BadFile> {
        let (id, _) = self.number(true, 4)?;
        let (size, length) = self.number(false, 8)?;
        let is_known = size != (1_u64 << (7 * length)) - 1;
        if is_known && size > self.len - self.at {
            return Err(Structure("an element goes on behind the end"));
        }
        Ok(Element { id: u32::try_from(id).unwrap_or(0), size: is_known.then_some(size) })
    }

    fn skip(&mut self, bytes: u64) -> Result<(), BadFile> {
        self.reader.seek_relative(i64::try_from(bytes).unwrap_or(i64::MAX))?;
        self.at += bytes;
        Ok(())
    }

    fn value(&mut self, size: u64) -> Result<Vec<u8>, BadFile> {
        if size > VALUE_BYTES_MAX {
            return Err(Structure("a value is too long"));
        }
        let mut value = vec![0; usize::try_from(size).unwrap_or(0)];
        self.reader.read_exact(&mut value)?;
        self.at += size;
        Ok(value)
    }

    fn unsigned(&mut self, size: u64) -> Result<u64, BadFile> {
        Ok(self.value(size)?.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }
}

/// Reads the structure of a file.
///
/// # Errors
/// When it is cut, or is another thing than one document.
pub(super) fn contents(path: &Path) -> Result<Contents, BadFile> {
    let mut walk = Walk::open(path)?;
    let mut reading = Reading::default();
    while walk.at < walk.len {
        let at = walk.at;
        let element = walk.element()?;
        reading.element(&mut walk, at, &element)?;
    }
    reading.finish(&walk)
}

/// What was read so far. Masters are entered: the order of their children is enough to tell them apart.
#[derive(Default)]
struct Reading {
    contents: Contents,
    documents: u32,
    /// Where the segment's content is.
    segment: Option<(u64, Option<u64>)>,
    /// Where clusters begin.
    clusters: Vec<u64>,
    /// Where the index says that they do.
    cued: Vec<u64>,
    duration: f64,
    scale: u64,
    cluster_time: u64,
    /// The block of the group that is read.
    grouped: Option<(u64, BlockAt)>,
    /// Whether that group refers to another: its block is no keyframe. A reference may stand before the block or behind it.
    refers: bool,
}

impl Reading {
    /// Takes an element that begins at `at`.
    fn element(&mut self, walk: &mut Walk, at: u64, element: &Element) -> Result<(), BadFile> {
        let begins = walk.at;
        if self.documents == 0 && element.id != EBML {
            return Err(Structure("it does not begin as one"));
        }
        if matches!(element.id, BLOCK_GROUP | SIMPLE_BLOCK | CLUSTER) {
            self.end_group();
        }
        match (element.id, element.size) {
            (EBML, Some(size)) => {
                self.documents += 1;
                if self.documents > 1 {
                    return Err(Structure("another one follows"));
                }
                walk.skip(size)
            }
            (SEGMENT, size) => match self.segment.replace((begins, size)) {
                None => Ok(()),
                Some(_) => Err(Structure("it has two segments")),
            },
            (INFO | TRACKS | VIDEO | BLOCK_GROUP | CUES | CUE_POINT | CUE_TRACK_POSITIONS, _) => Ok(()),
            (CLUSTER, _) => {
                self.clusters.push(at);
                Ok(())
            }
            (TRACK_ENTRY, _) if self.contents.tracks.len() < TRACKS_MAX => {
                self.contents.tracks.push(Track::default());
                Ok(())
            }
            (TRACK_ENTRY, _) => Err(Structure("it has too many tracks")),
            (_, None) => Err(Structure("an element has no size")),
            (id, Some(size)) => self.value(walk, id, size),
        }
    }

    fn value(&mut self, walk: &mut Walk, id: u32, size: u64) -> Result<(), BadFile> {
        let track = self.contents.tracks.last_mut();
        match (id, track) {
            (TIMESTAMP_SCALE, _) => self.scale = walk.unsigned(size)?,
            (DURATION, _) => {
                let value = walk.value(size)?;
                self.duration = match (<[u8; 4]>::try_from(&value[..]), <[u8; 8]>::try_from(&value[..])) {
                    (Ok(single), _) => f64::from(f32::from_be_bytes(single)),
                    (_, Ok(double)) => f64::from_be_bytes(double),
                    _ => 0.0,
                };
            }
            (TRACK_NUMBER, Some(track)) => track.number = walk.unsigned(size)?,
            (TRACK_TYPE, Some(track)) => track.is_video = walk.unsigned(size)? == 1,
            (CODEC_ID, Some(track)) => {
                track.codec_id = String::from_utf8_lossy(&walk.value(size)?).trim_end_matches('\0').to_owned();
            }
            (CODEC_PRIVATE, Some(track)) => track.codec_private = walk.value(size)?,
            (PIXEL_WIDTH, Some(track)) => track.size.0 = u32::try_from(walk.unsigned(size)?).unwrap_or(0),
            (PIXEL_HEIGHT, Some(track)) => track.size.1 = u32::try_from(walk.unsigned(size)?).unwrap_or(0),
            (TIMESTAMP, _) => self.cluster_time = walk.unsigned(size)?,
            (CUE_CLUSTER_POSITION, _) => {
                let position = walk.unsigned(size)?;
                self.cued.push(position);
            }
            (SIMPLE_BLOCK | BLOCK, _) => return self.block(walk, id == SIMPLE_BLOCK, size),
            (REFERENCE_BLOCK, _) => {
                self.refers = true;
                walk.skip(size)?;
            }
            _ => walk.skip(size)?,
        }
        Ok(())
    }

    fn block(&mut self, walk: &mut Walk, is_simple: bool, size: u64) -> Result<(), BadFile> {
        let begins = walk.at;
        let (track, _) = walk.number(false, 8)?;
        let relative = i16::from_be_bytes([walk.byte()?, walk.byte()?]);
        let flags = walk.byte()?;
        let rest = size.checked_sub(walk.at - begins).ok_or(Structure("a block is too short"))?;
        let scale = if self.scale == 0 { 1_000_000 } else { self.scale };
        let ns = self.cluster_time.saturating_add_signed(relative.into()).saturating_mul(scale);
        let block = BlockAt { at: walk.at, size: rest, ns };
        walk.skip(rest)?;
        if is_simple {
            self.add(track, block, flags & 0x80 != 0);
        } else {
            self.grouped = Some((track, block));
        }
        Ok(())
    }

    fn end_group(&mut self) {
        let keyframe = !std::mem::take(&mut self.refers);
        if let Some((track, block)) = self.grouped.take() {
            self.add(track, block, keyframe);
        }
    }

    fn add(&mut self, number: u64, block: BlockAt, keyframe: bool) {
        let Some(track) = self.contents.tracks.iter_mut().find(|track| track.number == number) else { return };
        if track.blocks == 0 {
            track.begins_with_keyframe = keyframe;
        }
        track.blocks += 1;
        track.last_ns = track.last_ns.max(block.ns);
        if keyframe && track.is_video {
            track.sync_points.push(block);
        }
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    fn finish(mut self, walk: &Walk) -> Result<Contents, BadFile> {
        self.end_group();
        let (begins, size) = self.segment.ok_or(Structure("it has no segment"))?;
        if size.is_some_and(|size| begins.checked_add(size) != Some(walk.len)) {
            return Err(Structure("something follows it"));
        }
        // A position counts from the segment's content.
        let is_cluster = |position: &u64| self.clusters.binary_search(&begins.saturating_add(*position)).is_ok();
        if !self.cued.iter().all(is_cluster) {
            return Err(Structure("its index points beside its clusters"));
        }
        let scale = if self.scale == 0 { 1_000_000 } else { self.scale };
        self.contents.duration_ns = (self.duration * scale as f64).round() as u64;
        Ok(self.contents)
    }
}

#[cfg(test)]
#[path = "matroska_tests.rs"]
mod tests;
