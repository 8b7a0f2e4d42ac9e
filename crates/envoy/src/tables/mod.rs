//! Tables for people, made of Envoy's shapes, with istioctl's columns, filters and order.
//!
//! A table is lines of cells, the headings first. Works on dumps of Envoy too.

mod clusters;
mod endpoints;
mod listeners;
mod routes;
mod secrets;

pub use clusters::{ClusterFilter, clusters};
pub use endpoints::{EndpointFilter, endpoints};
pub use listeners::{ListenerFilter, listeners, listeners_brief};
pub use routes::{routes, routes_brief};
pub use secrets::{CertificateFacts, certificate_facts, secrets};

use serde_json::Value;

/// Lines of cells.
pub type Table = Vec<Vec<String>>;

fn headings(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// Address and port of protobuf's `Address`; a pipe has its path and no port.
fn address_of(value: &Value) -> (String, Option<u64>) {
    let socket = &value["socketAddress"];
    if socket.is_object() {
        return (text(&socket["address"]).to_owned(), socket["portValue"].as_u64());
    }
    match value["pipe"]["path"].as_str() {
        Some(path) => (format!("unix://{path}"), None),
        None => {
            let internal = &value["envoyInternalAddress"];
            let (name, endpoint) = (text(&internal["serverListenerName"]), text(&internal["endpointId"]));
            (format!("envoy://{name}/{endpoint}"), None)
        }
    }
}
