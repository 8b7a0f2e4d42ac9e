//! IST0102, IST0103, IST0123: who takes part in the injection of sidecars.

use maille_core::Labels;

use crate::code::{NAMESPACE_MULTIPLE_INJECTION_LABELS, NAMESPACE_NOT_INJECTED, POD_MISSING_PROXY};
use crate::mesh::Mesh;
use crate::report::Report;

const INJECTION: &str = "istio-injection";
const REVISION: &str = "istio.io/rev";
const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
/// Namespaces of the cluster itself.
const SYSTEM: [&str; 4] = ["kube-system", "kube-public", "kube-node-lease", "local-path-storage"];

pub(crate) fn analyze(mesh: &Mesh<'_>, report: &mut Report) {
    for resource in mesh.of_kind("", "Namespace") {
        let name = resource.name();
        if SYSTEM.contains(&name) || name == mesh.settings.root_namespace {
            continue;
        }
        let labels = resource.metadata("labels");
        let found = injection_labels(&labels);
        if found.is_empty() {
            let text = format!(
                "the namespace is not enabled for injection; run `kubectl label namespace {name} \
                 istio-injection=enabled` to give its pods sidecars, or `kubectl label namespace {name} \
                 istio-injection=disabled` to say that it needs none"
            );
            report.add(&NAMESPACE_NOT_INJECTED, resource, "metadata.labels", text);
        } else if found.len() > 1 && labels.get(INJECTION).map(String::as_str) != Some("disabled") {
            let text = format!(
                "the namespace has more than one label about injection: {}; {INJECTION} counts before {REVISION}; \
                 remove all but one",
                found.join(", ")
            );
            report.add(&NAMESPACE_MULTIPLE_INJECTION_LABELS, resource, "metadata.labels", text);
        }
    }
    for workload in mesh.workloads.iter().filter(|w| w.is_pod() && !w.meshed && w.skipped.is_none()) {
        let text = format!(
            "the pod {} is missing its sidecar, though its namespace asks for one: it was created before the \
             namespace was labelled, or while injection did not answer; restart it, for example with `kubectl rollout \
             restart deployment -n {}`",
            workload.resource.name(),
            workload.namespace
        );
        report.add(&POD_MISSING_PROXY, workload.resource, "metadata.name", text);
    }
}

fn injection_labels(labels: &Labels) -> Vec<&'static str> {
    [INJECTION, REVISION, DATAPLANE_MODE].into_iter().filter(|name| labels.contains_key(*name)).collect()
}
