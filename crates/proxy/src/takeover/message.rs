//! What the two processes say to each other: one packet of JSON each, with open sockets beside it (unix(7),
//! `SOCK_SEQPACKET`, `SCM_RIGHTS`).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::net::UnixStream;

use super::TakeoverError;

/// Grows when two processes could no longer understand each other.
pub(super) const PROTOCOL: u32 = 1;
/// Sockets in one packet; the kernel takes 253 at most (`SCM_MAX_FD`).
pub(super) const SOCKETS_AT_A_TIME: usize = 64;
/// More than a packet with that many sockets has.
const MAX_PACKET: usize = 8 << 10;
/// How long one process waits for the next word of the other.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// What a socket is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Role {
    /// Captured inbound connections.
    Inbound,
    /// Captured outbound connections.
    Outbound,
    /// Probes of the application, merged metrics, drain.
    Status,
    /// Readiness.
    Readiness,
    /// Own metrics.
    Metrics,
    /// Admin.
    Admin,
    /// Something that this version does not know; it is closed.
    #[serde(other)]
    Unknown,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Packet {
    /// The newcomer is able to serve and wants the sockets.
    Take { protocol: u32, version: String },
    /// Here are some, in this order; whether there are more.
    Sockets { roles: Vec<Role>, more: bool },
    /// No.
    Refused { reason: String },
    /// The newcomer accepts on all of them.
    Serving,
    /// The old one does not any more.
    Released,
}

/// One end of the conversation.
#[derive(Debug)]
pub(crate) struct Channel(UnixStream);

impl Channel {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self(stream)
    }

    /// Whether the process at the other end runs as the same user.
    pub(super) fn is_own_user(&self) -> bool {
        self.0.peer_cred().is_ok_and(|peer| peer.uid() == rustix::process::geteuid().as_raw())
    }

    pub(super) async fn send(&self, packet: &Packet, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
        let text = serde_json::to_vec(packet)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_AT_A_TIME))];
        let send = || {
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !sockets.is_empty() && !control.push(SendAncillaryMessage::ScmRights(sockets)) {
                return Err(io::Error::other("too many sockets for one packet"));
            }
            rustix::net::sendmsg(self.0.as_fd(), &[IoSlice::new(&text)], &mut control, SendFlags::NOSIGNAL)?;
            Ok(())
        };
        let sent = tokio::time::timeout(PATIENCE, self.0.async_io(Interest::WRITABLE, send)).await;
        sent.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// The next packet and what came with it; nothing at the end.
    pub(super) async fn receive(&self) -> Result<(Packet, Vec<OwnedFd>), TakeoverError> {
        let receive = tokio::time::timeout(PATIENCE, self.receive_unbounded()).await;
        receive.unwrap_or(Err(TakeoverError::TimedOut(PATIENCE)))
    }

    pub(super) async fn receive_unbounded(&self) -> Result<(Packet, Vec<OwnedFd>), TakeoverError> {
        let mut text = vec![0; MAX_PACKET];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_AT_A_TIME))];
        let (length, sockets) = self
            .0
            .async_io(Interest::READABLE, || {
                let mut control = RecvAncillaryBuffer::new(&mut space);
                let into = &mut [IoSliceMut::new(&mut text)];
                let received =
                    rustix::net::recvmsg(self.0.as_fd(), into, &mut control, RecvFlags::CMSG_CLOEXEC)?;
                let mut sockets = Vec::new();
                for message in control.drain() {
                    if let RecvAncillaryMessage::ScmRights(rights) = message {
                        sockets.extend(rights);
                    }
                }
                Ok((received.bytes, sockets))
            })
            .await?;
        match text.get(..length) {
            None | Some([]) => Err(TakeoverError::Gone),
            Some(text) => Ok((serde_json::from_slice(text).map_err(|_| TakeoverError::Protocol)?, sockets)),
        }
    }

    /// Waits until the other end is gone, or has said something unasked.
    pub(crate) async fn gone(&self) {
        let _ = self.0.readable().await;
    }
}
