//! The life of one container: start, probe, restart, stop.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ContainerStateTerminated, LifecycleHandler, Pod, Probe};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;
use maille_net::sandbox::{FileTree, Joined, Process, SandboxSpec, Start, Volume};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use super::cadence::{EARLY_TRIES, watch_probe};
use super::env::{environment, expand, hostname};
use super::probe::{self, Target};
use super::security::{INIT, credentials, is_injected};
use super::status::{Progress, State};
use super::{Kubelet, logs};
use crate::address::BINARY_IN_CONTAINERS;
use crate::sandbox::{self, Exit, Sandboxed};

/// First restarts are quick: on one machine the usual cause is a peer that is not up yet.
const BACK_OFF: [u64; 10] = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256];
const MAX_BACK_OFF: Duration = Duration::from_secs(300);
/// A container that ran this long starts with no back-off again (kubelet: twice the maximum).
const FORGIVEN_AFTER: Duration = Duration::from_secs(600);

/// How long the end of a container's output may take to be written.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Order to stop, with the time until which the program may tidy up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stop {
    pub(crate) deadline: Instant,
}

/// What a container needs of its Pod.
pub(crate) struct PodContext {
    pub(crate) kubelet: Arc<Kubelet>,
    pub(crate) pod: Arc<Pod>,
    pub(crate) address: Ipv4Addr,
    pub(crate) network: PathBuf,
    /// Told when any container's progress changed.
    pub(crate) changed: Arc<Notify>,
}

/// When to start again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Restart {
    Always,
    OnFailure,
    Never,
}

/// One container of a Pod.
pub(crate) struct Runner {
    pub(crate) context: Arc<PodContext>,
    pub(crate) container: Container,
    pub(crate) restart: Restart,
    pub(crate) progress: Arc<Mutex<Progress>>,
    pub(crate) stop: watch::Receiver<Option<Stop>>,
    /// Where its volumes are.
    pub(crate) mounts: Vec<Volume>,
    /// Copies its output; empty at first.
    pub(crate) output: JoinSet<()>,
}

impl Runner {
    /// Runs it until it ends for good or is stopped.
    pub(crate) async fn run(mut self) {
        let mut failures = 0_usize;
        loop {
            let delay = back_off(failures);
            if failures > 0 {
                self.restarting(delay);
                if self.stopped_within(delay).await {
                    break;
                }
            }
            if self.stop.borrow().is_some() {
                break;
            }
            failures += 1;
            let (reason, problem) = match self.start(failures).await {
                Ok((running, spec)) => {
                    let since = Instant::now();
                    let exit = self.live(running, &spec).await;
                    if since.elapsed() > FORGIVEN_AFTER {
                        failures = 1;
                    }
                    let again = match self.restart {
                        Restart::Always => true,
                        Restart::OnFailure => exit.code != 0,
                        Restart::Never => false,
                    };
                    let over = !again || self.stop.borrow().is_some();
                    self.update(|p| p.finished = over);
                    if over {
                        return;
                    }
                    self.update(|p| p.restarts += 1);
                    continue;
                }
                Err(problem) => problem,
            };
            self.event(true, "Failed", format!("Error: {problem}"));
            self.update(|p| p.state = State::waiting(reason, Some(problem)));
            // What is missing may come at any time, and a start that failed cost little.
            if self
                .stopped_within(back_off(failures).clamp(Duration::from_secs(1), Duration::from_secs(10)))
                .await
            {
                break;
            }
        }
        self.update(|p| {
            p.finished = true;
            if !matches!(p.state, State::Terminated(_)) {
                let message = Some("the Pod ended before the container ran".to_owned());
                p.state = State::Terminated(ContainerStateTerminated {
                    exit_code: 137,
                    reason: Some("ContainerStatusUnknown".to_owned()),
                    message,
                    ..Default::default()
                });
            }
        });
    }

