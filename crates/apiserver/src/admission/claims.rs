//! Claims of storage: defaults, protection while in use, immutability.
//!
//! Source: kubernetes `pkg/registry/core/persistentvolumeclaim`, `plugin/pkg/admission/storage/storageobjectinuseprotection`.

use serde_json::{Value, json};

use crate::json;
use crate::request::Target;
use crate::status::{ApiError, ApiResult, Cause};

/// Keeps a claim until no Pod uses it any longer; whoever keeps its directory takes it away.
const PROTECTION: &str = "kubernetes.io/pvc-protection";

/// Admits a new claim.
pub(crate) fn create(claim: &mut Value) {
    json::default_to(json::object_mut(json::map_of(claim), "spec"), "volumeMode", "Filesystem");
    json::map_of(claim).insert("status".into(), json!({ "phase": "Pending" }));
    let metadata = json::metadata_mut(claim);
    let mut finalizers = metadata.get("finalizers").and_then(Value::as_array).cloned().unwrap_or_default();
    if !finalizers.iter().any(|finalizer| finalizer == PROTECTION) {
        finalizers.push(PROTECTION.into());
    }
    metadata.insert("finalizers".into(), finalizers.into());
}

/// Of a claim's spec only the size, and once the volume, may change.
pub(crate) fn update(target: &Target, old: &Value, new: &mut Value) -> ApiResult<()> {
    json::default_to(json::object_mut(json::map_of(new), "spec"), "volumeMode", "Filesystem");
    let unbound = json::text(old, &["spec", "volumeName"]).is_empty();
    let fixed = |claim: &Value| {
        let mut spec = claim.get("spec").cloned().unwrap_or_default();
        let map = json::map_of(&mut spec);
        map.shift_remove("resources");
        if unbound {
            map.shift_remove("volumeName");
        }
        spec
    };
    if fixed(old) == fixed(new) {
        return Ok(());
    }
    let cause = Cause::forbidden(
        "spec",
        "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
    );
    Err(ApiError::invalid(target.resource, json::name(old), vec![cause]))
}
