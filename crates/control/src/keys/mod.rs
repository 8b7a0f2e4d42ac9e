//! Key sets of token issuers, fetched and kept fresh (reference authorization 19).
//!
//! Whoever may write a RequestAuthentication decides what the control plane asks for, and from inside the cluster. So
//! little is asked, and little is shown: `GET` without credentials, of `http` and `https` only, never of link-local,
//! loopback or metadata addresses ([`forbidden`]), for a bounded time and length, with redirects to the same scheme
//! only. Of the answers nothing but public keys leaves this module, and no message repeats an answer. In-cluster
//! identity providers are meant to be reached, so private addresses are not refused.

mod address;
mod dial;
mod fetch;
mod keep;
mod url;

pub use address::forbidden;
pub use dial::{Connection, Dial, Dialled, SystemDial};
pub use fetch::{Fetcher, Roots};
pub use keep::{KeyStore, Pace};

pub use crate::world::KeySource;
