//! The catalog: jobs and their leases, archives, parked jobs. SQLite by default, PostgreSQL for a fleet; the
//! same statements on both. The only module that names `sqlx`.
//!
//! Every change that only an owner may make names the owner's epoch: an owner that was paused, and whose job
//! was taken over, changes nothing any more (fencing).

mod archives;
mod jobs;
mod parked;

use std::path::Path;
use std::time::Duration;

use sqlx::AnyPool;
use sqlx::any::{AnyPoolOptions, install_default_drivers};
use tokio::time::timeout;

use crate::fault::{Fault, FaultKind, HasFault};

pub use archives::{ArchiveFilter, ArchiveRow, ArchiveStatus};
pub use jobs::{Accepted, Claimed, JobRow, JobState, NewJob};
pub use parked::{NewParked, ParkedRow, ParkedState};

/// A statement that takes longer has failed.
const STATEMENT_MAX: Duration = Duration::from_secs(10);
/// Connections to PostgreSQL; SQLite has one writer anyway.
const CONNECTIONS_MAX: u32 = 8;

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
    /// The lease was lost: another owner has a later epoch.
    #[error("job {job} belongs to another owner now")]
    Fenced {
        /// Which job.
        job: crate::ids::JobId,
    },
}

impl HasFault for CatalogError {
    fn fault(&self) -> Fault {
        match self {
            Self::Unavailable { .. } => FaultKind::CatalogUnavailable,
            Self::Corrupt { .. } => FaultKind::CatalogCorrupt,
            Self::Fenced { .. } => FaultKind::Conflict,
        }
        .fault()
    }
}

/// The catalog. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Catalog {
    pool: AnyPool,
    postgres: bool,
}

fn unavailable(doing: &'static str) -> impl FnOnce(sqlx::Error) -> CatalogError {
    move |source| CatalogError::Unavailable { doing, source: Box::new(source) }
}

impl Catalog {
    /// Connects and brings the tables up to date. `url` is `postgres://…` or `sqlite:<path>`.
    ///
    /// # Errors
    /// When the database cannot be reached or its tables cannot be made.
    pub async fn open(url: &str) -> Result<Self, CatalogError> {
        install_default_drivers();
        let postgres = url.starts_with("postgres");
        let url = match url.strip_prefix("sqlite:") {
            // `mode=rwc` makes the file.
            Some(path) => {
                if let Some(parent) = Path::new(path).parent() {
                    tokio::fs::create_dir_all(parent)
                        .await
                        .map_err(|e| CatalogError::Unavailable { doing: "make its folder", source: Box::new(e) })?;
                }
                format!("sqlite://{path}?mode=rwc")
            }
            None => url.to_owned(),
        };
        let pool = AnyPoolOptions::new()
            .max_connections(if postgres { CONNECTIONS_MAX } else { 1 })
            .acquire_timeout(STATEMENT_MAX)
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    if !postgres {
                        // What was accepted must survive a power cut; readers must not block the writer.
                        for pragma in ["journal_mode = WAL", "synchronous = FULL", "busy_timeout = 5000"] {
                            sqlx::query(sqlx::AssertSqlSafe(format!("PRAGMA {pragma}")))
                                .execute(&mut *connection)
                                .await?;
                        }
                    }
                    Ok(())
                })
            })
            .connect_lazy(&url)
            .map_err(unavailable("read its address"))?;
        let catalog = Self { pool, postgres };
        let migrate = async { MIGRATIONS.run(&catalog.pool).await };
        match timeout(STATEMENT_MAX * 3, migrate).await {
            Ok(Ok(())) => Ok(catalog),
            Ok(Err(e)) => Err(CatalogError::Unavailable { doing: "bring its tables up to date", source: Box::new(e) }),
            Err(e) => Err(CatalogError::Unavailable { doing: "bring its tables up to date", source: Box::new(e) }),
        }
    }

    /// Whether it answers. For `archiver check`.
    ///
    /// # Errors
    /// When it does not.
    pub async fn probe(&self) -> Result<&'static str, CatalogError> {
        self.limited("answer", async { sqlx::query("SELECT 1").execute(&self.pool).await }).await?;
        Ok(if self.postgres { "PostgreSQL" } else { "SQLite" })
    }

    /// Runs statements with a limit.
    async fn limited<T>(
        &self,
        doing: &'static str,
        statements: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, CatalogError> {
        match timeout(STATEMENT_MAX, statements).await {
            Ok(result) => result.map_err(unavailable(doing)),
            Err(elapsed) => Err(CatalogError::Unavailable { doing, source: Box::new(elapsed) }),
        }
    }
}

/// Reads a column that was written by us.
fn parsed<T: std::str::FromStr>(column: &'static str, text: &str) -> Result<T, CatalogError> {
    text.parse().map_err(|_| CatalogError::Corrupt { column, what: format!("{text:?}") })
}
