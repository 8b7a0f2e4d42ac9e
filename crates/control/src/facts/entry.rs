//! A ServiceEntry's host as a destination (reference mtls 4.1).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use maille_config::destination_rule::Client;
use maille_config::istio::{
    Location, PeerAuthentication, Resolution, ServiceEntry, ServiceEntryPort, WorkloadEntrySpec,
};
use maille_config::service_entry::{PortClass, endpoint_port, namespace_of, valid_port};
use maille_config::{HostPattern, mtls};
use maille_core::MtlsMode;
use maille_proto::facts as wire;
use wire::EndpointTls::{IstioMutual, Plaintext};

use super::order::Order;
use super::with_aliases;
use crate::world::{self, MeshConfig, OwnedHost, TLS_MODE_LABEL, World};

/// The host's ports and endpoints, with how this client reaches them.
pub(super) fn entry_service(world: &World, owned: &OwnedHost<'_>, client: Client<'_>) -> wire::Service {
    let Some(owner) = owned.entries.first() else { return wire::Service::default() };
    let namespace = namespace_of(owner);
    let order = Order::of(world, client, &owned.host, namespace);
    let auto = Auto::of(world, owner);
    let own_names: BTreeSet<&String> = owned.entries.iter().flat_map(|e| &e.spec.subject_alt_names).collect();
    let own_names: Vec<String> = own_names.into_iter().cloned().collect();
    let mut seen = BTreeSet::new();
    let mut ports = Vec::new();
    let mut endpoints = Endpoints::default();
    for entry in &owned.entries {
        // Of entries that declare the same port the first counts.
        let declared: Vec<&ServiceEntryPort> =
            entry.spec.ports.iter().filter(|port| seen.insert(port.number)).collect();
        for port in &declared {
            let (Some(number), Some(protocol)) = (valid_port(port.number), protocol(port)) else { continue };
            let target = port.target_port.filter(|_| owner.spec.resolution == Resolution::None);
            ports.push(wire::ServicePort {
                number: number.into(),
                name: port.name.clone(),
                protocol: protocol.into(),
                tls: order.client_tls(number, &own_names),
                target_port: target.and_then(valid_port).unwrap_or_default().into(),
                ..Default::default()
            });
        }
        for endpoint in listed_endpoints(entry, &owned.host) {
            let reached = declared.iter().filter_map(|port| {
                let (number, target) = (valid_port(port.number)?, endpoint_port(&endpoint, port)?);
                protocol(port)?;
                let each = matches!(auto, Auto::Each { .. });
                let tls = order.endpoint_tls(number, each, || auto.for_endpoint(&endpoint, target));
                Some(wire::EndpointPort {
                    service_port: number.into(),
                    target_port: target.into(),
                    tls: tls.into(),
                })
            });
            endpoints.add(entry, &endpoint, reached.collect(), world.config());
        }
    }
    wire::Service {
        namespace: namespace.to_owned(),
        // Istio names these services by their host (reference cli-and-telemetry 3.1).
        name: owned.host.as_str().to_owned(),
        hostname: owned.host.as_str().to_owned(),
        // Blocks are no addresses; what lies in them is answered when it is asked for.
        addresses: world::single_addresses(owner).map(|address| address.to_string()).collect(),
        ports,
        endpoints: endpoints.0.into_values().collect(),
        subject_alt_names: subject_alt_names(world, &owned.entries),
        headless: false,
        external: owner.spec.location == Location::MeshExternal,
        resolution: resolution(owner).into(),
        service_entry: format!("{namespace}/{}", owner.metadata.name.as_deref().unwrap_or_default()),
    }
}

/// What cannot be had (names looked up per request, workloads by selector) has no endpoints: calls fail, and say so.
fn resolution(entry: &ServiceEntry) -> wire::Resolution {
    match entry.spec.resolution {
        Resolution::None => wire::Resolution::None,
        Resolution::Static | Resolution::DynamicDns => wire::Resolution::Endpoints,
        Resolution::Dns => wire::Resolution::Dns,
        Resolution::DnsRoundRobin => wire::Resolution::DnsRoundRobin,
    }
}

/// `None` for what no proxy carries.
fn protocol(port: &ServiceEntryPort) -> Option<wire::Protocol> {
    Some(match PortClass::parse(&port.protocol)? {
        PortClass::Auto => wire::Protocol::Auto,
        PortClass::Http => wire::Protocol::Http,
        PortClass::Http2 => wire::Protocol::Http2,
        PortClass::Tcp => wire::Protocol::Tcp,
        PortClass::Tls => wire::Protocol::Tls,
    })
}

/// The endpoints an entry lists, or with DNS the host itself.
fn listed_endpoints(entry: &ServiceEntry, host: &HostPattern) -> Vec<WorkloadEntrySpec> {
    let by_name = matches!(entry.spec.resolution, Resolution::Dns | Resolution::DnsRoundRobin);
    match entry.spec.resolution {
        Resolution::None | Resolution::DynamicDns => Vec::new(),
        _ if by_name && entry.spec.endpoints.is_empty() && host.suffix().is_none() => {
            vec![WorkloadEntrySpec { address: host.as_str().to_owned(), ..Default::default() }]
        }
        _ => entry.spec.endpoints.clone(),
    }
}

