//! From the text of the ConfigMap to [`MeshConfig`].

use std::time::Duration;

use maille_core::{TrustDomain, is_dns_label};
use serde_json::Value;

use super::spec::{AccessLogEncoding, InboundMode, MeshConfigSpec, OutboundMode};
use super::{AccessLog, MeshConfig, fields, providers, tls, trust};
use crate::check::View;
use crate::diagnostic::{Diagnostic, Severity};
use crate::field_error::{FieldError, FieldErrorKind};
use crate::path::FieldPath;
use crate::{decode, duration, proxy_config, yaml};

/// Reads and checks the YAML of key `mesh`; an empty text is the default configuration. All errors, not the first;
/// lines count within the text.
///
/// As strict as [`crate::check()`]: an unknown field is an error, and so is one that means something to Istio and
/// nothing here, unless it has a value with which Istio does nothing either.
///
/// Sources: reference authorization 10.3, 15 and 18; istio pkg/config/validation/agent, `ValidateMeshConfig`, and
/// pkg/config/mesh for the defaults. One thing differs: a bad provider is an error, where Istio only logs it.
pub fn check(text: &str) -> Result<MeshConfig, Vec<Diagnostic>> {
    let (document, value) = match yaml::plain("mesh", text)? {
        Some(document) => {
            let value = document.value.clone();
            (Some(document), value)
        }
        None => (None, Value::Object(serde_json::Map::new())),
    };
    check_value(&value).map_err(|errors| match document {
        Some(document) => document.diagnostics(errors, Severity::Error),
        // The default configuration has no errors.
        None => Vec::new(),
    })
}

/// [`check()`] after YAML, with field paths in `MeshConfig`.
fn check_value(value: &Value) -> Result<MeshConfig, Vec<FieldError>> {
    let (spec, mut errors) = decode::decode::<MeshConfigSpec>(value, &FieldPath::root());
    let view = View::new(value);
    fields::check(&view, &mut errors);
    let extension_providers = providers::check(&view.get("extensionProviders"), &mut errors);
    let (trust_domain, trust_domain_aliases) = check_trust_domains(&view, &mut errors);
    let ca_certificates = trust::check(&view.get("caCertificates"), &mut errors);
    check_root_namespace(&view.get("rootNamespace"), &mut errors);
    check_access_log(&view, &mut errors);
    let mesh_tls = tls::check(&view.get("meshMTLS"), &mut errors);
    let default_config = proxy_config::read(&view.get("defaultConfig"), &mut errors);
    let detection = view.get("protocolDetectionTimeout");
    let detection = detection.text().and_then(|text| check_duration(&detection, text, false, &mut errors));
    match spec {
        Some(spec) if errors.is_empty() => Ok(MeshConfig {
            root_namespace: spec
                .root_namespace
                .filter(|namespace| !namespace.is_empty())
                .unwrap_or_else(|| maille_core::ROOT_NAMESPACE.to_owned()),
            trust_domain,
            trust_domain_aliases,
            path_normalization: spec.path_normalization.normalization.into(),
            registry_only: spec.outbound_traffic_policy.mode == OutboundMode::RegistryOnly,
            deliver_to_localhost: spec.inbound_traffic_policy.mode == InboundMode::Localhost,
            default_config,
            access_log: match (spec.access_log_file.is_empty(), spec.access_log_encoding) {
                (true, _) => AccessLog::Refusals,
                (false, AccessLogEncoding::Text) => AccessLog::Text,
                (false, AccessLogEncoding::Json) => AccessLog::Json,
            },
            protocol_detection_timeout: detection.filter(|timeout| !timeout.is_zero()),
            extension_providers,
            ca_certificates,
            mesh_tls,
            explain_in_response: spec.maille.explain_in_response,
            keep_expired_tcp: spec.maille.keep_expired_tcp,
        }),
        _ => Err(errors),
    }
}

fn check_root_namespace(at: &View<'_>, errors: &mut Vec<FieldError>) {
    if let Some(text) = at.text().filter(|text| !text.is_empty() && !is_dns_label(text)) {
        errors.push(
            at.invalid(format!("'{text}' is no namespace"))
                .help("1 to 63 lower-case letters, digits and '-', for example istio-system"),
        );
    }
}

/// `trustDomain` and `trustDomainAliases` (istio `ValidateTrustDomain`: DNS labels).
fn check_trust_domains(
    view: &View<'_>,
    errors: &mut Vec<FieldError>,
) -> (Option<TrustDomain>, Vec<TrustDomain>) {
    let mut read = |at: &View<'_>| {
        let text = at.text()?;
        let labels = text.strip_suffix('.').unwrap_or(text);
        if let (true, Ok(domain)) = (labels.split('.').all(is_dns_label), TrustDomain::parse(labels)) {
            return Some(domain);
        }
        errors.push(
            at.invalid(format!("'{text}' is no trust domain"))
                .help("lower-case letters, digits and '-' between dots, for example cluster.local"),
        );
        None
    };
    let own = read(&view.get("trustDomain"));
    let aliases = view.get("trustDomainAliases").elements().filter_map(|alias| read(&alias)).collect();
    (own, aliases)
}

fn check_access_log(view: &View<'_>, errors: &mut Vec<FieldError>) {
    let file = view.get("accessLogFile");
    if file.text().is_some_and(|text| !matches!(text, "" | "/dev/stdout")) {
        errors.push(
            file.error(
                FieldErrorKind::NotEnforced,
                "the proxy writes its access log to its standard output only",
            )
            .help("write /dev/stdout, or \"\" for refusals only"),
        );
    }
    let format = view.get("accessLogFormat");
    if format.text().is_some_and(|text| !text.is_empty()) {
        errors.push(
            format
                .error(FieldErrorKind::NotEnforced, "the access log has Istio's default format, and no other")
                .help("leave it out; accessLogEncoding: JSON gives every part a name"),
        );
    }
    let policy = view.get("outboundTrafficPolicy").get("mode");
    if policy.text() == Some("ALLOW_ANY_DYNAMIC_DNS") {
        errors.push(
            policy
                .error(
                    FieldErrorKind::NotEnforced,
                    "ALLOW_ANY_DYNAMIC_DNS is not enforced: it is for waypoints",
                )
                .help("write ALLOW_ANY or REGISTRY_ONLY"),
        );
    }
}

/// A duration in whole milliseconds, and, if it `counts`, of at least one.
pub(super) fn check_duration(
    at: &View<'_>,
    text: &str,
    counts: bool,
    errors: &mut Vec<FieldError>,
) -> Option<Duration> {
    let problem = match duration::parse(text) {
        None => "is no duration",
        Some(duration) if counts && duration < Duration::from_millis(1) => "is less than a millisecond",
        Some(duration) if duration.subsec_nanos() % 1_000_000 != 0 => "is not in whole milliseconds",
        Some(duration) => return Some(duration),
    };
    errors.push(at.invalid(format!("'{text}' {problem}")).help("for example 5s, 500ms or 1m"));
    None
}
