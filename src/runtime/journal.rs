//! Append-only files of JSON lines, each with its CRC-32: `{…}<tab><8 hex digits>`.
//!
//! Several threads may have the same file open. Appending a line, and truncating a torn last line, take the file's lock, so that a line
//! that is being appended is never taken for a torn one.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::model::fault::{Fault, FaultKind, HasFault};

/// An operation on a file failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {path}")]
pub struct FileError {
    /// The operation.
    pub doing: &'static str,
    /// The file.
    pub path: String,
    /// The cause.
    pub source: std::io::Error,
}

impl FileError {
    /// Adds the operation and the path to an error of the file system.
    pub(crate) fn new(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let path = path.display().to_string();
        move |source| Self { doing, path, source }
    }
}

impl HasFault for FileError {
    fn fault(&self) -> Fault {
        FaultKind::SpoolIo.fault()
    }
}

/// Longest line that is read, in bytes. The longest written line is a segment with its codec's header.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// A journal file.
#[derive(Debug)]
pub struct LineFile {
    file: File,
    path: PathBuf,
    /// Held while a line is appended: `flock` does not exclude threads that share a file description.
    append_lock: Mutex<()>,
}

/// The file's lock (`flock`). Where the file system has no locks, only one process may use the file.
struct FileLock<'a>(&'a File);

impl<'a> FileLock<'a> {
    fn new(file: &'a File, path: &Path) -> Result<Self, FileError> {
        match file.lock() {
            Err(e) if e.kind() != std::io::ErrorKind::Unsupported => Err(FileError::new("lock", path)(e)),
            _ => Ok(Self(file)),
        }
    }
}

impl Drop for FileLock<'_> {
    fn drop(&mut self) {
        self.0.unlock().unwrap_or_default();
    }
}

impl LineFile {
    /// Opens or creates the file, truncates a torn last line, and returns the lines.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub fn open<T: DeserializeOwned>(path: &Path) -> Result<(Self, Vec<T>), FileError> {
        let this = Self::open_for_append(path)?;
        let locked = FileLock::new(&this.file, path)?;
        let (lines, valid) = read_lines(path, 0)?;
        let len = this.file.metadata().map_err(FileError::new("read", path))?.len();
        if len > valid {
            this.file.set_len(valid).map_err(FileError::new("truncate", path))?;
        }
        drop(locked);
        Ok((this, lines))
    }

    /// Opens or creates the file to append lines, without reading or truncating it: another process may be writing to it.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub fn open_for_append(path: &Path) -> Result<Self, FileError> {
        let file =
            OpenOptions::new().create(true).append(true).read(true).open(path).map_err(FileError::new("open", path))?;
        Ok(Self { file, path: path.to_owned(), append_lock: Mutex::new(()) })
    }

    /// Appends a line. When this returns, the line is in the page cache, and survives a crash of the process.
    ///
    /// # Errors
    /// When the line cannot be written completely. Bytes that were written are removed.
    pub fn append<T: Serialize>(&self, value: &T) -> Result<(), FileError> {
        self.append_bytes(&to_line(value))
    }

    fn append_bytes(&self, lines: &[u8]) -> Result<(), FileError> {
        let _alone = self.append_lock.lock().unwrap_or_else(PoisonError::into_inner);
        let _locked = FileLock::new(&self.file, &self.path)?;
        let before = self.file.metadata().map_err(FileError::new("read", &self.path))?.len();
        (&self.file).write_all(lines).map_err(|source| {
            // If this fails, too, the reader takes the torn line and the next one for one damaged line.
            self.file.set_len(before).unwrap_or_default();
            FileError::new("append to", &self.path)(source)
        })
    }

    /// Syncs the file, so that its lines survive a crash of the machine.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn sync(&self) -> Result<(), FileError> {
        self.file.sync_data().map_err(FileError::new("sync", &self.path))
    }
}

/// A journal file that gains the lines of other copies of it. It is read once, however many copies there are.
#[derive(Debug)]
pub(crate) struct MergedFile {
    path: PathBuf,
    /// What its lines are known by: a hash that nobody can foresee.
    have: HashSet<u64>,
    hasher: RandomState,
}

