//! Which DestinationRule is in force for a client and a service, and what it says of a port (reference mtls 2.2, 2.3).

use std::collections::BTreeSet;

use maille_core::{Labels, Selector};

use crate::age::by_age;
use crate::export::{exported_to, is_private};
use crate::hosts::HostPattern;
use crate::istio::{ClientTlsMode, ClientTlsSettings, DestinationRule, TrafficPolicy};
pub use policy::PortPolicy;

mod policy;

/// What of the mesh matters here.
#[derive(Debug, Clone, Copy)]
pub struct Mesh<'a> {
    /// The namespace whose rules hold where no nearer one does.
    pub root_namespace: &'a str,
    /// Services are `<name>.<namespace>.svc.<this>`.
    pub cluster_domain: &'a str,
}

/// The workload that calls.
#[derive(Debug, Clone, Copy)]
pub struct Client<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its labels, for `workloadSelector`.
    pub labels: &'a Labels,
}

/// The service that is called.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// Full host name of a Service; host of a ServiceEntry, which may be a wildcard.
    pub host: &'a HostPattern,
    /// Namespace of the Service or ServiceEntry.
    pub namespace: &'a str,
}

/// The rules in force, merged.
#[derive(Debug, Clone)]
pub struct InForce<'r> {
    /// All that were merged, the first ones first; never empty.
    pub rules: Vec<&'r DestinationRule>,
    /// The rule whose traffic policy counts, if one has any.
    pub decisive: Option<&'r DestinationRule>,
}

/// What is said about TLS to one port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortTls<'r> {
    /// Nothing: auto mTLS (reference mtls 2.1). A mode that stands above a port's own settings marks all
    /// endpoints all the same, as ISTIO_MUTUAL or else as plaintext (the quirk of DR-8).
    Auto {
        /// That mode.
        endpoints: Option<ClientTlsMode>,
    },
    /// These settings, for every endpoint.
    Explicit(&'r ClientTlsSettings),
}

/// The rule in force, out of all rules there are; `rules` may be limited to the namespaces of the client and the
/// service and the root namespace, since no others count.
///
/// The first namespace with a match decides: the client's, the service's, the root namespace. There is no merging across
/// namespaces (DR-11, DR-12, DR-17).
pub fn in_force<'r>(
    rules: impl IntoIterator<Item = &'r DestinationRule>,
    mesh: Mesh<'_>,
    client: Client<'_>,
    target: Target<'_>,
) -> Option<InForce<'r>> {
    search(rules, mesh, client.namespace, Some(client.labels), target)
}

/// The rule whose connection pool a workload of the service's own keeps to as a server, which asks as a client of its
/// own namespace would; selectors of workloads are for clients only (istio pilot/pkg/model, SidecarScope).
pub fn in_force_inbound<'r>(
    rules: impl IntoIterator<Item = &'r DestinationRule>,
    mesh: Mesh<'_>,
    workload_namespace: &str,
    target: Target<'_>,
) -> Option<InForce<'r>> {
    search(rules, mesh, workload_namespace, None, target)
}

fn search<'r>(
    rules: impl IntoIterator<Item = &'r DestinationRule>,
    mesh: Mesh<'_>,
    asks: &str,
    labels: Option<&Labels>,
    target: Target<'_>,
) -> Option<InForce<'r>> {
    let client = Asking { namespace: asks, labels };
    let matching: Vec<Candidate<'r>> = rules
        .into_iter()
        .map(|rule| Candidate::of(rule, mesh.cluster_domain))
        .filter(|candidate| candidate.host.covers(target.host))
        .collect();
    let in_root = client.namespace == mesh.root_namespace;
    let nearest = matching.iter().filter(|c| {
        // Rules of the root namespace are meant for the whole mesh; only private ones for its own clients first.
        c.namespace == client.namespace && if in_root { c.private() } else { c.seen_from(client.namespace) }
    });
    // Rules of the client's namespace end the search even if their selectors pass this client by.
    if let Some(chosen) = most_specific(nearest, client) {
        return chosen;
    }
    [target.namespace, mesh.root_namespace]
        .into_iter()
        .find_map(|namespace| {
            let exported = matching.iter().filter(|c| c.namespace == namespace && !c.private());
            most_specific(exported, client)
        })
        .flatten()
}

/// Who asks: a client, or a server, which no selector means.
#[derive(Clone, Copy)]
struct Asking<'a> {
    namespace: &'a str,
    labels: Option<&'a Labels>,
}

/// One rule with its host completed.
struct Candidate<'r> {
    rule: &'r DestinationRule,
    namespace: &'r str,
    host: HostPattern,
    selector: Option<Selector>,
}

