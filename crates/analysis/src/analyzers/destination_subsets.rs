//! IST0173: subsets that select no Pod.

use maille_config::HostPattern;
use maille_config::destination_rule::host_of;
use maille_core::{CLUSTER_DOMAIN, Selector};

use crate::code::DESTINATION_RULE_SUBSET_NOT_SELECT_PODS;
use crate::mesh::{Mesh, Service};
use crate::report::Report;

use super::names::labels;

pub(crate) fn analyze(mesh: &Mesh<'_>, report: &mut Report) {
    for rule in &mesh.destination_rules {
        let pattern = host_of(&rule.object, CLUSTER_DOMAIN);
        let services: Vec<&Service<'_>> =
            mesh.services.iter().filter(|s| pattern.covers(&HostPattern::new(&s.host()))).collect();
        // Endpoints of ServiceEntries are another matter.
        if services.is_empty() {
            continue;
        }
        for (index, subset) in rule.object.spec.subsets.iter().enumerate() {
            let selector = Selector::new(subset.labels.clone());
            let selected = mesh
                .workloads
                .iter()
                .any(|w| selector.selects(&w.labels) && services.iter().any(|service| service.selects(w)));
            if selected {
                continue;
            }
            let name = &subset.name;
            let text = format!(
                "subset '{name}' of {} selects no pod: none of the service's has the labels {}",
                rule.object.spec.host,
                labels(selector.pairs())
            );
            let path = format!("spec.subsets[{index}]");
            report.add(&DESTINATION_RULE_SUBSET_NOT_SELECT_PODS, rule.resource, &path, text);
        }
    }
}
