//! Sending a finished file: in one piece or in parts, resumed after a restart, and proved.

use std::path::{Path, PathBuf};

use futures_util::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::retry::{STORE, persist};
use super::{Body, ObjectInfo, ObjectStore, PutOptions, StoreError, UploadedPart};
use crate::capture::log::{LineFile, LogError};

/// Smallest part but the last that S3 takes, and the default.
pub const PART_BYTES_MIN: u64 = 5 << 20;
/// The default part.
pub const PART_BYTES: u64 = 16 << 20;
/// S3's limit.
pub const PARTS_MAX: u64 = 10_000;
/// Parts under way at a time.
const PARTS_AT_A_TIME: usize = 3;

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

/// What the journal of an upload says. It is the truth; a store's list of parts is not asked (s3s-fs's has no
/// entity tags, moto's cannot be read).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "lowercase")]
enum Entry {
    Begun { key: String, upload_id: String, part_bytes: u64, size: u64, sha256: String },
    Part(UploadedPart),
    Ended { upload_id: String },
}

/// Why a file was not sent.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] LogError),
    /// It was called off.
    #[error("the upload was called off")]
    Cancelled,
}

impl crate::fault::HasFault for UploadError {
    fn fault(&self) -> crate::fault::Fault {
        match self {
            Self::Store(e) => e.fault(),
            Self::Journal(e) => e.fault(),
            Self::Cancelled => crate::fault::FaultKind::StoreUnavailable.fault(),
        }
    }
}

/// A file to send.
#[derive(Debug, Clone)]
pub struct Upload {
    /// Where to.
    pub key: String,
    /// The file; it must not change.
    pub path: PathBuf,
    /// Its bytes.
    pub size: u64,
    /// Base64 of its SHA-256.
    pub sha256: String,
    /// MIME type.
    pub content_type: &'static str,
    /// Bytes of a part.
    pub part_bytes: u64,
    /// Where the journal is.
    pub journal: PathBuf,
}

