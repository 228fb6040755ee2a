//! A notice's row.

use serde::Serialize;
use sqlx::any::AnyRow;

use super::{ArchiveRow, ArchiveStatus, CatalogError, Columns};
use crate::model::ids::{ApplicationId, ArchiveId, NoticeId};
use crate::model::time::Wallclock;

macro_rules! words {
    ($what:literal: $($(#[$doc:meta])* $enum:ident { $($(#[$case_doc:meta])* $case:ident = $word:literal,)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(rename_all = "lowercase")]
        pub enum $enum {
            $($(#[$case_doc])* $case,)*
        }

        impl $enum {
            /// The name in the catalog.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$case => $word,)* }
            }
        }

        impl std::str::FromStr for $enum {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($word => Ok(Self::$case),)*
                    _ => Err(format!(concat!("no ", $what, " is called {:?}"), text)),
                }
            }
        }
    )*};
}

words! { "target of notices":
    /// Who is told.
    NoticeTarget {
        /// The application, at its callback URL.
        Callback = "callback",
        /// Whoever listens at the broker.
        Event = "event",
    }
}

words! { "state of a notice":
    /// Where a notice stands.
    NoticeState {
        /// It is to be told.
        Waiting = "waiting",
        /// It was told.
        Delivered = "delivered",
        /// It was given up; it can be sent again.
        Undelivered = "undelivered",
    }
}

/// A notice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NoticeRow {
    /// Its id: the same however often it is told.
    pub notice: NoticeId,
    /// The archive.
    pub archive: ArchiveId,
    /// Who is told.
    pub target: NoticeTarget,
    /// Which change of the archive it tells of, from 1.
    pub number: i64,
    /// Whose archive.
    pub application: ApplicationId,
    /// What the archive became.
    pub status: ArchiveStatus,
    /// The archive as it was then.
    pub told: ArchiveRow,
    /// Where it stands.
    pub state: NoticeState,
    /// How often it failed since it was first tried.
    pub failures: u32,
    /// When it was first tried; `None` before.
    pub first_at: Option<Wallclock>,
    /// When it is told next; of one that is being told: until when nobody else does.
    pub due_at: Wallclock,
    /// What went wrong last.
    pub detail: Option<String>,
    /// When the archive changed.
    pub created_at: Wallclock,
    /// When this last changed.
    pub updated_at: Wallclock,
}

pub(super) const COLUMNS: &str = "archive_id, target, number, application_id, status, archive, state, failures, first_at, due_at, \
     detail, created_at, updated_at";

pub(super) fn notice_row(row: &AnyRow) -> Result<NoticeRow, CatalogError> {
    let columns = Columns { row, table: "notices" };
    let (archive, target, number): (_, NoticeTarget, _) = key(&columns)?;
    let told = serde_json::from_str(&columns.text("archive")?);
    let first_at = columns.number("first_at")?;
    Ok(NoticeRow {
        notice: NoticeId::of(archive, target.as_str(), number),
        archive,
        target,
        number,
        application: columns.parsed("application_id")?,
        status: columns.parsed("status")?,
        told: told.map_err(|e| CatalogError::Corrupt { column: "archive", what: e.to_string() })?,
        state: columns.parsed("state")?,
        failures: u32::try_from(columns.number("failures")?).unwrap_or(u32::MAX),
        first_at: (first_at != 0).then_some(Wallclock(first_at)),
        due_at: Wallclock(columns.number("due_at")?),
        detail: columns.get("detail")?,
        created_at: Wallclock(columns.number("created_at")?),
        updated_at: Wallclock(columns.number("updated_at")?),
    })
}

pub(super) fn key(columns: &Columns<'_>) -> Result<(ArchiveId, NoticeTarget, i64), CatalogError> {
    Ok((columns.parsed("archive_id")?, columns.parsed("target")?, columns.number("number")?))
}
