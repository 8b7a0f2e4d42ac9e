//! The compiled engine and the literal interpreter give the same answers.
//!
//! `MAILLE_CASES` sets how many (policies, connection, request) triples are tried.

mod policies;
mod random;
mod requests;

use std::collections::BTreeMap;
use std::sync::Arc;

use maille_oracle::authorization::{Answer, decide};
use maille_policy::{Authorization, DecidedBy, Decision, PolicySet, TrustContext};
use random::Random;
use requests::Facts;

/// Triples per policy set.
const FACTS_PER_SET: u64 = 16;

fn answer(decision: &Decision<'_>) -> Answer {
    Answer {
        verdict: decision.verdict,
        action: decision.action,
        rule: decision.policy.map(ToString::to_string),
    }
}

/// What the engine and the oracle say of one triple, HTTP and TCP.
fn both(
    policies: &[Authorization],
    set: &Arc<PolicySet>,
    trust: &TrustContext,
    facts: &Facts,
) -> [(Answer, Answer); 2] {
    let (connection, request) = (facts.connection(), facts.request());
    let open = set.on_connection(&connection);
    let decision = open.decide_http(&request);
    assert!(open.can_allow_http() || !decision.is_allowed(), "allowed, though supposedly no request can be");
    if decision.action == DecidedBy::AllowRule && policies.len() < 10 {
        assert_eq!(open.nearest(Some(&request)), None, "something matches, so nothing is a miss");
    }
    assert!(!open.explain(Some(&request), &decision).is_empty());
    [
        (answer(&decision), decide(policies, trust, &connection, Some(&request))),
        (answer(&open.decide_tcp()), decide(policies, trust, &connection, None)),
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
        let policies = policies::policies(&mut random);
        let set = Arc::new(PolicySet::compile(&policies, &trust).0);
        for _ in 0..FACTS_PER_SET {
            let facts = Facts::near(&mut random, &policies);
            for (engine, oracle) in both(&policies, &set, &trust, &facts) {
                if engine != oracle {
                    let small = shrink(policies, &trust, &facts);
                    panic!(
                        "round {round}: engine {engine:?}, oracle {oracle:?}\n{trust:#?}\n{facts:#?}\n{small:#?}"
                    );
                }
                *outcomes.entry(format!("{:?}", engine.action)).or_default() += 1;
            }
        }
    }
    println!("{cases} triples: {outcomes:?}");
    assert_eq!(outcomes.len(), 4, "every kind of outcome must occur: {outcomes:?}");
}
