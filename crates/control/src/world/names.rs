use std::net::IpAddr;

use maille_core::{Hostname, NamespacedName};

use super::changes::Key;

/// What a proxy asked about, understood as seen from its namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// An address.
    Address(IpAddr),
    /// A host name.
    Host(AskedHost),
    /// A port of any address.
    Port(AskedPort),
    /// Nothing that could be there.
    Nothing,
}

/// A port, whatever the address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AskedPort {
    /// Its number.
    pub number: u16,
    /// Whether the application's DNS questions are answered by its proxy, so that it is given the addresses that the mesh
    /// has allocated, and dials them (SE-16).
    pub is_given_addresses: bool,
}

impl AskedPort {
    /// Reads `5432`, or `5432/dns` of who is given addresses.
    fn read(text: &str) -> Option<Self> {
        let given = text.strip_suffix("/dns");
        let number = given.unwrap_or(text);
        let port = number.parse().ok().filter(|port: &u16| *port != 0 && port.to_string() == number)?;
        Some(Self { number: port, is_given_addresses: given.is_some() })
    }
}

/// A host name, and what it can mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AskedHost {
    /// As it was asked for, in lower case.
    pub host: String,
    /// The one service of the cluster that it can mean.
    pub service: Option<NamespacedName>,
    /// That service's full name.
    pub full: Option<String>,
    /// The services below whose names it can be, as `db-0.db.shop` is below `db.shop`: while one of them exists, the name
    /// is of its pods, and no entry's.
    pub above: Vec<Above>,
    /// The entries whose name it can be otherwise.
    pub entries: Claimants,
}

/// A service, and the part of a name that is before the service's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Above {
    /// The service.
    pub service: NamespacedName,
    /// What stands before it: the host name of one of its pods, or the names of a port and its protocol.
    pub below: String,
}

/// Whose hosts a name can be among.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claimants {
    /// Every entry's.
    All,
    /// A name of the cluster's own: only of entries that say exactly it. A wildcard would take what others will name.
    Exact,
    /// A pod's name, which says its address.
    Nobody,
}

impl Asked {
    /// Reads an address, a host name without port, or `*:PORT`.
    ///
    /// `cart`, `cart.shop`, `cart.shop.svc` and `cart.shop.svc.cluster.local` mean a service as the search list
    /// of a pod's resolver would find it; every name can be a ServiceEntry's.
    pub fn read(name: &str, own_namespace: &str, cluster_domain: &str) -> Self {
        if let Ok(address) = name.parse::<IpAddr>() {
            return Self::Address(address.to_canonical());
        }
        if let Some(port) = name.strip_prefix("*:") {
            return AskedPort::read(port).map_or(Self::Nothing, Self::Port);
        }
        let Ok(host) = Hostname::parse(name) else { return Self::Nothing };
        let service = service_named(host.as_str(), Some(own_namespace), cluster_domain);
        let full = service.as_ref().map(|s| format!("{}.{}.svc.{cluster_domain}", s.name, s.namespace));
        Self::Host(AskedHost {
            host: host.as_str().to_owned(),
            service,
            full,
            above: services_above(host.as_str(), own_namespace, cluster_domain),
            entries: claimants(host.as_str(), cluster_domain),
        })
    }

    /// The keys whose changes can change the answer.
    pub fn keys(&self) -> Vec<Key> {
        match self {
            Self::Address(address) => vec![Key::Address(*address)],
            Self::Port(port) => vec![Key::Port(*port)],
            Self::Host(asked) => {
                let mut keys = vec![Key::host(&asked.host)];
                let above = asked.above.iter().map(|above| &above.service);
                keys.extend(asked.service.iter().chain(above).cloned().map(Key::Service));
                keys.extend(
                    asked.full.as_ref().filter(|full| **full != asked.host).map(|full| Key::host(full)),
                );
                keys
            }
            Self::Nothing => Vec::new(),
        }
    }
}

/// The service that a host name can mean; without a namespace to begin in, full names only.
pub(super) fn service_named(
    host: &str,
    own_namespace: Option<&str>,
    cluster_domain: &str,
) -> Option<NamespacedName> {
    let full = host.strip_suffix(cluster_domain).and_then(|rest| rest.strip_suffix(".svc."));
    let short = full.or_else(|| host.strip_suffix(".svc").filter(|_| own_namespace.is_some()));
    let parts: Vec<&str> = short.unwrap_or(host).split('.').collect();
    match (parts.as_slice(), short, own_namespace) {
        ([service], None, Some(namespace)) => Some(NamespacedName::new(namespace, *service)),
        ([service, namespace], Some(_), _) | ([service, namespace], None, Some(_)) => {
            Some(NamespacedName::new(*namespace, *service))
        }
        _ => None,
    }
}

/// The services below whose names a host name can be: a service's pods are one label below it, its ports two.
fn services_above(host: &str, own_namespace: &str, cluster_domain: &str) -> Vec<Above> {
    let full = host.strip_suffix(cluster_domain).and_then(|rest| rest.strip_suffix(".svc."));
    let short = full.or_else(|| host.strip_suffix(".svc"));
    let parts: Vec<&str> = short.unwrap_or(host).rsplit('.').collect();
    let above = |namespace: &str, service: &str, below: &[&str]| {
        let below: Vec<&str> = below.iter().rev().copied().collect();
        vec![Above { service: NamespacedName::new(namespace, service), below: below.join(".") }]
    };
    match (parts.as_slice(), short) {
        ([namespace, service, below @ ..], _) if !below.is_empty() => above(namespace, service, below),
        // The first of a resolver's search list.
        ([service, below], None) => above(own_namespace, service, &[below]),
        _ => Vec::new(),
    }
}

fn claimants(host: &str, cluster_domain: &str) -> Claimants {
    let own = host.strip_suffix(cluster_domain).and_then(|rest| rest.strip_suffix('.'));
    let name = own.unwrap_or(host);
    if name.ends_with(".pod") {
        Claimants::Nobody
    } else if own.is_some() || name.ends_with(".svc") {
        Claimants::Exact
    } else {
        Claimants::All
    }
}
