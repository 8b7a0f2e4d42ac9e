use std::time::SystemTime;

use crate::time::Moment;

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why key material, a request or a certificate was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not PEM, or not of the expected kind.
    #[error("{what} is not readable PEM: {reason}")]
    Pem {
        /// What was being read, as an operator knows it.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A private key of an unknown kind, or damaged.
    #[error(
        "private key cannot be used: {0} (P-256, P-384, Ed25519 and RSA keys in PKCS#8, SEC1 or PKCS#1 are known)"
    )]
    PrivateKey(String),
    /// A public key of a kind that the mesh does not certify.
    #[error("public key refused: {0} (accepted: RSA of 2048 to 8192 bits, ECDSA P-256 and P-384, Ed25519)")]
    PublicKey(String),
    /// A certificate signing request that cannot be read (CA-3).
    #[error("certificate signing request cannot be read: {0}")]
    RequestMalformed(String),
    /// A certificate signing request whose signature is not by the key in it (CA-3).
    #[error("certificate signing request is not signed by the key it contains: no proof of possession")]
    ProofOfPossession,
    /// A certificate that cannot be read.
    #[error("{what} is not a readable X.509 certificate: {reason}")]
    Certificate {
        /// Whose certificate.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A workload certificate that breaks a rule of the X509-SVID standard.
    #[error("certificate is no X.509-SVID: {0}")]
    Leaf(#[from] LeafRule),
    /// The certificate and the private key do not belong together.
    #[error("{what} and the private key do not belong together: their public keys differ")]
    KeyMismatch {
        /// Which certificate.
        what: &'static str,
    },
    /// No certificate where at least one is needed.
    #[error("{0} holds no certificate")]
    Empty(&'static str),
    /// A certificate that was to sign, but must not.
    #[error("{what} cannot sign certificates: {reason}")]
    NotAnAuthority {
        /// Which certificate.
        what: &'static str,
        /// Which rule it breaks.
        reason: String,
    },
    /// A root that cannot be renewed with its own key.
    #[error("root cannot be renewed: {0}")]
    NotARoot(String),
    /// A list of revoked certificates that cannot be read, or that nobody of ours signed.
    #[error("revocation list (ca-crl.pem) refused: {0}")]
    RevocationList(String),
    /// A trust bundle document that cannot be used.
    #[error("trust bundle document refused: {0}")]
    Bundle(String),
    /// A JWT-SVID for nobody, or for too many.
    #[error("JWT-SVID cannot be made: {0}")]
    Audience(String),
    /// The signing certificate does not verify against its own roots.
    #[error("signing certificate does not chain to the root bundle: {0}")]
    Unanchored(String),
    /// The signing certificate is expired or not yet valid (CA-7).
    #[error("signing certificate is valid from {} to {}, and it is now {}; renew the authority or correct the clock", Moment(*.not_before), Moment(*.not_after), Moment(*.now))]
    SignerValidity {
        /// Start of its validity.
        not_before: SystemTime,
        /// End of its validity.
        not_after: SystemTime,
        /// The time of the refusal.
        now: SystemTime,
    },
    /// A name that cannot stand in a certificate.
    #[error("'{0}' cannot stand in a certificate")]
    Name(String),
    /// A time outside of what X.509 can express (years 1970 to 9999).
    #[error("time is outside of what a certificate can express")]
    Time,
    /// The cryptographic library refused.
    #[error("{doing} failed: {reason}")]
    Crypto {
        /// What was being done.
        doing: &'static str,
        /// What the library says.
        reason: String,
    },
}

/// The rule of the X509-SVID standard (sections 2 to 5) that a leaf breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeafRule {
    /// Section 2: exactly one URI SAN. Others may not be ignored (reference SF-2).
    #[error("it has {found} URI names, and exactly 1 is required")]
    OneUri {
        /// How many there are.
        found: usize,
    },
    /// The URI is not an identity of the mesh.
    #[error("its URI name is no workload identity: {0}")]
    Identity(#[from] maille_core::IdentityError),
    /// Section 4.1: a signing certificate must not authenticate.
    #[error("it is a signing certificate (CA=true), which must not authenticate")]
    IsAuthority,
    /// Section 4.3: keyCertSign or cRLSign on a leaf.
    #[error("its key usage allows {0}, which a leaf must not")]
    SigningUsage(&'static str),
    /// Section 4.3: no digitalSignature.
    #[error("its key usage lacks digitalSignature")]
    NoDigitalSignature,
    /// Section 4.4: extended key usage without serverAuth or clientAuth.
    #[error("its extended key usage lacks {0}; a workload is both client and server")]
    ExtendedUsage(&'static str),
}

impl Error {
    pub(crate) fn crypto(doing: &'static str, reason: impl ToString) -> Self {
        Self::Crypto { doing, reason: reason.to_string() }
    }
}
