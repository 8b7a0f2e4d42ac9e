use std::collections::BTreeSet;
use std::sync::Arc;

use maille_config::mtls;
use maille_proto::facts as wire;

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

/// The workload ports that services declare. When several declare one, the oldest decides (PA-17).
fn inbound_ports(world: &World, pod: &Pod) -> Vec<wire::InboundPort> {
    let before = world.services_before(&pod.name, &pod.addresses);
    let by_hand = |s: &Service| s.selector.is_none() && before.contains(&s.name);
    let mut services: Vec<&Arc<Service>> =
        world.services_in(&pod.name.namespace).filter(|s| s.selects(pod) || by_hand(s)).collect();
    services.sort_by(|a, b| (a.created_s, &a.name).cmp(&(b.created_s, &b.name)));
    let mut seen = BTreeSet::new();
    let mut ports = Vec::new();
    for service in services {
        for declared in &service.ports {
            let target = match &service.selector {
                Some(_) => pod.port(&declared.target),
                None => port_by_hand(world, service, declared, pod),
            };
            let Some(target) = target.filter(|t| seen.insert(*t)) else { continue };
            ports.push(wire::InboundPort {
                port: target.into(),
                protocol: protocol(declared.protocol),
                service_hostname: host_name(&service.name, world.config()),
                service_name: service.name.name.clone(),
                service_namespace: service.name.namespace.clone(),
                ..Default::default()
            });
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
