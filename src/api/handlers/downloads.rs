//! Serves the links that this program signed.

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::api::error::ApiError;
use crate::api::links::{LinkPath, LinkQuery};
use crate::api::state::Shared;
use crate::model::time::Wallclock;
use crate::store::ByteRange;
use crate::store::keys::{Keys, Kind};

/// Parses a `Range` header (RFC 9110, 14.2) for an object of `size` bytes: first byte and length. `None` is the whole object; any
/// header but a single range of bytes is ignored. `Err` is an unsatisfiable range.
fn range(header: Option<&str>, size: u64) -> Result<Option<(u64, u64)>, ()> {
    let Some(spec) = header.and_then(|h| h.trim().strip_prefix("bytes=")) else { return Ok(None) };
    let Some((first, last)) = spec.split_once('-') else { return Ok(None) };
    let (first, last) = (first.trim(), last.trim());
    let number = |text: &str| text.parse::<u64>().ok();
    let (first, last) = match (first.is_empty(), last.is_empty()) {
        (true, true) => return Ok(None),
        (true, false) => match number(last) {
            Some(0) => return Err(()),
            Some(suffix) => (size.saturating_sub(suffix), size.saturating_sub(1)),
            None => return Ok(None),
        },
        (false, _) => match (number(first), if last.is_empty() { Some(u64::MAX) } else { number(last) }) {
            (Some(first), Some(last)) if last >= first => (first, last.min(size.saturating_sub(1))),
            _ => return Ok(None),
        },
    };
    if first >= size { Err(()) } else { Ok(Some((first, last - first + 1))) }
}

/// `GET /links/{application}/{archive}/{file}`
pub async fn serve(
    State(api): State<Shared>,
    Path(path): Path<LinkPath>,
    Query(query): Query<LinkQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let key = path.key();
    let kind = Keys::parse(&key).map(|(_, kind)| kind).filter(|kind| !matches!(kind, Kind::Bundle(..)));
    let Some(kind) = kind.filter(|_| api.links.is_good(&key, &query, Wallclock::now())) else {
        return Err(ApiError::forbidden(
            "this link is not valid, or not any more: get the archive again for a new one",
        ));
    };
    let info = api.links.store.head(&key).await?.ok_or_else(|| ApiError::not_found("the archive's file is gone"))?;
    let asked = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    let Ok(range) = range(asked, info.size) else {
        let unsatisfied = [(header::CONTENT_RANGE, format!("bytes */{}", info.size))];
        return Ok((StatusCode::RANGE_NOT_SATISFIABLE, unsatisfied).into_response());
    };
    let bytes = range.map(|(start, len)| ByteRange { start, len });
    let body = Body::from_stream(api.links.store.get(&key, bytes).await?);
    let mut response = Response::new(body);
    let (first, length) = range.unwrap_or((0, info.size));
    if range.is_some() {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        let value = format!("bytes {first}-{}/{}", first + length - 1, info.size);
        response.headers_mut().extend(HeaderValue::try_from(value).map(|v| (header::CONTENT_RANGE, v)));
    }
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind.content_type()));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    // The signature covers the name, so `file_name` made it.
    let disposition = HeaderValue::try_from(format!("attachment; filename=\"{}\"", query.name));
    headers.extend(disposition.map(|v| (header::CONTENT_DISPOSITION, v)));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_players_send_them() {
        for (header, expected) in [
            (None, Ok(None)),
            (Some("bytes=0-"), Ok(Some((0, 100)))),
            (Some("bytes=10-19"), Ok(Some((10, 10)))),
            (Some("bytes=90-500"), Ok(Some((90, 10)))),
            (Some("bytes=-30"), Ok(Some((70, 30)))),
            (Some("bytes=-300"), Ok(Some((0, 100)))),
            (Some("bytes=100-"), Err(())),
            (Some("bytes=-0"), Err(())),
            (Some("bytes=20-10"), Ok(None)),
            (Some("bytes=0-1,5-6"), Ok(None)),
            (Some("lines=1-2"), Ok(None)),
            (Some("bytes=-"), Ok(None)),
        ] {
            assert_eq!(range(header, 100), expected, "{header:?}");
        }
        assert_eq!(range(Some("bytes=0-"), 0), Err(()));
    }
}
