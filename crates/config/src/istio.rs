//! Istio's kinds as people write them (`…Spec`: every field of the schema, unchecked).
//!
//! A field that is `null` is an absent one, as in Kubernetes; an unknown one is not looked at here.
//!
//! Field names and meanings: `security.istio.io` and `networking.istio.io`, versions `v1`, `v1beta1` and, for
//! networking, `v1alpha3`, which share one shape. Checking is [`crate::check()`]'s business; a
//! spec may hold anything its types can hold.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Deserializer, Serialize};

/// A `null` counts as absent.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(value: D) -> Result<T, D::Error> {
    Option::deserialize(value).map(Option::unwrap_or_default)
}

/// `metadata` and `spec` of one Istio kind, usable with the `kube` client.
macro_rules! kind {
    ($(#[$doc:meta])* $name:ident, $spec:ty, $group:literal, $plural:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase")]
        pub struct $name {
            /// Name, namespace, labels, annotations, creation time.
            #[serde(default)]
            pub metadata: ObjectMeta,
            /// What the user asked for; an absent spec is the empty one.
            #[serde(default, deserialize_with = "or_default")]
            pub spec: $spec,
            /// Written by the control plane only.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub status: Option<serde_json::Value>,
        }

        impl k8s_openapi::Resource for $name {
            const API_VERSION: &'static str = concat!($group, "/v1");
            const GROUP: &'static str = $group;
            const KIND: &'static str = stringify!($name);
            const VERSION: &'static str = "v1";
            const URL_PATH_SEGMENT: &'static str = $plural;
            type Scope = k8s_openapi::NamespaceResourceScope;
        }

        impl k8s_openapi::Metadata for $name {
            type Ty = ObjectMeta;
            fn metadata(&self) -> &Self::Ty {
                &self.metadata
            }
            fn metadata_mut(&mut self) -> &mut Self::Ty {
                &mut self.metadata
            }
        }
    };
}

kind!(
    /// What a workload's proxy accepts: mutual TLS, plaintext or both (reference mtls 1).
    PeerAuthentication, PeerAuthenticationSpec, "security.istio.io", "peerauthentications"
);
kind!(
    /// Who may call a workload, and how (reference authorization).
    AuthorizationPolicy, AuthorizationPolicySpec, "security.istio.io", "authorizationpolicies"
);

kind!(
    /// How clients speak to a host: TLS settings in particular (reference mtls 2.2, 2.3).
    DestinationRule, DestinationRuleSpec, "networking.istio.io", "destinationrules"
);
kind!(
    /// Hosts that are no Service of the cluster (reference mtls 4).
    ServiceEntry, ServiceEntrySpec, "networking.istio.io", "serviceentries"
);

/// `spec.selector` of the security kinds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadSelector {
    /// Pairs that must all be labels of the workload.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
}

/// `PeerAuthentication.spec`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerAuthenticationSpec {
    /// Absent or empty: the whole namespace (the mesh, in the root namespace).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<WorkloadSelector>,
    /// The mode of every port without an entry of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtls: Option<MutualTls>,
    /// Workload port (a decimal string in YAML and JSON) to mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_level_mtls: Option<BTreeMap<String, MutualTls>>,
}

/// `{mode: …}`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MutualTls {
    /// Absent is the same as UNSET.
    #[serde(default, deserialize_with = "or_default")]
    pub mode: MutualTlsMode,
}

/// The modes of PeerAuthentication; UNSET inherits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs, reason = "named by Istio")]
pub enum MutualTlsMode {
    #[default]
    Unset,
    Disable,
    Permissive,
    Strict,
}

/// `AuthorizationPolicy.spec`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizationPolicySpec {
    /// Absent or empty: all workloads in scope.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<WorkloadSelector>,
    /// Gateways and services it attaches to, instead of `selector`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_refs: Option<Vec<TargetRef>>,
    /// The older, single form of `target_refs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// Absent is ALLOW.
    #[serde(default, deserialize_with = "or_default")]
    pub action: Action,
    /// The external authorizer of CUSTOM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<Provider>,
    /// Any one that matches makes the policy match; none never matches.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
}

/// `spec.action`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs, reason = "named by Istio")]
pub enum Action {
    #[default]
    Allow,
    Deny,
    Audit,
    Custom,
}

