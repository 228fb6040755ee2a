//! Archives in the catalog: writing, reading and listing them.

use async_trait::async_trait;
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Connection};

use super::archive_rows::{COLUMNS, archive_row};
use super::notices::{change, notes};
use super::{ArchiveRow, ArchiveStatus, CatalogError, Columns, SqlCatalog, Statement, readable, statement, storable};
use crate::model::ids::{ApplicationId, ArchiveId, Epoch, SessionId};
use crate::model::time::Wallclock;

/// Which archives.
#[derive(Debug, Clone, Default)]
pub struct ArchiveFilter {
    /// Of an application.
    pub application: Option<ApplicationId>,
    /// Of a session.
    pub session: Option<SessionId>,
    /// With a status; without one, deleted archives are left out.
    pub status: Option<ArchiveStatus>,
    /// Begun then or later.
    pub from: Option<Wallclock>,
    /// Begun before.
    pub to: Option<Wallclock>,
    /// Pass over so many.
    pub offset: u32,
    /// At most so many.
    pub count: u32,
}

/// Whose segments are not needed any more: of archives that last changed before these moments.
#[derive(Debug, Clone, Copy)]
pub struct SegmentsDue {
    /// Archives that have all that was sent, as far as is known.
    pub complete: Wallclock,
    /// Archives that lack something: it may come yet.
    pub incomplete: Wallclock,
    /// Deleted archives.
    pub deleted: Wallclock,
}

/// By how much a written row changes how many archives there are.
fn counted(row: &AnyRow) -> Result<Option<i64>, sqlx::Error> {
    let before: Option<String> = sqlx::Row::try_get(row, "status_before")?;
    let (status, changes): (String, i64) = (sqlx::Row::try_get(row, "status")?, sqlx::Row::try_get(row, "changes")?);
    let deleted = ArchiveStatus::Deleted.as_str();
    Ok(match before {
        None if changes == 1 => (status != deleted).then_some(1),
        Some(before) if before != deleted && status == deleted => Some(-1),
        _ => None,
    })
}

fn count(archive: &ArchiveRow, more: i64) -> Statement {
    statement(
        "INSERT INTO archive_counts (application_id, archives) VALUES ($1, $2) \
         ON CONFLICT (application_id) DO UPDATE SET archives = archive_counts.archives + $3",
    )
    .bind(archive.application.to_string())
    .bind(more)
    .bind(more)
}

fn total_of(application: &ApplicationId) -> Statement {
    statement("SELECT archives AS total FROM archive_counts WHERE application_id = $1").bind(application.to_string())
}

/// An archive that is about to be written, in a transaction of whoever writes it.
pub(super) struct Put {
    put: Statement,
    given: ArchiveRow,
}

impl Put {
    pub(super) fn new(archive: &ArchiveRow, epoch: Option<Epoch>, only_new: bool) -> Self {
        let from: Vec<String> = ArchiveStatus::ALL
            .iter()
            .filter(|s| s.may_become(archive.status))
            .map(|s| format!("'{}'", s.as_str()))
            .collect();
        // A new file is a change to tell, though the status is the same.
        let is_revised = "excluded.revision > archives.revision";
        let known = if only_new {
            "DO NOTHING".to_owned()
        } else {
            format!(
                "DO UPDATE SET status_before = CASE WHEN {is_revised} THEN NULL ELSE archives.status END, \
                 status = excluded.status, reason = excluded.reason, updated_at = excluded.updated_at, \
                 duration_s = excluded.duration_s, size = excluded.size, \
                 sha256 = excluded.sha256, object_key = excluded.object_key, missing = excluded.missing, \
                 segments_kept = CASE WHEN excluded.status = 'deleted' AND archives.status <> 'deleted' THEN 1 \
                 ELSE archives.segments_kept END, \
                 changes = archives.changes + CASE WHEN archives.status = excluded.status AND NOT ({is_revised}) THEN 0 ELSE 1 END, \
                 revision = CASE WHEN {is_revised} THEN excluded.revision ELSE archives.revision END, \
                 log_read = COALESCE(excluded.log_read, archives.log_read) \
                 WHERE archives.status IN ({})",
                from.join(", ")
            )
        };
        let fence = match epoch {
            Some(_) => "EXISTS (SELECT 1 FROM jobs WHERE jobs.job_id = $19 AND jobs.epoch = $20)",
            None => "1 = 1",
        };
        let mut put = statement(format!(
            "INSERT INTO archives ({COLUMNS}, changes) \
             SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, 1 WHERE {fence} \
             ON CONFLICT (archive_id) {known} RETURNING {COLUMNS}, status_before, changes"
        ))
        .bind(archive.archive.to_string())
        .bind(archive.job.to_string())
        .bind(archive.session.to_string())
        .bind(archive.application.to_string())
        .bind(archive.name.as_deref().map(storable))
        .bind(archive.status.as_str())
        .bind(storable(&archive.reason))
        .bind(storable(&archive.output_mode))
        .bind(archive.created_at.0)
        .bind(archive.updated_at.0)
        .bind(archive.duration_s)
        .bind(archive.size)
        .bind(archive.sha256.clone())
        .bind(archive.object_key.clone())
        .bind(storable(&serde_json::to_string(&archive.options).expect("plain data")))
        .bind(archive.missing.as_ref().map(|missing| storable(&serde_json::to_string(missing).expect("plain data"))))
        .bind(archive.revision)
        .bind(archive.log_read.as_ref().map(|read| serde_json::to_string(read).expect("plain data")));
        if let Some(epoch) = epoch {
            put = put.bind(archive.job.to_string()).bind(i64::from(epoch.0));
        }
        Self { put, given: archive.clone() }
    }

