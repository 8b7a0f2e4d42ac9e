use maille_core::Identity;
use maille_pki::{CertificateDer, peer_identity};
use rustls_pki_types::{DnsName, ServerName};

use crate::error::{HandshakeError, SetupError};
use crate::refusal::{Presenter, Reason, Refusal};

/// Who called: the verified identity of the client at the other end of a server's connection.
///
/// An error before the handshake is over, or if the client showed no certificate.
pub fn peer_of_server(connection: &rustls::ServerConnection) -> Result<Identity, HandshakeError> {
    identity(Presenter::Client, connection.peer_certificates())
}

/// Who answered: the verified identity of the server at the other end of a client's connection.
///
/// An error before the handshake is over, or if the server proved DNS names only (SN-5).
pub fn peer_of_client(connection: &rustls::ClientConnection) -> Result<Identity, HandshakeError> {
    identity(Presenter::Server, connection.peer_certificates())
}

fn identity(
    presenter: Presenter,
    chain: Option<&[CertificateDer<'static>]>,
) -> Result<Identity, HandshakeError> {
    let leaf = chain.and_then(<[_]>::first).ok_or(HandshakeError::NoCertificate)?;
    peer_identity(leaf).map_err(|e| {
        let reason = match e {
            maille_pki::Error::Leaf(rule) => Reason::Leaf(rule),
            other => Reason::Unreadable(other.to_string()),
        };
        let refusal = Refusal { presenter, claimed: Vec::new(), serial: String::new(), reason };
        HandshakeError::Refused(refusal.into())
    })
}

/// SHA-256 of a certificate, as `Hash=` of `x-forwarded-client-cert` wants it in hexadecimal
/// (reference mtls 8.3).
pub fn leaf_fingerprint(leaf: &CertificateDer<'_>) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, leaf);
    let mut bytes = [0; 32];
    // SHA-256 has 32 bytes.
    bytes.copy_from_slice(digest.as_ref());
    bytes
}

/// The SNI of a connection between sidecars: `outbound_.<port>_.<subset>_.<host>`, with the
/// service's port and an empty subset if there is none (reference mtls 8.1).
pub fn outbound_sni(port: u16, subset: &str, host: &str) -> Result<ServerName<'static>, SetupError> {
    let text = format!("outbound_.{port}_.{subset}_.{host}");
    match DnsName::try_from(text.clone()) {
        Ok(name) => Ok(ServerName::DnsName(name)),
        Err(_) => Err(SetupError::ServerName(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sni_with_underscores_is_a_server_name() {
        let name = outbound_sni(80, "", "web.shop.svc.cluster.local").expect("valid");
        assert_eq!(name.to_str(), "outbound_.80_._.web.shop.svc.cluster.local");
        let name = outbound_sni(8080, "v1", "web.shop.svc.cluster.local").expect("valid");
        assert_eq!(name.to_str(), "outbound_.8080_.v1_.web.shop.svc.cluster.local");
        assert!(outbound_sni(80, "", "no spaces").is_err());
        assert!(outbound_sni(80, "", &"a.".repeat(150)).is_err());
    }
}
