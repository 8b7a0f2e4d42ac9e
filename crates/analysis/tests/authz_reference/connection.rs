//! Sections 7, 9, 12 and 13: what is fixed for a connection.

use maille_analysis::authz::Settings;
use maille_core::TrustDomain;
use serde_json::{Value, json};

use super::{all_as_expected, ask, checker, checker_of, decided, from, policy, settings};

#[test]
fn section_9_names_of_servers_and_addresses() {
    all_as_expected(&[
        ("when: [{key: connection.sni, values: [\"*.corp\"]}]", json!({"sni": "a.corp"}), true),
        ("when: [{key: connection.sni, notValues: [\"*.corp\"]}]", json!({}), true),
        ("when: [{key: connection.sni, values: [\"*\"]}]", json!({}), false),
        ("when: [{key: connection.sni, values: [\"*\"]}]", json!({"sni": "x"}), true),
        (
            "when: [{key: destination.ip, values: [10.1.0.0/16]}]",
            json!({"destination_ip": "10.2.2.3"}),
            false,
        ),
        (
            "when: [{key: destination.port, values: [\"80\", \"443\"], notValues: [\"443\"]}]",
            json!({"destination_port": 80}),
            true,
        ),
        (
            "when: [{key: source.principal, values: [cluster.local/ns/a/sa/b]}]",
            from("cluster.local/ns/a/sa/b"),
            true,
        ),
        ("when: [{key: source.namespace, values: [a]}]", from("cluster.local/ns/a/sa/b"), true),
        ("when: [{key: source.serviceAccount, values: [a/b]}]", from("cluster.local/ns/a/sa/b"), true),
        ("when: [{key: source.trustDomain, values: [\"cluster.*\"]}]", from("cluster.local/ns/a/sa/b"), true),
        ("when: [{key: remote.ip, values: [192.0.2.1]}]", json!({"remote_ip": "192.0.2.1"}), true),
    ]);
}

#[test]
fn section_7_sources() {
    let deny = |source: &str| format!("{{action: DENY, rules: [{{from: [{{source: {{{source}}}}}]}}]}}");
    for (source, request, allowed) in [
        ("notNamespaces: [foo]", from("cluster.local/ns/foo/sa/x"), true),
        ("notNamespaces: [foo]", json!({}), false),
        ("notRequestPrincipals: [\"*\"]", json!({}), false),
        ("notRequestPrincipals: [\"*\"]", json!({"jwt": {"iss": "i", "sub": "s"}}), true),
    ] {
        assert_eq!(decided(&deny(source), request).allowed, allowed, "{source}");
    }
    all_as_expected(&[
        ("from: [{source: {serviceAccounts: [client, ops/bot]}}]", from("x.org/ns/ops/sa/bot"), true),
        ("from: [{source: {principals: [\"*\"]}}]", from("x.org/ns/ops/sa/bot"), true),
        ("from: [{source: {principals: [\"*\"]}}]", json!({}), false),
        ("from: [{source: {requestPrincipals: [\"https://idp/*\"]}}]", json!({}), false),
    ]);
}

