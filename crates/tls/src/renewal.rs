//! A peer's renewed certificate, shown inside a connection that is open, in the spirit of RFC 9261.
//!
//! An end signs key material that only this connection's two ends know (RFC 8446 section 7.5) together with the new
//! chain, with the new key. So what it proves holds here and nowhere else, and a chain that somebody only copied proves
//! nothing. The identity must be the one that the connection was opened by, or to; who wants to be somebody else
//! connects again. What one end signs is never what the other would: nothing can be sent back as an answer.

use std::fmt;

use maille_core::Identity;
use maille_pki::{CertificateDer, Svid};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::{ClientConnection, ProtocolVersion, ServerConnection, SignatureScheme};
use rustls_pki_types::UnixTime;

use crate::context::Current;
use crate::error::SetupError;
use crate::provider::provider;
use crate::refusal::{Presenter, Refusal};

/// Longest message; a chain of an SVID and some intermediates is a tenth of it.
pub const MAX_RENEWAL: usize = 32 * 1024;
/// Longest chain.
const MAX_CHAIN: usize = 8;
const LABEL: &[u8] = b"EXPORTER-maille/1 renewal";
/// As in TLS 1.3 (RFC 8446 section 4.4.3): no signature of another protocol can be taken for one of these, and none of
/// one end for the other's.
const CONTEXT_CLIENT: &[u8] = b"maille/1, client renewal";
const CONTEXT_SERVER: &[u8] = b"maille/1, server renewal";
const SCHEMES: [SignatureScheme; 4] = [
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ED25519,
    SignatureScheme::RSA_PSS_SHA256,
];

/// Why a renewal is not accepted.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RenewalError {
    /// It cannot be read.
    #[error("the renewal cannot be read: {0}")]
    Malformed(&'static str),
    /// Its certificate is not accepted.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It is somebody else's.
    #[error("the connection is {of}'s, and the renewed certificate {shown}'s")]
    OtherIdentity {
        /// Whose connection it is.
        of: String,
        /// Whose certificate was shown.
        shown: String,
    },
    /// The peer does not hold the key, or the message is of another connection.
    #[error("the signature of the renewal is wrong")]
    Signature,
}

/// What ties a renewal to one connection; both ends know it and nobody else does.
#[derive(Clone)]
pub struct Binding([u8; 32]);

impl Binding {
    /// Of a client's connection after its handshake; none before TLS 1.3.
    pub fn of_client(connection: &ClientConnection) -> Option<Self> {
        Self::of(connection.protocol_version(), |out| connection.export_keying_material(out, LABEL, None))
    }

    /// Of a server's connection after its handshake; none before TLS 1.3.
    pub fn of_server(connection: &ServerConnection) -> Option<Self> {
        Self::of(connection.protocol_version(), |out| connection.export_keying_material(out, LABEL, None))
    }

    fn of(
        version: Option<ProtocolVersion>,
        export: impl FnOnce([u8; 32]) -> Result<[u8; 32], rustls::Error>,
    ) -> Option<Self> {
        let is_bound_to_handshake = version == Some(ProtocolVersion::TLSv1_3);
        is_bound_to_handshake.then(|| export([0; 32]).ok().map(Self)).flatten()
    }

    /// The message by which the client shows its renewed certificate.
    pub fn renew(&self, svid: &Svid) -> Result<Vec<u8>, SetupError> {
        self.show(Presenter::Client, svid)
    }

    /// The message by which the server does.
    pub fn renew_server(&self, svid: &Svid) -> Result<Vec<u8>, SetupError> {
        self.show(Presenter::Server, svid)
    }

    fn show(&self, presenter: Presenter, svid: &Svid) -> Result<Vec<u8>, SetupError> {
        let key = any_supported_type(&svid.key().to_der())?;
        let signer = key.choose_scheme(&SCHEMES).ok_or_else(|| {
            SetupError::Tls(rustls::Error::General("the key signs with no scheme of TLS 1.3".to_owned()))
        })?;
        let chain = encode(svid.chain());
        let signature = signer.sign(&self.signed(presenter, &chain))?;
        let mut message = u16::from(signer.scheme()).to_be_bytes().to_vec();
        put(&mut message, &signature);
        message.extend_from_slice(&chain);
        Ok(message)
    }

