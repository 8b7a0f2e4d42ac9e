//! Section 12: principals, namespaces, service accounts, trust domains, aliases.

use maille_config::istio::Action;

use crate::support::{check, decide, decide_in, mesh, policy, with_rule};

#[test]
fn section_12_1_principals() {
    for (value, expected) in [
        ("*", true),
        ("*/sa/b", true),
        ("*/ns/a/*", false),
        ("cluster.local/ns/a/*", true),
        ("cluster.local/ns/a*", true),
        ("cluster.local/ns/a/sa/b", true),
        ("spiffe://cluster.local/ns/a/sa/b", false),
        ("cluster.local/ns/A/sa/b", false),
    ] {
        let rule = format!("from: [{{source: {{principals: ['{value}']}}}}]");
        check(&[(&rule, "{peer: cluster.local/ns/a/sa/b}", expected), (&rule, "{}", false)]);
    }
    check(&[(
        "from: [{source: {principals: ['cluster.local/ns/a*']}}]",
        "{peer: cluster.local/ns/ab/sa/b}",
        true,
    )]);
}

#[test]
fn section_12_2_namespaces() {
    for (value, namespace, expected) in [
        ("foo", "foo", true),
        ("foo", "foobar", false),
        ("foo*", "foo", true),
        ("foo*", "foobar", true),
        ("*bar", "foobar", true),
        ("f*r", "foobar", true),
        ("f*r", "foobaz", false),
        ("*", "foo", true),
        // "Anything" crosses slashes: `/ns/foo/sa/` ends in `a/`.
        ("*a", "foo", true),
        ("f.o", "foo", false),
    ] {
        let rule = format!("from: [{{source: {{namespaces: ['{value}']}}}}]");
        let call = format!("{{peer: td/ns/{namespace}/sa/s}}");
        check(&[(&rule, &call, expected), (&rule, "{}", false)]);
    }
}

#[test]
fn section_12_3_service_accounts() {
    let own = policy("istio-system/p", "rules: [{from: [{source: {serviceAccounts: [web]}}]}]");
    assert!(!decide(std::slice::from_ref(&own), "{peer: cluster.local/ns/shop/sa/web}").allowed);
    assert!(decide(&[own], "{peer: cluster.local/ns/istio-system/sa/web}").allowed);
    let rule = "from: [{source: {serviceAccounts: [shop/web]}}]";
    check(&[
        (rule, "{peer: cluster.local/ns/shop/sa/web2}", false),
        (rule, "{peer: other.td/ns/shop/sa/web}", true),
        (rule, "{}", false),
        ("from: [{source: {notServiceAccounts: [shop/web]}}]", "{}", true),
    ]);
}

#[test]
fn sn_13_section_12_4_trust_domains() {
    for (value, domain, expected) in [
        ("prod.*", "prod.eu", true),
        ("prod.*", "preprod.eu", false),
        ("*.eu", "prod.eu", true),
        ("*", "prod.eu", true),
        ("prod.eu", "prod.eu", true),
        ("prod", "prod.eu", false),
        ("p*u", "prod.eu", true),
    ] {
        let rule = format!("from: [{{source: {{trustDomains: ['{value}']}}}}]");
        let call = format!("{{peer: {domain}/ns/a/sa/b}}");
        check(&[(&rule, &call, expected), (&rule, "{}", false)]);
    }
}

#[test]
fn sn_12_sn_13_section_12_5_aliases() {
    let trust = mesh("td-new", &["td-old"]);
    for (value, domains) in [
        ("td-old/ns/a/sa/b", &["td-new", "td-old"][..]),
        ("td-new/ns/a/sa/b", &["td-new", "td-old"]),
        ("cluster.local/ns/a/sa/b", &["td-new", "td-old"]),
        ("other/ns/a/sa/b", &["other"]),
        ("*-old/ns/a/sa/b", &["td-new", "td-old", "x-old"]),
        ("td-*/ns/a/sa/b", &["td-new", "td-old"]),
        ("*/sa/b", &["td-new", "td-old", "cluster.local", "other", "x-old"]),
        ("cluster.local/ns/a/*", &["cluster.local"]),
        ("td-old/ns/a/*", &["td-old"]),
    ] {
        let rule = format!("from: [{{source: {{principals: ['{value}']}}}}]");
        for domain in ["td-new", "td-old", "cluster.local", "other", "x-old"] {
            let call = format!("{{peer: {domain}/ns/a/sa/b}}");
            let allowed = decide_in(&trust, &[with_rule(Action::Allow, &rule)], &call).allowed;
            assert_eq!(allowed, domains.contains(&domain), "{value} {domain}");
        }
    }
    for (value, domains) in [("td-old", &["td-new", "td-old"][..]), ("cluster.local", &["cluster.local"])] {
        let rule = format!("from: [{{source: {{trustDomains: ['{value}']}}}}]");
        for domain in ["td-new", "td-old", "cluster.local"] {
            let call = format!("{{peer: {domain}/ns/a/sa/b}}");
            let allowed = decide_in(&trust, &[with_rule(Action::Allow, &rule)], &call).allowed;
            assert_eq!(allowed, domains.contains(&domain), "{value} {domain}");
        }
    }
}
