//! A ServiceEntry's host as a destination (reference mtls 4.1).

use std::borrow::Cow;
use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use maille_config::destination_rule::Client;
use maille_config::istio::{
    Location, PeerAuthentication, Resolution, ServiceEntry, ServiceEntryPort, WorkloadEntrySpec,
};
use maille_config::service_entry::{PortClass, endpoint_port, namespace_of, valid_port};
use maille_config::{HostPattern, mtls};
use maille_core::{Labels, MtlsMode};
use maille_proto::facts as wire;
use wire::EndpointTls::{IstioMutual, Plaintext};

use super::order::Order;
use super::with_aliases;
use crate::world::{self, MeshConfig, OwnedHost, Pod, Selected, TLS_MODE_LABEL, World};

/// The host's ports and endpoints, with how this client reaches them.
pub(super) fn entry_service(world: &World, owned: &OwnedHost<'_>, client: Client<'_>) -> wire::Service {
    let Some(owner) = owned.entries.first() else { return wire::Service::default() };
    let namespace = namespace_of(owner);
    let order = Order::of(world, client, &owned.host, namespace);
    let found: Vec<Found<'_>> =
        owned.entries.iter().flat_map(|entry| found_endpoints(world, entry, &owned.host)).collect();
    let auto = Auto::of(world, owner, &found);
    let own_names: BTreeSet<&String> = owned.entries.iter().flat_map(|e| &e.spec.subject_alt_names).collect();
    let own_names: Vec<String> = own_names.into_iter().cloned().collect();
    let dialled = matches!(owner.spec.resolution, Resolution::None | Resolution::DynamicDns);
    let mut seen = BTreeSet::new();
    let mut ports = Vec::new();
    let mut endpoints = Endpoints::default();
    for entry in &owned.entries {
        // Of entries that declare the same port the first counts.
        let declared: Vec<&ServiceEntryPort> =
            entry.spec.ports.iter().filter(|port| seen.insert(port.number)).collect();
        for port in &declared {
            let (Some(number), Some(protocol)) = (valid_port(port.number), protocol(port)) else { continue };
            let target = port.target_port.filter(|_| dialled);
            ports.push(wire::ServicePort {
                number: number.into(),
                name: port.name.clone(),
                protocol: protocol.into(),
                tls: order.client_tls(number, &own_names),
                target_port: target.and_then(valid_port).unwrap_or_default().into(),
                traffic: order.traffic(number),
                subsets: order.subsets(number, &own_names),
            });
        }
        for endpoint in found.iter().filter(|found| std::ptr::eq(found.entry, *entry) && found.takes_calls())
        {
            let reached = declared.iter().filter_map(|port| {
                let (number, target) = (valid_port(port.number)?, endpoint_port(&endpoint.spec, port)?);
                protocol(port)?;
                let each = auto.is_armed() && !order.is_passthrough(number);
                let choice = || if each { auto.for_endpoint(endpoint, target) } else { auto.for_all() };
                let tls = order.endpoint_tls(number, each, choice);
                Some(wire::EndpointPort {
                    service_port: number.into(),
                    target_port: target.into(),
                    tls: tls.into(),
                })
            });
            endpoints.add(endpoint, reached.collect(), &order, world.config());
        }
    }
    wire::Service {
        namespace: namespace.to_owned(),
        // Istio names these services by their host (reference cli-and-telemetry 3.1).
        name: owned.host.as_str().to_owned(),
        hostname: owned.host.as_str().to_owned(),
        // Blocks are no addresses; what lies in them is answered when it is asked for.
        addresses: addresses(owner, &owned.host),
        ports,
        endpoints: endpoints.0.into_values().collect(),
        subject_alt_names: subject_alt_names(world, &owned.entries, &found),
        headless: false,
        external: owner.spec.location == Location::MeshExternal,
        resolution: resolution(owner).into(),
        service_entry: format!("{namespace}/{}", owner.metadata.name.as_deref().unwrap_or_default()),
    }
}

fn addresses(owner: &ServiceEntry, host: &HostPattern) -> Vec<String> {
    world::single_addresses(owner, host).iter().map(ToString::to_string).collect()
}

fn resolution(entry: &ServiceEntry) -> wire::Resolution {
    match entry.spec.resolution {
        Resolution::None => wire::Resolution::None,
        Resolution::Static => wire::Resolution::Endpoints,
        Resolution::Dns => wire::Resolution::Dns,
        Resolution::DnsRoundRobin => wire::Resolution::DnsRoundRobin,
        Resolution::DynamicDns => wire::Resolution::DynamicDns,
    }
}

/// `None` for what no proxy carries.
pub(super) fn protocol(port: &ServiceEntryPort) -> Option<wire::Protocol> {
    Some(match PortClass::parse(&port.protocol)? {
        PortClass::Auto => wire::Protocol::Auto,
        PortClass::Http => wire::Protocol::Http,
        PortClass::Http2 => wire::Protocol::Http2,
        PortClass::Tcp => wire::Protocol::Tcp,
        PortClass::Tls => wire::Protocol::Tls,
    })
}

