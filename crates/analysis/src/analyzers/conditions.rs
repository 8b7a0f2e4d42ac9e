//! IST0171: live objects whose status says that something of them is not so.

use serde_json::Value;

use crate::code::NEGATIVE_CONDITION_STATUS;
use crate::mesh::Mesh;
use crate::report::Report;

/// Kinds on which the control plane writes conditions.
const KINDS: [(&str, &str); 4] = [
    ("", "Service"),
    ("networking.istio.io", "ServiceEntry"),
    ("security.istio.io", "AuthorizationPolicy"),
    ("security.istio.io", "RequestAuthentication"),
];

pub(crate) fn analyze(mesh: &Mesh<'_>, report: &mut Report) {
    for (group, kind) in KINDS {
        for resource in mesh.of_kind(group, kind).filter(|resource| !resource.is_of_file()) {
            let conditions = resource.value.pointer("/status/conditions").and_then(Value::as_array);
            for condition in conditions.into_iter().flatten().filter(|c| c["status"] == "False") {
                let text = |field: &str| condition[field].as_str().unwrap_or_default();
                let found = format!(
                    "the condition {} is False ({}): {}",
                    text("type"),
                    text("reason"),
                    text("message")
                );
                report.add(&NEGATIVE_CONDITION_STATUS, resource, "status.conditions", found);
            }
        }
    }
}
