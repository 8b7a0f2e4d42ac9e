//! Load balancing, connection pools and outlier detection (istio pkg/config/validation, `validateLoadBalancer`,
//! `validateConnectionPool`, `validateOutlierDetection`).

use std::time::Duration;

use super::values::check_maximum;
use super::view::View;
use crate::duration;
use crate::field_error::{FieldError, FieldErrorKind};
use crate::istio::{LoadBalancerSettings, OutlierDetection, SimpleLb};
use crate::path::FieldPath;

/// Envoy's bounds: its schema of a ring, and Istio's of a table.
const MAX_RING: u64 = 8 * 1024 * 1024;
const MAX_TABLE: u64 = 5_000_011;

/// Parts of `loadBalancer` that nothing enforces.
const LOCALITY: &[(&str, &str)] = &[
    ("localityLbSetting", "load balancing by locality"),
    ("zoneAwareLbSetting", "load balancing by locality"),
    ("backendUtilization", "load reports of endpoints"),
];

/// The keys of `consistentHash`.
const KEYS: &[&str] = &["httpHeaderName", "httpCookie", "useSourceIp", "httpQueryParameterName"];

pub(super) fn check_load_balancer(settings: &View<'_>, errors: &mut Vec<FieldError>) {
    let hash = settings.get("consistentHash");
    if !hash.is_absent() {
        if !settings.get("simple").is_absent() {
            errors.push(settings.get("simple").invalid("only one of simple and consistentHash may be set"));
        }
        check_hash(&hash, errors);
    }
    for (field, comes_with) in LOCALITY {
        let part = settings.get(field);
        // Switched off is what it is here.
        let off = part.members().all(|(name, value)| name == "enabled" && !value.is_true());
        if !(part.is_absent() || (part.is_object() && off && *field == "localityLbSetting")) {
            errors.push(part.not_enforced(field, comes_with));
        }
    }
    check_duration(&settings.get("warmupDurationSecs"), errors);
    let warmup = settings.get("warmup");
    if warmup.is_object() {
        let duration = warmup.get("duration");
        if duration.is_absent() {
            errors.push(duration.required("a warm-up has a duration").help("for example 30s"));
        }
        check_duration(&duration, errors);
        for (field, default) in [("minimumPercent", 10.0), ("aggression", 1.0)] {
            let value = warmup.get(field);
            if value.value().as_f64().is_some_and(|number| number != default) {
                errors.push(
                    value
                        .error(
                            FieldErrorKind::NotEnforced,
                            format!("{field} is not enforced: the share of a new endpoint grows evenly from a tenth"),
                        )
                        .help(format!("leave it out, or write {default}")),
                );
            }
        }
    }
}

fn check_hash(hash: &View<'_>, errors: &mut Vec<FieldError>) {
    // False and empty are Protobuf's spelling of absent.
    let is_set = |key: &&&str| {
        let value = hash.get(key);
        value.is_true() || value.is_object() || value.text().is_some_and(|text| !text.is_empty())
    };
    let keys: Vec<_> = KEYS.iter().filter(is_set).collect();
    if let [first, second, ..] = keys.as_slice() {
        errors.push(
            hash.get(second)
                .invalid(format!("requests are spread by one key, and {first} is set already"))
                .help("keep one of the two"),
        );
    }
    let cookie = hash.get("httpCookie");
    if cookie.is_object() {
        let name = cookie.get("name");
        if name.is_empty() {
            errors.push(name.required("a cookie has a name").help("for example name: user"));
        }
        let ttl = cookie.get("ttl");
        if let Some(text) = ttl.text() {
            check_milliseconds(&ttl, text, errors);
        }
        let attributes = cookie.get("attributes");
        if !attributes.is_empty() {
            errors.push(attributes.not_enforced("attributes", "attributes of generated cookies"));
        }
    }
    let (ring, maglev) = (hash.get("ringHash"), hash.get("maglev"));
    if ring.is_object() && maglev.is_object() {
        errors.push(maglev.invalid("only one of ringHash and maglev may be set"));
    }
    let older = hash.get("minimumRingSize");
    let positive = |size: &View<'_>| size.number().is_some_and(|n| n > 0);
    if positive(&older) && (ring.is_object() || maglev.is_object()) {
        errors.push(
            older
                .invalid("only one of minimumRingSize and ringHash or maglev may be set")
                .help("write ringHash: {minimumRingSize: …} alone"),
        );
    }
    check_maximum(&older, MAX_RING, errors);
    check_maximum(&ring.get("minimumRingSize"), MAX_RING, errors);
    if maglev.is_object() {
        let size = maglev.get("tableSize");
        match size.value().as_u64() {
            Some(0) => errors.push(no_table(&size)),
            None if size.is_absent() => errors.push(no_table(&size)),
            Some(n) if n >= MAX_TABLE => {
                errors.push(
                    size.invalid(format!("{n} is too large")).help(format!("a prime below {MAX_TABLE}")),
                );
            }
            Some(n) if !is_prime(n) => {
                errors.push(size.invalid(format!("{n} is no prime")).help("for example 65537"));
            }
            _ => {}
        }
    }
}

