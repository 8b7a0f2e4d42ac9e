//! Sections 2 to 5: which policies apply, what they add up to, and what a rule is made of.

use maille_analysis::authz::Action;
use serde_json::{Value, json};

use super::{all_as_expected, ask, by, checker, decided, from, policy, request};

const GATEWAY: &str = "gateway.networking.k8s.io/gateway-name";
const CLASS: &str = "gateway.networking.k8s.io/gateway-class-name";

/// Whether a policy that refuses everything refuses a call of this workload.
fn applies(name: &str, attachment: &str, namespace: &str, labels: Value) -> bool {
    let policies = policy(name, &format!("{{{attachment}}}"));
    !ask(&mut checker(&policies), namespace, labels, json!({})).allowed
}

#[test]
fn section_2_namespaces_and_selectors() {
    let app_web = "selector: {matchLabels: {app: web}}";
    let both = "selector: {matchLabels: {app: web, v: \"1\"}}";
    for (name, attachment, namespace, labels, expected) in [
        ("foo/p", "", "bar", json!({}), false),
        ("foo/p", "", "foo", json!({}), true),
        ("istio-system/p", "", "bar", json!({}), true),
        ("istio-system/p", "", "istio-system", json!({}), true),
        ("istio-system/p", app_web, "bar", json!({"app": "web", "v": "1"}), true),
        ("istio-system/p", app_web, "bar", json!({"app": "db"}), false),
        ("foo/p", both, "foo", json!({"app": "web"}), false),
        ("foo/p", both, "foo", json!({"app": "web", "v": "1", "x": "y"}), true),
        ("foo/p", "selector: {}", "foo", json!({"app": "db"}), true),
        ("foo/p", "selector: {matchLabels: {}}", "foo", json!({}), true),
        ("foo/p", "selector: {matchLabels: {empty: \"\"}}", "foo", json!({"empty": ""}), true),
        ("foo/p", "selector: {matchLabels: {empty: \"\"}}", "foo", json!({}), false),
    ] {
        assert_eq!(
            applies(name, attachment, namespace, labels.clone()),
            expected,
            "{name} {attachment} {labels}"
        );
    }
}

/// Section 2.3.
#[test]
fn section_2_targets_are_gateways_business() {
    let edge = "targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: edge}]";
    let single = "targetRef: {kind: Gateway, group: gateway.networking.k8s.io, name: edge}";
    let service = "targetRefs: [{kind: Service, group: \"\", name: web}]";
    let class = "targetRefs: [{kind: GatewayClass, group: gateway.networking.k8s.io, name: istio-waypoint}]";
    let gateway = json!({GATEWAY: "edge"});
    let waypoint = json!({GATEWAY: "edge", CLASS: "istio-waypoint"});
    for (name, attachment, labels, expected) in [
        // An ordinary workload: ignored entirely, so that everything is allowed.
        ("foo/p", edge, json!({"app": "web"}), false),
        ("foo/p", single, json!({"app": "web"}), false),
        ("foo/p", service, json!({"app": "web"}), false),
        ("foo/p", edge, gateway.clone(), true),
        ("foo/p", single, gateway.clone(), true),
        ("foo/p", edge, json!({GATEWAY: "other"}), false),
        ("istio-system/p", edge, gateway.clone(), false),
        ("foo/p", "", gateway.clone(), true),
        ("foo/p", "", waypoint.clone(), false),
        ("istio-system/p", class, waypoint.clone(), true),
        ("foo/p", class, waypoint, false),
        ("istio-system/p", class, gateway, false),
    ] {
        assert_eq!(
            applies(name, attachment, "foo", labels.clone()),
            expected,
            "{name} {attachment} {labels}"
        );
    }
}

