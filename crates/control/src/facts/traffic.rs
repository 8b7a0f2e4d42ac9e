//! What a DestinationRule says of a port beyond TLS, with Istio's and Envoy's defaults where these differ from "nothing"
//! (istio pilot/pkg/networking/core/cluster_traffic_policy.go).

use maille_config::destination_rule::PortPolicy;
use maille_config::duration::DurationText;
use maille_config::istio::{
    ConnectionPoolSettings, ConsistentHashLb, H2UpgradePolicy, LoadBalancerSettings, OutlierDetection,
    SimpleLb,
};
use maille_proto::facts as wire;
use wire::load_balancer::Simple;

/// Envoy's table if a rule asks for Maglev without a size.
const MAGLEV_TABLE: u64 = 65_537;
/// Envoy's defaults of outlier detection.
const CONSECUTIVE_ERRORS: u32 = 5;
const INTERVAL_MS: u64 = 10_000;
const BASE_EJECTION_MS: u64 = 30_000;
const MAX_EJECTION_PERCENT: u32 = 10;

/// `None` where the policy says nothing beyond TLS.
pub(super) fn traffic_policy(rule: &str, policy: &PortPolicy<'_>) -> Option<wire::TrafficPolicy> {
    let PortPolicy { tls: _, load_balancer, connection_pool, outlier_detection } = policy;
    if load_balancer.is_none() && connection_pool.is_none() && outlier_detection.is_none() {
        return None;
    }
    Some(wire::TrafficPolicy {
        rule: rule.to_owned(),
        load_balancer: load_balancer.map(self::load_balancer),
        connection_pool: connection_pool.map(self::connection_pool),
        outlier_detection: outlier_detection.map(self::outlier_detection),
    })
}

/// Whether connections go where they were dialled (reference mtls 2.1, A3).
pub(super) fn is_passthrough(policy: &PortPolicy<'_>) -> bool {
    policy
        .load_balancer
        .is_some_and(|lb| lb.consistent_hash.is_none() && lb.simple == Some(SimpleLb::Passthrough))
}

fn load_balancer(settings: &LoadBalancerSettings) -> wire::LoadBalancer {
    let simple = match settings.simple.unwrap_or_default() {
        SimpleLb::Unspecified | SimpleLb::LeastConn | SimpleLb::LeastRequest => Simple::LeastRequest,
        SimpleLb::Random => Simple::Random,
        SimpleLb::RoundRobin => Simple::RoundRobin,
        SimpleLb::Passthrough => Simple::Passthrough,
    };
    let warmup = match &settings.warmup {
        Some(warmup) => warmup.duration.as_ref(),
        None => settings.warmup_duration_secs.as_ref(),
    };
    let warms_up =
        settings.consistent_hash.is_none() && matches!(simple, Simple::LeastRequest | Simple::RoundRobin);
    wire::LoadBalancer {
        simple: simple.into(),
        consistent_hash: settings.consistent_hash.as_ref().map(consistent_hash),
        warmup_ms: warmup.filter(|_| warms_up).map(millis).unwrap_or_default(),
    }
}

fn consistent_hash(settings: &ConsistentHashLb) -> wire::ConsistentHash {
    use wire::consistent_hash::Key;
    let key = if !settings.http_header_name.is_empty() {
        Some(Key::HttpHeaderName(settings.http_header_name.clone()))
    } else if let Some(cookie) = &settings.http_cookie {
        Some(Key::HttpCookie(wire::HttpCookie {
            name: cookie.name.clone(),
            path: cookie.path.clone(),
            ttl_ms: cookie.ttl.as_ref().and_then(DurationText::millis),
        }))
    } else if settings.use_source_ip {
        Some(Key::UseSourceIp(true))
    } else if !settings.http_query_parameter_name.is_empty() {
        Some(Key::HttpQueryParameterName(settings.http_query_parameter_name.clone()))
    } else {
        None
    };
    let ring = settings.ring_hash.and_then(|ring| ring.minimum_ring_size).or(settings.minimum_ring_size);
    let table =
        settings.maglev.map(|maglev| maglev.table_size.filter(|size| *size != 0).unwrap_or(MAGLEV_TABLE));
    wire::ConsistentHash {
        key,
        minimum_ring_size: ring.unwrap_or_default(),
        maglev_table_size: table.unwrap_or_default(),
    }
}

