//! Responses: JSON, Status, streams.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, WARNING};
use http::{Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use serde_json::Value;

use crate::status::ApiError;

/// Bodies of all kinds.
pub(crate) type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// A body that is there whole.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A JSON response from text.
pub(crate) fn json_bytes(code: u16, bytes: Bytes) -> Response<Body> {
    let mut response = Response::new(full(bytes));
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// A JSON response.
pub(crate) fn json(code: u16, value: &Value) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(mut bytes) => {
            bytes.push(b'\n');
            json_bytes(code, bytes.into())
        }
        Err(error) => failure(&ApiError::internal(error)),
    }
}

/// A Status.
pub(crate) fn failure(error: &ApiError) -> Response<Body> {
    json(error.code, &error.to_value())
}

/// Plain text.
pub(crate) fn text(code: u16, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = json_bytes(code, text.into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// Adds warnings as clients print them (RFC 7234 section 5.5; KEP-1693).
pub(crate) fn warn(response: &mut Response<Body>, warnings: &[String]) {
    // Headers are bounded, as in apiserver.
    for warning in warnings.iter().take(32) {
        let clean: String = warning
            .chars()
            .filter(|c| !c.is_control())
            .take(256)
            .flat_map(|c| if matches!(c, '"' | '\\') { vec!['\\', c] } else { vec![c] })
            .collect();
        if let Ok(value) = HeaderValue::from_bytes(format!("299 - \"{clean}\"").as_bytes()) {
            response.headers_mut().append(WARNING, value);
        }
    }
}
