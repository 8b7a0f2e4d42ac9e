//! What the proxy was started with.

use serde_json::{Value, json};

use crate::address::{socket, split_host_port};
use crate::known::Known;

/// The content of `bootstrap`.
pub(crate) fn bootstrap(known: &Known<'_>) -> Value {
    let dump = known.dump;
    let own = dump.bootstrap.clone().unwrap_or_default();
    let (namespace, pod) = dump.workload.split_once('/').unwrap_or(("", dump.workload.as_str()));
    let workload = known.facts.inbound.as_ref().and_then(|inbound| inbound.workload.as_ref());
    let account = dump.identity.rsplit('/').next().unwrap_or_default();
    let admin = split_host_port(&own.admin).map(|(host, port)| json!({"address": socket(host, port)}));
    let mesh = known.facts.mesh_settings.as_ref();
    json!({
        "node": {
            "id": format!("sidecar~{}~{pod}.{namespace}~{namespace}.svc.cluster.local", own.pod_ip),
            "cluster": workload.map(|w| format!("{}.{namespace}", w.canonical_name)).unwrap_or_default(),
            "metadata": {
                "NAME": pod,
                "NAMESPACE": namespace,
                "SERVICE_ACCOUNT": account,
                "CLUSTER_ID": own.cluster,
                "INSTANCE_IPS": own.pod_ip,
                "WORKLOAD_NAME": workload.map(|w| w.workload_name.clone()).unwrap_or_default(),
                "ISTIO_VERSION": dump.version,
                "MESH_ID": mesh.map(|mesh| mesh.trust_domain.clone()).unwrap_or_default(),
                "PROXY_CONFIG": {
                    "discoveryAddress": own.discovery_address,
                    "caAddress": own.ca_address,
                    "concurrency": own.workers,
                    "terminationDrainDuration": format!("{}s", own.drain_seconds),
                    "secretTtl": format!("{}s", own.certificate_ttl_seconds),
                    "statusPort": split_host_port(&own.status).map(|(_, port)| port)
                }
            },
            "userAgentName": "maille",
            "userAgentVersion": dump.version
        },
        "dynamicResources": {
            "adsConfig": {
                "apiType": "DELTA_GRPC",
                "grpcServices": [{"envoyGrpc": {"clusterName": "xds-grpc"}}],
                "transportApiVersion": "V3"
            }
        },
        "admin": admin
    })
}
