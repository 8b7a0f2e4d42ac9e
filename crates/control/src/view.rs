//! What one proxy may see, and when to tell it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use maille_config::destination_rule::Client;
use maille_core::{Labels, NamespacedName};
use maille_proto::discovery::DeltaDiscoveryResponse;
use maille_xds::type_urls::{
    AUTHORIZATION, CREDENTIAL, DESTINATION, INBOUND, MESH_SETTINGS, REQUEST_AUTHENTICATION, REVOCATIONS,
    TRUST_BUNDLE,
};
use maille_xds::{Dirty, Request, Resource, ServerState, View};
use tonic::Status;

use crate::attest::Peer;
use crate::facts::{REVOCATIONS_NAME, SETTINGS_NAME};
use crate::hub::{Hub, Subscription};
use crate::judge::StreamEnd;
use crate::metrics::Metrics;
use crate::proxies::ProxyHandle;
use crate::world::{Asked, CredentialSource, Key};

/// Secrets that one proxy watches.
const MAX_CREDENTIALS: usize = 1024;

/// The world as one attested proxy may see it: its own `Inbound`, the policies that apply to it, whatever
/// destination it asks for, and what everyone may know.
#[derive(Debug)]
pub(crate) struct PeerView {
    peer: Peer,
    own: NamespacedName,
    uid: String,
    subscription: Subscription,
    /// Destinations asked for, by what they depend on.
    asked: BTreeMap<Key, BTreeSet<String>>,
    /// Secrets and ConfigMaps asked for, of the own namespace.
    credentials: BTreeMap<Key, CredentialSource>,
    /// The root namespace, whose policies are watched beside those of the own namespace.
    root_namespace: String,
    /// The own labels, which DestinationRules may select.
    labels: Labels,
    end: StreamEnd,
    record: ProxyHandle,
    metrics: Arc<Metrics>,
}

impl PeerView {
    pub(crate) fn new(
        hub: &Arc<Hub>,
        peer: Peer,
        end: StreamEnd,
        record: ProxyHandle,
        metrics: Arc<Metrics>,
    ) -> Self {
        let own = peer.pod().name.clone();
        let mut subscription = hub.subscribe();
        let common = [Key::Workload(own.clone()), Key::Trust, Key::Revocations, Key::Settings];
        for key in common.into_iter().chain(watched_of(&own.namespace)) {
            subscription.watch(key);
        }
        // Read once the settings are watched, so that a change of it is heard of.
        let root_namespace = subscription.snapshot().world.config().root_namespace.clone();
        watched_of(&root_namespace).into_iter().for_each(|key| subscription.watch(key));
        let uid = own.to_string();
        // As they are now that changes are told; they may have changed since the peer was attested.
        let labels = match subscription.snapshot().world.pod(&own) {
            Some(pod) => pod.labels.clone(),
            None => peer.pod().labels.clone(),
        };
        Self {
            peer,
            own,
            uid,
            subscription,
            asked: BTreeMap::new(),
            credentials: BTreeMap::new(),
            root_namespace,
            labels,
            end,
            record,
            metrics,
        }
    }

    /// Whether the peer's right still holds.
    pub(crate) fn check(&self) -> Result<(), Status> {
        if self.peer.still_holds(&self.subscription.snapshot().world) {
            return Ok(());
        }
        tracing::info!(pod = %self.own, identity = %self.peer.identity(), "proxy's pod is gone; its stream ends");
        Err(Status::permission_denied("the pod of this proxy is gone"))
    }

    fn asked(&self, name: &str) -> Asked {
        let snapshot = self.subscription.snapshot();
        Asked::read(name, &self.own.namespace, &snapshot.world.config().cluster_domain)
    }

    fn policies(&self) -> Vec<Arc<Resource>> {
        let snapshot = self.subscription.snapshot();
        let policies = snapshot.world.policies_for(&self.own);
        policies.map(|policy| policy.fact().resource(policy.resource_name())).collect()
    }

    fn policy(&self, name: &str) -> Option<Arc<Resource>> {
        let snapshot = self.subscription.snapshot();
        let world = &snapshot.world;
        let (namespace, policy) = name.split_once('/')?;
        let policy = world.policy(namespace, policy)?;
        let applies = policy.applies_to(world.pod(&self.own)?, &world.config().root_namespace);
        applies.then(|| policy.fact().resource(name))
    }

    fn authentications(&self) -> Vec<Arc<Resource>> {
        let snapshot = self.subscription.snapshot();
        let found = snapshot.world.authentications_for(&self.own);
        found.map(|found| found.fact().resource(found.resource_name())).collect()
    }