    fn restarting(&self, delay: Duration) {
        let mut ended = None;
        self.update(|p| {
            if let State::Terminated(state) = &p.state {
                p.last = Some(state.clone());
                ended = Some(());
            }
            if !delay.is_zero() && ended.is_some() {
                let text = format!(
                    "back-off {}s restarting failed container={} pod={}_{}({})",
                    delay.as_secs(),
                    self.container.name,
                    self.context.pod.name_any(),
                    self.context.pod.namespace().unwrap_or_default(),
                    self.context.pod.uid().unwrap_or_default(),
                );
                p.state = State::waiting("CrashLoopBackOff", Some(text));
            }
        });
        if !delay.is_zero() && ended.is_some() {
            let name = &self.container.name;
            self.event(true, "BackOff", format!("Back-off restarting failed container {name}"));
        }
    }

    /// Starts the program; the error is the reason and message to wait with.
    async fn start(&mut self, attempt: usize) -> Result<(Sandboxed, SandboxSpec), (&'static str, String)> {
        let spec = self.specification().map_err(|e| ("CreateContainerConfigError", e))?;
        let name = &self.container.name;
        let log = self.context.kubelet.log_path(&self.context.pod, name);
        if let Some(parent) = log.parent() {
            std::fs::create_dir_all(parent)
                .map_err(|e| ("CreateContainerError", format!("{}: {e}", parent.display())))?;
        }
        if attempt == 1 {
            self.event(false, "Created", format!("Container created: {name}"));
        }
        let mut running = sandbox::start(&self.context.kubelet.binary, &spec)
            .await
            .map_err(|e| ("CreateContainerError", e.message))?;
        logs::rotate(&log);
        if let Some((stdout, stderr)) = running.output.take() {
            match logs::copy(&log, stdout, stderr) {
                Ok(copying) => self.output = copying,
                Err(error) => tracing::warn!(path = %log.display(), %error, "container output is lost"),
            }
        }
        self.event(false, "Started", format!("Container started: {name}"));
        let mut joined = spec;
        joined.start = Start::Join(Joined { container: running.process });
        self.context.kubelet.remember(&self.context.pod, name, &joined);
        self.update(|p| {
            p.id = Some(format!("maille://{:032x}", rand::random::<u128>()));
            p.state = State::Running { since: Timestamp::now() };
            p.started = self.container.startup_probe.is_none();
            p.ready = self.container.readiness_probe.is_none();
        });
        Ok((running, joined))
    }

    /// Follows a running program to its end.
    async fn live(&mut self, mut running: Sandboxed, exec: &SandboxSpec) -> Exit {
        let started_at = match &self.progress.lock().state {
            State::Running { since } => *since,
            _ => Timestamp::now(),
        };
        let (unhealthy, mut failed) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(self.probing(exec.clone(), unhealthy));
        if let Some(hook) = self.container.lifecycle.as_ref().and_then(|l| l.post_start.clone()) {
            tasks.spawn(self.hook("postStart", hook, exec.clone()));
        }
        let mut stop = self.stop.clone();
        let exit = tokio::select! {
            exit = running.wait() => exit,
            deadline = stop_order(&mut stop) => {
                // A container that is being stopped is not probed any more.
                tasks.abort_all();
                self.update(|p| p.ready = false);
                self.end(&mut running, deadline, exec).await
            }
            () = failure(&mut failed) => {
                let name = &self.container.name;
                self.event(false, "Killing", format!("Container {name} failed liveness probe, will be restarted"));
                let grace = grace(&self.context.pod);
                self.end(&mut running, Instant::now() + grace, exec).await
            }
        };
        tasks.shutdown().await;
        // Who reads the status and then the log finds the last words there.
        let _ = tokio::time::timeout(LAST_WORDS, async { while self.output.join_next().await.is_some() {} })
            .await;
        let reason = match exit {
            Exit { code: 0, .. } => "Completed",
            _ => "Error",
        };
        self.update(|p| {
            p.ready = false;
            p.started = false;
            p.state = State::Terminated(ContainerStateTerminated {
                exit_code: exit.code,
                signal: exit.signal,
                reason: Some(reason.to_owned()),
                started_at: Some(Time(started_at)),
                finished_at: Some(Time(Timestamp::now())),
                container_id: p.id.clone(),
                ..Default::default()
            });
        });
        exit
    }

