//! ML0213: CUSTOM policies that ask a provider which the mesh configuration does not have. ML0214: workloads whose
//! policies ask several. In both cases what a rule matches is refused. ML0221: ports that carry TCP, about which a
//! provider that speaks HTTP is not asked (reference authorization 15).

use std::collections::{BTreeMap, BTreeSet};

use maille_config::istio::Action;
use maille_config::mesh::{self, CONFIG_KEY, CONFIG_MAP, ExtensionProvider, ProviderKind};
use maille_core::{PortProtocol, ROOT_NAMESPACE};

use crate::code::{SEVERAL_PROVIDERS, TCP_PASSES_UNASKED, UNKNOWN_PROVIDER};
use crate::mesh::policy::admits_port;
use crate::mesh::{Mesh, Policy};
use crate::report::Report;

use super::names::{list, nearest, workloads};

pub(crate) fn analyze(mesh: &Mesh<'_>, report: &mut Report) {
    let asking: Vec<&Policy<'_>> =
        mesh.policies.iter().filter(|policy| policy.action() == Action::Custom).collect();
    if let Some(known) = configured(mesh) {
        for policy in &asking {
            match known.iter().find(|known| known.name == provider(policy)) {
                None => unknown(policy, &known, report),
                Some(ExtensionProvider { kind: ProviderKind::Http(_), .. }) => unasked(mesh, policy, report),
                Some(_) => {}
            }
        }
    }
    several(mesh, &asking, report);
}

fn provider<'p>(policy: &'p Policy<'_>) -> &'p str {
    policy.object.spec.provider.as_ref().map(|provider| provider.name.as_str()).unwrap_or_default()
}

/// Whether a policy asks somebody who is not asked about TCP.
pub(super) fn asks_about_http_only(policy: &Policy<'_>, known: &[ExtensionProvider]) -> bool {
    let its = known.iter().find(|known| known.name == provider(policy));
    policy.action() == Action::Custom && its.is_some_and(|its| matches!(its.kind, ProviderKind::Http(_)))
}

/// The providers; `None` if what there is does not say: files without the configuration, or with a bad one,
/// which the schema's analyzer reports.
pub(super) fn configured(mesh: &Mesh<'_>) -> Option<Vec<ExtensionProvider>> {
    let maps = mesh.of_kind("", "ConfigMap");
    let map = maps.filter(|map| map.name() == CONFIG_MAP && map.namespace() == Some(ROOT_NAMESPACE)).last();
    let Some(map) = map else { return mesh.settings.complete.then(Vec::new) };
    let text = map.value.get("data")?.get(CONFIG_KEY)?.as_str()?;
    mesh::check(text).ok().map(|config| config.extension_providers)
}

fn unknown(policy: &Policy<'_>, known: &[ExtensionProvider], report: &mut Report) {
    let name = provider(policy);
    let names = || known.iter().map(|provider| provider.name.as_str());
    let hint = match nearest(name, names()) {
        Some(near) => format!("did you mean '{near}'?"),
        None if known.is_empty() => format!(
            "add it to extensionProviders in ConfigMap {ROOT_NAMESPACE}/{CONFIG_MAP}, which names none"
        ),
        None => format!("known are {}", list(names())),
    };
    let text = format!(
        "the mesh configuration has no provider '{name}': what the policy's rules match is refused, since nobody can be \
         asked; {hint}"
    );
    report.add(&UNKNOWN_PROVIDER, policy.resource, "spec.provider.name", text);
}

fn unasked(mesh: &Mesh<'_>, policy: &Policy<'_>, report: &mut Report) {
    let rules = &policy.object.spec.rules;
    let mut ports = BTreeSet::new();
    let mut of = Vec::new();
    for workload in policy.workloads.iter().filter_map(|index| mesh.workloads.get(*index)) {
        let declared = mesh.declared_ports(workload);
        let tcp = declared.iter().filter(|(_, protocol)| **protocol == PortProtocol::Tcp);
        let meant =
            tcp.map(|(port, _)| *port).filter(|port| rules.iter().any(|rule| admits_port(rule, *port)));
        let meant: Vec<u16> = meant.collect();
        if !meant.is_empty() {
            ports.extend(meant);
            of.push(workload);
        }
    }
    if !of.is_empty() {
        let text = format!(
            "connections to port {} of {} carry TCP and pass unasked: provider '{}' is asked about HTTP requests only; \
             a gRPC provider can be asked about both, and an ALLOW or DENY policy holds for both",
            list(ports),
            workloads(of),
            provider(policy)
        );
        report.add(&TCP_PASSES_UNASKED, policy.resource, "spec.provider.name", text);
    }
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