/// Zero and what is absent are one in Istio's messages, except for durations.
pub(super) fn connection_pool(settings: &ConnectionPoolSettings) -> wire::ConnectionPool {
    let tcp = settings.tcp.as_ref();
    let http = settings.http.as_ref();
    let count = |number: Option<i32>| number.and_then(|n| u32::try_from(n).ok()).unwrap_or_default();
    let tcp_idle = tcp.and_then(|tcp| tcp.idle_timeout.as_ref()).and_then(DurationText::millis);
    let http_idle = http.and_then(|http| http.idle_timeout.as_ref()).and_then(DurationText::millis);
    wire::ConnectionPool {
        max_connections: count(tcp.map(|tcp| tcp.max_connections)),
        connect_timeout_ms: tcp.and_then(|tcp| tcp.connect_timeout.as_ref()).map(millis).unwrap_or_default(),
        tcp_keepalive: tcp.and_then(|tcp| tcp.tcp_keepalive.as_ref()).map(|keepalive| wire::TcpKeepalive {
            probes: keepalive.probes,
            time_ms: keepalive.time.as_ref().map(millis).unwrap_or_default(),
            interval_ms: keepalive.interval.as_ref().map(millis).unwrap_or_default(),
        }),
        max_connection_duration_ms: tcp
            .and_then(|tcp| tcp.max_connection_duration.as_ref())
            .map(millis)
            .unwrap_or_default(),
        tcp_idle_timeout_ms: tcp_idle,
        http1_max_pending_requests: count(http.map(|http| http.http1_max_pending_requests)),
        http2_max_requests: count(http.map(|http| http.http2_max_requests)),
        max_requests_per_connection: count(http.map(|http| http.max_requests_per_connection)),
        max_retries: Some(count(http.map(|http| http.max_retries))).filter(|retries| *retries > 0),
        // Istio: without one of its own, HTTP has TCP's.
        http_idle_timeout_ms: http_idle.or(tcp_idle),
        h2_upgrade: http.is_some_and(|http| {
            http.h2_upgrade_policy == H2UpgradePolicy::Upgrade && !http.use_client_protocol
        }),
        use_client_protocol: http.is_some_and(|http| http.use_client_protocol),
        max_concurrent_streams: count(http.map(|http| http.max_concurrent_streams)),
    }
}

fn outlier_detection(settings: &OutlierDetection) -> wire::OutlierDetection {
    let split = settings.split_external_local_origin_errors;
    // Istio hands on what is more than nothing, so that 0 means Envoy's default here.
    let local = settings.consecutive_local_origin_failures.filter(|n| *n > 0).unwrap_or(CONSECUTIVE_ERRORS);
    let percent = |number: i32| u32::try_from(number.clamp(0, 100)).unwrap_or_default();
    wire::OutlierDetection {
        consecutive_5xx_errors: settings.consecutive_5xx_errors.unwrap_or(CONSECUTIVE_ERRORS),
        consecutive_gateway_errors: settings.consecutive_gateway_errors.unwrap_or_default(),
        split_external_local_origin_errors: split,
        consecutive_local_origin_failures: if split { local } else { 0 },
        interval_ms: settings.interval.as_ref().and_then(positive).unwrap_or(INTERVAL_MS),
        base_ejection_ms: settings.base_ejection_time.as_ref().and_then(positive).unwrap_or(BASE_EJECTION_MS),
        max_ejection_percent: match percent(settings.max_ejection_percent) {
            0 => MAX_EJECTION_PERCENT,
            percent => percent,
        },
        min_health_percent: percent(settings.min_health_percent),
    }
}

/// What cannot be read counts as absent; the check refuses it, a cluster's API may not.
fn millis(duration: &DurationText) -> u64 {
    duration.millis().unwrap_or_default()
}

