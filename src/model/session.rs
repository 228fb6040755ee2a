//! A session's modes, and its room at a media router.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ids::{RoomId, RouterName};

/// Where the media of a session flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MediaMode {
    /// Through a media router.
    Routed,
    /// Between the clients.
    Relayed,
}

/// When a session is archived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ArchiveMode {
    /// When somebody asks for it.
    Manual,
    /// By itself.
    Always,
}

/// Where the session's room is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RouterRoom {
    /// The router's name in the configuration: address and secrets are there, never in an event.
    pub name: RouterName,
    /// The room at that router.
    pub room: RoomId,
    /// How one gets in.
    #[serde(default, skip_serializing_if = "RoomAccess::is_shared")]
    pub access: RoomAccess,
}

impl RouterRoom {
    /// A room that is entered with the pin of its router's rooms, if they have one.
    #[must_use]
    pub const fn shared(name: RouterName, room: RoomId) -> Self {
        Self { name, room, access: RoomAccess::Shared }
    }
}

/// How one gets into a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RoomAccess {
    /// With the pin of the router's rooms, if the configuration has one.
    #[default]
    Shared,
    /// With a pin of its own, made of the router's `room_key`: a room that this program created.
    Derived,
}

impl RoomAccess {
    #[allow(clippy::trivially_copy_pass_by_ref)]
    const fn is_shared(&self) -> bool {
        matches!(self, Self::Shared)
    }
}
