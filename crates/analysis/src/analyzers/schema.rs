//! IST0106, IST0133: every Istio object against its schema and rules, one finding for each mistake. ML0108: what is
//! right, but nothing enforces.

use maille_config::kinds::{self, Enforcement};
use maille_config::{FieldErrorKind, check, warnings};

use crate::code::{NOT_ENFORCED, SCHEMA_VALIDATION_ERROR, SCHEMA_WARNING};
use crate::mesh::Mesh;
use crate::report::Report;
use crate::resource::Resource;

pub(crate) fn analyze(mesh: &Mesh<'_>, report: &mut Report) {
    for resource in mesh.resources.iter().filter(|resource| is_istios(resource)) {
        match check(&resource.value) {
            Ok(object) => {
                for warning in warnings(&object) {
                    report.add(&SCHEMA_WARNING, resource, &warning.path, warning.to_string());
                }
            }
            Err(errors) => {
                for error in errors {
                    // A kind that Istio has and Maille does not know is no mistake of who wrote it.
                    let unknown_kind = error.kind == FieldErrorKind::Enum && error.path == "kind";
                    let code = match error.kind {
                        FieldErrorKind::NotEnforced => &NOT_ENFORCED,
                        _ if unknown_kind => &NOT_ENFORCED,
                        _ => &SCHEMA_VALIDATION_ERROR,
                    };
                    report.add(code, resource, &error.path, error.to_string());
                }
            }
        }
    }
}

/// Of Istio's groups, or a kind that the mesh is expected to act upon.
fn is_istios(resource: &Resource) -> bool {
    let known = || {
        let kinds = kinds::KINDS.iter().filter(|k| k.enforcement != Enforcement::Kubernetes);
        kinds.into_iter().any(|k| k.kind == resource.kind() && k.group == resource.group())
    };
    resource.group().ends_with(".istio.io") || known()
}
