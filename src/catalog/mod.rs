//! The catalog: applications and their sessions, workers, jobs and their leases, archives, parked jobs. [`Catalog`] is the contract, one trait a
//! subject. [`SqlCatalog`] keeps it: SQLite by default, PostgreSQL for a fleet, the same statements on both. The only module that names `sqlx`.
//!
//! Every change that only an owner may make names the owner's epoch: an owner that was paused, and whose job
//! was taken over, changes nothing any more (fencing).

mod applications;
mod archive_rows;
mod archives;
mod counts;
mod derived_archives;
mod failure;
mod hand_over;
mod history;
mod job_rows;
mod jobs;
mod leases;
mod notice_rows;
mod notices;
mod parked;
mod revisions;
mod sessions;
mod stored;
mod waiting;
mod workers;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use sqlx::any::{AnyArguments, AnyPoolOptions, AnyRow, install_default_drivers};
use sqlx::query::Query;
use sqlx::{Any, AnyConnection, AnyPool, Connection, Executor};
use tokio::time::timeout;

use crate::model::fault::{Fault, FaultKind, HasFault, chain};

pub use applications::{ApplicationCatalog, ApplicationKey, ApplicationKind, ApplicationRow};
pub use archive_rows::{ArchiveFile, ArchiveRow, ArchiveStatus};
pub use archives::{ArchiveCatalog, ArchiveFilter, SegmentsDue};
pub use counts::CountCatalog;
pub use derived_archives::{DerivedArchiveCatalog, DerivedArchiveLimits, DerivedArchiveRow};
pub use hand_over::{HandOver, HandOverCatalog};
pub use history::HistoryLine;
pub use job_rows::{JobRow, JobState, NewJob};
pub use jobs::{Accepted, JobCatalog};
pub use leases::{Claimed, HeldLease, LeaseCatalog};
pub use notice_rows::{NoticeRow, NoticeState, NoticeTarget};
pub use notices::{Claim, Disposition, NoticeCatalog, NoticeFilter};
pub use parked::{NewParked, ParkedCatalog, ParkedFilter, ParkedMark, ParkedPlace, ParkedRow, ParkedState};
pub use revisions::{REVISIONS_MAX, RevisionCatalog};
pub use sessions::{Classes, SessionCatalog, SessionRow};
pub use stored::{DesiredError, EventOrigin, SpecError, Stored, StoredDesired, StoredSpec};
pub use waiting::{Wait, WaitingCatalog};
pub use workers::{NameHolder, NameLease, WorkerCatalog, WorkerInstance, WorkerRow};

/// A statement that takes longer has failed.
const STATEMENT_MAX: Duration = Duration::from_secs(10);
/// How long a statement waits for SQLite's one writer, in milliseconds: almost as long as it may take. A writer that waits for a
/// busy disk holds the lock for seconds, and whoever gave up before would fail without need.
const SQLITE_BUSY_MS: u32 = 9_000;
/// Connections to PostgreSQL; SQLite has one writer anyway.
const CONNECTIONS_MAX: u32 = 8;
/// Connections for what keeps leases.
const LEASE_CONNECTIONS: u32 = 2;
/// A statement that keeps leases has failed when it takes longer. A connection that hangs must not cost a lease.
const LEASE_STATEMENT_MAX: Duration = Duration::from_secs(1);
/// SQLite has no lock for migrations: of two processes that make the tables of one file at the same time, one
/// fails, and finds them made when it tries again.
const MIGRATION_TRIES: u32 = 5;
/// Indexes of many millions of rows take their time.
const MIGRATION_MAX: Duration = Duration::from_secs(1800);
/// Between these tries.
const MIGRATION_PAUSE: Duration = Duration::from_millis(200);

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("src/catalog/migrations");

