//! What signs: made new, read from a Secret, or derived from one there is.

mod issue;
mod secret;
mod succession;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use maille_core::TrustDomain;
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyUsagePurpose as Usage};
use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use crate::crl::RevocationList;
use crate::error::{Error, Result};
use crate::fingerprint::{fingerprint, has_signed};
use crate::key::{KeyPair, PublicKey, generate_key};
use crate::leaf::{check_authority, parse};
use crate::pem::{certificate_pem, certificates_from_pem};
use crate::time::from_unix_seconds;
use issue::{Profile, leaf_params, random_serial, uri, validity};

pub use issue::Issued;

/// How far before now a certificate starts, for peers whose clock is late (reference mtls 5.4).
pub const BACKDATE: Duration = Duration::from_secs(120);

/// Lifetime of a self-signed root (reference mtls 5.5).
pub const ROOT_TTL: Duration = Duration::from_secs(3650 * 24 * 3600);

/// 9999-12-31T23:59:59Z, the last time a certificate can name (RFC 5280 section 4.1.2.5).
const LAST_SECOND: i64 = 253_402_300_799;

/// What signs workload certificates: a signing certificate with its key, the intermediates that
/// lead from it to a root, and the roots.
///
/// It is immutable and may be shared between threads; clones share the key. It decides nothing
/// about *who* may have which identity: that is the caller's duty (reference mtls 5.3).
#[derive(Clone)]
pub struct Authority {
    certificate: CertificateDer<'static>,
    // What a peer needs between leaf and root, in sending order; empty if a root signs.
    intermediates: Vec<CertificateDer<'static>>,
    // INVARIANT: neither is empty; `roots`, which are distributed, begin with all of its own.
    own_roots: Vec<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
    revoked: Vec<RevocationList>,
    signer: String,
    not_before: SystemTime,
    not_after: SystemTime,
    chain_end: SystemTime,
    issuer: Arc<rcgen::Issuer<'static, Signer>>,
}

impl Authority {
    /// Makes a new root with an ECDSA P-256 key: O=`trust_domain`, CA=true, keyCertSign and
    /// cRLSign (reference mtls 5.5; cRLSign lets the same root revoke).
    pub fn self_signed(trust_domain: &TrustDomain, now: SystemTime, ttl: Duration) -> Result<Self> {
        let key = generate_key()?;
        let mut params = authority_params(now, ttl, last_moment())?;
        params.distinguished_name.push(DnType::OrganizationName, trust_domain.as_str());
        let certificate = params.self_signed(key.signer()).map_err(|e| Error::crypto("signing a root", e))?;
        let der: CertificateDer<'static> = certificate.into();
        Self::assemble(der.clone(), Arc::new(key), Vec::new(), vec![der])
    }

    /// From the PEM texts of a CA: signing certificate, its key, the chain from it towards the
    /// root (may be empty), the root bundle.
    ///
    /// Checks that the certificate may sign, that the key is its own, and that what it signs
    /// verifies against the roots. Expiry is not checked here but at each signature (CA-7), so that a
    /// control plane with an expired authority starts and can say so.
    pub fn from_pem(cert_pem: &str, key_pem: &str, chain_pem: &str, root_pem: &str) -> Result<Self> {
        let mut own = certificates_from_pem("ca-cert.pem", cert_pem)?.into_iter();
        let certificate = own.next().ok_or(Error::Empty("ca-cert.pem"))?;
        let roots = certificates_from_pem("root-cert.pem", root_pem)?;
        let mut chain: Vec<_> = own.collect();
        if !chain_pem.trim().is_empty() {
            chain.extend(certificates_from_pem("cert-chain.pem", chain_pem)?);
        }
        Self::assemble(certificate, Arc::new(KeyPair::from_pem(key_pem)?), chain, roots)
    }

    fn assemble(
        certificate: CertificateDer<'static>,
        key: Arc<KeyPair>,
        chain: Vec<CertificateDer<'static>>,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self> {
        check_authority("signing certificate", &certificate)?;
        let mut own_roots = Vec::new();
        for root in roots {
            check_authority("root certificate", &root)?;
            if !own_roots.contains(&root) {
                own_roots.push(root);
            }
        }
        let (not_before, not_after) = lifetime(&certificate)?;
        let certified = parse("signing certificate", &certificate)?.public_key().raw.to_vec();
        if PublicKey::from_spki(&certified)? != key.public_key()? {
            return Err(Error::KeyMismatch { what: "signing certificate" });
        }
        // Some write the signing certificate into the chain and some do not; roots may be in it, too.
        let mut intermediates = Vec::new();
        let mut chain_end = not_after;
        for link in std::iter::once(&certificate).chain(&chain) {
            if !own_roots.contains(link) && !intermediates.contains(link) {
                check_authority("intermediate certificate", link)?;
                chain_end = chain_end.min(lifetime(link)?.1);
                intermediates.push(link.clone());
            }
        }
        if let Some(last) = intermediates.last() {
            let signers = own_roots.iter().filter(|root| has_signed(root, last));
            let ends = signers.map(|root| Ok(lifetime(root)?.1)).collect::<Result<Vec<_>>>()?;
            chain_end = ends.into_iter().max().map_or(chain_end, |end| chain_end.min(end));
        }
        let issuer = rcgen::Issuer::from_ca_cert_der(&certificate, Signer(key))
            .map_err(|e| Error::crypto("reading the signing certificate", e))?;
        let (roots, revoked, issuer) = (own_roots.clone(), Vec::new(), Arc::new(issuer));
        let signer = fingerprint(&certificate);
        let authority = Self {
            certificate,
            intermediates,
            own_roots,
            roots,
            revoked,
            signer,
            not_before,
            not_after,
            chain_end,
            issuer,
        };
        authority.check_anchored()?;
        Ok(authority)
    }

