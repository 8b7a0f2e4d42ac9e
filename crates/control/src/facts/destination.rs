use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use maille_config::destination_rule::Client;
use maille_config::istio::PeerAuthentication;
use maille_config::{HostPattern, mtls};
use maille_core::MtlsMode;
use maille_proto::facts as wire;
use wire::EndpointTls::{IstioMutual, Plaintext};
use wire::destination::Kind;

use super::entry::entry_service;
use super::order::Order;
use super::{host_name, protocol, with_aliases, workload};
use crate::world::{Asked, AskedHost, Pod, Service, SliceEndpoint, World};

/// What is behind an address or a host's name, as one client sees it. What the registry does not know, or does not show
/// to this client, is said to be unknown.
pub fn destination(world: &World, asked: &Asked, client: Client<'_>) -> wire::Destination {
    let kind = match asked {
        Asked::Host(host) => host_kind(world, host, client),
        Asked::Address(address) => address_kind(world, *address, client),
        Asked::Nothing => None,
    };
    wire::Destination { kind: Some(kind.unwrap_or(Kind::Unknown(wire::Unknown {}))) }
}

/// A Kubernetes Service goes before every ServiceEntry of its name (SE-2).
fn host_kind(world: &World, asked: &AskedHost, client: Client<'_>) -> Option<Kind> {
    if let Some(found) = asked.service.as_ref().and_then(|name| world.service(name)) {
        return Some(Kind::Service(service(world, found, client)));
    }
    let owned = world.entry_for(asked, client.namespace)?;
    Some(Kind::Service(entry_service(world, &owned, client)))
}

/// A Service's address, then a pod with a sidecar, whose identity is known and which nobody's entry may stand in for;
/// then the longest prefix among the addresses of ServiceEntries and of other pods.
fn address_kind(world: &World, address: IpAddr, client: Client<'_>) -> Option<Kind> {
    if let Some(found) = world.service_at(address) {
        return Some(Kind::Service(service(world, found, client)));
    }
    let pod = world.pod_at(address);
    let shortest = match pod {
        Some(pod) if pod.meshed => return Some(Kind::Workload(direct_workload(world, pod, client))),
        Some(_) if address.is_ipv4() => 32,
        Some(_) => 128,
        None => 0,
    };
    match world.entry_at(address, shortest, client.namespace) {
        Some(owned) => Some(Kind::Service(entry_service(world, &owned, client))),
        None => pod.map(|pod| Kind::Workload(direct_workload(world, pod, client))),
    }
}

/// A service with the endpoints that are ready, each with how to reach it.
pub fn service(world: &World, service: &Service, client: Client<'_>) -> wire::Service {
    let config = world.config();
    let order = order(world, service, client);
    let policies = world.peer_authentications_for(&service.name.namespace);
    let choice = TlsChoice::of(world, service, &policies);
    // One endpoint may be in two slices while it moves between them.
    let mut endpoints: BTreeMap<IpAddr, wire::Endpoint> = BTreeMap::new();
    for slice in world.slices_of(&service.name) {
        for found in slice.endpoints.iter().filter(|e| e.ready) {
            // Kubernetes: addresses of one endpoint are interchangeable, and consumers use the first.
            let Some(address) = found.addresses.first() else { continue };
            let pod = pod_of(world, service, found);
            let ports = service.ports.iter().filter_map(|declared| {
                let (_, target) = slice.ports.iter().find(|(name, _)| *name == declared.name)?;
                let auto = || choice.for_endpoint(pod.map(Arc::as_ref), *target);
                let tls = order.endpoint_tls(declared.number, choice.is_each(), auto);
                Some(wire::EndpointPort {
                    service_port: declared.number.into(),
                    target_port: (*target).into(),
                    tls: tls.into(),
                })
            });
            let ports: Vec<_> = ports.collect();
            let endpoint = endpoints.entry(*address).or_insert_with(|| wire::Endpoint {
                workload: pod.map(|pod| workload(pod, config)),
                address: address.to_string(),
                ports: Vec::new(),
                ..Default::default()
            });
            for port in ports {
                if !endpoint.ports.iter().any(|p| p.service_port == port.service_port) {
                    endpoint.ports.push(port);
                }
            }
        }
    }
    wire::Service {
        namespace: service.name.namespace.clone(),
        name: service.name.name.clone(),
        hostname: host_name(&service.name, config),
        addresses: service.addresses.iter().map(ToString::to_string).collect(),
        ports: service
            .ports
            .iter()
            .map(|p| wire::ServicePort {
                number: p.number.into(),
                name: p.name.clone(),
                protocol: protocol(p.protocol),
                tls: order.client_tls(p.number, &[]),
                target_port: 0,
                ..Default::default()
            })
            .collect(),
        endpoints: endpoints.into_values().filter(|e| !e.ports.is_empty()).collect(),
        subject_alt_names: subject_alt_names(world, service),
        headless: service.headless,
        ..Default::default()
    }
}

