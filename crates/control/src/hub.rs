//! Where the current world is published, and subscribers are woken.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use maille_config::destination_rule::Client;
use maille_core::NamespacedName;
use maille_xds::type_urls::{CREDENTIAL, DESTINATION, INBOUND, MESH_SETTINGS, REVOCATIONS, TRUST_BUNDLE};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, timeout_at};

use crate::facts::{self, Fact};
use crate::world::{Asked, ChangeSet, CredentialSource, Event, Key, KeySource, Scope, World};

/// Longest that a change waits for others to travel with it. A policy must be in force everywhere within
/// a second; a burst (a Deployment's pods, a relist) should not be derived object by object.
const DEBOUNCE_MAX: Duration = Duration::from_millis(20);
/// A change travels on when nothing followed it for this long.
const DEBOUNCE_QUIET: Duration = Duration::from_millis(3);

/// One world, and the facts derived from it so far.
#[derive(Debug)]
pub struct Snapshot {
    /// The world.
    pub world: World,
    /// Destinations by what they depend on and who asks; the same for many subscribers, so encoded once.
    destinations: Mutex<HashMap<(Key, Scope), Arc<Fact>>>,
}

impl Snapshot {
    fn new(world: World) -> Self {
        Self { world, destinations: Mutex::default() }
    }

    /// The snapshot that follows, with the facts that still hold.
    fn next(&self, world: World, changes: &ChangeSet) -> Self {
        let held = self.destinations.lock();
        let holding = held.iter().filter(|((key, _), _)| !changes.contains(key));
        let destinations = holding.map(|(at, fact)| (at.clone(), Arc::clone(fact))).collect();
        drop(held);
        Self { world, destinations: Mutex::new(destinations) }
    }

    /// The answer to a client's question about a destination.
    pub fn destination(&self, asked: &Asked, client: Client<'_>) -> Arc<Fact> {
        let derive = || Arc::new(Fact::of(DESTINATION, &facts::destination(&self.world, asked, client)));
        let Some(key) = self.remembered_by(asked, client) else { return derive() };
        let at = (key, self.world.scope_of(client));
        // Derived outside of the lock: twice at worst, and the same.
        let known = self.destinations.lock().get(&at).cloned();
        known.unwrap_or_else(|| {
            let fact = derive();
            self.destinations.lock().insert(at, Arc::clone(&fact));
            fact
        })
    }

    /// What is not there is not remembered, nor what is there by a wildcard or within a block of addresses: anyone can
    /// ask for anything.
    fn remembered_by(&self, asked: &Asked, client: Client<'_>) -> Option<Key> {
        let world = &self.world;
        let sight = world.sight_of(client);
        match asked {
            Asked::Host(host) => {
                let service = host.service.as_ref().and_then(|name| world.service(name));
                if let Some(service) = service {
                    // Hidden, the name may be somebody else's, whose changes are not the service's.
                    let seen = sight.sees_service(service, &world.full_name(&service.name));
                    return seen.then(|| Key::Service(service.name.clone()));
                }
                {
                    let key = Key::host(&host.host);
                    // What is remembered by a host's key must not outlast a service that takes the name.
                    let can_be_an_entrys = !world.is_below_service(host);
                    (can_be_an_entrys && world.is_claimed(&key, &host.host)).then_some(key)
                }
            }
            Asked::Address(address) => {
                let key = Key::Address(*address);
                let exists = world.service_at(*address).is_some()
                    || world.pod_at(*address).is_some()
                    || world.is_claimed(&key, "");
                exists.then_some(key)
            }
            // No more of them than ports that somebody declares.
            Asked::Port(port) => world.is_declared(port.number).then_some(Key::Port(*port)),
            Asked::Nothing => None,
        }
    }

    /// What a pod's own proxy enforces.
    pub fn inbound(&self, pod: &NamespacedName) -> Option<Fact> {
        let pod = self.world.pod(pod)?;
        Some(Fact::of(INBOUND, &facts::inbound(&self.world, pod)))
    }

