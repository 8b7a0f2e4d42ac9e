//! Section 20: request identities and claims.

use maille_config::istio::Action;

use crate::support::{check, decide, policy, with_rule};

/// Every row of the table, and its neighbours.
#[test]
fn section_20_request_principals() {
    for (pattern, issuer, subject, expected) in [
        ("*", "any", "one", true),
        ("*", "", "one", false),
        ("*", "any", "", false),
        ("https://i/s", "https://i", "s", true),
        ("https://i/s", "https://i", "s2", false),
        ("https://i/s", "https://x", "s", false),
        ("https://i/*", "https://i", "anybody", true),
        ("https://i/*", "https://i", "", false),
        ("https://i/*", "https://ii", "s", false),
        ("https://i/p*", "https://i", "p1", true),
        ("https://i/p*", "https://i", "q1", false),
        ("*/s", "any", "s", true),
        ("*/s", "", "s", false),
        ("*/s", "any", "xs", false),
        ("*x/s", "abcx", "s", true),
        ("*x/s", "x", "s", true),
        ("*x/s", "xa", "s", false),
        ("*s", "any", "abs", true),
        ("*s", "", "s", false),
        ("*s", "s", "a", false),
        ("p*", "pab", "any", true),
        ("p*", "pab", "", false),
        ("p*", "ap", "p", false),
        ("abc", "abc", "x", false),
        ("abc", "abc", "", true),
        ("*/*", "any", "x", false),
        ("*/*", "any", "*", true),
        ("https://idp*", "https://idp", "u", false),
        ("https://idp*", "https:/", "idp-u", true),
        // The last slash splits: a subject with a slash is never meant by name.
        ("i/a/b", "i/a", "b", true),
        ("i/a/b", "i", "a/b", false),
        ("*b", "i", "a/b", true),
    ] {
        let call = format!("{{claims: {{iss: '{issuer}', sub: '{subject}'}}}}");
        for rule in [
            format!("from: [{{source: {{requestPrincipals: ['{pattern}']}}}}]"),
            format!("when: [{{key: request.auth.principal, values: ['{pattern}']}}]"),
        ] {
            check(&[(&rule, &call, expected)]);
        }
        let not = format!("from: [{{source: {{notRequestPrincipals: ['{pattern}']}}}}]");
        check(&[(&not, &call, !expected), (&not, "{}", true)]);
    }
}

#[test]
fn section_20_principals_need_issuer_and_subject() {
    let rule = "from: [{source: {requestPrincipals: ['*']}}]";
    check(&[
        (rule, "{claims: {iss: i, sub: s}}", true),
        (rule, "{claims: {iss: i}}", false),
        (rule, "{claims: {sub: s}}", false),
        (rule, "{claims: {iss: 1, sub: s}}", false),
        (rule, "{claims: {iss: [i], sub: s}}", false),
        (rule, "{}", false),
        (
            "from: [{source: {requestPrincipals: ['https://idp.example/*']}}]",
            "{claims: {iss: 'https://idp.example', sub: u}}",
            true,
        ),
        ("from: [{source: {requestPrincipals: [a/b, c/d]}}]", "{claims: {iss: c, sub: d}}", true),
        (
            "from: [{source: {requestPrincipals: ['a/*'], notRequestPrincipals: [a/b]}}]",
            "{claims: {iss: a, sub: b}}",
            false,
        ),
        (
            "from: [{source: {requestPrincipals: ['a/*'], notRequestPrincipals: [a/b]}}]",
            "{claims: {iss: a, sub: c}}",
            true,
        ),
    ]);
}

#[test]
fn section_20_claims() {
    let groups = "when: [{key: 'request.auth.claims[groups]', values: [dev]}]";
    check(&[
        (groups, "{claims: {groups: [ops, dev]}}", true),
        (groups, "{claims: {groups: dev}}", true),
        (groups, "{claims: {groups: [ops]}}", false),
        (groups, "{claims: {groups: [[dev]]}}", false),
        (groups, "{claims: {groups: {dev: dev}}}", false),
        (groups, "{claims: {other: dev}}", false),
        (groups, "{}", false),
        (
            "when: [{key: 'request.auth.claims[groups]', notValues: [ops]}]",
            "{claims: {groups: [ops, dev]}}",
            false,
        ),
        ("when: [{key: 'request.auth.claims[groups]', notValues: [ops]}]", "{claims: {groups: [dev]}}", true),
        ("when: [{key: 'request.auth.claims[groups]', notValues: [ops]}]", "{}", true),
        (
            "when: [{key: 'request.auth.claims[groups]', values: ['d*']}]",
            "{claims: {groups: [ops, dev]}}",
            true,
        ),
        (
            "when: [{key: 'request.auth.claims[groups]', values: ['*v']}]",
            "{claims: {groups: [ops, dev]}}",
            true,
        ),
        (
            "when: [{key: 'request.auth.claims[groups]', values: ['D*']}]",
            "{claims: {groups: [ops, dev]}}",
            false,
        ),
        ("when: [{key: 'request.auth.claims[admin]', values: ['true']}]", "{claims: {admin: true}}", false),
        ("when: [{key: 'request.auth.claims[admin]', values: ['true']}]", "{claims: {admin: 'true'}}", true),
        ("when: [{key: 'request.auth.claims[level]', values: ['7']}]", "{claims: {level: 7}}", false),
        ("when: [{key: 'request.auth.claims[level]', values: ['*']}]", "{claims: {level: 7}}", false),
        ("when: [{key: 'request.auth.claims[level]', notValues: ['*']}]", "{claims: {level: 7}}", true),
        ("when: [{key: 'request.auth.claims[iss]', values: [i]}]", "{claims: {iss: i}}", true),
        ("when: [{key: 'request.auth.claims[sub]', values: ['u*']}]", "{claims: {sub: u1}}", true),
    ]);
}

