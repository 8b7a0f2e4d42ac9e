//! The compiled engine and the literal interpreter give the same answers.
//!
//! `MAILLE_CASES` sets how many (policies, connection, request) triples are tried, `MAILLE_SEED` which ones.

mod policies;
mod random;
mod requests;
mod tokens;

use std::collections::BTreeMap;
use std::sync::Arc;

use maille_config::istio::Rule;
use maille_oracle::authorization::{Answer, Answers, Asked, Shadowed, answer};
use maille_policy::{
    Ask, Authorization, Claims, ConnectionPolicy, DecidedBy, Decision, PolicySet, RequestAttributes, RuleId,
    Shadow, ShadowResult, TrustContext,
};
use random::Random;
use requests::Facts;

/// Triples per policy set.
const FACTS_PER_SET: u64 = 16;

/// The engine's answers, in the oracle's form.
fn answers(
    decision: &Decision<'_>,
    ask: Option<Ask<'_>>,
    audit: Option<&RuleId>,
    shadow: Shadow<'_>,
) -> Answers {
    let shadowed = |result: ShadowResult<'_>| Shadowed {
        allowed: result.allowed,
        rule: result.rule.map(ToString::to_string),
    };
    Answers {
        decision: Answer {
            verdict: decision.verdict,
            action: decision.action,
            rule: decision.policy.map(ToString::to_string),
        },
        ask: ask.map(|ask| Asked {
            provider: ask.provider.to_owned(),
            rule: ask.rule.to_string(),
            refused: ask.problem.is_some(),
        }),
        audit: audit.map(ToString::to_string),
        shadow_deny: shadow.deny.map(shadowed),
        shadow_allow: shadow.allow.map(shadowed),
    }
}

/// What must hold beside the answers.
fn check_rest(
    open: &ConnectionPolicy,
    request: &RequestAttributes<'_>,
    decision: &Decision<'_>,
    small: bool,
) {
    let passes = decision.is_allowed() && open.ask_http(request).is_none_or(|ask| ask.problem.is_none());
    assert!(open.can_allow_http() || !passes, "allowed, though supposedly no request can be");
    if decision.action == DecidedBy::AllowRule && small {
        assert_eq!(open.nearest(Some(request)), None, "something matches, so nothing is a miss");
    }
    assert!(!open.explain(Some(request), decision).is_empty());
    let needs = open.needs();
    assert!(needs.asks || (open.ask_http(request).is_none() && open.ask_tcp().is_none()), "nobody to ask");
    assert!(needs.audits || (open.audit_http(request).is_none() && open.audit_tcp().is_none()), "no marks");
    assert!(needs.shadows || open.shadow_http(request) == Shadow::default(), "no dry run");
}

/// What the engine and the oracle say of one triple, HTTP and TCP.
fn both(
    policies: &[Authorization],
    set: &Arc<PolicySet>,
    trust: &TrustContext,
    facts: &Facts,
) -> [(Answers, Answers); 2] {
    let (connection, request) = (facts.connection(), facts.request());
    let open = set.on_connection(&connection);
    let decision = open.decide_http(&request);
    check_rest(&open, &request, &decision, policies.len() < 10);
    let (ask, audit) = (open.ask_http(&request), open.audit_http(&request));
    let http = answers(&decision, ask, audit, open.shadow_http(&request));
    let tcp = answers(&open.decide_tcp(), open.ask_tcp(), open.audit_tcp(), open.shadow_tcp());
    [
        (http, answer(policies, trust, &connection, Some(&request))),
        (tcp, answer(policies, trust, &connection, None)),
    ]
}

fn differs(policies: &[Authorization], trust: &TrustContext, facts: &Facts) -> bool {
    let set = Arc::new(PolicySet::compile(policies, trust).0);
    both(policies, &set, trust, facts).iter().any(|(engine, oracle)| engine != oracle)
}

/// Drops policies, rules and their parts as long as the answers still differ.
fn shrink(mut policies: Vec<Authorization>, trust: &TrustContext, facts: &Facts) -> Vec<Authorization> {
    loop {
        let smaller = smaller(&policies).into_iter().find(|candidate| differs(candidate, trust, facts));
        match smaller {
            Some(candidate) => policies = candidate,
            None => return policies,
        }
    }
}

