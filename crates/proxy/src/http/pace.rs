//! How long the caller of an HTTP connection may take, and how much it may take back.
//!
//! One timer for a connection, armed again only when it fires: requests pay for none. Bodies may take their time, as
//! Istio's proxies let them (`stream_idle_timeout: 0s`); what a connection then holds is bounded by flow control.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::snapshot::Limits;

/// Requests are looked at in spans of this length.
const SPAN: Duration = Duration::from_secs(10);
/// A request that its caller takes back sooner was hardly meant (Envoy's `premature_reset_min_stream_lifetime_seconds`).
const PREMATURE: Duration = Duration::from_secs(1);
/// Requests of a span that may be taken back before anything is concluded from it. Envoy: 500 of a connection's life.
const TAKEN_BACK: u32 = 1000;

/// Why a connection has to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TooMuch {
    /// No request for too long; it ends in order.
    Idle,
    /// A request's head takes too long.
    SlowHead,
    /// The caller takes back nearly all of very many requests (CVE-2023-44487, "rapid reset").
    TakenBack,
}

/// What one connection is doing.
pub(crate) struct Pace {
    under_way: Cell<usize>,
    /// When the last exchange ended, or the connection began.
    since: Cell<Instant>,
    head: Arc<Head>,
    span: Cell<Instant>,
    ended: Cell<u32>,
    taken_back: Cell<u32>,
    /// Of the connection, once it has to be told of a storm.
    waker: RefCell<Option<Waker>>,
}

impl Pace {
    pub(crate) fn new(now: Instant) -> Rc<Self> {
        Rc::new(Self {
            under_way: Cell::new(0),
            since: Cell::new(now),
            head: Arc::new(Head { origin: now, awaited: AtomicBool::new(true), since: AtomicU64::new(0) }),
            span: Cell::new(now),
            ended: Cell::new(0),
            taken_back: Cell::new(0),
            waker: RefCell::default(),
        })
    }

    /// A request has come.
    pub(crate) fn begin(self: &Rc<Self>) -> UnderWay {
        self.under_way.set(self.under_way.get() + 1);
        self.head.done();
        UnderWay { pace: self.clone(), since: Instant::now(), is_complete: false }
    }

    /// Why the connection has to end, or how long there is nothing to look at.
    pub(crate) fn verdict(&self, limits: &Limits, now: Instant) -> Result<Duration, TooMuch> {
        if self.is_storm() {
            return Err(TooMuch::TakenBack);
        }
        let left = |since: Instant, limit: Duration| {
            limit.checked_sub(now.saturating_duration_since(since)).filter(|left| !left.is_zero())
        };
        let until_idle = match self.under_way.get() {
            0 => left(self.since.get(), limits.idle_caller).ok_or(TooMuch::Idle)?,
            _ => limits.idle_caller,
        };
        let until_slow = match self.head.since() {
            Some(since) => left(since, limits.request_head).ok_or(TooMuch::SlowHead)?,
            None => limits.request_head,
        };
        Ok(until_idle.min(until_slow))
    }

    /// Whether nearly everything is taken back.
    pub(crate) fn is_storm(&self) -> bool {
        self.taken_back.get() >= TAKEN_BACK && self.taken_back.get() >= self.ended.get() / 4 * 3
    }

    /// Wakes the connection when a storm begins.
    pub(crate) fn watch(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        match waker.as_ref() {
            Some(known) if known.will_wake(cx.waker()) => {}
            _ => *waker = Some(cx.waker().clone()),
        }
    }

    fn end(&self, began: Instant, is_complete: bool) {
        let now = Instant::now();
        self.under_way.set(self.under_way.get().saturating_sub(1));
        if self.under_way.get() == 0 {
            self.head.awaited.store(true, Ordering::Relaxed);
        }
        self.since.set(now);
        if now.saturating_duration_since(self.span.get()) > SPAN {
            self.span.set(now);
            self.ended.set(0);
            self.taken_back.set(0);
        }
        self.ended.set(self.ended.get().saturating_add(1));
        if !is_complete && now.saturating_duration_since(began) < PREMATURE {
            self.taken_back.set(self.taken_back.get().saturating_add(1));
            if self.is_storm()
                && let Some(waker) = self.waker.take()
            {
                waker.wake();
            }
        }
    }
}

/// A request until the last byte of its answer has been handed over.
pub(crate) struct UnderWay {
    pace: Rc<Pace>,
    since: Instant,
    is_complete: bool,
}

impl UnderWay {
    /// The answer is whole.
    pub(crate) fn complete(&mut self) {
        self.is_complete = true;
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.pace.end(self.since, self.is_complete);
    }
}

/// The head that is awaited. Shared with the stream, which upgrades want to be able to send to other threads; all of it
/// stays on one.
struct Head {
    origin: Instant,
    awaited: AtomicBool,
    /// When its first byte came, in milliseconds after the origin and one; 0: not yet.
    since: AtomicU64,
}

impl Head {
    fn begin(&self) {
        if self.awaited.load(Ordering::Relaxed) && self.since.load(Ordering::Relaxed) == 0 {
            let since = u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
            self.since.store(since + 1, Ordering::Relaxed);
        }
    }

    fn done(&self) {
        self.awaited.store(false, Ordering::Relaxed);
        self.since.store(0, Ordering::Relaxed);
    }

    fn since(&self) -> Option<Instant> {
        let since = self.since.load(Ordering::Relaxed).checked_sub(1)?;
        self.origin.checked_add(Duration::from_millis(since))
    }
}

/// A caller's stream, watched for the first byte of each HTTP/1.1 head.
pub(crate) struct Paced<S> {
    io: S,
    head: Arc<Head>,
}

impl<S> Paced<S> {
    pub(crate) fn new(io: S, pace: &Pace) -> Self {
        Self { io, head: pace.head.clone() }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, out))?;
        if out.filled().len() > before {
            self.head.begin();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_idle_only_between_requests() {
        let limits = Limits::default();
        let start = Instant::now();
        let pace = Pace::new(start);
        assert_eq!(pace.verdict(&limits, start), Ok(limits.request_head.min(limits.idle_caller)));
        assert_eq!(pace.verdict(&limits, start + limits.idle_caller), Err(TooMuch::Idle));
        let request = pace.begin();
        assert!(pace.verdict(&limits, start + 2 * limits.idle_caller).is_ok());
        drop(request);
        assert_eq!(pace.verdict(&limits, Instant::now() + limits.idle_caller), Err(TooMuch::Idle));
    }

    #[test]
    fn a_head_has_less_time_than_an_idle_connection() {
        let limits = Limits::default();
        let start = Instant::now();
        let pace = Pace::new(start);
        pace.head.begin();
        let start = pace.head.since().expect("it has begun");
        assert!(pace.verdict(&limits, start + limits.request_head / 2).is_ok());
        assert_eq!(pace.verdict(&limits, start + limits.request_head), Err(TooMuch::SlowHead));
        let request = pace.begin();
        assert!(pace.verdict(&limits, start + limits.request_head).is_ok());
        drop(request);
    }

    #[test]
    fn taking_back_some_requests_is_no_storm_and_taking_back_nearly_all_is() {
        let pace = Pace::new(Instant::now());
        for number in 0..2 * TAKEN_BACK {
            let mut request = pace.begin();
            if number % 2 == 0 {
                request.complete();
            }
        }
        assert!(!pace.is_storm());
        let pace = Pace::new(Instant::now());
        for _ in 0..TAKEN_BACK {
            assert!(!pace.is_storm());
            drop(pace.begin());
        }
        assert!(pace.is_storm());
    }
}
