//! Requests as streams of an HTTP/2 connection of this proxy's.
//!
//! On `h2` itself: hyper's client hands each request to tasks of its own, through three channels, and each of them moves it.
//! Beside that, the HTTP/2 road costs 14 percent less CPU, and that of shared HTTP/1.1 requests 8 (medians of nine).

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Reason, SendStream};
use http::header::CONTENT_LENGTH;
use http::{HeaderValue, Method, Request, Response};
use http_body::Body as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::task::AbortOnDropHandle;

use super::shared::Streams;
use crate::http::body::Body;
use crate::http::received::{BodyError, Received};
use crate::http::write_first::{Progress, WriteFirst};
use crate::tunnel::{Window, is_there};

/// Sends requests over one connection.
#[derive(Clone)]
pub(super) struct Http2 {
    sender: SendRequest<Bytes>,
    progress: Rc<Progress>,
    is_over: Rc<Cell<bool>>,
}

/// A request without an answer.
pub(super) enum Failure {
    /// Not a byte of it was sent: the connection takes no more.
    Unsent(h2::Error, Box<Request<Body>>),
    Sent(h2::Error),
}

impl Http2 {
    /// Runs the connection on the worker's thread, until it has ended and `streams` know. With `window`, its peer is one
    /// of ours, and it ends when that does not answer any more.
    pub(super) fn run<S>(
        (sender, progress, mut connection): (SendRequest<Bytes>, Rc<Progress>, WriteFirst<S>),
        streams: &Rc<Streams>,
        window: Option<Window>,
    ) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let is_over = Rc::new(Cell::new(false));
        let ping = window.as_ref().and_then(|_| connection.ping_pong());
        let (over, streams, known) = (is_over.clone(), streams.clone(), progress.clone());
        tokio::task::spawn_local(async move {
            match ping {
                // How it ended, its streams know.
                None => drop(connection.await),
                Some(ping) => tokio::select! {
                    biased;
                    _ = connection => {}
                    () = is_there(ping, || streams.get() > 0, &known) => {}
                },
            }
            over.set(true);
            drop(window);
        });
        Self { sender, progress, is_over }
    }

    /// Whether it is known to take no more requests.
    pub(super) fn is_over(&self) -> bool {
        self.is_over.get()
    }

    /// Streams that the peer takes at a time: more would wait inside the connection, and be lost with it.
    pub(super) fn most_streams(&self) -> usize {
        self.sender.current_max_send_streams().max(1)
    }

    /// Sends a request whose head HTTP/2 can say, and waits for the head of its answer. Dropped before, it takes the
    /// request back.
    pub(super) async fn send(mut self, request: Box<Request<Body>>) -> Result<Response<Received>, Failure> {
        // This tells only if it takes any more at all, not if there is room for one.
        if let Err(error) = poll_fn(|cx| self.sender.poll_ready(cx)).await {
            self.is_over.set(true);
            return Err(Failure::Unsent(error, request));
        }
        let (mut head, body) = request.into_parts();
        if let Some(length) = body.size_hint().exact()
            && (length > 0 || may_have_body(&head.method))
            && !head.headers.contains_key(CONTENT_LENGTH)
        {
            head.headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        let (method, is_whole) = (head.method.clone(), body.is_end_stream());
        let (answer, stream) =
            self.sender.send_request(Request::from_parts(head, ()), is_whole).map_err(Failure::Sent)?;
        self.progress.opened();
        drop(self);
        let upload = if is_whole { None } else { Upload { stream, body, waits: None }.start().await };
        let (head, stream) = answer.await.map_err(Failure::Sent)?.into_parts();
        let body = Received::of_stream(stream, &head, &method, upload);
        Ok(Response::from_parts(head, body))
    }
}

/// Whether a request of this method that has no body says so (RFC 9110 section 8.6).
fn may_have_body(method: &Method) -> bool {
    !matches!(*method, Method::GET | Method::HEAD | Method::DELETE | Method::CONNECT)
}

/// A request's body on its way.
struct Upload {
    stream: SendStream<Bytes>,
    body: Body,
    /// Data that the peer has no room for yet, and whether it is the last.
    waits: Option<(Bytes, bool)>,
}

impl Upload {
    /// Sends what is there at once; only what has to wait gets a task.
    async fn start(mut self) -> Option<AbortOnDropHandle<()>> {
        let is_sent = poll_fn(|cx| Poll::Ready(Pin::new(&mut self).poll(cx).is_ready())).await;
        (!is_sent).then(|| AbortOnDropHandle::new(tokio::task::spawn_local(self)))
    }

    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        while self.stream.capacity() == 0 {
            match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Poll::Ready(false),
            }
        }
        Poll::Ready(true)
    }
}

impl Future for Upload {
    type Output = ();

    /// How it failed, whoever waits for the answer knows.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        loop {
            if this.stream.poll_reset(cx).is_ready() {
                return Poll::Ready(());
            }
            if this.waits.is_some() {
                if !ready!(this.poll_room(cx)) {
                    return Poll::Ready(());
                }
                let Some((data, is_last)) = this.waits.take() else { continue };
                if this.stream.send_data(data, is_last).is_err() || is_last {
                    return Poll::Ready(());
                }
            }
            // Room is asked for once there is something to send: room that is held for nothing is not there for others.
            match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        let is_last = this.body.is_end_stream();
                        if data.is_empty() && !is_last {
                            continue;
                        }
                        if data.is_empty() {
                            let _ = this.stream.send_data(data, true);
                            return Poll::Ready(());
                        }
                        this.stream.reserve_capacity(1);
                        this.waits = Some((data, is_last));
                    }
                    Err(frame) => {
                        this.stream.reserve_capacity(0);
                        if let Ok(trailers) = frame.into_trailers() {
                            // Fields that HTTP/2 cannot say; without an end the peer would wait for one.
                            if this.stream.send_trailers(trailers).is_err() {
                                this.stream.send_reset(Reason::INTERNAL_ERROR);
                            }
                            return Poll::Ready(());
                        }
                    }
                },
                Some(Err(error)) => {
                    this.stream.send_reset(reason(&error));
                    return Poll::Ready(());
                }
                None => {
                    let _ = this.stream.send_data(Bytes::new(), true);
                    return Poll::Ready(());
                }
            }
        }
    }
}

/// A caller's reset is passed on as it is.
fn reason(error: &BodyError) -> Reason {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error.as_ref());
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref::<h2::Error>() {
            return error.reason().unwrap_or(Reason::INTERNAL_ERROR);
        }
        source = cause.source();
    }
    Reason::INTERNAL_ERROR
}
