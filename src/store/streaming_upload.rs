//! Uploads a file while it grows. Bytes that will not change any more go to the store in parts, so that at the end only the
//! beginning and the rest are left. The upload's journal has the parts that were sent, and [`super::upload::upload`]
//! continues from it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::checksum::{self, PartSums};
use super::upload::{Entry, PART_BYTES_MIN, PARTS_MAX, abort_upload, open_uploads};
use super::{Body, ObjectStore, PutOptions, StoreError};
use crate::model::fault::chain;
use crate::runtime::journal::{FileError, LineFile, read_lines};
use crate::runtime::retry::STORE;

/// Interval at which the file is checked for growth.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// After this number of uploads that the store lost or refused, the file is sent only when it is whole.
const LOST_UPLOADS_MAX: u32 = 5;

/// A file that grows.
pub struct GrowingFile {
    /// The object's key.
    pub key: String,
    /// The file; it may not be there yet.
    pub path: PathBuf,
    /// MIME type.
    pub content_type: &'static str,
    /// Bytes of a part.
    pub part_bytes: u64,
    /// The upload's journal.
    pub journal: PathBuf,
    /// The range of a file of a given length that will not change any more.
    pub final_range: Box<dyn Fn(u64) -> Option<Range<u64>> + Send + Sync>,
    /// Counts how often the file was begun. Parts that were sent before the last beginning are of no use.
    pub starts: watch::Receiver<u32>,
}

/// An upload under way.
struct Upload {
    id: String,
    /// The value of [`GrowingFile::starts`] when it began.
    start: u32,
    /// The next part, counted from 0.
    next: u64,
}