fn positive(duration: &DurationText) -> Option<u64> {
    duration.millis().filter(|millis| *millis > 0)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn lb(settings: Value) -> wire::LoadBalancer {
        load_balancer(&serde_json::from_value(settings).expect("settings"))
    }

    #[test]
    fn balancers_are_told_with_istios_defaults() {
        for (settings, simple, warmup) in [
            (json!({}), Simple::LeastRequest, 0),
            (json!({"simple": "LEAST_CONN"}), Simple::LeastRequest, 0),
            (json!({"simple": "ROUND_ROBIN", "warmupDurationSecs": "30s"}), Simple::RoundRobin, 30_000),
            (json!({"simple": "RANDOM", "warmupDurationSecs": "30s"}), Simple::Random, 0),
            (
                json!({"warmup": {"duration": "1m"}, "warmupDurationSecs": "30s"}),
                Simple::LeastRequest,
                60_000,
            ),
            (json!({"simple": "PASSTHROUGH"}), Simple::Passthrough, 0),
        ] {
            let found = lb(settings.clone());
            assert_eq!((found.simple(), found.warmup_ms), (simple, warmup), "{settings}");
            assert!(found.consistent_hash.is_none());
        }
        use wire::consistent_hash::Key;
        let cookie =
            |ttl_ms| Key::HttpCookie(wire::HttpCookie { name: "c".into(), path: String::new(), ttl_ms });
        for (settings, key, ring, table) in [
            (json!({"httpHeaderName": "x-user"}), Key::HttpHeaderName("x-user".into()), 0, 0),
            (json!({"httpCookie": {"name": "c"}}), cookie(None), 0, 0),
            (json!({"httpCookie": {"name": "c", "ttl": "0s"}}), cookie(Some(0)), 0, 0),
            (json!({"useSourceIp": true, "minimumRingSize": 7}), Key::UseSourceIp(true), 7, 0),
            (
                json!({"httpQueryParameterName": "q", "ringHash": {"minimumRingSize": 9}}),
                Key::HttpQueryParameterName("q".into()),
                9,
                0,
            ),
            (json!({"useSourceIp": true, "maglev": {}}), Key::UseSourceIp(true), 0, 65_537),
            (json!({"useSourceIp": true, "maglev": {"tableSize": 101}}), Key::UseSourceIp(true), 0, 101),
        ] {
            let found = lb(json!({"consistentHash": settings})).consistent_hash.expect("a hash");
            assert_eq!(found.key, Some(key), "{settings}");
            assert_eq!((found.minimum_ring_size, found.maglev_table_size), (ring, table), "{settings}");
        }
    }

    #[test]
    fn pools_are_told_as_istio_hands_them_on() {
        let pool = |settings: Value| connection_pool(&serde_json::from_value(settings).expect("settings"));
        assert_eq!(pool(json!({})), wire::ConnectionPool::default());
        let found = pool(json!({
            "tcp": {
                "maxConnections": 3, "connectTimeout": "1500ms", "idleTimeout": "0s", "maxConnectionDuration": "1h",
                "tcpKeepalive": {"probes": 2, "time": "10s", "interval": "1s"},
            },
            "http": {
                "http1MaxPendingRequests": 4, "http2MaxRequests": 5, "maxRequestsPerConnection": 1, "maxRetries": 2,
                "h2UpgradePolicy": "UPGRADE", "maxConcurrentStreams": 6,
            },
        }));
        let expected = wire::ConnectionPool {
            max_connections: 3,
            connect_timeout_ms: 1500,
            tcp_keepalive: Some(wire::TcpKeepalive { probes: 2, time_ms: 10_000, interval_ms: 1000 }),
            max_connection_duration_ms: 3_600_000,
            tcp_idle_timeout_ms: Some(0),
            http1_max_pending_requests: 4,
            http2_max_requests: 5,
            max_requests_per_connection: 1,
            max_retries: Some(2),
            http_idle_timeout_ms: Some(0),
            h2_upgrade: true,
            use_client_protocol: false,
            max_concurrent_streams: 6,
        };
        assert_eq!(found, expected);
        let kept = pool(
            json!({"http": {"h2UpgradePolicy": "UPGRADE", "useClientProtocol": true, "idleTimeout": "5s"}}),
        );
        assert!(kept.use_client_protocol && !kept.h2_upgrade);
        assert_eq!((kept.tcp_idle_timeout_ms, kept.http_idle_timeout_ms), (None, Some(5000)));
        assert_eq!(pool(json!({"tcp": {"maxConnections": -1}})).max_connections, 0);
    }

    #[test]
    fn outlier_detection_has_envoys_defaults() {
        let outlier =
            |settings: Value| outlier_detection(&serde_json::from_value(settings).expect("settings"));
        let defaults = wire::OutlierDetection {
            consecutive_5xx_errors: 5,
            interval_ms: 10_000,
            base_ejection_ms: 30_000,
            max_ejection_percent: 10,
            ..Default::default()
        };
        assert_eq!(outlier(json!({})), defaults);
        let found = outlier(json!({
            "consecutive5xxErrors": 0, "consecutiveGatewayErrors": 2, "splitExternalLocalOriginErrors": true,
            "interval": "1s", "baseEjectionTime": "2m", "maxEjectionPercent": 100, "minHealthPercent": 30,
        }));
        let expected = wire::OutlierDetection {
            consecutive_5xx_errors: 0,
            consecutive_gateway_errors: 2,
            split_external_local_origin_errors: true,
            consecutive_local_origin_failures: 5,
            interval_ms: 1000,
            base_ejection_ms: 120_000,
            max_ejection_percent: 100,
            min_health_percent: 30,
        };
        assert_eq!(found, expected);
        let unsplit = outlier(json!({"consecutiveLocalOriginFailures": 3}));
        assert_eq!(unsplit.consecutive_local_origin_failures, 0, "counted as 5xx");
    }
}
