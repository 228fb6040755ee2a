//! Writing an MP4 file (ISO/IEC 14496-12) while its pictures and sound are made: the media is written once, behind room
//! that is kept for the index, which is put there in the end. So the file plays while it is fetched, what is written
//! does not change any more, and the end costs the same however long the file is. GStreamer's muxer either moves
//! all media at the end, or puts the index behind it.

pub mod index;
pub mod read;

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use index::{Track, TrackIndex};

/// So many stretches of one track's media stand in the file for each second.
const CHUNKS_A_SECOND: u64 = 2;
/// Files whose media is not more than so many times the room for the index are made small in the end.
const ROOM_SHARE: u64 = 4;
/// The header of the media's box: its size has 64 bits.
const MDAT_HEADER: u64 = 16;

/// The range of a file under way, `len` bytes long so far, that will not change any more; `None` while all of it may be
/// rewritten.
#[must_use]
pub fn final_range(tracks: &[Track], seconds: u64, len: u64) -> Option<Range<u64>> {
    let room = room(tracks, seconds);
    (len > room.saturating_mul(ROOM_SHARE + 1)).then_some(room..len)
}

fn room(tracks: &[Track], seconds: u64) -> u64 {
    index::room(tracks, seconds) + MDAT_HEADER
}

/// A sample as an encoder gives it.
#[derive(Debug, Clone, Copy)]
pub struct Sample<'a> {
    /// Its bytes.
    pub data: &'a [u8],
    /// Of a picture: its number in the order in which pictures are shown. Sound comes in this order anyway.
    pub number: u32,
    /// Whether it can be shown without others.
    pub keyframe: bool,
}

/// A file being written.
#[derive(Debug)]
pub struct Mp4Writer {
    file: File,
    path: PathBuf,
    /// Kept before the media for everything else.
    room: u64,
    /// Where the next byte of media goes.
    end: u64,
    tracks: Vec<Open>,
}

/// A track, and what of it is not written yet.
#[derive(Debug)]
struct Open {
    index: TrackIndex,
    /// Whole chunks that wait for their turn, each with its samples' number, and the one that grows.
    waiting: std::collections::VecDeque<Chunk>,
    growing: Chunk,
    /// Samples in chunks that are written.
    written: u64,
    ended: bool,
}

#[derive(Debug, Default)]
struct Chunk {
    bytes: Vec<u8>,
    samples: u32,
}

impl Mp4Writer {
    /// Begins a file with these tracks. `seconds` is how long it may become: for longer ones the media is moved in
    /// the end.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn create(path: &Path, tracks: &[Track], seconds: u64) -> std::io::Result<Self> {
        let file = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(path)?;
        let room = room(tracks, seconds);
        let open = |track: &Track| Open {
            index: TrackIndex::new(*track),
            waiting: std::collections::VecDeque::new(),
            growing: Chunk::default(),
            written: 0,
            ended: false,
        };
        let tracks = tracks.iter().map(open).collect();
        Ok(Self { file, path: path.to_owned(), room, end: room, tracks })
    }

    /// What a decoder must know of a track: `avcC` of a picture, the AudioSpecificConfig of sound.
    pub fn codec(&mut self, track: usize, private: &[u8]) {
        if let Some(open) = self.tracks.get_mut(track) {
            open.index.codec = private.to_vec();
        }
    }

    /// Of a track not all is played: `ticks` of its clock, behind so many. Without, all of it is.
    pub fn play(&mut self, track: usize, before: u64, ticks: u64) {
        if let Some(open) = self.tracks.get_mut(track) {
            open.index.play(before, ticks);
        }
    }

    /// Adds a sample to a track. Chunks are written in the order of their times, whichever track is made first, so that the
    /// same media always makes the same file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add(&mut self, track: usize, sample: Sample<'_>) -> std::io::Result<()> {
        let Some(open) = self.tracks.get_mut(track) else { return Ok(()) };
        open.growing.bytes.extend_from_slice(sample.data);
        open.growing.samples += 1;
        open.index.add(u32::try_from(sample.data.len()).unwrap_or(u32::MAX), sample.number, sample.keyframe);
        if open.index.is_chunk_full(open.growing.samples, CHUNKS_A_SECOND) {
            open.waiting.push_back(std::mem::take(&mut open.growing));
            self.write_waiting()?;
        }
        Ok(())
    }

    /// A track has no more samples.
    fn end(&mut self, track: usize) -> std::io::Result<()> {
        let Some(open) = self.tracks.get_mut(track) else { return Ok(()) };
        if open.growing.samples > 0 {
            open.waiting.push_back(std::mem::take(&mut open.growing));
        }
        open.ended = true;
        self.write_waiting()
    }

    fn write_waiting(&mut self) -> std::io::Result<()> {
        loop {
            // The track whose turn it is: the one that is written the least far and not at its end.
            let unfinished = self.tracks.iter_mut().filter(|open| !(open.ended && open.waiting.is_empty()));
            let Some(open) = unfinished.min_by_key(|open| open.index.moment(open.written)) else { return Ok(()) };
            let Some(chunk) = open.waiting.pop_front() else { return Ok(()) };
            self.file.write_all_at(&chunk.bytes, self.end)?;
            open.index.chunk(self.end, chunk.samples);
            open.written += u64::from(chunk.samples);
            self.end += chunk.bytes.len() as u64;
        }
    }

    /// Samples of a track that were added.
    #[must_use]
    pub fn samples(&self, track: usize) -> u64 {
        self.tracks.get(track).map_or(0, |open| open.index.count().into())
    }

    /// Puts the index into its place.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self) -> std::io::Result<()> {
        for track in 0..self.tracks.len() {
            self.end(track)?;
        }
        let media = self.end - self.room;
        let indexes: Vec<&TrackIndex> = self.tracks.iter().map(|open| &open.index).collect();
        let head = |shift: i64| index::head(&indexes, shift);
        let size = head(0).len() as u64 + MDAT_HEADER;
        let fits = size == self.room || size + 8 <= self.room;
        if fits && media > self.room * ROOM_SHARE {
            let mut bytes = head(0);
            index::fill(&mut bytes, self.room - size);
            index::mdat(&mut bytes, media);
            return self.file.write_all_at(&bytes, 0);
        }
        self.rewrite(size, media)
    }

    /// Writes the file anew with no more room than is needed.
    fn rewrite(mut self, size: u64, media: u64) -> std::io::Result<()> {
        let indexes: Vec<&TrackIndex> = self.tracks.iter().map(|open| &open.index).collect();
        let shift = i64::try_from(size).unwrap_or(0) - i64::try_from(self.room).unwrap_or(0);
        let mut bytes = index::head(&indexes, shift);
        index::mdat(&mut bytes, media);
        let temp = self.path.with_extension("media");
        let mut out = File::create(&temp)?;
        out.write_all(&bytes)?;
        self.file.seek(SeekFrom::Start(self.room))?;
        std::io::copy(&mut Read::by_ref(&mut self.file).take(media), &mut out)?;
        std::fs::rename(&temp, &self.path)
    }
}
