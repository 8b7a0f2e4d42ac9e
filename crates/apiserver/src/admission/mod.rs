//! What becomes of an object between the request and the store: defaults, what the mesh adds, and
//! validation, kind by kind.

pub(crate) mod claims;
pub(crate) mod fields;
pub(crate) mod jobs;
pub(crate) mod metadata;
pub(crate) mod namespaces;
pub(crate) mod pod_defaults;
pub(crate) mod pod_validation;
pub(crate) mod pods;
pub(crate) mod services;
pub(crate) mod workloads;

use serde_json::Value;

use crate::api::{Api, Caller};
use crate::json;
use crate::patch::apply;
use crate::request::Target;
use crate::status::{ApiError, ApiResult, Cause};
use crate::store::{Change, State};

/// The object as it will be stored, further changes of the same commit, and warnings.
type Admitted = (Value, Vec<Change>, Vec<String>);

/// Admits a new object.
pub(crate) fn create(
    api: &Api,
    caller: &Caller,
    state: &State,
    target: &Target,
    mut object: Value,
) -> ApiResult<Admitted> {
    let resource = target.resource;
    if resource.namespaced {
        namespaces::must_accept(state, target, json::name(&object))?;
    }
    metadata::create(target, &mut object)?;
    let (mut extra, mut warnings) = (Vec::new(), Vec::new());
    if resource.has_status() && !matches!(resource.plural, "pods" | "nodes") {
        json::map_of(&mut object).shift_remove("status");
    }
    match (resource.group, resource.plural) {
        ("", "namespaces") => extra = namespaces::create(api, state, &mut object),
        ("", "pods") => warnings = pods::create(api, caller, state, target, &mut object)?,
        ("", "services") => services::create(api, state, target, &mut object)?,
        ("", "configmaps" | "secrets") => data(target, &mut object)?,
        ("", "nodes") => drop(json::object_mut(json::map_of(&mut object), "spec")),
        ("apps", "deployments") => workloads::deployment(target, &mut object, None)?,
        ("apps", "replicasets") => workloads::replica_set(target, &mut object, None)?,
        ("apps", "statefulsets") => workloads::stateful_set(target, &mut object, None)?,
        ("apps", "daemonsets") => workloads::daemon_set(target, &mut object, None)?,
        ("batch", "jobs") => jobs::create(target, &mut object)?,
        ("batch", "cronjobs") => jobs::cron_job(target, &mut object)?,
        ("", "persistentvolumeclaims") => claims::create(&mut object),
        ("discovery.k8s.io", "endpointslices") => services::endpoint_slice(target, &mut object, None)?,
        _ => {}
    }
    apply::stamp_time(&mut object);
    Ok((object, extra, warnings))
}

/// Admits a change.
pub(crate) fn update(
    api: &Api,
    _caller: &Caller,
    state: &State,
    target: &Target,
    old: &Value,
    new: Value,
) -> ApiResult<(Value, Vec<String>)> {
    let resource = target.resource;
    let mut new = new;
    match target.subresource.as_deref() {
        None | Some("scale") => {
            if resource.has_status() {
                keep(old, &mut new, "status");
            }
        }
        Some("status") => {
            // Only the status is taken; the rest stays as it is.
            let status = new.get("status").cloned();
            let applied = json::at(&new, &["metadata", "managedFields"]).cloned();
            new = old.clone();
            let map = json::map_of(&mut new);
            match status {
                Some(status) if status.is_object() => drop(map.insert("status".into(), status)),
                Some(Value::Null) | None => drop(map.shift_remove("status")),
                Some(other) => {
                    let cause = Cause::invalid("status", &other, "must be an object");
                    return Err(ApiError::invalid(resource, json::name(old), vec![cause]));
                }
            }
            if let Some(applied) = applied {
                json::metadata_mut(&mut new).insert("managedFields".into(), applied);
            }
            if resource.is("", "pods") {
                pod_defaults::status(&mut new);
            }
            apply::forget_changed(old, &mut new);
            return Ok((new, Vec::new()));
        }
        Some("finalize") => {
            let finalizers = json::items(&new, &["spec", "finalizers"]).to_vec();
            new = old.clone();
            json::object_mut(json::map_of(&mut new), "spec").insert("finalizers".into(), finalizers.into());
            return Ok((new, Vec::new()));
        }
        Some(_) => return Err(ApiError::method_not_allowed()),
    }
    metadata::update(resource, old, &mut new)?;
    match (resource.group, resource.plural) {
        ("", "namespaces") => keep(old, &mut new, "spec"),
        ("", "pods") => pods::update(target, old, &mut new)?,
        ("", "services") => services::update(api, state, target, old, &mut new)?,
        ("", "configmaps" | "secrets") => {
            immutable_data(target, old, &new)?;
            data(target, &mut new)?;
        }
        ("apps", "deployments") => workloads::deployment(target, &mut new, Some(old))?,
        ("apps", "replicasets") => workloads::replica_set(target, &mut new, Some(old))?,
        ("apps", "statefulsets") => workloads::stateful_set(target, &mut new, Some(old))?,
        ("apps", "daemonsets") => workloads::daemon_set(target, &mut new, Some(old))?,
        ("apps", "controllerrevisions") => workloads::controller_revision(target, &new, Some(old))?,
        ("batch", "jobs") => jobs::update(target, old, &mut new)?,
        ("batch", "cronjobs") => jobs::cron_job(target, &mut new)?,
        ("", "persistentvolumeclaims") => claims::update(target, old, &mut new)?,
        ("discovery.k8s.io", "endpointslices") => services::endpoint_slice(target, &mut new, Some(old))?,
        _ => {}
    }
    metadata::count_generation(resource, old, &mut new);
    apply::forget_changed(old, &mut new);
    Ok((new, Vec::new()))
}

