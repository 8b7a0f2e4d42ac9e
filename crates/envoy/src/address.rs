//! Addresses and names as Envoy and Istio write them.

use maille_proto::facts::Endpoint;
use serde_json::{Value, json};

/// `socketAddress` of protobuf's JSON.
pub(crate) fn socket(address: &str, port: u32) -> Value {
    json!({"socketAddress": {"address": address, "portValue": port}})
}

/// Protobuf's address of an endpoint, which may be the path of a Unix socket.
pub(crate) fn place(endpoint: &Endpoint, port: u32) -> Value {
    if !endpoint.unix_path.is_empty() {
        return json!({"pipe": {"path": endpoint.unix_path}});
    }
    socket(if endpoint.address.is_empty() { &endpoint.dns_name } else { &endpoint.address }, port)
}

/// Istio's name of a cluster of a service.
pub(crate) fn outbound_cluster(port: u32, host: &str) -> String {
    format!("outbound|{port}||{host}")
}

/// Istio's name of the cluster of a subset of a service's endpoints.
pub(crate) fn subset_cluster(port: u32, subset: &str, host: &str) -> String {
    format!("outbound|{port}|{subset}|{host}")
}

/// Istio's name of the cluster in front of the own application.
pub(crate) fn inbound_cluster(port: u32) -> String {
    format!("inbound|{port}||")
}

/// `host:port` apart; brackets of an IPv6 address are dropped.
pub(crate) fn split_host_port(text: &str) -> Option<(&str, u32)> {
    let (host, port) = text.rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    Some((host, port.parse().ok()?))
}

/// Where everything goes that no listener of a service takes.
pub(crate) const PASSTHROUGH: &str = "PassthroughCluster";
/// Where nothing gets through.
pub(crate) const BLACK_HOLE: &str = "BlackHoleCluster";
/// The own application, at ports that no Service declares.
pub(crate) const INBOUND_PASSTHROUGH: &str = "InboundPassthroughCluster";

/// `@type` of a message of Envoy.
pub(crate) fn type_url(message: &str) -> String {
    format!("type.googleapis.com/{message}")
}
