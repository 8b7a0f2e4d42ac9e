use maille_core::Identity;
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::error::X509Error;
use x509_parser::oid_registry::{OID_PKCS1_SHA1WITHRSA, OID_SHA1_WITH_RSA};
use x509_parser::prelude::FromDer as _;

use crate::error::{Error, Result};
use crate::key::{KeyPair, PublicKey};

/// Longest request that is read: an RSA-8192 key with generous names stays under 8 KiB.
const MAX_REQUEST: usize = 64 * 1024;

/// Makes a certificate signing request (PKCS #10) in PEM that asks for `identity`.
///
/// The authority of the mesh ignores the name and goes by who is asking (CA-1), but other
/// authorities may want it there.
pub fn create_csr(key: &KeyPair, identity: &Identity) -> Result<String> {
    let uri = identity.uri();
    let name = uri.as_str().try_into().map_err(|_| Error::Name(uri.clone()))?;
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.subject_alt_names = vec![rcgen::SanType::URI(name)];
    let request =
        params.serialize_request(key.signer()).map_err(|e| Error::crypto("signing a request", e))?;
    request.pem().map_err(|e| Error::crypto("writing a request", e))
}

/// A certificate signing request whose sender has proved to hold the private key.
///
/// Only the public key survives parsing, and whether there was a common name: the names, extensions and attributes
/// that the sender asked for are not kept, so that none can reach a certificate (CA-1, CA-12).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateRequest {
    public_key: PublicKey,
    has_common_name: bool,
}

impl CertificateRequest {
    /// Reads a request from PEM and checks its signature (CA-3).
    pub fn parse_pem(text: &str) -> Result<Self> {
        if text.len() > MAX_REQUEST {
            return Err(Error::RequestMalformed(format!("it is longer than {MAX_REQUEST} bytes")));
        }
        let der = CertificateSigningRequestDer::from_pem_slice(text.as_bytes())
            .map_err(|e| Error::RequestMalformed(e.to_string()))?;
        Self::parse_der(&der)
    }

    /// Reads a request from DER and checks its signature (CA-3).
    pub fn parse_der(der: &[u8]) -> Result<Self> {
        let (rest, request) =
            X509CertificationRequest::from_der(der).map_err(|e| Error::RequestMalformed(e.to_string()))?;
        if !rest.is_empty() {
            return Err(Error::RequestMalformed("bytes follow the request".to_owned()));
        }
        // The key first: verifying with a key that would be refused anyway is wasted work.
        let public_key = PublicKey::from_spki(request.certification_request_info.subject_pki.raw)?;
        let unaccepted =
            || Error::RequestMalformed("it is signed with an algorithm that is not accepted".to_owned());
        // Signatures over SHA-1 can be forged; the library still verifies them.
        if [OID_PKCS1_SHA1WITHRSA, OID_SHA1_WITH_RSA].contains(&request.signature_algorithm.algorithm) {
            return Err(unaccepted());
        }
        request.verify_signature().map_err(|e| match e {
            X509Error::SignatureUnsupportedAlgorithm => unaccepted(),
            _ => Error::ProofOfPossession,
        })?;
        let subject = &request.certification_request_info.subject;
        let has_common_name =
            subject.iter_common_name().any(|name| name.as_str().is_ok_and(|name| !name.is_empty()));
        Ok(Self { public_key, has_common_name })
    }

    /// Whether the sender wants a common name, whatever it wrote there (reference mtls 5.4).
    pub(crate) fn has_common_name(&self) -> bool {
        self.has_common_name
    }

    /// The key to certify.
    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }
}
