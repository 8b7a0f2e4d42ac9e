//! The recent past: a bounded ring of changes from which watches are served.

use std::collections::VecDeque;
use std::sync::Arc;

use serde_json::Value;

use super::Key;

/// What happened to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChangeKind {
    Added,
    Modified,
    Deleted,
}

/// One change, with the object before and after it.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) revision: u64,
    pub(crate) kind: ChangeKind,
    pub(crate) key: Key,
    /// The object as it is now; for a deletion its last state, with the revision of the deletion.
    pub(crate) object: Arc<Value>,
    /// What it was before, unless it is new.
    pub(crate) previous: Option<Arc<Value>>,
    /// Bytes on disk, by which the ring is bounded.
    size: usize,
}

impl Event {
    pub(crate) fn new(
        revision: u64,
        kind: ChangeKind,
        key: Key,
        object: Arc<Value>,
        previous: Option<Arc<Value>>,
        size: usize,
    ) -> Self {
        Self { revision, kind, key, object, previous, size }
    }
}

/// Bounds of the ring; either may cut it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RingLimits {
    pub(crate) events: usize,
    pub(crate) bytes: usize,
}

impl Default for RingLimits {
    fn default() -> Self {
        // A demo makes a few hundred changes; a minute of a busy mesh some thousands.
        Self { events: 8192, bytes: 48 << 20 }
    }
}

#[derive(Debug)]
pub(crate) struct Ring {
    events: VecDeque<Arc<Event>>,
    bytes: usize,
    /// Changes up to and including this revision are no longer here.
    forgotten: u64,
    limits: RingLimits,
}

impl Ring {
    pub(crate) fn new(revision: u64, limits: RingLimits) -> Self {
        Self { events: VecDeque::new(), bytes: 0, forgotten: revision, limits }
    }

    pub(crate) fn push(&mut self, event: Arc<Event>) {
        self.bytes += event.size;
        self.events.push_back(event);
        while self.events.len() > self.limits.events
            || (self.bytes > self.limits.bytes && self.events.len() > 1)
        {
            if let Some(old) = self.events.pop_front() {
                self.bytes -= old.size;
                self.forgotten = old.revision;
            }
        }
    }

    /// The oldest revision from which one can still go on.
    pub(crate) fn oldest(&self) -> u64 {
        self.forgotten
    }

    /// Changes after `revision`, oldest first; `None` when some of them are forgotten.
    pub(crate) fn after(&self, revision: u64) -> Option<impl DoubleEndedIterator<Item = &Arc<Event>>> {
        if revision < self.forgotten {
            return None;
        }
        let start = self.events.partition_point(|e| e.revision <= revision);
        Some(self.events.range(start..))
    }
}
