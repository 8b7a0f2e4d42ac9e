//! `meshMTLS`: what mutual TLS between proxies, and towards the control plane, may negotiate.

use crate::check::View;
use crate::field_error::{FieldError, FieldErrorKind};

/// What `meshMTLS` says (reference mtls 8.1).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MeshTls {
    /// `ecdhCurves`, in order of preference; empty: the proxy's own, X25519MLKEM768 first.
    pub key_exchanges: Vec<String>,
    /// `minProtocolVersion` is `TLSV1_3`; default TLS 1.2.
    pub tls13_only: bool,
}

impl MeshTls {
    /// Whether only the key exchange that withstands quantum computers is left.
    pub fn is_post_quantum_only(&self) -> bool {
        self.key_exchanges.as_slice() == [POST_QUANTUM]
    }
}

/// The key exchange that withstands quantum computers.
const POST_QUANTUM: &str = "X25519MLKEM768";
/// What proxies can agree upon, by Istio's names.
const SUPPORTED: [&str; 4] = [POST_QUANTUM, "X25519", "P-256", "P-384"];
/// What Istio's can besides (istio pkg/config/security, `ValidECDHCurves`): accepted as long as another one is there.
const OF_OTHERS: [&str; 1] = ["P-521"];

/// Reads `meshMTLS`.
pub(super) fn check(tls: &View<'_>, errors: &mut Vec<FieldError>) -> MeshTls {
    const REASON: &str = "mutual TLS is TLS 1.3 or 1.2 with the suites of the library";
    for field in ["maxProtocolVersion", "cipherSuites"] {
        let value = tls.get(field);
        if !(value.is_empty() || value.text() == Some("TLS_AUTO")) {
            errors.push(
                value
                    .error(FieldErrorKind::NotEnforced, format!("{field} is not enforced: {REASON}"))
                    .help("leave it out"),
            );
        }
    }
    MeshTls {
        key_exchanges: check_curves(&tls.get("ecdhCurves"), errors),
        tls13_only: tls.get("minProtocolVersion").text() == Some("TLSV1_3"),
    }
}

fn check_curves(curves: &View<'_>, errors: &mut Vec<FieldError>) -> Vec<String> {
    let help = || format!("some of {}", SUPPORTED.join(", "));
    if !curves.value().is_null() && !curves.value().is_array() {
        errors.push(curves.invalid("ecdhCurves is a list of names").help(help()));
    }
    let mut known = Vec::<String>::new();
    let mut is_good = true;
    for curve in curves.elements() {
        match curve.text() {
            Some(name) if known.iter().any(|before| before == name) => {
                is_good = false;
                errors.push(curve.invalid(format!("'{name}' is there twice")).help("write it once"));
            }
            Some(name) if SUPPORTED.contains(&name) => known.push(name.to_owned()),
            Some(name) if OF_OTHERS.contains(&name) => {}
            _ => {
                is_good = false;
                let found =
                    curve.text().map_or_else(|| curve.value().to_string(), |name| format!("'{name}'"));
                errors
                    .push(curve.invalid(format!("{found} is no key exchange that Istio knows")).help(help()));
            }
        }
    }
    if is_good && known.is_empty() && !curves.is_empty() && curves.value().is_array() {
        errors.push(
            curves
                .error(FieldErrorKind::NotEnforced, "none of these key exchanges is supported by the proxy")
                .help(help()),
        );
    }
    known
}