fn keep(old: &Value, new: &mut Value, key: &str) {
    let map = json::map_of(new);
    match old.get(key) {
        Some(value) => drop(map.insert(key.into(), value.clone())),
        None => drop(map.shift_remove(key)),
    }
}

/// ConfigMaps and Secrets: `stringData` goes into `data`, keys and size are checked.
fn data(target: &Target, object: &mut Value) -> ApiResult<()> {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    const MAX_BYTES: usize = 1 << 20;
    let secret = target.resource.plural == "secrets";
    let mut causes = Vec::new();
    let map = json::map_of(object);
    if secret {
        json::default_to(map, "type", "Opaque");
        if let Some(Value::Object(texts)) = map.shift_remove("stringData") {
            let data = json::object_mut(map, "data");
            for (key, text) in texts {
                data.insert(key, STANDARD.encode(text.as_str().unwrap_or_default()).into());
            }
        }
    }
    let mut size = 0;
    for part in ["data", "binaryData"] {
        for (key, value) in map.get(part).and_then(Value::as_object).into_iter().flatten() {
            let valid = !key.is_empty()
                && key.len() <= 253
                && !matches!(key.as_str(), "." | "..")
                && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
            if !valid {
                let why = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'";
                causes.push(Cause::invalid(format!("{part}[{key}]"), &key.as_str().into(), why));
            }
            let text = value.as_str().unwrap_or_default();
            if (secret || part == "binaryData") && STANDARD.decode(text).is_err() {
                let why = "must be base64";
                causes.push(Cause {
                    reason: "FieldValueInvalid",
                    message: format!("Invalid value: {why}"),
                    field: format!("{part}[{key}]"),
                });
            }
            size += text.len();
        }
    }
    if size > MAX_BYTES {
        causes.push(Cause {
            reason: "FieldValueTooLong",
            message: format!("Too long: may not be more than {MAX_BYTES} bytes"),
            field: "data".into(),
        });
    }
    if causes.is_empty() {
        Ok(())
    } else {
        Err(ApiError::invalid(target.resource, json::name(object), causes))
    }
}

fn immutable_data(target: &Target, old: &Value, new: &Value) -> ApiResult<()> {
    let mut causes = Vec::new();
    if old.get("immutable") == Some(&Value::Bool(true)) {
        for part in ["data", "binaryData", "stringData", "immutable"] {
            if old.get(part) != new.get(part) {
                causes.push(Cause::forbidden(part, "field is immutable when `immutable` is set"));
            }
        }
    }
    if target.resource.plural == "secrets" {
        let (was, is) = (json::text(old, &["type"]), json::text(new, &["type"]));
        if !is.is_empty() && was != is {
            causes.push(Cause::invalid("type", &is.into(), "field is immutable"));
        }
    }
    if causes.is_empty() { Ok(()) } else { Err(ApiError::invalid(target.resource, json::name(old), causes)) }
}
