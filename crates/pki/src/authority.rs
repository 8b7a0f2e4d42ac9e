use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use maille_core::{Identity, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose as Extended,
    IsCa, KeyUsagePurpose as Usage, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use crate::csr::CertificateRequest;
use crate::error::{Error, Result};
use crate::key::{KeyPair, PublicKey, generate_key};
use crate::leaf::{check_authority, parse, serial_text};
use crate::pem::{certificate_pem, certificates_from_pem};
use crate::time::{from_unix_seconds, unix_seconds, whole_seconds};

/// How far before now a certificate starts, for peers whose clock is late (reference mtls 5.4).
pub const BACKDATE: Duration = Duration::from_secs(120);

/// Lifetime of a self-signed root (reference mtls 5.5).
pub const ROOT_TTL: Duration = Duration::from_secs(3650 * 24 * 3600);

/// 9999-12-31T23:59:59Z, the last time a certificate can name (RFC 5280 section 4.1.2.5).
const LAST_SECOND: i64 = 253_402_300_799;

/// What signs workload certificates: a signing certificate with its key, the intermediates that
/// lead from it to a root, and the root bundle.
///
/// It is immutable and may be shared between threads. It decides nothing about *who* may have
/// which identity: that is the caller's duty (reference mtls 5.3).
pub struct Authority {
    certificate: CertificateDer<'static>,
    // What a peer needs between leaf and root, in sending order; empty if a root signs.
    intermediates: Vec<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
    not_before: SystemTime,
    not_after: SystemTime,
    issuer: rcgen::Issuer<'static, Signer>,
}

/// A certificate that an [`Authority`] has signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// Leaf, then intermediates, one per element, each ending in a newline; without the roots.
    pub chain_pem: Vec<String>,
    /// The authority's root bundle.
    pub roots_pem: String,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity; earlier than asked for if the signing certificate ends sooner (CA-6).
    pub not_after: SystemTime,
    /// Serial number, lower-case hexadecimal.
    pub serial: String,
}

impl Issued {
    /// The `cert_chain` of `IstioCertificateResponse`: the chain, then the root bundle as last
    /// element (reference mtls 5.2, CA-19).
    pub fn into_response(self) -> Vec<String> {
        let mut elements = self.chain_pem;
        elements.push(self.roots_pem);
        elements
    }

    /// The chain as one PEM text, as TLS servers read it.
    pub fn chain_text(&self) -> String {
        self.chain_pem.concat()
    }
}

