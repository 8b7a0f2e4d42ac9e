use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

use maille_config::HostPattern;
use maille_config::destination_rule::{Client, host_of};
use maille_config::istio::DestinationRule;
use maille_config::service_entry::namespace_of;
use maille_proto::facts as wire;
use wire::destination::Kind;

use super::entry::entry_service;
use super::host_name;
use super::service::{direct_workload, service};
use crate::world::{Alias, AnyAddress, Asked, AskedHost, AskedPort, OwnedHost, Pod, Service, Sight, World};

/// What is behind an address or a host's name, as one client sees it. What the registry does not know, or does not show
/// to this client, is said to be unknown.
pub fn destination(world: &World, asked: &Asked, client: Client<'_>) -> wire::Destination {
    let sight = world.sight_of(client);
    let kind = match asked {
        Asked::Host(host) => host_kind(world, host, &sight),
        Asked::Address(address) => address_kind(world, *address, &sight),
        Asked::Port(port) => Some(Kind::AnyAddress(any_address(world, *port, &sight))),
        Asked::Nothing => None,
    };
    wire::Destination { kind: Some(kind.unwrap_or(Kind::Unknown(wire::Unknown {}))) }
}

/// A Kubernetes Service goes before every ServiceEntry of its name (SE-2).
fn host_kind(world: &World, asked: &AskedHost, sight: &Sight<'_>) -> Option<Kind> {
    let named = asked.service.as_ref().and_then(|name| world.service(name));
    if let Some(found) = named.filter(|found| sees(world, found, sight)) {
        return match &found.external_name {
            None => Some(Kind::Service(service(world, found, sight.client))),
            Some(target) => match world.behind_alias(target, sight) {
                Alias::Service(meant) => Some(Kind::Service(service(world, meant, sight.client))),
                Alias::Entry(owned) => Some(Kind::Service(entry_service(world, &owned, sight.client))),
                Alias::External(host) => external(world, found, host, sight.client).map(Kind::Service),
                Alias::Nothing => None,
            },
        };
    }
    if let Some(pod) = pod_named(world, asked, sight) {
        return Some(Kind::Workload(direct_workload(world, pod, sight)));
    }
    let owned = world.entry_for(asked, sight)?;
    Some(Kind::Service(entry_service(world, &owned, sight.client)))
}

/// A Service's address, then a pod with a sidecar, whose identity is known and which nobody's entry may stand in for;
/// then the longest prefix among the addresses of ServiceEntries and of other pods.
fn address_kind(world: &World, address: IpAddr, sight: &Sight<'_>) -> Option<Kind> {
    if let Some(found) = world.service_at(address) {
        return sees(world, found, sight).then(|| Kind::Service(service(world, found, sight.client)));
    }
    let pod = world.pod_at(address);
    let shortest = match pod {
        Some(pod) if pod.meshed => return Some(Kind::Workload(direct_workload(world, pod, sight))),
        Some(_) if address.is_ipv4() => 32,
        Some(_) => 128,
        None => 0,
    };
    match world.entry_at(address, shortest, sight) {
        Some(owned) => Some(Kind::Service(entry_service(world, &owned, sight.client))),
        None => pod.map(|pod| Kind::Workload(direct_workload(world, pod, sight))),
    }
}

/// What a port means of addresses that say nothing of themselves.
fn any_address(world: &World, port: AskedPort, sight: &Sight<'_>) -> wire::AnyAddress {
    let AnyAddress { http, tls, encrypted, entry } = world.any_address(port, sight);
    // Plain requests are taken where a rule has them encrypted (reference mtls DR-5, from which this departs).
    let http = http || is_any_encrypted(world, &encrypted, port.number, sight.client);
    let service = entry.map(|owned| entry_service(world, &owned, sight.client));
    wire::AnyAddress { http, tls, service }
}

