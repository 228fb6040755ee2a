//! Extractors of handlers: the caller, path, query and body, the address that the caller used.

use std::marker::PhantomData;
use std::net::SocketAddr;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{ConnectInfo, FromRequest, FromRequestParts, RawPathParams, Request};
use axum::http::header;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;

use super::caller;
use super::caller::Caller;
use super::dto::lenient::{JsonRequest, QueryRequest, Texts, read_json, read_query};
use super::dto::path::ProjectPath;
use super::dto::sessions::SessionForm;
use super::error::ApiError;
use super::links::Base;
use super::state::Shared;
use crate::model::time::Wallclock;

/// The parameters in a request's path.
#[derive(Debug)]
pub struct PathParams<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<Shared> for PathParams<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Shared) -> Result<Self, ApiError> {
        let given = RawPathParams::from_request_parts(parts, api).await;
        let given = given.map_err(|_| ApiError::invalid("the address is not UTF-8"))?;
        let given = Texts(given.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect());
        let read = given.read();
        read.map(Self).map_err(|e| ApiError::invalid(format!("{} in the address{}", e.field, e.what)))
    }
}

/// The query of an SDK.
#[derive(Debug)]
pub struct QueryParams<T>(pub T);

impl<T: QueryRequest> FromRequestParts<Shared> for QueryParams<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Shared) -> Result<Self, ApiError> {
        read_query(parts.uri.query().unwrap_or_default()).map(Self)
    }
}

/// The query of an operator: empty parameters count as absent, and the first of several with one name counts.
#[derive(Debug)]
pub struct OperatorQuery<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<Shared> for OperatorQuery<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Shared) -> Result<Self, ApiError> {
        let mut first = Texts::default();
        for (name, value) in url::form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes()) {
            if !value.is_empty() {
                first.0.entry(name.into_owned()).or_insert_with(|| value.into_owned());
            }
        }
        first.read().map(Self).map_err(|e| ApiError::invalid(format!("{}{}", e.field, e.what)))
    }
}

/// A JSON body, whatever its content type. A handler reads it after it found the resource, so that 404 comes before 400.
#[derive(Debug)]
pub struct JsonBody<T> {
    bytes: Bytes,
    request: PhantomData<fn() -> T>,
}

impl<T: JsonRequest> JsonBody<T> {
    /// Reads and checks the request.
    ///
    /// # Errors
    /// 400, with the field and its problem.
    pub fn read(&self) -> Result<T::Checked, ApiError> {
        read_json::<T>(&self.bytes)
    }
}

impl<T> FromRequest<Shared> for JsonBody<T> {
    type Rejection = BytesRejection;

    async fn from_request(request: Request, api: &Shared) -> Result<Self, BytesRejection> {
        Ok(Self { bytes: Bytes::from_request(request, api).await?, request: PhantomData })
    }
}

/// A form, whatever its content type.
impl FromRequest<Shared> for SessionForm {
    type Rejection = Response;

    async fn from_request(request: Request, api: &Shared) -> Result<Self, Response> {
        let bytes = Bytes::from_request(request, api).await.map_err(BytesRejection::into_response)?;
        Self::read(&bytes).map_err(ApiError::into_response)
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
        let PathParams(ProjectPath { project }) = PathParams::from_request_parts(parts, api).await?;
        if let Some(project) = project {
            caller.owns(&project)?;
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
