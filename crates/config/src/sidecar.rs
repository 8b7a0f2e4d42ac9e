//! Which Sidecar a workload has, and which services it may see (reference mtls 4.3; istio pilot/pkg/model, sidecar.go).

use maille_core::Labels;

use crate::age::by_age;
use crate::hosts::HostPattern;
use crate::istio::{OutboundMode, Sidecar, SidecarSpec};

/// The Sidecar of a workload, out of all there are: of its namespace one whose selector means it, else one without
/// selector, the oldest first; else the root namespace's without selector.
pub fn in_force<'s>(
    sidecars: impl IntoIterator<Item = &'s Sidecar>,
    root_namespace: &str,
    namespace: &str,
    labels: &Labels,
) -> Option<&'s Sidecar> {
    let own_namespace = |sidecar: &Sidecar| sidecar.metadata.namespace.as_deref() == Some(namespace);
    let candidates = sidecars.into_iter().filter_map(|sidecar| {
        let (own, root) =
            (own_namespace(sidecar), sidecar.metadata.namespace.as_deref() == Some(root_namespace));
        let rank = match &sidecar.spec.workload_selector {
            Some(selector) if own => {
                let means = selector.labels.iter().all(|(key, value)| labels.get(key) == Some(value));
                means.then_some(0)
            }
            Some(_) => None,
            None if own => Some(1),
            None if root => Some(2),
            None => None,
        };
        rank.map(|rank: u8| (rank, sidecar))
    });
    candidates
        .min_by(|(a, x), (b, y)| a.cmp(b).then_with(|| by_age(&x.metadata, &y.metadata)))
        .map(|(_, sidecar)| sidecar)
}

/// What a workload with a Sidecar may see, made once per workload's namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct EgressScope {
    /// Namespace (`None`: all) and host.
    imported: Vec<(Option<String>, HostPattern)>,
    excluded: Vec<(Option<String>, HostPattern)>,
}

impl EgressScope {
    /// The scope of a workload of `namespace`; `None`: it sees everything.
    pub fn of(spec: &SidecarSpec, namespace: &str) -> Option<Self> {
        if spec.egress.is_empty() {
            return None;
        }
        let mut scope = Self::default();
        for text in spec.egress.iter().flat_map(|listener| &listener.hosts) {
            // What is no `<namespace>/<host>` is nobody's.
            let Some((place, host)) = text.split_once('/') else { continue };
            let (list, place) = match place.strip_prefix('~') {
                Some(rest) => (&mut scope.excluded, if rest.is_empty() { "*" } else { rest }),
                None => (&mut scope.imported, place),
            };
            let place = match place {
                "*" => None,
                "." => Some(namespace.to_owned()),
                name => Some(name.to_owned()),
            };
            list.push((place, HostPattern::new(host)));
        }
        Some(scope)
    }

    /// Whether a service of `namespace` is seen; its host may be a wildcard, which then must be covered as a whole.
    pub fn sees(&self, namespace: &str, host: &HostPattern) -> bool {
        let holds = |list: &[(Option<String>, HostPattern)]| {
            list.iter().any(|(place, pattern)| {
                place.as_deref().is_none_or(|place| place == namespace) && pattern.covers(host)
            })
        };
        !holds(&self.excluded) && holds(&self.imported)
    }
}

/// What becomes of calls to the unknown, if the Sidecar says so; else the mesh does.
pub fn outbound_mode(spec: &SidecarSpec) -> Option<OutboundMode> {
    spec.outbound_traffic_policy.as_ref().map(|policy| policy.mode.unwrap_or_default())
}

#[cfg(test)]
mod tests;
