use serde_json::{Value, json};

use super::*;
use FieldErrorKind::{Enum, Invalid, NotEnforced, Required, Type, Unknown};

fn policy(kind: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1",
        "kind": kind,
        "metadata": {"name": "default", "namespace": "shop"},
        "spec": spec,
    })
}

fn found(object: &Value) -> Vec<(String, FieldErrorKind)> {
    match check(object) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.into_iter().map(|e| (e.path, e.kind)).collect(),
    }
}

fn rule(rule: Value) -> Value {
    policy("AuthorizationPolicy", json!({"rules": [rule]}))
}

/// The findings in one rule, with paths from the rule on.
fn in_rule(written: Value) -> Vec<(String, FieldErrorKind)> {
    let short = |path: String| path.strip_prefix("spec.rules[0].").unwrap_or(&path).to_owned();
    found(&rule(written)).into_iter().map(|(path, kind)| (short(path), kind)).collect()
}

fn from(source: Value) -> Value {
    json!({"from": [{"source": source}]})
}

fn to(operation: Value) -> Value {
    json!({"to": [{"operation": operation}]})
}

fn when(key: &str, value: &str) -> Value {
    json!({"when": [{"key": key, "values": [value]}]})
}

#[test]
fn names_of_kinds_are_checked_first() {
    let object = |api_version: &str, kind: &str| {
        let object = json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": "a"}});
        check(&object)
            .err()
            .unwrap_or_default()
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("\n")
    };
    for (api_version, kind, expected) in [
        (
            "security.istio.io/v1",
            "PeerAuthentcation",
            "kind: kind PeerAuthentcation of security.istio.io/v1 is not known here; did you mean PeerAuthentication?",
        ),
        (
            "batch/v1",
            "ReplicationController",
            "kind: kind ReplicationController of batch/v1 is not known here; write a Deployment",
        ),
        (
            "v1",
            "PeerAuthentication",
            "apiVersion: there is no kind PeerAuthentication in 'v1'; write security.istio.io/v1",
        ),
        (
            "security.istio.io/v2",
            "PeerAuthentication",
            "apiVersion: PeerAuthentication has no version 'v2'; write security.istio.io/v1",
        ),
        ("", "Pod", "apiVersion: is required; for example apiVersion: security.istio.io/v1"),
    ] {
        assert_eq!(object(api_version, kind), expected);
    }
    let unknown = object("example.com/v1", "Gadget");
    assert!(
        unknown.starts_with("kind: ")
            && unknown.contains("Deployment")
            && unknown.contains("PeerAuthentication")
    );
    assert_eq!(found(&json!([1])), [(String::new(), Type)]);
}

#[test]
fn kinds_that_nothing_enforces_are_refused_with_the_reason() {
    for kind in kinds::KINDS.iter().filter(|k| !k.reason.is_empty()) {
        let object = json!({"apiVersion": kind.api_version(), "kind": kind.kind, "metadata": {"name": "a"}, "spec": {}});
        let errors = check(&object).expect_err("refused");
        assert_eq!(errors.iter().map(|e| e.kind).collect::<Vec<_>>(), [NotEnforced], "{}", kind.kind);
        assert!(errors.iter().any(|e| e.message.contains("not enforced")), "{errors:?}");
    }
}

