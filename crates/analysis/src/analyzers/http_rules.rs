//! ML0207: rules about requests, on ports that carry TCP (reference authorization 11).
//!
//! On such a port an ALLOW rule with an HTTP field never matches, and any other rule loses the field and matches more
//! than it says.

use maille_config::istio::{Action, Rule};
use maille_core::PortProtocol;

use crate::code::HTTP_RULE_ON_TCP_PORT;
use crate::mesh::policy::{admits_port, names_port, operations, sources};
use crate::mesh::{Mesh, Policy};
use crate::report::Report;

use super::{names, providers};

pub(crate) fn analyze(mesh: &Mesh<'_>, report: &mut Report) {
    let known = providers::configured(mesh).unwrap_or_default();
    // Whoever is not asked about TCP at all is another finding.
    let looks = |policy: &&Policy<'_>| !policy.dry_run && !providers::asks_about_http_only(policy, &known);
    for policy in mesh.policies.iter().filter(looks) {
        for (path, rule) in policy.rules() {
            if let Some(field) = http_field(rule) {
                explain(mesh, policy, &path, rule, field, report);
            }
        }
    }
}

fn explain(mesh: &Mesh<'_>, policy: &Policy<'_>, path: &str, rule: &Rule, field: &str, report: &mut Report) {
    let mut told: Vec<(u16, String)> = Vec::new();
    for workload in policy.workloads.iter().filter_map(|index| mesh.workloads.get(*index)) {
        let ports = mesh.declared_ports(workload);
        let admitted: Vec<_> = ports.iter().filter(|(port, _)| admits_port(rule, **port)).collect();
        let only_tcp = admitted.iter().all(|(_, protocol)| **protocol == PortProtocol::Tcp);
        for (port, _) in admitted.iter().filter(|(_, protocol)| **protocol == PortProtocol::Tcp) {
            let name = names::name(workload);
            let counts = policy.action() != Action::Allow || only_tcp || names_port(rule, **port);
            if !counts || told.contains(&(**port, name.clone())) {
                continue;
            }
            let text = match policy.action() {
                Action::Deny | Action::Audit | Action::Custom => format!(
                    "port {port} of {name} carries TCP, which has no {field}: there the rule {} everything else \
                     that it matches; add ports to the operation, or leave port {port} out with notPorts",
                    match policy.action() {
                        Action::Audit => "marks",
                        Action::Custom => "asks about",
                        _ => "denies",
                    }
                ),
                Action::Allow => format!(
                    "port {port} of {name} carries TCP, which has no {field}: there the rule never matches; name the \
                     port http-… if it carries HTTP, or leave {field} out"
                ),
            };
            report.add(&HTTP_RULE_ON_TCP_PORT, policy.resource, path, text);
            told.push((**port, name));
        }
    }
}

/// A field of the rule that only HTTP has.
fn http_field(rule: &Rule) -> Option<&'static str> {
    let of_operation = operations(rule).find_map(|o| {
        let fields = [
            (&o.methods, &o.not_methods, "methods"),
            (&o.paths, &o.not_paths, "paths"),
            (&o.hosts, &o.not_hosts, "hosts"),
        ];
        fields.into_iter().find(|(a, b, _)| !a.is_empty() || !b.is_empty()).map(|(.., name)| name)
    });
    let of_source = || {
        let mut sources = sources("", rule);
        let asks =
            sources.any(|(_, s)| !s.request_principals.is_empty() || !s.not_request_principals.is_empty());
        asks.then_some("requestPrincipals")
    };
    let of_when = || rule.when.iter().any(|c| c.key.starts_with("request.")).then_some("request attributes");
    of_operation.or_else(of_source).or_else(of_when)
}
