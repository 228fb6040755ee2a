//! Notices: what is to be told of each change of an archive's status, until it was told.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::Row;
use sqlx::any::AnyRow;

use super::notice_rows::{COLUMNS, key, notice_row};
use super::{
    ArchiveRow, CatalogError, Columns, NoticeRow, NoticeState, NoticeTarget, SqlCatalog, Statement, readable,
    statement, storable,
};
use crate::model::ids::{ApplicationId, ArchiveId};
use crate::model::time::Wallclock;

/// Old notices are deleted so many at a time: others write between.
const DELETED_AT_ONCE: u32 = 5000;

/// Which notices, and how many.
#[derive(Debug, Clone, Default)]
pub struct NoticeFilter {
    /// To this target.
    pub target: Option<NoticeTarget>,
    /// In this state.
    pub state: Option<NoticeState>,
    /// Of an application.
    pub application: Option<ApplicationId>,
    /// Of an archive.
    pub archive: Option<ArchiveId>,
    /// Pass over so many.
    pub offset: u32,
    /// At most so many.
    pub count: u32,
}

/// What somebody takes to tell.
#[derive(Debug, Clone)]
pub struct Claim<'a> {
    /// To this target.
    pub target: NoticeTarget,
    /// At most so many.
    pub count: u32,
    /// At most so many of one application.
    pub of_one: u32,
    /// None of these applications: they have enough under way.
    pub without: &'a [ApplicationId],
    /// Nobody else takes them for so long.
    pub lease: Duration,
}

/// What becomes of a notice after a try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// It was told.
    Delivered,
    /// It failed, and is tried again.
    Again(Wallclock),
    /// It is given up.
    Undelivered,
    /// It was not tried: whoever comes next may.
    Untried,
}

/// The number of the change that a written row of `archives` is, if its status was another one before.
pub(super) fn change(written: &AnyRow) -> Result<Option<i64>, sqlx::Error> {
    let (before, now): (Option<String>, String) = (written.try_get("status_before")?, written.try_get("status")?);
    Ok(if before.is_none_or(|before| before != now) { Some(written.try_get("changes")?) } else { None })
}

/// What is to be told of a change: as an event always, to an application that has an address for it now.
pub(super) fn notes(archive: &ArchiveRow, number: i64) -> [Statement; 2] {
    let json = storable(&serde_json::to_string(archive).expect("plain data"));
    [NoticeTarget::Event, NoticeTarget::Callback].map(|target| {
        let where_to = match target {
            NoticeTarget::Event => "WHERE 1 = 1",
            NoticeTarget::Callback => "FROM applications WHERE application_id = $10 AND callback_url <> ''",
        };
        let insert = statement(format!(
            "INSERT INTO notices ({COLUMNS}) SELECT $1, $2, $3, $4, $5, $6, 'waiting', 0, 0, $7, NULL, $8, $9 {where_to}"
        ))
        .bind(archive.archive.to_string())
        .bind(target.as_str())
        .bind(number)
        .bind(archive.application.to_string())
        .bind(archive.status.as_str())
        .bind(json.clone())
        .bind(archive.updated_at.0)
        .bind(archive.updated_at.0)
        .bind(archive.updated_at.0);
        match target {
            NoticeTarget::Event => insert,
            NoticeTarget::Callback => insert.bind(archive.application.to_string()),
        }
    })
}

/// Notices in the catalog.
#[async_trait]
pub trait NoticeCatalog: Send + Sync {
    /// Takes notices that are due, the longest due first: of each archive only the oldest that waits, so that they are told
    /// in order. Nobody else gets them before the claim's lease has ended.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn claim_notices(&self, claim: &Claim<'_>, now: Wallclock) -> Result<Vec<NoticeRow>, CatalogError>;

