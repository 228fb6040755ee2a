//! Probes a store's capabilities, by using them.

use super::{Body, Capabilities, ObjectStore, PutOptions, StoreError};

/// Writes, reads, lists and removes probe objects under a prefix, and begins and gives up an upload.
pub(super) async fn probe(store: &dyn ObjectStore, prefix: &str) -> Result<Capabilities, StoreError> {
    let key = format!("{prefix}probe-{}", uuid::Uuid::new_v4());
    let content = b"archiver probes what this store can do";
    store.put(&key, Body::bytes(&content[..]), PutOptions::default()).await?;
    let read = super::body::collect(store.get(&key, None).await?, &key, 1024).await?;
    if read != content[..] {
        let (expected, found) = (format!("{} bytes", content.len()), format!("{} other bytes", read.len()));
        return Err(StoreError::Corrupt { key, expected, found });
    }
    let again = PutOptions { if_absent: true, ..PutOptions::default() };
    let conditional_put = match store.put(&key, Body::bytes(&content[..]), again).await {
        Ok(_) => false,
        Err(StoreError::Exists { .. }) => true,
        // A store that does not know the header may also refuse it.
        Err(StoreError::Refused { .. }) => false,
        Err(error) => return Err(error),
    };
    let upload = store.create_upload(&key, PutOptions::default()).await?;
    store.upload_part(&key, &upload, 1, Body::bytes(&content[..])).await?;
    let list_uploads = store.pending_uploads(&key).await.is_ok_and(|l| l.iter().any(|p| p.upload_id == upload));
    store.abort_upload(&key, &upload).await?;
    store.delete(&key).await?;
    Ok(Capabilities { conditional_put, list_uploads })
}
