//! The table of every pair that tried to talk.

use super::Expectation;
use crate::commands::flows::{Flow, by};
use crate::output::aligned;

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    from: String,
    to: String,
    port: u64,
    seen: Option<Seen>,
    expected: Option<bool>,
    /// Whether what was seen is what was expected.
    pub(crate) as_expected: bool,
}

/// What a proxy saw of a pair, most recently.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    allowed: bool,
    mtls: bool,
    by: String,
}

/// Compares what the destinations' proxies saw, or the callers' where the destination has none, with what is
/// expected: a row for each expected pair, in that order, then one for each pair that nobody expected.
///
/// A pair seen both allowed and refused counts as neither: it is not as expected. Of what is outside of the mesh only
/// the latest counts: callers try before the server is there.
pub(crate) fn compare(flows: &[Flow], expectations: &[Expectation]) -> Vec<Row> {
    let inbound: Vec<&Flow> = flows.iter().filter(|flow| flow.reporter == "DESTINATION").collect();
    let mut rows: Vec<Row> = expectations
        .iter()
        .map(|expected| {
            let of_pair = if expected.outside {
                let calls = flows.iter().filter(|flow| is_call_outside(flow, expected));
                verdicts(calls.collect())
                    .into_iter()
                    .max_by_key(|flow| flow.last_seen_ms)
                    .into_iter()
                    .collect()
            } else {
                verdicts(inbound.iter().copied().filter(|flow| is_pair(flow, expected)).collect())
            };
            let seen = latest(&of_pair);
            let as_expected = !of_pair.is_empty()
                && of_pair
                    .iter()
                    .all(|flow| is_allowed(flow) == expected.allowed && flow.mtls == expected.mtls);
            Row {
                from: expected.from.to_owned(),
                to: expected.to.to_owned(),
                port: expected.port,
                seen,
                expected: Some(expected.allowed),
                as_expected,
            }
        })
        .collect();
    for flow in &inbound {
        let (from, to) = (flow.source.label(), flow.destination.label());
        let known = rows.iter().any(|row| row.from == from && row.to == to && row.port == flow.port);
        if !known {
            let same = |other: &&Flow| {
                other.source.label() == from && other.destination.label() == to && other.port == flow.port
            };
            let of_pair = verdicts(inbound.iter().copied().filter(same).collect());
            rows.push(Row {
                from,
                to,
                port: flow.port,
                seen: latest(&of_pair),
                expected: None,
                as_expected: false,
            });
        }
    }
    rows
}

/// The flows of a pair that say what became of its calls. A connection that carries HTTP is let in before its requests
/// are judged one by one; where there were requests, that a connection was let in says nothing.
fn verdicts(of_pair: Vec<&Flow>) -> Vec<&Flow> {
    let judged: Vec<&Flow> =
        of_pair.iter().copied().filter(|flow| flow.requests > 0 || flow.is_refused()).collect();
    if judged.is_empty() { of_pair } else { judged }
}

fn is_pair(flow: &Flow, expected: &Expectation) -> bool {
    flow.source.label() == expected.from
        && flow.destination.label() == expected.to
        && flow.port == expected.port
}

fn is_call_outside(flow: &Flow, expected: &Expectation) -> bool {
    flow.reporter == "SOURCE"
        && flow.source.label() == expected.from
        && flow.destination.service == expected.to
        && flow.port == expected.port
}

fn is_allowed(flow: &Flow) -> bool {
    flow.decision == "ALLOWED"
}

fn latest(flows: &[&Flow]) -> Option<Seen> {
    flows.iter().max_by_key(|flow| flow.last_seen_ms).map(|flow| Seen {
        allowed: is_allowed(flow),
        mtls: flow.mtls,
        by: match flow.policy.is_empty() && flow.reason.is_empty() {
            // The other end has no identity of the mesh: nothing else makes mutual TLS with it.
            true if flow.mtls && flow.destination.principal.is_empty() && flow.reporter == "SOURCE" => {
                "TLS by a DestinationRule".to_owned()
            }
            _ => by(flow),
        },
    })
}

