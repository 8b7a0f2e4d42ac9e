//! The stream of facts from the control plane, and what hangs on it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use maille_telemetry::Registry;
use maille_xds::{
    BoxError, Client, ClientError, ClientOptions, Driver, Handler, Rejection, Update, run_client, type_urls,
};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tonic::transport::Channel;
use tracing::{info, warn};

use super::channel::connect;
use super::destinations::{Destinations, SWEEP};
use super::facts_in_force::FactsInForce;
use super::identity::CredentialWatch;
use super::in_use::News;
use super::options::ProxyOptions;
use super::state::StateStore;
use crate::snapshot::Shared;

/// Changes that come together are stored together.
const STORE_DELAY: Duration = Duration::from_millis(500);

/// The connection in use, for what else travels on it.
pub(crate) type ChannelWatch = watch::Receiver<Option<Channel>>;

/// What the tasks of this module share.
pub(crate) struct Discovery {
    pub(crate) options: Arc<ProxyOptions>,
    pub(crate) telemetry: Arc<Registry>,
    pub(crate) facts: Arc<Mutex<FactsInForce>>,
    pub(crate) destinations: Arc<Destinations>,
    pub(crate) client: Client,
    pub(crate) shared: watch::Sender<Option<Shared>>,
    pub(crate) changed: Notify,
    /// Heard of after each update and each certificate.
    pub(crate) news: Arc<News>,
}

impl Discovery {
    /// Subscribes to what every proxy needs, and brings back what an earlier life left in `store`.
    pub(crate) fn start_over(&self, store: Option<&StateStore>) {
        let own = self.options.uid();
        let stored = store.map_or(Ok(Vec::new()), |store| store.load_facts(&own));
        let stored = stored.unwrap_or_else(|error| {
            warn!(%error, "stored facts are not used");
            Vec::new()
        });
        if !stored.is_empty() {
            info!(
                resources = stored.len(),
                "serving with the last good facts until the control plane answers"
            );
        }
        let mut updates: Vec<Update> = Vec::new();
        for resource in &stored {
            if resource.type_url == type_urls::DESTINATION
                && self.destinations.restore(&resource.name).is_err()
            {
                continue;
            }
            let body = prost_types::Any { type_url: resource.type_url.clone(), value: resource.body.clone() };
            let (name, version) = (resource.name.clone(), resource.version.clone());
            let held = maille_xds::Resource { name, version, body };
            match updates.iter_mut().find(|u| u.type_url == resource.type_url) {
                Some(update) => update.resources.push(held),
                None => updates.push(Update {
                    type_url: resource.type_url.clone(),
                    resources: vec![held],
                    ..Update::default()
                }),
            }
        }
        for set in [type_urls::AUTHORIZATION, type_urls::REQUEST_AUTHENTICATION] {
            if !updates.is_empty() && !updates.iter().any(|u| u.type_url == set) {
                // Only complete sets are stored, so that none means that none applied.
                updates.push(Update { type_url: set.to_owned(), ..Update::default() });
            }
        }
        let mut unusable = Vec::new();
        for update in updates {
            let type_url = update.type_url.clone();
            for rejection in self.facts.lock().apply(update).err().into_iter().flatten() {
                warn!(%type_url, name = %rejection.name, reason = %rejection.reason, "stored fact is not used");
                unusable.push((type_url.clone(), rejection.name));
            }
        }
        // Only what is in force counts as held; the rest is to be sent anew.
        let in_force =
            stored.iter().filter(|r| !unusable.iter().any(|(t, n)| *t == r.type_url && *n == r.name));
        self.client.resume(in_force.map(|r| (r.type_url.as_str(), r.name.as_str(), r.version.as_str())));
        for wildcard in [
            type_urls::MESH_SETTINGS,
            type_urls::TRUST_BUNDLE,
            type_urls::REVOCATIONS,
            type_urls::AUTHORIZATION,
            type_urls::REQUEST_AUTHENTICATION,
        ] {
            self.client.subscribe_wildcard(wildcard);
        }
        if let Err(error) = self.client.subscribe(type_urls::INBOUND, &own) {
            warn!(%error, "the own facts cannot be asked for");
        }
    }

    /// Tells the data path, when everything is there for the first time.
    pub(crate) fn publish(&self) {
        self.shared.send_if_modified(|shared| {
            let is_first = shared.is_none();
            if is_first {
                *shared = self.facts.lock().shared();
            }
            is_first && shared.is_some()
        });
    }

