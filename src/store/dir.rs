//! A local directory as the store of a single machine.
//!
//! Objects are files; each appears whole, by a rename after an fsync. What S3 keeps as metadata is in
//! `.meta/<key>.json`, unfinished multipart uploads are in `.uploads/<id>/`.

use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    Body, ByteFlow, Capabilities, ObjectInfo, ObjectStore, PendingUpload, PutOptions, StoreError, UploadedPart,
};
use crate::time::Wallclock;

const META: &str = ".meta";
const UPLOADS: &str = ".uploads";

/// A directory of objects.
#[derive(Debug, Clone)]
pub struct DirStore {
    root: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
struct Meta {
    sha256: Option<String>,
    etag: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Upload {
    key: String,
    begun: Wallclock,
    sha256: Option<String>,
}

fn local(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Local { doing, path, source }
}

impl DirStore {
    /// Uses a directory, which is made if it is not there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        std::fs::create_dir_all(root).map_err(local("create", root))?;
        Ok(Self { root: root.to_owned() })
    }

    fn path(&self, key: &str) -> Result<PathBuf, StoreError> {
        let relative = Path::new(key);
        let plain = relative.components().all(|c| matches!(c, Component::Normal(_)));
        if key.is_empty() || !plain || key.starts_with('.') || key.contains('\0') {
            let source = "a key is a relative path without dots".into();
            return Err(StoreError::Refused {
                doing: "use",
                key: key.to_owned(),
                code: "InvalidKey".to_owned(),
                source,
            });
        }
        Ok(self.root.join(relative))
    }

    fn meta_path(&self, key: &str) -> PathBuf {
        self.root.join(META).join(format!("{key}.json"))
    }

    fn upload_dir(&self, key: &str, upload_id: &str) -> Result<PathBuf, StoreError> {
        let gone = || StoreError::NoSuchUpload { key: key.to_owned(), upload_id: upload_id.to_owned() };
        let id = uuid::Uuid::parse_str(upload_id).map_err(|_| gone())?;
        let dir = self.root.join(UPLOADS).join(id.to_string());
        if dir.is_dir() { Ok(dir) } else { Err(gone()) }
    }

    /// Writes a body beside its place, fsyncs it, and returns where, with its MD5-like tag (SHA-256 here).
    async fn write_temp(&self, body: &Body) -> Result<(PathBuf, String), StoreError> {
        let dir = self.root.join(UPLOADS);
        tokio::fs::create_dir_all(&dir).await.map_err(local("create", &dir))?;
        let temp = dir.join(format!("{}.part", uuid::Uuid::new_v4()));
        let mut file = tokio::fs::File::create(&temp).await.map_err(local("create", &temp))?;
        let (mut flow, mut hasher) = (body.flow(), Sha256::new());
        while let Some(chunk) = flow.next().await {
            let chunk = chunk.map_err(local("read the body for", &temp))?;
            hasher.update(&chunk);
            file.write_all(&chunk).await.map_err(local("write", &temp))?;
        }
        file.sync_all().await.map_err(local("sync", &temp))?;
        Ok((temp, crate::capture::log::hex(&hasher.finalize())))
    }

    async fn publish(
        &self,
        key: &str,
        temp: &Path,
        etag: String,
        sha256: Option<String>,
        if_absent: bool,
    ) -> Result<ObjectInfo, StoreError> {
        let path = self.path(key)?;
        let parent = path.parent().unwrap_or(&self.root).to_owned();
        tokio::fs::create_dir_all(&parent).await.map_err(local("create", &parent))?;
        let meta_path = self.meta_path(key);
        let meta_parent = meta_path.parent().unwrap_or(&self.root).to_owned();
        tokio::fs::create_dir_all(&meta_parent).await.map_err(local("create", &meta_parent))?;
        if if_absent {
            // A hard link fails when the name is taken: the check and the act are one.
            match tokio::fs::hard_link(temp, &path).await {
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                    tokio::fs::remove_file(temp).await.map_err(local("remove", temp))?;
                    return Err(StoreError::Exists { key: key.to_owned() });
                }
                linked => linked.map_err(local("link", &path))?,
            }
            tokio::fs::remove_file(temp).await.map_err(local("remove", temp))?;
        } else {
            tokio::fs::rename(temp, &path).await.map_err(local("rename", &path))?;
        }
        let meta = serde_json::to_vec(&Meta { sha256, etag }).expect("plain data");
        tokio::fs::write(&meta_path, meta).await.map_err(local("write", &meta_path))?;
        let folder = tokio::fs::File::open(&parent).await.map_err(local("open", &parent))?;
        folder.sync_all().await.map_err(local("sync", &parent))?;
        self.head(key).await?.ok_or_else(|| StoreError::NotFound { key: key.to_owned() })
    }
}

