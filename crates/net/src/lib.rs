//! The kernel beyond plain sockets: namespaces, links, redirect rules, original destination, sandboxes.
//!
//! Everything that needs root or a netlink conversation is here, and nothing here knows
//! Kubernetes. Links and namespaces are made by `ip`, rules by `nft` in one atomic transaction each, so
//! that an operator can read, paste and verify what was done.
//!
//! - [`netns`]: make, enter, list and delete network namespaces.
//! - [`link`]: the bridge and the pairs that join Pods to it.
//! - [`egress`]: what Pods send to the outside of the mesh.
//! - [`guard`]: a Pod can use its own address only; the node's own ports.
//! - [`service`]: virtual addresses translated inside each namespace.
//! - [`intercept`]: redirection into the sidecar (reference mtls 7.2).
//! - [`original_dst`]: what a redirected connection was meant for.
//! - [`sandbox`]: a container's process: namespaces, mounts, privileges, exec.
//! - [`process`]: processes named so that a reused number is not mistaken for them.
//! - [`mounts`]: a mount namespace of one's own.
//! - [`memory`]: memory that the start has used.

#![deny(unsafe_code)]

mod command;
pub mod egress;
mod error;
pub mod guard;
pub mod intercept;
pub mod link;
pub mod memory;
pub mod mounts;
pub mod netns;
pub mod nft;
pub mod original_dst;
pub mod process;
pub mod sandbox;
pub mod service;

pub use error::NetError;
pub use netns::NetNs;
