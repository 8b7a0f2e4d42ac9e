//! The fields of `ProxyConfig` (istio api mesh/v1alpha1, proxy.proto; pkg/config/validation/agent,
//! `ValidateMeshConfigProxyConfig`; pilot/cmd/pilot-agent/options for the metadata).

use std::time::Duration;

use serde_json::Value;

use super::ProxyConfig;
use crate::check::{View, snake_case};
use crate::duration;
use crate::field_error::{FieldError, FieldErrorKind};
use crate::suggest;

/// More threads than a machine has processors.
const MAX_CONCURRENCY: i64 = 256;

/// Fields that mean something here.
const READ: &[&str] = &[
    "holdApplicationUntilProxyStarts",
    "concurrency",
    "drainDuration",
    "terminationDrainDuration",
    "proxyMetadata",
];

/// Metadata that means something here: what Istio's agent takes from its environment, and what is this mesh's own.
const METADATA: &[&str] = &[
    "ISTIO_META_DNS_CAPTURE",
    "ISTIO_META_DNS_AUTO_ALLOCATE",
    "EXIT_ON_ZERO_ACTIVE_CONNECTIONS",
    "MINIMUM_DRAIN_DURATION",
    "SECRET_TTL",
    "MAILLE_WORKLOAD_API",
];

