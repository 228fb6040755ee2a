//! What an answer of the store means to us. Compatible stores agree on few codes, so the status decides where
//! there is none that is known.

use aws_sdk_s3::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};

use crate::store::StoreError;

/// Classes of failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    Unavailable,
    Refused,
    NotFound,
    Exists,
    NoSuchUpload,
}

fn meaning(status: Option<u16>, code: &str) -> Meaning {
    match (status, code) {
        (_, "NoSuchUpload") => Meaning::NoSuchUpload,
        (_, "NoSuchKey") => Meaning::NotFound,
        // Somebody else is at the same key at this moment: the next try will tell.
        (_, "ConditionalRequestConflict" | "OperationAborted") => Meaning::Unavailable,
        (_, "SlowDown" | "RequestTimeout" | "InternalError" | "ServiceUnavailable" | "Throttling") => {
            Meaning::Unavailable
        }
        (_, "PreconditionFailed") | (Some(409 | 412), _) => Meaning::Exists,
        (Some(408 | 425 | 429), _) => Meaning::Unavailable,
        // A redirection is a wrong region or endpoint; the SDK has followed what can be followed.
        (Some(300..=499), _) => Meaning::Refused,
        // No answer, 5xx, or a success that carries an error (CompleteMultipartUpload).
        _ => Meaning::Unavailable,
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
    match meaning(status, code) {
        Meaning::Unavailable => StoreError::Unavailable { doing, key, source },
        Meaning::NotFound => StoreError::NotFound { key },
        Meaning::Exists => StoreError::Exists { key },
        Meaning::NoSuchUpload => StoreError::NoSuchUpload { key, upload_id: upload_id.unwrap_or_default().to_owned() },
        Meaning::Refused => {
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
            (None, "", Meaning::Unavailable),
            (Some(500), "InternalError", Meaning::Unavailable),
            (Some(503), "SlowDown", Meaning::Unavailable),
            (Some(502), "", Meaning::Unavailable),
            (Some(429), "", Meaning::Unavailable),
            (Some(400), "RequestTimeout", Meaning::Unavailable),
            (Some(200), "InternalError", Meaning::Unavailable),
            (Some(403), "AccessDenied", Meaning::Refused),
            (Some(403), "SignatureDoesNotMatch", Meaning::Refused),
            (Some(404), "NoSuchBucket", Meaning::Refused),
            (Some(301), "PermanentRedirect", Meaning::Refused),
            (Some(400), "InvalidPart", Meaning::Refused),
            (Some(404), "NoSuchKey", Meaning::NotFound),
            (Some(404), "NoSuchUpload", Meaning::NoSuchUpload),
            (Some(412), "", Meaning::Exists),
            (Some(409), "", Meaning::Exists),
            (Some(409), "ConditionalRequestConflict", Meaning::Unavailable),
            (Some(409), "OperationAborted", Meaning::Unavailable),
        ] {
            assert_eq!(meaning(status, code), expected, "{status:?} {code}");
        }
    }
}
