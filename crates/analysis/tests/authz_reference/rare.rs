//! Sections 14 and 15, and AUDIT: what decides nothing, and what others decide.

use maille_analysis::authz::{Action, Answer, Provider, Providers, RuleName, Settings};
use serde_json::{Value, json};

use super::{ask, checker, checker_of, policy, request, settings};

fn dry_run(name: &str, spec: &str) -> String {
    policy(name, spec).replacen("}\nspec", ", annotations: {istio.io/dry-run: \"true\"}}\nspec", 1)
}

fn decided(policies: &str, asked: &str) -> Answer {
    ask(&mut checker(policies), "shop", json!({}), request(asked))
}

const GET: &str = "{rules: [{to: [{operation: {methods: [GET]}}]}]}";
const POST: &str = "{rules: [{to: [{operation: {methods: [POST]}}]}]}";

/// (policies, request, decision, what it would be if the dry runs counted, a part of the explanation).
#[test]
fn section_14_a_dry_run_decides_nothing_and_says_what_it_would() {
    let deny_all = dry_run("shop/d", "{action: DENY, rules: [{}]}");
    let nothing = dry_run("shop/p1", "{}");
    let mixed = dry_run("shop/get", GET) + &policy("shop/post", POST);
    let narrower = dry_run("shop/no-put", "{action: DENY, rules: [{to: [{operation: {methods: [PUT]}}]}]}");
    for (policies, asked, allowed, shadow, said) in [
        (&deny_all, "plaintext GET /", true, false, "dry-run shop/d rule 0 (DENY) would refuse it"),
        (&nothing, "plaintext GET /", true, false, "none of their rules matches"),
        (&mixed, "plaintext GET /", false, true, "dry-run shop/get rule 0 (ALLOW) would let it through"),
        (&mixed, "plaintext POST /", true, true, "would change nothing"),
        (&mixed, "plaintext PUT /", false, false, "would change nothing"),
        (&narrower, "plaintext GET /", true, true, "would change nothing"),
        (&narrower, "plaintext PUT /", true, false, "shop/no-put"),
    ] {
        let answer = decided(policies, asked);
        let found = answer.shadow.expect("dry runs apply");
        assert_eq!((answer.allowed, found.allowed), (allowed, shadow), "{asked}: {}", found.reason);
        assert!(found.reason.contains(said), "{asked}: {}", found.reason);
    }
    // Section 21 D.
    assert!(decided(&nothing, "plaintext GET /").allowed);
    let enforced = decided(&policy("shop/p1", "{}"), "plaintext GET /");
    assert!(!enforced.allowed && enforced.shadow.is_none());
    let untrue =
        policy("shop/p", "{}").replacen("}\nspec", ", annotations: {istio.io/dry-run: \"false\"}}\nspec", 1);
    assert!(!decided(&untrue, "plaintext GET /").allowed);
}

#[test]
fn audit_marks_and_decides_nothing() {
    let audit = policy("shop/a", "{action: AUDIT, rules: [{to: [{operation: {methods: [GET]}}]}]}");
    let answer = decided(&(audit.clone() + &policy("shop/none", "{}")), "plaintext GET /");
    assert_eq!((answer.allowed, answer.action), (false, Action::None));
    assert_eq!(answer.audit, Some(RuleName { policy: "shop/a".into(), rule: 0 }));
    assert_eq!(decided(&audit, "plaintext PUT /").audit, None);
    // On TCP its fields of HTTP are gone, as DENY's are.
    assert!(decided(&audit, "plaintext TCP").audit.is_some());
}

fn provider(name: &str, asks_tcp: bool) -> Provider {
    Provider {
        name: name.to_owned(),
        address: format!("{name}.auth.svc.cluster.local:9000"),
        asks_tcp,
        fail_open: false,
        problem: None,
    }
}

fn with_providers(policies: &str, asked: &str, all: &[Provider]) -> Answer {
    let known = Settings { providers: Providers::Known(all.to_vec()), ..settings() };
    ask(&mut checker_of(policies, known), "shop", json!({}), request(asked))
}

const ADMIN: &str =
    "{action: CUSTOM, provider: {name: opa}, rules: [{to: [{operation: {paths: [\"/admin*\"]}}]}]}";