    /// Writes it, and with it what is to be told of it if the status is another one than before. Returns whether it was.
    pub(super) async fn run(self, transaction: &mut AnyConnection) -> Result<bool, sqlx::Error> {
        let Some(row) = self.put.fetch_optional(&mut *transaction).await? else { return Ok(false) };
        if let Some(more) = counted(&row)? {
            count(&self.given, more).execute(&mut *transaction).await?;
        }
        if let Some(number) = change(&row)? {
            // A row that somebody damaged must not keep its archive from going on.
            for notice in notes(&archive_row(&row).unwrap_or(self.given), number) {
                notice.execute(&mut *transaction).await?;
            }
        }
        Ok(true)
    }
}

/// Archives in the catalog.
#[async_trait]
pub trait ArchiveCatalog: Send + Sync {
    /// Writes an archive, new or changed, as a person or the API does: without a lease. A status that may not
    /// follow the present one is not written, and nothing else with it. Returns whether it was.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn put_archive(&self, archive: &ArchiveRow) -> Result<bool, CatalogError>;

    /// Adds an archive, if there is none of its id. Returns whether it was added.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn add_archive(&self, archive: &ArchiveRow) -> Result<bool, CatalogError>;

    /// Writes an archive as the owner of its job does. Neither a status that may not follow the present one is
    /// written, nor anything of an owner whose epoch has passed. Returns whether it was.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn put_own_archive(&self, archive: &ArchiveRow, epoch: Epoch) -> Result<bool, CatalogError>;

    /// An archive.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn archive(&self, archive: ArchiveId) -> Result<Option<ArchiveRow>, CatalogError>;

    /// Archives of which something that is not needed any more may be in the store: of made ones their segments, of deleted ones
    /// anything. The oldest first, not all at once. Archives that are being made again are left out.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn with_segments(&self, due: &SegmentsDue) -> Result<Vec<ArchiveRow>, CatalogError>;

    /// Notes that an archive has no segments in the store any more; a deleted one nothing at all.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn segments_deleted(&self, archive: ArchiveId) -> Result<(), CatalogError>;

    /// Archives, newest first, and how many there are in all.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn archives(&self, filter: &ArchiveFilter) -> Result<(Vec<ArchiveRow>, i64), CatalogError>;
}

#[async_trait]
impl ArchiveCatalog for SqlCatalog {
    async fn put_archive(&self, archive: &ArchiveRow) -> Result<bool, CatalogError> {
        self.put(archive, None, false).await
    }

    async fn add_archive(&self, archive: &ArchiveRow) -> Result<bool, CatalogError> {
        self.put(archive, None, true).await
    }

    async fn put_own_archive(&self, archive: &ArchiveRow, epoch: Epoch) -> Result<bool, CatalogError> {
        self.put(archive, Some(epoch), false).await
    }

