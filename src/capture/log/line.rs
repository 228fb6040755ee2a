//! Append-only files of JSON lines, each with its CRC-32: `{…}<tab><8 hex digits>`.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::LogError;

/// Longest line that is read, in bytes. The longest that is written is a segment's with its codec's header.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// A file that lines are added to. Every line is one `write` to a file in append mode, so that two threads
/// may add lines through it.
#[derive(Debug)]
pub struct LineFile {
    file: File,
    path: PathBuf,
}

impl LineFile {
    /// Opens or creates the file, cuts off what is no whole line, and returns the lines that are there.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub fn open<T: DeserializeOwned>(path: &Path) -> Result<(Self, Vec<T>), LogError> {
        let file =
            OpenOptions::new().create(true).append(true).read(true).open(path).map_err(LogError::io("open", path))?;
        let (lines, valid) = read_lines(path, 0)?;
        let len = file.metadata().map_err(LogError::io("read", path))?.len();
        if len > valid {
            file.set_len(valid).map_err(LogError::io("truncate", path))?;
        }
        Ok((Self { file, path: path.to_owned() }, lines))
    }

    /// Opens a file that somebody else writes too, only to add lines: nothing is read, nothing is cut off, for
    /// what looks torn may be a line that is just being added.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub fn attach(path: &Path) -> Result<Self, LogError> {
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(LogError::io("open", path))?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Adds a line. It is in the page cache when this returns: it survives the process.
    ///
    /// # Errors
    /// When it cannot be written whole.
    pub fn append<T: Serialize>(&self, value: &T) -> Result<(), LogError> {
        let mut line = serde_json::to_vec(value).expect("records have string keys only");
        let crc = crc32fast::hash(&line);
        writeln!(line, "\t{crc:08x}").expect("writing to memory does not fail");
        (&self.file).write_all(&line).map_err(LogError::io("append to", &self.path))
    }

    /// Makes it survive the machine.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn sync(&self) -> Result<(), LogError> {
        self.file.sync_data().map_err(LogError::io("sync", &self.path))
    }
}

/// Reads whole lines from a byte offset on. Returns them and the offset behind the last of them. Reading
/// ends before the first line that is torn or damaged; lines of an unknown kind are passed over.
///
/// # Errors
/// When the file cannot be read. A file that is not there has no lines.
pub fn read_lines<T: DeserializeOwned>(path: &Path, from: u64) -> Result<(Vec<T>, u64), LogError> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok((Vec::new(), 0)),
        Err(e) => return Err(LogError::io("open", path)(e)),
    };
    file.seek(SeekFrom::Start(from)).map_err(LogError::io("read", path))?;
    let mut reader = BufReader::new(file);
    let (mut lines, mut valid, mut line) = (Vec::new(), from, Vec::new());
    loop {
        line.clear();
        let read = std::io::Read::take(&mut reader, LINE_BYTES_MAX)
            .read_until(b'\n', &mut line)
            .map_err(LogError::io("read", path))?;
        let Some(json) = checked(&line) else { return Ok((lines, valid)) };
        if let Ok(value) = serde_json::from_slice(json) {
            lines.push(value);
        }
        valid += read as u64;
    }
}

fn checked(line: &[u8]) -> Option<&[u8]> {
    let line = line.strip_suffix(b"\n")?;
    let (json, crc) = line.split_at_checked(line.len().checked_sub(9)?)?;
    let crc = std::str::from_utf8(crc.strip_prefix(b"\t")?).ok()?;
    (u32::from_str_radix(crc, 16).ok()? == crc32fast::hash(json)).then_some(json)
}
