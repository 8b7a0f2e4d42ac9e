//! Reference authorization 18 and 19, row by row: what is refused, what is warned of, what is accepted.

use serde_json::{Value, json};

use super::*;
use FieldErrorKind::{Invalid, NotEnforced, Required, Type, Unknown};

fn object(kind: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": kind,
        "metadata": {"name": "default", "namespace": "shop"}, "spec": spec,
    })
}

fn refusals(object: &Value) -> Vec<(String, FieldErrorKind)> {
    check(object).err().unwrap_or_default().into_iter().map(|e| (e.path, e.kind)).collect()
}

fn warned(object: &Value) -> Vec<(String, FieldErrorKind)> {
    let checked = check(object).unwrap_or_else(|errors| panic!("{object}: {errors:#?}"));
    warnings(&checked).into_iter().map(|w| (w.path, w.kind)).collect()
}

fn rows(kind: &str, cases: Vec<(Value, Vec<(&str, FieldErrorKind)>)>) {
    for (spec, expected) in cases {
        let expected: Vec<_> = expected.into_iter().map(|(path, kind)| (path.to_owned(), kind)).collect();
        assert_eq!(refusals(&object(kind, spec.clone())), expected, "{kind} {spec}");
    }
}

#[test]
fn attachments_are_checked_as_istio_does() {
    let gateway = json!({"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "edge"});
    let service = json!({"kind": "Service", "name": "web"});
    for kind in ["AuthorizationPolicy", "RequestAuthentication"] {
        rows(
            kind,
            vec![
                (json!({"selector": {"matchLabels": {"app": "web", "version": ""}}}), vec![]),
                (
                    json!({"selector": {"matchLabels": {"": "a"}}}),
                    vec![("spec.selector.matchLabels[]", Invalid)],
                ),
                (
                    json!({"selector": {"matchLabels": {"a*": "b"}}}),
                    vec![("spec.selector.matchLabels[a*]", Invalid)],
                ),
                (
                    json!({"selector": {"matchLabels": {"a": "b*"}}}),
                    vec![("spec.selector.matchLabels.a", Invalid)],
                ),
                (json!({"targetRefs": [gateway]}), vec![]),
                (json!({"targetRefs": [service, gateway]}), vec![]),
                (json!({"target_refs": [service]}), vec![]),
                (json!({"targetRef": {"group": "core", "kind": "Service", "name": "web"}}), vec![]),
                (
                    json!({"targetRef": {"group": "networking.istio.io", "kind": "ServiceEntry", "name": "api"}}),
                    vec![],
                ),
                (
                    json!({"targetRef": {"group": "gateway.networking.k8s.io", "kind": "GatewayClass", "name": "w"}}),
                    vec![],
                ),
                (json!({"targetRefs": [gateway], "selector": {}}), vec![("spec.targetRefs", Invalid)]),
                (
                    json!({"targetRef": gateway, "selector": {"matchLabels": {"a": "b"}}}),
                    vec![("spec.targetRef", Invalid)],
                ),
                (json!({"targetRef": gateway, "targetRefs": [gateway]}), vec![("spec.targetRefs", Invalid)]),
                (json!({"targetRefs": [], "selector": {"matchLabels": {"a": "b"}}}), vec![]),
                (json!({"targetRefs": [{"kind": "Service"}]}), vec![("spec.targetRefs[0].name", Required)]),
                (
                    json!({"targetRefs": [{"kind": "Service", "name": ""}]}),
                    vec![("spec.targetRefs[0].name", Required)],
                ),
                (
                    json!({"targetRefs": [{"kind": "Service", "name": "a", "namespace": "b"}]}),
                    vec![("spec.targetRefs[0].namespace", Invalid)],
                ),
                (json!({"targetRefs": [{"kind": "Service", "name": "a", "namespace": ""}]}), vec![]),
                (
                    json!({"targetRefs": [{"kind": "Pod", "name": "a"}]}),
                    vec![("spec.targetRefs[0].kind", Invalid)],
                ),
                (json!({"targetRefs": [{"name": "a"}]}), vec![("spec.targetRefs[0].kind", Required)]),
                (
                    json!({"targetRefs": [{"kind": "Gateway", "name": "a"}]}),
                    vec![("spec.targetRefs[0].group", Invalid)],
                ),
                (
                    json!({"targetRefs": [{"group": "apps", "kind": "Service", "name": "a"}]}),
                    vec![("spec.targetRefs[0].group", Invalid)],
                ),
                (json!({"targetRefs": [null]}), vec![("spec.targetRefs[0]", Type)]),
                (json!({"targetRefs": vec![service.clone(); 16]}), vec![]),
                (json!({"targetRefs": vec![service.clone(); 17]}), vec![("spec.targetRefs", Invalid)]),
            ],
        );
        for (spec, expected) in [
            (json!({"selector": {}}), vec![("spec.selector", Invalid)]),
            (json!({"selector": {"matchLabels": {}}}), vec![("spec.selector", Invalid)]),
            (json!({"targetRefs": [gateway]}), vec![("spec.targetRefs", NotEnforced)]),
            (json!({"targetRef": service}), vec![("spec.targetRef", NotEnforced)]),
            (json!({"targetRefs": []}), vec![]),
        ] {
            let expected: Vec<_> = expected.into_iter().map(|(path, kind)| (path.to_owned(), kind)).collect();
            assert_eq!(warned(&object(kind, spec.clone())), expected, "{kind} {spec}");
        }
    }
}

/// The remaining rows of reference 18 about rules.
#[test]
fn rules_are_refused_and_accepted_row_by_row() {
    let in_rule = |rule: Value| {
        let short = |path: String| path.strip_prefix("spec.rules[0].").unwrap_or(&path).to_owned();
        let found = refusals(&object("AuthorizationPolicy", json!({"rules": [rule]})));
        found.into_iter().map(|(path, kind)| (short(path), kind)).collect::<Vec<_>>()
    };
    let one = |path: &str, kind| vec![(path.to_owned(), kind)];
    let source = |field: &str, value: &str| json!({"from": [{"source": {field: [value]}}]});
    let operation = |field: &str, value: &str| json!({"to": [{"operation": {field: [value]}}]});
    for field in [
        "principals",
        "notPrincipals",
        "requestPrincipals",
        "notRequestPrincipals",
        "namespaces",
        "notNamespaces",
        "serviceAccounts",
        "notServiceAccounts",
        "ipBlocks",
        "notIpBlocks",
        "remoteIpBlocks",
        "notRemoteIpBlocks",
        "trustDomains",
        "notTrustDomains",
    ] {
        let path = format!("from[0].source.{field}[0]");
        assert_eq!(in_rule(source(field, "")), one(&path, Invalid), "{field}");
    }
    for field in ["hosts", "notHosts", "ports", "notPorts", "methods", "notMethods", "paths", "notPaths"] {
        let path = format!("to[0].operation.{field}[0]");
        assert_eq!(in_rule(operation(field, "")), one(&path, Invalid), "{field}");
    }
    assert_eq!(in_rule(json!({"to": [null]})), one("to[0]", Type));
    assert_eq!(in_rule(json!({"when": [null]})), one("when[0]", Type));
    assert_eq!(in_rule(json!({"to": [{"operation": {"paths": []}}]})), one("to[0].operation", Invalid));
    for (account, fine) in [
        ("a".repeat(320), true),
        ("a".repeat(321), false),
        ("ns/sa".to_owned(), true),
        ("/sa".to_owned(), false),
        ("ns/".to_owned(), false),
        ("a/b/c".to_owned(), false),
        ("ns/*".to_owned(), false),
    ] {
        let expected = if fine { vec![] } else { one("from[0].source.serviceAccounts[0]", Invalid) };
        assert_eq!(in_rule(source("serviceAccounts", &account)), expected, "{account}");
    }
    for beside in ["principals", "notPrincipals", "namespaces", "notNamespaces"] {
        let rule = json!({"from": [{"source": {"notServiceAccounts": ["a"], beside: ["b"]}}]});
        assert_eq!(in_rule(rule), one("from[0].source.notServiceAccounts", Invalid), "{beside}");
    }
    for beside in ["ipBlocks", "trustDomains", "requestPrincipals"] {
        let rule = json!({"from": [{"source": {"serviceAccounts": ["a"], beside: ["10.0.0.1"]}}]});
        assert_eq!(in_rule(rule), [], "{beside}");
    }
    for (path, fine) in [
        ("/a/{*}/b/{**}", true),
        ("/{**}/end", true),
        ("/{**}/{*}", false),
        ("/a/{x}", false),
        ("/a/b}", false),
        ("/a{*}", false),
        ("/a/{*}/*", false),
        ("/a/{*}/b|c", false),
        ("/a//{*}", false),
        ("/a*/b*", true),
        ("no/slash", true),
    ] {
        let expected = if fine { vec![] } else { one("to[0].operation.paths[0]", Invalid) };
        assert_eq!(in_rule(operation("paths", path)), expected, "{path}");
    }
    for (port, fine) in
        [("0", true), ("65535", true), ("65536", false), ("-1", false), ("http", false), ("80 ", false)]
    {
        let expected = if fine { vec![] } else { one("to[0].operation.ports[0]", Invalid) };
        assert_eq!(in_rule(operation("ports", port)), expected, "{port}");
    }
    for (key, kind) in [
        ("destination.namespace", Some(Invalid)),
        ("destination.labels[app]", Some(Invalid)),
        ("destination.name", Some(Invalid)),
        ("destination.user", Some(Invalid)),
        ("request.headers", Some(Invalid)),
        ("request.headers[]", Some(Invalid)),
        ("request.headers[a", Some(Invalid)),
        ("request.auth.claims", Some(Invalid)),
        ("request.auth.claims[a][b", Some(Invalid)),
        ("source.Principal", Some(Invalid)),
        ("source.principal ", Some(Invalid)),
        ("experimental.envoy.filters.a[b]", Some(NotEnforced)),
        ("source.principal", None),
        ("request.auth.claims[a.b][c]", None),
    ] {
        let found = in_rule(json!({"when": [{"key": key, "values": ["a"]}]}));
        assert_eq!(found, kind.map(|kind| one("when[0].key", kind)).unwrap_or_default(), "{key}");
    }
    // Not validated by Istio: these match nothing, or something else than people think.
    for rule in [
        source("principals", "spiffe://cluster.local/ns/a/sa/b"),
        source("principals", "a*b"),
        source("requestPrincipals", "https://idp*"),
        operation("methods", "get"),
        operation("hosts", "a*b"),
    ] {
        assert_eq!(in_rule(rule.clone()), [], "{rule}");
    }
}

#[test]
fn policies_that_ask_cannot_look_at_identities() {
    let policy = |rule: Value| {
        object("AuthorizationPolicy", json!({"action": "CUSTOM", "provider": {"name": "p"}, "rules": [rule]}))
    };
    for (field, fine) in [
        ("namespaces", false),
        ("notNamespaces", false),
        ("serviceAccounts", false),
        ("notServiceAccounts", false),
        ("trustDomains", false),
        ("notTrustDomains", false),
        ("principals", false),
        ("notPrincipals", false),
        ("requestPrincipals", false),
        ("notRequestPrincipals", false),
        ("ipBlocks", true),
        ("notIpBlocks", true),
        ("remoteIpBlocks", true),
        ("notRemoteIpBlocks", true),
    ] {
        let found = refusals(&policy(json!({"from": [{"source": {field: ["10.0.0.1"]}}]})));
        let expected = vec![(format!("spec.rules[0].from[0].source.{field}"), Invalid)];
        assert_eq!(found, if fine { vec![] } else { expected }, "{field}");
    }
    for (key, fine) in [
        ("source.namespace", false),
        ("source.serviceAccount", false),
        ("source.trustDomain", false),
        ("source.principal", false),
        ("request.auth.principal", false),
        ("request.auth.claims[a]", false),
        ("request.headers[x]", true),
        ("connection.sni", true),
    ] {
        let found = refusals(&policy(json!({"when": [{"key": key, "values": ["a"]}]})));
        let expected = vec![("spec.rules[0].when[0].key".to_owned(), Invalid)];
        assert_eq!(found, if fine { vec![] } else { expected }, "{key}");
    }
    assert_eq!(refusals(&policy(json!({"to": [{"operation": {"paths": ["/admin*"]}}]}))), []);
}

#[test]
fn a_dry_run_is_for_allow_and_deny() {
    let at = || "metadata.annotations[istio.io/dry-run]".to_owned();
    for (value, action, fine) in [
        ("true", "ALLOW", true),
        ("1", "DENY", true),
        ("t", "ALLOW", true),
        ("TRUE", "ALLOW", true),
        ("F", "DENY", true),
        ("false", "ALLOW", true),
        ("0", "ALLOW", true),
        ("yes", "ALLOW", false),
        ("", "ALLOW", false),
        ("tRUE", "ALLOW", false),
        ("true", "AUDIT", false),
        ("false", "AUDIT", false),
        ("true", "CUSTOM", false),
    ] {
        let mut policy = object("AuthorizationPolicy", json!({"action": action, "rules": [{}]}));
        if action == "CUSTOM" {
            policy["spec"]["provider"] = json!({"name": "p"});
        }
        policy["metadata"]["annotations"] = json!({"istio.io/dry-run": value});
        assert_eq!(refusals(&policy), if fine { vec![] } else { vec![(at(), Invalid)] }, "{value} {action}");
    }
    for (kind, fine) in
        [("PeerAuthentication", false), ("RequestAuthentication", false), ("AuthorizationPolicy", true)]
    {
        let mut policy = object(kind, json!({}));
        policy["metadata"]["annotations"] = json!({"istio.io/dry-run": "true"});
        assert_eq!(refusals(&policy), if fine { vec![] } else { vec![(at(), Invalid)] }, "{kind}");
    }
}

fn jwks() -> String {
    json!({"keys": [{"kty": "RSA", "kid": "a", "n": "3q2-7w", "e": "AQAB"}]}).to_string()
}

/// Reference authorization 19, "Validation".
#[test]
fn rules_for_tokens_are_checked_as_istio_does() {
    let bad = |field: &str, kind| vec![(field.to_owned(), kind)];
    let both = json!({"issuer": "https://idp", "jwks": jwks(), "jwksUri": "https://idp/keys"});
    let cases = vec![
        (json!({"issuer": "https://idp"}), vec![]),
        (json!({"issuer": "idp", "jwks": jwks()}), vec![]),
        (json!({"jwksUri": "https://idp/keys"}), vec![]),
        (json!({"issuer": "", "jwks_uri": "http://10.0.0.1:8080/keys?x=y"}), vec![]),
        (json!({"issuer": "i", "jwksUri": "https://[::1]:8443/keys"}), vec![]),
        (json!({}), bad("issuer", Required)),
        (json!({"issuer": "", "jwks": jwks()}), bad("issuer", Required)),
        (json!({"issuer": null}), bad("issuer", Required)),
        (both, bad("jwks", Invalid)),
        (json!({"issuer": "i", "jwksUri": "ftp://idp/keys"}), bad("jwksUri", Invalid)),
        (json!({"issuer": "i", "jwksUri": "idp/keys"}), bad("jwksUri", Invalid)),
        (json!({"issuer": "i", "jwksUri": "https://"}), bad("jwksUri", Invalid)),
        (json!({"issuer": "i", "jwksUri": "https:///keys"}), bad("jwksUri", Invalid)),
        (json!({"issuer": "i", "jwksUri": "https://idp:http/keys"}), bad("jwksUri", Invalid)),
        (json!({"issuer": "i", "jwksUri": "https://idp:70000/keys"}), bad("jwksUri", Invalid)),
        (json!({"issuer": "i", "jwksUri": "https://u:p@idp/keys"}), bad("jwksUri", Invalid)),
        (json!({"issuer": "i", "jwksUri": "https://idp/a b"}), bad("jwksUri", Invalid)),
        (json!({"issuer": "i", "jwks": "{"}), bad("jwks", Invalid)),
        (json!({"issuer": "i", "jwks": "{}"}), bad("jwks", Invalid)),
        (json!({"issuer": "i", "jwks": "[]"}), bad("jwks", Invalid)),
        (json!({"issuer": "i", "jwks": "{\"keys\": {}}"}), bad("jwks", Invalid)),
        (json!({"issuer": "i", "jwks": "{\"keys\": [1]}"}), bad("jwks", Invalid)),
        (json!({"issuer": "i", "jwks": "{\"keys\": [{\"kty\": \"DSA\"}]}"}), bad("jwks", Invalid)),
        (
            json!({"issuer": "i", "jwks": "{\"keys\": [{\"kty\": \"RSA\", \"e\": \"AQAB\"}]}"}),
            bad("jwks", Invalid),
        ),
        (
            json!({"issuer": "i", "jwks": "{\"keys\": [{\"kty\": \"RSA\", \"n\": \"+/\", \"e\": \"AQAB\"}]}"}),
            bad("jwks", Invalid),
        ),
        (json!({"issuer": "i", "audiences": ["a", ""]}), bad("audiences[1]", Invalid)),
        (json!({"issuer": "i", "fromParams": [""]}), bad("fromParams[0]", Invalid)),
        (json!({"issuer": "i", "fromCookies": [""]}), bad("fromCookies[0]", Invalid)),
        (json!({"issuer": "i", "spaceDelimitedClaims": [""]}), bad("spaceDelimitedClaims[0]", Invalid)),
        (json!({"issuer": "i", "fromHeaders": [{"name": "x-token", "prefix": "Token "}]}), vec![]),
        (json!({"issuer": "i", "fromHeaders": [{}]}), bad("fromHeaders[0].name", Required)),
        (json!({"issuer": "i", "fromHeaders": [{"name": ""}]}), bad("fromHeaders[0].name", Required)),
        (json!({"issuer": "i", "fromHeaders": [{"name": "a b"}]}), bad("fromHeaders[0].name", Invalid)),
        (
            json!({"issuer": "i", "fromHeaders": [{"name": "a", "prefix": "x\n"}]}),
            bad("fromHeaders[0].prefix", Invalid),
        ),
        (json!({"issuer": "i", "fromHeaders": [null]}), bad("fromHeaders[0]", Type)),
        (json!({"issuer": "i", "outputPayloadToHeader": "x-payload"}), vec![]),
        (json!({"issuer": "i", "outputPayloadToHeader": ":path"}), bad("outputPayloadToHeader", Invalid)),
        (json!({"issuer": "i", "outputClaimToHeaders": [{"header": "x-sub", "claim": "realm.sub"}]}), vec![]),
        (
            json!({"issuer": "i", "outputClaimToHeaders": [{"header": "x-sub"}]}),
            bad("outputClaimToHeaders[0].claim", Required),
        ),
        (
            json!({"issuer": "i", "outputClaimToHeaders": [{"claim": "sub"}]}),
            bad("outputClaimToHeaders[0].header", Required),
        ),
        (
            json!({"issuer": "i", "outputClaimToHeaders": [{"header": "x sub", "claim": "a"}]}),
            bad("outputClaimToHeaders[0].header", Invalid),
        ),
        (
            json!({"issuer": "i", "outputClaimToHeaders": [{"header": ":path", "claim": "a"}]}),
            bad("outputClaimToHeaders[0].header", Invalid),
        ),
        (json!({"issuer": "i", "timeout": "1ms"}), vec![]),
        (json!({"issuer": "i", "timeout": "0s"}), bad("timeout", Invalid)),
        (json!({"issuer": "i", "timeout": "500us"}), bad("timeout", Invalid)),
        (json!({"issuer": "i", "timeout": "5"}), bad("timeout", Invalid)),
        (json!({"issuer": "i", "timeout": 5}), bad("timeout", Type)),
        (json!({"issuer": "i", "forwardOriginalToken": "yes"}), bad("forwardOriginalToken", Type)),
        (json!({"issuer": "i", "isuer": "j"}), bad("isuer", Unknown)),
        (json!(null), vec![(String::new(), Type)]),
    ];
    for (rule, expected) in cases {
        let found = refusals(&object("RequestAuthentication", json!({"jwtRules": [rule]})));
        let short = |path: &str| path.replace("spec.jwtRules[0].", "").replace("spec.jwtRules[0]", "");
        let found: Vec<_> = found.into_iter().map(|(path, kind)| (short(&path), kind)).collect();
        assert_eq!(found, expected, "{rule}");
    }
    rows(
        "RequestAuthentication",
        vec![
            (json!({}), vec![]),
            (json!({"jwtRules": []}), vec![]),
            (json!({"jwtRules": vec![json!({"issuer": "i"}); 4097]}), vec![("spec.jwtRules", Invalid)]),
        ],
    );
}

#[test]
fn rules_for_tokens_that_are_seldom_meant_are_warned_of() {
    let key = |key: Value| json!({"keys": [key]}).to_string();
    let ec = |more: Value| {
        let mut key = json!({"kty": "EC", "crv": "P-256", "x": "AAAA", "y": "AAAA"});
        for (name, value) in more.as_object().into_iter().flatten() {
            key[name] = value.clone();
        }
        key
    };
    for (rule, expected) in [
        (json!({"issuer": "i", "jwks": key(ec(json!({})))}), None),
        (json!({"issuer": "i", "jwks": key(ec(json!({"d": "AAAA"})))}), Some("jwks")),
        (json!({"issuer": "i", "jwks": key(json!({"kty": "oct", "k": "AAAA"}))}), Some("jwks")),
        (json!({"issuer": "i", "jwks": "{\"keys\": []}"}), Some("jwks")),
        (json!({"issuer": "i"}), Some("issuer")),
        (json!({"issuer": "https://idp"}), None),
        (json!({"issuer": "i", "jwksUri": "https://idp"}), None),
    ] {
        let found = warned(&object("RequestAuthentication", json!({"jwtRules": [rule]})));
        let expected: Vec<_> =
            expected.into_iter().map(|field| (format!("spec.jwtRules[0].{field}"), Invalid)).collect();
        assert_eq!(found, expected, "{rule}");
    }
}

proptest::proptest! {
    #[test]
    fn no_key_set_panics(text in "(?s).{0,60}", value in arbitrary_json()) {
        for text in [text, value.to_string()] {
            let spec = json!({"jwtRules": [{"issuer": text, "jwks": text, "jwksUri": text, "timeout": text}]});
            if let Ok(checked) = check(&object("RequestAuthentication", spec)) {
                let _ = warnings(&checked);
            }
        }
    }
}
