//! Server-side apply.
//!
//! Appliers own what they applied: another applier who wants another value gets a conflict unless
//! they force it, and what an applier leaves out is removed unless another owns it too. Writers of the other
//! verbs are not tracked as owners; a field that they change loses its applier, so that they are
//! not overruled without a conflict being seen by `force` alone. Source: API concepts, "Server-Side Apply".

use serde_json::{Map, Value, json};

use super::fields::{self, Child, FieldSet};
use crate::json;
use crate::openapi::schema::{ListType, Schema};
use crate::resources::Resource;
use crate::status::ApiError;
use crate::time;

/// Who applies, and how.
pub(crate) struct Applier<'a> {
    pub(crate) manager: &'a str,
    pub(crate) api_version: String,
    pub(crate) force: bool,
    pub(crate) schema: Schema<'static>,
    pub(crate) subresource: &'a str,
}

/// A field that another applier owns with another value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Conflict {
    manager: String,
    field: String,
}

/// 409 as Kubernetes words it.
pub(crate) fn conflict(resource: &Resource, name: &str, conflicts: &[Conflict]) -> ApiError {
    let lines: Vec<String> =
        conflicts.iter().map(|c| format!("conflict with \"{}\": {}", c.manager, c.field)).collect();
    let noun = if conflicts.len() == 1 { "conflict" } else { "conflicts" };
    let mut error = ApiError::new(
        409,
        "Conflict",
        format!("Apply failed with {} {noun}: {}", conflicts.len(), lines.join("\n")),
    );
    let causes: Vec<Value> = conflicts
        .iter()
        .map(|c| {
            json!({
                "reason": "FieldManagerConflict", "field": c.field,
                "message": format!("conflict with \"{}\"", c.manager),
            })
        })
        .collect();
    error.details =
        json!({ "name": name, "kind": resource.plural, "group": resource.group, "causes": causes });
    error
}

impl Applier<'_> {
    fn entry(&self, set: FieldSet) -> Value {
        let mut entry = json!({
            "manager": self.manager, "operation": "Apply", "apiVersion": self.api_version,
            "time": time::now(), "fieldsType": "FieldsV1", "fieldsV1": set.into_json(),
        });
        if !self.subresource.is_empty()
            && let Some(map) = entry.as_object_mut()
        {
            map.insert("subresource".into(), self.subresource.into());
        }
        entry
    }

    fn is_own(&self, entry: &Value) -> bool {
        json::text(entry, &["manager"]) == self.manager
            && json::text(entry, &["operation"]) == "Apply"
            && json::text(entry, &["subresource"]) == self.subresource
    }

    /// The first application: the object is what was applied.
    pub(crate) fn create(&self, mut config: Value) -> Value {
        let set = FieldSet::of(&config, self.schema);
        json::metadata_mut(&mut config).insert("managedFields".into(), json!([self.entry(set)]));
        config
    }

    /// Applies `config` to `live`.
    pub(crate) fn merge(&self, live: &Value, config: &Value) -> Result<Value, Vec<Conflict>> {
        let set = FieldSet::of(config, self.schema);
        let entries = json::items(live, &["metadata", "managedFields"]);
        let before = entries
            .iter()
            .find(|e| self.is_own(e))
            .map(|e| FieldSet::from_json(e.get("fieldsV1").unwrap_or(&Value::Null)))
            .unwrap_or_default();
        let mut others: Vec<(Value, FieldSet)> = entries
            .iter()
            .filter(|e| !self.is_own(e))
            .map(|e| (e.clone(), FieldSet::from_json(e.get("fieldsV1").unwrap_or(&Value::Null))))
            .collect();
        let mut conflicts = Vec::new();
        for path in set.leaves() {
            let wanted = fields::find(config, &path, self.schema);
            let found = fields::find(live, &path, self.schema);
            // An empty object that is merged changes nothing in one that is there.
            let empty = wanted.and_then(Value::as_object).is_some_and(Map::is_empty);
            if wanted == found || empty && found.is_some_and(Value::is_object) {
                continue;
            }
            for (entry, owned) in others.iter_mut().filter(|(_, owned)| owned.touches(&path)) {
                if self.force {
                    owned.remove(&path);
                } else {
                    let manager = json::text(entry, &["manager"]).to_owned();
                    conflicts.push(Conflict { manager, field: fields::show(&path) });
                }
            }
        }
        if !conflicts.is_empty() {
            return Err(conflicts);
        }
        let mut merged = live.clone();
        overlay(&mut merged, config, self.schema);
        // Items as a whole first: without its key an item would not be found.
        let mut gone: Vec<Vec<String>> = before
            .leaves()
            .into_iter()
            .filter(|path| !set.touches(path) && !others.iter().any(|(_, owned)| owned.touches(path)))
            .collect();
        gone.sort_by_key(|path| (path.last().is_none_or(|s| s != "."), std::cmp::Reverse(path.len())));
        for path in gone {
            fields::erase(&mut merged, &path, self.schema);
        }
        let mut managed: Vec<Value> = Vec::new();
        for (mut entry, owned) in others {
            if owned.is_empty() {
                continue;
            }
            if let Some(map) = entry.as_object_mut() {
                map.insert("fieldsV1".into(), owned.into_json());
            }
            managed.push(entry);
        }
        let own_before = entries.iter().find(|e| self.is_own(e));
        let mut own = self.entry(set);
        // Applying the same again changes nothing, the time of it neither.
        if let Some(before) = own_before
            && before.get("fieldsV1") == own.get("fieldsV1")
            && let (Some(map), Some(at)) = (own.as_object_mut(), before.get("time"))
            && same_content(&merged, live)
        {
            map.insert("time".into(), at.clone());
        }
        managed.push(own);
        json::metadata_mut(&mut merged).insert("managedFields".into(), managed.into());
        Ok(merged)
    }
}