#[test]
fn peer_authentication_is_checked_as_istio_does() {
    let selector = json!({"matchLabels": {"app": "a"}});
    let cases = [
        (json!({}), vec![]),
        (json!({"mtls": {}}), vec![]),
        (json!({"mtls": {"mode": "UNSET"}, "selector": {}}), vec![]),
        (json!({"selector": selector, "portLevelMtls": {"8080": {"mode": "DISABLE"}}}), vec![]),
        (json!({"mtls": {"mode": "strict"}}), vec![("spec.mtls.mode", Enum)]),
        (json!({"mtls": {"mode": 3}}), vec![("spec.mtls.mode", Enum)]),
        (json!({"mtls": "STRICT"}), vec![("spec.mtls", Type)]),
        (json!({"portLevelMtls": {"8080": {"mode": "STRICT"}}}), vec![("spec.portLevelMtls", Invalid)]),
        (json!({"selector": selector, "portLevelMtls": {}}), vec![("spec.portLevelMtls", Invalid)]),
        (
            json!({"selector": selector, "portLevelMtls": {"0": {}, "65536": {}, "http": {}, "+80": {}, "80": {}}}),
            vec![
                ("spec.portLevelMtls[0]", Invalid),
                ("spec.portLevelMtls[65536]", Invalid),
                ("spec.portLevelMtls.http", Invalid),
                ("spec.portLevelMtls[+80]", Invalid),
            ],
        ),
        (
            json!({"selector": {"matchLabels": {"app": "*"}}}),
            vec![("spec.selector.matchLabels.app", Invalid)],
        ),
        (json!({"selector": {"matchExpressions": []}}), vec![("spec.selector.matchExpressions", Unknown)]),
    ];
    for (spec, expected) in cases {
        let expected: Vec<_> = expected.into_iter().map(|(path, kind)| (path.to_owned(), kind)).collect();
        assert_eq!(found(&policy("PeerAuthentication", spec.clone())), expected, "{spec}");
    }
}

#[test]
fn authorization_policies_in_use_pass() {
    for spec in [
        json!({"targetRef": {"kind": "Service", "name": "a"}, "rules": [{}]}),
        json!({}),
        json!({"rules": []}),
        json!({"rules": [{}]}),
        json!({"action": "DENY", "rules": [{}]}),
        json!({"rules": [{"from": [], "to": null, "when": []}]}),
        json!({"selector": {"matchLabels": {"app": ""}}}),
        json!({"targetRefs": []}),
    ] {
        assert_eq!(found(&policy("AuthorizationPolicy", spec.clone())), [], "{spec}");
    }
    for written in [
        from(json!({"principals": ["cluster.local/ns/a/sa/*", "*a*b"], "notNamespaces": ["f*r"]})),
        from(json!({"serviceAccounts": ["a", "ops/bot"], "ipBlocks": ["10.0.0.0/8", "2001:db8::1"]})),
        from(json!({"remoteIpBlocks": ["10.1.2.3/8"], "trustDomains": ["*", "prod.*", "*.eu"]})),
        from(json!({"not_principals": ["x"]})),
        to(json!({"ports": ["8080", "0"], "methods": ["get"], "paths": ["/a*/b*", "/v1/{*}/x/{**}", "x"]})),
        to(json!({"hosts": ["*.example.com"], "notHosts": ["h:*"]})),
        when("request.headers[X-Tier]", "gold*"),
        when("request.headers[:method]", "GET"),
        when("source.ip", "10.0.0.0/8"),
        when("destination.port", "80"),
        when("connection.sni", "*.corp"),
        from(json!({"requestPrincipals": ["https://idp/*", "*"], "not_request_principals": ["a/b"]})),
        when("request.auth.principal", "https://idp/*"),
        when("request.auth.audiences", "shop"),
        when("request.auth.presenter", "app"),
        when("request.auth.claims[groups]", "dev"),
        when("request.auth.claims[realm][roles.all]", "dev*"),
        json!({"when": [{"key": "source.namespace", "notValues": ["a"]}]}),
    ] {
        assert_eq!(in_rule(written.clone()), [], "{written}");
    }
}

