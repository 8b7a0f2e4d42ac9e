//! ML0202: `portLevelMtls` for a port that no workload has; often the Service's number is written where the workload's
//! is meant (reference mtls PA-8).

use maille_core::Selector;

use crate::code::PORT_LEVEL_MTLS_WITHOUT_PORT;
use crate::mesh::{Mesh, Workload};
use crate::report::Report;

use super::names::{list, workloads};

pub(crate) fn analyze(mesh: &Mesh<'_>, report: &mut Report) {
    for policy in &mesh.peer_authentications {
        let namespace = policy.resource.namespace().unwrap_or("default");
        let pairs = policy.object.spec.selector.as_ref().map(|s| s.match_labels.clone()).unwrap_or_default();
        let selector = Selector::new(pairs);
        let selected: Vec<&Workload<'_>> = mesh
            .workloads
            .iter()
            .filter(|w| w.namespace == namespace && selector.selects(&w.labels))
            .collect();
        if selector.is_empty() || selected.is_empty() {
            continue;
        }
        for port in policy.object.spec.port_level_mtls.iter().flatten().map(|(port, _)| port) {
            let Ok(number) = port.parse::<u16>() else { continue };
            // A container need not declare its ports: who declares none may listen on any.
            let has = |w: &&Workload<'_>| {
                let known = mesh.ports_of(w);
                known.is_empty() || known.contains(&number)
            };
            if selected.iter().any(has) {
                continue;
            }
            let meant = selected.iter().find_map(|workload| service_port(mesh, workload, number));
            let hint = match meant {
                Some((service, target)) => format!(
                    "{number} is the port of Service {service}, whose traffic arrives at port {target}; write {target}"
                ),
                None => {
                    let known = selected.iter().flat_map(|w| mesh.ports_of(w));
                    format!("its ports are {}", list(known.collect::<std::collections::BTreeSet<_>>()))
                }
            };
            let text = format!(
                "no container or Service of {} uses port {number}, so that its mode holds for nothing: {hint}",
                workloads(selected.iter().copied())
            );
            let path = format!("spec.portLevelMtls[{port}]");
            report.add(&PORT_LEVEL_MTLS_WITHOUT_PORT, policy.resource, &path, text);
        }
    }
}

/// The Service of a workload that has this number towards its clients, and where that leads.
fn service_port(mesh: &Mesh<'_>, workload: &Workload<'_>, number: u16) -> Option<(String, u16)> {
    mesh.services_of(workload).find_map(|service| {
        let port = service.ports.iter().find(|port| port.number == number)?;
        Some((service.name.clone(), port.target_of(workload)?))
    })
}
