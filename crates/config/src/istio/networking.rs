//! Specs of `networking.istio.io`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{ConnectionPoolSettings, LoadBalancerSettings, OutlierDetection, WorkloadSelector, or_default};

/// `DestinationRule.spec`. What nothing enforces is kept as it is written, for the check to name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DestinationRuleSpec {
    /// Host of a Service or ServiceEntry; short names are completed in the rule's namespace.
    #[serde(default, deserialize_with = "or_default")]
    pub host: String,
    /// What holds for all ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic_policy: Option<TrafficPolicy>,
    /// Named groups of endpoints.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub subsets: Vec<Subset>,
    /// Namespaces that see the rule; none is all.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub export_to: Vec<String>,
    /// Clients for which the rule holds; absent is all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload_selector: Option<WorkloadSelector>,
}

/// `trafficPolicy`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "named by Istio")]
pub struct TrafficPolicy {
    /// Absent leaves the choice to auto mTLS; present and empty is DISABLE.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ClientTlsSettings>,
    /// Replaces the whole policy for its port (DR-8).
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub port_level_settings: Vec<PortTrafficPolicy>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<LoadBalancerSettings>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection_pool: Option<ConnectionPoolSettings>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outlier_detection: Option<OutlierDetection>,
    /// Not enforced, refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<serde_json::Value>,
    /// Not enforced, refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_protocol: Option<serde_json::Value>,
    /// Not enforced, refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_budget: Option<serde_json::Value>,
}

/// One of `portLevelSettings`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "named by Istio")]
pub struct PortTrafficPolicy {
    /// The service port (DR-7).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<PortSelector>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ClientTlsSettings>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<LoadBalancerSettings>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection_pool: Option<ConnectionPoolSettings>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outlier_detection: Option<OutlierDetection>,
}

/// One of `subsets`: endpoints by the labels of their workloads.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Subset {
    /// Unique within the rules of a host.
    #[serde(default, deserialize_with = "or_default")]
    pub name: String,
    /// Pairs that must all be labels of an endpoint's workload.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Replaces the rule's block by block (DR-9).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic_policy: Option<TrafficPolicy>,
}

/// `{number: …}`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "named by Istio")]
pub struct PortSelector {
    #[serde(default, deserialize_with = "or_default")]
    pub number: u32,
}

/// `tls` of a traffic policy (reference mtls 2.2).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientTlsSettings {
    /// Absent is DISABLE.
    #[serde(default, deserialize_with = "or_default")]
    pub mode: ClientTlsMode,
    /// MUTUAL: file inside the proxy.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub client_certificate: String,
    /// MUTUAL: file inside the proxy.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub private_key: String,
    /// SIMPLE, MUTUAL: file inside the proxy; empty or `system` for the roots of the operating system.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub ca_certificates: String,
    /// A Secret, in place of files.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub credential_name: String,
    /// Names of which the server must prove one.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub subject_alt_names: Vec<String>,
    /// Server name of the ClientHello.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub sni: String,
    /// Neither chain nor name is verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub insecure_skip_verify: Option<bool>,
    /// File with revoked certificates.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub ca_crl: String,
}

/// `tls.mode`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs, reason = "named by Istio")]
pub enum ClientTlsMode {
    #[default]
    Disable,
    Simple,
    Mutual,
    IstioMutual,
}

/// `ServiceEntry.spec` (reference mtls 4.1).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceEntrySpec {
    /// FQDNs or `*.suffix`.
    #[serde(default, deserialize_with = "or_default")]
    pub hosts: Vec<String>,
    /// IP addresses or CIDR blocks.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// Ports of the hosts.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<ServiceEntryPort>,
    /// Absent is MESH_EXTERNAL.
    #[serde(default, deserialize_with = "or_default")]
    pub location: Location,
    /// Absent is NONE.
    #[serde(default, deserialize_with = "or_default")]
    pub resolution: Resolution,
    /// Where the hosts are, if not where their names lead.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<WorkloadEntrySpec>,
    /// Pods and WorkloadEntries as endpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload_selector: Option<EntrySelector>,
    /// Namespaces that see the entry; none is all.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub export_to: Vec<String>,
    /// Names of which a server must prove one.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub subject_alt_names: Vec<String>,
}

/// One of a ServiceEntry's ports.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceEntryPort {
    /// The port applications dial.
    #[serde(default, deserialize_with = "or_default")]
    pub number: u32,
    /// Unique among the ports.
    #[serde(default, deserialize_with = "or_default")]
    pub name: String,
    /// HTTP, HTTPS, GRPC, HTTP2, MONGO, TCP, TLS; absent is detected.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub protocol: String,
    /// The endpoints' port; absent is `number`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_port: Option<u32>,
}

/// `spec.location`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs, reason = "named by Istio")]
pub enum Location {
    #[default]
    MeshExternal,
    MeshInternal,
}

/// `spec.resolution`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs, reason = "named by Istio")]
pub enum Resolution {
    #[default]
    None,
    Static,
    Dns,
    DnsRoundRobin,
    DynamicDns,
}

/// `spec.workloadSelector` of a ServiceEntry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntrySelector {
    /// Pairs that must all be labels of the workload.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// One endpoint of a ServiceEntry, the shape of `WorkloadEntry.spec`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "named by Istio")]
pub struct WorkloadEntrySpec {
    /// IP address; a host name with DNS resolution.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub address: String,
    /// Port name to the endpoint's port.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<String, u32>,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub network: String,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub locality: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// The identity it proves: `spiffe://<trust domain>/ns/<entry's namespace>/sa/<this>`.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub service_account: String,
}
