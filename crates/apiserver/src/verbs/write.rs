//! `create`, `update` and `patch`, of objects and of their status and scale.
//!
//! Every write runs the same road: decode, check fields, admit (defaults, what the mesh adds,
//! validation), commit. The state seen while admitting is the state committed onto, so that nothing
//! needs to be tried again.

use std::sync::Arc;

use serde_json::Value;

use crate::admission::{self, fields::FieldValidation};
use crate::api::{Api, Caller};
use crate::convert;
use crate::json;
use crate::openapi::schema::Schema;
use crate::patch::{apply, json_patch, merge, strategic};
use crate::request::{Query, Target};
use crate::scale;
use crate::status::{ApiError, ApiResult};
use crate::store::{Change, Key, State};
use crate::time;

/// What a write answers.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) object: Value,
    /// 200 or 201.
    pub(crate) code: u16,
    pub(crate) warnings: Vec<String>,
}

/// The media types of patches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PatchKind {
    Json,
    Merge,
    Strategic,
    Apply,
}

impl PatchKind {
    /// By `Content-Type`; custom kinds have no strategic merge, as in Kubernetes.
    pub(crate) fn of(content_type: &str, target: &Target) -> ApiResult<Self> {
        let media = content_type.split(';').next().unwrap_or_default().trim();
        let kubernetes = target.resource.is_kubernetes();
        match media {
            "application/json-patch+json" => Ok(Self::Json),
            "application/merge-patch+json" => Ok(Self::Merge),
            "application/strategic-merge-patch+json" if kubernetes => Ok(Self::Strategic),
            "application/apply-patch+yaml" | "application/apply-patch+json" => Ok(Self::Apply),
            other => Err(ApiError::unsupported_media_type(
                other,
                if kubernetes {
                    "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, application/apply-patch+yaml"
                } else {
                    "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml"
                },
            )),
        }
    }
}

/// Checks `apiVersion` and `kind` of a body against the path.
pub(crate) fn check_kind(target: &Target, object: &mut Value) -> ApiResult<()> {
    let resource = target.resource;
    let map = object
        .as_object_mut()
        .ok_or_else(|| ApiError::bad_request("the body of the request must be one JSON object"))?;
    let expected = resource.api_version(target.version);
    let found = map.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
    if found.is_empty() {
        map.insert("apiVersion".into(), expected.clone().into());
    } else if found != expected {
        return Err(ApiError::bad_request(format!(
            "the API version in the data ({found}) does not match the expected API version ({expected})"
        )));
    }
    let kind = map.get("kind").and_then(Value::as_str).unwrap_or_default();
    if kind.is_empty() {
        map.insert("kind".into(), resource.kind.into());
    } else if kind != resource.kind {
        return Err(ApiError::bad_request(format!(
            "the kind in the data ({kind}) does not match the expected kind ({})",
            resource.kind
        )));
    }
    if !map.get("metadata").is_none_or(Value::is_object) {
        return Err(ApiError::bad_request(format!(
            "{} in version \"{}\" cannot be handled as a {}: metadata must be an object",
            resource.kind, target.version, resource.kind
        )));
    }
    Ok(())
}

/// `POST` of a new object.
pub(crate) fn create(
    api: &Api,
    caller: &Caller,
    target: &Target,
    query: &Query,
    body: Value,
) -> ApiResult<Written> {
    let mut object = body;
    check_kind(target, &mut object)?;
    let mode = FieldValidation::of(query)?;
    let warnings = admission::fields::check(target, &mut object, mode)?;
    // Who owns which field is for the server to say.
    json::metadata_mut(&mut object).shift_remove("managedFields");
    create_checked(api, caller, target, query, object, warnings)
}

fn create_checked(
    api: &Api,
    caller: &Caller,
    target: &Target,
    query: &Query,
    mut object: Value,
    mut warnings: Vec<String>,
) -> ApiResult<Written> {
    convert::to_stored(target.resource, &mut object);
    let dry_run = query.dry_run()?;
    let ((object, more), _) = commit(api, dry_run, |state| {
        let (object, extra, more) = admission::create(api, caller, state, target, object)?;
        let key = key_of(target, &object);
        if state.get(&key.store, &key.namespace, &key.name).is_some() {
            return Err(ApiError::already_exists(target.resource, &key.name));
        }
        let mut changes = vec![Change::Put(key, object)];
        changes.extend(extra);
        Ok((changes, more))
    })?;
    warnings.extend(more);
    let object = object.map_or(Value::Null, |o| Value::clone(&o));
    Ok(Written { object, code: 201, warnings })
}

type Committed<T> = ((Option<Arc<Value>>, T), bool);

