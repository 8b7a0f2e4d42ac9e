use std::collections::BTreeSet;
use std::sync::Arc;

use maille_config::istio::ServiceEntry;
use maille_config::service_entry::valid_port;
use maille_config::{HostPattern, mtls};
use maille_proto::facts as wire;

use super::entry::pod_port;
use super::order::ServerOrder;
use super::traffic::connection_pool;
use super::{host_name, mtls_mode, protocol, workload};
use crate::world::{Pod, Service, ServicePort, World};

/// What a pod's proxy enforces and terminates.
pub fn inbound(world: &World, pod: &Pod) -> wire::Inbound {
    let config = world.config();
    let namespace = &pod.name.namespace;
    let policies = world.peer_authentications_for(namespace);
    let resolved = mtls::resolve(&policies, &config.root_namespace, namespace, &pod.labels);
    let differing = resolved.ports.iter().filter(|(_, mode)| **mode != resolved.mode);
    wire::Inbound {
        workload: Some(workload(pod, config)),
        mode: mtls_mode(resolved.mode),
        port_modes: differing.map(|(port, mode)| (u32::from(*port), mtls_mode(*mode))).collect(),
        ports: inbound_ports(world, pod),
    }
}

/// What declares ports of a workload.
enum Declaring<'w> {
    Service(&'w Arc<Service>),
    Entry(&'w ServiceEntry, String),
}

impl Declaring<'_> {
    /// The oldest decides, and of two as old a Service.
    fn age(&self) -> (i64, bool, &str) {
        match self {
            Self::Service(service) => (service.created_s, false, &service.name.name),
            Self::Entry(entry, host) => {
                let created = entry.metadata.creation_timestamp.as_ref();
                (created.map_or(i64::MAX, |t| t.0.as_second()), true, host)
            }
        }
    }
}

/// The workload ports that services declare, and ServiceEntries that select the workload. When several declare one, the
/// oldest decides (PA-17).
fn inbound_ports(world: &World, pod: &Pod) -> Vec<wire::InboundPort> {
    let namespace = &pod.name.namespace;
    let before = world.services_before(&pod.name, &pod.addresses);
    let by_hand = |s: &Service| s.selector.is_none() && before.contains(&s.name);
    let services = world.services_in(namespace).filter(|s| s.selects(pod) || by_hand(s));
    let entries = world.entries_selecting(pod).flat_map(|entry| {
        entry.spec.hosts.iter().map(|host| Declaring::Entry(entry, host.to_ascii_lowercase()))
    });
    let mut all: Vec<_> = services.map(Declaring::Service).chain(entries).collect();
    all.sort_by(|a, b| a.age().cmp(&b.age()));
    let of_sidecar = world.inbound_connection_pool_of(namespace, &pod.labels).map(connection_pool);
    let mut seen = BTreeSet::new();
    let mut ports = Vec::new();
    for declaring in all {
        let mut add = |port: Option<u16>, number: u16, protocol: wire::Protocol, order: &ServerOrder<'_>| {
            let Some(port) = port.filter(|port| seen.insert(*port)) else { return };
            let (hostname, name) = match &declaring {
                Declaring::Service(service) => {
                    (host_name(&service.name, world.config()), service.name.name.clone())
                }
                Declaring::Entry(_, host) => (host.clone(), host.clone()),
            };
            ports.push(wire::InboundPort {
                port: port.into(),
                protocol: protocol.into(),
                service_hostname: hostname,
                service_name: name,
                service_namespace: namespace.clone(),
                connection_pool: of_sidecar.or_else(|| order.connection_pool(number)),
            });
        };
        match &declaring {
            Declaring::Service(service) => {
                let order = ServerOrder::of(world, &world.full_name(&service.name), namespace);
                for declared in &service.ports {
                    let target = match &service.selector {
                        Some(_) => pod.port(&declared.target),
                        None => port_by_hand(world, service, declared, pod),
                    };
                    add(target, declared.number, protocol(declared.protocol), &order);
                }
            }
            Declaring::Entry(entry, host) => {
                let order = ServerOrder::of(world, &HostPattern::new(host), namespace);
                for declared in &entry.spec.ports {
                    let number = valid_port(declared.number);
                    let Some((number, protocol)) = number.zip(super::entry::protocol(declared)) else {
                        continue;
                    };
                    // A proxy before an application that speaks TLS sees nothing but bytes.
                    let protocol =
                        if protocol == wire::Protocol::Tls { wire::Protocol::Tcp } else { protocol };
                    add(pod_port(pod, declared), number, protocol, &order);
                }
            }
        }
    }
    ports.sort_by_key(|p| p.port);
    ports
}

/// Where endpoints are written by hand, their slice says the port.
fn port_by_hand(world: &World, service: &Service, declared: &ServicePort, pod: &Pod) -> Option<u16> {
    let mine = |slice: &&Arc<crate::world::EndpointSlice>| {
        slice.endpoints.iter().any(|e| match &e.pod {
            Some(name) => *name == pod.name.name,
            None => e.addresses.iter().any(|a| pod.addresses.contains(a)),
        })
    };
    let slice = world.slices_of(&service.name).find(mine)?;
    slice.ports.iter().find(|(name, _)| *name == declared.name).map(|(_, number)| *number)
}