/// Reference authorization 18, row by row.
#[test]
fn rules_are_checked_as_istio_does() {
    let cases = [
        (json!(null), vec![("spec.rules[0]", Type)]),
        (json!({"from": [null]}), vec![("from[0]", Type)]),
        (json!({"from": [{}]}), vec![("from[0].source", Required)]),
        (json!({"to": [{}]}), vec![("to[0].operation", Required)]),
        (from(json!({})), vec![("from[0].source", Invalid)]),
        (from(json!({"principals": []})), vec![("from[0].source", Invalid)]),
        (to(json!({})), vec![("to[0].operation", Invalid)]),
        (from(json!({"princpals": ["a"]})), vec![("from[0].source.princpals", Unknown)]),
        (from(json!({"principals": "a"})), vec![("from[0].source.principals", Type)]),
        (from(json!({"principals": ["a", ""]})), vec![("from[0].source.principals[1]", Invalid)]),
        (
            from(json!({"serviceAccounts": ["a"], "namespaces": ["b"]})),
            vec![("from[0].source.serviceAccounts", Invalid)],
        ),
        (from(json!({"serviceAccounts": ["a*"]})), vec![("from[0].source.serviceAccounts[0]", Invalid)]),
        (from(json!({"serviceAccounts": ["a/b/c"]})), vec![("from[0].source.serviceAccounts[0]", Invalid)]),
        (from(json!({"serviceAccounts": ["a/"]})), vec![("from[0].source.serviceAccounts[0]", Invalid)]),
        (
            from(json!({"notServiceAccounts": vec!["a"; 17]})),
            vec![("from[0].source.notServiceAccounts", Invalid)],
        ),
        (from(json!({"trustDomains": ["*a*"]})), vec![("from[0].source.trustDomains[0]", Invalid)]),
        (from(json!({"trustDomains": ["a*b"]})), vec![("from[0].source.trustDomains[0]", Invalid)]),
        (from(json!({"trustDomains": ["a/b"]})), vec![("from[0].source.trustDomains[0]", Invalid)]),
        (from(json!({"ipBlocks": ["1.2.3"]})), vec![("from[0].source.ipBlocks[0]", Invalid)]),
        (from(json!({"ipBlocks": ["1.2.3.4/33"]})), vec![("from[0].source.ipBlocks[0]", Invalid)]),
        (from(json!({"ipBlocks": ["1.2.3.4/08"]})), vec![("from[0].source.ipBlocks[0]", Invalid)]),
        (from(json!({"ipBlocks": ["01.2.3.4"]})), vec![("from[0].source.ipBlocks[0]", Invalid)]),
        (from(json!({"ipBlocks": ["fe80::1%eth0"]})), vec![("from[0].source.ipBlocks[0]", Invalid)]),
        (from(json!({"requestPrincipals": [""]})), vec![("from[0].source.requestPrincipals[0]", Invalid)]),
        (to(json!({"ports": ["http"]})), vec![("to[0].operation.ports[0]", Invalid)]),
        (to(json!({"ports": ["65536"]})), vec![("to[0].operation.ports[0]", Invalid)]),
        (to(json!({"ports": [8080]})), vec![("to[0].operation.ports[0]", Type)]),
        (to(json!({"paths": ["/a/{x}"]})), vec![("to[0].operation.paths[0]", Invalid)]),
        (to(json!({"paths": ["/a/{*}/*"]})), vec![("to[0].operation.paths[0]", Invalid)]),
        (json!({"when": [{"values": ["a"]}]}), vec![("when[0].key", Required)]),
        (when("", "a"), vec![("when[0].key", Invalid)]),
        (json!({"when": [{"key": "source.ip"}]}), vec![("when[0].values", Required)]),
        (
            json!({"when": [{"key": "source.ip", "values": [], "notValues": []}]}),
            vec![("when[0].values", Required)],
        ),
        (when("source.ip", "x"), vec![("when[0].values[0]", Invalid)]),
        (when("destination.port", "http"), vec![("when[0].values[0]", Invalid)]),
        (when("source.adress", "a"), vec![("when[0].key", Invalid)]),
        (when("destination.labels[app]", "a"), vec![("when[0].key", Invalid)]),
        (when("request.headers", "a"), vec![("when[0].key", Invalid)]),
        (when("request.headers[]", "a"), vec![("when[0].key", Invalid)]),
        (when("request.auth.claims", "a"), vec![("when[0].key", Invalid)]),
        (when("request.auth.claims[]", "a"), vec![("when[0].key", Invalid)]),
        (when("request.auth.claims[a][]", "a"), vec![("when[0].key", Invalid)]),
        (when("request.auth.claims[a]b", "a"), vec![("when[0].key", Invalid)]),
        (when("request.auth.issuer", "a"), vec![("when[0].key", Invalid)]),
        (when("experimental.envoy.filters.a[b]", "a"), vec![("when[0].key", NotEnforced)]),
    ];
    for (written, expected) in cases {
        let expected: Vec<_> = expected.into_iter().map(|(path, kind)| (path.to_owned(), kind)).collect();
        assert_eq!(in_rule(written.clone()), expected, "{written}");
    }
}

