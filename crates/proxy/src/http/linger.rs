//! The end of a connection that this proxy closes first.
//!
//! A socket that is closed while its peer still sends is reset, and a reset takes with it what the peer has not read yet
//! (RFC 9112 section 9.6). Over HTTP/2 the peer always still sends: it makes room for the answer that it is reading. So what
//! comes after the last word is read, and thrown away, until the peer closes as well, or says nothing for as long as Envoy
//! waits (`delayed_close_timeout`).

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// Envoy's default.
const SILENCE: Duration = Duration::from_secs(1);
/// Whatever a peer says. The rest of an answer is in the kernel by now, some megabytes at most.
const LIMIT: Duration = Duration::from_secs(10);
/// And so much is thrown away: what makes room is short.
const MOST: usize = 1 << 20;

/// A stream whose shutdown is over once its peer has closed, too, or does not in time.
pub(crate) struct Lingering<S> {
    stream: S,
    /// Of a connection that other protocols may be spoken on.
    is_switched: Option<Arc<AtomicBool>>,
    /// Since the last word was sent.
    waits: Option<Waits>,
}

struct Waits {
    until: Pin<Box<Sleep>>,
    at_most: Instant,
    thrown_away: usize,
}

impl<S> Lingering<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, is_switched: None, waits: None }
    }

    /// The same, unless the connection is no longer HTTP's by then: of other protocols either end may have its last word long
    /// before the other has. (Atomic since upgrades want to be able to go to other threads.)
    pub(crate) fn unless(stream: S, is_switched: Arc<AtomicBool>) -> Self {
        Self { stream, is_switched: Some(is_switched), waits: None }
    }
}

impl Waits {
    fn new() -> Self {
        let now = Instant::now();
        Self { until: Box::pin(sleep_until(now + SILENCE)), at_most: now + LIMIT, thrown_away: 0 }
    }

    /// Reads until the peer has closed, or has said nothing for too long. Of a peer that says too much, nothing more is read:
    /// it has to wait, and then it is too late.
    fn poll<S: AsyncRead + Unpin>(&mut self, stream: &mut S, cx: &mut Context<'_>) -> Poll<()> {
        let mut room = [MaybeUninit::uninit(); 4096];
        let before = self.thrown_away;
        while self.thrown_away < MOST {
            let mut out = ReadBuf::uninit(&mut room);
            match Pin::new(&mut *stream).poll_read(cx, &mut out) {
                Poll::Ready(Ok(())) if !out.filled().is_empty() => self.thrown_away += out.filled().len(),
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => break,
            }
        }
        if self.thrown_away > before {
            self.until.as_mut().reset(self.at_most.min(Instant::now() + SILENCE));
        }
        self.until.as_mut().poll(cx)
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
        if this.is_switched.as_ref().is_some_and(|is_switched| is_switched.load(Ordering::Relaxed)) {
            return Pin::new(&mut this.stream).poll_shutdown(cx);
        }
        let waits = match &mut this.waits {
            Some(waits) => waits,
            none => {
                ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
                none.insert(Waits::new())
            }
        };
        waits.poll(&mut this.stream, cx).map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::sleep;

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
        sleep(Duration::from_millis(100)).await;
        far.write_all(&[b'y'; 100_000]).await.expect("taken");
        read.clear();
        far.read_to_end(&mut read).await.expect("the other half, and its end");
        assert_eq!(read.len(), SIZE / 2);
        drop(far);
        writer.await.expect("no panic").expect("shut down");
    }

    /// How long the end takes with a peer that says something so often, and closes after so long, or never.
    async fn takes(every: Duration, closes: Duration) -> Duration {
        let (near, mut far) = duplex(1 << 10);
        let began = Instant::now();
        let mut near = Lingering::new(near);
        let peer = async {
            while began.elapsed() < closes {
                sleep(every).await;
                if far.write_all(b"more").await.is_err() {
                    break;
                }
            }
            drop(far);
        };
        let ended = async {
            near.shutdown().await.expect("shut down");
            drop(near);
            began.elapsed()
        };
        tokio::join!(ended, peer).0
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_is_waited_for_while_it_says_anything_and_not_for_ever() {
        let ms = Duration::from_millis;
        assert_eq!(takes(ms(300), ms(3000)).await, ms(3000));
        assert_eq!(takes(ms(1500), ms(3000)).await, SILENCE);
        assert_eq!(takes(ms(300), Duration::MAX).await, LIMIT);
    }

    /// And then too late: closing at once would reset who is still reading.
    #[tokio::test(start_paused = true)]
    async fn a_peer_that_says_too_much_has_to_wait() {
        const HELD: usize = 1 << 10;
        let (near, mut far) = duplex(HELD);
        let began = Instant::now();
        let flood = tokio::spawn(async move {
            let mut taken = 0;
            while far.write_all(&[b'x'; 256]).await.is_ok() {
                taken += 256;
            }
            taken
        });
        let mut near = Lingering::new(near);
        near.shutdown().await.expect("shut down");
        assert_eq!(began.elapsed(), SILENCE);
        drop(near);
        let taken = flood.await.expect("no panic");
        assert!((MOST..=MOST + 4096 + HELD).contains(&taken), "{taken} bytes were taken");
    }
}
