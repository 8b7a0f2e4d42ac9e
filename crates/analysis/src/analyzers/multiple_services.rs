//! IST0116, IST0137: Services in front of one Deployment that contradict each other.

use std::collections::{BTreeMap, BTreeSet};

use crate::code::{DEPLOYMENT_ASSOCIATED_TO_MULTIPLE_SERVICES, DEPLOYMENT_CONFLICTING_PORTS};
use crate::mesh::{Mesh, Workload};
use crate::report::Report;

use super::names::{self, list};

pub(crate) fn analyze(mesh: &Mesh<'_>, report: &mut Report) {
    let mut seen = BTreeSet::new();
    for workload in mesh.workloads.iter().filter(|w| w.meshed) {
        // Pods of one Deployment have the same Services.
        if seen.insert(names::name(workload)) {
            protocols(mesh, workload, report);
            target_ports(mesh, workload, report);
        }
    }
}

/// One port number, understood as two transports.
fn protocols(mesh: &Mesh<'_>, workload: &Workload<'_>, report: &mut Report) {
    let mut by_port: BTreeMap<u16, BTreeMap<&str, BTreeSet<&str>>> = BTreeMap::new();
    for service in mesh.services_of(workload) {
        for port in &service.ports {
            let services = by_port.entry(port.number).or_default();
            services.entry(&port.transport).or_default().insert(&service.name);
        }
    }
    for (port, transports) in by_port {
        let services: BTreeSet<&str> = transports.values().flatten().copied().collect();
        // A Service may well have a port for both; two Services that differ are a mistake.
        if transports.len() > 1 && services.len() > 1 {
            let text = format!(
                "{} is behind several services that use port {port} with different protocols ({}): {}",
                names::name(workload),
                list(transports.keys()),
                list(services)
            );
            let subject = workload.subject().unwrap_or(workload.resource);
            report.add(&DEPLOYMENT_ASSOCIATED_TO_MULTIPLE_SERVICES, subject, "metadata.name", text);
        }
    }
}

/// One target port, behind different ports.
fn target_ports(mesh: &Mesh<'_>, workload: &Workload<'_>, report: &mut Report) {
    let mut by_target: BTreeMap<u16, (BTreeSet<u16>, BTreeSet<&str>)> = BTreeMap::new();
    for service in mesh.services_of(workload) {
        for port in service.ports.iter().filter(|port| port.is_tcp()) {
            if let Some(target) = port.target_of(workload) {
                let (numbers, services) = by_target.entry(target).or_default();
                numbers.insert(port.number);
                services.insert(&service.name);
            }
        }
    }
    for (target, (numbers, services)) in by_target {
        if numbers.len() > 1 && services.len() > 1 {
            let text = format!(
                "{} is behind services {} that lead to targetPort {target} from different ports: {}; the first of them \
                 decides how the port is understood",
                names::name(workload),
                list(services),
                list(numbers)
            );
            let subject = workload.subject().unwrap_or(workload.resource);
            report.add(&DEPLOYMENT_CONFLICTING_PORTS, subject, "metadata.name", text);
        }
    }
}
