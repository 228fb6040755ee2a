//! An object store in memory, with the contract of the directory and of S3. It computes the SHA-256 of each object, refuses content with
//! another one than announced, and checks parts as S3 does.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use archiver::model::time::Wallclock;
use archiver::store::checksum::PartSums;
use archiver::store::{
    Body, ByteFlow, ByteRange, Capabilities, ObjectInfo, ObjectStore, PendingUpload, PutOptions, SharedStore,
    StoreError, UploadedPart,
};
use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, TryStreamExt};
use sha2::{Digest, Sha256};

use crate::faults::{Fault, Faults};

/// S3's smallest part, except for the last.
const PART_BYTES_MIN: usize = 5 << 20;
/// S3's numbers of parts.
const PART_NUMBERS: std::ops::RangeInclusive<i32> = 1..=10_000;
/// Bytes of a flow's pieces.
const CHUNK: usize = 64 << 10;

/// An object.
#[derive(Debug, Clone)]
struct Object {
    bytes: Bytes,
    sha256: String,
    mark: Option<String>,
    modified: Wallclock,
}

/// An upload that was begun and not ended.
#[derive(Debug)]
struct Pending {
    key: String,
    options: PutOptions,
    begun: Wallclock,
    parts: BTreeMap<i32, Bytes>,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<String, Object>,
    uploads: BTreeMap<String, Pending>,
    /// Uploads that were ever begun: their names.
    begun: u64,
}

/// An object store in memory, as one process sees it. Clones belong to the same process.
///
/// Faults, by the names of the methods, with the key or the prefix:
/// [`Fault::Unavailable`], [`Fault::Refused`], [`Fault::Hang`], [`Fault::Slow`] and [`Fault::LostAnswer`] of every method;
/// [`Fault::Corrupt`] and [`Fault::Truncated`] of `put` and `upload_part` (the store keeps other content than was
/// sent, with the checksum of what was sent) and of `get`; [`Fault::Lost`] of `put`, `upload_part`, `complete_upload` and `delete`.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore {
    state: Arc<Mutex<State>>,
    faults: Faults,
}

fn sha256(bytes: &[u8]) -> String {
    STANDARD.encode(Sha256::digest(bytes))
}

fn refused(doing: &'static str, key: &str, code: &str) -> StoreError {
    StoreError::Refused { doing, key: key.to_owned(), code: code.to_owned(), source: "the store in memory".into() }
}

fn away(doing: &'static str, key: &str) -> StoreError {
    StoreError::Unavailable { doing, key: key.to_owned(), source: "fault injected by the test".into() }
}

impl Object {
    fn info(&self, key: &str) -> ObjectInfo {
        ObjectInfo {
            key: key.to_owned(),
            size: self.bytes.len() as u64,
            etag: Some(self.sha256.clone()),
            sha256: Some(self.sha256.clone()),
            mark: self.mark.clone(),
            modified: Some(self.modified),
        }
    }
}

impl State {
    fn upload(&mut self, key: &str, upload_id: &str) -> Result<&mut Pending, StoreError> {
        let gone = || StoreError::NoSuchUpload { key: key.to_owned(), upload_id: upload_id.to_owned() };
        self.uploads.get_mut(upload_id).filter(|upload| upload.key == key).ok_or_else(gone)
    }

    fn write(&mut self, key: &str, object: Object, if_absent: bool) -> Result<ObjectInfo, StoreError> {
        if if_absent && self.objects.contains_key(key) {
            return Err(StoreError::Exists { key: key.to_owned() });
        }
        let info = object.info(key);
        self.objects.insert(key.to_owned(), object);
        Ok(info)
    }

