//! Sets of fields as `managedFields` writes them (`fieldsV1`): tries of `f:<field>`, `k:<keys>` and `v:<value>`.
//!
//! Source: structured-merge-diff `fieldpath`; `meta/v1 FieldsV1`.

use serde_json::{Map, Value};

use crate::openapi::schema::{ListType, Schema};

/// A trie of path elements; a leaf is an owned field.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FieldSet(Map<String, Value>);

/// One step of a path, beside the value there.
pub(crate) enum Child<'a> {
    Field(&'a str, &'a Value),
    Item(String, &'a Value),
}

/// The children of a value that are owned one by one; `None` when the value is one whole.
pub(crate) fn children<'a>(value: &'a Value, schema: Schema<'static>) -> Option<Vec<Child<'a>>> {
    match value {
        Value::Object(map) if !schema.is_atomic_map() => {
            Some(map.iter().map(|(k, v)| Child::Field(k, v)).collect())
        }
        Value::Array(list) => match schema.list_type() {
            ListType::Atomic => None,
            ListType::Set => Some(list.iter().map(|v| Child::Item(format!("v:{v}"), v)).collect()),
            ListType::Map(keys) => Some(list.iter().map(|v| Child::Item(item_key(v, &keys), v)).collect()),
        },
        _ => None,
    }
}

