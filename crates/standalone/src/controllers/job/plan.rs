//! What a Job does next; pure.
//!
//! Source: Kubernetes pkg/controller/job/job_controller.go, `syncJob` and `manageJob`; `backoff_utils.go`.

use std::collections::BTreeSet;
use std::time::Duration;

use maille_config::k8s::api::batch::v1::{JobSpec, JobStatus};
use maille_config::k8s::api::core::v1::Pod;
use maille_config::k8s::jiff::{SignedDuration, Timestamp};

use super::indexes;
use super::policy::{self, Verdict};
use super::tally::{has_ended, indexed, is_active, is_terminating};

/// The first wait after a failure, doubled with each further one (`DefaultJobPodFailureBackOff`).
const BACK_OFF: i64 = 10;
/// The longest (`MaxJobPodFailureBackOff`).
const MAX_BACK_OFF: i64 = 600;
/// Pods that are made in one go, at most; the rest follows.
const BURST: usize = 50;

/// The next step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decision {
    Fail {
        reason: &'static str,
        message: String,
    },
    Succeed {
        reason: &'static str,
        message: String,
    },
    Suspend,
    /// Make Pods, each with its index if the Job has indexes; delete some; look again.
    Run {
        create: Vec<Option<i32>>,
        surplus: usize,
        again: Option<Duration>,
    },
}

fn fail(reason: &'static str, message: &str) -> Decision {
    Decision::Fail { reason, message: message.to_owned() }
}

/// Decides with a status in which all ended Pods are counted.
pub(super) fn decide(spec: &JobSpec, status: &JobStatus, pods: &[Pod], now: Timestamp) -> Decision {
    let limit = indexed(spec);
    let set = |text: &Option<String>| {
        limit.map(|limit| indexes::parse(text.as_deref().unwrap_or_default(), limit)).unwrap_or_default()
    };
    let (complete, failed) = (set(&status.completed_indexes), set(&status.failed_indexes));
    let active: Vec<&Pod> = pods.iter().filter(|pod| is_active(pod)).collect();
    let succeeded = status.succeeded.unwrap_or(0);
    if status.failed.unwrap_or(0) > spec.backoff_limit.unwrap_or(6) || restarts_too_often(spec, &active) {
        return fail("BackoffLimitExceeded", "Job has reached the specified backoff limit");
    }
    let deadline = remaining(spec, status, now);
    if deadline == Some(Duration::ZERO) {
        return fail("DeadlineExceeded", "Job was active longer than specified deadline");
    }
    if spec.max_failed_indexes.is_some_and(|most| failed.len() > usize::try_from(most).unwrap_or(0)) {
        let message = "Job has exceeded the specified maximal number of failed indexes";
        return fail("MaxFailedIndexesExceeded", message);
    }
    if let Some(message) = limit.and_then(|limit| policy::suffices(spec, &complete, limit)) {
        return Decision::Succeed { reason: "SuccessPolicy", message };
    }
    let done = match spec.completions {
        // One success is enough, and no new Pod follows it.
        None => succeeded > 0 && active.is_empty(),
        Some(completions) => succeeded >= completions,
    };
    if done {
        let message = "Reached expected number of succeeded pods".to_owned();
        return Decision::Succeed { reason: "CompletionsReached", message };
    }
    if limit.is_some_and(|limit| complete.len() + failed.len() >= usize::try_from(limit).unwrap_or(0)) {
        return fail("FailedIndexes", "Job has failed indexes");
    }
    if spec.suspend == Some(true) {
        return Decision::Suspend;
    }
    let parallelism = spec.parallelism.unwrap_or(1).max(0);
    let wanted = match spec.completions {
        None if succeeded > 0 => active.len(),
        None => usize::try_from(parallelism).unwrap_or(0),
        Some(completions) => usize::try_from(parallelism.min(completions - succeeded)).unwrap_or(0),
    };
    let surplus = active.len().saturating_sub(wanted);
    let mut occupied = active.len();
    if spec.pod_replacement_policy.as_deref() == Some("Failed") {
        occupied += pods.iter().filter(|pod| is_terminating(pod)).count();
    }
    let missing = wanted.saturating_sub(occupied);
    let (create, wait) = if missing == 0 {
        (Vec::new(), None)
    } else {
        match limit {
            Some(limit) => free_indexes(spec, pods, &(&complete | &failed), limit, missing, now),
            None => match back_off(spec, pods, None, now) {
                Some(wait) => (Vec::new(), Some(wait)),
                None => (vec![None; missing.min(BURST)], (missing > BURST).then_some(Duration::ZERO)),
            },
        }
    };
    Decision::Run { create, surplus, again: [deadline, wait].into_iter().flatten().min() }
}

