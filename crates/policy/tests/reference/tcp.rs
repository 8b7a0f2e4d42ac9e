//! Section 11: HTTP-only fields on TCP.

use maille_config::istio::Action;

use crate::support::{beside, decide, policy, with_rule};

/// Rule, call, ALLOW lets it through, DENY lets it through.
const ROWS: &[(&str, &str, bool, bool)] = &[
    ("to: [{operation: {methods: [GET]}}]", "{port: 80, tcp: true}", false, false),
    ("to: [{operation: {ports: ['8080'], methods: [GET]}}]", "{port: 80, tcp: true}", false, true),
    ("to: [{operation: {ports: ['8080'], methods: [GET]}}]", "{port: 8080, tcp: true}", false, false),
    (
        "{from: [{source: {namespaces: [a]}}], to: [{operation: {notPaths: [/x]}}]}",
        "{peer: td/ns/a/sa/s, tcp: true}",
        false,
        false,
    ),
    (
        "{from: [{source: {namespaces: [a]}}], to: [{operation: {notPaths: [/x]}}]}",
        "{peer: td/ns/b/sa/s, tcp: true}",
        false,
        true,
    ),
    ("to: [{operation: {ports: ['80']}}, {operation: {paths: [/x]}}]", "{port: 80, tcp: true}", false, false),
    ("to: [{operation: {ports: ['80']}}, {operation: {paths: [/x]}}]", "{port: 90, tcp: true}", false, false),
    (
        "{from: [{source: {namespaces: [a]}}], to: [{operation: {ports: ['80']}}]}",
        "{peer: td/ns/a/sa/s, port: 80, tcp: true}",
        true,
        false,
    ),
    ("when: [{key: 'request.headers[x]', values: ['1']}]", "{tcp: true}", false, false),
    ("when: [{key: 'request.headers[x]', notValues: ['1']}]", "{tcp: true}", false, false),
    ("to: [{operation: {notHosts: [x]}}]", "{tcp: true}", false, false),
    ("when: [{key: remote.ip, values: [192.0.2.1]}]", "{tcp: true}", true, false),
    ("when: [{key: connection.sni, values: [x]}]", "{sni: x, tcp: true}", true, false),
    ("from: [{source: {remoteIpBlocks: [10.0.0.0/8]}}]", "{tcp: true}", false, true),
    (
        "from: [{source: {requestPrincipals: ['*'], namespaces: [a]}}]",
        "{peer: td/ns/b/sa/s, tcp: true}",
        false,
        true,
    ),
    (
        "from: [{source: {requestPrincipals: ['*'], namespaces: [a]}}]",
        "{peer: td/ns/a/sa/s, tcp: true}",
        false,
        false,
    ),
    ("from: [{source: {requestPrincipals: ['*']}}]", "{tcp: true}", false, false),
    ("from: [{source: {notRequestPrincipals: ['*']}}]", "{tcp: true}", false, false),
    ("when: [{key: request.auth.principal, values: [i/s]}]", "{tcp: true}", false, false),
    ("when: [{key: request.auth.audiences, notValues: [x]}]", "{tcp: true}", false, false),
    ("when: [{key: request.auth.presenter, values: [x]}]", "{tcp: true}", false, false),
    ("when: [{key: 'request.auth.claims[a]', values: [x]}]", "{tcp: true}", false, false),
    (
        "{to: [{operation: {ports: ['80']}}], when: [{key: 'request.auth.claims[a]', values: [x]}]}",
        "{port: 90, tcp: true}",
        false,
        true,
    ),
    (
        "from: [{source: {namespaces: [a]}}, {source: {requestPrincipals: ['*']}}]",
        "{tcp: true}",
        false,
        false,
    ),
    ("when: [{key: source.ip, values: [192.0.2.1]}]", "{tcp: true}", true, false),
    ("when: [{key: destination.ip, values: [10.0.0.0/8]}]", "{tcp: true}", true, false),
    ("when: [{key: destination.port, values: ['80']}]", "{port: 80, tcp: true}", true, false),
    ("when: [{key: source.principal, notValues: ['*']}]", "{tcp: true}", true, false),
];

#[test]
fn section_11_allow_rules_are_dropped_and_deny_rules_widened() {
    for (rule, call, allow, deny) in ROWS {
        assert_eq!(decide(&[with_rule(Action::Allow, rule)], call).allowed, *allow, "ALLOW {rule} {call}");
        assert_eq!(decide(&[with_rule(Action::Deny, rule)], call).allowed, *deny, "DENY {rule} {call}");
    }
}

/// AUDIT, CUSTOM and both dry runs, by the same rows.
#[test]
fn section_11_other_actions_widen_as_deny_does() {
    for (rule, call, allow, deny) in ROWS {
        let marked = beside(&[with_rule(Action::Audit, rule)], call).audit.is_some();
        assert_eq!(marked, !deny, "AUDIT {rule} {call}");
        let asked = beside(&[with_rule(Action::Custom, rule)], call).ask.is_some();
        assert_eq!(asked, !deny, "CUSTOM {rule} {call}");
        let dry = |action| maille_policy::Authorization { dry_run: true, ..with_rule(action, rule) };
        let beside = beside(&[dry(Action::Allow), dry(Action::Deny)], call);
        assert_eq!(beside.shadow_allow.map(|s| s.0), Some(*allow), "dry run of ALLOW {rule} {call}");
        assert_eq!(beside.shadow_deny.map(|s| s.0), Some(*deny), "dry run of DENY {rule} {call}");
    }
}

#[test]
fn section_11_rules_are_independent() {
    let both = policy(
        "foo/p",
        "rules: [{to: [{operation: {methods: [GET]}}]}, {to: [{operation: {ports: ['80']}}]}]",
    );
    let outcome = decide(std::slice::from_ref(&both), "{port: 80, tcp: true}");
    assert_eq!(outcome.rule.as_deref(), Some("ns[foo]-policy[p]-rule[1]"));
    assert!(!decide(&[both], "{port: 81, tcp: true}").allowed);
}

#[test]
fn section_11_http_ports_drop_nothing() {
    let rule = "to: [{operation: {ports: ['80'], methods: [GET]}}]";
    assert!(decide(&[with_rule(Action::Deny, rule)], "{port: 80, method: PUT}").allowed);
    assert!(!decide(&[with_rule(Action::Allow, rule)], "{port: 80, method: PUT}").allowed);
}
