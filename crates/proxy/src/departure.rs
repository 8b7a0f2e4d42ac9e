//! How connections leave a worker that goes away, without a request that is lost (reference mtls 7.7).
//!
//! A caller that reuses an HTTP/1.1 connection may send in the very moment in which it is closed, and may not send that
//! request again. So unused connections are not closed at first: each ends with the next answer, which says
//! `Connection: close` (Envoy's drain strategy `immediate`). HTTP/2 has no such gap: GOAWAY names the last stream that is
//! answered, and goes out at once. Only those of HTTP/1.1 that stay unused to the end are closed then.

use std::cell::Cell;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// How far the connections of one direction are on their way out; never back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// Nobody is leaving.
    #[default]
    Stays,
    /// Connections end with their next answer.
    Leaves,
    /// Unused connections are closed, too.
    Ends,
}

/// The way out of one direction of a worker's connections.
#[derive(Default)]
pub(crate) struct Departure {
    stage: Cell<Stage>,
    told: Notify,
}

impl Departure {
    /// Where it stands.
    pub(crate) fn stage(&self) -> Stage {
        self.stage.get()
    }

    /// Goes on to `stage`, and tells whoever waits.
    pub(crate) fn advance(&self, stage: Stage) {
        if stage > self.stage.get() {
            self.stage.set(stage);
            self.told.notify_waiters();
        }
    }

    /// Waits until `stage` is reached.
    pub(crate) async fn reached(&self, stage: Stage) {
        while self.stage.get() < stage {
            // Nothing runs between the look and the first poll: a worker is one thread.
            self.told.notified().await;
        }
    }

    /// Notices changes of the stage from within a connection's own polling.
    pub(crate) fn watch(&self) -> Watch<'_> {
        Watch { departure: self, seen: Stage::Stays, told: None, waker: None }
    }
}

/// Sees each new stage of a [`Departure`] once. Costs a connection that stays one comparison for each poll.
pub(crate) struct Watch<'d> {
    departure: &'d Departure,
    seen: Stage,
    told: Option<Pin<Box<Notified<'d>>>>,
    waker: Option<Waker>,
}

impl Watch<'_> {
    /// The new stage; pending while it is the one seen last.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Stage> {
        let now = self.departure.stage();
        if now > self.seen {
            self.seen = now;
            (self.told, self.waker) = (None, None);
            return Poll::Ready(now);
        }
        if now < Stage::Ends && self.waker.as_ref().is_none_or(|known| !known.will_wake(cx.waker())) {
            let told = self.told.get_or_insert_with(|| Box::pin(self.departure.told.notified()));
            // Told already is told of a stage that was looked at above.
            if told.as_mut().poll(cx).is_pending() {
                self.waker = Some(cx.waker().clone());
            }
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_stage_is_seen_once_and_in_order() {
        let departure = Departure::default();
        let mut watch = departure.watch();
        let mut next = std::pin::pin!(std::future::poll_fn(|cx| watch.poll(cx)));
        assert!(futures::poll!(next.as_mut()).is_pending());
        departure.advance(Stage::Leaves);
        assert_eq!(next.as_mut().await, Stage::Leaves);
        assert!(futures::poll!(next.as_mut()).is_pending());
        departure.advance(Stage::Ends);
        assert_eq!(next.as_mut().await, Stage::Ends);
        departure.advance(Stage::Leaves);
        assert!(futures::poll!(next.as_mut()).is_pending(), "there is no way back");
        departure.reached(Stage::Ends).await;
    }

    #[tokio::test]
    async fn who_waits_is_woken() {
        let departure = Departure::default();
        let mut watch = departure.watch();
        let waits = std::future::poll_fn(|cx| watch.poll(cx));
        let (seen, ()) = tokio::join!(waits, async { departure.advance(Stage::Ends) });
        assert_eq!(seen, Stage::Ends);
    }
}
