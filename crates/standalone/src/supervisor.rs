//! The process that holds a mesh together.
//!
//! It sweeps what an earlier run left, makes the node namespace, starts the API process, and is then
//! kubelet and controllers until it is told to stop. It works on one thread in a mount namespace of its own: the
//! kernel ends every process that this thread started when the thread ends, and the mounts vanish with the
//! last process, so that even SIGKILL leaves only namespaces for the next run, or `down`, to sweep.

use std::ffi::OsString;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Patch, PatchParams};
use kube::{Client, ResourceExt as _};
use maille_net::NetNs;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Pid, Signal};
use tokio::process::{Child, Command};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::address::{AddressPool, DNS_SERVICE, NODE_ADDRESS};
use crate::builtin::{self, BuiltinOptions};
use crate::cluster::{self, Cluster};
use crate::controllers;
use crate::egress;
use crate::kubelet::{Kubelet, Recorder};
use crate::node::Node;
use crate::services::Programmer;
use crate::state::DataDir;

/// How long the API process may take until it answers.
const API_PATIENCE: Duration = Duration::from_secs(30);
/// How long a stopped API process may take to close its store.
const API_FAREWELL: Duration = Duration::from_secs(5);
/// Memory for secrets, tokens, ConfigMaps and files of all Pods together.
const MEMORY: &std::ffi::CStr = c"mode=0700,size=256m";

/// What a supervisor is told.
#[derive(Debug)]
pub struct SupervisorOptions {
    /// The mesh's data directory.
    pub data_dir: PathBuf,
    /// The `maille` binary: sandboxes, sidecars, the API process and the control plane are roles of it.
    pub binary: PathBuf,
    /// Port of the API on the host's 127.0.0.1; 0 for any that is free.
    pub api_port: u16,
    /// How to start the API process: program and first arguments, before `--data-dir DIR --node-namespace NAME
    /// --port N [--dns-upstream ADDRESS:PORT]…`. `None` is `<binary> api-server`.
    pub api_command: Option<Vec<OsString>>,
    /// Resolvers for names from outside the cluster; if there are none, the API process takes those of the host.
    pub dns_upstreams: Vec<SocketAddrV4>,
    /// Whether Pods reach addresses outside of the mesh, by TCP.
    pub egress: bool,
    /// Whether to create the built-in objects; a test of the supervisor alone does not want a control plane.
    pub builtin: bool,
    /// Done once, when the API answers and has the control plane's namespace, before anything runs on it.
    pub prepare: Option<Prepare>,
    /// Told once, when the API answers and Pods are being run.
    pub ready: Option<oneshot::Sender<Ready>>,
    /// Ends the mesh.
    pub shutdown: CancellationToken,
}

/// What is to be done before anything runs on the API; if it fails, the mesh does not start.
pub struct Prepare(pub Box<dyn FnOnce(Client) -> BoxFuture<'static, anyhow::Result<()>> + Send>);

impl std::fmt::Debug for Prepare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Prepare").finish_non_exhaustive()
    }
}

/// What one needs to talk to a mesh that is up.
#[derive(Clone)]
pub struct Ready {
    /// With all rights.
    pub client: Client,
    /// The administrator's kubeconfig.
    pub kubeconfig: PathBuf,
    /// Name of the node's network namespace.
    pub node_namespace: String,
}

impl std::fmt::Debug for Ready {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ready").field("kubeconfig", &self.kubeconfig).finish_non_exhaustive()
    }
}

/// Runs a mesh until `options.shutdown`; comes back when nothing of it is left.
///
/// # Errors
/// If the machine does not allow it (not root, tools missing), if another supervisor has the data directory, or if
/// the API process does not come up.
pub async fn run_supervisor(options: SupervisorOptions) -> anyhow::Result<()> {
    let (done, outcome) = oneshot::channel();
    std::thread::Builder::new().name("supervisor".to_owned()).spawn(move || {
        let _ = done.send(supervise_here(options));
    })?;
    outcome.await.context("the supervisor's thread ended")?
}

fn supervise_here(options: SupervisorOptions) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!(
            "a mesh on this machine needs root: it makes network namespaces and runs Pods as other users (try sudo)"
        );
    }
    let data = DataDir::create(&options.data_dir)?;
    let _lock = data.lock()?;
    data.sweep()?;
    let node_ns = Node::create(&data.node_namespace(), options.egress)?;
    // After the first namespace: it is what makes /run/netns a shared mount, through which the host sees the rest.
    let result = maille_net::mounts::unshare_for(data.path())
        .map_err(anyhow::Error::from)
        .and_then(|()| mount_memory(&data.memory()))
        .and_then(|()| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let result = runtime.block_on(supervise(options, data.clone(), node_ns.clone()));
            runtime.shutdown_timeout(Duration::from_secs(2));
            result
        });
    let _ = unmount(data.memory(), UnmountFlags::DETACH);
    let swept = data.sweep();
    result.and(swept)
}