#[test]
fn actions_are_checked_as_istio_does() {
    let cases = [
        (json!({"action": "DENY"}), vec![("spec.rules", Required)]),
        (json!({"action": "DENY", "rules": []}), vec![("spec.rules", Required)]),
        (json!({"action": "deny", "rules": [{}]}), vec![("spec.action", Enum)]),
        (json!({"action": "AUDIT", "rules": [{}]}), vec![]),
        (json!({"action": "AUDIT"}), vec![]),
        (json!({"action": "CUSTOM", "provider": {"name": "a"}, "rules": [{}]}), vec![]),
        (json!({"action": "CUSTOM", "provider": {"name": "a"}}), vec![("spec.rules", Required)]),
        (json!({"action": "CUSTOM", "rules": [{}]}), vec![("spec.provider.name", Required)]),
        (json!({"action": "CUSTOM", "provider": {}, "rules": [{}]}), vec![("spec.provider.name", Required)]),
        (
            json!({"action": "CUSTOM", "provider": {"name": ""}, "rules": [{}]}),
            vec![("spec.provider.name", Required)],
        ),
        (
            json!({"action": "AUDIT", "provider": {"name": "a"}, "rules": [{}]}),
            vec![("spec.provider", Invalid)],
        ),
        (json!({"provider": {"name": "a"}}), vec![("spec.provider", Invalid)]),
        (
            json!({"targetRefs": [{"kind": "Service", "name": "a"}], "selector": {}}),
            vec![("spec.targetRefs", Invalid)],
        ),
        (json!({"rules": vec![json!({}); 512]}), vec![]),
        (json!({"rules": vec![json!({}); 513]}), vec![("spec.rules", Invalid)]),
    ];
    for (spec, expected) in cases {
        let expected: Vec<_> = expected.into_iter().map(|(path, kind)| (path.to_owned(), kind)).collect();
        assert_eq!(found(&policy("AuthorizationPolicy", spec.clone())), expected, "{spec}");
    }
}

#[test]
fn all_mistakes_of_an_object_are_found_at_once() {
    let mut object = policy(
        "AuthorizationPolicy",
        json!({
            "action": "DNEY",
            "rules": [
                {"from": [{"source": {"ipBlocks": ["x", 5]}}], "too": []},
                {"to": [{"operation": {"ports": ["http"], "paths": "/"}}]},
            ],
        }),
    );
    object["metadata"]["name"] = json!("Not A Name");
    let paths: Vec<_> = found(&object).into_iter().map(|(path, _)| path).collect();
    for expected in [
        "spec.action",
        "spec.rules[0].from[0].source.ipBlocks[0]",
        "spec.rules[0].from[0].source.ipBlocks[1]",
        "spec.rules[0].too",
        "spec.rules[1].to[0].operation.ports[0]",
        "spec.rules[1].to[0].operation.paths",
        "metadata.name",
    ] {
        assert!(paths.iter().any(|path| path == expected), "{expected} in {paths:#?}");
    }
    assert_eq!(paths.len(), 7, "{paths:#?}");
}

