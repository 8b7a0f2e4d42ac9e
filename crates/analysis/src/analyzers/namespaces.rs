//! ML0219: objects in namespaces that do not exist, where it is known which do.

use std::collections::BTreeMap;

use maille_core::ROOT_NAMESPACE;

use crate::code::NAMESPACE_NOT_FOUND;
use crate::mesh::Mesh;
use crate::report::Report;
use crate::resource::Resource;

use super::names::nearest;

pub(crate) fn analyze(mesh: &Mesh<'_>, report: &mut Report) {
    // Files that declare no namespace at all are for a mesh that has its namespaces already.
    if mesh.of_kind("", "Namespace").next().is_none() {
        return;
    }
    let mut lost: BTreeMap<&str, Vec<&Resource>> = BTreeMap::new();
    for resource in mesh.resources.iter().filter(|resource| resource.is_of_file()) {
        // The control plane's own is there, whatever holds the policies of the mesh.
        let exists = |name: &str| name == ROOT_NAMESPACE || mesh.namespaces.contains_key(name);
        if let Some(namespace) = resource.namespace().filter(|name| !exists(name)) {
            lost.entry(namespace).or_default().push(resource);
        }
    }
    for (namespace, resources) in lost {
        let Some(first) = resources.first() else { continue };
        let hint = match nearest(namespace, mesh.namespaces.keys().map(String::as_str)) {
            Some(near) => format!("did you mean '{near}'?"),
            None => "add the Namespace, or it cannot be applied".to_owned(),
        };
        let more = match resources.len() - 1 {
            0 => String::new(),
            1 => " (and one more object)".to_owned(),
            n => format!(" (and {n} more objects)"),
        };
        let text = format!("there is no namespace '{namespace}' for the object{more}; {hint}");
        report.add(&NAMESPACE_NOT_FOUND, first, "metadata.namespace", text);
    }
}
