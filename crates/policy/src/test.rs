//! One test of one attribute: the atom that rules are made of.

use std::net::IpAddr;

use maille_core::Identity;

use crate::Claims;
use crate::address::AddressSet;
use crate::attributes::{ConnectionAttributes, RequestAttributes};
use crate::peer::{self, NamespacePattern, TrustDomainSet};
use crate::template::PathTemplate;
use crate::text::TextSet;
use crate::token::{ClaimPath, RequestPrincipals};

/// A field with its values: `principals: […]`, `notPaths: […]` or one half of a `when`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Test {
    /// What is looked at, and what must be found there (any one value).
    pub(crate) check: Check,
    /// The test passes if nothing is found, also if the attribute is missing.
    pub(crate) negated: bool,
    /// The values as written, for explanations.
    pub(crate) written: Vec<String>,
}

/// An attribute and the values that match it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Check {
    /// The full URI of the peer.
    Principal(TextSet),
    /// The namespace within the peer's URI.
    Namespace(Vec<NamespacePattern>),
    /// Namespace and account of the peer, sorted.
    ServiceAccount(Vec<(String, String)>),
    /// The peer's trust domain.
    TrustDomain(TrustDomainSet),
    /// The socket's peer.
    SourceIp(AddressSet),
    /// The logical client: the request's if it has one.
    RemoteIp(AddressSet),
    /// The local address.
    DestinationIp(AddressSet),
    /// The local port; sorted.
    Port(Vec<u16>),
    /// The server name, in lower case.
    Sni(TextSet),
    /// The request's method.
    Method(TextSet),
    /// The authority, without case.
    Host(TextSet),
    /// The path without query.
    Path(TextSet, Vec<PathTemplate>),
    /// A header.
    Header(Header, TextSet),
    /// Issuer and subject of the verified token.
    RequestPrincipal(RequestPrincipals),
    /// A claim of the verified token.
    Claim(ClaimPath, TextSet),
}

/// Which header, and how its values are presented.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Header {
    /// `:method`.
    Method,
    /// `:authority` or `host`, here with case.
    Authority,
    /// `:path`, with its query.
    Path,
    /// Any other, in lower case; each occurrence stands alone.
    Named(Box<str>),
    /// One that proxies fold into one value on arrival (reference authorization 9.1).
    Folded(Box<str>),
}

impl Header {
    pub(crate) fn parse(name: &str) -> Self {
        let name = name.to_ascii_lowercase();
        match name.as_str() {
            ":method" => Self::Method,
            ":authority" | "host" => Self::Authority,
            ":path" => Self::Path,
            // Measured with Envoy 1.40: every name that two lines of come as one.
            "accept"
            | "accept-encoding"
            | "access-control-request-headers"
            | "access-control-request-method"
            | "access-control-request-private-network"
            | "authorization"
            | "cache-control"
            | "content-encoding"
            | "content-type"
            | "expect"
            | "grpc-accept-encoding"
            | "grpc-timeout"
            | "if-match"
            | "if-modified-since"
            | "if-none-match"
            | "if-range"
            | "if-unmodified-since"
            | "origin"
            | "pragma"
            | "referer"
            | "user-agent"
            | "via"
            | "x-client-trace-id"
            | "x-envoy-original-path"
            | "x-forwarded-for"
            | "x-forwarded-host"
            | "x-forwarded-port"
            | "x-forwarded-proto"
            | "x-request-id" => Self::Folded(name.into()),
            _ => Self::Named(name.into()),
        }
    }

    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Method => ":method",
            Self::Authority => ":authority",
            Self::Path => ":path",
            Self::Named(name) | Self::Folded(name) => name,
        }
    }

    /// Calls `visit` with each value that policy sees.
    pub(crate) fn visit(&self, request: &Request<'_>, visit: &mut dyn FnMut(&[u8])) {
        let mut unless_empty = |text: &str| {
            if !text.is_empty() {
                visit(text.as_bytes());
            }
        };
        match self {
            Self::Method => unless_empty(request.attributes.method),
            Self::Authority => unless_empty(request.attributes.host),
            Self::Path => unless_empty(request.attributes.path),
            Self::Named(name) => request.attributes.headers.values(name, &mut |value| visit(value)),
            Self::Folded(name) => {
                let (mut count, mut first) = (0_usize, None);
                request.attributes.headers.values(name, &mut |value| {
                    count += 1;
                    first.get_or_insert(value);
                });
                if count > 1 {
                    // Rare enough that joining may allocate. Empty lines leave no trace, as in Envoy.
                    let mut joined = Vec::new();
                    request.attributes.headers.values(name, &mut |value| {
                        if !joined.is_empty() && !value.is_empty() {
                            joined.push(b',');
                        }
                        joined.extend_from_slice(value);
                    });
                    visit(&joined);
                } else if let Some(value) = first {
                    visit(value);
                }
            }
        }
    }
}

