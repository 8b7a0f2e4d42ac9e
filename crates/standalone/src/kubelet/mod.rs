//! The node agent: Pods of the API become processes, processes become status.

mod atomic;
mod board;
mod cadence;
mod claim;
mod container;
mod env;
mod events;
mod generations;
mod grpc;
mod hooks;
mod life;
mod logs;
mod network;
mod pod;
mod probe;
mod security;
mod status;
mod token;
mod volumes;

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::ResourceExt as _;
use kube::api::{Patch, PatchParams};
use maille_net::sandbox::SandboxSpec;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub(crate) use events::Recorder;

use crate::address::{AddressPool, DNS_SERVICE, NODE_NAME, pod_addresses};
use crate::cluster::Cluster;
use crate::mirror::Key;
use crate::node::Node;
use crate::services::Programmer;
use crate::state::DataDir;
use pod::PodWorker;

/// Everything that Pods of this node share.
pub(crate) struct Kubelet {
    pub(crate) cluster: Cluster,
    pub(crate) node: Node,
    pub(crate) binary: PathBuf,
    pub(crate) data: DataDir,
    pub(crate) events: Recorder,
    pub(crate) addresses: AddressPool,
    pub(crate) services: Arc<Programmer>,
    pub(crate) shutdown: CancellationToken,
}

struct Worker {
    uid: Option<String>,
    updates: watch::Sender<Option<Arc<Pod>>>,
}

impl Kubelet {
    /// Runs all Pods until the shutdown token, then ends them.
    pub(crate) async fn run(self: Arc<Self>) {
        let changes = self.cluster.pods.subscribe();
        let mut workers: HashMap<Key, Worker> = HashMap::new();
        let mut tasks = JoinSet::new();
        loop {
            let keys = tokio::select! {
                keys = changes.next() => keys,
                () = self.shutdown.cancelled() => break,
            };
            for key in keys {
                self.look_at(key, &mut workers, &mut tasks).await;
            }
            while tasks.try_join_next().is_some() {}
        }
        while tasks.join_next().await.is_some() {}
    }

    async fn look_at(
        self: &Arc<Self>,
        key: Key,
        workers: &mut HashMap<Key, Worker>,
        tasks: &mut JoinSet<()>,
    ) {
        let pod = self.cluster.pods.get(&key.0, &key.1);
        if let Some(worker) = workers.get(&key) {
            let same = pod.as_ref().filter(|pod| pod.uid() == worker.uid);
            worker.updates.send_replace(same.cloned());
            if same.is_some() {
                return;
            }
            workers.remove(&key);
        }
        let Some(pod) = pod else { return };
        match pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) {
            None | Some("") => self.schedule(&pod).await,
            Some(NODE_NAME) => {
                if pod.status.as_ref().is_none_or(|status| status.start_time.is_none()) {
                    self.tell_scheduled(&pod);
                }
                let updates = watch::Sender::new(Some(pod.clone()));
                let worker = PodWorker::new(self.clone(), pod.clone());
                tasks.spawn(worker.run(updates.subscribe()));
                workers.insert(key, Worker { uid: pod.uid(), updates });
            }
            Some(_) => {}
        }
    }

    /// There is one node, so every Pod goes there. The API binds Pods as it admits them; this is for those it did not.
    async fn schedule(&self, pod: &Pod) {
        if pod.metadata.deletion_timestamp.is_some() {
            return;
        }
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let patch = serde_json::json!({"metadata": {"uid": pod.uid()}, "spec": {"nodeName": NODE_NAME}});
        let api = self.cluster.api::<Pod>(&namespace);
        match api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(scheduled) => self.cluster.pods.note(scheduled),
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
            Err(error) => tracing::warn!(%namespace, %name, %error, "Pod not scheduled"),
        }
    }

    fn tell_scheduled(&self, pod: &Pod) {
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let message = format!("Successfully assigned {namespace}/{name} to {NODE_NAME}");
        let object = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(namespace),
            name: Some(name),
            uid: pod.uid(),
            ..Default::default()
        };
        self.events.record(object, false, "Scheduled", message, "default-scheduler");
    }

    /// Where a container's output goes; the API serves it from there.
    pub(crate) fn log_path(&self, pod: &Pod, container: &str) -> PathBuf {
        self.data.pod(&pod.uid().unwrap_or_default()).join(format!("{container}.log"))
    }

    /// Where a Pod's `resolv.conf`, `hosts` and `hostname` are.
    pub(crate) fn etc_path(&self, pod: &Pod) -> PathBuf {
        self.data.memory().join(pod.uid().unwrap_or_default()).join("etc")
    }

    fn write_etc(&self, pod: &Pod, address: Ipv4Addr) -> std::io::Result<()> {
        let directory = self.etc_path(pod);
        std::fs::create_dir_all(&directory)?;
        let (hostname, namespace) = (env::hostname(pod), pod.namespace().unwrap_or_default());
        let domain = maille_core::CLUSTER_DOMAIN;
        let mut hosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
        // With a subdomain the Pod's own name is the one that a headless Service gives it.
        let subdomain =
            pod.spec.as_ref().and_then(|spec| spec.subdomain.as_deref()).filter(|s| !s.is_empty());
        let names = match subdomain {
            Some(subdomain) => format!("{hostname}.{subdomain}.{namespace}.svc.{domain}\t{hostname}"),
            None => hostname.clone(),
        };
        for address in pod_addresses(address) {
            hosts.push_str(&format!("{address}\t{names}\n"));
        }
        for alias in pod.spec.iter().flat_map(|spec| spec.host_aliases.iter().flatten()) {
            hosts.push_str(&format!(
                "{}\t{}\n",
                alias.ip,
                alias.hostnames.clone().unwrap_or_default().join(" ")
            ));
        }
        let resolv = format!(
            "search {namespace}.svc.{domain} svc.{domain} {domain}\nnameserver {DNS_SERVICE}\noptions ndots:5\n"
        );
        std::fs::write(directory.join("hosts"), hosts)?;
        std::fs::write(directory.join("hostname"), format!("{hostname}\n"))?;
        std::fs::write(directory.join("resolv.conf"), resolv)
    }

    /// Keeps what `maille exec` needs to join a running container.
    fn remember(&self, pod: &Pod, container: &str, spec: &SandboxSpec) {
        let path = self.data.pod(&pod.uid().unwrap_or_default()).join(format!("{container}.json"));
        let written = serde_json::to_vec(spec).map_err(std::io::Error::from).and_then(|text| {
            std::fs::write(&path, text)?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
        });
        if let Err(error) = written {
            tracing::warn!(path = %path.display(), %error, "exec will not find this container");
        }
    }
}