fn no_table(at: &View<'_>) -> FieldError {
    at.required("maglev has a table of some size").help("a prime, for example 65537")
}

/// For numbers below [`MAX_TABLE`].
fn is_prime(number: u64) -> bool {
    let factors = (2..).take_while(|factor| factor * factor <= number);
    number > 1 && factors.into_iter().all(|factor| !number.is_multiple_of(factor))
}

pub(super) fn check_connection_pool(pool: &View<'_>, errors: &mut Vec<FieldError>) {
    if !pool.is_object() {
        return;
    }
    let (tcp, http) = (pool.get("tcp"), pool.get("http"));
    if tcp.is_absent() && http.is_absent() {
        errors.push(
            pool.invalid("says nothing").help("for example tcp: {maxConnections: 100}, or leave it out"),
        );
    }
    let counts = [
        (&tcp, "maxConnections"),
        (&http, "http1MaxPendingRequests"),
        (&http, "http2MaxRequests"),
        (&http, "maxRequestsPerConnection"),
        (&http, "maxRetries"),
        (&http, "maxConcurrentStreams"),
    ];
    for (part, field) in counts {
        let count = part.get(field);
        if let Some(number) = count.number().filter(|number| *number < 0) {
            errors.push(count.invalid(format!("{number} is negative")).help("0 is no bound"));
        }
    }
    let keepalive = tcp.get("tcpKeepalive");
    for (part, field) in [
        (&tcp, "connectTimeout"),
        (&tcp, "maxConnectionDuration"),
        (&keepalive, "time"),
        (&keepalive, "interval"),
        (&http, "idleTimeout"),
    ] {
        check_duration(&part.get(field), errors);
    }
    // Nothing at all switches this one off.
    let idle = tcp.get("idleTimeout");
    if let Some(text) = idle.text() {
        check_milliseconds(&idle, text, errors);
    }
    let pings = http.get("http2KeepAlive");
    if !pings.is_absent() {
        errors.push(pings.not_enforced("http2KeepAlive", "intervals of pings of one's own"));
    }
    let keeps = http.get("useClientProtocol");
    if keeps.is_true() && http.get("h2UpgradePolicy").text() == Some("UPGRADE") {
        errors.push(
            keeps
                .invalid("useClientProtocol cannot stand beside h2UpgradePolicy UPGRADE")
                .help("keep one of the two"),
        );
    }
}

