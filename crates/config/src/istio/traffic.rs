//! Parts of a traffic policy beside TLS: load balancing, connection pools, outlier detection (reference mtls 2.3).

use serde::{Deserialize, Serialize};

use super::or_default;
use crate::duration::DurationText;

/// `loadBalancer`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancerSettings {
    /// Absent is LEAST_REQUEST; excludes `consistentHash`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub simple: Option<SimpleLb>,
    /// Soft affinity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistent_hash: Option<ConsistentHashLb>,
    /// Not enforced, refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locality_lb_setting: Option<serde_json::Value>,
    /// Not enforced, refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone_aware_lb_setting: Option<serde_json::Value>,
    /// Not enforced, refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend_utilization: Option<serde_json::Value>,
    /// The older spelling of `warmup: {duration: …}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warmup_duration_secs: Option<DurationText>,
    /// How a new endpoint's share grows; counts before `warmupDurationSecs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warmup: Option<WarmupConfiguration>,
}

/// `loadBalancer.simple`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs, reason = "named by Istio")]
pub enum SimpleLb {
    #[default]
    Unspecified,
    /// The older name of LEAST_REQUEST.
    LeastConn,
    Random,
    Passthrough,
    RoundRobin,
    LeastRequest,
}

/// `loadBalancer.consistentHash`: exactly one key, and at most one of `ringHash` and `maglev`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "named by Istio")]
pub struct ConsistentHashLb {
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub http_header_name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_cookie: Option<HttpCookie>,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "std::ops::Not::not")]
    pub use_source_ip: bool,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub http_query_parameter_name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ring_hash: Option<RingHash>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maglev: Option<MagLev>,
    /// The older spelling of `ringHash: {minimumRingSize: …}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum_ring_size: Option<u64>,
}

/// `consistentHash.ringHash`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RingHash {
    /// Absent or 0 is 1024.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum_ring_size: Option<u64>,
}

/// `consistentHash.maglev`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MagLev {
    /// A prime; absent or 0 is 65537.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table_size: Option<u64>,
}

/// `consistentHash.httpCookie`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "named by Istio")]
pub struct HttpCookie {
    #[serde(default, deserialize_with = "or_default")]
    pub name: String,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// Absent: the cookie is never generated; `0s`: one for the session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<DurationText>,
    /// Not enforced, refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attributes: Option<serde_json::Value>,
}

/// `loadBalancer.warmup`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "named by Istio")]
pub struct WarmupConfiguration {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<DurationText>,
    /// Absent is 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum_percent: Option<f64>,
    /// Absent is 1: the share grows linearly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aggression: Option<f64>,
}

/// `connectionPool`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "named by Istio")]
pub struct ConnectionPoolSettings {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpSettings>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpSettings>,
}

/// `connectionPool.tcp`. Zero is Protobuf's spelling of absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TcpSettings {
    /// 0 is no bound.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "is_zero")]
    pub max_connections: i32,
    /// Absent is 10 s, the mesh's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_timeout: Option<DurationText>,
    /// Absent: none is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// Absent: no bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connection_duration: Option<DurationText>,
    /// Absent is 1 h, `0s` never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<DurationText>,
}

/// `connectionPool.tcp.tcpKeepalive`; what is absent is the kernel's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "named by Istio")]
pub struct TcpKeepalive {
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "is_zero")]
    pub probes: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<DurationText>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<DurationText>,
}

/// `connectionPool.http`. Zero is Protobuf's spelling of absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpSettings {
    /// Requests that wait for a connection; 0 is no bound.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "is_zero")]
    pub http1_max_pending_requests: i32,
    /// Requests under way, whatever their version; 0 is no bound.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "is_zero")]
    pub http2_max_requests: i32,
    /// 0 is no bound; 1 switches keep-alive off.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "is_zero")]
    pub max_requests_per_connection: i32,
    /// Retries under way; 0 is no bound.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "is_zero")]
    pub max_retries: i32,
    /// Absent is 1 h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<DurationText>,
    /// Whether HTTP/1.1 becomes HTTP/2 on the way.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "is_zero")]
    pub h2_upgrade_policy: H2UpgradePolicy,
    /// The caller's version is kept; counts before `h2UpgradePolicy`.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "std::ops::Not::not")]
    pub use_client_protocol: bool,
    /// Streams of one HTTP/2 connection; 0 is no bound of ours.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "is_zero")]
    pub max_concurrent_streams: i32,
    /// Not enforced, refused.
    #[serde(default, rename = "http2KeepAlive", skip_serializing_if = "Option::is_none")]
    pub http2_keep_alive: Option<serde_json::Value>,
}

/// `connectionPool.http.h2UpgradePolicy`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs, reason = "named by Istio")]
pub enum H2UpgradePolicy {
    #[default]
    Default,
    DoNotUpgrade,
    Upgrade,
}

/// `outlierDetection`. Its presence alone switches detection on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OutlierDetection {
    /// The older name of `consecutive5xxErrors`, without effect in Istio; refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consecutive_errors: Option<i32>,
    /// Absent is 5; 0 switches it off.
    #[serde(default, rename = "consecutive5xxErrors", skip_serializing_if = "Option::is_none")]
    pub consecutive_5xx_errors: Option<u32>,
    /// 502, 503, 504. Absent or 0: not looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consecutive_gateway_errors: Option<u32>,
    /// Whether failures to connect are counted apart from responses.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "std::ops::Not::not")]
    pub split_external_local_origin_errors: bool,
    /// Only with the former. Absent is 5; 0 switches it off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consecutive_local_origin_failures: Option<u32>,
    /// Absent is 10 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<DurationText>,
    /// Absent is 30 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_ejection_time: Option<DurationText>,
    /// Absent or 0 is 10.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "is_zero")]
    pub max_ejection_percent: i32,
    /// Absent is 0: never in panic.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "is_zero")]
    pub min_health_percent: i32,
    /// Not enforced, refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outlier_detection_http_error_codes: Option<serde_json::Value>,
}

fn is_zero<N: Default + PartialEq>(number: &N) -> bool {
    *number == N::default()
}
