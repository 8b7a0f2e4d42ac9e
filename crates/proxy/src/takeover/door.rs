//! The side of the process that runs.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::UnixListener;
use tracing::warn;

use super::message::{Channel, PROTOCOL, Packet, SOCKETS_AT_A_TIME};
use super::{Handed, TakeoverError};

/// Where a successor knocks.
#[derive(Debug)]
pub(crate) struct Door(UnixListener);

impl Door {
    /// Listens at `path`, in place of whoever did before.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
        socket.set_nonblocking(true)?;
        socket.bind(&SockAddr::unix(path)?)?;
        socket.listen(1)?;
        let listener = StdListener::from(OwnedFd::from(socket));
        Ok(Self(UnixListener::from_std(listener)?))
    }

    /// The next process that is able to serve in this one's place.
    pub(crate) async fn successor(&self) -> Channel {
        loop {
            let channel = match self.0.accept().await {
                Ok((stream, _)) => Channel::new(stream),
                Err(error) => {
                    warn!(%error, "cannot hear a successor");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    continue;
                }
            };
            if !channel.is_own_user() {
                warn!("a process of another user asked for the listening sockets");
                continue;
            }
            return channel;
        }
    }
}

/// Waits until the successor is ready and gives it the sockets that `collect` has then; comes back when it serves.
pub(crate) async fn offer(
    channel: Channel,
    collect: impl FnOnce() -> io::Result<Vec<Handed>>,
) -> Result<Channel, TakeoverError> {
    // It finds its certificate and its facts first, and that is not the matter of a moment.
    match channel.receive_unbounded().await?.0 {
        Packet::Take { protocol: PROTOCOL, .. } => {}
        Packet::Take { protocol, version } => {
            let reason =
                format!("protocol {protocol} of version {version} is not {PROTOCOL}, which is spoken here");
            channel.send(&Packet::Refused { reason: reason.clone() }, &[]).await?;
            return Err(TakeoverError::Refused(reason));
        }
        _ => return Err(TakeoverError::Protocol),
    }
    let sockets = collect()?;
    if sockets.is_empty() {
        let reason = "it is about to end and listens no more".to_owned();
        channel.send(&Packet::Refused { reason: reason.clone() }, &[]).await?;
        return Err(TakeoverError::Refused(reason));
    }
    let mut packets = sockets.chunks(SOCKETS_AT_A_TIME).peekable();
    while let Some(some) = packets.next() {
        let roles = some.iter().map(|handed| handed.role).collect();
        let open: Vec<_> = some.iter().map(|handed| handed.socket.as_fd()).collect();
        channel.send(&Packet::Sockets { roles, more: packets.peek().is_some() }, &open).await?;
    }
    drop(sockets);
    match channel.receive().await?.0 {
        Packet::Serving => Ok(channel),
        _ => Err(TakeoverError::Protocol),
    }
}

impl Channel {
    /// Tells the successor that it has the sockets to itself.
    pub(crate) async fn released(&self) {
        // It serves, whether it hears of this or not.
        let _ = self.send(&Packet::Released, &[]).await;
    }
}
