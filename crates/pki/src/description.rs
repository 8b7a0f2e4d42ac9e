//! What people are told of a certificate. Nothing is decided by it.

use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry;
use x509_parser::public_key::PublicKey as ParsedKey;

use crate::error::Result;
use crate::fingerprint::fingerprint;
use crate::leaf::{parse, serial_text};
use crate::time::from_unix_seconds;

/// A certificate, authority or not, as a table shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// In the field's notation (`O=cluster.local`); empty for certificates of workloads.
    pub subject: String,
    /// Who signed it, as it says.
    pub issuer: String,
    /// Lower-case hexadecimal.
    pub serial: String,
    /// Kind of the key and its size: `EC P-256`, `RSA 2048`, `Ed25519`.
    pub key: String,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
    /// Whether it may sign others (CA=true).
    pub is_authority: bool,
    /// URI names.
    pub uris: Vec<String>,
    /// SHA-256 of the DER, lower-case hexadecimal.
    pub fingerprint: String,
}

/// Reads a certificate in DER.
pub fn describe(der: &CertificateDer<'_>) -> Result<Description> {
    let certificate = parse("certificate", der)?;
    let validity = certificate.validity();
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.iter().flat_map(|extension| &extension.value.general_names);
    let uris = names.filter_map(|name| match name {
        GeneralName::URI(uri) => Some(visible(uri)),
        _ => None,
    });
    Ok(Description {
        subject: visible(&certificate.subject().to_string()),
        issuer: visible(&certificate.issuer().to_string()),
        serial: serial_text(certificate.raw_serial()),
        key: key(&certificate),
        not_before: from_unix_seconds(validity.not_before.timestamp()),
        not_after: from_unix_seconds(validity.not_after.timestamp()),
        is_authority: certificate.is_ca(),
        uris: uris.collect(),
        fingerprint: fingerprint(der),
    })
}

fn key(certificate: &X509Certificate<'_>) -> String {
    let spki = certificate.public_key();
    if spki.algorithm.algorithm == oid_registry::OID_SIG_ED25519 {
        return "Ed25519".to_owned();
    }
    match spki.parsed() {
        Ok(ParsedKey::RSA(rsa)) => format!("RSA {}", rsa.key_size()),
        Ok(ParsedKey::EC(point)) => format!("EC P-{}", point.key_size()),
        _ => "unknown".to_owned(),
    }
}

/// Names are a stranger's: what could move a terminal's cursor is not shown, and none goes on for pages.
fn visible(name: &str) -> String {
    name.chars().take(2048).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::certificates_from_pem;

    /// What openssl makes is described as openssl describes it.
    #[test]
    fn certificates_of_openssl_are_described() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
        for (arguments, key) in [
            (&["rsa:2048"] as &[&str], "RSA 2048"),
            (&["ec", "-pkeyopt", "ec_paramgen_curve:P-384"], "EC P-384"),
            (&["ec", "-pkeyopt", "ec_paramgen_curve:P-256"], "EC P-256"),
            (&["ed25519"], "Ed25519"),
        ] {
            let made = Command::new("openssl")
                .args(["req", "-x509", "-nodes", "-days", "7", "-subj", "/O=Shop/CN=Root", "-newkey"])
                .args(arguments)
                .args(["-keyout", &path("key.pem"), "-out", &path("cert.pem")])
                .output()
                .expect("openssl runs");
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
            let pem = std::fs::read_to_string(path("cert.pem")).expect("written");
            let ders = certificates_from_pem("test", &pem).expect("PEM");
            let shown = describe(&ders[0]).expect("readable");
            let asked = Command::new("openssl")
                .args(["x509", "-noout", "-serial", "-fingerprint", "-sha256", "-in", &path("cert.pem")])
                .output()
                .expect("openssl runs");
            let said = String::from_utf8_lossy(&asked.stdout).to_lowercase().replace(':', "");
            assert!(said.contains(&format!("serial={}", shown.serial)), "{said} {shown:?}");
            assert!(said.contains(&format!("fingerprint={}", shown.fingerprint)), "{said} {shown:?}");
            assert_eq!((shown.key.as_str(), shown.is_authority), (key, true));
            assert_eq!(
                (shown.subject.as_str(), shown.issuer.as_str()),
                ("O=Shop, CN=Root", "O=Shop, CN=Root")
            );
            let life = shown.not_after.duration_since(shown.not_before).expect("it lives");
            assert_eq!(life.as_secs(), 7 * 86_400);
        }
    }
}
