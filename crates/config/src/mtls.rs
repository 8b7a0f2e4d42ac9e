//! What a workload accepts, from all PeerAuthentications that concern it (reference mtls 1.2, PA-1 to PA-8).

use std::collections::BTreeMap;

use maille_core::{Labels, MtlsMode, Selector};

use crate::age::by_age;
use crate::istio::{MutualTls, MutualTlsMode, PeerAuthentication};

/// The modes of one workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedMtls {
    /// The mode of every port without one of its own.
    pub mode: MtlsMode,
    /// Modes by workload port (PA-8).
    pub ports: BTreeMap<u16, MtlsMode>,
}

impl ResolvedMtls {
    /// The mode of a workload port.
    pub fn for_port(&self, port: u16) -> MtlsMode {
        self.ports.get(&port).copied().unwrap_or(self.mode)
    }
}

/// The modes of the workload with these `labels` in `namespace`; policies of other namespaces than
/// its own and the root namespace may be among `policies` and do not count.
pub fn resolve(
    policies: &[PeerAuthentication],
    root_namespace: &str,
    namespace: &str,
    labels: &Labels,
) -> ResolvedMtls {
    let inherited = namespace_mode(policies, root_namespace, namespace);
    // PA-2: a policy of the root namespace with a selector counts nowhere.
    let own = (namespace != root_namespace)
        .then(|| oldest(policies, namespace, |selector| !selector.is_empty() && selector.selects(labels)))
        .flatten();
    let Some(own) = own else { return ResolvedMtls { mode: inherited, ports: BTreeMap::new() } };
    let mode = mode_of(own.spec.mtls).unwrap_or(inherited);
    // PA-5: the ports of this policy only.
    let ports = own
        .spec
        .port_level_mtls
        .iter()
        .flatten()
        .filter_map(|(port, mtls)| Some((port.parse().ok()?, mode_of(Some(*mtls)).unwrap_or(mode))))
        .collect();
    ResolvedMtls { mode, ports }
}

/// The mode of a namespace as a whole: its own policy without selector, else the mesh's, else
/// PERMISSIVE (PA-3, PA-7; step A4 of the client's choice, reference mtls 2.1).
pub fn namespace_mode(policies: &[PeerAuthentication], root_namespace: &str, namespace: &str) -> MtlsMode {
    let mode_in = |namespace| {
        oldest(policies, namespace, Selector::is_empty).and_then(|policy| mode_of(policy.spec.mtls))
    };
    let own = if namespace == root_namespace { None } else { mode_in(namespace) };
    own.or_else(|| mode_in(root_namespace)).unwrap_or(MtlsMode::Permissive)
}

/// The oldest policy of a namespace whose selector is as wanted (PA-6: the others are ignored whole).
fn oldest<'p>(
    policies: &'p [PeerAuthentication],
    namespace: &str,
    wanted: impl Fn(&Selector) -> bool,
) -> Option<&'p PeerAuthentication> {
    policies
        .iter()
        .filter(|policy| policy.metadata.namespace.as_deref() == Some(namespace))
        .filter(|policy| {
            let pairs = policy.spec.selector.as_ref().map(|s| s.match_labels.clone()).unwrap_or_default();
            wanted(&Selector::new(pairs))
        })
        .min_by(|a, b| by_age(&a.metadata, &b.metadata))
}

/// `None` is UNSET.
fn mode_of(mtls: Option<MutualTls>) -> Option<MtlsMode> {
    match mtls.unwrap_or_default().mode {
        MutualTlsMode::Unset => None,
        MutualTlsMode::Disable => Some(MtlsMode::Disable),
        MutualTlsMode::Permissive => Some(MtlsMode::Permissive),
        MutualTlsMode::Strict => Some(MtlsMode::Strict),
    }
}

#[cfg(test)]
mod tests;
