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

pub use networking::*;
pub use request_authentication::*;
pub use sidecar::*;
pub use traffic::*;

mod networking;
mod request_authentication;
mod sidecar;
mod traffic;

/// A `null` counts as absent.
pub(crate) fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    value: D,
) -> Result<T, D::Error> {
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
    /// Whose tokens a workload believes, and where it looks for them (reference authorization 19).
    RequestAuthentication, RequestAuthenticationSpec, "security.istio.io", "requestauthentications"
);

kind!(
    /// How clients speak to a host: TLS settings in particular (reference mtls 2.2, 2.3).
    DestinationRule, DestinationRuleSpec, "networking.istio.io", "destinationrules"
);
kind!(
    /// Hosts that are no Service of the cluster (reference mtls 4).
    ServiceEntry, ServiceEntrySpec, "networking.istio.io", "serviceentries"
);

kind!(
    /// A workload outside of the cluster's Pods, which ServiceEntries select (reference mtls 4.1, SE-14).
    WorkloadEntry, WorkloadEntrySpec, "networking.istio.io", "workloadentries"
);
kind!(
    /// Which services a workload's proxy knows, and what becomes of calls to others (reference mtls 4.3).
    Sidecar, SidecarSpec, "networking.istio.io", "sidecars"
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
    #[serde(default, skip_serializing_if = "Option::is_none", alias = "target_refs")]
    pub target_refs: Option<Vec<TargetRef>>,
    /// The older, single form of `target_refs`.
    #[serde(default, skip_serializing_if = "Option::is_none", alias = "target_ref")]
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
