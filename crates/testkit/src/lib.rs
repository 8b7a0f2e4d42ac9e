//! Test authority, echo servers, scripted control plane, namespace lab.
//!
//! For tests only: what cannot be set up panics with a message.

#![forbid(unsafe_code)]

pub mod identity;

pub use identity::{Credential, Flaw, PemFiles, TestAuthority};