/// Commits, or only pretends to; answers the first object.
fn commit<T>(
    api: &Api,
    dry_run: bool,
    decide: impl FnOnce(&State) -> ApiResult<(Vec<Change>, T)>,
) -> ApiResult<Committed<T>> {
    if dry_run {
        let (changes, answer) = api.store.read(decide)?;
        let object = changes.into_iter().next().and_then(|change| match change {
            Change::Put(_, object) => Some(Arc::new(object)),
            Change::Delete(_) => None,
        });
        return Ok(((object, answer), false));
    }
    let (objects, answer) = api.store.commit(decide)?;
    let any = !objects.is_empty();
    Ok(((objects.into_iter().next(), answer), any))
}

fn key_of(target: &Target, object: &Value) -> Key {
    Key::new(&target.resource.store, json::namespace(object), json::name(object))
}

/// `PUT`.
pub(crate) fn update(
    api: &Api,
    caller: &Caller,
    target: &Target,
    query: &Query,
    body: Value,
) -> ApiResult<Written> {
    let mut new = body;
    let scaling = target.subresource.as_deref() == Some("scale");
    let mut warnings = Vec::new();
    if !scaling {
        check_kind(target, &mut new)?;
        // What only status writers send is checked for shape, not for policy.
        warnings = admission::fields::check(target, &mut new, FieldValidation::of(query)?)?;
    }
    let name = target.name.clone().unwrap_or_default();
    let given = json::name(&new);
    if !given.is_empty() && given != name {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({given}) does not match the name on the URL ({name})"
        )));
    }
    let creates = target.resource.plural == "leases" && target.subresource.is_none();
    let exists = api.store.read(|s| s.get(&target.resource.store, target.ns(), &name).is_some());
    if creates && !exists {
        json::metadata_mut(&mut new).insert("name".into(), name.into());
        return create_checked(api, caller, target, query, new, warnings);
    }
    change(api, caller, target, query, warnings, move |old| {
        if scaling {
            return scale::apply(target, old, &new);
        }
        let mut new = new;
        convert::to_stored(target.resource, &mut new);
        Ok((new, Vec::new()))
    })
}

/// `PATCH`.
pub(crate) fn patch(
    api: &Api,
    caller: &Caller,
    target: &Target,
    query: &Query,
    kind: PatchKind,
    body: &Value,
) -> ApiResult<Written> {
    if kind == PatchKind::Apply {
        return server_side_apply(api, caller, target, query, body);
    }
    let mode = FieldValidation::of(query)?;
    change(api, caller, target, query, Vec::new(), |old| {
        let scaling = target.subresource.as_deref() == Some("scale");
        let mut new = if scaling {
            scale::of(target, old)
        } else {
            convert::to_served(target.resource, target.version, old).into_owned()
        };
        match kind {
            PatchKind::Json => json_patch::apply(&mut new, body)?,
            PatchKind::Merge => merge::apply(&mut new, body),
            _ => strategic::apply(&mut new, body, Schema::of(target.resource))?,
        }
        if scaling {
            return scale::apply(target, old, &new);
        }
        check_kind(target, &mut new)?;
        let warnings = admission::fields::check(target, &mut new, mode)?;
        convert::to_stored(target.resource, &mut new);
        Ok((new, warnings))
    })
}

fn server_side_apply(
    api: &Api,
    caller: &Caller,
    target: &Target,
    query: &Query,
    body: &Value,
) -> ApiResult<Written> {
    let manager = query
        .text("fieldManager")
        .ok_or_else(|| ApiError::bad_request("PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch"))?;
    if !json::text(body, &["metadata", "resourceVersion"]).is_empty()
        && json::at(body, &["metadata", "managedFields"]).is_some()
    {
        return Err(ApiError::bad_request("metadata.managedFields must be nil"));
    }
    let mut config = body.clone();
    check_kind(target, &mut config)?;
    let name = target.name.clone().unwrap_or_default();
    let given = json::name(&config);
    if !given.is_empty() && given != name {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({given}) does not match the name on the URL ({name})"
        )));
    }
    json::metadata_mut(&mut config).insert("name".into(), name.clone().into());
    reset_fields(target, &mut config);
    let mode = FieldValidation::of(query)?;
    let applier = apply::Applier {
        manager,
        api_version: target.resource.api_version(target.version),
        force: query.flag("force"),
        schema: Schema::of(target.resource),
        subresource: target.subresource.as_deref().unwrap_or_default(),
    };
    let exists = api.store.read(|s| s.get(&target.resource.store, target.ns(), &name).is_some());
    if !exists {
        if target.subresource.is_some() {
            return Err(ApiError::not_found(target.resource, &name));
        }
        let warnings = admission::fields::check(target, &mut config, mode)?;
        let mut object = applier.create(config);
        convert::to_stored(target.resource, &mut object);
        return create_checked(api, caller, target, query, object, warnings);
    }
    change(api, caller, target, query, Vec::new(), |old| {
        let served = convert::to_served(target.resource, target.version, old);
        let mut new = applier
            .merge(&served, &config)
            .map_err(|conflicts| apply::conflict(target.resource, &name, &conflicts))?;
        let warnings = admission::fields::check(target, &mut new, mode)?;
        convert::to_stored(target.resource, &mut new);
        Ok((new, warnings))
    })
}

