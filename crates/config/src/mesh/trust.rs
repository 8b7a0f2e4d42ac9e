//! `caCertificates`: whom the mesh believes beside its own authority (reference mtls 5.6).

use maille_core::{TrustDomain, is_dns_label};

use super::CaCertificate;
use crate::check::View;
use crate::field_error::{FieldError, FieldErrorKind};
use crate::suggest;

const KNOWN: [&str; 5] = ["pem", "spiffeBundleUrl", "certSigners", "trustDomains", "endpointSpiffeId"];

/// Longest SPIFFE ID (SPIFFE-ID section 2.3).
const MAX_ID: usize = 2048;

/// The entries of the list. What is wrong goes to `errors`; then the answer is of no use.
pub(super) fn check(list: &View<'_>, errors: &mut Vec<FieldError>) -> Vec<CaCertificate> {
    if !list.is_absent() && !list.value().is_null() && !list.value().is_array() {
        errors.push(list.error(FieldErrorKind::Type, "expected a list"));
    }
    list.elements().filter_map(|entry| check_entry(&entry, errors)).collect()
}

fn check_entry(entry: &View<'_>, errors: &mut Vec<FieldError>) -> Option<CaCertificate> {
    if !entry.is_object() {
        errors.push(entry.error(FieldErrorKind::Type, "expected an object"));
        return None;
    }
    for (name, member) in entry.members() {
        if !KNOWN.iter().any(|known| *known == name || crate::check::snake_case(known) == name) {
            let error = member.error(FieldErrorKind::Unknown, format!("unknown field '{name}'"));
            errors.push(match suggest::nearest(name, KNOWN) {
                Some(nearest) => error.help(format!("did you mean '{nearest}'?")),
                None => error.help(format!("known here: {}", KNOWN.join(", "))),
            });
        }
    }
    let signers = entry.get("certSigners");
    if !signers.is_empty() {
        errors.push(
            signers
                .error(
                    FieldErrorKind::NotEnforced,
                    "certSigners is not enforced: the mesh has one authority, its own",
                )
                .help("leave it out"),
        );
    }
    let mut text = |name: &str| {
        let at = entry.get(name);
        if !at.is_absent() && at.text().is_none() {
            errors.push(at.error(FieldErrorKind::Type, "expected a string"));
        }
        at.text().filter(|text| !text.is_empty()).map(str::to_owned)
    };
    let (pem, url, endpoint_id) = (text("pem"), text("spiffeBundleUrl"), text("endpointSpiffeId"));
    // What is there but cannot be read has been told above.
    let is_absent = |name| {
        let at = entry.get(name);
        at.is_absent() || at.text().is_some_and(str::is_empty)
    };
    if is_absent("pem") && is_absent("spiffeBundleUrl") {
        errors.push(
            entry
                .required("a certificate comes from somewhere")
                .help("write pem, or spiffeBundleUrl, or both: then pem verifies the first fetch"),
        );
    }
    if pem.is_none() && url.is_some() && entry.get("pem").text().is_some() {
        // Whoever writes it means the endpoint to be verified by it, not by the web's roots.
        errors.push(
            entry
                .get("pem")
                .invalid("it is empty")
                .help("the roots that verify the first fetch, as `maille ca roots` of that mesh prints them; or leave it out: then the web's roots verify it"),
        );
    }
    if let Some(pem) = &pem
        && !(pem.contains("-----BEGIN CERTIFICATE-----") && pem.contains("-----END CERTIFICATE-----"))
    {
        errors.push(
            entry
                .get("pem")
                .invalid("it holds no certificate in PEM")
                .help("-----BEGIN CERTIFICATE-----, and so on"),
        );
    }
    if let Some(url) = &url {
        check_url(&entry.get("spiffeBundleUrl"), url, errors);
    }
    if let Some(id) = &endpoint_id {
        let at = entry.get("endpointSpiffeId");
        if !is_spiffe_id(id) {
            errors.push(
                at.invalid(format!("'{id}' is no SPIFFE ID of a workload"))
                    .help("for example spiffe://example.org/spire/server"),
            );
        } else if url.is_none() || pem.is_none() {
            errors.push(
                at.invalid("it is for an endpoint that is verified by pem")
                    .help("write pem and spiffeBundleUrl, or leave it out: without pem the endpoint proves its host name"),
            );
        }
    }
    let domains = entry.get("trustDomains");
    if !domains.is_absent() && !domains.value().is_array() && !domains.value().is_null() {
        errors.push(domains.error(FieldErrorKind::Type, "expected a list"));
    }
    let mut trust_domains: Vec<TrustDomain> = Vec::new();
    for at in domains.elements() {
        let text = at.text().unwrap_or_default();
        match TrustDomain::parse(text) {
            Ok(domain) if text.split('.').all(is_dns_label) => {
                if !trust_domains.contains(&domain) {
                    trust_domains.push(domain);
                }
            }
            _ => errors.push(
                at.invalid(format!("'{text}' is no trust domain"))
                    .help("lower-case letters, digits and '-' between dots, for example cluster.local"),
            ),
        }
    }
    if pem.is_some() && url.is_some() && endpoint_id.is_none() && trust_domains.len() > 1 {
        errors.push(
            domains
                .invalid("which of them the endpoint is of cannot be told")
                .help("write endpointSpiffeId, the identity that the endpoint proves"),
        );
    }
    Some(CaCertificate { pem, spiffe_bundle_url: url, endpoint_spiffe_id: endpoint_id, trust_domains })
}

/// A bundle that came without TLS would be anybody's (SPIFFE Federation section 5.2).
fn check_url(at: &View<'_>, url: &str, errors: &mut Vec<FieldError>) {
    let problem = match url.strip_prefix("https://") {
        None => Some("is no https URL"),
        Some(rest) => {
            let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
            if authority.is_empty() {
                Some("names no host")
            } else if authority.contains('@') {
                Some("holds a user or password, which bundle endpoints do not have")
            } else {
                None
            }
        }
    };
    if let Some(problem) = problem {
        // Not repeated: it may hold a password.
        errors.push(
            at.invalid(format!("the URL {problem}")).help("for example https://mesh.example.org:15016/"),
        );
    }
}

fn is_spiffe_id(text: &str) -> bool {
    let Some((domain, path)) = text.strip_prefix("spiffe://").and_then(|rest| rest.split_once('/')) else {
        return false;
    };
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    text.len() <= MAX_ID
        && TrustDomain::parse(domain).is_ok()
        && path.split('/').all(|part| !matches!(part, "" | "." | "..") && part.bytes().all(plain))
}
