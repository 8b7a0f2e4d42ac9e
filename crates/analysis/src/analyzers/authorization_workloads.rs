//! IST0127: policies that select no workload of the mesh.

use crate::code::NO_MATCHING_WORKLOADS_FOUND;
use crate::mesh::{Mesh, Policy};
use crate::report::Report;

use super::names::{self, workloads};

pub(crate) fn analyze(mesh: &Mesh<'_>, report: &mut Report) {
    for policy in mesh.policies.iter().filter(|policy| !policy.attached_elsewhere) {
        // A policy for the whole mesh needs nobody yet.
        if !policy.workloads.is_empty() || (policy.mesh_wide && policy.selector.is_empty()) {
            continue;
        }
        let path =
            if policy.selector.is_empty() { "metadata.namespace" } else { "spec.selector.matchLabels" };
        report.add(&NO_MATCHING_WORKLOADS_FOUND, policy.resource, path, explain(mesh, policy));
    }
}

fn explain(mesh: &Mesh<'_>, policy: &Policy<'_>) -> String {
    let selector = policy.selector.pairs();
    let scope = match policy.mesh_wide {
        true => "in the mesh".to_owned(),
        false => format!("in namespace {}", policy.namespace),
    };
    let mut text = match selector.is_empty() {
        true => format!("no workload with a sidecar {scope}: the policy protects nothing"),
        false => {
            format!("no workload with a sidecar {scope} has the labels {}", names::labels(selector))
        }
    };
    let near = mesh.workloads.iter().filter(|w| policy.mesh_wide || w.namespace == policy.namespace);
    let without_sidecar: Vec<_> = near.filter(|w| !w.meshed && policy.selector.selects(&w.labels)).collect();
    if !without_sidecar.is_empty() {
        text.push_str(&format!("; without a sidecar there is {}", workloads(without_sidecar)));
    } else if let Some((key, value)) = almost(mesh, policy) {
        text.push_str(&format!("; did you mean {key}={value}?"));
    } else if let Some(elsewhere) = elsewhere(mesh, policy) {
        text.push_str(&format!("; namespace {elsewhere} has one, but a policy holds for its own namespace"));
    }
    text
}

/// The value of a label in scope that differs by a letter or two from the selector's.
fn almost<'m>(mesh: &'m Mesh<'_>, policy: &Policy<'_>) -> Option<(&'m String, &'m String)> {
    let near = mesh.workloads.iter().filter(|w| policy.mesh_wide || w.namespace == policy.namespace);
    near.flat_map(|w| &w.labels).find(|(key, value)| {
        let wanted = policy.selector.pairs().get(*key);
        wanted.is_some_and(|wanted| wanted != *value && names::nearest(wanted, [value.as_str()]).is_some())
    })
}

fn elsewhere<'m>(mesh: &'m Mesh<'_>, policy: &Policy<'_>) -> Option<&'m str> {
    if policy.selector.is_empty() {
        return None;
    }
    let found = mesh.workloads.iter().find(|w| w.meshed && policy.selector.selects(&w.labels));
    found.map(|w| w.namespace.as_str())
}