fn mount_memory(path: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(path).with_context(|| path.display().to_string())?;
    mount("tmpfs", path, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, MEMORY)
        .with_context(|| format!("mount a tmpfs at {}", path.display()))?;
    std::fs::create_dir(path.join("stage")).with_context(|| path.display().to_string())
}

async fn supervise(mut options: SupervisorOptions, data: DataDir, node_ns: NetNs) -> anyhow::Result<()> {
    let node = Node::start(node_ns)?;
    let (ready, prepare) = (options.ready.take(), options.prepare.take());
    let mut api = ApiProcess::start(&options, &data, options.api_port)?;
    let result = tokio::select! {
        result = run_mesh(&options, prepare, ready, &data, node) => result,
        error = api.keep_running(&options, &data) => Err(error),
        () = egress::keep_running(&options.binary, &data), if options.egress => Ok(()),
    };
    api.stop().await;
    result
}

async fn run_mesh(
    options: &SupervisorOptions,
    prepare: Option<Prepare>,
    ready: Option<oneshot::Sender<Ready>>,
    data: &DataDir,
    node: Node,
) -> anyhow::Result<()> {
    let shutdown = options.shutdown.clone();
    let kubeconfig = data.kubeconfig();
    let client = tokio::select! {
        client = wait_for_api(&kubeconfig) => client?,
        () = shutdown.cancelled() => return Ok(()),
    };
    if let Some(Prepare(prepare)) = prepare {
        builtin::apply_namespace(&client).await?;
        tokio::select! {
            prepared = prepare(client.clone()) => prepared?,
            () = shutdown.cancelled() => return Ok(()),
        }
    }
    if options.builtin {
        let wanted = BuiltinOptions { node_address: NODE_ADDRESS, dns_service: DNS_SERVICE };
        builtin::apply(&client, &wanted).await?;
    }
    let mut tasks = JoinSet::new();
    let cluster = Cluster::start(client.clone(), &mut tasks).await;
    let (events, write_events) = Recorder::new(client.clone());
    tasks.spawn(write_events);
    let services: Arc<Programmer> = Arc::default();
    services.register(node.ns())?;
    tasks.spawn(services.clone().run(cluster.clone()));
    mark_unready(&cluster).await;
    let controllers = controllers::run(client.clone(), events.clone(), data.clone());
    let addresses = AddressPool::default();
    for pod in cluster.pods.all() {
        let shown = pod.status.as_ref().and_then(|status| status.pod_ip.as_deref());
        if let Some(address) = shown.and_then(|address| address.parse().ok()) {
            addresses.continue_after(address);
        }
    }
    let kubelet = Arc::new(Kubelet {
        cluster,
        node,
        binary: options.binary.clone(),
        data: data.clone(),
        events,
        addresses,
        services,
        shutdown,
    });
    if let Some(ready) = ready {
        let _ = ready.send(Ready { client, kubeconfig, node_namespace: data.node_namespace() });
    }
    // The kubelet ends when the shutdown token says so, with all containers ended.
    tokio::select! {
        () = kubelet.run() => {}
        () = controllers => {}
    }
    tasks.shutdown().await;
    Ok(())
}

/// Nothing runs yet, whatever the run before has left in the Pods' status: nobody may count on them until the kubelet
/// has started them. (In Kubernetes the node controller does this when a node is lost.)
async fn mark_unready(cluster: &Cluster) {
    for pod in cluster.pods.all() {
        let Some(status) = pod.status.as_ref().and_then(unready) else { continue };
        let api = cluster.api::<Pod>(&pod.namespace().unwrap_or_default());
        let patch = serde_json::json!({"metadata": {"uid": pod.uid()}, "status": status});
        match api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(pod) => cluster.pods.note(pod),
            Err(error) => tracing::debug!(pod = %pod.name_any(), %error, "readiness not taken back"),
        }
    }
}