#[test]
fn metadata_is_checked() {
    let with = |metadata: Value| {
        let mut object = policy("PeerAuthentication", json!({}));
        object["metadata"] = metadata;
        found(&object)
    };
    let one = |path: &str, kind| vec![(path.to_owned(), kind)];
    assert_eq!(with(json!({})), one("metadata.name", Required));
    assert_eq!(with(json!({"generateName": "a-"})), []);
    assert_eq!(with(json!({"name": "a", "namespace": "A"})), one("metadata.namespace", Invalid));
    assert_eq!(with(json!({"name": "a", "labels": {"x/y/z": "a"}})), one("metadata.labels[x/y/z]", Invalid));
    assert_eq!(with(json!({"name": "a", "labels": {"x": "a b"}})), one("metadata.labels.x", Invalid));
    assert_eq!(with(json!({"name": "a", "label": {}})), one("metadata.label", Unknown));
    let bare = json!({"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication"});
    assert_eq!(found(&bare), one("metadata.name", Required));
}

#[test]
fn warnings_are_istios() {
    let warned = |kind: &str, namespace: &str, spec: Value| {
        let mut object = policy(kind, spec);
        object["metadata"]["namespace"] = json!(namespace);
        let checked = check(&object).expect("valid");
        warnings(&checked).into_iter().map(|w| w.path).collect::<Vec<_>>()
    };
    let none: [&str; 0] = [];
    let deny = |rule: Value| warned("AuthorizationPolicy", "a", json!({"action": "DENY", "rules": [rule]}));
    assert_eq!(warned("PeerAuthentication", "a", json!({"selector": {}})), ["spec.selector"]);
    let selector = json!({"selector": {"matchLabels": {"a": "b"}}});
    assert_eq!(warned("PeerAuthentication", "istio-system", selector.clone()), ["spec.selector"]);
    assert_eq!(warned("PeerAuthentication", "a", selector.clone()), none);
    assert_eq!(warned("AuthorizationPolicy", "istio-system", selector), none);
    assert_eq!(deny(to(json!({"paths": ["/x"]}))), ["spec.rules[0]"]);
    assert_eq!(deny(to(json!({"paths": ["/x"], "ports": ["80"]}))), none);
    assert_eq!(deny(from(json!({"namespaces": ["x"]}))), none);
    assert_eq!(deny(json!({})), none);
}

#[test]
fn the_canonical_form_checks_again() {
    let object = rule(from(json!({"not_principals": ["a"], "namespaces": null})));
    let canonical = check(&object).expect("valid").to_value();
    assert_eq!(canonical["spec"]["rules"], json!([from(json!({"notPrincipals": ["a"]}))]));
    assert!(check(&canonical).is_ok());
}

/// Any JSON, with the names of real fields so that it reaches deep.
pub(crate) fn arbitrary_json() -> impl proptest::strategy::Strategy<Value = Value> {
    use proptest::prelude::*;
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::from),
        "[a-zA-Z0-9 :#'\"{}.ß-]{0,12}".prop_map(Value::String),
        "(STRICT|DENY|MUTUAL|STATIC|DNS|10\\.0\\.0\\.0/8|/a/\\{\\*\\}|80|\\*)".prop_map(Value::String),
    ];
    let key = "(spec|metadata|name|labels|selector|matchLabels|mtls|mode|portLevelMtls|rules|from|source|to|operation|when|key|values|ports|paths|principals|host|hosts|trafficPolicy|tls|portLevelSettings|port|number|sni|addresses|endpoints|address|resolution|exportTo|workloadSelector|[a-z.\\[\\]]{0,4})";
    leaf.prop_recursive(5, 40, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::Array),
            prop::collection::vec((key, inner), 0..5)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest::proptest! {
    #[test]
    fn arbitrary_json_never_panics(value in arbitrary_json(), spec in arbitrary_json(), metadata in arbitrary_json()) {
        let _ = check(&value);
        for kind in kinds::KINDS.iter().filter(|kind| kind.reason.is_empty()) {
            let object = json!({"apiVersion": kind.api_version(), "kind": kind.kind, "metadata": metadata, "spec": spec});
            if let Ok(object) = check(&object) {
                let _ = warnings(&object);
            }
        }
    }
}
