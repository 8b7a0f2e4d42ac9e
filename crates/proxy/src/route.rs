//! Where an outbound connection or request goes: pure choices over what is known of a destination.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use maille_core::{EndpointTls, PortProtocol};
use maille_telemetry::ServiceLabels;

use crate::balance::Terms;
use crate::connect::{Security, Upstream};
use crate::record::{self, Called};
use crate::snapshot::{
    Destination, Endpoint, EndpointPort, HeadlessPort, OrderMode, Resolution, Service, ServicePort, TlsOrder,
    Workload,
};
use crate::worker::Worker;

/// What is behind a dialled address and port.
#[derive(Debug)]
pub(crate) enum Behind<'a> {
    /// A port of a service, reached through its endpoints.
    Service(&'a Service, &'a ServicePort),
    /// A port that headless services declare, reached where it was dialled.
    Headless(&'a Arc<Workload>, &'a HeadlessPort),
    /// Known or not, nothing declares this port: passed through or refused.
    Undeclared(Option<&'a Arc<Workload>>),
}

/// Looks a port up.
pub(crate) fn behind(destination: &Destination, port: u16) -> Behind<'_> {
    if let Destination::Workload(direct) = destination {
        return match direct.headless_ports.iter().find(|p| p.port == port) {
            Some(declared) => Behind::Headless(&direct.workload, declared),
            None => Behind::Undeclared(Some(&direct.workload)),
        };
    }
    match destination.service().and_then(|service| Some((service, service.port(port)?))) {
        Some((service, declared)) => Behind::Service(service, declared),
        None => Behind::Undeclared(None),
    }
}

impl<'a> Behind<'a> {
    /// What a DestinationRule says, if it puts its own TLS around what the application sends.
    pub(crate) fn originates(&self) -> Option<&'a Arc<TlsOrder>> {
        let order = match self {
            Self::Service(_, port) => port.order.as_ref(),
            Self::Headless(_, port) => port.order.as_ref(),
            Self::Undeclared(_) => None,
        };
        order.filter(|order| order.originates())
    }

    /// How the bytes are to be understood.
    pub(crate) fn protocol(&self) -> PortProtocol {
        match self {
            Self::Service(_, port) => port.protocol,
            Self::Headless(_, port) => port.protocol,
            Self::Undeclared(_) => PortProtocol::Auto,
        }
    }
}

/// Whether `host` is another spelling of a service as seen from `own_namespace`, so that nobody has to be asked:
/// its full name, the short forms of Kubernetes, and its addresses (SE-9).
pub(crate) fn is_named(service: &Service, own_namespace: &str, cluster_domain: &str, host: &str) -> bool {
    let name = &service.name;
    if host.eq_ignore_ascii_case(&name.hostname) {
        return true;
    }
    if service.service_entry.is_some() {
        // The short forms are Kubernetes' own.
        return host_address(host).is_some_and(|address| service.addresses.contains(&address));
    }
    let mut labels = host.splitn(3, '.');
    let is_short = labels.next().is_some_and(|first| first.eq_ignore_ascii_case(&name.name));
    let is_named = is_short
        && match (labels.next(), labels.next()) {
            (None, _) => own_namespace == &*name.namespace,
            (Some(namespace), rest) => {
                namespace.eq_ignore_ascii_case(&name.namespace)
                    && rest.is_none_or(|rest| {
                        rest.eq_ignore_ascii_case("svc")
                            || rest.strip_prefix("svc.").is_some_and(|domain| domain == cluster_domain)
                    })
            }
        };
    is_named || host_address(host).is_some_and(|address| service.addresses.contains(&address))
}

/// An address as `Host` writes it.
pub(crate) fn host_address(host: &str) -> Option<IpAddr> {
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    bare.parse().ok()
}

/// `Host` without its port.
pub(crate) fn without_port(authority: &str) -> &str {
    if authority.starts_with('[') {
        return authority.find(']').and_then(|end| authority.get(..=end)).unwrap_or(authority);
    }
    match authority.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') && port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    }
}

