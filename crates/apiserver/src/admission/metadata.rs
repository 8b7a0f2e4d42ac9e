//! Metadata: names, what the server owns of it, and what may not change.
//!
//! Source: apimachinery `api/validation/objectmeta.go`.

use maille_core::{is_dns_label, is_dns_subdomain};
use serde_json::{Map, Value};

use crate::json;
use crate::request::Target;
use crate::resources::Resource;
use crate::selector::{is_label_key, is_label_value};
use crate::status::{ApiError, ApiResult, Cause};
use crate::time;
use crate::verbs::delete::{FOREGROUND, ORPHAN};
use crate::verbs::write;

/// All annotations of an object together.
const MAX_ANNOTATIONS: usize = 256 * 1024;
/// Leaves room for the suffix of generated names in 63 characters.
const MAX_GENERATED_PREFIX: usize = 58;

/// Completes the metadata of a new object.
pub(crate) fn create(target: &Target, object: &mut Value) -> ApiResult<()> {
    let resource = target.resource;
    if !json::text(object, &["metadata", "resourceVersion"]).is_empty() {
        return Err(ApiError::bad_request("resourceVersion should not be set on objects to be created"));
    }
    let given = json::namespace(object).to_owned();
    if resource.namespaced {
        if !given.is_empty() && given != target.ns() {
            return Err(ApiError::bad_request(format!(
                "the namespace of the provided object does not match the namespace sent on the request: {given} is not {}",
                target.ns()
            )));
        }
        json::metadata_mut(object).insert("namespace".into(), target.ns().into());
    } else if !given.is_empty() {
        return Err(ApiError::bad_request("namespace may not be set on an object that belongs to none"));
    }
    let prefix = json::text(object, &["metadata", "generateName"]).to_owned();
    if json::name(object).is_empty() && !prefix.is_empty() {
        let cut: String = prefix.chars().take(MAX_GENERATED_PREFIX).collect();
        json::metadata_mut(object).insert("name".into(), format!("{cut}{}", time::suffix()).into());
    }
    write::stamp(object);
    if counts_generations(resource) {
        json::metadata_mut(object).insert("generation".into(), 1.into());
    }
    let causes = check(resource, object);
    if causes.is_empty() { Ok(()) } else { Err(ApiError::invalid(resource, json::name(object), causes)) }
}

/// Whether `metadata.generation` counts the changes of `spec`.
pub(crate) fn counts_generations(resource: &Resource) -> bool {
    !resource.is_kubernetes()
        || resource.plural == "pods"
        || matches!(resource.group, "apps" | "batch") && resource.plural != "controllerrevisions"
}

/// Keeps what the server owns, and refuses what may not change.
pub(crate) fn update(resource: &Resource, old: &Value, new: &mut Value) -> ApiResult<()> {
    let kept = [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "generateName",
        "name",
        "namespace",
        "resourceVersion",
        "selfLink",
    ];
    let mut causes = Vec::new();
    for (key, old_text) in [("namespace", json::namespace(old)), ("name", json::name(old))] {
        let found = json::text(new, &["metadata", key]);
        if !found.is_empty() && found != old_text {
            let value = Value::from(found);
            causes.push(Cause::invalid(format!("metadata.{key}"), &value, "field is immutable"));
        }
    }
    let metadata = json::metadata_mut(new);
    for key in kept {
        match json::at(old, &["metadata", key]) {
            Some(value) => drop(metadata.insert(key.into(), value.clone())),
            None => drop(metadata.shift_remove(key)),
        }
    }
    if json::is_terminating(old) {
        let added: Vec<&str> =
            json::finalizers(new).filter(|f| json::finalizers(old).all(|o| o != *f)).collect();
        if !added.is_empty() {
            causes.push(Cause::forbidden(
                "metadata.finalizers",
                &format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers {added:?}"
                ),
            ));
        }
    }
    causes.extend(check(resource, new));
    if causes.is_empty() { Ok(()) } else { Err(ApiError::invalid(resource, json::name(new), causes)) }
}