#[test]
fn section_20_words_of_scope_and_permission() {
    for claim in ["scope", "permission", "tags"] {
        let rule =
            |value: &str| format!("when: [{{key: 'request.auth.claims[{claim}]', values: ['{value}']}}]");
        let call = format!("{{claims: {{{claim}: 'write read'}}}}");
        check(&[
            (&rule("read"), &call, true),
            (&rule("write"), &call, true),
            (&rule("write read"), &call, false),
            (&rule("wr"), &call, false),
            (&rule("wr*"), &call, true),
        ]);
    }
    let other = "when: [{key: 'request.auth.claims[groups]', values: ['a b']}]";
    check(&[(other, "{claims: {groups: a b}}", true), (other, "{claims: {groups: [a, b]}}", false)]);
}

#[test]
fn section_20_presence_is_a_text_that_is_not_empty() {
    let rule = "when: [{key: 'request.auth.claims[a]', values: ['*']}]";
    check(&[
        (rule, "{claims: {a: x}}", true),
        (rule, "{claims: {a: ''}}", false),
        (rule, "{claims: {a: []}}", false),
        (rule, "{claims: {a: ['']}}", false),
        (rule, "{claims: {a: ['', x]}}", true),
        (rule, "{claims: {a: [1]}}", false),
    ]);
}

#[test]
fn section_20_audiences_and_presenter() {
    let audience = "when: [{key: request.auth.audiences, values: [shop]}]";
    let presenter = "when: [{key: request.auth.presenter, values: ['app-*']}]";
    check(&[
        (audience, "{claims: {aud: shop}}", true),
        (audience, "{claims: {aud: [x, shop]}}", true),
        (audience, "{claims: {aud: shop2}}", false),
        (audience, "{}", false),
        (presenter, "{claims: {azp: app-1}}", true),
        (presenter, "{claims: {aud: app-1}}", false),
    ]);
}

#[test]
fn section_20_nested_claims_and_names_with_dots() {
    let nested = "when: [{key: 'request.auth.claims[realm][roles]', values: [admin]}]";
    check(&[
        (nested, "{claims: {realm: {roles: [user, admin]}}}", true),
        (nested, "{claims: {realm: {roles: admin}}}", true),
        (nested, "{claims: {realm: [admin]}}", false),
        (nested, "{claims: {roles: admin}}", false),
        (nested, "{claims: {'realm.roles': admin}}", false),
        ("when: [{key: 'request.auth.claims[a.b]', values: [x]}]", "{claims: {a.b: x}}", true),
        ("when: [{key: 'request.auth.claims[a.b]', values: [x]}]", "{claims: {a: {b: x}}}", false),
        ("when: [{key: 'request.auth.claims[a[b]]', values: [x]}]", "{claims: {'a[b]': x}}", true),
        // Words are split at the top only.
        ("when: [{key: 'request.auth.claims[a][scope]', values: [x]}]", "{claims: {a: {scope: x y}}}", false),
    ]);
}

/// Section 19's example: a token is demanded by policy alone.
#[test]
fn section_20_a_policy_demands_a_token() {
    let deny =
        [policy("foo/p", "{action: DENY, rules: [{from: [{source: {notRequestPrincipals: ['*']}}]}]}")];
    assert!(!decide(&deny, "{}").allowed);
    assert!(decide(&deny, "{claims: {iss: i, sub: s}}").allowed);
    let allow = [with_rule(Action::Allow, "from: [{source: {requestPrincipals: ['https://idp/*']}}]")];
    assert!(!decide(&allow, "{}").allowed);
    assert!(decide(&allow, "{claims: {iss: 'https://idp', sub: s}}").allowed);
}
