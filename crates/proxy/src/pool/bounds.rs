//! What DestinationRules bound: requests under way and waiting, connections, and what one connection carries.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::single::Idle;
use super::{Lease, Pool, SendError};
use crate::balance::{Counted, Held, Terms, What};
use crate::worker::Worker;

/// A bound that holds for requests of both versions.
pub(super) const TOO_MANY_WAIT: SendError =
    SendError::Overflow("as many requests wait for a connection as http1MaxPendingRequests allows");

/// What a request may do that needs a connection.
#[derive(Default)]
pub(super) struct Turn {
    /// Use this one.
    pub(super) idle: Option<Idle>,
    /// Open another one.
    pub(super) counted: Option<Counted>,
    /// Until then it counts as one that waits.
    _pending: Option<Held>,
}

/// When a connection was opened and how many requests it has carried, where a rule bounds that.
#[derive(Debug, Default)]
pub(super) struct Life(Option<(Instant, Cell<u32>)>);

impl Life {
    pub(super) fn under(terms: Option<&Arc<Terms>>) -> Self {
        Self(terms.map(|_| (Instant::now(), Cell::new(0))))
    }

    /// Another request goes over it.
    pub(super) fn count(&self) {
        if let Some((_, served)) = &self.0 {
            served.set(served.get() + 1);
        }
    }

    /// Whether yet another one may.
    pub(super) fn goes_on(&self, terms: Option<&Arc<Terms>>) -> bool {
        match (&self.0, terms) {
            (Some((opened, served)), Some(terms)) => terms.lets_reuse(*opened, served.get()),
            _ => true,
        }
    }
}

impl Pool {
    /// As [`Pool::lease`], unless there are as many requests under way as there may be.
    pub(super) fn lease_within_bounds(
        self: &Rc<Self>,
        worker: &Worker,
        generation: u64,
    ) -> Result<Lease, SendError> {
        let mut lease = self.lease(worker, generation);
        if let Some(terms) = &self.upstream.terms {
            let full = SendError::Overflow("as many requests are under way as http2MaxRequests allows");
            lease.request = Some(terms.take(What::Request).ok_or(full)?);
        }
        Ok(lease)
    }

    /// Waits, where connections are bounded, until one is free or another one may be opened.
    pub(super) async fn turn(&self, worker: &Worker) -> Result<Turn, SendError> {
        let (Some(terms), Some(room)) = (&self.upstream.terms, &self.room) else {
            return Ok(Turn::default());
        };
        // Those who wait already go first.
        if !room.is_waited_for()
            && let Some(idle) = self.take_idle(self.generation(worker))
        {
            return Ok(Turn { idle: Some(idle), ..Turn::default() });
        }
        let pending = Some(terms.take(What::Pending).ok_or(TOO_MANY_WAIT)?);
        let mut has_waited = !room.is_waited_for();
        loop {
            if has_waited {
                if let Some(idle) = self.take_idle(self.generation(worker)) {
                    return Ok(Turn { idle: Some(idle), ..Turn::default() });
                }
                if let Some(counted) = room.connection(terms) {
                    return Ok(Turn { idle: None, counted: Some(counted), _pending: pending });
                }
            }
            room.freed().await;
            has_waited = true;
        }
    }
}
