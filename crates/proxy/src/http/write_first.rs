//! The caller's end of an HTTP/2 connection, which writes new streams before it reads.
//!
//! `h2` reads first, and answers a PING before it writes the streams that wait. A server that goes away gracefully sends
//! GOAWAY and a PING together and takes no stream that comes after the answer, as that is a round trip later (RFC 9113
//! section 6.8). A stream that was opened just before the two were read would come after it, and be lost. What remains is a
//! socket that takes nothing at that moment: to read no more until it does could leave both ends waiting for each other.

use std::cell::Cell;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::PingPong;
use h2::client::{Builder, Connection, SendRequest};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// For the end of a connection to which nothing can be written to be read. A reset one tells of it as soon as it is asked, and
/// is asked when the runtime has heard of it.
const READABLE: Duration = Duration::from_secs(1);

/// What a connection and those who use it know of each other.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// A stream was opened since the connection was last polled.
    is_opened: Cell<bool>,
    /// Nothing is read for now.
    is_writing: Cell<bool>,
    /// Something could not be written meanwhile.
    is_stuck: Cell<bool>,
    /// Something was read since somebody asked.
    is_heard: Cell<bool>,
    /// The connection is there: before, whoever opens it is told at once what fails.
    is_open: Cell<bool>,
}

impl Progress {
    /// Another stream was opened.
    pub(crate) fn opened(&self) {
        self.is_opened.set(true);
    }

    /// Whether the peer has said anything since this was last asked.
    pub(crate) fn take_heard(&self) -> bool {
        self.is_heard.take()
    }
}

