//! Reasons: what decided, or what came nearest.

use maille_config::istio::Action;

use crate::support::{decide, policy, with_rule};

const FRONTEND: &str = "{from: [{source: {principals: [cluster.local/ns/shop/sa/frontend]}}], \
                        to: [{operation: {methods: [GET], paths: ['/api/*', /health]}}]}";

#[test]
fn the_first_attribute_that_failed_is_named() {
    let policies = [with_rule(Action::Allow, FRONTEND)];
    for (call, reason) in [
        (
            "{peer: cluster.local/ns/shop/sa/frontend, method: POST, path: /api/x}",
            "no ALLOW rule matches; nearest is policy foo/p, rule 0: request.method is \"POST\", expected \"GET\"",
        ),
        (
            "{peer: cluster.local/ns/shop/sa/frontend, path: '/admin?x'}",
            "no ALLOW rule matches; nearest is policy foo/p, rule 0: request.path is \"/admin\", \
             expected one of \"/api/*\", \"/health\"",
        ),
        (
            "{path: /health}",
            "no ALLOW rule matches; nearest is policy foo/p, rule 0: source.principal is nothing (no client certificate), \
             expected \"cluster.local/ns/shop/sa/frontend\"",
        ),
        (
            "{peer: cluster.local/ns/shop/sa/frontend, tcp: true}",
            "no ALLOW rule matches; nearest is policy foo/p, rule 0: request.method is not there on TCP, expected \"GET\"",
        ),
    ] {
        assert_eq!(decide(&policies, call).reason, reason, "{call}");
    }
}

#[test]
fn the_rule_with_fewest_failures_is_the_nearest() {
    let policies = [
        policy(
            "foo/a",
            "rules: [{from: [{source: {namespaces: [x]}}], to: [{operation: {methods: [PUT]}}]}]",
        ),
        policy(
            "foo/b",
            "rules: [{from: [{source: {namespaces: [y]}}], to: [{operation: {methods: [GET]}}]}]",
        ),
    ];
    let reason = decide(&policies, "{peer: td/ns/z/sa/s}").reason;
    assert!(reason.contains("policy foo/b, rule 0: source.namespace is \"z\", expected \"y\""), "{reason}");
}

#[test]
fn other_outcomes_have_reasons_too() {
    let deny = policy("foo/no", "{action: DENY, rules: [{}]}");
    assert_eq!(decide(&[deny], "{}").reason, "DENY policy foo/no, rule 0 matches");
    assert_eq!(
        decide(&[policy("foo/yes", "rules: [{}]")], "{}").reason,
        "ALLOW policy foo/yes, rule 0 matches"
    );
    assert_eq!(decide(&[], "{}").reason, "no DENY rule matches and no ALLOW policy applies");
    let bad = with_rule(Action::Deny, "to: [{operation: {ports: [http]}}]");
    assert_eq!(
        decide(&[bad], "{}").reason,
        "DENY policy foo/p, rule 0 cannot be compiled, so that the policy refuses everything"
    );
    assert_eq!(
        decide(&[policy("foo/none", "{}")], "{}").reason,
        "no ALLOW rule matches: policy foo/none applies and has no rules, which allows nothing"
    );
}

#[test]
fn secrets_and_long_values_stay_out_of_reasons() {
    let rule = "when: [{key: 'request.headers[authorization]', values: [Basic x]}]";
    let reason = decide(&[with_rule(Action::Allow, rule)], "{headers: {authorization: [hunter2]}}").reason;
    assert!(!reason.contains("hunter2") && reason.contains("not shown"), "{reason}");
    let long = format!("{{path: '/{}'}}", "x".repeat(10_000));
    let reason = decide(&[with_rule(Action::Allow, FRONTEND)], &long).reason;
    assert!(reason.len() < 1_000, "{}", reason.len());
    let reason = decide(
        &[with_rule(Action::Allow, "when: [{key: 'request.headers[x-a]', values: [b]}]")],
        "{headers: {x-a: [\"a\\nb\"]}}",
    )
    .reason;
    assert!(reason.contains("\"a\\nb\""), "{reason}");
}
