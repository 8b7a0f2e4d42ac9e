//! Request and response heads: what is malformed is refused, what belongs to one connection is
//! removed, and the path is canonicalised, all before policy looks, so that what is judged is what is forwarded.

use std::borrow::Cow;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery};
use http::{Method, Request, StatusCode, Uri, Version};
use maille_policy::HeaderLookup;
use maille_policy::path::Normalization as PathNormalization;

use crate::sniff::is_known_method;

/// Envoy's exchange of telemetry between proxies; applications never see it (reference mtls 8.2).
const PEER_METADATA: [HeaderName; 2] =
    [HeaderName::from_static("x-envoy-peer-metadata"), HeaderName::from_static("x-envoy-peer-metadata-id")];
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Fields of a head: Envoy's `max_headers_count`. hyper keeps to it in HTTP/1.1 alone.
const MAX_HEADERS: usize = 100;

/// Headers as policy looks them up.
pub(crate) struct Headers<'a>(pub(crate) &'a HeaderMap);

impl HeaderLookup for Headers<'_> {
    fn values<'h>(&'h self, name: &str, visit: &mut dyn FnMut(&'h [u8])) {
        for value in self.0.get_all(name) {
            visit(value.as_bytes());
        }
    }
}

/// Why a request is answered by the proxy and not forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("a request needs exactly one Host")]
    Host,
    #[error("the Host is no host name or address with an optional port")]
    Authority,
    #[error("the path does not begin with '/' or cannot be canonicalised")]
    Path,
    #[error("the method is none that HTTP/1.1 is known to have; methods have case")]
    Method,
    #[error("the only transfer coding supported is chunked")]
    TransferCoding,
    #[error("HTTP/1.0 is not supported")]
    Http10,
    #[error("a head has at most {MAX_HEADERS} fields")]
    TooManyFields,
}

impl Malformed {
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::Host | Self::Authority | Self::Path | Self::Method => StatusCode::BAD_REQUEST,
            Self::TransferCoding => StatusCode::NOT_IMPLEMENTED,
            // Reference mtls G-33.
            Self::Http10 => StatusCode::UPGRADE_REQUIRED,
            Self::TooManyFields => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        }
    }
}

/// Checks and canonicalises a request's head in place. Afterwards an HTTP/1.1 request has its authority in
/// `Host` and a target in origin form; an HTTP/2 request has it in the URI and no `Host`.
///
/// Returns the protocol the request asks to switch to, if it does; its headers then still say so.
pub(crate) fn check<B>(
    request: &mut Request<B>,
    normalization: PathNormalization,
) -> Result<Option<HeaderValue>, Malformed> {
    let is_http2 = match request.version() {
        Version::HTTP_2 => true,
        Version::HTTP_11 => false,
        _ => return Err(Malformed::Http10),
    };
    if request.headers().len() > MAX_HEADERS {
        return Err(Malformed::TooManyFields);
    }
    // As Envoy's HTTP/1.1 has it (reference authorization 8): an application that is less strict about case would take
    // `get` for what a rule calls GET.
    let is_common = matches!(*request.method(), Method::GET | Method::POST | Method::PUT | Method::DELETE);
    if !is_http2 && !is_common && !is_known_method(request.method().as_str()) {
        return Err(Malformed::Method);
    }
    let mut upgrade = None;
    if has_of_one_hop(request.headers()) {
        upgrade = if is_http2 { None } else { wanted_upgrade(request.headers()) };
        drop_hop_by_hop(request.headers_mut(), upgrade.is_some())?;
        for name in &PEER_METADATA {
            request.headers_mut().remove(name);
        }
    }
    settle_authority(request, is_http2)?;
    if request.method() != Method::CONNECT {
        canonicalise(request, normalization, is_http2)?;
    }
    Ok(upgrade)
}

/// `:authority`, or `Host`, with its port as sent. After [`check`].
pub(crate) fn authority<B>(request: &Request<B>) -> &str {
    match request.uri().authority() {
        Some(authority) => authority.as_str(),
        None => request.headers().get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or_default(),
    }
}

/// The path that policy sees, empty for CONNECT.
pub(crate) fn path<B>(request: &Request<B>) -> &str {
    if request.method() == Method::CONNECT {
        return "";
    }
    request.uri().path_and_query().map_or("", PathAndQuery::as_str)
}

/// Whether the request is gRPC, so that the proxy's own answers must be trailers.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| {
        let rest = value.as_bytes().strip_prefix(b"application/grpc");
        rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
    })
}

/// About how many bytes a head takes, for metrics that count bytes on the wire.
pub(crate) fn head_bytes(headers: &HeaderMap) -> u64 {
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    bytes as u64
}

