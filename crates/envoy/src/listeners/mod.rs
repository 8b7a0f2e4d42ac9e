//! Listeners: the two that captured connections arrive at, and one per service that the application called.

mod inbound;
mod outbound;

use serde_json::{Map, Value, json};

use crate::address::{PASSTHROUGH, socket, type_url};
use crate::known::Known;

/// All listeners.
pub(crate) fn listeners(known: &Known<'_>) -> Vec<Value> {
    let mut all = outbound::services(known);
    all.push(outbound::capture(known));
    if known.facts.inbound.is_some() {
        all.push(inbound::capture(known));
    }
    all
}

/// `filterChainMatch` of a chain; what is empty matches everything.
#[derive(Default)]
struct Match<'a> {
    port: Option<u32>,
    transport: Option<&'static str>,
    applications: &'a [&'static str],
    server_names: Vec<String>,
    any_address: bool,
}

impl Match<'_> {
    fn to_value(&self) -> Value {
        let mut fields = Map::new();
        let mut set = |name: &str, value: Value| fields.insert(name.to_owned(), value);
        if let Some(port) = self.port {
            set("destinationPort", json!(port));
        }
        if self.any_address {
            set(
                "prefixRanges",
                json!([{"addressPrefix": "0.0.0.0", "prefixLen": 0}, {"addressPrefix": "::", "prefixLen": 0}]),
            );
        }
        if !self.server_names.is_empty() {
            set("serverNames", json!(self.server_names));
        }
        if let Some(transport) = self.transport {
            set("transportProtocol", json!(transport));
        }
        if !self.applications.is_empty() {
            set("applicationProtocols", json!(self.applications));
        }
        Value::Object(fields)
    }
}

/// What plaintext of HTTP looks like to Envoy's HTTP inspector.
const PLAIN_HTTP: [&str; 2] = ["http/1.1", "h2c"];

fn tcp_proxy(cluster: &str) -> Value {
    json!({
        "name": "envoy.filters.network.tcp_proxy",
        "typedConfig": {
            "@type": type_url("envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"),
            "statPrefix": cluster,
            "cluster": cluster
        }
    })
}

/// A connection manager; `route` is `("rds", …)` or `("routeConfig", …)`.
fn connection_manager(stat_prefix: &str, route: (&str, Value), mut http_filters: Vec<Value>) -> Value {
    http_filters.push(json!({
        "name": "envoy.filters.http.router",
        "typedConfig": {"@type": type_url("envoy.extensions.filters.http.router.v3.Router")}
    }));
    json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typedConfig": {
            "@type": type_url(
                "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
            ),
            "statPrefix": stat_prefix,
            route.0: route.1,
            "httpFilters": http_filters,
        }
    })
}

fn rds(name: &str) -> (&'static str, Value) {
    ("rds", json!({"configSource": {"ads": {}, "resourceApiVersion": "V3"}, "routeConfigName": name}))
}

fn listener(name: &str, address: &str, port: u32, direction: &str, chains: Vec<Value>) -> Value {
    json!({
        "name": name,
        "address": socket(address, port),
        "filterChains": chains,
        "trafficDirection": direction,
    })
}

/// Where a capturing listener listens: Maille listens on every address of both families.
fn capture_address(configured: &str, default_port: u16) -> (String, u32) {
    match crate::address::split_host_port(configured) {
        Some(("::" | "0.0.0.0", port)) => ("0.0.0.0".to_owned(), port),
        Some((host, port)) => (host.to_owned(), port),
        None => ("0.0.0.0".to_owned(), u32::from(default_port)),
    }
}

fn passthrough_name(registry_only: bool) -> &'static str {
    if registry_only { crate::address::BLACK_HOLE } else { PASSTHROUGH }
}
