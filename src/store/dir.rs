//! A local directory as the store of a single machine.
//!
//! Objects are files; each appears whole, by a rename after an fsync. What S3 keeps as metadata is in
//! `.meta/<key>.json`, unfinished multipart uploads are in `.uploads/<id>/`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};

use super::checksum::{Hasher, PartSums};
use super::temp_file::{self, TempFile};
use super::{
    Body, ByteFlow, ByteRange, Capabilities, ObjectInfo, ObjectStore, PendingUpload, PutOptions, StoreError,
    UploadedPart,
};
use crate::model::time::Wallclock;

const META: &str = ".meta";
const UPLOADS: &str = ".uploads";
/// The file of an upload whose parts have their places.
const DATA: &str = "data";

/// A directory of objects.
#[derive(Debug, Clone)]
pub struct DirStore {
    root: PathBuf,
}

/// The metadata of an object. It is written after its object, so that it never describes a newer one than there is.
#[derive(Debug, Serialize, Deserialize)]
struct Meta {
    /// Base64, of what was really written.
    sha256: String,
    etag: String,
    size: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Upload {
    key: String,
    begun: Wallclock,
    sha256: Option<String>,
    /// The checksum is that of parts of so many bytes, and these are put into their places at once: the end costs the
    /// same however many there are.
    #[serde(default)]
    part_bytes: Option<u64>,
}

/// A part that is in its place.
#[derive(Debug, Serialize, Deserialize)]
struct PlacedPart {
    etag: String,
    size: u64,
}

fn local(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Local { doing, path, source }
}

/// An object under way: written and synced, not yet at its place.
struct Written {
    temp: TempFile,
    meta: Meta,
}

/// A key is a relative path of plain names; names with a dot in front are the store's own.
fn is_plain(key: &str) -> bool {
    !key.contains('\0') && key.split('/').all(|name| !name.is_empty() && !name.starts_with('.'))
}

fn refused(key: &str, code: &str, why: &'static str) -> StoreError {
    StoreError::Refused { doing: "use", key: key.to_owned(), code: code.to_owned(), source: why.into() }
}

impl DirStore {
    /// Uses a directory, which is made if it is not there. What a killed process left half written is removed.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        std::fs::create_dir_all(root.join(UPLOADS)).map_err(local("create", root))?;
        temp_file::remove_stale(&root.join(UPLOADS)).map_err(local("tidy", root))?;
        Ok(Self { root: root.to_owned() })
    }

    fn path(&self, key: &str) -> Result<PathBuf, StoreError> {
        if is_plain(key) {
            return Ok(self.root.join(key));
        }
        Err(refused(key, "InvalidKey", "a key is a relative path of names that do not begin with a dot"))
    }

    fn meta_path(&self, key: &str) -> PathBuf {
        self.root.join(META).join(format!("{key}.json"))
    }

    /// The folder and the description of an upload of this key.
    async fn find_upload(&self, key: &str, upload_id: &str) -> Result<(PathBuf, Upload), StoreError> {
        let gone = || StoreError::NoSuchUpload { key: key.to_owned(), upload_id: upload_id.to_owned() };
        let id = uuid::Uuid::parse_str(upload_id).map_err(|_| gone())?;
        let dir = self.root.join(UPLOADS).join(id.to_string());
        let json = tokio::fs::read(dir.join("upload.json")).await.map_err(|_| gone())?;
        let upload = serde_json::from_slice::<Upload>(&json).map_err(|_| gone())?;
        if upload.key == key { Ok((dir, upload)) } else { Err(gone()) }
    }

    /// Writes a body beside its place and fsyncs it. What does not have the SHA-256 that it should is refused.
    async fn write_temp(&self, key: &str, body: &Body, sha256: Option<&str>) -> Result<Written, StoreError> {
        let dir = self.root.join(UPLOADS);
        tokio::fs::create_dir_all(&dir).await.map_err(local("create", &dir))?;
        let temp = TempFile::in_folder(&dir);
        let path = temp.path();
        let mut file = tokio::fs::File::create(path).await.map_err(local("create", path))?;
        let (mut flow, mut hasher, mut size) = (body.flow(), Sha256::new(), 0);
        while let Some(chunk) = flow.next().await {
            let chunk = chunk.map_err(local("read the body for", path))?;
            hasher.update(&chunk);
            size += chunk.len() as u64;
            file.write_all(&chunk).await.map_err(local("write", path))?;
        }
        file.flush().await.map_err(local("write", path))?;
        file.sync_all().await.map_err(local("sync", path))?;
        let digest = hasher.finalize();
        let found = base64::engine::general_purpose::STANDARD.encode(digest);
        if let Some(expected) = sha256.filter(|expected| **expected != found) {
            let expected = expected.to_owned();
            return Err(StoreError::Corrupt { key: key.to_owned(), expected, found });
        }
        Ok(Written { temp, meta: Meta { sha256: found, etag: crate::store::checksum::hex(&digest), size } })
    }

