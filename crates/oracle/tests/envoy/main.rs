//! A real Envoy, configured as Istio configures it, decides as the compiled engine does.
//!
//! Generated policies become RBAC configuration, one route each; generated requests travel over real HTTP, from real
//! addresses, with real client certificates. Needs root (a network namespace with the generator's addresses) and
//! the program that `MAILLE_ENVOY` names. `MAILLE_ENVOY_SETS` and `MAILLE_SEED` say how much and what is tried.

mod client;
mod lab;
#[path = "../authorization/policies.rs"]
#[allow(dead_code, reason = "shared with another test")]
mod policies;
#[path = "../authorization/random.rs"]
mod random;
#[path = "../authorization/requests.rs"]
#[allow(dead_code, reason = "shared with another test")]
mod requests;
mod translate;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use maille_config::istio::Action;
use maille_core::TrustDomain;
use maille_policy::path::{Normalization, normalize};
use maille_policy::{Authorization, PolicySet, RequestAttributes, TrustContext};

use client::Client;
use lab::Lab;
use random::Random;
use requests::Facts;

/// Requests per policy set.
const FACTS_PER_SET: usize = 24;

#[test]
fn envoy_and_engine_agree_on_generated_policies_and_requests() {
    let Some(envoy) = envoy() else { return };
    let number =
        |name: &str, default| std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default);
    let sets: u64 = number("MAILLE_ENVOY_SETS", 150);
    let mut random = Random::new(number("MAILLE_SEED", 1));
    let sets: Vec<Vec<Authorization>> = (0..sets).map(|_| generate(&mut random)).collect();
    let lab = Lab::start(&envoy, &sets);
    let client = Client::new(&lab);
    let mut outcomes: BTreeMap<&str, u64> = BTreeMap::new();
    let mut differences = Vec::new();
    for (index, policies) in sets.iter().enumerate() {
        let set = Arc::new(PolicySet::compile(policies, &trust()).0);
        for _ in 0..FACTS_PER_SET {
            let Some(facts) = realizable(Facts::near(&mut random, policies)) else {
                *outcomes.entry("cannot be sent").or_default() += 1;
                continue;
            };
            let envoy = client.ask(index, &facts);
            let engine = engine(&set, &facts);
            let outcome = match (envoy, engine) {
                (200, Some(true)) => "allowed by both",
                (403, Some(false)) => "refused by both",
                // No request at all for Envoy, so nothing to judge; what the proxy makes of it is its own test.
                (400 | 404, _) => "malformed for Envoy",
                _ => {
                    let engine = explain(&set, &facts);
                    let policies: Vec<_> =
                        policies.iter().map(|p| (&p.name, serde_json::json!(p.spec))).collect();
                    differences
                        .push(format!("set {index}: Envoy {envoy}, {engine}\n{facts:?}\n{policies:?}"));
                    "different"
                }
            };
            *outcomes.entry(outcome).or_default() += 1;
        }
    }
    println!("Envoy and the engine: {outcomes:?}");
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n\n"));
    let compared =
        ["allowed by both", "refused by both"].map(|what| outcomes.get(what).copied().unwrap_or(0));
    assert!(compared.iter().all(|count| *count > 200), "too few were compared: {outcomes:?}");
}

/// Where Envoy is; says loudly why the test cannot run, and fails in CI.
fn envoy() -> Option<PathBuf> {
    let path = std::env::var_os("MAILLE_ENVOY").map(PathBuf::from).filter(|path| path.is_file());
    let reason = match &path {
        None => "MAILLE_ENVOY names no program",
        Some(_) if !rustix::process::geteuid().is_root() => "it needs root",
        Some(_) => return path,
    };
    assert!(std::env::var_os("CI").is_none(), "the comparison with Envoy cannot run in CI: {reason}");
    eprintln!("\n*** SKIPPED: comparison with Envoy: {reason} ***\n");
    None
}

