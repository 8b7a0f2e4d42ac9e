//! What is known of a Pod, shared by those who change it and the one who publishes it.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus};
use kube::ResourceExt as _;
use kube::api::{Patch, PatchParams};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Kubelet;
use super::status::{Progress, Report, pod_status};

/// Changes that come together are written together.
const GATHER: Duration = Duration::from_millis(5);
const RETRY: Duration = Duration::from_millis(500);

/// A container and how far it is.
pub(crate) type Entry = (Container, Arc<Mutex<Progress>>);

/// The state of one Pod.
pub(crate) struct Board {
    pub(crate) pod: Arc<Pod>,
    pub(crate) address: Mutex<Option<Ipv4Addr>>,
    pub(crate) init: Vec<Entry>,
    pub(crate) main: Vec<Entry>,
    pub(crate) initialized: AtomicBool,
    pub(crate) changed: Arc<Notify>,
    started_at: Timestamp,
    published: Mutex<PodStatus>,
}

impl Board {
    pub(crate) fn new(pod: Arc<Pod>) -> Self {
        let before = pod.status.clone().unwrap_or_default();
        let policy = pod.spec.as_ref().and_then(|spec| spec.restart_policy.clone());
        let restarts = policy.as_deref() != Some("Never");
        let entries = |containers: &[Container], init: bool| {
            let list = if init { &before.init_container_statuses } else { &before.container_statuses };
            let resumed = |container: &Container| {
                let status = list.iter().flatten().find(|status| status.name == container.name);
                // Init containers run again in a new sandbox, as in Kubernetes.
                let restarts = init || restarts;
                Arc::new(Mutex::new(Progress::resume(status, restarts)))
            };
            containers.iter().map(|c| (c.clone(), resumed(c))).collect::<Vec<Entry>>()
        };
        let spec = pod.spec.clone().unwrap_or_default();
        Self {
            init: entries(&spec.init_containers.unwrap_or_default(), true),
            main: entries(&spec.containers, false),
            address: Mutex::new(None),
            initialized: AtomicBool::new(false),
            changed: Arc::default(),
            started_at: before.start_time.clone().map_or_else(Timestamp::now, |time| time.0),
            published: Mutex::new(before),
            pod,
        }
    }

    /// The status as of now.
    pub(crate) fn status(&self) -> PodStatus {
        fn snapshot(entries: &[Entry]) -> Vec<(&Container, Progress)> {
            entries.iter().map(|(container, progress)| (container, progress.lock().clone())).collect()
        }
        let report = Report {
            pod: &self.pod,
            address: *self.address.lock(),
            started_at: self.started_at,
            init: snapshot(&self.init),
            main: snapshot(&self.main),
            initialized: self.initialized.load(Ordering::Acquire),
        };
        pod_status(&report, &self.published.lock())
    }

    /// Writes the status to the API whenever it changes.
    pub(crate) async fn publish(self: Arc<Self>, kubelet: Arc<Kubelet>) {
        loop {
            tokio::time::sleep(GATHER).await;
            let status = self.status();
            if status != *self.published.lock() {
                if let Err(error) = self.write(&kubelet, &status).await {
                    tracing::debug!(pod = %self.pod.name_any(), %error, "status not written");
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
                *self.published.lock() = status;
            }
            self.changed.notified().await;
        }
    }

    async fn write(&self, kubelet: &Kubelet, status: &PodStatus) -> kube::Result<()> {
        let api = kubelet.cluster.api::<Pod>(&self.pod.namespace().unwrap_or_default());
        // The uid keeps the patch from a successor of the same name.
        let patch = serde_json::json!({"metadata": {"uid": self.pod.uid()}, "status": status});
        match api.patch_status(&self.pod.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(pod) => {
                kubelet.cluster.pods.note(pod);
                Ok(())
            }
            // Gone, or another Pod by now: nobody asks for this status any more.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
