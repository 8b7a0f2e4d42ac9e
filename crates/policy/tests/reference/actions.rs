//! Sections 3, 14 and 15: AUDIT, dry runs and CUSTOM, which speak beside the decision.

use maille_policy::Authorization;

use crate::support::{Beside, beside, decide, policy};

const GET: &str = "rules: [{to: [{operation: {methods: [GET]}}]}]";

fn dry(name: &str, spec: &str) -> Authorization {
    Authorization { dry_run: true, ..policy(name, spec) }
}

fn custom(name: &str, provider: &str, rules: &str) -> Authorization {
    policy(name, &format!("{{action: CUSTOM, provider: {{name: {provider}}}, {rules}}}"))
}

#[test]
fn section_3_audit_marks_and_decides_nothing() {
    let audit = policy("foo/audit", &format!("{{action: AUDIT, {GET}}}"));
    let deny = policy("foo/deny", "{action: DENY, rules: [{}]}");
    let marked = Some("ns[foo]-policy[audit]-rule[0]".to_owned());
    assert_eq!(beside(std::slice::from_ref(&audit), "{method: GET}").audit, marked);
    assert_eq!(beside(std::slice::from_ref(&audit), "{method: PUT}"), Beside::default());
    assert!(decide(std::slice::from_ref(&audit), "{method: GET}").allowed);
    // Built before DENY: what is refused is marked as well.
    assert_eq!(beside(&[audit.clone(), deny.clone()], "{method: GET}").audit, marked);
    assert!(!decide(&[audit, deny], "{method: GET}").allowed);
}

#[test]
fn section_4_empty_audit_and_custom_policies() {
    for (spec, matches) in [("{}", false), ("rules: []", false), ("rules: [{}]", true)] {
        let fields = spec.trim_matches(['{', '}']);
        let with = |action: &str| match fields {
            "" => format!("{{{action}}}"),
            fields => format!("{{{action}, {fields}}}"),
        };
        let audit = policy("foo/p", &with("action: AUDIT"));
        let custom = policy("foo/p", &with("action: CUSTOM, provider: {name: opa}"));
        for call in ["{}", "{tcp: true}", "{peer: cluster.local/ns/a/sa/b}"] {
            assert_eq!(beside(std::slice::from_ref(&audit), call).audit.is_some(), matches, "{spec} {call}");
            assert_eq!(beside(std::slice::from_ref(&custom), call).ask.is_some(), matches, "{spec} {call}");
        }
    }
}

#[test]
fn section_14_dry_runs_are_shadows() {
    let rule = |name: &str| Some(format!("ns[foo]-policy[{name}]-rule[0]"));
    for (policies, call, deny, allow) in [
        (vec![dry("foo/d", "{action: DENY, rules: [{}]}")], "{}", Some((false, rule("d"))), None),
        (vec![dry("foo/d", &format!("{{action: DENY, {GET}}}"))], "{method: PUT}", Some((true, None)), None),
        (vec![dry("foo/a", GET)], "{method: GET}", None, Some((true, rule("a")))),
        (vec![dry("foo/a", GET)], "{method: PUT}", None, Some((false, None))),
        (vec![dry("foo/a", "{}")], "{}", None, Some((false, None))),
        (
            vec![dry("foo/a", GET), dry("foo/d", "{action: DENY, rules: [{}]}")],
            "{method: GET}",
            Some((false, rule("d"))),
            Some((true, rule("a"))),
        ),
        (vec![policy("foo/x", GET)], "{method: GET}", None, None),
    ] {
        let beside = beside(&policies, call);
        assert_eq!((beside.shadow_deny, beside.shadow_allow), (deny, allow), "{call}");
        if policies.iter().all(|p| p.dry_run) {
            assert!(decide(&policies, call).allowed, "{call}");
        }
    }
}

/// Enforced policies and those of a dry run do not see each other.
#[test]
fn section_14_shadows_and_policies_are_apart() {
    let both = [dry("foo/get", GET), policy("foo/post", "rules: [{to: [{operation: {methods: [POST]}}]}]")];
    assert!(!decide(&both, "{method: GET}").allowed);
    assert!(decide(&both, "{method: POST}").allowed);
    assert_eq!(beside(&both, "{method: POST}").shadow_allow, Some((false, None)));
    assert_eq!(
        beside(&both, "{method: GET}").shadow_allow,
        Some((true, Some("ns[foo]-policy[get]-rule[0]".to_owned())))
    );
}

