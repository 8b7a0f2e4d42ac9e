//! The controllers: what makes Pods, what leads to them, and where they keep their data.
//!
//! One worker takes keys from a set that watches fill, reads what it needs afresh from the API, and
//! writes what differs. Nothing is decided from a cache, so nothing is done twice because a cache
//! was behind; on one machine the few extra reads cost nothing that anyone would notice.

mod claims;
mod cronjob;
mod daemonset;
mod deployment;
mod endpoints;
mod job;
mod ownership;
mod pods;
mod queue;
mod replicaset;
mod revisions;
mod rollout;
mod statefulset;

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use maille_config::k8s::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use maille_config::k8s::api::batch::v1::{CronJob, Job};
use maille_config::k8s::api::core::v1::{PersistentVolumeClaim, Pod, Service};
use tracing::{debug, warn};

use crate::kubelet::Recorder;
use crate::state::DataDir;
use queue::{Key, Kind, Queue};

/// A wait between failing attempts at the same key.
const RETRY: Duration = Duration::from_millis(500);

/// How often everything is looked at again, for what depends on time alone (deadlines, `minReadySeconds`).
const RESYNC: Duration = Duration::from_secs(5);

/// What every controller works with.
struct Desk {
    client: Client,
    events: Recorder,
    data: DataDir,
}

impl Desk {
    fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Tells people of something that happened to an object.
    fn tell<K>(&self, object: &K, warning: bool, reason: &str, message: String, component: &'static str)
    where
        K: kube::Resource<DynamicType = ()>,
    {
        self.events.record(ownership::object_reference(object), warning, reason, message, component);
    }
}

/// When to look at an object again although nothing changes.
type Again = Option<Duration>;

/// Runs the controllers until it is dropped. Errors of the API are logged and retried.
pub(crate) async fn run(client: Client, events: Recorder, data: DataDir) {
    let queue = Arc::new(Queue::default());
    let desk = Desk { client: client.clone(), events, data };
    tokio::join!(
        watch::<Deployment>(&client, &queue, of_deployment),
        watch::<ReplicaSet>(&client, &queue, of_replica_set),
        watch::<StatefulSet>(&client, &queue, |set| vec![key_of(Kind::StatefulSet, set)]),
        watch::<DaemonSet>(&client, &queue, |set| vec![key_of(Kind::DaemonSet, set)]),
        watch::<Job>(&client, &queue, of_job),
        watch::<CronJob>(&client, &queue, |cron_job| vec![key_of(Kind::CronJob, cron_job)]),
        watch::<PersistentVolumeClaim>(&client, &queue, |claim| vec![key_of(Kind::Claim, claim)]),
        watch::<Pod>(&client, &queue, of_pod),
        watch::<Service>(&client, &queue, |service| vec![key_of(Kind::Service, service)]),
        work(&desk, &queue),
        queue.clock(),
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

async fn work(desk: &Desk, queue: &Queue) {
    loop {
        for key in queue.take().await {
            match reconcile(desk, &key).await {
                Ok(Some(delay)) => queue.add_later(key, delay),
                Ok(None) => {}
                Err(error) => {
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
}

async fn reconcile(desk: &Desk, key: &Key) -> Result<Again, kube::Error> {
    let (client, namespace, name) = (&desk.client, key.namespace.as_str(), key.name.as_str());
    match key.kind {
        Kind::Deployment => deployment::reconcile(client, namespace, name).await?,
        Kind::ReplicaSet => replicaset::reconcile(client, &desk.events, namespace, name).await?,
        Kind::StatefulSet => return statefulset::reconcile(desk, namespace, name).await,
        Kind::DaemonSet => return daemonset::reconcile(desk, namespace, name).await,
        Kind::Job => return job::reconcile(desk, namespace, name).await,
        Kind::CronJob => return cronjob::reconcile(desk, namespace, name).await,
        Kind::Claim => claims::reconcile(desk, namespace, name).await?,
        Kind::Service => endpoints::reconcile(client, namespace, name).await?,
        Kind::Services => endpoints::reconcile_all(client, namespace).await?,
    }
    Ok(None)
}

async fn resync(client: &Client, queue: &Queue) {
    loop {
        tokio::time::sleep(RESYNC).await;
        look_again::<Deployment>(client, queue, of_deployment).await;
        look_again::<ReplicaSet>(client, queue, of_replica_set).await;
        look_again::<StatefulSet>(client, queue, |set| vec![key_of(Kind::StatefulSet, set)]).await;
        look_again::<DaemonSet>(client, queue, |set| vec![key_of(Kind::DaemonSet, set)]).await;
        look_again::<Job>(client, queue, |job| vec![key_of(Kind::Job, job)]).await;
    }
}

async fn look_again<K>(client: &Client, queue: &Queue, keys: fn(&K) -> Vec<Key>)
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    if let Ok(objects) = Api::<K>::all(client.clone()).list(&Default::default()).await {
        objects.iter().flat_map(keys).for_each(|key| queue.add(key));
    }
}

fn key_of<K: kube::Resource>(kind: Kind, object: &K) -> Key {
    Key { kind, namespace: object.namespace().unwrap_or_default(), name: object.name_any() }
}

fn of_deployment(deployment: &Deployment) -> Vec<Key> {
    vec![key_of(Kind::Deployment, deployment)]
}

fn of_replica_set(replica_set: &ReplicaSet) -> Vec<Key> {
    let mut keys = vec![key_of(Kind::ReplicaSet, replica_set)];
    keys.extend(owner_key(replica_set, "Deployment", Kind::Deployment));
    keys
}

fn of_job(job: &Job) -> Vec<Key> {
    let mut keys = vec![key_of(Kind::Job, job)];
    keys.extend(owner_key(job, "CronJob", Kind::CronJob));
    keys
}

fn of_pod(pod: &Pod) -> Vec<Key> {
    let namespace = pod.namespace().unwrap_or_default();
    let mut keys = vec![Key { kind: Kind::Services, namespace: namespace.clone(), name: String::new() }];
    for (name, kind) in [
        ("ReplicaSet", Kind::ReplicaSet),
        ("StatefulSet", Kind::StatefulSet),
        ("DaemonSet", Kind::DaemonSet),
        ("Job", Kind::Job),
    ] {
        keys.extend(owner_key(pod, name, kind));
    }
    keys.extend(job::of_tracked(pod).map(|name| Key { kind: Kind::Job, namespace: namespace.clone(), name }));
    let claims =
        claims::of_pod(pod).map(|name| Key { kind: Kind::Claim, namespace: namespace.clone(), name });
    keys.extend(claims);
    keys
}

fn owner_key<K: kube::Resource>(object: &K, kind_name: &str, kind: Kind) -> Option<Key> {
    let owner = ownership::controller(object, kind_name)?;
    Some(Key { kind, namespace: object.namespace().unwrap_or_default(), name: owner.name.clone() })
}

/// Whether the API says that the object is there already, or has changed meanwhile.
fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

/// Whether the API says that there is no such object.
fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}
