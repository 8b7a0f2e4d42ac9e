//! Bounds on the connections to one service port and on its requests, as Envoy's circuit breakers have them: shared by
//! all workers, and paid for only by services whose rule has bounds.

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::states::State;
use crate::snapshot::{ConnectionPool, IdleLimit};

/// How long an opaque connection may say nothing, unless a rule says otherwise (Envoy's `idle_timeout` of `tcp_proxy`).
const TCP_IDLE: Duration = Duration::from_secs(3600);

/// What is in use of one service port.
#[derive(Debug, Default)]
pub(super) struct Load {
    connections: AtomicU32,
    pending: AtomicU32,
    requests: AtomicU32,
    retries: AtomicU32,
}

/// The bounds in force, and what is in use.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    pub(crate) pool: Arc<ConnectionPool>,
    state: Arc<State>,
}

impl PartialEq for Terms {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.state, &other.state) && self.pool == other.pool
    }
}

impl Eq for Terms {}

impl Hash for Terms {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Equal terms share it; those that differ in their bounds only are rare and short-lived.
        Arc::as_ptr(&self.state).hash(state);
    }
}

/// Something that there may only be so many of, while it is held.
#[derive(Debug)]
pub(crate) struct Held {
    state: Arc<State>,
    what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    Connection,
    /// A request that waits for a connection.
    Pending,
    Request,
    Retry,
}

impl Load {
    fn count(&self, what: What) -> &AtomicU32 {
        match what {
            What::Connection => &self.connections,
            What::Pending => &self.pending,
            What::Request => &self.requests,
            What::Retry => &self.retries,
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.state.load.count(self.what).fetch_sub(1, Relaxed);
    }
}

impl Terms {
    pub(super) fn new(pool: Arc<ConnectionPool>, state: Arc<State>) -> Self {
        Self { pool, state }
    }

    /// Bounds towards the own application.
    pub(crate) fn of_own_port(pool: ConnectionPool) -> Self {
        Self::new(Arc::new(pool), Arc::default())
    }

    /// These bounds, with what is in use of `earlier` ones for the same port.
    pub(crate) fn after(&self, earlier: &Self) -> Self {
        Self::new(self.pool.clone(), earlier.state.clone())
    }

    /// One more of it, unless there are as many as there may be.
    pub(crate) fn take(&self, what: What) -> Option<Held> {
        let bound = match what {
            What::Connection => self.pool.connections,
            What::Pending => self.pool.pending,
            What::Request => self.pool.requests,
            What::Retry => self.pool.retries,
        };
        let bound = bound.unwrap_or(u32::MAX);
        let more = |now: u32| (now < bound).then_some(now + 1);
        self.state.load.count(what).fetch_update(Relaxed, Relaxed, more).ok()?;
        Some(Held { state: self.state.clone(), what })
    }

    /// One more connection whatever the bound says: a pool without any would never get one (Envoy's
    /// `tryCreateNewConnection`).
    pub(crate) fn take_first_connection(&self) -> Held {
        self.state.load.connections.fetch_add(1, Relaxed);
        Held { state: self.state.clone(), what: What::Connection }
    }

    /// Whether several HTTP/1.1 requests at a time may go over one connection: not where connections are what is bounded.
    pub(crate) fn lets_share(&self) -> bool {
        let pool = &self.pool;
        let is_unbounded = pool.connections.is_none() && pool.pending.is_none();
        pool.upgrades_to_http2 || (is_unbounded && pool.requests_per_connection.is_none())
    }

    /// Whether a connection of this age, after so many requests, takes another one.
    pub(crate) fn lets_reuse(&self, opened: Instant, served: u32) -> bool {
        self.pool.requests_per_connection.is_none_or(|most| served < most)
            && self.pool.max_age.is_none_or(|most| opened.elapsed() < most)
    }

    /// How long a connection may go without a request; `default` without a rule.
    pub(crate) fn http_idle(&self, default: Duration) -> Duration {
        match self.pool.http_idle {
            IdleLimit::Default => default,
            IdleLimit::Never => Duration::MAX,
            IdleLimit::After(limit) => limit,
        }
    }
}

/// How long an opaque connection may say nothing under these terms, and how old it may get.
pub(crate) fn limits_of_opaque(terms: Option<&Terms>) -> (Option<Duration>, Option<Duration>) {
    let idle = match terms.map(|terms| terms.pool.tcp_idle).unwrap_or_default() {
        IdleLimit::Default => Some(TCP_IDLE),
        IdleLimit::Never => None,
        IdleLimit::After(limit) => Some(limit),
    };
    (idle, terms.and_then(|terms| terms.pool.max_age))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_kept_across_threads_and_given_back() {
        let pool = ConnectionPool { requests: Some(100), ..ConnectionPool::default() };
        let terms = Terms::new(Arc::new(pool), Arc::default());
        let taken: usize = std::thread::scope(|scope| {
            let take = || std::iter::from_fn(|| terms.take(What::Request)).collect::<Vec<_>>();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            let held: Vec<_> =
                threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect();
            held.len()
        });
        assert_eq!(taken, 100);
        assert!(terms.take(What::Request).is_some(), "all were given back");
        assert!(terms.take(What::Connection).is_some(), "no bound");
    }

    #[test]
    fn terms_are_the_same_if_they_share_load_and_bounds() {
        let (pool, load) = (Arc::new(ConnectionPool::default()), Arc::<State>::default());
        let one = Terms::new(pool.clone(), load.clone());
        assert_eq!(one, Terms::new(Arc::new(ConnectionPool::default()), load));
        assert_ne!(one, Terms::new(pool, Arc::default()));
    }
}
