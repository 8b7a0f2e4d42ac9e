//! The check of a body's fields: [`maille_config::check()`], answered as Kubernetes words it.

use maille_config::{FieldError, FieldErrorKind};
use serde_json::Value;

use crate::json;
use crate::request::{Query, Target};
use crate::resources::Resource;
use crate::status::{ApiError, ApiResult, Cause};

/// `fieldValidation`: what becomes of fields that Kubernetes kinds do not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

impl FieldValidation {
    pub(crate) fn of(query: &Query) -> ApiResult<Self> {
        match query.text("fieldValidation") {
            Some("Ignore") => Ok(Self::Ignore),
            // The default of Kubernetes since 1.25.
            Some("Warn") | None => Ok(Self::Warn),
            Some("Strict") => Ok(Self::Strict),
            Some(other) => Err(ApiError::bad_request(format!(
                "fieldValidation: Unsupported value: \"{other}\": supported values: \"Ignore\", \"Strict\", \"Warn\""
            ))),
        }
    }
}

/// Checks `object` and drops what `mode` lets be dropped; answers warnings.
///
/// Custom kinds are always held to their schema: a policy with a misspelt field would protect
/// less than it says.
pub(crate) fn check(target: &Target, object: &mut Value, mode: FieldValidation) -> ApiResult<Vec<String>> {
    let resource = target.resource;
    if target.subresource.as_deref() == Some("status") && !resource.is_kubernetes() {
        // Nothing but the status is taken, which has no schema: a policy that a later version of the schema refuses
        // must still be able to say so.
        maille_config::prune_nulls(object);
        return Ok(Vec::new());
    }
    complete(target, object);
    let known = maille_config::kinds::find_plural(resource.group, target.version, resource.plural).is_some();
    let mut warnings = Vec::new();
    if known {
        match maille_config::check(object) {
            Ok(checked) => {
                warnings.extend(maille_config::warnings(&checked).iter().map(ToString::to_string));
            }
            Err(errors) if resource.is_kubernetes() => {
                kubernetes(target, object, errors, mode, &mut warnings)?;
            }
            Err(errors) => {
                let causes = errors.iter().map(cause).collect();
                return Err(ApiError::invalid(resource, shown_name(object), causes));
            }
        }
    }
    maille_config::prune_nulls(object);
    Ok(warnings)
}

/// Name and namespace may stand in the path alone; some checks depend on them.
fn complete(target: &Target, object: &mut Value) {
    let metadata = json::metadata_mut(object);
    for (key, value) in [("name", &target.name), ("namespace", &target.namespace)] {
        if let Some(value) = value {
            json::default_to(metadata, key, value.clone());
        }
    }
}

fn kubernetes(
    target: &Target,
    object: &mut Value,
    errors: Vec<FieldError>,
    mode: FieldValidation,
    warnings: &mut Vec<String>,
) -> ApiResult<()> {
    let resource = target.resource;
    let (unknown, rest): (Vec<_>, Vec<_>) =
        errors.into_iter().partition(|e| e.kind == FieldErrorKind::Unknown);
    let (types, rest): (Vec<_>, Vec<_>) =
        rest.into_iter().partition(|e| matches!(e.kind, FieldErrorKind::Type | FieldErrorKind::Enum));
    let mut strict: Vec<String> = unknown.iter().map(|e| format!("unknown field \"{}\"", e.path)).collect();
    if !types.is_empty() {
        let lines: Vec<String> = types.iter().map(ToString::to_string).collect();
        return Err(undecodable(resource, target.version, &lines.join(", "), &types));
    }
    if !unknown.is_empty() && mode == FieldValidation::Strict {
        let text = format!("strict decoding error: {}", strict.join(", "));
        return Err(undecodable(resource, target.version, &text, &unknown));
    }
    for error in &unknown {
        remove(object, &error.path);
    }
    if mode == FieldValidation::Warn {
        warnings.append(&mut strict);
    }
    // A name may still be made, or come from the path.
    let causes: Vec<Cause> = rest
        .iter()
        .filter(|e| !(e.kind == FieldErrorKind::Required && e.path == "metadata.name"))
        .map(cause)
        .collect();
    if causes.is_empty() { Ok(()) } else { Err(ApiError::invalid(resource, shown_name(object), causes)) }
}

fn undecodable(resource: &Resource, version: &str, text: &str, errors: &[FieldError]) -> ApiError {
    let kind = resource.kind;
    let mut error = ApiError::bad_request(format!(
        "{kind} in version \"{version}\" cannot be handled as a {kind}: {text}"
    ));
    let causes: Vec<Value> = errors
        .iter()
        .map(|e| {
            let cause = cause(e);
            serde_json::json!({ "reason": cause.reason, "message": cause.message, "field": cause.field })
        })
        .collect();
    error.details = serde_json::json!({ "causes": causes });
    error
}

fn shown_name(object: &Value) -> &str {
    match json::name(object) {
        "" => json::text(object, &["metadata", "generateName"]),
        name => name,
    }
}

/// A finding as Kubernetes reports it.
fn cause(error: &FieldError) -> Cause {
    let (reason, word) = match error.kind {
        FieldErrorKind::Required => ("FieldValueRequired", "Required value: "),
        FieldErrorKind::Duplicate => ("FieldValueDuplicate", "Duplicate value: "),
        FieldErrorKind::Enum => ("FieldValueNotSupported", "Unsupported value: "),
        FieldErrorKind::Type => ("FieldValueTypeInvalid", "Invalid value: "),
        FieldErrorKind::Unknown => ("FieldValueInvalid", "unknown field: "),
        FieldErrorKind::NotEnforced => ("FieldValueForbidden", "Forbidden: "),
        FieldErrorKind::Invalid => ("FieldValueInvalid", "Invalid value: "),
    };
    Cause { reason, message: format!("{word}{}", error.message), field: error.path.clone() }
}

/// Removes the field at `path` (`spec.containers[0].name`), whose keys may hold dots themselves.
fn remove(value: &mut Value, path: &str) {
    match value {
        Value::Object(map) => {
            if map.shift_remove(path).is_some() {
                return;
            }
            // The longest key that the path begins with.
            let key = map.keys().filter(|k| starts_with_key(path, k)).max_by_key(|k| k.len()).cloned();
            if let Some(key) = key
                && let (Some(inner), Some(rest)) = (map.get_mut(&key), path.get(key.len()..))
            {
                remove(inner, rest.strip_prefix('.').unwrap_or(rest));
            }
        }
        Value::Array(list) => {
            let parts = path.strip_prefix('[').and_then(|p| p.split_once(']'));
            if let Some((index, rest)) = parts
                && let Some(inner) = index.parse::<usize>().ok().and_then(|i| list.get_mut(i))
            {
                remove(inner, rest.strip_prefix('.').unwrap_or(rest));
            }
        }
        _ => {}
    }
}

fn starts_with_key(path: &str, key: &str) -> bool {
    path.strip_prefix(key).is_some_and(|rest| rest.starts_with(['.', '[']))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_are_removed_by_path() {
        let mut object = json!({"spec": {"containers": [{"name": "a", "x": 1}], "a.b": {"c": 1}}});
        remove(&mut object, "spec.containers[0].x");
        remove(&mut object, "spec.a.b.c");
        remove(&mut object, "spec.nothing[7].there");
        assert_eq!(object, json!({"spec": {"containers": [{"name": "a"}], "a.b": {}}}));
    }
}