impl MergedFile {
    /// Opens or creates the file, and truncates a torn last line.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        LineFile::open::<serde::de::IgnoredAny>(path)?;
        let mut reader = BufReader::new(File::open(path).map_err(FileError::new("open", path))?);
        let mut this = Self { path: path.to_owned(), have: HashSet::new(), hasher: RandomState::new() };
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).map_err(FileError::new("read", path))? > 0 {
            this.have.insert(this.hasher.hash_one(line.as_slice()));
            line.clear();
        }
        Ok(this)
    }

    /// Appends the lines of another copy that are not here, each as `convert` returns it for its JSON and its bytes. Damaged lines are left
    /// out.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn merge(&mut self, lines: &[u8], convert: impl Fn(&[u8], &[u8]) -> Option<Vec<u8>>) -> Result<(), FileError> {
        let (mut missing, mut added) = (Vec::new(), HashSet::new());
        for line in lines.split_inclusive(|b| *b == b'\n') {
            let Some(line) = json_of_line(line).and_then(|json| convert(json, line)) else { continue };
            let hash = self.hasher.hash_one(line.as_slice());
            if !self.have.contains(&hash) && added.insert(hash) {
                missing.extend(line);
            }
        }
        if !missing.is_empty() {
            // Not held open: an archive may have many tracks.
            LineFile::open_for_append(&self.path)?.append_bytes(&missing)?;
        }
        self.have.extend(added);
        Ok(())
    }

    /// Appends a line of this copy.
    ///
    /// # Errors
    /// See [`LineFile::append`].
    pub fn append<T: Serialize>(&mut self, value: &T) -> Result<(), FileError> {
        let line = to_line(value);
        LineFile::open_for_append(&self.path)?.append_bytes(&line)?;
        self.have.insert(self.hasher.hash_one(line.as_slice()));
        Ok(())
    }
}

/// A line with its checksum.
pub(crate) fn to_line<T: Serialize>(value: &T) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).expect("records have string keys only");
    let crc = crc32fast::hash(&line);
    writeln!(line, "\t{crc:08x}").expect("writing to memory does not fail");
    line
}

/// Reads lines from a byte offset. Returns them, and the offset after the last complete line. Damaged lines and lines of an unknown kind
/// are skipped.
///
/// # Errors
/// When the file cannot be read. A file that is not there has no lines.
pub fn read_lines<T: DeserializeOwned>(path: &Path, from: u64) -> Result<(Vec<T>, u64), FileError> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok((Vec::new(), 0)),
        Err(e) => return Err(FileError::new("open", path)(e)),
    };
    file.seek(SeekFrom::Start(from)).map_err(FileError::new("read", path))?;
    let mut reader = BufReader::new(file);
    let (mut lines, mut at, mut valid, mut line) = (Vec::new(), from, from, Vec::new());
    // Whether the next bytes still belong to a line longer than the limit.
    let mut overlong = false;
    loop {
        line.clear();
        let read = Read::take(&mut reader, LINE_BYTES_MAX)
            .read_until(b'\n', &mut line)
            .map_err(FileError::new("read", path))?;
        if read == 0 {
            return Ok((lines, valid));
        }
        at += read as u64;
        if line.last() != Some(&b'\n') {
            overlong = true;
            continue;
        }
        valid = at;
        if let Some(value) =
            json_of_line(&line).filter(|_| !overlong).and_then(|json| serde_json::from_slice(json).ok())
        {
            lines.push(value);
        }
        overlong = false;
    }
}

fn json_of_line(line: &[u8]) -> Option<&[u8]> {
    let line = line.strip_suffix(b"\n")?;
    let (json, crc) = line.split_at_checked(line.len().checked_sub(9)?)?;
    let crc = std::str::from_utf8(crc.strip_prefix(b"\t")?).ok()?;
    (u32::from_str_radix(crc, 16).ok()? == crc32fast::hash(json)).then_some(json)
}
