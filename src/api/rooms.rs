//! Sessions at the media router: where a new one's room will be, and who is in a room now.

use std::net::IpAddr;

use axum::http::StatusCode;

use super::error::ApiError;
use super::handlers::sessions::SessionStream;
use crate::catalog::SessionRow;
use crate::config::RouterSection;
use crate::model::ids::{Region, RouterName, SessionId, StreamId};
use crate::model::media::VideoType;
use crate::model::session::RouterRoom;
use crate::router::{MediaRouter, RouterError, StreamInfo};
use crate::session::access::access_at;
use crate::session::room::room_of;

fn unavailable(message: &str) -> ApiError {
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message)
}

impl super::state::Api {
    /// The region and the room of a new session: those nearest to where its first client is said to be.
    pub(super) fn place(
        &self,
        session: &SessionId,
        location: Option<IpAddr>,
    ) -> Result<(Region, RouterRoom), ApiError> {
        let choice = self.region_selector.choose(session, location, |address| self.geo.locate(address));
        let choice = choice.ok_or_else(|| unavailable("there is no media router in the configuration"))?;
        let router = self.section(&choice.router)?;
        let room = room_of(session, router.string_ids);
        Ok((choice.region, RouterRoom { name: choice.router, room, access: access_at(router) }))
    }

    /// A router of the configuration.
    pub(super) fn section(&self, name: &RouterName) -> Result<&RouterSection, ApiError> {
        let found = self.settings.routers.iter().find(|router| router.name == *name);
        found.ok_or_else(|| unavailable("the session's media router is not in the configuration any more"))
    }

    /// A session's router and room. A relayed session has none.
    pub(super) fn room<'s>(
        &self,
        session: &'s SessionRow,
    ) -> Result<Option<(&dyn MediaRouter, &'s RouterRoom)>, ApiError> {
        let Some(place) = session.router.as_ref() else { return Ok(None) };
        self.section(&place.name)?;
        Ok(self.routers.get(&place.name).map(|router| (router.as_ref(), place)))
    }

    /// How many clients are in a session now.
    pub(super) async fn clients(&self, session: &SessionRow) -> Result<usize, ApiError> {
        let Some((router, place)) = self.room(session)? else { return Ok(0) };
        // Without a room its first client has not come yet.
        Ok(there(router.participants(&place.room).await)?.map_or(0, |clients| clients.len()))
    }

    /// The streams that are published in a session now.
    pub(super) async fn streams(&self, session: &SessionRow) -> Result<Vec<SessionStream>, ApiError> {
        let Some((router, place)) = self.room(session)? else { return Ok(Vec::new()) };
        let found = there(router.streams(place).await)?.unwrap_or_default();
        Ok(found.iter().map(|info| stream(session, info)).collect())
    }
}

/// A room that is not there is nobody.
fn there<T>(found: Result<T, RouterError>) -> Result<Option<T>, RouterError> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(RouterError::RoomNotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn stream(session: &SessionRow, info: &StreamInfo) -> SessionStream {
    let id = StreamId::of_router(&session.session, info.stream_id.as_deref().unwrap_or(&info.router_id));
    SessionStream {
        id: id.to_string(),
        video_type: match info.video_type {
            VideoType::Camera => "camera",
            VideoType::Screen => "screen",
            VideoType::Custom => "custom",
        },
        name: info.name.clone().unwrap_or_default(),
        layout_class_list: session.classes.get(&id).cloned().unwrap_or_default(),
    }
}
