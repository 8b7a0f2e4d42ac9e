//! What keeps destinations current that depend on more than the control plane: names of endpoints that are looked up,
//! and files that DestinationRules name. It runs beside the workers, never on them.

mod credentials;
mod files;
mod follow;
mod lookup;
mod names;

use std::sync::Arc;

use maille_core::EndpointTls;

use crate::balance::States;
use crate::snapshot::{Destination, EndpointPort, NamedEndpoint, Resolution, Service};
use files::Files;
use names::Names;

pub(crate) use credentials::Credentials;
pub(crate) use follow::Following;
pub(crate) use lookup::{LookUp, Servers, dns};

/// See the module's text.
pub(crate) struct Upkeep {
    files: Arc<Files>,
    credentials: Arc<Credentials>,
    names: Arc<Names>,
    states: Arc<States>,
}

/// Where a destination that is kept current goes, each time it has changed.
pub(crate) type Publish = Box<dyn Fn(Destination) + Send>;

impl Upkeep {
    /// Nothing to keep yet. Names are asked of `servers`.
    pub(crate) fn new(servers: Servers) -> Arc<Self> {
        Arc::new(Self {
            files: Arc::default(),
            credentials: Arc::default(),
            names: Names::new(lookup::dns(servers)),
            states: Arc::default(),
        })
    }

    /// Keys and certificates from the control plane.
    pub(crate) fn credentials(&self) -> &Arc<Credentials> {
        &self.credentials
    }

    /// Watches files for ever.
    pub(crate) async fn run(self: Arc<Self>) {
        self.files.clone().run().await;
    }

    /// Takes what the control plane says of `name`. One that depends on nothing else is published at once; of one
    /// with names, `publish` hears when they have been looked up for the first time, and at every change, until the
    /// handle that is returned is dropped. Must be called within a runtime.
    pub(crate) fn take(
        &self,
        name: &str,
        mut destination: Destination,
        publish: Publish,
    ) -> Option<Following> {
        self.files.adopt(&self.credentials, &mut destination);
        let states = self.states.clone();
        let publish: Publish = Box::new(move |mut destination| {
            states.adopt(&mut destination);
            publish(destination);
        });
        let service = destination.service_mut().map(|service| {
            name_asked(service, name);
            &*service
        });
        if service.is_some_and(|service| !service.named_endpoints.is_empty()) {
            return Some(Following::start(&self.names, destination, publish));
        }
        publish(destination);
        None
    }
}

/// Gives a wildcard service whose names are looked up when they are used (SE-8) the name that was asked for as its
/// endpoint. An address has no name to look up, so that the service has no endpoint there.
fn name_asked(service: &mut Service, name: &str) {
    let is_name = name.parse::<std::net::IpAddr>().is_err() && !name.starts_with('*');
    if service.resolution != Resolution::NameAsked || !service.named_endpoints.is_empty() || !is_name {
        return;
    }
    let ports = service.ports.iter().map(|port| EndpointPort {
        service_port: port.number,
        target_port: port.target_port.unwrap_or(port.number),
        tls: EndpointTls::Plaintext,
    });
    let ports = ports.collect();
    service.named_endpoints.push(NamedEndpoint {
        workload: Arc::default(),
        dns_name: name.into(),
        ports,
        weight: 1,
    });
}