#[test]
fn section_15_the_rules_decide_whether_to_ask() {
    let admin = custom("foo/ask", "opa", "rules: [{to: [{operation: {paths: ['/admin*']}}]}]");
    let ask = Some(("opa".to_owned(), "ns[foo]-policy[ask]-rule[0]".to_owned(), None));
    assert_eq!(beside(std::slice::from_ref(&admin), "{path: /admin/x}").ask, ask);
    assert_eq!(beside(std::slice::from_ref(&admin), "{path: /home}").ask, None);
    // Asking is not deciding: that is left to the provider, then to DENY and ALLOW.
    assert!(decide(std::slice::from_ref(&admin), "{path: /admin/x}").allowed);
    let all = [admin, policy("foo/no", "{action: DENY, rules: [{}]}")];
    assert!(!decide(&all, "{path: /admin/x}").allowed);
    assert_eq!(beside(&all, "{path: /admin/x}").ask, ask);
}

#[test]
fn section_15_one_provider_for_a_workload() {
    let get = custom("foo/a", "opa", GET);
    let put = custom("foo/b", "opa", "rules: [{to: [{operation: {methods: [PUT]}}]}]");
    let other = custom("foo/c", "keys", "rules: [{to: [{operation: {methods: [PUT]}}]}]");
    let none = custom("foo/d", "keys", "rules: []");
    let problem = |policies: &[Authorization], call: &str| beside(policies, call).ask.map(|ask| ask.2);
    assert_eq!(problem(&[get.clone(), put], "{method: PUT}"), Some(None), "the same provider twice is fine");
    let several = problem(&[get.clone(), other.clone()], "{method: GET}").expect("asked").expect("a problem");
    assert!(several.contains("'keys', 'opa'"), "{several}");
    assert!(problem(&[get.clone(), other.clone()], "{method: PUT}").expect("asked").is_some());
    assert_eq!(problem(&[get.clone(), other], "{method: POST}"), None, "what matches no rule goes on");
    assert!(
        problem(&[get.clone(), none], "{method: GET}").expect("asked").is_some(),
        "without rules, it counts"
    );
    let nameless = policy("foo/p", "{action: CUSTOM, rules: [{}]}");
    assert!(problem(&[nameless], "{}").expect("asked").is_some());
}

/// What cannot be understood refuses everything, even where a rule beside it could ask.
#[test]
fn section_15_unusable_rules_ask_nobody() {
    let bad = custom(
        "foo/bad",
        "opa",
        "rules: [{to: [{operation: {ports: [http]}}]}, {to: [{operation: {methods: [GET]}}]}]",
    );
    let good = custom("foo/a", "opa", GET);
    for call in ["{method: GET}", "{method: PUT}", "{tcp: true}"] {
        let (_, rule, problem) = beside(&[good.clone(), bad.clone()], call).ask.expect("asked");
        assert_eq!(rule, "ns[foo]-policy[bad]-rule[0]", "{call}");
        assert_eq!(problem.as_deref(), Some("rule 0 of the policy cannot be compiled"), "{call}");
    }
}

/// Identity fields are refused when a CUSTOM policy is written; one that is there all the same means what it says.
#[test]
fn section_15_rules_look_at_identities_and_tokens_too() {
    let ask =
        custom("foo/p", "opa", "rules: [{from: [{source: {requestPrincipals: ['*'], namespaces: [a]}}]}]");
    let asked = |call: &str| beside(std::slice::from_ref(&ask), call).ask.is_some();
    assert!(asked("{peer: td/ns/a/sa/s, claims: {iss: i, sub: s}}"));
    assert!(!asked("{peer: td/ns/a/sa/s}"));
    assert!(!asked("{peer: td/ns/b/sa/s, claims: {iss: i, sub: s}}"));
}

#[test]
fn section_16_the_smallest_id_is_asked_and_marked() {
    let policies = [
        custom("foo/b", "opa", "rules: [{}]"),
        custom("foo/a", "opa", "rules: [{to: [{operation: {methods: [PUT]}}]}, {}]"),
        policy("foo/y", "{action: AUDIT, rules: [{}]}"),
        policy("foo/x", "{action: AUDIT, rules: [{}]}"),
    ];
    let beside = beside(&policies, "{method: GET}");
    assert_eq!(beside.ask.expect("asked").1, "ns[foo]-policy[a]-rule[1]");
    assert_eq!(beside.audit.as_deref(), Some("ns[foo]-policy[x]-rule[0]"));
}
