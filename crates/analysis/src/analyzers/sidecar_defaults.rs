//! IST0111: several Sidecars without selector in one namespace.

use std::collections::BTreeMap;

use crate::code::MULTIPLE_SIDECARS_WITHOUT_WORKLOAD_SELECTORS;
use crate::mesh::Mesh;
use crate::report::Report;

use super::names::list;

pub(crate) fn analyze(mesh: &Mesh<'_>, report: &mut Report) {
    let mut by_namespace: BTreeMap<&str, Vec<_>> = BTreeMap::new();
    for sidecar in mesh.sidecars.iter().filter(|sidecar| sidecar.object.spec.workload_selector.is_none()) {
        by_namespace.entry(sidecar.resource.namespace().unwrap_or("default")).or_default().push(sidecar);
    }
    for (namespace, sidecars) in by_namespace.into_iter().filter(|(_, sidecars)| sidecars.len() > 1) {
        let names = list(sidecars.iter().map(|sidecar| sidecar.resource.name()));
        for sidecar in sidecars {
            let text = format!(
                "the Sidecars {names} of namespace {namespace} have no workload selector: only the oldest counts; keep one"
            );
            report.add(
                &MULTIPLE_SIDECARS_WITHOUT_WORKLOAD_SELECTORS,
                sidecar.resource,
                "metadata.name",
                text,
            );
        }
    }
}
