//! Reading the index of an MP4 file that [`crate::media::mp4`] has written. Pure, and strict: the bytes come from a store, so
//! every size is checked before it is believed, nothing is kept that the index itself is not large enough for, and a file
//! of another writer, whose index may say more than is understood here, is refused.

use std::ops::Range;

use super::index::{AAC_SAMPLES, FILE_TICKS, FRAME_TICKS, Track};

/// The index begins within so many bytes of a file, behind the file's type.
pub(in crate::media) const HEAD_BYTES: u64 = 1024;
/// The largest index that is read: the room for more than a day.
const INDEX_BYTES_MAX: u64 = 64 << 20;
/// Pictures a second.
pub(in crate::media) const RATE_MAX: u32 = 240;
/// H.264 lets no picture be shown before more than so many that stand before it in the file.
const REORDERED_MAX: u32 = 16;
/// What the writer keeps of an AudioSpecificConfig.
const AUDIO_CONFIG_MAX: usize = 64;

/// Why an index cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Mp4Error {
    /// It ends too early, or says what cannot be.
    #[error("the index of the MP4 file is damaged: {0}")]
    Damaged(&'static str),
    /// It is right for all that is known, but not as the writer makes it.
    #[error("the MP4 file was not written by this program: {0}")]
    Foreign(&'static str),
}

use Mp4Error::{Damaged, Foreign};

/// The location and properties of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::media) struct SampleLocation {
    /// Its first byte in the file.
    pub at: u64,
    /// Its bytes.
    pub size: u32,
    /// Of a picture: its number in the order in which pictures are shown.
    pub number: u32,
    /// Whether it can be shown without others.
    pub keyframe: bool,
}

/// A track.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::media) struct TrackRead {
    pub track: Track,
    /// What a decoder must know.
    pub codec: Vec<u8>,
    /// In the order of the file.
    pub samples: Vec<SampleLocation>,
    /// Ticks of its clock before what is played; of pictures none, their numbers tell.
    pub before: u64,
    /// How long it is played, in milliseconds.
    pub length_ms: u64,
}

/// What a file has in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::media) struct Movie {
    pub video: Option<TrackRead>,
    pub audio: Option<TrackRead>,
}

/// Where the index is in a file that begins with `head`.
pub(in crate::media) fn index_range(head: &[u8]) -> Result<Range<u64>, Mp4Error> {
    let mut at = 0_usize;
    loop {
        let size = u64::from(read_u32(head, at).map_err(|_| Foreign("its index is not at its beginning"))?);
        let kind = bytes(head, at + 4, 4).map_err(|_| Foreign("its index is not at its beginning"))?;
        if kind == b"moov" {
            if !(8..=INDEX_BYTES_MAX).contains(&size) {
                return Err(Damaged("its size cannot be"));
            }
            return Ok(at as u64..at as u64 + size);
        }
        if size < 8 || kind == b"mdat" {
            return Err(Foreign("its index is not at its beginning"));
        }
        at = usize::try_from(size).ok().and_then(|size| at.checked_add(size)).ok_or(Damaged("a box is too large"))?;
    }
}

/// Reads the index, as it stands at [`index_place`] of a file of so many bytes.
pub(in crate::media) fn parse(index: &[u8], file_bytes: u64) -> Result<Movie, Mp4Error> {
    let moov = child(index, b"moov")?;
    if u64::from(read_u32(child(moov, b"mvhd")?, 20)?) != FILE_TICKS {
        return Err(Foreign("its clock is another one"));
    }
    let (mut movie, mut rest) = (Movie::default(), moov);
    while let Some((kind, content)) = next(&mut rest)? {
        if kind == b"trak" {
            let track = trak(content, file_bytes)?;
            let place = match track.track {
                Track::Video { .. } => &mut movie.video,
                Track::Audio { .. } => &mut movie.audio,
            };
            if place.replace(track).is_some() {
                return Err(Foreign("it has two tracks of one kind"));
            }
        }
    }
    Ok(movie)
}

fn bytes(from: &[u8], at: usize, count: usize) -> Result<&[u8], Mp4Error> {
    at.checked_add(count).and_then(|end| from.get(at..end)).ok_or(Damaged("it ends too early"))
}

fn read_u32(from: &[u8], at: usize) -> Result<u32, Mp4Error> {
    bytes(from, at, 4).map(|b| b.iter().fold(0, |word, byte| word << 8 | u32::from(*byte)))
}

fn read_u64(from: &[u8], at: usize) -> Result<u64, Mp4Error> {
    Ok(u64::from(read_u32(from, at)?) << 32 | u64::from(read_u32(from, at + 4)?))
}

/// A box: its type and its content.
type Boxed<'a> = (&'a [u8], &'a [u8]);

/// Takes the next box from what is left.
fn next<'a>(rest: &mut &'a [u8]) -> Result<Option<Boxed<'a>>, Mp4Error> {
    if rest.is_empty() {
        return Ok(None);
    }
    let size = usize::try_from(read_u32(rest, 0)?).unwrap_or(usize::MAX);
    let (kind, whole) = (bytes(rest, 4, 4)?, bytes(rest, 0, size.max(8))?);
    if size < 8 {
        return Err(Damaged("a box is smaller than its header"));
    }
    *rest = &rest[size..];
    Ok(Some((kind, &whole[8..])))
}