    /// The mesh's settings, as they hold for a client.
    pub fn settings(&self, client: Client<'_>) -> Fact {
        Fact::of(MESH_SETTINGS, &facts::mesh_settings(&self.world, client))
    }

    /// Keys and certificates that a rule names, if it names them for this client. Never remembered.
    pub fn credential(&self, source: &CredentialSource, client: Client<'_>) -> Option<Fact> {
        Some(Fact::of(CREDENTIAL, &facts::credential(&self.world, source, client)?))
    }

    /// The roots of one trust domain.
    pub fn trust_bundle(&self, trust_domain: &str) -> Option<Fact> {
        Some(Fact::of(TRUST_BUNDLE, &facts::trust_bundle(&self.world, trust_domain)?))
    }

    /// Who is revoked; `None` if nobody is.
    pub fn revocations(&self) -> Option<Fact> {
        Some(Fact::of(REVOCATIONS, &facts::revocations(&self.world)?))
    }
}

/// The published world and its subscribers.
#[derive(Debug)]
pub struct Hub {
    current: ArcSwap<Snapshot>,
    /// Held while a world is made of the one before, so that none is lost.
    writing: Mutex<()>,
    /// Counts publications, for those who wait for the world to learn something.
    generation: watch::Sender<u64>,
    /// The sources of keys that the world names.
    key_sources: watch::Sender<BTreeMap<KeySource, Duration>>,
    /// The Secrets and ConfigMaps that the world names.
    credential_sources: watch::Sender<BTreeMap<CredentialSource, u64>>,
    subscribers: Mutex<Subscribers>,
}

#[derive(Debug, Default)]
struct Subscribers {
    last_id: u64,
    mailboxes: HashMap<u64, Arc<Mailbox>>,
    by_key: BTreeMap<Key, BTreeSet<u64>>,
}

/// Changed keys that one subscriber has not looked at yet. Holds only keys it watches, so it is bounded by
/// its subscriptions.
#[derive(Debug, Default)]
struct Mailbox {
    keys: Mutex<BTreeSet<Key>>,
    wake: Notify,
}

impl Hub {
    /// A hub over a first world.
    pub fn new(world: World) -> Arc<Self> {
        Arc::new(Self {
            key_sources: watch::Sender::new(world.key_sources()),
            credential_sources: watch::Sender::new(world.credential_sources()),
            current: ArcSwap::from_pointee(Snapshot::new(world)),
            writing: Mutex::default(),
            generation: watch::Sender::new(0),
            subscribers: Mutex::default(),
        })
    }

    /// The current world.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Applies events in order, publishes the outcome, and wakes the subscribers concerned.
    pub fn apply(&self, events: impl IntoIterator<Item = Event>) {
        let _writing = self.writing.lock();
        let before = self.current.load_full();
        let mut world = before.world.clone();
        let mut changes = ChangeSet::default();
        for event in events {
            world.apply(event, &mut changes);
        }
        if !world.shares_key_sources(&before.world) {
            let sources = world.key_sources();
            self.key_sources.send_if_modified(|known| {
                *known != sources && {
                    *known = sources;
                    true
                }
            });
        }
        if !world.shares_credentials(&before.world) {
            let sources = world.credential_sources();
            self.credential_sources.send_if_modified(|known| {
                *known != sources && {
                    *known = sources;
                    true
                }
            });
        }
        // Kept even if nothing changes for anybody: a policy may come before the first Pod that it is about.
        self.current.store(Arc::new(before.next(world, &changes)));
        self.generation.send_modify(|n| *n += 1);
        let subscribers = self.subscribers.lock();
        for (key, concerned) in changes.among(&subscribers.by_key) {
            for mailbox in concerned {
                if let Some(mailbox) = subscribers.mailboxes.get(mailbox) {
                    mailbox.keys.lock().insert(key.clone());
                    mailbox.wake.notify_one();
                }
            }
        }
    }

