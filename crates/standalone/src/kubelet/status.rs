//! A Pod's status, as Kubernetes words it.

use std::net::Ipv4Addr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::security::{PROXY, is_injected};
use crate::address::{NODE_ADDRESS, pod_addresses};

/// What is known of one container.
#[derive(Debug, Clone, Default)]
pub(crate) struct Progress {
    pub(crate) state: State,
    pub(crate) last: Option<ContainerStateTerminated>,
    pub(crate) restarts: i32,
    pub(crate) id: Option<String>,
    /// The startup probe succeeded, or there is none.
    pub(crate) started: bool,
    /// The readiness probe succeeded, or there is none.
    pub(crate) ready: bool,
    /// It ended and will not be started again.
    pub(crate) finished: bool,
}

/// Kubernetes' three states.
#[derive(Debug, Clone)]
pub(crate) enum State {
    Waiting { reason: String, message: Option<String> },
    Running { since: Timestamp },
    Terminated(ContainerStateTerminated),
}

impl Default for State {
    fn default() -> Self {
        Self::waiting("ContainerCreating", None)
    }
}

impl State {
    pub(crate) fn waiting(reason: &str, message: Option<String>) -> Self {
        Self::Waiting { reason: reason.to_owned(), message }
    }

    fn to_api(&self) -> ContainerState {
        match self {
            Self::Waiting { reason, message } => ContainerState {
                waiting: Some(ContainerStateWaiting {
                    reason: Some(reason.clone()),
                    message: message.clone(),
                }),
                ..Default::default()
            },
            Self::Running { since } => ContainerState {
                running: Some(ContainerStateRunning { started_at: Some(Time(*since)) }),
                ..Default::default()
            },
            Self::Terminated(terminated) => {
                ContainerState { terminated: Some(terminated.clone()), ..Default::default() }
            }
        }
    }
}

impl Progress {
    /// Takes up where an earlier run of the supervisor left: its processes are gone, as after a reboot of a node.
    pub(crate) fn resume(status: Option<&ContainerStatus>, restarts: bool) -> Self {
        let Some(status) = status else { return Self::default() };
        let mut this = Self {
            restarts: status.restart_count,
            last: terminated(&status.last_state),
            ..Default::default()
        };
        if let Some(ended) = terminated(&status.state) {
            this.last = Some(ended.clone());
            if !restarts || ended.exit_code == 0 {
                this.state = State::Terminated(ended);
                this.finished = !restarts;
            }
        } else if status.container_id.is_some() {
            let ended = ContainerStateTerminated {
                exit_code: 255,
                reason: Some("Unknown".to_owned()),
                container_id: status.container_id.clone(),
                finished_at: Some(Time(Timestamp::now())),
                started_at: status
                    .state
                    .as_ref()
                    .and_then(|s| s.running.as_ref())
                    .and_then(|r| r.started_at.clone()),
                ..Default::default()
            };
            this.last = Some(ended.clone());
            if restarts {
                this.restarts += 1;
            } else {
                this.state = State::Terminated(ended);
                this.finished = true;
            }
        }
        this
    }

    pub(crate) fn is_running(&self) -> bool {
        matches!(self.state, State::Running { .. })
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.is_running() && self.started && self.ready
    }

    /// The exit code of a container that will not run again.
    pub(crate) fn final_code(&self) -> Option<i32> {
        match &self.state {
            State::Terminated(ended) if self.finished => Some(ended.exit_code),
            _ => None,
        }
    }

    pub(crate) fn to_api(&self, container: &Container, init: bool) -> ContainerStatus {
        let image = container.image.clone().unwrap_or_default();
        // An init container counts as ready once it did its work.
        let ready = self.is_ready() || init && self.final_code() == Some(0);
        ContainerStatus {
            name: container.name.clone(),
            image_id: image.clone(),
            image,
            container_id: self.id.clone(),
            state: Some(self.state.to_api()),
            last_state: Some(ContainerState { terminated: self.last.clone(), ..Default::default() }),
            ready,
            started: Some(self.is_running() && self.started),
            restart_count: self.restarts,
            ..Default::default()
        }
    }
}

fn terminated(state: &Option<ContainerState>) -> Option<ContainerStateTerminated> {
    state.as_ref()?.terminated.clone()
}

