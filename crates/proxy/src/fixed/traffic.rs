//! What a file says of load, bounds and failing endpoints: `TrafficPolicy` of facts.proto.

use maille_proto::facts as wire;
use serde::Deserialize;

names!(#[derive(Default)] Simple {
    #[default] LeastRequest = "LEAST_REQUEST" => wire::load_balancer::Simple::LeastRequest,
    RoundRobin = "ROUND_ROBIN" => wire::load_balancer::Simple::RoundRobin,
    Random = "RANDOM" => wire::load_balancer::Simple::Random,
    Passthrough = "PASSTHROUGH" => wire::load_balancer::Simple::Passthrough,
});

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct TrafficPolicy {
    /// `<namespace>/<name>` of the DestinationRule.
    rule: String,
    load_balancer: Option<LoadBalancer>,
    connection_pool: Option<ConnectionPool>,
    outlier_detection: Option<OutlierDetection>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct LoadBalancer {
    simple: Simple,
    consistent_hash: Option<ConsistentHash>,
    warmup_ms: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct ConsistentHash {
    http_header_name: Option<String>,
    http_cookie: Option<HttpCookie>,
    use_source_ip: bool,
    http_query_parameter_name: Option<String>,
    minimum_ring_size: u64,
    maglev_table_size: u64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct HttpCookie {
    name: String,
    #[serde(default)]
    path: String,
    #[serde(default)]
    ttl_ms: Option<u64>,
}

/// Bounds on connections and requests.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct ConnectionPool {
    max_connections: u32,
    connect_timeout_ms: u64,
    tcp_keepalive: Option<TcpKeepalive>,
    max_connection_duration_ms: u64,
    tcp_idle_timeout_ms: Option<u64>,
    http1_max_pending_requests: u32,
    http2_max_requests: u32,
    max_requests_per_connection: u32,
    max_retries: Option<u32>,
    http_idle_timeout_ms: Option<u64>,
    h2_upgrade: bool,
    use_client_protocol: bool,
    max_concurrent_streams: u32,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct TcpKeepalive {
    probes: u32,
    time_ms: u64,
    interval_ms: u64,
}

/// Istio's defaults, which a control plane fills in.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct OutlierDetection {
    consecutive_5xx_errors: u32,
    consecutive_gateway_errors: u32,
    split_external_local_origin_errors: bool,
    consecutive_local_origin_failures: u32,
    interval_ms: u64,
    base_ejection_ms: u64,
    max_ejection_percent: u32,
    min_health_percent: u32,
}

impl Default for OutlierDetection {
    fn default() -> Self {
        Self {
            consecutive_5xx_errors: 5,
            consecutive_gateway_errors: 0,
            split_external_local_origin_errors: false,
            consecutive_local_origin_failures: 5,
            interval_ms: 10_000,
            base_ejection_ms: 30_000,
            max_ejection_percent: 10,
            min_health_percent: 0,
        }
    }
}

impl TrafficPolicy {
    pub(super) fn message(&self) -> wire::TrafficPolicy {
        wire::TrafficPolicy {
            rule: self.rule.clone(),
            load_balancer: self.load_balancer.as_ref().map(LoadBalancer::message),
            connection_pool: self.connection_pool.as_ref().map(ConnectionPool::message),
            outlier_detection: self.outlier_detection.as_ref().map(OutlierDetection::message),
        }
    }
}

impl LoadBalancer {
    fn message(&self) -> wire::LoadBalancer {
        wire::LoadBalancer {
            simple: self.simple.proto(),
            consistent_hash: self.consistent_hash.as_ref().map(ConsistentHash::message),
            warmup_ms: self.warmup_ms,
        }
    }
}

impl ConsistentHash {
    fn message(&self) -> wire::ConsistentHash {
        use wire::consistent_hash::Key;
        let cookie = || {
            self.http_cookie.as_ref().map(|cookie| wire::HttpCookie {
                name: cookie.name.clone(),
                path: cookie.path.clone(),
                ttl_ms: cookie.ttl_ms,
            })
        };
        let key = self.http_header_name.clone().map(Key::HttpHeaderName);
        let key = key.or_else(|| cookie().map(Key::HttpCookie));
        let key = key.or_else(|| self.use_source_ip.then_some(Key::UseSourceIp(true)));
        wire::ConsistentHash {
            key: key.or_else(|| self.http_query_parameter_name.clone().map(Key::HttpQueryParameterName)),
            minimum_ring_size: self.minimum_ring_size,
            maglev_table_size: self.maglev_table_size,
        }
    }
}

impl ConnectionPool {
    pub(super) fn message(&self) -> wire::ConnectionPool {
        wire::ConnectionPool {
            max_connections: self.max_connections,
            connect_timeout_ms: self.connect_timeout_ms,
            tcp_keepalive: self.tcp_keepalive.as_ref().map(|keepalive| wire::TcpKeepalive {
                probes: keepalive.probes,
                time_ms: keepalive.time_ms,
                interval_ms: keepalive.interval_ms,
            }),
            max_connection_duration_ms: self.max_connection_duration_ms,
            tcp_idle_timeout_ms: self.tcp_idle_timeout_ms,
            http1_max_pending_requests: self.http1_max_pending_requests,
            http2_max_requests: self.http2_max_requests,
            max_requests_per_connection: self.max_requests_per_connection,
            max_retries: self.max_retries,
            http_idle_timeout_ms: self.http_idle_timeout_ms,
            h2_upgrade: self.h2_upgrade,
            use_client_protocol: self.use_client_protocol,
            max_concurrent_streams: self.max_concurrent_streams,
        }
    }
}

impl OutlierDetection {
    fn message(&self) -> wire::OutlierDetection {
        wire::OutlierDetection {
            consecutive_5xx_errors: self.consecutive_5xx_errors,
            consecutive_gateway_errors: self.consecutive_gateway_errors,
            split_external_local_origin_errors: self.split_external_local_origin_errors,
            consecutive_local_origin_failures: self.consecutive_local_origin_failures,
            interval_ms: self.interval_ms,
            base_ejection_ms: self.base_ejection_ms,
            max_ejection_percent: self.max_ejection_percent,
            min_health_percent: self.min_health_percent,
        }
    }
}
