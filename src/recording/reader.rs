//! The indexes of a capture log: all of it, or while it grows.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::{INDEX, LogError, Record, TRACKS, mkv};
use crate::model::ids::{Epoch, TrackId};
use crate::model::intervals::{Interval, Intervals};
use crate::model::media::{ClockStart, Gap, GapCause, SenderReport, TrackFormat, TrackStats};
use crate::model::time::{MediaSpan, MediaTime};
use crate::runtime::journal::read_lines;

/// Largest part that is read, in bytes; the largest that is written is one frame larger than its limit.
const PART_BYTES_MAX: u64 = 32 << 20;

/// Gaps that a reader needs which follows the log: the newest.
const GAPS_KEPT: usize = 64;
/// Tolerance in nanoseconds when one frame's times by two clocks are compared.
pub(super) const ROUNDING: MediaSpan = 1_000_000;
/// The longest distance of two frames, in nanoseconds, that is no gap: `[capture] stall` by default.
pub(super) const PAUSE_MIN: MediaSpan = 2_000_000_000;

/// A part's entry in the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartIndex {
    /// Where it begins in the file.
    pub at: u64,
    /// Its bytes.
    pub len: u64,
    /// Start of the frame that is shown first.
    pub from: MediaTime,
    /// End of the frame that is shown last.
    pub to: MediaTime,
    /// Frames in it.
    pub frames: u32,
    /// Start of its first keyframe.
    pub key: Option<MediaTime>,
    /// CRC-32 of its bytes.
    pub crc: u32,
}

/// A segment's entry in the index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentIndex {
    /// Its number.
    pub n: u32,
    /// The epoch that wrote it.
    pub epoch: Epoch,
    /// Its file's name.
    pub file: String,
    /// Bytes before the first part.
    pub header: u64,
    /// The format of its frames.
    pub format: TrackFormat,
    /// Its parts.
    pub parts: Vec<PartIndex>,
    /// Parts that the index names and whose bytes are gone: their machine died before they were on its disk, or was lost before it sent them.
    pub lost: Vec<PartIndex>,
    /// Its seal, once it has one.
    pub sealed: Option<Seal>,
    /// The object that holds it.
    pub shipped: Option<String>,
}

impl SegmentIndex {
    /// Of the file there are `len` bytes: parts that go beyond are lost.
    fn lose_behind(&mut self, len: u64) {
        let is_there = |part: &mut PartIndex| part.at.checked_add(part.len).is_some_and(|end| end <= len);
        self.lost.extend(self.parts.extract_if(.., |part| !is_there(part)));
    }
}

/// Size and checksum of a segment that is complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seal {
    /// Bytes.
    pub size: u64,
    /// SHA-256, in hex.
    pub sha256: String,
}

/// A track's index.
#[derive(Debug, Clone, PartialEq)]
pub struct TrackIndex {
    /// The track.
    pub track: TrackId,
    /// Its folder.
    pub dir: PathBuf,
    /// Its segments, by number.
    pub segments: Vec<SegmentIndex>,
    /// The gaps, as they were noted.
    pub gaps: Vec<Gap>,
    /// All counts.
    pub stats: TrackStats,
    /// All sender reports.
    pub reports: Vec<SenderReport>,
    /// For each report the start of the part that it came with: a composer that follows the log knows it from then on.
    pub report_parts: Vec<MediaTime>,
    /// Where its provisional clock began, for the first time and anew, in the order of time.
    pub clock_starts: Vec<ClockStart>,
    /// End of the last frame in any line, whether its bytes are there or not.
    frames_end: Option<MediaTime>,
    /// Bytes of the index that are in the store.
    pub index_shipped: u64,
    /// The largest number of a segment in any line.
    pub(super) n_max: u32,
    /// Bytes of the index that were read.
    read: u64,
}