    /// Signs a trial certificate and verifies it as a peer would: this covers the chain, the
    /// signature algorithm, and that the issuer's name is reproduced byte by byte.
    fn check_anchored(&self) -> Result<()> {
        let trial_key = generate_key()?.public_key()?;
        // A time at which all of the chain should be valid, so that expiry does not show here.
        let mut when = self.not_before;
        for link in &self.intermediates {
            when = when.max(lifetime(link)?.0);
        }
        let mut params = leaf_params(Profile::Workload);
        params.subject_alt_names = vec![uri("spiffe://trial/ns/trial/sa/trial")?];
        (params.not_before, params.not_after) = (when.into(), (when + BACKDATE).into());
        params.serial_number = Some(random_serial()?);
        let trial: CertificateDer<'static> = params
            .signed_by(trial_key.certified(), self.issuer.as_ref())
            .map_err(|e| Error::crypto("signing a trial certificate", e))?
            .into();

        let refused = |e: webpki::Error| Error::Unanchored(e.to_string());
        let anchors = self
            .roots
            .iter()
            .map(webpki::anchor_from_trusted_cert)
            .collect::<std::result::Result<Vec<_>, _>>()
            .map_err(refused)?;
        let since_epoch = when.duration_since(SystemTime::UNIX_EPOCH).map_err(|_| Error::Time)?;
        webpki::EndEntityCert::try_from(&trial)
            .and_then(|leaf| {
                leaf.verify_for_usage(
                    webpki::ALL_VERIFICATION_ALGS,
                    &anchors,
                    &self.intermediates,
                    rustls_pki_types::UnixTime::since_unix_epoch(since_epoch),
                    webpki::KeyUsage::client_auth(),
                    None,
                    None,
                )
                .map(drop)
            })
            .map_err(refused)
    }

    /// Fingerprint of the signing certificate: what its SVIDs name as their signer.
    pub fn signer(&self) -> &str {
        &self.signer
    }

    /// What is distributed as roots, as PEM.
    pub fn roots_pem(&self) -> String {
        self.roots.iter().map(certificate_pem).collect()
    }

    /// What is distributed as roots: its own, then those of [`Authority::with_trust`]. Never empty.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The roots to which its own chain leads or that came in its Secret.
    pub fn own_roots(&self) -> &[CertificateDer<'static>] {
        &self.own_roots
    }

    /// What peers need between a leaf and the root, the signing certificate first; empty if a root signs.
    pub fn intermediates(&self) -> &[CertificateDer<'static>] {
        &self.intermediates
    }

    /// Whether the signing certificate is itself a root.
    pub fn is_root(&self) -> bool {
        self.own_roots.contains(&self.certificate)
    }

    /// The signing certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The signing certificate as PEM.
    pub fn cert_pem(&self) -> String {
        certificate_pem(&self.certificate)
    }

    /// The signing key as PEM; wiped when dropped.
    pub fn key_pem(&self) -> Zeroizing<String> {
        self.issuer.key().0.to_pem()
    }

    /// The lists of revoked certificates that came with it (`ca-crl.pem`).
    pub fn crl(&self) -> &[RevocationList] {
        &self.revoked
    }

    /// When the signing certificate becomes valid.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// When the signing certificate expires.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// When the first certificate of the way from the signing certificate to its root expires: nothing that is signed
    /// holds longer (CA-6 and reference mtls 5.4).
    pub fn chain_end(&self) -> SystemTime {
        self.chain_end
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("signer", &self.signer)
            .field("not_before", &self.not_before)
            .field("not_after", &self.not_after)
            .field("intermediates", &self.intermediates.len())
            .field("roots", &self.roots.len())
            .finish_non_exhaustive()
    }
}

/// Start and end of a certificate's validity.
fn lifetime(certificate: &CertificateDer<'_>) -> Result<(SystemTime, SystemTime)> {
    let parsed = parse("certificate of the authority", certificate)?;
    let validity = parsed.validity();
    Ok((
        from_unix_seconds(validity.not_before.timestamp()),
        from_unix_seconds(validity.not_after.timestamp()),
    ))
}

fn last_moment() -> SystemTime {
    from_unix_seconds(LAST_SECOND)
}

/// A certificate that may sign others, with nobody's name yet.
fn authority_params(now: SystemTime, ttl: Duration, last: SystemTime) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![Usage::KeyCertSign, Usage::CrlSign];
    params.serial_number = Some(random_serial()?);
    let (start, end) = validity(now, ttl, last)?;
    (params.not_before, params.not_after) = (start.into(), end.into());
    Ok(params)
}

/// The private key as the certificate library wants it.
struct Signer(Arc<KeyPair>);

impl rcgen::PublicKeyData for Signer {
    fn der_bytes(&self) -> &[u8] {
        self.0.signer().der_bytes()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        rcgen::PublicKeyData::algorithm(self.0.signer())
    }
}

impl rcgen::SigningKey for Signer {
    fn sign(&self, message: &[u8]) -> std::result::Result<Vec<u8>, rcgen::Error> {
        self.0.signer().sign(message)
    }
}