/// (allowed, action, policy, provider).
fn told(answer: &Answer) -> (bool, Action, Option<&str>, Option<&str>) {
    (answer.allowed, answer.action, answer.policy.as_deref(), answer.provider.as_deref())
}

#[test]
fn section_15_a_provider_is_asked_about_what_its_rules_match() {
    let custom = policy("shop/c", ADMIN);
    let answer = decided(&custom, "plaintext GET /admin/x");
    assert_eq!(told(&answer), (false, Action::Custom, Some("shop/c"), Some("opa")));
    assert!(answer.reason.contains("asks provider opa; offline nobody can be asked"), "{}", answer.reason);
    assert_eq!(told(&decided(&custom, "plaintext GET /home")), (true, Action::None, None, None));
    // Its yes overrules neither a DENY nor a missing ALLOW.
    let denied = custom.clone() + &policy("shop/d", "{action: DENY, rules: [{}]}");
    let answer = decided(&denied, "plaintext GET /admin/x");
    assert_eq!(told(&answer), (false, Action::Deny, Some("shop/d"), Some("opa")));
    let unlisted = custom.clone() + &policy("shop/none", "{}");
    assert_eq!(told(&decided(&unlisted, "plaintext GET /admin/x")), (false, Action::None, None, Some("opa")));
    let listed = custom + &policy("shop/all", "{rules: [{}]}");
    assert_eq!(told(&decided(&listed, "plaintext GET /admin/x")).1, Action::Custom);
}

#[test]
fn section_15_what_nobody_can_be_asked_about_is_refused() {
    let custom = policy("shop/c", ADMIN);
    let two = custom.clone() + &policy("shop/other", "{action: CUSTOM, provider: {name: web}, rules: [{}]}");
    let unusable = Provider { problem: Some("no such service".to_owned()), ..provider("opa", true) };
    let (opa, web) = (provider("opa", true), provider("web", false));
    for (policies, known, asked, refused) in [
        (&custom, vec![], "plaintext GET /admin/x", true),
        (&custom, vec![], "plaintext GET /home", false),
        (&custom, vec![unusable], "plaintext GET /admin/x", true),
        (&two, vec![opa.clone(), web.clone()], "plaintext GET /home", true),
    ] {
        let answer = with_providers(policies, asked, &known);
        assert_eq!(answer.action == Action::Custom, refused, "{asked}: {}", answer.reason);
        assert_eq!(answer.reason.contains("nobody can be asked: "), refused, "{asked}: {}", answer.reason);
        assert_eq!(answer.allowed, !refused, "{asked}");
    }
    let answer = with_providers(&custom, "plaintext GET /admin/x", &[opa]);
    assert!(answer.reason.contains("opa.auth.svc.cluster.local:9000"), "{}", answer.reason);
}

#[test]
fn section_15_tcp() {
    // On TCP the path is gone, so that the rule matches everything; only gRPC is asked.
    let custom = policy("shop/c", ADMIN);
    let asked = with_providers(&custom, "plaintext TCP", &[provider("opa", true)]);
    assert_eq!(told(&asked), (false, Action::Custom, Some("shop/c"), Some("opa")));
    let passed = with_providers(&custom, "plaintext TCP", &[provider("opa", false)]);
    assert_eq!(told(&passed), (true, Action::None, None, None));
    assert!(passed.reason.contains("is not asked about connections"), "{}", passed.reason);
}

#[test]
fn fields_beyond_the_contract_are_there_only_with_something_to_say() {
    let plain =
        serde_json::to_value(decided(&policy("shop/p", "{rules: [{}]}"), "plaintext GET /")).expect("JSON");
    let keys: Vec<&String> = plain.as_object().expect("an object").keys().collect();
    assert_eq!(keys, ["allowed", "action", "policy", "rule", "reason"]);
    let shadow = serde_json::to_value(decided(&dry_run("shop/p", "{}"), "plaintext GET /")).expect("JSON");
    assert_eq!(shadow["shadow"]["allow"], json!({"allowed": false, "policy": null, "rule": null}));
    assert_eq!(shadow["shadow"].get("deny"), None::<&Value>);
}
