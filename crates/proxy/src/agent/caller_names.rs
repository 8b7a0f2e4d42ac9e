//! Tells telemetry who called from an address, once the registry has said so.

use std::net::IpAddr;
use std::sync::Arc;

use maille_telemetry::{Names, Naming, WorkloadLabels};

use super::destinations::Destinations;
use crate::snapshot::{Destination, Resolver};

/// The destinations held, asked for callers.
pub(crate) struct CallerNames(pub(crate) Arc<Destinations>);

impl Names for CallerNames {
    fn name(&self, address: IpAddr, principal: &str) -> Naming {
        let name = address.to_canonical().to_string();
        let Some(cell) = self.0.lookup(&name) else {
            // There may have been no room for the question when the caller came.
            self.0.prefetch(&name);
            return Naming::Pending;
        };
        match &**cell.load() {
            Destination::Workload(direct) => {
                let workload = &direct.workload;
                let is_own = |identity: &maille_core::Identity| identity.to_string() == principal;
                if !principal.is_empty() && !workload.identity.as_ref().is_some_and(is_own) {
                    return Naming::Pending;
                }
                let labels = crate::record::peer(workload, None, None).workload;
                Naming::Named(Arc::new(WorkloadLabels {
                    principal: principal.to_owned(),
                    ..(*labels).clone()
                }))
            }
            Destination::Service(_) | Destination::Unknown | Destination::AnyAddress(_) => Naming::Pending,
        }
    }
}