    async fn archive(&self, archive: ArchiveId) -> Result<Option<ArchiveRow>, CatalogError> {
        let select =
            statement(format!("SELECT {COLUMNS} FROM archives WHERE archive_id = $1")).bind(archive.to_string());
        self.row("find an archive", select).await?.as_ref().map(archive_row).transpose()
    }

    async fn with_segments(&self, due: &SegmentsDue) -> Result<Vec<ArchiveRow>, CatalogError> {
        let select = statement(format!(
            "SELECT {COLUMNS} FROM archives WHERE segments_kept = 1 AND updated_at < $1 \
             AND (status IN ('available', 'uploaded') AND updated_at < $2 \
             AND (COALESCE(missing, '[]') = '[]' OR updated_at < $3) AND NOT EXISTS (SELECT 1 FROM jobs \
             WHERE jobs.archive_id = archives.archive_id AND jobs.state IN ('finalizing', 'parked')) \
             OR status = 'deleted' AND updated_at < $4) ORDER BY updated_at LIMIT 100"
        ));
        let newest = due.complete.max(due.incomplete).max(due.deleted);
        let select = select.bind(newest.0).bind(due.complete.0).bind(due.incomplete.0).bind(due.deleted.0);
        Ok(readable(&self.rows("list archives with segments", select).await?, archive_row))
    }

    async fn segments_deleted(&self, archive: ArchiveId) -> Result<(), CatalogError> {
        let update = statement("UPDATE archives SET segments_kept = 0 WHERE archive_id = $1".to_owned());
        self.execute("note deleted segments", update.bind(archive.to_string())).await.map(drop)
    }

    async fn archives(&self, filter: &ArchiveFilter) -> Result<(Vec<ArchiveRow>, i64), CatalogError> {
        let (mut conditions, mut values) = (Vec::new(), Vec::new());
        let mut add = |column: &str, value: Option<String>| {
            if let Some(value) = value {
                values.push(value);
                conditions.push(format!("{column} = ${}", values.len()));
            }
        };
        add("application_id", filter.application.as_ref().map(ToString::to_string));
        add("session_id", filter.session.as_ref().map(ToString::to_string));
        add("status", filter.status.map(|s| s.as_str().to_owned()));
        if filter.status != Some(ArchiveStatus::Deleted) {
            // Said even where another status is asked for: the index is of these archives.
            conditions.push("status <> 'deleted'".to_owned());
        }
        for (comparison, bound) in [(">=", filter.from), ("<", filter.to)] {
            conditions.extend(bound.map(|at| format!("created_at {comparison} {}", at.0)));
        }
        let condition = conditions.join(" AND ");
        // What is passed over is counted in the index alone.
        const ORDER: &str = "ORDER BY created_at DESC, archive_id";
        let mut page = statement(format!(
            "SELECT {COLUMNS} FROM archives WHERE archive_id IN (\
             SELECT archive_id FROM archives WHERE {condition} {ORDER} LIMIT {} OFFSET {}) {ORDER}",
            filter.count, filter.offset
        ));
        let mut total = statement(format!("SELECT COUNT(*) AS total FROM archives WHERE {condition}"));
        for value in values {
            page = page.bind(value.clone());
            total = total.bind(value);
        }
        let rows = self.rows("list archives", page).await?;
        let all = filter.session.is_none() && filter.status.is_none() && filter.from.is_none() && filter.to.is_none();
        if let (true, Some(application)) = (all, &filter.application) {
            total = total_of(application);
        }
        let total = self.row("count archives", total).await?;
        let total = total.map_or(Ok(0), |row| Columns { row: &row, table: "archives" }.number("total"))?;
        Ok((readable(&rows, archive_row), total))
    }
}

impl SqlCatalog {
    async fn put(&self, archive: &ArchiveRow, epoch: Option<Epoch>, only_new: bool) -> Result<bool, CatalogError> {
        let put = Put::new(archive, epoch, only_new);
        let written = self.run("write an archive", |c: &mut AnyConnection| {
            Box::pin(async move {
                let mut transaction = c.begin().await?;
                let written = put.run(&mut transaction).await?;
                transaction.commit().await?;
                Ok(written)
            })
        });
        written.await
    }
}
