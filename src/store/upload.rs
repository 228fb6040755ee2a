//! Sending a finished file: in one piece or in parts, resumed after a restart, and proved.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::SystemTime;

use futures_util::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::checksum::PartSums;
use super::{Body, ObjectInfo, ObjectStore, PutOptions, StoreError, UploadedPart};
use crate::model::cancellable::Cancellable;
use crate::model::fault::{Fault, FaultKind, HasFault, chain};
use crate::runtime::journal::{FileError, LineFile};
use crate::runtime::retry::{STORE, retry_until_cancelled};

/// Smallest part but the last that S3 takes, and the default.
pub const PART_BYTES_MIN: u64 = 5 << 20;
/// The default part.
pub const PART_BYTES: u64 = 16 << 20;
/// S3's limit.
pub const PARTS_MAX: u64 = 10_000;
/// Parts under way at a time.
const PARTS_AT_A_TIME: usize = 3;
/// After this number of refusals of one step in a row, a new multipart upload begins. Some stores answer `AccessDenied` for
/// an upload that is gone (s3s-fs); a refusal that concerns the bucket is reported when the new upload begins.
const REFUSALS_MAX: u32 = 4;

/// How a file is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// In one request.
    Single,
    /// In equal parts, the last one shorter (R2 and Garage refuse anything else).
    Parts {
        /// Bytes of each.
        part_bytes: u64,
        /// How many.
        count: u64,
    },
}

/// Decides how to send `size` bytes with parts of about `part_bytes`.
#[must_use]
pub fn plan(size: u64, part_bytes: u64) -> Plan {
    let wanted = part_bytes.max(PART_BYTES_MIN);
    if size <= wanted {
        return Plan::Single;
    }
    // A very long file gets larger parts, in whole MiB.
    let least = size.div_ceil(PARTS_MAX).div_ceil(1 << 20) << 20;
    let part_bytes = wanted.max(least);
    Plan::Parts { part_bytes, count: size.div_ceil(part_bytes) }
}

/// An entry of an upload's journal. The journal alone says what was sent: a store's list of parts is not used (s3s-fs's has
/// no entity tags, moto's cannot be read).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "lowercase")]
pub(super) enum Entry {
    Begun {
        key: String,
        upload_id: String,
        part_bytes: u64,
        /// Not known of a file that grows.
        size: Option<u64>,
        sha256: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mark: Option<String>,
    },
    Part {
        #[serde(flatten)]
        part: UploadedPart,
        /// Of a file that grows: base64 of what was sent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sha256: Option<String>,
    },
    Ended {
        upload_id: String,
    },
}

/// Why a file was not sent.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] FileError),
    /// The file is not the one that was to be sent: its size or its time has changed.
    #[error("{0:?} has changed since it was finished")]
    Changed(PathBuf),
}

impl HasFault for UploadError {
    fn fault(&self) -> Fault {
        match self {
            Self::Store(e) => e.fault(),
            Self::Journal(e) => e.fault(),
            Self::Changed(_) => FaultKind::SpoolIo.fault(),
        }
    }
}

/// A file to send.
#[derive(Debug, Clone)]
pub struct Upload {
    /// The object's key.
    pub key: String,
    /// The file; it must not change.
    pub path: PathBuf,
    /// Its bytes.
    pub size: u64,
    /// Base64 of its SHA-256, or of that of its parts.
    pub sha256: String,
    /// Its parts, if some were sent before the file was whole.
    pub parts: Option<PartSums>,
    /// MIME type.
    pub content_type: &'static str,
    /// Bytes of a part.
    pub part_bytes: u64,
    /// The journal's file.
    pub journal: PathBuf,
}

/// A file to send, as it was when its upload began.
struct FileUpload<'a> {
    store: &'a dyn ObjectStore,
    upload: &'a Upload,
    cancel: &'a CancellationToken,
    progress: &'a (dyn Fn(u64) + Send + Sync),
    modified: Option<SystemTime>,
    /// The mark of the upload that was begun while the file grew.
    mark: Option<String>,
}

/// How a step ended without a further attempt.
enum Step<T> {
    Done(T),
    /// The store has lost the upload.
    Lost,
    Failed(UploadError),
}

