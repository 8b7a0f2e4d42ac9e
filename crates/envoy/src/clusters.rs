//! Clusters: what connections can be sent to.

use std::collections::BTreeMap;

use maille_proto::facts as wire;
use serde_json::{Map, Value, json};

use crate::address::{
    BLACK_HOLE, INBOUND_PASSTHROUGH, PASSTHROUGH, inbound_cluster, outbound_cluster, place, socket,
    split_host_port, subset_cluster, type_url,
};
use crate::known::Known;
use crate::{endpoints, policy, transport};

/// Envoy's dynamic forward proxy.
const DYNAMIC: &str = "envoy.clusters.dynamic_forward_proxy";

/// All clusters.
pub(crate) fn clusters(known: &Known<'_>) -> Vec<Value> {
    let mut all = Vec::new();
    for service in known.services.values() {
        for port in &service.ports {
            let host = &service.hostname;
            all.push(of_port(service, &Shown::whole(port, host)));
            all.extend(
                port.subsets.iter().map(|subset| of_port(service, &Shown::subset(port, subset, host))),
            );
        }
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
    let to_localhost = known.facts.mesh_settings.as_ref().is_some_and(|mesh| mesh.deliver_to_localhost);
    all.extend(own.iter().filter_map(|port| Some(own_port(port.number, port.declared?, to_localhost))));
    all.push(original_destination(PASSTHROUGH));
    all.push(original_destination(INBOUND_PASSTHROUGH));
    all.push(json!({"name": BLACK_HOLE, "type": "STATIC", "connectTimeout": "10s"}));
    all.extend(control_plane(known));
    all
}

fn original_destination(name: &str) -> Value {
    json!({"name": name, "type": "ORIGINAL_DST", "connectTimeout": "10s", "lbPolicy": "CLUSTER_PROVIDED"})
}

/// A service port, or a subset of it.
struct Shown<'s> {
    name: String,
    sni: String,
    port: &'s wire::ServicePort,
    labels: &'s BTreeMap<String, String>,
    tls: Option<&'s wire::ClientTls>,
    traffic: Option<&'s wire::TrafficPolicy>,
}

impl<'s> Shown<'s> {
    fn whole(port: &'s wire::ServicePort, host: &str) -> Self {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        Self {
            name: outbound_cluster(port.number, host),
            sni: format!("outbound_.{}_._.{host}", port.number),
            port,
            labels: &NONE,
            tls: port.tls.as_ref(),
            traffic: port.traffic.as_ref(),
        }
    }

    fn subset(port: &'s wire::ServicePort, subset: &'s wire::Subset, host: &str) -> Self {
        Self {
            name: subset_cluster(port.number, &subset.name, host),
            sni: format!("outbound_.{}_.{}_.{host}", port.number, subset.name),
            port,
            labels: &subset.labels,
            tls: subset.tls.as_ref(),
            traffic: subset.traffic.as_ref(),
        }
    }
}

fn of_port(service: &wire::Service, shown: &Shown<'_>) -> Value {
    let Shown { name, sni, port, tls, traffic, .. } = shown;
    let kind = match (service.resolution(), service.headless) {
        _ if policy::is_passthrough(*traffic) => "ORIGINAL_DST",
        (wire::Resolution::Dns, _) => "STRICT_DNS",
        (wire::Resolution::DnsRoundRobin, _) => "LOGICAL_DNS",
        (wire::Resolution::DynamicDns, _) => DYNAMIC,
        (wire::Resolution::None, _) => "ORIGINAL_DST",
        (wire::Resolution::Endpoints, true) => "ORIGINAL_DST",
        (wire::Resolution::Endpoints, false) => "EDS",
    };
    let mut cluster = Map::new();
    let mut set = |field: &str, value: Value| cluster.insert(field.to_owned(), value);
    set("name", json!(name));
    match kind {
        // Each name is looked up when it is called.
        DYNAMIC => set("clusterType", dynamic_forward_proxy()),
        kind => set("type", json!(kind)),
    };
    match kind {
        "EDS" => {
            let source = json!({"ads": {}, "initialFetchTimeout": "0s", "resourceApiVersion": "V3"});
            set("edsClusterConfig", json!({"edsConfig": source, "serviceName": name}));
        }
        "STRICT_DNS" | "LOGICAL_DNS" => {
            set("respectDnsTtl", json!(true));
            let endpoints = named_endpoints(service, shown);
            set("loadAssignment", json!({"clusterName": name, "endpoints": endpoints}));
        }
        _ => {
            set("lbPolicy", json!("CLUSTER_PROVIDED"));
        }
    }
    if matches!(kind, "EDS" | "STRICT_DNS" | "LOGICAL_DNS") {
        policy::balance(*traffic, &mut cluster);
    }
    let pool = traffic.and_then(|traffic| traffic.connection_pool.as_ref());
    policy::bound(pool, port.protocol() == wire::Protocol::Http2, &mut cluster);
    policy::detect(*traffic, &mut cluster);
    let mut set = |field: &str, value: Value| cluster.insert(field.to_owned(), value);
    let names = &service.subject_alt_names;
    match tls {
        Some(tls) => {
            if let Some(socket) = transport::of_rule(tls, sni, names, port.protocol()) {
                set("transportSocket", socket);
            }
        }
        None if !service.endpoints.iter().any(|endpoint| is_mutual(endpoint, port.number)) => {}
        // There is no choice between endpoints where the application has chosen (reference mtls 2.1).
        None if kind == "ORIGINAL_DST" => {
            set("transportSocket", transport::istio_mutual(sni, names, port.protocol()));
        }
        None => {
            set("transportSocketMatches", auto_mutual(sni, names, port.protocol()));
        }
    }
    set("metadata", metadata(service, shown));
    Value::Object(cluster)
}