fn same_content(a: &Value, b: &Value) -> bool {
    let strip = |v: &Value| {
        let mut v = v.clone();
        json::metadata_mut(&mut v).shift_remove("managedFields");
        v
    };
    strip(a) == strip(b)
}

/// Puts `config` over `live`: objects and keyed lists merge, the rest is replaced.
fn overlay(live: &mut Value, config: &Value, schema: Schema<'static>) {
    match (&mut *live, config) {
        (Value::Object(old), Value::Object(new)) if !schema.is_atomic_map() => {
            for (key, value) in new {
                if value.is_null() {
                    continue;
                }
                match old.get_mut(key) {
                    Some(slot) => overlay(slot, value, schema.field(key)),
                    None => drop(old.insert(key.clone(), value.clone())),
                }
            }
        }
        (Value::Array(old), Value::Array(_)) if schema.list_type() != ListType::Atomic => {
            for child in fields::children(config, schema).unwrap_or_default() {
                let Child::Item(step, value) = child else { continue };
                let at = fields::place(&Value::Array(old.clone()), &step, schema);
                match at.and_then(|at| old.get_mut(at)) {
                    Some(item) if step.starts_with("k:") => overlay(item, value, schema.items()),
                    Some(_) => {}
                    None => old.push(value.clone()),
                }
            }
        }
        (slot, value) => *slot = value.clone(),
    }
}

/// Gives new entries of `managedFields` a time.
pub(crate) fn stamp_time(object: &mut Value) {
    for entry in json::items_mut(object, &["metadata", "managedFields"]) {
        if let Value::Object(entry) = entry {
            json::default_to(entry, "time", time::now());
        }
    }
}

/// After a change by another verb: a field whose value changed belongs to its applier no longer.
pub(crate) fn forget_changed(old: &Value, new: &mut Value) {
    let before = json::items(old, &["metadata", "managedFields"]);
    let given = json::at(new, &["metadata", "managedFields"]);
    let applied_now =
        given.is_some_and(|g| g.as_array().is_some_and(|l| l.as_slice() != before && !l.is_empty()));
    if applied_now {
        // Apply itself wrote them.
        return;
    }
    if before.is_empty() {
        json::metadata_mut(new).shift_remove("managedFields");
        return;
    }
    let mut kept = Vec::new();
    for entry in before {
        let mut set = entry.get("fieldsV1").and_then(Value::as_object).cloned().unwrap_or_default();
        prune(&mut set, Some(old), Some(new));
        if set.is_empty() {
            continue;
        }
        let mut entry = entry.clone();
        if let Some(map) = entry.as_object_mut() {
            map.insert("fieldsV1".into(), Value::Object(set));
        }
        kept.push(entry);
    }
    json::metadata_mut(new).insert("managedFields".into(), kept.into());
}

