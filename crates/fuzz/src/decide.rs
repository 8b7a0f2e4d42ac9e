//! Policies: the compiled engine beside the literal interpreter.

use std::sync::Arc;

use maille_core::TrustDomain;
use maille_oracle::authorization::{Answer, decide};
use maille_policy::{
    Authorization, ConnectionAttributes, Decision, PolicySet, RequestAttributes, TrustContext,
};

use crate::policies;
use crate::random::Random;
use crate::requests::Facts;

/// The input chooses policies and facts out of the vocabulary of the differential tests.
pub(crate) fn generated(input: &[u8]) {
    let mut random = Random::new(input);
    let trust = policies::trust(&mut random);
    let policies = policies::policies(&mut random);
    let facts = Facts::near(&mut random, &policies);
    compare(&policies, &trust, &facts.connection(), &facts.request());
}

/// A mesh without aliases.
pub(crate) fn trust() -> TrustContext {
    TrustContext {
        trust_domain: TrustDomain::parse("cluster.local").unwrap_or_else(|e| panic!("it is valid: {e}")),
        aliases: Vec::new(),
        root_namespace: "istio-system".to_owned(),
    }
}

/// Both decide, HTTP and TCP; everything else that the engine can be asked is asked.
pub(crate) fn compare(
    policies: &[Authorization],
    trust: &TrustContext,
    connection: &ConnectionAttributes<'_>,
    request: &RequestAttributes<'_>,
) {
    let set = Arc::new(PolicySet::compile(policies, trust).0);
    let open = set.on_connection(connection);
    for request in [Some(request), None] {
        let decision = match request {
            Some(request) => open.decide_http(request),
            None => open.decide_tcp(),
        };
        let oracle = decide(policies, trust, connection, request);
        assert_eq!(answer(&decision), oracle, "{policies:#?}\n{connection:?}\n{request:?}");
        let _ = open.explain(request, &decision);
    }
    let _ = (open.ask_http(request), open.audit_http(request), open.shadow_http(request));
    let _ = (open.ask_tcp(), open.audit_tcp(), open.shadow_tcp());
}

fn answer(decision: &Decision<'_>) -> Answer {
    Answer {
        verdict: decision.verdict,
        action: decision.action,
        rule: decision.policy.map(ToString::to_string),
    }
}
