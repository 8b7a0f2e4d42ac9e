//! The analyzers: objects in, findings with codes and positions out; pure.
//!
//! [`registry::analyze`] runs [`registry::ANALYZERS`] over [`Resource`]s, those of files laid over those that are live
//! ([`overlay`]). [`authz`] answers what policies decide about a request, with the proxy's own engine, and
//! [`enforced()`] what a workload's proxy ought to hold.

#![forbid(unsafe_code)]

mod analyzers;
pub mod authz;
pub mod code;
mod enforced;
mod mesh;
mod message;
pub mod registry;
mod report;
mod resource;
mod suppress;

pub use code::{Code, Level};
pub use enforced::{Enforced, enforced};
pub use mesh::Settings;
pub use message::{Message, Origin};
pub use resource::{Resource, overlay};
pub use suppress::Suppression;
