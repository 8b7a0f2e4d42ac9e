//! What a provider is told of a request or a connection, as Envoy's `CheckRequest`.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderName, Request, Version, header};
use maille_core::Identity;
use maille_proto::authorization as wire;
use wire::attribute_context::{HttpRequest, Peer, Request as AboutRequest};

use super::ahead::Seen;
use crate::http::body::Body;
use crate::http::head;
use crate::open::Facts;
use crate::worker::Worker;

/// Says whether the body that a check shows is all there is.
pub(super) const PARTIAL_BODY: HeaderName = HeaderName::from_static("x-envoy-auth-partial-body");

/// About a request whose head has been checked.
pub(super) fn of_request(
    worker: &Worker,
    facts: &Facts,
    request: &Request<Body>,
    arrived: SystemTime,
    body: Option<&Seen>,
    as_bytes: bool,
) -> wire::CheckRequest {
    let (scheme, path, host) = (scheme(request), head::path(request), head::authority(request));
    let mut headers = HashMap::with_capacity(request.headers().len() + 5);
    headers.insert(":method".to_owned(), request.method().to_string());
    headers.insert(":path".to_owned(), path.to_owned());
    headers.insert(":authority".to_owned(), host.to_owned());
    headers.insert(":scheme".to_owned(), scheme.to_owned());
    for (name, value) in request.headers() {
        // A caller's word on the body is worth nothing; the other two are said otherwise, or of the connection.
        if *name == PARTIAL_BODY || *name == header::HOST || *name == header::TRANSFER_ENCODING {
            continue;
        }
        let value = sanitized(value.as_bytes());
        match headers.entry(name.as_str().to_owned()) {
            Entry::Vacant(first) => drop(first.insert(value.into_owned())),
            Entry::Occupied(mut all) => {
                all.get_mut().push_str(separator(request.version(), name));
                all.get_mut().push_str(&value);
            }
        }
    }
    let mut http = HttpRequest {
        id: rand::random::<u64>().to_string(),
        method: request.method().to_string(),
        path: path.to_owned(),
        host: host.to_owned(),
        scheme: scheme.to_owned(),
        protocol: if request.version() == Version::HTTP_2 { "HTTP/2" } else { "HTTP/1.1" }.to_owned(),
        ..HttpRequest::default()
    };
    if let Some(body) = body {
        headers.insert(PARTIAL_BODY.as_str().to_owned(), body.is_partial.to_string());
        http.size = i64::try_from(body.received).unwrap_or(i64::MAX);
        if as_bytes {
            http.raw_body = body.bytes.to_vec();
        } else {
            http.body = sanitized(&body.bytes).into_owned();
        }
    }
    http.headers = headers;
    let mut attributes = between(worker, facts);
    if let (Some(source), Some(service)) = (&mut attributes.source, service_of(request.headers())) {
        source.service = service;
    }
    attributes.request = Some(AboutRequest { time: Some(timestamp(arrived)), http: Some(http) });
    attributes.route_metadata_context = Some(wire::Metadata {});
    wire::CheckRequest { attributes: Some(attributes) }
}

/// About a connection that carries opaque bytes.
pub(super) fn of_connection(worker: &Worker, facts: &Facts) -> wire::CheckRequest {
    let mut attributes = between(worker, facts);
    if let (Some(destination), Some(sni)) = (&mut attributes.destination, &facts.sni) {
        destination.service = sni.clone();
    }
    wire::CheckRequest { attributes: Some(attributes) }
}

/// Both ends, named as their certificates do. Istio asks for neither certificate nor TLS session.
fn between(worker: &Worker, facts: &Facts) -> wire::AttributeContext {
    let own = worker.shared.tls.current();
    let own = facts.proof.as_ref().map(|_| own.svid().identity());
    wire::AttributeContext {
        source: Some(peer(facts.peer, facts.identity.as_ref())),
        destination: Some(peer(facts.destination, own)),
        metadata_context: Some(wire::Metadata {}),
        ..wire::AttributeContext::default()
    }
}

fn peer(address: SocketAddr, identity: Option<&Identity>) -> Peer {
    let address = wire::SocketAddress {
        address: address.ip().to_canonical().to_string(),
        port_value: address.port().into(),
    };
    Peer {
        address: Some(wire::Address { socket_address: Some(address) }),
        principal: identity.map(Identity::uri).map(|uri| uri.to_string()).unwrap_or_default(),
        ..Peer::default()
    }
}

fn service_of(headers: &HeaderMap) -> Option<String> {
    let service = headers.get("x-envoy-downstream-service-cluster")?;
    Some(sanitized(service.as_bytes()).into_owned())
}

/// Of HTTP/2 as it says, else what a proxy before says. The mesh's own TLS does not count: applications speak HTTP, and
/// Istio's sidecars say so with `x-forwarded-proto`.
fn scheme(request: &Request<Body>) -> &str {
    let forwarded = || request.headers().get("x-forwarded-proto")?.to_str().ok();
    match request.uri().scheme_str().or_else(forwarded) {
        Some(known @ ("http" | "https")) => known,
        _ => "http",
    }
}

fn timestamp(time: SystemTime) -> prost_types::Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    prost_types::Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or_default(),
    }
}

/// Between the values of a repeated field. The cookies of HTTP/2 are one that was cut in pieces.
pub(super) fn separator(version: Version, name: &HeaderName) -> &'static str {
    if version == Version::HTTP_2 && *name == header::COOKIE { "; " } else { "," }
}

/// Text, with `!` for each byte that cannot be in one (Envoy `sanitizeUtf8String`).
pub(super) fn sanitized(bytes: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return Cow::Borrowed(text);
    }
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| '!'));
    }
    Cow::Owned(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_no_text_are_told_apart() {
        assert_eq!(sanitized(b"a\xff\xfeb"), "a!!b");
        assert_eq!(sanitized("ü".as_bytes()), "ü");
        assert_eq!(sanitized(b"\xe2\x82"), "!!");
    }
}
