//! IST0134, IST0177: ServiceEntries that cannot be told apart, or contradict each other.

use std::collections::BTreeMap;

use maille_config::exported_to;
use maille_config::istio::{Resolution, ServiceEntry};
use maille_config::service_entry::allocates;

use crate::code::{CONFLICTING_SERVICE_ENTRY_PROTOCOL, SERVICE_ENTRY_ADDRESSES_REQUIRED};
use crate::mesh::{Mesh, Typed};
use crate::report::Report;

use super::names::list;

type Entry<'m> = Typed<'m, ServiceEntry>;

/// An entry, the position of one of its ports, and that port's protocol.
type Declared<'m> = (&'m Entry<'m>, usize, String);

pub(crate) fn analyze(mesh: &Mesh<'_>, report: &mut Report) {
    mesh.service_entries.iter().for_each(|entry| addresses(entry, report));
    protocols(mesh, report);
}

/// Opaque bytes name no host: only the address tells whom they are for (SE-11, SE-12).
fn addresses(entry: &Entry<'_>, report: &mut Report) {
    let spec = &entry.object.spec;
    let status = entry.object.status.as_ref().and_then(|status| status.get("addresses"));
    let allocated = status.and_then(|addresses| addresses.as_array()).is_some_and(|list| !list.is_empty());
    // Where hosts are given addresses, which the schema's warning tells of.
    let allocated = allocated || allocates(&entry.object);
    if !spec.addresses.is_empty() || allocated || spec.resolution == Resolution::DynamicDns {
        return;
    }
    for (index, port) in spec.ports.iter().enumerate() {
        if matches!(port.protocol.to_ascii_uppercase().as_str(), "" | "TCP") {
            let text = format!(
                "port {} of {} carries TCP, and without addresses nothing tells its connections from others to the same \
                 port; set spec.addresses, or the port's protocol if it is HTTP, HTTPS or TLS",
                port.number,
                list(&spec.hosts)
            );
            let path = format!("spec.ports[{index}]");
            report.add(&SERVICE_ENTRY_ADDRESSES_REQUIRED, entry.resource, &path, text);
        }
    }
}

/// One host and port, declared with different protocols by entries that somebody sees both of.
fn protocols(mesh: &Mesh<'_>, report: &mut Report) {
    let mut by_host: BTreeMap<(String, u32), Vec<Declared<'_>>> = BTreeMap::new();
    for entry in &mesh.service_entries {
        for host in &entry.object.spec.hosts {
            for (index, port) in entry.object.spec.ports.iter().enumerate() {
                let declared = by_host.entry((host.to_ascii_lowercase(), port.number)).or_default();
                declared.push((entry, index, port.protocol.to_ascii_uppercase()));
            }
        }
    }
    for ((host, number), declared) in by_host {
        for (entry, index, protocol) in &declared {
            let mut others: Vec<&Declared<'_>> = declared
                .iter()
                .filter(|(other, _, its)| its != protocol && are_seen_together(mesh, entry, other))
                .collect();
            others.dedup_by_key(|(other, ..)| other.resource.origin());
            if others.is_empty() {
                continue;
            }
            let names = others.iter().map(|(other, _, its)| {
                let origin = other.resource.origin();
                let shown = if its.is_empty() { "none" } else { its.as_str() };
                format!("{}/{} ({shown})", origin.namespace.unwrap_or_default(), origin.name)
            });
            let shown = if protocol.is_empty() { "no protocol" } else { protocol.as_str() };
            let text = format!(
                "port {number} of {host} is {shown} here and something else in {}: the oldest entry wins; agree on one",
                list(names)
            );
            let path = format!("spec.ports[{index}]");
            report.add(&CONFLICTING_SERVICE_ENTRY_PROTOCOL, entry.resource, &path, text);
        }
    }
}

fn are_seen_together(mesh: &Mesh<'_>, a: &Entry<'_>, b: &Entry<'_>) -> bool {
    let sees = |entry: &Entry<'_>, namespace: &str| {
        let own = entry.resource.namespace().unwrap_or_default();
        exported_to(&entry.object.spec.export_to, own, namespace)
    };
    let own = [a, b].into_iter().filter_map(|entry| entry.resource.namespace());
    mesh.namespaces
        .keys()
        .map(String::as_str)
        .chain(own)
        .any(|namespace| sees(a, namespace) && sees(b, namespace))
}
