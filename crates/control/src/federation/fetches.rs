//! Whether anybody fetches the mesh's bundle.

use std::sync::atomic::{AtomicU64, Ordering};

/// Answers of the bundle endpoint.
#[derive(Debug, Default)]
pub(crate) struct Fetches {
    count: AtomicU64,
}

impl Fetches {
    pub(crate) fn note(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// How many there were.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}
