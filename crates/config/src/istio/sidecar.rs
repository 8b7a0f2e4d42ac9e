//! `Sidecar.spec`: which services a workload's proxy knows (reference mtls 4.3).

use serde::{Deserialize, Serialize};

use super::{ConnectionPoolSettings, EntrySelector, or_default};

/// `Sidecar.spec`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SidecarSpec {
    /// Absent: every workload of the namespace (of the mesh, in the root namespace).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload_selector: Option<EntrySelector>,
    /// Not enforced, refused.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub ingress: Vec<serde_json::Value>,
    /// What the workload may see; none is everything.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<EgressListener>,
    /// Bounds of what comes in, in place of those that a DestinationRule of the service has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inbound_connection_pool: Option<ConnectionPoolSettings>,
    /// Absent: that of the mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outbound_traffic_policy: Option<OutboundTrafficPolicy>,
}

/// One of `egress`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EgressListener {
    /// Not enforced, refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<SidecarPort>,
    /// Not enforced, refused.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub bind: String,
    /// Anything but DEFAULT is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capture_mode: Option<CaptureMode>,
    /// `<namespace>/<host>`; the namespace may be `*` (all), `.` (its own) or `~` (none).
    #[serde(default, deserialize_with = "or_default")]
    pub hosts: Vec<String>,
}

/// `egress[].captureMode`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs, reason = "named by Istio")]
pub enum CaptureMode {
    #[default]
    Default,
    Iptables,
    None,
}

/// A port of a listener.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "named by Istio")]
pub struct SidecarPort {
    #[serde(default, deserialize_with = "or_default")]
    pub number: u32,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub protocol: String,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_port: Option<u32>,
}

/// `outboundTrafficPolicy`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OutboundTrafficPolicy {
    /// Absent is REGISTRY_ONLY, the first of Protobuf's enumeration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<OutboundMode>,
    /// Not enforced, refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress_proxy: Option<serde_json::Value>,
}

/// `outboundTrafficPolicy.mode` of a Sidecar.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs, reason = "named by Istio")]
pub enum OutboundMode {
    #[default]
    RegistryOnly,
    AllowAny,
}