impl TrackIndex {
    /// Reads a track's index from its folder.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn open(dir: &Path, track: TrackId) -> Result<Self, LogError> {
        let mut index = Self::of_records(track, dir, Vec::new());
        index.refresh()?;
        Ok(index)
    }

    pub(crate) fn of_records(track: TrackId, dir: &Path, records: Vec<Record>) -> Self {
        let mut index = Self {
            track,
            dir: dir.to_owned(),
            segments: Vec::new(),
            gaps: Vec::new(),
            stats: TrackStats::default(),
            reports: Vec::new(),
            report_parts: Vec::new(),
            clock_starts: Vec::new(),
            frames_end: None,
            index_shipped: 0,
            n_max: 0,
            read: 0,
        };
        for record in records {
            index.add(record);
        }
        index
    }

    /// Reads what was added since the last time. Returns whether there was anything.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn refresh(&mut self) -> Result<bool, LogError> {
        let (records, read) = read_lines::<Record>(&self.dir.join(INDEX), self.read)?;
        self.read = read;
        let any = !records.is_empty();
        for record in records {
            self.add(record);
        }
        Ok(any)
    }

    /// Bytes of the index that were read: whole lines only.
    #[must_use]
    pub const fn read_bytes(&self) -> u64 {
        self.read
    }

    fn add(&mut self, record: Record) {
        match record {
            Record::Segment { n, epoch, file, header, format } => {
                // Only a segment's name is valid: a manipulated index must not lead the reader, or the writer that cuts off
                // torn ends, to another file.
                let is_segment = file.ends_with(".mkv") && !file.contains('/');
                self.n_max = self.n_max.max(n);
                // Lines that came from the store later may be of an earlier epoch.
                if let (true, Err(at)) = (is_segment, self.segments.binary_search_by_key(&n, |s| s.n)) {
                    let (parts, lost, sealed, shipped) = (Vec::new(), Vec::new(), None, None);
                    let segment = SegmentIndex { n, epoch, file, header, format, parts, lost, sealed, shipped };
                    self.segments.insert(at, segment);
                }
            }
            Record::Part { n, at, len, from, to, frames, key, crc, stats, reports, clock } => {
                self.n_max = self.n_max.max(n);
                self.stats.add(&stats);
                // Lines that came from the store later may be of an earlier epoch.
                for start in self.clock_starts.iter_mut().rev().take_while(|start| start.at > from) {
                    start.after = start.after.max(to.min(start.at));
                }
                if let Some(at) = clock {
                    let after = self.frames_end.map_or(at, |end| end.min(at));
                    let place = self.clock_starts.partition_point(|start| start.at <= at);
                    self.clock_starts.insert(place, ClockStart { known: from, after, at });
                }
                self.frames_end = self.frames_end.max(Some(to));
                self.report_parts.extend(std::iter::repeat_n(from, reports.len()));
                self.reports.extend(reports);
                let after = |s: &SegmentIndex| s.parts.last().is_none_or(|p| p.at.saturating_add(p.len) <= at);
                // The times of its frames are cut to those of its blocks.
                let (from, key) = (mkv::cut(from), key.map(mkv::cut));
                if let Some(segment) = self.segment_mut(n).filter(|s| after(s)) {
                    segment.parts.push(PartIndex { at, len, from, to, frames, key, crc });
                }
            }
            Record::Gap(gap) => self.gaps.push(gap),
            Record::Stats { stats } => self.stats.add(&stats),
            Record::Sealed { n, size, sha256 } => {
                if let Some(segment) = self.segment_mut(n) {
                    segment.lose_behind(size);
                    segment.sealed = Some(Seal { size, sha256 });
                }
            }
            Record::Shipped { n, key, index } => {
                self.index_shipped = self.index_shipped.max(index);
                if let Some(segment) = self.segment_mut(n) {
                    segment.shipped = Some(key);
                }
            }
        }
    }

    /// Takes the parts whose bytes are not on this disk for lost: what they held is missing, and a gap must say so.
    pub fn retain_present(&mut self) {
        for segment in &mut self.segments {
            let len = std::fs::metadata(self.dir.join(&segment.file)).map_or(0, |found| found.len());
            segment.lose_behind(len);
        }
    }

    /// Drops what only a reader from the beginning needs: the reports, where the clock began, all but the newest gaps, and the parts of segments
    /// before those that are being read.
    pub fn forget_before(&mut self, reading: impl Iterator<Item = u32>) {
        self.reports.clear();
        self.report_parts.clear();
        self.clock_starts.clear();
        self.gaps.drain(..self.gaps.len().saturating_sub(GAPS_KEPT));
        for n in reading {
            let at = self.segments.partition_point(|s| s.n < n);
            let Some(epoch) = self.segments.get(at).map(|segment| segment.epoch) else { continue };
            let passed =
                self.segments.iter_mut().take(at).rev().take_while(|s| s.epoch == epoch && !s.parts.is_empty());
            passed.for_each(|segment| segment.parts = Vec::new());
        }
    }

    fn segment_mut(&mut self, n: u32) -> Option<&mut SegmentIndex> {
        let at = self.segments.binary_search_by_key(&n, |s| s.n).ok()?;
        self.segments.get_mut(at)
    }

    /// Start of the first frame.
    #[must_use]
    pub fn start(&self) -> Option<MediaTime> {
        self.segments.iter().flat_map(|s| &s.parts).map(|p| p.from).min()
    }

    /// End of the last frame.
    #[must_use]
    pub fn end(&self) -> Option<MediaTime> {
        self.segments.iter().flat_map(|s| &s.parts).map(|p| p.to).max()
    }

    /// The gaps, in order. The later of two owners noted a gap between them by what it knew. Of that gap remains what no other owner
    /// captured.
    #[must_use]
    pub fn missing(&self) -> Vec<Gap> {
        let of_epoch = |epoch| {
            let segments = self.segments.iter().filter(move |segment| segment.epoch == epoch);
            segments.flat_map(|segment| &segment.parts)
        };
        // An owner notes its own pauses.
        let bridged = |epoch| {
            let parts = of_epoch(epoch).map(|part| Interval::new(part.from, part.to));
            (epoch, parts.collect::<Intervals>().bridged(PAUSE_MIN))
        };
        let captured: Vec<(Epoch, Intervals)> = self.epochs().map(bridged).collect();
        let rest = |gap: &Gap| {
            let mut rest = Intervals::from(Interval::new(gap.from, gap.to));
            // Its frame behind the gap shows who noted the gap; a slow picture of another owner may come at the same time.
            let begins = |epoch: &Epoch| of_epoch(*epoch).any(|part| (part.from - gap.to).abs() <= ROUNDING);
            let noted_by = captured.iter().map(|(epoch, _)| *epoch).rfind(begins);
            let others = captured.iter().filter(|(epoch, _)| gap.cause == GapCause::Worker && Some(*epoch) != noted_by);
            for (_, captured) in others {
                rest = rest.without(captured);
            }
            rest.iter().map(|one| Gap { from: one.from, to: one.to, cause: gap.cause }).collect::<Vec<_>>()
        };
        let mut gaps: Vec<Gap> = self.gaps.iter().flat_map(rest).collect();
        gaps.sort_by_key(|gap| gap.from);
        gaps
    }

    /// Frames in all parts.
    #[must_use]
    pub fn frames_total(&self) -> u64 {
        self.segments.iter().flat_map(|s| &s.parts).map(|p| u64::from(p.frames)).sum()
    }

    /// The epochs that have segments, in order.
    pub(super) fn epochs(&self) -> impl Iterator<Item = Epoch> + '_ {
        let next = |after: Option<Epoch>| {
            let at = after.map_or(0, |after| self.segments.partition_point(|s| s.epoch <= after));
            self.segments.get(at).map(|segment| segment.epoch)
        };
        std::iter::successors(next(None), move |epoch| next(Some(*epoch)))
    }
}

