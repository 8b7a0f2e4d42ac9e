//! Transport sockets: what is terminated, and what is originated.

use maille_proto::facts as wire;
use serde_json::{Map, Value, json};

use crate::address::type_url;

const TLS: &str = "envoy.transport_sockets.tls";
const TLS_TYPES: &str = "envoy.extensions.transport_sockets.tls.v3";

/// What a chain of mutual TLS terminates. Metadata exchange, which Maille does not speak, is not selected (reference
/// mtls PA-9, WR-4).
pub(crate) fn downstream() -> Value {
    json!({
        "name": TLS,
        "typedConfig": {
            "@type": type_url(&format!("{TLS_TYPES}.DownstreamTlsContext")),
            "commonTlsContext": {
                "tlsParams": {"tlsMinimumProtocolVersion": "TLSv1_2", "tlsMaximumProtocolVersion": "TLSv1_3"},
                "alpnProtocols": ["h2", "http/1.1"],
                "tlsCertificateSdsSecretConfigs": [secret("default")],
                "combinedValidationContext": {
                    "defaultValidationContext": {},
                    "validationContextSdsSecretConfig": secret("ROOTCA"),
                }
            },
            "requireClientCertificate": true
        }
    })
}

/// Mutual TLS between workloads, as clients open it (reference mtls 8.1).
pub(crate) fn istio_mutual(sni: &str, names: &[String], protocol: wire::Protocol) -> Value {
    let alpn: &[&str] = match protocol {
        wire::Protocol::Http2 => &["istio-h2", "istio", "h2"],
        wire::Protocol::Http | wire::Protocol::Auto => &["istio-http/1.1", "istio", "http/1.1"],
        wire::Protocol::Tcp | wire::Protocol::Tls => &["istio"],
    };
    json!({
        "name": TLS,
        "typedConfig": {
            "@type": type_url(&format!("{TLS_TYPES}.UpstreamTlsContext")),
            "commonTlsContext": {
                "alpnProtocols": alpn,
                "tlsCertificateSdsSecretConfigs": [secret("default")],
                "combinedValidationContext": {
                    "defaultValidationContext": validation("URI", names),
                    "validationContextSdsSecretConfig": secret("ROOTCA"),
                }
            },
            "sni": sni
        }
    })
}

/// As it came.
pub(crate) fn raw() -> Value {
    json!({
        "name": "envoy.transport_sockets.raw_buffer",
        "typedConfig": {"@type": type_url("envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer")}
    })
}

/// TLS as a DestinationRule orders it; `None`: none.
pub(crate) fn of_rule(
    tls: &wire::ClientTls,
    default_sni: &str,
    names: &[String],
    protocol: wire::Protocol,
) -> Option<Value> {
    use wire::client_tls::Mode;
    let own_names = if tls.subject_alt_names.is_empty() { names } else { tls.subject_alt_names.as_slice() };
    match tls.mode() {
        Mode::Disable => None,
        Mode::IstioMutual => {
            let sni = if tls.sni.is_empty() { default_sni } else { &tls.sni };
            Some(istio_mutual(sni, own_names, protocol))
        }
        Mode::Simple | Mode::Mutual | Mode::Unspecified => Some(from_files(tls, own_names)),
    }
}

/// From files, or from a Secret.
fn from_files(tls: &wire::ClientTls, names: &[String]) -> Value {
    let mut common = Map::new();
    // Istio's resource names of a Secret.
    let held = match tls.credential.as_str() {
        "" => None,
        name if name.contains("://") => Some(name.to_owned()),
        name => Some(format!("kubernetes://{name}")),
    };
    if let Some(name) = held.as_ref().filter(|_| tls.mode() == wire::client_tls::Mode::Mutual) {
        common.insert("tlsCertificateSdsSecretConfigs".to_owned(), json!([secret(name)]));
    } else if !tls.client_certificate.is_empty() {
        let name = format!("file-cert:{}~{}", tls.client_certificate, tls.private_key);
        common.insert("tlsCertificateSdsSecretConfigs".to_owned(), json!([secret(&name)]));
    }
    if !tls.insecure_skip_verify {
        let roots = match (held, tls.ca_certificates.as_str()) {
            (Some(name), _) => format!("{name}-cacert"),
            (None, "" | "system") => "file-root:system".to_owned(),
            (None, file) => format!("file-root:{file}"),
        };
        let mut own = validation("DNS", names);
        if let Some(fields) = own.as_object_mut().filter(|_| !tls.ca_crl.is_empty()) {
            fields.insert("crl".to_owned(), json!({"filename": tls.ca_crl}));
        }
        let context = json!({
            "defaultValidationContext": own,
            "validationContextSdsSecretConfig": secret(&roots),
        });
        common.insert("combinedValidationContext".to_owned(), context);
    }
    let mut context = json!({
        "@type": type_url(&format!("{TLS_TYPES}.UpstreamTlsContext")),
        "commonTlsContext": common,
    });
    if let Some(fields) = context.as_object_mut() {
        if tls.sni.is_empty() {
            fields.insert("autoHostSni".to_owned(), json!(true));
        } else {
            fields.insert("sni".to_owned(), json!(tls.sni));
        }
    }
    json!({"name": TLS, "typedConfig": context})
}

fn validation(kind: &str, names: &[String]) -> Value {
    if names.is_empty() {
        return json!({});
    }
    let matchers = names.iter().map(|name| {
        let kind = if name.contains("://") { "URI" } else { kind };
        json!({"sanType": kind, "matcher": {"exact": name}})
    });
    json!({"matchTypedSubjectAltNames": matchers.collect::<Vec<_>>()})
}

fn secret(name: &str) -> Value {
    json!({"name": name, "sdsConfig": {"ads": {}, "resourceApiVersion": "V3"}})
}
