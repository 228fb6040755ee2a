//! Sessions that the API made.

use std::collections::BTreeMap;
use std::net::IpAddr;

use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::any::AnyRow;

use super::job_rows::RECORDING;
use super::{CatalogError, Columns, SqlCatalog, parsed, readable, statement, storable};
use crate::model::archive_options::ArchiveOptions;
use crate::model::ids::{ApplicationId, Region, RoomId, RouterName, SessionId, StreamId};
use crate::model::session::{ArchiveMode, MediaMode, RouterRoom};
use crate::model::time::Wallclock;

/// Layout classes by stream.
pub type Classes = BTreeMap<StreamId, Vec<String>>;

/// A session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRow {
    /// Its id.
    pub session: SessionId,
    /// Whose it is.
    pub application: ApplicationId,
    /// Where its media flows.
    pub media_mode: MediaMode,
    /// When it is archived.
    pub archive_mode: ArchiveMode,
    /// Media is encrypted from client to client: it cannot be archived.
    pub e2ee: bool,
    /// Where its first client is said to be.
    pub location: Option<IpAddr>,
    /// The region whose workers archive it.
    pub region: Region,
    /// Where its room is, or will be. A relayed session has none.
    pub router: Option<RouterRoom>,
    /// What its automatic archives are like.
    pub archive: ArchiveOptions,
    /// The newest start that was told of; 0 before the first.
    pub conversation: i64,
    /// Layout classes that streams were given.
    pub classes: Classes,
    /// When it was created.
    pub created_at: Wallclock,
}

const COLUMNS: &str = "session_id, application_id, media_mode, archive_mode, e2ee, location, region, router, room, \
     room_access, archive, conversation, classes, created_at";

/// A word of an enum, as JSON has it.
fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => unreachable!("these enums are words"),
    }
}

fn of_word<T: DeserializeOwned>(column: &'static str, word: String) -> Result<T, CatalogError> {
    let corrupt = |e: serde_json::Error| CatalogError::Corrupt { column, what: e.to_string() };
    serde_json::from_value(serde_json::Value::String(word)).map_err(corrupt)
}

fn of_json<T: DeserializeOwned>(column: &'static str, text: &str) -> Result<T, CatalogError> {
    serde_json::from_str(text).map_err(|e| CatalogError::Corrupt { column, what: e.to_string() })
}

fn router_room(columns: &Columns<'_>) -> Result<Option<RouterRoom>, CatalogError> {
    let (router, room): (Option<String>, Option<String>) = (columns.get("router")?, columns.get("room")?);
    let (Some(router), Some(room)) = (router, room) else { return Ok(None) };
    let access: Option<String> = columns.get("room_access")?;
    Ok(Some(RouterRoom {
        name: parsed("router", &router)?,
        room: parsed("room", &room)?,
        access: access.map(|word| of_word("room_access", word)).transpose()?.unwrap_or_default(),
    }))
}

fn session_row(row: &AnyRow) -> Result<SessionRow, CatalogError> {
    let columns = Columns { row, table: "sessions" };
    let location: Option<String> = columns.get("location")?;
    Ok(SessionRow {
        session: columns.parsed("session_id")?,
        application: columns.parsed("application_id")?,
        media_mode: of_word("media_mode", columns.text("media_mode")?)?,
        archive_mode: of_word("archive_mode", columns.text("archive_mode")?)?,
        e2ee: columns.number("e2ee")? != 0,
        location: location.map(|l| parsed("location", &l)).transpose()?,
        region: columns.parsed("region")?,
        router: router_room(&columns)?,
        archive: of_json("archive", &columns.text("archive")?)?,
        conversation: columns.number("conversation")?,
        classes: of_json("classes", &columns.text("classes")?)?,
        created_at: Wallclock(columns.number("created_at")?),
    })
}

/// Sessions in the catalog.
#[async_trait]
pub trait SessionCatalog: Send + Sync {
    /// Adds a session.
    ///
    /// # Errors
    /// [`CatalogError::Conflict`] when its id or its room is another's; else when the catalog is away.
    async fn add_session(&self, session: &SessionRow) -> Result<(), CatalogError>;

