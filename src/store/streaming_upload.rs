//! Sending a file while it grows: what will not change any more goes to the store in parts, so that at the end only the
//! beginning and the rest are left to send. What was sent stands in the journal of the upload, which
//! [`super::upload::upload`] takes up.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::checksum::{self, PartSums};
use super::upload::{Entry, PART_BYTES_MIN, PARTS_MAX, give_up, open_uploads};
use super::{Body, ObjectStore, PutOptions, StoreError};
use crate::model::fault::chain;
use crate::runtime::journal::{FileError, LineFile, read_lines};
use crate::runtime::retry::STORE;

/// How often the file is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// Uploads that the store has lost or refused, after which the file is only sent at its end.
const UPLOADS_MAX: u32 = 5;

/// A file that grows.
pub struct Growing {
    /// Where to.
    pub key: String,
    /// The file; it may not be there yet.
    pub path: PathBuf,
    /// MIME type.
    pub content_type: &'static str,
    /// Bytes of a part.
    pub part_bytes: u64,
    /// The upload's journal.
    pub journal: PathBuf,
    /// What of a file so long will not change any more.
    pub settled: Box<dyn Fn(u64) -> Option<Range<u64>> + Send + Sync>,
    /// Counts how often the file was begun: what was sent before is of no use then.
    pub begun: watch::Receiver<u32>,
}

/// An upload under way.
struct Upload {
    id: String,
    /// Of which beginning of the file.
    begun: u32,
    /// The next part, counted from 0.
    next: u64,
}

/// Sends what is settled until `end`, which says that the file is whole or will never be. Outages are waited for; what
/// cannot be sent now is sent at the end.
pub async fn send(store: &dyn ObjectStore, file: &Growing, end: &CancellationToken) {
    let (mut upload, mut failures, mut lost) = (None, 0, 0);
    while lost < UPLOADS_MAX {
        let wait = if failures == 0 { LOOK } else { STORE.delay(failures, rand::random()) };
        tokio::select! {
            () = end.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
        // One part at a time, and no part is broken off: it would be sent again.
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
        if !matches!(error, AheadError::Store(StoreError::Unavailable { .. })) {
            (upload, lost) = (None, lost + 1);
        }
    }
    tracing::warn!(object.key = file.key, "the file is sent when it is whole");
}

/// Why a part was not sent.
#[derive(Debug, thiserror::Error)]
enum AheadError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Journal(#[from] FileError),
}

impl Growing {
    /// Bytes of a part, as [`super::upload`] allows.
    fn part_bytes(&self) -> u64 {
        self.part_bytes.max(PART_BYTES_MIN)
    }

    /// Sends the next part, if there is one.
    async fn send_next(&self, store: &dyn ObjectStore, upload: &mut Option<Upload>) -> Result<bool, AheadError> {
        let (begun, part_bytes) = (*self.begun.borrow(), self.part_bytes());
        let len = tokio::fs::metadata(&self.path).await.map_or(0, |file| file.len());
        let Some(settled) = (self.settled)(len) else { return Ok(false) };
        let first = settled.start.div_ceil(part_bytes);
        let next = upload.as_ref().filter(|u| u.begun == begun).map_or(first, |u| u.next);
        if (next + 1) * part_bytes > settled.end || next >= PARTS_MAX {
            return Ok(false);
        }
        if upload.as_ref().is_none_or(|u| u.begun != begun) {
            *upload = Some(self.begin(store, begun, first).await?);
        }
        let Some(current) = upload else { return Ok(false) };
        let (path, from) = (self.path.clone(), next * part_bytes);
        let sum = tokio::task::spawn_blocking(move || checksum::of_range(&path, from, part_bytes)).await;
        let number = i32::try_from(next + 1).unwrap_or(i32::MAX);
        // The file was begun anew just now.
        let Ok(Ok(sha256)) = sum else { return Ok(false) };
        let body = Body::file(&self.path, from, part_bytes);
        let part = store.upload_part(&self.key, &current.id, number, body).await?;
        if *self.begun.borrow() == begun {
            LineFile::open_for_append(&self.journal)?.append(&Entry::Part { part, sha256: Some(sha256) })?;
            current.next = next + 1;
        }
        Ok(true)
    }

    /// Begins an upload, and gives up those before it.
    async fn begin(&self, store: &dyn ObjectStore, begun: u32, next: u64) -> Result<Upload, AheadError> {
        let (journal, entries) = LineFile::open::<Entry>(&self.journal)?;
        for (key, upload_id) in open_uploads(entries) {
            give_up(store, &journal, &key, upload_id).await?;
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
        Ok(Upload { id, begun, next })
    }
}

/// The parts of a file that is whole now and was sent as it grew: their SHA-256s, of which only those are made that are
/// not known. `None` if nothing was sent, or if the file is not the one that was sent. Blocking.
///
/// # Errors
/// When the journal or the file cannot be read.
pub fn parts(journal: &Path, path: &Path) -> Result<Option<PartSums>, FileError> {
    let io = |source| FileError { doing: "read", path: path.display().to_string(), source };
    let (entries, _) = read_lines::<Entry>(journal, 0)?;
    let Some((part_bytes, sent)) = sent(&entries) else { return Ok(None) };
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

/// The bytes of a part, and the parts with what was sent of them, counted from 0.
fn sent(entries: &[Entry]) -> Option<(u64, BTreeMap<u64, String>)> {
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
