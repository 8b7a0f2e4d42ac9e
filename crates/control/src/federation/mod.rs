//! Trust between meshes (SPIFFE Federation; reference mtls 5.6, 6.4).
//!
//! In one direction, the bundles of other trust domains come from `meshConfig.caCertificates`: given there, or fetched
//! from their endpoints and kept fresh ([`Federation`]). They become facts, and so reach every proxy. In the other, this
//! mesh tells its own at an endpoint of the control plane ([`serve_bundle`]).
//!
//! What was believed stays believed until a newer bundle says otherwise or the configuration changes: never because a
//! fetch failed, and not because the control plane was restarted, for which the last good bundles are kept in a
//! [`BundleStore`]. It is not replaced by an older one either, as `spiffe_sequence` tells. Which URL speaks for which trust domain is configured, never inferred; an endpoint speaks for no other.

mod believed;
mod dial;
mod endpoint;
mod fetch;
mod fetches;
mod keep;
mod source;
mod store;
mod succession;

pub use endpoint::{ENDPOINT_ACCOUNT, REFRESH_HINT, serve_bundle};
pub use fetch::BundleFetcher;
pub use fetches::OTHERS;
pub(crate) use fetches::{Fetches, notice_owed};
pub use keep::{Federation, Pace};
pub use store::{BundleStore, NoStore, Stored};