/// One of `spec.targetRefs`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "named by Kubernetes")]
pub struct TargetRef {
    #[serde(default, deserialize_with = "or_default")]
    pub group: String,
    #[serde(default, deserialize_with = "or_default")]
    pub kind: String,
    #[serde(default, deserialize_with = "or_default")]
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

/// `spec.provider`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provider {
    /// Name of an extension provider of the mesh configuration.
    #[serde(default, deserialize_with = "or_default")]
    pub name: String,
}

/// One rule: any of `from`, and any of `to`, and all of `when`; an empty list is no demand.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Rule {
    /// Any one source must match.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<From>,
    /// Any one operation must match.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<To>,
    /// Every condition must hold.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub when: Vec<Condition>,
}

/// `from[]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct From {
    /// Absent is a validation error; if it slips through, it matches any source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
}

/// `to[]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct To {
    /// Absent is a validation error; if it slips through, it matches any operation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<Operation>,
}

/// `when[]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "named by Istio")]
pub struct Condition {
    #[serde(default, deserialize_with = "or_default")]
    pub key: String,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
    #[serde(
        default,
        deserialize_with = "or_default",
        skip_serializing_if = "Vec::is_empty",
        alias = "not_values"
    )]
    pub not_values: Vec<String>,
}

/// `from[].source`: all fields that are set must match (reference authorization 7).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "named by Istio")]
pub struct Source {
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub principals: Vec<String>,
    #[serde(
        deserialize_with = "or_default",
        skip_serializing_if = "Vec::is_empty",
        alias = "not_principals"
    )]
    pub not_principals: Vec<String>,
    #[serde(
        deserialize_with = "or_default",
        skip_serializing_if = "Vec::is_empty",
        alias = "request_principals"
    )]
    pub request_principals: Vec<String>,
    #[serde(
        deserialize_with = "or_default",
        skip_serializing_if = "Vec::is_empty",
        alias = "not_request_principals"
    )]
    pub not_request_principals: Vec<String>,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
    #[serde(
        deserialize_with = "or_default",
        skip_serializing_if = "Vec::is_empty",
        alias = "not_namespaces"
    )]
    pub not_namespaces: Vec<String>,
    #[serde(
        deserialize_with = "or_default",
        skip_serializing_if = "Vec::is_empty",
        alias = "service_accounts"
    )]
    pub service_accounts: Vec<String>,
    #[serde(
        deserialize_with = "or_default",
        skip_serializing_if = "Vec::is_empty",
        alias = "not_service_accounts"
    )]
    pub not_service_accounts: Vec<String>,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty", alias = "ip_blocks")]
    pub ip_blocks: Vec<String>,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty", alias = "not_ip_blocks")]
    pub not_ip_blocks: Vec<String>,
    #[serde(
        deserialize_with = "or_default",
        skip_serializing_if = "Vec::is_empty",
        alias = "remote_ip_blocks"
    )]
    pub remote_ip_blocks: Vec<String>,
    #[serde(
        deserialize_with = "or_default",
        skip_serializing_if = "Vec::is_empty",
        alias = "not_remote_ip_blocks"
    )]
    pub not_remote_ip_blocks: Vec<String>,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty", alias = "trust_domains")]
    pub trust_domains: Vec<String>,
    #[serde(
        deserialize_with = "or_default",
        skip_serializing_if = "Vec::is_empty",
        alias = "not_trust_domains"
    )]
    pub not_trust_domains: Vec<String>,
}

/// `to[].operation`: all fields that are set must match (reference authorization 8).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "named by Istio")]
pub struct Operation {
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty", alias = "not_hosts")]
    pub not_hosts: Vec<String>,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<String>,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty", alias = "not_ports")]
    pub not_ports: Vec<String>,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty", alias = "not_methods")]
    pub not_methods: Vec<String>,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty", alias = "not_paths")]
    pub not_paths: Vec<String>,
}

/// `DestinationRule.spec`. What nothing enforces (load balancing, connection pools, outlier detection, subsets) is
/// kept as it is written, for the check to name.
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
    pub subsets: Vec<serde_json::Value>,
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
    pub load_balancer: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection_pool: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outlier_detection: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_protocol: Option<serde_json::Value>,
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
    pub load_balancer: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection_pool: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outlier_detection: Option<serde_json::Value>,
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
