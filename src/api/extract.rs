//! What handlers take from a request: the caller, the parts of the path, the address that the caller used.

use std::collections::HashMap;
use std::net::SocketAddr;

use axum::extract::{ConnectInfo, FromRequestParts, RawPathParams};
use axum::http::header;
use axum::http::request::Parts;

use super::caller;
use super::caller::Caller;
use super::error::ApiError;
use super::links::Base;
use super::state::Shared;
use crate::model::ids::{ArchiveId, SessionId, StreamId};
use crate::model::time::Wallclock;

/// The named parts of a path.
#[derive(Debug)]
pub struct Segments(HashMap<String, String>);

impl Segments {
    fn part<T: std::str::FromStr<Err: std::fmt::Display>>(&self, name: &str) -> Result<T, ApiError> {
        let text = self.0.get(name).map_or("", String::as_str);
        text.parse().map_err(|e| ApiError::invalid(format!("{name} in the address: {e}")))
    }

    /// `{archive}`.
    pub fn archive(&self) -> Result<ArchiveId, ApiError> {
        self.part("archive")
    }

    /// `{session}`.
    pub fn session(&self) -> Result<SessionId, ApiError> {
        self.part("session")
    }

    /// `{stream}`.
    pub fn stream(&self) -> Result<StreamId, ApiError> {
        self.part("stream")
    }

    /// Another one, as it stands there.
    pub fn text(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }
}

impl FromRequestParts<Shared> for Segments {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Shared) -> Result<Self, ApiError> {
        let params = RawPathParams::from_request_parts(parts, api).await;
        let params = params.map_err(|_| ApiError::invalid("the address is not UTF-8"))?;
        Ok(Self(params.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()))
    }
}

/// Who asks: counted, and the project in the path is theirs.
impl FromRequestParts<Shared> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Shared) -> Result<Self, ApiError> {
        let caller = match caller::caller(api.catalog.as_ref(), &parts.headers, Wallclock::now()).await {
            Ok(caller) => caller,
            Err(refused) => {
                Stranger::of(parts).counted(api)?;
                return Err(refused);
            }
        };
        api.limits.application(&caller.application.application)?;
        let path = Segments::from_request_parts(parts, api).await?;
        if let Some(project) = path.0.get("project") {
            caller.owns(project)?;
        }
        Ok(caller)
    }
}

/// Somebody who is not let in yet.
#[derive(Debug)]
pub struct Stranger(Option<std::net::IpAddr>);

impl Stranger {
    fn of(parts: &Parts) -> Self {
        Self(parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| peer.ip()))
    }

    /// Counts a request that is not let in.
    pub fn counted(&self, api: &Shared) -> Result<(), ApiError> {
        self.0.map_or(Ok(()), |address| api.limits.stranger(address))
    }
}

impl FromRequestParts<Shared> for Stranger {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &Shared) -> Result<Self, Self::Rejection> {
        Ok(Self::of(parts))
    }
}

/// An operator.
#[derive(Debug)]
pub struct Operator;

impl FromRequestParts<Shared> for Operator {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Shared) -> Result<Self, ApiError> {
        if caller::is_operator(&parts.headers, api.settings.api.operator_token.as_ref()) {
            return Ok(Self);
        }
        Stranger::of(parts).counted(api)?;
        Err(ApiError::forbidden("this needs the operators' token: `Authorization: Bearer` with `api.operator_token`"))
    }
}

impl FromRequestParts<Shared> for Base {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, api: &Shared) -> Result<Self, Self::Rejection> {
        let host = parts.headers.get(header::HOST).and_then(|host| host.to_str().ok());
        Ok(Self(api.base(host)))
    }
}
