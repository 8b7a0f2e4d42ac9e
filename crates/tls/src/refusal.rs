use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use maille_core::{Identity, TrustDomain};
use maille_pki::{LeafRule, Moment};

use crate::skew::Cause;

/// Why a certificate may be past its end.
pub(crate) const NOT_RENEWED: &str = "it was not renewed in time, or a clock is wrong";
/// Why one may be before its start.
pub(crate) const NOT_YET: &str = "the clock of this machine may be late";

/// Who showed a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presenter {
    /// The side that opened the connection.
    Client,
    /// The side that accepted it.
    Server,
}

impl fmt::Display for Presenter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client => "client",
            Self::Server => "server",
        })
    }
}

/// Why a peer's certificate was refused: whose it is, which rule it breaks, what was expected
/// and what was found.
///
/// The peer is told only that its certificate is unacceptable (alert `certificate_unknown`): the
/// reason is for our log, not for whoever connects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Who showed the certificate.
    pub presenter: Presenter,
    /// The names in the certificate, as claimed; empty if it could not be read.
    pub claimed: Vec<String>,
    /// Serial number, lower-case hexadecimal; empty if it could not be read.
    pub serial: String,
    /// Which rule it breaks.
    pub reason: Reason,
}

/// The rule that a certificate breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Unreadable(String),
    /// A rule of the X509-SVID standard (SF-2, reference mtls 6.2).
    #[error("{0}")]
    Leaf(#[from] LeafRule),
    /// The trust domain is not one of those accepted (SN-9).
    #[error("trust domain '{found}' is not accepted here (accepted: {})", list(.accepted))]
    TrustDomain {
        /// The trust domain of the certificate.
        found: TrustDomain,
        /// Those accepted.
        accepted: Vec<TrustDomain>,
    },
    /// No roots are known for its trust domain.
    #[error("no roots are known for trust domain '{0}'; its bundle may not have arrived yet")]
    NoBundle(TrustDomain),
    /// No trusted root stands behind it.
    #[error(
        "none of the {roots} known roots of trust domain '{trust_domain}' stands behind it; it may come from another mesh, or from before a change of roots"
    )]
    UnknownIssuer {
        /// Whose roots were tried.
        trust_domain: TrustDomain,
        /// How many there are.
        roots: usize,
    },
    /// Not one of the names that were expected (SN-2).
    #[error("none of its names is expected for this destination (expected: {})", list(.expected))]
    Name {
        /// The names of which one was required.
        expected: Arc<[String]>,
    },
    /// Past its end.
    #[error("it expired at {}, and it is {} here; {}", Moment(*.not_after), Moment(*.now), Cause(NOT_RENEWED))]
    Expired {
        /// End of its validity.
        not_after: SystemTime,
        /// Our time.
        now: SystemTime,
    },
    /// Before its start.
    #[error("it is not valid before {}, and it is {} here; {}", Moment(*.not_before), Moment(*.now), Cause(NOT_YET))]
    NotYetValid {
        /// Start of its validity.
        not_before: SystemTime,
        /// Our time.
        now: SystemTime,
    },
    /// Its extended key usage does not allow the role.
    #[error("its extended key usage lacks {0}")]
    Purpose(&'static str),
    /// Its serial number is on the mesh's list.
    #[error(
        "its serial number is revoked (ConfigMap istio-ca-revocations); its owner gets another certificate by its token"
    )]
    RevokedSerial,
    /// Its identity is on the mesh's list.
    #[error("identity {} is revoked{} (ConfigMap istio-ca-revocations)", .identity.uri(), until_when(.until))]
    RevokedIdentity {
        /// Whose.
        identity: Identity,
        /// Certificates that start later are good.
        until: Option<SystemTime>,
    },
    /// It is on a list of its authority.
    #[error("{} (serial {serial}) is revoked by the authority above it (ca-crl.pem)", match .intermediate { true => "an intermediate of its chain", false => "it" })]
    RevokedByAuthority {
        /// Not the certificate itself, but one above it.
        intermediate: bool,
        /// What is on the list.
        serial: String,
    },
    /// One authority of its chain has a list of revoked certificates, and another has none.
    #[error(
        "an authority of its chain has a revocation list and another has none, so that nobody can say whether it is revoked; ca-crl.pem must hold a list of every authority of a chain, or of none"
    )]
    NoRevocationList,
    /// Another rule of path validation (RFC 5280 section 6).
    #[error("its chain does not verify: {0}")]
    Path(String),
}

fn until_when(until: &Option<SystemTime>) -> String {
    until.map(|until| format!(" by certificates that start before {}", Moment(until))).unwrap_or_default()
}

impl Reason {
    /// Whether no root that is known stands behind it: the roots may have been replaced.
    pub fn is_of_roots(&self) -> bool {
        matches!(self, Self::UnknownIssuer { .. })
    }

    /// Whether somebody revoked it, or may have.
    pub fn is_revocation(&self) -> bool {
        matches!(
            self,
            Self::RevokedSerial
                | Self::RevokedIdentity { .. }
                | Self::RevokedByAuthority { .. }
                | Self::NoRevocationList
        )
    }
}

/// At most this many names are written into a message, and so many characters of each: a stranger
/// chooses them.
const SHOWN: usize = 8;
const SHOWN_CHARS: usize = 256;

fn list<T: fmt::Display>(items: &[T]) -> String {
    let shorten = |item: &T| item.to_string().chars().take(SHOWN_CHARS).collect::<String>();
    let mut text = items.iter().take(SHOWN).map(shorten).collect::<Vec<_>>().join(", ");
    if items.is_empty() {
        text.push_str("none");
    } else if items.len() > SHOWN {
        text.push_str(&format!(" and {} more", items.len() - SHOWN));
    }
    text
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "certificate of the {}", self.presenter)?;
        if !self.claimed.is_empty() {
            write!(f, " that claims to be {}", list(&self.claimed))?;
        }
        if !self.serial.is_empty() {
            write!(f, " (serial {})", self.serial)?;
        }
        write!(f, " refused: {}", self.reason)
    }
}

impl std::error::Error for Refusal {}

impl From<Refusal> for rustls::Error {
    fn from(refusal: Refusal) -> Self {
        Self::InvalidCertificate(rustls::CertificateError::Other(rustls::OtherError(Arc::new(refusal))))
    }
}
