use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use maille_config::istio::PeerAuthentication;
use maille_config::mtls;
use maille_core::MtlsMode;
use maille_proto::facts as wire;
use wire::EndpointTls::{IstioMutual, Plaintext};
use wire::destination::Kind;

use super::{host_name, protocol, workload};
use crate::world::{Asked, Pod, Service, SliceEndpoint, World};

/// What is behind an address or a service's name. What the registry does not know is said to be unknown.
pub fn destination(world: &World, asked: &Asked) -> wire::Destination {
    let kind = match asked {
        Asked::Service(name) => world.service(name).map(|s| Kind::Service(service(world, s))),
        Asked::Address(address) => match world.service_at(*address) {
            Some(found) => Some(Kind::Service(service(world, found))),
            None => world.pod_at(*address).map(|pod| Kind::Workload(direct_workload(world, pod))),
        },
        Asked::Foreign => None,
    };
    wire::Destination { kind: Some(kind.unwrap_or(Kind::Unknown(wire::Unknown {}))) }
}

/// A service with the endpoints that are ready, each with how to reach it.
pub fn service(world: &World, service: &Service) -> wire::Service {
    let config = world.config();
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
                let tls = choice.for_endpoint(pod.map(Arc::as_ref), *target);
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
pub fn direct_workload(world: &World, pod: &Pod) -> wire::DirectWorkload {
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
        let tls = TlsChoice::of(world, service, &policies).for_endpoint(Some(pod), 0);
        let subject_alt_names = subject_alt_names(world, service);
        for declared in &service.ports {
            // Nothing translates a headless service's port: what is dialled is the service's own number.
            ports.entry(declared.number).or_insert_with(|| wire::HeadlessPort {
                port: declared.number.into(),
                protocol: protocol(declared.protocol),
                tls: tls.into(),
                service_hostname: host_name(&service.name, config),
                service_name: service.name.name.clone(),
                service_namespace: service.name.namespace.clone(),
                service_port: declared.number.into(),
                subject_alt_names: subject_alt_names.clone(),
            });
        }
    }
    wire::DirectWorkload {
        workload: Some(workload(pod, config)),
        headless_ports: ports.into_values().collect(),
    }
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

/// SN-1: the identity of every endpoint, ready or not; what annotations add; everything again for each alias of
/// the trust domain.
fn subject_alt_names(world: &World, service: &Service) -> Vec<String> {
    let config = world.config();
    let namespace = service.name.namespace.as_str();
    let endpoints = world.slices_of(&service.name).flat_map(|slice| &slice.endpoints);
    let mut accounts: BTreeSet<(&str, &str)> = endpoints
        .filter_map(|e| pod_of(world, service, e))
        .map(|pod| (pod.name.namespace.as_str(), pod.service_account.as_str()))
        .collect();
    accounts.extend(service.service_accounts.iter().map(|account| (namespace, account.as_str())));
    let domains = || std::iter::once(&config.trust_domain).chain(&config.trust_domain_aliases);
    let mut names: BTreeSet<String> = service.canonical_accounts.iter().cloned().collect();
    for (namespace, account) in accounts {
        names.extend(domains().map(|domain| format!("spiffe://{domain}/ns/{namespace}/sa/{account}")));
    }
    for name in &service.canonical_accounts {
        let path = name.strip_prefix("spiffe://").and_then(|rest| rest.split_once('/'));
        if let Some((_, path)) = path {
            names.extend(config.trust_domain_aliases.iter().map(|alias| format!("spiffe://{alias}/{path}")));
        }
    }
    names.into_iter().collect()
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
