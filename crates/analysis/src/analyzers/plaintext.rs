//! ML0209: DISABLE where the mesh or the namespace says STRICT. Policies that ML0201 says are ignored disable nothing.

use maille_config::istio::{MutualTlsMode, PeerAuthentication};
use maille_config::mtls::namespace_mode;
use maille_core::{Labels, MtlsMode, Selector};

use crate::code::PLAINTEXT_IN_STRICT_MESH;
use crate::mesh::Mesh;
use crate::report::Report;

use super::names::workloads;
use super::peer_authentications::is_ignored;

pub(crate) fn analyze(mesh: &Mesh<'_>, report: &mut Report) {
    let root = mesh.settings.root_namespace.as_str();
    let all: Vec<PeerAuthentication> = mesh.peer_authentications.iter().map(|p| p.object.clone()).collect();
    for policy in &mesh.peer_authentications {
        let namespace = policy.resource.namespace().unwrap_or("default");
        let spec = &policy.object.spec;
        let selector =
            Selector::new(spec.selector.as_ref().map(|s| s.match_labels.clone()).unwrap_or_default());
        let inherited = match selector.is_empty() {
            // What the policy replaces: the mesh's mode.
            true if namespace != root => namespace_mode(&all, root, root),
            true => continue,
            false => namespace_mode(&all, root, namespace),
        };
        if inherited != MtlsMode::Strict {
            continue;
        }
        let whom = match selector.is_empty() {
            true if is_ignored(mesh, policy, &Labels::new()) => continue,
            true => format!("workloads of namespace {namespace}"),
            false => {
                let all = mesh.workloads.iter();
                let selected: Vec<_> =
                    all.filter(|w| w.namespace == namespace && selector.selects(&w.labels)).collect();
                // Workloads that are not there yet have the labels of the selector at least.
                let nobody = selected.is_empty() && !is_ignored(mesh, policy, selector.pairs());
                let held = selected.into_iter().filter(|w| !is_ignored(mesh, policy, &w.labels));
                let held: Vec<_> = held.collect();
                match (nobody, held.is_empty()) {
                    (true, _) => "the selected workloads".to_owned(),
                    (false, true) => continue,
                    (false, false) => workloads(held),
                }
            }
        };
        let say = |what: String| {
            format!(
                "{what} take plaintext only, where STRICT is the rule: nothing is encrypted, and no caller proves who \
                 it is, so that rules about principals and namespaces match nobody; PERMISSIVE would take both"
            )
        };
        if spec.mtls.is_some_and(|mtls| mtls.mode == MutualTlsMode::Disable) {
            report.add(&PLAINTEXT_IN_STRICT_MESH, policy.resource, "spec.mtls.mode", say(whom.clone()));
        }
        for (port, mtls) in spec.port_level_mtls.iter().flatten() {
            if mtls.mode == MutualTlsMode::Disable {
                let text = say(format!("connections to port {port} of {whom}"));
                let path = format!("spec.portLevelMtls[{port}].mode");
                report.add(&PLAINTEXT_IN_STRICT_MESH, policy.resource, &path, text);
            }
        }
    }
}
