use std::fmt;
use std::io;
use std::sync::Arc;

use maille_core::TrustDomain;
use maille_pki::Moment;
use rustls::{AlertDescription as Alert, CertificateError, PeerIncompatible};
use rustls_pki_types::UnixTime;

use crate::refusal::{NOT_RENEWED, NOT_YET, Refusal};
use crate::skew::Cause;

/// Why a TLS configuration could not be made.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SetupError {
    /// Key material that does not hold together.
    #[error(transparent)]
    Pki(#[from] maille_pki::Error),
    /// The own trust domain has no roots.
    #[error("there are no roots for trust domain '{0}'; without them nobody can be verified")]
    NoRoots(TrustDomain),
    /// A root that cannot serve as one.
    #[error("a root of trust domain '{trust_domain}' cannot be used: {reason}")]
    Root {
        /// Whose root.
        trust_domain: TrustDomain,
        /// What is wrong.
        reason: String,
    },
    /// Revocations that cannot be put in force.
    #[error("revocations: {0}")]
    Revocations(String),
    /// Refused by the TLS library.
    #[error("TLS configuration refused: {0}")]
    Tls(#[from] rustls::Error),
    /// A name that TLS cannot carry as SNI.
    #[error(
        "'{0}' cannot be sent as TLS server name (at most 253 bytes, labels of letters, digits, '-' and '_')"
    )]
    ServerName(String),
}

/// Why a handshake failed or a peer has no identity, for the log and for response flags.
#[derive(Debug, Clone)]
pub enum HandshakeError {
    /// We refused the peer's certificate.
    Refused(Arc<Refusal>),
    /// The peer showed no certificate, and one is required (SN-8).
    NoCertificate,
    /// A signature is wrong: the peer does not hold the key of the certificate that it showed, or,
    /// outside of the mesh, the certificate comes from another root of the same name.
    BadSignature,
    /// The certificate of a server or client outside of the mesh was refused, and why.
    Certificate(String),
    /// The peer ended the handshake with this alert; most concern our certificate.
    RefusedByPeer(Alert),
    /// The two sides have no version, cipher suite or group in common.
    Incompatible(String),
    /// What the peer sent is no valid TLS.
    Protocol(String),
    /// The connection broke; the peer may have closed it without saying why.
    Io(io::ErrorKind),
}

impl HandshakeError {
    /// Reads the error of an asynchronous handshake, which hides the TLS error within an I/O error.
    pub fn from_io(error: &io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(tls) => Self::from_tls(tls),
            None => Self::Io(error.kind()),
        }
    }

    /// Reads an error of the TLS library.
    pub fn from_tls(error: &rustls::Error) -> Self {
        use rustls::Error as Tls;
        match error {
            Tls::InvalidCertificate(CertificateError::Other(other)) => {
                match other.0.downcast_ref::<Refusal>() {
                    Some(refusal) => Self::Refused(Arc::new(refusal.clone())),
                    None => Self::Certificate(other.0.to_string()),
                }
            }
            Tls::InvalidCertificate(CertificateError::BadSignature) => Self::BadSignature,
            Tls::InvalidCertificate(why) => Self::Certificate(explain(why)),
            Tls::NoCertificatesPresented => Self::NoCertificate,
            Tls::AlertReceived(alert) => Self::RefusedByPeer(*alert),
            Tls::PeerIncompatible(why) => Self::Incompatible(incompatible(why)),
            Tls::NoApplicationProtocol => Self::Incompatible("no application protocol in common".to_owned()),
            other => Self::Protocol(other.to_string()),
        }
    }

    /// The refusal, if it was us who refused.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }
}

