//! Section 22: the pitfalls, by number.

use maille_config::istio::Action;

use crate::support::{beside, check, decide, policy, with_rule};

#[test]
fn section_22_1_missing_attributes() {
    for (positive, negative) in [
        ("from: [{source: {principals: ['*']}}]", "from: [{source: {notPrincipals: ['*']}}]"),
        ("from: [{source: {namespaces: ['*']}}]", "from: [{source: {notNamespaces: ['*']}}]"),
        ("from: [{source: {serviceAccounts: [a/b]}}]", "from: [{source: {notServiceAccounts: [a/b]}}]"),
        ("from: [{source: {trustDomains: ['*']}}]", "from: [{source: {notTrustDomains: ['*']}}]"),
        ("from: [{source: {requestPrincipals: ['*']}}]", "from: [{source: {notRequestPrincipals: ['*']}}]"),
        (
            "when: [{key: 'request.headers[x]', values: ['*']}]",
            "when: [{key: 'request.headers[x]', notValues: ['*']}]",
        ),
        (
            "when: [{key: 'request.auth.claims[x]', values: ['*']}]",
            "when: [{key: 'request.auth.claims[x]', notValues: ['*']}]",
        ),
        ("when: [{key: connection.sni, values: ['*']}]", "when: [{key: connection.sni, notValues: ['*']}]"),
        ("to: [{operation: {paths: ['*']}}]", "to: [{operation: {notPaths: ['*']}}]"),
    ] {
        check(&[(positive, "{path: ''}", false), (negative, "{path: ''}", true)]);
    }
}

#[test]
fn section_22_2_allow_policies_without_usable_rules_deny() {
    let http_only = with_rule(Action::Allow, "to: [{operation: {methods: [GET]}}]");
    assert!(!decide(&[http_only], "{tcp: true}").allowed);
    let unusable = with_rule(Action::Allow, "to: [{operation: {ports: [http]}}]");
    assert!(!decide(&[unusable], "{}").allowed);
    assert!(!decide(&[policy("foo/p", "{}")], "{}").allowed);
}

#[test]
fn section_22_3_hosts_have_ports_and_no_case() {
    let rule = "to: [{operation: {hosts: [Shop.example]}}]";
    check(&[(rule, "{host: sHOP.example}", true), (rule, "{host: 'shop.example:80'}", false)]);
    check(&[
        ("to: [{operation: {methods: [get]}}]", "{method: GET}", false),
        ("to: [{operation: {paths: [/A]}}]", "{path: /a}", false),
        ("when: [{key: 'request.headers[X]', values: [a]}]", "{headers: {x: [A]}}", false),
        ("when: [{key: 'request.headers[X]', values: [a]}]", "{headers: {x: [a]}}", true),
        ("when: [{key: 'request.auth.claims[x]', values: [a]}]", "{claims: {x: A}}", false),
        ("when: [{key: 'request.auth.claims[X]', values: [a]}]", "{claims: {x: a}}", false),
    ]);
}

#[test]
fn section_22_4_repeated_headers_stand_alone() {
    let rule = "when: [{key: 'request.headers[x]', values: [b]}]";
    check(&[(rule, "{headers: {x: [a, b]}}", true), (rule, "{headers: {x: ['a,b']}}", false)]);
    let folded = "when: [{key: 'request.headers[via]', values: [b]}]";
    check(&[(folded, "{headers: {via: [a, b]}}", false)]);
}

#[test]
fn section_22_5_only_headers_are_present_when_empty() {
    check(&[
        ("when: [{key: 'request.headers[x]', values: ['*']}]", "{headers: {x: ['']}}", true),
        ("when: [{key: 'request.auth.claims[x]', values: ['*']}]", "{claims: {x: ''}}", false),
        ("when: [{key: connection.sni, values: ['*']}]", "{sni: ''}", false),
        ("to: [{operation: {hosts: ['*']}}]", "{host: ''}", false),
        ("from: [{source: {requestPrincipals: ['*']}}]", "{claims: {iss: i, sub: ''}}", false),
    ]);
}

