use std::net::IpAddr;

use maille_core::{Hostname, NamespacedName};

use super::changes::Key;

/// What a proxy asked about, understood as seen from its namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// An address.
    Address(IpAddr),
    /// The one service that this host name can mean.
    Service(NamespacedName),
    /// A name that no service of the cluster can have.
    Foreign,
}

impl Asked {
    /// Reads an address or a host name without port.
    ///
    /// `cart`, `cart.shop`, `cart.shop.svc` and `cart.shop.svc.cluster.local` mean a service as the search list
    /// of a pod's resolver would find it.
    pub fn read(name: &str, own_namespace: &str, cluster_domain: &str) -> Self {
        if let Ok(address) = name.parse::<IpAddr>() {
            return Self::Address(address.to_canonical());
        }
        let Ok(host) = Hostname::parse(name) else { return Self::Foreign };
        let host = host.as_str();
        let short = host.strip_suffix(cluster_domain).and_then(|rest| rest.strip_suffix(".svc."));
        let short = short.or_else(|| host.strip_suffix(".svc"));
        let parts: Vec<&str> = short.unwrap_or(host).split('.').collect();
        match (parts.as_slice(), short) {
            ([service], None) => Self::Service(NamespacedName::new(own_namespace, *service)),
            ([service, namespace], _) => Self::Service(NamespacedName::new(*namespace, *service)),
            _ => Self::Foreign,
        }
    }

    /// The key whose changes can change the answer; none if nothing can.
    pub fn key(&self) -> Option<Key> {
        match self {
            Self::Address(address) => Some(Key::Address(*address)),
            Self::Service(name) => Some(Key::Service(name.clone())),
            Self::Foreign => None,
        }
    }
}
