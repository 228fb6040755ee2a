//! Writes one track's log. Blocking; owned by the log thread.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::reader::TrackIndex;
use super::{INDEX, LogError, Record, SealedSegment, mkv};
use crate::model::ids::{Epoch, TrackId};
use crate::model::media::{Frame, FrameSpans, Gap, GapCause, SenderReport, TrackFormat, TrackStats};
use crate::model::time::{MediaSpan, MediaTime};
use crate::recording::spool::Spool;
use crate::runtime::journal::LineFile;
use crate::runtime::metrics::metrics;
use crate::store::checksum::hex;

/// Sender reports kept of one part. Janus sends one a second or so.
const REPORTS_MAX: usize = 32;
/// Interval between attempts after a write failed, in media time.
const RETRY_AFTER: MediaSpan = 1_000_000_000;

/// A segment's number has its epoch above these bits, so that logs of several machines can be put together.
/// At 5 s a segment, 65,535 are 91 hours.
const SEGMENT_BITS: u32 = 16;
const SEGMENT_MASK: u32 = (1 << SEGMENT_BITS) - 1;

/// Limits of a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogOptions {
    /// The longest part in media time: a process that dies loses no more than this. At most 3 s.
    pub part_max: Duration,
    /// The largest part in bytes, so that the memory of a track is bounded at any bit rate.
    pub part_bytes_max: usize,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { part_max: Duration::from_millis(500), part_bytes_max: 256 << 10 }
    }
}

#[derive(Debug)]
struct Segment {
    n: u32,
    file: Arc<File>,
    path: PathBuf,
    size: u64,
    hasher: Sha256,
}

#[derive(Debug, Default)]
struct Part {
    bytes: Vec<u8>,
    first: i64,
    from: MediaTime,
    to: MediaTime,
    frames: u32,
    key: Option<MediaTime>,
}

/// Writing failed, and frames are dropped.
#[derive(Debug, Clone, Copy)]
struct WriteFailure {
    /// Frames from this media time on are dropped.
    since: MediaTime,
    /// Writing is tried again from this media time on.
    retry_at: MediaTime,
}

/// A track's log, open for writing in one epoch.
#[derive(Debug)]
pub struct TrackLog {
    track: TrackId,
    dir: PathBuf,
    epoch: Epoch,
    options: LogOptions,
    pub(super) spool: Arc<Spool>,
    index: Arc<LineFile>,
    format: Option<TrackFormat>,
    segment: Option<Segment>,
    next_n: u32,
    part: Part,
    spans: FrameSpans,
    stats: TrackStats,
    reports: Vec<SenderReport>,
    /// Where the clock of the frames that follow began, until a part's line says so.
    clock: Option<MediaTime>,
    /// Set while writing fails.
    failed: Option<WriteFailure>,
    /// End of the last frame that was dropped because writing failed.
    dropped_to: MediaTime,
    /// Parts written in this epoch.
    parts_written: u64,
    /// The folders above this track's were handed to a sync once.
    folder_synced: bool,
}

/// The state of a log when it was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Opened {
    /// End of the last frame that an earlier epoch wrote.
    pub end: Option<MediaTime>,
    /// Segments that an earlier epoch left open; they are sealed now.
    pub sealed: Vec<SealedSegment>,
}

/// A segment that is written and not yet fsynced.
#[derive(Debug)]
pub struct UnsyncedSegment {
    segment: SealedSegment,
    file: Arc<File>,
    path: PathBuf,
    index: Arc<LineFile>,
    sha256: String,
    new_folder: bool,
}

impl UnsyncedSegment {
    /// Fsyncs the segment, then notes in the index that it is sealed, then fsyncs the index.
    ///
    /// # Errors
    /// When the disk fails: the segment is then sealed when the log is opened next.
    pub fn sync(self) -> Result<SealedSegment, LogError> {
        self.file.sync_all().map_err(LogError::io("sync", &self.path))?;
        // The file's name must survive too, and the first time the names of the folders above it.
        for folder in self.path.ancestors().skip(1).take(if self.new_folder { 4 } else { 1 }) {
            File::open(folder).and_then(|f| f.sync_all()).map_err(LogError::io("sync", folder))?;
        }
        let SealedSegment { n, size, .. } = self.segment;
        self.index.append(&Record::Sealed { n, size, sha256: self.sha256 })?;
        self.index.sync()?;
        Ok(self.segment)
    }
}

