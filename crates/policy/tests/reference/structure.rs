//! Sections 3, 4, 5, 14, 16 and 21: how policies, rules and lists combine.

use maille_config::istio::Action;
use maille_core::TrustDomain;
use maille_policy::{PolicySet, TrustContext};

use crate::support::{check, decide, policy, with_rule};

const ALL: &str = "rules: [{}]";
const GET: &str = "rules: [{to: [{operation: {methods: [GET]}}]}]";
const POST: &str = "rules: [{to: [{operation: {methods: [POST]}}]}]";

#[test]
fn section_3_scopes_are_one_flat_or() {
    let policies = [policy("istio-system/get", GET), policy("foo/post", POST)];
    for (method, allowed) in [("GET", true), ("POST", true), ("PUT", false)] {
        assert_eq!(decide(&policies, &format!("{{method: {method}}}")).allowed, allowed, "{method}");
    }
}

#[test]
fn section_3_deny_comes_before_allow() {
    let deny = "{action: DENY, rules: [{to: [{operation: {paths: ['/admin*']}}]}]}";
    let policies = [policy("istio-system/no-admin", deny), policy("foo/all", ALL)];
    assert!(!decide(&policies, "{path: /admin/x}").allowed);
    assert!(decide(&policies, "{path: /x}").allowed);
    assert!(decide(&[policy("istio-system/no-admin", deny)], "{path: /x}").allowed, "no ALLOW policy");
}

#[test]
fn section_3_audit_changes_nothing() {
    assert!(decide(&[policy("foo/audit", "{action: AUDIT, rules: [{}]}")], "{}").allowed);
    assert!(decide(&[policy("foo/audit", "{action: AUDIT}"), policy("foo/all", ALL)], "{}").allowed);
    assert!(
        !decide(&[policy("foo/audit", "{action: AUDIT, rules: [{}]}"), policy("foo/none", "{}")], "{}")
            .allowed
    );
}

#[test]
fn section_4_empty_specs_and_rules() {
    for (specs, allowed) in [
        (&["{}"][..], false),
        (&["{}", ALL], true),
        (&["rules: []"], false),
        (&[ALL], true),
        (&["action: DENY"], true),
        (&["{action: DENY, rules: []}"], true),
        (&["{action: DENY, rules: [{}]}"], false),
        (&["{action: DENY, rules: [{}]}", ALL], false),
        (&["rules: [{from: [], to: [], when: []}]"], true),
        (&["rules: [{from: [{}]}]"], true),
        (&["rules: [{from: [{source: {}}], to: [{operation: {}}]}]"], true),
        (&["{action: DENY, rules: [{to: [{}]}]}"], false),
    ] {
        let policies: Vec<_> =
            specs.iter().enumerate().map(|(i, s)| policy(&format!("foo/p{i}"), s)).collect();
        for call in ["{}", "{tcp: true}", "{peer: cluster.local/ns/a/sa/b}"] {
            assert_eq!(decide(&policies, call).allowed, allowed, "{specs:?} {call}");
        }
    }
}

#[test]
fn section_5_and_or_not() {
    check(&[
        ("to: [{operation: {paths: ['/a*'], notPaths: ['/a/secret*']}}]", "{path: /a/b}", true),
        ("to: [{operation: {paths: ['/a*'], notPaths: ['/a/secret*']}}]", "{path: /a/secret/1}", false),
        ("from: [{source: {notPrincipals: [cluster.local/ns/a/sa/x]}}]", "{}", true),
        ("when: [{key: 'request.headers[x-t]', notValues: [v]}]", "{}", true),
        (
            "from: [{source: {namespaces: [a]}}, {source: {ipBlocks: [10.0.0.0/8]}}]",
            "{peer: cluster.local/ns/b/sa/x, ip: 10.1.1.1}",
            true,
        ),
        (
            "from: [{source: {namespaces: [a], ipBlocks: [10.0.0.0/8]}}]",
            "{peer: cluster.local/ns/b/sa/x, ip: 10.1.1.1}",
            false,
        ),
        (
            "when: [{key: source.ip, values: [10.0.0.0/8]}, {key: source.ip, values: [10.1.0.0/16]}]",
            "{ip: 10.2.0.1}",
            false,
        ),
        (
            "when: [{key: source.ip, values: [10.0.0.0/8]}, {key: source.ip, values: [10.1.0.0/16]}]",
            "{ip: 10.1.0.1}",
            true,
        ),
    ]);
}

