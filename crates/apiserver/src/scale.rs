//! The `scale` subresource of Deployments, ReplicaSets and StatefulSets (`autoscaling/v1 Scale`).

use serde_json::{Value, json};

use crate::json;
use crate::request::Target;
use crate::selector::LabelSelector;
use crate::status::{ApiError, ApiResult, Cause};

/// The Scale of an object.
pub(crate) fn of(_target: &Target, object: &Value) -> Value {
    let selector = json::at(object, &["spec", "selector"]).map(LabelSelector::of_spec).unwrap_or_default();
    let number = |path: &[&str]| json::at(object, path).and_then(Value::as_i64).unwrap_or(0);
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": json::name(object), "namespace": json::namespace(object), "uid": json::uid(object),
            "resourceVersion": json::text(object, &["metadata", "resourceVersion"]),
            "creationTimestamp": json::text(object, &["metadata", "creationTimestamp"]),
        },
        "spec": { "replicas": number(&["spec", "replicas"]) },
        "status": { "replicas": number(&["status", "replicas"]), "selector": selector.to_text() },
    })
}

/// The object with the replicas of a changed Scale.
pub(crate) fn apply(target: &Target, object: &Value, scale: &Value) -> ApiResult<(Value, Vec<String>)> {
    let replicas = json::at(scale, &["spec", "replicas"]).unwrap_or(&Value::Null);
    let count = if replicas.is_null() { Some(0) } else { replicas.as_i64() };
    let Some(count) = count.filter(|n| (0..=i64::from(i32::MAX)).contains(n)) else {
        let cause = Cause::invalid("spec.replicas", replicas, "must be greater than or equal to 0");
        return Err(ApiError::invalid(target.resource, json::name(object), vec![cause]));
    };
    let mut new = object.clone();
    let map = json::map_of(&mut new);
    json::object_mut(map, "spec").insert("replicas".into(), count.into());
    let metadata = json::object_mut(map, "metadata");
    // The preconditions of the Scale are those of the object.
    for key in ["resourceVersion", "uid"] {
        match json::at(scale, &["metadata", key]).filter(|v| v.as_str() != Some("")) {
            Some(value) => drop(metadata.insert(key.into(), value.clone())),
            None => drop(metadata.shift_remove(key)),
        }
    }
    Ok((new, Vec::new()))
}
