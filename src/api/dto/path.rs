//! Parameters in the paths of requests.

use serde::Deserialize;
use utoipa::IntoParams;

use super::lenient::{parsed, parsed_option};
use crate::model::ids::{ArchiveId, SessionId};

/// The application that the token is of.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub struct ProjectPath {
    /// The application's UUID, or the project's API key.
    // Absent in paths of sessions: the token alone says the application.
    #[serde(default, deserialize_with = "parsed_option")]
    #[param(value_type = String, required = true)]
    pub project: Option<String>,
}

/// An archive.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub struct ArchivePath {
    /// The archive's id.
    #[serde(deserialize_with = "parsed")]
    #[param(value_type = uuid::Uuid)]
    pub archive: ArchiveId,
}

/// A session.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub struct SessionPath {
    /// The session's id.
    #[serde(deserialize_with = "parsed")]
    #[param(value_type = String)]
    pub session: SessionId,
}

/// A stream of a session.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub struct StreamPath {
    /// The session's id.
    #[serde(deserialize_with = "parsed")]
    #[param(value_type = String)]
    pub session: SessionId,
    /// The stream's id.
    // Parsed by the handler, which answers with a status of its own if it is no id.
    #[param(value_type = uuid::Uuid)]
    pub stream: String,
}

/// A callback.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub struct CallbackPath {
    /// The callback's id.
    #[param(value_type = uuid::Uuid)]
    pub callback: String,
}
