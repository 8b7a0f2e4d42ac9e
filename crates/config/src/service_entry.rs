//! Who sees a ServiceEntry, which entry owns a host, and what its ports are (reference mtls 4.1, SE-2).

use std::cmp::Ordering;

use crate::age::by_age;
use crate::export::{exported_to, is_private};
use crate::hosts::HostPattern;
use crate::istio::{Resolution, ServiceEntry, ServiceEntryPort, WorkloadEntrySpec};

/// How the bytes of an entry's port are understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PortClass {
    /// Not said: detected.
    Auto,
    /// HTTP, HTTP_PROXY, GRPC-WEB.
    Http,
    /// HTTP2, GRPC.
    Http2,
    /// TCP, MONGO, REDIS, MYSQL.
    Tcp,
    /// HTTPS, TLS: the application speaks TLS.
    Tls,
}

impl PortClass {
    /// Reads `ports[].protocol`, in any case, as Istio does; `None` for what no proxy carries.
    pub fn parse(protocol: &str) -> Option<Self> {
        Some(match protocol.to_ascii_lowercase().as_str() {
            "" => Self::Auto,
            "http" | "http_proxy" | "grpc-web" => Self::Http,
            "http2" | "grpc" => Self::Http2,
            "tcp" | "mongo" | "redis" | "mysql" => Self::Tcp,
            "https" | "tls" => Self::Tls,
            _ => return None,
        })
    }

    /// Whether each connection or request says itself which host it is for, by SNI or Host.
    pub fn names_its_host(self) -> bool {
        matches!(self, Self::Http | Self::Http2 | Self::Tls)
    }
}

/// Whether a namespace sees the entry.
pub fn visible_to(entry: &ServiceEntry, namespace: &str) -> bool {
    exported_to(&entry.spec.export_to, namespace_of(entry), namespace)
}

/// The entries that own what all `claimants` claim, as seen from `namespace`: the owner first, then those of
/// its namespace that add ports. Empty if the namespace sees none of them.
///
/// An entry that only its own namespace sees goes before one that names its namespaces, and that before one for
/// everybody; then the oldest wins (SE-2), so that a newcomer takes nobody's host.
pub fn owners<'e>(
    claimants: impl IntoIterator<Item = &'e ServiceEntry>,
    namespace: &str,
) -> Vec<&'e ServiceEntry> {
    let mut seen = in_order(claimants, namespace);
    let Some(first) = seen.first().copied() else { return seen };
    seen.retain(|other| {
        namespace_of(other) == namespace_of(first)
            && other.spec.resolution == first.spec.resolution
            && other.spec.location == first.spec.location
    });
    seen
}

/// The entries that `namespace` sees, those first that own what several claim.
pub fn in_order<'e>(
    claimants: impl IntoIterator<Item = &'e ServiceEntry>,
    namespace: &str,
) -> Vec<&'e ServiceEntry> {
    let mut seen: Vec<_> = claimants.into_iter().filter(|entry| visible_to(entry, namespace)).collect();
    seen.sort_by(|a, b| precedence(a, b));
    seen
}

/// The pattern and the owners of a host, as seen from `namespace`: an exact host first, then the longest wildcard that
/// the namespace sees.
pub fn owners_of_host<'e>(
    entries: impl IntoIterator<Item = &'e ServiceEntry>,
    namespace: &str,
    host: &str,
) -> Option<(HostPattern, Vec<&'e ServiceEntry>)> {
    let visible = entries.into_iter().filter(|entry| visible_to(entry, namespace));
    let claims: Vec<_> = visible.filter_map(|entry| Some((host_for(entry, host)?, entry))).collect();
    let pattern = claims.iter().map(|(pattern, _)| pattern).max_by_key(|p| p.specificity())?.clone();
    let claimants = claims.iter().filter(|(p, _)| *p == pattern).map(|(_, entry)| *entry);
    let owners = owners(claimants, namespace);
    Some((pattern, owners))
}

fn precedence(a: &ServiceEntry, b: &ServiceEntry) -> Ordering {
    let breadth = |entry: &ServiceEntry| {
        let list = &entry.spec.export_to;
        if is_private(list, namespace_of(entry)) {
            0
        } else if list.is_empty() || list.iter().any(|e| e == "*") {
            2
        } else {
            1
        }
    };
    breadth(a).cmp(&breadth(b)).then_with(|| by_age(&a.metadata, &b.metadata))
}

/// Namespace of an entry.
pub fn namespace_of(entry: &ServiceEntry) -> &str {
    entry.metadata.namespace.as_deref().unwrap_or_default()
}

/// The host of an entry that means `host`, the most specific one.
pub fn host_for(entry: &ServiceEntry, host: &str) -> Option<HostPattern> {
    let host = HostPattern::new(host);
    let hosts = entry.spec.hosts.iter().map(|h| HostPattern::new(h));
    hosts.filter(|pattern| pattern.covers(&host)).max_by_key(HostPattern::specificity)
}

/// The port of an endpoint that takes what is sent to `port`.
pub fn endpoint_port(endpoint: &WorkloadEntrySpec, port: &ServiceEntryPort) -> Option<u16> {
    let number = endpoint.ports.get(&port.name).copied();
    valid_port(number.or(port.target_port.filter(|t| *t != 0)).unwrap_or(port.number))
}

/// The label by which an entry declines addresses of the mesh's giving.
pub const ALLOCATION_LABEL: &str = "networking.istio.io/enable-autoallocate-ip";

/// Whether some host of an entry gets addresses of the mesh's giving (SE-15); which ones, [`allocates_to`] says.
pub fn allocates(entry: &ServiceEntry) -> bool {
    entry.spec.hosts.iter().any(|host| allocates_to(entry, host))
}

/// Whether a host of an entry gets addresses: the entry has none of its own, is not about the dialled address, and does
/// not decline; a wildcard gets some only where each name is looked up (istio pilot/pkg/networking/serviceentry).
pub fn allocates_to(entry: &ServiceEntry, host: &str) -> bool {
    let label = entry.metadata.labels.as_ref().and_then(|labels| labels.get(ALLOCATION_LABEL));
    entry.spec.addresses.is_empty()
        && entry.spec.resolution != Resolution::None
        && label.is_none_or(|value| !value.eq_ignore_ascii_case("false"))
        && (!host.starts_with('*') || entry.spec.resolution == Resolution::DynamicDns)
}

/// A port number that is one.
pub fn valid_port(number: u32) -> Option<u16> {
    u16::try_from(number).ok().filter(|n| *n != 0)
}

#[cfg(test)]
mod tests;
