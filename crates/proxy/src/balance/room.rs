//! The connections of one pool whose service has bounds, and requests that wait for one of them.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

use super::terms::{Held, Terms, What};

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Room {
    open: AtomicUsize,
    waiting: AtomicUsize,
    freed: Notify,
}

impl Room {
    /// Another connection, if the service may have one more. A pool without any always gets its first: others would
    /// starve it (Envoy's `tryCreateNewConnection`).
    pub(crate) fn connection(self: &Arc<Self>, terms: &Terms) -> Option<Counted> {
        let held = match terms.take(What::Connection) {
            Some(held) => held,
            None if self.open.load(Relaxed) == 0 => terms.take_first_connection(),
            None => return None,
        };
        self.open.fetch_add(1, Relaxed);
        Some(Counted { _held: held, room: self.clone() })
    }

    /// Waits until a connection, or a stream of one, has been given back.
    pub(crate) async fn freed(&self) {
        self.waiting.fetch_add(1, Relaxed);
        let waiting = Waiting(&self.waiting);
        self.freed.notified().await;
        drop(waiting);
    }

    /// Whether somebody waits, who then goes first.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.waiting.load(Relaxed) > 0
    }

    /// Lets the one who has waited longest look again.
    pub(crate) fn free(&self) {
        if self.is_waited_for() {
            self.freed.notify_one();
        }
    }
}

struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// One connection, for as long as it is open.
#[derive(Debug)]
pub(crate) struct Counted {
    _held: Held,
    room: Arc<Room>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.room.open.fetch_sub(1, Relaxed);
        self.room.free();
    }
}

/// A stream that counts as a connection while it lives, even after HTTP has handed it on.
pub(crate) struct Kept<S> {
    stream: S,
    _counted: Option<Counted>,
}

impl<S> Kept<S> {
    pub(crate) fn new(stream: S, counted: Option<Counted>) -> Self {
        Self { stream, _counted: counted }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Kept<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, out)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Kept<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