    /// Keeps the stream up for ever. Waits for a certificate first.
    pub(crate) async fn run(
        self: Arc<Self>,
        driver: Driver,
        client_options: ClientOptions,
        mut credential: CredentialWatch,
        channel: watch::Sender<Option<Channel>>,
    ) {
        if credential.wait_for(Option::is_some).await.is_err() {
            return;
        }
        let options = self.options.clone();
        let dial = move || {
            let (options, credential, channel) = (options.clone(), credential.clone(), channel.clone());
            async move {
                let svid = credential.borrow().as_ref().map(|c| c.svid.clone());
                let svid = svid.ok_or_else(|| BoxError::from("no workload certificate yet"))?;
                let server_name = options.server_name.as_deref();
                let fresh =
                    connect(&options.discovery_address, server_name, &options.root_file, Some(&svid)).await?;
                channel.send_replace(Some(fresh.clone()));
                Ok(fresh)
            }
        };
        run_client(driver, client_options, dial, Receiver { discovery: self, was_connected: true }).await;
    }

    /// Puts each new certificate in use, and shows it to the control plane.
    pub(crate) async fn follow_credential(self: Arc<Self>, mut credential: CredentialWatch) {
        loop {
            let current = credential.borrow_and_update().clone();
            if let Some(current) = current {
                let held = self.facts.lock().credential().cloned();
                if held.as_ref().is_none_or(|held| !Arc::ptr_eq(held, &current)) {
                    self.facts.lock().set_credential(current);
                    self.publish();
                    self.news.tell();
                    if held.is_some() {
                        self.client.reconnect();
                    }
                }
            }
            if credential.changed().await.is_err() {
                return;
            }
        }
    }

    /// Gives up destinations that nobody uses.
    pub(crate) async fn sweep(self: Arc<Self>) {
        loop {
            tokio::time::sleep(SWEEP).await;
            let gone = self.destinations.sweep();
            if !gone.is_empty() {
                self.changed.notify_one();
            }
            self.telemetry.gauges().destinations(self.destinations.len() as u64);
        }
    }

    /// Keeps the facts in force for the next start.
    pub(crate) async fn store(self: Arc<Self>, store: Arc<StateStore>) {
        let own = self.options.uid();
        loop {
            self.changed.notified().await;
            tokio::time::sleep(STORE_DELAY).await;
            let facts = self.facts.lock().stored();
            if facts.is_empty() {
                continue;
            }
            if let Err(error) = store.save_facts(&own, &facts) {
                warn!(%error, "the facts are not kept for a restart");
            }
        }
    }
}

/// How the control plane's refusal begins of a stream whose certificate is revoked.
pub(crate) const REVOKED: &str = "certificate revoked";
/// The same of one whose root was withdrawn.
const NOT_TRUSTED: &str = "certificate not trusted";

struct Receiver {
    discovery: Arc<Discovery>,
    /// So that an outage is said once, not at every attempt.
    was_connected: bool,
}

impl Handler for Receiver {
    fn connected(&mut self) {
        info!("connected to the control plane");
        self.was_connected = true;
        self.discovery.facts.lock().accepted();
        self.discovery.telemetry.gauges().xds_connected(true);
        self.discovery.destinations.outage(None);
    }

    fn disconnected(&mut self, error: &ClientError) {
        if let ClientError::Stream(status) = error
            && [REVOKED, NOT_TRUSTED].iter().any(|refused| status.message().starts_with(refused))
        {
            self.discovery.facts.lock().own_was_refused();
            self.discovery.news.tell();
        }
        if self.was_connected {
            warn!(%error, "no control plane; going on with the last good facts");
        }
        self.was_connected = false;
        self.discovery.telemetry.gauges().xds_connected(false);
        self.discovery.destinations.outage(Some(error.to_string()));
    }

    fn apply(&mut self, update: Update) -> Result<(), Vec<Rejection>> {
        let type_url = update.type_url.clone();
        let outcome = self.discovery.facts.lock().apply(update);
        let gauges = self.discovery.telemetry.gauges();
        gauges.xds_updated(SystemTime::now());
        if let Err(rejections) = &outcome {
            gauges.xds_rejected(rejections.len() as u64);
            for rejection in rejections {
                warn!(%type_url, name = %rejection.name, reason = %rejection.reason, "fact rejected");
            }
        }
        self.discovery.publish();
        self.discovery.changed.notify_one();
        self.discovery.news.tell();
        outcome
    }
}
