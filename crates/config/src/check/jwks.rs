//! Key sets written into a policy (RFC 7517): their structure. What a key is worth is for those who verify with it.

use serde_json::Value;

/// Members that a key of each type must have (RFC 7518 6, RFC 8037 2).
const KEY_TYPES: &[(&str, &[&str])] =
    &[("RSA", &["n", "e"]), ("EC", &["crv", "x", "y"]), ("OKP", &["crv", "x"]), ("oct", &["k"])];

/// Members that only the owner of a key should know.
const PRIVATE: &[&str] = &["d", "p", "q", "dp", "dq", "qi", "oth", "k"];

/// Why a text is no key set; `None` if it is.
pub(super) fn problem(text: &str) -> Option<String> {
    let set: Value = match serde_json::from_str(text) {
        Ok(set) => set,
        Err(error) => return Some(format!("no JSON (line {}, column {})", error.line(), error.column())),
    };
    let Some(keys) = set.get("keys") else { return Some("it has no member 'keys'".to_owned()) };
    let Some(keys) = keys.as_array() else { return Some("'keys' is no list".to_owned()) };
    keys.iter()
        .enumerate()
        .find_map(|(i, key)| key_problem(key).map(|problem| format!("keys[{i}] {problem}")))
}

fn key_problem(key: &Value) -> Option<String> {
    let text = |member: &str| key.get(member).and_then(Value::as_str).filter(|text| !text.is_empty());
    let Some(kind) = text("kty") else { return Some("has no type (kty)".to_owned()) };
    let Some((_, members)) = KEY_TYPES.iter().find(|(known, _)| *known == kind) else {
        return Some(format!("has the type '{kind}', which is none of RSA, EC, OKP and oct"));
    };
    for member in *members {
        match text(member) {
            None => return Some(format!("is of type {kind} and has no '{member}'")),
            Some(value) if *member != "crv" && !is_base64url(value) => {
                return Some(format!("has a '{member}' that is no base64url"));
            }
            Some(_) => {}
        }
    }
    None
}

fn is_base64url(text: &str) -> bool {
    let digits = text.trim_end_matches('=');
    digits.len() % 4 != 1 && digits.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

fn keys(text: &str) -> Vec<Value> {
    match serde_json::from_str::<Value>(text) {
        Ok(mut set) => match set.get_mut("keys").map(Value::take) {
            Some(Value::Array(keys)) => keys,
            _ => Vec::new(),
        },
        Err(_) => Vec::new(),
    }
}

/// Whether a key set holds what should not be public.
pub(super) fn has_private_keys(text: &str) -> bool {
    keys(text).iter().any(|key| PRIVATE.iter().any(|member| key.get(member).is_some()))
}

/// Whether there is no key in it.
pub(super) fn is_empty(text: &str) -> bool {
    keys(text).is_empty()
}