#[test]
fn section_12_identities() {
    let one = "cluster.local/ns/a/sa/b";
    let source = |field: &str, value: &str| format!("from: [{{source: {{{field}: [\"{value}\"]}}}}]");
    for (field, value, who, expected) in [
        ("principals", "*", one, true),
        ("principals", "*/sa/b", one, true),
        ("principals", "*/ns/a/*", one, false),
        ("principals", "cluster.local/ns/a/*", one, true),
        ("principals", "cluster.local/ns/a*", "cluster.local/ns/ab/sa/b", true),
        ("principals", "cluster.local/ns/a/sa/b", one, true),
        ("principals", "spiffe://cluster.local/ns/a/sa/b", one, false),
        ("namespaces", "foo", "cluster.local/ns/foo/sa/x", true),
        ("namespaces", "foo", "cluster.local/ns/foobar/sa/x", false),
        ("namespaces", "foo*", "cluster.local/ns/foobar/sa/x", true),
        ("namespaces", "*bar", "cluster.local/ns/foobar/sa/x", true),
        ("namespaces", "f*r", "cluster.local/ns/foobar/sa/x", true),
        ("namespaces", "*", one, true),
        ("serviceAccounts", "shop/web", "cluster.local/ns/shop/sa/web2", false),
        ("serviceAccounts", "shop/web", "other.td/ns/shop/sa/web", true),
        ("trustDomains", "prod.*", "prod.eu/ns/a/sa/b", true),
        ("trustDomains", "prod.*", "preprod.eu/ns/a/sa/b", false),
        ("trustDomains", "*.eu", "prod.eu/ns/a/sa/b", true),
        ("trustDomains", "*", one, true),
        ("trustDomains", "prod", "prod.eu/ns/a/sa/b", false),
    ] {
        all_as_expected(&[(&source(field, value), from(who), expected)]);
        // Nobody's identity is never a match.
        all_as_expected(&[(&source(field, value), json!({}), false)]);
    }
    let of_root = policy("istio-system/p", "{rules: [{from: [{source: {serviceAccounts: [web]}}]}]}");
    for (who, allowed) in
        [("cluster.local/ns/shop/sa/web", false), ("cluster.local/ns/istio-system/sa/web", true)]
    {
        assert_eq!(ask(&mut checker(&of_root), "shop", json!({}), from(who)).allowed, allowed, "{who}");
    }
}

/// Section 12.5.
#[test]
fn section_12_trust_domains_and_their_aliases() {
    let domain = |text: &str| TrustDomain::parse(text).expect("valid");
    let aliased =
        || Settings { trust_domain: domain("td-new"), aliases: vec![domain("td-old")], ..settings() };
    for (principal, accepted, refused) in [
        ("td-old/ns/a/sa/b", &["td-new", "td-old"][..], &["cluster.local", "other"][..]),
        ("cluster.local/ns/a/sa/b", &["td-new", "td-old"], &["cluster.local"]),
        ("other/ns/a/sa/b", &["other"], &["td-new", "td-old"]),
        ("*-old/ns/a/sa/b", &["td-new", "td-old", "very-old"], &["other"]),
    ] {
        let rule = format!("{{rules: [{{from: [{{source: {{principals: [\"{principal}\"]}}}}]}}]}}");
        let mut checker = checker_of(&policy("shop/p", &rule), aliased());
        for (domains, expected) in [(accepted, true), (refused, false)] {
            for domain in domains {
                let asked = from(&format!("{domain}/ns/a/sa/b"));
                let answer = ask(&mut checker, "shop", json!({}), asked);
                assert_eq!(answer.allowed, expected, "{principal}, {domain}: {}", answer.reason);
            }
        }
    }
}

#[test]
fn section_13_addresses() {
    let block = |block: &str| format!("from: [{{source: {{ipBlocks: [\"{block}\"]}}}}]");
    for (value, address, expected) in [
        ("10.1.2.3/8", "10.9.9.9", true),
        ("0.0.0.0/0", "192.0.2.1", true),
        ("0.0.0.0/0", "2001:db8::1", false),
        ("1.2.3.4", "::ffff:1.2.3.4", false),
        ("2001:db8::/32", "2001:db8::1", true),
    ] {
        all_as_expected(&[(&block(value), json!({"source_ip": address}), expected)]);
    }
    let remote = |value: &str| format!("from: [{{source: {{remoteIpBlocks: [{value}]}}}}]");
    let forwarded = |lines: Value| json!({"source_ip": "10.0.0.5", "headers": {"x-forwarded-for": lines}});
    all_as_expected(&[
        // The rightmost entry counts, and several lines are one list.
        (&remote("203.0.113.9"), forwarded(json!(["198.51.100.7", "203.0.113.9"])), true),
        (&remote("10.0.0.5"), forwarded(json!("nonsense")), true),
        (&block("10.0.0.5"), forwarded(json!("198.51.100.7, 203.0.113.9")), true),
        (&remote("10.0.0.5"), json!({"source_ip": "10.0.0.5", "protocol": "tcp"}), true),
    ]);
}
