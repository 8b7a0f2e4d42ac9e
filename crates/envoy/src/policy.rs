//! Traffic policies of DestinationRules, in the fields of clusters and routes that Istio writes them to (istio
//! pilot/pkg/networking/core, cluster_traffic_policy.go).

use maille_proto::facts as wire;
use serde_json::{Map, Value, json};
use wire::load_balancer::Simple;

use crate::address::type_url;

/// No bound, as Istio writes it.
const UNBOUNDED: u32 = u32::MAX;

/// Envoy's ring, where the rule says nothing of its size.
const DEFAULT_RING: u64 = 1024;

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// Fields of a cluster, some of which stand in one message together.
type Fields = Map<String, Value>;

/// How a cluster's type is chosen: whether the dialled address is kept whatever its endpoints are.
pub(crate) fn is_passthrough(traffic: Option<&wire::TrafficPolicy>) -> bool {
    let balancer = traffic.and_then(|traffic| traffic.load_balancer.as_ref());
    balancer.is_some_and(|lb| lb.consistent_hash.is_none() && lb.simple() == Simple::Passthrough)
}

/// How a cluster with endpoints of its own spreads requests.
pub(crate) fn balance(traffic: Option<&wire::TrafficPolicy>, cluster: &mut Fields) {
    let nothing = wire::LoadBalancer::default();
    let balancer = traffic.and_then(|traffic| traffic.load_balancer.as_ref()).unwrap_or(&nothing);
    let mut set = |field: &str, value: Value| cluster.insert(field.to_owned(), value);
    if let Some(hash) = &balancer.consistent_hash {
        if hash.maglev_table_size > 0 {
            set("lbPolicy", json!("MAGLEV"));
            set("maglevLbConfig", json!({"tableSize": hash.maglev_table_size.to_string()}));
        } else {
            let size = if hash.minimum_ring_size == 0 { DEFAULT_RING } else { hash.minimum_ring_size };
            set("lbPolicy", json!("RING_HASH"));
            set("ringHashLbConfig", json!({"minimumRingSize": size.to_string()}));
        }
        return;
    }
    let (name, config) = match balancer.simple() {
        Simple::Unspecified | Simple::LeastRequest => ("LEAST_REQUEST", Some("leastRequestLbConfig")),
        Simple::RoundRobin => ("ROUND_ROBIN", Some("roundRobinLbConfig")),
        Simple::Random => ("RANDOM", None),
        Simple::Passthrough => ("CLUSTER_PROVIDED", None),
    };
    set("lbPolicy", json!(name));
    if let Some(config) = config.filter(|_| balancer.warmup_ms > 0) {
        set(config, json!({"slowStartConfig": {"slowStartWindow": seconds(balancer.warmup_ms)}}));
    }
}

/// Ejection of endpoints that fail.
pub(crate) fn detect(traffic: Option<&wire::TrafficPolicy>, cluster: &mut Fields) {
    let Some(detection) = traffic.and_then(|traffic| traffic.outlier_detection.as_ref()) else { return };
    let enforcing = |count: u32| if count > 0 { 100 } else { 0 };
    let mut fields = json!({
        "consecutive5xx": detection.consecutive_5xx_errors,
        "enforcingConsecutive5xx": enforcing(detection.consecutive_5xx_errors),
        "consecutiveGatewayFailure": detection.consecutive_gateway_errors,
        "enforcingConsecutiveGatewayFailure": enforcing(detection.consecutive_gateway_errors),
        "interval": seconds(detection.interval_ms),
        "baseEjectionTime": seconds(detection.base_ejection_ms),
        "maxEjectionPercent": detection.max_ejection_percent,
        "enforcingSuccessRate": 0,
    });
    if let Some(fields) = fields.as_object_mut().filter(|_| detection.split_external_local_origin_errors) {
        let failures = detection.consecutive_local_origin_failures;
        fields.insert("splitExternalLocalOriginErrors".to_owned(), json!(true));
        fields.insert("consecutiveLocalOriginFailure".to_owned(), json!(failures));
        fields.insert("enforcingConsecutiveLocalOriginFailure".to_owned(), json!(enforcing(failures)));
        fields.insert("enforcingLocalOriginSuccessRate".to_owned(), json!(0));
    }
    cluster.insert("outlierDetection".to_owned(), fields);
    let threshold = json!({"healthyPanicThreshold": {"value": detection.min_health_percent}});
    cluster.insert("commonLbConfig".to_owned(), threshold);
}