#[test]
fn section_14_dry_run_is_invisible() {
    let dry = |name, spec| maille_policy::Authorization { dry_run: true, ..policy(name, spec) };
    assert!(decide(&[dry("foo/deny", "{action: DENY, rules: [{}]}")], "{}").allowed);
    assert!(decide(&[dry("foo/only", "{}")], "{}").allowed);
    assert!(!decide(&[dry("foo/get", GET), policy("foo/post", POST)], "{method: GET}").allowed);
}

#[test]
fn section_16_ids_are_those_of_the_access_log() {
    let spec = "{action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}, {to: [{operation: {methods: [POST]}}]}]}";
    let outcome = decide(&[policy("foo/no-post", spec)], "{method: POST}");
    assert_eq!(outcome.rule.as_deref(), Some("ns[foo]-policy[no-post]-rule[1]"));
}

#[test]
fn section_16_details_name_the_rule_that_denied() {
    let deny = policy("foo/no-post", "{action: DENY, rules: [{}, {to: [{operation: {methods: [POST]}}]}]}");
    for (policies, expected) in [
        (vec![deny], "rbac_access_denied_matched_policy[ns[foo]-policy[no-post]-rule[0]]"),
        (vec![policy("foo/get", POST)], "rbac_access_denied_matched_policy[none]"),
        (vec![policy("foo/none", "{}")], "rbac_access_denied_matched_policy[none]"),
    ] {
        for call in ["{method: GET}", "{method: GET, tcp: true}"] {
            assert_eq!(decide(&policies, call).details, expected, "{call}");
        }
    }
}

#[test]
fn section_16_the_smallest_id_in_byte_order_is_reported() {
    let rules = ["{to: [{operation: {methods: [GET]}}]}"; 11].join(", ");
    let mut late = policy("foo/p", &format!("{{action: DENY, rules: [{rules}]}}"));
    late.spec.rules[0].to[0].operation.as_mut().expect("there").methods = vec!["PUT".to_owned()];
    assert_eq!(decide(&[late.clone()], "{}").rule.as_deref(), Some("ns[foo]-policy[p]-rule[10]"));
    let policies = [
        late,
        policy("foo/a", "{action: DENY, rules: [{}]}"),
        policy("bar/z", "{action: DENY, rules: [{}]}"),
    ];
    assert_eq!(decide(&policies, "{}").rule.as_deref(), Some("ns[bar]-policy[z]-rule[0]"));
    // Equal conditions and unequal kinds of them alike.
    let mixed = [policy("foo/b", "rules: [{}]"), policy("foo/a", GET), policy("foo/c", GET)];
    assert_eq!(decide(&mixed, "{}").rule.as_deref(), Some("ns[foo]-policy[a]-rule[0]"));
}

#[test]
fn section_21_a_mesh_and_namespace_policies_together() {
    let policies = [
        policy("istio-system/base", "rules: [{from: [{source: {namespaces: [shop]}}]}]"),
        policy(
            "shop/ext",
            "rules: [{from: [{source: {principals: [cluster.local/ns/edge/sa/gw]}}], \
             to: [{operation: {paths: ['/public/{**}']}}]}]",
        ),
        policy(
            "shop/no-debug",
            "{action: DENY, rules: [{from: [{source: {notPrincipals: ['cluster.local/ns/ops/sa/*']}}], \
             to: [{operation: {paths: ['/debug*']}}]}]}",
        ),
    ];
    let (base, ext, no_debug) = (
        Some("ns[istio-system]-policy[base]-rule[0]"),
        Some("ns[shop]-policy[ext]-rule[0]"),
        Some("ns[shop]-policy[no-debug]-rule[0]"),
    );
    for (call, allowed, rule) in [
        ("{peer: cluster.local/ns/shop/sa/x, path: /any}", true, base),
        ("{peer: cluster.local/ns/edge/sa/gw, path: /public/a/b}", true, ext),
        ("{peer: cluster.local/ns/edge/sa/gw, path: /public}", false, None),
        ("{peer: cluster.local/ns/shop/sa/x, path: /debug/1}", false, no_debug),
        ("{peer: cluster.local/ns/ops/sa/p, path: /debug}", false, None),
        ("{path: /debug}", false, no_debug),
        ("{peer: cluster.local/ns/shop/sa/x, tcp: true}", false, no_debug),
        ("{peer: cluster.local/ns/ops/sa/p, tcp: true}", false, None),
    ] {
        let outcome = decide(&policies, call);
        assert_eq!((outcome.allowed, outcome.rule.as_deref()), (allowed, rule), "{call}");
    }
}

