//! `delete` and `deletecollection`.
//!
//! Source: apiserver `registry/rest/delete.go`, `registry/core/pod/strategy.go`.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::api::Api;
use crate::json;
use crate::request::{Query, Target};
use crate::status::{ApiError, ApiResult};
use crate::store::{Change, Key};
use crate::time;
use crate::verbs::read::Selection;
use crate::verbs::write;

pub(crate) const FOREGROUND: &str = "foregroundDeletion";
pub(crate) const ORPHAN: &str = "orphan";

/// `DeleteOptions` of the body, or of the query.
#[derive(Debug, Clone, Default)]
pub(crate) struct DeleteOptions {
    grace: Option<i64>,
    uid: Option<String>,
    resource_version: Option<String>,
    propagation: Option<&'static str>,
    /// Nothing was said of dependents.
    unsaid: bool,
    dry_run: bool,
}

impl DeleteOptions {
    pub(crate) fn parse(query: &Query, body: Option<&Value>) -> ApiResult<Self> {
        let body = body.unwrap_or(&Value::Null);
        if !body.is_null() && !body.is_object() {
            return Err(ApiError::bad_request("the body of a delete request is a DeleteOptions object"));
        }
        let text = |path: &[&str]| Some(json::text(body, path).to_owned()).filter(|t| !t.is_empty());
        let grace = match body.get("gracePeriodSeconds").filter(|v| !v.is_null()) {
            Some(value) => Some(value.as_i64().ok_or_else(|| {
                ApiError::bad_request(format!(
                    "gracePeriodSeconds: Invalid value: {value}: must be a whole number"
                ))
            })?),
            None => query.number("gracePeriodSeconds")?,
        };
        let named =
            text(&["propagationPolicy"]).or_else(|| query.text("propagationPolicy").map(str::to_owned));
        let orphans = body.get("orphanDependents").and_then(Value::as_bool);
        let chosen = named.is_some() || orphans.is_some();
        let propagation = match (named.as_deref(), orphans) {
            (None, Some(true)) | (Some("Orphan"), _) => Some(ORPHAN),
            (Some("Foreground"), _) => Some(FOREGROUND),
            (Some("Background") | None, _) => None,
            (Some(other), _) => {
                return Err(ApiError::bad_request(format!(
                    "propagationPolicy: Unsupported value: \"{other}\": supported values: \"Background\", \"Foreground\", \"Orphan\""
                )));
            }
        };
        let in_body = json::items(body, &["dryRun"]).iter().any(|v| v.as_str() == Some("All"));
        Ok(Self {
            grace,
            uid: text(&["preconditions", "uid"]),
            resource_version: text(&["preconditions", "resourceVersion"]),
            propagation,
            unsaid: !chosen,
            dry_run: in_body || query.dry_run()?,
        })
    }

    /// At once, whatever the object: for what has lost its owner or its namespace.
    pub(crate) fn background() -> Self {
        Self::default()
    }

    fn check(&self, target: &Target, object: &Value) -> ApiResult<()> {
        let pairs = [
            ("UID", &self.uid, json::uid(object)),
            ("ResourceVersion", &self.resource_version, json::text(object, &["metadata", "resourceVersion"])),
        ];
        for (what, wanted, found) in pairs {
            if let Some(wanted) = wanted.as_deref().filter(|w| *w != found) {
                let why = format!(
                    "Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}"
                );
                return Err(ApiError::conflict(target.resource, json::name(object), &why));
            }
        }
        Ok(())
    }
}

/// Deletes one object, or marks it as terminating; answers it, or the Status of its end.
pub(crate) fn delete(api: &Api, target: &Target, options: &DeleteOptions) -> ApiResult<Value> {
    let name = target.name.clone().unwrap_or_default();
    let key = Key::new(&target.resource.store, target.ns(), &name);
    let decide = |state: &crate::store::State| {
        let old = state
            .get(&key.store, &key.namespace, &key.name)
            .ok_or_else(|| ApiError::not_found(target.resource, &name))?
            .clone();
        options.check(target, &old)?;
        if target.resource.is("", "namespaces")
            && crate::bootstrap::SYSTEM_NAMESPACES.contains(&name.as_str())
        {
            return Err(ApiError::forbidden(target.resource, &name, "this namespace may not be deleted"));
        }
        let marked = mark(target, &old, options);
        if write::is_finished(target, &marked) {
            return Ok((vec![Change::Delete(key.clone())], (old, true)));
        }
        if marked == *old {
            return Ok((Vec::new(), (old, false)));
        }
        Ok((vec![Change::Put(key.clone(), marked)], (old, false)))
    };
    let (objects, (old, gone)) =
        if options.dry_run { (Vec::new(), api.store.read(decide)?.1) } else { api.store.commit(decide)? };
    let last: Arc<Value> = objects.into_iter().next().unwrap_or(old);
    if gone && !target.resource.is("", "pods") {
        return Ok(success(target, &last));
    }
    Ok(Value::clone(&last))
}

