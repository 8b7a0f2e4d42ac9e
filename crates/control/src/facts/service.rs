//! A Service of the cluster as a destination, and its Pods called directly (reference mtls 2.1, 3.1).

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use maille_config::destination_rule::Client;
use maille_config::istio::{PeerAuthentication, WorkloadEntrySpec};
use maille_config::{HostPattern, mtls};
use maille_core::{Labels, MtlsMode, NamespacedName};
use maille_proto::facts as wire;
use wire::EndpointTls::{IstioMutual, Plaintext};

use super::destination::sees;
use super::entry;
use super::order::Order;
use super::{host_name, protocol, with_aliases, workload};
use crate::world::{
    EndpointSlice, Pod, Service, ServicePort, Sight, SliceEndpoint, TargetPort, WorkloadEntry, World,
};

/// A service with the endpoints that are ready, each with how to reach it.
pub(super) fn service(world: &World, service: &Service, client: Client<'_>) -> wire::Service {
    let config = world.config();
    let order = order(world, service, client);
    let policies = world.peer_authentications_for(&service.name.namespace);
    let choice = TlsChoice::of(world, service, &policies);
    wire::Service {
        namespace: service.name.namespace.clone(),
        name: service.name.name.clone(),
        hostname: host_name(&service.name, config),
        addresses: service.addresses.iter().map(ToString::to_string).collect(),
        ports: ports(service, &order),
        endpoints: endpoints(world, service, &order, &choice),
        subject_alt_names: subject_alt_names(world, service),
        headless: service.headless,
        ..Default::default()
    }
}

/// A service's ports, with what is ordered for each.
pub(super) fn ports(service: &Service, order: &Order<'_>) -> Vec<wire::ServicePort> {
    let told = |port: &ServicePort| wire::ServicePort {
        number: port.number.into(),
        name: port.name.clone(),
        protocol: protocol(port.protocol).into(),
        tls: order.client_tls(port.number, &[]),
        target_port: 0,
        traffic: order.traffic(port.number),
        subsets: order.subsets(port.number, &[]),
    };
    service.ports.iter().map(told).collect()
}

fn endpoints(
    world: &World,
    service: &Service,
    order: &Order<'_>,
    choice: &TlsChoice<'_>,
) -> Vec<wire::Endpoint> {
    let config = world.config();
    let preferred = pods_of_the_preferred_family(world, service);
    let others = other_addresses(world, service, &preferred);
    // One endpoint may be in two slices while it moves between them.
    let mut endpoints: BTreeMap<IpAddr, wire::Endpoint> = BTreeMap::new();
    for (slice, found) in ready(world, service) {
        // Kubernetes: addresses of one endpoint are interchangeable, and consumers use the first.
        let Some(address) = found.addresses.first() else { continue };
        let pod = pod_of(world, service, found);
        if pod.is_some_and(|pod| preferred.contains(&pod.name)) && address.is_ipv6() != service.prefers_ipv6 {
            continue;
        }
        let ports = service.ports.iter().filter_map(|declared| {
            let (_, target) = slice.ports.iter().find(|(name, _)| *name == declared.name)?;
            Some(choice.endpoint_port(order, declared.number, pod.map(|pod| Server::of(pod)), *target))
        });
        let ports: Vec<_> = ports.collect();
        let endpoint = endpoints.entry(*address).or_insert_with(|| wire::Endpoint {
            workload: pod.map(|pod| workload(pod, config)),
            address: address.to_string(),
            other_address: pod.and_then(|pod| others.get(&pod.name)).cloned().unwrap_or_default(),
            labels: pod.map(|pod| order.subset_labels(&pod.labels)).unwrap_or_default(),
            ..Default::default()
        });
        add_ports(endpoint, ports);
    }
    for found in world.workload_entries_of(service) {
        let Some(address) = address_of(&found.spec) else { continue };
        let ports = service.ports.iter().filter_map(|declared| {
            let target = entry_port(found, declared)?;
            Some(choice.endpoint_port(order, declared.number, Some(Server::outside(found)), target))
        });
        let ports: Vec<_> = ports.collect();
        let endpoint = endpoints.entry(address).or_insert_with(|| wire::Endpoint {
            workload: entry::workload(
                &found.name.namespace,
                &found.name.name,
                &found.name.name,
                &found.spec,
                config,
            ),
            address: address.to_string(),
            weight: found.spec.weight.unwrap_or_default(),
            labels: order.subset_labels(&found.spec.labels),
            ..Default::default()
        });
        add_ports(endpoint, ports);
    }
    endpoints.into_values().filter(|e| !e.ports.is_empty()).collect()
}

fn add_ports(endpoint: &mut wire::Endpoint, ports: Vec<wire::EndpointPort>) {
    for port in ports {
        if !endpoint.ports.iter().any(|p| p.service_port == port.service_port) {
            endpoint.ports.push(port);
        }
    }
}

