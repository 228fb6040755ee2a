//! What stands in a Matroska file (RFC 9559), as a player that seeks reads it: no decoder and no parser is asked.

use std::path::Path;

const SEGMENT: u64 = 0x1853_8067;
const CLUSTER: u64 = 0x1F43_B675;
const TRACKS: u64 = 0x1654_AE6B;
const TRACK_ENTRY: u64 = 0xAE;
const TRACK_NUMBER: u64 = 0xD7;
const TRACK_TYPE: u64 = 0x83;
const VIDEO: u8 = 1;
const SIMPLE_BLOCK: u64 = 0xA3;
const BLOCK_GROUP: u64 = 0xA0;
const BLOCK: u64 = 0xA1;
const REFERENCE_BLOCK: u64 = 0xFB;

struct Element<'a> {
    id: u64,
    content: &'a [u8],
}

/// The elements of a content, in order.
fn elements(mut bytes: &[u8]) -> Vec<Element<'_>> {
    let mut found = Vec::new();
    while let Some(first) = bytes.first() {
        let id_len = first.leading_zeros() as usize + 1;
        let id = bytes[..id_len].iter().fold(0, |id, byte| id << 8 | u64::from(*byte));
        let size_len = bytes[id_len].leading_zeros() as usize + 1;
        let size = bytes[id_len..id_len + size_len].iter().fold(0, |size, byte| size << 8 | u64::from(*byte));
        let unknown = (1_u64 << (7 * size_len)) - 1;
        let (begin, size) = (id_len + size_len, size & unknown);
        let end = if size == unknown { bytes.len() } else { begin + usize::try_from(size).expect("a size") };
        found.push(Element { id, content: &bytes[begin..end] });
        bytes = &bytes[end..];
    }
    found
}

/// For each picture of a file with one video track, in file order, whether the file marks it as a keyframe.
pub fn keyframe_marks(path: &Path) -> Vec<bool> {
    let bytes = std::fs::read(path).expect("file");
    let file = elements(&bytes);
    let segment = elements(file.iter().find(|e| e.id == SEGMENT).expect("a segment").content);
    let of = |list: &[Element<'_>], id: u64| list.iter().find(|e| e.id == id).and_then(|e| e.content.last().copied());
    let tracks = segment.iter().filter(|e| e.id == TRACKS).flat_map(|e| elements(e.content));
    let entries: Vec<Vec<Element<'_>>> = tracks.filter(|e| e.id == TRACK_ENTRY).map(|e| elements(e.content)).collect();
    let video = entries.iter().find(|entry| of(entry, TRACK_TYPE) == Some(VIDEO));
    let number = video.and_then(|entry| of(entry, TRACK_NUMBER)).expect("a video track");
    // The first byte of a block is the track's number, the fourth has the flags.
    let is_of_video = |block: &[u8]| block[0] & 0x7f == number;
    let mut marks = Vec::new();
    for element in segment.iter().filter(|e| e.id == CLUSTER).flat_map(|e| elements(e.content)) {
        match element.id {
            SIMPLE_BLOCK if is_of_video(element.content) => marks.push(element.content[3] & 0x80 != 0),
            BLOCK_GROUP => {
                let group = elements(element.content);
                let block = group.iter().find(|e| e.id == BLOCK).expect("a block");
                if is_of_video(block.content) {
                    marks.push(group.iter().all(|e| e.id != REFERENCE_BLOCK));
                }
            }
            _ => {}
        }
    }
    marks
}