/// Without aliases, so that principals mean what they say (expansion is the control plane's part).
fn trust() -> TrustContext {
    TrustContext {
        trust_domain: TrustDomain::parse("cluster.local").expect("valid"),
        aliases: Vec::new(),
        root_namespace: "istio-system".to_owned(),
    }
}

/// Policies that Istio would accept and enforce in the proxy itself.
fn generate(random: &mut Random) -> Vec<Authorization> {
    let mut policies = policies::policies(random);
    policies.retain(|policy| !policy.dry_run && matches!(policy.spec.action, Action::Allow | Action::Deny));
    for policy in &mut policies {
        policy.spec.rules.retain(|rule| is_valid(policy.namespace.as_str(), rule));
    }
    // Without rules, a DENY is refused by validation.
    policies.retain(|policy| policy.spec.action == Action::Allow || !policy.spec.rules.is_empty());
    policies
}

fn is_valid(namespace: &str, rule: &maille_config::istio::Rule) -> bool {
    let object = serde_json::json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "generated", "namespace": namespace},
        "spec": {"rules": [rule]},
    });
    maille_config::check(&object).is_ok()
}

/// The facts as they can really occur in the lab; nothing if they cannot.
fn realizable(mut facts: Facts) -> Option<Facts> {
    if facts.identity.is_none() {
        facts.sni = None;
    }
    let is_name = |name: &String| rustls::pki_types::DnsName::try_from(name.as_str()).is_ok();
    // Host names are compared in lower case: the listener's inspector lowers them.
    facts.sni = facts.sni.map(|name| name.to_ascii_lowercase()).filter(is_name);
    facts.source_ip = facts.source_ip.to_canonical();
    facts.destination_ip = facts.destination_ip.to_canonical();
    if facts.source_ip.is_ipv4() != facts.destination_ip.is_ipv4() {
        facts.destination_ip = same_family(facts.source_ip);
    }
    facts.forwarded = facts.forwarded.map(|address| address.to_canonical());
    facts.remote_ip = facts.source_ip;
    let is_at_hand = |address: IpAddr| lab::addresses().contains(&address);
    let is_plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
    let once =
        |name: &str| facts.headers.iter().filter(|(other, _)| other.eq_ignore_ascii_case(name)).count() < 2;
    let can_be_sent = is_at_hand(facts.source_ip)
        && is_at_hand(facts.destination_ip)
        && lab::PORTS.contains(&facts.destination_port)
        && facts.path.starts_with('/')
        && is_plain(&facts.path)
        && !facts.host.is_empty()
        && is_plain(&facts.host)
        && facts.method.bytes().all(|byte| byte.is_ascii_uppercase())
        && !facts.method.is_empty()
        && facts.headers.iter().all(|(_, value)| is_plain(value))
        // Envoy folds these on arrival; so does the proxy, not the engine.
        && ["accept", "via"].into_iter().all(once);
    can_be_sent.then_some(facts)
}

fn same_family(like: IpAddr) -> IpAddr {
    *lab::addresses()
        .iter()
        .find(|address| address.is_ipv4() == like.is_ipv4())
        .expect("both families are there")
}

/// What the engine says; nothing for a path that is refused before policy.
fn engine(set: &Arc<PolicySet>, facts: &Facts) -> Option<bool> {
    let path = normalize(Normalization::Base, &facts.path).ok()?;
    let request = RequestAttributes { path: &path, ..facts.request() };
    Some(set.on_connection(&facts.connection()).decide_http(&request).is_allowed())
}

/// The engine's decision, for a difference.
fn explain(set: &Arc<PolicySet>, facts: &Facts) -> String {
    let path = normalize(Normalization::Base, &facts.path).unwrap_or_default();
    let request = RequestAttributes { path: &path, ..facts.request() };
    let open = set.on_connection(&facts.connection());
    let decision = open.decide_http(&request);
    format!("engine: {}", open.explain(Some(&request), &decision))
}
