//! The end of a connection that this proxy closes first.
//!
//! A socket that is closed while its peer still sends is reset, and a reset takes with it what the peer has not read yet
//! (RFC 9112 section 9.6). Over HTTP/2 the peer always still sends: it makes room for the answer that it is reading. So what
//! comes after the last word is read, and thrown away, until the peer closes as well, or for as long as Envoy waits
//! (`delayed_close_timeout`).

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// Envoy's default.
const LIMIT: Duration = Duration::from_secs(1);
/// So much is thrown away before others of the worker have their turn.
const TURN: usize = 64 << 10;

/// A stream whose shutdown is over once its peer has closed, too, or does not in time.
pub(crate) struct Lingering<S> {
    stream: S,
    /// Since the last word was sent.
    waits: Option<Pin<Box<Sleep>>>,
}

impl<S> Lingering<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, waits: None }
    }
}

impl<S: AsyncRead + Unpin> Lingering<S> {
    /// Reads until the peer has closed.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut room = [MaybeUninit::uninit(); 4096];
        let mut thrown_away = 0;
        while thrown_away < TURN {
            let mut out = ReadBuf::uninit(&mut room);
            match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut out)) {
                Ok(()) if !out.filled().is_empty() => thrown_away += out.filled().len(),
                Ok(()) | Err(_) => return Poll::Ready(()),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Lingering<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, out)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Lingering<S> {
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
        let this = &mut *self;
        if this.waits.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
            this.waits = Some(Box::pin(sleep(LIMIT)));
        }
        let is_late = this.waits.as_mut().is_some_and(|waits| waits.as_mut().poll(cx).is_ready());
        if is_late || this.poll_end(cx).is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::{Instant, timeout};

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        (near.expect("connected"), far.expect("accepted").0)
    }

    /// The peer sends before and after the end, and then reads: without waiting for it, it would be reset.
    #[tokio::test]
    async fn a_peer_that_still_sends_reads_all() {
        const SIZE: usize = 8 << 20;
        let (near, mut far) = pair().await;
        let writer = tokio::spawn(async move {
            let mut near = Lingering::new(near);
            near.write_all(&vec![b'x'; SIZE]).await.expect("taken");
            near.shutdown().await
        });
        let mut read = vec![0; SIZE / 2];
        far.write_all(&[b'y'; 100_000]).await.expect("taken");
        far.read_exact(&mut read).await.expect("half of it");
        far.write_all(&[b'y'; 100_000]).await.expect("taken");
        tokio::time::sleep(Duration::from_millis(100)).await;
        far.write_all(&[b'y'; 100_000]).await.expect("taken");
        read.clear();
        far.read_to_end(&mut read).await.expect("the other half, and its end");
        assert_eq!(read.len(), SIZE / 2);
        drop(far);
        writer.await.expect("no panic").expect("shut down");
    }

    #[tokio::test]
    async fn a_peer_that_does_not_close_is_not_waited_for_long() {
        let (near, far) = pair().await;
        let began = Instant::now();
        let mut near = Lingering::new(near);
        let ended = timeout(Duration::from_secs(60), near.shutdown()).await;
        assert!(ended.is_ok() && began.elapsed() >= LIMIT, "after {:?}", began.elapsed());
        drop(far);
    }
}
