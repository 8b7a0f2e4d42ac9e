//! `tls` of a traffic policy (reference mtls 2.2; istio pkg/config/validation, validateTLS).

use std::net::IpAddr;

use maille_core::{Hostname, is_dns_label, is_dns_subdomain};

use super::destination_rule::Rule;
use super::values::{any, check_texts};
use super::view::View;
use crate::field_error::{FieldError, FieldErrorKind};
use crate::istio::{ClientTlsMode, ClientTlsSettings};
use crate::path::FieldPath;

/// Files, which all have a place in MUTUAL.
const FILES: &[&str] = &["clientCertificate", "privateKey", "caCertificates", "caCrl"];

pub(super) fn check(tls: &View<'_>, rule: Rule<'_>, errors: &mut Vec<FieldError>) {
    if !tls.is_object() {
        return;
    }
    let mode = tls.get("mode").text().unwrap_or("DISABLE");
    let originates = matches!(mode, "SIMPLE" | "MUTUAL");
    let credential = tls.get("credentialName");
    if let Some(name) = credential.text().filter(|name| originates && !name.is_empty()) {
        check_credential(&credential, name, mode, rule, errors);
        for file in FILES.iter().map(|file| tls.get(file)).filter(|file| !file.is_empty()) {
            errors.push(
                file.invalid("a file cannot stand beside credentialName")
                    .help("name files or a Secret, not both"),
            );
        }
        if mode == "SIMPLE" && tls.get("insecureSkipVerify").is_true() {
            errors.push(
                credential
                    .invalid("credentialName cannot stand beside insecureSkipVerify in mode SIMPLE")
                    .help("leave insecureSkipVerify out: then the server is verified"),
            );
        }
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

/// Where keys and certificates lie in place of files.
fn check_credential(at: &View<'_>, name: &str, mode: &str, rule: Rule<'_>, errors: &mut Vec<FieldError>) {
    if let Some(rest) = name.strip_prefix("configmap://") {
        let problem = match rest.split_once('/') {
            Some((namespace, name)) if !is_dns_label(namespace) || !is_dns_subdomain(name) => {
                "names no ConfigMap"
            }
            None => "names no namespace",
            Some((namespace, _)) if rule.namespace.is_some_and(|own| own != namespace) => {
                "is of another namespace than the rule"
            }
            Some(_) if mode == "MUTUAL" => "has no place for a key, which mode MUTUAL needs",
            Some(_) => return,
        };
        errors
            .push(at.invalid(format!("'{name}' {problem}")).help(
                "for example configmap://shop/api-roots in a rule of namespace shop, with mode SIMPLE",
            ));
        return;
    }
    let secret = name.strip_prefix("kubernetes://").unwrap_or(name);
    if secret.contains("://") {
        errors.push(
            at.error(FieldErrorKind::NotEnforced, format!("'{name}' is fetched from nowhere"))
                .help("name a Secret of the workload's namespace, or configmap://<namespace>/<name>"),
        );
    } else if !is_dns_subdomain(secret) {
        errors.push(
            at.invalid(format!("'{name}' is no name of a Secret"))
                .help("the name alone; it lies in the namespace of the workloads that the rule selects"),
        );
    } else if !rule.selects {
        // G-16: Istio would send plaintext.
        errors.push(
            at.error(
                FieldErrorKind::NotEnforced,
                "a Secret goes only to workloads that the rule selects; without workloadSelector Istio silently \
                 sends plaintext",
            )
            .help("add workloadSelector: {matchLabels: …} with the labels of the calling workloads, or name files"),
        );
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
        ("credentialName", !tls.credential_name.is_empty()),
        ("caCrl", !tls.ca_crl.is_empty()),
    ];
    let (mode, used): (&str, &[&str]) = match tls.mode {
        ClientTlsMode::Disable => ("DISABLE", &[]),
        ClientTlsMode::IstioMutual => ("ISTIO_MUTUAL", &["subjectAltNames", "sni"]),
        ClientTlsMode::Simple => (
            "SIMPLE",
            &["caCertificates", "subjectAltNames", "sni", "insecureSkipVerify", "credentialName", "caCrl"],
        ),
        ClientTlsMode::Mutual => (
            "MUTUAL",
            &[
                "clientCertificate",
                "privateKey",
                "caCertificates",
                "subjectAltNames",
                "sni",
                "insecureSkipVerify",
                "credentialName",
                "caCrl",
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
        if !tls.ca_crl.is_empty() {
            let message = "nothing is verified, and so nothing looked up in caCrl".to_owned();
            warnings.push(warn("caCrl", message).help("leave insecureSkipVerify out"));
        }
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
