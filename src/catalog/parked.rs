//! Parked jobs: what was refused or failed for good, with its event, its reason, its history.

use async_trait::async_trait;
use serde::Serialize;
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Connection};

use super::{CatalogError, Columns, HistoryLine, SqlCatalog, parsed, readable, statement, storable};
use crate::model::fault::FaultKind;
use crate::model::ids::{JobId, ParkedId};
use crate::model::time::Wallclock;

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
    /// What was done with it.
    pub history: Vec<HistoryLine>,
}

const COLUMNS: &str = "parked_id, job_id, fault, detail, routing_key, body, state, times, first_at, last_at, history";

fn parked_row(row: &AnyRow) -> Result<ParkedRow, CatalogError> {
    let columns = Columns { row, table: "parked" };
    let job: Option<String> = columns.get("job_id")?;
    Ok(ParkedRow {
        parked: columns.parsed("parked_id")?,
        job: job.map(|j| parsed("job_id", &j)).transpose()?,
        fault: columns.text("fault")?,
        detail: columns.text("detail")?,
        routing_key: columns.text("routing_key")?,
        body: columns.text("body")?,
        state: columns.parsed("state")?,
        times: columns.number("times")?,
        first_at: Wallclock(columns.number("first_at")?),
        last_at: Wallclock(columns.number("last_at")?),
        history: history(&columns.text("history")?)?,
    })
}

fn history(text: &str) -> Result<Vec<HistoryLine>, CatalogError> {
    serde_json::from_str(text).map_err(|e| CatalogError::Corrupt { column: "history", what: e.to_string() })
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

/// Which parked entries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ParkedFilter {
    /// Those in this state.
    pub state: Option<ParkedState>,
    /// Those with this fault.
    pub fault: Option<FaultKind>,
    /// Those of this job.
    pub job: Option<JobId>,
    /// Those that came for the last time at this moment, or later.
    pub since: Option<Wallclock>,
    /// Those that came for the last time before this moment.
    pub before: Option<Wallclock>,
    /// Those behind this place of the list.
    pub behind: Option<ParkedPlace>,
}

/// An entry's place in the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ParkedPlace {
    /// When it came for the last time.
    pub last_at: Wallclock,
    /// Its id: entries of one moment are in the order of their ids.
    pub parked: ParkedId,
}

impl ParkedRow {
    /// Its place in the list.
    #[must_use]
    pub const fn place(&self) -> ParkedPlace {
        ParkedPlace { last_at: self.last_at, parked: self.parked }
    }
}

impl ParkedFilter {
    /// The condition on a row, in SQL. Numbers, ids and names of the program's own need no quoting.
    fn condition(&self) -> String {
        let mut conditions = vec!["1 = 1".to_owned()];
        conditions.extend(self.state.map(|state| format!("state = '{}'", state.as_str())));
        conditions.extend(self.fault.map(|fault| format!("fault = '{}'", fault.as_str())));
        conditions.extend(self.job.map(|job| format!("job_id = '{job}'")));
        conditions.extend(self.since.map(|at| format!("last_at >= {}", at.0)));
        conditions.extend(self.before.map(|at| format!("last_at < {}", at.0)));
        conditions.extend(self.behind.map(|ParkedPlace { last_at: Wallclock(at), parked }| {
            format!("(last_at < {at} OR (last_at = {at} AND parked_id < '{parked}'))")
        }));
        conditions.join(" AND ")
    }
}

/// What somebody does with a parked entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParkedMark<'a> {
    /// Where it stands from now on.
    pub state: ParkedState,
    /// Who does it.
    pub who: &'a str,
    /// Why, in that person's words.
    pub why: Option<&'a str>,
}

impl ParkedMark<'_> {
    /// The line of the entry's history.
    #[must_use]
    pub fn line(&self, now: Wallclock) -> HistoryLine {
        let what = match self.why {
            Some(why) => format!("{}: {}", self.state.as_str(), storable(why)),
            None => self.state.as_str().to_owned(),
        };
        HistoryLine { at: now, what, who: storable(self.who) }
    }
}

/// Parked jobs in the catalog.
#[async_trait]
pub trait ParkedCatalog: Send + Sync {
    /// Parks an event. The same bytes for the same reason are the same entry, counted once more; an entry that
    /// was replayed and comes back waits for a person again.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn park(&self, new: &NewParked<'_>, now: Wallclock) -> Result<ParkedId, CatalogError>;