/// The first box of a type.
fn child_if_any<'a>(mut boxes: &'a [u8], wanted: &[u8; 4]) -> Result<Option<&'a [u8]>, Mp4Error> {
    while let Some((kind, content)) = next(&mut boxes)? {
        if kind == wanted {
            return Ok(Some(content));
        }
    }
    Ok(None)
}

fn child<'a>(boxes: &'a [u8], wanted: &[u8; 4]) -> Result<&'a [u8], Mp4Error> {
    child_if_any(boxes, wanted)?.ok_or(Damaged("a box is missing"))
}

/// The rows of a table that is behind `at` bytes: all of `width` bytes, and as many as it says.
fn rows(table: &[u8], at: usize, width: usize) -> Result<std::slice::ChunksExact<'_, u8>, Mp4Error> {
    let count = usize::try_from(read_u32(table, at)?).unwrap_or(usize::MAX);
    let size = count.checked_mul(width).ok_or(Damaged("a table is too large"))?;
    Ok(bytes(table, at + 4, size)?.chunks_exact(width))
}

fn trak(trak: &[u8], file_bytes: u64) -> Result<TrackRead, Mp4Error> {
    let mdia = child(trak, b"mdia")?;
    let stbl = child(child(mdia, b"minf")?, b"stbl")?;
    let (second, handler) = (read_u32(child(mdia, b"mdhd")?, 20)?, bytes(child(mdia, b"hdlr")?, 8, 4)?);
    let (track, codec) = match handler {
        b"vide" => video_description(child(stbl, b"stsd")?, second)?,
        b"soun" => audio_description(child(stbl, b"stsd")?, second)?,
        _ => return Err(Foreign("it has a track that is neither picture nor sound")),
    };
    let elst = child(child(trak, b"edts")?, b"elst")?;
    // Version 1, and one stretch at its own speed.
    if read_u32(elst, 0)? != 1 << 24 || read_u32(elst, 4)? != 1 || read_u32(elst, 24)? != 0x1_0000 {
        return Err(Foreign("it has another edit list"));
    }
    let (length_ms, before) = (read_u64(elst, 8)?, read_u64(elst, 16)?);
    let sizes = sizes(stbl, track)?;
    let mut samples = sample_locations(stbl, &sizes, file_bytes)?;
    let mut read = TrackRead { track, codec, samples: Vec::new(), before, length_ms };
    if let Track::Video { .. } = track {
        assign_numbers(stbl, &mut samples, before)?;
        read.before = 0;
    } else {
        let there = samples.len() as u64 * u64::from(AAC_SAMPLES);
        let played = length_ms.checked_mul(second.into()).map(|ticks| ticks / 1000);
        if !played.and_then(|played| played.checked_add(before)).is_some_and(|end| before < there && end <= there) {
            return Err(Damaged("more sound is played than there is"));
        }
        samples.iter_mut().for_each(|sample| sample.keyframe = true);
    }
    read.samples = samples;
    Ok(read)
}

/// The one sample description: its type and content.
fn description<'a>(stsd: &'a [u8], wanted: &[u8; 4]) -> Result<&'a [u8], Mp4Error> {
    if read_u32(stsd, 4)? != 1 {
        return Err(Foreign("a track has more than one codec"));
    }
    child_if_any(bytes(stsd, 8, stsd.len().saturating_sub(8))?, wanted)?.ok_or(Foreign("it has another codec"))
}

fn video_description(stsd: &[u8], second: u32) -> Result<(Track, Vec<u8>), Mp4Error> {
    let avc1 = description(stsd, b"avc1")?;
    let size = read_u32(avc1, 24)?;
    let rate = second / FRAME_TICKS;
    if !second.is_multiple_of(FRAME_TICKS) || !(1..=RATE_MAX).contains(&rate) {
        return Err(Foreign("its pictures have another clock"));
    }
    let side = |pixels: u32| u16::try_from(pixels & 0xffff).unwrap_or(0);
    let track = Track::Video { width: side(size >> 16), height: side(size), rate };
    Ok((track, child(bytes(avc1, 78, avc1.len().saturating_sub(78))?, b"avcC")?.to_vec()))
}

fn audio_description(stsd: &[u8], second: u32) -> Result<(Track, Vec<u8>), Mp4Error> {
    let mp4a = description(stsd, b"mp4a")?;
    if second == 0 || read_u32(mp4a, 24)? != second << 16 {
        return Err(Foreign("its sound has another clock"));
    }
    let esds = child(bytes(mp4a, 28, mp4a.len().saturating_sub(28))?, b"esds")?;
    // One descriptor in the other (ISO/IEC 14496-1), each with a length of one byte: of a stream, of its decoder, and the
    // decoder's own.
    let tag = |at: usize| bytes(esds, at, 1).map(|tag| tag[0]);
    if (tag(4)?, tag(9)?, tag(24)?) != (3, 4, 5) {
        return Err(Foreign("its sound is described in another way"));
    }
    let len = usize::from(tag(25)?);
    if len > AUDIO_CONFIG_MAX {
        return Err(Damaged("the description of its sound is too long"));
    }
    Ok((Track::Audio { rate: second }, bytes(esds, 26, len)?.to_vec()))
}

