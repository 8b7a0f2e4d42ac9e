//! Keys: what an attribute must look like for a test to have any chance.

use std::collections::HashMap;
use std::net::IpAddr;

use foldhash::fast::RandomState;

use crate::Claims;
use crate::address::Block;
use crate::rule::{TestId, Tests};
use crate::test::{Check, Connection, Header, Request, Test};
use crate::text::TextSet;
use crate::token::{self, ClaimPath};

/// An attribute as the index sees it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Attribute {
    /// The peer's full URI.
    Principal,
    /// What stands between `/ns/` and the next slash of the URI.
    Namespace,
    /// All that follows `/ns/` in the URI.
    NamespaceStart,
    /// `namespace/account`.
    Account,
    TrustDomain,
    SourceIp,
    RemoteIp,
    DestinationIp,
    Port,
    Sni,
    Method,
    /// In lower case.
    Host,
    Path,
    Header(Header),
    /// Issuer and subject, joined, if neither is empty.
    RequestPrincipal,
    Claim(ClaimPath),
}

/// One value, or set of values, of an attribute.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum KeyValue {
    /// Any value.
    Present,
    Exact(Box<[u8]>),
    Prefix(Box<[u8]>),
    Suffix(Box<[u8]>),
    Block(Block),
    Port(u16),
}

/// INVARIANT: a positive test holds only if one of its keys is hit; the reverse need not be.
pub(crate) type Key = (Attribute, KeyValue);

/// Index of a key in [`Keys`].
pub(crate) type KeyId = u32;

/// The keys of all tests.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    all: Vec<Key>,
    /// By test; `None`: a test that says nothing about what must be there.
    of_test: Vec<Option<Box<[KeyId]>>>,
}

impl Keys {
    pub(crate) fn new(tests: &Tests) -> Self {
        let mut keys = Self::default();
        let mut ids: HashMap<Key, KeyId, RandomState> = HashMap::default();
        for test in tests.iter() {
            let of_test = keys_of(test).map(|found| {
                found
                    .into_iter()
                    .map(|key| {
                        *ids.entry(key).or_insert_with_key(|key| {
                            keys.all.push(key.clone());
                            keys.all.len() as KeyId - 1
                        })
                    })
                    .collect()
            });
            keys.of_test.push(of_test);
        }
        keys
    }

    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    pub(crate) fn get(&self, id: KeyId) -> Option<&Key> {
        self.all.get(id as usize)
    }

    pub(crate) fn of_test(&self, test: TestId) -> Option<&[KeyId]> {
        self.of_test.get(test as usize)?.as_deref()
    }
}

fn keys_of(test: &Test) -> Option<Vec<Key>> {
    if test.negated {
        return None;
    }
    let texts = |attribute: Attribute, set: &TextSet| -> Vec<Key> {
        set.keys().into_iter().map(|value| (attribute.clone(), value)).collect()
    };
    let blocks = |attribute: Attribute, blocks: Vec<Block>| -> Vec<Key> {
        blocks.into_iter().map(|b| (attribute.clone(), KeyValue::Block(b))).collect()
    };
    Some(match &test.check {
        Check::Principal(set) => texts(Attribute::Principal, set),
        Check::Namespace(patterns) => patterns
            .iter()
            .map(|pattern| match pattern.literal() {
                Ok(namespace) => (Attribute::Namespace, KeyValue::Exact(namespace.as_bytes().into())),
                Err("") => (Attribute::NamespaceStart, KeyValue::Present),
                Err(start) => (Attribute::NamespaceStart, KeyValue::Prefix(start.as_bytes().into())),
            })
            .collect(),
        Check::ServiceAccount(accounts) => accounts
            .iter()
            .map(|(namespace, account)| {
                (Attribute::Account, KeyValue::Exact(format!("{namespace}/{account}").into_bytes().into()))
            })
            .collect(),
        Check::TrustDomain(set) => set.keys().into_iter().map(|v| (Attribute::TrustDomain, v)).collect(),
        Check::SourceIp(set) => blocks(Attribute::SourceIp, set.blocks()),
        Check::RemoteIp(set) => blocks(Attribute::RemoteIp, set.blocks()),
        Check::DestinationIp(set) => blocks(Attribute::DestinationIp, set.blocks()),
        Check::Port(ports) => ports.iter().map(|p| (Attribute::Port, KeyValue::Port(*p))).collect(),
        Check::Sni(set) => texts(Attribute::Sni, set),
        Check::Method(set) => texts(Attribute::Method, set),
        Check::Host(set) => texts(Attribute::Host, set),
        Check::Path(set, templates) => {
            let mut keys = texts(Attribute::Path, set);
            keys.extend(templates.iter().map(|t| match t.literal_prefix() {
                "" => (Attribute::Path, KeyValue::Present),
                start => (Attribute::Path, KeyValue::Prefix(start.as_bytes().into())),
            }));
            keys
        }
        Check::Header(header, set) => texts(Attribute::Header(header.clone()), set),
        Check::RequestPrincipal(principals) => texts(Attribute::RequestPrincipal, principals.joined()?),
        Check::Claim(path, set) => texts(Attribute::Claim(path.clone()), set),
    })
}

