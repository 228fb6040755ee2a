//! Applications: who may ask, with what keys, and where their callbacks go.

use async_trait::async_trait;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use sqlx::any::AnyRow;

use super::{CatalogError, Columns, SqlCatalog, Statement, readable, statement, storable};
use crate::model::ids::ApplicationId;
use crate::model::time::Wallclock;

/// How an application signs its requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ApplicationKind {
    /// Vonage's: a UUID and an RSA key pair, of which the public half is here.
    Unified,
    /// `OpenTok`'s: a numeric API key and a secret.
    Legacy,
}

impl ApplicationKind {
    /// The name in the catalog.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unified => "unified",
            Self::Legacy => "legacy",
        }
    }
}

impl std::str::FromStr for ApplicationKind {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let found = [Self::Unified, Self::Legacy].into_iter().find(|kind| kind.as_str() == text);
        found.ok_or_else(|| format!("no kind of application is called {text:?}"))
    }
}

/// A key that requests are signed with.
#[derive(Debug, Clone)]
pub struct ApplicationKey {
    /// The public key (PEM) of a unified application; the secret of a legacy one.
    pub key: SecretString,
    /// Since when.
    pub created_at: Wallclock,
    /// From then on it is not good any more: another one took its place.
    pub ends_at: Option<Wallclock>,
}

impl ApplicationKey {
    /// Whether requests may be signed with it.
    #[must_use]
    pub fn is_good(&self, now: Wallclock) -> bool {
        self.ends_at.is_none_or(|end| now < end)
    }
}

/// As it stands in the catalog: a secret must be readable there, for requests are checked with it.
#[derive(Serialize, Deserialize)]
struct StoredKey {
    key: String,
    created_at: i64,
    ends_at: Option<i64>,
}

/// An application.
#[derive(Debug, Clone)]
pub struct ApplicationRow {
    /// Its id: a UUID (unified), or a number (legacy).
    pub application: ApplicationId,
    /// How it signs.
    pub kind: ApplicationKind,
    /// What people call it.
    pub name: String,
    /// Its keys, newest first.
    pub keys: Vec<ApplicationKey>,
    /// Where its callbacks go.
    pub callback_url: Option<String>,
    /// What its callbacks are signed with.
    pub callback_secret: Option<SecretString>,
    /// When it was added.
    pub created_at: Wallclock,
    /// When it last changed.
    pub updated_at: Wallclock,
}

const COLUMNS: &str = "application_id, kind, name, keys, callback_url, callback_secret, created_at, updated_at";

fn application_row(row: &AnyRow) -> Result<ApplicationRow, CatalogError> {
    let columns = Columns { row, table: "applications" };
    // The error would quote a secret.
    let keys: Vec<StoredKey> = serde_json::from_str(&columns.text("keys")?)
        .map_err(|_| CatalogError::Corrupt { column: "keys", what: "something that is no list of keys".to_owned() })?;
    let key = |stored: StoredKey| ApplicationKey {
        key: stored.key.into(),
        created_at: Wallclock(stored.created_at),
        ends_at: stored.ends_at.map(Wallclock),
    };
    Ok(ApplicationRow {
        application: columns.parsed("application_id")?,
        kind: columns.parsed("kind")?,
        name: columns.text("name")?,
        keys: keys.into_iter().map(key).collect(),
        callback_url: columns.get("callback_url")?,
        callback_secret: columns.get::<Option<String>>("callback_secret")?.map(Into::into),
        created_at: Wallclock(columns.number("created_at")?),
        updated_at: Wallclock(columns.number("updated_at")?),
    })
}

fn bound(sql: String, application: &ApplicationRow) -> Statement {
    let stored = |key: &ApplicationKey| StoredKey {
        key: key.key.expose_secret().to_owned(),
        created_at: key.created_at.0,
        ends_at: key.ends_at.map(|end| end.0),
    };
    let keys: Vec<StoredKey> = application.keys.iter().map(stored).collect();
    statement(sql)
        .bind(application.application.to_string())
        .bind(application.kind.as_str())
        .bind(storable(&application.name))
        .bind(storable(&serde_json::to_string(&keys).expect("plain data")))
        .bind(application.callback_url.as_deref().map(storable))
        .bind(application.callback_secret.as_ref().map(|secret| storable(secret.expose_secret())))
        .bind(application.created_at.0)
        .bind(application.updated_at.0)
}

/// Applications and shared secrets in the catalog.
#[async_trait]
pub trait ApplicationCatalog: Send + Sync {
    /// Adds an application. Returns whether there was none of its id.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn add_application(&self, application: &ApplicationRow) -> Result<bool, CatalogError>;

    /// Writes a changed application, unless somebody else changed it since `before`. Returns whether it was written.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn change_application(&self, application: &ApplicationRow, before: Wallclock) -> Result<bool, CatalogError>;

    /// An application.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn application(&self, application: &ApplicationId) -> Result<Option<ApplicationRow>, CatalogError>;

    /// All applications, by id.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn applications(&self) -> Result<Vec<ApplicationRow>, CatalogError>;

    /// A secret that all processes share: `new` if there was none of this name, else the one that is there.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn shared_secret(&self, name: &str, new: &SecretString) -> Result<SecretString, CatalogError>;
}

#[async_trait]
impl ApplicationCatalog for SqlCatalog {
    async fn add_application(&self, application: &ApplicationRow) -> Result<bool, CatalogError> {
        let sql = format!(
            "INSERT INTO applications ({COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING"
        );
        Ok(self.execute("add an application", bound(sql, application)).await? == 1)
    }

    async fn change_application(&self, application: &ApplicationRow, before: Wallclock) -> Result<bool, CatalogError> {
        let sql = "UPDATE applications SET kind = $2, name = $3, keys = $4, callback_url = $5, callback_secret = $6, \
                   created_at = $7, updated_at = $8 WHERE application_id = $1 AND updated_at = $9";
        let update = bound(sql.to_owned(), application).bind(before.0);
        Ok(self.execute("change an application", update).await? == 1)
    }

    async fn application(&self, application: &ApplicationId) -> Result<Option<ApplicationRow>, CatalogError> {
        let select = statement(format!("SELECT {COLUMNS} FROM applications WHERE application_id = $1"))
            .bind(application.to_string());
        self.row("find an application", select).await?.as_ref().map(application_row).transpose()
    }

    async fn applications(&self) -> Result<Vec<ApplicationRow>, CatalogError> {
        let select = statement(format!("SELECT {COLUMNS} FROM applications ORDER BY application_id"));
        Ok(readable(&self.rows("list applications", select).await?, application_row))
    }

    async fn shared_secret(&self, name: &str, new: &SecretString) -> Result<SecretString, CatalogError> {
        let insert = statement("INSERT INTO secrets (name, value) VALUES ($1, $2) ON CONFLICT DO NOTHING")
            .bind(name.to_owned())
            .bind(new.expose_secret().to_owned());
        self.execute("keep a secret", insert).await?;
        let select = statement("SELECT value FROM secrets WHERE name = $1").bind(name.to_owned());
        let row = self.row("read a secret", select).await?;
        let gone = || CatalogError::Corrupt { column: "value", what: "no secret of that name".to_owned() };
        Ok(Columns { row: &row.ok_or_else(gone)?, table: "secrets" }.text("value")?.into())
    }
}
