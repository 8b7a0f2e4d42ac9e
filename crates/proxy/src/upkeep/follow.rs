//! One destination whose endpoints are names.

use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::Publish;
use super::names::{Known, Names};
use crate::snapshot::{Destination, Endpoint, Resolution, Service};

/// Names of one destination, and endpoints that they give; one with more is cut short.
const MAX_NAMES: usize = 64;
const MAX_ENDPOINTS: usize = 256;

/// Keeps a destination current until it is dropped.
pub(crate) struct Following(JoinHandle<()>);

impl Drop for Following {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Following {
    pub(super) fn start(names: &Arc<Names>, destination: Destination, publish: Publish) -> Self {
        let named = destination.service().into_iter().flat_map(|service| &service.named_endpoints);
        let wanted = named.take(MAX_NAMES);
        let watched: Vec<_> = wanted.map(|endpoint| names.follow(&endpoint.dns_name)).collect();
        Self(tokio::spawn(follow(destination, watched, publish)))
    }
}

async fn follow(
    destination: Destination,
    mut watched: Vec<watch::Receiver<Option<Known>>>,
    publish: Publish,
) {
    loop {
        for receiver in &mut watched {
            if receiver.wait_for(Option::is_some).await.is_err() {
                return;
            }
        }
        let known: Vec<_> = watched.iter_mut().map(|receiver| receiver.borrow_and_update().clone()).collect();
        let mut full = destination.clone();
        if let Some(service) = full.service_mut() {
            add_addresses(service, &known);
        }
        publish(full);
        let changes = watched.iter_mut().map(|receiver| {
            Box::pin(async move {
                if receiver.changed().await.is_err() {
                    // There was no room for the name: it stays as it is.
                    std::future::pending::<()>().await;
                }
            })
        });
        futures::future::select_all(changes).await;
    }
}

/// Gives a service what its names stand for.
fn add_addresses(service: &mut Service, known: &[Option<Known>]) {
    for (named, known) in service.named_endpoints.iter().zip(known.iter().flatten()) {
        if service.lookup_failure.is_none() {
            service.lookup_failure.clone_from(&known.failure);
        }
        let wanted = match service.resolution {
            // SE-7.
            Resolution::DnsFirst => 1,
            Resolution::Listed | Resolution::Dns | Resolution::Dialled | Resolution::NameAsked => usize::MAX,
        };
        let endpoints = known.addresses.iter().take(wanted).map(|address: &IpAddr| Endpoint {
            workload: named.workload.clone(),
            address: *address,
            other_address: None,
            ports: named.ports.clone(),
            weight: named.weight,
            unix_path: None,
        });
        let room = MAX_ENDPOINTS.saturating_sub(service.endpoints.len());
        service.endpoints.extend(endpoints.take(room));
    }
}