    /// Asks the program to end and ends it when its time is over.
    async fn end(&self, running: &mut Sandboxed, deadline: Instant, exec: &SandboxSpec) -> Exit {
        let left = || deadline.saturating_duration_since(Instant::now());
        if let Some(hook) = self.container.lifecycle.as_ref().and_then(|l| l.pre_stop.clone()) {
            let _ = tokio::time::timeout(left(), self.hook("preStop", hook, exec.clone())).await;
        }
        running.terminate().await;
        // Kubernetes grants a moment even where the grace period is over.
        let patience = left().max(Duration::from_millis(100));
        match tokio::time::timeout(patience, running.wait()).await {
            Ok(exit) => exit,
            Err(_) => {
                running.kill().await;
                running.wait().await
            }
        }
    }

    fn hook(
        &self,
        name: &'static str,
        hook: LifecycleHandler,
        exec: SandboxSpec,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (context, container) = (self.context.clone(), self.container.clone());
        async move {
            if let Some(sleep) = &hook.sleep {
                tokio::time::sleep(Duration::from_secs(sleep.seconds.try_into().unwrap_or_default())).await;
                return;
            }
            let probe = Probe {
                exec: hook.exec,
                http_get: hook.http_get,
                tcp_socket: hook.tcp_socket,
                timeout_seconds: Some(30),
                ..Default::default()
            };
            if let Err(error) = probe::check(&probe, &context.target(&container, &exec)).await {
                let reason = if name == "preStop" { "FailedPreStopHook" } else { "FailedPostStartHook" };
                context.kubelet.events.warning(&context.pod, reason, format!("{name} hook failed: {error}"));
            }
        }
    }