/// What HTTP/2 has no room for (RFC 9113 section 8.2.2).
const OF_CONNECTIONS: [HeaderName; 5] =
    [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE, KEEP_ALIVE, PROXY_CONNECTION];

/// Whether there is anything that concerns one connection alone. Mostly there is not: one look at the names that are there
/// is less than looking each of these up.
pub(crate) fn has_of_one_hop(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| {
        matches!(
            name.as_str(),
            "connection"
                | "upgrade"
                | "transfer-encoding"
                | "te"
                | "expect"
                | "keep-alive"
                | "proxy-connection"
                | "http2-settings"
                | "x-envoy-peer-metadata"
                | "x-envoy-peer-metadata-id"
        )
    })
}

/// Removes what concerned only the upstream's connection; `keep_upgrade` for the answer 101.
pub(crate) fn clean_response(headers: &mut HeaderMap, keep_upgrade: bool) {
    if !has_of_one_hop(headers) {
        return;
    }
    if !keep_upgrade && headers.contains_key(header::CONNECTION) {
        drop_nominated(headers);
    }
    if !keep_upgrade {
        headers.remove(header::CONNECTION);
        headers.remove(header::UPGRADE);
    }
    headers.remove(&KEEP_ALIVE);
    headers.remove(&PROXY_CONNECTION);
    // The codings have been taken off; how the body is framed from here on is decided anew.
    headers.remove(header::TRANSFER_ENCODING);
    for name in &PEER_METADATA {
        headers.remove(name);
    }
}

/// Makes a checked request fit for the HTTP version of the upstream.
pub(crate) fn adapt<B>(request: &mut Request<B>, to: Version) -> Result<(), Malformed> {
    let from = request.version();
    match (from == Version::HTTP_2, to == Version::HTTP_2) {
        (false, true) => {
            let authority = request.headers_mut().remove(header::HOST).ok_or(Malformed::Host)?;
            // An upgrade as well: HTTP/2 has none of this kind, and who asks for one is answered without.
            drop_of_connections(request.headers_mut());
            let authority = Authority::try_from(authority.as_bytes()).map_err(|_| Malformed::Authority)?;
            let mut parts = std::mem::take(request.uri_mut()).into_parts();
            parts.scheme = Some(http::uri::Scheme::HTTP);
            parts.authority = Some(authority);
            *request.uri_mut() = Uri::from_parts(parts).map_err(|_| Malformed::Path)?;
        }
        (true, false) => {
            let mut parts = std::mem::take(request.uri_mut()).into_parts();
            let authority = parts.authority.take().ok_or(Malformed::Host)?;
            parts.scheme = None;
            *request.uri_mut() = Uri::from_parts(parts).map_err(|_| Malformed::Path)?;
            let host = HeaderValue::from_str(authority.as_str()).map_err(|_| Malformed::Authority)?;
            request.headers_mut().insert(header::HOST, host);
            join_cookies(request.headers_mut());
        }
        _ => {}
    }
    *request.version_mut() = to;
    Ok(())
}

/// Drops what concerns one HTTP/1.1 connection alone.
pub(crate) fn drop_of_connections(headers: &mut HeaderMap) {
    if !has_of_one_hop(headers) {
        return;
    }
    for name in &OF_CONNECTIONS {
        headers.remove(name);
    }
}

/// HTTP/2 may split `Cookie`; HTTP/1.1 must not (RFC 9113 section 8.2.3).
pub(crate) fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(header::COOKIE).iter().nth(1).is_none() {
        return;
    }
    let crumbs: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        headers.insert(header::COOKIE, joined);
    }
}

/// The protocol of a well-formed `Connection: upgrade`. HTTP/2 is never reached this way (RFC 9113 section 3.1).
fn wanted_upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let wanted = headers.get(header::UPGRADE)?;
    let is_asked = tokens(headers, header::CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"));
    (is_asked && !wanted.as_bytes().eq_ignore_ascii_case(b"h2c")).then(|| wanted.clone())
}