/// Sends a file and proves that the store has it. Tries again until it succeeds, is refused for good, or
/// is called off; may be called again after a restart, and sends only what is missing.
///
/// # Errors
/// See [`UploadError`].
pub async fn upload(
    store: &dyn ObjectStore,
    upload: &Upload,
    cancel: &CancellationToken,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<ObjectInfo, UploadError> {
    if let Some(there) = prove(store, upload, cancel).await? {
        return Ok(there);
    }
    let options = || PutOptions {
        content_type: Some(upload.content_type),
        sha256: Some(upload.sha256.clone()),
        if_absent: false,
    };
    match plan(upload.size, upload.part_bytes) {
        Plan::Single => {
            let put = || store.put(&upload.key, Body::file(&upload.path, 0, upload.size), options());
            persist("upload a file", STORE, cancel, put).await.ok_or(UploadError::Cancelled)??;
            progress(upload.size);
        }
        Plan::Parts { part_bytes, count } => {
            // A store may forget an upload (R2 after 7 days, a person at any time): then it begins anew.
            while !send_parts(store, upload, part_bytes, count, options(), cancel, progress).await? {}
        }
    }
    match prove(store, upload, cancel).await? {
        Some(there) => Ok(there),
        None => Err(StoreError::Corrupt {
            key: upload.key.clone(),
            expected: format!("{} bytes with SHA-256 {}", upload.size, upload.sha256),
            found: "something else, or nothing".to_owned(),
        }
        .into()),
    }
}

/// Whether the store has exactly this file.
async fn prove(
    store: &dyn ObjectStore,
    upload: &Upload,
    cancel: &CancellationToken,
) -> Result<Option<ObjectInfo>, UploadError> {
    let found = persist("look at an object", STORE, cancel, || store.head(&upload.key))
        .await
        .ok_or(UploadError::Cancelled)??;
    Ok(found.filter(|o| o.size == upload.size && o.sha256.as_deref() == Some(&upload.sha256)))
}

async fn send_parts(
    store: &dyn ObjectStore,
    upload: &Upload,
    part_bytes: u64,
    count: u64,
    options: PutOptions,
    cancel: &CancellationToken,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<bool, UploadError> {
    let (journal, entries) = LineFile::open::<Entry>(&upload.journal)?;
    let (upload_id, mut done) = match resume(&entries, upload, part_bytes) {
        Some(found) => found,
        None => {
            let create = || store.create_upload(&upload.key, options.clone());
            let upload_id = persist("begin an upload", STORE, cancel, create).await.ok_or(UploadError::Cancelled)??;
            journal.append(&Entry::Begun {
                key: upload.key.clone(),
                upload_id: upload_id.clone(),
                part_bytes,
                size: upload.size,
                sha256: upload.sha256.clone(),
            })?;
            journal.sync()?;
            (upload_id, Vec::new())
        }
    };
    progress(done.iter().map(|p| p.size).sum());
    let sent: Vec<i32> = done.iter().map(|part| part.number).collect();
    let missing = (1..=count).filter(|n| !i32::try_from(*n).is_ok_and(|n| sent.contains(&n)));
    let send = |n: u64| {
        let upload_id = upload_id.as_str();
        async move {
            let from = (n - 1) * part_bytes;
            let len = part_bytes.min(upload.size - from);
            let number = i32::try_from(n).unwrap_or(i32::MAX);
            let part = || store.upload_part(&upload.key, upload_id, number, Body::file(&upload.path, from, len));
            let part = persist("upload a part", STORE, cancel, part).await.ok_or(UploadError::Cancelled)?;
            part.map_err(UploadError::from)
        }
    };
    let mut sending = futures_util::stream::iter(missing).map(send).buffer_unordered(PARTS_AT_A_TIME);
    loop {
        match sending.try_next().await {
            Ok(Some(part)) => {
                journal.append(&Entry::Part(part.clone()))?;
                progress(part.size);
                done.push(part);
            }
            Ok(None) => break,
            Err(UploadError::Store(StoreError::NoSuchUpload { upload_id, .. })) => {
                journal.append(&Entry::Ended { upload_id })?;
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
    }
    drop(sending);
    done.sort_by_key(|p| p.number);
    let complete = || complete(store, upload, &upload_id, &done);
    persist("complete an upload", STORE, cancel, complete).await.ok_or(UploadError::Cancelled)??;
    journal.append(&Entry::Ended { upload_id: upload_id.clone() })?;
    Ok(true)
}

/// A lost answer to `complete` shows as an unknown upload at the next try: then the object is there.
async fn complete(
    store: &dyn ObjectStore,
    upload: &Upload,
    id: &str,
    parts: &[UploadedPart],
) -> Result<(), StoreError> {
    match store.complete_upload(&upload.key, id, parts, false).await {
        Ok(_) => Ok(()),
        Err(error @ StoreError::NoSuchUpload { .. }) => match store.head(&upload.key).await? {
            Some(there) if there.size == upload.size => Ok(()),
            _ => Err(error),
        },
        Err(error) => Err(error),
    }
}

/// The upload that was under way, if it is of the same file in the same parts.
fn resume(entries: &[Entry], upload: &Upload, part_bytes: u64) -> Option<(String, Vec<UploadedPart>)> {
    let mut found: Option<(String, Vec<UploadedPart>)> = None;
    for entry in entries {
        match entry {
            Entry::Begun { key, upload_id, part_bytes: bytes, size, sha256 } => {
                let same =
                    *key == upload.key && *bytes == part_bytes && *size == upload.size && *sha256 == upload.sha256;
                found = same.then(|| (upload_id.clone(), Vec::new()));
            }
            Entry::Part(part) => {
                if let Some((_, parts)) = &mut found {
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
pub fn unfinished(journal: &Path) -> Result<Vec<(String, String)>, LogError> {
    let (entries, _) = crate::capture::log::read_lines::<Entry>(journal, 0)?;
    let mut open: Vec<(String, String)> = Vec::new();
    for entry in entries {
        match entry {
            Entry::Begun { key, upload_id, .. } => open.push((key, upload_id)),
            Entry::Ended { upload_id } => open.retain(|(_, id)| *id != upload_id),
            Entry::Part(_) => {}
        }
    }
    Ok(open)
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
