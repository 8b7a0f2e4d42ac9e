use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{DistinguishedName, DnType, DnValue};
use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::der_parser::asn1_rs::Tag;

use super::{Authority, authority_params, last_moment};
use crate::error::{Error, Result};
use crate::key::generate_key;
use crate::leaf::{check_authority, parse};

impl Authority {
    /// The same authority, that distributes these roots beside its own: while roots rotate, old and new (reference
    /// mtls 5.6). They take the place of what earlier calls gave; none leaves its own, so that the set is never empty.
    pub fn with_trust(&self, more: impl IntoIterator<Item = CertificateDer<'static>>) -> Result<Self> {
        let mut roots = self.own_roots.clone();
        for root in more {
            if !roots.contains(&root) {
                check_authority("root certificate", &root)?;
                roots.push(root);
            }
        }
        Ok(Self { roots, ..self.clone() })
    }

    /// A new certificate for the same root: same key, same name, new serial number and dates (CA-16).
    ///
    /// What it has signed verifies under either, so nothing needs to be issued anew, and the old one is distributed no
    /// more. Only a root that signs itself can be renewed so; other trust that is distributed stays.
    pub fn renew_root(&self, now: SystemTime, ttl: Duration) -> Result<Self> {
        if !self.is_root() {
            let reason = "its signing certificate is no root, so that its root is somebody else's".to_owned();
            return Err(Error::NotARoot(reason));
        }
        let issuer = &self.issuer;
        let mut params = authority_params(now, ttl, last_moment())?;
        let parsed = parse("root certificate", &self.certificate)?;
        // The key identifier must stay: those that verify by it find the way from what the old one signed.
        for extension in parsed.extensions() {
            if let x509_parser::extensions::ParsedExtension::SubjectKeyIdentifier(id) =
                extension.parsed_extension()
            {
                params.key_identifier_method = rcgen::KeyIdMethod::PreSpecified(id.0.to_vec());
            }
        }
        params.use_authority_key_identifier_extension = true;
        // Signed by the old certificate's name and key, which are its own; the subject is the same name.
        params.distinguished_name = subject_of(&parsed)?;
        drop(parsed);
        let der: CertificateDer<'static> = params
            .signed_by(issuer.key(), issuer.as_ref())
            .map_err(|e| Error::crypto("renewing a root", e))?
            .into();
        let mut roots: Vec<_> =
            self.own_roots.iter().filter(|root| **root != self.certificate).cloned().collect();
        roots.insert(0, der.clone());
        let mut renewed = Self::assemble(der, Arc::clone(&issuer.key().0), Vec::new(), roots)?;
        renewed.revoked = self.revoked.clone();
        renewed.with_trust(self.roots.iter().filter(|root| **root != self.certificate).cloned())
    }

    /// A new authority below this one: an intermediate with a key of its own, that leads to the same roots, and
    /// distributes the same. It ends with this one's chain at the latest.
    pub fn intermediate(&self, name: &str, now: SystemTime, ttl: Duration) -> Result<Self> {
        if now < self.not_before || now >= self.chain_end {
            let (not_before, not_after) = (self.not_before, self.chain_end);
            return Err(Error::SignerValidity { not_before, not_after, now });
        }
        let key = generate_key()?;
        let mut params = authority_params(now, ttl, self.chain_end)?;
        // RFC 5280 section 4.2.1.9: it signs leaves only.
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
        params.use_authority_key_identifier_extension = true;
        params.distinguished_name.push(DnType::CommonName, name);
        let public = key.public_key()?;
        let der: CertificateDer<'static> = params
            .signed_by(public.certified(), self.issuer.as_ref())
            .map_err(|e| Error::crypto("signing an intermediate", e))?
            .into();
        let mut made =
            Self::assemble(der, Arc::new(key), self.intermediates.clone(), self.own_roots.clone())?;
        made.revoked = self.revoked.clone();
        made.with_trust(self.roots.iter().cloned())
    }

    /// Every certificate of its chain and its roots.
    pub(super) fn own_certificates(&self) -> Vec<CertificateDer<'static>> {
        self.intermediates.iter().chain(&self.own_roots).cloned().collect()
    }
}

/// The subject of a certificate, for another one; what it cannot express is refused. Whether the bytes came out the same
/// is seen when the new authority is anchored.
fn subject_of(certificate: &X509Certificate<'_>) -> Result<DistinguishedName> {
    let refused = || Error::NotARoot("its name is of a form that cannot be repeated".to_owned());
    let mut name = DistinguishedName::new();
    for attribute in certificate.subject().iter_attributes() {
        let kind = attribute.attr_type().iter().ok_or_else(refused)?.collect::<Vec<_>>();
        let value = attribute.attr_value();
        let text = std::str::from_utf8(value.data).map_err(|_| refused())?;
        let value = match value.header.tag() {
            Tag::Utf8String => DnValue::Utf8String(text.to_owned()),
            Tag::PrintableString => DnValue::PrintableString(text.try_into().map_err(|_| refused())?),
            Tag::Ia5String => DnValue::Ia5String(text.try_into().map_err(|_| refused())?),
            _ => return Err(refused()),
        };
        name.push(DnType::from_oid(&kind), value);
    }
    Ok(name)
}
