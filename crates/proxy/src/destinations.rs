//! A worker's own view of the destinations it uses.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::snapshot::{Destination, DestinationCell, ResolveError, Resolver, Workload};
use crate::worker::coarse_now_s;

/// Names kept by one worker. An application that dials more distinct names asks the agent again.
const MAX_NAMES: usize = 10_000;

/// Cells by name, so that a request on a known destination asks nobody.
pub(crate) struct Destinations {
    resolver: Arc<dyn Resolver>,
    known: RefCell<HashMap<Box<str>, Arc<DestinationCell>, foldhash::fast::RandomState>>,
}

impl Destinations {
    pub(crate) fn new(resolver: Arc<dyn Resolver>) -> Self {
        Self { resolver, known: RefCell::default() }
    }

    /// What is behind `name`: an IP address, or a host name in lower case without port.
    pub(crate) async fn find(&self, name: &str) -> Result<Arc<DestinationCell>, ResolveError> {
        if let Some(cell) = self.known.borrow().get(name)
            && !cell.is_retired()
        {
            cell.touch(coarse_now_s());
            return Ok(cell.clone());
        }
        let cell = match self.resolver.lookup(name) {
            Some(cell) if !cell.is_retired() => cell,
            _ => self.resolver.resolve(name).await?,
        };
        cell.touch(coarse_now_s());
        let mut known = self.known.borrow_mut();
        if known.len() >= MAX_NAMES {
            known.clear();
        }
        known.insert(name.into(), cell.clone());
        Ok(cell)
    }

    /// What a port means of addresses that say nothing of themselves.
    pub(crate) async fn at_any_address(&self, port: u16) -> Result<Arc<DestinationCell>, ResolveError> {
        self.find(&self.resolver.name_of_port(port)).await
    }

    /// Keeps the agent from forgetting what a port means, for as long as a connection that it was asked for carries requests.
    pub(crate) fn keep_any_address(&self, port: u16) {
        if let Some(cell) = self.known.borrow().get(&*self.resolver.name_of_port(port)) {
            cell.touch(coarse_now_s());
        }
    }

    /// The workload at `address`, for telemetry, if that is known by now. Otherwise it is asked for, and known a moment
    /// later.
    pub(crate) fn workload_at(&self, address: IpAddr) -> Option<Arc<Workload>> {
        let name = address.to_canonical().to_string();
        let held = self.known.borrow().get(name.as_str()).filter(|cell| !cell.is_retired()).cloned();
        let cell = match held.or_else(|| self.resolver.lookup(&name)) {
            Some(cell) => cell,
            None => {
                self.resolver.prefetch(&name);
                return None;
            }
        };
        cell.touch(coarse_now_s());
        match &**cell.load() {
            Destination::Workload(direct) => Some(direct.workload.clone()),
            Destination::Service(_) | Destination::Unknown | Destination::AnyAddress(_) => None,
        }
    }

    /// Forgets cells that the agent no longer keeps current.
    pub(crate) fn sweep(&self) {
        self.known.borrow_mut().retain(|_, cell| !cell.is_retired());
    }
}