/// A part's bytes, if their checksum is right.
pub(super) fn part_bytes(mut file: &File, part: PartIndex) -> Option<Vec<u8>> {
    if part.len > PART_BYTES_MAX {
        return None;
    }
    file.seek(SeekFrom::Start(part.at)).ok()?;
    let mut bytes = vec![0; usize::try_from(part.len).ok()?];
    file.read_exact(&mut bytes).ok()?;
    (crc32fast::hash(&bytes) == part.crc).then_some(bytes)
}

/// An archive's log.
#[derive(Debug, Clone, PartialEq)]
pub struct LogReader {
    /// The tracks, by id.
    pub tracks: Vec<TrackIndex>,
}

impl LogReader {
    /// Reads the indexes of all tracks in an archive's folder.
    ///
    /// # Errors
    /// When a folder or file cannot be read. No tracks is not an error.
    pub fn open(archive_dir: &Path) -> Result<Self, LogError> {
        let tracks = tracks(archive_dir)?.into_iter().map(|(track, dir)| TrackIndex::open(&dir, track));
        Ok(Self { tracks: tracks.collect::<Result<_, _>>()? })
    }

    /// The same with the parts that are on this disk: what an archive can be made of.
    ///
    /// # Errors
    /// See [`Self::open`].
    pub fn open_present(archive_dir: &Path) -> Result<Self, LogError> {
        let mut log = Self::open(archive_dir)?;
        log.tracks.iter_mut().for_each(TrackIndex::retain_present);
        Ok(log)
    }
}

/// The tracks in an archive's folder and their own folders, by id.
///
/// # Errors
/// When it cannot be listed. No tracks is not an error.
pub fn tracks(archive_dir: &Path) -> Result<Vec<(TrackId, PathBuf)>, LogError> {
    let root = archive_dir.join(TRACKS);
    let entries = match std::fs::read_dir(&root) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(LogError::io("list", &root)(e)),
    };
    let mut tracks = Vec::new();
    for entry in entries {
        let entry = entry.map_err(LogError::io("list", &root))?;
        // A folder that is not named like a track belongs to someone else.
        let Some(track) = entry.file_name().to_str().and_then(|n| n.parse::<TrackId>().ok()) else { continue };
        tracks.push((track, entry.path()));
    }
    tracks.sort_by_key(|(track, _)| *track);
    Ok(tracks)
}

/// Writes a run of segments as one file that ordinary tools play: the first as it is, and the others without their headers.
/// All must have the codec of the first.
///
/// # Errors
/// When a file cannot be read or written, or a codec differs.
pub fn join(index: &TrackIndex, run: std::ops::Range<usize>, out: &mut dyn Write) -> Result<(), LogError> {
    let segments = index.segments.get(run).unwrap_or_default();
    let codec = segments.first().map(|s| s.format.codec);
    for (at, segment) in segments.iter().enumerate() {
        let path = index.dir.join(&segment.file);
        if Some(segment.format.codec) != codec {
            return Err(LogError::Mixed { path: path.display().to_string() });
        }
        let end = segment.parts.iter().map(|p| p.at.saturating_add(p.len)).max().unwrap_or(segment.header);
        let from = if at == 0 { 0 } else { segment.header };
        let mut file = File::open(&path).map_err(LogError::io("open", &path))?;
        file.seek(SeekFrom::Start(from)).map_err(LogError::io("read", &path))?;
        std::io::copy(&mut file.take(end.saturating_sub(from)), out).map_err(LogError::io("copy", &path))?;
    }
    Ok(())
}
