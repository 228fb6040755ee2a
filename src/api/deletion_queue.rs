//! Removes the objects of deleted archives from the store after the answer, because a long archive has thousands of them. The sweep
//! removes what is left when the queue is full or the service stops.

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::archive::delete::remove;
use crate::catalog::{ArchiveRow, Catalog};
use crate::model::fault::chain;
use crate::store::SharedStore;

/// Archives whose objects are removed at the same time.
const AT_ONCE: usize = 4;
/// Archives that may wait.
const WAITING_MAX: usize = 1000;

/// The sending end: takes deleted archives.
pub struct DeletionQueue(mpsc::Sender<ArchiveRow>);

/// The receiving end, for [`run_deletions`].
pub struct DeletedArchives(mpsc::Receiver<ArchiveRow>);

/// A queue's two ends.
#[must_use]
pub fn deletion_queue() -> (DeletionQueue, DeletedArchives) {
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    (DeletionQueue(sender), DeletedArchives(receiver))
}

impl DeletionQueue {
    /// Enqueues an archive that is marked as deleted.
    pub fn add(&self, row: ArchiveRow) {
        let archive = row.archive;
        if self.0.try_send(row).is_err() {
            tracing::info!(%archive, "too many deleted archives wait: the sweep will remove its objects");
        }
    }
}

/// Removes the objects of deleted archives until `cancel`.
pub async fn run_deletions(
    catalog: &dyn Catalog,
    store: &SharedStore,
    deleted: &mut DeletedArchives,
    cancel: &CancellationToken,
) {
    let mut under_way = FuturesUnordered::new();
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            Some(()) = under_way.next() => {}
            row = deleted.0.recv(), if under_way.len() < AT_ONCE => match row {
                Some(row) => under_way.push(removed(catalog, store, row)),
                None => return,
            },
        }
    }
}

async fn removed(catalog: &dyn Catalog, store: &SharedStore, row: ArchiveRow) {
    if let Err(error) = remove(catalog, store.as_ref(), &row).await {
        let archive = row.archive;
        tracing::warn!(%archive, "objects of a deleted archive stay until the sweep: {}", chain(&error));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use archiver_testkit::s3::{ACCESS_KEY, BUCKET, S3Fault, S3Server, SECRET_KEY};
    use archiver_testkit::wait::wait_for;
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::catalog::ArchiveStatus;
    use crate::catalog::SegmentsDue;
    use crate::model::archive_options::ArchiveOptions;
    use crate::model::ids::{ArchiveId, JobId, SessionId};
    use crate::model::time::Wallclock;
    use crate::store::keys::{Keys, Kind};
    use crate::store::s3::{S3Config, S3Store};
    use crate::store::{Body, PutOptions};

    fn row(event: &str) -> ArchiveRow {
        let session: SessionId = "s".parse().expect("id");
        let job = JobId::of_event(&session, &event.parse().expect("id"));
        ArchiveRow {
            archive: ArchiveId::of_job(job),
            job,
            session,
            application: "app".parse().expect("id"),
            name: None,
            status: ArchiveStatus::Deleted,
            reason: String::new(),
            output_mode: "composed".to_owned(),
            created_at: Wallclock(1),
            updated_at: Wallclock(1),
            duration_s: 60,
            size: 1,
            sha256: String::new(),
            object_key: None,
            revision: 1,
            log_read: None,
            missing: None,
            options: ArchiveOptions::default(),
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_few_are_removed_at_a_time_and_the_rest_is_left_when_the_service_stops() {
        let server = S3Server::start().await.expect("server");
        let store: SharedStore = Arc::new(
            S3Store::new(S3Config {
                bucket: BUCKET.to_owned(),
                region: "us-east-1".to_owned(),
                endpoint: Some(server.endpoint()),
                path_style: true,
                credentials: Some((ACCESS_KEY.to_owned(), SECRET_KEY.into())),
                checksums_always: false,
                encryption: None,
                kms_key: None,
            })
            .await,
        );
        let dir = tempfile::tempdir().expect("folder");
        let catalog = crate::catalog::open(&format!("sqlite:{}", dir.path().join("catalog.sqlite").display())).await;
        let catalog = catalog.expect("catalog");
        let rows: Vec<ArchiveRow> = (0..AT_ONCE + 2).map(|n| row(&format!("e{n}"))).collect();
        for row in &rows {
            let key = Keys::new(row.application.clone(), row.archive).key(Kind::Mp4);
            store.put(&key, Body::bytes("x"), PutOptions::default()).await.expect("put");
            assert!(catalog.put_archive(row).await.expect("put"));
        }
        let (deletions, mut deleted) = deletion_queue();
        let (cancel, tasks) = (CancellationToken::new(), TaskTracker::new());
        let (of_task, known, stop) = (Arc::clone(&store), catalog.clone(), cancel.clone());
        // The first one is removed, the others meet a store that hangs.
        deletions.add(rows[0].clone());
        tasks.spawn(async move { run_deletions(known.as_ref(), &of_task, &mut deleted, &stop).await });
        let left = async || store.list("app/").await.expect("list").len();
        wait_for("the first to be removed", || async { (left().await == rows.len() - 1).then_some(()) }).await;
        server.inject(S3Fault::Hang, "DELETE", u64::MAX);
        let before = server.requests();
        for row in &rows[1..] {
            deletions.add(row.clone());
        }
        let asked = u64::try_from(2 * AT_ONCE).expect("small");
        wait_for("some to be tried", || async { (server.requests() - before >= asked).then_some(()) }).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(server.requests() - before, asked, "a list and a delete of each, and of no more");
        cancel.cancel();
        tasks.close();
        tokio::time::timeout(Duration::from_secs(5), tasks.wait()).await.expect("it stops at once");
        let after = Wallclock(2);
        let due = SegmentsDue { complete: after, incomplete: after, deleted: after };
        assert_eq!(catalog.with_segments(&due).await.expect("list").len(), rows.len() - 1, "the sweep goes on");
    }
}
