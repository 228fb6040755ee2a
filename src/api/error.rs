//! Errors in the form that the SDKs of Vonage and `OpenTok` read: a JSON object with `code`, `message` and `description`.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use crate::catalog::CatalogError;
use crate::job::change::DesireError;
use crate::model::fault::{Blame, Fault, HasFault, Retry, chain};
use crate::router::RouterError;
use crate::store::StoreError;

/// Vonage's code for a session that is being archived already.
pub const ALREADY_ARCHIVING: i64 = 15001;
/// Vonage's code for stopping an archive that is not running.
pub const NOT_RUNNING: i64 = 15002;
/// Vonage's code for deleting an archive that is not finished.
pub const NOT_DELETABLE: i64 = 15004;
/// Vonage's code for archiving a relayed session.
pub const NOT_ROUTED: i64 = 15008;
/// Vonage's code for an invalid token.
pub const UNAUTHORIZED: i64 = 10002;

/// The body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ErrorBody {
    /// One of Vonage's codes where it has one, else the HTTP status.
    pub code: i64,
    /// What is wrong, and what to do.
    pub message: String,
    /// The same: some SDKs read this one.
    pub description: String,
}

/// An answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// The HTTP status.
    pub status: StatusCode,
    /// One of Vonage's codes, or the status.
    pub code: i64,
    /// What is wrong, and what to do.
    pub message: String,
}

impl ApiError {
    /// With the status as its code.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, code: i64::from(status.as_u16()), message: message.into() }
    }

    /// 400.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 403, for invalid credentials of every kind.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self { code: UNAUTHORIZED, ..Self::new(StatusCode::FORBIDDEN, message) }
    }

    /// 404.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// 409, with one of Vonage's codes.
    pub fn conflict(code: i64, message: impl Into<String>) -> Self {
        Self { code, ..Self::new(StatusCode::CONFLICT, message) }
    }

    /// The answer for a fault. Faults that the client did not cause are described only by kind: the text could contain internals.
    fn of_fault(fault: Fault, message: String) -> Self {
        use crate::model::fault::FaultKind::{Busy, Conflict, NotFound, RoomNotFound};
        match fault.kind {
            NotFound | RoomNotFound => Self::not_found(message),
            Conflict => Self::new(StatusCode::CONFLICT, message),
            Busy => Self::new(StatusCode::TOO_MANY_REQUESTS, message),
            _ if fault.blame == Blame::Request => Self::invalid(message),
            kind if fault.retry == Retry::Never || fault.blame == Blame::Ours => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, format!("{kind}: the service's log says more"))
            }
            kind => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, format!("{kind}: try again in a moment; nothing was lost"))
            }
        }
    }

    /// The answer for an error. Server errors are logged.
    pub fn of(error: &impl HasFault) -> Self {
        let fault = error.fault();
        let answer = Self::of_fault(fault, error.to_string());
        if answer.status.is_server_error() {
            tracing::warn!(fault.kind = %fault.kind, "a request cannot be answered: {}", chain(error));
        }
        answer
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let retry_after = matches!(self.status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS);
        let body = ErrorBody { code: self.code, description: self.message.clone(), message: self.message };
        let mut response = (self.status, Json(body)).into_response();
        if retry_after {
            response.headers_mut().insert(axum::http::header::RETRY_AFTER, axum::http::HeaderValue::from_static("1"));
        }
        response
    }
}

macro_rules! answers {
    ($($error:ty),*) => {$(
        impl From<$error> for ApiError {
            fn from(error: $error) -> Self {
                Self::of(&error)
            }
        }
    )*};
}
answers!(CatalogError, StoreError, DesireError, RouterError);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fault::FaultKind;

    #[test]
    fn a_fault_is_told_as_far_as_it_is_the_callers() {
        for (kind, status, told) in [
            (FaultKind::NotFound, 404, true),
            (FaultKind::Conflict, 409, true),
            (FaultKind::Busy, 429, true),
            (FaultKind::RequestInvalid, 400, true),
            (FaultKind::RoomNotFound, 404, true),
            (FaultKind::CatalogUnavailable, 503, false),
            (FaultKind::StoreUnavailable, 503, false),
            (FaultKind::RouterUnavailable, 503, false),
            (FaultKind::CatalogCorrupt, 500, false),
            (FaultKind::RouterRefused, 500, false),
            (FaultKind::Bug, 500, false),
        ] {
            let answer = ApiError::of_fault(kind.fault(), "postgres://secret".to_owned());
            assert_eq!(answer.status.as_u16(), status, "{kind}");
            assert_eq!(answer.message.contains("secret"), told, "{kind}");
        }
    }
}
