//! Fields of `MeshConfig` that mean something to Istio and nothing here: accepted with the values with which Istio does
//! what this mesh does anyway, and else refused.

use serde_json::Value;

use crate::check::View;
use crate::field_error::{FieldError, FieldErrorKind};

/// A field, the values it may have (JSON; `""`, `[]` and `{}` go without saying), and why it may have no other.
type Field = (&'static str, &'static [&'static str], &'static str);

/// The accepted values are Istio's defaults (istio pkg/config/mesh, `DefaultMeshConfig`) where those describe this mesh,
/// and values with which something is off that this mesh does not have.
const FIELDS: &[Field] = &[
    ("ca", &[], "the mesh has one authority, its own"),
    ("certificates", &[], "the control plane makes no certificates for others"),
    ("configSources", &[], "the mesh has one source, the Kubernetes API"),
    ("connectTimeout", &["10s"], "proxies try a connection for 10 s"),
    ("defaultDestinationRuleExportTo", &[r#"["*"]"#], EXPORT),
    ("defaultHttpRetryPolicy", &[r#"{"attempts":0}"#], "proxies do not retry requests"),
    ("defaultInboundHttpRetryPolicy", &[r#"{"attempts":0}"#], "proxies do not retry requests"),
    ("defaultProviders", &[r#"{"metrics":["prometheus"]}"#], TELEMETRY),
    ("defaultServiceExportTo", &[r#"["*"]"#], EXPORT),
    ("defaultTrafficPolicy", &[], "write DestinationRules"),
    ("defaultVirtualServiceExportTo", &[r#"["*"]"#], EXPORT),
    ("disableEnvoyListenerLog", &["true", "false"], ""),
    ("discoverySelectors", &[], "all namespaces are looked at"),
    ("dnsRefreshRate", &["60s", "5s"], "names are looked up when they are dialled"),
    ("enableAutoMtls", &["true"], "write DestinationRules to keep clients from mutual TLS"),
    ("enableEnvoyAccessLogService", &["false"], TELEMETRY),
    ("enablePrometheusMerge", &["true"], "Pods say so with the annotation prometheus.istio.io/merge-metrics"),
    ("enableTracing", &["true", "false"], ""),
    ("h2UpgradePolicy", &[r#""DO_NOT_UPGRADE""#], "requests keep the HTTP version that they came with"),
    ("hboneIdleTimeout", &[], AMBIENT),
    ("inboundClusterStatName", &[], "metrics have the names that Istio's have by default"),
    ("ingressClass", &[r#""istio""#], INGRESS),
    ("ingressControllerMode", &[r#""OFF""#, r#""STRICT""#], INGRESS),
    ("ingressSelector", &[r#""ingressgateway""#], INGRESS),
    ("ingressService", &[r#""istio-ingressgateway""#], INGRESS),
    (
        "localityLbSetting",
        &[r#"{"enabled":true}"#, r#"{"enabled":false}"#],
        "endpoints have no locality here",
    ),
    ("outboundClusterStatName", &[], "metrics have the names that Istio's have by default"),
    ("proxyHttpPort", &["0"], "the sidecar listens on no port that applications dial"),
    ("proxyInboundListenPort", &["15006"], "the ports of the sidecar are fixed"),
    ("proxyListenPort", &["15001"], "the ports of the sidecar are fixed"),
    ("serviceEntryVisibility", &[], "write exportTo in ServiceEntries"),
    ("serviceScopeConfigs", &[], AMBIENT),
    ("serviceSettings", &[], "the mesh is one cluster"),
    ("tcpKeepalive", &[], "write DestinationRules"),
    ("tlsDefaults", &[], "TLS towards others is what their DestinationRules say"),
    ("verifyCertificateAtClient", &[], "write DestinationRules, which name the certificates to believe"),
    ("zoneAwareLbSetting", &[], "endpoints have no locality here"),
];

const EXPORT: &str = "objects say themselves where they are seen (exportTo)";
const TELEMETRY: &str = "metrics are for Prometheus to fetch, and the access log is what accessLogFile says";
const AMBIENT: &str = "the mesh has sidecars, and no waypoints";
const INGRESS: &str = "the mesh has no gateways";

pub(super) fn check(config: &View<'_>, errors: &mut Vec<FieldError>) {
    check_fields(config, FIELDS, errors);
    let tls = config.get("outboundTrafficPolicy").get("tls");
    if !tls.is_empty() {
        errors.push(refuse(&tls, "tls", "TLS towards others is what their DestinationRules say"));
    }
}

fn check_fields(object: &View<'_>, fields: &[Field], errors: &mut Vec<FieldError>) {
    for (name, accepted, reason) in fields {
        let field = object.get(name);
        if field.is_empty() || accepted.iter().any(|text| is_value(field.value(), text)) {
            continue;
        }
        let error = refuse(&field, name, reason);
        errors.push(match *accepted {
            [] => error,
            _ => error.help(format!("leave it out, or write {}", accepted.join(" or "))),
        });
    }
}

/// Whether a value is the one in `text`: JSON, or a duration without quotes.
fn is_value(value: &Value, text: &str) -> bool {
    match serde_json::from_str::<Value>(text) {
        Ok(accepted) => *value == accepted,
        Err(_) => value.as_str() == Some(text),
    }
}

fn refuse(at: &View<'_>, name: &str, reason: &str) -> FieldError {
    let reason = if reason.is_empty() { "it is either true or false" } else { reason };
    at.error(FieldErrorKind::NotEnforced, format!("{name} is not enforced: {reason}"))
}