/// Uploads the file's final range as it grows, until `end` says that the file is whole or will never be. Outages are waited
/// for. Parts that cannot be sent now are sent at the end.
pub async fn send(store: &dyn ObjectStore, file: &GrowingFile, end: &CancellationToken) {
    let (mut upload, mut failures, mut lost) = (None, 0, 0);
    while lost < LOST_UPLOADS_MAX {
        let wait = if failures == 0 { POLL_INTERVAL } else { STORE.delay(failures, rand::random()) };
        tokio::select! {
            () = end.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
        // One part at a time. A part is never interrupted: it would have to be sent again.
        let error = loop {
            match file.send_next(store, &mut upload).await {
                Ok(true) if !end.is_cancelled() => failures = 0,
                Ok(_) => break None,
                Err(error) => break Some(error),
            }
        };
        let Some(error) = error else { continue };
        if failures == 0 {
            tracing::warn!(object.key = file.key, "a growing file is not sent for now: {}", chain(&error));
        }
        failures += 1;
        if !matches!(error, StreamingError::Store(StoreError::Unavailable { .. })) {
            (upload, lost) = (None, lost + 1);
        }
    }
    tracing::warn!(object.key = file.key, "the file is sent when it is whole");
}

/// Why a part was not sent.
#[derive(Debug, thiserror::Error)]
enum StreamingError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Journal(#[from] FileError),
}

impl GrowingFile {
    /// Bytes of a part, as [`super::upload`] allows.
    fn part_bytes(&self) -> u64 {
        self.part_bytes.max(PART_BYTES_MIN)
    }

    /// Sends the next part, if there is one.
    async fn send_next(&self, store: &dyn ObjectStore, upload: &mut Option<Upload>) -> Result<bool, StreamingError> {
        let (start, part_bytes) = (*self.starts.borrow(), self.part_bytes());
        let len = tokio::fs::metadata(&self.path).await.map_or(0, |file| file.len());
        let Some(final_range) = (self.final_range)(len) else { return Ok(false) };
        let first = final_range.start.div_ceil(part_bytes);
        let next = upload.as_ref().filter(|u| u.start == start).map_or(first, |u| u.next);
        if (next + 1) * part_bytes > final_range.end || next >= PARTS_MAX {
            return Ok(false);
        }
        if upload.as_ref().is_none_or(|u| u.start != start) {
            *upload = Some(self.begin(store, start, first).await?);
        }
        let Some(current) = upload else { return Ok(false) };
        let (path, from) = (self.path.clone(), next * part_bytes);
        let sum = tokio::task::spawn_blocking(move || checksum::of_range(&path, from, part_bytes)).await;
        let number = i32::try_from(next + 1).unwrap_or(i32::MAX);
        // The file was begun again just now.
        let Ok(Ok(sha256)) = sum else { return Ok(false) };
        let body = Body::file(&self.path, from, part_bytes);
        let part = store.upload_part(&self.key, &current.id, number, body).await?;
        if *self.starts.borrow() == start {
            LineFile::open_for_append(&self.journal)?.append(&Entry::Part { part, sha256: Some(sha256) })?;
            current.next = next + 1;
        }
        Ok(true)
    }

    /// Begins an upload, and aborts those before it.
    async fn begin(&self, store: &dyn ObjectStore, start: u32, next: u64) -> Result<Upload, StreamingError> {
        let (journal, entries) = LineFile::open::<Entry>(&self.journal)?;
        for (key, upload_id) in open_uploads(entries) {
            abort_upload(store, &journal, &key, upload_id).await?;
        }
        let (mark, part_bytes) = (uuid::Uuid::new_v4().to_string(), self.part_bytes());
        let options = PutOptions {
            content_type: Some(self.content_type),
            part_bytes: Some(part_bytes),
            mark: Some(mark.clone()),
            ..PutOptions::default()
        };
        let id = store.create_upload(&self.key, options).await?;
        let (key, upload_id, mark) = (self.key.clone(), id.clone(), Some(mark));
        journal.append(&Entry::Begun { key, upload_id, part_bytes, size: None, sha256: None, mark })?;
        journal.sync()?;
        Ok(Upload { id, start, next })
    }
}

/// The SHA-256s of the parts of a file that is whole now and was sent as it grew; unknown ones are computed. `None` if
/// nothing was sent, or if the file is not the one that was sent. Blocking.
///
/// # Errors
/// When the journal or the file cannot be read.
pub fn parts(journal: &Path, path: &Path) -> Result<Option<PartSums>, FileError> {
    let io = |source| FileError { doing: "read", path: path.display().to_string(), source };
    let (entries, _) = read_lines::<Entry>(journal, 0)?;
    let Some((part_bytes, sent)) = uploaded_parts(&entries) else { return Ok(None) };
    let size = std::fs::metadata(path).map_err(io)?.len();
    let count = size.div_ceil(part_bytes);
    let of = |n: u64| checksum::of_range(path, n * part_bytes, part_bytes.min(size - n * part_bytes));
    // If the file was moved or made again, these differ.
    for (n, sum) in [sent.first_key_value(), sent.last_key_value()].into_iter().flatten() {
        if *n >= count || of(*n).map_err(io)? != *sum {
            return Ok(None);
        }
    }
    if sent.is_empty() || count > PARTS_MAX {
        return Ok(None);
    }
    let sums = (0..count).map(|n| sent.get(&n).cloned().map_or_else(|| of(n).map_err(io), Ok));
    Ok(Some(PartSums { part_bytes, sha256: sums.collect::<Result<_, _>>()? }))
}

/// The part size, and the SHA-256s of the parts that were sent, by number from 0.
fn uploaded_parts(entries: &[Entry]) -> Option<(u64, BTreeMap<u64, String>)> {
    let (mut last, mut open) = (None, String::new());
    for entry in entries {
        match entry {
            Entry::Begun { upload_id, part_bytes, mark, .. } => {
                open.clone_from(upload_id);
                last = mark.as_ref().map(|_| (*part_bytes, BTreeMap::new()));
            }
            Entry::Part { part, sha256: Some(sha256) } => {
                if let (Some((_, parts)), Ok(number)) = (&mut last, u64::try_from(part.number - 1)) {
                    parts.insert(number, sha256.clone());
                }
            }
            Entry::Part { sha256: None, .. } => {}
            Entry::Ended { upload_id } => last = last.filter(|_| *upload_id != open),
        }
    }
    last.filter(|(part_bytes, _)| *part_bytes > 0)
}
