use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use maille_core::Identity;
use rcgen::{
    CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose as Extended, IsCa,
    KeyUsagePurpose as Usage, SanType, SerialNumber,
};

use super::{Authority, BACKDATE, LAST_SECOND};
use crate::csr::CertificateRequest;
use crate::error::{Error, Result};
use crate::key::PublicKey;
use crate::leaf::serial_text;
use crate::pem::certificate_pem;
use crate::time::{unix_seconds, whole_seconds};

/// A certificate that an [`Authority`] has signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// Leaf, then intermediates, one per element, each ending in a newline; without the roots.
    pub chain_pem: Vec<String>,
    /// The authority's root bundle.
    pub roots_pem: String,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity; earlier than asked for if the signing certificate or its chain ends sooner (CA-6).
    pub not_after: SystemTime,
    /// Serial number, lower-case hexadecimal.
    pub serial: String,
    /// Fingerprint of the certificate that signed it.
    pub signer: String,
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
        let name = identity.uri();
        match critical_name(&name).filter(|_| request.has_common_name()) {
            // For peers that read the subject only: it says what the alternative name does.
            Some(extension) => {
                params.distinguished_name.push(DnType::CommonName, name.as_str());
                params.custom_extensions.push(extension);
            }
            None => params.subject_alt_names = vec![uri(&name)?],
        }
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
        if now < self.not_before || now >= self.chain_end {
            let (not_before, not_after) = (self.not_before, self.chain_end);
            return Err(Error::SignerValidity { not_before, not_after, now });
        }
        let (not_before, not_after) = validity(now, ttl, self.chain_end)?;
        (params.not_before, params.not_after) = (not_before.into(), not_after.into());
        let serial = random_serial()?;
        params.serial_number = Some(serial.clone());
        let certificate = params
            .signed_by(key.certified(), self.issuer.as_ref())
            .map_err(|e| Error::crypto("signing a certificate", e))?;
        let mut chain_pem = vec![certificate_pem(certificate.der())];
        chain_pem.extend(self.intermediates.iter().map(certificate_pem));
        Ok(Issued {
            chain_pem,
            roots_pem: self.roots_pem(),
            not_before,
            not_after,
            serial: serial_text(&serial.to_bytes()),
            signer: self.signer.clone(),
        })
    }
}

/// What a certificate is for.
#[derive(Clone, Copy)]
pub(super) enum Profile {
    Workload,
    Server,
    Client,
}

pub(super) fn leaf_params(profile: Profile) -> CertificateParams {
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

pub(super) fn uri(text: &str) -> Result<SanType> {
    Ok(SanType::URI(text.try_into().map_err(|_| Error::Name(text.to_owned()))?))
}

/// Longest common name (RFC 5280 appendix A.1, ub-common-name).
const MAX_COMMON_NAME: usize = 64;

/// A URI as critical alternative name, where there is a subject, too (reference mtls 5.4; the library marks it critical
/// only where there is none). `None` if it is too long for the subject.
fn critical_name(uri: &str) -> Option<CustomExtension> {
    let length = u8::try_from(uri.len()).ok().filter(|_| uri.len() <= MAX_COMMON_NAME)?;
    // GeneralNames with one uniformResourceIdentifier, [6] IA5String (RFC 5280 section 4.2.1.6); lengths below 128.
    let mut names = vec![0x30, length + 2, 0x86, length];
    names.extend_from_slice(uri.as_bytes());
    let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, 17], names);
    extension.set_criticality(true);
    Some(extension)
}

/// From `BACKDATE` before now until `ttl` after it, at most until `signer_end` (CA-6).
pub(super) fn validity(
    now: SystemTime,
    ttl: Duration,
    signer_end: SystemTime,
) -> Result<(SystemTime, SystemTime)> {
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
pub(super) fn random_serial() -> Result<SerialNumber> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|e| Error::crypto("drawing a serial number", e))?;
    bytes[15] |= 1;
    Ok(SerialNumber::from_slice(&bytes))
}
