//! One container: what it is made of, when it starts, and when again.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ContainerStateTerminated, Pod};
use kube::ResourceExt as _;
use maille_net::sandbox::{FileTree, Joined, Process, SandboxSpec, Start, Volume};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use super::env::{environment, expand, hostname};
use super::generations::{Instance, LIFE};
use super::probe::Target;
use super::security::{INIT, PROXY, credentials, is_injected};
use super::status::{Progress, State};
use super::{Kubelet, logs};
use crate::address::BINARY_IN_CONTAINERS;
use crate::sandbox;

/// First restarts are quick: on one machine the usual cause is a peer that is not up yet.
const BACK_OFF: [u64; 10] = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256];
const MAX_BACK_OFF: Duration = Duration::from_secs(300);
/// A container that ran this long starts with no back-off again (kubelet: twice the maximum).
const FORGIVEN_AFTER: Duration = Duration::from_secs(600);

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
    /// Containers that end before it does: those it serves, if it is a sidecar.
    pub(crate) after: Vec<Arc<Mutex<Progress>>>,
    /// How long it goes on serving when its Pod is to end, if it has no hook that sees to this: the sidecar sends callers
    /// elsewhere meanwhile, and those with old news still find it.
    pub(crate) farewell: Option<Duration>,
    /// The wish to replace it while it runs; only of an injected sidecar.
    pub(crate) replace: Option<watch::Receiver<Option<String>>>,
    /// Told when the container runs and its postStart hook, if it has one, has been carried out.
    pub(crate) begun: watch::Sender<bool>,
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
                Ok((instance, spec)) => {
                    let since = Instant::now();
                    let exit = self.live(instance, spec).await;
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
    async fn start(&mut self, attempt: usize) -> Result<(Instance, SandboxSpec), (&'static str, String)> {
        let name = self.container.name.clone();
        if attempt == 1 {
            self.event(false, "Created", format!("Container created: {name}"));
        }
        let (instance, spec) = self.launch(true).await?;
        self.event(false, "Started", format!("Container started: {name}"));
        self.context.kubelet.remember(&self.context.pod, &name, &spec);
        self.update(|p| {
            p.id = Some(format!("maille://{}", instance.life));
            p.state = State::Running { since: Timestamp::now() };
            p.started = self.container.startup_probe.is_none();
            p.ready = self.container.readiness_probe.is_none();
        });
        Ok((instance, spec))
    }

    /// Starts the program, with its output going to the container's log; the specification is for joining it.
    pub(crate) async fn launch(
        &self,
        is_first: bool,
    ) -> Result<(Instance, SandboxSpec), (&'static str, String)> {
        let life = format!("{:032x}", rand::random::<u128>());
        let spec = self.specification(&life).map_err(|e| ("CreateContainerConfigError", e))?;
        let log = self.context.kubelet.log_path(&self.context.pod, &self.container.name);
        if let Some(parent) = log.parent() {
            std::fs::create_dir_all(parent)
                .map_err(|e| ("CreateContainerError", format!("{}: {e}", parent.display())))?;
        }
        let mut running = sandbox::start(&self.context.kubelet.binary, &spec)
            .await
            .map_err(|e| ("CreateContainerError", e.message))?;
        if is_first {
            logs::rotate(&log);
        }
        let mut output = JoinSet::new();
        if let Some((stdout, stderr)) = running.output.take() {
            match logs::copy(&log, stdout, stderr) {
                Ok(copying) => output = copying,
                Err(error) => tracing::warn!(path = %log.display(), %error, "container output is lost"),
            }
        }
        let mut joined = spec;
        joined.start = Start::Join(Joined { container: running.process });
        Ok((Instance { life, running, output }, joined))
    }

    fn specification(&self, life: &str) -> Result<SandboxSpec, String> {
        let (pod, container) = (&self.context.pod, &self.container);
        let credentials = credentials(pod, container, self.context.address)?;
        let kubelet = &self.context.kubelet;
        let mut env = environment(pod, container, self.context.address, &kubelet.cluster)?;
        let values = env.iter().cloned().collect();
        if is_injected(pod, container) && container.name == PROXY {
            env.push((LIFE.to_owned(), life.to_owned()));
        }
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

    pub(crate) fn update(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.progress.lock());
        self.context.changed.notify_one();
    }

    pub(crate) fn event(&self, warning: bool, reason: &str, message: String) {
        let events = &self.context.kubelet.events;
        if warning {
            events.warning(&self.context.pod, reason, message);
        } else {
            events.normal(&self.context.pod, reason, message);
        }
    }
}

impl PodContext {
    pub(crate) fn target<'a>(&'a self, container: &'a Container, exec: &'a SandboxSpec) -> Target<'a> {
        Target {
            node: &self.kubelet.node,
            binary: &self.kubelet.binary,
            address: self.address,
            container,
            exec,
        }
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