fn ready<'w>(
    world: &'w World,
    service: &Service,
) -> impl Iterator<Item = (&'w EndpointSlice, &'w SliceEndpoint)> {
    let slices = world.slices_of(&service.name);
    slices.flat_map(|slice| slice.endpoints.iter().filter(|e| e.ready).map(move |e| (&**slice, e)))
}

/// Pods that are endpoints by an address of the service's first family. They are not endpoints again by one of the other:
/// that would double their share beside those with one family alone. A headless service keeps both, since either is what
/// its name resolves to.
fn pods_of_the_preferred_family<'w>(world: &'w World, service: &Service) -> BTreeSet<&'w NamespacedName> {
    if service.headless {
        return BTreeSet::new();
    }
    let preferred =
        |e: &&SliceEndpoint| e.addresses.first().is_some_and(|a| a.is_ipv6() == service.prefers_ipv6);
    let endpoints = ready(world, service).map(|(_, endpoint)| endpoint).filter(preferred);
    endpoints.filter_map(|endpoint| pod_of(world, service, endpoint)).map(|pod| &pod.name).collect()
}

/// Addresses of the other family by which those pods are endpoints, too. Istio tells Envoy of them in the same way
/// (`additional_addresses`).
fn other_addresses<'w>(
    world: &'w World,
    service: &Service,
    pods: &BTreeSet<&'w NamespacedName>,
) -> BTreeMap<&'w NamespacedName, String> {
    if pods.is_empty() {
        return BTreeMap::new();
    }
    let others = ready(world, service).filter_map(|(_, endpoint)| {
        let address = endpoint.addresses.first().filter(|a| a.is_ipv6() != service.prefers_ipv6)?;
        let pod = pod_of(world, service, endpoint)?;
        pods.contains(&pod.name).then(|| (&pod.name, address.to_string()))
    });
    others.collect()
}

fn address_of(spec: &WorkloadEntrySpec) -> Option<IpAddr> {
    spec.address.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

/// The port of a WorkloadEntry that a Service's port leads to: by the name of `targetPort`, else by its number unless the
/// entry has a port of the name of the Service's (istio `serviceInstanceFromWorkloadInstance`).
fn entry_port(entry: &WorkloadEntry, port: &ServicePort) -> Option<u16> {
    let named =
        |name: &str| entry.spec.ports.get(name).and_then(|n| u16::try_from(*n).ok()).filter(|n| *n != 0);
    match &port.target {
        TargetPort::Name(name) => named(name),
        TargetPort::Number(number) => Some(named(&port.name).unwrap_or(*number)),
    }
}

/// A pod called by its own address, with the ports under which headless services that the client may know reach it.
pub(super) fn direct_workload(world: &World, pod: &Pod, sight: &Sight<'_>) -> wire::DirectWorkload {
    let config = world.config();
    let mut services: Vec<_> = world
        .services_before(&pod.name, &pod.addresses)
        .into_iter()
        .filter_map(|name| world.service(&name))
        .filter(|service| service.headless && sees(world, service, sight))
        .collect();
    services.sort_by(|a, b| (a.created_s, &a.name).cmp(&(b.created_s, &b.name)));
    let mut ports: BTreeMap<u16, wire::HeadlessPort> = BTreeMap::new();
    for service in services {
        let policies = world.peer_authentications_for(&service.name.namespace);
        let choice = TlsChoice::of(world, service, &policies);
        let order = order(world, service, sight.client);
        let subject_alt_names = subject_alt_names(world, service);
        for declared in &service.ports {
            // Nothing translates a headless service's port: what is dialled is the service's own number.
            let auto = || choice.for_all();
            ports.entry(declared.number).or_insert_with(|| wire::HeadlessPort {
                port: declared.number.into(),
                protocol: protocol(declared.protocol).into(),
                tls: order.endpoint_tls(declared.number, false, auto).into(),
                service_hostname: host_name(&service.name, config),
                service_name: service.name.name.clone(),
                service_namespace: service.name.namespace.clone(),
                service_port: declared.number.into(),
                subject_alt_names: subject_alt_names.clone(),
                client_tls: order.client_tls(declared.number, &[]),
                traffic: order.traffic(declared.number),
            });
        }
    }
    wire::DirectWorkload {
        workload: Some(workload(pod, config)),
        headless_ports: ports.into_values().collect(),
    }
}

fn order<'w>(world: &'w World, service: &Service, client: Client<'w>) -> Order<'w> {
    let host = HostPattern::new(&host_name(&service.name, world.config()));
    Order::of(world, client, &host, &service.name.namespace)
}

/// What of an endpoint's workload auto mTLS looks at.
#[derive(Clone, Copy)]
struct Server<'a> {
    namespace: &'a str,
    labels: &'a Labels,
    takes_mutual_tls: bool,
}

impl<'a> Server<'a> {
    fn of(pod: &'a Pod) -> Self {
        let namespace = &pod.name.namespace;
        Self { namespace, labels: &pod.labels, takes_mutual_tls: pod.takes_mutual_tls() }
    }