#[test]
fn section_22_6_brackets_break_templates() {
    let rule = "to: [{operation: {paths: ['/v1/{**}']}}]";
    check(&[(rule, "{path: '/v1/a'}", true), (rule, "{path: '/v1/a/b[0]'}", false)]);
}

#[test]
fn section_22_7_prefixes_know_no_segments() {
    check(&[
        ("to: [{operation: {paths: ['/admin*']}}]", "{path: /administrator}", true),
        ("from: [{source: {principals: ['cluster.local/ns/a*']}}]", "{peer: cluster.local/ns/ab/sa/s}", true),
    ]);
}

#[test]
fn section_22_8_any_principal_means_any_mtls_peer() {
    let rule = "from: [{source: {principals: ['*']}}]";
    check(&[(rule, "{peer: x.org/ns/a/sa/s}", true), (rule, "{sni: a.corp}", false)]);
}

#[test]
fn section_22_9_namespaces_have_their_own_patterns() {
    check(&[
        ("from: [{source: {namespaces: ['p*d']}}]", "{peer: td/ns/prod/sa/s}", true),
        ("to: [{operation: {paths: ['/p*d']}}]", "{path: /prod}", false),
    ]);
}

#[test]
fn section_22_10_allow_drops_rules_and_deny_drops_fields_on_tcp() {
    let rule = "to: [{operation: {ports: ['80']}}, {operation: {paths: [/x]}}]";
    assert!(!decide(&[with_rule(Action::Allow, rule)], "{port: 80, tcp: true}").allowed);
    assert!(!decide(&[with_rule(Action::Deny, rule)], "{port: 90, tcp: true}").allowed);
    let ported = "to: [{operation: {ports: ['80'], paths: [/x]}}]";
    assert!(decide(&[with_rule(Action::Deny, ported)], "{port: 90, tcp: true}").allowed);
}

#[test]
fn section_22_11_a_bad_provider_concerns_what_its_rules_match() {
    let one =
        policy("foo/a", "{action: CUSTOM, provider: {name: a}, rules: [{to: [{operation: {paths: [/a]}}]}]}");
    let other =
        policy("foo/b", "{action: CUSTOM, provider: {name: b}, rules: [{to: [{operation: {paths: [/b]}}]}]}");
    let policies = [one, other];
    assert!(beside(&policies, "{path: /a}").ask.expect("asked").2.is_some());
    assert_eq!(beside(&policies, "{path: /c}").ask, None);
    assert!(decide(&policies, "{path: /c}").allowed);
}

#[test]
fn section_22_12_dry_runs_do_not_deny_implicitly() {
    let mut only = policy("foo/p", "{}");
    assert!(!decide(std::slice::from_ref(&only), "{}").allowed);
    only.dry_run = true;
    assert!(decide(&[only], "{}").allowed);
}

/// A wrong token never comes here; none is no failure by itself.
#[test]
fn section_22_13_a_missing_token_is_no_failure() {
    assert!(decide(&[policy("foo/p", "rules: [{}]")], "{}").allowed);
}

#[test]
fn section_22_14_ids_count_all_rules() {
    let spec = "rules: [{to: [{operation: {methods: [PUT]}}]}, {when: [{key: 'request.headers[x]', values: [a]}]}, {to: [{operation: {ports: ['80']}}]}]";
    let id = |call: &str| decide(&[policy("foo/p", spec)], call).rule;
    assert_eq!(id("{port: 80}").as_deref(), Some("ns[foo]-policy[p]-rule[2]"));
    // Rules that TCP drops keep their numbers.
    assert_eq!(id("{port: 80, tcp: true}").as_deref(), Some("ns[foo]-policy[p]-rule[2]"));
    assert_eq!(id("{method: PUT, port: 80}").as_deref(), Some("ns[foo]-policy[p]-rule[0]"));
}