/// The status without readiness; `None` if it claims none.
fn unready(status: &PodStatus) -> Option<PodStatus> {
    let is_over = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    let claims = |type_: &str| matches!(type_, "Ready" | "ContainersReady");
    let mut next = status.clone();
    let mut changed = false;
    for condition in next.conditions.iter_mut().flatten() {
        if claims(&condition.type_) && condition.status == "True" {
            condition.status = "False".to_owned();
            condition.reason = Some("ContainersNotReady".to_owned());
            condition.last_transition_time = Some(Time(Timestamp::now()));
            changed = true;
        }
    }
    for container in next.container_statuses.iter_mut().flatten() {
        changed |= container.ready;
        container.ready = false;
    }
    (changed && !is_over).then_some(next)
}

async fn wait_for_api(kubeconfig: &Path) -> anyhow::Result<Client> {
    let deadline = tokio::time::Instant::now() + API_PATIENCE;
    loop {
        let attempt = async {
            let client = cluster::client(kubeconfig).await?;
            client.apiserver_version().await?;
            anyhow::Ok(client)
        };
        match attempt.await {
            Ok(client) => return Ok(client),
            Err(error) if tokio::time::Instant::now() > deadline => {
                return Err(error.context(
                    "the API process does not answer; its messages are in api.log of the data directory",
                ));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// The API in a process of its own, so that it alone opens the store.
struct ApiProcess {
    child: Child,
}

impl ApiProcess {
    fn start(options: &SupervisorOptions, data: &DataDir, port: u16) -> anyhow::Result<Self> {
        let default = || vec![options.binary.clone().into_os_string(), "api-server".into()];
        let command = options.api_command.clone().unwrap_or_else(default);
        let (program, args) = command.split_first().ok_or_else(|| anyhow!("empty API command"))?;
        let log_path = data.path().join("api.log");
        let log = std::fs::File::create(&log_path).with_context(|| log_path.display().to_string())?;
        // An older kubeconfig may name another port; the new one tells that the API is up.
        let _ = std::fs::remove_file(data.kubeconfig());
        let child = Command::new(program)
            .args(args)
            .arg("--data-dir")
            .arg(data.path())
            .args(["--node-namespace", &data.node_namespace()])
            .args(["--port", &port.to_string()])
            .args(options.dns_upstreams.iter().map(|resolver| format!("--dns-upstream={resolver}")))
            .stdin(std::process::Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start the API process {}", program.display()))?;
        Ok(Self { child })
    }

    /// Restarts the process when it ends, on the same port; gives up when it ends at once again and again.
    async fn keep_running(&mut self, options: &SupervisorOptions, data: &DataDir) -> anyhow::Error {
        let mut failures = 0;
        loop {
            let since = tokio::time::Instant::now();
            let status = self.child.wait().await;
            failures = if since.elapsed() > Duration::from_secs(10) { 1 } else { failures + 1 };
            let last = last_lines(&data.path().join("api.log"));
            tracing::warn!(?status, failures, %last, "the API process ended");
            if failures >= 5 {
                return anyhow!("the API process keeps ending: {last}");
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
            // On the port of before: clients hold it in their kubeconfigs.
            let port = port_of(&data.kubeconfig()).unwrap_or(options.api_port);
            match Self::start(options, data, port) {
                Ok(again) => *self = again,
                Err(error) => return error,
            }
        }
    }

    async fn stop(mut self) {
        if let Some(pid) = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) {
            // Not reaped yet, so the number is still its own.
            let _ = rustix::process::kill_process(pid, Signal::TERM);
        }
        if tokio::time::timeout(API_FAREWELL, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }
}

fn port_of(kubeconfig: &Path) -> Option<u16> {
    let read = kube::config::Kubeconfig::read_from(kubeconfig).ok()?;
    let server = read.clusters.first()?.cluster.as_ref()?.server.clone()?;
    server.parse::<http::Uri>().ok()?.port_u16()
}

fn last_lines(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(3).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_run_before_left_as_ready_is_not_ready() {
        let status: PodStatus = serde_json::from_value(serde_json::json!({
            "phase": "Running",
            "conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "True"}],
            "containerStatuses": [
                {"name": "a", "ready": true, "restartCount": 3, "image": "x", "imageID": "x", "state": {}}
            ],
        }))
        .expect("a status");
        let next = unready(&status).expect("a change");
        let ready: Vec<&str> = next.conditions.iter().flatten().map(|c| c.status.as_str()).collect();
        assert_eq!(ready, ["True", "False"]);
        let container = &next.container_statuses.as_ref().expect("containers")[0];
        assert!(!container.ready && container.restart_count == 3);
        assert!(unready(&next).is_none(), "nothing left to take back");
        assert!(unready(&PodStatus { phase: Some("Succeeded".to_owned()), ..status }).is_none());
    }
}