    /// A session of an application. One of another application is as if it were not there.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn session(
        &self,
        application: &ApplicationId,
        session: &SessionId,
    ) -> Result<Option<SessionRow>, CatalogError>;

    /// The session whose room this is.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn session_of_room(&self, router: &RouterName, room: &RoomId) -> Result<Option<SessionRow>, CatalogError>;

    /// The sessions with a room at a router that are being recorded.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn recorded_sessions(&self, router: &RouterName) -> Result<Vec<SessionRow>, CatalogError>;

    /// Numbers a new conversation of a session, if nobody else has since `before`. Returns whether it was so.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn begin_conversation(&self, session: &SessionId, before: i64) -> Result<bool, CatalogError>;

    /// Keeps the layout classes of a session's streams, if nobody else has changed them since `before`. Returns whether it
    /// was so.
    ///
    /// # Errors
    /// When the catalog is away.
    async fn keep_classes(&self, before: &SessionRow, classes: &Classes) -> Result<bool, CatalogError>;
}

#[async_trait]
impl SessionCatalog for SqlCatalog {
    async fn add_session(&self, session: &SessionRow) -> Result<(), CatalogError> {
        let router = session.router.as_ref();
        let insert = statement(format!(
            "INSERT INTO sessions ({COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)"
        ))
        .bind(session.session.to_string())
        .bind(session.application.to_string())
        .bind(word(&session.media_mode))
        .bind(word(&session.archive_mode))
        .bind(i64::from(session.e2ee))
        .bind(session.location.map(|l| l.to_string()))
        .bind(session.region.to_string())
        .bind(router.map(|r| r.name.to_string()))
        .bind(router.map(|r| r.room.to_string()))
        .bind(router.map(|r| word(&r.access)))
        .bind(storable(&serde_json::to_string(&session.archive).expect("plain data")))
        .bind(session.conversation)
        .bind(serde_json::to_string(&session.classes).expect("plain data"))
        .bind(session.created_at.0);
        self.execute("add a session", insert).await.map(drop)
    }

    async fn session(
        &self,
        application: &ApplicationId,
        session: &SessionId,
    ) -> Result<Option<SessionRow>, CatalogError> {
        let select = statement(format!("SELECT {COLUMNS} FROM sessions WHERE session_id = $1 AND application_id = $2"))
            .bind(session.to_string())
            .bind(application.to_string());
        self.row("find a session", select).await?.as_ref().map(session_row).transpose()
    }

    async fn session_of_room(&self, router: &RouterName, room: &RoomId) -> Result<Option<SessionRow>, CatalogError> {
        let select = statement(format!("SELECT {COLUMNS} FROM sessions WHERE router = $1 AND room = $2"))
            .bind(router.to_string())
            .bind(room.to_string());
        self.row("find a room's session", select).await?.as_ref().map(session_row).transpose()
    }

    async fn recorded_sessions(&self, router: &RouterName) -> Result<Vec<SessionRow>, CatalogError> {
        let select = statement(format!(
            "SELECT {COLUMNS} FROM sessions WHERE router = $1 AND session_id IN (SELECT session_id FROM jobs WHERE state IN {RECORDING})"
        ))
        .bind(router.to_string());
        Ok(readable(&self.rows("list the sessions that are recorded", select).await?, session_row))
    }

    async fn begin_conversation(&self, session: &SessionId, before: i64) -> Result<bool, CatalogError> {
        let update = statement("UPDATE sessions SET conversation = $1 WHERE session_id = $2 AND conversation = $3")
            .bind(before + 1)
            .bind(session.to_string())
            .bind(before);
        Ok(self.execute("begin a conversation", update).await? == 1)
    }

    async fn keep_classes(&self, before: &SessionRow, classes: &Classes) -> Result<bool, CatalogError> {
        let json = |classes: &Classes| serde_json::to_string(classes).expect("plain data");
        let update = statement("UPDATE sessions SET classes = $1 WHERE session_id = $2 AND classes = $3")
            .bind(json(classes))
            .bind(before.session.to_string())
            .bind(json(&before.classes));
        Ok(self.execute("keep layout classes", update).await? == 1)
    }
}