    /// Assembles an upload's parts.
    fn assembled(&mut self, key: &str, upload_id: &str, parts: &[UploadedPart]) -> Result<Object, StoreError> {
        const DOING: &str = "complete";
        let upload = self.upload(key, upload_id)?;
        let (mut all, mut sums) = (BytesMut::new(), PartSums { part_bytes: 0, sha256: Vec::new() });
        if parts.is_empty() || !parts.is_sorted_by(|a, b| a.number < b.number) {
            return Err(refused(DOING, key, "InvalidPartOrder"));
        }
        for (at, part) in parts.iter().enumerate() {
            let there = upload.parts.get(&part.number).filter(|bytes| bytes.len() as u64 == part.size);
            let there = there.ok_or_else(|| refused(DOING, key, "InvalidPart"))?;
            if at + 1 < parts.len() && there.len() < PART_BYTES_MIN {
                return Err(refused(DOING, key, "EntityTooSmall"));
            }
            sums.sha256.push(part.etag.clone());
            all.extend_from_slice(there);
        }
        let bytes = all.freeze();
        let found = if upload.options.part_bytes.is_some() { sums.composite() } else { sha256(&bytes) };
        let sha256 = checked(key, upload.options.sha256.as_ref(), found)?;
        Ok(Object { bytes, sha256, mark: upload.options.mark.clone(), modified: Wallclock::now() })
    }
}

/// The computed checksum, if it equals the announced one.
fn checked(key: &str, announced: Option<&String>, found: String) -> Result<String, StoreError> {
    match announced {
        Some(expected) if *expected != found => {
            Err(StoreError::Corrupt { key: key.to_owned(), expected: expected.clone(), found })
        }
        _ => Ok(found),
    }
}

/// Applies a fault to content.
fn spoiled(bytes: Bytes, fault: Option<Fault>) -> Bytes {
    match fault {
        Some(Fault::Corrupt) if !bytes.is_empty() => {
            let mut bytes = BytesMut::from(bytes);
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0xff;
            bytes.freeze()
        }
        Some(Fault::Truncated) => bytes.slice(..bytes.len() / 2),
        _ => bytes,
    }
}

async fn read(doing: &'static str, key: &str, body: &Body) -> Result<Bytes, StoreError> {
    let failed = |source| StoreError::Local { doing, path: key.into(), source };
    Ok(body.flow().try_collect::<BytesMut>().await.map_err(failed)?.freeze())
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The same store as another process sees it: with faults of its own.
    #[must_use]
    pub fn for_another_process(&self) -> Self {
        Self { state: Arc::clone(&self.state), faults: Faults::default() }
    }

    /// The faults of this process.
    #[must_use]
    pub const fn faults(&self) -> &Faults {
        &self.faults
    }

    /// The store as its users take it.
    #[must_use]
    pub fn shared(&self) -> SharedStore {
        Arc::new(self.clone())
    }

    /// The keys of all objects, in order, without faults. For assertions.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        self.state().objects.keys().cloned().collect()
    }

    /// The content of an object, without faults. For assertions.
    #[must_use]
    pub fn bytes(&self, key: &str) -> Option<Bytes> {
        self.state().objects.get(key).map(|object| object.bytes.clone())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The fault of a call that takes effect nevertheless, or the error of one that does not.
    async fn meet(&self, operation: &'static str, key: &str, known: &[Fault]) -> Result<Option<Fault>, StoreError> {
        match self.faults.meet(operation, key).await {
            None => Ok(None),
            Some(Fault::Refused) => Err(refused(operation, key, "AccessDenied")),
            Some(fault) if fault == Fault::LostAnswer || known.contains(&fault) => Ok(Some(fault)),
            Some(_) => Err(away(operation, key)),
        }
    }
}

/// The result of a call that took effect, unless its answer is lost.
fn answer<T>(
    operation: &'static str,
    key: &str,
    fault: Option<Fault>,
    done: Result<T, StoreError>,
) -> Result<T, StoreError> {
    if fault == Some(Fault::LostAnswer) { Err(away(operation, key)) } else { done }
}

const WRITE_FAULTS: [Fault; 3] = [Fault::Corrupt, Fault::Truncated, Fault::Lost];

#[async_trait]
impl ObjectStore for MemoryStore {
    fn describe(&self) -> String {
        "memory".to_owned()
    }