/// Why the catalog cannot do it.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// No connection, a timeout, or the database is shutting down.
    #[error("the catalog is not available while it should {doing}")]
    Unavailable {
        /// The operation.
        doing: &'static str,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A value that must not be there.
    #[error("the catalog has {what} in {column}")]
    Corrupt {
        /// Where.
        column: &'static str,
        /// The value.
        what: String,
    },
    /// The database is damaged, its tables are not those of this program, or it refuses a value of ours.
    #[error("the catalog's data or tables are not what they should be to {doing}")]
    Broken {
        /// The operation.
        doing: &'static str,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A rule of the tables forbids it, such as one running job for a session.
    #[error("another row is in the way to {doing}")]
    Conflict {
        /// The operation.
        doing: &'static str,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The session is used again while its last job is about to end. A moment later it can be accepted.
    #[error("the session's job {job} is about to end")]
    Ending {
        /// The job that ends.
        job: crate::model::ids::JobId,
    },
    /// The lease was lost: another owner has a later epoch.
    #[error("job {job} belongs to another owner now")]
    Fenced {
        /// Which job.
        job: crate::model::ids::JobId,
    },
}

impl HasFault for CatalogError {
    fn fault(&self) -> Fault {
        match self {
            Self::Unavailable { .. } => FaultKind::CatalogUnavailable,
            Self::Corrupt { .. } | Self::Broken { .. } => FaultKind::CatalogCorrupt,
            Self::Conflict { .. } | Self::Ending { .. } | Self::Fenced { .. } => FaultKind::Conflict,
        }
        .fault()
    }
}

/// The catalog: the traits of its subjects together.
#[async_trait]
pub trait Catalog:
    ApplicationCatalog
    + SessionCatalog
    + JobCatalog
    + LeaseCatalog
    + HandOverCatalog
    + RevisionCatalog
    + WaitingCatalog
    + ArchiveCatalog
    + CountCatalog
    + NoticeCatalog
    + ParkedCatalog
    + DerivedArchiveCatalog
    + WorkerCatalog
    + std::fmt::Debug
{
    /// Checks that the catalog answers, and returns its name for people. For `archiver check`.
    ///
    /// # Errors
    /// When it does not answer.
    async fn probe(&self) -> Result<&'static str, CatalogError>;
}

/// A shared catalog.
pub type SharedCatalog = Arc<dyn Catalog>;

/// Connects to a database and brings its tables up to date. `url` is `postgres://…` or `sqlite:<path>`.
///
/// # Errors
/// When the database cannot be reached or its tables cannot be made.
pub async fn open(url: &str) -> Result<SharedCatalog, CatalogError> {
    Ok(Arc::new(SqlCatalog::open(url).await?))
}

/// A catalog in an SQL database. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SqlCatalog {
    pool: AnyPool,
    /// What keeps leases waits for no other statement.
    leases: AnyPool,
    postgres: bool,
}

/// A statement with its values.
type Statement = Query<'static, Any, AnyArguments>;

/// A statement of constant text and the names of states; values are always bound.
fn statement(sql: impl Into<String>) -> Statement {
    sqlx::query(sqlx::AssertSqlSafe(sql.into()))
}

impl SqlCatalog {
    /// Connects and brings the tables up to date. `url` is `postgres://…` or `sqlite:<path>`.
    ///
    /// # Errors
    /// When the database cannot be reached or its tables cannot be made.
    pub async fn open(url: &str) -> Result<Self, CatalogError> {
        install_default_drivers();
        let postgres = url.starts_with("postgres");
        let url = match url.strip_prefix("sqlite:") {
            Some(path) => sqlite_url(path).await?,
            None => url.to_owned(),
        };
        let pool = AnyPoolOptions::new()
            .max_connections(if postgres { CONNECTIONS_MAX } else { 1 })
            .acquire_timeout(STATEMENT_MAX)
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    if !postgres {
                        // What was accepted must survive a power cut; readers must not block the writer.
                        let busy = format!("PRAGMA busy_timeout = {SQLITE_BUSY_MS}");
                        connection.execute(sqlx::AssertSqlSafe(busy)).await?;
                        for pragma in
                            ["PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL", "PRAGMA foreign_keys = ON"]
                        {
                            connection.execute(pragma).await?;
                        }
                    }
                    Ok(())
                })
            })
            .connect_lazy(&url)
            .map_err(|e| failure::of("read its address", e))?;
        let of_leases = || {
            AnyPoolOptions::new().max_connections(LEASE_CONNECTIONS).acquire_timeout(STATEMENT_MAX).connect_lazy(&url)
        };
        let leases = if postgres { of_leases().map_err(|e| failure::of("read its address", e))? } else { pool.clone() };
        let catalog = Self { pool, leases, postgres };
        catalog.try_connect(&url).await?;
        catalog.migrate().await?;
        Ok(catalog)
    }

    /// Makes one connection without the pool. The pool tries again until its time is over, and reports only the timeout. A
    /// wrong password or a damaged file is reported as such, and at once.
    async fn try_connect(&self, url: &str) -> Result<(), CatalogError> {
        let doing = "open it";
        let schema = if self.postgres { "SELECT 1" } else { "SELECT COUNT(*) FROM sqlite_schema" };
        let connecting = async {
            let mut connection = AnyConnection::connect(url).await?;
            connection.execute(schema).await?;
            connection.close().await
        };
        match timeout(STATEMENT_MAX, connecting).await {
            Ok(connected) => connected.map_err(|e| failure::of(doing, e)),
            Err(elapsed) => Err(CatalogError::Unavailable { doing, source: Box::new(elapsed) }),
        }
    }

    async fn migrate(&self) -> Result<(), CatalogError> {
        let doing = "bring its tables up to date";
        let mut tries = if self.postgres { 1 } else { MIGRATION_TRIES };
        loop {
            tries -= 1;
            match timeout(MIGRATION_MAX, MIGRATIONS.run(&self.pool)).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(_)) if tries > 0 => tokio::time::sleep(MIGRATION_PAUSE).await,
                Ok(Err(error)) => return Err(failure::of_migration(doing, error)),
                Err(elapsed) => return Err(CatalogError::Unavailable { doing, source: Box::new(elapsed) }),
            }
        }
    }

    /// Runs statements on one connection, with a limit. A connection that does not answer in time is closed: its
    /// server may be gone without a word, and the pool would wait for it as long as TCP does.
    async fn run<T: Send>(
        &self,
        doing: &'static str,
        statements: impl for<'c> FnOnce(&'c mut AnyConnection) -> BoxFuture<'c, Result<T, sqlx::Error>> + Send,
    ) -> Result<T, CatalogError> {
        let mut connection = self.pool.acquire().await.map_err(|e| failure::of(doing, e))?;
        match timeout(STATEMENT_MAX, statements(&mut connection)).await {
            Ok(result) => result.map_err(|e| failure::of(doing, e)),
            Err(elapsed) => {
                connection.close_on_drop();
                Err(CatalogError::Unavailable { doing, source: Box::new(elapsed) })
            }
        }
    }

    /// Runs one statement; returns how many rows it changed.
    async fn execute(&self, doing: &'static str, one: Statement) -> Result<u64, CatalogError> {
        self.run(doing, |c| Box::pin(async move { Ok(one.execute(c).await?.rows_affected()) })).await
    }

    /// Reads rows.
    async fn rows(&self, doing: &'static str, one: Statement) -> Result<Vec<AnyRow>, CatalogError> {
        self.run(doing, |c| Box::pin(one.fetch_all(c))).await
    }

    /// Runs one statement that keeps leases, and reads its rows.
    async fn lease_rows(&self, doing: &'static str, one: Statement) -> Result<Vec<AnyRow>, CatalogError> {
        // SQLite's writers wait for each other, and for the disk.
        let limit = if self.postgres { LEASE_STATEMENT_MAX } else { STATEMENT_MAX };
        let unavailable =
            |elapsed: tokio::time::error::Elapsed| CatalogError::Unavailable { doing, source: Box::new(elapsed) };
        let acquired = timeout(limit * 3, self.leases.acquire()).await.map_err(unavailable)?;
        let mut connection = acquired.map_err(|e| failure::of(doing, e))?;
        match timeout(limit, one.fetch_all(&mut *connection)).await {
            Ok(result) => result.map_err(|e| failure::of(doing, e)),
            Err(elapsed) => {
                connection.close_on_drop();
                Err(unavailable(elapsed))
            }
        }
    }

    /// Reads a row, if there is one.
    async fn row(&self, doing: &'static str, one: Statement) -> Result<Option<AnyRow>, CatalogError> {
        self.run(doing, |c| Box::pin(one.fetch_optional(c))).await
    }

    /// Runs a statement and, if it changed something, a second one, in one transaction: a change of a job and its
    /// line in the history. Returns whether it changed something.
    ///
    /// A transaction begins with a write: on SQLite one that begins by reading cannot wait for its turn to write.
    async fn change(&self, doing: &'static str, first: Statement, then: Statement) -> Result<bool, CatalogError> {
        self.run(doing, |c| {
            Box::pin(async move {
                let mut transaction = c.begin().await?;
                let changed = first.execute(&mut *transaction).await?.rows_affected() > 0;
                if changed {
                    then.execute(&mut *transaction).await?;
                }
                transaction.commit().await?;
                Ok(changed)
            })
        })
        .await
    }
}

