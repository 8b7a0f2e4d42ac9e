//! Section 20: request identities and claims.

use serde_json::{Value, json};

use super::{all_as_expected, ask, checker, policy};

fn token(claims: Value) -> Value {
    json!({"jwt": claims})
}

fn of(iss: &str, sub: &str) -> Value {
    token(json!({"iss": iss, "sub": sub}))
}

#[test]
fn section_20_request_principals_are_split_at_the_last_slash() {
    let source = |pattern: &str| format!("from: [{{source: {{requestPrincipals: [\"{pattern}\"]}}}}]");
    for (pattern, iss, sub, expected) in [
        ("*", "i", "s", true),
        ("https://idp/u1", "https://idp", "u1", true),
        ("https://idp/u1", "https://idp", "u2", false),
        ("https://idp.example/*", "https://idp.example", "any", true),
        ("https://idp*", "https://idp.example", "u1", false),
        ("https://idp/p*", "https://idp", "peter", true),
        ("https://idp/p*", "https://idp", "u1", false),
        ("*/S", "any", "S", true),
        ("*/S", "any", "T", false),
        ("*x/S", "box", "S", true),
        ("*x/S", "boy", "S", false),
        ("*s", "i", "boss", true),
        ("*s", "i", "bot", false),
        ("p*", "provider", "any", true),
        ("p*", "other", "any", false),
        ("abc", "abc", "s", false),
        ("*/*", "i", "s", false),
        ("*/*", "i", "*", true),
    ] {
        all_as_expected(&[(&source(pattern), of(iss, sub), expected)]);
        let when = format!("when: [{{key: request.auth.principal, values: [\"{pattern}\"]}}]");
        all_as_expected(&[(&when, of(iss, sub), expected)]);
    }
    all_as_expected(&[
        (&source("*"), token(json!({"iss": "i"})), false),
        (&source("*"), token(json!({"sub": "s"})), false),
        (&source("*"), token(json!({"iss": "i", "sub": 7})), false),
        (&source("*"), json!({}), false),
    ]);
}

#[test]
fn section_20_claims() {
    let claim =
        |path: &str, values: &str| format!("when: [{{key: \"request.auth.claims{path}\", {values}}}]");
    let groups = json!({"groups": ["ops", "dev"]});
    all_as_expected(&[
        (&claim("[groups]", "values: [dev]"), token(groups.clone()), true),
        (&claim("[groups]", "notValues: [ops]"), token(groups.clone()), false),
        (&claim("[groups]", "values: [admin]"), token(groups), false),
        (&claim("[admin]", "values: [\"true\"]"), token(json!({"admin": true})), false),
        (&claim("[level]", "values: [\"3\"]"), token(json!({"level": 3})), false),
        (&claim("[scope]", "values: [read]"), token(json!({"scope": "write read"})), true),
        (&claim("[scope]", "values: [\"write read\"]"), token(json!({"scope": "write read"})), false),
        (&claim("[permission]", "values: [read]"), token(json!({"permission": "write read"})), true),
        (&claim("[realm][roles]", "values: [admin]"), token(json!({"realm": {"roles": ["admin"]}})), true),
        (&claim("[realm][roles]", "values: [admin]"), token(json!({"realm": "admin"})), false),
        (&claim("[a.b]", "values: [x]"), token(json!({"a.b": "x"})), true),
        (&claim("[a.b]", "values: [x]"), token(json!({"a": {"b": "x"}})), false),
        (&claim("[iss]", "values: [i]"), of("i", "s"), true),
        (&claim("[name]", "values: [\"*\"]"), token(json!({"name": ""})), false),
        (&claim("[name]", "values: [\"*\"]"), token(json!({"name": "x"})), true),
        (&claim("[names]", "values: [\"*\"]"), token(json!({"names": ["", "x"]})), true),
        (&claim("[names]", "values: [\"*\"]"), token(json!({"names": [""]})), false),
        (&claim("[name]", "values: [\"ad*\"]"), token(json!({"name": "admin"})), true),
        (&claim("[none]", "values: [x]"), token(json!({})), false),
        (&claim("[none]", "notValues: [x]"), token(json!({})), true),
        ("when: [{key: request.auth.audiences, values: [shop]}]", token(json!({"aud": "shop"})), true),
        ("when: [{key: request.auth.audiences, values: [shop]}]", token(json!({"aud": ["a", "shop"]})), true),
        ("when: [{key: request.auth.audiences, values: [shop]}]", token(json!({"aud": ["a"]})), false),
        ("when: [{key: request.auth.presenter, values: [app]}]", token(json!({"azp": "app"})), true),
        ("when: [{key: request.auth.presenter, values: [app]}]", token(json!({})), false),
    ]);
}

/// Section 19: `spaceDelimitedClaims` of the RequestAuthentication of the token's issuer.
#[test]
fn claims_are_lists_of_words_where_the_issuers_rule_says_so() {
    let authentication = "---\napiVersion: security.istio.io/v1\nkind: RequestAuthentication\n\
        metadata: {name: r, namespace: shop}\nspec: {jwtRules: [{issuer: \"https://idp\", spaceDelimitedClaims: [roles]}]}\n";
    let policies =
        policy("shop/p", "{rules: [{when: [{key: \"request.auth.claims[roles]\", values: [admin]}]}]}")
            + authentication;
    for (issuer, expected) in [("https://idp", true), ("https://other", false)] {
        let asked = token(json!({"iss": issuer, "roles": "user admin"}));
        assert_eq!(ask(&mut checker(&policies), "shop", json!({}), asked).allowed, expected, "{issuer}");
    }
}

/// Section 11: where there are no requests, rules about tokens are gone from ALLOW and wider under DENY.
#[test]
fn on_tcp_there_are_no_tokens() {
    let rule = "{from: [{source: {requestPrincipals: [\"*\"], namespaces: [a]}}]}";
    let asked = |namespace: &str| {
        json!({"protocol": "tcp", "source_principal": format!("cluster.local/ns/{namespace}/sa/x"),
            "jwt": {"iss": "i", "sub": "s"}})
    };
    for (action, namespace, expected) in
        [("ALLOW", "a", false), ("ALLOW", "b", false), ("DENY", "a", false), ("DENY", "b", true)]
    {
        let policies = policy("shop/p", &format!("{{action: {action}, rules: [{rule}]}}"));
        let answer = ask(&mut checker(&policies), "shop", json!({}), asked(namespace));
        assert_eq!(answer.allowed, expected, "{action} {namespace}: {}", answer.reason);
    }
}
