//! IST0101, IST0110: Sidecars that select nobody, or the same workload; ML0224: hosts that they would show in vain.

use std::collections::BTreeMap;

use maille_config::HostPattern;
use maille_config::istio::Sidecar;
use maille_core::Selector;

use crate::code::{
    CONFLICTING_SIDECAR_WORKLOAD_SELECTORS, REFERENCED_RESOURCE_NOT_FOUND, UNKNOWN_EGRESS_HOST,
};
use crate::mesh::{Mesh, Service, Typed};
use crate::report::Report;

use super::names::{self, labels, list, nearest};

pub(crate) fn analyze(mesh: &Mesh<'_>, report: &mut Report) {
    selectors(mesh, report);
    mesh.sidecars.iter().for_each(|sidecar| hosts(mesh, sidecar, report));
}

fn selectors(mesh: &Mesh<'_>, report: &mut Report) {
    // Workload to the Sidecars that select it.
    let mut selecting: BTreeMap<usize, Vec<&Typed<'_, Sidecar>>> = BTreeMap::new();
    for sidecar in &mesh.sidecars {
        let Some(selector) = &sidecar.object.spec.workload_selector else { continue };
        let selector = Selector::new(selector.labels.clone());
        let namespace = sidecar.resource.namespace().unwrap_or("default");
        let workloads = mesh.workloads.iter().enumerate();
        let selected: Vec<usize> = workloads
            .filter(|(_, w)| w.namespace == namespace && selector.selects(&w.labels))
            .map(|(index, _)| index)
            .collect();
        if selected.is_empty() {
            let text =
                format!("no workload of namespace {namespace} has the labels {}", labels(selector.pairs()));
            let path = "spec.workloadSelector.labels";
            report.add(&REFERENCED_RESOURCE_NOT_FOUND, sidecar.resource, path, text);
        }
        for index in selected {
            selecting.entry(index).or_default().push(sidecar);
        }
    }
    for (index, sidecars) in selecting.into_iter().filter(|(_, sidecars)| sidecars.len() > 1) {
        let Some(workload) = mesh.workloads.get(index) else { continue };
        let all = list(sidecars.iter().map(|sidecar| sidecar.resource.name()));
        for sidecar in sidecars {
            let text = format!(
                "the Sidecars {all} select the same workload {}: only the oldest counts for it",
                names::name(workload)
            );
            let path = "spec.workloadSelector.labels";
            report.add(&CONFLICTING_SIDECAR_WORKLOAD_SELECTORS, sidecar.resource, path, text);
        }
    }
}

/// A host that is written out, and that nothing in the namespace beside it has.
fn hosts(mesh: &Mesh<'_>, sidecar: &Typed<'_, Sidecar>, report: &mut Report) {
    let own = sidecar.resource.namespace().unwrap_or("default");
    for (i, listener) in sidecar.object.spec.egress.iter().enumerate() {
        for (j, written) in listener.hosts.iter().enumerate() {
            let Some((place, host)) = written.split_once('/').filter(|(place, _)| !place.starts_with('~'))
            else {
                continue;
            };
            let pattern = HostPattern::new(host);
            if pattern.suffix().is_some() {
                continue;
            }
            let place = if place == "." { own } else { place };
            let within = |namespace: Option<&str>| place == "*" || namespace == Some(place);
            let services = mesh.services.iter().filter(|service| within(Some(&service.namespace)));
            let mut known: Vec<String> = services.map(Service::host).collect();
            for entry in mesh.service_entries.iter().filter(|entry| within(entry.resource.namespace())) {
                known.extend(entry.object.spec.hosts.iter().map(|host| host.to_ascii_lowercase()));
            }
            if known.iter().any(|known| pattern.covers(&HostPattern::new(known))) {
                continue;
            }
            let near = nearest(pattern.as_str(), known.iter().map(String::as_str));
            let hint = match near {
                Some(near) => format!("did you mean {near}?"),
                None => "a host is the whole name, for example cart.shop.svc.cluster.local".to_owned(),
            };
            let scope = if place == "*" { String::new() } else { format!(" of namespace {place}") };
            let text = format!("'{host}' is in no Service and no ServiceEntry{scope}; {hint}");
            let path = format!("spec.egress[{i}].hosts[{j}]");
            report.add(&UNKNOWN_EGRESS_HOST, sidecar.resource, &path, text);
        }
    }
}
