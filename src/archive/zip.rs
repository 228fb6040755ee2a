//! The ZIP of individual files: stored, not compressed (coded media does not shrink), always the same bytes
//! for the same files.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::ArchiveError;

/// ZIP64 from here on.
const LARGE: u64 = u32::MAX as u64;

/// Writes the ZIP: files from a folder, and one document of bytes.
pub(super) fn write(path: &Path, folder: &Path, files: &[String], document: (&str, &[u8])) -> Result<(), ArchiveError> {
    let failed =
        |e: zip::result::ZipError| ArchiveError::Invalid { file: "archive.zip".to_owned(), what: e.to_string() };
    let file = File::create(path).map_err(ArchiveError::io("created", path))?;
    let mut zip = ZipWriter::new(BufWriter::with_capacity(1 << 20, file));
    let options = |size: u64| {
        SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .large_file(size >= LARGE)
            .unix_permissions(0o644)
    };
    for name in files {
        let source = folder.join(name);
        let size = std::fs::metadata(&source).map_err(ArchiveError::io("read", &source))?.len();
        zip.start_file(name.as_str(), options(size)).map_err(failed)?;
        let file = File::open(&source).map_err(ArchiveError::io("opened", &source))?;
        std::io::copy(&mut BufReader::with_capacity(1 << 20, file), &mut zip)
            .map_err(ArchiveError::io("written", path))?;
    }
    zip.start_file(document.0, options(0)).map_err(failed)?;
    zip.write_all(document.1).map_err(ArchiveError::io("written", path))?;
    let file = zip.finish().map_err(failed)?.into_inner();
    let file = file.map_err(|e| ArchiveError::io("written", path)(e.into_error()))?;
    file.sync_all().map_err(ArchiveError::io("synced", path))
}

/// Reads the ZIP again: every entry's checksum, and the names that must be there.
pub(super) fn check(path: &Path, names: &[String]) -> Result<(), ArchiveError> {
    let invalid = |what: String| ArchiveError::Invalid { file: "archive.zip".to_owned(), what };
    let file = File::open(path).map_err(ArchiveError::io("opened", path))?;
    let mut zip = ZipArchive::new(BufReader::new(file)).map_err(|e| invalid(e.to_string()))?;
    for name in names {
        let mut entry = zip.by_name(name).map_err(|e| invalid(format!("{name}: {e}")))?;
        // The reader compares the CRC at the end.
        std::io::copy(&mut entry, &mut std::io::sink()).map_err(|e| invalid(format!("{name}: {e}")))?;
    }
    Ok(())
}

/// Base64 of a file's SHA-256, and its size.
pub(super) fn sha256(path: &Path) -> Result<(String, u64), ArchiveError> {
    let mut file = File::open(path).map_err(ArchiveError::io("opened", path))?;
    let (mut hasher, mut buffer, mut size) = (Sha256::new(), vec![0; 1 << 18], 0);
    loop {
        match file.read(&mut buffer).map_err(ArchiveError::io("read", path))? {
            0 => return Ok((STANDARD.encode(hasher.finalize()), size)),
            read => {
                hasher.update(&buffer[..read]);
                size += read as u64;
            }
        }
    }
}
