//! Classifies the errors of a store. Compatible stores agree on few codes, so the status decides where the code is
//! unknown.

use aws_sdk_s3::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};

use crate::store::StoreError;

/// What a store's error means for a retry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ErrorClass {
    Unavailable,
    Refused,
    NotFound,
    Exists,
    NoSuchUpload,
}

fn classify(status: Option<u16>, code: &str) -> ErrorClass {
    match (status, code) {
        (_, "NoSuchUpload") => ErrorClass::NoSuchUpload,
        (_, "NoSuchKey") => ErrorClass::NotFound,
        // Another request writes the same key at this moment: the next attempt will tell.
        (_, "ConditionalRequestConflict" | "OperationAborted") => ErrorClass::Unavailable,
        (_, "SlowDown" | "RequestTimeout" | "InternalError" | "ServiceUnavailable" | "Throttling") => {
            ErrorClass::Unavailable
        }
        (_, "PreconditionFailed") | (Some(409 | 412), _) => ErrorClass::Exists,
        (Some(408 | 425 | 429), _) => ErrorClass::Unavailable,
        // A redirection is a wrong region or endpoint; the SDK has followed what can be followed.
        (Some(300..=499), _) => ErrorClass::Refused,
        // No answer, 5xx, or a success that carries an error (CompleteMultipartUpload).
        _ => ErrorClass::Unavailable,
    }
}

/// The error of a failed operation.
pub(super) fn error<E>(doing: &'static str, key: &str, upload_id: Option<&str>, error: &SdkError<E>) -> StoreError
where
    E: std::error::Error + ProvideErrorMetadata + Send + Sync + 'static,
{
    let key = key.to_owned();
    let status = error.raw_response().map(|r| r.status().as_u16());
    let code = error.as_service_error().and_then(ProvideErrorMetadata::code).unwrap_or_default();
    let source = Box::<dyn std::error::Error + Send + Sync>::from(DisplayErrorContext(error).to_string());
    match classify(status, code) {
        ErrorClass::Unavailable => StoreError::Unavailable { doing, key, source },
        ErrorClass::NotFound => StoreError::NotFound { key },
        ErrorClass::Exists => StoreError::Exists { key },
        ErrorClass::NoSuchUpload => {
            StoreError::NoSuchUpload { key, upload_id: upload_id.unwrap_or_default().to_owned() }
        }
        ErrorClass::Refused => {
            let status = status.unwrap_or_default();
            let code = if code.is_empty() { format!("HTTP {status}") } else { code.to_owned() };
            StoreError::Refused { doing, key, code, source }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_answer_has_one_meaning() {
        for (status, code, expected) in [
            (None, "", ErrorClass::Unavailable),
            (Some(500), "InternalError", ErrorClass::Unavailable),
            (Some(503), "SlowDown", ErrorClass::Unavailable),
            (Some(502), "", ErrorClass::Unavailable),
            (Some(429), "", ErrorClass::Unavailable),
            (Some(400), "RequestTimeout", ErrorClass::Unavailable),
            (Some(200), "InternalError", ErrorClass::Unavailable),
            (Some(403), "AccessDenied", ErrorClass::Refused),
            (Some(403), "SignatureDoesNotMatch", ErrorClass::Refused),
            (Some(404), "NoSuchBucket", ErrorClass::Refused),
            (Some(301), "PermanentRedirect", ErrorClass::Refused),
            (Some(400), "InvalidPart", ErrorClass::Refused),
            (Some(404), "NoSuchKey", ErrorClass::NotFound),
            (Some(404), "NoSuchUpload", ErrorClass::NoSuchUpload),
            (Some(412), "", ErrorClass::Exists),
            (Some(409), "", ErrorClass::Exists),
            (Some(409), "ConditionalRequestConflict", ErrorClass::Unavailable),
            (Some(409), "OperationAborted", ErrorClass::Unavailable),
        ] {
            assert_eq!(classify(status, code), expected, "{status:?} {code}");
        }
    }
}
