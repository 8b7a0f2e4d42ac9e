//! ML0206: rules about who calls, on ports where a caller need not say who it is.
//!
//! A caller without mutual TLS has no identity: no positive value matches it and every negative one does (reference
//! authorization 22). For an ALLOW rule with positive values that refuses such callers, which is safe; a DENY rule with
//! positive values, and an ALLOW rule with negative ones only, lets them through.

use std::collections::BTreeMap;

use maille_config::istio::{Action, Rule, Source};
use maille_core::MtlsMode;

use crate::code::IDENTITY_RULE_WITHOUT_MTLS;
use crate::mesh::policy::{admits_port, sources};
use crate::mesh::{Mesh, Policy};
use crate::report::Report;

use super::names::workloads;

pub(crate) fn analyze(mesh: &Mesh<'_>, report: &mut Report) {
    for policy in mesh.policies.iter().filter(|policy| !policy.dry_run) {
        for (path, rule) in policy.rules() {
            let demand = demand(rule);
            let escaped = match policy.action() {
                Action::Deny => demand.positive,
                Action::Allow => demand.negative && !demand.positive,
                Action::Audit | Action::Custom => false,
            };
            if escaped {
                explain(mesh, policy, &path, rule, report);
            }
        }
    }
}

fn explain(mesh: &Mesh<'_>, policy: &Policy<'_>, path: &str, rule: &Rule, report: &mut Report) {
    let mut by_port: BTreeMap<u16, Vec<usize>> = BTreeMap::new();
    for index in &policy.workloads {
        let (Some(workload), Some(modes)) = (mesh.workloads.get(*index), mesh.modes_of(*index)) else {
            continue;
        };
        let ports = mesh.ports_of(workload).into_iter();
        let open = ports.filter(|port| modes.for_port(*port) != MtlsMode::Strict && admits_port(rule, *port));
        for port in open {
            // Where another rule refuses callers without identity anyway, nothing escapes.
            if policy.action() == Action::Allow || plaintext_may_pass(mesh, *index, port) {
                by_port.entry(port).or_default().push(*index);
            }
        }
    }
    for (port, indices) in by_port {
        let concerned = workloads(indices.iter().filter_map(|index| mesh.workloads.get(*index)));
        let text = match policy.action() {
            Action::Deny => format!(
                "callers in plaintext are not denied: port {port} of {concerned} accepts them, and they have no \
                 identity for this rule to match; make the port STRICT, or deny them too with \
                 notPrincipals: [\"*\"]"
            ),
            _ => format!(
                "callers in plaintext are allowed: port {port} of {concerned} accepts them, and who has no identity \
                 is none of those excluded; make the port STRICT, or add principals: [\"*\"]"
            ),
        };
        report.add(&IDENTITY_RULE_WITHOUT_MTLS, policy.resource, path, text);
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Demand {
    positive: bool,
    negative: bool,
}

/// What a rule asks of the identity: positive if every alternative asks for one.
fn demand(rule: &Rule) -> Demand {
    let mut demand = Demand::default();
    for when in rule.when.iter().filter(|when| is_identity(&when.key)) {
        demand.positive |= !when.values.is_empty();
        demand.negative |= !when.not_values.is_empty();
    }
    let mut alternatives = sources("", rule).map(|(_, source)| source).peekable();
    if alternatives.peek().is_some() && rule.from.iter().all(|from| from.source.is_some()) {
        let all: Vec<&Source> = alternatives.collect();
        demand.positive |= all.iter().all(|source| positive(source));
        demand.negative |= all.iter().any(|source| negative(source) && !positive(source));
    }
    demand
}

fn is_identity(key: &str) -> bool {
    matches!(key, "source.principal" | "source.namespace" | "source.serviceAccount" | "source.trustDomain")
}

fn positive(source: &Source) -> bool {
    let lists = [&source.principals, &source.namespaces, &source.service_accounts, &source.trust_domains];
    lists.iter().any(|list| !list.is_empty())
}

fn negative(source: &Source) -> bool {
    let lists = [
        &source.not_principals,
        &source.not_namespaces,
        &source.not_service_accounts,
        &source.not_trust_domains,
    ];
    lists.iter().any(|list| !list.is_empty())
}

/// Whether ALLOW policies could let a caller without identity through to a port.
fn plaintext_may_pass(mesh: &Mesh<'_>, workload: usize, port: u16) -> bool {
    let enforced = mesh.policies.iter().filter(|p| !p.dry_run && p.workloads.contains(&workload));
    let mut allowing = enforced.filter(|policy| policy.action() == Action::Allow).peekable();
    allowing.peek().is_none()
        || allowing.any(|policy| {
            policy.object.spec.rules.iter().any(|rule| !demand(rule).positive && admits_port(rule, port))
        })
}