/// Host names up to this length (a name's 253 bytes and a port) are folded without allocating.
const HOST_BUFFER: usize = 272;

impl Attribute {
    /// Calls `visit` with each text value that is there.
    pub(crate) fn visit_texts(
        &self,
        connection: &Connection,
        request: Option<&Request<'_>>,
        visit: &mut dyn FnMut(&[u8]),
    ) {
        let mut unless_empty = |text: &str| {
            if !text.is_empty() {
                visit(text.as_bytes());
            }
        };
        match self {
            Self::Principal => unless_empty(&connection.uri),
            Self::Namespace => {
                for rest in after_namespace_marks(&connection.uri) {
                    visit(rest.split('/').next().unwrap_or_default().as_bytes());
                }
            }
            Self::NamespaceStart => {
                after_namespace_marks(&connection.uri).for_each(|rest| visit(rest.as_bytes()))
            }
            Self::Account => {
                if let Some(peer) = &connection.identity {
                    visit(format!("{}/{}", peer.namespace(), peer.service_account()).as_bytes());
                }
            }
            Self::TrustDomain => {
                if let Some(peer) = &connection.identity {
                    visit(peer.trust_domain().as_str().as_bytes());
                }
            }
            Self::Sni => unless_empty(&connection.sni),
            Self::Method => unless_empty(request.map_or("", |r| r.attributes.method)),
            Self::Host => {
                let host = request.map_or("", |r| r.attributes.host).as_bytes();
                let mut buffer = [0; HOST_BUFFER];
                match buffer.get_mut(..host.len()) {
                    Some([]) => {}
                    Some(folded) => {
                        folded.copy_from_slice(host);
                        folded.make_ascii_lowercase();
                        visit(folded);
                    }
                    None => visit(&host.to_ascii_lowercase()),
                }
            }
            Self::Path => unless_empty(request.map_or("", |r| r.path)),
            Self::Header(header) => {
                if let Some(request) = request {
                    header.visit(request, visit);
                }
            }
            Self::RequestPrincipal => {
                let claims = request.and_then(|r| r.attributes.claims);
                if let Some((issuer, subject)) = claims.and_then(Claims::principal)
                    && !issuer.is_empty()
                    && !subject.is_empty()
                {
                    token::with_joined(issuer, subject, visit);
                }
            }
            // Found by other ways than one text.
            Self::Claim(_) | Self::SourceIp | Self::RemoteIp | Self::DestinationIp | Self::Port => {}
        }
    }

    /// The address, for attributes that are one.
    pub(crate) fn address(&self, connection: &Connection, request: Option<&Request<'_>>) -> Option<IpAddr> {
        match self {
            Self::SourceIp => Some(connection.source_ip),
            Self::RemoteIp => Some(connection.remote_ip_of(request)),
            Self::DestinationIp => Some(connection.destination_ip),
            _ => None,
        }
    }
}

/// What follows each `/ns/` of the URI, overlapping ones too.
fn after_namespace_marks(uri: &str) -> impl Iterator<Item = &str> {
    uri.char_indices().filter_map(move |(at, _)| uri.get(at..)?.strip_prefix("/ns/"))
}
