//! ML0206: rules about who calls, on ports where a caller need not say who it is.
//!
//! A caller without mutual TLS has no identity: no positive value matches it and every negative one does (reference
//! authorization 22). For an ALLOW rule with positive values that refuses such callers, which is safe; a DENY rule with
//! positive values, and an ALLOW rule with negative ones only, lets them through.

use std::collections::BTreeMap;

use maille_config::istio::{Action, Rule, Source};
use maille_core::MtlsMode;

use crate::code::{IDENTITY_RULE_WITHOUT_MTLS, Level};
use crate::mesh::policy::{admits_port, sources};
use crate::mesh::{Mesh, Policy};
use crate::report::Report;

use super::names::workloads;

/// What becomes of callers without identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Consequence {
    /// A DENY rule does not see them.
    NotDenied,
    /// An ALLOW rule takes them for none of those excluded.
    Allowed,
    /// An ALLOW rule is for others, and the port's callers never have an identity.
    NobodyAllowed,
    /// An ALLOW rule is for others.
    Refused,
}

pub(crate) fn analyze(mesh: &Mesh<'_>, report: &mut Report) {
    for policy in mesh.policies.iter().filter(|policy| !policy.dry_run) {
        for (path, rule) in policy.rules() {
            explain(mesh, policy, &path, rule, report);
        }
    }
}

fn explain(mesh: &Mesh<'_>, policy: &Policy<'_>, path: &str, rule: &Rule, report: &mut Report) {
    let mut found: BTreeMap<(Consequence, u16), Vec<usize>> = BTreeMap::new();
    for index in &policy.workloads {
        let (Some(workload), Some(modes)) = (mesh.workloads.get(*index), mesh.modes_of(*index)) else {
            continue;
        };
        for port in mesh.ports_of(workload).into_iter().filter(|port| admits_port(rule, *port)) {
            let mode = modes.for_port(port);
            if mode == MtlsMode::Strict {
                continue;
            }
            if let Some(consequence) = consequence(mesh, policy, rule, *index, port, mode) {
                found.entry((consequence, port)).or_default().push(*index);
            }
        }
    }
    for ((consequence, port), indices) in found {
        let of = workloads(indices.iter().filter_map(|index| mesh.workloads.get(*index)));
        let (level, text) = match consequence {
            Consequence::NotDenied => (
                Level::Warning,
                format!(
                    "callers in plaintext are not denied: port {port} of {of} accepts them, and they have no identity \
                     for this rule to match; make the port STRICT, or deny them too with notPrincipals: [\"*\"]"
                ),
            ),
            Consequence::Allowed => (
                Level::Warning,
                format!(
                    "callers in plaintext are allowed: port {port} of {of} accepts them, and who has no identity is \
                     none of those excluded; make the port STRICT, or add principals: [\"*\"]"
                ),
            ),
            Consequence::NobodyAllowed => (
                Level::Warning,
                format!(
                    "the rule allows nobody on port {port} of {of}: the port takes plaintext only (DISABLE), so that no \
                     caller has an identity; make it PERMISSIVE or STRICT"
                ),
            ),
            Consequence::Refused => (
                Level::Info,
                format!(
                    "callers in plaintext are refused, though port {port} of {of} accepts them (PERMISSIVE): the rule \
                     asks for an identity, which a caller has with a sidecar only"
                ),
            ),
        };
        report.add_as(level, &IDENTITY_RULE_WITHOUT_MTLS, policy.resource, path, text);
    }
}

fn consequence(
    mesh: &Mesh<'_>,
    policy: &Policy<'_>,
    rule: &Rule,
    workload: usize,
    port: u16,
    mode: MtlsMode,
) -> Option<Consequence> {
    let demand = demand(rule);
    match policy.action() {
        // Where ALLOW policies refuse callers without identity anyway, nothing escapes.
        Action::Deny if demand.positive => {
            plaintext_may_pass(mesh, workload, port).then_some(Consequence::NotDenied)
        }
        Action::Allow if demand.positive => match mode {
            MtlsMode::Disable => Some(Consequence::NobodyAllowed),
            _ => (!plaintext_may_pass(mesh, workload, port)).then_some(Consequence::Refused),
        },
        Action::Allow if demand.negative => Some(Consequence::Allowed),
        _ => None,
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
