use serde_json::{Value, json};

use maille_core::Labels;

use super::*;
use crate::destination_rule::{Client, Mesh, Target, in_force, in_force_inbound};
use crate::hosts::HostPattern;

const WEB: &str = "web.shop.svc.cluster.local";

fn rules(specs: Value) -> Vec<DestinationRule> {
    let specs = specs.as_array().cloned().unwrap_or_default();
    let rule = |(i, mut spec): (usize, Value)| {
        spec["host"] = json!(WEB);
        let metadata = json!({"name": format!("r{i}"), "namespace": "shop",
            "creationTimestamp": format!("2026-01-01T00:00:{i:02}Z")});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec})).expect("a rule")
    };
    specs.into_iter().enumerate().map(rule).collect()
}

fn found(rules: &[DestinationRule]) -> InForce<'_> {
    let (labels, host) = (Labels::new(), HostPattern::new(WEB));
    let mesh = Mesh { root_namespace: "istio-system", cluster_domain: "cluster.local" };
    let client = Client { namespace: "shop", labels: &labels };
    in_force(rules, mesh, client, Target { host: &host, namespace: "shop" }).expect("in force")
}

/// The blocks that are there, by the letter that marks each.
fn blocks(policy: PortPolicy<'_>) -> String {
    let lb = policy.load_balancer.and_then(|lb| lb.simple).map(|simple| format!("lb {simple:?}"));
    let pool = policy.connection_pool.and_then(|p| p.tcp.as_ref());
    let pool = pool.map(|tcp| format!("pool {}", tcp.max_connections));
    let outlier = policy.outlier_detection.and_then(|o| o.consecutive_5xx_errors);
    let outlier = outlier.map(|errors| format!("outlier {errors}"));
    let tls = match policy.tls {
        PortTls::Auto { endpoints: None } => None,
        PortTls::Auto { endpoints: Some(mode) } => Some(format!("auto {mode:?}")),
        PortTls::Explicit(tls) => Some(format!("tls {:?}", tls.mode)),
    };
    [lb, pool, outlier, tls].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn whole() -> Value {
    json!({
        "loadBalancer": {"simple": "RANDOM"},
        "connectionPool": {"tcp": {"maxConnections": 1}},
        "outlierDetection": {"consecutive5xxErrors": 1},
        "tls": {"mode": "SIMPLE"},
    })
}

fn with_ports(mut policy: Value, ports: Value) -> Value {
    policy["portLevelSettings"] = ports;
    policy
}

/// DR-8.
#[test]
fn an_entry_for_a_port_replaces_all_blocks() {
    let entry = json!([{"port": {"number": 80}, "loadBalancer": {"simple": "ROUND_ROBIN"}}]);
    let rules = rules(json!([{"trafficPolicy": with_ports(whole(), entry)}]));
    let found = found(&rules);
    assert_eq!(blocks(found.port(81)), "lb Random, pool 1, outlier 1, tls Simple");
    assert_eq!(blocks(found.port(80)), "lb RoundRobin, auto Simple", "the mode above marks the endpoints");
}

/// DR-9, DR-10: what the subset says, what its rule says of the port, and what comes out for port 80.
#[test]
fn a_subset_overrides_block_by_block() {
    let own_lb = json!({"loadBalancer": {"simple": "ROUND_ROBIN"}});
    let port = |block: Value| {
        let mut entry = block;
        entry["port"] = json!({"number": 80});
        json!([entry])
    };
    for (subset, rule, expected) in [
        (json!(null), whole(), "lb Random, pool 1, outlier 1, tls Simple"),
        (own_lb.clone(), whole(), "lb RoundRobin, pool 1, outlier 1, tls Simple"),
        (json!({"tls": {"mode": "DISABLE"}}), whole(), "lb Random, pool 1, outlier 1, tls Disable"),
        (
            json!({"connectionPool": {"tcp": {"maxConnections": 2}}}),
            whole(),
            "lb Random, pool 2, outlier 1, tls Simple",
        ),
        // An entry of the subset replaces all four.
        (with_ports(whole(), port(own_lb.clone())), whole(), "lb RoundRobin, auto Simple"),
        (with_ports(json!({}), port(own_lb.clone())), whole(), "lb RoundRobin, auto Simple"),
        // An entry of the rule is what the subset stands upon.
        (
            own_lb.clone(),
            with_ports(whole(), port(json!({"outlierDetection": {"consecutive5xxErrors": 7}}))),
            "lb RoundRobin, outlier 7, auto Simple",
        ),
        (own_lb, json!(null), "lb RoundRobin"),
    ] {
        let rules =
            rules(json!([{"trafficPolicy": rule, "subsets": [{"name": "v1", "trafficPolicy": subset}]}]));
        let found = found(&rules);
        let (_, v1) = found.subsets().remove(0);
        assert_eq!(blocks(found.subset_port(v1, 80)), expected, "{subset} in {rule}");
    }
}

/// 2.3, 4.
#[test]
fn subsets_of_merged_rules_stand_in_one_list_and_the_first_of_a_name_counts() {
    let rules = rules(json!([
        {"subsets": [{"name": "v1", "labels": {"v": "1"}}]},
        {"trafficPolicy": {"loadBalancer": {"simple": "RANDOM"}},
         "subsets": [{"name": "v2", "labels": {"v": "2"}}, {"name": "v1", "labels": {"v": "one"}}]},
    ]));
    let found = found(&rules);
    let subsets: Vec<_> = found
        .subsets()
        .into_iter()
        .map(|(rule, s)| {
            (rule.metadata.name.as_deref().unwrap_or_default(), s.name.as_str(), s.labels["v"].as_str())
        })
        .collect();
    assert_eq!(subsets, [("r0", "v1", "1"), ("r1", "v2", "2")]);
    // A later rule's policy holds for an earlier rule's subset.
    let (_, v1) = found.subsets().remove(0);
    assert_eq!(blocks(found.subset_port(v1, 80)), "lb Random");
}

#[test]
fn servers_keep_to_the_rule_for_everybody() {
    let mut rules = rules(json!([
        {"workloadSelector": {"matchLabels": {}}, "trafficPolicy": {"connectionPool": {"tcp": {"maxConnections": 1}}}},
        {"trafficPolicy": {"connectionPool": {"tcp": {"maxConnections": 2}}}},
    ]));
    let host = HostPattern::new(WEB);
    let target = Target { host: &host, namespace: "shop" };
    let mesh = Mesh { root_namespace: "istio-system", cluster_domain: "cluster.local" };
    let pool = |rules: &[DestinationRule]| {
        let found = in_force_inbound(rules, mesh, "shop", target);
        found.map(|found| blocks(found.port(80)))
    };
    assert_eq!(
        found(&rules).port(80).connection_pool,
        rules[0].spec.traffic_policy.as_ref().and_then(|p| p.connection_pool.as_ref())
    );
    assert_eq!(pool(&rules).as_deref(), Some("pool 2"));
    rules.pop();
    assert_eq!(pool(&rules), None, "rules for some clients are nobody's as a server");
}
