//! Bodies on their way through: frames are passed on as they come, counted, and their end is noticed.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use maille_telemetry::ResponseFlags;

use crate::http::exchange::Exchange;
use crate::pool::Lease;

/// A body as the proxy sends it, in either direction.
pub(crate) struct Body(Kind);

enum Kind {
    /// Nothing, or nothing left.
    Empty,
    Full(Bytes),
    Request(Incoming, Rc<Cell<u64>>),
    Response(Box<FromUpstream>),
}

struct FromUpstream {
    incoming: Incoming,
    lease: Option<Lease>,
    exchange: Exchange,
}

impl Body {
    pub(crate) fn empty() -> Self {
        Self(Kind::Empty)
    }

    pub(crate) fn full(text: String) -> Self {
        Self(Kind::Full(text.into()))
    }

    /// A request's body; its bytes are added to `count` as they pass.
    pub(crate) fn request(incoming: Incoming, count: Rc<Cell<u64>>) -> Self {
        Self(Kind::Request(incoming, count))
    }

    /// A response's body. At its end the upstream connection goes back to its pool and the exchange is recorded.
    pub(crate) fn response(incoming: Incoming, lease: Lease, exchange: Exchange) -> Self {
        if incoming.is_end_stream() {
            lease.give_back();
            exchange.complete();
            return Self::empty();
        }
        Self(Kind::Response(Box::new(FromUpstream { incoming, lease: Some(lease), exchange })))
    }

    /// Whether it is empty by construction, so that a request with it can be sent twice.
    pub(crate) fn is_empty(&self) -> bool {
        matches!(self.0, Kind::Empty)
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.0 {
            Kind::Empty => Poll::Ready(None),
            Kind::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                self.0 = Kind::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Kind::Request(incoming, count) => {
                let frame = ready!(Pin::new(incoming).poll_frame(cx));
                if let Some(data) = frame.as_ref().and_then(|f| f.as_ref().ok()).and_then(Frame::data_ref) {
                    count.set(count.get() + data.len() as u64);
                }
                Poll::Ready(frame)
            }
            Kind::Response(upstream) => upstream.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Empty => true,
            Kind::Full(bytes) => bytes.is_empty(),
            Kind::Request(incoming, _) => incoming.is_end_stream(),
            Kind::Response(upstream) => upstream.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Request(incoming, _) => incoming.size_hint(),
            Kind::Response(upstream) => upstream.incoming.size_hint(),
        }
    }
}

impl FromUpstream {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
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
