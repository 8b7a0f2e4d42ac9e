//! Events for people: what `kubectl describe` shows.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt as _};
use tokio::sync::mpsc;

/// Events waiting to be written; more are dropped, for they are only told to people.
const QUEUE: usize = 512;
/// Remembered events, so that a repetition counts up the first.
const REMEMBERED: usize = 2048;

/// Takes events; never waits.
#[derive(Debug, Clone)]
pub(crate) struct Recorder(mpsc::Sender<Record>);

#[derive(Debug)]
struct Record {
    object: ObjectReference,
    warning: bool,
    reason: String,
    message: String,
    component: &'static str,
}

impl Recorder {
    /// A recorder, and the task that writes what it takes.
    pub(crate) fn new(client: Client) -> (Self, impl Future<Output = ()> + Send) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Self(sender), write_all(client, receiver))
    }

    /// Something normal happened to a Pod.
    pub(crate) fn normal(&self, pod: &Pod, reason: &str, message: impl Into<String>) {
        self.record(pod_reference(pod), false, reason, message.into(), "kubelet");
    }

    /// Something went wrong with a Pod.
    pub(crate) fn warning(&self, pod: &Pod, reason: &str, message: impl Into<String>) {
        self.record(pod_reference(pod), true, reason, message.into(), "kubelet");
    }

    /// Anything about any object.
    pub(crate) fn record(
        &self,
        object: ObjectReference,
        warning: bool,
        reason: &str,
        message: String,
        component: &'static str,
    ) {
        let record = Record { object, warning, reason: reason.to_owned(), message, component };
        if let Err(error) = self.0.try_send(record) {
            tracing::debug!(%error, "event dropped");
        }
    }
}

fn pod_reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: Some(pod.name_any()),
        namespace: pod.namespace(),
        uid: pod.uid(),
        resource_version: pod.resource_version(),
        ..Default::default()
    }
}

async fn write_all(client: Client, mut records: mpsc::Receiver<Record>) {
    let mut seen: HashMap<(Option<String>, String, String), (String, i32)> = HashMap::new();
    while let Some(record) = records.recv().await {
        if seen.len() > REMEMBERED {
            seen.clear();
        }
        let namespace = record.object.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
        let now = Time(jiff::Timestamp::now());
        let key = (record.object.uid.clone(), record.reason.clone(), record.message.clone());
        if let Some((name, count)) = seen.get_mut(&key) {
            *count += 1;
            let patch = serde_json::json!({"count": *count, "lastTimestamp": now});
            if api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await.is_ok() {
                continue;
            }
            // Expired meanwhile: write it anew.
        }
        let name =
            format!("{}.{:016x}", record.object.name.clone().unwrap_or_default(), rand::random::<u64>());
        let event = Event {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(namespace),
                ..Default::default()
            },
            involved_object: record.object,
            reason: Some(record.reason),
            message: Some(record.message),
            type_: Some(if record.warning { "Warning" } else { "Normal" }.to_owned()),
            source: Some(EventSource {
                component: Some(record.component.to_owned()),
                host: Some(crate::address::NODE_NAME.to_owned()),
            }),
            reporting_component: Some(record.component.to_owned()),
            reporting_instance: Some(crate::address::NODE_NAME.to_owned()),
            first_timestamp: Some(now.clone()),
            last_timestamp: Some(now),
            count: Some(1),
            ..Default::default()
        };
        match api.create(&PostParams::default(), &event).await {
            Ok(_) => {
                seen.insert(key, (name, 1));
            }
            Err(error) => tracing::debug!(%error, "event not written"),
        }
    }
}
