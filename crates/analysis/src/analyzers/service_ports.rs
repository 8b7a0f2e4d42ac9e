//! ML0218: policies that name the port of a Service where the workload's is meant: what arrives has been sent to the
//! latter (reference authorization 8, 13).

use std::collections::BTreeSet;

use maille_config::istio::Rule;

use crate::code::SERVICE_PORT_IN_POLICY;
use crate::mesh::{Mesh, Policy};
use crate::report::Report;

use super::names::{list, workloads};

pub(crate) fn analyze(mesh: &Mesh<'_>, report: &mut Report) {
    for policy in &mesh.policies {
        for (path, rule) in policy.rules() {
            for (path, value) in named(&path, rule) {
                if let Ok(port) = value.parse() {
                    explain(mesh, policy, &path, port, report);
                }
            }
        }
    }
}

/// Ports of a rule, with their field paths.
fn named<'r>(path: &str, rule: &'r Rule) -> Vec<(String, &'r str)> {
    let mut named = Vec::new();
    for (i, operation) in rule.to.iter().enumerate().filter_map(|(i, to)| Some((i, to.operation.as_ref()?))) {
        for (field, values) in [("ports", &operation.ports), ("notPorts", &operation.not_ports)] {
            let each = values.iter().enumerate();
            named.extend(
                each.map(|(j, value)| (format!("{path}.to[{i}].operation.{field}[{j}]"), value.as_str())),
            );
        }
    }
    for (i, when) in rule.when.iter().enumerate().filter(|(_, when)| when.key == "destination.port") {
        for (field, values) in [("values", &when.values), ("notValues", &when.not_values)] {
            let each = values.iter().enumerate();
            named.extend(each.map(|(j, value)| (format!("{path}.when[{i}].{field}[{j}]"), value.as_str())));
        }
    }
    named
}

fn explain(mesh: &Mesh<'_>, policy: &Policy<'_>, path: &str, port: u16, report: &mut Report) {
    let selected: Vec<_> = policy.workloads.iter().filter_map(|index| mesh.workloads.get(*index)).collect();
    // Somebody listens there: then they are meant.
    if selected.iter().any(|workload| mesh.ports_of(workload).contains(&port)) {
        return;
    }
    let mut of = Vec::new();
    let mut services = BTreeSet::new();
    let mut targets = BTreeSet::new();
    for workload in selected {
        for service in mesh.services_of(workload) {
            let meant = service.ports.iter().filter(|p| p.is_tcp() && p.number == port);
            let meant: Vec<u16> = meant.filter_map(|p| p.target_of(workload)).collect();
            if !meant.is_empty() {
                services.insert(format!("{}/{}", service.namespace, service.name));
                targets.extend(meant);
                of.push(workload);
            }
        }
    }
    if of.is_empty() {
        return;
    }
    let text = format!(
        "{port} is the port of Service {}, and policies see the workload's: connections to {} arrive at port {}; write \
         that",
        list(services),
        workloads(of),
        list(targets)
    );
    report.add(&SERVICE_PORT_IN_POLICY, policy.resource, path, text);
}
