//! Pod in, Pod with sidecar out; pure.
//!
//! Three questions, asked in this order at a Pod's creation: does it claim what is the sidecar's own
//! ([`forbid_reserved`]), does it get a sidecar ([`decide`]), and what does it look like then ([`inject`]).
//! What becomes of the result, and where the labels of the namespace come from, is the caller's business.

#![forbid(unsafe_code)]

mod annotations;
mod decision;
mod error;
mod pod;
mod probes;
mod reserved;
mod sidecar;

pub use annotations::without_effect;
pub use decision::{Decision, SkipReason, decide};
pub use error::InjectError;
pub use pod::{InjectSettings, inject};
pub use reserved::forbid_reserved;
pub use sidecar::{INIT_CONTAINER, SIDECAR_CONTAINER};
