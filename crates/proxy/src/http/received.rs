//! The body of an upstream's answer as it comes.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http::header::CONTENT_LENGTH;
use http::{Method, StatusCode, response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio_util::task::AbortOnDropHandle;

/// Why a body broke off.
pub(crate) type BodyError = Box<dyn Error + Send + Sync>;

/// From a connection of its own, or from one stream of an HTTP/2 connection.
pub(crate) enum Received {
    Plain(Incoming),
    Stream(Frames),
}

/// The data and trailers of a stream. The peer may send as much again once a frame was handed on.
pub(crate) struct Frames {
    stream: RecvStream,
    /// What is left of an announced length.
    left: Option<u64>,
    has_all_data: bool,
    /// By its head, there is nothing else: whoever passes it on does not wait for the end of the stream.
    is_bodiless: bool,
    /// What is left of the request, unless all was sent at once.
    upload: Option<AbortOnDropHandle<()>>,
}

impl Received {
    /// Of a stream with this head, in answer to a request of `method`. `upload` sends the rest of that request: it goes on
    /// after the whole answer, as the caller may want to send it whole, whatever was answered; and ends with an answer that
    /// nobody wants any more.
    pub(crate) fn of_stream(
        stream: RecvStream,
        head: &response::Parts,
        method: &Method,
        upload: Option<AbortOnDropHandle<()>>,
    ) -> Self {
        let left = head.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        // RFC 9110 section 6.4.1.
        let is_bodiless = *method == Method::HEAD
            || matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        Self::Stream(Frames { stream, left, has_all_data: false, is_bodiless, upload })
    }
}

impl Frames {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if !self.has_all_data {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    let released = self.stream.flow_control().release_capacity(data.len());
                    self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(released.map(|()| Frame::data(data))));
                }
                // A reset after its end, since no more of the request is wanted (RFC 9113 section 8.1), is no error of
                // it: this is one before, for whatever reason.
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => self.has_all_data = true,
            }
        }
        let trailers = ready!(self.stream.poll_trailers(cx));
        Poll::Ready(trailers.map(|trailers| trailers.map(Frame::trailers)).transpose())
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::new, SizeHint::with_exact)
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        // Whoever has all of an announced length does not wait for the end of the stream.
        let is_whole = self.is_bodiless || self.left == Some(0) || self.stream.is_end_stream();
        if let Some(upload) = self.upload.take()
            && is_whole
        {
            drop(upload.detach());
        }
    }
}

impl Body for Received {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = match self.get_mut() {
            Self::Plain(incoming) => {
                ready!(Pin::new(incoming).poll_frame(cx)).map(|frame| frame.map_err(BodyError::from))
            }
            Self::Stream(frames) => ready!(frames.poll_frame(cx)).map(|frame| frame.map_err(BodyError::from)),
        };
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Plain(incoming) => incoming.is_end_stream(),
            Self::Stream(frames) => frames.stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Plain(incoming) => incoming.size_hint(),
            Self::Stream(frames) => frames.size_hint(),
        }
    }
}
