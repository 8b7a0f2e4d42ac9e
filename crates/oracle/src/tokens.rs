//! Tokens in rules (reference authorization 20), read off the payload.

use maille_policy::Claims;
use serde_json::Value;

use crate::text::fits_text;

/// The table of section 20, row by row. An issuer or subject that is no text is not there.
pub(crate) fn fits_request_principal(value: &str, claims: Option<&Claims>) -> bool {
    let text = |name: &str| claims.and_then(|c| c.as_map().get(name)).and_then(Value::as_str);
    let (Some(iss), Some(sub)) = (text("iss"), text("sub")) else { return false };
    let any = |text: &str| !text.is_empty();
    if value == "*" {
        return any(iss) && any(sub);
    }
    let Some(slash) = value.rfind('/') else {
        if let Some(end) = value.strip_prefix('*') {
            return any(iss) && sub.ends_with(end);
        }
        if let Some(start) = value.strip_suffix('*') {
            return iss.starts_with(start) && any(sub);
        }
        return iss == value && sub.is_empty();
    };
    let (issuer, subject) = (&value[..slash], &value[slash + 1..]);
    if issuer == "*" {
        return any(iss) && sub == subject;
    }
    if let Some(end) = issuer.strip_prefix('*') {
        return iss.ends_with(end) && sub == subject;
    }
    if subject == "*" {
        return iss == issuer && any(sub);
    }
    if let Some(start) = subject.strip_suffix('*') {
        return iss == issuer && sub.starts_with(start);
    }
    iss == issuer && sub == subject
}

/// A claim against one value: a text, or any text in a list.
pub(crate) fn fits_claim(value: &str, path: &[String], claims: Option<&Claims>) -> bool {
    let mut found = claims.map(|claims| Value::Object(claims.as_map().clone()));
    for name in path {
        found = found.and_then(|object| object.as_object()?.get(name).cloned());
    }
    match found {
        Some(Value::String(text)) => fits_text(value, &text),
        Some(Value::Array(list)) => {
            list.iter().any(|one| one.as_str().is_some_and(|text| fits_text(value, text)))
        }
        _ => false,
    }
}

/// Where a key of a condition looks in the payload; `None`: it is no key about claims, or not of the right form.
pub(crate) fn claim_path(key: &str) -> Option<Vec<String>> {
    match key {
        "request.auth.audiences" => return Some(vec!["aud".to_owned()]),
        "request.auth.presenter" => return Some(vec!["azp".to_owned()]),
        _ => {}
    }
    let brackets = key.strip_prefix("request.auth.claims")?;
    let whole = brackets.strip_prefix('[')?.strip_suffix(']')?;
    let mut names = Vec::new();
    let mut rest = brackets;
    while let Some(after) = rest.strip_prefix('[') {
        let Some(end) = after.find([']', '[']).filter(|end| after[*end..].starts_with(']')) else { break };
        names.push(after[..end].to_owned());
        rest = &after[end + 1..];
    }
    // What does not come out as a chain of brackets is one name (Istio's `extractNameInNestedBrackets`).
    let names = if rest.is_empty() { names } else { vec![whole.to_owned()] };
    names.iter().all(|name| !name.is_empty()).then_some(names)
}