/// Whether a port is reached at the address that was dialled.
pub(crate) fn is_dialled(service: &Service, port: &ServicePort) -> bool {
    service.resolution == Resolution::Dialled || port.balance.as_ref().is_some_and(|b| b.is_passthrough())
}

/// The ready endpoints that serve a port.
pub(crate) fn candidates(service: &Service, port: u16) -> impl Iterator<Item = (&Endpoint, &EndpointPort)> {
    service.endpoints.iter().filter_map(move |endpoint| {
        endpoint.ports.iter().find(|p| p.service_port == port).map(|at| (endpoint, at))
    })
}

/// The less busy of two endpoints drawn at random (Istio's default, LEAST_REQUEST), of those that were not `tried` if
/// others are left.
pub(crate) fn less_busy<T>(
    worker: &Worker,
    service: &Service,
    port: u16,
    reach: impl Fn(&Endpoint, &EndpointPort) -> T,
    busy: impl Fn(&T) -> usize,
    tried: impl Fn(&T) -> bool,
) -> Option<T> {
    let count = candidates(service, port).count();
    let at = |index: usize| candidates(service, port).nth(index).map(|(endpoint, at)| reach(endpoint, at));
    let first = worker.random_below(count);
    let second = match count {
        0 | 1 => None,
        count => at((first + 1 + worker.random_below(count - 1)) % count),
    };
    match (at(first)?, second) {
        (a, Some(b)) if !tried(&a) && !tried(&b) => Some(if busy(&a) <= busy(&b) { a } else { b }),
        (a, _) if !tried(&a) => Some(a),
        (_, Some(b)) if !tried(&b) => Some(b),
        // Both drawn were tried: one of the others, if there are any.
        (a, _) => (1..count).filter_map(|k| at((first + k) % count)).find(|other| !tried(other)).or(Some(a)),
    }
}

/// How one endpoint of a service is reached by a caller that named `host`, if it named one.
pub(crate) fn to_endpoint(
    service: &Service,
    port: &ServicePort,
    endpoint: &Endpoint,
    at: &EndpointPort,
    host: Option<&str>,
) -> Upstream {
    let security = match &port.order {
        None => security(at.tls, &port.sni, &service.subject_alt_names),
        Some(order) => ordered(order, &port.sni, &service.subject_alt_names, host),
    };
    Upstream {
        address: SocketAddr::new(endpoint.address, at.target_port),
        security,
        terms: terms(port),
        socket: endpoint.unix_path.clone(),
        other: endpoint.other_address,
    }
    .of_proxy_that_multiplexes(endpoint.workload.multiplexes)
}

/// The bounds of a port.
fn terms(port: &ServicePort) -> Option<Arc<Terms>> {
    port.balance.as_ref().and_then(|balance| balance.terms()).cloned()
}

/// How a service is reached at the address that was dialled (SE-4).
pub(crate) fn to_dialled(
    service: &Service,
    port: &ServicePort,
    dialled: SocketAddr,
    host: Option<&str>,
) -> Upstream {
    let security = match &port.order {
        // One choice for all (reference mtls 2.1 A3): without endpoints, or with one that has no sidecar, nobody is known to
        // take mutual TLS at this address.
        None => match candidates(service, port.number).all(|(_, at)| at.tls == EndpointTls::IstioMutual) {
            true if candidates(service, port.number).next().is_some() => {
                security(EndpointTls::IstioMutual, &port.sni, &service.subject_alt_names)
            }
            _ => Security::Plain,
        },
        Some(order) => ordered(order, &port.sni, &service.subject_alt_names, host),
    };
    let number = port.target_port.unwrap_or(dialled.port());
    let address = SocketAddr::new(dialled.ip(), number);
    Upstream { terms: terms(port), ..Upstream::at(address, security) }
}