/// Drops from the trie what differs between two values. Items of lists are judged with their list's items by
/// the keys that stand in the path itself.
fn prune(set: &mut Map<String, Value>, old: Option<&Value>, new: Option<&Value>) {
    set.retain(|step, inner| {
        if step == "." {
            return true;
        }
        let (a, b) = (old.and_then(|v| child(v, step)), new.and_then(|v| child(v, step)));
        if a == b {
            return true;
        }
        match inner.as_object_mut() {
            Some(inner) if !inner.is_empty() && a.is_some() && b.is_some() => {
                prune(inner, a, b);
                !inner.is_empty()
            }
            _ => false,
        }
    });
}

fn child<'a>(value: &'a Value, step: &str) -> Option<&'a Value> {
    match step.split_once(':')? {
        ("f", field) => value.get(field),
        ("k", keys) => {
            let keys: Map<String, Value> = serde_json::from_str(keys).ok()?;
            let fits = |item: &Value| {
                keys.iter().all(|(k, v)| match item.get(k) {
                    Some(found) => found == v,
                    None => k == "protocol" && v == "TCP",
                })
            };
            value.as_array()?.iter().find(|item| fits(item))
        }
        (_, text) => {
            let wanted: Value = serde_json::from_str(text).ok()?;
            value.as_array()?.iter().find(|item| **item == wanted)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applier(manager: &str, force: bool) -> Applier<'_> {
        let pods = crate::resources::by_name("apps", "deployments").expect("served");
        Applier { manager, api_version: "apps/v1".into(), force, schema: Schema::of(pods), subresource: "" }
    }

    fn deployment(spec: Value) -> Value {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}, "spec": spec})
    }

    #[test]
    fn what_an_applier_leaves_out_is_removed_and_others_stay() {
        let first = applier("a", false).create(deployment(json!({"replicas": 1, "paused": true})));
        let both = applier("b", false)
            .merge(&first, &deployment(json!({"minReadySeconds": 3})))
            .expect("no conflict");
        let fewer = applier("a", false).merge(&both, &deployment(json!({"replicas": 2}))).expect("own field");
        assert_eq!(fewer["spec"], json!({"replicas": 2, "minReadySeconds": 3}));
        assert_eq!(fewer["metadata"]["managedFields"].as_array().map(Vec::len), Some(2));
    }

    #[test]
    fn another_appliers_field_conflicts_unless_forced() {
        let first = applier("a", false).create(deployment(json!({"replicas": 1})));
        let wish = deployment(json!({"replicas": 2}));
        let refused = applier("b", false).merge(&first, &wish).expect_err("a owns it");
        assert_eq!(refused, [Conflict { manager: "a".into(), field: ".spec.replicas".into() }]);
        let forced = applier("b", true).merge(&first, &wish).expect("forced");
        assert_eq!(forced["spec"]["replicas"], 2);
        assert_eq!(forced["metadata"]["managedFields"].as_array().map(Vec::len), Some(1));
    }

    #[test]
    fn applying_the_same_again_changes_nothing() {
        let config = deployment(json!({"template": {"spec": {"containers": [
            {"name": "c", "image": "x", "ports": [{"containerPort": 80}]}]}}}));
        let first = applier("a", false).create(config.clone());
        assert_eq!(applier("a", false).merge(&first, &config).expect("same"), first);
    }

    #[test]
    fn keyed_lists_merge_and_items_left_out_go() {
        let of = |names: &[&str]| {
            let list: Vec<Value> = names.iter().map(|n| json!({"name": n, "image": "x"})).collect();
            deployment(json!({"template": {"spec": {"containers": list}}}))
        };
        let mut live = applier("a", false).create(of(&["one", "two"]));
        // Someone else adds a container by another verb.
        let list = json::at_mut(&mut live, &["spec", "template", "spec", "containers"]).expect("there");
        list.as_array_mut().expect("a list").push(json!({"name": "sidecar", "image": "y"}));
        let merged = applier("a", false).merge(&live, &of(&["two"])).expect("no conflict");
        let names: Vec<&str> = json::items(&merged, &["spec", "template", "spec", "containers"])
            .iter()
            .map(|c| json::text(c, &["name"]))
            .collect();
        assert_eq!(names, ["two", "sidecar"]);
    }

    #[test]
    fn a_field_changed_by_another_verb_loses_its_applier() {
        let live = applier("a", false).create(deployment(json!({"replicas": 1, "paused": true})));
        let mut scaled = live.clone();
        scaled["spec"]["replicas"] = json!(5);
        forget_changed(&live, &mut scaled);
        assert!(!scaled.to_string().contains("f:replicas"));
        assert!(scaled.to_string().contains("f:paused"));
    }
}