    fn authentication(&self, name: &str) -> Option<Arc<Resource>> {
        let snapshot = self.subscription.snapshot();
        let world = &snapshot.world;
        let (namespace, found) = name.split_once('/')?;
        let found = world.authentication(namespace, found)?;
        let applies = found.applies_to(world.pod(&self.own)?, &world.config().root_namespace);
        applies.then(|| found.fact().resource(name))
    }

    fn client(&self) -> Client<'_> {
        Client { namespace: &self.own.namespace, labels: &self.labels }
    }

    fn credential(&self, name: &str) -> Option<Arc<Resource>> {
        let source = CredentialSource::parse(name)?;
        let snapshot = self.subscription.snapshot();
        Some(snapshot.credential(&source, self.client())?.resource(name))
    }

    fn inbound(&self) -> Option<Arc<Resource>> {
        Some(self.subscription.snapshot().inbound(&self.own)?.resource(self.uid.clone()))
    }

    /// Takes over the own labels as they are now; whether they changed.
    fn note_labels(&mut self) -> bool {
        let snapshot = self.subscription.snapshot();
        match snapshot.world.pod(&self.own) {
            Some(pod) if pod.labels != self.labels => {
                self.labels = pod.labels.clone();
                true
            }
            _ => false,
        }
    }

    /// Watches the policies of the root namespace as it is called now.
    fn follow_root_namespace(&mut self) {
        let now = self.subscription.snapshot().world.config().root_namespace.clone();
        if now == self.root_namespace {
            return;
        }
        let before = std::mem::replace(&mut self.root_namespace, now);
        watched_of(&self.root_namespace).into_iter().for_each(|key| self.subscription.watch(key));
        if before != self.own.namespace {
            watched_of(&before).iter().for_each(|key| self.subscription.unwatch(key));
        }
    }

    fn all_asked(&self) -> impl Iterator<Item = Dirty> {
        let all: BTreeSet<&String> = self.asked.values().flatten().collect();
        all.into_iter().map(|name| Dirty::Name(DESTINATION, name.clone()))
    }

    /// A proxy may ask for what is in its own namespace; whether a rule lets it have that is looked up each time.
    fn requested_credentials(&mut self, request: &Request) {
        for source in request.removed.iter().filter_map(|name| CredentialSource::parse(name)) {
            let key = Key::Credential(source);
            if self.credentials.remove(&key).is_some() {
                self.subscription.unwatch(&key);
            }
        }
        for name in &request.added {
            let source = CredentialSource::parse(name);
            let own = source.filter(|source| source.name().namespace == self.own.namespace);
            let Some(source) = own.filter(|_| self.credentials.len() < MAX_CREDENTIALS) else {
                self.metrics.refused_subscriptions.inc();
                tracing::warn!(
                    target: "maille::audit",
                    identity = %self.peer.identity(), pod = %self.own, asked = %name,
                    "proxy asked for a Secret of another namespace, or for too many; refused"
                );
                continue;
            };
            let key = Key::Credential(source.clone());
            self.subscription.watch(key.clone());
            self.credentials.insert(key, source);
        }
    }

    fn dirty_by(&self, key: &Key) -> Vec<Dirty> {
        let mut dirty = Vec::new();
        match key {
            Key::Workload(_) => {
                dirty.push(Dirty::Name(INBOUND, self.uid.clone()));
                // Other labels may be selected by other policies.
                dirty.push(Dirty::Type(AUTHORIZATION));
                dirty.push(Dirty::Type(REQUEST_AUTHENTICATION));
            }
            Key::Policies(_) => dirty.push(Dirty::Type(AUTHORIZATION)),
            Key::Authentications(_) => dirty.push(Dirty::Type(REQUEST_AUTHENTICATION)),
            Key::Trust => dirty.push(Dirty::Type(TRUST_BUNDLE)),
            Key::Revocations => dirty.push(Dirty::Type(REVOCATIONS)),
            Key::Settings => dirty.push(Dirty::Type(MESH_SETTINGS)),
            Key::Sidecars(_) => {
                dirty.push(Dirty::Type(MESH_SETTINGS));
                dirty.extend(self.all_asked());
            }
            Key::Credential(source) => dirty.push(Dirty::Name(CREDENTIAL, source.to_string())),
            Key::Service(_) | Key::Address(_) | Key::Port(_) | Key::Host(_) => {}
        }
        let names = self.asked.get(key).into_iter().flatten();
        dirty.extend(names.map(|name| Dirty::Name(DESTINATION, name.clone())));
        dirty
    }
}

