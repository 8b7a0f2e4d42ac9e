//! A new proxy process of the same Pod takes the place of the one that runs, without a moment in which nobody listens.
//!
//! The running process waits at a Unix socket in its own memory-backed state directory. A newcomer first becomes able to
//! serve (certificate and facts of its predecessor, from the same directory), and only then asks for the listening sockets,
//! data path and status servers alike. Both have them for a moment: whatever waits in a socket's queue is accepted by one
//! of the two. When the newcomer says that it serves, the old one lets go of them and lives on until its connections have
//! ended (Envoy's hot restart works alike). Should the newcomer die on the way, nothing has changed for anybody.
//!
//! Who asks must run as the same user; the kernel says who it is (`SO_PEERCRED`, unix(7)), and the directory lets nobody
//! else in anyway.

mod door;
mod message;
mod successor;

use std::os::fd::OwnedFd;

pub(crate) use door::{Door, offer};
pub(crate) use message::{Channel, Role};
pub(crate) use successor::{confirm, find, take};

/// Name of the Unix socket in the state directory.
pub(crate) const SOCKET: &str = "takeover";

/// A socket on its way from one process to the other.
#[derive(Debug)]
pub(crate) struct Handed {
    pub(crate) role: Role,
    pub(crate) socket: OwnedFd,
}

/// Why the place was not taken over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TakeoverError {
    #[error("the other proxy of this Pod: {0}")]
    Io(#[from] std::io::Error),
    #[error("the other proxy of this Pod is gone")]
    Gone,
    #[error("the other proxy of this Pod refuses: {0}")]
    Refused(String),
    #[error("the other proxy of this Pod did not keep to the protocol")]
    Protocol,
    #[error("the other proxy of this Pod said nothing within {0:?}")]
    TimedOut(std::time::Duration),
}

#[cfg(test)]
mod tests;
