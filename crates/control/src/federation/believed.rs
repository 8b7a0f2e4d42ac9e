//! What the mesh believes, of the configuration and the bundles at hand.

use std::collections::BTreeMap;

use maille_config::mesh::CaCertificate;
use maille_core::TrustDomain;
use maille_pki::{BundleDocument, CertificateDer, TrustBundles, certificates_from_pem};

use super::source::Source;
use crate::world::{Federated, MeshConfig};

/// What a source has told.
#[derive(Debug, Clone, Copy)]
pub(super) enum Told<'d> {
    /// Nothing yet.
    Nothing,
    /// Something that need not be good any more.
    Doubtful,
    /// This, last.
    Bundle(&'d BundleDocument),
}

/// By trust domain. Entries without trust domains are of the mesh's own.
pub(super) fn believed<'d>(
    config: &MeshConfig,
    told: impl Fn(&Source) -> Told<'d>,
) -> BTreeMap<String, Federated> {
    let mut all: BTreeMap<String, Federated> = BTreeMap::new();
    for entry in &config.ca_certificates {
        let source = Source::of(entry, &config.trust_domain, &config.system_namespace);
        let (roots, jwks) = match (source.as_ref().map_or(Told::Nothing, &told), &entry.pem) {
            (Told::Bundle(document), _) => (document.roots.clone(), document.jwks()),
            // Until the first bundle has come.
            (Told::Nothing, Some(pem)) => (certificates_from_pem("pem", pem).unwrap_or_default(), Vec::new()),
            (Told::Nothing, None) | (Told::Doubtful, _) => continue,
        };
        for domain in domains(entry, &config.trust_domain) {
            let usable = roots.iter().filter(|root| is_root(domain, root)).map(|root| root.to_vec());
            all.entry(domain.to_string()).or_default().add(usable, &jwks);
        }
    }
    all.retain(|_, federated| !federated.roots.is_empty());
    all
}

/// What is wrong with the certificates of an entry, if anything is.
pub(super) fn problem(entry: &CaCertificate, own: &TrustDomain) -> Option<String> {
    let certificates = match certificates_from_pem("pem", entry.pem.as_deref()?) {
        Ok(certificates) => certificates,
        Err(error) => return Some(error.to_string()),
    };
    let domain = domains(entry, own).next()?;
    certificates.iter().find_map(|root| root_problem(domain, root))
}

fn domains<'e>(entry: &'e CaCertificate, own: &'e TrustDomain) -> impl Iterator<Item = &'e TrustDomain> {
    let none = entry.trust_domains.is_empty();
    entry.trust_domains.iter().chain(none.then_some(own))
}

/// Proxies refuse a bundle with a certificate that may not sign.
fn is_root(domain: &TrustDomain, root: &CertificateDer<'static>) -> bool {
    root_problem(domain, root).is_none()
}

fn root_problem(domain: &TrustDomain, root: &CertificateDer<'static>) -> Option<String> {
    TrustBundles::new().insert(domain.clone(), vec![root.clone()]).err().map(|error| error.to_string())
}