pub(super) fn check_outlier_detection(detection: &View<'_>, errors: &mut Vec<FieldError>) {
    check_duration(&detection.get("interval"), errors);
    check_duration(&detection.get("baseEjectionTime"), errors);
    let older = detection.get("consecutiveErrors");
    if older.number().is_some_and(|number| number != 0) {
        errors.push(
            older
                .error(
                    FieldErrorKind::NotEnforced,
                    "consecutiveErrors has no effect any more, in Istio neither",
                )
                .help("write consecutive5xxErrors or consecutiveGatewayErrors"),
        );
    }
    let codes = detection.get("outlierDetectionHttpErrorCodes");
    if !codes.is_empty() {
        errors.push(codes.not_enforced("outlierDetectionHttpErrorCodes", "codes of one's own as failures"));
    }
    let local = detection.get("consecutiveLocalOriginFailures");
    if local.number().is_some_and(|n| n > 0) && !detection.get("splitExternalLocalOriginErrors").is_true() {
        errors.push(
            local
                .invalid("failures to connect are counted apart only with splitExternalLocalOriginErrors")
                .help("add splitExternalLocalOriginErrors: true"),
        );
    }
    for field in ["maxEjectionPercent", "minHealthPercent"] {
        let percent = detection.get(field);
        if let Some(number) = percent.number().filter(|n| !(0..=100).contains(n)) {
            errors.push(percent.invalid(format!("{number} is no percentage")).help("a number from 0 to 100"));
        }
    }
}

/// What of the policy has no effect although it is kept to.
pub(super) fn warnings(
    load_balancer: Option<&LoadBalancerSettings>,
    detection: Option<&OutlierDetection>,
    path: &FieldPath,
) -> Vec<FieldError> {
    let warn = |path: FieldPath, message: &str| FieldError::new(path, FieldErrorKind::Invalid, message);
    let mut warnings = Vec::new();
    if let Some(settings) = load_balancer {
        let path = path.key("loadBalancer");
        if let Some(hash) = &settings.consistent_hash {
            let by_nothing = hash.http_header_name.is_empty()
                && hash.http_query_parameter_name.is_empty()
                && hash.http_cookie.is_none()
                && !hash.use_source_ip;
            if by_nothing {
                warnings.push(
                    warn(path.key("consistentHash"), "without a key requests are spread at random")
                        .help("for example httpHeaderName: x-user, or useSourceIp: true"),
                );
            }
            if hash.minimum_ring_size.is_some_and(|size| size > 0) {
                warnings.push(
                    warn(path.key("consistentHash").key("minimumRingSize"), "is the older spelling")
                        .help("write ringHash: {minimumRingSize: …}"),
                );
            }
        }
        let grows = settings.warmup.is_some() || settings.warmup_duration_secs.is_some();
        let simple = settings.simple.unwrap_or_default();
        if grows
            && (settings.consistent_hash.is_some()
                || matches!(simple, SimpleLb::Random | SimpleLb::Passthrough))
        {
            let field = if settings.warmup.is_some() { "warmup" } else { "warmupDurationSecs" };
            warnings.push(
                warn(path.key(field), "new endpoints are warmed up with ROUND_ROBIN and LEAST_REQUEST only")
                    .help("write one of these in simple, or leave it out"),
            );
        }
        if simple == SimpleLb::Passthrough && detection.is_some() {
            warnings.push(
                warn(path.key("simple"), "PASSTHROUGH calls the address that was dialled, ejected or not")
                    .help("leave outlierDetection out, or choose another way of balancing"),
            );
        }
    }
    warnings
}

/// A duration, if there is one, of at least a millisecond and in whole ones (istio `ValidateDuration`).
pub(super) fn check_duration(at: &View<'_>, errors: &mut Vec<FieldError>) {
    let Some(text) = at.text() else { return };
    match duration::parse(text) {
        Some(duration) if duration < Duration::from_millis(1) => errors.push(
            at.invalid(format!("'{text}' is less than a millisecond")).help("for example 5s, 500ms or 1m"),
        ),
        _ => check_milliseconds(at, text, errors),
    }
}

fn check_milliseconds(at: &View<'_>, text: &str, errors: &mut Vec<FieldError>) {
    let problem = match duration::parse(text) {
        None => "is no duration",
        Some(duration) if duration.subsec_nanos() % 1_000_000 != 0 => "is not in whole milliseconds",
        Some(_) => return,
    };
    errors.push(at.invalid(format!("'{text}' {problem}")).help("for example 5s, 500ms or 1m"));
}
