//! WebSockets over HTTP/2 (RFC 8441): a stream that asks for one becomes the HTTP/1.1 request that it stands for before
//! anybody looks at it, so that policy judges a GET with its path, and the application need not know the difference. Envoy
//! does the same.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode, Uri, Version};
use hyper::ext::Protocol;

use crate::http::body::Body;
use crate::worker::Worker;

/// What HTTP/2 leaves out of the handshake (RFC 8441 section 5.1).
const KEY: HeaderName = header::SEC_WEBSOCKET_KEY;

/// Turns an extended CONNECT into `Upgrade: websocket`; whether it was one. Any other protocol stays what it is, and
/// nobody forwards it.
pub(crate) fn unfold<B>(worker: &Worker, request: &mut Request<B>) -> bool {
    let asked = request.extensions().get::<Protocol>();
    if *request.method() != Method::CONNECT || asked.is_none_or(|protocol| protocol.as_str() != "websocket") {
        return false;
    }
    let uri = std::mem::take(request.uri_mut()).into_parts();
    let host = uri.authority.and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    let target = uri.path_and_query.unwrap_or_else(|| PathAndQuery::from_static("/"));
    request.extensions_mut().remove::<Protocol>();
    *request.uri_mut() = Uri::from(target);
    *request.method_mut() = Method::GET;
    *request.version_mut() = Version::HTTP_11;
    let headers = request.headers_mut();
    if let Some(host) = host {
        headers.insert(header::HOST, host);
    }
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.remove(header::CONTENT_LENGTH);
    if !headers.contains_key(&KEY) {
        headers.insert(KEY, key(|bound| worker.random_below(bound)));
    }
    crate::http::head::join_cookies(headers);
    true
}

/// What HTTP/2 says in place of an answer to [`unfold`]'s request.
pub(crate) fn fold(mut response: Response<Body>) -> Response<Body> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        *response.status_mut() = StatusCode::OK;
        drop_handshake(response.headers_mut());
    } else if response.status().is_success() {
        // Declined; in HTTP/2 that would be an agreement.
        let mut declined = Response::new(Body::empty());
        *declined.status_mut() = StatusCode::BAD_GATEWAY;
        return declined;
    }
    response
}

fn drop_handshake(headers: &mut HeaderMap) {
    for name in [header::CONNECTION, header::UPGRADE, header::SEC_WEBSOCKET_ACCEPT] {
        headers.remove(name);
    }
}

/// Sixteen bytes at random in base64 (RFC 6455 section 4.1).
fn key(random_below: impl Fn(usize) -> usize) -> HeaderValue {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |of: &[u8]| of.get(random_below(of.len())).copied().unwrap_or(b'A');
    let mut key: Vec<u8> = (0..21).map(|_| digit(DIGITS)).collect();
    // Two bits of it are left for the last digit.
    key.push(digit(b"AQgw"));
    key.extend_from_slice(b"==");
    HeaderValue::from_bytes(&key).unwrap_or(HeaderValue::from_static("AAAAAAAAAAAAAAAAAAAAAA=="))
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;

    use super::*;

    #[test]
    fn a_key_is_sixteen_bytes() {
        for seed in 0..64 {
            let key = key(|bound| seed % bound);
            let bytes = base64::engine::general_purpose::STANDARD.decode(key.as_bytes()).expect("base64");
            assert_eq!(bytes.len(), 16);
        }
    }

    #[test]
    fn an_answer_that_declines_is_no_agreement() {
        let with =
            |status: u16| fold(Response::builder().status(status).body(Body::empty()).expect("a response"));
        assert_eq!([101, 200, 403].map(|status| with(status).status().as_u16()), [200, 502, 403]);
    }
}