/// `k:{"name":"x"}` of a list's item. A port without a protocol is a TCP port.
pub(crate) fn item_key(item: &Value, keys: &[&'static str]) -> String {
    let mut sorted: Vec<&str> = keys.to_vec();
    sorted.sort_unstable();
    let mut map = Map::new();
    for key in sorted {
        let value = match item.get(key) {
            Some(value) => value.clone(),
            None if key == "protocol" => "TCP".into(),
            None => continue,
        };
        map.insert(key.to_owned(), value);
    }
    format!("k:{}", Value::Object(map))
}

impl FieldSet {
    /// The fields of an object, without those that name it or that the server owns.
    pub(crate) fn of(object: &Value, schema: Schema<'static>) -> Self {
        let mut root = Map::new();
        for (key, value) in object.as_object().into_iter().flatten() {
            if matches!(key.as_str(), "apiVersion" | "kind") {
                continue;
            }
            let mut value = value.clone();
            if key == "metadata"
                && let Value::Object(map) = &mut value
            {
                for own in SERVER_OWNED {
                    map.shift_remove(*own);
                }
                if map.is_empty() {
                    continue;
                }
            }
            root.insert(format!("f:{key}"), Value::Object(trie(&value, schema.field(key))));
        }
        Self(root)
    }

    /// Reads `fieldsV1`.
    pub(crate) fn from_json(value: &Value) -> Self {
        Self(value.as_object().cloned().unwrap_or_default())
    }

    /// As `fieldsV1`.
    pub(crate) fn into_json(self) -> Value {
        Value::Object(self.0)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the field at `path` or one below it is in the set.
    pub(crate) fn touches(&self, path: &[String]) -> bool {
        let mut current = &self.0;
        for step in path {
            match current.get(step).and_then(Value::as_object) {
                Some(next) => current = next,
                None => return false,
            }
        }
        true
    }

    /// The paths of all owned fields.
    pub(crate) fn leaves(&self) -> Vec<Vec<String>> {
        let mut found = Vec::new();
        leaves(&self.0, &mut Vec::new(), &mut found);
        found
    }

    /// Takes a field out, and what becomes empty with it.
    pub(crate) fn remove(&mut self, path: &[String]) {
        remove(&mut self.0, path);
    }
}

/// Metadata that no applier owns.
const SERVER_OWNED: &[&str] = &[
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "managedFields",
    "selfLink",
    "generateName",
];

fn trie(value: &Value, schema: Schema<'static>) -> Map<String, Value> {
    let mut map = Map::new();
    for child in children(value, schema).unwrap_or_default() {
        match child {
            Child::Field(key, value) => {
                map.insert(format!("f:{key}"), Value::Object(trie(value, schema.field(key))));
            }
            Child::Item(key, value) => {
                let mut inner = if key.starts_with("v:") { Map::new() } else { trie(value, schema.items()) };
                if !inner.is_empty() {
                    // The item itself is owned besides its fields.
                    inner.insert(".".into(), Value::Object(Map::new()));
                }
                map.insert(key, Value::Object(inner));
            }
        }
    }
    map
}

fn leaves(map: &Map<String, Value>, path: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
    for (key, value) in map {
        path.push(key.clone());
        match value.as_object() {
            Some(inner) if !inner.is_empty() => leaves(inner, path, found),
            _ => found.push(path.clone()),
        }
        path.pop();
    }
}

fn remove(map: &mut Map<String, Value>, path: &[String]) {
    let Some((first, rest)) = path.split_first() else { return };
    if rest.is_empty() {
        map.shift_remove(first);
        return;
    }
    if let Some(Value::Object(inner)) = map.get_mut(first) {
        remove(inner, rest);
        if inner.is_empty() {
            map.shift_remove(first);
        }
    }
}

/// A path as conflicts show it: `.spec.containers[name="a"].image`.
pub(crate) fn show(path: &[String]) -> String {
    let mut out = String::new();
    for step in path {
        match step.split_once(':') {
            Some(("f", field)) => {
                out.push('.');
                out.push_str(field);
            }
            Some(("k", keys)) => {
                let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
                let pairs: Vec<String> = keys.iter().map(|(k, v)| format!("{k}={v}")).collect();
                out.push_str(&format!("[{}]", pairs.join(",")));
            }
            Some((_, value)) => out.push_str(&format!("[={value}]")),
            None => {}
        }
    }
    out
}

/// The value at a path of the trie.
pub(crate) fn find<'a>(value: &'a Value, path: &[String], schema: Schema<'static>) -> Option<&'a Value> {
    let Some((step, rest)) = path.split_first() else { return Some(value) };
    match step.split_once(':') {
        Some(("f", field)) => find(value.get(field)?, rest, schema.field(field)),
        Some((kind, _)) => {
            let item = place(value, step, schema).and_then(|at| value.as_array()?.get(at))?;
            if kind == "v" { Some(item) } else { find(item, rest, schema.items()) }
        }
        // `.`: the item itself.
        None => Some(&Value::Null),
    }
}

/// Where the item that `step` names stands in a list.
pub(crate) fn place(list: &Value, step: &str, schema: Schema<'static>) -> Option<usize> {
    let list = list.as_array()?;
    match (step.strip_prefix("v:"), schema.list_type()) {
        (Some(text), _) => {
            let wanted: Value = serde_json::from_str(text).ok()?;
            list.iter().position(|v| *v == wanted)
        }
        (None, ListType::Map(keys)) => list.iter().position(|v| item_key(v, &keys) == step),
        _ => None,
    }
}

/// Removes the field at a path, and lists' items whose last field it was.
pub(crate) fn erase(value: &mut Value, path: &[String], schema: Schema<'static>) {
    let Some((step, rest)) = path.split_first() else { return };
    match step.split_once(':') {
        Some(("f", field)) => {
            let Some(map) = value.as_object_mut() else { return };
            if rest.is_empty() {
                map.shift_remove(field);
            } else if let Some(inner) = map.get_mut(field) {
                erase(inner, rest, schema.field(field));
            }
        }
        Some(_) => {
            let Some(at) = place(value, step, schema) else { return };
            let Some(list) = value.as_array_mut() else { return };
            if rest.is_empty() || rest.first().is_some_and(|s| s == ".") {
                list.remove(at);
            } else if let Some(item) = list.get_mut(at) {
                erase(item, rest, schema.items());
            }
        }
        None => {}
    }
}
