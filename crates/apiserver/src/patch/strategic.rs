//! Strategic merge patch: merge patch that knows which lists are keyed.
//!
//! Source: apimachinery `util/strategicpatch`; API conventions, "Strategic merge patch".

use serde_json::{Map, Value};

use crate::json;
use crate::openapi::schema::Schema;
use crate::status::{ApiError, ApiResult};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ORDER: &str = "$setElementOrder/";
const DELETE_PRIMITIVES: &str = "$deleteFromPrimitiveList/";

/// Applies `patch` to `target`, whose kind has `schema`.
pub(crate) fn apply(target: &mut Value, patch: &Value, schema: Schema<'static>) -> ApiResult<()> {
    let patch =
        patch.as_object().ok_or_else(|| ApiError::bad_request("a strategic merge patch is a JSON object"))?;
    merge_map(json::map_of(target), patch, schema)
}

fn merge_map(
    target: &mut Map<String, Value>,
    patch: &Map<String, Value>,
    schema: Schema<'static>,
) -> ApiResult<()> {
    match patch.get(DIRECTIVE).map(|d| d.as_str().unwrap_or_default()) {
        None | Some("merge") => {}
        Some("replace") => {
            *target =
                patch.iter().filter(|(k, _)| *k != DIRECTIVE).map(|(k, v)| (k.clone(), v.clone())).collect();
            return Ok(());
        }
        Some("delete") => {
            target.clear();
            return Ok(());
        }
        Some(other) => return Err(bad_directive(other)),
    }
    if let Some(keys) = patch.get(RETAIN_KEYS).and_then(Value::as_array) {
        target.retain(|k, _| keys.iter().any(|kept| kept.as_str() == Some(k)));
    }
    for (key, value) in patch {
        if let Some(field) = key.strip_prefix(DELETE_PRIMITIVES) {
            if let (Some(list), Some(gone)) =
                (target.get_mut(field).and_then(Value::as_array_mut), value.as_array())
            {
                list.retain(|item| !gone.contains(item));
            }
            continue;
        }
        if key.starts_with('$') {
            continue;
        }
        if value.is_null() {
            target.shift_remove(key);
            continue;
        }
        let field = schema.field(key);
        let order = patch.get(&format!("{SET_ORDER}{key}")).and_then(Value::as_array);
        match (target.get_mut(key), value) {
            (Some(Value::Object(old)), Value::Object(new)) => merge_map(old, new, field)?,
            (Some(Value::Array(old)), Value::Array(new)) if field.merges() => {
                merge_list(old, new, order, field)?;
            }
            _ => {
                let mut fresh = value.clone();
                strip(&mut fresh);
                target.insert(key.clone(), fresh);
            }
        }
    }
    // Order may be asked for without a change of the list.
    for (key, order) in patch {
        if let Some(field) = key.strip_prefix(SET_ORDER)
            && !patch.contains_key(field)
            && let (Some(list), Some(order)) =
                (target.get_mut(field).and_then(Value::as_array_mut), order.as_array())
        {
            let live = list.clone();
            reorder(list, &live, order, schema.field(field).merge_key());
        }
    }
    Ok(())
}

fn bad_directive(found: &str) -> ApiError {
    ApiError::bad_request(format!("unrecognized type of $patch directive: '{found}'"))
}

fn merge_list(
    target: &mut Vec<Value>,
    patch: &[Value],
    order: Option<&Vec<Value>>,
    field: Schema<'static>,
) -> ApiResult<()> {
    let live = target.clone();
    let directive = |item: &Value| item.get(DIRECTIVE).and_then(Value::as_str).map(str::to_owned);
    let key = match field.merge_key() {
        Some(key) => key,
        None => {
            for item in patch {
                if !target.contains(item) {
                    target.push(item.clone());
                }
            }
            if let Some(order) = order {
                reorder(target, &live, order, None);
            }
            return Ok(());
        }
    };
    if patch.iter().any(|item| directive(item).as_deref() == Some("replace")) {
        *target = patch.iter().filter(|item| directive(item).is_none()).cloned().collect();
        return Ok(());
    }
    for item in patch {
        let id = item.get(key);
        if id.is_none() && directive(item).is_none() {
            return Err(ApiError::bad_request(format!(
                "map: {item} does not contain declared merge key: {key}"
            )));
        }
        let place = target.iter().position(|old| old.get(key) == id);
        match (directive(item).as_deref(), place) {
            (Some("delete"), _) => target.retain(|old| old.get(key) != id),
            (None | Some("merge"), Some(at)) => {
                if let (Some(Value::Object(old)), Value::Object(new)) = (target.get_mut(at), item) {
                    merge_map(old, new, field.items())?;
                }
            }
            (None | Some("merge"), None) => {
                let mut fresh = item.clone();
                strip(&mut fresh);
                target.push(fresh);
            }
            (Some(other), _) => return Err(bad_directive(other)),
        }
    }
    if let Some(order) = order {
        reorder(target, &live, order, Some(key));
    }
    Ok(())
}

