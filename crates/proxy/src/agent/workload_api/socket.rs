//! The socket, and who may connect.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use futures::stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::transport::server::Connected;
use tracing::warn;

use super::authority::Authority;

/// Connections at once: one per process of the Pod is usual. More wait until others close.
const MAX_CONNECTIONS: usize = 64;

/// Listens at `path`, which takes the place of what is there in one step: callers find the old socket or the new, never
/// none. Containers run as all kinds of users, so that everyone who sees the socket may connect.
pub(super) fn bind(path: &Path) -> io::Result<UnixListener> {
    let directory = path.parent().ok_or_else(|| io::Error::other("it is in no directory"))?;
    let temporary = directory.join(format!(".socket-{:08x}", rand::random::<u32>()));
    let made = UnixListener::bind(&temporary).and_then(|listener| {
        std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o666))?;
        std::fs::rename(&temporary, path)?;
        Ok(listener)
    });
    if made.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    made
}

/// What the kernel says of a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Caller {
    /// Its user.
    pub(super) user: u32,
}

/// A caller's connection.
pub(super) struct Connection {
    stream: UnixStream,
    authority: Authority,
    caller: Caller,
    _place: OwnedSemaphorePermit,
}

/// The connections of callers that may ask. Never ends.
pub(super) fn incoming(listener: UnixListener) -> impl Stream<Item = io::Result<Connection>> {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    stream::unfold((listener, places), |(listener, places)| async move {
        loop {
            // Never closed.
            let place = Arc::clone(&places).acquire_owned().await.ok()?;
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    warn!(%error, "cannot accept on the socket of the Workload API");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            match attest(&stream) {
                Ok(caller) => {
                    return Some((Ok(Connection::new(stream, caller, place)), (listener, places)));
                }
                Err(reason) => warn!(%reason, "caller of the Workload API refused"),
            }
        }
    })
}

/// Who connected. A process that can be seen from here must be in this Pod's network; one of another container cannot be
/// seen (process 0), and is of this Pod because it has the volume.
fn attest(stream: &UnixStream) -> Result<Caller, String> {
    let peer = stream.peer_cred().map_err(|e| format!("the kernel does not say who it is: {e}"))?;
    if let Some(process) = peer.pid().filter(|process| *process > 0) {
        let network = |of: &str| -> Option<PathBuf> { std::fs::read_link(format!("/proc/{of}/ns/net")).ok() };
        if let (Some(own), Some(theirs)) = (network("self"), network(&process.to_string()))
            && own != theirs
        {
            return Err(format!("process {process} of user {} is in the network of another Pod", peer.uid()));
        }
    }
    Ok(Caller { user: peer.uid() })
}

impl Connection {
    fn new(stream: UnixStream, caller: Caller, place: OwnedSemaphorePermit) -> Self {
        Self { stream, authority: Authority::new(), caller, _place: place }
    }
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            let ready = this.authority.take(buf.remaining());
            if !ready.is_empty() || buf.remaining() == 0 {
                buf.put_slice(&ready);
                return Poll::Ready(Ok(()));
            }
            let mut bytes = [0; 4096];
            let mut read = ReadBuf::new(&mut bytes);
            std::task::ready!(Pin::new(&mut this.stream).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.authority.feed(read.filled());
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
