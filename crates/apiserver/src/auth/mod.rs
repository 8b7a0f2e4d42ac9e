//! Who asks, and what they may.

pub(crate) mod authn;
pub(crate) mod authz;
pub(crate) mod certificates;
pub(crate) mod reviews;
pub(crate) mod tokens;