#[async_trait]
impl Catalog for SqlCatalog {
    async fn probe(&self) -> Result<&'static str, CatalogError> {
        self.execute("answer", statement("SELECT 1")).await?;
        Ok(if self.postgres { "PostgreSQL" } else { "SQLite" })
    }
}

/// The rows that can be read. One that cannot hides no other; the log names what is wrong with it.
fn readable<T>(rows: &[AnyRow], read: impl Fn(&AnyRow) -> Result<T, CatalogError>) -> Vec<T> {
    let told = |error: CatalogError| {
        tracing::error!(fault.kind = %error.fault().kind, "a row of the catalog is left out of a list: {}", chain(&error));
    };
    rows.iter().filter_map(|row| read(row).map_err(told).ok()).collect()
}

/// The address of an SQLite file that is made if it is not there, and its folder too.
async fn sqlite_url(path: &str) -> Result<String, CatalogError> {
    let failed = |e: std::io::Error| CatalogError::Unavailable { doing: "make its folder", source: Box::new(e) };
    let path = std::path::absolute(Path::new(path)).map_err(failed)?;
    if let Some(parent) = path.parent() {
        tokio::fs::create_dir_all(parent).await.map_err(failed)?;
    }
    // The path becomes part of a URL, where these mean something else.
    let path = path.to_string_lossy().replace('%', "%25").replace('?', "%3F").replace('#', "%23");
    Ok(format!("sqlite://{path}?mode=rwc"))
}

