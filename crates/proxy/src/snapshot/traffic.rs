//! What a DestinationRule says of one port beyond TLS: how requests are spread, bounded, and kept from endpoints that
//! fail (reference mtls 2.3; istio/api networking/v1alpha3/destination_rule.proto).

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;

/// `trafficPolicy` of one port, checked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Traffic {
    /// `<namespace>/<name>` of the DestinationRule.
    pub rule: Arc<str>,
    /// How an endpoint is chosen.
    pub algorithm: Algorithm,
    /// How long a new endpoint's share grows, with [`Algorithm::LeastRequest`] and [`Algorithm::RoundRobin`].
    pub warmup: Option<Duration>,
    /// Bounds on connections and requests; the same allocation for as long as nothing about them changes.
    pub pool: Option<Arc<ConnectionPool>>,
    /// When an endpoint is left out for a while.
    pub outliers: Option<OutlierDetection>,
}

/// How an endpoint is chosen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Algorithm {
    /// The less busy of two (Istio's default).
    #[default]
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// Any.
    Random,
    /// The address that the application dialled.
    Passthrough,
    /// The same for equal keys.
    Hash(HashKey, HashTable),
}

/// What a request is hashed by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HashKey {
    /// The value of a header.
    Header(HeaderName),
    /// The value of a cookie. One that is missing is made if it has a life time.
    Cookie {
        /// Its name.
        name: Arc<str>,
        /// Its `Path`; empty for none.
        path: Arc<str>,
        /// Its life; zero: as long as the browser's session.
        ttl: Option<Duration>,
    },
    /// The caller's address.
    SourceAddress,
    /// The value of a query parameter.
    Query(Arc<str>),
}

/// What hashes are looked up in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HashTable {
    /// A ring with at least so many places.
    Ring(u64),
    /// Maglev's table of so many places, a prime.
    Maglev(u64),
}

/// Bounds on the connections to one service port, and on requests. `None` and no bound are the same.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConnectionPool {
    /// Connections at a time.
    pub connections: Option<u32>,
    /// Requests that wait for a connection.
    pub pending: Option<u32>,
    /// Requests under way.
    pub requests: Option<u32>,
    /// Repeated requests under way.
    pub retries: Option<u32>,
    /// Requests after which a connection is not used any more.
    pub requests_per_connection: Option<u32>,
    /// Streams of one HTTP/2 connection at a time.
    pub streams: Option<u32>,
    /// To connect.
    pub connect_timeout: Option<Duration>,
    /// Age from which a connection takes no new request; an opaque connection ends then.
    pub max_age: Option<Duration>,
    /// Probes of the kernel.
    pub keepalive: Option<Keepalive>,
    /// How long an opaque connection may say nothing.
    pub tcp_idle: IdleLimit,
    /// How long a connection may be without a request.
    pub http_idle: IdleLimit,
    /// Requests in HTTP/1.1 go on in HTTP/2.
    pub upgrades_to_http2: bool,
    /// The caller's version is kept.
    pub keeps_version: bool,
}

/// How long something may be unused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IdleLimit {
    /// As without a rule.
    #[default]
    Default,
    /// For ever.
    Never,
    /// So long.
    After(Duration),
}

/// `tcpKeepalive`; what is `None` is as the kernel has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Keepalive {
    /// Probes without an answer before the peer counts as gone.
    pub probes: Option<u32>,
    /// Silence before the first probe.
    pub time: Option<Duration>,
    /// Between probes.
    pub interval: Option<Duration>,
}

/// `outlierDetection`; a count of `None` is switched off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutlierDetection {
    /// Answers of 500 to 599 in a row.
    pub consecutive_5xx: Option<u32>,
    /// Answers 502, 503 and 504 in a row.
    pub consecutive_gateway: Option<u32>,
    /// Failures to connect, and connections lost, count apart from answers.
    pub splits_local: bool,
    /// Such failures in a row, if they count apart.
    pub consecutive_local: Option<u32>,
    /// How often, without a further ejection, the next one gets shorter again.
    pub interval: Duration,
    /// The first ejection's length; the n-th in a row takes n times as long.
    pub base_ejection: Duration,
    /// Of all endpoints, how many may be left out at a time.
    pub max_ejection_percent: u32,
    /// With fewer in use, none is left out; 0: never mind.
    pub min_health_percent: u32,
}
