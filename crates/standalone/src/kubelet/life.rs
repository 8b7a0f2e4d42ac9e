//! A container's program while it runs: probed, replaced, asked to end.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, Probe};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use maille_net::sandbox::SandboxSpec;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::cadence::{EARLY_TRIES, watch_probe};
use super::container::{Runner, Stop, grace};
use super::generations::{Event, Generations, Instance};
use super::hooks::{self, Moment};
use super::probe;
use super::status::State;
use crate::sandbox::Exit;

/// How long the end of a container's output may take to be written.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How often a sidecar looks whether those it serves have ended.
const TURN: Duration = Duration::from_millis(10);

/// Why a running container has to be ended and started again.
#[derive(Debug, Clone)]
struct Unfit {
    why: String,
    grace: Duration,
}

impl Runner {
    /// Follows a running program to its end, and whoever takes its place.
    pub(crate) async fn live(&mut self, instance: Instance, mut exec: SandboxSpec) -> Exit {
        let started_at = match &self.progress.lock().state {
            State::Running { since } => *since,
            _ => Timestamp::now(),
        };
        let (unfit, mut is_unfit) = watch::channel(None);
        let mut tasks = JoinSet::new();
        tasks.spawn(self.probing(exec.clone(), unfit.clone()));
        tasks.spawn(self.begin(exec.clone(), unfit));
        let mut stop = self.stop.clone();
        let mut replace = self.replace.clone();
        if let Some(replace) = &mut replace {
            // A program that starts now is what was wished for.
            replace.mark_unchanged();
        }
        let mut all = Generations::new(instance);
        let mut next = None;
        let exit = loop {
            let may_replace = !all.is_being_replaced();
            tokio::select! {
                event = all.next() => match event {
                    Event::Ended(exit) => break exit,
                    Event::Replaced => {
                        if let Some(joined) = next.take() {
                            exec = joined;
                        }
                        self.replaced(&all.current.life, &exec);
                    }
                    Event::NotReplaced(why) => {
                        let name = &self.container.name;
                        self.event(true, "SidecarNotReplaced", format!("Container {name} goes on as it is: {why}"));
                    }
                    Event::Finished => {
                        let message = format!("The replaced process of container {} has ended", self.container.name);
                        self.event(false, "SidecarFinished", message);
                    }
                },
                deadline = stop_order(&mut stop) => {
                    // A container that is being stopped is not probed any more.
                    tasks.abort_all();
                    self.update(|p| p.ready = false);
                    break self.end(&mut all, deadline, &exec).await;
                }
                Unfit { why, grace } = failure(&mut is_unfit) => {
                    let name = &self.container.name;
                    self.event(false, "Killing", format!("Container {name} {why}, will be restarted"));
                    break self.end(&mut all, Instant::now() + grace, &exec).await;
                }
                () = changes(&mut replace), if may_replace => match self.launch(false).await {
                    Ok((instance, joined)) => {
                        next = Some(joined);
                        all.replace_by(instance, &self.context);
                    }
                    Err((_, why)) => self.event(true, "SidecarNotReplaced", why),
                },
            }
        };
        tasks.shutdown().await;
        self.begun.send_replace(false);
        // Who reads the status and then the log finds the last words there.
        let output = &mut all.current.output;
        let _ = tokio::time::timeout(LAST_WORDS, async { while output.join_next().await.is_some() {} }).await;
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

    fn replaced(&self, life: &str, exec: &SandboxSpec) {
        self.context.kubelet.remember(&self.context.pod, &self.container.name, exec);
        let message = format!("Container {} was replaced by a new process", self.container.name);
        self.event(false, "SidecarReplaced", message);
        self.update(|p| {
            p.id = Some(format!("maille://{life}"));
            p.state = State::Running { since: Timestamp::now() };
        });
    }

    /// Asks the program to end, when those it serves have, and ends it when its time is over. As in Kubernetes, hooks are
    /// carried out at once, and only then a sidecar waits for its turn.
    async fn end(&self, all: &mut Generations, deadline: Instant, exec: &SandboxSpec) -> Exit {
        let left = || deadline.saturating_duration_since(Instant::now());
        let hook = hooks::wanted(&self.context.pod, &self.container, Moment::PreStop);
        // When the whole mesh goes, there is nobody left to be kind to.
        let is_kind = !self.context.kubelet.shutdown.is_cancelled();
        let farewell = self.farewell.filter(|_| is_kind).map(|time| time.min(left() / 4));
        let prepare = async {
            match hook.filter(|_| is_kind) {
                Some(hook) => {
                    let done = hooks::run(hook, &self.context, &self.container, exec).await;
                    self.tell_hook(Moment::PreStop, done);
                }
                None => tokio::time::sleep(farewell.unwrap_or_default()).await,
            }
            while self.after.iter().any(|other| other.lock().is_running()) {
                tokio::time::sleep(TURN).await;
            }
        };
        tokio::select! {
            _ = tokio::time::timeout(left(), prepare) => {}
            exit = all.wait() => return exit,
        }
        all.terminate().await;
        // Kubernetes grants a moment even where the grace period is over.
        let patience = left().max(Duration::from_millis(100));
        match tokio::time::timeout(patience, all.wait()).await {
            Ok(exit) => exit,
            Err(_) => {
                all.kill().await;
                all.wait().await
            }
        }
    }

    /// The start is over when the hook for it has been carried out; one that fails is the container's failure.
    fn begin(
        &self,
        exec: SandboxSpec,
        unfit: watch::Sender<Option<Unfit>>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (context, container) = (self.context.clone(), self.container.clone());
        let begun = self.begun.clone();
        async move {
            if let Some(hook) = hooks::wanted(&context.pod, &container, Moment::PostStart)
                && let Err(error) = hooks::run(hook, &context, &container, &exec).await
            {
                let events = &context.kubelet.events;
                events.warning(&context.pod, "FailedPostStartHook", format!("PostStartHook failed: {error}"));
                let why = "failed its postStart hook".to_owned();
                unfit.send_replace(Some(Unfit { why, grace: grace(&context.pod) }));
                return;
            }
            begun.send_replace(true);
        }
    }

    fn tell_hook(&self, moment: Moment, done: Result<(), String>) {
        if let Err(error) = done {
            let name = moment.name();
            self.event(true, &format!("Failed{name}"), format!("{name} failed: {error}"));
        }
    }

    /// Probes until dropped; tells `unfit` when the container must be restarted.
    fn probing(
        &self,
        exec: SandboxSpec,
        unfit: watch::Sender<Option<Unfit>>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (context, container) = (self.context.clone(), self.container.clone());
        let (progress, changed) = (self.progress.clone(), self.context.changed.clone());
        async move {
            let failed = |kind: &str, probe: &Probe| Unfit {
                why: format!("failed {kind} probe"),
                grace: probe_grace(probe).unwrap_or_else(|| grace(&context.pod)),
            };
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
                    unfit.send_replace(Some(failed("startup", probe)));
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
                unfit.send_replace(Some(failed("liveness", probe)));
            };
            tokio::join!(readiness, liveness);
            // Keep the channel open: a closed one would read as a verdict.
            std::future::pending::<()>().await;
        }
    }
}

/// Waits for the order to stop; the answer is when the program's time is over.
async fn stop_order(stop: &mut watch::Receiver<Option<Stop>>) -> Instant {
    let order = stop.wait_for(Option::is_some).await.ok().and_then(|order| *order);
    order.map_or_else(Instant::now, |order| order.deadline)
}

/// Why the container cannot go on, once that is so.
async fn failure(unfit: &mut watch::Receiver<Option<Unfit>>) -> Unfit {
    let verdict = unfit.wait_for(Option::is_some).await.ok().and_then(|unfit| unfit.clone());
    match verdict {
        Some(unfit) => unfit,
        // The probes ended, which is no verdict.
        None => std::future::pending().await,
    }
}

/// Waits for a new value.
async fn changes(wish: &mut Option<watch::Receiver<Option<String>>>) {
    if let Some(wish) = wish
        && wish.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

/// The time a probe of its own grants a container that it fails.
fn probe_grace(probe: &Probe) -> Option<Duration> {
    let seconds = probe.termination_grace_period_seconds?;
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or_default()))
}
