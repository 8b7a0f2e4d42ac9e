use std::sync::Arc;
use std::time::SystemTime;

use maille_core::Identity;
use rustls_pki_types::CertificateDer;

use crate::error::{Error, Result};
use crate::fingerprint::{fingerprint, signer_of};
use crate::key::{KeyPair, PublicKey};
use crate::leaf::{leaf_facts, parse};
use crate::pem::{certificate_pem, certificates_from_pem};

/// A workload's own credential: certificate chain and private key, known to belong together.
///
/// Cloning is cheap; the key is shared.
#[derive(Debug, Clone)]
pub struct Svid {
    identity: Identity,
    chain: Vec<CertificateDer<'static>>,
    key: Arc<KeyPair>,
    not_before: SystemTime,
    not_after: SystemTime,
    serial: String,
}

impl Svid {
    /// From a chain in PEM, leaf first, then intermediates; each element may hold several
    /// certificates. The roots do not belong in it: see [`Svid::from_ca_response`].
    ///
    /// Checks that the key belongs to the leaf and the leaf rules of the X509-SVID standard
    /// (reference mtls 6.2). Does not look at the time: an expired SVID loads, and its peers refuse it.
    pub fn from_pem(chain_pem: &[String], key: KeyPair) -> Result<Self> {
        let mut chain = Vec::new();
        for pem in chain_pem {
            chain.extend(certificates_from_pem("certificate chain", pem)?);
        }
        Self::from_der(chain, key)
    }

    /// From a chain in DER, leaf first; checks as [`Svid::from_pem`].
    pub fn from_der(chain: Vec<CertificateDer<'static>>, key: KeyPair) -> Result<Self> {
        let leaf = chain.first().ok_or(Error::Empty("certificate chain"))?;
        let facts = leaf_facts(leaf)?;
        let identity = facts.identity()?;
        let certified = parse("certificate", leaf)?.public_key().raw.to_vec();
        if PublicKey::from_spki(&certified)? != key.public_key()? {
            return Err(Error::KeyMismatch { what: "workload certificate" });
        }
        Ok(Self {
            identity,
            not_before: facts.not_before,
            not_after: facts.not_after,
            serial: facts.serial,
            chain,
            key: Arc::new(key),
        })
    }

    /// From the `cert_chain` of a CA's answer: leaf, intermediates, and as last element the root
    /// bundle, which is returned beside the SVID (reference mtls 5.2).
    ///
    /// An answer of fewer than two elements is an error, since it names no roots.
    pub fn from_ca_response(
        cert_chain: &[String],
        key: KeyPair,
    ) -> Result<(Self, Vec<CertificateDer<'static>>)> {
        match cert_chain {
            [chain @ .., roots] if !chain.is_empty() => {
                let roots = certificates_from_pem("root bundle", roots)?;
                Ok((Self::from_pem(chain, key)?, roots))
            }
            _ => Err(Error::Empty("root bundle of the authority's answer")),
        }
    }

    /// Who this proves to be.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The chain as TLS sends it: leaf first, then intermediates.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The chain as PEM, one element per certificate.
    pub fn chain_pem(&self) -> Vec<String> {
        self.chain.iter().map(certificate_pem).collect()
    }

    /// The private key.
    pub fn key(&self) -> &Arc<KeyPair> {
        &self.key
    }

    /// Start of validity.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// End of validity.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Serial number of the leaf, lower-case hexadecimal.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// Fingerprint of the certificate that signed the leaf: the next of its chain, or one of these roots; see
    /// [`signer_of`]. None if its signer is not among them.
    pub fn signer(&self, roots: &[CertificateDer<'static>]) -> Option<String> {
        signer_of(&self.chain, roots).map(fingerprint)
    }

    /// Whether it is past its end at `now`.
    pub fn is_expired(&self, now: SystemTime) -> bool {
        now > self.not_after
    }
}
