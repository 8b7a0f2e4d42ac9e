//! Ends opaque connections that say nothing for too long, or have grown too old.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::relay::{Pieces, Side};

/// A stream that fails with [`io::ErrorKind::TimedOut`] when its time is over. Looks at the clock when bytes pass, and
/// sets a timer once for each time it fires.
pub(crate) struct Timed<'s, S> {
    stream: &'s mut S,
    idle: Option<Duration>,
    end: Option<Instant>,
    last: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

impl<'s, S> Timed<'s, S> {
    /// `idle` between bytes of either direction, and `age` from now.
    pub(crate) fn new(stream: &'s mut S, idle: Option<Duration>, age: Option<Duration>) -> Self {
        let now = Instant::now();
        let mut timed =
            Self { stream, idle, end: age.and_then(|age| now.checked_add(age)), last: now, timer: None };
        timed.timer = timed.due().map(|due| Box::pin(sleep_until(due)));
        timed
    }

    /// When the connection ends if nothing passes until then.
    fn due(&self) -> Option<Instant> {
        let idle = self.idle.and_then(|idle| self.last.checked_add(idle));
        match (idle, self.end) {
            (Some(idle), Some(end)) => Some(idle.min(end)),
            (one, other) => one.or(other),
        }
    }

    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let due = self.due();
        let (Some(timer), Some(due)) = (&mut self.timer, due) else { return Ok(()) };
        while timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= due {
                return Err(io::ErrorKind::TimedOut.into());
            }
            timer.as_mut().reset(due);
        }
        Ok(())
    }

    fn moved<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match polled {
            Poll::Ready(done) => {
                self.last = Instant::now();
                Poll::Ready(done)
            }
            Poll::Pending => match self.check(cx) {
                Ok(()) => Poll::Pending,
                Err(over) => Poll::Ready(Err(over)),
            },
        }
    }
}

impl<S: Side> Side for Timed<'_, S> {
    fn has_buffers(&self) -> bool {
        self.stream.has_buffers()
    }

    fn poll_take(&mut self, cx: &mut Context<'_>, pieces: &mut Pieces) -> Poll<io::Result<usize>> {
        let polled = self.stream.poll_take(cx, pieces);
        self.moved(cx, polled)
    }

    fn poll_give(&mut self, cx: &mut Context<'_>, pieces: &mut Pieces) -> Poll<io::Result<usize>> {
        let polled = self.stream.poll_give(cx, pieces);
        self.moved(cx, polled)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Timed<'_, S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut *self.stream).poll_read(cx, out);
        self.moved(cx, polled)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Timed<'_, S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut *self.stream).poll_write(cx, bytes);
        self.moved(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut *self.stream).poll_write_vectored(cx, bytes);
        self.moved(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn silence_ends_it_and_bytes_keep_it() {
        let (mut near, mut far) = duplex(64);
        let begun = Instant::now();
        let talk = async move {
            for _ in 0..5 {
                tokio::time::sleep(Duration::from_secs(6)).await;
                far.write_all(b"x").await.expect("open");
            }
            // Open, and silent.
            std::future::pending::<()>().await;
        };
        let mut timed = Timed::new(&mut near, Some(Duration::from_secs(10)), None);
        let read = async {
            let mut byte = [0];
            loop {
                if let Err(error) = timed.read_exact(&mut byte).await {
                    return error.kind();
                }
            }
        };
        tokio::select! {
            () = talk => panic!("it ended"),
            kind = read => assert_eq!(kind, io::ErrorKind::TimedOut),
        }
        assert_eq!(begun.elapsed().as_secs(), 40);
    }

    #[tokio::test(start_paused = true)]
    async fn age_ends_it_whatever_passes() {
        let (mut near, mut far) = duplex(64);
        let begun = Instant::now();
        let talk = async move {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                if far.write_all(b"x").await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        let mut timed = Timed::new(&mut near, None, Some(Duration::from_millis(5500)));
        let read = async {
            let mut byte = [0];
            while timed.read_exact(&mut byte).await.is_ok() {}
        };
        tokio::select! {
            () = talk => panic!("it ended"),
            () = read => {}
        }
        assert_eq!(begun.elapsed().as_millis() / 500, 11);
    }
}
