//! Clients: from the token that an SDK made to the room at the media router.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::api::caller::{bearer, keys};
use crate::api::dto::path::SessionPath;
use crate::api::error::{ApiError, ErrorBody, NOT_ROUTED};
use crate::api::extract::{PathParams, UnauthenticatedClient};
use crate::api::state::Shared;
use crate::auth::client_token::{ClientToken, Role};
use crate::auth::token::TokenError;
use crate::model::ids::StreamId;
use crate::model::time::Wallclock;
use crate::session::access::{ClientAccess, client_access, router_value};
use crate::session::identity::Identity;
use crate::session::room::random_id;

/// Longest validity of the token for Janus, which never outlives the client's token. A client that stays longer joins again.
const ACCESS_MAX: Duration = Duration::from_secs(24 * 3600);

/// Where a client finds its session, and what it says there.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Joined {
    /// The session.
    pub session_id: String,
    /// What the token lets it do. The media router knows no roles: a client of the platform's own keeps to it.
    pub role: Role,
    /// The id of the stream that it will publish. For a second one, such as a screen, it asks again.
    pub stream_id: String,
    /// The `id` with which it joins the room: a text, or a number where the router has numbers. It is new at each join, and `display` is
    /// signed for it.
    #[schema(value_type = Object)]
    pub feed_id: Value,
    /// What it gives as `display` when it joins the room. It may add `name` and `videoType` (`camera`, `screen`, `custom`).
    pub display: String,
    /// Where the room is: `url`, `room`, and as far as the router needs them `pin`, `token`, `expires`.
    #[schema(value_type = Object)]
    pub router: ClientAccess,
}

/// `POST /session/{session}/join`: ours. The token is a client's, as the SDKs' token methods make it.
///
/// The token is valid until `exp`, which may be at most 30 days after `iat`; without `exp`, for 24 hours after `iat`.
#[utoipa::path(
    post, path = "/session/{session}/join", tag = "clients", operation_id = "joinSession",
    params(SessionPath),
    responses((status = 200, body = Joined), (status = "4XX", body = ErrorBody)),
)]
pub async fn join(
    State(api): State<Shared>,
    client: UnauthenticatedClient,
    headers: HeaderMap,
    path: Result<PathParams<SessionPath>, ApiError>,
) -> Result<Json<Joined>, ApiError> {
    let now = Wallclock::now();
    let token = match verified(&api, &headers, now).await {
        Ok(token) => token,
        Err(refused) => {
            client.count_request(&api)?;
            return Err(refused);
        }
    };
    // Only now: a request with a bad token counts against its address, whatever its path.
    let PathParams(path) = path?;
    if path.session != token.session {
        client.count_request(&api)?;
        return Err(ApiError::forbidden("the session in the address is not the one that the token is of"));
    }
    let Some(session) = api.catalog.session(&token.application, &token.session).await? else {
        // A counter for each unknown session would be no limit: such requests count against the address.
        client.count_request(&api)?;
        return Err(ApiError::not_found("there is no such session"));
    };
    api.limits.client(&session.session)?;
    let Some((router, place)) = api.room(&session)? else {
        return Err(ApiError::conflict(NOT_ROUTED, "the session is relayed: its clients connect to each other"));
    };
    router.create_room(place, &session.session).await?;
    let stream: StreamId = StreamId::from_uuid(uuid::Uuid::new_v4());
    if !token.classes.is_empty() {
        // Missing layout classes must not keep a client out.
        if let Err(error) = api.give_classes(session.clone(), &[(stream, token.classes.clone())]).await {
            tracing::warn!(session = %session.session, %stream, "joins without its layout classes: {}", error.message);
        }
    }
    let expires = token.validity.expires_at().min(now + ACCESS_MAX);
    let section = api.section(&place.name)?;
    let access = client_access(section, place, expires);
    let feed = random_id("", section.string_ids);
    let mut display = json!({ "streamId": stream, "connectionData": token.connection_data });
    if let Some(room_key) = &section.room_key {
        let (stream, connection_data) = (stream.to_string(), token.connection_data.as_str());
        let identity = Identity { room: &place.room, feed: &feed, stream: &stream, connection_data };
        display["signature"] = identity.sign(room_key).into();
    }
    Ok(Json(Joined {
        session_id: session.session.to_string(),
        role: token.role,
        stream_id: stream.to_string(),
        feed_id: router_value(section, &feed),
        display: display.to_string(),
        router: access,
    }))
}

async fn verified(api: &Shared, headers: &HeaderMap, now: Wallclock) -> Result<ClientToken, ApiError> {
    let token = ClientToken::parse(bearer(headers)?)?;
    let application = api.catalog.application(&token.application).await?.ok_or(TokenError::Unknown)?;
    token.verify(&keys(&application, now), now)?;
    Ok(token)
}