    async fn put(&self, key: &str, body: Body, options: PutOptions) -> Result<ObjectInfo, StoreError> {
        const DOING: &str = "put";
        let fault = self.meet(DOING, key, &WRITE_FAULTS).await?;
        let bytes = read(DOING, key, &body).await?;
        let sha256 = checked(key, options.sha256.as_ref(), sha256(&bytes))?;
        let object = Object { bytes: spoiled(bytes, fault), sha256, mark: options.mark, modified: Wallclock::now() };
        let done = match fault {
            Some(Fault::Lost) => Ok(object.info(key)),
            _ => self.state().write(key, object, options.if_absent),
        };
        answer(DOING, key, fault, done)
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>, StoreError> {
        let fault = self.meet("head", key, &[]).await?;
        let found = self.state().objects.get(key).map(|object| object.info(key));
        answer("head", key, fault, Ok(found))
    }

    async fn get(&self, key: &str, range: Option<ByteRange>) -> Result<ByteFlow, StoreError> {
        let fault = self.meet("get", key, &[Fault::Corrupt, Fault::Truncated]).await?;
        let bytes = self.bytes(key).ok_or_else(|| StoreError::NotFound { key: key.to_owned() })?;
        let ByteRange { start: from, len } = range.unwrap_or(ByteRange { start: 0, len: bytes.len() as u64 });
        let at = |n: u64| usize::try_from(n).unwrap_or(usize::MAX).min(bytes.len());
        let bytes = spoiled(bytes.slice(at(from)..at(from.saturating_add(len))), fault);
        let chunks: Vec<_> =
            (0..bytes.len()).step_by(CHUNK).map(|at| Ok(bytes.slice(at..bytes.len().min(at + CHUNK)))).collect();
        answer("get", key, fault, Ok(futures_util::stream::iter(chunks).boxed()))
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, StoreError> {
        let fault = self.meet("list", prefix, &[]).await?;
        let found = {
            let state = self.state();
            let from = state.objects.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
            // As S3: a list has no metadata.
            from.map(|(key, object)| ObjectInfo { sha256: None, mark: None, ..object.info(key) }).collect()
        };
        answer("list", prefix, fault, Ok(found))
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let fault = self.meet("delete", key, &[Fault::Lost]).await?;
        if fault != Some(Fault::Lost) {
            self.state().objects.remove(key);
        }
        answer("delete", key, fault, Ok(()))
    }

    async fn create_upload(&self, key: &str, options: PutOptions) -> Result<String, StoreError> {
        let fault = self.meet("create_upload", key, &[]).await?;
        let id = {
            let mut state = self.state();
            state.begun += 1;
            let id = format!("upload-{}", state.begun);
            let pending = Pending { key: key.to_owned(), options, begun: Wallclock::now(), parts: BTreeMap::new() };
            state.uploads.insert(id.clone(), pending);
            id
        };
        answer("create_upload", key, fault, Ok(id))
    }

    async fn upload_part(
        &self,
        key: &str,
        upload_id: &str,
        number: i32,
        body: Body,
    ) -> Result<UploadedPart, StoreError> {
        const DOING: &str = "upload_part";
        let fault = self.meet(DOING, key, &WRITE_FAULTS).await?;
        let bytes = read(DOING, key, &body).await?;
        if !PART_NUMBERS.contains(&number) {
            return Err(refused(DOING, key, "InvalidArgument"));
        }
        let kept = spoiled(bytes.clone(), fault);
        let part = UploadedPart { number, etag: sha256(&bytes), size: kept.len() as u64 };
        {
            let mut state = self.state();
            let upload = state.upload(key, upload_id)?;
            if fault != Some(Fault::Lost) {
                upload.parts.insert(number, kept);
            }
        }
        answer(DOING, key, fault, Ok(part))
    }

    async fn complete_upload(
        &self,
        key: &str,
        upload_id: &str,
        parts: &[UploadedPart],
        if_absent: bool,
    ) -> Result<ObjectInfo, StoreError> {
        const DOING: &str = "complete_upload";
        let fault = self.meet(DOING, key, &[Fault::Lost]).await?;
        let done = {
            let mut state = self.state();
            let object = state.assembled(key, upload_id, parts)?;
            let info = match fault {
                Some(Fault::Lost) => Ok(object.info(key)),
                _ => state.write(key, object, if_absent),
            };
            if info.is_ok() {
                state.uploads.remove(upload_id);
            }
            info
        };
        answer(DOING, key, fault, done)
    }

    async fn abort_upload(&self, key: &str, upload_id: &str) -> Result<(), StoreError> {
        let fault = self.meet("abort_upload", key, &[]).await?;
        {
            let mut state = self.state();
            if state.upload(key, upload_id).is_ok() {
                state.uploads.remove(upload_id);
            }
        }
        answer("abort_upload", key, fault, Ok(()))
    }

    async fn pending_uploads(&self, prefix: &str) -> Result<Vec<PendingUpload>, StoreError> {
        let fault = self.meet("pending_uploads", prefix, &[]).await?;
        let pending = |(id, upload): (&String, &Pending)| {
            let (key, begun) = (upload.key.clone(), Some(upload.begun));
            key.starts_with(prefix).then(|| PendingUpload { key, upload_id: id.clone(), begun })
        };
        let found = self.state().uploads.iter().filter_map(pending).collect();
        answer("pending_uploads", prefix, fault, Ok(found))
    }

    async fn presign_get(&self, _: &str, _: Duration, _: &str) -> Result<Option<String>, StoreError> {
        Ok(None)
    }

    async fn probe(&self, prefix: &str) -> Result<Capabilities, StoreError> {
        let fault = self.meet("probe", prefix, &[]).await?;
        answer("probe", prefix, fault, Ok(Capabilities { conditional_put: true, list_uploads: true }))
    }
}

#[cfg(test)]
mod tests {
    use archiver::store::body::collect;

    use super::*;
    use crate::faults::Calls;

    async fn put(store: &MemoryStore, key: &str) -> Result<ObjectInfo, StoreError> {
        store.put(key, Body::bytes("content"), PutOptions::default()).await
    }

    async fn content(store: &MemoryStore, key: &str) -> Result<Bytes, StoreError> {
        collect(store.get(key, None).await?, key, 1000).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_answer_is_an_error_and_the_object_is_there() {
        let store = MemoryStore::new();
        store.faults().inject(Fault::LostAnswer, Calls::of("put"));
        let lost = put(&store, "a").await;
        assert!(matches!(lost, Err(StoreError::Unavailable { .. })), "wanted unavailable, got {lost:?}");
        assert_eq!(content(&store, "a").await.expect("there"), "content");
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_lies_says_stored_and_has_nothing() {
        let store = MemoryStore::new();
        store.faults().inject(Fault::Lost, Calls::of("put").times(1));
        assert_eq!(put(&store, "a").await.expect("it says so").size, 7);
        assert_eq!(store.head("a").await.expect("head"), None);
        put(&store, "a").await.expect("the second time it is kept");
        assert_eq!(store.keys(), ["a"]);
    }

    #[tokio::test(start_paused = true)]
    async fn damage_is_in_the_bytes_and_not_in_the_checksum() {
        let store = MemoryStore::new();
        store.faults().inject(Fault::Corrupt, Calls::of("put").with_key("corrupt"));
        store.faults().inject(Fault::Truncated, Calls::of("get").with_key("short"));
        let info = put(&store, "corrupt").await.expect("put");
        assert_eq!((info.size, info.sha256), (7, Some(sha256(b"content"))));
        assert_ne!(content(&store, "corrupt").await.expect("get"), "content");
        put(&store, "short").await.expect("put");
        assert_eq!(content(&store, "short").await.expect("get"), "con");
        assert_eq!(store.bytes("short").expect("there"), "content");
    }

    #[tokio::test(start_paused = true)]
    async fn faults_of_one_process_are_not_those_of_another() {
        let store = MemoryStore::new();
        let other = store.for_another_process();
        store.faults().inject(Fault::Unavailable, Calls::all());
        put(&store, "a").await.expect_err("it is cut off");
        put(&other, "a").await.expect("this one is not");
        store.faults().heal();
        assert_eq!(content(&store, "a").await.expect("the same store"), "content");
    }
}
