//! One stream of a shared connection, as the bytes of a connection of its own.

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::client::ResponseFuture;
use h2::{Reason, RecvStream, SendStream};
use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::relay::{Pieces, READ, Side};

/// What is handed on at once, to be written in one call: more than a call's price is worth, less than a cache.
const AT_ONCE: usize = 4 * READ;

/// Both directions of a stream. Dropped before both have ended, it is reset.
pub(crate) struct ByteStream {
    send: SendStream<Bytes>,
    receive: Receive,
    /// Received and not yet read.
    left: Bytes,
    /// Handed on, and to be said to the peer once it has been passed on.
    taken: usize,
    has_ended: bool,
    has_been_ended: bool,
    /// The own end of the connection that it is a stream of.
    local: Option<SocketAddr>,
    _counted: Counted,
}

enum Receive {
    /// The peer has not answered yet. That need not be waited for to send.
    Asked(ResponseFuture),
    Open(RecvStream),
}

impl ByteStream {
    /// A stream that this proxy opened.
    pub(crate) fn opened(
        send: SendStream<Bytes>,
        answer: ResponseFuture,
        local: Option<SocketAddr>,
        counted: Counted,
    ) -> Self {
        Self::new(send, Receive::Asked(answer), local, counted)
    }

    /// A stream that the peer opened, and that has been answered.
    pub(crate) fn accepted(
        send: SendStream<Bytes>,
        receive: RecvStream,
        local: Option<SocketAddr>,
        counted: Counted,
    ) -> Self {
        Self::new(send, Receive::Open(receive), local, counted)
    }

    fn new(send: SendStream<Bytes>, receive: Receive, local: Option<SocketAddr>, counted: Counted) -> Self {
        let (left, has_ended, has_been_ended) = (Bytes::new(), false, false);
        Self { send, receive, left, taken: 0, has_ended, has_been_ended, local, _counted: counted }
    }

    /// The own end.
    pub(crate) fn local_addr(&self) -> Option<SocketAddr> {
        self.local
    }

    /// The peer may send as much again once somebody has taken it, not before.
    fn release(&mut self, count: usize) -> io::Result<()> {
        match &mut self.receive {
            Receive::Open(stream) => stream.flow_control().release_capacity(count).map_err(failed),
            Receive::Asked(_) => Ok(()),
        }
    }

    /// How many of `wanted` bytes may be sent now; not none of them.
    fn poll_room(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
        let send = &mut self.send;
        send.reserve_capacity(wanted);
        let mut room = send.capacity();
        while room == 0 {
            room = match ready!(send.poll_capacity(cx)) {
                Some(Ok(room)) => room,
                Some(Err(error)) => return Poll::Ready(Err(failed(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            };
        }
        Poll::Ready(Ok(room.min(wanted)))
    }

    /// Waits until something was received, which is still to be read then; false at the end.
    pub(crate) async fn is_spoken_to(&mut self) -> bool {
        if self.left.is_empty() && !self.has_been_ended {
            match poll_fn(|cx| self.poll_more(cx)).await {
                Ok(more) => {
                    self.has_been_ended = more.is_empty();
                    self.left = more;
                }
                Err(_) => return false,
            }
        }
        !self.left.is_empty()
    }

    /// More of what was received, empty at the end.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        loop {
            match &mut self.receive {
                Receive::Asked(answer) => {
                    let answer = ready!(Pin::new(answer).poll(cx)).map_err(failed)?;
                    if answer.status() != StatusCode::OK {
                        let text = format!("the peer's proxy answered a stream with {}", answer.status());
                        return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionRefused, text)));
                    }
                    self.receive = Receive::Open(answer.into_body());
                }
                Receive::Open(stream) => {
                    return Poll::Ready(match ready!(stream.poll_data(cx)) {
                        Some(Ok(bytes)) if bytes.is_empty() => continue,
                        Some(Ok(bytes)) => Ok(bytes),
                        Some(Err(error)) => Err(failed(error)),
                        None => Ok(Bytes::new()),
                    });
                }
            }
        }
    }
}

/// Frames are passed on as they came, and what is sent becomes frames as it is.
impl Side for ByteStream {
    fn has_buffers(&self) -> bool {
        true
    }