/// Takes out of an applied configuration what this path does not write, so that it is not owned either: the status of
/// an object, and all but the status of a status.
///
/// Source: apiextensions-apiserver, `customResourceStrategy.GetResetFields`.
fn reset_fields(target: &Target, config: &mut Value) {
    if !target.resource.has_status() {
        return;
    }
    let map = json::map_of(config);
    match target.subresource.as_deref() {
        None => drop(map.shift_remove("status")),
        Some("status") => {
            map.retain(|key, _| matches!(key.as_str(), "apiVersion" | "kind" | "metadata" | "status"));
            let metadata = json::metadata_mut(config);
            metadata.retain(|key, _| {
                !matches!(key.as_str(), "labels" | "annotations" | "finalizers" | "ownerReferences")
            });
        }
        Some(_) => {}
    }
}

/// Changes one object: `alter` makes the new one of the old one.
fn change(
    api: &Api,
    caller: &Caller,
    target: &Target,
    query: &Query,
    mut warnings: Vec<String>,
    alter: impl FnOnce(&Value) -> ApiResult<(Value, Vec<String>)>,
) -> ApiResult<Written> {
    let dry_run = query.dry_run()?;
    let name = target.name.clone().unwrap_or_default();
    let key = Key::new(&target.resource.store, target.ns(), &name);
    let ((object, (current, more)), _) = commit(api, dry_run, |state| {
        let old = state
            .get(&key.store, &key.namespace, &key.name)
            .ok_or_else(|| ApiError::not_found(target.resource, &name))?
            .clone();
        let (new, mut warnings) = alter(&old)?;
        preconditions(target, &old, &new)?;
        let (new, more) = admission::update(api, caller, state, target, &old, new)?;
        warnings.extend(more);
        if new == *old {
            return Ok((Vec::new(), (old, warnings)));
        }
        let changes = if is_finished(target, &new) {
            // The last finalizer is gone: what was terminating is deleted, in its last state.
            vec![Change::Put(key.clone(), new.clone()), Change::Delete(key.clone())]
        } else {
            vec![Change::Put(key.clone(), new)]
        };
        Ok((changes, (old, warnings)))
    })?;
    warnings.extend(more);
    let object = Value::clone(&object.unwrap_or(current));
    let object =
        if target.subresource.as_deref() == Some("scale") { scale::of(target, &object) } else { object };
    Ok(Written { object, code: 200, warnings })
}

/// Whether an object that terminates has nothing left to wait for.
pub(crate) fn is_finished(target: &Target, object: &Value) -> bool {
    if !json::is_terminating(object) || json::finalizers(object).next().is_some() {
        return false;
    }
    if target.resource.is("", "namespaces") {
        return json::items(object, &["spec", "finalizers"]).is_empty();
    }
    // A Pod is there until its kubelet says that it is gone.
    let grace = json::at(object, &["metadata", "deletionGracePeriodSeconds"]).and_then(Value::as_i64);
    grace.is_none_or(|seconds| seconds == 0)
}

/// `metadata.resourceVersion` and `uid` of a change, when given, must be those of the object.
fn preconditions(target: &Target, old: &Value, new: &Value) -> ApiResult<()> {
    let name = json::name(old);
    let version = json::text(new, &["metadata", "resourceVersion"]);
    if !version.is_empty() && version != json::text(old, &["metadata", "resourceVersion"]) {
        return Err(ApiError::modified(target.resource, name));
    }
    let (wanted, found) = (json::uid(new), json::uid(old));
    if !wanted.is_empty() && wanted != found {
        return Err(ApiError::conflict(
            target.resource,
            name,
            &format!("Precondition failed: UID in precondition: {wanted}, UID in object meta: {found}"),
        ));
    }
    Ok(())
}

/// `POST pods/x/binding`: the scheduler's word. All Pods are bound to the one node when they are made.
pub(crate) fn bind(target: &Target, old: &Value) -> ApiResult<Value> {
    let node = json::text(old, &["spec", "nodeName"]);
    Err(ApiError::conflict(
        target.resource,
        json::name(old),
        &format!("pod {} is already assigned to node \"{node}\"", json::name(old)),
    ))
}

/// Whether `text` may be a field manager's name.
pub(crate) fn is_manager(text: &str) -> bool {
    text.len() <= 128 && text.chars().all(|c| !c.is_control())
}

/// A new object's server-owned metadata.
pub(crate) fn stamp(object: &mut Value) {
    let metadata = json::metadata_mut(object);
    for gone in
        ["resourceVersion", "selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"]
    {
        metadata.shift_remove(gone);
    }
    metadata.insert("uid".into(), time::uuid().into());
    metadata.insert("creationTimestamp".into(), time::now().into());
}
