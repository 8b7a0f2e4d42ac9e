use rustls_pki_types::CertificateDer;

use crate::leaf::parse;

/// The name of a certificate everywhere in the mesh: SHA-256 of its DER, 64 lower-case hexadecimal digits.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    use std::fmt::Write as _;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate);
    digest.as_ref().iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Whether the key of `signer` signed `certificate`, and the names agree. Nothing is said of validity or of rights.
pub(crate) fn has_signed(signer: &CertificateDer<'_>, certificate: &CertificateDer<'_>) -> bool {
    let (Ok(signer), Ok(certificate)) = (parse("signer", signer), parse("certificate", certificate)) else {
        return false;
    };
    signer.subject().as_raw() == certificate.issuer().as_raw()
        && certificate.verify_signature(Some(signer.public_key())).is_ok()
}

/// The certificate that signed the first one of a chain: the next of the chain, or one of the roots.
///
/// Roots that have been renewed with the same key (CA-16) cannot be told apart by what they signed: the newest of them
/// stands for all.
pub fn signer_of<'a>(
    chain: &'a [CertificateDer<'static>],
    roots: &'a [CertificateDer<'static>],
) -> Option<&'a CertificateDer<'static>> {
    let (leaf, intermediates) = chain.split_first()?;
    let start = |certificate: &&CertificateDer<'_>| {
        parse("signer", certificate)
            .map(|parsed| parsed.validity().not_before.timestamp())
            .unwrap_or(i64::MIN)
    };
    let own = intermediates.iter().find(|link| has_signed(link, leaf));
    own.or_else(|| roots.iter().filter(|root| has_signed(root, leaf)).max_by_key(start))
}
