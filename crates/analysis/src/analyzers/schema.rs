//! IST0106, IST0133: every Istio object against its schema and rules, one finding for each mistake. ML0108: what is
//! right, but nothing enforces. The mesh's own configuration counts among Istio's objects.

use maille_config::kinds::{self, Enforcement};
use maille_config::mesh::CONFIG_MAP;
use maille_config::{FieldErrorKind, check, warnings};

use maille_core::ROOT_NAMESPACE;

use crate::code::{Level, NOT_ENFORCED, SCHEMA_VALIDATION_ERROR, SCHEMA_WARNING};
use crate::mesh::Mesh;
use crate::report::Report;
use crate::resource::Resource;

pub(crate) fn analyze(mesh: &Mesh<'_>, report: &mut Report) {
    for resource in mesh.resources.iter().filter(|resource| is_istios(resource)) {
        match check(&resource.value) {
            Ok(object) => {
                for warning in warnings(&object) {
                    // It is accepted, as Istio accepts it.
                    let (level, code) = match warning.kind {
                        FieldErrorKind::NotEnforced => (Level::Warning, &NOT_ENFORCED),
                        _ => (SCHEMA_WARNING.level, &SCHEMA_WARNING),
                    };
                    report.add_error(level, code, resource, &warning);
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
                    report.add_error(code.level, code, resource, &error);
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
    let configuration = resource.kind() == "ConfigMap"
        && resource.name() == CONFIG_MAP
        && resource.namespace() == Some(ROOT_NAMESPACE);
    resource.group().ends_with(".istio.io") || known() || configuration
}
