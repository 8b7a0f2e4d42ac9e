//! Endpoints, as Envoy's `/clusters?format=json` lists them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use maille_proto::facts as wire;
use serde_json::{Value, json};

use crate::address::{outbound_cluster, place, split_host_port, subset_cluster};
use crate::known::Known;

/// A status per cluster that has endpoints.
pub(crate) fn cluster_statuses(known: &Known<'_>) -> Vec<Value> {
    let mut all = Vec::new();
    for service in known.services.values() {
        // Names have endpoints of their own once they are looked up, as in Envoy.
        let looked_up = known.resolved.get(service.hostname.as_str());
        let endpoints = looked_up.copied().unwrap_or(&service.endpoints);
        for port in &service.ports {
            let ejected = known.ejected(&service.hostname, port.number);
            let mut add = |name: String, labels: &BTreeMap<String, String>| {
                let hosts: Vec<_> = of_port(endpoints, port.number, labels)
                    .into_iter()
                    .map(|(endpoint, number)| host_status(endpoint, number, &ejected))
                    .collect();
                if !hosts.is_empty() {
                    all.push(json!({"name": name, "addedViaApi": true, "hostStatuses": hosts}));
                }
            };
            add(outbound_cluster(port.number, &service.hostname), &BTreeMap::new());
            for subset in &port.subsets {
                add(subset_cluster(port.number, &subset.name, &service.hostname), &subset.labels);
            }
        }
    }
    let control = known.dump.bootstrap.as_ref().and_then(|b| split_host_port(&b.discovery_address));
    if let Some((host, port)) = control {
        let own = wire::Endpoint { dns_name: host.to_owned(), ..Default::default() };
        all.push(json!({"name": "xds-grpc", "hostStatuses": [host_status(&own, port, &BTreeSet::new())]}));
    }
    all
}

/// Endpoints with these labels behind one service port, each with its port. What is looked up by name has the name in
/// place of an address.
pub(crate) fn of_port<'e>(
    endpoints: &'e [wire::Endpoint],
    number: u32,
    labels: &BTreeMap<String, String>,
) -> Vec<(&'e wire::Endpoint, u32)> {
    let chosen = endpoints
        .iter()
        .filter(|endpoint| labels.iter().all(|(key, value)| endpoint.labels.get(key) == Some(value)));
    let each = chosen.flat_map(|endpoint| {
        let ports = endpoint.ports.iter().filter(|port| port.service_port == number);
        ports.map(move |port| (endpoint, port.target_port))
    });
    each.collect()
}

/// Facts list ready endpoints only.
fn host_status(endpoint: &wire::Endpoint, port: u32, ejected: &BTreeSet<&str>) -> Value {
    let mut status = json!({
        "address": place(endpoint, port),
        "healthStatus": {"edsHealthStatus": "HEALTHY"},
        "weight": endpoint.weight.max(1)
    });
    let name = match endpoint.address.parse::<IpAddr>() {
        Ok(address) => SocketAddr::new(address, u16::try_from(port).unwrap_or_default()).to_string(),
        Err(_) => endpoint.unix_path.clone(),
    };
    if ejected.contains(name.as_str()) {
        status["healthStatus"]["failedOutlierCheck"] = json!(true);
    }
    let workload = endpoint.workload.as_ref().filter(|w| !w.uid.is_empty());
    if let (Some(fields), Some(workload)) = (status.as_object_mut(), workload) {
        fields.insert("hostname".to_owned(), json!(workload.uid));
    }
    status
}
