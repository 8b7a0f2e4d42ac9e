use std::collections::BTreeSet;
use std::time::SystemTime;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use x509_parser::prelude::FromDer as _;
use x509_parser::revocation_list::CertificateRevocationList;

use crate::error::{Error, Result};
use crate::fingerprint::fingerprint;
use crate::leaf::{parse, serial_text};
use crate::time::from_unix_seconds;

/// A list of revoked certificates (RFC 5280 section 5), known to be signed by an authority of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevocationList {
    der: CertificateRevocationListDer<'static>,
    issuer: Vec<u8>,
    signer: String,
    serials: BTreeSet<String>,
    this_update: SystemTime,
    next_update: Option<SystemTime>,
}

impl RevocationList {
    /// Reads every list of a PEM text (`ca-crl.pem`). Each must be signed by one of `authorities`; none at all is an
    /// error, and so is a critical extension, since ignoring one could widen or narrow what the list says.
    pub fn from_pem(pem: &str, authorities: &[CertificateDer<'_>]) -> Result<Vec<Self>> {
        const WHAT: &str = "ca-crl.pem";
        let mut lists = Vec::new();
        for section in CertificateRevocationListDer::pem_slice_iter(pem.as_bytes()) {
            let der = section.map_err(|e| Error::Pem { what: WHAT, reason: e.to_string() })?;
            lists.push(Self::from_der(der, authorities)?);
        }
        if lists.is_empty() {
            return Err(Error::RevocationList("it holds no list".to_owned()));
        }
        Ok(lists)
    }

    /// Reads one list in DER; checks as [`RevocationList::from_pem`].
    pub fn from_der(
        der: CertificateRevocationListDer<'static>,
        authorities: &[CertificateDer<'_>],
    ) -> Result<Self> {
        let refused = |reason: String| Error::RevocationList(reason);
        let (rest, list) = CertificateRevocationList::from_der(&der).map_err(|e| refused(e.to_string()))?;
        if !rest.is_empty() {
            return Err(refused("bytes follow the list".to_owned()));
        }
        if let Some(extension) = list.extensions().iter().find(|extension| extension.critical) {
            return Err(refused(format!(
                "it has the critical extension {}, which is not known",
                extension.oid
            )));
        }
        let issuer = list.issuer();
        let mut signer = None;
        for authority in authorities {
            let parsed = parse("certificate of the authority", authority)?;
            if parsed.subject().as_raw() == issuer.as_raw()
                && list.verify_signature(parsed.public_key()).is_ok()
            {
                // RFC 5280 section 6.3.3 (f): a key usage, if there is one, must allow it.
                let usage = parsed.key_usage().map_err(|e| refused(e.to_string()))?;
                if usage.is_some_and(|usage| !usage.value.crl_sign()) {
                    return Err(refused(format!(
                        "its issuer {issuer} may not sign lists: no cRLSign in its key usage"
                    )));
                }
                signer = Some(fingerprint(authority));
                break;
            }
        }
        let signer = signer.ok_or_else(|| {
            refused(format!("it is signed by {issuer}, which is none of the authority's own certificates"))
        })?;
        let revoked = list.iter_revoked_certificates();
        let serials = revoked.map(|entry| serial_text(entry.raw_serial())).collect();
        let (issuer, this_update) = (issuer.as_raw().to_vec(), list.last_update().timestamp());
        let next_update = list.next_update().map(|time| from_unix_seconds(time.timestamp()));
        let this_update = from_unix_seconds(this_update);
        drop(list);
        Ok(Self { der, issuer, signer, serials, this_update, next_update })
    }

    /// Whether one of `authorities` signed a list in DER. Only what would be taken of them counts.
    pub fn is_of(der: &[u8], authorities: &[CertificateDer<'_>]) -> bool {
        Self::from_der(der.to_vec().into(), authorities).is_ok()
    }

    /// The list as it was signed.
    pub fn der(&self) -> &CertificateRevocationListDer<'static> {
        &self.der
    }

    /// The issuer's name in DER, as in the `issuer` of the certificates that it concerns.
    pub fn issuer(&self) -> &[u8] {
        &self.issuer
    }

    /// Fingerprint of the authority's certificate that signed it.
    pub fn signer(&self) -> &str {
        &self.signer
    }

    /// What is revoked: pairs of the issuer's name in DER and a serial number in lower-case hexadecimal.
    pub fn revoked(&self) -> impl Iterator<Item = (&[u8], &str)> {
        self.serials.iter().map(|serial| (self.issuer.as_slice(), serial.as_str()))
    }

    /// Whether a certificate of this issuer is revoked.
    pub fn revokes(&self, issuer: &[u8], serial: &str) -> bool {
        self.issuer == issuer && self.serials.contains(serial)
    }

    /// When it was made.
    pub fn this_update(&self) -> SystemTime {
        self.this_update
    }

    /// When there will be a newer one at the latest, if it says.
    pub fn next_update(&self) -> Option<SystemTime> {
        self.next_update
    }
}
