//! One label set's counters in one worker.
//!
//! What varies within a connection (response code, flags, gRPC status) hangs off the label set as a
//! short list that only ever grows, so finding a cell takes neither a lock nor an allocation.

use std::sync::OnceLock;

use crate::histogram::{Counter, Histogram};
use crate::labels::ResponseFlags;

/// Cells of one kind per label set, beside the one that takes the rest. A workload answers with
/// a handful of codes; this bounds one that makes them up.
const MAX_CELLS: usize = 32;

/// What distinguishes requests of one label set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct RequestKey {
    pub(crate) code: u16,
    pub(crate) flags: ResponseFlags,
    /// `None` for requests that are not gRPC.
    pub(crate) grpc_status: Option<u32>,
    pub(crate) grpc: bool,
}

#[derive(Debug, Default)]
pub(crate) struct RequestCounters {
    pub(crate) duration: Histogram,
    pub(crate) request_bytes: Histogram,
    pub(crate) response_bytes: Histogram,
}

#[derive(Debug, Default)]
pub(crate) struct TcpCounters {
    pub(crate) opened: Counter,
    pub(crate) closed: Counter,
    pub(crate) sent: Counter,
    pub(crate) received: Counter,
}

impl RequestKey {
    /// Where requests beyond the bound are counted.
    const REST: Self = Self { code: 0, flags: ResponseFlags::None, grpc_status: None, grpc: false };
}

/// The counters of one metric label set.
#[derive(Debug, Default)]
pub(crate) struct Series {
    pub(crate) requests: Cells<RequestKey, RequestCounters>,
    pub(crate) tcp: Cells<ResponseFlags, TcpCounters>,
}

impl Series {
    pub(crate) fn request(&self, key: RequestKey) -> &RequestCounters {
        self.requests.cell(key, RequestKey::REST)
    }

    /// Adds what another one counted. Nobody else may count on this one.
    pub(crate) fn absorb(&self, other: &Self) {
        for (key, counters) in other.requests.iter() {
            let sum = self.request(key);
            sum.duration.absorb(&counters.duration);
            sum.request_bytes.absorb(&counters.request_bytes);
            sum.response_bytes.absorb(&counters.response_bytes);
        }
        for (flags, counters) in other.tcp.iter() {
            let sum = self.tcp(flags);
            sum.opened.add(counters.opened.value());
            sum.closed.add(counters.closed.value());
            sum.sent.add(counters.sent.value());
            sum.received.add(counters.received.value());
        }
    }

    pub(crate) fn tcp(&self, flags: ResponseFlags) -> &TcpCounters {
        self.tcp.cell(flags, ResponseFlags::None)
    }
}

/// An append-only list found by key.
#[derive(Debug)]
pub(crate) struct Cells<K, V> {
    first: OnceLock<Box<Cell<K, V>>>,
}

#[derive(Debug)]
struct Cell<K, V> {
    key: K,
    value: V,
    next: OnceLock<Box<Cell<K, V>>>,
}

impl<K, V> Default for Cells<K, V> {
    fn default() -> Self {
        Self { first: OnceLock::new() }
    }
}

impl<K: Copy + PartialEq, V: Default> Cells<K, V> {
    /// The cell of this key, made if it is new; the cell of `rest` if there are too many.
    pub(crate) fn cell(&self, key: K, rest: K) -> &V {
        let make = |key| move || Box::new(Cell { key, value: V::default(), next: OnceLock::new() });
        // The first cell is the rest's, so that it exists when the bound is met.
        let overflow = self.first.get_or_init(make(rest));
        let mut at = overflow;
        for _ in 0..MAX_CELLS {
            if at.key == key {
                return &at.value;
            }
            at = at.next.get_or_init(make(key));
        }
        if at.key == key { &at.value } else { &overflow.value }
    }

    /// All cells, in the order of their making.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (K, &V)> {
        std::iter::successors(self.first.get(), |cell| cell.next.get()).map(|cell| (cell.key, &cell.value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_found_again_and_bounded() {
        let cells: Cells<u16, Counter> = Cells::default();
        for round in 0..3 {
            for key in 1..=200 {
                cells.cell(key, 0).add(1);
            }
            assert_eq!(cells.iter().count(), MAX_CELLS + 1, "round {round}");
        }
        assert_eq!(cells.iter().map(|(_, c)| c.value()).sum::<u64>(), 600);
        assert_eq!(cells.cell(3, 0).value(), 3);
        assert_eq!(cells.cell(0, 0).value(), 3 * (200 - MAX_CELLS as u64));
    }
}