    /// The file of an upload whose parts are in their places, if these parts are the ones that were sent.
    async fn assemble_parts(
        &self,
        key: &str,
        dir: &Path,
        part_bytes: u64,
        parts: &[UploadedPart],
        sha256: Option<&str>,
    ) -> Result<Written, StoreError> {
        let invalid = || refused(key, "InvalidPart", "a part is not there, or not the one that was sent");
        let (mut sums, mut size) = (PartSums { part_bytes, sha256: Vec::new() }, 0);
        for (at, part) in parts.iter().enumerate() {
            let path = dir.join(format!("{:05}", part.number));
            let placed = tokio::fs::read(&path).await.ok();
            let placed =
                placed.and_then(|json| serde_json::from_slice::<PlacedPart>(&json).ok()).ok_or_else(invalid)?;
            let full = placed.size == part_bytes || at + 1 == parts.len();
            if placed.etag != part.etag
                || placed.size != part.size
                || usize::try_from(part.number) != Ok(at + 1)
                || !full
            {
                return Err(invalid());
            }
            sums.sha256.push(placed.etag);
            size += placed.size;
        }
        let found = sums.composite();
        if let Some(expected) = sha256.filter(|expected| **expected != found) {
            let expected = expected.to_owned();
            return Err(StoreError::Corrupt { key: key.to_owned(), expected, found });
        }
        let (data, temp) = (dir.join(DATA), TempFile::in_folder(&self.root.join(UPLOADS)));
        let file = tokio::fs::OpenOptions::new().write(true).open(&data).await.map_err(|_| invalid())?;
        file.set_len(size).await.map_err(local("cut", &data))?;
        file.sync_all().await.map_err(local("sync", &data))?;
        tokio::fs::rename(&data, temp.path()).await.map_err(local("rename", &data))?;
        Ok(Written { temp, meta: Meta { etag: found.clone(), sha256: found, size } })
    }

    /// Renames a written object to its final name, durably.
    async fn publish(&self, key: &str, written: Written, if_absent: bool) -> Result<ObjectInfo, StoreError> {
        let (root, path, meta_path) = (self.root.clone(), self.path(key)?, self.meta_path(key));
        let (key_owned, place) = (key.to_owned(), path.clone());
        let work = move || {
            let Written { temp, meta } = written;
            let parent = path.parent().unwrap_or(&root);
            std::fs::create_dir_all(parent).map_err(local("create", parent))?;
            if if_absent {
                // A hard link fails when the name is taken: the check and the act are one.
                match std::fs::hard_link(temp.path(), &path) {
                    Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                        return Err(StoreError::Exists { key: key_owned });
                    }
                    linked => linked.map_err(local("link", &path))?,
                }
            } else {
                std::fs::rename(temp.path(), &path).map_err(local("rename", &path))?;
                temp.keep();
            }
            temp_file::sync_folders(&root, parent).map_err(local("sync", parent))?;
            let json = serde_json::to_vec(&meta).expect("plain data");
            temp_file::replace(&root, &root.join(UPLOADS), &meta_path, &json).map_err(local("write", &meta_path))
        };
        let published = tokio::task::spawn_blocking(work).await;
        published.unwrap_or_else(|e| Err(local("publish", &place)(std::io::Error::other(e))))?;
        self.head(key).await?.ok_or_else(|| StoreError::NotFound { key: key.to_owned() })
    }
}

