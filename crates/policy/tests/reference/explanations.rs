//! Reasons: what decided, or what came nearest.

use std::sync::Arc;

use maille_config::istio::Action;
use maille_policy::{ConnectionAttributes, HeaderLookup, PolicySet, RequestAttributes};

use crate::support::{decide, mesh, policy, with_rule};

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
fn policies_that_allow_nothing_are_named() {
    let unusable = with_rule(Action::Allow, "to: [{operation: {ports: [http]}}]");
    let empty: Vec<_> = (0..5).map(|i| policy(&format!("foo/e{i}"), "{}")).collect();
    assert_eq!(
        decide(&empty[..2], "{}").reason,
        "no ALLOW rule matches: policies foo/e0, foo/e1 apply and have no rules, which allows nothing"
    );
    assert_eq!(
        decide(&empty, "{}").reason,
        "no ALLOW rule matches: policies foo/e0, foo/e1, foo/e2 and 2 more apply and have no rules, which allows \
         nothing"
    );
    assert_eq!(
        decide(std::slice::from_ref(&unusable), "{}").reason,
        "no ALLOW rule matches: policy foo/p applies and has a rule that cannot be compiled, so that it allows nothing"
    );
    assert_eq!(
        decide(&[unusable, empty[0].clone()], "{}").reason,
        "no ALLOW rule matches: policy foo/e0 applies and has no rules, which allows nothing; policy foo/p applies and \
         has a rule that cannot be compiled, so that it allows nothing"
    );
}

#[test]
fn tokens_are_named_and_their_content_is_not_shown() {
    let token = "{claims: {iss: 'https://idp', sub: u1, aud: [shop, cart], azp: app, groups: [secret-group], mail: a@b, age: 7}}";
    for (rule, call, reason) in [
        (
            "from: [{source: {requestPrincipals: ['https://idp/u2']}}]",
            token,
            "request.auth.principal is \"https://idp/u1\", expected \"https://idp/u2\"",
        ),
        (
            "from: [{source: {requestPrincipals: ['*']}}]",
            "{}",
            "request.auth.principal is nothing (no verified token), expected \"*\"",
        ),
        (
            "from: [{source: {requestPrincipals: ['*']}}]",
            "{claims: {iss: i}}",
            "request.auth.principal is nothing (the token has no issuer or no subject), expected \"*\"",
        ),
        (
            "when: [{key: request.auth.audiences, values: [bank]}]",
            token,
            "request.auth.audiences is \"shop\", \"cart\", expected \"bank\"",
        ),
        (
            "when: [{key: 'request.auth.claims[sub]', values: [u2]}]",
            token,
            "request.auth.claims[sub] is \"u1\", expected \"u2\"",
        ),
        (
            "when: [{key: request.auth.presenter, values: [x]}]",
            token,
            "request.auth.presenter is there, but different (not shown), expected \"x\"",
        ),
        (
            "when: [{key: 'request.auth.claims[groups]', values: [dev, ops]}]",
            token,
            "request.auth.claims[groups] is there, but different (not shown), expected one of \"dev\", \"ops\"",
        ),
        (
            "when: [{key: 'request.auth.claims[mail]', notValues: [a@b]}]",
            token,
            "request.auth.claims[mail] is there (not shown), expected not \"a@b\"",
        ),
        (
            "when: [{key: 'request.auth.claims[age]', values: ['7']}]",
            token,
            "request.auth.claims[age] is there, but neither a text nor a list of texts, expected \"7\"",
        ),
        (
            "when: [{key: 'request.auth.claims[realm][roles]', values: [x]}]",
            token,
            "request.auth.claims[realm][roles] is nothing, expected \"x\"",
        ),
        (
            "when: [{key: 'request.auth.claims[a]', values: [x]}]",
            "{tcp: true}",
            "request.auth.claims[a] is not there on TCP, expected \"x\"",
        ),
    ] {
        assert_eq!(
            decide(&[with_rule(Action::Allow, rule)], call).reason,
            format!("no ALLOW rule matches; nearest is policy foo/p, rule 0: {reason}"),
            "{rule}"
        );
    }
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

/// As many lines of one header as a caller cares to send, and how many of them were looked at.
#[derive(Default)]
struct Lines(std::cell::Cell<usize>);

const LINES: usize = 5_000;

impl HeaderLookup for Lines {
    fn values<'h>(&'h self, _name: &str, visit: &mut dyn FnMut(&'h [u8])) {
        (0..LINES).for_each(|_| visit(b"x"));
        self.0.set(self.0.get() + LINES);
    }
}

/// A caller can provoke the search at will, with as many values as fit into a request.
#[test]
fn the_search_for_the_nearest_is_bounded_by_values_too() {
    let policies: Vec<_> = (0..200)
        .map(|i| {
            let spec = format!("rules: [{{when: [{{key: 'request.headers[x-{i}]', values: [y]}}]}}]");
            policy(&format!("foo/p{i}"), &spec)
        })
        .collect();
    let (set, _) = PolicySet::compile(&policies, &mesh("cluster.local", &[]));
    let address = std::net::IpAddr::from([192, 0, 2, 1]);
    let connection = Arc::new(set).on_connection(&ConnectionAttributes {
        identity: None,
        source_ip: address,
        remote_ip: address,
        destination_ip: address,
        destination_port: 80,
        sni: None,
    });
    let headers = Lines::default();
    let request = RequestAttributes {
        method: "GET",
        host: "shop.example",
        path: "/",
        remote_ip: None,
        headers: &headers,
        claims: None,
    };
    let decision = connection.decide_http(&request);
    let deciding = headers.0.replace(0);
    let reason = connection.explain(Some(&request), &decision);
    assert!(reason.contains("nearest is policy foo/p0, rule 0: request.headers[x-0]"), "{reason}");
    let searching = headers.0.get();
    assert!(searching <= deciding + 8 * LINES, "{searching} values for a reason, {deciding} to decide");
}
