//! What DestinationRules say of load, bounds and failing endpoints.
//!
//! None of it decides who may talk to whom, so that what is of a newer version falls back to the default instead of
//! taking the service away.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use maille_proto::facts as wire;

use crate::snapshot::{
    Algorithm, ConnectionPool, HashKey, HashTable, IdleLimit, Keepalive, OutlierDetection, Traffic,
};

/// Istio's default ring (istio/api `RingHash.minimum_ring_size`).
const RING: u64 = 1024;
/// Envoy's default `max_ejection_time`, beyond which ejections do not grow.
pub(crate) const MAX_EJECTION: Duration = Duration::from_secs(300);

pub(super) fn traffic(message: &wire::TrafficPolicy) -> Arc<Traffic> {
    let balancer = message.load_balancer.as_ref();
    Arc::new(Traffic {
        rule: message.rule.as_str().into(),
        algorithm: balancer.map(algorithm).unwrap_or_default(),
        warmup: balancer.and_then(|balancer| some_ms(balancer.warmup_ms)),
        pool: message.connection_pool.as_ref().map(|pool| Arc::new(connection_pool(pool))),
        outliers: message.outlier_detection.as_ref().map(outliers),
    })
}

fn algorithm(message: &wire::LoadBalancer) -> Algorithm {
    use wire::load_balancer::Simple;
    if let Some(hash) = &message.consistent_hash
        && let Some(key) = hash.key.as_ref().and_then(hash_key)
    {
        let table = match (hash.maglev_table_size, hash.minimum_ring_size) {
            (0, 0) => HashTable::Ring(RING),
            (0, size) => HashTable::Ring(size),
            (size, _) => HashTable::Maglev(size),
        };
        return Algorithm::Hash(key, table);
    }
    match Simple::try_from(message.simple) {
        Ok(Simple::RoundRobin) => Algorithm::RoundRobin,
        Ok(Simple::Random) => Algorithm::Random,
        Ok(Simple::Passthrough) => Algorithm::Passthrough,
        Ok(Simple::LeastRequest | Simple::Unspecified) | Err(_) => Algorithm::LeastRequest,
    }
}

fn hash_key(message: &wire::consistent_hash::Key) -> Option<HashKey> {
    use wire::consistent_hash::Key;
    match message {
        Key::HttpHeaderName(name) => HeaderName::try_from(name.as_str()).ok().map(HashKey::Header),
        Key::HttpCookie(cookie) => Some(HashKey::Cookie {
            name: cookie.name.as_str().into(),
            path: cookie.path.as_str().into(),
            ttl: cookie.ttl_ms.map(Duration::from_millis),
        }),
        Key::UseSourceIp(true) => Some(HashKey::SourceAddress),
        Key::UseSourceIp(false) => None,
        Key::HttpQueryParameterName(name) => Some(HashKey::Query(name.as_str().into())),
    }
}

/// The bounds of a connection pool; those of `InboundPort` as well.
pub(crate) fn connection_pool(message: &wire::ConnectionPool) -> ConnectionPool {
    let idle = |ms: Option<u64>| match ms {
        None => IdleLimit::Default,
        Some(0) => IdleLimit::Never,
        Some(ms) => IdleLimit::After(Duration::from_millis(ms)),
    };
    let tcp_idle = idle(message.tcp_idle_timeout_ms);
    ConnectionPool {
        connections: some(message.max_connections),
        pending: some(message.http1_max_pending_requests),
        requests: some(message.http2_max_requests),
        retries: message.max_retries,
        requests_per_connection: some(message.max_requests_per_connection),
        streams: some(message.max_concurrent_streams),
        connect_timeout: some_ms(message.connect_timeout_ms),
        max_age: some_ms(message.max_connection_duration_ms),
        keepalive: message.tcp_keepalive.as_ref().map(|keepalive| Keepalive {
            probes: some(keepalive.probes),
            time: some_ms(keepalive.time_ms),
            interval: some_ms(keepalive.interval_ms),
        }),
        tcp_idle,
        // As Istio has it (`applyConnectionPool`): what is said of TCP holds for HTTP unless HTTP says otherwise.
        http_idle: match idle(message.http_idle_timeout_ms) {
            IdleLimit::Default => tcp_idle,
            limit => limit,
        },
        upgrades_to_http2: message.h2_upgrade,
        keeps_version: message.use_client_protocol,
    }
}

fn outliers(message: &wire::OutlierDetection) -> OutlierDetection {
    OutlierDetection {
        consecutive_5xx: some(message.consecutive_5xx_errors),
        consecutive_gateway: some(message.consecutive_gateway_errors),
        splits_local: message.split_external_local_origin_errors,
        consecutive_local: some(message.consecutive_local_origin_failures),
        interval: Duration::from_millis(message.interval_ms.max(1)),
        base_ejection: Duration::from_millis(message.base_ejection_ms.max(1)),
        max_ejection_percent: message.max_ejection_percent.min(100),
        min_health_percent: message.min_health_percent.min(100),
    }
}

fn some(number: u32) -> Option<u32> {
    (number > 0).then_some(number)
}

fn some_ms(ms: u64) -> Option<Duration> {
    (ms > 0).then(|| Duration::from_millis(ms))
}
