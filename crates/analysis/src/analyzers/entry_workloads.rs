//! ML0222, ML0223: ServiceEntries that select nobody, and WorkloadEntries that nobody selects (reference mtls SE-14).

use maille_config::istio::{Resolution, ServiceEntry, WorkloadEntry};
use maille_core::{Labels, Selector};

use crate::code::{SERVICE_ENTRY_SELECTS_NOTHING, WORKLOAD_ENTRY_NOT_SELECTED};
use crate::mesh::{Mesh, Typed};
use crate::report::Report;

use super::names::labels;

pub(crate) fn analyze(mesh: &Mesh<'_>, report: &mut Report) {
    for entry in &mesh.service_entries {
        let Some(selector) = selector_of(entry) else { continue };
        let namespace = entry.resource.namespace().unwrap_or("default");
        let pods = mesh.workloads.iter().any(|w| w.namespace == namespace && selector.selects(&w.labels));
        let others = mesh.workload_entries.iter().any(|workload| {
            workload.resource.namespace() == entry.resource.namespace()
                && selector.selects(&labels_of(workload))
        });
        if !pods && !others {
            let text = format!(
                "no workload and no WorkloadEntry of namespace {namespace} has the labels {}: calls to the hosts fail",
                labels(selector.pairs())
            );
            report.add(&SERVICE_ENTRY_SELECTS_NOTHING, entry.resource, "spec.workloadSelector.labels", text);
        }
    }
    for workload in &mesh.workload_entries {
        let own = labels_of(workload);
        let selected = mesh.service_entries.iter().any(|entry| {
            entry.resource.namespace() == workload.resource.namespace()
                && selector_of(entry).is_some_and(|selector| selector.selects(&own))
        });
        let of_service = mesh.services.iter().any(|service| {
            Some(service.namespace.as_str()) == workload.resource.namespace() && service.selects_labels(&own)
        });
        if !selected && !of_service {
            let text = "no ServiceEntry of the namespace selects it by its labels: nothing is sent to it";
            report.add(&WORKLOAD_ENTRY_NOT_SELECTED, workload.resource, "spec.labels", text);
        }
    }
}

/// Those of the metadata go before those of the spec (istio pilot/pkg/serviceregistry/serviceentry, convertWorkloadEntry).
fn labels_of(workload: &Typed<'_, WorkloadEntry>) -> Labels {
    let mut labels = workload.object.spec.labels.clone();
    labels.extend(workload.resource.metadata("labels"));
    labels
}

fn selector_of(entry: &Typed<'_, ServiceEntry>) -> Option<Selector> {
    let selector = entry.object.spec.workload_selector.as_ref()?;
    // One without labels selects nothing, which the schema's warning says.
    (!selector.labels.is_empty() && entry.object.spec.resolution != Resolution::None)
        .then(|| Selector::new(selector.labels.clone()))
}
