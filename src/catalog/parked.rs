//! Parked jobs: what was refused or failed for good, with its event, its reason, its history.

use serde::Serialize;
use sqlx::Row;
use sqlx::any::AnyRow;

use super::{Catalog, CatalogError, parsed};
use crate::fault::FaultKind;
use crate::ids::{JobId, ParkedId};
use crate::time::Wallclock;

/// Where a parked entry stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ParkedState {
    /// It waits for a person.
    Parked,
    /// It was published again.
    Replayed,
    /// Its job made an archive.
    Resolved,
    /// A person gave it up.
    Discarded,
}

impl ParkedState {
    /// The name in the catalog.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Parked => "parked",
            Self::Replayed => "replayed",
            Self::Resolved => "resolved",
            Self::Discarded => "discarded",
        }
    }
}

impl std::str::FromStr for ParkedState {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Parked, Self::Replayed, Self::Resolved, Self::Discarded]
            .into_iter()
            .find(|s| s.as_str() == text)
            .ok_or_else(|| format!("no state of a parked job is called {text:?}"))
    }
}

/// A parked entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ParkedRow {
    /// Its id.
    pub parked: ParkedId,
    /// The job, where the event named one.
    pub job: Option<JobId>,
    /// Why.
    pub fault: String,
    /// Why, in words, with what to do.
    pub detail: String,
    /// Where the event was published to.
    pub routing_key: String,
    /// The event's bytes as they came, in base64.
    pub body: String,
    /// Where it stands.
    pub state: ParkedState,
    /// How often it came.
    pub times: i64,
    /// First.
    pub first_at: Wallclock,
    /// Last.
    pub last_at: Wallclock,
    /// What was done with it: when, what, who.
    pub history: Vec<(Wallclock, String, String)>,
}

const COLUMNS: &str = "parked_id, job_id, fault, detail, routing_key, body, state, times, first_at, last_at, history";

fn row(row: &AnyRow) -> Result<ParkedRow, CatalogError> {
    let text = |name: &str| row.try_get::<String, _>(name).unwrap_or_default();
    let job = row.try_get::<Option<String>, _>("job_id").ok().flatten();
    let number = |name: &str| row.try_get::<i64, _>(name).unwrap_or_default();
    Ok(ParkedRow {
        parked: parsed("parked.parked_id", &text("parked_id"))?,
        job: job.map(|j| parsed("parked.job_id", &j)).transpose()?,
        fault: text("fault"),
        detail: text("detail"),
        routing_key: text("routing_key"),
        body: text("body"),
        state: parsed("parked.state", &text("state"))?,
        times: number("times"),
        first_at: Wallclock(number("first_at")),
        last_at: Wallclock(number("last_at")),
        history: serde_json::from_str(&text("history")).unwrap_or_default(),
    })
}

/// Something to park.
#[derive(Debug, Clone)]
pub struct NewParked<'a> {
    /// The job, where the event named one.
    pub job: Option<JobId>,
    /// Why.
    pub fault: FaultKind,
    /// Why, in words.
    pub detail: &'a str,
    /// Where the event was published to.
    pub routing_key: &'a str,
    /// The event's bytes.
    pub body: &'a [u8],
}

impl Catalog {
    /// Parks an event. The same bytes for the same reason are the same entry, counted once more; an entry that
    /// was replayed and comes back waits for a person again.
    ///
    /// # Errors
    /// When the catalog is away.
    pub async fn park(&self, new: &NewParked<'_>, now: Wallclock) -> Result<ParkedId, CatalogError> {
        use base64::Engine;
        let id = ParkedId::of_content(new.fault.as_str(), new.body);
        let sql = format!(
            "INSERT INTO parked ({COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, 'parked', 1, $7, $8, '[]') \
             ON CONFLICT (parked_id) DO UPDATE SET times = parked.times + 1, last_at = excluded.last_at, \
             detail = excluded.detail, state = CASE WHEN parked.state = 'discarded' THEN 'discarded' ELSE 'parked' END"
        );
        let query = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(id.to_string())
            .bind(new.job.map(|j| j.to_string()))
            .bind(new.fault.as_str())
            .bind(new.detail)
            .bind(new.routing_key)
            .bind(base64::engine::general_purpose::STANDARD.encode(new.body))
            .bind(now.0)
            .bind(now.0);
        self.limited("park an event", query.execute(&self.pool)).await?;
        Ok(id)
    }

    /// Parked entries, newest first.
    ///
    /// # Errors
    /// When the catalog is away.
    pub async fn parked(
        &self,
        state: Option<ParkedState>,
        fault: Option<FaultKind>,
        limit: u32,
    ) -> Result<Vec<ParkedRow>, CatalogError> {
        let mut conditions = vec!["1 = 1".to_owned()];
        conditions.extend(state.map(|s| format!("state = '{}'", s.as_str())));
        conditions.extend(fault.map(|f| format!("fault = '{}'", f.as_str())));
        let sql = format!(
            "SELECT {COLUMNS} FROM parked WHERE {} ORDER BY last_at DESC LIMIT {limit}",
            conditions.join(" AND ")
        );
        let rows =
            self.limited("list parked jobs", sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_all(&self.pool)).await?;
        rows.iter().map(row).collect()
    }

    /// A parked entry.
    ///
    /// # Errors
    /// When the catalog is away.
    pub async fn parked_entry(&self, id: ParkedId) -> Result<Option<ParkedRow>, CatalogError> {
        let sql = format!("SELECT {COLUMNS} FROM parked WHERE parked_id = $1");
        let query = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(id.to_string());
        self.limited("find a parked job", query.fetch_optional(&self.pool)).await?.as_ref().map(row).transpose()
    }

    /// Changes an entry's state, and notes who did it.
    ///
    /// # Errors
    /// When the catalog is away.
    pub async fn mark_parked(
        &self,
        id: ParkedId,
        state: ParkedState,
        who: &str,
        now: Wallclock,
    ) -> Result<(), CatalogError> {
        let Some(entry) = self.parked_entry(id).await? else { return Ok(()) };
        let mut history = entry.history;
        history.push((now, state.as_str().to_owned(), who.to_owned()));
        let history = serde_json::to_string(&history).expect("plain data");
        let query = sqlx::query("UPDATE parked SET state = $1, history = $2 WHERE parked_id = $3")
            .bind(state.as_str())
            .bind(history)
            .bind(id.to_string());
        self.limited("mark a parked job", query.execute(&self.pool)).await.map(drop)
    }

    /// A job made its archive: its entries need nobody any more.
    ///
    /// # Errors
    /// When the catalog is away.
    pub async fn resolve_parked(&self, job: JobId) -> Result<(), CatalogError> {
        let query =
            sqlx::query("UPDATE parked SET state = 'resolved' WHERE job_id = $1 AND state IN ('parked', 'replayed')")
                .bind(job.to_string());
        self.limited("resolve parked jobs", query.execute(&self.pool)).await.map(drop)
    }
}