/// The table for people, with colour if they look at it on a terminal.
pub(crate) fn render(rows: &[Row], colour: bool) -> String {
    let mut lines =
        vec![["FROM", "TO", "PORT", "RESULT", "TRANSPORT", "AS EXPECTED", "BY"].map(str::to_owned).to_vec()];
    for row in rows {
        let (result, transport, by) = match &row.seen {
            None => ("not seen", "-", "-".to_owned()),
            Some(seen) => (
                if seen.allowed { "allowed" } else { "refused" },
                if seen.mtls { "mTLS" } else { "plaintext" },
                seen.by.clone(),
            ),
        };
        let verdict = match (row.as_expected, row.expected) {
            (true, _) => "yes",
            (false, Some(true)) => "NO: should be allowed",
            (false, Some(false)) => "NO: should be refused",
            (false, None) => "NO: nobody expected it",
        };
        lines.push(vec![
            row.from.clone(),
            row.to.clone(),
            row.port.to_string(),
            result.to_owned(),
            transport.to_owned(),
            verdict.to_owned(),
            by,
        ]);
    }
    let text = aligned(&lines);
    if !colour {
        return text;
    }
    let mut painted = String::new();
    for (line, row) in text.lines().zip(std::iter::once(None).chain(rows.iter().map(Some))) {
        let code = match row {
            None => "1",
            Some(row) if !row.as_expected => "31;1",
            Some(row) if row.seen.as_ref().is_some_and(|seen| !seen.allowed) => "33",
            Some(_) => "32",
        };
        painted.push_str(&format!("\x1b[{code}m{line}\x1b[0m\n"));
    }
    painted
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn flow(decision: &str, mtls: bool) -> Flow {
        Flow::read(&json!({
            "reporter": "DESTINATION",
            "source": {"namespace": "a", "workloadName": "x"},
            "destination": {"namespace": "b", "workloadName": "y"},
            "port": 80, "mtls": mtls, "decision": decision, "policy": "b/p", "rule": 0, "requests": 1
        }))
    }

    const EXPECTED: &[Expectation] =
        &[Expectation { from: "a/x", to: "b/y", port: 80, allowed: true, mtls: true, outside: false }];

    #[test]
    fn as_expected_only_if_every_flow_of_the_pair_is() {
        assert!(compare(&[flow("ALLOWED", true)], EXPECTED)[0].as_expected);
        assert!(!compare(&[flow("ALLOWED", false)], EXPECTED)[0].as_expected);
        assert!(!compare(&[flow("ALLOWED", true), flow("DENIED", true)], EXPECTED)[0].as_expected);
        assert!(!compare(&[], EXPECTED)[0].as_expected);
    }

    #[test]
    fn an_opened_connection_is_no_verdict_where_requests_were_judged() {
        let connection = Flow::read(&json!({
            "reporter": "DESTINATION",
            "source": {"namespace": "a", "workloadName": "x"},
            "destination": {"namespace": "b", "workloadName": "y"},
            "port": 80, "mtls": true, "decision": "ALLOWED", "connections": 1
        }));
        let refused = &[Expectation { allowed: false, ..EXPECTED[0] }];
        assert!(compare(&[connection, flow("DENIED", true)], refused)[0].as_expected);
    }

    #[test]
    fn of_what_is_outside_the_callers_latest_view_counts() {
        let call = |decision: &str, at: u64| {
            Flow::read(&json!({
                "reporter": "SOURCE",
                "source": {"namespace": "a", "workloadName": "x"},
                "destination": {"service": "api.example.com", "address": "10.0.0.1"},
                "port": 443, "mtls": true, "decision": decision, "requests": 1, "lastSeenMs": at
            }))
        };
        let expected = &[Expectation { to: "api.example.com", port: 443, outside: true, ..EXPECTED[0] }];
        let rows = compare(&[call("FAILED", 1), call("ALLOWED", 2)], expected);
        assert!(rows.len() == 1 && rows[0].as_expected);
        assert!(render(&rows, false).contains("TLS by a DestinationRule"));
        assert!(!compare(&[call("ALLOWED", 1), call("FAILED", 2)], expected)[0].as_expected);
        assert!(!compare(&[call("ALLOWED", 1)], EXPECTED)[0].as_expected);
    }

    #[test]
    fn a_pair_that_nobody_expected_is_shown() {
        let rows = compare(&[flow("ALLOWED", true)], &[]);
        assert!(!rows[0].as_expected);
        assert!(render(&rows, false).contains("nobody expected"));
    }
}
