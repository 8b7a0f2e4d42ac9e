use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::error::{Error, Result};

/// Reads every certificate of a PEM text, in order; other sections are an error of the writer
/// and are skipped, none at all is an error.
///
/// `what` names the source in errors ("root bundle", "cert-chain.pem").
pub fn certificates_from_pem(what: &'static str, pem: &str) -> Result<Vec<CertificateDer<'static>>> {
    let mut certificates = Vec::new();
    for section in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        certificates.push(section.map_err(|e| Error::Pem { what, reason: e.to_string() })?);
    }
    if certificates.is_empty() {
        return Err(Error::Empty(what));
    }
    Ok(certificates)
}

/// One certificate as PEM, ending in a newline (reference mtls 5.2).
pub fn certificate_pem(der: &CertificateDer<'_>) -> String {
    encode("CERTIFICATE", der)
}

/// A revocation list in DER as PEM.
pub fn revocation_list_pem(der: &[u8]) -> String {
    encode("X509 CRL", der)
}

/// RFC 7468 text encoding: 64 columns.
pub(crate) fn encode(label: &str, der: &[u8]) -> String {
    // Sized for the whole text at once: a growing String would leave copies of a private key.
    let body_len = der.len().div_ceil(3) * 4;
    let mut text = String::with_capacity(body_len + body_len / 64 + 2 * label.len() + 40);
    text.push_str("-----BEGIN ");
    text.push_str(label);
    text.push_str("-----\n");
    // 48 bytes make one line of 64 characters.
    for line in der.chunks(48) {
        STANDARD.encode_string(line, &mut text);
        text.push('\n');
    }
    text.push_str("-----END ");
    text.push_str(label);
    text.push_str("-----\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_bytes_agree() {
        for length in [1, 47, 48, 49, 500] {
            let der = CertificateDer::from((0..length).map(|i| i as u8).collect::<Vec<_>>());
            let pem = certificate_pem(&der);
            assert!(pem.lines().all(|line| line.len() <= 64));
            assert_eq!(certificates_from_pem("test", &pem), Ok(vec![der]));
        }
    }

    #[test]
    fn text_without_certificate_is_refused_by_name() {
        assert_eq!(certificates_from_pem("root bundle", "hello"), Err(Error::Empty("root bundle")));
        let cut = "-----BEGIN CERTIFICATE-----\nAAAA\n";
        assert!(matches!(certificates_from_pem("root bundle", cut), Err(Error::Pem { .. })));
    }
}
