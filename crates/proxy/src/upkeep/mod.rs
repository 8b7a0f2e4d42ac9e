//! What keeps destinations current that depend on more than the control plane: names of endpoints that are looked up,
//! and files that DestinationRules name. It runs beside the workers, never on them.

mod files;
mod follow;
mod lookup;
mod names;

use std::sync::Arc;

use crate::snapshot::Destination;
use files::Files;
use names::Names;

pub(crate) use follow::Following;
pub(crate) use lookup::{LookUp, Servers, dns};

/// See the module's text.
pub(crate) struct Upkeep {
    files: Arc<Files>,
    names: Arc<Names>,
}

/// Where a destination that is kept current goes, each time it has changed.
pub(crate) type Publish = Box<dyn Fn(Destination) + Send>;

impl Upkeep {
    /// Nothing to keep yet. Names are asked of `servers`.
    pub(crate) fn new(servers: Servers) -> Arc<Self> {
        Arc::new(Self { files: Arc::default(), names: Names::new(lookup::dns(servers)) })
    }

    /// Watches files for ever.
    pub(crate) async fn run(self: Arc<Self>) {
        self.files.clone().run().await;
    }

    /// Takes a destination that the control plane sent. One that depends on nothing else is published at once; of one
    /// with names, `publish` hears when they have been looked up for the first time, and at every change, until the
    /// handle that is returned is dropped. Must be called within a runtime.
    pub(crate) fn take(&self, mut destination: Destination, publish: Publish) -> Option<Following> {
        self.files.adopt(&mut destination);
        match destination {
            Destination::Service(service) if !service.named_endpoints.is_empty() => {
                Some(Following::start(&self.names, service, publish))
            }
            other => {
                publish(other);
                None
            }
        }
    }
}