impl TrackLog {
    /// Opens a track's log, new or left behind by an earlier epoch. Torn ends are cut off, open segments are sealed.
    ///
    /// # Errors
    /// When the folder cannot be used.
    pub fn open(
        archive_dir: &Path,
        track: TrackId,
        epoch: Epoch,
        options: LogOptions,
        spool: Arc<Spool>,
    ) -> Result<(Self, Opened), LogError> {
        let dir = archive_dir.join(super::TRACKS).join(track.to_string());
        std::fs::create_dir_all(&dir).map_err(LogError::io("create", &dir))?;
        let (index, records) = LineFile::open::<Record>(&dir.join(INDEX))?;
        let known = TrackIndex::of_records(track, &dir, records);
        let mut sealed = Vec::new();
        for segment in known.segments.iter().filter(|s| s.sealed.is_none()) {
            sealed.extend(seal_left_open(&dir, segment, &index, track)?);
        }
        let mut present = if sealed.is_empty() { known.clone() } else { TrackIndex::open(&dir, track)? };
        present.retain_present();
        let end = present.end();
        let opened = Opened { end, sealed };
        let next_n = known.n_max.saturating_add(1).max((epoch.0 << SEGMENT_BITS) | 1);
        let log = Self {
            track,
            dir,
            epoch,
            options,
            spool,
            index: Arc::new(index),
            format: None,
            segment: None,
            next_n,
            part: Part::default(),
            spans: FrameSpans::default(),
            stats: TrackStats::default(),
            reports: Vec::new(),
            clock: None,
            failed: None,
            dropped_to: MediaTime(i64::MIN),
            parts_written: 0,
            folder_synced: false,
        };
        Ok((log, opened))
    }

    /// The frames that follow have this format. Returns the segment that ends here.
    ///
    /// # Errors
    /// When a part cannot be written; frames are dropped, and writing is tried again.
    pub fn format(&mut self, format: &TrackFormat) -> Result<Option<UnsyncedSegment>, LogError> {
        if self.format.as_ref() == Some(format) {
            return Ok(None);
        }
        let ended = self.seal();
        // If it could not be sealed it ends all the same: nothing of another format may follow in it.
        self.segment = None;
        self.format = Some(format.clone());
        ended
    }

    /// Adds a frame. Returns whether a first part was written by it.
    ///
    /// # Errors
    /// As for [`TrackLog::format`].
    pub fn frame(&mut self, frame: &Frame) -> Result<(), LogError> {
        if let Some(WriteFailure { since, retry_at }) = self.failed {
            if frame.pts < retry_at {
                self.dropped_to = self.dropped_to.max(frame.pts + frame.duration.unwrap_or(0));
                return Ok(());
            }
            let gap = Gap { from: since, to: frame.pts, cause: GapCause::Storage };
            if let Err(error) = self.gap(gap) {
                self.failed = Some(WriteFailure { since, retry_at: frame.pts + RETRY_AFTER });
                self.dropped_to = frame.pts + frame.duration.unwrap_or(0);
                return Err(error);
            }
            self.failed = None;
        }
        let units = mkv::units(frame.pts);
        let part_max = i64::try_from(self.options.part_max.as_nanos()).unwrap_or(i64::MAX);
        let full = self.part.frames > 0
            && (frame.pts - self.part.from >= part_max
                || self.part.bytes.len() + frame.data.len() > self.options.part_bytes_max
                || mkv::relative(units, self.part.first).is_none());
        if full {
            self.flush()?;
        }
        let part = &mut self.part;
        if part.frames == 0 {
            part.bytes.clear();
            part.bytes.resize(mkv::CLUSTER_HEADER, 0);
            part.first = units;
            part.from = frame.pts;
            part.key = None;
        }
        let relative = mkv::relative(units, part.first).unwrap_or_default();
        mkv::block(&mut part.bytes, relative, frame.keyframe, &frame.data);
        if frame.keyframe && part.key.is_none() {
            part.key = Some(frame.pts);
        }
        // Frames come in decoding order: one may be shown before those that came earlier.
        let to = frame.pts + frame.duration.unwrap_or_else(|| self.spans.next(frame.pts));
        part.from = part.from.min(frame.pts);
        part.to = if part.frames == 0 { to } else { part.to.max(to) };
        part.frames += 1;
        if self.has_media() { Ok(()) } else { self.flush() }
    }

