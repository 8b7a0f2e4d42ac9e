//! What a verified token says (reference authorization 20), where Envoy's JWT filter leaves it: under `payload` of its
//! dynamic metadata.

use serde_json::{Value, json};

use super::string;

/// The filter that verifies tokens.
pub(crate) const JWT_FILTER: &str = "envoy.filters.http.jwt_authn";

/// Under what it leaves the claims.
pub(crate) const PAYLOAD: &str = "payload";

/// `iss/sub`, split at the last slash since an issuer may be an address.
pub(crate) fn principals(patterns: &[String]) -> Value {
    let mut each: Vec<Value> = patterns.iter().map(|pattern| principal(pattern)).collect();
    match each.len() {
        1 => each.remove(0),
        _ => json!({"orIds": {"ids": each}}),
    }
}

fn principal(pattern: &str) -> Value {
    let any = || string("*");
    let exact = |text: &str| json!({"exact": text});
    let prefix = |text: &str| json!({"prefix": text});
    let suffix = |text: &str| json!({"suffix": text});
    let parts = pattern.rsplit_once('/');
    let (iss, sub) = if pattern == "*" {
        (any(), any())
    } else if let Some(behind) = pattern.strip_prefix('*') {
        match parts {
            Some(("*", sub)) => (any(), exact(sub)),
            Some((iss, sub)) => (suffix(iss.trim_start_matches('*')), exact(sub)),
            None => (any(), suffix(behind)),
        }
    } else if let Some(before) = pattern.strip_suffix('*') {
        match parts {
            Some((iss, "*")) => (exact(iss), any()),
            Some((iss, sub)) => (exact(iss), prefix(sub.trim_end_matches('*'))),
            None => (prefix(before), any()),
        }
    } else {
        let (iss, sub) = parts.unwrap_or((pattern, ""));
        (exact(iss), exact(sub))
    };
    json!({"andIds": {"ids": [metadata(&["iss"], json!({"stringMatch": iss})), metadata(&["sub"], json!({"stringMatch": sub}))]}})
}

/// A claim by its path: a text, or a list with one of the texts.
pub(crate) fn claim(path: &[&str], patterns: &[String]) -> Value {
    let mut each: Vec<Value> =
        patterns.iter().map(|pattern| json!({"stringMatch": string(pattern)})).collect();
    let value = match each.len() {
        1 => each.remove(0),
        _ => json!({"orMatch": {"valueMatchers": each}}),
    };
    let either = json!({"orMatch": {"valueMatchers": [{"listMatch": {"oneOf": value.clone()}}, value]}});
    metadata(path, either)
}

fn metadata(path: &[&str], value: Value) -> Value {
    let path: Vec<Value> = std::iter::once(&PAYLOAD).chain(path).map(|key| json!({"key": key})).collect();
    json!({"metadata": {"filter": JWT_FILTER, "path": path, "value": value}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_principal_is_split_at_its_last_slash() {
        let any = json!({"safeRegex": {"regex": ".+"}});
        for (pattern, iss, sub) in [
            ("*", any.clone(), any.clone()),
            ("https://idp/u", json!({"exact": "https://idp"}), json!({"exact": "u"})),
            ("https://idp/*", json!({"exact": "https://idp"}), any.clone()),
            ("I/p*", json!({"exact": "I"}), json!({"prefix": "p"})),
            ("*/S", any.clone(), json!({"exact": "S"})),
            ("*x/S", json!({"suffix": "x"}), json!({"exact": "S"})),
            ("*s", any.clone(), json!({"suffix": "s"})),
            ("p*", json!({"prefix": "p"}), any.clone()),
            ("abc", json!({"exact": "abc"}), json!({"exact": ""})),
            ("*/*", any.clone(), json!({"exact": "*"})),
        ] {
            let both = &principal(pattern)["andIds"]["ids"];
            let value = |at: usize| both[at]["metadata"]["value"]["stringMatch"].clone();
            assert_eq!((value(0), value(1)), (iss, sub), "{pattern}");
        }
    }

    #[test]
    fn a_claim_is_a_text_or_a_list() {
        assert_eq!(
            claim(&["realm", "a.b"], &["x".to_owned()]),
            json!({"metadata": {
                "filter": "envoy.filters.http.jwt_authn",
                "path": [{"key": "payload"}, {"key": "realm"}, {"key": "a.b"}],
                "value": {"orMatch": {"valueMatchers": [
                    {"listMatch": {"oneOf": {"stringMatch": {"exact": "x"}}}},
                    {"stringMatch": {"exact": "x"}},
                ]}}
            }})
        );
    }
}
