//! The duration that a Matroska file's header tells.
//!
//! GStreamer's muxer (1.22, `matroska-mux.c`) writes the length of its longest track, each counted from its own
//! first frame: sound that begins when the picture has ended is not in it, and players would stop before it.

use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

/// The header lies within the first bytes of a file.
const HEAD_BYTES: u64 = 1 << 20;

const SEGMENT: u32 = 0x1853_8067;
const INFO: u32 = 0x1549_A966;
const TIMESTAMP_SCALE: u32 = 0x002A_D7B1;
const DURATION: u32 = 0x4489;

/// An element of EBML (RFC 8794): its name, and where its content is.
struct Element {
    id: u32,
    start: usize,
    end: usize,
}

/// Reads the element at `at`. One of unknown size goes to the end of `bytes`.
fn element(bytes: &[u8], at: usize) -> Option<Element> {
    let first = *bytes.get(at)?;
    let id_len = first.leading_zeros() as usize + 1;
    let id = bytes.get(at..at + id_len).filter(|_| id_len <= 4)?;
    let id = id.iter().fold(0, |id, b| id << 8 | u32::from(*b));
    let at = at + id_len;
    let size_len = bytes.get(at)?.leading_zeros() as usize + 1;
    let size = bytes.get(at..at + size_len).filter(|_| size_len <= 8)?;
    let mask = (1_u64 << (7 * size_len)) - 1;
    let size = size.iter().fold(0, |size, b| size << 8 | u64::from(*b)) & mask;
    let start = at + size_len;
    let end = if size == mask { None } else { usize::try_from(size).ok().and_then(|size| start.checked_add(size)) };
    Some(Element { id, start, end: end.unwrap_or(bytes.len()).min(bytes.len()) })
}

/// The first element with a name among those from `start` to `end`.
fn find(bytes: &[u8], start: usize, end: usize, id: u32) -> Option<Element> {
    let mut at = start;
    while at < end {
        let found = element(bytes, at)?;
        if found.id == id {
            return Some(found);
        }
        at = found.end;
    }
    None
}

/// Where a file's header has its duration as a 64-bit float, and how many nanoseconds its unit has.
fn place(head: &[u8]) -> Option<(u64, f64)> {
    let segment = find(head, 0, head.len(), SEGMENT)?;
    let info = find(head, segment.start, segment.end, INFO)?;
    let scale = find(head, info.start, info.end, TIMESTAMP_SCALE)
        .map_or(1_000_000, |e| head[e.start..e.end].iter().fold(0, |n, b| n << 8 | u64::from(*b)));
    let duration = find(head, info.start, info.end, DURATION).filter(|e| e.end - e.start == 8)?;
    #[allow(clippy::cast_precision_loss)]
    Some((duration.start as u64, scale as f64))
}

/// Writes a file's duration, in nanoseconds, into its header. Returns whether there was a place for it.
///
/// # Errors
/// When the file cannot be read or written.
pub(super) fn set(path: &Path, nanoseconds: u64) -> std::io::Result<bool> {
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut head = Vec::new();
    Read::by_ref(&mut file).take(HEAD_BYTES).read_to_end(&mut head)?;
    let Some((at, unit)) = place(&head) else { return Ok(false) };
    #[allow(clippy::cast_precision_loss)]
    let units = nanoseconds as f64 / unit;
    file.seek(SeekFrom::Start(at))?;
    file.write_all(&units.to_be_bytes())?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &[u8] = &[
        0x1A, 0x45, 0xDF, 0xA3, 0x81, 0x00, // EBML, one byte
        0x18, 0x53, 0x80, 0x67, 0x01, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, // Segment of unknown size
        0xEC, 0x82, 0x00, 0x00, // Void
        0x15, 0x49, 0xA9, 0x66, 0x92, // Info
        0x2A, 0xD7, 0xB1, 0x83, 0x0F, 0x42, 0x40, // a millisecond
        0x44, 0x89, 0x88, 0, 0, 0, 0, 0, 0, 0, 0, // Duration
    ];

    #[test]
    fn the_duration_is_found_by_its_way_through_the_header() {
        assert_eq!(place(HEAD), Some((HEAD.len() as u64 - 8, 1e6)));
    }

    #[test]
    fn a_head_that_is_cut_or_damaged_has_no_place_and_does_no_harm() {
        for cut in 0..HEAD.len() - 8 {
            assert_eq!(place(&HEAD[..cut]), None, "{cut}");
        }
        for at in 0..HEAD.len() {
            for byte in [0, 1, 0x7F, 0x80, 0xFF] {
                let mut head = HEAD.to_vec();
                head[at] = byte;
                assert!(place(&head).is_none_or(|(at, _)| at < head.len() as u64));
            }
        }
    }
}