/// The lowest indexes that are to be tried, and how long to wait for more.
fn free_indexes(
    spec: &JobSpec,
    pods: &[Pod],
    over: &BTreeSet<i32>,
    limit: i32,
    missing: usize,
    now: Timestamp,
) -> (Vec<Option<i32>>, Option<Duration>) {
    let patient = spec.pod_replacement_policy.as_deref() == Some("Failed");
    let taken: BTreeSet<i32> = pods
        .iter()
        .filter(|pod| is_active(pod) || (patient && is_terminating(pod)))
        .filter_map(indexes::of_pod)
        .collect();
    let mut free = (0..limit).filter(|index| !over.contains(index) && !taken.contains(index));
    let mut wait: Option<Duration> = None;
    let mut create = Vec::new();
    if spec.backoff_limit_per_index.is_none()
        && let Some(wait) = back_off(spec, pods, None, now)
    {
        return (create, Some(wait));
    }
    for index in free.by_ref() {
        if create.len() == missing.min(BURST) {
            wait = (missing > BURST).then_some(Duration::ZERO).or(wait);
            break;
        }
        let waits = spec.backoff_limit_per_index.and_then(|_| back_off(spec, pods, Some(index), now));
        match waits {
            Some(left) => wait = Some(wait.map_or(left, |wait| wait.min(left))),
            None => create.push(Some(index)),
        }
    }
    (create, wait)
}

/// How long the Job may still run, if that is bounded.
fn remaining(spec: &JobSpec, status: &JobStatus, now: Timestamp) -> Option<Duration> {
    let started = status.start_time.as_ref()?.0;
    let end = started.checked_add(SignedDuration::from_secs(spec.active_deadline_seconds?)).ok()?;
    Some(Duration::try_from(end.duration_since(now)).unwrap_or(Duration::ZERO))
}

/// Containers that are started again in their Pod count towards the limit too.
fn restarts_too_often(spec: &JobSpec, active: &[&Pod]) -> bool {
    let pod_spec = spec.template.spec.as_ref();
    if pod_spec.and_then(|spec| spec.restart_policy.as_deref()) != Some("OnFailure") {
        return false;
    }
    let restarts: i64 = active
        .iter()
        .filter_map(|pod| pod.status.as_ref())
        .flat_map(|status| status.init_container_statuses.iter().chain(&status.container_statuses).flatten())
        .map(|container| i64::from(container.restart_count))
        .sum();
    let limit = i64::from(spec.backoff_limit.unwrap_or(6));
    if limit == 0 { restarts > 0 } else { restarts >= limit }
}

/// How long to wait before the next Pod, after failures since the last success.
fn back_off(spec: &JobSpec, pods: &[Pod], index: Option<i32>, now: Timestamp) -> Option<Duration> {
    let ended = || {
        let of_index = |pod: &&Pod| index.is_none() || indexes::of_pod(pod) == index;
        pods.iter().filter(|pod| has_ended(pod)).filter(of_index)
    };
    let phase = |pod: &Pod| pod.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default();
    let last_success = ended().filter(|pod| phase(pod) == "Succeeded").filter_map(end_of).max();
    let failures: Vec<Timestamp> = ended()
        .filter(|pod| phase(pod) == "Failed" && policy::judge(spec, pod) != Verdict::Ignore)
        .filter_map(end_of)
        .filter(|at| last_success.is_none_or(|success| *at > success))
        .collect();
    let last = failures.iter().max()?;
    let doubled = BACK_OFF.checked_shl(u32::try_from(failures.len() - 1).unwrap_or(u32::MAX));
    let delay = doubled.filter(|delay| (BACK_OFF..=MAX_BACK_OFF).contains(delay)).unwrap_or(MAX_BACK_OFF);
    let due = last.checked_add(SignedDuration::from_secs(delay)).ok()?;
    Duration::try_from(due.duration_since(now)).ok().filter(|left| !left.is_zero())
}

/// When the last container of a Pod ended.
fn end_of(pod: &Pod) -> Option<Timestamp> {
    let status = pod.status.as_ref()?;
    let containers = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    let ends = containers.filter_map(|container| container.state.as_ref()?.terminated.as_ref());
    ends.filter_map(|ended| ended.finished_at.as_ref()).map(|time| time.0).max()
}

#[cfg(test)]
mod tests;
