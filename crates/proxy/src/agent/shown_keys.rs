//! Key sets as the admin port shows them: an inline set may hold a shared secret or, by mistake, a private key.

use serde_json::Value;

/// Members of a JWK that are secret (RFC 7518 6.2.2, 6.3.2 and 6.4.1).
const SECRET: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];

/// A key set without what only the issuer may know.
pub(super) fn public(jwks: &str) -> String {
    let Ok(mut set) = serde_json::from_str::<Value>(jwks) else {
        return if jwks.is_empty() { String::new() } else { "(not JSON, and not shown)".to_owned() };
    };
    let keys = set.get_mut("keys").and_then(Value::as_array_mut);
    for key in keys.into_iter().flatten().filter_map(Value::as_object_mut) {
        key.retain(|name, _| !SECRET.contains(&name.as_str()));
    }
    match set.get("keys").and_then(Value::as_array) {
        Some(_) => set.to_string(),
        // A key without its set around it, perhaps.
        None => "(no key set, and not shown)".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_the_issuer_may_know_is_not_shown() {
        let shown = public(
            r#"{"keys":[{"kty":"oct","k":"c2VjcmV0"},{"kty":"EC","x":"eA","y":"eQ","d":"c2VjcmV0"}]}"#,
        );
        assert_eq!(shown, r#"{"keys":[{"kty":"oct"},{"kty":"EC","x":"eA","y":"eQ"}]}"#);
        for odd in
            [r#"{"kty":"oct","k":"c2VjcmV0"}"#, "-----BEGIN PRIVATE KEY----- c2VjcmV0", r#""c2VjcmV0""#]
        {
            assert!(!public(odd).contains("c2VjcmV0"), "{odd}");
        }
        assert_eq!(public(""), "");
    }
}
