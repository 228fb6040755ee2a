//! Where archives and sealed segments go: S3-compatible storage, or a local directory.

pub mod body;
pub mod checksum;
pub mod dir;
pub mod download;
pub mod keys;
mod probe;
pub mod s3;
pub mod streaming_upload;
mod temp_file;
pub mod upload;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;

use crate::model::fault::{Fault, FaultKind, HasFault};
use crate::model::time::Wallclock;

/// A range of an object's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteRange {
    /// First byte.
    pub start: u64,
    /// Number of bytes.
    pub len: u64,
}

/// One piece of a body.
#[derive(Debug, Clone)]
pub enum Piece {
    /// Bytes in memory.
    Bytes(Bytes),
    /// A range of a local file. It must not change until the upload has ended.
    File {
        /// The file.
        path: PathBuf,
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
    },
}

/// The content of an upload: pieces in order, of known length, readable more than once (for retries), streamed
/// in small buffers.
#[derive(Debug, Clone, Default)]
pub struct Body {
    /// The pieces in order.
    pub pieces: Vec<Piece>,
}

/// A store's metadata of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Its key.
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// The entity tag, as the store gives it (quotes removed).
    pub etag: Option<String>,
    /// Base64 of the SHA-256 of the content, where the store keeps one for the whole object, or where this program wrote
    /// it into the object's metadata.
    pub sha256: Option<String>,
    /// The mark that it was written with, see [`PutOptions::mark`].
    pub mark: Option<String>,
    /// When it was written.
    pub modified: Option<Wallclock>,
}

/// How an object is written.
#[derive(Debug, Clone, Default)]
pub struct PutOptions {
    /// MIME type.
    pub content_type: Option<&'static str>,
    /// Base64 SHA-256 of the content: sent as metadata, and as a checksum where the store can check it.
    pub sha256: Option<String>,
    /// For an object in parts: bytes of each part but the last. `sha256` is then that of the parts' SHA-256s (see
    /// [`checksum`]).
    pub part_bytes: Option<u64>,
    /// Identifies an object whose checksum is not known when its upload begins. Written into its metadata.
    pub mark: Option<String>,
    /// Refuse if the key exists (`If-None-Match: *`), where the store can; see `Capabilities`.
    pub if_absent: bool,
}

/// A part of a multipart upload that the store has accepted.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct UploadedPart {
    /// 1..=10,000.
    pub number: i32,
    /// Entity tag.
    pub etag: String,
    /// Bytes.
    pub size: u64,
}

/// A multipart upload that was begun and not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingUpload {
    /// The key it is for.
    pub key: String,
    /// The store's name for it.
    pub upload_id: String,
    /// When it was begun.
    pub begun: Option<Wallclock>,
}

/// A store's optional operations, found out by a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// `If-None-Match: *` is enforced.
    pub conditional_put: bool,
    /// Pending multipart uploads can be listed.
    pub list_uploads: bool,
}

/// Why an operation of a store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No connection, timeout, or a 5xx answer.
    #[error("the store is not available while it should {doing} {key:?}")]
    Unavailable {
        /// The operation.
        doing: &'static str,
        /// The key.
        key: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A 4xx answer: key, permission, bucket.
    #[error("the store refused to {doing} {key:?}: {code}")]
    Refused {
        /// The operation.
        doing: &'static str,
        /// The key.
        key: String,
        /// The store's code, such as `AccessDenied`.
        code: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No such object.
    #[error("the store has no {key:?}")]
    NotFound {
        /// The key.
        key: String,
    },
    /// The condition of a conditional write does not hold.
    #[error("the store already has {key:?}")]
    Exists {
        /// The key.
        key: String,
    },
    /// The multipart upload is gone (aborted, completed, or swept).
    #[error("the store does not know upload {upload_id} of {key:?}")]
    NoSuchUpload {
        /// The key.
        key: String,
        /// The upload.
        upload_id: String,
    },
    /// The store holds something else than was sent.
    #[error("the store holds {found} instead of {expected} for {key:?}")]
    Corrupt {
        /// The key.
        key: String,
        /// What was sent.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A local file could not be read or written.
    #[error("{path:?} cannot be used while it should {doing}")]
    Local {
        /// The operation.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

impl HasFault for StoreError {
    fn fault(&self) -> Fault {
        match self {
            Self::Unavailable { .. } | Self::NoSuchUpload { .. } => FaultKind::StoreUnavailable,
            Self::Refused { .. } => FaultKind::StoreRefused,
            Self::NotFound { .. } => FaultKind::NotFound,
            Self::Exists { .. } => FaultKind::Conflict,
            Self::Corrupt { .. } => FaultKind::StoreCorrupt,
            Self::Local { .. } => FaultKind::SpoolIo,
        }
        .fault()
    }
}

/// A stream of bytes from the store.
pub type ByteFlow = BoxStream<'static, Result<Bytes, StoreError>>;

/// A shared store.
pub type SharedStore = Arc<dyn ObjectStore>;

/// An object store. Each method makes one attempt (the SDK's own quick retries included); the caller decides on longer
/// retries by the error's fault. All are safe to repeat.
#[async_trait]
pub trait ObjectStore: Send + Sync {
    /// A name for logs and people, without secrets.
    fn describe(&self) -> String;

    /// Writes a whole object.
    async fn put(&self, key: &str, body: Body, options: PutOptions) -> Result<ObjectInfo, StoreError>;

    /// The metadata of an object, if it exists.
    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>, StoreError>;

    /// Reads an object, or a range of it.
    async fn get(&self, key: &str, range: Option<ByteRange>) -> Result<ByteFlow, StoreError>;

    /// All objects under a prefix, in the order of their keys, all pages.
    async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, StoreError>;

    /// Removes an object; harmless if it is not there.
    async fn delete(&self, key: &str) -> Result<(), StoreError>;

    /// Begins a multipart upload.
    async fn create_upload(&self, key: &str, options: PutOptions) -> Result<String, StoreError>;

    /// Sends one part. Sending a number again replaces it.
    async fn upload_part(
        &self,
        key: &str,
        upload_id: &str,
        number: i32,
        body: Body,
    ) -> Result<UploadedPart, StoreError>;

    /// Ends a multipart upload. A lost answer is resolved by `head`, never by sending again.
    async fn complete_upload(
        &self,
        key: &str,
        upload_id: &str,
        parts: &[UploadedPart],
        if_absent: bool,
    ) -> Result<ObjectInfo, StoreError>;

    /// Gives a multipart upload up; harmless if it is gone.
    async fn abort_upload(&self, key: &str, upload_id: &str) -> Result<(), StoreError>;

    /// Uploads that were begun under a prefix and not ended.
    async fn pending_uploads(&self, prefix: &str) -> Result<Vec<PendingUpload>, StoreError>;

    /// A presigned URL: anybody can download the object with it until it expires. `None` where the store cannot sign URLs
    /// (a directory: the API serves its objects).
    async fn presign_get(&self, key: &str, valid: Duration, file_name: &str) -> Result<Option<String>, StoreError>;

    /// Finds out the store's capabilities with a probe key under `prefix`.
    async fn probe(&self, prefix: &str) -> Result<Capabilities, StoreError>;
}
