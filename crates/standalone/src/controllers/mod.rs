//! Deployment, ReplicaSet and EndpointSlice controllers.
//!
//! One worker takes keys from a set that watches fill, reads what it needs afresh from the API, and
//! writes what differs. Nothing is decided from a cache, so nothing is done twice because a cache
//! was behind; on one machine the few extra reads cost nothing that anyone would notice.

mod deployment;
mod endpoints;
mod ownership;
mod pods;
mod replicaset;
mod rollout;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use maille_config::k8s::api::apps::v1::{Deployment, ReplicaSet};
use maille_config::k8s::api::core::v1::{Pod, Service};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tracing::{debug, warn};

use crate::kubelet::Recorder;

/// A wait between failing attempts at the same key.
const RETRY: Duration = Duration::from_millis(500);

/// How often everything is looked at again, for what depends on time alone (deadlines, `minReadySeconds`).
const RESYNC: Duration = Duration::from_secs(5);

/// What has to be looked at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Deployment {
        namespace: String,
        name: String,
    },
    ReplicaSet {
        namespace: String,
        name: String,
    },
    Service {
        namespace: String,
        name: String,
    },
    /// Every Service of a namespace: one of its Pods changed.
    Services {
        namespace: String,
    },
}

/// The keys that wait, each at most once.
#[derive(Default)]
struct Queue {
    keys: Mutex<BTreeSet<Key>>,
    filled: Notify,
}

impl Queue {
    fn add(&self, key: Key) {
        self.keys.lock().insert(key);
        self.filled.notify_one();
    }

    async fn take(&self) -> BTreeSet<Key> {
        loop {
            let taken = std::mem::take(&mut *self.keys.lock());
            if !taken.is_empty() {
                return taken;
            }
            self.filled.notified().await;
        }
    }
}

/// Runs the controllers until it is dropped. Errors of the API are logged and retried.
pub(crate) async fn run(client: Client, events: Recorder) {
    let queue = Arc::new(Queue::default());
    tokio::join!(
        watch::<Deployment>(&client, &queue, of_deployment),
        watch::<ReplicaSet>(&client, &queue, of_replica_set),
        watch::<Pod>(&client, &queue, of_pod),
        watch::<Service>(&client, &queue, of_service),
        work(&client, &events, &queue),
        resync(&client, &queue),
    );
}

/// Feeds the queue from a watch that is resumed for ever.
async fn watch<K>(client: &Client, queue: &Queue, keys: fn(&K) -> Vec<Key>)
where
    K: kube::Resource<DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned
        + Send
        + 'static,
{
    let mut events = watcher::watcher(Api::<K>::all(client.clone()), watcher::Config::default()).boxed();
    while let Some(event) = events.next().await {
        match event {
            Ok(
                watcher::Event::Apply(object)
                | watcher::Event::InitApply(object)
                | watcher::Event::Delete(object),
            ) => {
                keys(&object).into_iter().for_each(|key| queue.add(key));
            }
            Ok(watcher::Event::Init | watcher::Event::InitDone) => {}
            Err(error) => {
                debug!(%error, kind = %K::kind(&()), "watch interrupted");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

async fn work(client: &Client, events: &Recorder, queue: &Queue) {
    loop {
        for key in queue.take().await {
            if let Err(error) = reconcile(client, events, &key).await {
                // A conflict means that somebody else was faster; the next look sees their work.
                if !is_conflict(&error) {
                    warn!(?key, %error, "cannot bring about what is asked; trying again");
                }
                tokio::time::sleep(RETRY / 10).await;
                queue.add(key);
            }
        }
    }
}

async fn reconcile(client: &Client, events: &Recorder, key: &Key) -> Result<(), kube::Error> {
    match key {
        Key::Deployment { namespace, name } => deployment::reconcile(client, namespace, name).await,
        Key::ReplicaSet { namespace, name } => replicaset::reconcile(client, events, namespace, name).await,
        Key::Service { namespace, name } => endpoints::reconcile(client, namespace, name).await,
        Key::Services { namespace } => endpoints::reconcile_all(client, namespace).await,
    }
}

async fn resync(client: &Client, queue: &Queue) {
    loop {
        tokio::time::sleep(RESYNC).await;
        if let Ok(deployments) = Api::<Deployment>::all(client.clone()).list(&Default::default()).await {
            deployments.iter().flat_map(of_deployment).for_each(|key| queue.add(key));
        }
        if let Ok(replica_sets) = Api::<ReplicaSet>::all(client.clone()).list(&Default::default()).await {
            replica_sets.iter().flat_map(of_replica_set).for_each(|key| queue.add(key));
        }
    }
}

fn of_deployment(deployment: &Deployment) -> Vec<Key> {
    vec![Key::Deployment {
        namespace: deployment.namespace().unwrap_or_default(),
        name: deployment.name_any(),
    }]
}

fn of_replica_set(replica_set: &ReplicaSet) -> Vec<Key> {
    let namespace = replica_set.namespace().unwrap_or_default();
    let mut keys = vec![Key::ReplicaSet { namespace: namespace.clone(), name: replica_set.name_any() }];
    if let Some(owner) = ownership::controller(replica_set, "Deployment") {
        keys.push(Key::Deployment { namespace, name: owner.name.clone() });
    }
    keys
}

fn of_pod(pod: &Pod) -> Vec<Key> {
    let namespace = pod.namespace().unwrap_or_default();
    let mut keys = vec![Key::Services { namespace: namespace.clone() }];
    if let Some(owner) = ownership::controller(pod, "ReplicaSet") {
        keys.push(Key::ReplicaSet { namespace, name: owner.name.clone() });
    }
    keys
}

fn of_service(service: &Service) -> Vec<Key> {
    vec![Key::Service { namespace: service.namespace().unwrap_or_default(), name: service.name_any() }]
}

fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

/// Whether the API says that there is no such object.
fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}
