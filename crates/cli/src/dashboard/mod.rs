//! The dashboard beside a standalone mesh: where it is, the process that serves it, and who keeps that running.
//!
//! The page itself is `maille-dashboard`'s; `maille dashboard` serves it in the foreground.

mod credential;
mod keeper;
mod place;
mod role;
mod upstream;

pub(crate) use keeper::Keeper;
pub(crate) use place::{DEFAULT_PORT, Place};
pub(crate) use role::{DashboardServerArgs, serve};
pub(crate) use upstream::ApiUpstream;