/// The samples' sizes, if all samples last as long as the track's do.
fn sizes(stbl: &[u8], track: Track) -> Result<Vec<u32>, Mp4Error> {
    let (stsz, stts) = (child(stbl, b"stsz")?, child(stbl, b"stts")?);
    if read_u32(stsz, 4)? != 0 {
        return Err(Foreign("its samples are all of one size"));
    }
    let sizes: Vec<u32> = rows(stsz, 8, 4)?.map(|row| read_u32(row, 0)).collect::<Result<_, _>>()?;
    if sizes.is_empty() {
        return Err(Damaged("a track is empty"));
    }
    let mut times = rows(stts, 4, 8)?;
    let time = times.next().ok_or(Damaged("its samples have no times"))?;
    let lasts = read_u32(time, 4)? == track.ticks().1 && times.next().is_none();
    if !lasts || usize::try_from(read_u32(time, 0)?) != Ok(sizes.len()) {
        return Err(Foreign("its samples have other times"));
    }
    Ok(sizes)
}

/// Where each sample is.
fn sample_locations(stbl: &[u8], sizes: &[u32], file_bytes: u64) -> Result<Vec<SampleLocation>, Mp4Error> {
    let mut runs = rows(child(stbl, b"stsc")?, 4, 12)?.peekable();
    let (mut samples, mut left, mut in_chunk) = (Vec::with_capacity(sizes.len()), sizes, 0);
    for (chunk, at) in (1_u32..).zip(rows(child(stbl, b"co64")?, 4, 8)?) {
        if let Some(run) = runs.next_if(|run| read_u32(run, 0) == Ok(chunk)) {
            in_chunk = usize::try_from(read_u32(run, 4)?).unwrap_or(usize::MAX);
        }
        let (now, later) = left.split_at_checked(in_chunk).ok_or(Damaged("its chunks have more samples than it"))?;
        let mut at = read_u64(at, 0)?;
        for size in now {
            let end = at.checked_add(u64::from(*size)).filter(|end| *end <= file_bytes);
            samples.push(SampleLocation { at, size: *size, number: 0, keyframe: false });
            at = end.ok_or(Damaged("a sample lies behind the end of the file"))?;
        }
        left = later;
    }
    let all: u64 = sizes.iter().copied().map(u64::from).sum();
    // Else a small file could say that it holds a large one.
    if !left.is_empty() || runs.next().is_some() || all > file_bytes {
        return Err(Damaged("its chunks are not its samples"));
    }
    Ok(samples)
}

/// Gives pictures their numbers and marks keyframes. `before` is how long the first is put off.
fn assign_numbers(stbl: &[u8], samples: &mut [SampleLocation], before: u64) -> Result<(), Mp4Error> {
    let wrong = Damaged("its pictures are in no order");
    let delay = u32::try_from(before).map_err(|_| wrong)?;
    let pictures = |ticks: u32| if ticks.is_multiple_of(FRAME_TICKS) { Ok(ticks / FRAME_TICKS) } else { Err(wrong) };
    let delay = pictures(delay)?;
    let mut offsets = vec![0; samples.len()];
    if let Some(ctts) = child_if_any(stbl, b"ctts")? {
        let mut left = &mut offsets[..];
        for row in rows(ctts, 4, 8)? {
            let count = usize::try_from(read_u32(row, 0)?).unwrap_or(usize::MAX);
            let (now, later) = left.split_at_mut_checked(count).ok_or(wrong)?;
            now.fill(pictures(read_u32(row, 4)?)?);
            left = later;
        }
        if !left.is_empty() {
            return Err(wrong);
        }
    }
    // A file that was cut has pictures in the end that are not shown: their numbers are beyond those that are.
    let mut seen = vec![false; samples.len() + REORDERED_MAX as usize];
    for ((at, sample), offset) in (0_u32..).zip(samples.iter_mut()).zip(offsets) {
        let number = at.checked_add(offset).and_then(|number| number.checked_sub(delay)).ok_or(wrong)?;
        let place = usize::try_from(number).ok().and_then(|number| seen.get_mut(number)).ok_or(wrong)?;
        if std::mem::replace(place, true) {
            return Err(Damaged("two pictures are shown at once"));
        }
        sample.number = number;
    }
    for row in rows(child(stbl, b"stss")?, 4, 4)? {
        let place = usize::try_from(read_u32(row, 0)?).ok().and_then(|number| number.checked_sub(1));
        let sample = place.and_then(|place| samples.get_mut(place));
        sample.ok_or(Damaged("a keyframe is no picture"))?.keyframe = true;
    }
    Ok(())
}

#[cfg(test)]
#[path = "read_tests.rs"]
pub(in crate::media) mod tests;
