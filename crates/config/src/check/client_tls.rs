//! `tls` of a traffic policy (reference mtls 2.2; istio pkg/config/validation, validateTLS).

use std::net::IpAddr;

use maille_core::Hostname;

use super::values::{any, check_texts};
use super::view::View;
use crate::field_error::{FieldError, FieldErrorKind};
use crate::istio::{ClientTlsMode, ClientTlsSettings};
use crate::path::FieldPath;

/// Files, which all have a place in MUTUAL.
const FILES: &[&str] = &["clientCertificate", "privateKey", "caCertificates", "caCrl"];

pub(super) fn check(tls: &View<'_>, errors: &mut Vec<FieldError>) {
    if !tls.is_object() {
        return;
    }
    let mode = tls.get("mode").text().unwrap_or("DISABLE");
    let originates = matches!(mode, "SIMPLE" | "MUTUAL");
    let credential = tls.get("credentialName");
    if !credential.is_empty() {
        errors.push(
            credential
                .error(
                    FieldErrorKind::NotEnforced,
                    "credentialName is not enforced yet: certificates are read from files only",
                )
                .help(
                    "mount the Secret into the proxy with the annotations sidecar.istio.io/userVolume and \
                     userVolumeMount, and name its files",
                ),
        );
        for file in FILES.iter().map(|file| tls.get(file)).filter(|file| originates && !file.is_empty()) {
            errors.push(
                file.invalid("a file cannot stand beside credentialName")
                    .help("name files or a Secret, not both"),
            );
        }
    }
    let revoked = tls.get("caCrl");
    if !revoked.is_empty() {
        errors.push(revoked.not_enforced("caCrl", "the check of revocation"));
    }
    if mode == "MUTUAL" && credential.is_empty() {
        for (field, what) in [
            ("clientCertificate", "the client's certificate"),
            ("privateKey", "the key of the client's certificate"),
        ] {
            let file = tls.get(field);
            if file.is_empty() {
                errors.push(file.required(format!("mode MUTUAL needs {what}")).help(
                    "the path of a PEM file inside the proxy's container, for example /etc/certs/cert.pem",
                ));
            }
        }
    }
    if originates && tls.get("insecureSkipVerify").is_true() {
        for field in ["caCertificates", "subjectAltNames"] {
            let verified = tls.get(field);
            if !verified.is_empty() {
                errors.push(
                    verified
                        .invalid(format!("{field} cannot stand beside insecureSkipVerify"))
                        .help("leave insecureSkipVerify out: then the server is verified"),
                );
            }
        }
    }
    check_texts(&tls.get("subjectAltNames"), any, errors);
    let sni = tls.get("sni");
    if let Some(text) = sni.text().filter(|text| !text.is_empty()) {
        if text.parse::<IpAddr>().is_ok() {
            errors.push(
                sni.invalid(format!("'{text}' is an address; TLS has server names only"))
                    .help("write the host name that the server expects, or leave it out"),
            );
        } else if Hostname::parse(text).is_err() {
            errors.push(sni.invalid(format!("'{text}' is no host name")).help("for example api.example.com"));
        }
    }
}

/// What the mode makes no use of, and what is weaker than it looks.
pub(super) fn warnings(tls: &ClientTlsSettings, path: &FieldPath) -> Vec<FieldError> {
    let warn =
        |field: &str, message: String| FieldError::new(path.key(field), FieldErrorKind::Invalid, message);
    let set = [
        ("clientCertificate", !tls.client_certificate.is_empty()),
        ("privateKey", !tls.private_key.is_empty()),
        ("caCertificates", !tls.ca_certificates.is_empty()),
        ("subjectAltNames", !tls.subject_alt_names.is_empty()),
        ("sni", !tls.sni.is_empty()),
        ("insecureSkipVerify", tls.insecure_skip_verify == Some(true)),
    ];
    let (mode, used): (&str, &[&str]) = match tls.mode {
        ClientTlsMode::Disable => ("DISABLE", &[]),
        ClientTlsMode::IstioMutual => ("ISTIO_MUTUAL", &["subjectAltNames", "sni"]),
        ClientTlsMode::Simple => {
            ("SIMPLE", &["caCertificates", "subjectAltNames", "sni", "insecureSkipVerify"])
        }
        ClientTlsMode::Mutual => (
            "MUTUAL",
            &[
                "clientCertificate",
                "privateKey",
                "caCertificates",
                "subjectAltNames",
                "sni",
                "insecureSkipVerify",
            ],
        ),
    };
    let mut warnings: Vec<_> = set
        .into_iter()
        .filter(|(field, set)| *set && !used.contains(field))
        .map(|(field, _)| {
            let warning = warn(field, format!("mode {mode} makes no use of {field}"));
            match tls.mode {
                // G-15: also what an absent mode means.
                ClientTlsMode::Disable => {
                    warning.help("DISABLE sends plaintext; an absent mode is DISABLE too")
                }
                ClientTlsMode::IstioMutual => {
                    warning.help("it takes the workload's own certificate; MUTUAL takes files")
                }
                ClientTlsMode::Simple | ClientTlsMode::Mutual => {
                    warning.help("to show a client certificate write mode: MUTUAL")
                }
            }
        })
        .collect();
    let originates = matches!(tls.mode, ClientTlsMode::Simple | ClientTlsMode::Mutual);
    if originates && tls.insecure_skip_verify == Some(true) {
        let message = "the server's certificate is not verified: anyone can pose as the server".to_owned();
        warnings
            .push(warn("insecureSkipVerify", message).help("name the server's authority in caCertificates"));
    } else if originates && !tls.sni.is_empty() && tls.subject_alt_names.is_empty() {
        // DR-3, G-17.
        let message =
            "with sni and without subjectAltNames the server's name is not verified, only its authority";
        warnings
            .push(warn("sni", message.to_owned()).help("add subjectAltNames with the name of the server"));
    }
    warnings
}
