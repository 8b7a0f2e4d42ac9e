//! ML0201: several PeerAuthentications for one scope, of which the oldest counts alone (reference mtls PA-6).

use std::cmp::Ordering;
use std::collections::BTreeMap;

use maille_config::istio::PeerAuthentication;
use maille_core::{Labels, Selector};

use crate::code::CONFLICTING_PEER_AUTHENTICATIONS;
use crate::mesh::{Mesh, Typed};
use crate::report::Report;

use super::names;

type Policy<'m> = Typed<'m, PeerAuthentication>;

pub(crate) fn analyze(mesh: &Mesh<'_>, report: &mut Report) {
    let mut for_all: BTreeMap<&str, Vec<&Policy<'_>>> = BTreeMap::new();
    let mut selecting: BTreeMap<&str, Vec<&Policy<'_>>> = BTreeMap::new();
    for policy in &mesh.peer_authentications {
        let namespace = policy.resource.namespace().unwrap_or("default");
        if selector(policy).is_empty() {
            for_all.entry(namespace).or_default().push(policy);
        } else if namespace != mesh.settings.root_namespace {
            selecting.entry(namespace).or_default().push(policy);
        }
    }
    for (namespace, mut policies) in for_all {
        let scope = match namespace == mesh.settings.root_namespace {
            true => "the whole mesh".to_owned(),
            false => format!("the whole namespace {namespace}"),
        };
        policies.sort_by(|a, b| by_age(a, b));
        if let [winner, losers @ ..] = policies.as_slice() {
            losers.iter().for_each(|loser| lost(loser, winner, &scope, report));
        }
    }
    for policies in selecting.into_values() {
        conflicts_by_selector(mesh, policies, report);
    }
}

/// Whether another policy of the same scope counts instead of `policy` for workloads with these labels.
pub(super) fn is_ignored(mesh: &Mesh<'_>, policy: &Policy<'_>, labels: &Labels) -> bool {
    let for_all = selector(policy).is_empty();
    mesh.peer_authentications.iter().any(|other| {
        let own = selector(other);
        other.resource.namespace() == policy.resource.namespace()
            && own.is_empty() == for_all
            && own.selects(labels)
            && by_age(other, policy) == Ordering::Less
    })
}

/// Policies whose selectors meet at some workload, or are the same.
fn conflicts_by_selector(mesh: &Mesh<'_>, mut policies: Vec<&Policy<'_>>, report: &mut Report) {
    policies.sort_by(|a, b| by_age(a, b));
    for (index, loser) in policies.iter().enumerate().skip(1) {
        let own = selector(loser);
        let older = policies.iter().take(index);
        let winner = older.into_iter().find_map(|winner| {
            let other = selector(winner);
            let meet = |w: &&crate::mesh::Workload<'_>| {
                w.resource.namespace() == loser.resource.namespace()
                    && own.selects(&w.labels)
                    && other.selects(&w.labels)
            };
            let met: Vec<_> = mesh.workloads.iter().filter(meet).collect();
            let scope = match met.is_empty() {
                false => names::workloads(met),
                true if own == other => format!("workloads with {}", names::labels(own.pairs())),
                true => return None,
            };
            Some((winner, scope))
        });
        if let Some((winner, scope)) = winner {
            lost(loser, winner, &scope, report);
        }
    }
}

fn lost(loser: &Policy<'_>, winner: &Policy<'_>, scope: &str, report: &mut Report) {
    let why = match (age(loser), age(winner)) {
        (own, other) if own == other => "of the same age and first by name",
        _ => "the older one",
    };
    let text = format!(
        "the policy is ignored for {scope}: {}/{} is {why}, and only one counts; merge the two, or delete one",
        winner.resource.namespace().unwrap_or_default(),
        winner.resource.name()
    );
    report.add(&CONFLICTING_PEER_AUTHENTICATIONS, loser.resource, "metadata.name", text);
}

fn selector(policy: &Policy<'_>) -> Selector {
    let selector = policy.object.spec.selector.as_ref();
    Selector::new(selector.map(|s| s.match_labels.clone()).unwrap_or_default())
}

fn age(policy: &Policy<'_>) -> Option<i64> {
    policy.object.metadata.creation_timestamp.as_ref().map(|time| time.0.as_second())
}

/// As [`maille_config::mtls`] chooses: the oldest, in the same second by name; what is not stored yet is newest.
fn by_age(a: &Policy<'_>, b: &Policy<'_>) -> Ordering {
    let key = |p: &Policy<'_>| (age(p).unwrap_or(i64::MAX), p.resource.name().to_owned());
    key(a).cmp(&key(b))
}