    /// Applies events as they come, close ones together, until the senders are gone.
    pub async fn run(&self, mut events: mpsc::Receiver<Event>) {
        while let Some(first) = events.recv().await {
            let deadline = Instant::now() + DEBOUNCE_MAX;
            let mut batch = vec![first];
            loop {
                let quiet = (Instant::now() + DEBOUNCE_QUIET).min(deadline);
                match timeout_at(quiet, events.recv()).await {
                    Ok(Some(event)) => batch.push(event),
                    Ok(None) | Err(_) => break,
                }
            }
            self.apply(batch);
        }
    }

    /// Tells of publications.
    pub fn generations(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// The sources of keys that the world names, each with how long a fetch may take.
    pub fn key_sources(&self) -> watch::Receiver<BTreeMap<KeySource, Duration>> {
        self.key_sources.subscribe()
    }

    /// The Secrets and ConfigMaps that the world's rules name ([`World::credential_sources`]).
    pub fn credential_sources(&self) -> watch::Receiver<BTreeMap<CredentialSource, u64>> {
        self.credential_sources.subscribe()
    }

    /// Waits until the world is complete ([`World::is_complete`]).
    pub async fn complete(&self) {
        let mut generation = self.generation.subscribe();
        while !self.snapshot().world.is_complete() {
            // The sender is in `self`, so it does not go away.
            let _ = generation.changed().await;
        }
    }

    /// Waits until the world answers, or the time is up.
    pub async fn wait_for<T>(&self, deadline: Instant, look: impl Fn(&World) -> Option<T>) -> Option<T> {
        let mut generation = self.generation.subscribe();
        loop {
            generation.mark_unchanged();
            if let Some(found) = look(&self.snapshot().world) {
                return Some(found);
            }
            timeout_at(deadline, generation.changed()).await.ok()?.ok()?;
        }
    }

    /// A new subscriber that watches nothing yet.
    pub fn subscribe(self: &Arc<Self>) -> Subscription {
        let mailbox = Arc::new(Mailbox::default());
        let mut subscribers = self.subscribers.lock();
        subscribers.last_id += 1;
        let id = subscribers.last_id;
        subscribers.mailboxes.insert(id, Arc::clone(&mailbox));
        Subscription { hub: Arc::clone(self), id, mailbox, keys: BTreeSet::new() }
    }
}

/// A subscriber's place at the hub; dropping it ends it.
#[derive(Debug)]
pub struct Subscription {
    hub: Arc<Hub>,
    id: u64,
    mailbox: Arc<Mailbox>,
    keys: BTreeSet<Key>,
}

impl Subscription {
    /// The current world.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.hub.snapshot()
    }

    /// Watches a key. What is read from a snapshot taken afterwards will be followed by any change to it.
    pub fn watch(&mut self, key: Key) {
        if self.keys.insert(key.clone()) {
            self.hub.subscribers.lock().by_key.entry(key).or_default().insert(self.id);
        }
    }

    /// Watches a key no more.
    pub fn unwatch(&mut self, key: &Key) {
        if self.keys.remove(key) {
            self.hub.subscribers.lock().forget(key, self.id);
            self.mailbox.keys.lock().remove(key);
        }
    }

    /// Waits for changes to what is watched. Cancel safe.
    pub async fn changed(&mut self) -> BTreeSet<Key> {
        loop {
            let keys = std::mem::take(&mut *self.mailbox.keys.lock());
            if !keys.is_empty() {
                return keys;
            }
            self.mailbox.wake.notified().await;
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut subscribers = self.hub.subscribers.lock();
        subscribers.mailboxes.remove(&self.id);
        for key in &self.keys {
            subscribers.forget(key, self.id);
        }
    }
}

impl Subscribers {
    fn forget(&mut self, key: &Key, id: u64) {
        if let Some(ids) = self.by_key.get_mut(key) {
            ids.remove(&id);
            if ids.is_empty() {
                self.by_key.remove(key);
            }
        }
    }
}
