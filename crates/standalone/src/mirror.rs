//! A local copy of one kind of object, kept by a watch.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::{Arc, Weak};

use futures::StreamExt as _;
use kube::api::Api;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Resource, ResourceExt as _};
use parking_lot::{Mutex, RwLock};
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, watch};

/// Namespace and name; the namespace is empty for kinds without one.
pub(crate) type Key = (String, String);

/// The key of an object.
pub(crate) fn key_of<K: Resource>(object: &K) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

/// All objects of one kind, as of the last event.
#[derive(Debug)]
pub(crate) struct Mirror<K> {
    objects: RwLock<BTreeMap<Key, Arc<K>>>,
    subscribers: Mutex<Vec<Weak<Changes>>>,
    synced: watch::Sender<bool>,
}

/// Keys that changed since the last look; a key that changes often is there once.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    keys: Mutex<BTreeSet<Key>>,
    notify: Notify,
}

impl Changes {
    /// All keys that changed since the last call; waits for one. Cancel-safe.
    pub(crate) async fn next(&self) -> BTreeSet<Key> {
        loop {
            let taken = std::mem::take(&mut *self.keys.lock());
            if !taken.is_empty() {
                return taken;
            }
            self.notify.notified().await;
        }
    }

    /// Adds a key, to look at it (again).
    pub(crate) fn add(&self, key: Key) {
        self.keys.lock().insert(key);
        self.notify.notify_one();
    }
}

impl<K> Default for Mirror<K> {
    fn default() -> Self {
        Self { objects: RwLock::default(), subscribers: Mutex::default(), synced: watch::Sender::new(false) }
    }
}

impl<K> Mirror<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    /// Follows the API for ever, also through its restarts.
    pub(crate) async fn follow(self: Arc<Self>, api: Api<K>) {
        let mut events = watcher(api, watcher::Config::default()).default_backoff().boxed();
        let mut initial = BTreeMap::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Apply(object)) => self.note(object),
                Ok(watcher::Event::Delete(object)) => {
                    let key = key_of(&object);
                    self.objects.write().remove(&key);
                    self.publish([key]);
                }
                Ok(watcher::Event::Init) => initial.clear(),
                Ok(watcher::Event::InitApply(object)) => {
                    initial.insert(key_of(&object), Arc::new(object));
                }
                Ok(watcher::Event::InitDone) => {
                    let new = std::mem::take(&mut initial);
                    let old = std::mem::replace(&mut *self.objects.write(), new.clone());
                    self.publish(old.into_keys().chain(new.into_keys()));
                    self.synced.send_replace(true);
                }
                Err(error) => {
                    tracing::debug!(kind = %std::any::type_name::<K>(), %error, "watch broke, will resume")
                }
            }
        }
    }

    /// Takes in a newer state: from the watch, or the answer to a write of our own, so that the next decision
    /// already knows of it. An older state than the one held is dropped.
    pub(crate) fn note(&self, object: K) {
        let key = key_of(&object);
        {
            let mut objects = self.objects.write();
            if let Some(held) = objects.get(&key)
                && held.meta().uid == object.meta().uid
                && version(held.as_ref()) > version(&object)
            {
                return;
            }
            objects.insert(key.clone(), Arc::new(object));
        }
        self.publish([key]);
    }

    fn publish(&self, keys: impl IntoIterator<Item = Key>) {
        let keys: Vec<Key> = keys.into_iter().collect();
        self.subscribers.lock().retain(|subscriber| {
            let Some(subscriber) = subscriber.upgrade() else { return false };
            subscriber.keys.lock().extend(keys.iter().cloned());
            subscriber.notify.notify_one();
            true
        });
    }

    /// Waits until the first full list has come.
    pub(crate) async fn wait_synced(&self) {
        // The sender lives in self, so this cannot fail while we wait.
        let _ = self.synced.subscribe().wait_for(|synced| *synced).await;
    }

    /// What changes from now on, and all there is now; ends when the answer is dropped.
    pub(crate) fn subscribe(&self) -> Arc<Changes> {
        let changes = Arc::new(Changes::default());
        self.subscribers.lock().push(Arc::downgrade(&changes));
        for key in self.objects.read().keys() {
            changes.add(key.clone());
        }
        changes
    }

    /// One object.
    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.objects.read().get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    /// All objects.
    pub(crate) fn all(&self) -> Vec<Arc<K>> {
        self.objects.read().values().cloned().collect()
    }
}

/// Resource versions are opaque to clients in general; ours count up.
fn version<K: Resource>(object: &K) -> u64 {
    object.meta().resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(u64::MAX)
}