    fn outside(entry: &'a WorkloadEntry) -> Self {
        let takes_mutual_tls = entry::takes_mutual_tls(&entry.spec);
        Self { namespace: &entry.name.namespace, labels: &entry.spec.labels, takes_mutual_tls }
    }
}

/// Auto mTLS (reference mtls 2.1).
struct TlsChoice<'w> {
    world: &'w World,
    service: &'w Service,
    /// Those of the service's namespace.
    policies: &'w [PeerAuthentication],
    /// Step A4.
    armed: bool,
    /// Step A3: the same for all, looked at only where connections go where they were dialled.
    all: OnceCell<wire::EndpointTls>,
}

impl<'w> TlsChoice<'w> {
    fn of(world: &'w World, service: &'w Service, policies: &'w [PeerAuthentication]) -> Self {
        let root_namespace = world.config().root_namespace.as_str();
        let mode = mtls::namespace_mode(policies, root_namespace, &service.name.namespace);
        Self { world, service, policies, armed: mode != MtlsMode::Disable, all: OnceCell::new() }
    }

    fn for_all(&self) -> wire::EndpointTls {
        *self.all.get_or_init(|| {
            let (world, service) = (self.world, self.service);
            let slices = world.slices_of(&service.name).flat_map(|s| &s.endpoints);
            let pods = slices.map(|e| pod_of(world, service, e).is_some_and(|pod| pod.takes_mutual_tls()));
            let outside = world.workload_entries_of(service).map(|e| entry::takes_mutual_tls(&e.spec));
            let mut mutual = pods.chain(outside).peekable();
            let any = mutual.peek().is_some();
            if self.armed && any && mutual.all(|mutual| mutual) { IstioMutual } else { Plaintext }
        })
    }

    fn endpoint_port(
        &self,
        order: &Order<'_>,
        number: u16,
        server: Option<Server<'_>>,
        target: u16,
    ) -> wire::EndpointPort {
        let each = self.armed && !self.service.headless && !order.is_passthrough(number);
        let auto = || if each { self.for_endpoint(server, target) } else { self.for_all() };
        wire::EndpointPort {
            service_port: number.into(),
            target_port: target.into(),
            tls: order.endpoint_tls(number, each, auto).into(),
        }
    }

    /// Step B.
    fn for_endpoint(&self, server: Option<Server<'_>>, port: u16) -> wire::EndpointTls {
        let Some(server) = server.filter(|server| server.takes_mutual_tls) else { return Plaintext };
        let elsewhere = server.namespace != self.service.name.namespace;
        let elsewhere = elsewhere.then(|| self.world.peer_authentications_for(server.namespace));
        let policies = elsewhere.as_deref().unwrap_or(self.policies);
        let root_namespace = &self.world.config().root_namespace;
        let resolved = mtls::resolve(policies, root_namespace, server.namespace, server.labels);
        if resolved.for_port(port) == MtlsMode::Disable { Plaintext } else { IstioMutual }
    }
}

/// SN-1: the identity of every endpoint, ready or not; what annotations and ServiceEntries of the same host and namespace
/// add; everything again for each alias of the trust domain.
fn subject_alt_names(world: &World, service: &Service) -> Vec<String> {
    let config = world.config();
    let namespace = service.name.namespace.as_str();
    let endpoints = world.slices_of(&service.name).flat_map(|slice| &slice.endpoints);
    let pods = endpoints.filter_map(|e| pod_of(world, service, e));
    let outside = world.workload_entries_of(service).filter(|e| !e.spec.service_account.is_empty());
    let accounts = pods
        .map(|pod| (pod.name.namespace.as_str(), pod.service_account.as_str()))
        .chain(outside.map(|e| (e.name.namespace.as_str(), e.spec.service_account.as_str())))
        .chain(service.service_accounts.iter().map(|account| (namespace, account.as_str())));
    let host = HostPattern::new(&host_name(&service.name, config));
    let entries = world.entries_decorating(&host, namespace);
    let said = entries.flat_map(|entry| &entry.spec.subject_alt_names);
    with_aliases(config, accounts, service.canonical_accounts.iter().chain(said))
}

/// The pod an endpoint is. A slice may name a pod that is not, or no longer, at the address: then it is not it.
pub(super) fn pod_of<'w>(
    world: &'w World,
    service: &Service,
    endpoint: &SliceEndpoint,
) -> Option<&'w Arc<Pod>> {
    let at_address = |pod: &&Arc<Pod>| endpoint.addresses.iter().any(|a| pod.addresses.contains(a));
    match &endpoint.pod {
        Some(name) => {
            let name = NamespacedName::new(service.name.namespace.clone(), name.clone());
            world.pod(&name).filter(at_address)
        }
        None => endpoint.addresses.first().and_then(|address| world.pod_at(*address)),
    }
}
