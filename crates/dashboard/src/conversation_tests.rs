use serde_json::{Value, json};

use super::*;
use crate::flows;

fn flow(reporter: &str, decision: &str, requests: u64, more: Value) -> Value {
    let mut flow = json!({
        "reporter": reporter, "decision": decision, "requests": requests, "mtls": true, "protocol": "HTTP",
        "source": {"namespace": "a", "workloadName": "web"}, "destination": {"namespace": "b", "workloadName": "db"},
        "port": 8080, "rule": -1, "lastSeenMs": 5000
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        flow[key] = value.clone();
    }
    flow
}

fn read(flows: &[Value]) -> Vec<Conversation> {
    let flows = flows::read(json!({ "flows": flows }).to_string().as_bytes()).expect("flows");
    let services = [("10.96.0.9".to_owned(), ("b".to_owned(), "db".to_owned()))];
    let inventory = Inventory { services: services.into_iter().collect(), ..Inventory::default() };
    conversations(&flows, &flows, 60.0, &inventory, 65_000)
}

#[test]
fn the_destinations_word_counts() {
    let found = read(&[
        flow("SOURCE", "ALLOWED", 30, json!({})),
        flow("DESTINATION", "ALLOWED", 0, json!({"connections": 2})),
        flow("DESTINATION", "DENIED", 30, json!({"policy": "b/deny-all", "rule": 0})),
    ]);
    let [only] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((only.verdict, only.total.requests), (Verdict::Refused, 30));
    assert_eq!(only.headline().as_deref(), Some("deny-all, rule 0"));
    assert!((only.per_s - 0.5).abs() < 0.001, "{}", only.per_s);
}

#[test]
fn what_a_dry_run_would_refuse_is_counted_by_policy() {
    let would = |policy: &str, rule: i64, count: u64| json!({"wouldRefuse": [{"policy": policy, "rule": rule, "count": count}]});
    let found = read(&[
        flow("DESTINATION", "ALLOWED", 5, would("b/try", 0, 3)),
        flow("DESTINATION", "ALLOWED", 5, would("b/try", 0, 4)),
        flow("DESTINATION", "ALLOWED", 5, would("", -1, 5)),
    ]);
    let [only] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(only.verdict, Verdict::Mtls, "it decides nothing");
    assert_eq!(
        only.dry_runs(),
        [
            "5 requests would be refused: no dry-run ALLOW rule matches",
            "7 requests would be refused by b/try, rule 0"
        ]
    );
}

#[test]
fn a_client_speaks_for_those_without_sidecar() {
    let found = read(&[flow("SOURCE", "ALLOWED", 3, json!({"mtls": false}))]);
    let [only] = found.as_slice() else { panic!("{found:?}") };
    assert!(only.verdict == Verdict::Plaintext && only.from_client);
}

#[test]
fn what_was_reached_later_can_be_reached() {
    let by_address =
        json!({"destination": {"address": "10.96.0.9", "service": "10.96.0.9"}, "port": 80, "mtls": false});
    let failed = flow("SOURCE", "FAILED", 1, by_address.clone());
    assert_eq!(read(std::slice::from_ref(&failed))[0].verdict, Verdict::Failed);
    let later = flow("DESTINATION", "ALLOWED", 1, json!({"lastSeenMs": 6000}));
    assert!(read(&[failed, later]).iter().all(|c| c.verdict == Verdict::Mtls));
}

#[test]
fn a_refusal_says_in_a_few_words_why() {
    let badge = |flow: Value| read(&[flow])[0].badge();
    let refused = |more: Value| flow("DESTINATION", "DENIED", 1, more);
    assert_eq!(badge(refused(json!({"policy": "b/strict", "rule": 2}))).as_deref(), Some("strict"));
    let nearest = json!({"reason": "no ALLOW rule matches; nearest is policy b/x, rule 0: method is GET"});
    assert_eq!(badge(refused(nearest)).as_deref(), Some("no ALLOW rule"));
    let plaintext =
        flow("DESTINATION", "REFUSED_TLS", 0, json!({"mtls": false, "connections": 3, "protocol": "TCP"}));
    assert_eq!(badge(plaintext.clone()).as_deref(), Some("STRICT: plaintext"));
    assert!(read(&[plaintext])[0].below_policy);
}

#[test]
fn many_unknown_addresses_are_one() {
    let flows: Vec<Value> = (0..100)
        .map(|n| flow("DESTINATION", "ALLOWED", 1, json!({"source": {"address": format!("192.0.2.{n}")}})))
        .collect();
    let found = read(&flows);
    assert_eq!(found.len(), MOST_ADDRESSES + 1);
    assert!(found.iter().any(|c| c.from.name == OTHER_ADDRESSES && c.total.requests == 100 - 12));
}