    fn poll_take(&mut self, cx: &mut Context<'_>, pieces: &mut Pieces) -> Poll<io::Result<usize>> {
        let passed_on = std::mem::take(&mut self.taken);
        if passed_on > 0 {
            self.release(passed_on)?;
        }
        while !self.has_been_ended && self.taken < AT_ONCE && !pieces.are_many() {
            let more = match std::mem::take(&mut self.left) {
                left if !left.is_empty() => left,
                _ => match self.poll_more(cx) {
                    Poll::Ready(Ok(more)) => more,
                    // What there is goes first.
                    _ if self.taken > 0 => break,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => return Poll::Pending,
                },
            };
            self.has_been_ended = more.is_empty();
            self.taken += more.len();
            pieces.push(more);
        }
        Poll::Ready(Ok(self.taken))
    }

    fn poll_give(&mut self, cx: &mut Context<'_>, pieces: &mut Pieces) -> Poll<io::Result<usize>> {
        let Some(first) = pieces.first() else { return Poll::Ready(Ok(0)) };
        let room = ready!(self.poll_room(cx, first.len()))?;
        let data = first.split_to(room);
        pieces.advance(0);
        self.send.send_data(data, false).map_err(failed)?;
        Poll::Ready(Ok(room))
    }
}

impl AsyncRead for ByteStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while out.remaining() > 0 && !this.has_been_ended {
            if this.left.is_empty() {
                match this.poll_more(cx) {
                    Poll::Ready(Ok(more)) if more.is_empty() => {
                        this.has_been_ended = true;
                        break;
                    }
                    Poll::Ready(Ok(more)) => this.left = more,
                    // What has been read so far goes first.
                    _ if !out.filled().is_empty() => break,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => return Poll::Pending,
                }
            }
            let count = this.left.len().min(out.remaining());
            out.put_slice(this.left.get(..count).unwrap_or_default());
            this.left.advance(count);
            this.release(count)?;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ByteStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let room = ready!(self.poll_room(cx, bytes.len()))?;
        let taken = bytes.get(..room).unwrap_or_default();
        self.send.send_data(Bytes::copy_from_slice(taken), false).map_err(failed)?;
        Poll::Ready(Ok(taken.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The connection writes what all its streams have, in its own turn.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.has_ended {
            self.has_ended = true;
            self.send.send_data(Bytes::new(), true).map_err(failed)?;
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for ByteStream {
    fn drop(&mut self) {
        if !self.has_ended || !self.has_been_ended {
            self.send.send_reset(Reason::CANCEL);
        }
    }
}

fn failed(error: h2::Error) -> io::Error {
    if error.is_io() {
        return error.into_io().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into());
    }
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}

/// Counts one stream of a connection while it lives. Atomic since hyper wants streams that could change threads.
pub(crate) struct Counted(Arc<AtomicUsize>);

impl Counted {
    pub(crate) fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use http::{Method, Request, Response};
    use tokio::io::duplex;

    use super::*;

    /// A piece costs more than its byte: a peer that sends them one by one must not have thousands of them held at once.
    #[tokio::test]
    async fn small_frames_are_taken_few_at_a_time() {
        const FRAMES: usize = 500;
        let (near, far) = duplex(1 << 16);
        let client = async {
            let (mut sender, connection) = h2::client::handshake(near).await.expect("opened");
            let mut request = Request::new(());
            *request.method_mut() = Method::CONNECT;
            *request.uri_mut() = http::Uri::from_static("stream");
            let (_answer, mut send) = sender.send_request(request, false).expect("open");
            for _ in 0..FRAMES {
                send.send_data(Bytes::from_static(b"x"), false).expect("open");
            }
            let _ = connection.await;
        };
        let server = async {
            let mut builder = h2::server::Builder::new();
            let opened = builder.data_frame_budget(1 << 20).handshake(far).await;
            let mut connection = opened.expect("opened");
            let (request, mut respond) = connection.accept().await.expect("a stream").expect("open");
            let send = respond.send_response(Response::new(()), false).expect("open");
            let counted = Counted::new(&Arc::default());
            let mut stream = ByteStream::accepted(send, request.into_body(), None, counted);
            let (mut taken, mut pieces) = (0, Pieces::default());
            while taken < FRAMES {
                let take = poll_fn(|cx| {
                    // It reads on meanwhile.
                    assert!(connection.poll_accept(cx).is_pending(), "one stream and no more");
                    stream.poll_take(cx, &mut pieces)
                });
                let count = take.await.expect("open");
                assert!((1..=64).contains(&count), "{count} at once");
                pieces.advance(count);
                assert!(pieces.is_empty(), "one byte a frame");
                taken += count;
            }
        };
        let both = async {
            tokio::select! {
                () = client => panic!("the client has ended"),
                () = server => {}
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(5), both).await.expect("in time");
    }
}