/// What the two sides do not have in common, with the setting that is behind it most often.
fn incompatible(why: &PeerIncompatible) -> String {
    match why {
        PeerIncompatible::NoKxGroupsInCommon | PeerIncompatible::NamedGroupsExtensionRequired => {
            "none of the key exchanges that the peer offers is allowed here; where meshMTLS.ecdhCurves demands \
             X25519MLKEM768, a peer without it is refused"
                .to_owned()
        }
        PeerIncompatible::SupportedVersionsExtensionRequired
        | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
        | PeerIncompatible::ServerDoesNotSupportTls12Or13
        | PeerIncompatible::Tls13RequiredForQuic
        | PeerIncompatible::Tls12NotOfferedOrEnabled
        | PeerIncompatible::Tls12NotOffered => format!(
            "the peer's TLS version is not allowed here ({why:?}); meshMTLS.minProtocolVersion TLSV1_3 and the key \
             exchange X25519MLKEM768 need TLS 1.3"
        ),
        other => format!("{other:?}"),
    }
}

/// What the library's own verifiers say, with the likely cause.
pub(crate) fn explain(why: &CertificateError) -> String {
    match why {
        CertificateError::UnknownIssuer => {
            "none of the given roots stands behind it; the root bundle may be that of another authority"
                .to_owned()
        }
        CertificateError::ExpiredContext { time, not_after } => format!(
            "it expired at {}, and it is {} here; {}",
            moment(not_after),
            moment(time),
            Cause(NOT_RENEWED)
        ),
        CertificateError::NotValidYetContext { time, not_before } => format!(
            "it is not valid before {}, and it is {} here; {}",
            moment(not_before),
            moment(time),
            Cause(NOT_YET)
        ),
        CertificateError::Revoked => "its authority has revoked it (caCrl)".to_owned(),
        CertificateError::UnknownRevocationStatus => {
            "caCrl has no revocation list of an authority in its chain".to_owned()
        }
        CertificateError::ExpiredRevocationList | CertificateError::ExpiredRevocationListContext { .. } => {
            "the revocation list of its authority in caCrl is out of date".to_owned()
        }
        other => other.to_string(),
    }
}

fn moment(time: &UnixTime) -> Moment {
    Moment(std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(time.as_secs()))
}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> Self {
        Self::from_io(&error)
    }
}

impl From<rustls::Error> for HandshakeError {
    fn from(error: rustls::Error) -> Self {
        Self::from_tls(&error)
    }
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(refusal) => refusal.fmt(f),
            Self::NoCertificate => f.write_str("the peer showed no certificate, and one is required"),
            Self::BadSignature => f.write_str(
                "the peer's proof has a wrong signature: it does not hold the key of its certificate, or the \
                 certificate comes from another root of the same name as ours",
            ),
            Self::Certificate(why) => write!(f, "certificate of the peer refused: {why}"),
            Self::RefusedByPeer(alert) => {
                write!(f, "the peer ended the handshake with alert {alert:?}")?;
                match alert {
                    Alert::CertificateRequired | Alert::NoCertificate => {
                        f.write_str(": it requires a client certificate")
                    }
                    Alert::CertificateExpired => {
                        f.write_str(": it takes our certificate for expired; compare the clocks")
                    }
                    Alert::UnknownCA => f.write_str(": it does not trust the root of our certificate"),
                    Alert::BadCertificate
                    | Alert::UnsupportedCertificate
                    | Alert::CertificateRevoked
                    | Alert::CertificateUnknown
                    | Alert::AccessDenied
                    | Alert::DecryptError => f.write_str(": it refuses our certificate; its log says why"),
                    Alert::NoApplicationProtocol => f.write_str(": no application protocol in common"),
                    Alert::ProtocolVersion | Alert::HandshakeFailure | Alert::InsufficientSecurity => f
                        .write_str(
                            ": no TLS version, key exchange (it may demand X25519MLKEM768) or cipher suite in common, or it \
                             requires a certificate",
                        ),
                    _ => Ok(()),
                }
            }
            Self::Incompatible(why) => write!(f, "the two sides have no TLS parameters in common: {why}"),
            Self::Protocol(why) => write!(f, "the peer does not speak valid TLS: {why}"),
            Self::Io(kind) => write!(f, "the connection broke during the TLS handshake: {kind}"),
        }
    }
}

impl std::error::Error for HandshakeError {}