/// Text from outside as both databases can hold it: PostgreSQL refuses NUL.
fn storable(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// The columns of a row that we wrote. One that is not there, or of another type, is told, never replaced.
struct Columns<'r> {
    row: &'r AnyRow,
    table: &'static str,
}

impl Columns<'_> {
    fn get<'r, T>(&'r self, column: &'static str) -> Result<T, CatalogError>
    where
        T: sqlx::Decode<'r, Any> + sqlx::Type<Any>,
    {
        let what = |e: sqlx::Error| format!("something unreadable ({e}, table {})", self.table);
        sqlx::Row::try_get(self.row, column).map_err(|e| CatalogError::Corrupt { column, what: what(e) })
    }

    fn text(&self, column: &'static str) -> Result<String, CatalogError> {
        self.get(column)
    }

    fn number(&self, column: &'static str) -> Result<i64, CatalogError> {
        self.get(column)
    }

    fn parsed<T: std::str::FromStr>(&self, column: &'static str) -> Result<T, CatalogError> {
        parsed(column, &self.text(column)?)
    }
}

/// Reads a column that was written by us.
fn parsed<T: std::str::FromStr>(column: &'static str, text: &str) -> Result<T, CatalogError> {
    text.parse().map_err(|_| CatalogError::Corrupt { column, what: format!("{text:?}") })
}
