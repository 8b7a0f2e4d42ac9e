//! Routes: a virtual host per HTTP service that the application called, and the way to the own application.

use std::collections::BTreeMap;

use maille_proto::facts as wire;
use serde_json::{Value, json};
use wire::Protocol;

use crate::address::{BLACK_HOLE, PASSTHROUGH, inbound_cluster, outbound_cluster};
use crate::known::Known;
use crate::policy;

/// All route configurations, by name.
pub(crate) fn routes(known: &Known<'_>) -> Vec<Value> {
    let own_namespace = known.dump.workload.split('/').next().unwrap_or_default();
    let cluster_domain =
        known.facts.mesh_settings.as_ref().map_or(maille_core::CLUSTER_DOMAIN, |s| &s.cluster_domain);
    let mut hosts: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for service in known.services.values() {
        for port in &service.ports {
            let originates =
                port.tls.as_ref().is_some_and(|tls| tls.mode() != wire::client_tls::Mode::Disable);
            let name = match port.protocol() {
                Protocol::Http | Protocol::Http2 => port.number.to_string(),
                Protocol::Tls if originates => port.number.to_string(),
                Protocol::Auto => format!("{}:{}", service.hostname, port.number),
                Protocol::Tls | Protocol::Tcp => continue,
            };
            let mut route = to_cluster("default", &outbound_cluster(port.number, &service.hostname));
            if let Some(hash) = policy::hash_policy(port.traffic.as_ref()) {
                route["route"]["hashPolicy"] = hash;
            }
            let vhost = json!({
                "name": format!("{}:{}", service.hostname, port.number),
                "domains": domains(service, own_namespace, cluster_domain),
                "routes": [route],
                "includeRequestAttemptCount": true
            });
            hosts.entry(name).or_default().push(vhost);
        }
    }
    let mut all: Vec<Value> = hosts
        .into_iter()
        .map(|(name, mut virtual_hosts)| {
            // On ports that services share, a Host that nobody knows goes where it was dialled.
            if !name.contains(':') {
                virtual_hosts.push(others(known.registry_only));
            }
            json!({"name": name, "virtualHosts": virtual_hosts, "validateClusters": false})
        })
        .collect();
    for own in known.own_ports() {
        let is_http = !matches!(own.protocol, Protocol::Tcp | Protocol::Tls);
        if is_http && own.declared.is_some() {
            all.push(inline(&inbound_cluster(own.number), &format!("inbound|http|{}", own.number)));
        }
    }
    all
}

/// A route configuration that sends everything to one cluster.
pub(crate) fn inline(cluster: &str, virtual_host: &str) -> Value {
    json!({
        "name": cluster,
        "virtualHosts": [{
            "name": virtual_host,
            "domains": ["*"],
            "routes": [to_cluster("default", cluster)]
        }],
        "validateClusters": false
    })
}

fn to_cluster(name: &str, cluster: &str) -> Value {
    json!({"name": name, "match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "0s"}})
}

fn others(registry_only: bool) -> Value {
    if registry_only {
        return json!({
            "name": "block_all",
            "domains": ["*"],
            "routes": [{
                "name": BLACK_HOLE, "match": {"prefix": "/"}, "directResponse": {"status": 502}
            }]
        });
    }
    json!({"name": "allow_any", "domains": ["*"], "routes": [to_cluster("allow_any", PASSTHROUGH)]})
}

/// The names under which the application may know a service, as Kubernetes' DNS completes them, and its addresses.
fn domains(service: &wire::Service, own_namespace: &str, cluster_domain: &str) -> Vec<String> {
    let mut names = vec![service.hostname.clone()];
    let suffix = format!(".svc.{cluster_domain}");
    if service.service_entry.is_empty() && service.hostname.ends_with(&suffix) {
        let (name, namespace) = (&service.name, &service.namespace);
        if namespace == own_namespace {
            names.push(name.clone());
        }
        names.push(format!("{name}.{namespace}.svc"));
        names.push(format!("{name}.{namespace}"));
    }
    names.extend(service.addresses.iter().map(|address| match address.contains(':') {
        true => format!("[{address}]"),
        false => address.clone(),
    }));
    names
}