    /// What is signed.
    fn signed(&self, presenter: Presenter, chain: &[u8]) -> Vec<u8> {
        let mut text = vec![b' '; 64];
        text.extend_from_slice(match presenter {
            Presenter::Client => CONTEXT_CLIENT,
            Presenter::Server => CONTEXT_SERVER,
        });
        text.push(0);
        text.extend_from_slice(&self.0);
        text.extend_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, chain).as_ref());
        text
    }
}

impl fmt::Debug for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Binding")
    }
}

impl Current {
    /// Judges what a client shows inside a connection that `identity` opened: by the roots and the time of now, as in a
    /// handshake. Gives back its chain, which the connection stands on from then on.
    pub fn accept_renewal(
        &self,
        binding: &Binding,
        message: &[u8],
        identity: &Identity,
        now: UnixTime,
    ) -> Result<Vec<CertificateDer<'static>>, RenewalError> {
        let shown = Shown::read(binding, Presenter::Client, message)?;
        let renewed = self.recheck_client(&shown.chain, now)?;
        if renewed != *identity {
            return Err(RenewalError::OtherIdentity { of: identity.uri(), shown: renewed.uri() });
        }
        shown.verified()
    }

    /// Judges what a server shows inside a connection that was opened to `identity`, as
    /// [`Current::accept_renewal`] does a client.
    pub fn accept_server_renewal(
        &self,
        binding: &Binding,
        message: &[u8],
        identity: &Identity,
        now: UnixTime,
    ) -> Result<Vec<CertificateDer<'static>>, RenewalError> {
        let shown = Shown::read(binding, Presenter::Server, message)?;
        self.recheck_server(&shown.chain, &[identity.uri()].into(), now)?;
        shown.verified()
    }
}

/// A renewal as it came.
struct Shown<'m> {
    scheme: SignatureScheme,
    signature: &'m [u8],
    signed: Vec<u8>,
    chain: Vec<CertificateDer<'static>>,
}

impl<'m> Shown<'m> {
    fn read(binding: &Binding, presenter: Presenter, message: &'m [u8]) -> Result<Self, RenewalError> {
        let mut rest = message;
        let scheme = SignatureScheme::from(u16::from_be_bytes(take(&mut rest)?));
        let signature = get(&mut rest)?;
        Ok(Self { scheme, signature, signed: binding.signed(presenter, rest), chain: decode(rest)? })
    }

    /// The chain, if whoever showed it holds the key of its leaf.
    fn verified(self) -> Result<Vec<CertificateDer<'static>>, RenewalError> {
        let leaf = self.chain.first().ok_or(RenewalError::Malformed("the chain is empty"))?;
        let leaf =
            webpki::EndEntityCert::try_from(leaf).map_err(|_| RenewalError::Malformed("the certificate"))?;
        // A scheme that TLS 1.3 has no signatures of is none of these.
        let known = provider().signature_verification_algorithms.mapping;
        let algorithms = known.iter().filter(|(of, _)| *of == self.scheme && SCHEMES.contains(of));
        let is_signed = algorithms
            .flat_map(|(_, algorithms)| algorithms.iter())
            .any(|algorithm| leaf.verify_signature(*algorithm, &self.signed, self.signature).is_ok());
        if is_signed { Ok(self.chain) } else { Err(RenewalError::Signature) }
    }
}

fn encode(chain: &[CertificateDer<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for certificate in chain {
        put(&mut bytes, certificate);
    }
    bytes
}

fn decode(mut bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, RenewalError> {
    let mut chain = Vec::new();
    while !bytes.is_empty() {
        if chain.len() == MAX_CHAIN {
            return Err(RenewalError::Malformed("the chain is too long"));
        }
        chain.push(CertificateDer::from(get(&mut bytes)?.to_vec()));
    }
    Ok(chain)
}

/// With its length before it. Certificates and signatures are far shorter than what three bytes can say.
fn put(into: &mut Vec<u8>, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes();
    into.extend_from_slice(&length);
    into.extend_from_slice(bytes);
}

fn get<'m>(rest: &mut &'m [u8]) -> Result<&'m [u8], RenewalError> {
    let length = u32::from_be_bytes(take(rest)?) as usize;
    let (bytes, after) = rest.split_at_checked(length).ok_or(RenewalError::Malformed("it is too short"))?;
    *rest = after;
    Ok(bytes)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], RenewalError> {
    let (bytes, after) = rest.split_first_chunk().ok_or(RenewalError::Malformed("it is too short"))?;
    *rest = after;
    Ok(*bytes)
}