/// What a DestinationRule orders (reference mtls 2.2).
fn ordered(order: &Arc<TlsOrder>, sni: &Arc<str>, expected: &Arc<[String]>, host: Option<&str>) -> Security {
    match order.mode {
        OrderMode::Disable => Security::Plain,
        OrderMode::IstioMutual => Security::Mutual {
            sni: order.sni.as_ref().unwrap_or(sni).clone(),
            // SN-4.
            expected: match order.subject_alt_names.is_empty() {
                true => expected.clone(),
                false => order.subject_alt_names.clone(),
            },
            multiplexes: false,
        },
        OrderMode::Simple | OrderMode::Mutual | OrderMode::Unknown => {
            let bare = host.map(|host| host.trim_start_matches('[').trim_end_matches([']', '.']));
            let name = bare.filter(|host| !host.is_empty()).map(|host| host.to_ascii_lowercase().into());
            Security::Ordered { order: order.clone(), name: order.sni.clone().or(name) }
        }
    }
}

/// How a workload is reached that was dialled by its own address.
pub(crate) fn to_headless(address: IpAddr, port: &HeadlessPort, host: Option<&str>) -> Upstream {
    let security = match &port.order {
        None => security(port.tls, &port.sni, &port.subject_alt_names),
        Some(order) => ordered(order, &port.sni, &port.subject_alt_names, host),
    };
    let address = SocketAddr::new(address, port.port);
    Upstream { terms: port.terms.clone(), ..Upstream::at(address, security) }
}

fn security(tls: EndpointTls, sni: &Arc<str>, expected: &Arc<[String]>) -> Security {
    match tls {
        EndpointTls::Plaintext => Security::Plain,
        EndpointTls::IstioMutual => {
            Security::Mutual { sni: sni.clone(), expected: expected.clone(), multiplexes: false }
        }
    }
}

/// Telemetry's names for an endpoint of a service.
pub(crate) fn called_endpoint(service: &Service, endpoint: &Endpoint, address: SocketAddr) -> Called {
    Called { workload: endpoint.workload.clone(), service: record::service(&service.name), address }
}

/// Telemetry's names for a service that is reached where it was dialled, or not at all.
pub(crate) fn called_service(service: &Service, address: SocketAddr) -> Called {
    Called { workload: Arc::default(), service: record::service(&service.name), address }
}

/// Telemetry's names for what is passed through.
pub(crate) fn called_passthrough(workload: Option<&Arc<Workload>>, address: SocketAddr) -> Called {
    Called { workload: workload.cloned().unwrap_or_default(), service: passthrough(), address }
}

fn passthrough() -> Arc<ServiceLabels> {
    record::pseudo_service("PassthroughCluster", String::new())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{Resolution, ServiceName};

    fn service() -> Service {
        let name = ServiceName {
            hostname: "cart.shop.svc.cluster.local".into(),
            name: "cart".into(),
            namespace: "shop".into(),
        };
        Service {
            name: Arc::new(name),
            addresses: vec![IpAddr::from([10, 96, 0, 9])],
            ports: Vec::new(),
            endpoints: Vec::new(),
            subject_alt_names: Arc::new([]),
            headless: false,
            external: false,
            resolution: Resolution::Listed,
            service_entry: None,
            named_endpoints: Vec::new(),
            lookup_failure: None,
        }
    }

    /// Reference mtls SE-9.
    #[test]
    fn a_service_goes_by_its_names_and_addresses() {
        let cart = service();
        let named = |namespace, host| is_named(&cart, namespace, "cluster.local", host);
        for host in ["cart.shop", "cart.shop.svc", "Cart.Shop.svc.cluster.local", "10.96.0.9"] {
            assert!(named("other", host), "{host}");
        }
        assert!(named("shop", "cart") && !named("other", "cart"));
        for host in
            ["cart.other", "cart.shop.example.com", "cart.shop.svc.example.com", "10.96.0.8", "", "shop.cart"]
        {
            assert!(!named("shop", host), "{host}");
        }
    }

    #[test]
    fn ports_of_hosts_are_cut() {
        for (authority, host) in [
            ("a:80", "a"),
            ("a", "a"),
            ("[::1]:80", "[::1]"),
            ("[::1]", "[::1]"),
            ("::1", "::1"),
            ("a:", "a"),
        ] {
            assert_eq!(without_port(authority), host);
        }
        assert_eq!(host_address("[::1]"), "::1".parse().ok());
    }
}
