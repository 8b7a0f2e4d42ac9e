//! ML0213: CUSTOM policies that ask a provider which the mesh configuration does not have. ML0214: workloads whose
//! policies ask several (reference authorization 15). In both cases what a rule matches is refused.

use std::collections::{BTreeMap, BTreeSet};

use maille_config::istio::Action;
use maille_config::mesh::{self, CONFIG_KEY, CONFIG_MAP};
use maille_core::ROOT_NAMESPACE;

use crate::code::{SEVERAL_PROVIDERS, UNKNOWN_PROVIDER};
use crate::mesh::{Mesh, Policy};
use crate::report::Report;

use super::names::{list, nearest, workloads};

pub(crate) fn analyze(mesh: &Mesh<'_>, report: &mut Report) {
    let asking: Vec<&Policy<'_>> =
        mesh.policies.iter().filter(|policy| policy.action() == Action::Custom).collect();
    if let Some(known) = known_providers(mesh) {
        for policy in asking.iter().filter(|policy| !known.contains(provider(policy))) {
            unknown(policy, &known, report);
        }
    }
    several(mesh, &asking, report);
}

fn provider<'p>(policy: &'p Policy<'_>) -> &'p str {
    policy.object.spec.provider.as_ref().map(|provider| provider.name.as_str()).unwrap_or_default()
}

/// Names of the providers; `None` if what there is does not say: files without the configuration, or with a bad one,
/// which the schema's analyzer reports.
fn known_providers(mesh: &Mesh<'_>) -> Option<BTreeSet<String>> {
    let maps = mesh.of_kind("", "ConfigMap");
    let map = maps.filter(|map| map.name() == CONFIG_MAP && map.namespace() == Some(ROOT_NAMESPACE)).last();
    let Some(map) = map else { return mesh.settings.complete.then(BTreeSet::new) };
    let text = map.value.get("data")?.get(CONFIG_KEY)?.as_str()?;
    let config = mesh::check(text).ok()?;
    Some(config.extension_providers.into_iter().map(|provider| provider.name).collect())
}

fn unknown(policy: &Policy<'_>, known: &BTreeSet<String>, report: &mut Report) {
    let name = provider(policy);
    let hint = match nearest(name, known.iter().map(String::as_str)) {
        Some(near) => format!("did you mean '{near}'?"),
        None if known.is_empty() => format!(
            "add it to extensionProviders in ConfigMap {ROOT_NAMESPACE}/{CONFIG_MAP}, which names none"
        ),
        None => format!("known are {}", list(known)),
    };
    let text = format!(
        "the mesh configuration has no provider '{name}': what the policy's rules match is refused, since nobody can be \
         asked; {hint}"
    );
    report.add(&UNKNOWN_PROVIDER, policy.resource, "spec.provider.name", text);
}

fn several(mesh: &Mesh<'_>, asking: &[&Policy<'_>], report: &mut Report) {
    let mut by_workload: BTreeMap<usize, Vec<&Policy<'_>>> = BTreeMap::new();
    for policy in asking {
        for index in &policy.workloads {
            by_workload.entry(*index).or_default().push(policy);
        }
    }
    for policy in asking {
        let mut others: BTreeSet<String> = BTreeSet::new();
        let mut shared: Vec<usize> = Vec::new();
        for index in &policy.workloads {
            let beside = by_workload.get(index).into_iter().flatten();
            let beside: Vec<_> = beside.filter(|other| provider(other) != provider(policy)).collect();
            if !beside.is_empty() {
                shared.push(*index);
                others.extend(beside.iter().map(|other| {
                    format!("{}/{} asks '{}'", other.namespace, other.resource.name(), provider(other))
                }));
            }
        }
        if shared.is_empty() {
            continue;
        }
        let text = format!(
            "only one provider can be asked about a workload, and for {} there are several: this policy asks '{}', {}; \
             what the rules of any of them match is refused there",
            workloads(shared.iter().filter_map(|index| mesh.workloads.get(*index))),
            provider(policy),
            list(others)
        );
        report.add(&SEVERAL_PROVIDERS, policy.resource, "spec.provider.name", text);
    }
}
