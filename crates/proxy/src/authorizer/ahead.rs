//! Bodies that a provider is shown: read before the request is judged, forwarded whole afterwards.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::Request;
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use maille_proto::facts::CheckBody;
use tokio::time::timeout;

use crate::http::body::{Body, ReadAhead};

/// What a worker holds of bodies at a time, all requests together. One body alone may be longer, if its provider's
/// limit is.
const HELD: usize = 128 << 20;
/// Envoy's `stream_idle_timeout`: how long the next bytes of a body are waited for.
const IDLE: Duration = Duration::from_secs(300);

/// What a check shows of a body.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) bytes: Bytes,
    /// There is more of it.
    pub(super) is_partial: bool,
    /// What has come so far.
    pub(super) received: usize,
}

/// Why a body is not shown to anybody, and its request refused.
#[derive(Debug)]
pub(super) enum NotRead {
    /// Longer than this, where a part is not enough.
    TooLong(u32),
    /// Too much is held already.
    Overload,
    /// The caller fell silent.
    Stalled,
    /// The caller broke off.
    Broken(String),
}

/// Counts the bytes that a worker holds of bodies.
#[derive(Debug, Clone, Default)]
pub(super) struct Budget(Rc<Cell<usize>>);

/// A share of the budget, returned when it goes.
#[derive(Debug)]
pub(crate) struct Reserve {
    budget: Budget,
    bytes: usize,
}

impl Budget {
    fn reserve(&self) -> Reserve {
        Reserve { budget: self.clone(), bytes: 0 }
    }
}

impl Reserve {
    /// Takes more, if it is there or nobody else has any.
    fn grow(&mut self, by: usize) -> bool {
        let total = self.budget.0.get().saturating_add(by);
        if total > HELD && self.budget.0.get() > self.bytes {
            return false;
        }
        self.budget.0.set(total);
        self.bytes = self.bytes.saturating_add(by);
        true
    }
}

impl Drop for Reserve {
    fn drop(&mut self) {
        self.budget.0.set(self.budget.0.get().saturating_sub(self.bytes));
    }
}

/// Reads as much of a body as the provider is shown. Without a body, or a provider that wants it, nothing is read.
pub(super) async fn read(
    budget: &Budget,
    wanted: Option<&CheckBody>,
    request: Request<Incoming>,
) -> Result<(Request<Body>, Option<Seen>), NotRead> {
    let Some(wanted) = wanted.filter(|_| !request.body().is_end_stream()) else {
        return Ok((request.map(Body::from), None));
    };
    let limit = usize::try_from(wanted.max_request_bytes).unwrap_or(usize::MAX);
    let announced = usize::try_from(request.body().size_hint().lower()).unwrap_or(usize::MAX);
    if announced > limit && !wanted.allow_partial_message {
        return Err(NotRead::TooLong(wanted.max_request_bytes));
    }
    let (parts, mut incoming) = request.into_parts();
    let mut reserve = budget.reserve();
    // One buffer, not a list of frames: a caller may send each byte in a frame of its own.
    let mut read = BytesMut::new();
    let mut trailers = None;
    let is_over = loop {
        let frame = match timeout(IDLE, incoming.frame()).await {
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(error))) => return Err(NotRead::Broken(error.to_string())),
            Ok(None) => break true,
            Err(_) => return Err(NotRead::Stalled),
        };
        match frame.into_data() {
            Ok(data) => {
                if !reserve.grow(data.len()) {
                    return Err(NotRead::Overload);
                }
                read.extend_from_slice(&data);
            }
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
        if read.len() > limit && !wanted.allow_partial_message {
            return Err(NotRead::TooLong(wanted.max_request_bytes));
        }
        if incoming.is_end_stream() {
            break true;
        }
        if read.len() >= limit && wanted.allow_partial_message {
            break false;
        }
    };
    let read = read.freeze();
    let bytes = read.slice(..read.len().min(limit));
    // Where the limit is met exactly and more may follow, Envoy says that this is all. It need not be.
    let seen = Seen { is_partial: bytes.len() < read.len() || !is_over, received: read.len(), bytes };
    let rest = (!is_over).then_some(incoming);
    let body = Body::read_ahead(ReadAhead::new(read, trailers, rest, reserve));
    Ok((Request::from_parts(parts, body), Some(seen)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_of_bodies_is_bounded_and_given_back() {
        let budget = Budget::default();
        let mut first = budget.reserve();
        // Alone, it may be as long as its provider allows.
        assert!(first.grow(HELD) && first.grow(1));
        let mut second = budget.reserve();
        assert!(!second.grow(1), "others hold all there is");
        drop(first);
        assert!(second.grow(HELD));
        drop(second);
        assert_eq!(budget.0.get(), 0);
    }
}