/// Bumps the generation when anything but metadata and status differs.
pub(crate) fn count_generation(resource: &Resource, old: &Value, new: &mut Value) {
    if !counts_generations(resource) {
        return;
    }
    let content = |o: &Value| {
        let mut map = o.as_object().cloned().unwrap_or_default();
        for apart in ["metadata", "status", "apiVersion", "kind"] {
            map.shift_remove(apart);
        }
        map
    };
    if content(old) != content(new) {
        let generation = json::at(old, &["metadata", "generation"]).and_then(Value::as_i64).unwrap_or(0);
        json::metadata_mut(new).insert("generation".into(), (generation + 1).into());
    }
}

fn check(resource: &Resource, object: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    let name = json::name(object);
    if name.is_empty() {
        causes.push(Cause::required("metadata.name", "name or generateName is required"));
    } else if let Some(why) = name_problem(resource, name) {
        causes.push(Cause::invalid("metadata.name", &name.into(), why));
    }
    let text_map = |key: &str, causes: &mut Vec<Cause>| -> Map<String, Value> {
        match json::at(object, &["metadata", key]) {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(map)) => map.clone(),
            Some(other) => {
                causes.push(Cause::invalid(format!("metadata.{key}"), other, "must be an object"));
                Map::new()
            }
        }
    };
    for (key, value) in text_map("labels", &mut causes) {
        if !is_label_key(&key) || !value.as_str().is_some_and(is_label_value) {
            causes.push(Cause::invalid(
                "metadata.labels",
                &Value::from(format!("{key}={}", value.as_str().unwrap_or_default())),
                "a label is a name of at most 63 letters, digits, '-', '_' and '.', with an optional DNS prefix, and a text value of the same kind",
            ));
        }
    }
    let mut size = 0;
    for (key, value) in text_map("annotations", &mut causes) {
        if !is_label_key(&key.to_lowercase()) || !value.is_string() {
            causes.push(Cause::invalid(
                "metadata.annotations",
                &key.as_str().into(),
                "an annotation has a name with an optional DNS prefix, and a text value",
            ));
        }
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > MAX_ANNOTATIONS {
        causes.push(Cause {
            reason: "FieldValueTooLong",
            message: format!("Too long: may not be more than {MAX_ANNOTATIONS} bytes"),
            field: "metadata.annotations".into(),
        });
    }
    for (i, owner) in json::items(object, &["metadata", "ownerReferences"]).iter().enumerate() {
        for key in ["apiVersion", "kind", "name", "uid"] {
            if json::text(owner, &[key]).is_empty() {
                let field = format!("metadata.ownerReferences[{i}].{key}");
                causes.push(Cause::required(field, &format!("{key} must not be empty")));
            }
        }
    }
    let controllers = json::items(object, &["metadata", "ownerReferences"])
        .iter()
        .filter(|o| o.get("controller") == Some(&Value::Bool(true)))
        .count();
    if controllers > 1 {
        causes.push(Cause::invalid(
            "metadata.ownerReferences",
            &controllers.into(),
            "Only one reference can have Controller set to true",
        ));
    }
    for finalizer in json::items(object, &["metadata", "finalizers"]) {
        let text = finalizer.as_str().unwrap_or_default();
        if !(is_label_key(text) && (text.contains('/') || matches!(text, FOREGROUND | ORPHAN | "kubernetes")))
        {
            causes.push(Cause::invalid(
                "metadata.finalizers",
                finalizer,
                "name is neither a standard finalizer name nor is it fully qualified",
            ));
        }
    }
    causes
}

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";

fn name_problem(resource: &Resource, name: &str) -> Option<&'static str> {
    match resource.plural {
        "namespaces" => (!is_dns_label(name)).then_some(LABEL),
        "services" => {
            (!is_dns_label(name) || name.starts_with(|c: char| c.is_ascii_digit())).then_some(LABEL_1035)
        }
        _ => (!is_dns_subdomain(name)).then_some(SUBDOMAIN),
    }
}