    /// Notes what became of a notice that was taken. Nothing is noted of one that somebody else took after our lease had
    /// ended, except that it was delivered. Returns whether it was noted.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn settle_notice(
        &self,
        notice: &NoticeRow,
        settled: Disposition,
        detail: Option<&str>,
        now: Wallclock,
    ) -> Result<bool, CatalogError>;

    /// Notices, newest first, and how many there are in all.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn notices(&self, filter: &NoticeFilter) -> Result<(Vec<NoticeRow>, i64), CatalogError>;

    /// Callbacks of an archive are sent once more, as if they were new: the one with this number that was delivered or
    /// given up; without a number, all that were given up. Returns how many.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn resend_notices(
        &self,
        archive: ArchiveId,
        number: Option<i64>,
        now: Wallclock,
    ) -> Result<u64, CatalogError>;

    /// Deletes what was delivered before `delivered` and what was given up before `undelivered`. Returns how many.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn delete_old_notices(&self, delivered: Wallclock, undelivered: Wallclock) -> Result<u64, CatalogError>;
}

#[async_trait]
impl NoticeCatalog for SqlCatalog {
    async fn claim_notices(&self, claim: &Claim<'_>, now: Wallclock) -> Result<Vec<NoticeRow>, CatalogError> {
        const DOING: &str = "take notices";
        // Mostly there is none, and a look takes no lock.
        let look =
            statement("SELECT 1 AS due FROM notices WHERE target = $1 AND state = 'waiting' AND due_at <= $2 LIMIT 1")
                .bind(claim.target.as_str())
                .bind(now.0);
        if self.row(DOING, look).await?.is_none() {
            return Ok(Vec::new());
        }
        let without: Vec<String> = (0..claim.without.len()).map(|n| format!("${}", n + 8)).collect();
        let without = if without.is_empty() {
            String::new()
        } else {
            format!("AND application_id NOT IN ({})", without.join(", "))
        };
        // The conditions on the row itself hold when somebody else has taken it meanwhile; those on others are looked up.
        let mut take = statement(format!(
            "UPDATE notices SET due_at = $1, first_at = CASE WHEN first_at = 0 THEN $2 ELSE first_at END, updated_at = $3 \
             WHERE target = $4 AND state = 'waiting' AND due_at <= $5 AND (archive_id, number) IN ( \
             SELECT archive_id, number FROM ( \
             SELECT archive_id, number, due_at, ROW_NUMBER() OVER (PARTITION BY application_id ORDER BY due_at, archive_id) AS nth \
             FROM notices AS one WHERE target = $6 AND state = 'waiting' AND due_at <= $7 {without} \
             AND NOT EXISTS (SELECT 1 FROM notices AS earlier WHERE earlier.archive_id = one.archive_id \
             AND earlier.target = one.target AND earlier.number < one.number AND earlier.state = 'waiting')) AS heads \
             WHERE nth <= {} ORDER BY due_at, archive_id LIMIT {}) RETURNING {COLUMNS}",
            claim.of_one, claim.count
        ))
        .bind((now + claim.lease).0)
        .bind(now.0)
        .bind(now.0)
        .bind(claim.target.as_str())
        .bind(now.0)
        .bind(claim.target.as_str())
        .bind(now.0);
        for application in claim.without {
            take = take.bind(application.to_string());
        }
        let mut taken = Vec::new();
        for row in &self.rows(DOING, take).await? {
            match notice_row(row) {
                Ok(notice) => taken.push(notice),
                Err(error) => self.give_up_unreadable(row, &error, now).await?,
            }
        }
        taken.sort_by_key(|notice| (notice.created_at, notice.archive, notice.number));
        Ok(taken)
    }

    async fn settle_notice(
        &self,
        notice: &NoticeRow,
        settled: Disposition,
        detail: Option<&str>,
        now: Wallclock,
    ) -> Result<bool, CatalogError> {
        let (state, due_at, failed) = match settled {
            Disposition::Delivered => (NoticeState::Delivered, notice.due_at, 0),
            Disposition::Again(at) => (NoticeState::Waiting, at, 1),
            Disposition::Undelivered => (NoticeState::Undelivered, notice.due_at, 1),
            Disposition::Untried => (NoticeState::Waiting, now, 0),
        };
        let ours = if settled == Disposition::Delivered { "1 = 1" } else { "due_at = $9" };
        let mut settle = statement(format!(
            "UPDATE notices SET state = $1, failures = failures + $2, due_at = $3, detail = $4, updated_at = $5 \
             WHERE archive_id = $6 AND target = $7 AND number = $8 AND state = 'waiting' AND {ours}"
        ))
        .bind(state.as_str())
        .bind(failed)
        .bind(due_at.0)
        .bind(detail.map(storable))
        .bind(now.0)
        .bind(notice.archive.to_string())
        .bind(notice.target.as_str())
        .bind(notice.number);
        if settled != Disposition::Delivered {
            settle = settle.bind(notice.due_at.0);
        }
        Ok(self.execute("note what became of a notice", settle).await? == 1)
    }