/// Writes a part into its place, durably. Its tag is base64 of its SHA-256.
async fn write_part(data: &Path, from: u64, body: &Body) -> Result<PlacedPart, StoreError> {
    let file = tokio::fs::OpenOptions::new().create(true).truncate(false).write(true).open(data).await;
    let mut file = file.map_err(local("create", data))?;
    file.seek(std::io::SeekFrom::Start(from)).await.map_err(local("write", data))?;
    let (mut flow, mut hasher, mut size) = (body.flow(), Hasher::new(None), 0);
    while let Some(chunk) = flow.next().await {
        let chunk = chunk.map_err(local("read the body for", data))?;
        hasher.update(&chunk);
        size += chunk.len() as u64;
        file.write_all(&chunk).await.map_err(local("write", data))?;
    }
    file.flush().await.map_err(local("write", data))?;
    file.sync_data().await.map_err(local("sync", data))?;
    Ok(PlacedPart { etag: hasher.finish(), size })
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
        let written = self.write_temp(key, &body, options.sha256.as_deref()).await?;
        self.publish(key, written, options.if_absent).await
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
        let meta = meta.filter(|meta| meta.size == found.len());
        Ok(Some(ObjectInfo {
            key: key.to_owned(),
            size: found.len(),
            etag: meta.as_ref().map(|m| m.etag.clone()),
            sha256: meta.map(|m| m.sha256),
            mark: None,
            modified: modified(&found),
        }))
    }

    async fn get(&self, key: &str, range: Option<ByteRange>) -> Result<ByteFlow, StoreError> {
        let path = self.path(key)?;
        let info = self.head(key).await?.ok_or_else(|| StoreError::NotFound { key: key.to_owned() })?;
        let ByteRange { start, len } = range.unwrap_or(ByteRange { start: 0, len: info.size });
        let len = len.min(info.size.saturating_sub(start));
        let flow = Body::file(&path, start, len).flow();
        Ok(flow.map(move |chunk| chunk.map_err(local("read", &path))).boxed())
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, StoreError> {
        // Only the folder that the prefix leads to is walked, not the whole store.
        let folder = prefix.rsplit_once('/').map_or("", |(folder, _)| folder);
        if !folder.is_empty() && !is_plain(folder) {
            return Ok(Vec::new());
        }
        let (root, from) = (self.root.clone(), self.root.join(folder));
        let keys = tokio::task::spawn_blocking(move || keys_below(&root, &from)).await;
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
        let temps = self.root.join(UPLOADS);
        let upload = Upload {
            key: key.to_owned(),
            begun: Wallclock::now(),
            sha256: options.sha256,
            part_bytes: options.part_bytes,
        };
        let about = temps.join(&id).join("upload.json");
        let (root, json) = (self.root.clone(), serde_json::to_vec(&upload).expect("plain data"));
        let path = about.clone();
        let written = tokio::task::spawn_blocking(move || temp_file::replace(&root, &temps, &about, &json)).await;
        written.unwrap_or_else(|e| Err(std::io::Error::other(e))).map_err(local("write", &path))?;
        Ok(id)
    }

    async fn upload_part(
        &self,
        key: &str,
        upload_id: &str,
        number: i32,
        body: Body,
    ) -> Result<UploadedPart, StoreError> {
        let (dir, upload) = self.find_upload(key, upload_id).await?;
        if !(1..=10_000).contains(&number) {
            return Err(refused(key, "InvalidArgument", "a part's number is 1..=10,000"));
        }
        let path = dir.join(format!("{number:05}"));
        if let Some(part_bytes) = upload.part_bytes {
            let (index, data) = (u64::from(number.unsigned_abs() - 1), dir.join(DATA));
            if body.len() > part_bytes {
                return Err(refused(key, "EntityTooLarge", "a part is larger than its place"));
            }
            let placed = write_part(&data, index * part_bytes, &body).await?;
            let json = serde_json::to_vec(&placed).expect("plain data");
            tokio::fs::write(&path, json).await.map_err(local("write", &path))?;
            return Ok(UploadedPart { number, etag: placed.etag, size: placed.size });
        }
        let Written { temp, meta } = self.write_temp(key, &body, None).await?;
        tokio::fs::rename(temp.path(), &path).await.map_err(local("rename", &path))?;
        temp.keep();
        Ok(UploadedPart { number, etag: meta.etag, size: meta.size })
    }

    async fn complete_upload(
        &self,
        key: &str,
        upload_id: &str,
        parts: &[UploadedPart],
        if_absent: bool,
    ) -> Result<ObjectInfo, StoreError> {
        let (dir, upload) = self.find_upload(key, upload_id).await?;
        if let Some(part_bytes) = upload.part_bytes {
            let written = self.assemble_parts(key, &dir, part_bytes, parts, upload.sha256.as_deref()).await?;
            let info = self.publish(key, written, if_absent).await?;
            tokio::fs::remove_dir_all(&dir).await.map_err(local("remove", &dir))?;
            return Ok(info);
        }
        let mut body = Body::default();
        for part in parts {
            let path = dir.join(format!("{:05}", part.number));
            let len = tokio::fs::metadata(&path).await.map(|m| m.len()).ok();
            if len != Some(part.size) {
                return Err(refused(key, "InvalidPart", "a part is not there, or not the one that was sent"));
            }
            body.pieces.extend(Body::file(&path, 0, part.size).pieces);
        }
        let written = self.write_temp(key, &body, upload.sha256.as_deref()).await?;
        let info = self.publish(key, written, if_absent).await?;
        tokio::fs::remove_dir_all(&dir).await.map_err(local("remove", &dir))?;
        Ok(info)
    }

    async fn abort_upload(&self, key: &str, upload_id: &str) -> Result<(), StoreError> {
        match self.find_upload(key, upload_id).await {
            Err(_) => Ok(()),
            Ok((dir, _)) => tokio::fs::remove_dir_all(&dir).await.map_err(local("remove", &dir)),
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

/// The keys of all objects in a folder. What vanishes meanwhile was not there; links are not followed.
fn keys_below(root: &Path, dir: &Path) -> std::io::Result<Vec<String>> {
    let mut keys = Vec::new();
    let entries = match std::fs::read_dir(dir) {
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            return Ok(keys);
        }
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() {
            keys.extend(keys_below(root, &path)?);
        } else if let Some(key) = path.strip_prefix(root).ok().and_then(Path::to_str).filter(|_| kind.is_file()) {
            keys.push(key.to_owned());
        }
    }
    Ok(keys)
}