/// Fields that mean something to Istio only, with the values (JSON) that describe this mesh too; `{}`, `[]` and `""` go
/// without saying.
const OTHERS: &[(&str, &[&str])] = &[
    ("availabilityZone", &[]),
    ("binaryPath", &[r#""/usr/local/bin/envoy""#]),
    ("caCertificatesPem", &[]),
    ("configPath", &[r#""./etc/istio/proxy""#]),
    ("connectionSettings", &[]),
    ("controlPlaneAuthPolicy", &[r#""MUTUAL_TLS""#]),
    ("customConfigFile", &[]),
    ("discoveryAddress", &[r#""istiod.istio-system.svc:15012""#]),
    ("discoveryRefreshDelay", &[]),
    ("envoyAccessLogService", &[]),
    ("envoyMetricsService", &[]),
    ("envoyMetricsServiceAddress", &[]),
    ("extraStatTags", &[]),
    ("fileFlushInterval", &[]),
    ("fileFlushMinSizeKb", &[]),
    ("gatewayTopology", &[]),
    ("image", &[]),
    ("interceptionMode", &[r#""REDIRECT""#]),
    ("meshId", &[r#""cluster.local""#]),
    ("privateKeyProvider", &[]),
    ("proxyAdminPort", &["15000"]),
    ("proxyBootstrapTemplatePath", &[]),
    ("proxyHeaders", &[]),
    ("proxyStatsMatcher", &[]),
    ("readinessProbe", &[]),
    ("runtimeValues", &[]),
    ("sds", &[]),
    ("serviceCluster", &[r#""istio-proxy""#]),
    ("statNameLength", &["189"]),
    ("statsCompression", &[]),
    ("statsdUdpAddress", &[]),
    ("statusPort", &["15020"]),
    ("tracing", &[]),
    ("tracingServiceName", &[]),
    ("zipkinAddress", &[]),
];

pub(super) fn read(config: &View<'_>, errors: &mut Vec<FieldError>) -> ProxyConfig {
    if config.is_absent() {
        return ProxyConfig::default();
    }
    if !config.is_object() {
        errors.push(config.error(FieldErrorKind::Type, "expected an object"));
        return ProxyConfig::default();
    }
    check_names(config, errors);
    let metadata = config.get("proxyMetadata");
    if !metadata.is_absent() && !metadata.is_object() {
        errors.push(metadata.error(FieldErrorKind::Type, "expected an object"));
    }
    for (name, value) in metadata.members().filter(|(name, _)| !METADATA.contains(name)) {
        let nearest = suggest::nearest(name, METADATA.iter().copied());
        let help = match nearest {
            Some(nearest) => format!("did you mean {nearest}?"),
            None => format!("known here: {}", METADATA.join(", ")),
        };
        let message = format!("{name} is not enforced: no proxy of this mesh reads it");
        errors.push(value.error(FieldErrorKind::NotEnforced, message).help(help));
    }
    ProxyConfig {
        hold_application_until_proxy_starts: boolean(&config.get("holdApplicationUntilProxyStarts"), errors),
        concurrency: concurrency(&config.get("concurrency"), errors),
        drain_duration: duration(&config.get("drainDuration"), true, errors),
        termination_drain_duration: duration(&config.get("terminationDrainDuration"), false, errors),
        dns_capture: flag(&metadata.get_exactly("ISTIO_META_DNS_CAPTURE"), errors),
        dns_auto_allocate: flag(&metadata.get_exactly("ISTIO_META_DNS_AUTO_ALLOCATE"), errors),
        exit_on_zero_active_connections: flag(
            &metadata.get_exactly("EXIT_ON_ZERO_ACTIVE_CONNECTIONS"),
            errors,
        ),
        minimum_drain_duration: duration(&metadata.get_exactly("MINIMUM_DRAIN_DURATION"), false, errors),
        secret_ttl: duration(&metadata.get_exactly("SECRET_TTL"), true, errors),
        workload_api: flag(&metadata.get_exactly("MAILLE_WORKLOAD_API"), errors),
    }
}

fn check_names(config: &View<'_>, errors: &mut Vec<FieldError>) {
    let is = |known: &str, name: &str| known == name || snake_case(known) == name;
    for (name, member) in config.members() {
        if READ.iter().any(|known| is(known, name)) {
            let other =
                |known: &str| known != name && is(known, name) && !config.get_exactly(known).is_absent();
            if READ.iter().any(|known| other(known)) {
                errors.push(
                    member.error(
                        FieldErrorKind::Duplicate,
                        format!("field '{name}' is given in two spellings"),
                    ),
                );
            }
            continue;
        }
        let Some((_, accepted)) = OTHERS.iter().find(|(known, _)| is(known, name)) else {
            let names = READ.iter().chain(OTHERS.iter().map(|(name, _)| name));
            let nearest = suggest::nearest(name, names.copied());
            let error = member.error(FieldErrorKind::Unknown, format!("unknown field '{name}'"));
            errors.push(match nearest {
                Some(nearest) => error.help(format!("did you mean '{nearest}'?")),
                None => error.help(format!("known here: {}", READ.join(", "))),
            });
            continue;
        };
        let same =
            |text: &str| serde_json::from_str::<Value>(text).is_ok_and(|value| value == *member.value());
        if member.is_empty() || accepted.iter().any(|text| same(text)) {
            continue;
        }
        let message = format!("{name} is not enforced: proxies of this mesh are started with fixed settings");
        let error = member.error(FieldErrorKind::NotEnforced, message);
        errors.push(match *accepted {
            [] => error.help(format!("known here: {}", READ.join(", "))),
            _ => error.help(format!("leave it out, or write {}", accepted.join(" or "))),
        });
    }
}

fn boolean(at: &View<'_>, errors: &mut Vec<FieldError>) -> Option<bool> {
    let read = at.value().as_bool();
    if read.is_none() && !at.is_absent() {
        errors.push(at.error(FieldErrorKind::Type, "expected true or false"));
    }
    read
}

fn concurrency(at: &View<'_>, errors: &mut Vec<FieldError>) -> Option<u16> {
    if at.is_absent() {
        return None;
    }
    match at.number() {
        Some(number) if (0..=MAX_CONCURRENCY).contains(&number) => u16::try_from(number).ok(),
        Some(number) => {
            errors.push(
                at.invalid(format!("{number} is no number of threads"))
                    .help(format!("a number up to {MAX_CONCURRENCY}, or 0 for one per processor")),
            );
            None
        }
        None => {
            errors.push(at.error(FieldErrorKind::Type, "expected a whole number"));
            None
        }
    }
}

/// A duration in whole milliseconds, or in whole seconds, and then of at least one.
fn duration(at: &View<'_>, in_seconds: bool, errors: &mut Vec<FieldError>) -> Option<Duration> {
    if at.is_absent() {
        return None;
    }
    let Some(text) = at.text() else {
        errors.push(at.error(FieldErrorKind::Type, "expected a string").help("for example 5s"));
        return None;
    };
    let problem = match duration::parse(text) {
        None => "is no duration",
        Some(read) if in_seconds && read.is_zero() => "is no time at all",
        Some(read) if in_seconds && read.subsec_nanos() != 0 => "is not in whole seconds",
        Some(read) if read.subsec_nanos() % 1_000_000 != 0 => "is not in whole milliseconds",
        Some(read) => return Some(read),
    };
    errors.push(at.invalid(format!("'{text}' {problem}")).help("for example 5s or 1m"));
    None
}

/// A truth value as a text, which Go's `strconv.ParseBool` reads.
fn flag(at: &View<'_>, errors: &mut Vec<FieldError>) -> Option<bool> {
    if at.is_absent() {
        return None;
    }
    let Some(text) = at.text() else {
        errors.push(at.error(FieldErrorKind::Type, "expected a string").help("write \"true\", with quotes"));
        return None;
    };
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => {
            errors.push(at.invalid(format!("'{text}' is neither true nor false")).help("write \"true\""));
            None
        }
    }
}