/// Bounds of connections and requests, and the version of HTTP.
pub(crate) fn bound(pool: Option<&wire::ConnectionPool>, is_http2: bool, cluster: &mut Fields) {
    let nothing = wire::ConnectionPool::default();
    let pool = pool.unwrap_or(&nothing);
    let bounded = |bound: u32| if bound == 0 { UNBOUNDED } else { bound };
    let timeout = if pool.connect_timeout_ms == 0 { 10_000 } else { pool.connect_timeout_ms };
    cluster.insert("connectTimeout".to_owned(), json!(seconds(timeout)));
    let thresholds = json!([{
        "maxConnections": bounded(pool.max_connections),
        "maxPendingRequests": bounded(pool.http1_max_pending_requests),
        "maxRequests": bounded(pool.http2_max_requests),
        "maxRetries": pool.max_retries.unwrap_or(UNBOUNDED),
        "trackRemaining": true,
    }]);
    cluster.insert("circuitBreakers".to_owned(), json!({"thresholds": thresholds}));
    if let Some(keepalive) = &pool.tcp_keepalive {
        let mut fields = Fields::new();
        for (name, value) in [
            ("keepaliveProbes", u64::from(keepalive.probes)),
            ("keepaliveTime", keepalive.time_ms / 1000),
            ("keepaliveInterval", keepalive.interval_ms / 1000),
        ] {
            if value > 0 {
                fields.insert(name.to_owned(), json!(value));
            }
        }
        cluster.insert("upstreamConnectionOptions".to_owned(), json!({"tcpKeepalive": fields}));
    }
    if let Some(options) = http_options(pool, is_http2) {
        cluster.insert("typedExtensionProtocolOptions".to_owned(), json!({HTTP_OPTIONS: options}));
    }
}

fn http_options(pool: &wire::ConnectionPool, is_http2: bool) -> Option<Value> {
    let mut common = Fields::new();
    // Istio takes that of TCP where there is none of HTTP.
    if let Some(idle) = pool.http_idle_timeout_ms.or(pool.tcp_idle_timeout_ms) {
        common.insert("idleTimeout".to_owned(), json!(seconds(idle)));
    }
    if pool.max_connection_duration_ms > 0 {
        common.insert("maxConnectionDuration".to_owned(), json!(seconds(pool.max_connection_duration_ms)));
    }
    if pool.max_requests_per_connection > 0 {
        common.insert("maxRequestsPerConnection".to_owned(), json!(pool.max_requests_per_connection));
    }
    let mut options = Fields::new();
    if pool.use_client_protocol {
        let both = json!({"httpProtocolOptions": {}, "http2ProtocolOptions": {}});
        options.insert("useDownstreamProtocolConfig".to_owned(), both);
    } else if is_http2 || pool.h2_upgrade {
        let http2 = match pool.max_concurrent_streams {
            0 => json!({}),
            streams => json!({"maxConcurrentStreams": streams}),
        };
        options.insert("explicitHttpConfig".to_owned(), json!({"http2ProtocolOptions": http2}));
    } else if !common.is_empty() {
        options.insert("explicitHttpConfig".to_owned(), json!({"httpProtocolOptions": {}}));
    }
    if !common.is_empty() {
        options.insert("commonHttpProtocolOptions".to_owned(), Value::Object(common));
    }
    if options.is_empty() {
        return None;
    }
    options.insert("@type".to_owned(), json!(type_url(HTTP_OPTIONS)));
    Some(Value::Object(options))
}

/// `hashPolicy` of a route, if requests are spread by a hash of something.
pub(crate) fn hash_policy(traffic: Option<&wire::TrafficPolicy>) -> Option<Value> {
    use wire::consistent_hash::Key;
    let policy = match key(traffic)? {
        Key::HttpHeaderName(name) => json!({"header": {"headerName": name}}),
        Key::HttpQueryParameterName(name) => json!({"queryParameter": {"name": name}}),
        Key::UseSourceIp(_) => json!({"connectionProperties": {"sourceIp": true}}),
        Key::HttpCookie(cookie) => {
            let mut fields = Fields::new();
            fields.insert("name".to_owned(), json!(cookie.name));
            if !cookie.path.is_empty() {
                fields.insert("path".to_owned(), json!(cookie.path));
            }
            if let Some(ttl) = cookie.ttl_ms {
                fields.insert("ttl".to_owned(), json!(seconds(ttl)));
            }
            json!({"cookie": fields})
        }
    };
    Some(json!([policy]))
}

/// `hashPolicy` of a TCP proxy: connections have nothing but their source.
pub(crate) fn source_hash_policy(traffic: Option<&wire::TrafficPolicy>) -> Option<Value> {
    use wire::consistent_hash::Key;
    matches!(key(traffic)?, Key::UseSourceIp(true)).then(|| json!([{"sourceIp": {}}]))
}

fn key(traffic: Option<&wire::TrafficPolicy>) -> Option<&wire::consistent_hash::Key> {
    traffic?.load_balancer.as_ref()?.consistent_hash.as_ref()?.key.as_ref()
}

/// Protobuf's JSON of a duration.
fn seconds(milliseconds: u64) -> String {
    let (whole, rest) = (milliseconds / 1000, milliseconds % 1000);
    if rest == 0 { format!("{whole}s") } else { format!("{whole}.{rest:03}s") }
}
