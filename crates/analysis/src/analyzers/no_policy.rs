//! ML0208: workloads that no AuthorizationPolicy selects: anyone who reaches them may call them.

use std::collections::{BTreeMap, BTreeSet};

use maille_config::istio::Action;

use crate::code::NO_AUTHORIZATION_POLICY;
use crate::mesh::{Mesh, Workload};
use crate::report::Report;

use super::names;

pub(crate) fn analyze(mesh: &Mesh<'_>, report: &mut Report) {
    let selected: BTreeSet<usize> = mesh
        .policies
        .iter()
        .filter(|policy| !policy.dry_run && policy.action() != Action::Audit)
        .flat_map(|policy| policy.workloads.iter().copied())
        .collect();
    let mut by_namespace: BTreeMap<&str, (Vec<&Workload<'_>>, bool)> = BTreeMap::new();
    for (index, workload) in mesh.workloads.iter().enumerate().filter(|(_, w)| w.meshed) {
        let (open, some_protected) = by_namespace.entry(&workload.namespace).or_default();
        match selected.contains(&index) {
            true => *some_protected = true,
            // Without a port there is nothing to call.
            false if mesh.ports_of(workload).is_empty() => {}
            false => open.push(workload),
        }
    }
    for (namespace, (open, some_protected)) in by_namespace {
        let namespace_object =
            mesh.of_kind("", "Namespace").find(|r| r.name() == namespace && !open.is_empty());
        match namespace_object {
            // One finding says it for all of them.
            Some(object) if !some_protected => {
                let text = format!(
                    "no AuthorizationPolicy holds for any workload of the namespace ({}): whoever reaches them may \
                     call them; begin with an ALLOW policy without rules (spec: {{}}), and allow what is needed",
                    names::workloads(open)
                );
                report.add(&NO_AUTHORIZATION_POLICY, object, "metadata.name", text);
            }
            _ => {
                for workload in open {
                    let Some(subject) = workload.subject() else { continue };
                    let text = format!(
                        "no AuthorizationPolicy holds for {}: whoever reaches it may call it",
                        names::name(workload)
                    );
                    let path = workload.field("metadata.labels");
                    report.add(&NO_AUTHORIZATION_POLICY, subject, &path, text);
                }
            }
        }
    }
}
