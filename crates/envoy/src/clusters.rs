//! Clusters: what connections can be sent to.

use maille_proto::facts as wire;
use serde_json::{Map, Value, json};

use crate::address::{
    BLACK_HOLE, INBOUND_PASSTHROUGH, PASSTHROUGH, inbound_cluster, outbound_cluster, socket, split_host_port,
};
use crate::known::Known;
use crate::{endpoints, transport};

/// All clusters.
pub(crate) fn clusters(known: &Known<'_>) -> Vec<Value> {
    let mut all = Vec::new();
    for service in known.services.values() {
        all.extend(service.ports.iter().map(|port| of_port(service, port)));
    }
    for direct in &known.workloads {
        for port in &direct.headless_ports {
            let name = outbound_cluster(port.service_port, &port.service_hostname);
            if !all.iter().any(|cluster: &Value| cluster["name"] == name.as_str()) {
                all.push(of_headless_port(&name, port));
            }
        }
    }
    let own = known.own_ports();
    all.extend(own.iter().filter_map(|port| Some(own_port(port.number, port.declared?))));
    all.push(original_destination(PASSTHROUGH));
    all.push(original_destination(INBOUND_PASSTHROUGH));
    all.push(json!({"name": BLACK_HOLE, "type": "STATIC", "connectTimeout": "10s"}));
    all.extend(control_plane(known));
    all
}

fn original_destination(name: &str) -> Value {
    json!({"name": name, "type": "ORIGINAL_DST", "connectTimeout": "10s", "lbPolicy": "CLUSTER_PROVIDED"})
}

fn of_port(service: &wire::Service, port: &wire::ServicePort) -> Value {
    let name = outbound_cluster(port.number, &service.hostname);
    let kind = match (service.resolution(), service.headless) {
        (wire::Resolution::Dns, _) => "STRICT_DNS",
        (wire::Resolution::DnsRoundRobin, _) => "LOGICAL_DNS",
        // Each name is looked up when it is called: Envoy's dynamic forward proxy.
        (wire::Resolution::DynamicDns, _) => "CLUSTER_PROVIDED",
        (wire::Resolution::None, _) => "ORIGINAL_DST",
        (wire::Resolution::Endpoints, true) => "ORIGINAL_DST",
        (wire::Resolution::Endpoints, false) => "EDS",
    };
    let mut cluster = Map::new();
    let mut set = |field: &str, value: Value| cluster.insert(field.to_owned(), value);
    set("name", json!(name));
    set("type", json!(kind));
    match kind {
        "EDS" => {
            let source = json!({"ads": {}, "initialFetchTimeout": "0s", "resourceApiVersion": "V3"});
            set("edsClusterConfig", json!({"edsConfig": source, "serviceName": name}));
        }
        "STRICT_DNS" | "LOGICAL_DNS" => {
            set("respectDnsTtl", json!(true));
            set("loadAssignment", json!({"clusterName": name, "endpoints": named_endpoints(service, port)}));
        }
        _ => {
            set("lbPolicy", json!("CLUSTER_PROVIDED"));
        }
    }
    set("connectTimeout", json!("10s"));
    let sni = format!("outbound_.{}_._.{}", port.number, service.hostname);
    let names = &service.subject_alt_names;
    match &port.tls {
        Some(tls) => {
            if let Some(socket) = transport::of_rule(tls, &sni, names, port.protocol()) {
                set("transportSocket", socket);
            }
        }
        None if service.endpoints.iter().any(|endpoint| is_mutual(endpoint, port.number)) => {
            set("transportSocketMatches", auto_mutual(&sni, names, port.protocol()));
        }
        None => {}
    }
    set("metadata", metadata(service, port));
    Value::Object(cluster)
}

/// Auto mTLS: each endpoint says what it takes.
fn auto_mutual(sni: &str, names: &[String], protocol: wire::Protocol) -> Value {
    json!([
        {
            "name": "tlsMode-istio",
            "match": {"tlsMode": "istio"},
            "transportSocket": transport::istio_mutual(sni, names, protocol)
        },
        {"name": "tlsMode-disabled", "match": {}, "transportSocket": transport::raw()}
    ])
}

fn is_mutual(endpoint: &wire::Endpoint, service_port: u32) -> bool {
    endpoint
        .ports
        .iter()
        .any(|port| port.service_port == service_port && port.tls() == wire::EndpointTls::IstioMutual)
}

fn named_endpoints(service: &wire::Service, port: &wire::ServicePort) -> Value {
    let addresses = endpoints::of_port(&service.endpoints, port.number);
    let list: Vec<_> = addresses
        .iter()
        .map(|(host, number, _)| json!({"endpoint": {"address": socket(host, *number)}, "healthStatus": "HEALTHY"}))
        .collect();
    json!([{"lbEndpoints": list}])
}

/// `istio.config` is where the DESTINATION RULE column comes from.
fn metadata(service: &wire::Service, port: &wire::ServicePort) -> Value {
    let mut istio = Map::new();
    let rule = port.tls.as_ref().and_then(|tls| tls.rule.split_once('/'));
    if let Some((namespace, name)) = rule {
        let path = format!("/apis/networking.istio.io/v1/namespaces/{namespace}/destination-rule/{name}");
        istio.insert("config".to_owned(), json!(path));
    }
    let own = json!([{"host": service.hostname, "name": service.name, "namespace": service.namespace}]);
    istio.insert("services".to_owned(), own);
    if service.external {
        istio.insert("external".to_owned(), json!(true));
    }
    json!({"filterMetadata": {"istio": istio}})
}

fn of_headless_port(name: &str, port: &wire::HeadlessPort) -> Value {
    let mut cluster = original_destination(name);
    let sni = format!("outbound_.{}_._.{}", port.service_port, port.service_hostname);
    let own = json!([{"host": port.service_hostname, "name": port.service_name, "namespace": port.service_namespace}]);
    if let Some(fields) = cluster.as_object_mut() {
        if port.tls() == wire::EndpointTls::IstioMutual {
            let socket = transport::istio_mutual(&sni, &port.subject_alt_names, port.protocol());
            fields.insert("transportSocket".to_owned(), socket);
        }
        fields.insert("metadata".to_owned(), json!({"filterMetadata": {"istio": {"services": own}}}));
    }
    cluster
}

/// The own application, called from 127.0.0.6 so that the call is not captured again (reference mtls IC-8).
fn own_port(number: u32, declared: &wire::InboundPort) -> Value {
    json!({
        "name": inbound_cluster(number),
        "type": "ORIGINAL_DST",
        "connectTimeout": "10s",
        "lbPolicy": "CLUSTER_PROVIDED",
        "upstreamBindConfig": {"sourceAddress": {"address": "127.0.0.6", "portValue": 0}},
        "metadata": {"filterMetadata": {"istio": {"services": [{
            "host": declared.service_hostname,
            "name": declared.service_name,
            "namespace": declared.service_namespace
        }]}}}
    })
}

fn control_plane(known: &Known<'_>) -> Option<Value> {
    let (host, port) = split_host_port(&known.dump.bootstrap.as_ref()?.discovery_address)?;
    Some(json!({
        "name": "xds-grpc",
        "type": "STRICT_DNS",
        "connectTimeout": "10s",
        "loadAssignment": {
            "clusterName": "xds-grpc",
            "endpoints": [{"lbEndpoints": [{"endpoint": {"address": socket(host, port)}}]}]
        }
    }))
}
