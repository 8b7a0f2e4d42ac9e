//! The side of the newcomer.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::UnixStream;
use tracing::warn;

use super::message::{Channel, PROTOCOL, Packet};
use super::{Handed, TakeoverError};

/// The process that serves now, if there is one.
pub(crate) fn find(path: &Path) -> Option<Channel> {
    let connect = || {
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
        socket.set_nonblocking(true)?;
        socket.connect(&SockAddr::unix(path)?)?;
        UnixStream::from_std(StdStream::from(OwnedFd::from(socket)))
    };
    match connect() {
        Ok(stream) => Some(Channel::new(stream)).filter(Channel::is_own_user),
        // The first process of a Pod, or one whose predecessor was killed.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => None,
        Err(error) => {
            warn!(%error, path = %path.display(), "cannot tell whether another proxy runs here");
            None
        }
    }
}

/// Asks for the sockets, when everything else is there.
pub(crate) async fn take(channel: &Channel) -> Result<Vec<Handed>, TakeoverError> {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    channel.send(&Packet::Take { protocol: PROTOCOL, version }, &[]).await.map_err(gone)?;
    let mut all = Vec::new();
    loop {
        match channel.receive().await? {
            (Packet::Sockets { roles, more }, sockets) if roles.len() == sockets.len() => {
                all.extend(roles.into_iter().zip(sockets).map(|(role, socket)| Handed { role, socket }));
                if !more {
                    return Ok(all);
                }
            }
            (Packet::Refused { reason }, _) => return Err(TakeoverError::Refused(reason)),
            _ => return Err(TakeoverError::Protocol),
        }
    }
}

/// Says that the sockets are served, and waits until they are served by nobody else.
pub(crate) async fn confirm(channel: &Channel) -> Result<(), TakeoverError> {
    channel.send(&Packet::Serving, &[]).await.map_err(gone)?;
    match channel.receive().await? {
        (Packet::Released, _) => Ok(()),
        _ => Err(TakeoverError::Protocol),
    }
}

fn gone(error: io::Error) -> TakeoverError {
    match error.kind() {
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::NotConnected => TakeoverError::Gone,
        _ => TakeoverError::Io(error),
    }
}