    /// Notes that media is missing.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn gap(&mut self, gap: Gap) -> Result<(), LogError> {
        self.index.append(&Record::Gap(gap))?;
        metrics().missing(&gap);
        Ok(())
    }

    /// Keeps a sender report for the next part's line.
    pub fn sender_report(&mut self, report: SenderReport) {
        if self.reports.len() < REPORTS_MAX {
            self.reports.push(report);
        }
    }

    /// The frames that follow have their times from a provisional clock that begins at `at`. They begin a part.
    ///
    /// # Errors
    /// As for [`TrackLog::format`].
    pub fn clock_begins(&mut self, at: MediaTime) -> Result<(), LogError> {
        let flushed = self.flush();
        if self.clock.is_some() {
            // No frame of the clock before was written, so its beginning is in no line.
            self.reports.clear();
        }
        self.clock = Some(at);
        flushed
    }

    /// Keeps counts for the next part's line.
    pub fn stats(&mut self, stats: &TrackStats) {
        metrics().received(self.track.kind, stats);
        self.stats.add(stats);
    }

    /// Writes the part if it is as old as parts may become.
    ///
    /// # Errors
    /// As for [`TrackLog::format`].
    pub fn tick(&mut self, now: MediaTime) -> Result<(), LogError> {
        let part_max = i64::try_from(self.options.part_max.as_nanos()).unwrap_or(i64::MAX);
        if self.part.frames > 0 && now - self.part.from >= part_max { self.flush() } else { Ok(()) }
    }

    /// Start of the first frame that is not in the file yet.
    #[must_use]
    pub fn open_since(&self) -> Option<MediaTime> {
        (self.part.frames > 0).then_some(self.part.from)
    }

    /// Parts written in this epoch: it grows while the disk takes media.
    #[must_use]
    pub const fn parts_written(&self) -> u64 {
        self.parts_written
    }

    /// Whether a part was written in this epoch.
    #[must_use]
    pub const fn has_media(&self) -> bool {
        self.parts_written > 0
    }

    fn flush(&mut self) -> Result<(), LogError> {
        if self.part.frames == 0 {
            return Ok(());
        }
        let result = self.write_part();
        if result.is_err() {
            self.failed = Some(WriteFailure { since: self.part.from, retry_at: self.part.to + RETRY_AFTER });
            self.dropped_to = self.part.to;
            // Bytes behind the last indexed part do not exist. If they cannot be cut off, a new segment begins, and this
            // one is sealed when the log is opened next.
            self.segment.take_if(|s| s.file.set_len(s.size).is_err());
        }
        self.part.frames = 0;
        result
    }

    fn write_part(&mut self) -> Result<(), LogError> {
        let len = self.part.bytes.len() as u64;
        self.spool.charge(len)?;
        self.write_charged().inspect_err(|_| self.spool.refund(len))
    }

    fn write_charged(&mut self) -> Result<(), LogError> {
        mkv::finish(&mut self.part.bytes, self.part.first);
        if self.segment.is_none() {
            self.begin_segment()?;
        }
        let segment = self.segment.as_mut().expect("a segment was begun");
        (&*segment.file).write_all(&self.part.bytes).map_err(LogError::io("write", &segment.path))?;
        let len = self.part.bytes.len() as u64;
        let record = Record::Part {
            n: segment.n,
            at: segment.size,
            len,
            from: self.part.from,
            to: self.part.to,
            frames: self.part.frames,
            key: self.part.key,
            crc: crc32fast::hash(&self.part.bytes),
            stats: self.stats,
            reports: std::mem::take(&mut self.reports),
            clock: self.clock,
        };
        self.index.append(&record)?;
        self.clock = None;
        self.stats = TrackStats::default();
        segment.hasher.update(&self.part.bytes);
        segment.size += len;
        self.parts_written += 1;
        metrics().captured_bytes.inc_by(len);
        Ok(())
    }

    fn begin_segment(&mut self) -> Result<(), LogError> {
        let format = self.format.as_ref().expect("the rules give a format before the first frame");
        let name = format!("e{}-{:06}.mkv", self.epoch, self.next_n & SEGMENT_MASK);
        let path = self.dir.join(&name);
        let n = self.next_n;
        self.next_n = self.next_n.saturating_add(1);
        // Never overwrites a file: its writer may still need it.
        let file =
            OpenOptions::new().create_new(true).append(true).open(&path).map_err(LogError::io("create", &path))?;
        let header = mkv::header(format);
        let record =
            Record::Segment { n, epoch: self.epoch, file: name, header: header.len() as u64, format: format.clone() };
        let begun = (&file).write_all(&header).map_err(LogError::io("write", &path));
        begun.and_then(|()| Ok(self.index.append(&record)?)).inspect_err(|_| {
            // The index does not name it. A disk that fails for hours must not fill up with empty files.
            std::fs::remove_file(&path).unwrap_or_default();
        })?;
        let mut hasher = Sha256::new();
        hasher.update(&header);
        self.segment = Some(Segment { n, file: Arc::new(file), path, size: header.len() as u64, hasher });
        Ok(())
    }

    /// Ends the segment that is being written. Its fsync is left to the caller, on another thread.
    ///
    /// # Errors
    /// As for [`TrackLog::format`].
    pub fn seal(&mut self) -> Result<Option<UnsyncedSegment>, LogError> {
        self.flush()?;
        if let Some(failed) = self.failed.filter(|failed| failed.since < self.dropped_to) {
            // A full quota still leaves room for a line: the gap so far is noted even if no frame follows.
            self.gap(Gap { from: failed.since, to: self.dropped_to, cause: GapCause::Storage })?;
            self.failed = Some(WriteFailure { since: self.dropped_to, ..failed });
        }
        if self.stats != TrackStats::default() {
            self.index.append(&Record::Stats { stats: self.stats })?;
            self.stats = TrackStats::default();
        }
        let new_folder = !std::mem::replace(&mut self.folder_synced, true);
        Ok(self.segment.take().map(|s| UnsyncedSegment {
            segment: SealedSegment { track: self.track, n: s.n, size: s.size },
            new_folder,
            file: s.file,
            path: s.path,
            index: Arc::clone(&self.index),
            sha256: hex(&s.hasher.finalize()),
        }))
    }
}

