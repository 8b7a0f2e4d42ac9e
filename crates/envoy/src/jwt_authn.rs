//! RequestAuthentications as Envoy's JWT filter, the way Istio writes it (reference authorization 19).

use maille_proto::facts as wire;
use serde_json::{Map, Value, json};

use crate::address::type_url;
use crate::matchers::claims::{JWT_FILTER, PAYLOAD};

/// Claims that are lists of words always.
const SPACE_DELIMITED: [&str; 2] = ["permission", "scope"];

/// No key at all, so that no token is good: what a rule lives by whose key set could not be had.
const NO_KEYS: &str = "{\"keys\":[]}";

/// The filter; nothing without a rule.
pub(crate) fn filter(facts: &wire::FactsInForce) -> Option<Value> {
    let mut rules: Vec<_> =
        facts.request_authentications.iter().flat_map(|authentication| &authentication.jwt_rules).collect();
    rules.sort_by(|a, b| a.issuer.cmp(&b.issuer));
    let names: Vec<String> = (0..rules.len()).map(|index| format!("origins-{index}")).collect();
    let either: Vec<Value> = names
        .iter()
        .map(|name| json!({"requiresAny": {"requirements": [{"providerName": name}, {"allowMissing": {}}]}}))
        .collect();
    let requires = match either.as_slice() {
        [] => return None,
        [one] => one.clone(),
        // Valid for one of them, or each of them valid or missing.
        all => {
            let mut any: Vec<Value> = names.iter().map(|name| json!({"providerName": name})).collect();
            any.push(json!({"requiresAll": {"requirements": all}}));
            json!({"requiresAny": {"requirements": any}})
        }
    };
    let providers: Map<String, Value> =
        names.into_iter().zip(rules).map(|(name, rule)| (name, provider(rule))).collect();
    Some(json!({
        "name": JWT_FILTER,
        "typedConfig": {
            "@type": type_url("envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication"),
            "providers": providers,
            "rules": [{"match": {"prefix": "/"}, "requires": requires}],
            "bypassCorsPreflight": true,
        }
    }))
}

fn provider(rule: &wire::JwtRule) -> Value {
    let mut provider = Map::new();
    let mut set = |field: &str, value: Value| provider.insert(field.to_owned(), value);
    let text = |text: &String| (!text.is_empty()).then(|| json!(text));
    let list = |list: &Vec<String>| (!list.is_empty()).then(|| json!(list));
    let keys = if rule.jwks.is_empty() { NO_KEYS } else { &rule.jwks };
    let headers = rule.from_headers.iter().map(|header| match header.prefix.is_empty() {
        true => json!({"name": header.name}),
        false => json!({"name": header.name, "valuePrefix": header.prefix}),
    });
    let headers: Vec<Value> = headers.collect();
    let outputs = rule.output_claim_to_headers.iter();
    let outputs: Vec<Value> =
        outputs.map(|output| json!({"headerName": output.header, "claimName": output.claim})).collect();
    let mut delimited: Vec<&str> =
        rule.space_delimited_claims.iter().map(String::as_str).chain(SPACE_DELIMITED).collect();
    delimited.sort_unstable();
    delimited.dedup();
    let fields = [
        ("issuer", text(&rule.issuer)),
        ("audiences", list(&rule.audiences)),
        ("localJwks", Some(json!({"inlineString": keys}))),
        ("forward", rule.forward_original_token.then(|| json!(true))),
        ("fromHeaders", (!headers.is_empty()).then(|| json!(headers))),
        ("fromParams", list(&rule.from_params)),
        ("fromCookies", list(&rule.from_cookies)),
        ("forwardPayloadHeader", text(&rule.output_payload_to_header)),
        ("payloadInMetadata", Some(json!(PAYLOAD))),
        ("normalizePayloadInMetadata", Some(json!({"spaceDelimitedClaims": delimited}))),
        ("claimToHeaders", (!outputs.is_empty()).then(|| json!(outputs))),
    ];
    for (field, value) in fields {
        if let Some(value) = value {
            set(field, value);
        }
    }
    Value::Object(provider)
}
