//! The ConfigMap `istio` of the control plane's namespace, as an object that is written.

use super::{CONFIG_KEY, CONFIG_MAP, check};
use crate::check::View;
use crate::field_error::{FieldError, FieldErrorKind};

/// What Istio's own ConfigMap has beside [`CONFIG_KEY`], and the contents that mean nothing.
const NETWORKS: &str = "meshNetworks";
const NO_NETWORKS: &[&str] = &["", "{}", "networks: {}", "networks: null", "networks:"];

/// Checks a ConfigMap, if it is the mesh's.
pub(crate) fn check_object(object: &View<'_>, errors: &mut Vec<FieldError>) {
    let metadata = object.get("metadata");
    if metadata.get("name").text() != Some(CONFIG_MAP)
        || metadata.get("namespace").text() != Some(maille_core::ROOT_NAMESPACE)
    {
        return;
    }
    let data = object.get("data");
    let mesh = data.get_exactly(CONFIG_KEY);
    match mesh.text() {
        Some(text) => {
            for found in check(text).err().unwrap_or_default() {
                errors.push(mesh.within(&found));
            }
        }
        None if mesh.is_absent() => errors.push(
            mesh.required("the mesh configuration stands under this key")
                .help("write mesh: \"\" for Istio's defaults"),
        ),
        None => {}
    }
    for (key, value) in data.members() {
        let known = key == CONFIG_KEY
            || (key == NETWORKS && value.text().is_some_and(|text| NO_NETWORKS.contains(&text.trim())));
        if key == NETWORKS && !known {
            errors.push(
                value
                    .error(
                        FieldErrorKind::NotEnforced,
                        "several networks are not enforced: the mesh is one cluster",
                    )
                    .help("leave it out"),
            );
        } else if !known {
            errors.push(
                value.invalid(format!("unknown key '{key}'")).help(format!("known here: {CONFIG_KEY}")),
            );
        }
    }
}
