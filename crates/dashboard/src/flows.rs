//! Flows as the control plane tells them (`/flows`), read leniently: what is missing is empty, what is unknown is let
//! pass, and every text is bounded.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::text::{NAME, REASON, clean};

/// Flows read of one answer; the control plane keeps no more than 4096.
const MOST: usize = 8192;

/// Who reported a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Reporter {
    Source,
    Destination,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Decision {
    Allowed,
    Denied,
    RefusedTls,
    Failed,
}

/// One end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Peer {
    pub(crate) uid: String,
    pub(crate) namespace: String,
    pub(crate) workload_name: String,
    pub(crate) principal: String,
    pub(crate) address: String,
    pub(crate) service: String,
}

impl Peer {
    fn clean(&mut self) {
        let texts = [
            &mut self.uid,
            &mut self.namespace,
            &mut self.workload_name,
            &mut self.principal,
            &mut self.address,
            &mut self.service,
        ];
        for text in texts {
            *text = clean(text, NAME);
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Wire {
    reporter: String,
    source: Peer,
    destination: Peer,
    port: u64,
    protocol: String,
    mtls: bool,
    decision: String,
    policy: String,
    rule: i64,
    reason: String,
    connections: u64,
    requests: u64,
    responses: Vec<u64>,
    first_seen_ms: u64,
    last_seen_ms: u64,
    would_refuse: Vec<WireRefusal>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct WireRefusal {
    policy: String,
    rule: i64,
    count: u64,
}

/// Calls that dry-run policies would have refused, by policy (empty: none of their ALLOW rules matched) and rule.
pub(crate) type WouldRefuse = BTreeMap<(String, i64), u64>;

/// Dry-run policies shown of one flow.
const MOST_DRY_RUNS: usize = 8;

/// One aggregate.
#[derive(Debug, Clone)]
pub(crate) struct Flow {
    pub(crate) reporter: Reporter,
    pub(crate) source: Peer,
    pub(crate) destination: Peer,
    pub(crate) port: u64,
    /// `HTTP`, `TCP`, or whatever else the control plane names.
    pub(crate) protocol: String,
    pub(crate) mtls: bool,
    pub(crate) decision: Decision,
    pub(crate) policy: String,
    /// Index of the rule in the policy; negative if none.
    pub(crate) rule: i64,
    pub(crate) reason: String,
    pub(crate) counts: Counts,
    pub(crate) first_seen_ms: u64,
    pub(crate) last_seen_ms: u64,
    pub(crate) would_refuse: WouldRefuse,
}

/// How often.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) connections: u64,
    pub(crate) requests: u64,
    /// Responses by class: index 0 is 1xx, 4 is 5xx.
    pub(crate) responses: [u64; 5],
}

impl Counts {
    pub(crate) fn add(&mut self, other: &Self) {
        self.connections = self.connections.saturating_add(other.connections);
        self.requests = self.requests.saturating_add(other.requests);
        for (mine, theirs) in self.responses.iter_mut().zip(other.responses) {
            *mine = mine.saturating_add(theirs);
        }
    }

    /// Requests where there are any, else connections.
    pub(crate) fn calls(&self) -> u64 {
        if self.requests > 0 { self.requests } else { self.connections }
    }
}

impl Flow {
    fn of(wire: Wire) -> Option<Self> {
        let reporter = match wire.reporter.as_str() {
            "SOURCE" => Reporter::Source,
            "DESTINATION" => Reporter::Destination,
            _ => return None,
        };
        let decision = match wire.decision.as_str() {
            "ALLOWED" => Decision::Allowed,
            "DENIED" => Decision::Denied,
            "REFUSED_TLS" => Decision::RefusedTls,
            "FAILED" => Decision::Failed,
            _ => return None,
        };
        let Wire { mut source, mut destination, .. } = wire;
        source.clean();
        destination.clean();
        let mut responses = [0; 5];
        for (slot, n) in responses.iter_mut().zip(wire.responses) {
            *slot = n;
        }
        Some(Self {
            reporter,
            source,
            destination,
            port: wire.port,
            protocol: clean(&wire.protocol, 12),
            mtls: wire.mtls,
            decision,
            policy: clean(&wire.policy, 2 * NAME),
            rule: wire.rule,
            reason: clean(&wire.reason, REASON),
            counts: Counts { connections: wire.connections, requests: wire.requests, responses },
            first_seen_ms: wire.first_seen_ms,
            last_seen_ms: wire.last_seen_ms,
            would_refuse: wire
                .would_refuse
                .into_iter()
                .filter(|one| one.count > 0)
                .take(MOST_DRY_RUNS)
                .map(|one| ((clean(&one.policy, 2 * NAME), one.rule), one.count))
                .collect(),
        })
    }
}

/// Reads an answer of `/flows`.
pub(crate) fn read(body: &[u8]) -> Result<Vec<Flow>, String> {
    #[derive(Deserialize)]
    struct Answer {
        flows: Vec<Wire>,
    }
    let answer: Answer = serde_json::from_slice(body)
        .map_err(|error| format!("the control plane answered something that is no list of flows: {error}"))?;
    Ok(answer.flows.into_iter().take(MOST).filter_map(Flow::of).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_are_read_leniently_and_bounded() {
        let long = "x".repeat(5000);
        let body = serde_json::json!({"flows": [
            {"reporter": "DESTINATION", "decision": "DENIED", "reason": long, "later": 1,
             "wouldRefuse": [{"policy": "shop/p", "rule": 1, "count": 3}, {"policy": "none", "count": 0}],
             "source": {"workloadName": "a\u{202e}b"}, "responses": [0, 1, 2, 3, 4, 5, 6]},
            {"reporter": "ELSEWHERE", "decision": "DENIED"},
            {"reporter": "SOURCE", "decision": "WHO_KNOWS"}
        ]});
        let flows = read(body.to_string().as_bytes()).expect("readable");
        let [flow] = flows.as_slice() else { panic!("one flow, not {}", flows.len()) };
        assert_eq!(flow.reason.chars().count(), REASON);
        assert_eq!(flow.source.workload_name, "ab");
        assert_eq!(flow.would_refuse, BTreeMap::from([(("shop/p".to_owned(), 1), 3)]));
        assert_eq!(flow.counts.responses, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn nonsense_is_told_as_such() {
        for body in ["", "[]", "{}", "<html>", r#"{"flows": 3}"#] {
            assert!(read(body.as_bytes()).expect_err(body).contains("no list of flows"));
        }
    }
}
