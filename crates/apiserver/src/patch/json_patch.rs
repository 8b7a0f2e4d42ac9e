//! JSON patch (RFC 6902) with JSON pointers (RFC 6901).

use serde_json::Value;

use crate::status::{ApiError, ApiResult};

/// Each operation may copy a subtree, so their number is bounded (as in apiserver's `maxJSONPatchOperations`).
const MAX_OPERATIONS: usize = 10_000;
/// Copies may grow an object only up to this size, in values.
const MAX_VALUES: usize = 1_000_000;

/// Applies all operations to `target`, or none: on an error it is to be thrown away.
pub(crate) fn apply(target: &mut Value, patch: &Value) -> ApiResult<()> {
    let bad = |why: String| ApiError::bad_request(format!("error decoding patch: {why}"));
    let operations = patch.as_array().ok_or_else(|| bad("a JSON patch is a list of operations".into()))?;
    if operations.len() > MAX_OPERATIONS {
        return Err(ApiError::new(
            413,
            "RequestEntityTooLarge",
            format!(
                "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
                operations.len()
            ),
        ));
    }
    let mut copied = 0;
    for (index, operation) in operations.iter().enumerate() {
        let text = |key: &str| operation.get(key).and_then(Value::as_str);
        let op = text("op").unwrap_or_default();
        let fail = |why: &str| {
            let shown = text("path").unwrap_or_default();
            ApiError::new(
                422,
                "Invalid",
                format!(
                    "the server rejected our request due to an error in our request: operation {index} ({op} {shown}): {why}"
                ),
            )
        };
        let path = pointer(text("path").ok_or_else(|| fail("path is missing"))?)
            .ok_or_else(|| fail("path must be empty or begin with '/'"))?;
        let value = || operation.get("value").cloned().ok_or_else(|| fail("value is missing"));
        let from = || text("from").and_then(pointer).ok_or_else(|| fail("from is missing or no pointer"));
        let missing = || fail("there is nothing at this path");
        match op {
            "add" => add(target, &path, value()?).ok_or_else(missing)?,
            "remove" => drop(remove(target, &path).ok_or_else(missing)?),
            "replace" => *find_mut(target, &path).ok_or_else(missing)? = value()?,
            "test" => {
                if find(target, &path).unwrap_or(&Value::Null) != &value()? {
                    return Err(fail("test failed: the value there is another"));
                }
            }
            "move" => {
                let from = from()?;
                if path.starts_with(&from) && path != from {
                    return Err(fail("a value cannot be moved into itself"));
                }
                let moved = remove(target, &from).ok_or_else(missing)?;
                add(target, &path, moved).ok_or_else(missing)?;
            }
            "copy" => {
                let copy = find(target, &from()?).ok_or_else(missing)?.clone();
                copied += size(&copy);
                if copied > MAX_VALUES {
                    return Err(fail("copies make the object too large"));
                }
                add(target, &path, copy).ok_or_else(missing)?;
            }
            _ => return Err(fail("op must be add, remove, replace, move, copy or test")),
        }
    }
    Ok(())
}

fn pointer(text: &str) -> Option<Vec<String>> {
    if text.is_empty() {
        return Some(Vec::new());
    }
    let tokens = text.strip_prefix('/')?.split('/');
    Some(tokens.map(|t| t.replace("~1", "/").replace("~0", "~")).collect())
}

fn index(token: &str) -> Option<usize> {
    // No leading zeros, no signs (RFC 6901 section 4).
    let plain = token == "0" || !token.starts_with('0') && token.bytes().all(|b| b.is_ascii_digit());
    if plain { token.parse().ok() } else { None }
}

fn find<'a>(value: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(value, |v, token| match v {
        Value::Object(map) => map.get(token),
        Value::Array(list) => list.get(index(token)?),
        _ => None,
    })
}

fn find_mut<'a>(value: &'a mut Value, path: &[String]) -> Option<&'a mut Value> {
    path.iter().try_fold(value, |v, token| match v {
        Value::Object(map) => map.get_mut(token),
        Value::Array(list) => list.get_mut(index(token)?),
        _ => None,
    })
}

fn add(target: &mut Value, path: &[String], value: Value) -> Option<()> {
    let Some((last, parent)) = path.split_last() else {
        *target = value;
        return Some(());
    };
    match find_mut(target, parent)? {
        Value::Object(map) => drop(map.insert(last.clone(), value)),
        Value::Array(list) if last == "-" => list.push(value),
        Value::Array(list) => {
            let at = index(last).filter(|i| *i <= list.len())?;
            list.insert(at, value);
        }
        _ => return None,
    }
    Some(())
}

fn remove(target: &mut Value, path: &[String]) -> Option<Value> {
    let Some((last, parent)) = path.split_last() else {
        return Some(std::mem::take(target));
    };
    match find_mut(target, parent)? {
        Value::Object(map) => map.shift_remove(last),
        Value::Array(list) => {
            let at = index(last).filter(|i| *i < list.len())?;
            Some(list.remove(at))
        }
        _ => None,
    }
}

fn size(value: &Value) -> usize {
    1 + match value {
        Value::Object(map) => map.values().map(size).sum(),
        Value::Array(list) => list.iter().map(size).sum(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Examples of RFC 6902 appendix A.
    #[test]
    fn examples_of_the_rfc() {
        for (target, patch, want) in [
            (
                json!({"foo":["bar","baz"]}),
                json!([{"op":"add","path":"/foo/1","value":"qux"}]),
                json!({"foo":["bar","qux","baz"]}),
            ),
            (json!({"foo":["a","b"]}), json!([{"op":"remove","path":"/foo/0"}]), json!({"foo":["b"]})),
            (
                json!({"a":{"b":1},"c":{}}),
                json!([{"op":"move","from":"/a/b","path":"/c/d"}]),
                json!({"a":{},"c":{"d":1}}),
            ),
            (
                json!({"foo":["bar"]}),
                json!([{"op":"add","path":"/foo/-","value":["abc"]}]),
                json!({"foo":["bar",["abc"]]}),
            ),
            (json!({"/":9,"~1":10}), json!([{"op":"test","path":"/~01","value":10}]), json!({"/":9,"~1":10})),
        ] {
            let mut got = target;
            apply(&mut got, &patch).expect("valid");
            assert_eq!(got, want);
        }
        for patch in [
            json!([{"op":"add","path":"/a/b","value":1}]),
            json!([{"op":"remove","path":"/nope"}]),
            json!([{"op":"test","path":"/foo","value":1}]),
            json!([{"op":"add","path":"/foo/01","value":1}]),
            json!([{"op":"what","path":"/foo"}]),
            json!({}),
            json!([3]),
        ] {
            assert!(apply(&mut json!({"foo":["x"]}), &patch).is_err(), "{patch}");
        }
    }
}
