//! `virtualOutbound` (15001), and a listener per service port that the application called.

use std::collections::BTreeMap;

use maille_core::ports;
use maille_proto::facts as wire;
use serde_json::{Value, json};
use wire::Protocol;

use super::{
    Match, PLAIN_HTTP, capture_address, connection_manager, listener, passthrough_name, rds, tcp_proxy,
};
use crate::address::{BLACK_HOLE, outbound_cluster};
use crate::known::Known;
use crate::policy;

/// The capturing listener: what no other listener takes passes through, or is refused.
pub(super) fn capture(known: &Known<'_>) -> Value {
    let bootstrap = known.dump.bootstrap.as_ref();
    let configured = bootstrap.map(|b| b.outbound.as_str()).unwrap_or_default();
    let (address, port) = capture_address(configured, ports::OUTBOUND);
    let chains = vec![
        json!({
            "name": "virtualOutbound-blackhole",
            "filterChainMatch": Match { port: Some(port), ..Match::default() }.to_value(),
            "filters": [tcp_proxy(BLACK_HOLE)],
        }),
        json!({
            "name": "virtualOutbound-catchall-tcp",
            "filters": [tcp_proxy(passthrough_name(known.registry_only))],
        }),
    ];
    let mut listener = listener("virtualOutbound", &address, port, "OUTBOUND", chains);
    if let Some(fields) = listener.as_object_mut() {
        fields.insert("useOriginalDst".to_owned(), json!(true));
    }
    listener
}

/// Chains of one listener, by its address and port.
type Chains = BTreeMap<(u32, String), Vec<Value>>;

/// The listeners of services. HTTP ports share one per number, since the Host header chooses the service.
pub(super) fn services(known: &Known<'_>) -> Vec<Value> {
    let mut chains = Chains::new();
    for service in known.services.values() {
        for port in &service.ports {
            of_port(known, service, port, &mut chains);
        }
    }
    for workload in &known.workloads {
        of_workload(known, workload, &mut chains);
    }
    let build = |((port, address), mut chains): ((u32, String), Vec<Value>)| {
        // Chains with a match go first; Envoy's order does not matter, a reader's does.
        chains.sort_by_key(|chain| chain["filterChainMatch"].is_null());
        chains.dedup();
        listener(&format!("{address}_{port}"), &address, port, "OUTBOUND", chains)
    };
    chains.into_iter().map(build).collect()
}

fn of_port(known: &Known<'_>, service: &wire::Service, port: &wire::ServicePort, chains: &mut Chains) {
    let cluster = outbound_cluster(port.number, &service.hostname);
    let tcp = |cluster: &str| {
        let mut filter = tcp_proxy(cluster);
        if let Some(hash) = policy::source_hash_policy(port.traffic.as_ref()) {
            filter["typedConfig"]["hashPolicy"] = hash;
        }
        filter
    };
    // An application that speaks plain HTTP to a port whose TLS the proxy originates is understood as HTTP.
    let originates = port.tls.as_ref().is_some_and(|tls| tls.mode() != wire::client_tls::Mode::Disable);
    match port.protocol() {
        Protocol::Http | Protocol::Http2 => shared_http(known, port.number, chains),
        Protocol::Tls if originates => shared_http(known, port.number, chains),
        Protocol::Tls => {
            let sni = Match { server_names: vec![service.hostname.clone()], ..Match::default() };
            let chain = json!({
                "name": format!("{}_{}", service.hostname, port.number),
                "filterChainMatch": sni.to_value(),
                "filters": [tcp(&cluster)]
            });
            chains.entry((port.number, "0.0.0.0".to_owned())).or_default().push(chain);
        }
        Protocol::Tcp => {
            for address in addresses(service) {
                chains.entry((port.number, address)).or_default().push(json!({"filters": [tcp(&cluster)]}));
            }
        }
        Protocol::Auto => {
            let route = format!("{}:{}", service.hostname, port.number);
            for address in addresses(service) {
                let chain = chains.entry((port.number, address)).or_default();
                chain.push(http_chain(&route));
                chain.push(json!({"filters": [tcp(&cluster)]}));
            }
        }
    }
}

fn of_workload(known: &Known<'_>, direct: &wire::DirectWorkload, chains: &mut Chains) {
    let Some(address) = direct.workload.as_ref().and_then(|workload| workload.addresses.first()) else {
        return;
    };
    for port in &direct.headless_ports {
        let cluster = outbound_cluster(port.service_port, &port.service_hostname);
        match port.protocol() {
            Protocol::Http | Protocol::Http2 => shared_http(known, port.port, chains),
            Protocol::Auto => {
                let chain = chains.entry((port.port, address.clone())).or_default();
                chain.push(http_chain(&format!("{}:{}", port.service_hostname, port.service_port)));
                chain.push(json!({"filters": [tcp_proxy(&cluster)]}));
            }
            Protocol::Tcp | Protocol::Tls => {
                let chain = json!({"filters": [tcp_proxy(&cluster)]});
                chains.entry((port.port, address.clone())).or_default().push(chain);
            }
        }
    }
}

/// Istio's listener for HTTP ports: HTTP by route, the rest as to any unknown destination.
fn shared_http(known: &Known<'_>, port: u32, chains: &mut Chains) {
    let chain = chains.entry((port, "0.0.0.0".to_owned())).or_default();
    let http = http_chain(&port.to_string());
    if !chain.contains(&http) {
        chain.push(http);
        chain.push(json!({
            "name": "PassthroughFilterChain",
            "filters": [tcp_proxy(passthrough_name(known.registry_only))]
        }));
    }
}

fn http_chain(route: &str) -> Value {
    let matched =
        Match { transport: Some("raw_buffer"), applications: &PLAIN_HTTP, ..Match::default() }.to_value();
    json!({
        "filterChainMatch": matched,
        "filters": [connection_manager(&format!("outbound_{route}"), rds(route), Vec::new())]
    })
}

/// The virtual addresses; every address for a service that has none.
fn addresses(service: &wire::Service) -> Vec<String> {
    match service.addresses.first() {
        Some(first) => vec![first.clone()],
        None => vec!["0.0.0.0".to_owned()],
    }
}
