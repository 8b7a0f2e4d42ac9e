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
    /// Nothing that could be there.
    Nothing,
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
}

impl Asked {
    /// Reads an address or a host name without port.
    ///
    /// `cart`, `cart.shop`, `cart.shop.svc` and `cart.shop.svc.cluster.local` mean a service as the search list
    /// of a pod's resolver would find it; every name can be a ServiceEntry's.
    pub fn read(name: &str, own_namespace: &str, cluster_domain: &str) -> Self {
        if let Ok(address) = name.parse::<IpAddr>() {
            return Self::Address(address.to_canonical());
        }
        let Ok(host) = Hostname::parse(name) else { return Self::Nothing };
        let service = service_named(host.as_str(), Some(own_namespace), cluster_domain);
        let full = service.as_ref().map(|s| format!("{}.{}.svc.{cluster_domain}", s.name, s.namespace));
        Self::Host(AskedHost { host: host.as_str().to_owned(), service, full })
    }

    /// The keys whose changes can change the answer.
    pub fn keys(&self) -> Vec<Key> {
        match self {
            Self::Address(address) => vec![Key::Address(*address)],
            Self::Host(asked) => {
                let mut keys = vec![Key::host(&asked.host)];
                keys.extend(asked.service.clone().map(Key::Service));
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
