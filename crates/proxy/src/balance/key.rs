//! What a request is hashed by, as Envoy's `HashPolicyImpl` does it, so that its sidecars find the same endpoint.

use std::net::SocketAddr;
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderValue};
use http::{Request, Uri};

use super::hash::xxh64;
use crate::snapshot::HashKey;

/// What a request is hashed by, and the cookie that its answer is to set.
#[derive(Debug, Default)]
pub(crate) struct Keyed {
    pub(crate) hash: Option<u64>,
    pub(crate) cookie: Option<HeaderValue>,
}

/// Of a request from `from`. A cookie that is missing is made of `fresh`, which is the same for all requests of a
/// connection: requests that race each other get to one endpoint.
pub(crate) fn of_request<B>(
    key: &HashKey,
    request: &Request<B>,
    from: Option<SocketAddr>,
    fresh: impl FnOnce() -> u64,
) -> Keyed {
    let only = |hash| Keyed { hash, cookie: None };
    match key {
        HashKey::Header(name) => only(of_header(request.headers(), name)),
        HashKey::SourceAddress => only(of_source(key, from)),
        HashKey::Query(name) => only(of_query(request.uri(), name)),
        HashKey::Cookie { name, path, ttl } => match (cookie(request.headers(), name), ttl) {
            (Some(value), _) => only(Some(xxh64(value, 0))),
            (None, None) => Keyed::default(),
            (None, Some(ttl)) => {
                let value = format!("{:016x}", fresh());
                let cookie = set_cookie(name, &value, path, *ttl);
                Keyed { hash: Some(xxh64(value.as_bytes(), 0)), cookie: HeaderValue::try_from(cookie).ok() }
            }
        },
    }
}

/// Of an opaque connection, which has nothing but an address.
pub(crate) fn of_source(key: &HashKey, from: Option<SocketAddr>) -> Option<u64> {
    let from = from.filter(|_| *key == HashKey::SourceAddress)?;
    Some(xxh64(from.ip().to_canonical().to_string().as_bytes(), 0))
}

fn of_header(headers: &HeaderMap, name: &header::HeaderName) -> Option<u64> {
    let mut values: Vec<&[u8]> = headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
    // Proxies may reorder the lines of a field.
    values.sort_unstable();
    values.into_iter().fold(None, |hash, value| Some(xxh64(value, hash.unwrap_or(0))))
}

fn of_query(uri: &Uri, name: &str) -> Option<u64> {
    let pairs = uri.query()?.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.into_iter().find(|(key, _)| *key == name).map(|(_, value)| xxh64(value.as_bytes(), 0))
}

/// The value of a cookie, without the quotes around it; none if it is empty.
fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    let crumbs =
        headers.get_all(header::COOKIE).iter().flat_map(|value| value.as_bytes().split(|b| *b == b';'));
    let value = crumbs.map(<[u8]>::trim_ascii).find_map(|crumb| {
        let rest = crumb.strip_prefix(name.as_bytes())?;
        rest.strip_prefix(b"=")
    })?;
    let bare = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
    (!bare.is_empty()).then_some(bare)
}

/// As Envoy writes it (`Utility::makeSetCookieValue`).
fn set_cookie(name: &str, value: &str, path: &str, ttl: Duration) -> String {
    let mut cookie = format!("{name}=\"{value}\"");
    if !ttl.is_zero() {
        cookie.push_str(&format!("; Max-Age={}", ttl.as_secs()));
    }
    if !path.is_empty() {
        cookie.push_str(&format!("; Path={path}"));
    }
    cookie.push_str("; HttpOnly");
    cookie
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(headers: &[(&str, &str)], uri: &str) -> Request<()> {
        let mut request = Request::get(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).expect("a request")
    }

    fn cookie_key(ttl: Option<Duration>) -> HashKey {
        HashKey::Cookie { name: "user".into(), path: "/p".into(), ttl }
    }

    fn hashed(key: &HashKey, request: &Request<()>) -> Option<u64> {
        of_request(key, request, Some(([10, 0, 0, 7], 99).into()), || 7).hash
    }

    #[test]
    fn each_kind_of_key_is_found_where_it_is() {
        let header = HashKey::Header("x-user".try_into().expect("a name"));
        let query = HashKey::Query("u".into());
        let asked = request(&[("x-user", "a"), ("cookie", "other=b; user=\"a\"")], "/?x=b&u=a&u=b");
        let expected = Some(xxh64(b"a", 0));
        for key in [&header, &query, &cookie_key(None)] {
            assert_eq!(hashed(key, &asked), expected, "{key:?}");
        }
        assert_eq!(hashed(&HashKey::SourceAddress, &asked), Some(xxh64(b"10.0.0.7", 0)));
        let bare = request(&[("cookie", "users=a; xuser=a; user=")], "/?v=a");
        for key in [&header, &query, &cookie_key(None)] {
            assert_eq!(hashed(key, &bare), None, "{key:?}");
        }
        let twice = |one, two| request(&[("x-user", one), ("x-user", two)], "/");
        assert_eq!(hashed(&header, &twice("a", "b")), hashed(&header, &twice("b", "a")));
        assert_ne!(hashed(&header, &twice("a", "b")), expected);
    }

    #[test]
    fn a_missing_cookie_is_made_and_found_again() {
        let key = cookie_key(Some(Duration::from_secs(60)));
        let made = of_request(&key, &request(&[], "/"), None, || 0xab);
        let line = made.cookie.expect("made");
        assert_eq!(line, "user=\"00000000000000ab\"; Max-Age=60; Path=/p; HttpOnly");
        let back = request(&[("cookie", "user=00000000000000ab")], "/");
        let again = of_request(&key, &back, None, || 0);
        assert_eq!((again.hash, again.cookie), (made.hash, None));
        let session = of_request(&cookie_key(Some(Duration::ZERO)), &request(&[], "/"), None, || 1);
        assert!(!session.cookie.expect("made").to_str().expect("text").contains("Max-Age"));
    }
}
