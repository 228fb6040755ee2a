//! How many archives each application has.

use async_trait::async_trait;
use sqlx::Connection;

use super::{CatalogError, SqlCatalog, statement};

/// The counts of archives in the catalog.
#[async_trait]
pub trait CountCatalog: Send + Sync {
    /// Counts anew how many archives each application has: workers of earlier versions do not count.
    ///
    /// Whoever writes an archive counts it behind that, in the same transaction. So on PostgreSQL the lock on the counts orders
    /// both: what was counted before it was taken is seen by the statement after it; what is not counted yet waits for it, is
    /// not seen, and is added when it is gone. On SQLite there is one writer.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn recount_archives(&self) -> Result<(), CatalogError>;
}

#[async_trait]
impl CountCatalog for SqlCatalog {
    async fn recount_archives(&self) -> Result<(), CatalogError> {
        let lock = self.postgres.then(|| statement("LOCK TABLE archive_counts IN SHARE ROW EXCLUSIVE MODE"));
        // Those that have none left are not there any more.
        let clear = statement("DELETE FROM archive_counts");
        let count = statement(
            "INSERT INTO archive_counts (application_id, archives) \
             SELECT application_id, COUNT(*) FROM archives WHERE status <> 'deleted' GROUP BY application_id",
        );
        self.run("count archives", |c| {
            Box::pin(async move {
                let mut transaction = c.begin().await?;
                for one in lock.into_iter().chain([clear, count]) {
                    one.execute(&mut *transaction).await?;
                }
                transaction.commit().await
            })
        })
        .await
    }
}
