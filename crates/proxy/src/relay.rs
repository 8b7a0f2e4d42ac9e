//! Moves opaque bytes between two streams, both ways, until both ends are done.
//!
//! An idle direction holds no buffer: bytes are read into a scratch buffer of the worker and written on at once; only
//! what the other side does not take is kept, and nothing more is read before it is gone. So memory per
//! connection is bounded by one read (of a shared connection: by its stream's window), and a slow reader slows its writer
//! down. Half-close is passed on.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::poll_read_buf;

/// The head of an HTTP/2 frame (RFC 9113 section 4.1).
const FRAME_HEAD: usize = 9;
/// One read. Four TLS records' worth, with the head of the frame that it may go in: larger reads do not pay, smaller ones
/// cost calls, and a byte more would cost a record and a call of its own.
pub(crate) const READ: usize = 64 * 1024 - FRAME_HEAD;
/// What is read is copied into a buffer of its own size if it is less: it would else keep a large one from being used.
const SMALL: usize = READ / 2;
/// Reads of one direction before others get their turn.
const TURN: usize = 16;
/// Pieces that are written in one call, at most.
const IN_ONE_CALL: usize = 8;
/// Pieces that wait to be written, at most.
const MANY: usize = 64;

thread_local! {
    static BUFFER: RefCell<BytesMut> = RefCell::default();
}

/// Which way bytes went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// From the caller to the called.
    Up,
    /// From the called to the caller.
    Down,
}

/// One side of a relay.
pub(crate) trait Side: AsyncRead + AsyncWrite + Unpin {
    /// Whether bytes come and go in buffers of their own, so that they need not be copied.
    fn has_buffers(&self) -> bool {
        false
    }

    /// Adds what has come to `pieces`, and says how many bytes that is; none at the end. What was taken before has been
    /// passed on by then.
    fn poll_take(&mut self, _: &mut Context<'_>, _: &mut Pieces) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }

    /// Takes some off the front of `pieces`, and says how many bytes.
    fn poll_give(&mut self, cx: &mut Context<'_>, pieces: &mut Pieces) -> Poll<io::Result<usize>> {
        pieces.poll_write(cx, self)
    }
}

/// Bytes on their way, in the order in which they came.
#[derive(Debug, Default)]
pub(crate) struct Pieces(VecDeque<Bytes>);

impl Pieces {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether no more should be added: pieces have a price of their own, however small they are.
    pub(crate) fn are_many(&self) -> bool {
        self.0.len() >= MANY
    }

    /// Adds some, unless there are none.
    pub(crate) fn push(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.0.push_back(bytes);
        }
    }

    /// The first, while there is one.
    pub(crate) fn first(&mut self) -> Option<&mut Bytes> {
        self.0.front_mut()
    }

    /// `count` bytes are gone from the front.
    pub(crate) fn advance(&mut self, mut count: usize) {
        while let Some(first) = self.0.front_mut() {
            if first.len() > count {
                first.advance(count);
                return;
            }
            count -= first.len();
            self.0.pop_front();
        }
        // An idle direction keeps next to nothing.
        if self.0.capacity() > IN_ONE_CALL {
            self.0 = VecDeque::new();
        }
    }

    /// Writes as many as go in one call.
    pub(crate) fn poll_write<W: AsyncWrite + Unpin + ?Sized>(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut W,
    ) -> Poll<io::Result<usize>> {
        let mut slices = [IoSlice::new(&[]); IN_ONE_CALL];
        let filled =
            slices.iter_mut().zip(&self.0).map(|(slice, piece)| *slice = IoSlice::new(piece)).count();
        let slices = slices.get(..filled).unwrap_or_default();
        let written = ready!(Pin::new(to).poll_write_vectored(cx, slices))?;
        self.advance(written);
        Poll::Ready(Ok(written))
    }
}

#[derive(Default)]
struct Direction {
    kept: Pieces,
    is_ended: bool,
    is_done: bool,
}

/// Runs until both directions have ended, or either side fails; `moved` hears of every read.
pub(crate) async fn relay<A: Side, B: Side>(
    a: &mut A,
    b: &mut B,
    moved: &dyn Fn(Way, u64),
) -> io::Result<()> {
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
    fn poll<R: Side, W: Side>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        count: &dyn Fn(u64),
    ) -> Poll<io::Result<()>> {
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

    /// Reads once, and writes what the other side takes; keeps the rest.
    fn poll_move<R: Side, W: Side>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        count: &dyn Fn(u64),
    ) -> Poll<io::Result<()>> {
        if from.has_buffers() {
            let taken = ready!(from.poll_take(cx, &mut self.kept))?;
            self.is_ended = taken == 0;
            count(taken as u64);
            return Poll::Ready(Ok(()));
        }
        BUFFER.with_borrow_mut(|buffer| {
            // What was split off is given back to it as soon as nobody has it any more.
            buffer.reserve(READ);
            let read = ready!(poll_read_buf(Pin::new(from), cx, &mut (&mut *buffer).limit(READ)))?;
            self.is_ended = read == 0;
            count(read as u64);
            if to.has_buffers() && read >= SMALL {
                self.kept.push(buffer.split().freeze());
                return Poll::Ready(Ok(()));
            }
            let written = if to.has_buffers() { Ok(0) } else { write(cx, to, buffer) };
            if let Ok(written) = written
                && let Some(rest) = buffer.get(written..).filter(|rest| !rest.is_empty())
            {
                self.kept.push(Bytes::copy_from_slice(rest));
            }
            buffer.clear();
            Poll::Ready(written.map(|_| ()))
        })
    }

    fn poll_write_kept<W: Side>(&mut self, cx: &mut Context<'_>, to: &mut W) -> Poll<io::Result<()>> {
        while !self.kept.is_empty() {
            if ready!(to.poll_give(cx, &mut self.kept))? == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Writes as much as is taken now, and says how much that was.
fn write<W: Side>(cx: &mut Context<'_>, to: &mut W, bytes: &[u8]) -> io::Result<usize> {
    let mut written = 0;
    while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
        match Pin::new(&mut *to).poll_write(cx, rest) {
            Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
            Poll::Ready(Ok(taken)) => written += taken,
            Poll::Ready(Err(error)) => return Err(error),
            Poll::Pending => break,
        }
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    impl Side for tokio::io::DuplexStream {}

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
