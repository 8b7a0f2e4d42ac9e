//! Destinations from a file, in place of a control plane.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use maille_core::PortProtocol;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::snapshot::{AnyAddress, Destination, DestinationCell, ResolveError, Resolver, Resolving, Service};
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
        let ports = by_port(&destinations);
        destinations.extend(
            ports.into_iter().map(|(port, any)| (self.name_of_port(port), Destination::AnyAddress(any))),
        );
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

/// What the ports of the table's services mean of addresses that are not in it, as the control plane would say it
/// (reference mtls 4.1). The table knows of no age: of several ServiceEntries with a port and no address, the first by
/// host name counts.
fn by_port(destinations: &HashMap<String, Destination>) -> BTreeMap<u16, AnyAddress> {
    let mut services: Vec<&Service> = destinations.values().filter_map(Destination::service).collect();
    services.sort_by(|a, b| a.name.hostname.cmp(&b.name.hostname));
    let mut ports: BTreeMap<u16, AnyAddress> = BTreeMap::new();
    for (service, port) in services.iter().flat_map(|s| s.ports.iter().map(move |port| (s, port))) {
        let any = ports.entry(port.number).or_default();
        let is_known_by_port = service.service_entry.is_some() && service.addresses.is_empty();
        match port.protocol {
            PortProtocol::Http | PortProtocol::Http2 => any.http = true,
            PortProtocol::Auto => any.http |= is_known_by_port,
            PortProtocol::Tcp => any.http |= port.takes_http(),
        }
        any.tls |= port.is_tls && service.service_entry.is_some();
        let is_opaque = !port.is_tls && matches!(port.protocol, PortProtocol::Auto | PortProtocol::Tcp);
        if is_opaque && is_known_by_port && any.service.is_none() {
            any.service = Some((*service).clone());
        }
    }
    ports
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
