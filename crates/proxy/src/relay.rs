//! Moves opaque bytes between two streams, both ways, until both ends are done.
//!
//! An idle direction holds no buffer: bytes are read into a scratch buffer of the worker and written on at once; only
//! what the other side does not take is kept, and nothing more is read before it is gone. So memory per
//! connection is bounded by one read, and a slow reader slows its writer down. Half-close is passed on.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// One read. Four TLS records' worth: larger reads do not pay, smaller ones cost calls.
const SCRATCH: usize = 64 * 1024;
/// Reads of one direction before others get their turn.
const TURN: usize = 16;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Which way bytes went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// From the caller to the called.
    Up,
    /// From the called to the caller.
    Down,
}

#[derive(Default)]
struct Direction {
    kept: Vec<u8>,
    written: usize,
    is_ended: bool,
    is_done: bool,
}

/// Runs until both directions have ended, or either side fails; `moved` hears of every read.
pub(crate) async fn relay<A, B>(a: &mut A, b: &mut B, moved: &dyn Fn(Way, u64)) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (mut up, mut down) = (Direction::default(), Direction::default());
    poll_fn(|cx| {
        let first = up.poll(cx, a, b, &|bytes| moved(Way::Up, bytes))?;
        let second = down.poll(cx, b, a, &|bytes| moved(Way::Down, bytes))?;
        match (first, second) {
            (Poll::Ready(()), Poll::Ready(())) => Poll::Ready(Ok(())),
            _ => Poll::Pending,
        }
    })
    .await
}

impl Direction {
    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        count: &dyn Fn(u64),
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        if self.is_done {
            return Poll::Ready(Ok(()));
        }
        for _ in 0..TURN {
            ready!(self.poll_write_kept(cx, to))?;
            if self.is_ended {
                ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                self.is_done = true;
                return Poll::Ready(Ok(()));
            }
            match self.poll_move(cx, from, to, count) {
                Poll::Ready(result) => result?,
                Poll::Pending => {
                    ready!(Pin::new(&mut *to).poll_flush(cx))?;
                    return Poll::Pending;
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Reads once and writes what the other side takes; keeps the rest.
    fn poll_move<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        count: &dyn Fn(u64),
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        BUFFER.with_borrow_mut(|scratch| {
            scratch.resize(SCRATCH, 0);
            let mut buffer = ReadBuf::new(scratch);
            ready!(Pin::new(from).poll_read(cx, &mut buffer))?;
            let mut fresh = buffer.filled();
            if fresh.is_empty() {
                self.is_ended = true;
                return Poll::Ready(Ok(()));
            }
            count(fresh.len() as u64);
            while !fresh.is_empty() {
                match Pin::new(&mut *to).poll_write(cx, fresh) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(Ok(taken)) => fresh = fresh.get(taken..).unwrap_or_default(),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => {
                        self.kept.extend_from_slice(fresh);
                        break;
                    }
                }
            }
            Poll::Ready(Ok(()))
        })
    }

    fn poll_write_kept<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut W,
    ) -> Poll<io::Result<()>> {
        while let Some(rest) = self.kept.get(self.written..).filter(|rest| !rest.is_empty()) {
            let taken = ready!(Pin::new(&mut *to).poll_write(cx, rest))?;
            if taken == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += taken;
        }
        if !self.kept.is_empty() {
            self.kept = Vec::new();
            self.written = 0;
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn bytes_arrive_both_ways_and_half_close_is_passed_on() {
        let (mut client, mut near) = duplex(1000);
        let (mut far, mut server) = duplex(700);
        let (up, down) = (Cell::new(0), Cell::new(0));
        let moved = |way, bytes| {
            let count = if way == Way::Up { &up } else { &down };
            count.set(count.get() + bytes);
        };
        let sent: Vec<u8> = (0..1_000_000_u32).map(|i| i as u8).collect();
        let work = async {
            let (mut client_read, mut client_write) = tokio::io::split(&mut client);
            let upload = async {
                client_write.write_all(&sent).await.expect("open");
                client_write.shutdown().await.expect("open");
            };
            let serve = async {
                let mut got = Vec::new();
                server.read_to_end(&mut got).await.expect("open");
                // Only now, after the client's half is closed, the answer.
                server.write_all(&got).await.expect("open");
                server.shutdown().await.expect("open");
            };
            let mut answer = Vec::new();
            let download = async { client_read.read_to_end(&mut answer).await.expect("open") };
            tokio::join!(upload, serve, download);
            answer
        };
        let (answer, ended) = tokio::join!(work, relay(&mut near, &mut far, &moved));
        ended.expect("both ended");
        assert!(answer == sent, "the echo differs");
        assert_eq!((up.get(), down.get()), (1_000_000, 1_000_000));
    }

    #[tokio::test]
    async fn a_writer_waits_for_a_slow_reader() {
        let (mut client, mut near) = duplex(64);
        let (mut far, _server) = duplex(64);
        let taken = Cell::new(0);
        let moved = |_, bytes| taken.set(taken.get() + bytes);
        let flood = async { while client.write_all(&[0; 4096]).await.is_ok() {} };
        tokio::select! {
            () = flood => panic!("the flood ended"),
            _ = relay(&mut near, &mut far, &moved) => panic!("the relay ended"),
            () = async { for _ in 0..1000 { tokio::task::yield_now().await } } => {}
        }
        assert!(taken.get() < 1000, "{} bytes were taken from a writer nobody reads", taken.get());
    }
}