/// One endpoint of an entry.
struct Found<'w> {
    entry: &'w ServiceEntry,
    spec: Cow<'w, WorkloadEntrySpec>,
    origin: Origin<'w>,
}

enum Origin<'w> {
    /// The entry lists it.
    Listed,
    /// A WorkloadEntry of this name, selected.
    Entry(&'w str),
    /// A Pod, selected.
    Pod(&'w Pod),
}

impl Found<'_> {
    /// What is not ready keeps its identity, and gets no calls.
    fn takes_calls(&self) -> bool {
        !matches!(self.origin, Origin::Pod(pod) if !pod.ready || pod.terminating)
    }

    fn takes_mutual_tls(&self) -> bool {
        match self.origin {
            Origin::Pod(pod) => pod.takes_mutual_tls(),
            Origin::Listed | Origin::Entry(_) => takes_mutual_tls(&self.spec),
        }
    }

    /// Of a Pod, its address of the other family.
    fn other_address(&self) -> String {
        let Origin::Pod(pod) = self.origin else { return String::new() };
        let first = pod.addresses.first();
        let other = pod.addresses.iter().find(|other| first.is_some_and(|a| a.is_ipv6() != other.is_ipv6()));
        other.map(ToString::to_string).unwrap_or_default()
    }

    fn labels(&self) -> &Labels {
        match self.origin {
            Origin::Pod(pod) => &pod.labels,
            Origin::Listed | Origin::Entry(_) => &self.spec.labels,
        }
    }

    fn workload(&self, config: &MeshConfig) -> Option<wire::Workload> {
        let namespace = namespace_of(self.entry);
        match self.origin {
            Origin::Pod(pod) => Some(super::workload(pod, config)),
            Origin::Entry(name) => workload(namespace, name, name, &self.spec, config),
            Origin::Listed => {
                let name = self.entry.metadata.name.as_deref().unwrap_or_default();
                workload(namespace, &self.spec.address, name, &self.spec, config)
            }
        }
    }
}

/// The endpoints that an entry lists or selects, or with DNS the host itself.
fn found_endpoints<'w>(world: &'w World, entry: &'w ServiceEntry, host: &HostPattern) -> Vec<Found<'w>> {
    let listed = |spec| Found { entry, spec, origin: Origin::Listed };
    if matches!(entry.spec.resolution, Resolution::None | Resolution::DynamicDns) {
        return Vec::new();
    }
    if entry.spec.workload_selector.is_some() {
        return world.selected_by(entry).map(|found| selected(entry, found)).collect();
    }
    if by_name(entry) && entry.spec.endpoints.is_empty() && host.suffix().is_none() {
        let spec = WorkloadEntrySpec { address: host.as_str().to_owned(), ..Default::default() };
        return vec![listed(Cow::Owned(spec))];
    }
    entry.spec.endpoints.iter().map(Cow::Borrowed).map(listed).collect()
}

fn by_name(entry: &ServiceEntry) -> bool {
    matches!(entry.spec.resolution, Resolution::Dns | Resolution::DnsRoundRobin)
}

fn selected<'w>(entry: &'w ServiceEntry, found: Selected<'w>) -> Found<'w> {
    match found {
        Selected::Entry(found) => {
            Found { entry, spec: Cow::Borrowed(&found.spec), origin: Origin::Entry(&found.name.name) }
        }
        Selected::Pod(pod) => Found { entry, spec: Cow::Owned(spec_of(pod)), origin: Origin::Pod(pod) },
    }
}

/// A Pod as a WorkloadEntry would say it: the names of its containers' ports are those of its ports (istio `getPortMap`).
fn spec_of(pod: &Pod) -> WorkloadEntrySpec {
    WorkloadEntrySpec {
        address: pod.addresses.first().map(ToString::to_string).unwrap_or_default(),
        ports: pod.named_ports.iter().map(|(name, port)| (name.clone(), u32::from(*port))).collect(),
        service_account: pod.service_account.clone(),
        ..Default::default()
    }
}

/// The port of a Pod to which an entry's leads.
pub(super) fn pod_port(pod: &Pod, port: &ServiceEntryPort) -> Option<u16> {
    endpoint_port(&spec_of(pod), port)
}

#[derive(Default)]
struct Endpoints(BTreeMap<String, wire::Endpoint>);

impl Endpoints {
    fn add(
        &mut self,
        endpoint: &Found<'_>,
        ports: Vec<wire::EndpointPort>,
        order: &Order<'_>,
        config: &MeshConfig,
    ) {
        if ports.is_empty() {
            return;
        }
        let spec = &endpoint.spec;
        let (address, dns_name, unix_path) = match spec.address.parse::<IpAddr>() {
            Ok(address) => (address.to_canonical().to_string(), String::new(), String::new()),
            Err(_) => match spec.address.strip_prefix("unix://") {
                Some(path) if path.starts_with('/') => (String::new(), String::new(), path.to_owned()),
                None if by_name(endpoint.entry) => {
                    (String::new(), spec.address.to_ascii_lowercase(), String::new())
                }
                // Neither a path nor, without DNS, an address.
                _ => return,
            },
        };
        let key = format!("{address}{dns_name}{unix_path}");
        let found = self.0.entry(key).or_insert_with(|| wire::Endpoint {
            workload: endpoint.workload(config),
            address,
            ports: Vec::new(),
            dns_name,
            weight: spec.weight.unwrap_or_default(),
            labels: order.subset_labels(endpoint.labels()),
            unix_path,
            other_address: endpoint.other_address(),
        });
        for port in ports {
            if !found.ports.iter().any(|p| p.service_port == port.service_port) {
                found.ports.push(port);
            }
        }
    }
}