fn smaller(policies: &[Authorization]) -> Vec<Vec<Authorization>> {
    let mut all = Vec::new();
    for p in 0..policies.len() {
        let mut without = policies.to_vec();
        without.remove(p);
        all.push(without);
        for r in 0..policies[p].spec.rules.len() {
            let rule = &policies[p].spec.rules[r];
            for part in 0..=rule.from.len() + rule.to.len() + rule.when.len() {
                let mut changed = policies.to_vec();
                let rules = &mut changed[p].spec.rules;
                let rule = &mut rules[r];
                let (from, to) = (rule.from.len(), rule.to.len());
                if part < from {
                    rule.from.remove(part);
                } else if part < from + to {
                    rule.to.remove(part - from);
                } else if part < from + to + rule.when.len() {
                    rule.when.remove(part - from - to);
                } else {
                    rules.remove(r);
                }
                all.push(changed);
            }
        }
    }
    all
}

#[test]
fn engine_and_oracle_agree_on_generated_policies_and_requests() {
    let cases: u64 = std::env::var("MAILLE_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(12_000);
    let base: u64 = std::env::var("MAILLE_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let mut outcomes: BTreeMap<String, u64> = BTreeMap::new();
    for round in 0..cases.div_ceil(FACTS_PER_SET) {
        let mut random = Random::new(base.wrapping_mul(0x1000_0000_0000).wrapping_add(round));
        let trust = policies::trust(&mut random);
        let mut policies = policies::policies(&mut random);
        tokens::add(&mut random, &mut policies);
        let set = Arc::new(PolicySet::compile(&policies, &trust).0);
        for _ in 0..FACTS_PER_SET {
            let (mut facts, rule) = Facts::near_rule(&mut random, &policies);
            facts.claims = claims(&mut random, rule);
            for (engine, oracle) in both(&policies, &set, &trust, &facts) {
                if engine != oracle {
                    let small = shrink(policies, &trust, &facts);
                    panic!(
                        "round {round}: engine {engine:?}, oracle {oracle:?}\n{trust:#?}\n{facts:#?}\n{small:#?}"
                    );
                }
                count(&mut outcomes, &engine);
            }
        }
    }
    println!("{cases} triples: {outcomes:?}");
    assert_eq!(outcomes.len(), 11, "every kind of outcome must occur: {outcomes:?}");
}

fn count(outcomes: &mut BTreeMap<String, u64>, answers: &Answers) {
    *outcomes.entry(format!("{:?}", answers.decision.action)).or_default() += 1;
    if let Some(ask) = &answers.ask {
        *outcomes.entry(format!("asked, refused: {}", ask.refused)).or_default() += 1;
    }
    if answers.audit.is_some() {
        *outcomes.entry("marked".to_owned()).or_default() += 1;
    }
    for (action, shadow) in [("DENY", &answers.shadow_deny), ("ALLOW", &answers.shadow_allow)] {
        if let Some(shadow) = shadow {
            let what = format!("dry run of {action}, allowed: {}", shadow.allowed);
            *outcomes.entry(what).or_default() += 1;
        }
    }
}

/// A token, made to fit what the rule demands of it, then perhaps changed in one claim.
fn claims(random: &mut Random, rule: Option<&Rule>) -> Option<Claims> {
    let mut payload = tokens::any(random)?;
    if let Some(rule) = rule {
        for source in rule.from.iter().filter_map(|from| from.source.as_ref()) {
            if !source.request_principals.is_empty() {
                tokens::fit_principal(&mut payload, random.one(&source.request_principals).as_str(), random);
            }
        }
        for condition in rule.when.iter().filter(|c| c.key.starts_with("request.auth.")) {
            match condition.values.as_slice() {
                [] => {}
                values if condition.key == "request.auth.principal" => {
                    tokens::fit_principal(&mut payload, random.one(values).as_str(), random);
                }
                values => {
                    tokens::fit_claim(&mut payload, &condition.key, random.one(values).as_str(), random)
                }
            }
        }
        if random.once_in(3) {
            let other = tokens::any(random)?;
            if let Some((name, value)) = other.into_iter().next() {
                payload.insert(name, value);
            }
        }
    }
    Some(Claims::new(payload, &["tags".to_owned()]))
}
