use std::collections::BTreeMap;

use maille_core::TrustDomain;
use rustls_pki_types::CertificateDer;

use crate::error::{Error, Result};
use crate::leaf::check_authority;
use crate::pem::certificates_from_pem;

/// The roots against which workload certificates are verified, per trust domain.
///
/// A trust domain that is present has at least one root, and each root may sign.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustBundles {
    // INVARIANT: no list is empty; every certificate passed `check_authority`.
    roots: BTreeMap<TrustDomain, Vec<CertificateDer<'static>>>,
}

impl TrustBundles {
    /// No roots: nobody is trusted.
    pub fn new() -> Self {
        Self::default()
    }

    /// One trust domain with the roots of a PEM text.
    pub fn from_pem(trust_domain: TrustDomain, pem: &str) -> Result<Self> {
        let mut bundles = Self::new();
        bundles.insert(trust_domain, certificates_from_pem("root bundle", pem)?)?;
        Ok(bundles)
    }

    /// Sets the roots of a trust domain, in place of those it had; duplicates are dropped.
    ///
    /// An empty list is refused: a trust set never becomes empty by accident. Each root must be
    /// able to sign (CA=true); it need not carry a SPIFFE ID (reference SF-3).
    pub fn insert(&mut self, trust_domain: TrustDomain, roots: Vec<CertificateDer<'static>>) -> Result<()> {
        let mut distinct: Vec<CertificateDer<'static>> = Vec::with_capacity(roots.len());
        for root in roots {
            check_authority("root certificate", &root)?;
            if !distinct.contains(&root) {
                distinct.push(root);
            }
        }
        if distinct.is_empty() {
            return Err(Error::Empty("root bundle"));
        }
        self.roots.insert(trust_domain, distinct);
        Ok(())
    }

    /// Ends trust in a trust domain; true if it was trusted.
    pub fn remove(&mut self, trust_domain: &TrustDomain) -> bool {
        self.roots.remove(trust_domain).is_some()
    }

    /// The roots of a trust domain; none if it is not trusted.
    pub fn roots(&self, trust_domain: &TrustDomain) -> &[CertificateDer<'static>] {
        self.roots.get(trust_domain).map(Vec::as_slice).unwrap_or_default()
    }

    /// Every trust domain with its roots, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&TrustDomain, &[CertificateDer<'static>])> {
        self.roots.iter().map(|(domain, roots)| (domain, roots.as_slice()))
    }

    /// Whether nobody is trusted.
    pub fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }
}
