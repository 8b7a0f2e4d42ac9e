//! The life of one Pod on this node.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Container, Pod};
use kube::ResourceExt as _;
use kube::api::{DeleteParams, Preconditions};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Kubelet;
use super::board::{Board, Entry};
use super::container::{PodContext, Restart, Runner, Stop, grace};
use super::generations;
use super::network::Network;
use super::security::{PROXY, is_injected, refused_pod_field};
use super::status::{Progress, State};
use super::volumes::Volumes;

const RETRY: Duration = Duration::from_secs(1);

/// Follows one Pod from its first sight to its end.
pub(crate) struct PodWorker {
    kubelet: Arc<Kubelet>,
    pod: Arc<Pod>,
    board: Arc<Board>,
    network: Option<Network>,
    volumes: Option<Arc<tokio::sync::Mutex<Volumes>>>,
    runners: JoinSet<()>,
    stop: watch::Sender<Option<Stop>>,
    /// The wish to have the sidecar replaced, as the Pod says it last.
    replace: watch::Sender<Option<String>>,
}

impl PodWorker {
    pub(crate) fn new(kubelet: Arc<Kubelet>, pod: Arc<Pod>) -> Self {
        Self {
            board: Arc::new(Board::new(pod.clone())),
            kubelet,
            replace: watch::Sender::new(generations::wish(&pod)),
            pod,
            network: None,
            volumes: None,
            runners: JoinSet::new(),
            stop: watch::Sender::new(None),
        }
    }

