//! Sends an archive to the store: the files, the report, and the manifest last.

use std::path::{Path, PathBuf};

use base64::Engine;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::documents::{Manifest, ObjectEntry};
use super::object::{Built, Object, journal};
use crate::model::cancellable::Cancellable;
use crate::model::fault::{Fault, FaultKind, HasFault};
use crate::store::ObjectStore;
use crate::store::keys::{Keys, Kind};
use crate::store::upload::{Upload, UploadError, upload};

/// Why an archive was not delivered.
#[derive(Debug, thiserror::Error)]
pub enum DeliverError {
    /// It was not sent.
    #[error(transparent)]
    Upload(#[from] UploadError),
    /// A document cannot be written.
    #[error("{path} cannot be written")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl HasFault for DeliverError {
    fn fault(&self) -> Fault {
        match self {
            Self::Upload(e) => e.fault(),
            Self::Io { .. } => FaultKind::SpoolIo.fault(),
        }
    }
}

/// Where an archive goes.
pub struct Delivery<'a> {
    /// The store.
    pub store: &'a dyn ObjectStore,
    /// Its keys.
    pub keys: &'a Keys,
    /// The folder for documents and journals; a later attempt finds them there.
    pub out: &'a Path,
    /// Bytes of a part of a large file.
    pub part_bytes: u64,
    /// Gets the bytes of the file that is being sent.
    pub progress: &'a (dyn Fn(u64) + Send + Sync),
}

impl Delivery<'_> {
    /// Sends everything, proved by what the store says of each object. Returns the manifest as it was sent.
    ///
    /// # Errors
    /// See [`DeliverError`].
    pub async fn send(&self, built: &Built, cancel: &CancellationToken) -> Result<Cancellable<Manifest>, DeliverError> {
        let mut manifest = built.manifest.clone();
        let mut uploads: Vec<Upload> = built.objects.iter().map(|object| self.file(object)).collect();
        let report = serde_json::to_vec_pretty(&built.report).expect("plain data");
        let report = self.document(Kind::Report, report).await?;
        let entry =
            ObjectEntry { key: report.key.clone(), size: report.size, sha256: report.sha256.clone(), part_bytes: None };
        manifest.objects.push(entry);
        let last = serde_json::to_vec_pretty(&manifest).expect("plain data");
        uploads.extend([report, self.document(Kind::Manifest, last).await?]);
        for one in &uploads {
            let sent = upload(self.store, one, cancel, self.progress).await?;
            let Cancellable::Done(_) = sent else { return Ok(Cancellable::Cancelled) };
        }
        Ok(Cancellable::Done(manifest))
    }

    fn file(&self, object: &Object) -> Upload {
        Upload {
            key: self.keys.key(object.kind),
            path: object.path.clone(),
            size: object.size,
            sha256: object.sha256.clone(),
            parts: object.parts.clone(),
            content_type: object.kind.content_type(),
            part_bytes: self.part_bytes,
            journal: journal(&object.path),
        }
    }

    async fn document(&self, kind: Kind, bytes: Vec<u8>) -> Result<Upload, DeliverError> {
        let key = self.keys.key(kind);
        let name = key.rsplit('/').next().unwrap_or("document").to_owned();
        let path = self.out.join(name);
        let size = bytes.len() as u64;
        let sha256 = base64::engine::general_purpose::STANDARD.encode(Sha256::digest(&bytes));
        let written = tokio::fs::write(&path, bytes).await;
        written.map_err(|source| DeliverError::Io { path: path.clone(), source })?;
        Ok(Upload {
            key,
            path: path.clone(),
            size,
            sha256,
            parts: None,
            content_type: kind.content_type(),
            part_bytes: self.part_bytes,
            journal: journal(&path),
        })
    }
}
