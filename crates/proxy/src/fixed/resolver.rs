//! Destinations from a file, in place of a control plane.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::snapshot::{Destination, DestinationCell, Resolver, Resolving};

/// Answers from a table; what is not in it is unknown, with authority.
pub(super) struct FixedResolver {
    cells: Mutex<HashMap<String, Arc<DestinationCell>>>,
}

impl FixedResolver {
    pub(super) fn new(destinations: HashMap<String, Destination>) -> Self {
        let resolver = Self { cells: Mutex::default() };
        resolver.replace(destinations);
        resolver
    }

    /// Replaces the table; names that are gone become unknown.
    pub(super) fn replace(&self, destinations: HashMap<String, Destination>) {
        let mut cells = self.cells.lock();
        let mut next: HashMap<_, _> = destinations.into_iter().map(|(name, d)| (name, Arc::new(d))).collect();
        for (name, cell) in cells.iter() {
            cell.replace(next.remove(name).unwrap_or_else(|| Arc::new(Destination::Unknown)));
        }
        cells.extend(next.into_iter().map(|(name, d)| (name, Arc::new(DestinationCell::new(d)))));
    }
}

impl Resolver for FixedResolver {
    fn lookup(&self, name: &str) -> Option<Arc<DestinationCell>> {
        self.cells.lock().get(name).cloned()
    }

    fn resolve<'a>(&'a self, name: &'a str) -> Resolving<'a> {
        let mut cells = self.cells.lock();
        let unknown = || Arc::new(DestinationCell::new(Arc::new(Destination::Unknown)));
        let cell = cells.entry(name.to_owned()).or_insert_with(unknown).clone();
        Box::pin(async { Ok(cell) })
    }
}