fn success(target: &Target, object: &Value) -> Value {
    let mut details =
        json!({ "name": json::name(object), "kind": target.resource.plural, "uid": json::uid(object) });
    if let Some(map) = details.as_object_mut()
        && !target.resource.group.is_empty()
    {
        map.insert("group".into(), target.resource.group.into());
    }
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details })
}

/// The object with deletion asked for.
fn mark(target: &Target, old: &Value, options: &DeleteOptions) -> Value {
    let mut new = old.clone();
    let grace = if target.resource.is("", "pods") { pod_grace(old, options.grace) } else { 0 };
    let was_terminating = json::is_terminating(old);
    let old_grace = json::at(old, &["metadata", "deletionGracePeriodSeconds"]).and_then(Value::as_i64);
    let metadata = json::metadata_mut(&mut new);
    // Deletion may be hastened, never delayed.
    if !was_terminating || old_grace.is_some_and(|g| grace < g) {
        metadata.insert("deletionTimestamp".into(), time::in_seconds(grace).into());
        metadata.insert("deletionGracePeriodSeconds".into(), grace.into());
        if let Some(generation) = metadata.get("generation").and_then(Value::as_i64) {
            metadata.insert("generation".into(), (generation + 1).into());
        }
    }
    // Pods of a Job stay if nothing else is said (kubernetes `DefaultGarbageCollectionPolicy` of batch/v1).
    let orphans = options.unsaid && target.resource.is("batch", "jobs");
    let propagation = options.propagation.or(orphans.then_some(ORPHAN));
    if let Some(policy) = propagation.filter(|_| !was_terminating) {
        let mut finalizers: Vec<Value> =
            metadata.get("finalizers").and_then(Value::as_array).cloned().unwrap_or_default();
        finalizers.retain(|f| f.as_str() != Some(FOREGROUND) && f.as_str() != Some(ORPHAN));
        finalizers.push(policy.into());
        metadata.insert("finalizers".into(), finalizers.into());
    }
    if target.resource.is("", "namespaces") {
        json::object_mut(json::map_of(&mut new), "status").insert("phase".into(), "Terminating".into());
    }
    new
}

/// How long a Pod may take: what was asked for, or what it says; a Pod that no longer or does not yet
/// run needs no time.
fn pod_grace(pod: &Value, asked: Option<i64>) -> i64 {
    let own = json::at(pod, &["spec", "terminationGracePeriodSeconds"]).and_then(Value::as_i64);
    let over = matches!(json::text(pod, &["status", "phase"]), "Succeeded" | "Failed");
    if over || json::text(pod, &["spec", "nodeName"]).is_empty() {
        return 0;
    }
    match asked.or(own) {
        // A negative period means "at once, but let the kubelet know" (1 s), as in Kubernetes.
        Some(seconds) if seconds < 0 => 1,
        Some(seconds) => seconds,
        None => 30,
    }
}

/// Deletes all objects of a selection; answers them as a list.
pub(crate) fn delete_collection(
    api: &Api,
    target: &Target,
    query: &Query,
    options: &DeleteOptions,
) -> ApiResult<Value> {
    let selection = Selection::new(target, query)?;
    let objects: Vec<Arc<Value>> =
        api.store.read(|state| selection.of(state, &target.resource.store).cloned().collect());
    let mut deleted = Vec::new();
    for object in objects {
        let one = Target {
            namespace: target.resource.namespaced.then(|| json::namespace(&object).to_owned()),
            name: Some(json::name(&object).to_owned()),
            ..target.clone()
        };
        match delete(api, &one, options) {
            Ok(_) => deleted.push(Value::clone(&object)),
            // Someone else was faster.
            Err(error) if error.code == 404 => {}
            Err(error) => return Err(error),
        }
    }
    let revision = api.store.read(|s| s.revision());
    Ok(json!({
        "kind": format!("{}List", target.resource.kind),
        "apiVersion": target.resource.api_version(target.version),
        "metadata": { "resourceVersion": revision.to_string() },
        "items": deleted,
    }))
}
