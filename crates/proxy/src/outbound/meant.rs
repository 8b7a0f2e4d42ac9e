//! What the application can have meant by what it dialled.

use std::sync::Arc;

use super::Dialled;
use crate::chain::Inspectors;
use crate::route::{self, Behind};
use crate::snapshot::{Destination, DestinationCell, ResolveError};
use crate::worker::Worker;

const EVERYTHING: Inspectors = Inspectors { tls: true, http: true };
const NOTHING: Inspectors = Inspectors { tls: false, http: false };

/// See the module's text.
pub(super) struct Meant {
    /// What is behind the address, or behind the port where nothing is declared of it at this address.
    pub(super) known: Result<Arc<DestinationCell>, ResolveError>,
    /// Where nothing is declared of it at this address: what of the first bytes may say whom they are for.
    pub(super) looks: Option<Inspectors>,
}

impl Meant {
    /// An address that says nothing of itself at the dialled port is asked for by the port (reference mtls 4.3): what
    /// somebody declares there is looked for in the first bytes, and a ServiceEntry without addresses gets the rest
    /// (SE-11). A workload with a sidecar is who it is, and nobody's entry stands in for it.
    pub(super) async fn of(worker: &Worker, dialled: &Dialled) -> Self {
        let known = worker.destinations.find(&dialled.name).await;
        let is_meshed = match &known {
            Ok(cell) => match route::behind(&cell.load(), dialled.port) {
                Behind::Undeclared(workload) => workload.is_some_and(|workload| workload.meshed),
                Behind::Service(..) | Behind::Headless(..) => return Self { known, looks: None },
            },
            Err(_) => return Self { known, looks: Some(EVERYTHING) },
        };
        if dialled.address.is_none() {
            return Self { known, looks: Some(EVERYTHING) };
        }
        let by_port = match worker.destinations.at_any_address(dialled.port).await {
            Ok(by_port) => by_port,
            // Nobody's entry stands in for it, so that there is nothing to miss.
            Err(_) if is_meshed => return Self { known, looks: Some(EVERYTHING) },
            Err(error) => return Self { known: Err(error), looks: Some(EVERYTHING) },
        };
        let (looks, is_meant) = match &**by_port.load() {
            Destination::AnyAddress(any) => {
                let declared = any.service.as_ref().and_then(|service| service.port(dialled.port));
                (Inspectors { tls: any.tls, http: any.http }, declared.is_some() && !is_meshed)
            }
            Destination::Service(_) | Destination::Workload(_) | Destination::Unknown => (NOTHING, false),
        };
        Self { known: if is_meant { Ok(by_port) } else { known }, looks: Some(looks) }
    }
}
