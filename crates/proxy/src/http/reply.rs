//! Answers of the proxy itself.

use http::header::{self, HeaderName, HeaderValue};
use http::{Response, StatusCode};

use crate::http::body::Body;

/// The body of an authorization refusal; 19 bytes (reference authorization 16).
pub(crate) const DENIED: &str = "RBAC: access denied";

/// Carries why a request was refused, if the mesh says so.
pub(crate) const REASON: HeaderName = HeaderName::from_static("x-maille-reason");
/// Longest reason that a header carries.
const MAX_REASON: usize = 1024;

/// A reason as a header's value: what is not printable ASCII is `?`.
pub(crate) fn reason(text: &str) -> HeaderValue {
    let printable = |c: char| if matches!(c, ' '..='~') { c } else { '?' };
    let text: String = text.chars().take(MAX_REASON).map(printable).collect();
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("?"))
}

/// An answer without the upstream. To a gRPC caller it is a response of trailers only, as Envoy makes it.
pub(crate) fn local(is_grpc: bool, status: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    if is_grpc {
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", HeaderValue::from(grpc_status(status)));
        headers.insert("grpc-message", grpc_message(text));
        return response;
    }
    *response.status_mut() = status;
    if !text.is_empty() {
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        // Also for HEAD, whose body the server drops.
        response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(text.len()));
        *response.body_mut() = Body::full(text.to_owned());
    }
    response
}

/// Envoy's mapping of HTTP to gRPC (`Grpc::Utility::httpToGrpcStatus`).
pub(crate) fn grpc_status(status: StatusCode) -> u16 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// Percent-encoded as gRPC over HTTP/2 demands.
fn grpc_message(text: &str) -> HeaderValue {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    HeaderValue::from_str(&encoded).unwrap_or(HeaderValue::from_static("error"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reference authorization 16.
    #[test]
    fn refusals_look_like_istios() {
        assert_eq!(DENIED.len(), 19);
        let plain = local(false, StatusCode::FORBIDDEN, DENIED);
        assert_eq!(plain.status(), 403);
        assert_eq!(plain.headers()["content-type"], "text/plain");
        assert_eq!(plain.headers()["content-length"], "19");
        let grpc = local(true, StatusCode::FORBIDDEN, DENIED);
        assert_eq!((grpc.status(), &grpc.headers()["grpc-status"]), (StatusCode::OK, &HeaderValue::from(7)));
        assert_eq!(grpc.headers()["grpc-message"], DENIED);
    }
}