/// Sends a file and proves that the store has it. Retries until it succeeds, is refused for good, or is cancelled. May be
/// called again after a restart, and then sends only the missing parts. The file is never removed.
///
/// # Errors
/// See [`UploadError`].
pub async fn upload(
    store: &dyn ObjectStore,
    upload: &Upload,
    cancel: &CancellationToken,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<Cancellable<ObjectInfo>, UploadError> {
    let mark = match &upload.parts {
        Some(_) => mark_in_journal(&upload.journal, &upload.key)?,
        None => None,
    };
    let file_upload = FileUpload { store, upload, cancel, progress, modified: modified(&upload.path).await, mark };
    // Only a short cut: if the store is unavailable now, the steps below wait for it.
    if let Ok(Some(there)) = store.head(&upload.key).await
        && file_upload.is_same(&there)
    {
        return Ok(Cancellable::Done(there));
    }
    let plan = match &upload.parts {
        Some(parts) => Plan::Parts { part_bytes: parts.part_bytes, count: parts.sha256.len() as u64 },
        None => plan(upload.size, upload.part_bytes),
    };
    match plan {
        Plan::Single => {
            let Cancellable::Done(()) = file_upload.put_whole().await? else { return Ok(Cancellable::Cancelled) };
        }
        Plan::Parts { part_bytes, count } => {
            // A store may forget an upload (R2 after 7 days, a person at any time): then it begins anew.
            for attempt in 0.. {
                match file_upload.send_parts(part_bytes, count).await? {
                    Cancellable::Done(true) => break,
                    Cancellable::Done(false) => {}
                    Cancellable::Cancelled => return Ok(Cancellable::Cancelled),
                }
                tokio::select! {
                    () = cancel.cancelled() => return Ok(Cancellable::Cancelled),
                    () = tokio::time::sleep(STORE.delay(attempt, rand::random())) => {}
                }
            }
        }
    }
    file_upload.prove().await
}

async fn modified(path: &Path) -> Option<SystemTime> {
    tokio::fs::metadata(path).await.and_then(|m| m.modified()).ok()
}

impl FileUpload<'_> {
    fn options(&self) -> PutOptions {
        let (content_type, sha256) = (Some(self.upload.content_type), Some(self.upload.sha256.clone()));
        let part_bytes = self.upload.parts.as_ref().map(|parts| parts.part_bytes);
        PutOptions { content_type, sha256, part_bytes, ..PutOptions::default() }
    }

    /// Whether an object is exactly this file: by its checksum, or by the mark of the upload whose parts were
    /// compared with the file's.
    fn is_same(&self, there: &ObjectInfo) -> bool {
        let by_sum = there.sha256.as_deref() == Some(&self.upload.sha256);
        let by_mark = self.mark.is_some() && there.mark == self.mark;
        there.size == self.upload.size && (by_sum || by_mark)
    }

    /// Tries one step for as long as it takes. `None` when the store has lost the upload, or has refused the step
    /// `refusals_max` times.
    async fn step<T, F>(
        &self,
        what: &str,
        refusals_max: u32,
        mut act: impl FnMut() -> F,
    ) -> Result<Cancellable<Option<T>>, UploadError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let refusals = AtomicU32::new(0);
        let tried = retry_until_cancelled(what, STORE, self.cancel, || {
            let (act, refusals) = (act(), &refusals);
            async move {
                if self.has_changed().await {
                    return Ok(Step::Failed(UploadError::Changed(self.upload.path.clone())));
                }
                match act.await {
                    Ok(done) => Ok(Step::Done(done)),
                    Err(StoreError::NoSuchUpload { .. }) => Ok(Step::Lost),
                    Err(error @ StoreError::Corrupt { .. }) => Ok(Step::Failed(error.into())),
                    Err(StoreError::Refused { .. }) if refusals.fetch_add(1, Ordering::Relaxed) + 1 >= refusals_max => {
                        Ok(Step::Lost)
                    }
                    Err(error) => Err(error),
                }
            }
        });
        match tried.await? {
            Cancellable::Done(Step::Done(done)) => Ok(Cancellable::Done(Some(done))),
            Cancellable::Done(Step::Lost) => Ok(Cancellable::Done(None)),
            Cancellable::Done(Step::Failed(error)) => Err(error),
            Cancellable::Cancelled => Ok(Cancellable::Cancelled),
        }
    }

    /// Whether size or time of the file differ. An error of the file system does not count: the upload reports it.
    async fn has_changed(&self) -> bool {
        let Ok(now) = tokio::fs::metadata(&self.upload.path).await else { return false };
        now.len() != self.upload.size || now.modified().ok() != self.modified
    }

    async fn put_whole(&self) -> Result<Cancellable<()>, UploadError> {
        let upload = self.upload;
        if upload.journal.exists() {
            // It was begun in parts, as another file.
            let (journal, entries) = LineFile::open::<Entry>(&upload.journal)?;
            self.abort_open_uploads(&journal, entries).await?;
        }
        let put = || self.store.put(&upload.key, Body::file(&upload.path, 0, upload.size), self.options());
        let sent = self.step("upload a file", u32::MAX, put).await?;
        if let Cancellable::Done(Some(_)) = sent {
            (self.progress)(upload.size);
        }
        Ok(sent.map(drop))
    }

    /// Sends the missing parts and completes the upload. `false` when a new upload must begin.
    async fn send_parts(&self, part_bytes: u64, count: u64) -> Result<Cancellable<bool>, UploadError> {
        let (journal, entries) = LineFile::open::<Entry>(&self.upload.journal)?;
        let (upload_id, done) = match resume(&entries, self.upload, part_bytes) {
            Some(found) => found,
            None => {
                self.abort_open_uploads(&journal, entries).await?;
                match self.begin(&journal, part_bytes).await? {
                    Cancellable::Done(upload_id) => (upload_id, Vec::new()),
                    Cancellable::Cancelled => return Ok(Cancellable::Cancelled),
                }
            }
        };
        (self.progress)(done.iter().map(|p| p.size).sum());
        let ended = self.send_missing(&journal, &upload_id, part_bytes, count, done).await;
        match ended {
            Ok(Cancellable::Done(true)) => {
                journal.append(&Entry::Ended { upload_id })?;
                Ok(Cancellable::Done(true))
            }
            Ok(Cancellable::Done(false)) => {
                self.abort_upload(&journal, &self.upload.key, upload_id).await?;
                Ok(Cancellable::Done(false))
            }
            Ok(Cancellable::Cancelled) => Ok(Cancellable::Cancelled),
            // The assembled parts are not the file: they are of no use to the next attempt.
            Err(error @ UploadError::Store(StoreError::Corrupt { .. })) => {
                self.abort_upload(&journal, &self.upload.key, upload_id).await?;
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    async fn begin(&self, journal: &LineFile, part_bytes: u64) -> Result<Cancellable<String>, UploadError> {
        let upload = self.upload;
        let create = || self.store.create_upload(&upload.key, self.options());
        let created = retry_until_cancelled("begin an upload", STORE, self.cancel, create).await;
        let Cancellable::Done(upload_id) = created? else { return Ok(Cancellable::Cancelled) };
        journal.append(&Entry::Begun {
            key: upload.key.clone(),
            upload_id: upload_id.clone(),
            part_bytes,
            size: Some(upload.size),
            sha256: Some(upload.sha256.clone()),
            mark: None,
        })?;
        journal.sync()?;
        Ok(Cancellable::Done(upload_id))
    }

    async fn send_missing(
        &self,
        journal: &LineFile,
        upload_id: &str,
        part_bytes: u64,
        count: u64,
        mut done: Vec<UploadedPart>,
    ) -> Result<Cancellable<bool>, UploadError> {
        let sent: Vec<i32> = done.iter().map(|part| part.number).collect();
        let missing = (1..=count).filter_map(|n| i32::try_from(n).ok()).filter(|n| !sent.contains(n));
        let send = |number: i32| async move {
            let from = u64::from(number.unsigned_abs() - 1) * part_bytes;
            let len = part_bytes.min(self.upload.size - from);
            let body = || Body::file(&self.upload.path, from, len);
            let part = || self.store.upload_part(&self.upload.key, upload_id, number, body());
            self.step("upload a part", REFUSALS_MAX, part).await
        };
        let mut uploading = futures_util::stream::iter(missing).map(send).buffer_unordered(PARTS_AT_A_TIME);
        while let Some(part) = uploading.try_next().await? {
            let Cancellable::Done(part) = part else { return Ok(Cancellable::Cancelled) };
            let Some(part) = part else { return Ok(Cancellable::Done(false)) };
            journal.append(&Entry::Part { part: part.clone(), sha256: None })?;
            (self.progress)(part.size);
            done.push(part);
        }
        drop(uploading);
        done.sort_by_key(|p| p.number);
        let complete = || self.complete(upload_id, &done);
        let completed = self.step("complete an upload", REFUSALS_MAX, complete).await?;
        Ok(completed.map(|completed| completed.is_some()))
    }

    /// After a lost answer the next attempt finds the upload unknown or refused: then the object is there.
    async fn complete(&self, upload_id: &str, parts: &[UploadedPart]) -> Result<(), StoreError> {
        let error = match self.store.complete_upload(&self.upload.key, upload_id, parts, false).await {
            Ok(_) => return Ok(()),
            Err(error @ StoreError::Unavailable { .. }) => return Err(error),
            Err(error) => error,
        };
        match self.store.head(&self.upload.key).await? {
            Some(there) if self.is_same(&there) => Ok(()),
            _ => Err(error),
        }
    }

    async fn abort_upload(&self, journal: &LineFile, key: &str, upload_id: String) -> Result<(), UploadError> {
        Ok(abort_upload(self.store, journal, key, upload_id).await?)
    }

    async fn abort_open_uploads(&self, journal: &LineFile, entries: Vec<Entry>) -> Result<(), UploadError> {
        for (key, upload_id) in open_uploads(entries) {
            self.abort_upload(journal, &key, upload_id).await?;
        }
        Ok(())
    }

    /// Compares the store's object with the file.
    async fn prove(&self) -> Result<Cancellable<ObjectInfo>, UploadError> {
        let head = || self.store.head(&self.upload.key);
        let found = retry_until_cancelled("look at an object", STORE, self.cancel, head).await?;
        let Cancellable::Done(found) = found else { return Ok(Cancellable::Cancelled) };
        if let Some(there) = found.as_ref().filter(|there| self.is_same(there)) {
            return Ok(Cancellable::Done(there.clone()));
        }
        let told = |size: u64, sha256: &str| format!("{size} bytes with SHA-256 {sha256}");
        let found = found.map(|o| told(o.size, o.sha256.as_deref().unwrap_or("unknown")));
        Err(StoreError::Corrupt {
            key: self.upload.key.clone(),
            expected: told(self.upload.size, &self.upload.sha256),
            found: found.unwrap_or_else(|| "nothing".to_owned()),
        }
        .into())
    }
}

/// Aborts an upload in the store. If the store is unavailable, the sweeper aborts it later.
pub(super) async fn abort_upload(
    store: &dyn ObjectStore,
    journal: &LineFile,
    key: &str,
    upload_id: String,
) -> Result<(), FileError> {
    if let Err(error) = store.abort_upload(key, &upload_id).await {
        tracing::debug!(object.key = key, "an upload stays for the sweeper: {}", chain(&error));
    }
    journal.append(&Entry::Ended { upload_id })
}

/// The mark of the last upload that was begun with one.
fn mark_in_journal(journal: &Path, key: &str) -> Result<Option<String>, FileError> {
    let (entries, _) = crate::runtime::journal::read_lines::<Entry>(journal, 0)?;
    Ok(entries.into_iter().rev().find_map(|entry| match entry {
        Entry::Begun { key: of, mark: Some(mark), .. } if of == key => Some(mark),
        _ => None,
    }))
}

/// The upload that was under way, if it is of the same file in the same parts. Of one that was begun while the file grew
/// only those parts count that are the file's now.
fn resume(entries: &[Entry], upload: &Upload, part_bytes: u64) -> Option<(String, Vec<UploadedPart>)> {
    let mut found: Option<(String, Vec<UploadedPart>)> = None;
    for entry in entries {
        match entry {
            Entry::Begun { key, upload_id, part_bytes: bytes, size, sha256, mark } => {
                let grew = mark.is_some() && upload.parts.is_some();
                let same = grew || (*size == Some(upload.size) && sha256.as_ref() == Some(&upload.sha256));
                let same = same && *key == upload.key && *bytes == part_bytes;
                found = same.then(|| (upload_id.clone(), Vec::new()));
            }
            Entry::Part { part, sha256 } => {
                let now = upload.parts.as_ref().zip(usize::try_from(part.number - 1).ok());
                let now = now.and_then(|(parts, n)| parts.sha256.get(n));
                if let Some((_, parts)) = &mut found
                    && (sha256.is_none() || sha256.as_ref() == now)
                {
                    parts.retain(|p| p.number != part.number);
                    parts.push(part.clone());
                }
            }
            Entry::Ended { upload_id } => found = found.filter(|(id, _)| id != upload_id),
        }
    }
    found
}

/// The uploads that a journal has begun and not ended: (key, upload id).
///
/// # Errors
/// When it cannot be read.
pub fn unfinished(journal: &Path) -> Result<Vec<(String, String)>, FileError> {
    let (entries, _) = crate::runtime::journal::read_lines::<Entry>(journal, 0)?;
    Ok(open_uploads(entries))
}

pub(super) fn open_uploads(entries: Vec<Entry>) -> Vec<(String, String)> {
    let mut open: Vec<(String, String)> = Vec::new();
    for entry in entries {
        match entry {
            Entry::Begun { key, upload_id, .. } => open.push((key, upload_id)),
            Entry::Ended { upload_id } => open.retain(|(_, id)| *id != upload_id),
            Entry::Part { .. } => {}
        }
    }
    open
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_file_is_sent_whole_or_in_equal_parts_and_never_in_too_many() {
        for (size, part, expected) in [
            (0, PART_BYTES, Plan::Single),
            (16 * MIB, PART_BYTES, Plan::Single),
            (16 * MIB + 1, PART_BYTES, Plan::Parts { part_bytes: 16 * MIB, count: 2 }),
            (6 * MIB, 1, Plan::Parts { part_bytes: 5 * MIB, count: 2 }),
            (160_000 * MIB, PART_BYTES, Plan::Parts { part_bytes: 16 * MIB, count: 10_000 }),
            (160_000 * MIB + 1, PART_BYTES, Plan::Parts { part_bytes: 17 * MIB, count: 9412 }),
        ] {
            assert_eq!(plan(size, part), expected, "{size}");
        }
    }
}