/// Whether a rule puts TLS around what a client sends to a port of one of these hosts. There may be thousands, and most rules
/// and hosts have nothing to do with each other: only those that do are looked at closely.
fn is_any_encrypted(world: &World, all: &[OwnedHost<'_>], port: u16, client: Client<'_>) -> bool {
    let mut encrypting: BTreeMap<&str, EncryptedHosts> = BTreeMap::new();
    all.iter().any(|owned| {
        let Some(owner) = owned.entries.first() else { return false };
        let namespace = namespace_of(owner);
        let hosts =
            encrypting.entry(namespace).or_insert_with(|| EncryptedHosts::of(world, client, namespace));
        hosts.may_cover(&owned.host) && {
            let order = super::order::Order::of(world, client, &owned.host, namespace);
            order.client_tls(port, &[]).is_some_and(|tls| tls.mode() != wire::client_tls::Mode::Disable)
        }
    })
}

/// The hosts of the rules that set TLS for some port, of those that may hold for a client and the services of a namespace.
struct EncryptedHosts {
    exact: HashSet<String>,
    wildcards: Vec<HostPattern>,
}

impl EncryptedHosts {
    fn of(world: &World, client: Client<'_>, namespace: &str) -> Self {
        let rules = world.rules_for(client.namespace, namespace).into_iter().filter(|rule| sets_tls(rule));
        let hosts = rules.map(|rule| host_of(rule, &world.config().cluster_domain));
        let (wildcards, exact): (Vec<_>, Vec<_>) = hosts.partition(|host| host.suffix().is_some());
        Self { exact: exact.iter().map(|host| host.as_str().to_owned()).collect(), wildcards }
    }

    fn may_cover(&self, host: &HostPattern) -> bool {
        self.exact.contains(host.as_str()) || self.wildcards.iter().any(|rule| rule.covers(host))
    }
}

fn sets_tls(rule: &DestinationRule) -> bool {
    rule.spec.traffic_policy.as_ref().is_some_and(|policy| {
        policy.tls.is_some() || policy.port_level_settings.iter().any(|port| port.tls.is_some())
    })
}

/// Whether a client may know a Service.
pub(super) fn sees(world: &World, service: &Service, sight: &Sight<'_>) -> bool {
    sight.sees_service(service, &world.full_name(&service.name))
}

/// The pod with a name below a headless service's, as those of a StatefulSet have one. As in DNS only while it is ready.
fn pod_named<'w>(world: &'w World, asked: &AskedHost, sight: &Sight<'_>) -> Option<&'w Pod> {
    asked.above.iter().find_map(|above| {
        let service = world.service(&above.service)?;
        if !service.headless || !sees(world, service, sight) {
            return None;
        }
        let endpoints = world.slices_of(&service.name).flat_map(|slice| &slice.endpoints);
        let mut named = endpoints.filter(|e| e.ready && e.hostname.as_deref() == Some(above.below.as_str()));
        named.find_map(|endpoint| super::service::pod_of(world, service, endpoint)).map(|pod| &**pod)
    })
}

/// A host outside of the mesh under another name; without ports there is nothing to match.
fn external(world: &World, alias: &Service, target: &str, client: Client<'_>) -> Option<wire::Service> {
    let host = HostPattern::new(&host_name(&alias.name, world.config()));
    let order = super::order::Order::of(world, client, &host, &alias.name.namespace);
    let ports: Vec<wire::ServicePort> = super::service::ports(alias, &order);
    let reached = alias.ports.iter().map(|port| {
        // Auto mTLS leaves what is outside of the mesh alone (reference mtls 2.1, A1).
        let tls = order.endpoint_tls(port.number, false, || wire::EndpointTls::Plaintext);
        let number = u32::from(port.number);
        wire::EndpointPort { service_port: number, target_port: number, tls: tls.into() }
    });
    let mut endpoint = wire::Endpoint { ports: reached.collect(), ..Default::default() };
    match target.parse::<IpAddr>() {
        Ok(address) => endpoint.address = address.to_canonical().to_string(),
        Err(_) => endpoint.dns_name = target.to_owned(),
    }
    (!ports.is_empty()).then(|| wire::Service {
        namespace: alias.name.namespace.clone(),
        name: alias.name.name.clone(),
        hostname: host.as_str().to_owned(),
        ports,
        endpoints: vec![endpoint],
        external: true,
        resolution: wire::Resolution::Dns.into(),
        ..Default::default()
    })
}
