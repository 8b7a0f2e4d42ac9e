//! The control plane: world of objects → facts → subscribers; certificate service; flow store.
//!
//! A change runs one way: an object event reaches the [`world`] (an immutable snapshot with indices), which says what
//! changed; [`facts`] that depend on it are derived anew; only the subscribers concerned are woken, and
//! are sent what differs. Where objects come from is not known here: whoever feeds events in may be a cluster or a
//! test.

#![forbid(unsafe_code)]

mod attest;
mod audit;
mod audit_pace;
pub mod authority;
mod ca;
pub mod conditions;
mod connection;
mod discovery;
mod exposition;
pub mod facts;
pub mod federation;
pub mod flows;
mod hub;
mod identity;
mod intent;
mod judge;
pub mod keys;
mod metrics;
mod monitoring;
mod places;
mod process;
mod proxies;
mod rate;
pub mod revocation;
mod revocation_status;
mod scrape_targets;
mod server;
mod view;
pub mod world;

pub use attest::{
    AttestError, Peer, Proof, ReviewError, Reviewed, Shown, TOKEN_AUDIENCE, TokenReviewer, attest,
};
pub use audit::{AuditEntry, AuditLog, AuditOptions, AuditState};
pub use ca::{AccountError, IssueRules, TrustedNodeAccounts};
pub use connection::{PeerCertificate, PeerInfo};
pub use hub::{Hub, Snapshot, Subscription};
pub use metrics::Metrics;
pub use monitoring::{Readiness, serve_monitoring};
pub use proxies::{Proxies, ProxyHandle, ProxyStatus, TypeSummary};
pub use rate::RateLimit;
pub use revocation_status::{ProxyWithout, RevocationStatus, RevokedIdentity};
pub use server::{ControlPlane, ServeError};