#[test]
fn section_3_all_policies_of_one_action_are_one_set() {
    let methods = policy("istio-system/get", "{rules: [{to: [{operation: {methods: [GET]}}]}]}")
        + &policy("shop/post", "{rules: [{to: [{operation: {methods: [POST]}}]}]}");
    let admin =
        policy("istio-system/admin", "{action: DENY, rules: [{to: [{operation: {paths: [\"/admin*\"]}}]}]}");
    let all = admin.clone() + &policy("shop/all", "{rules: [{}]}");
    let audit = policy("shop/audit", "{action: AUDIT, rules: [{}]}");
    for (policies, asked, expected) in [
        (&methods, "plaintext GET /", "allow istio-system/get"),
        (&methods, "plaintext POST /", "allow shop/post"),
        (&methods, "plaintext PUT /", "deny none"),
        (&all, "plaintext GET /admin/x", "deny istio-system/admin"),
        (&all, "plaintext GET /", "allow shop/all"),
        (&admin, "plaintext GET /", "allow none"),
        (&methods, "plaintext TCP", "deny none"),
        (&audit, "plaintext GET /", "allow none"),
    ] {
        let answer = ask(&mut checker(policies), "shop", json!({}), request(asked));
        assert_eq!(by(&answer), expected, "{asked}: {}", answer.reason);
    }
}

#[test]
fn section_4_empty_specs_and_rules() {
    for (spec, asked, allowed, action) in [
        ("{}", "a/b GET /", false, Action::None),
        ("{rules: []}", "a/b GET /", false, Action::None),
        ("{rules: [{}]}", "a/b GET /", true, Action::Allow),
        ("{rules: [{}]}", "plaintext TCP", true, Action::Allow),
        ("{rules: [{from: [], to: [], when: []}]}", "plaintext GET /", true, Action::Allow),
        ("{action: DENY, rules: [{}]}", "a/b GET /", false, Action::Deny),
        ("{action: DENY, rules: [{}]}", "plaintext TCP", false, Action::Deny),
        ("{action: AUDIT}", "a/b GET /", true, Action::None),
        ("{action: AUDIT, rules: [{}]}", "a/b GET /", true, Action::None),
        ("{action: CUSTOM, provider: {name: p}, rules: [{}]}", "a/b GET /", false, Action::Custom),
    ] {
        let answer = decided(spec, request(asked));
        assert_eq!((answer.allowed, answer.action), (allowed, action), "{spec} {asked}: {}", answer.reason);
    }
    let two = policy("shop/none", "{}") + &policy("shop/all", "{rules: [{}]}");
    assert!(ask(&mut checker(&two), "shop", json!({}), json!({})).allowed);
    let refused = policy("shop/deny", "{action: DENY, rules: [{}]}") + &policy("shop/all", "{rules: [{}]}");
    assert!(!ask(&mut checker(&refused), "shop", json!({}), json!({})).allowed);
}

#[test]
fn section_5_and_or_and_not() {
    let in_b = |address: &str| json!({"source_principal": "cluster.local/ns/b/sa/x", "source_ip": address});
    all_as_expected(&[
        ("to: [{operation: {paths: [\"/a*\"], notPaths: [\"/a/secret*\"]}}]", json!({"path": "/a/b"}), true),
        (
            "to: [{operation: {paths: [\"/a*\"], notPaths: [\"/a/secret*\"]}}]",
            json!({"path": "/a/secret/1"}),
            false,
        ),
        ("from: [{source: {notPrincipals: [\"cluster.local/ns/a/sa/x\"]}}]", json!({}), true),
        ("when: [{key: \"request.headers[x-t]\", notValues: [v]}]", json!({}), true),
        ("from: [{source: {notRequestPrincipals: [\"*\"]}}]", json!({}), true),
        ("from: [{source: {namespaces: [a]}}, {source: {ipBlocks: [10.0.0.0/8]}}]", in_b("10.1.1.1"), true),
        ("from: [{source: {namespaces: [a], ipBlocks: [10.0.0.0/8]}}]", in_b("10.1.1.1"), false),
        (
            "when: [{key: source.ip, values: [10.0.0.0/8]}, {key: source.ip, values: [10.1.0.0/16]}]",
            json!({"source_ip": "10.2.0.1"}),
            false,
        ),
        (
            "when: [{key: source.ip, values: [10.0.0.0/8]}, {key: source.ip, values: [10.1.0.0/16]}]",
            json!({"source_ip": "10.1.0.1"}),
            true,
        ),
        (
            "from: [{source: {namespaces: [a]}}], to: [{operation: {methods: [GET]}}]",
            json!({"source_principal": "cluster.local/ns/a/sa/x", "method": "PUT"}),
            false,
        ),
        ("from: [{source: {namespaces: [a]}}]", from("cluster.local/ns/a/sa/x"), true),
    ]);
}
