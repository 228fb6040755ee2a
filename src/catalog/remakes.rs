//! Archives that are to be made of others.

use sqlx::any::AnyRow;

use super::{Catalog, CatalogError, Columns, statement, storable};
use crate::ids::ArchiveId;
use crate::time::Wallclock;

/// An archive that is to be made of another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemakeRow {
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

const COLUMNS: &str = "archive_id, source_id, what, tries, due_at";

fn remake_row(row: &AnyRow) -> Result<RemakeRow, CatalogError> {
    let columns = Columns { row, table: "remakes" };
    Ok(RemakeRow {
        archive: columns.parsed("archive_id")?,
        source: columns.parsed("source_id")?,
        what: columns.text("what")?,
        tries: columns.number("tries")?,
        due_at: Wallclock(columns.number("due_at")?),
    })
}

impl Catalog {
    /// Adds one, unless `most` are waiting already. Returns whether it was added.
    ///
    /// # Errors
    /// When the catalog is away.
    pub async fn add_remake(
        &self,
        archive: ArchiveId,
        source: ArchiveId,
        what: &str,
        most: u32,
        now: Wallclock,
    ) -> Result<bool, CatalogError> {
        let insert = statement(
            "INSERT INTO remakes (archive_id, source_id, what, state, due_at, created_at) \
             SELECT $1, $2, $3, 'waiting', $4, $5 \
             WHERE (SELECT COUNT(*) FROM remakes WHERE state = 'waiting') < $6",
        )
        .bind(archive.to_string())
        .bind(source.to_string())
        .bind(storable(what))
        .bind(now.0)
        .bind(now.0)
        .bind(i64::from(most));
        Ok(self.execute("keep what is to be made", insert).await? == 1)
    }

    /// Takes the oldest one that nobody makes, until `until`.
    ///
    /// # Errors
    /// When the catalog is away.
    pub async fn claim_remake(&self, now: Wallclock, until: Wallclock) -> Result<Option<RemakeRow>, CatalogError> {
        let select = statement(format!(
            "SELECT {COLUMNS} FROM remakes WHERE state = 'waiting' AND due_at <= $1 ORDER BY created_at LIMIT 1"
        ));
        let found = self.row("find what is to be made", select.bind(now.0)).await?;
        let Some(found) = found.as_ref().map(remake_row).transpose()? else { return Ok(None) };
        let claim = statement(
            "UPDATE remakes SET due_at = $1, tries = tries + 1 WHERE archive_id = $2 AND due_at = $3 AND state = 'waiting'",
        )
        .bind(until.0)
        .bind(found.archive.to_string())
        .bind(found.due_at.0);
        let ours = self.execute("take what is to be made", claim).await? == 1;
        Ok(ours.then_some(RemakeRow { tries: found.tries + 1, due_at: until, ..found }))
    }

    /// Keeps one until `until`, or gives it back for then. Returns whether it was still ours.
    ///
    /// # Errors
    /// When the catalog is away.
    pub async fn keep_remake(&self, remake: &mut RemakeRow, until: Wallclock) -> Result<bool, CatalogError> {
        let keep =
            statement("UPDATE remakes SET due_at = $1 WHERE archive_id = $2 AND due_at = $3 AND state = 'waiting'")
                .bind(until.0)
                .bind(remake.archive.to_string())
                .bind(remake.due_at.0);
        let ours = self.execute("keep what is being made", keep).await? == 1;
        remake.due_at = until;
        Ok(ours)
    }

    /// One is made, or given up: nothing is to be done for it any more.
    ///
    /// # Errors
    /// When the catalog is away.
    pub async fn end_remake(&self, archive: ArchiveId) -> Result<(), CatalogError> {
        let delete = statement("DELETE FROM remakes WHERE archive_id = $1").bind(archive.to_string());
        self.execute("forget what was made", delete).await.map(drop)
    }
}
