//! Read, verify, sign: CSRs, X.509-SVIDs, bundles, roots, rotation arithmetic; bytes in, bytes out.
//!
//! Nothing here opens a file or a socket, and nothing reads the clock: callers say what time it
//! is. What comes in from outside (CSRs, certificates, keys) is parsed once and kept as a type
//! that proves it was checked. How certificates must look is fixed by the SPIFFE X509-SVID
//! standard and by Istio's CA (reference mtls sections 5 and 6).

#![forbid(unsafe_code)]

mod authority;
mod bundle;
mod crl;
mod csr;
mod description;
mod document;
mod error;
mod fingerprint;
mod jwk;
mod jwt;
mod key;
mod leaf;
mod pem;
mod renewal;
mod svid;
mod time;

pub use authority::{Authority, BACKDATE, Issued, ROOT_TTL};
pub use bundle::TrustBundles;
pub use crl::RevocationList;
pub use csr::{CertificateRequest, create_csr};
pub use description::{Description, describe};
pub use document::{BundleDocument, Reading};
pub use error::{Error, LeafRule, Result};
pub use fingerprint::{fingerprint, signer_of};
pub use jwt::{JWT_KEY_NOTICE, JWT_KEY_PERIOD, JWT_TTL, JwtKey, JwtKeys, Turned};
pub use key::{KeyPair, PublicKey, generate_key};
pub use leaf::{ClientSubject, LeafFacts, client_subject, leaf_facts, peer_identity};
pub use pem::{certificate_pem, certificates_from_pem, revocation_list_pem};
pub use renewal::{
    DEFAULT_WORKLOAD_TTL, MAX_WORKLOAD_TTL, ROOT_GRACE_PERCENT, TtlError, default_ttl, renew_at,
    requested_ttl, root_is_due,
};
pub use svid::Svid;
pub use time::Moment;

/// A certificate in DER, as TLS sends it.
pub use rustls_pki_types::CertificateDer;
