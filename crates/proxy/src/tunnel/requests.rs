//! HTTP/1.1 requests as streams: packed by the caller's proxy, made what they were by the called one's.

use std::rc::Rc;

use http::header::{self, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::Incoming;

use crate::http::body::Body;
use crate::http::head;
use crate::http::reply;
use crate::http::serve::Handler;

/// Lines of a head, as HTTP/1.1 has it by hyper and Envoy.
const MAX_HEADERS: usize = 100;

/// Makes a checked HTTP/1.1 request one that can go as a stream, or leaves it as it is and says false: upgrades, and
/// authorities that HTTP/2 cannot say, go over connections of their own.
pub(crate) fn pack(request: &mut Request<Body>) -> bool {
    let headers = request.headers();
    if request.version() != Version::HTTP_11 || headers.contains_key(header::UPGRADE) {
        return false;
    }
    let authority = headers.get(header::HOST).and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let (Some(authority), Some(target)) = (authority, request.uri().path_and_query()) else { return false };
    let uri = Uri::builder().scheme(Scheme::HTTP).authority(authority).path_and_query(target.clone());
    let Ok(uri) = uri.build() else { return false };
    *request.uri_mut() = uri;
    *request.version_mut() = Version::HTTP_2;
    let headers = request.headers_mut();
    headers.remove(header::HOST);
    head::drop_of_connections(headers);
    true
}

/// Makes a packed request what it was before.
pub(crate) fn unpack(request: &mut Request<Body>) {
    // What was packed can be unpacked.
    let _ = restore(request);
}

/// An HTTP/1.1 request again, with its authority in `Host` and its length said in HTTP/1.1's way.
fn restore<B: http_body::Body>(request: &mut Request<B>) -> Result<(), StatusCode> {
    let uri = std::mem::take(request.uri_mut());
    let is_sent_whole = request.body().is_end_stream();
    let headers = request.headers_mut();
    if let Some(authority) = uri.authority() {
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| StatusCode::BAD_REQUEST)?;
        headers.insert(header::HOST, host);
    }
    if !is_sent_whole && !headers.contains_key(header::CONTENT_LENGTH) {
        headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    head::join_cookies(headers);
    let target = uri.into_parts().path_and_query.unwrap_or_else(|| PathAndQuery::from_static("/"));
    *request.uri_mut() = target.into();
    *request.version_mut() = Version::HTTP_11;
    Ok(())
}

/// Hands what came as streams to the handler of an HTTP/1.1 connection.
pub(crate) struct Requests<H>(Rc<H>);

impl<H: Handler> Requests<H> {
    pub(crate) fn new(handler: Rc<H>) -> Self {
        Self(handler)
    }
}

impl<H: Handler> Handler for Requests<H> {
    async fn call(self: Rc<Self>, mut request: Request<Incoming>) -> Response<Body> {
        // A peer that sends these is none of ours: nothing of the kind is ever packed.
        if *request.method() == Method::CONNECT {
            return reply::local(false, StatusCode::BAD_REQUEST, "");
        }
        if request.headers().len() > MAX_HEADERS {
            return reply::local(false, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "");
        }
        if let Err(status) = restore(&mut request) {
            return reply::local(false, status, "");
        }
        request.extensions_mut().clear();
        let mut response = self.0.clone().call(request).await;
        head::drop_of_connections(response.headers_mut());
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str, target: &str, headers: &[(&str, &str)]) -> Request<Body> {
        let mut request = Request::builder().method(method).uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(Body::empty()).expect("a request")
    }

    #[test]
    fn what_is_packed_comes_out_as_it_was() {
        for (method, target, host) in [
            ("GET", "/a/b?c=%20d", "cart.shop"),
            ("POST", "/", "cart.shop:8080"),
            ("OPTIONS", "*", "[::1]:80"),
            ("GET", "//double", "10.0.0.1"),
        ] {
            let mut one = request(method, target, &[("host", host), ("x-a", "1"), ("x-a", "2")]);
            assert!(pack(&mut one), "{method} {target}");
            assert_eq!(one.uri().authority().map(Authority::as_str), Some(host));
            assert!(!one.headers().contains_key("host") && one.version() == Version::HTTP_2);
            unpack(&mut one);
            assert_eq!((one.method().as_str(), one.uri().to_string().as_str()), (method, target));
            assert_eq!(
                (&one.headers()["host"], one.version()),
                (&HeaderValue::from_str(host).unwrap(), Version::HTTP_11)
            );
            assert_eq!(one.headers().get_all("x-a").iter().count(), 2);
        }
    }

    #[test]
    fn what_http2_cannot_say_is_left_alone() {
        let upgrade = [("host", "cart"), ("connection", "upgrade"), ("upgrade", "websocket")];
        for headers in [&upgrade[..], &[("host", "a%zz")], &[("host", "")], &[]] {
            let mut one = request("GET", "/x", headers);
            assert!(!pack(&mut one), "{headers:?}");
            assert_eq!((one.headers().len(), one.version()), (headers.len(), Version::HTTP_11));
            assert_eq!(one.uri(), "/x");
        }
    }

    #[test]
    fn a_stream_cannot_name_two_hosts() {
        let mut one = request("GET", "http://named/x", &[("host", "other")]);
        *one.version_mut() = Version::HTTP_2;
        restore(&mut one).expect("restored");
        assert_eq!(one.headers().get_all("host").iter().collect::<Vec<_>>(), ["named"]);
        assert_eq!(one.uri(), "/x");
    }
}