fn drop_hop_by_hop(headers: &mut HeaderMap, is_upgrade: bool) -> Result<(), Malformed> {
    // RFC 9112 section 6.1: a coding that is not understood is refused, since the length would be guessed.
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let is_as_written = match (codings.next(), codings.next()) {
        (None, _) => true,
        (Some(only), None) if only.as_bytes().eq_ignore_ascii_case(b"chunked") => only == "chunked",
        _ => return Err(Malformed::TransferCoding),
    };
    if !is_as_written {
        // Some applications mind the case.
        headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    let keeps_trailers = headers.contains_key(header::TE)
        && tokens(headers, header::TE).any(|token| token.eq_ignore_ascii_case("trailers"));
    if headers.contains_key(header::CONNECTION) {
        drop_nominated(headers);
        if is_upgrade {
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        } else {
            headers.remove(header::CONNECTION);
        }
    }
    if !is_upgrade {
        headers.remove(header::UPGRADE);
    }
    headers.remove(&KEEP_ALIVE);
    headers.remove(&PROXY_CONNECTION);
    headers.remove(&HTTP2_SETTINGS);
    // The proxy itself answers 100 as soon as it reads the body, that is, once policy has allowed it.
    headers.remove(header::EXPECT);
    if headers.remove(header::TE).is_some() && keeps_trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    Ok(())
}

/// Removes what `Connection` names (RFC 9110 section 7.6.1), except what framing and routing stand on.
fn drop_nominated(headers: &mut HeaderMap) {
    let nominated: Vec<HeaderName> = tokens(headers, header::CONNECTION)
        .filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok())
        .filter(|name| {
            ![
                header::CONNECTION,
                header::UPGRADE,
                header::HOST,
                header::CONTENT_LENGTH,
                header::TRANSFER_ENCODING,
                header::TE,
            ]
            .contains(name)
        })
        .collect();
    for name in nominated {
        headers.remove(name);
    }
}

fn tokens(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty())
}

/// One authority, in one place. An absolute target wins over `Host` (RFC 9112 section 3.2.2), and HTTP/2's
/// `:authority` over a `host` field, so that policy and upstream cannot read different ones.
fn settle_authority<B>(request: &mut Request<B>, is_http2: bool) -> Result<(), Malformed> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let (host, another) = (hosts.next().cloned(), hosts.next().is_some());
    if another {
        return Err(Malformed::Host);
    }
    match (request.uri().authority(), host) {
        (Some(authority), _) if !is_authority(authority.as_str().as_bytes()) => Err(Malformed::Authority),
        (Some(_), _) if is_http2 => {
            request.headers_mut().remove(header::HOST);
            Ok(())
        }
        // A bare authority is a target for CONNECT only (RFC 9112 section 3.2.3).
        (Some(_), _) if request.method() != Method::CONNECT && request.uri().scheme().is_none() => {
            Err(Malformed::Path)
        }
        (Some(authority), _) if request.method() != Method::CONNECT => {
            let host = HeaderValue::from_str(authority.as_str()).map_err(|_| Malformed::Authority)?;
            request.headers_mut().insert(header::HOST, host);
            let target = request.uri().path_and_query().cloned();
            *request.uri_mut() = target.unwrap_or_else(|| PathAndQuery::from_static("/")).into();
            Ok(())
        }
        (Some(_), _) => Ok(()),
        (None, Some(host)) if is_authority(host.as_bytes()) => {
            if is_http2 {
                let mut parts = request.uri().clone().into_parts();
                parts.scheme = Some(http::uri::Scheme::HTTP);
                parts.authority = Authority::try_from(host.as_bytes()).ok();
                *request.uri_mut() = Uri::from_parts(parts).map_err(|_| Malformed::Authority)?;
                request.headers_mut().remove(header::HOST);
            }
            Ok(())
        }
        (None, Some(_)) => Err(Malformed::Authority),
        (None, None) => Err(Malformed::Host),
    }
}

/// Letters, digits and what names, addresses and ports are written with; no user information.
fn is_authority(text: &[u8]) -> bool {
    !text.is_empty()
        && text.len() <= 512
        && text.iter().all(|b| {
            b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'~' | b':' | b'[' | b']' | b'%')
        })
}

fn canonicalise<B>(
    request: &mut Request<B>,
    mode: PathNormalization,
    is_http2: bool,
) -> Result<(), Malformed> {
    let target = request.uri().path_and_query().ok_or(Malformed::Path)?;
    if target.as_str() == "*" && request.method() == Method::OPTIONS {
        return Ok(());
    }
    if !target.as_str().starts_with('/') {
        return Err(Malformed::Path);
    }
    let canonical = match maille_policy::path::normalize(mode, target.as_str()) {
        Ok(Cow::Borrowed(same)) if same == target.as_str() => return Ok(()),
        Ok(other) => PathAndQuery::try_from(other.as_ref()).map_err(|_| Malformed::Path)?,
        Err(_) => return Err(Malformed::Path),
    };
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.path_and_query = Some(canonical);
    if is_http2 && parts.scheme.is_none() {
        parts.scheme = Some(http::uri::Scheme::HTTP);
    }
    *request.uri_mut() = Uri::from_parts(parts).map_err(|_| Malformed::Path)?;
    Ok(())
}

#[cfg(test)]
#[path = "head_tests.rs"]
mod tests;