    async fn notices(&self, filter: &NoticeFilter) -> Result<(Vec<NoticeRow>, i64), CatalogError> {
        let (mut conditions, mut values) = (vec!["1 = 1".to_owned()], Vec::new());
        let mut add = |column: &str, value: Option<String>| {
            if let Some(value) = value {
                values.push(value);
                conditions.push(format!("{column} = ${}", values.len()));
            }
        };
        add("target", filter.target.map(|target| target.as_str().to_owned()));
        add("state", filter.state.map(|state| state.as_str().to_owned()));
        add("application_id", filter.application.as_ref().map(ToString::to_string));
        add("archive_id", filter.archive.as_ref().map(ToString::to_string));
        let condition = conditions.join(" AND ");
        let mut page = statement(format!(
            "SELECT {COLUMNS} FROM notices WHERE {condition} \
             ORDER BY created_at DESC, archive_id, number DESC, target LIMIT {} OFFSET {}",
            filter.count, filter.offset
        ));
        let mut total = statement(format!("SELECT COUNT(*) AS total FROM notices WHERE {condition}"));
        for value in values {
            page = page.bind(value.clone());
            total = total.bind(value);
        }
        let rows = self.rows("list notices", page).await?;
        let total = self.row("count notices", total).await?;
        let total = total.map_or(Ok(0), |row| Columns { row: &row, table: "notices" }.number("total"))?;
        Ok((readable(&rows, notice_row), total))
    }

    async fn resend_notices(
        &self,
        archive: ArchiveId,
        number: Option<i64>,
        now: Wallclock,
    ) -> Result<u64, CatalogError> {
        let which = match number {
            Some(_) => "state IN ('delivered', 'undelivered') AND number = $4",
            None => "state = 'undelivered'",
        };
        let mut resend = statement(format!(
            "UPDATE notices SET state = 'waiting', failures = 0, first_at = 0, detail = NULL, due_at = $1, updated_at = $2 \
             WHERE archive_id = $3 AND target = 'callback' AND {which}"
        ))
        .bind(now.0)
        .bind(now.0)
        .bind(archive.to_string());
        if let Some(number) = number {
            resend = resend.bind(number);
        }
        self.execute("send notices again", resend).await
    }

    async fn delete_old_notices(&self, delivered: Wallclock, undelivered: Wallclock) -> Result<u64, CatalogError> {
        let mut deleted = 0;
        for (state, before) in [(NoticeState::Delivered, delivered), (NoticeState::Undelivered, undelivered)] {
            loop {
                let delete = statement(format!(
                    "DELETE FROM notices WHERE (archive_id, target, number) IN ( \
                     SELECT archive_id, target, number FROM notices WHERE state = '{}' AND updated_at < $1 \
                     LIMIT {DELETED_AT_ONCE}) AND state = '{}'",
                    state.as_str(),
                    state.as_str()
                ));
                let some = self.execute("delete old notices", delete.bind(before.0)).await?;
                deleted += some;
                if some < u64::from(DELETED_AT_ONCE) {
                    break;
                }
            }
        }
        Ok(deleted)
    }
}

impl SqlCatalog {
    /// One that cannot be read must not keep the others.
    async fn give_up_unreadable(&self, row: &AnyRow, error: &CatalogError, now: Wallclock) -> Result<(), CatalogError> {
        let (archive, target, number) = key(&Columns { row, table: "notices" })?;
        tracing::error!(fault.kind = "catalog_corrupt", %archive, number, "a notice cannot be read: {error}");
        let give_up = statement(
            "UPDATE notices SET state = 'undelivered', detail = $1, updated_at = $2 \
             WHERE archive_id = $3 AND target = $4 AND number = $5",
        )
        .bind(storable(&error.to_string()))
        .bind(now.0)
        .bind(archive.to_string())
        .bind(target.as_str())
        .bind(number);
        self.execute("give a notice up", give_up).await.map(drop)
    }
}