/// What is known of an endpoint that has an identity; `id` tells it apart within its namespace, `name` is for people.
pub(super) fn workload(
    namespace: &str,
    id: &str,
    name: &str,
    endpoint: &WorkloadEntrySpec,
    config: &MeshConfig,
) -> Option<wire::Workload> {
    if endpoint.service_account.is_empty() {
        return None;
    }
    let label = |key: &str| endpoint.labels.get(key).filter(|value| !value.is_empty()).cloned();
    Some(wire::Workload {
        uid: format!("{namespace}/{id}"),
        namespace: namespace.to_owned(),
        workload_name: name.to_owned(),
        identity: Some(wire::Identity {
            trust_domain: config.trust_domain.to_string(),
            namespace: namespace.to_owned(),
            service_account: endpoint.service_account.clone(),
        }),
        addresses: endpoint.address.parse::<IpAddr>().iter().map(ToString::to_string).collect(),
        canonical_name: label("service.istio.io/canonical-name")
            .or_else(|| label("app"))
            .unwrap_or_else(|| name.to_owned()),
        canonical_revision: label("service.istio.io/canonical-revision")
            .or_else(|| label("version"))
            .unwrap_or_else(|| "latest".to_owned()),
        app: label("app").unwrap_or_default(),
        meshed: takes_mutual_tls(endpoint),
        ..Default::default()
    })
}

/// Reference mtls 2.1, "Endpoint tlsMode".
pub(super) fn takes_mutual_tls(endpoint: &WorkloadEntrySpec) -> bool {
    match endpoint.labels.get(TLS_MODE_LABEL) {
        Some(mode) => mode == "istio",
        None => !endpoint.service_account.is_empty(),
    }
}

/// Auto mTLS for endpoints of an entry (reference mtls 2.1).
enum Auto<'w> {
    /// Step A1, A3 and A4: plaintext to all.
    Plaintext,
    /// Step B; with a rule that has connections go where they were dialled, step A3.
    Armed {
        world: &'w World,
        namespace: &'w str,
        policies: Vec<PeerAuthentication>,
        found: &'w [Found<'w>],
        all: OnceCell<wire::EndpointTls>,
    },
}

impl<'w> Auto<'w> {
    fn of(world: &'w World, entry: &'w ServiceEntry, found: &'w [Found<'w>]) -> Self {
        let namespace = namespace_of(entry);
        let dialled = matches!(entry.spec.resolution, Resolution::None | Resolution::DynamicDns);
        if entry.spec.location == Location::MeshExternal || dialled {
            return Self::Plaintext;
        }
        let policies = world.peer_authentications_for(namespace);
        if mtls::namespace_mode(&policies, &world.config().root_namespace, namespace) == MtlsMode::Disable {
            return Self::Plaintext;
        }
        Self::Armed { world, namespace, policies, found, all: OnceCell::new() }
    }

    fn is_armed(&self) -> bool {
        matches!(self, Self::Armed { .. })
    }

    fn for_all(&self) -> wire::EndpointTls {
        let Self::Armed { found, all, .. } = self else { return Plaintext };
        *all.get_or_init(|| {
            let mutual = !found.is_empty() && found.iter().all(Found::takes_mutual_tls);
            if mutual { IstioMutual } else { Plaintext }
        })
    }

    fn for_endpoint(&self, endpoint: &Found<'_>, port: u16) -> wire::EndpointTls {
        let Self::Armed { world, namespace, policies, .. } = self else { return Plaintext };
        if !endpoint.takes_mutual_tls() {
            return Plaintext;
        }
        let root_namespace = &world.config().root_namespace;
        let resolved = mtls::resolve(policies, root_namespace, namespace, endpoint.labels());
        if resolved.for_port(port) == MtlsMode::Disable { Plaintext } else { IstioMutual }
    }
}

/// SN-1: the identities of endpoints, what the entries say, and everything again for each alias of the trust domain.
fn subject_alt_names(world: &World, entries: &[&ServiceEntry], found: &[Found<'_>]) -> Vec<String> {
    let named = found.iter().filter(|found| !found.spec.service_account.is_empty());
    let accounts = named.map(|found| (namespace_of(found.entry), found.spec.service_account.as_str()));
    let said = entries.iter().flat_map(|entry| &entry.spec.subject_alt_names);
    with_aliases(world.config(), accounts, said)
}
