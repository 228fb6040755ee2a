//! The checksum by which a file is known: the SHA-256 of all its bytes, or, of a file whose parts are sent while its
//! beginning is still to be made, the SHA-256 of its parts' SHA-256s with their number behind it, as S3 gives it
//! for objects in parts ("composite").

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A file is read in pieces of this many bytes.
const CHUNK: usize = 256 << 10;

/// The SHA-256s of a file's equal parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartSums {
    /// Bytes of each part but the last.
    pub part_bytes: u64,
    /// Base64 of each.
    pub sha256: Vec<String>,
}

impl PartSums {
    /// The checksum of the whole.
    #[must_use]
    pub fn composite(&self) -> String {
        let mut all = Sha256::new();
        for sum in &self.sha256 {
            // What is no base64 makes a checksum that nothing has.
            all.update(STANDARD.decode(sum).unwrap_or_default());
        }
        format!("{}-{}", STANDARD.encode(all.finalize()), self.sha256.len())
    }
}

/// Makes the checksum of bytes that come piece by piece.
#[derive(Debug, Clone)]
pub struct Hasher {
    current: Sha256,
    parts: Option<PartHasher>,
}

/// The state of a checksum of parts.
#[derive(Debug, Clone)]
struct PartHasher {
    part_bytes: u64,
    /// Bytes in the current part.
    filled: u64,
    /// Of the parts before.
    sums: PartSums,
}

impl Hasher {
    /// Of all bytes, or of parts of so many.
    #[must_use]
    pub fn new(part_bytes: Option<u64>) -> Self {
        let parts = part_bytes.map(|part_bytes| {
            let sums = PartSums { part_bytes, sha256: Vec::new() };
            PartHasher { part_bytes: part_bytes.max(1), filled: 0, sums }
        });
        Self { current: Sha256::new(), parts }
    }

    /// Adds bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        let Some(parts) = &mut self.parts else { return self.current.update(bytes) };
        while !bytes.is_empty() {
            if parts.filled == parts.part_bytes {
                parts.sums.sha256.push(STANDARD.encode(std::mem::take(&mut self.current).finalize()));
                parts.filled = 0;
            }
            let room = usize::try_from(parts.part_bytes - parts.filled).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(bytes.len().min(room));
            self.current.update(now);
            parts.filled += now.len() as u64;
            bytes = later;
        }
    }

    /// The checksum.
    #[must_use]
    pub fn finish(self) -> String {
        let last = STANDARD.encode(self.current.finalize());
        match self.parts {
            None => last,
            Some(mut parts) => {
                parts.sums.sha256.push(last);
                parts.sums.composite()
            }
        }
    }
}

/// Base64 of the SHA-256 of `len` bytes of a file. Blocking.
///
/// # Errors
/// When they cannot be read, or are not there.
pub fn of_range(path: &Path, from: u64, len: u64) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(from))?;
    let mut file = file.take(len);
    let (mut hasher, mut buffer, mut read) = (Sha256::new(), vec![0; CHUNK], 0);
    loop {
        match file.read(&mut buffer)? {
            0 if read == len => return Ok(STANDARD.encode(hasher.finalize())),
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            more => {
                hasher.update(&buffer[..more]);
                read += more as u64;
            }
        }
    }
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, b| {
        write!(text, "{b:02x}").expect("writing to a String does not fail");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashed(part_bytes: Option<u64>, pieces: &[&[u8]]) -> String {
        let mut hasher = Hasher::new(part_bytes);
        pieces.iter().for_each(|piece| hasher.update(piece));
        hasher.finish()
    }

    #[test]
    fn a_checksum_does_not_depend_on_the_pieces_and_that_of_parts_is_told_by_its_number() {
        let plain = STANDARD.encode(Sha256::digest(b"abcdef"));
        assert_eq!(hashed(None, &[b"abc", b"", b"def"]), plain);
        let sum = |bytes: &[u8]| STANDARD.encode(Sha256::digest(bytes));
        for (part_bytes, parts) in
            [(2, vec![&b"ab"[..], b"cd", b"ef"]), (4, vec![b"abcd", b"ef"]), (6, vec![b"abcdef"]), (9, vec![b"abcdef"])]
        {
            let sums = PartSums { part_bytes, sha256: parts.iter().map(|part| sum(part)).collect() };
            assert!(sums.composite().ends_with(&format!("-{}", parts.len())));
            for pieces in [&[&b"abcdef"[..]][..], &[b"a", b"bcde", b"f"], &[b"ab", b"cd", b"ef"]] {
                assert_eq!(hashed(Some(part_bytes), pieces), sums.composite(), "{part_bytes}");
            }
        }
    }

    #[test]
    fn a_range_is_all_there_or_an_error() {
        let file = tempfile::NamedTempFile::new().expect("file");
        std::fs::write(file.path(), b"abcdef").expect("write");
        assert_eq!(of_range(file.path(), 2, 3).expect("range"), STANDARD.encode(Sha256::digest(b"cde")));
        assert!(of_range(file.path(), 4, 3).is_err());
    }
}