#[derive(Default)]
struct Endpoints(BTreeMap<String, wire::Endpoint>);

impl Endpoints {
    fn add(
        &mut self,
        entry: &ServiceEntry,
        endpoint: &WorkloadEntrySpec,
        ports: Vec<wire::EndpointPort>,
        config: &MeshConfig,
    ) {
        if ports.is_empty() {
            return;
        }
        let by_name = matches!(entry.spec.resolution, Resolution::Dns | Resolution::DnsRoundRobin);
        let (address, dns_name) = match endpoint.address.parse::<IpAddr>() {
            Ok(address) => (address.to_canonical().to_string(), String::new()),
            Err(_) if by_name => (String::new(), endpoint.address.to_ascii_lowercase()),
            // Sockets of the file system, and networks' gateways.
            Err(_) => return,
        };
        let key = format!("{address}{dns_name}");
        let found = self.0.entry(key).or_insert_with(|| wire::Endpoint {
            workload: workload(entry, endpoint, config),
            address,
            ports: Vec::new(),
            dns_name,
            ..Default::default()
        });
        for port in ports {
            if !found.ports.iter().any(|p| p.service_port == port.service_port) {
                found.ports.push(port);
            }
        }
    }
}

/// What is known of an endpoint that has an identity.
fn workload(
    entry: &ServiceEntry,
    endpoint: &WorkloadEntrySpec,
    config: &MeshConfig,
) -> Option<wire::Workload> {
    if endpoint.service_account.is_empty() {
        return None;
    }
    let namespace = namespace_of(entry);
    let label = |key: &str| endpoint.labels.get(key).filter(|value| !value.is_empty()).cloned();
    let name = entry.metadata.name.clone().unwrap_or_default();
    Some(wire::Workload {
        uid: format!("{namespace}/{}", endpoint.address),
        namespace: namespace.to_owned(),
        workload_name: name.clone(),
        identity: Some(wire::Identity {
            trust_domain: config.trust_domain.to_string(),
            namespace: namespace.to_owned(),
            service_account: endpoint.service_account.clone(),
        }),
        addresses: endpoint.address.parse::<IpAddr>().iter().map(ToString::to_string).collect(),
        canonical_name: label("service.istio.io/canonical-name").or_else(|| label("app")).unwrap_or(name),
        canonical_revision: label("service.istio.io/canonical-revision")
            .or_else(|| label("version"))
            .unwrap_or_else(|| "latest".to_owned()),
        app: label("app").unwrap_or_default(),
        meshed: takes_mutual_tls(endpoint),
        ..Default::default()
    })
}

/// Reference mtls 2.1, "Endpoint tlsMode".
fn takes_mutual_tls(endpoint: &WorkloadEntrySpec) -> bool {
    match endpoint.labels.get(TLS_MODE_LABEL) {
        Some(mode) => mode == "istio",
        None => !endpoint.service_account.is_empty(),
    }
}

/// Auto mTLS for endpoints of an entry (reference mtls 2.1).
enum Auto<'w> {
    /// Step A1, A3 and A4: plaintext to all.
    Plaintext,
    /// Step B.
    Each { world: &'w World, namespace: &'w str, policies: Vec<PeerAuthentication> },
}

impl<'w> Auto<'w> {
    fn of(world: &'w World, entry: &'w ServiceEntry) -> Self {
        let namespace = namespace_of(entry);
        if entry.spec.location == Location::MeshExternal || entry.spec.resolution == Resolution::None {
            return Self::Plaintext;
        }
        let policies = world.peer_authentications_for(namespace);
        if mtls::namespace_mode(&policies, &world.config().root_namespace, namespace) == MtlsMode::Disable {
            return Self::Plaintext;
        }
        Self::Each { world, namespace, policies }
    }

    fn for_endpoint(&self, endpoint: &WorkloadEntrySpec, port: u16) -> wire::EndpointTls {
        let Self::Each { world, namespace, policies } = self else { return Plaintext };
        if !takes_mutual_tls(endpoint) {
            return Plaintext;
        }
        let root_namespace = &world.config().root_namespace;
        let resolved = mtls::resolve(policies, root_namespace, namespace, &endpoint.labels);
        if resolved.for_port(port) == MtlsMode::Disable { Plaintext } else { IstioMutual }
    }
}

/// SN-1: the identities of endpoints, what the entries say, and everything again for each alias of the trust domain.
fn subject_alt_names(world: &World, entries: &[&ServiceEntry]) -> Vec<String> {
    let accounts = entries.iter().flat_map(|entry| {
        let named = entry.spec.endpoints.iter().filter(|e| !e.service_account.is_empty());
        named.map(|endpoint| (namespace_of(entry), endpoint.service_account.as_str()))
    });
    let said = entries.iter().flat_map(|entry| &entry.spec.subject_alt_names);
    with_aliases(world.config(), accounts, said)
}