fn seal_left_open(
    dir: &Path,
    segment: &super::reader::SegmentIndex,
    index: &LineFile,
    track: TrackId,
) -> Result<Option<SealedSegment>, LogError> {
    let path = dir.join(&segment.file);
    let file = match OpenOptions::new().read(true).write(true).open(&path) {
        Ok(file) => file,
        // The machine died before the folder's entry was on disk: the segment does not exist.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(LogError::io("open", &path)(e)),
    };
    let have = file.metadata().map_err(LogError::io("read", &path))?.len();
    // Up to the last part that is whole. A machine that died may have left a file longer than its content.
    let mut whole = segment.header;
    for part in &segment.parts {
        let end = part.at.saturating_add(part.len);
        if end <= have && end > whole && super::reader::part_bytes(&file, *part).is_some() {
            whole = end;
        }
    }
    if whole > have {
        return Ok(None);
    }
    file.set_len(whole).map_err(LogError::io("truncate", &path))?;
    let mut hasher = Sha256::new();
    let mut reader = &file;
    reader.rewind().map_err(LogError::io("read", &path))?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        match reader.read(&mut buffer).map_err(LogError::io("read", &path))? {
            0 => break,
            read => hasher.update(&buffer[..read]),
        }
    }
    file.sync_all().map_err(LogError::io("sync", &path))?;
    index.append(&Record::Sealed { n: segment.n, size: whole, sha256: hex(&hasher.finalize()) })?;
    index.sync()?;
    Ok(Some(SealedSegment { track, n: segment.n, size: whole }))
}
