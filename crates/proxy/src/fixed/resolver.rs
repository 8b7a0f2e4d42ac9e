//! Destinations from a file, in place of a control plane.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::snapshot::{Destination, DestinationCell, ResolveError, Resolver, Resolving};
use crate::upkeep::{Following, Upkeep};

/// How long a first use waits for names to be looked up.
const WAIT: Duration = Duration::from_secs(5);

/// Answers from a table; what is not in it is unknown, with authority.
pub(super) struct FixedResolver {
    runtime: Handle,
    upkeep: Arc<Upkeep>,
    held: Mutex<HashMap<String, Held>>,
}

/// One name of the table.
struct Held {
    cell: Arc<DestinationCell>,
    /// Whether everything in it has been looked up.
    is_known: watch::Sender<bool>,
    following: Option<Following>,
}

impl Held {
    fn unknown(is_known: bool) -> Self {
        Self {
            cell: Arc::new(DestinationCell::new(Arc::new(Destination::Unknown))),
            is_known: watch::Sender::new(is_known),
            following: None,
        }
    }
}

impl FixedResolver {
    pub(super) fn new(
        runtime: Handle,
        upkeep: Arc<Upkeep>,
        destinations: HashMap<String, Destination>,
    ) -> Self {
        let resolver = Self { runtime, upkeep, held: Mutex::default() };
        resolver.replace(destinations);
        resolver
    }

    /// Replaces the table; names that are gone become unknown.
    pub(super) fn replace(&self, mut destinations: HashMap<String, Destination>) {
        let _runtime = self.runtime.enter();
        let mut all = self.held.lock();
        for name in all.keys() {
            destinations.entry(name.clone()).or_insert(Destination::Unknown);
        }
        for (name, destination) in destinations {
            let held = all.entry(name.clone()).or_insert_with(|| Held::unknown(false));
            let (cell, is_known) = (held.cell.clone(), held.is_known.clone());
            let publish = Box::new(move |destination| {
                cell.replace(Arc::new(destination));
                is_known.send_replace(true);
            });
            held.following = self.upkeep.take(&name, destination, publish);
        }
    }
}

impl Resolver for FixedResolver {
    fn lookup(&self, name: &str) -> Option<Arc<DestinationCell>> {
        let all = self.held.lock();
        let held = all.get(name)?;
        let is_known = *held.is_known.borrow();
        is_known.then(|| held.cell.clone())
    }

    fn resolve<'a>(&'a self, name: &'a str) -> Resolving<'a> {
        let (cell, mut is_known) = {
            let mut all = self.held.lock();
            let held = all.entry(name.to_owned()).or_insert_with(|| Held::unknown(true));
            (held.cell.clone(), held.is_known.subscribe())
        };
        Box::pin(async move {
            match tokio::time::timeout(WAIT, is_known.wait_for(|known| *known)).await {
                Ok(Ok(_)) => Ok(cell),
                _ => Err(ResolveError::Refused {
                    name: name.to_owned(),
                    reason: format!("the names of its endpoints were not looked up within {WAIT:?}"),
                }),
            }
        })
    }
}