/// A pod called by its own address, with the ports under which headless services reach it.
pub fn direct_workload(world: &World, pod: &Pod, client: Client<'_>) -> wire::DirectWorkload {
    let config = world.config();
    let mut services: Vec<_> = world
        .services_before(&pod.name, &pod.addresses)
        .into_iter()
        .filter_map(|name| world.service(&name))
        .filter(|service| service.headless)
        .collect();
    services.sort_by(|a, b| (a.created_s, &a.name).cmp(&(b.created_s, &b.name)));
    let mut ports: BTreeMap<u16, wire::HeadlessPort> = BTreeMap::new();
    for service in services {
        let policies = world.peer_authentications_for(&service.name.namespace);
        let choice = TlsChoice::of(world, service, &policies);
        let order = order(world, service, client);
        let subject_alt_names = subject_alt_names(world, service);
        for declared in &service.ports {
            // Nothing translates a headless service's port: what is dialled is the service's own number.
            let auto = || choice.for_endpoint(Some(pod), 0);
            ports.entry(declared.number).or_insert_with(|| wire::HeadlessPort {
                port: declared.number.into(),
                protocol: protocol(declared.protocol),
                tls: order.endpoint_tls(declared.number, choice.is_each(), auto).into(),
                service_hostname: host_name(&service.name, config),
                service_name: service.name.name.clone(),
                service_namespace: service.name.namespace.clone(),
                service_port: declared.number.into(),
                subject_alt_names: subject_alt_names.clone(),
                client_tls: order.client_tls(declared.number, &[]),
                ..Default::default()
            });
        }
    }
    wire::DirectWorkload {
        workload: Some(workload(pod, config)),
        headless_ports: ports.into_values().collect(),
    }
}

fn order<'w>(world: &'w World, service: &Service, client: Client<'_>) -> Order<'w> {
    let host = HostPattern::new(&host_name(&service.name, world.config()));
    Order::of(world, client, &host, &service.name.namespace)
}

/// Auto mTLS (reference mtls 2.1).
enum TlsChoice<'w> {
    /// The same for every endpoint: steps A3 and A4.
    All(wire::EndpointTls),
    /// By endpoint and port: step B. The policies are those of the service's namespace.
    Each { world: &'w World, namespace: &'w str, policies: &'w [PeerAuthentication] },
}

impl<'w> TlsChoice<'w> {
    fn of(world: &'w World, service: &'w Service, policies: &'w [PeerAuthentication]) -> Self {
        let root_namespace = world.config().root_namespace.as_str();
        let namespace = &service.name.namespace;
        if mtls::namespace_mode(policies, root_namespace, namespace) == MtlsMode::Disable {
            return Self::All(Plaintext);
        }
        if !service.headless {
            return Self::Each { world, namespace, policies };
        }
        let mut endpoints = world.slices_of(&service.name).flat_map(|s| &s.endpoints).peekable();
        let none = endpoints.peek().is_none();
        let naked = endpoints.any(|e| !pod_of(world, service, e).is_some_and(|pod| pod.takes_mutual_tls()));
        Self::All(if none || naked { Plaintext } else { IstioMutual })
    }

    fn is_each(&self) -> bool {
        matches!(self, Self::Each { .. })
    }

    fn for_endpoint(&self, pod: Option<&Pod>, port: u16) -> wire::EndpointTls {
        match self {
            Self::All(tls) => *tls,
            Self::Each { world, namespace, policies } => {
                let Some(pod) = pod.filter(|pod| pod.takes_mutual_tls()) else { return Plaintext };
                let own = &pod.name.namespace;
                let elsewhere = (own != namespace).then(|| world.peer_authentications_for(own));
                let policies = elsewhere.as_deref().unwrap_or(policies);
                let root_namespace = &world.config().root_namespace;
                let resolved = mtls::resolve(policies, root_namespace, own, &pod.labels);
                if resolved.for_port(port) == MtlsMode::Disable { Plaintext } else { IstioMutual }
            }
        }
    }
}

/// SN-1: the identity of every endpoint, ready or not; what annotations and ServiceEntries of the same host and namespace
/// add; everything again for each alias of the trust domain.
fn subject_alt_names(world: &World, service: &Service) -> Vec<String> {
    let config = world.config();
    let namespace = service.name.namespace.as_str();
    let endpoints = world.slices_of(&service.name).flat_map(|slice| &slice.endpoints);
    let pods = endpoints.filter_map(|e| pod_of(world, service, e));
    let accounts = pods
        .map(|pod| (pod.name.namespace.as_str(), pod.service_account.as_str()))
        .chain(service.service_accounts.iter().map(|account| (namespace, account.as_str())));
    let host = HostPattern::new(&host_name(&service.name, config));
    let entries = world.entries_decorating(&host, namespace);
    let said = entries.flat_map(|entry| &entry.spec.subject_alt_names);
    with_aliases(config, accounts, service.canonical_accounts.iter().chain(said))
}

/// The pod an endpoint is. A slice may name a pod that is not, or no longer, at the address: then it is not it.
fn pod_of<'w>(world: &'w World, service: &Service, endpoint: &SliceEndpoint) -> Option<&'w Arc<Pod>> {
    let at_address = |pod: &&Arc<Pod>| endpoint.addresses.iter().any(|a| pod.addresses.contains(a));
    match &endpoint.pod {
        Some(name) => {
            let name = maille_core::NamespacedName::new(service.name.namespace.clone(), name.clone());
            world.pod(&name).filter(at_address)
        }
        None => endpoint.addresses.first().and_then(|address| world.pod_at(*address)),
    }
}