#[test]
fn section_21_b_deny_all_with_a_probe_port() {
    let policies = [
        policy("shop/deny-all", "{}"),
        policy("shop/probe", "rules: [{to: [{operation: {ports: ['15021']}}]}]"),
    ];
    for (call, allowed) in [
        ("{port: 15021}", true),
        ("{port: 15021, tcp: true}", true),
        ("{port: 80}", false),
        ("{port: 80, tcp: true}", false),
    ] {
        assert_eq!(decide(&policies, call).allowed, allowed, "{call}");
        assert!(!decide(&policies[..1], call).allowed, "{call}");
    }
}

#[test]
fn section_21_c_an_http_only_deny_refuses_all_tcp() {
    let policies =
        [policy("istio-system/mesh", "{action: DENY, rules: [{to: [{operation: {methods: [DELETE]}}]}]}")];
    assert!(!decide(&policies, "{tcp: true}").allowed);
    assert!(decide(&policies, "{method: GET}").allowed);
}

#[test]
fn section_21_d_a_dry_run_of_deny_all() {
    let mut only = policy("shop/p1", "{}");
    only.dry_run = true;
    assert!(decide(std::slice::from_ref(&only), "{}").allowed);
    only.dry_run = false;
    assert!(!decide(&[only], "{}").allowed);
}

#[test]
fn section_21_e_values_and_not_values() {
    let rule = "when: [{key: source.ip, values: [10.0.0.0/8], notValues: [10.1.0.0/16]}]";
    check(&[
        (rule, "{ip: 10.2.0.1}", true),
        (rule, "{ip: 10.1.0.1}", false),
        (rule, "{ip: 192.0.2.1}", false),
    ]);
}

/// What cannot be compiled refuses and says so.
#[test]
fn uncompilable_policies_refuse() {
    let trust = TrustContext {
        trust_domain: TrustDomain::parse("cluster.local").expect("valid"),
        aliases: Vec::new(),
        root_namespace: "istio-system".to_owned(),
    };
    for (bad, field) in [
        ("when: [{key: destination.name, values: [x]}]", "spec.rules[0].when[0].key"),
        ("when: [{key: 'request.headers[]', values: [x]}]", "spec.rules[0].when[0].key"),
        ("when: [{key: source.ip}]", "spec.rules[0].when[0].values"),
        ("to: [{operation: {ports: [http]}}]", "spec.rules[0].to[0].operation.ports"),
        ("to: [{operation: {ports: ['65536']}}]", "spec.rules[0].to[0].operation.ports"),
        ("to: [{operation: {paths: ['/a/{x}']}}]", "spec.rules[0].to[0].operation.paths"),
        ("to: [{operation: {hosts: ['']}}]", "spec.rules[0].to[0].operation.hosts"),
        ("from: [{source: {ipBlocks: ['1.2.3']}}]", "spec.rules[0].from[0].source.ipBlocks"),
        ("from: [{source: {serviceAccounts: ['a/b/c']}}]", "spec.rules[0].from[0].source.serviceAccounts"),
        ("from: [{source: {trustDomains: ['a/b']}}]", "spec.rules[0].from[0].source.trustDomains"),
        ("from: [{source: {requestPrincipals: ['']}}]", "spec.rules[0].from[0].source.requestPrincipals"),
        ("when: [{key: 'request.auth.claims[]', values: [x]}]", "spec.rules[0].when[0].key"),
        ("when: [{key: request.auth.claims, values: [x]}]", "spec.rules[0].when[0].key"),
        ("when: [{key: 'request.auth.claims[a]', values: ['']}]", "spec.rules[0].when[0].values"),
        ("when: [{key: 'experimental.envoy.filters.a[b]', values: [x]}]", "spec.rules[0].when[0].key"),
    ] {
        for (action, good) in [(Action::Allow, "{}"), (Action::Deny, "{to: [{operation: {methods: [PUT]}}]}")]
        {
            let mut policy = with_rule(action, bad);
            policy.spec.rules.push(serde_saphyr::from_str(good).expect("a rule"));
            let (_, problems) = PolicySet::compile(std::slice::from_ref(&policy), &trust);
            assert_eq!(problems.iter().map(|p| p.field.as_str()).collect::<Vec<_>>(), [field], "{bad}");
            for call in ["{}", "{tcp: true}"] {
                assert!(!decide(std::slice::from_ref(&policy), call).allowed, "{action:?} {bad} {call}");
            }
        }
    }
}
