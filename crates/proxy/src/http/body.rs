//! Bodies on their way through: frames are passed on as they come, counted, and their end is noticed.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use maille_telemetry::ResponseFlags;

use crate::authorizer::Reserve;
use crate::http::exchange::Exchange;
use crate::http::pace::UnderWay;
use crate::http::received::{BodyError, Received};
use crate::pool::Lease;

/// A body as the proxy sends it, in either direction.
pub(crate) struct Body(Kind, Option<UnderWay>);

enum Kind {
    /// Nothing, or nothing left.
    Empty,
    Full(Bytes),
    Request(Incoming, Option<Rc<Cell<u64>>>),
    ReadAhead(Box<ReadAhead>),
    Response(Box<FromUpstream>),
}

/// A request's body of which the beginning has been read: it goes on whole and in order all the same.
pub(crate) struct ReadAhead {
    read: Bytes,
    trailers: Option<HeaderMap>,
    rest: Option<Incoming>,
    reserve: Option<Reserve>,
    count: Option<Rc<Cell<u64>>>,
}

struct FromUpstream {
    incoming: Received,
    lease: Option<Lease>,
    exchange: Box<Exchange>,
}

impl Body {
    pub(crate) fn empty() -> Self {
        Self(Kind::Empty, None)
    }

    pub(crate) fn full(text: impl Into<Bytes>) -> Self {
        Self(Kind::Full(text.into()), None)
    }

    /// A request's body of which something has been read.
    pub(crate) fn read_ahead(ahead: ReadAhead) -> Self {
        if ahead.is_end_stream() {
            return Self::empty();
        }
        Self(Kind::ReadAhead(Box::new(ahead)), None)
    }

    /// Adds a request's bytes to `count` as they pass.
    pub(crate) fn count_into(&mut self, count: Rc<Cell<u64>>) {
        match &mut self.0 {
            Kind::Request(_, counter) => *counter = Some(count),
            Kind::ReadAhead(ahead) => ahead.count = Some(count),
            Kind::Empty | Kind::Full(_) | Kind::Response(_) => {}
        }
    }

    /// A response's body. At its end the upstream connection goes back to its pool and the exchange is recorded.
    pub(crate) fn response(incoming: Received, lease: Lease, exchange: Box<Exchange>) -> Self {
        if incoming.is_end_stream() {
            lease.give_back();
            exchange.complete();
            return Self::empty();
        }
        Self(Kind::Response(Box::new(FromUpstream { incoming, lease: Some(lease), exchange })), None)
    }

    /// The body of an answer; `under_way` is let go with it, complete if its end was reached.
    pub(crate) fn during(self, mut under_way: UnderWay) -> Self {
        if http_body::Body::is_end_stream(&self) {
            under_way.complete();
        }
        Self(self.0, Some(under_way))
    }

    /// Whether it is empty by construction, so that a request with it can be sent twice.
    pub(crate) fn is_empty(&self) -> bool {
        matches!(self.0, Kind::Empty)
    }
}

impl From<Incoming> for Body {
    /// A request's body as it comes.
    fn from(incoming: Incoming) -> Self {
        if incoming.is_end_stream() { Self::empty() } else { Self(Kind::Request(incoming, None), None) }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(self.0.poll_frame(cx));
        let Self(kind, under_way) = &mut *self;
        if let Some(under_way) = under_way
            && (frame.is_none() || kind.is_end_stream())
        {
            under_way.complete();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Request(incoming, _) => incoming.size_hint(),
            Kind::ReadAhead(ahead) => ahead.size_hint(),
            Kind::Response(upstream) => upstream.incoming.size_hint(),
        }
    }
}

impl Kind {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                *self = Self::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Self::Request(incoming, count) => {
                let frame = ready!(from_caller(incoming, cx));
                note(count.as_ref(), frame.as_ref());
                Poll::Ready(frame)
            }
            Self::ReadAhead(ahead) => {
                let frame = ready!(ahead.poll_frame(cx));
                note(ahead.count.as_ref(), frame.as_ref());
                Poll::Ready(frame)
            }
            Self::Response(upstream) => upstream.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_empty(),
            Self::Request(incoming, _) => incoming.is_end_stream(),
            Self::ReadAhead(ahead) => ahead.is_end_stream(),
            Self::Response(upstream) => upstream.incoming.is_end_stream(),
        }
    }
}

/// The next frame of a request's body.
fn from_caller(
    incoming: &mut Incoming,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
    let frame = ready!(Pin::new(incoming).poll_frame(cx));
    Poll::Ready(frame.map(|frame| frame.map_err(BodyError::from)))
}

/// Counts the bytes of a frame.
fn note(count: Option<&Rc<Cell<u64>>>, frame: Option<&Result<Frame<Bytes>, BodyError>>) {
    let data = frame.and_then(|frame| frame.as_ref().ok()).and_then(Frame::data_ref);
    if let (Some(count), Some(data)) = (count, data) {
        count.set(count.get() + data.len() as u64);
    }
}

impl ReadAhead {
    /// `rest` is what has not been read, if there may be more; `trailers` were read if there is not. What was read stays on
    /// the account of `reserve` until it has been passed on.
    pub(crate) fn new(
        read: Bytes,
        trailers: Option<HeaderMap>,
        rest: Option<Incoming>,
        reserve: Reserve,
    ) -> Self {
        Self { read, trailers, rest, reserve: Some(reserve), count: None }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if !self.read.is_empty() {
            self.reserve = None;
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.read)))));
        }
        if let Some(rest) = &mut self.rest {
            return from_caller(rest, cx);
        }
        Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        let is_read_over = self.read.is_empty() && self.trailers.is_none();
        is_read_over && self.rest.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    /// What is left, as exact as the rest is: a length that was announced is announced again.
    fn size_hint(&self) -> SizeHint {
        let read = self.read.len() as u64;
        let rest = self.rest.as_ref().map_or(SizeHint::with_exact(0), http_body::Body::size_hint);
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(read));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(read));
        }
        hint
    }
}

impl FromUpstream {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(Pin::new(&mut self.incoming).poll_frame(cx));
        match &frame {
            None => self.end(),
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.exchange.response_bytes += data.len() as u64;
                } else if let Some(trailers) = frame.trailers_ref() {
                    self.exchange.note_grpc_status(trailers);
                }
                // The last frame of known length: hyper does not ask again.
                if self.incoming.is_end_stream() {
                    self.end();
                }
            }
            Some(Err(_)) => {
                self.exchange.flags = ResponseFlags::UpstreamClosed;
                self.exchange.end();
            }
        }
        Poll::Ready(frame)
    }

    fn end(&mut self) {
        self.exchange.end();
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
    }
}