/// Envoy's cluster of this kind has a type by name.
fn dynamic_forward_proxy() -> Value {
    const TYPE: &str = "envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig";
    json!({
        "name": DYNAMIC,
        "typedConfig": {
            "@type": type_url(TYPE),
            "dnsCacheConfig": {"name": "dynamic_forward_proxy_cache_config", "dnsLookupFamily": "ALL"}
        }
    })
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

fn named_endpoints(service: &wire::Service, shown: &Shown<'_>) -> Value {
    let list: Vec<_> = endpoints::of_port(&service.endpoints, shown.port.number, shown.labels)
        .into_iter()
        .map(|(endpoint, number)| {
            json!({
                "endpoint": {"address": place(endpoint, number)},
                "healthStatus": "HEALTHY",
                "loadBalancingWeight": endpoint.weight.max(1)
            })
        })
        .collect();
    json!([{"lbEndpoints": list}])
}

/// `istio.config` is where the DESTINATION RULE column comes from.
fn metadata(service: &wire::Service, shown: &Shown<'_>) -> Value {
    let mut istio = Map::new();
    let rules = [shown.tls.map(|tls| tls.rule.as_str()), shown.traffic.map(|traffic| traffic.rule.as_str())];
    if let Some((namespace, name)) = rules.into_iter().flatten().find_map(|rule| rule.split_once('/')) {
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
        let pool = port.traffic.as_ref().and_then(|traffic| traffic.connection_pool.as_ref());
        policy::bound(pool, port.protocol() == wire::Protocol::Http2, fields);
        policy::detect(port.traffic.as_ref(), fields);
        let names = &port.subject_alt_names;
        let socket = match &port.client_tls {
            Some(tls) => transport::of_rule(tls, &sni, names, port.protocol()),
            None if port.tls() == wire::EndpointTls::IstioMutual => {
                Some(transport::istio_mutual(&sni, names, port.protocol()))
            }
            None => None,
        };
        if let Some(socket) = socket {
            fields.insert("transportSocket".to_owned(), socket);
        }
        fields.insert("metadata".to_owned(), json!({"filterMetadata": {"istio": {"services": own}}}));
    }
    cluster
}

/// The own application, called from 127.0.0.6 so that the call is not captured again (reference mtls IC-8), or on the
/// loopback address.
fn own_port(number: u32, declared: &wire::InboundPort, to_localhost: bool) -> Value {
    let name = inbound_cluster(number);
    let mut cluster = original_destination(&name);
    if let Some(fields) = cluster.as_object_mut() {
        policy::bound(
            declared.connection_pool.as_ref(),
            declared.protocol() == wire::Protocol::Http2,
            fields,
        );
        if to_localhost {
            fields.insert("type".to_owned(), json!("STATIC"));
            fields.insert("lbPolicy".to_owned(), json!("ROUND_ROBIN"));
            let endpoint = json!({"endpoint": {"address": socket("127.0.0.1", number)}});
            let endpoints = json!([{"lbEndpoints": [endpoint]}]);
            fields.insert("loadAssignment".to_owned(), json!({"clusterName": name, "endpoints": endpoints}));
        } else {
            let source = json!({"sourceAddress": {"address": "127.0.0.6", "portValue": 0}});
            fields.insert("upstreamBindConfig".to_owned(), source);
        }
        let own = json!([{
            "host": declared.service_hostname,
            "name": declared.service_name,
            "namespace": declared.service_namespace
        }]);
        fields.insert("metadata".to_owned(), json!({"filterMetadata": {"istio": {"services": own}}}));
    }
    cluster
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