/// Puts the items named in `order` in that order; the others keep their place among them as in `live`.
fn reorder(list: &mut Vec<Value>, live: &[Value], order: &[Value], key: Option<&str>) {
    let id = |item: &Value| match key {
        Some(key) => item.get(key).cloned().unwrap_or(Value::Null),
        None => item.clone(),
    };
    let wanted = |item: &Value| order.iter().position(|o| id(o) == id(item));
    let live_place = |item: &Value| live.iter().position(|l| id(l) == id(item));
    let (mut ordered, others): (Vec<Value>, Vec<Value>) =
        std::mem::take(list).into_iter().partition(|item| wanted(item).is_some());
    ordered.sort_by_key(|item| wanted(item));
    let mut from = 0;
    for other in others {
        let mine = live_place(&other);
        let at = ordered
            .iter()
            .enumerate()
            .skip(from)
            .find(|(_, item)| live_place(item).is_some() && live_place(item) > mine)
            .map_or(ordered.len(), |(at, _)| at);
        ordered.insert(at, other);
        from = at + 1;
    }
    *list = ordered;
}

/// What a patch adds anew carries no directives and no nulls.
fn strip(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|k, v| !v.is_null() && !is_directive(k));
            map.values_mut().for_each(strip);
        }
        Value::Array(list) => {
            list.retain(|item| item.get(DIRECTIVE).is_none());
            list.iter_mut().for_each(strip);
        }
        _ => {}
    }
}

fn is_directive(key: &str) -> bool {
    key == DIRECTIVE || key == RETAIN_KEYS || key.starts_with(SET_ORDER) || key.starts_with(DELETE_PRIMITIVES)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn patched(mut target: Value, patch: Value) -> Value {
        let schema = Schema::of(crate::resources::by_name("", "pods").expect("served"));
        apply(&mut target, &patch, schema).expect("a valid patch");
        target
    }

    #[test]
    fn lists_with_a_key_merge_by_it() {
        let pod = json!({"spec": {"containers": [
            {"name": "a", "image": "x", "env": [{"name": "K", "value": "1"}]}, {"name": "b", "image": "y"},
        ], "tolerations": [{"key": "t"}]}});
        let got = patched(
            pod,
            json!({"spec": {
                "containers": [{"name": "b", "image": "z"}, {"name": "a", "env": [{"name": "L", "value": "2"}]}, {"name": "c"}],
                "tolerations": [{"key": "u"}],
            }}),
        );
        assert_eq!(
            got,
            json!({"spec": {"containers": [
                {"name": "a", "image": "x", "env": [{"name": "K", "value": "1"}, {"name": "L", "value": "2"}]},
                {"name": "b", "image": "z"}, {"name": "c"},
            ], "tolerations": [{"key": "u"}]}})
        );
    }

    #[test]
    fn directives_delete_replace_and_retain() {
        let pod = json!({"metadata": {"finalizers": ["a", "b"]}, "spec": {
            "containers": [{"name": "a"}, {"name": "b"}],
            "volumes": [{"name": "v", "emptyDir": {}}],
        }});
        let got = patched(
            pod,
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}, "spec": {
                "containers": [{"name": "a", "$patch": "delete"}],
                "volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}],
            }}),
        );
        assert_eq!(
            got,
            json!({"metadata": {"finalizers": ["b"]}, "spec": {
                "containers": [{"name": "b"}], "volumes": [{"name": "v", "hostPath": {"path": "/x"}}],
            }})
        );
        let replaced = patched(
            json!({"spec": {"containers": [{"name": "a"}]}}),
            json!({"spec": {"containers": [{"$patch": "replace"}, {"name": "z"}]}}),
        );
        assert_eq!(replaced, json!({"spec": {"containers": [{"name": "z"}]}}));
    }

    #[test]
    fn element_order_is_kept_and_unnamed_items_stay_in_their_place() {
        let pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "sidecar"}, {"name": "b"}]}});
        let got = patched(
            pod,
            json!({"spec": {
                "$setElementOrder/containers": [{"name": "c"}, {"name": "a"}, {"name": "b"}],
                "containers": [{"name": "c"}],
            }}),
        );
        let names: Vec<&str> =
            json::items(&got, &["spec", "containers"]).iter().map(|c| json::text(c, &["name"])).collect();
        assert_eq!(names, ["c", "a", "sidecar", "b"]);
    }

    #[test]
    fn what_is_added_carries_no_directives() {
        let got = patched(
            json!({}),
            json!({"spec": {"$retainKeys": ["x"], "containers": [{"name": "a", "$setElementOrder/env": [], "image": null}]}}),
        );
        assert_eq!(got, json!({"spec": {"containers": [{"name": "a"}]}}));
    }
}
