//! ML0212: ALLOW policies that can allow nothing, because a DENY rule refuses everything.

use maille_config::istio::{Action, Rule};

use crate::code::SHADOWED_POLICY;
use crate::mesh::Mesh;
use crate::report::Report;

pub(crate) fn analyze(mesh: &Mesh<'_>, report: &mut Report) {
    let enforced = || mesh.policies.iter().filter(|policy| !policy.dry_run && !policy.workloads.is_empty());
    let all = |rule: &Rule| rule.from.is_empty() && rule.to.is_empty() && rule.when.is_empty();
    let denying: Vec<_> = enforced()
        .filter(|policy| policy.action() == Action::Deny && policy.object.spec.rules.iter().any(all))
        .collect();
    for policy in enforced().filter(|p| p.action() == Action::Allow && !p.object.spec.rules.is_empty()) {
        // One that covers every workload of the policy; several that do so together are rare.
        let by = denying.iter().find(|deny| policy.workloads.iter().all(|w| deny.workloads.contains(w)));
        if let Some(by) = by {
            let text = format!(
                "the policy allows nothing: DENY policy {}/{} refuses every request to the same workloads, and DENY \
                 comes first; to refuse all but what is allowed, write an ALLOW policy without rules (spec: {{}})",
                by.namespace,
                by.resource.name()
            );
            report.add(&SHADOWED_POLICY, policy.resource, "spec.rules", text);
        }
    }
}