    /// Parked entries, newest first. The next page are those behind the last one's place.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn parked(&self, filter: &ParkedFilter, limit: u32) -> Result<Vec<ParkedRow>, CatalogError>;

    /// A parked entry.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn parked_entry(&self, id: ParkedId) -> Result<Option<ParkedRow>, CatalogError>;

    /// Changes an entry's state, and notes who did it, and why.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn mark_parked(&self, id: ParkedId, mark: &ParkedMark<'_>, now: Wallclock) -> Result<(), CatalogError>;

    /// A job made its archive: its entries need nobody any more.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn resolve_parked(&self, job: JobId) -> Result<(), CatalogError>;
}

#[async_trait]
impl ParkedCatalog for SqlCatalog {
    async fn park(&self, new: &NewParked<'_>, now: Wallclock) -> Result<ParkedId, CatalogError> {
        use base64::Engine;
        let id = ParkedId::of_content(new.fault.as_str(), new.body);
        let park = statement(format!(
            "INSERT INTO parked ({COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, 'parked', 1, $7, $8, '[]') \
             ON CONFLICT (parked_id) DO UPDATE SET times = parked.times + 1, last_at = excluded.last_at, \
             detail = excluded.detail, state = CASE WHEN parked.state = 'discarded' THEN 'discarded' ELSE 'parked' END"
        ))
        .bind(id.to_string())
        .bind(new.job.map(|j| j.to_string()))
        .bind(new.fault.as_str())
        .bind(storable(new.detail))
        .bind(storable(new.routing_key))
        .bind(base64::engine::general_purpose::STANDARD.encode(new.body))
        .bind(now.0)
        .bind(now.0);
        self.execute("park an event", park).await?;
        Ok(id)
    }

    async fn parked(&self, filter: &ParkedFilter, limit: u32) -> Result<Vec<ParkedRow>, CatalogError> {
        let select = format!(
            "SELECT {COLUMNS} FROM parked WHERE {} ORDER BY last_at DESC, parked_id DESC LIMIT {limit}",
            filter.condition()
        );
        Ok(readable(&self.rows("list parked jobs", statement(select)).await?, parked_row))
    }

    async fn parked_entry(&self, id: ParkedId) -> Result<Option<ParkedRow>, CatalogError> {
        let select = statement(format!("SELECT {COLUMNS} FROM parked WHERE parked_id = $1")).bind(id.to_string());
        self.row("find a parked job", select).await?.as_ref().map(parked_row).transpose()
    }

    async fn mark_parked(&self, id: ParkedId, mark: &ParkedMark<'_>, now: Wallclock) -> Result<(), CatalogError> {
        // The first statement locks the row, so that two people who act at once both stay in the history.
        let lock = statement("UPDATE parked SET state = $1 WHERE parked_id = $2")
            .bind(mark.state.as_str())
            .bind(id.to_string());
        let read = statement("SELECT history FROM parked WHERE parked_id = $1").bind(id.to_string());
        let line = mark.line(now);
        let marked = self.run("mark a parked job", |c: &mut AnyConnection| {
            Box::pin(async move {
                let mut transaction = c.begin().await?;
                if lock.execute(&mut *transaction).await?.rows_affected() == 1 {
                    let row = read.fetch_one(&mut *transaction).await?;
                    let text: String = sqlx::Row::try_get(&row, "history")?;
                    let mut lines = history(&text).map_err(|e| sqlx::Error::Decode(Box::new(e)))?;
                    lines.push(line);
                    let text = serde_json::to_string(&lines).expect("plain data");
                    let write = statement("UPDATE parked SET history = $1 WHERE parked_id = $2");
                    write.bind(text).bind(id.to_string()).execute(&mut *transaction).await?;
                }
                transaction.commit().await
            })
        });
        marked.await
    }

    async fn resolve_parked(&self, job: JobId) -> Result<(), CatalogError> {
        let resolve =
            statement("UPDATE parked SET state = 'resolved' WHERE job_id = $1 AND state IN ('parked', 'replayed')")
                .bind(job.to_string());
        self.execute("resolve parked jobs", resolve).await.map(drop)
    }
}