impl<'r> Candidate<'r> {
    fn of(rule: &'r DestinationRule, cluster_domain: &str) -> Self {
        let namespace = rule.metadata.namespace.as_deref().unwrap_or_default();
        let selector = rule.spec.workload_selector.as_ref();
        Self {
            rule,
            namespace,
            host: host_of(rule, cluster_domain),
            selector: selector.map(|s| Selector::new(s.match_labels.clone())),
        }
    }

    /// A rule with a selector is private whatever its `exportTo` says.
    fn private(&self) -> bool {
        self.selector.is_some() || is_private(&self.rule.spec.export_to, self.namespace)
    }

    fn seen_from(&self, namespace: &str) -> bool {
        if self.selector.is_some() {
            self.namespace == namespace
        } else {
            exported_to(&self.rule.spec.export_to, self.namespace, namespace)
        }
    }

    /// `exportTo` as a set, with one spelling for the own namespace; empty for everybody by default.
    fn export_set(&self) -> BTreeSet<&'r str> {
        let own = |entry: &'r String| if entry == "." { self.namespace } else { entry.as_str() };
        match self.selector {
            Some(_) => [self.namespace].into(),
            None => self.rule.spec.export_to.iter().map(own).collect(),
        }
    }
}

/// The host of a rule, completed.
pub fn host_of(rule: &DestinationRule, cluster_domain: &str) -> HostPattern {
    let namespace = rule.metadata.namespace.as_deref().unwrap_or_default();
    HostPattern::of_rule(&rule.spec.host, namespace, cluster_domain)
}

/// Of one namespace's rules those with the most specific host; less specific ones are not tried then. The outer `None`:
/// there are none, or none that the client may see. The inner one: none of them is for this client.
fn most_specific<'c, 'r: 'c>(
    candidates: impl Iterator<Item = &'c Candidate<'r>> + Clone,
    client: Asking<'_>,
) -> Option<Option<InForce<'r>>> {
    let host = &candidates.clone().max_by_key(|c| c.host.specificity())?.host;
    let mut all: Vec<_> = candidates.filter(|c| c.host == *host).collect();
    all.sort_by(|a, b| {
        let selectors_first = b.selector.is_some().cmp(&a.selector.is_some());
        selectors_first.then_with(|| by_age(&a.rule.metadata, &b.rule.metadata))
    });
    let mut merged: Vec<Merged<'c, 'r>> = Vec::new();
    for candidate in all {
        let exports = candidate.export_set();
        let mut apart = true;
        for existing in merged.iter_mut().filter(|m| m.first.selector == candidate.selector) {
            let supersedes = !existing.exports.is_empty() && exports.is_superset(&existing.exports);
            if existing.exports == exports {
                apart = false;
            } else if !supersedes {
                continue;
            }
            existing.rules.push(candidate.rule);
        }
        if apart {
            merged.push(Merged { first: candidate, exports, rules: vec![candidate.rule] });
        }
    }
    merged.retain(|m| m.first.seen_from(client.namespace));
    (!merged.is_empty()).then(|| for_client(merged, client))
}

/// Of several that were kept apart the one with the client's selector, else the last one without any, as Istio takes it.
fn for_client<'r>(mut merged: Vec<Merged<'_, 'r>>, client: Asking<'_>) -> Option<InForce<'r>> {
    let selects = |selector: &Selector| client.labels.is_some_and(|labels| selector.selects(labels));
    let selected = |m: &Merged<'_, '_>| m.first.selector.as_ref().is_some_and(selects);
    let own = merged.iter().position(selected);
    let chosen = own.or_else(|| merged.iter().rposition(|m| m.first.selector.is_none()))?;
    let mut rules = merged.remove(chosen).rules;
    if own.is_some() && rules.iter().all(|rule| rule.spec.traffic_policy.is_none()) {
        // A rule with a selector that says nothing of its own leaves the word to the one for everybody.
        let mut rest = merged.into_iter().filter(|m| m.first.selector.is_none());
        rules.extend(rest.next_back().into_iter().flat_map(|m| m.rules));
    }
    let decisive = rules.iter().copied().find(|rule| rule.spec.traffic_policy.is_some());
    Some(InForce { rules, decisive })
}

struct Merged<'c, 'r> {
    first: &'c Candidate<'r>,
    exports: BTreeSet<&'r str>,
    rules: Vec<&'r DestinationRule>,
}

impl<'r> InForce<'r> {
    /// The traffic policy that counts.
    pub fn policy(&self) -> Option<&'r TrafficPolicy> {
        self.decisive.and_then(|rule| rule.spec.traffic_policy.as_ref())
    }
}

#[cfg(test)]
mod tests;