/// All that a Pod's status is made of.
pub(crate) struct Report<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) address: Option<Ipv4Addr>,
    pub(crate) started_at: Timestamp,
    pub(crate) init: Vec<(&'a Container, Progress)>,
    pub(crate) main: Vec<(&'a Container, Progress)>,
    pub(crate) initialized: bool,
}

/// The status; transition times come from `before` where nothing changed.
pub(crate) fn pod_status(report: &Report<'_>, before: &PodStatus) -> PodStatus {
    let phase = phase(report);
    let over = matches!(phase, "Succeeded" | "Failed");
    let sidecars = report.init.iter().filter(|(c, _)| c.restart_policy.as_deref() == Some("Always"));
    let unready: Vec<&str> =
        sidecars.chain(&report.main).filter(|(_, p)| !p.is_ready()).map(|(c, _)| c.name.as_str()).collect();
    let not_ready = (over, unready.is_empty()) != (false, true);
    let why = if over { "PodCompleted" } else { "ContainersNotReady" };
    let message = format!("containers with unready status: [{}]", unready.join(" "));
    let reason = || not_ready.then_some((if phase == "Failed" { "PodFailed" } else { why }, message.clone()));
    let initialized = (!report.initialized).then(|| {
        let left: Vec<&str> = report
            .init
            .iter()
            .filter(|(_, p)| p.final_code() != Some(0))
            .map(|(c, _)| c.name.as_str())
            .collect();
        ("ContainersNotInitialized", format!("containers with incomplete status: [{}]", left.join(" ")))
    });
    let now = Timestamp::now();
    let conditions = [
        ("PodReadyToStartContainers", report.address.is_none().then_some(("", String::new()))),
        ("Initialized", initialized),
        ("Ready", reason()),
        ("ContainersReady", reason()),
        ("PodScheduled", None),
    ]
    .into_iter()
    .map(|(kind, problem)| condition(kind, problem, before, now))
    .collect();
    PodStatus {
        phase: Some(phase.to_owned()),
        conditions: Some(conditions),
        host_ip: Some(NODE_ADDRESS.to_string()),
        host_ips: Some(vec![HostIP { ip: NODE_ADDRESS.to_string() }]),
        pod_ip: report.address.map(|a| a.to_string()),
        pod_ips: report.address.map(|a| pod_addresses(a).map(|ip| PodIP { ip: ip.to_string() }).collect()),
        start_time: Some(Time(report.started_at)),
        qos_class: Some(before.qos_class.clone().unwrap_or_else(|| "BestEffort".to_owned())),
        init_container_statuses: (!report.init.is_empty())
            .then(|| report.init.iter().map(|(c, p)| p.to_api(c, true)).collect()),
        container_statuses: Some(report.main.iter().map(|(c, p)| p.to_api(c, false)).collect()),
        observed_generation: report.pod.metadata.generation,
        ..Default::default()
    }
}

/// Kubernetes' `getPhase`.
fn phase(report: &Report<'_>) -> &'static str {
    let failed_init = report.init.iter().any(|(_, p)| p.final_code().is_some_and(|code| code != 0));
    if failed_init {
        return "Failed";
    }
    if !report.initialized {
        return "Pending";
    }
    // How a sidecar ends says nothing of the work that it was there for, but it ends before the Pod does.
    let is_sidecar = |c: &Container| c.name == PROXY && is_injected(report.pod, c);
    let (sidecars, served): (Vec<_>, Vec<_>) = report.main.iter().partition(|(c, _)| is_sidecar(c));
    if sidecars.iter().any(|(_, p)| p.is_running()) {
        return "Running";
    }
    let work = if served.is_empty() { sidecars } else { served };
    let finals: Vec<Option<i32>> = work.iter().map(|(_, p)| p.final_code()).collect();
    if finals.iter().all(Option::is_some) {
        return if finals.iter().all(|code| *code == Some(0)) { "Succeeded" } else { "Failed" };
    }
    let ever = |p: &Progress| p.is_running() || p.last.is_some() || matches!(p.state, State::Terminated(_));
    if report.main.iter().any(|(_, p)| ever(p)) { "Running" } else { "Pending" }
}

fn condition(
    kind: &str,
    problem: Option<(&str, String)>,
    before: &PodStatus,
    now: Timestamp,
) -> PodCondition {
    let status = if problem.is_some() { "False" } else { "True" };
    let old = before.conditions.iter().flatten().find(|c| c.type_ == kind && c.status == status);
    let (reason, message) = problem.unzip();
    PodCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.filter(|r| !r.is_empty()).map(str::to_owned),
        message: message.filter(|m| !m.is_empty()),
        last_transition_time: old.and_then(|c| c.last_transition_time.clone()).or(Some(Time(now))),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(code: i32) -> Progress {
        let ended = ContainerStateTerminated { exit_code: code, ..Default::default() };
        Progress { state: State::Terminated(ended), finished: true, ..Default::default() }
    }

    fn running(ready: bool) -> Progress {
        Progress {
            state: State::Running { since: Timestamp::now() },
            started: true,
            ready,
            ..Default::default()
        }
    }

    fn of(init: &[Progress], main: &[Progress], initialized: bool) -> PodStatus {
        let container = Container { name: "c".to_owned(), ..Default::default() };
        let with = |list: &[Progress]| list.iter().map(|p| (&container, p.clone())).collect();
        let (init, main) = (with(init), with(main));
        let report = Report {
            pod: &Pod::default(),
            address: Some(Ipv4Addr::LOCALHOST),
            started_at: Timestamp::now(),
            init,
            main,
            initialized,
        };
        pod_status(&report, &PodStatus::default())
    }

    fn is(status: &PodStatus, kind: &str) -> bool {
        status.conditions.iter().flatten().any(|c| c.type_ == kind && c.status == "True")
    }

    #[test]
    fn phases_and_readiness_follow_the_containers() {
        let status = of(&[], &[running(true), running(false)], true);
        assert_eq!((status.phase.as_deref(), is(&status, "Ready")), (Some("Running"), false));
        let status = of(&[], &[running(true)], true);
        assert!(is(&status, "Ready") && is(&status, "Initialized"));
        let status = of(&[Progress::default()], &[Progress::default()], false);
        assert_eq!((status.phase.as_deref(), is(&status, "Initialized")), (Some("Pending"), false));
        assert_eq!(of(&[], &[ended(0), ended(0)], true).phase.as_deref(), Some("Succeeded"));
        assert_eq!(of(&[], &[ended(0), ended(3)], true).phase.as_deref(), Some("Failed"));
        assert_eq!(of(&[], &[ended(0), running(true)], true).phase.as_deref(), Some("Running"));
        assert_eq!(of(&[ended(1)], &[Progress::default()], false).phase.as_deref(), Some("Failed"));
    }

    #[test]
    fn a_job_is_over_when_its_work_is_however_its_sidecar_ended() {
        let pod: Pod = serde_json::from_value(
            serde_json::json!({"metadata": {"annotations": {"sidecar.istio.io/status": "{}"}}}),
        )
        .expect("a Pod");
        let [app, proxy] =
            ["app", "istio-proxy"].map(|name| Container { name: name.to_owned(), ..Default::default() });
        let phase_of = |work: Progress, sidecar: Progress| {
            let main = vec![(&proxy, sidecar), (&app, work)];
            let report = Report {
                pod: &pod,
                address: Some(Ipv4Addr::LOCALHOST),
                started_at: Timestamp::now(),
                init: vec![],
                main,
                initialized: true,
            };
            phase(&report)
        };
        assert_eq!(phase_of(ended(0), running(true)), "Running", "its sidecar has yet to end");
        assert_eq!(phase_of(ended(0), ended(137)), "Succeeded");
        assert_eq!(phase_of(ended(1), ended(0)), "Failed");
        assert_eq!(phase_of(running(true), ended(0)), "Running");
    }

    #[test]
    fn transition_times_stay_while_a_condition_stays() {
        let first = of(&[], &[running(true)], true);
        let pod = Pod::default();
        let container = Container { name: "c".to_owned(), ..Default::default() };
        let report = Report {
            pod: &pod,
            address: Some(Ipv4Addr::LOCALHOST),
            started_at: Timestamp::now(),
            init: vec![],
            main: vec![(&container, running(false))],
            initialized: true,
        };
        let second = pod_status(&report, &first);
        let time = |s: &PodStatus, kind: &str| {
            s.conditions.iter().flatten().find(|c| c.type_ == kind).unwrap().last_transition_time.clone()
        };
        assert_eq!(time(&first, "PodScheduled"), time(&second, "PodScheduled"));
        assert_ne!(time(&first, "Ready"), time(&second, "Ready"));
    }
}
