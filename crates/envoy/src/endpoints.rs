//! Endpoints, as Envoy's `/clusters?format=json` lists them.

use maille_proto::facts as wire;
use serde_json::{Value, json};

use crate::address::{outbound_cluster, socket, split_host_port};
use crate::known::Known;

/// A status per cluster that has endpoints.
pub(crate) fn cluster_statuses(known: &Known<'_>) -> Vec<Value> {
    let mut all = Vec::new();
    for service in known.services.values() {
        for port in &service.ports {
            // Names have endpoints of their own once they are looked up, as in Envoy.
            let looked_up = known.resolved.get(service.hostname.as_str());
            let hosts: Vec<_> = of_port(looked_up.copied().unwrap_or(&service.endpoints), port.number)
                .into_iter()
                .map(|(address, port, endpoint)| host_status(&address, port, endpoint))
                .collect();
            if !hosts.is_empty() {
                let name = outbound_cluster(port.number, &service.hostname);
                all.push(json!({"name": name, "addedViaApi": true, "hostStatuses": hosts}));
            }
        }
    }
    let control = known.dump.bootstrap.as_ref().and_then(|b| split_host_port(&b.discovery_address));
    if let Some((host, port)) = control {
        all.push(json!({"name": "xds-grpc", "hostStatuses": [host_status(host, port, None)]}));
    }
    all
}

/// Address, port and endpoint of everything behind one service port. What is looked up by name has the name in
/// place of an address.
pub(crate) fn of_port(
    endpoints: &[wire::Endpoint],
    number: u32,
) -> Vec<(String, u32, Option<&wire::Endpoint>)> {
    let each = endpoints.iter().flat_map(|endpoint| {
        let address = if endpoint.address.is_empty() { &endpoint.dns_name } else { &endpoint.address };
        let ports = endpoint.ports.iter().filter(|port| port.service_port == number);
        ports.map(move |port| (address.clone(), port.target_port, Some(endpoint)))
    });
    each.collect()
}

/// Facts list ready endpoints only.
fn host_status(address: &str, port: u32, endpoint: Option<&wire::Endpoint>) -> Value {
    let mut status = json!({
        "address": socket(address, port),
        "healthStatus": {"edsHealthStatus": "HEALTHY"},
        "weight": 1
    });
    let workload = endpoint.and_then(|endpoint| endpoint.workload.as_ref()).filter(|w| !w.uid.is_empty());
    if let (Some(fields), Some(workload)) = (status.as_object_mut(), workload) {
        fields.insert("hostname".to_owned(), json!(workload.uid));
    }
    status
}