/// The facts of a connection, owned.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    pub(crate) identity: Option<Identity>,
    /// The identity's full URI; empty without one.
    pub(crate) uri: String,
    pub(crate) source_ip: IpAddr,
    pub(crate) remote_ip: IpAddr,
    pub(crate) destination_ip: IpAddr,
    pub(crate) destination_port: u16,
    /// In lower case; empty when there is none.
    pub(crate) sni: String,
}

impl Connection {
    pub(crate) fn new(attributes: &ConnectionAttributes<'_>) -> Self {
        Self {
            identity: attributes.identity.cloned(),
            uri: attributes.identity.map(Identity::uri).unwrap_or_default(),
            source_ip: attributes.source_ip,
            remote_ip: attributes.remote_ip,
            destination_ip: attributes.destination_ip,
            destination_port: attributes.destination_port,
            sni: attributes.sni.map(str::to_ascii_lowercase).unwrap_or_default(),
        }
    }
}

impl Connection {
    /// The logical client of a request on this connection, or of the connection itself.
    pub(crate) fn remote_ip_of(&self, request: Option<&Request<'_>>) -> IpAddr {
        request.and_then(|r| r.attributes.remote_ip).unwrap_or(self.remote_ip)
    }
}

/// A request with what is derived from it once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request<'a> {
    pub(crate) attributes: &'a RequestAttributes<'a>,
    /// Without query and fragment.
    pub(crate) path: &'a str,
}

impl<'a> Request<'a> {
    pub(crate) fn new(attributes: &'a RequestAttributes<'a>) -> Self {
        let end =
            attributes.path.bytes().position(|b| matches!(b, b'?' | b'#')).unwrap_or(attributes.path.len());
        Self { attributes, path: attributes.path.get(..end).unwrap_or_default() }
    }
}

impl Test {
    /// Whether TCP has no such attribute (reference authorization 11).
    pub(crate) fn is_http_only(&self) -> bool {
        matches!(
            self.check,
            Check::Method(_)
                | Check::Host(_)
                | Check::Path(..)
                | Check::Header(..)
                | Check::RequestPrincipal(_)
                | Check::Claim(..)
        )
    }

    /// Whether its outcome can differ between the requests of one connection.
    pub(crate) fn is_per_request(&self) -> bool {
        self.is_http_only() || matches!(self.check, Check::RemoteIp(_))
    }

    /// Whether hitting one of the test's keys is the same as passing it.
    pub(crate) fn keys_are_exact(&self) -> bool {
        match &self.check {
            Check::Path(_, templates) => templates.is_empty(),
            Check::Method(_) | Check::Host(_) | Check::Header(..) | Check::RemoteIp(_) => true,
            Check::Claim(..) | Check::RequestPrincipal(_) => true,
            // Connection parts are judged once, and whole.
            _ => false,
        }
    }

    /// Whether it passes.
    pub(crate) fn holds(&self, connection: &Connection, request: Option<&Request<'_>>) -> bool {
        self.check.finds(connection, request) != self.negated
    }
}

impl Check {
    /// Whether the attribute is there and a value matches it.
    fn finds(&self, connection: &Connection, request: Option<&Request<'_>>) -> bool {
        let text = |set: &TextSet, text: &str| !text.is_empty() && set.matches(text.as_bytes());
        match self {
            Self::Principal(set) => text(set, &connection.uri),
            Self::Namespace(patterns) => patterns.iter().any(|p| p.matches(&connection.uri)),
            Self::ServiceAccount(accounts) => {
                connection.identity.as_ref().is_some_and(|peer| peer::is_one_of(accounts, peer))
            }
            Self::TrustDomain(set) => {
                connection.identity.as_ref().is_some_and(|peer| set.matches(peer.trust_domain().as_str()))
            }
            Self::SourceIp(set) => set.contains(connection.source_ip),
            Self::RemoteIp(set) => set.contains(connection.remote_ip_of(request)),
            Self::DestinationIp(set) => set.contains(connection.destination_ip),
            Self::Port(ports) => ports.binary_search(&connection.destination_port).is_ok(),
            Self::Sni(set) => text(set, &connection.sni),
            Self::Method(set) => request.is_some_and(|r| text(set, r.attributes.method)),
            Self::Host(set) => request.is_some_and(|r| text(set, r.attributes.host)),
            Self::Path(set, templates) => request.is_some_and(|r| {
                text(set, r.path) || (!r.path.is_empty() && templates.iter().any(|t| t.matches(r.path)))
            }),
            Self::Header(header, set) => request.is_some_and(|r| {
                let mut found = false;
                header.visit(r, &mut |value| found = found || set.matches(value));
                found
            }),
            Self::RequestPrincipal(principals) => {
                let claims = request.and_then(|r| r.attributes.claims);
                let principal = claims.and_then(Claims::principal);
                principal.is_some_and(|(issuer, subject)| principals.matches(issuer, subject))
            }
            Self::Claim(path, set) => request.is_some_and(|r| {
                let mut found = false;
                path.visit(r, &mut |value| found = found || set.matches(value));
                found
            }),
        }
    }
}