fn modified(meta: &std::fs::Metadata) -> Option<Wallclock> {
    let since = meta.modified().ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some(Wallclock(i64::try_from(since.as_micros()).ok()?))
}

#[async_trait]
impl ObjectStore for DirStore {
    fn describe(&self) -> String {
        format!("directory {}", self.root.display())
    }

    async fn put(&self, key: &str, body: Body, options: PutOptions) -> Result<ObjectInfo, StoreError> {
        self.path(key)?;
        let (temp, etag) = self.write_temp(&body).await?;
        self.publish(key, &temp, etag, options.sha256, options.if_absent).await
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>, StoreError> {
        let path = self.path(key)?;
        let found = match tokio::fs::metadata(&path).await {
            Ok(found) if found.is_file() => found,
            Ok(_) => return Ok(None),
            Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(e) => return Err(local("read", &path)(e)),
        };
        let meta = tokio::fs::read(self.meta_path(key)).await.ok();
        let meta = meta.and_then(|bytes| serde_json::from_slice::<Meta>(&bytes).ok());
        Ok(Some(ObjectInfo {
            key: key.to_owned(),
            size: found.len(),
            etag: meta.as_ref().map(|m| m.etag.clone()),
            sha256: meta.and_then(|m| m.sha256),
            modified: modified(&found),
        }))
    }

    async fn get(&self, key: &str, range: Option<(u64, u64)>) -> Result<ByteFlow, StoreError> {
        let path = self.path(key)?;
        let info = self.head(key).await?.ok_or_else(|| StoreError::NotFound { key: key.to_owned() })?;
        let (from, len) = range.unwrap_or((0, info.size));
        let len = len.min(info.size.saturating_sub(from));
        let flow = Body::file(&path, from, len).flow();
        Ok(flow.map(move |chunk| chunk.map_err(local("read", &path))).boxed())
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, StoreError> {
        let root = self.root.clone();
        let keys = tokio::task::spawn_blocking(move || keys_below(&root, &root)).await;
        let mut keys = keys.expect("walking a folder does not panic").map_err(local("list", &self.root))?;
        keys.retain(|key| key.starts_with(prefix));
        keys.sort();
        let mut found = Vec::with_capacity(keys.len());
        for key in keys {
            found.extend(self.head(&key).await?);
        }
        Ok(found)
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let path = self.path(key)?;
        for path in [path, self.meta_path(key)] {
            match tokio::fs::remove_file(&path).await {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(local("remove", &path)(e)),
                _ => {}
            }
        }
        Ok(())
    }

    async fn create_upload(&self, key: &str, options: PutOptions) -> Result<String, StoreError> {
        self.path(key)?;
        let id = uuid::Uuid::new_v4().to_string();
        let dir = self.root.join(UPLOADS).join(&id);
        tokio::fs::create_dir_all(&dir).await.map_err(local("create", &dir))?;
        let upload = Upload { key: key.to_owned(), begun: Wallclock::now(), sha256: options.sha256 };
        let about = dir.join("upload.json");
        let json = serde_json::to_vec(&upload).expect("plain data");
        tokio::fs::write(&about, json).await.map_err(local("write", &about))?;
        Ok(id)
    }

    async fn upload_part(
        &self,
        key: &str,
        upload_id: &str,
        number: i32,
        body: Body,
    ) -> Result<UploadedPart, StoreError> {
        let dir = self.upload_dir(key, upload_id)?;
        let (temp, etag) = self.write_temp(&body).await?;
        let path = dir.join(format!("{number:05}"));
        tokio::fs::rename(&temp, &path).await.map_err(local("rename", &path))?;
        Ok(UploadedPart { number, etag, size: body.len() })
    }

    async fn complete_upload(
        &self,
        key: &str,
        upload_id: &str,
        parts: &[UploadedPart],
        if_absent: bool,
    ) -> Result<ObjectInfo, StoreError> {
        let dir = self.upload_dir(key, upload_id)?;
        let about = dir.join("upload.json");
        let about = tokio::fs::read(&about).await.map_err(local("read", &about))?;
        let sha256 = serde_json::from_slice::<Upload>(&about).ok().and_then(|u| u.sha256);
        let mut body = Body::default();
        for part in parts {
            let path = dir.join(format!("{:05}", part.number));
            let len = tokio::fs::metadata(&path).await.map_err(local("read", &path))?.len();
            if len != part.size {
                let (expected, found) = (part.size.to_string(), len.to_string());
                return Err(StoreError::Corrupt { key: key.to_owned(), expected, found });
            }
            body.pieces.extend(Body::file(&path, 0, len).pieces);
        }
        let (temp, etag) = self.write_temp(&body).await?;
        let info = self.publish(key, &temp, etag, sha256, if_absent).await?;
        tokio::fs::remove_dir_all(&dir).await.map_err(local("remove", &dir))?;
        Ok(info)
    }

    async fn abort_upload(&self, key: &str, upload_id: &str) -> Result<(), StoreError> {
        match self.upload_dir(key, upload_id) {
            Err(_) => Ok(()),
            Ok(dir) => tokio::fs::remove_dir_all(&dir).await.map_err(local("remove", &dir)),
        }
    }

    async fn pending_uploads(&self, prefix: &str) -> Result<Vec<PendingUpload>, StoreError> {
        let dir = self.root.join(UPLOADS);
        let mut found = Vec::new();
        let Ok(mut entries) = tokio::fs::read_dir(&dir).await else { return Ok(found) };
        while let Some(entry) = entries.next_entry().await.map_err(local("list", &dir))? {
            let Ok(mut file) = tokio::fs::File::open(entry.path().join("upload.json")).await else { continue };
            let mut json = Vec::new();
            file.read_to_end(&mut json).await.map_err(local("read", &entry.path()))?;
            let Ok(upload) = serde_json::from_slice::<Upload>(&json) else { continue };
            if upload.key.starts_with(prefix) {
                let upload_id = entry.file_name().to_string_lossy().into_owned();
                found.push(PendingUpload { key: upload.key, upload_id, begun: Some(upload.begun) });
            }
        }
        Ok(found)
    }

    async fn presign_get(&self, _: &str, _: Duration, _: &str) -> Result<Option<String>, StoreError> {
        Ok(None)
    }

    async fn probe(&self, prefix: &str) -> Result<Capabilities, StoreError> {
        super::probe::probe(self, prefix).await
    }
}

fn keys_below(root: &Path, dir: &Path) -> std::io::Result<Vec<String>> {
    let mut keys = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
        if hidden {
            continue;
        }
        if path.is_dir() {
            keys.extend(keys_below(root, &path)?);
        } else if let Some(key) = path.strip_prefix(root).ok().and_then(Path::to_str) {
            keys.push(key.to_owned());
        }
    }
    Ok(keys)
}

/// All bytes of a flow, for small objects.
///
/// # Errors
/// As the flow says, or when there are more than `max` bytes.
pub async fn collect(mut flow: ByteFlow, key: &str, max: usize) -> Result<Bytes, StoreError> {
    let mut all = Vec::new();
    while let Some(chunk) = flow.next().await {
        all.extend_from_slice(&chunk?);
        if all.len() > max {
            let (expected, found) = (format!("at most {max} bytes"), "more".to_owned());
            return Err(StoreError::Corrupt { key: key.to_owned(), expected, found });
        }
    }
    Ok(all.into())
}