    /// Runs until the Pod is gone; `updates` holds its latest state, `None` once the API has dropped it.
    pub(crate) async fn run(mut self, mut updates: watch::Receiver<Option<Arc<Pod>>>) {
        let over =
            |pod: &Option<Arc<Pod>>| pod.as_ref().is_none_or(|pod| pod.metadata.deletion_timestamp.is_some());
        let ended =
            matches!(self.pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"));
        let mut publisher = JoinSet::new();
        if ended {
            let shutdown = self.kubelet.shutdown.clone();
            tokio::select! {
                _ = updates.wait_for(over) => {}
                () = shutdown.cancelled() => {}
            }
        } else {
            publisher.spawn(self.board.clone().publish(self.kubelet.clone()));
            let shutdown = self.kubelet.shutdown.clone();
            let (wishes, wish) = (updates.clone(), self.replace.clone());
            tokio::select! {
                _ = updates.wait_for(over) => {}
                () = self.live() => {}
                () = follow_wish(wishes, wish) => {}
                () = shutdown.cancelled() => {}
            }
        }
        if self.kubelet.shutdown.is_cancelled() {
            // The Pod is not over: the next run takes it up where its status stands now.
            publisher.shutdown().await;
        }
        let last = updates.borrow().clone();
        self.terminate(last.as_deref()).await;
        publisher.shutdown().await;
        if self.kubelet.shutdown.is_cancelled() {
            return;
        }
        if let Some(last) = last {
            self.delete(&last).await;
        }
    }

    /// Everything but the end. Comes back only if it is dropped.
    async fn live(&mut self) {
        if let Some(field) = refused_pod_field(&self.pod) {
            let message =
                format!("{field} is not supported on this node: every Pod has namespaces of its own");
            self.event("FailedCreatePodSandBox", &message);
            self.waiting("CreateContainerConfigError", &message);
            return std::future::pending().await;
        }
        let (network, volumes) = self.prepare().await;
        let context = Arc::new(PodContext {
            kubelet: self.kubelet.clone(),
            pod: self.pod.clone(),
            address: network.address(),
            network: network.path(),
            changed: self.board.changed.clone(),
        });
        self.network = Some(network);
        let mut tasks = JoinSet::new();
        let mounts = |container: &Container| match volumes.mounts(container) {
            Ok(mounts) => Some(mounts),
            Err(error) => {
                self.event("Failed", &format!("Error: {error}"));
                self.waiting("CreateContainerConfigError", &error);
                None
            }
        };
        let mut all = Vec::new();
        for (container, progress) in self.board.init.iter().chain(&self.board.main) {
            let Some(mounts) = mounts(container) else { return std::future::pending().await };
            all.push(Runner {
                context: context.clone(),
                container: container.clone(),
                restart: self.restart_of(container),
                progress: progress.clone(),
                stop: self.stop.subscribe(),
                mounts,
                after: self.served_by(container),
                farewell: self.is_served(container).then_some(FAREWELL),
                replace: self.is_sidecar(container).then(|| self.replace.subscribe()),
                begun: watch::Sender::new(false),
            });
        }
        let volumes = Arc::new(tokio::sync::Mutex::new(volumes));
        // Held here, for they must outlive the last container.
        self.volumes = Some(volumes.clone());
        let kubelet = self.kubelet.clone();
        tasks.spawn(async move { keep_fresh(&kubelet, &volumes).await });
        self.start_all(all).await;
        while self.runners.join_next().await.is_some() {
            // Sidecars end after the containers they serve, so that a Job with one comes to its end.
            if self.is_work_over() {
                self.stop.send_replace(Some(Stop { deadline: Instant::now() + grace(&self.pod) }));
            }
        }
        // Every container has ended for good: the Pod stays to be read, its address may go.
        if let Some(network) = self.network.take() {
            network.remove().await;
        }
        std::future::pending().await
    }

    /// Network, volumes and files, retried until all of it is there.
    async fn prepare(&mut self) -> (Network, Volumes) {
        let network = loop {
            match Network::create(self.kubelet.clone()).await {
                Ok(network) => break network,
                Err(error) => {
                    self.event("FailedCreatePodSandBox", &format!("Failed to create pod sandbox: {error}"));
                    tokio::time::sleep(RETRY).await;
                }
            }
        };
        *self.board.address.lock() = Some(network.address());
        self.board.changed.notify_one();
        let (data, cluster) = (self.kubelet.data.clone(), self.kubelet.cluster.clone());
        let mut volumes = Volumes::new(self.pod.clone(), network.address(), data, cluster);
        let (maps, secrets) =
            (self.kubelet.cluster.config_maps.subscribe(), self.kubelet.cluster.secrets.subscribe());
        let mut told = String::new();
        loop {
            let written = self.kubelet.write_etc(&self.pod, network.address()).map_err(|e| e.to_string());
            match written {
                Ok(()) => match volumes.refresh().await {
                    Ok(()) => return (network, volumes),
                    Err(error) => {
                        if error != told {
                            self.event("FailedMount", &error);
                            told = error;
                        }
                    }
                },
                Err(error) => self.event("FailedCreatePodSandBox", &error),
            }
            // What is missing may appear at any time.
            tokio::select! {
                _ = maps.next() => {}
                _ = secrets.next() => {}
                () = tokio::time::sleep(RETRY) => {}
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Init containers one after the other, then the sidecar, and when that is ready the rest.
    async fn start_all(&mut self, runners: Vec<Runner>) {
        let board = self.board.clone();
        let mut runners = runners.into_iter();
        for entry in &board.init {
            let Some(runner) = runners.next() else { return };
            let sidecar = entry.0.restart_policy.as_deref() == Some("Always");
            self.runners.spawn(runner.run());
            if sidecar {
                self.until(entry, |entry| entry.1.lock().started && entry.1.lock().is_running()).await;
                continue;
            }
            self.until(entry, |entry| entry.1.lock().final_code().is_some()).await;
            if entry.1.lock().final_code() != Some(0) {
                return;
            }
        }
        board.initialized.store(true, Ordering::Release);
        board.changed.notify_one();
        let (proxy, rest): (Vec<_>, Vec<_>) =
            board.main.iter().zip(runners).partition(|(entry, _)| self.is_sidecar(&entry.0));
        for (entry, runner) in proxy {
            self.runners.spawn(runner.run());
            if !holds_application(&entry.0) {
                continue;
            }
            for (other, _) in &rest {
                other.1.lock().state = State::waiting("PodInitializing", None);
            }
            // Unless it was told otherwise, an application never runs without its proxy.
            self.until(entry, |entry| entry.1.lock().is_ready()).await;
        }
        for (entry, runner) in rest {
            let has_hook = entry.0.lifecycle.as_ref().is_some_and(|lifecycle| lifecycle.post_start.is_some());
            let begun = runner.begun.subscribe();
            self.runners.spawn(runner.run());
            if has_hook {
                // The next one starts when the hook has been carried out, as in Kubernetes.
                let over = |entry: &Entry| entry.1.lock().final_code().is_some();
                self.until(entry, |entry| *begun.borrow() || over(entry)).await;
            }
        }
    }

    /// The proxy that injection has put among the Pod's containers.
    fn is_sidecar(&self, container: &Container) -> bool {
        container.name == PROXY && is_injected(&self.pod, container)
    }

    /// Whether everything has ended for whose sake the Pod runs.
    fn is_work_over(&self) -> bool {
        let mut work = self.board.main.iter().filter(|(container, _)| !self.is_sidecar(container)).peekable();
        work.peek().is_some() && work.all(|(_, progress)| progress.lock().final_code().is_some())
    }

    /// Whether it is a container behind the Pod's injected sidecar.
    fn is_served(&self, container: &Container) -> bool {
        let is_sidecar = |(other, _): &Entry| self.is_sidecar(other);
        let is_main = self.board.main.iter().any(|(other, _)| other.name == container.name);
        is_main
            && !self.is_sidecar(container)
            && self.board.init.iter().chain(&self.board.main).any(is_sidecar)
    }

    /// Whom a sidecar outlives: the containers of the Pod, and sidecars that started after it. Nobody, for others.
    fn served_by(&self, container: &Container) -> Vec<Arc<Mutex<Progress>>> {
        let init = &self.board.init;
        let later = match init.iter().position(|(other, _)| other.name == container.name) {
            Some(index) if container.restart_policy.as_deref() == Some("Always") => {
                init.get(index + 1..).unwrap_or_default()
            }
            None if self.is_sidecar(container) => &[],
            _ => return Vec::new(),
        };
        let main = self.board.main.iter().filter(|(other, _)| other.name != container.name);
        later.iter().chain(main).map(|(_, progress)| progress.clone()).collect()
    }

    async fn until(&self, entry: &Entry, reached: impl Fn(&Entry) -> bool) {
        // The publisher waits for the same notification, so look again at intervals too.
        while !reached(entry) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn restart_of(&self, container: &Container) -> Restart {
        let policy = self.pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref());
        let init = self.board.init.iter().any(|(c, _)| c.name == container.name);
        match (init, container.restart_policy.as_deref(), policy) {
            // In a Job's Pod as well: what it serves runs on.
            _ if self.is_sidecar(container) => Restart::Always,
            (true, Some("Always"), _) => Restart::Always,
            (true, _, Some("Never")) => Restart::Never,
            (true, ..) => Restart::OnFailure,
            (false, _, Some("Never")) => Restart::Never,
            (false, _, Some("OnFailure")) => Restart::OnFailure,
            _ => Restart::Always,
        }
    }

    /// Ends all containers in their time and takes everything of the Pod away.
    async fn terminate(&mut self, last: Option<&Pod>) {
        let time = match last {
            // A restart of the supervisor or a forced deletion waits for nobody.
            _ if self.kubelet.shutdown.is_cancelled() => SHUTDOWN_GRACE,
            None => Duration::ZERO,
            Some(pod) => grace(pod),
        };
        if !self.runners.is_empty() && !self.kubelet.shutdown.is_cancelled() {
            for (container, progress) in self.board.init.iter().chain(&self.board.main) {
                if progress.lock().is_running() {
                    let message = format!("Stopping container {}", container.name);
                    self.kubelet.events.normal(&self.pod, "Killing", message);
                }
            }
        }
        self.stop.send_replace(Some(Stop { deadline: Instant::now() + time }));
        while self.runners.join_next().await.is_some() {}
        self.board.changed.notify_one();
        if let Some(network) = self.network.take() {
            network.remove().await;
        }
        if let Some(volumes) = self.volumes.take() {
            let mut volumes = volumes.lock_owned().await;
            let _ = tokio::task::spawn_blocking(move || volumes.remove()).await;
        }
        let uid = self.pod.uid().unwrap_or_default();
        let rest = [self.kubelet.data.pod(&uid), self.kubelet.data.memory().join(&uid)];
        let remove = move || {
            for path in rest {
                if let Err(error) = crate::remove::tree(&path) {
                    tracing::warn!(path = %path.display(), %error, "cannot remove what a Pod leaves");
                }
            }
        };
        let _ = tokio::task::spawn_blocking(remove).await;
    }

    /// Tells the API that nothing is left of the Pod.
    async fn delete(&self, last: &Pod) {
        let api = self.kubelet.cluster.api::<Pod>(&last.namespace().unwrap_or_default());
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: last.uid(), resource_version: None }),
            ..Default::default()
        };
        loop {
            match api.delete(&last.name_any(), &params).await {
                Ok(_) => return,
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => return,
                Err(error) => {
                    tracing::debug!(%error, pod = %last.name_any(), "Pod not deleted, will try again")
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    fn waiting(&self, reason: &str, message: &str) {
        for (_, progress) in &self.board.main {
            progress.lock().state = State::waiting(reason, Some(message.to_owned()));
        }
        self.board.changed.notify_one();
    }

    fn event(&self, reason: &str, message: &str) {
        self.kubelet.events.warning(&self.pod, reason, message);
    }
}

/// Whether the rest of the Pod waits for this sidecar: yes, unless its configuration says
/// `holdApplicationUntilProxyStarts: false`.
fn holds_application(sidecar: &Container) -> bool {
    let config = sidecar.env.iter().flatten().find(|variable| variable.name == "PROXY_CONFIG");
    let config: Option<serde_json::Value> =
        config.and_then(|variable| serde_json::from_str(variable.value.as_deref()?).ok());
    config.and_then(|config| config.get("holdApplicationUntilProxyStarts")?.as_bool()) != Some(false)
}

/// Passes on what the Pod says about its sidecar; ends only by being dropped.
async fn follow_wish(mut pod: watch::Receiver<Option<Arc<Pod>>>, wish: watch::Sender<Option<String>>) {
    while pod.changed().await.is_ok() {
        let Some(now) = pod.borrow_and_update().as_deref().map(generations::wish) else { continue };
        wish.send_if_modified(|known| {
            let is_new = *known != now;
            if is_new {
                *known = now;
            }
            is_new
        });
    }
    std::future::pending().await
}

/// How long the news that a Pod is to end may take to all who call it. In Kubernetes its containers are told to end at
/// once, which loses requests unless each of them has a hook that waits.
const FAREWELL: Duration = Duration::from_secs(3);

/// What containers get when the whole mesh goes down.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);

/// How often the time of day is compared with the ends of tokens.
const LOOK_AT_TOKENS_EVERY: Duration = Duration::from_secs(2);

/// Brings files up to date when their sources change and tokens before they expire.
async fn keep_fresh(kubelet: &Kubelet, volumes: &tokio::sync::Mutex<Volumes>) {
    let (maps, secrets) = (kubelet.cluster.config_maps.subscribe(), kubelet.cluster.secrets.subscribe());
    loop {
        let concerned = tokio::select! {
            changed = maps.next() => {
                let volumes = volumes.lock().await;
                changed.iter().any(|(_, name)| volumes.uses("ConfigMap", name))
            }
            changed = secrets.next() => {
                let volumes = volumes.lock().await;
                changed.iter().any(|(_, name)| volumes.uses("Secret", name))
            }
            // Tokens end by the time of day, and nothing tells when that is set.
            () = tokio::time::sleep(LOOK_AT_TOKENS_EVERY) => volumes.lock().await.are_due(),
        };
        if !concerned {
            continue;
        }
        let refreshed = volumes.lock().await.refresh().await;
        if let Err(error) = refreshed {
            tracing::debug!(%error, "a volume keeps its last content");
            tokio::time::sleep(RETRY).await;
        }
    }
}
