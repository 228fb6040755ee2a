//! The workers of a deployment by name, and the clock that all of them share.

use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;

use super::job_rows::micros;
use super::leases::longest;
use super::{CatalogError, Columns, SqlCatalog, readable, statement, storable};
use crate::model::ids::{InstanceId, Region, WorkerId};
use crate::model::time::Wallclock;

/// A process that wants a worker's name.
#[derive(Debug, Clone)]
pub struct WorkerInstance {
    /// The name.
    pub worker: WorkerId,
    /// Its data folder.
    pub instance: InstanceId,
    /// When it started.
    pub since: Wallclock,
}

/// The process that had a worker's name last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NameHolder {
    /// Its data folder.
    pub instance: InstanceId,
    /// When it started.
    pub since: Wallclock,
    /// Until when it has the name, without a heartbeat; 0 when it gave the name back.
    pub lease_expires_at: Wallclock,
}

/// Who has a worker's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameLease {
    /// The process that asked.
    Held {
        /// Somebody told the worker to hand its sessions over, and to take none.
        drains: bool,
    },
    /// Another one.
    Others {
        /// When that one started.
        since: Wallclock,
    },
}

/// A worker as the catalog knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkerRow {
    /// Its name.
    pub worker: WorkerId,
    /// When the process started that had the name last.
    pub since: Wallclock,
    /// Until when that has the name, without a heartbeat; 0 when it gave the name back.
    pub lease_expires_at: Wallclock,
    /// The region whose jobs it takes, while it takes any.
    pub takes: Option<String>,
    /// When somebody told it to drain, if it is to.
    pub drain_at: Option<Wallclock>,
    /// Who did.
    pub drain_by: Option<String>,
}

/// The workers in the catalog.
#[async_trait]
pub trait WorkerCatalog: Send + Sync {
    /// The time by the clock that all processes of a deployment share: the database's, which for SQLite is this machine's.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn clock(&self) -> Result<Wallclock, CatalogError>;

    /// Takes a worker's name or keeps it: a name that nobody has, that this data folder had last, or whose lease has expired. `takes`: the
    /// region whose jobs the worker takes, if it takes any.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn hold_name(
        &self,
        who: &WorkerInstance,
        takes: Option<&Region>,
        now: Wallclock,
        ttl: Duration,
    ) -> Result<NameLease, CatalogError>;

    /// Who had a worker's name last.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn name_holder(&self, worker: &WorkerId) -> Result<Option<NameHolder>, CatalogError>;

    /// All workers, by name.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn workers(&self) -> Result<Vec<WorkerRow>, CatalogError>;

    /// Tells a worker to hand its sessions over and to take none, or with `by` absent to take some again. The worker hears of it with its next
    /// heartbeat, or when it starts. Returns whether the catalog knows the worker.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn drain_worker(&self, worker: &WorkerId, by: Option<&str>, now: Wallclock) -> Result<bool, CatalogError>;

    /// Gives a name back, so that another data folder may have it at once. A name that was lost is not an error.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn release_name(&self, who: &WorkerInstance) -> Result<(), CatalogError>;
}

#[async_trait]
impl WorkerCatalog for SqlCatalog {
    async fn clock(&self) -> Result<Wallclock, CatalogError> {
        if !self.postgres {
            return Ok(Wallclock::now());
        }
        let read = statement("SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT) AS now");
        let rows = self.lease_rows("tell the time", read).await?;
        let row = rows.first().ok_or_else(|| CatalogError::Corrupt { column: "now", what: "no row".to_owned() })?;
        Columns { row, table: "no table" }.number("now").map(Wallclock)
    }

    async fn hold_name(
        &self,
        who: &WorkerInstance,
        takes: Option<&Region>,
        now: Wallclock,
        ttl: Duration,
    ) -> Result<NameLease, CatalogError> {
        let hold = statement(
            "INSERT INTO workers (worker_id, instance_id, since, lease_expires_at, takes) VALUES ($1, $2, $3, $4, $5) \
             ON CONFLICT (worker_id) DO UPDATE SET instance_id = excluded.instance_id, since = excluded.since, \
             lease_expires_at = excluded.lease_expires_at, takes = excluded.takes \
             WHERE workers.instance_id = excluded.instance_id OR workers.lease_expires_at <= $6 \
             OR workers.lease_expires_at > $7 RETURNING worker_id, drain_at",
        )
        .bind(who.worker.to_string())
        .bind(who.instance.to_string())
        .bind(who.since.0)
        .bind(now.0.saturating_add(micros(ttl)))
        .bind(takes.map(ToString::to_string))
        .bind(now.0)
        .bind(longest(now));
        if let [row] = self.lease_rows("hold a worker's name", hold).await?.as_slice() {
            let drain_at = Columns { row, table: "workers" }.get::<Option<i64>>("drain_at")?;
            return Ok(NameLease::Held { drains: drain_at.is_some() });
        }
        Ok(match self.name_holder(&who.worker).await? {
            // It was heard, and its answer was lost.
            Some(holder) if holder.instance == who.instance => {
                let rows = self.workers().await?;
                NameLease::Held { drains: rows.iter().any(|row| row.worker == who.worker && row.drain_at.is_some()) }
            }
            Some(holder) => NameLease::Others { since: holder.since },
            // Nobody removes names.
            None => NameLease::Others { since: now },
        })
    }

    async fn name_holder(&self, worker: &WorkerId) -> Result<Option<NameHolder>, CatalogError> {
        let read = statement("SELECT instance_id, since, lease_expires_at FROM workers WHERE worker_id = $1")
            .bind(worker.to_string());
        let rows = self.lease_rows("find who has a worker's name", read).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let columns = Columns { row, table: "workers" };
        Ok(Some(NameHolder {
            instance: columns.parsed("instance_id")?,
            since: Wallclock(columns.number("since")?),
            lease_expires_at: Wallclock(columns.number("lease_expires_at")?),
        }))
    }

    async fn workers(&self) -> Result<Vec<WorkerRow>, CatalogError> {
        let read =
            "SELECT worker_id, since, lease_expires_at, takes, drain_at, drain_by FROM workers ORDER BY worker_id";
        let rows = self.rows("list workers", statement(read)).await?;
        Ok(readable(&rows, |row| {
            let columns = Columns { row, table: "workers" };
            Ok(WorkerRow {
                worker: columns.parsed("worker_id")?,
                since: Wallclock(columns.number("since")?),
                lease_expires_at: Wallclock(columns.number("lease_expires_at")?),
                takes: columns.get("takes")?,
                drain_at: columns.get::<Option<i64>>("drain_at")?.map(Wallclock),
                drain_by: columns.get("drain_by")?,
            })
        }))
    }

    async fn drain_worker(&self, worker: &WorkerId, by: Option<&str>, now: Wallclock) -> Result<bool, CatalogError> {
        let drain = statement("UPDATE workers SET drain_at = $1, drain_by = $2 WHERE worker_id = $3")
            .bind(by.map(|_| now.0))
            .bind(by.map(storable))
            .bind(worker.to_string());
        Ok(self.execute("drain a worker", drain).await? == 1)
    }

    async fn release_name(&self, who: &WorkerInstance) -> Result<(), CatalogError> {
        let release = statement("UPDATE workers SET lease_expires_at = 0 WHERE worker_id = $1 AND instance_id = $2")
            .bind(who.worker.to_string())
            .bind(who.instance.to_string());
        self.execute("release a worker's name", release).await.map(drop)
    }
}
