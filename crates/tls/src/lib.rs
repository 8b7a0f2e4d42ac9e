//! rustls configurations and verifiers made of identities and bundles, rotated while in use.
//!
//! A proxy holds one [`TlsContext`]. Its [`Current`] value is immutable: the own SVID, the trusted
//! roots, and the TLS configurations made of them; renewal and a changed bundle replace it as a
//! whole, so that a handshake sees one state from beginning to end. Connections that are open keep
//! theirs.
//!
//! Peers are authenticated by SPIFFE identity, never by the name that was dialled (reference mtls
//! section 3). [`sniff`] reads a ClientHello before TLS begins, since the choice of what to do with
//! a connection depends on it (reference mtls 1.3). [`control`] holds the ordinary TLS of the
//! control plane and the API, [`Origin`] the TLS that a DestinationRule orders towards servers outside.
//!
//! Sessions are never resumed: a resumed session would carry an identity past the renewal,
//! expiry or distrust of the certificate that proved it. A client whose certificate is renewed proves it inside an open
//! connection ([`Binding`]).

#![forbid(unsafe_code)]

pub mod alpn;
mod context;
pub mod control;
mod error;
mod hello;
mod origin;
mod parameters;
mod peer;
mod provider;
mod refusal;
mod renewal;
mod revoked;
mod skew;
mod trust;
mod verifier;

pub use alpn::{ClientAlpn, ServerAlpn};
pub use context::{Current, TlsContext};
pub use error::{HandshakeError, SetupError};
pub use hello::{MAX_HELLO_PREFIX, Sniff, sniff};
pub use origin::{ClientCertificate, Origin, OriginRequest, Proof, ServerRoots};
pub use parameters::{KeyExchange, Negotiated, Parameters};
pub use peer::{leaf_fingerprint, outbound_sni, peer_of_client, peer_of_server};
pub use provider::provider;
pub use refusal::{Presenter, Reason, Refusal};
pub use renewal::{Binding, MAX_RENEWAL, RenewalError};
pub use revoked::{MAX_REVOKED, Revoked};
pub use skew::Skew;
pub use trust::Trust;