/// What of a namespace is watched: the own one's and the root namespace's.
fn watched_of(namespace: &str) -> [Key; 3] {
    [
        Key::Policies(namespace.to_owned()),
        Key::Authentications(namespace.to_owned()),
        Key::Sidecars(namespace.to_owned()),
    ]
}

impl View for PeerView {
    fn list(&self, type_url: &str) -> Vec<Arc<Resource>> {
        let snapshot = self.subscription.snapshot();
        match type_url {
            AUTHORIZATION => self.policies(),
            REQUEST_AUTHENTICATION => self.authentications(),
            INBOUND => self.inbound().into_iter().collect(),
            MESH_SETTINGS => vec![snapshot.settings(self.client()).resource(SETTINGS_NAME)],
            REVOCATIONS => self.resource(REVOCATIONS, REVOCATIONS_NAME).into_iter().collect(),
            TRUST_BUNDLE => {
                let domains = snapshot.world.trust_domains().into_iter();
                domains.filter_map(|d| Some(snapshot.trust_bundle(d)?.resource(d.clone()))).collect()
            }
            // Destinations and credentials are on demand: a wildcard holds none.
            _ => Vec::new(),
        }
    }

    fn resource(&self, type_url: &str, name: &str) -> Option<Arc<Resource>> {
        let snapshot = self.subscription.snapshot();
        match type_url {
            DESTINATION => Some(snapshot.destination(&self.asked(name), self.client()).resource(name)),
            CREDENTIAL => self.credential(name),
            AUTHORIZATION => self.policy(name),
            REQUEST_AUTHENTICATION => self.authentication(name),
            INBOUND if name == self.uid => self.inbound(),
            MESH_SETTINGS if name == SETTINGS_NAME => Some(snapshot.settings(self.client()).resource(name)),
            REVOCATIONS if name == REVOCATIONS_NAME => Some(snapshot.revocations()?.resource(name)),
            TRUST_BUNDLE => Some(snapshot.trust_bundle(name)?.resource(name)),
            _ => None,
        }
    }

    async fn changed(&mut self) -> Result<Vec<Dirty>, Status> {
        let keys = tokio::select! {
            keys = self.subscription.changed() => keys,
            status = self.end.wait() => return Err(status),
        };
        self.check()?;
        if let Some(reason) = self.peer.revoked(&self.subscription.snapshot().world) {
            self.end.revoke(&reason);
        }
        self.metrics.woken.inc();
        self.follow_root_namespace();
        let mut dirty: Vec<_> = keys.iter().flat_map(|key| self.dirty_by(key)).collect();
        if self.note_labels() {
            // Rules and Sidecars select by them.
            dirty.extend(self.all_asked());
            dirty.push(Dirty::Type(MESH_SETTINGS));
            dirty.extend(self.credentials.values().map(|s| Dirty::Name(CREDENTIAL, s.to_string())));
        }
        Ok(dirty)
    }

    fn requested(&mut self, type_url: &str, request: &Request, state: &ServerState) {
        if type_url == DESTINATION {
            for name in &request.removed {
                for key in self.asked(name).keys() {
                    let Some(names) = self.asked.get_mut(&key) else { continue };
                    names.remove(name);
                    if names.is_empty() {
                        self.asked.remove(&key);
                        self.subscription.unwatch(&key);
                    }
                }
            }
            for name in &request.added {
                for key in self.asked(name).keys() {
                    self.subscription.watch(key.clone());
                    self.asked.entry(key).or_default().insert(name.clone());
                }
            }
        }
        if type_url == CREDENTIAL {
            self.requested_credentials(request);
        }
        if type_url == INBOUND
            && let Some(other) = request.added.iter().find(|name| **name != self.uid)
        {
            self.metrics.refused_subscriptions.inc();
            tracing::warn!(
                target: "maille::audit",
                identity = %self.peer.identity(), pod = %self.own, asked = %other,
                "proxy asked for another workload's inbound facts; refused"
            );
        }
        if let Some(reason) = &request.nacked {
            self.metrics.rejects.inc(type_url);
            tracing::warn!(pod = %self.own, r#type = type_url, %reason, "proxy rejected facts");
        }
        self.record.update(type_url, request, state);
    }

    fn sending(&mut self, response: &DeltaDiscoveryResponse, state: &ServerState) {
        self.metrics.pushes.inc(&response.type_url);
        self.record.sending(&response.type_url, state);
    }
}
