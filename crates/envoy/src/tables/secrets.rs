use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Table, headings, text};

/// What the table says of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// Whether it may sign others.
    pub is_authority: bool,
    /// Hexadecimal, padded to 32 digits.
    pub serial: String,
    /// Unix seconds.
    pub not_before: i64,
    /// Unix seconds.
    pub not_after: i64,
    /// Of its SPIFFE identity, if it has one.
    pub trust_domain: Option<String>,
}

/// Reads the first certificate of a PEM text; `None` if there is none that can be read.
pub fn certificate_facts(pem: &[u8]) -> Option<CertificateFacts> {
    let first = x509_parser::pem::Pem::iter_from_buffer(pem).next()?.ok()?;
    let (_, certificate) = X509Certificate::from_der(&first.contents).ok()?;
    let names = certificate.subject_alternative_name().ok().flatten();
    let uris = names.iter().flat_map(|extension| &extension.value.general_names);
    let trust_domain = uris
        .filter_map(|name| match name {
            GeneralName::URI(uri) => uri.strip_prefix("spiffe://")?.split('/').next(),
            _ => None,
        })
        .next();
    Some(CertificateFacts {
        is_authority: certificate.is_ca(),
        serial: format!("{:0>32}", certificate.tbs_certificate.serial.to_str_radix(16)),
        not_before: certificate.validity().not_before.timestamp(),
        not_after: certificate.validity().not_after.timestamp(),
        trust_domain: trust_domain.map(str::to_owned),
    })
}

/// One row, before it is text.
struct Row {
    name: String,
    status: &'static str,
    facts: Option<CertificateFacts>,
    trust_domain: Option<String>,
}

/// `RESOURCE NAME | TYPE | STATUS | VALID CERT | SERIAL NUMBER | NOT AFTER | NOT BEFORE`, and `TRUST DOMAIN` if it is
/// known of every row. `now` is in Unix seconds, `time` writes such a number.
pub fn secrets(warming: &[Value], active: &[Value], now: i64, time: impl Fn(i64) -> String) -> Table {
    let warming = warming.iter().flat_map(|secret| rows(secret, warming_status(secret)));
    let mut rows: Vec<Row> = warming.chain(active.iter().flat_map(|secret| rows(secret, "ACTIVE"))).collect();
    // Roots without a validator per trust domain are those of the workload's own.
    let own = rows.iter().find(|row| row.name == "default").and_then(|row| row.trust_domain.clone());
    for row in rows.iter_mut().filter(|row| row.name == "ROOTCA" && row.trust_domain.is_none()) {
        row.trust_domain.clone_from(&own);
    }
    let with_domain = !rows.is_empty() && rows.iter().all(|row| row.trust_domain.is_some());
    let mut titles = headings(&[
        "RESOURCE NAME",
        "TYPE",
        "STATUS",
        "VALID CERT",
        "SERIAL NUMBER",
        "NOT AFTER",
        "NOT BEFORE",
    ]);
    if with_domain {
        titles.push("TRUST DOMAIN".to_owned());
    }
    let mut table = vec![titles];
    for row in rows {
        let mut cells = vec![row.name];
        match &row.facts {
            Some(facts) => {
                let valid = facts.not_before < now && now < facts.not_after;
                cells.extend([
                    if facts.is_authority { "CA" } else { "Cert Chain" }.to_owned(),
                    row.status.to_owned(),
                    valid.to_string(),
                    facts.serial.clone(),
                    time(facts.not_after),
                    time(facts.not_before),
                ]);
            }
            None => {
                cells.extend([String::new(), row.status.to_owned(), "false".to_owned()]);
                cells.resize(7, String::new());
            }
        }
        cells.extend(row.trust_domain.filter(|_| with_domain));
        table.push(cells);
    }
    table
}

fn warming_status(secret: &Value) -> &'static str {
    if secret["versionInfo"] == "uninitialized" { "UNINITIALIZED" } else { "WARMING" }
}

fn rows(entry: &Value, status: &'static str) -> Vec<Row> {
    let name = text(&entry["name"]).to_owned();
    let secret = &entry["secret"];
    let row = |source: &Value, domain: Option<&str>| {
        let facts = bytes(source).and_then(|pem| certificate_facts(&pem));
        let trust_domain =
            domain.map(str::to_owned).or_else(|| facts.as_ref().and_then(|facts| facts.trust_domain.clone()));
        Row { name: name.clone(), status, facts, trust_domain }
    };
    let context = &secret["validationContext"];
    let domains = context["customValidatorConfig"]["typedConfig"]["trustDomains"].as_array();
    match domains {
        Some(domains) => {
            domains.iter().map(|domain| row(&domain["trustBundle"], domain["name"].as_str())).collect()
        }
        None if context.is_object() => vec![row(&context["trustedCa"], None)],
        None => vec![row(&secret["tlsCertificate"]["certificateChain"], None)],
    }
}

fn bytes(source: &Value) -> Option<Vec<u8>> {
    if let Some(text) = source["inlineString"].as_str() {
        return Some(text.as_bytes().to_vec());
    }
    STANDARD.decode(source["inlineBytes"].as_str()?).ok()
}