/// A connection; polled, it moves what its streams have to say, until it has ended.
pub(crate) struct WriteFirst<S> {
    connection: Connection<Gate<S>, Bytes>,
    progress: Rc<Progress>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> WriteFirst<S> {
    /// Opens a connection. Whoever opens a stream with its sender says so to its progress.
    pub(crate) async fn open(
        builder: &Builder,
        stream: S,
    ) -> Result<(SendRequest<Bytes>, Rc<Progress>, Self), h2::Error> {
        let progress = Rc::<Progress>::default();
        let (sender, connection) = builder.handshake(Gate::new(stream, progress.clone())).await?;
        progress.is_open.set(true);
        Ok((sender, progress.clone(), Self { connection, progress }))
    }

    /// As [`Connection::ping_pong`].
    pub(crate) fn ping_pong(&mut self) -> Option<PingPong> {
        self.connection.ping_pong()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Future for WriteFirst<S> {
    type Output = Result<(), h2::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if this.progress.is_opened.take() {
            this.progress.is_writing.set(true);
            let written = Pin::new(&mut this.connection).poll(cx);
            this.progress.is_writing.set(false);
            if written.is_ready() {
                return written;
            }
            // What is left of it goes first the next time.
            if this.progress.is_stuck.take() {
                this.progress.opened();
            }
        }
        Pin::new(&mut this.connection).poll(cx)
    }
}

/// A stream that nothing comes out of while something is to be written; it is polled again at once, so that nobody has to be
/// woken. That nothing can be written any more is told only if no end can be read in time: a peer that answers, closes, and
/// is told of room for more resets the connection, and its answer is whole all the same.
struct Gate<S> {
    stream: S,
    progress: Rc<Progress>,
    /// Why nothing can be written any more, and when it is told.
    failure: Option<(io::Error, Pin<Box<Sleep>>)>,
    is_failed: bool,
}

impl<S> Gate<S> {
    fn new(stream: S, progress: Rc<Progress>) -> Self {
        Self { stream, progress, failure: None, is_failed: false }
    }

    /// `all` is what a write comes to that went well.
    fn written<T>(
        &mut self,
        cx: &mut Context<'_>,
        outcome: Poll<io::Result<T>>,
        all: T,
    ) -> Poll<io::Result<T>> {
        match outcome {
            Poll::Ready(Ok(done)) => Poll::Ready(Ok(done)),
            Poll::Ready(Err(error)) if self.progress.is_open.get() => {
                (self.failure, self.is_failed) = (Some((error, Box::pin(sleep(READABLE)))), true);
                // It may have been read for this time.
                cx.waker().wake_by_ref();
                Poll::Ready(Ok(all))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                if self.progress.is_writing.get() {
                    self.progress.is_stuck.set(true);
                }
                Poll::Pending
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gate<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.progress.is_writing.get() {
            return Poll::Pending;
        }
        let before = out.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, out);
        if out.filled().len() > before {
            self.progress.is_heard.set(true);
        }
        match self.failure.take_if(|(_, told)| read.is_pending() && told.as_mut().poll(cx).is_ready()) {
            Some((failure, _)) => Poll::Ready(Err(failure)),
            None => read,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gate<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_failed {
            return Poll::Ready(Ok(bytes.len()));
        }
        let outcome = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.written(cx, outcome, bytes.len())
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all = bytes.iter().map(|piece| piece.len()).sum();
        if self.is_failed {
            return Poll::Ready(Ok(all));
        }
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.written(cx, outcome, all)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_failed {
            return Poll::Ready(Ok(()));
        }
        let outcome = Pin::new(&mut self.stream).poll_flush(cx);
        self.written(cx, outcome, ())
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use http::Request;
    use tokio::io::{AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;

    /// Takes nothing more once it is broken.
    struct Breaking {
        stream: DuplexStream,
        is_broken: Rc<Cell<bool>>,
        /// What arrives together with the reset.
        last: Option<(DuplexStream, Vec<u8>)>,
    }

    impl AsyncRead for Breaking {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            out: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_read(cx, out)
        }
    }

    impl AsyncWrite for Breaking {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            if !self.is_broken.get() {
                return Pin::new(&mut self.stream).poll_write(cx, bytes);
            }
            if let Some((mut far, last)) = self.last.take() {
                assert!(Pin::new(&mut far).poll_write(cx, &last).is_ready());
            }
            Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_shutdown(cx)
        }
    }

    /// A server that answers, says what it has not seen, and is gone: writing another stream to it fails before that is read.
    #[tokio::test]
    async fn what_came_before_the_end_is_read_though_nothing_can_be_written() {
        const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        // `:status: 200` of the static table, END_HEADERS and END_STREAM; then GOAWAY, the last stream being the first.
        const ANSWER: [u8; 10] = [0, 0, 1, 1, 5, 0, 0, 0, 1, 0x88];
        const GOAWAY: [u8; 17] = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0];
        let (near, mut far) = duplex(1 << 16);
        let is_broken = Rc::<Cell<bool>>::default();
        let stream = Breaking { stream: near, is_broken: is_broken.clone(), last: None };
        let (mut sender, progress, mut connection) =
            WriteFirst::open(&Builder::new(), stream).await.expect("a connection");
        let mut poll = || Pin::new(&mut connection).poll(&mut Context::from_waker(Waker::noop()));
        let mut open = || {
            let (answer, _) = sender.send_request(Request::new(()), true).expect("open");
            progress.opened();
            answer
        };
        let first = open();
        assert!(poll().is_pending());
        far.write_all(&[&SETTINGS[..], &ANSWER, &GOAWAY].concat()).await.expect("open");
        drop(far);
        is_broken.set(true);
        let second = open();
        assert!(poll().is_ready());
        // Whoever lost them waits for ever.
        let soon = |answer| tokio::time::timeout(Duration::from_secs(5), answer);
        assert_eq!(soon(first).await.expect("in time").expect("an answer").status(), 200);
        assert!(soon(second).await.expect("in time").expect_err("too late").is_go_away());
    }

    /// A server whose answer arrives together with the reset that its caller's word for it has brought.
    #[tokio::test]
    async fn an_answer_is_read_though_nothing_can_be_written() {
        const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        // `:status: 200` of the static table, END_HEADERS; then three bytes of data, and END_STREAM.
        const ANSWER: [u8; 22] =
            [0, 0, 1, 1, 4, 0, 0, 0, 1, 0x88, 0, 0, 3, 0, 1, 0, 0, 0, 1, b'a', b'l', b'l'];
        let (near, mut far) = duplex(1 << 16);
        far.write_all(&SETTINGS).await.expect("open");
        let is_broken = Rc::<Cell<bool>>::default();
        let last = Some((far, ANSWER.to_vec()));
        let stream = Breaking { stream: near, is_broken: is_broken.clone(), last };
        let (mut sender, _, connection) =
            WriteFirst::open(&Builder::new(), stream).await.expect("a connection");
        let (answer, _) = sender.send_request(Request::new(()), true).expect("open");
        // Its head is written as everything later is: nobody has told of a new stream.
        is_broken.set(true);
        let read = async { answer.await.expect("an answer").into_body().data().await.expect("data") };
        let both = async { tokio::join!(read, connection) };
        let (data, ended) = tokio::time::timeout(Duration::from_secs(5), both).await.expect("in time");
        assert_eq!(data.expect("whole"), "all");
        // How, is told by whichever of the two comes first: the end of what can be read, or that nothing can be written.
        drop(ended);
    }

    /// A peer that takes nothing more and says nothing more either.
    #[tokio::test(start_paused = true)]
    async fn that_nothing_can_be_written_is_told_when_no_end_can_be_read() {
        let (near, _far) = duplex(1 << 16);
        let is_broken = Rc::<Cell<bool>>::default();
        let stream = Breaking { stream: near, is_broken: is_broken.clone(), last: None };
        let (mut sender, progress, connection) =
            WriteFirst::open(&Builder::new(), stream).await.expect("a connection");
        let (answer, _) = sender.send_request(Request::new(()), true).expect("open");
        progress.opened();
        is_broken.set(true);
        let began = tokio::time::Instant::now();
        let (answer, ended) = tokio::join!(answer, connection);
        assert_eq!(began.elapsed(), READABLE);
        assert!(answer.is_err() && ended.is_err_and(|error| error.is_io()));
    }

    /// Whoever opens a connection waits for it.
    #[tokio::test(start_paused = true)]
    async fn a_connection_that_cannot_be_opened_fails_at_once() {
        let (near, _far) = duplex(1 << 16);
        let stream = Breaking { stream: near, is_broken: Rc::new(Cell::new(true)), last: None };
        let began = tokio::time::Instant::now();
        assert!(WriteFirst::open(&Builder::new(), stream).await.is_err());
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
}
