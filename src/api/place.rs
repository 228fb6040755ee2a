//! Sessions at the media router: where a new one's room will be, and who is in a room now.

use std::net::IpAddr;
use std::time::Duration;

use tokio::time::timeout;

use super::error::ApiError;
use super::sessions::SessionStream;
use crate::catalog::SessionRow;
use crate::event::{RoomAccess, RouterRoom};
use crate::ids::{Region, SessionId, StreamId};
use crate::router::{RoomEvent, RouterError, StreamInfo, VideoType};

/// A router tells who is in a room within this.
const LOOK_MAX: Duration = Duration::from_secs(5);

impl super::Api {
    /// The region and the room of a new session.
    pub(super) fn place(
        &self,
        session: &SessionId,
        _location: Option<IpAddr>,
    ) -> Result<(Region, RouterRoom), ApiError> {
        let router = self.settings.routers.first().ok_or_else(|| {
            ApiError::new(axum::http::StatusCode::SERVICE_UNAVAILABLE, "there is no media router in the configuration")
        })?;
        let region = router.region.clone().unwrap_or_else(|| self.settings.worker.region.clone());
        let room = session.as_str().parse().map_err(|_| ApiError::invalid("the session's id cannot be a room's"))?;
        Ok((region, RouterRoom { name: router.name.clone(), room, access: RoomAccess::Shared }))
    }

    /// How many clients are in a session now.
    pub(super) async fn clients(&self, session: &SessionRow) -> Result<usize, ApiError> {
        Ok(self.look(session).await?.0)
    }

    /// The streams that are published in a session now.
    pub(super) async fn streams(&self, session: &SessionRow) -> Result<Vec<SessionStream>, ApiError> {
        let (_, found) = self.look(session).await?;
        Ok(found.iter().map(|info| stream(session, info)).collect())
    }

    async fn look(&self, session: &SessionRow) -> Result<(usize, Vec<StreamInfo>), ApiError> {
        let Some(router) = session.router.as_ref() else { return Ok((0, Vec::new())) };
        let Some(at) = self.routers.get(&router.name) else {
            return Err(ApiError::new(
                axum::http::StatusCode::SERVICE_UNAVAILABLE,
                "the session's media router is not in the configuration",
            ));
        };
        let looking = async {
            let mut room = at.join(&router.room, "api").await?;
            let (mut clients, mut streams) = (0, Vec::new());
            while let Some(event) = room.next_event().await {
                match event {
                    RoomEvent::StreamPresent(info) => streams.push(info),
                    RoomEvent::Clients { count } => {
                        clients = count;
                        break;
                    }
                    _ => {}
                }
            }
            room.leave().await;
            Ok((clients, streams))
        };
        match timeout(LOOK_MAX, looking).await {
            Ok(Ok(found)) => Ok(found),
            // Its first client has not come yet.
            Ok(Err(RouterError::RoomNotFound { .. })) => Ok((0, Vec::new())),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => {
                Err(ApiError::new(axum::http::StatusCode::SERVICE_UNAVAILABLE, "the media router does not answer"))
            }
        }
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