impl Authority {
    /// Makes a new root with an ECDSA P-256 key: O=`trust_domain`, CA=true, keyCertSign and
    /// cRLSign (reference mtls 5.5; cRLSign lets the same root revoke).
    pub fn self_signed(trust_domain: &TrustDomain, now: SystemTime, ttl: Duration) -> Result<Self> {
        let key = generate_key()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, trust_domain.as_str());
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![Usage::KeyCertSign, Usage::CrlSign];
        params.serial_number = Some(random_serial()?);
        let (start, end) =
            validity(now, ttl, SystemTime::UNIX_EPOCH + Duration::from_secs(LAST_SECOND as u64))?;
        params.not_before = start.into();
        params.not_after = end.into();
        let certificate = params.self_signed(key.signer()).map_err(|e| Error::crypto("signing a root", e))?;
        let der: CertificateDer<'static> = certificate.into();
        Self::assemble(der.clone(), key, Vec::new(), vec![der])
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
        Self::assemble(certificate, KeyPair::from_pem(key_pem)?, chain, roots)
    }

    /// From the entries of the Secret `istio-ca-secret` or `cacerts` (reference mtls 5.5).
    ///
    /// `ca-cert.pem`, `ca-key.pem` and `root-cert.pem` must be there (CA-20); `cert-chain.pem` may
    /// be missing or empty.
    pub fn from_secret<'a>(entry: impl Fn(&str) -> Option<&'a [u8]>) -> Result<Self> {
        let text = |name: &'static str| match entry(name).map(std::str::from_utf8) {
            Some(Ok(text)) => Ok(text),
            Some(Err(e)) => Err(Error::Pem { what: name, reason: e.to_string() }),
            None => Err(Error::Pem { what: name, reason: "the Secret has no such entry".to_owned() }),
        };
        let chain = if entry("cert-chain.pem").is_some() { text("cert-chain.pem")? } else { "" };
        Self::from_pem(text("ca-cert.pem")?, text("ca-key.pem")?, chain, text("root-cert.pem")?)
    }

    /// The entries of the Secret `istio-ca-secret`; `from_secret` reads them back.
    pub fn to_secret(&self) -> [(&'static str, Zeroizing<String>); 5] {
        let chain: String = self.intermediates.iter().map(certificate_pem).collect();
        [
            ("ca-cert.pem", Zeroizing::new(certificate_pem(&self.certificate))),
            ("ca-key.pem", self.key_pem()),
            ("root-cert.pem", Zeroizing::new(self.roots_pem())),
            ("cert-chain.pem", Zeroizing::new(chain)),
            ("key.pem", Zeroizing::new(String::new())),
        ]
    }

    fn assemble(
        certificate: CertificateDer<'static>,
        key: KeyPair,
        chain: Vec<CertificateDer<'static>>,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self> {
        check_authority("signing certificate", &certificate)?;
        for root in &roots {
            check_authority("root certificate", root)?;
        }
        let parsed = parse("signing certificate", &certificate)?;
        let (not_before, not_after) = (
            from_unix_seconds(parsed.validity().not_before.timestamp()),
            from_unix_seconds(parsed.validity().not_after.timestamp()),
        );
        if PublicKey::from_spki(parsed.public_key().raw)? != key.public_key()? {
            return Err(Error::KeyMismatch { what: "signing certificate" });
        }
        drop(parsed);
        // Some write the signing certificate into the chain and some do not; roots may be in it, too.
        let mut intermediates = Vec::new();
        for link in std::iter::once(&certificate).chain(&chain) {
            if !roots.contains(link) && !intermediates.contains(link) {
                check_authority("intermediate certificate", link)?;
                intermediates.push(link.clone());
            }
        }
        let issuer = rcgen::Issuer::from_ca_cert_der(&certificate, Signer(key))
            .map_err(|e| Error::crypto("reading the signing certificate", e))?;
        let authority = Self { certificate, intermediates, roots, not_before, not_after, issuer };
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
            let start = parse("intermediate certificate", link)?.validity().not_before.timestamp();
            when = when.max(from_unix_seconds(start));
        }
        let mut params = leaf_params(Profile::Workload);
        params.subject_alt_names = vec![uri("spiffe://trial/ns/trial/sa/trial")?];
        (params.not_before, params.not_after) = (when.into(), (when + BACKDATE).into());
        params.serial_number = Some(random_serial()?);
        let trial: CertificateDer<'static> = params
            .signed_by(trial_key.certified(), &self.issuer)
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

    /// Signs a workload certificate for `identity`, whatever names the request asked for
    /// (CA-1, CA-12); contents as reference mtls 5.4.
    pub fn issue(
        &self,
        request: &CertificateRequest,
        identity: &Identity,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Issued> {
        let mut params = leaf_params(Profile::Workload);
        params.subject_alt_names = vec![uri(&identity.uri())?];
        self.sign(params, request.public_key(), ttl, now)
    }

    /// Signs a server certificate for host names and addresses: the control plane's and the API's.
    ///
    /// It names no workload, so it authenticates nobody inside the mesh.
    pub fn issue_server(
        &self,
        key: &PublicKey,
        dns_names: &[&str],
        addresses: &[IpAddr],
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Issued> {
        let mut params = leaf_params(Profile::Server);
        for name in dns_names {
            let text = (*name).try_into().map_err(|_| Error::Name((*name).to_owned()))?;
            params.subject_alt_names.push(SanType::DnsName(text));
        }
        params.subject_alt_names.extend(addresses.iter().copied().map(SanType::IpAddress));
        if params.subject_alt_names.is_empty() {
            return Err(Error::Name(String::new()));
        }
        // Shown by tools; verifiers go by the alternative names only.
        if let Some(first) = dns_names.first().filter(|name| name.len() <= 64) {
            params.distinguished_name.push(DnType::CommonName, *first);
        }
        self.sign(params, key, ttl, now)
    }

    /// Signs a client certificate of a Kubernetes user: CN is the user, O the group.
    pub fn issue_client(
        &self,
        key: &PublicKey,
        common_name: &str,
        organization: Option<&str>,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Issued> {
        let mut params = leaf_params(Profile::Client);
        params.distinguished_name.push(DnType::CommonName, common_name);
        if let Some(organization) = organization {
            params.distinguished_name.push(DnType::OrganizationName, organization);
        }
        self.sign(params, key, ttl, now)
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        key: &PublicKey,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Issued> {
        if now < self.not_before || now >= self.not_after {
            let (not_before, not_after) = (self.not_before, self.not_after);
            return Err(Error::SignerValidity { not_before, not_after, now });
        }
        let (not_before, not_after) = validity(now, ttl, self.not_after)?;
        (params.not_before, params.not_after) = (not_before.into(), not_after.into());
        let serial = random_serial()?;
        params.serial_number = Some(serial.clone());
        let certificate = params
            .signed_by(key.certified(), &self.issuer)
            .map_err(|e| Error::crypto("signing a certificate", e))?;
        let mut chain_pem = vec![certificate_pem(certificate.der())];
        chain_pem.extend(self.intermediates.iter().map(certificate_pem));
        Ok(Issued {
            chain_pem,
            roots_pem: self.roots_pem(),
            not_before,
            not_after,
            serial: serial_text(&serial.to_bytes()),
        })
    }

    /// The root bundle as PEM.
    pub fn roots_pem(&self) -> String {
        self.roots.iter().map(certificate_pem).collect()
    }

    /// The root bundle.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The signing certificate as PEM.
    pub fn cert_pem(&self) -> String {
        certificate_pem(&self.certificate)
    }

    /// The signing key as PEM; wiped when dropped.
    pub fn key_pem(&self) -> Zeroizing<String> {
        self.issuer.key().0.to_pem()
    }

    /// When the signing certificate becomes valid.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// When the signing certificate expires.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("not_before", &self.not_before)
            .field("not_after", &self.not_after)
            .field("intermediates", &self.intermediates.len())
            .field("roots", &self.roots.len())
            .finish_non_exhaustive()
    }
}

/// What a certificate is for.
#[derive(Clone, Copy)]
enum Profile {
    Workload,
    Server,
    Client,
}

fn leaf_params(profile: Profile) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![Usage::DigitalSignature, Usage::KeyEncipherment];
    params.extended_key_usages = match profile {
        Profile::Workload => vec![Extended::ServerAuth, Extended::ClientAuth],
        Profile::Server => vec![Extended::ServerAuth],
        Profile::Client => vec![Extended::ClientAuth],
    };
    params.use_authority_key_identifier_extension = true;
    params
}

fn uri(text: &str) -> Result<SanType> {
    Ok(SanType::URI(text.try_into().map_err(|_| Error::Name(text.to_owned()))?))
}

/// From `BACKDATE` before now until `ttl` after it, at most until `signer_end` (CA-6).
fn validity(now: SystemTime, ttl: Duration, signer_end: SystemTime) -> Result<(SystemTime, SystemTime)> {
    if ttl < Duration::from_secs(1) {
        return Err(Error::Time);
    }
    let start = now.checked_sub(BACKDATE).ok_or(Error::Time)?;
    let end = now.checked_add(ttl).map_or(signer_end, |end| end.min(signer_end));
    if unix_seconds(start) < 0 || unix_seconds(end) > LAST_SECOND {
        return Err(Error::Time);
    }
    Ok((whole_seconds(start), whole_seconds(end)))
}

/// A random serial number below 2^128 (reference mtls 5.4), never zero (RFC 5280 section 4.1.2.2).
fn random_serial() -> Result<SerialNumber> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|e| Error::crypto("drawing a serial number", e))?;
    bytes[15] |= 1;
    Ok(SerialNumber::from_slice(&bytes))
}

/// The private key as the certificate library wants it.
struct Signer(KeyPair);

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
