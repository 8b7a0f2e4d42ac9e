//! Certificates, in exactly the layout that scripts decode (reference cli-and-telemetry 1.2, "exact layout").

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use maille_proto::facts as wire;
use serde_json::{Value, json};

use crate::address::type_url;
use crate::known::Known;

/// What stands in place of every private key.
const REDACTED: &str = "[redacted]";

/// The workload's certificate, `default`, always first; then the roots, `ROOTCA`.
pub(crate) fn active(known: &Known<'_>) -> Vec<Value> {
    let Some(certificates) = &known.dump.certificates else { return Vec::new() };
    let own_domain = known.dump.identity.strip_prefix("spiffe://").and_then(|rest| rest.split('/').next());
    let own = certificates.workload.as_ref().map(workload);
    let roots = certificates.roots.iter().filter(|roots| !roots.certificates.is_empty());
    let bundle = match roots.collect::<Vec<_>>().as_slice() {
        [] => None,
        [one] => Some(root("ROOTCA", &one.certificates, updated(known, &one.trust_domain))),
        // Roots of several trust domains are not interchangeable: Envoy keeps them apart in a SPIFFE validator.
        several => {
            let newest = several.iter().filter_map(|roots| updated(known, &roots.trust_domain)).max();
            Some(several_roots(several, own_domain, newest))
        }
    };
    own.into_iter().chain(bundle).collect()
}

/// What Envoy has no section for: `keyExchanges` offered and accepted in order of preference, `oldestVersion` of TLS,
/// `revocations` in force (its version; null: none), and `handshakes` since the start by what they came to.
pub(crate) fn tls(known: &Known<'_>) -> Value {
    let Some(tls) = known.dump.certificates.as_ref().and_then(|all| all.tls.as_ref()) else {
        return Value::Null;
    };
    let handshakes = tls.handshakes.iter().map(|of| {
        json!({"side": of.side, "keyExchange": of.key_exchange, "version": of.version, "count": of.count})
    });
    json!({
        "keyExchanges": tls.key_exchanges,
        "oldestVersion": tls.oldest_version,
        "revocations": Some(&tls.revocations).filter(|version| !version.is_empty()),
        "handshakes": handshakes.collect::<Vec<_>>(),
    })
}

/// When the bundle came; before the first one, when the certificate that brought its roots did.
fn updated<'k>(known: &'k Known<'_>, trust_domain: &str) -> Option<&'k str> {
    let bundle =
        known.dump.held.iter().find(|held| held.r#type == "TrustBundle" && held.name == trust_domain);
    let own = || known.dump.certificates.as_ref()?.workload.as_ref();
    bundle.map(|held| held.updated.as_str()).or_else(|| own().map(|own| own.obtained.as_str()))
}

fn workload(own: &wire::Certificate) -> Value {
    let certificate = json!({
        "certificateChain": {"inlineBytes": STANDARD.encode(own.chain.concat())},
        "privateKey": {"inlineBytes": STANDARD.encode(REDACTED)}
    });
    entry("default", "tlsCertificate", certificate, Some(&own.obtained))
}

fn root(name: &str, certificates: &[String], updated: Option<&str>) -> Value {
    let context = json!({"trustedCa": {"inlineBytes": STANDARD.encode(certificates.concat())}});
    entry(name, "validationContext", context, updated)
}

fn several_roots(roots: &[&wire::TrustedRoots], own_domain: Option<&str>, updated: Option<&str>) -> Value {
    let mut ordered: Vec<_> = roots.to_vec();
    ordered.sort_by_key(|roots| Some(roots.trust_domain.as_str()) != own_domain);
    let domains: Vec<_> = ordered
        .iter()
        .map(|roots| {
            json!({
                "name": roots.trust_domain,
                "trustBundle": {"inlineBytes": STANDARD.encode(roots.certificates.concat())}
            })
        })
        .collect();
    let context = json!({
        "customValidatorConfig": {
            "name": "envoy.tls.cert_validator.spiffe",
            "typedConfig": {
                "@type": type_url(
                    "envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig"
                ),
                "trustDomains": domains
            }
        }
    });
    entry("ROOTCA", "validationContext", context, updated)
}

fn entry(name: &str, field: &str, content: Value, updated: Option<&str>) -> Value {
    json!({
        "name": name,
        "lastUpdated": updated.unwrap_or_default(),
        "secret": {
            "@type": type_url("envoy.extensions.transport_sockets.tls.v3.Secret"),
            "name": name,
            field: content
        }
    })
}
