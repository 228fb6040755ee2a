//! Archives that are to be made of others.

use async_trait::async_trait;
use sqlx::Connection;
use sqlx::any::AnyRow;

use super::archives::Put;
use super::{ArchiveRow, CatalogError, Columns, SqlCatalog, statement, storable};
use crate::model::ids::ArchiveId;
use crate::model::time::Wallclock;

/// An archive that is to be made of another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DerivedArchiveRow {
    /// The new one.
    pub archive: ArchiveId,
    /// Of which.
    pub source: ArchiveId,
    /// How, as JSON.
    pub what: String,
    /// How often it was begun.
    pub tries: i64,
    /// Nobody else makes it until then; also the mark of whose it is.
    pub due_at: Wallclock,
}

/// How many archives may wait to be made of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DerivedArchiveLimits {
    /// In all.
    pub all: u32,
    /// Of one application.
    pub of_one: u32,
}

const COLUMNS: &str = "archive_id, source_id, what, tries, due_at";

fn derived_archive_row(row: &AnyRow) -> Result<DerivedArchiveRow, CatalogError> {
    let columns = Columns { row, table: "remakes" };
    Ok(DerivedArchiveRow {
        archive: columns.parsed("archive_id")?,
        source: columns.parsed("source_id")?,
        what: columns.text("what")?,
        tries: columns.number("tries")?,
        due_at: Wallclock(columns.number("due_at")?),
    })
}

/// Derived archives that wait in the catalog.
#[async_trait]
pub trait DerivedArchiveCatalog: Send + Sync {
    /// Adds one and the entry of its archive, in one transaction, unless as many are waiting already as `limits` allows.
    /// Returns whether they were added.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn add_derived_archive(
        &self,
        new: &ArchiveRow,
        source: ArchiveId,
        what: &str,
        limits: DerivedArchiveLimits,
        now: Wallclock,
    ) -> Result<bool, CatalogError>;

    /// Takes the oldest one that nobody makes, until `until`.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn claim_derived_archive(
        &self,
        now: Wallclock,
        until: Wallclock,
    ) -> Result<Option<DerivedArchiveRow>, CatalogError>;

    /// Keeps one until `until`, or leaves it until then. Returns whether it was still ours.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn extend_derived_archive(
        &self,
        derived: &mut DerivedArchiveRow,
        until: Wallclock,
    ) -> Result<bool, CatalogError>;

    /// Gives one back to whoever comes next, as if it had not been tried.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn release_derived_archive(&self, derived: &DerivedArchiveRow, now: Wallclock) -> Result<(), CatalogError>;

    /// One is made, or given up: nothing is to be done for it any more.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn finish_derived_archive(&self, archive: ArchiveId) -> Result<(), CatalogError>;
}

#[async_trait]
impl DerivedArchiveCatalog for SqlCatalog {
    async fn add_derived_archive(
        &self,
        new: &ArchiveRow,
        source: ArchiveId,
        what: &str,
        limits: DerivedArchiveLimits,
        now: Wallclock,
    ) -> Result<bool, CatalogError> {
        // Of two who count at the same time, the second counts the first one's, too. On SQLite there is one writer.
        let lock = self.postgres.then(|| statement("LOCK TABLE remakes IN SHARE ROW EXCLUSIVE MODE"));
        let insert = statement(
            "INSERT INTO remakes (archive_id, source_id, what, state, due_at, created_at) \
             SELECT $1, $2, $3, 'waiting', $4, $5 \
             WHERE (SELECT COUNT(*) FROM remakes WHERE state = 'waiting') < $6 \
             AND (SELECT COUNT(*) FROM remakes JOIN archives ON archives.archive_id = remakes.archive_id \
             WHERE remakes.state = 'waiting' AND archives.application_id = $7) < $8",
        )
        .bind(new.archive.to_string())
        .bind(source.to_string())
        .bind(storable(what))
        .bind(now.0)
        .bind(now.0)
        .bind(i64::from(limits.all))
        .bind(new.application.to_string())
        .bind(i64::from(limits.of_one));
        let put = Put::new(new, None, true);
        self.run("keep what is to be made", |c| {
            Box::pin(async move {
                let mut transaction = c.begin().await?;
                if let Some(lock) = lock {
                    lock.execute(&mut *transaction).await?;
                }
                let added =
                    insert.execute(&mut *transaction).await?.rows_affected() == 1 && put.run(&mut transaction).await?;
                if added {
                    transaction.commit().await?;
                }
                Ok(added)
            })
        })
        .await
    }

    async fn claim_derived_archive(
        &self,
        now: Wallclock,
        until: Wallclock,
    ) -> Result<Option<DerivedArchiveRow>, CatalogError> {
        let select = statement(format!(
            "SELECT {COLUMNS} FROM remakes WHERE state = 'waiting' AND due_at <= $1 ORDER BY created_at LIMIT 1"
        ));
        let found = self.row("find what is to be made", select.bind(now.0)).await?;
        let Some(found) = found.as_ref().map(derived_archive_row).transpose()? else { return Ok(None) };
        let claim = statement(
            "UPDATE remakes SET due_at = $1, tries = tries + 1 WHERE archive_id = $2 AND due_at = $3 AND state = 'waiting'",
        )
        .bind(until.0)
        .bind(found.archive.to_string())
        .bind(found.due_at.0);
        let ours = self.execute("take what is to be made", claim).await? == 1;
        Ok(ours.then_some(DerivedArchiveRow { tries: found.tries + 1, due_at: until, ..found }))
    }

    async fn extend_derived_archive(
        &self,
        derived: &mut DerivedArchiveRow,
        until: Wallclock,
    ) -> Result<bool, CatalogError> {
        let keep =
            statement("UPDATE remakes SET due_at = $1 WHERE archive_id = $2 AND due_at = $3 AND state = 'waiting'")
                .bind(until.0)
                .bind(derived.archive.to_string())
                .bind(derived.due_at.0);
        let ours = self.execute("keep what is being made", keep).await? == 1;
        derived.due_at = until;
        Ok(ours)
    }

    async fn release_derived_archive(&self, derived: &DerivedArchiveRow, now: Wallclock) -> Result<(), CatalogError> {
        let give = statement(
            "UPDATE remakes SET due_at = $1, tries = tries - 1 WHERE archive_id = $2 AND due_at = $3 AND state = 'waiting'",
        )
        .bind(now.0)
        .bind(derived.archive.to_string())
        .bind(derived.due_at.0);
        self.execute("give back what is to be made", give).await.map(drop)
    }

    async fn finish_derived_archive(&self, archive: ArchiveId) -> Result<(), CatalogError> {
        let delete = statement("DELETE FROM remakes WHERE archive_id = $1").bind(archive.to_string());
        self.execute("forget what was made", delete).await.map(drop)
    }
}
