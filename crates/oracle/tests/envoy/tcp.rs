//! Opaque bytes: what Envoy's network filters make of policies, by the asymmetric rule (reference authorization 11).

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;

use maille_config::istio::Action;
use maille_policy::{Authorization, PolicySet};
use serde_json::{Value, json};

use crate::client::Client;
use crate::lab::{Lab, PORTS, addresses, cluster, tcp_address};
use crate::themes::Set;
use crate::translate::{Choice, providers, rbac};
use crate::{realizable, trust};

const UPSTREAM: u16 = 7003;
/// The set is said by the caller's port: this and its number.
const FIRST_PORT: u16 = 10_000;
const MESSAGE: &[u8] = b"opaque";

/// Istio's network filters of one workload, in its order.
fn filters(policies: &[Authorization]) -> Vec<Value> {
    const RBAC: &str = "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC";
    let rules = |action: Action, provider: Option<&str>| {
        rbac(policies, Choice { action, dry_run: false, provider, tcp: true })
    };
    let filter = |rules: Value| json!({ "name": "rbac", "typed_config": { "@type": RBAC, "stat_prefix": "tcp.", "rules": rules } });
    // One that cannot be asked: refused. Only gRPC providers work here; their filter is not under test, what they
    // would be asked about is.
    let custom: Vec<Value> =
        providers(policies).iter().filter_map(|name| rules(Action::Custom, Some(name))).map(filter).collect();
    let enforced = [Action::Audit, Action::Deny, Action::Allow].into_iter();
    let mut all = custom;
    all.extend(enforced.filter_map(|action| rules(action, None)).map(filter));
    all.push(json!({
        "name": "tcp",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": "inbound",
            "cluster": "upstream",
        },
    }));
    all
}

fn configuration(sets: &[Set], tls: &Value) -> Value {
    let listener = |(address, port): (&str, &u16)| {
        let chains = sets.iter().zip(FIRST_PORT..).flat_map(|(set, from)| {
            let filters = filters(&set.policies);
            let matching = |protocol: &str| json!({ "transport_protocol": protocol, "source_ports": [from] });
            [
                json!({ "filter_chain_match": matching("tls"), "transport_socket": tls, "filters": filters }),
                json!({ "filter_chain_match": matching("raw_buffer"), "filters": filters }),
            ]
        });
        let chains: Vec<Value> = chains.collect();
        json!({
            "name": format!("{address}-{port}"),
            "address": tcp_address(address, *port),
            "listener_filters": [{
                "name": "tls",
                "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector" },
            }],
            "filter_chains": chains,
        })
    };
    let all = PORTS.iter().flat_map(|port| [("::", port), ("0.0.0.0", port)]);
    let listeners: Vec<Value> = all.map(listener).collect();
    json!({ "static_resources": { "listeners": listeners, "clusters": [cluster("upstream", UPSTREAM)] } })
}

/// Sends bytes under every set.
pub(crate) fn compare(envoy: &Path, sets: Vec<Set>) {
    let address = addresses().first().copied().expect("there are some");
    let ready = SocketAddr::new(address, PORTS.last().copied().unwrap_or_default());
    let lab = Lab::start(envoy, "tcp", ready, &|tls| configuration(&sets, tls));
    echo(&lab);
    let client = Client::new(&lab);
    let mut outcomes: BTreeMap<&str, u64> = BTreeMap::new();
    let mut different = 0;
    for (Set { theme, policies, questions }, port) in sets.into_iter().zip(FIRST_PORT..) {
        let set = Arc::new(PolicySet::compile(&policies, &trust()).0);
        for question in questions {
            let mut facts = question.facts;
            // Nothing of HTTP is there.
            (facts.method, facts.host, facts.path) = ("GET".to_owned(), "h".to_owned(), "/".to_owned());
            facts.headers.clear();
            facts.forwarded = None;
            let Some(facts) = realizable(facts) else {
                *outcomes.entry("cannot be sent").or_default() += 1;
                continue;
            };
            let passed = client.send(&facts, port, MESSAGE) == MESSAGE;
            let policy = set.on_connection(&facts.connection());
            let decision = policy.decide_tcp();
            let ours = policy.ask_tcp().is_none() && decision.is_allowed();
            let outcome = match (passed, ours) {
                (true, true) => "passed by both",
                (false, false) => "refused by both",
                _ => {
                    let policies: Vec<_> = policies.iter().map(|p| json!(p.spec).to_string()).collect();
                    println!(
                        "{theme}: Envoy passes: {passed}, engine: {decision:?}\n{facts:?}\n{policies:?}\n"
                    );
                    different += 1;
                    "different"
                }
            };
            *outcomes.entry(outcome).or_default() += 1;
        }
    }
    println!("Envoy and the engine, TCP: {outcomes:#?}");
    assert_eq!(different, 0, "differences, printed above");
    for what in ["passed by both", "refused by both"] {
        assert!(outcomes.get(what).is_some_and(|count| *count > 100), "too few were {what}: {outcomes:?}");
    }
}

/// Sends back what comes.
fn echo(lab: &Lab) {
    let bound = lab.namespace.run(|| TcpListener::bind(("127.0.0.1", UPSTREAM)));
    let listener = bound.expect("the namespace is there").expect("the port is free");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut part = [0; 64];
                while let Ok(count @ 1..) = stream.read(&mut part) {
                    if stream.write_all(&part[..count]).is_err() {
                        return;
                    }
                }
            });
        }
    });
}