    /// Probes until dropped; tells `unhealthy` when the container must be restarted.
    fn probing(
        &self,
        exec: SandboxSpec,
        unhealthy: watch::Sender<bool>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (context, container) = (self.context.clone(), self.container.clone());
        let (progress, changed) = (self.progress.clone(), self.context.changed.clone());
        async move {
            let check = |kind: &'static str, probe: Probe| {
                let (context, container, exec) = (context.clone(), container.clone(), exec.clone());
                async move {
                    let result = probe::check(&probe, &context.target(&container, &exec)).await;
                    if let Err(error) = &result {
                        let message = format!("{kind} probe failed: {error}");
                        context.kubelet.events.warning(&context.pod, "Unhealthy", message);
                    }
                    result.is_ok()
                }
            };
            if let Some(probe) = &container.startup_probe {
                let healthy = watch_probe(probe, EARLY_TRIES, |probe| check("Startup", probe), |_| true);
                if !healthy.await {
                    unhealthy.send_replace(true);
                    return;
                }
                progress.lock().started = true;
                changed.notify_one();
            }
            let readiness = async {
                let Some(probe) = &container.readiness_probe else { return };
                let set = |ready: bool| {
                    progress.lock().ready = ready;
                    changed.notify_one();
                    false
                };
                watch_probe(probe, EARLY_TRIES, |probe| check("Readiness", probe), set).await;
            };
            let liveness = async {
                let Some(probe) = &container.liveness_probe else { return };
                watch_probe(probe, 0, |probe| check("Liveness", probe), |healthy| !healthy).await;
                unhealthy.send_replace(true);
            };
            tokio::join!(readiness, liveness);
            // Keep the channel open: a closed one would read as a verdict.
            std::future::pending::<()>().await;
        }
    }

    fn specification(&self) -> Result<SandboxSpec, String> {
        let (pod, container) = (&self.context.pod, &self.container);
        let credentials = credentials(pod, container, self.context.address)?;
        let kubelet = &self.context.kubelet;
        let env = environment(pod, container, self.context.address, &kubelet.cluster)?;
        let values = env.iter().cloned().collect();
        let mut command: Vec<String> =
            container.command.iter().flatten().map(|part| expand(part, &values)).collect();
        if is_injected(pod, container) && container.name == INIT
            || command.is_empty() && is_injected(pod, container)
        {
            // The injected containers' image is this binary.
            let binary = kubelet.binary.to_string_lossy().into_owned();
            match command.first_mut() {
                Some(first) => *first = binary,
                None => command.push(binary),
            }
        }
        if command.is_empty() {
            return Err(format!(
                "container {:?} has no command: on this node containers run as local processes and images are not \
                 pulled, so spec.containers[].command must say what to run",
                container.name
            ));
        }
        command.extend(container.args.iter().flatten().map(|part| expand(part, &values)));
        let data = &kubelet.data;
        let mut volumes = self.mounts.clone();
        // In a cluster the image has it on its PATH.
        let on_path = PathBuf::from(BINARY_IN_CONTAINERS);
        volumes.push(Volume { source: kubelet.binary.clone(), target: on_path, read_only: true });
        Ok(SandboxSpec {
            start: Start::New {
                network: self.context.network.clone(),
                hostname: hostname(pod),
                tree: FileTree {
                    staging: data.memory().join("stage"),
                    shown: vec![kubelet.binary.clone()],
                    hidden: vec![data.path().to_owned()],
                    etc: kubelet.etc_path(pod),
                    volumes,
                },
            },
            process: Process {
                command,
                env,
                directory: container.working_dir.clone().filter(|d| !d.is_empty()).map(PathBuf::from),
                uid: credentials.uid,
                gid: credentials.gid,
                groups: credentials.groups,
                capabilities: credentials.capabilities,
            },
        })
    }

    async fn stopped_within(&mut self, time: Duration) -> bool {
        tokio::time::timeout(time, self.stop.wait_for(Option::is_some)).await.is_ok()
    }

    fn update(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.progress.lock());
        self.context.changed.notify_one();
    }

    fn event(&self, warning: bool, reason: &str, message: String) {
        let events = &self.context.kubelet.events;
        if warning {
            events.warning(&self.context.pod, reason, message);
        } else {
            events.normal(&self.context.pod, reason, message);
        }
    }
}

impl PodContext {
    fn target<'a>(&'a self, container: &'a Container, exec: &'a SandboxSpec) -> Target<'a> {
        Target {
            node: &self.kubelet.node,
            binary: &self.kubelet.binary,
            address: self.address,
            container,
            exec,
        }
    }
}

/// Waits for the order to stop; the answer is when the program's time is over.
async fn stop_order(stop: &mut watch::Receiver<Option<Stop>>) -> Instant {
    let order = stop.wait_for(Option::is_some).await.ok().and_then(|order| *order);
    order.map_or_else(Instant::now, |order| order.deadline)
}

/// Whether a probe failed for good.
async fn failure(failed: &mut watch::Receiver<bool>) {
    if failed.wait_for(|failed| *failed).await.is_err() {
        // The probes ended, which is no verdict.
        std::future::pending::<()>().await;
    }
}

/// The time a Pod's containers get to end.
pub(crate) fn grace(pod: &Pod) -> Duration {
    let seconds = pod
        .metadata
        .deletion_grace_period_seconds
        .or_else(|| pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds))
        .unwrap_or(30);
    Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
}

fn back_off(failures: usize) -> Duration {
    match failures.checked_sub(1) {
        None => Duration::ZERO,
        Some(index) => BACK_OFF.get(index).map_or(MAX_BACK_OFF, |&seconds| Duration::from_secs(seconds)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_off_grows_to_five_minutes() {
        let seconds: Vec<u64> = (0..13).map(|n| back_off(n).as_secs()).collect();
        assert_eq!(seconds, [0, 0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
    }
}
