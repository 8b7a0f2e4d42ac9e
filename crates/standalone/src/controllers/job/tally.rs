//! What a Job's Pods have come to: each is counted once, however often it is looked at and whoever deletes it.
//!
//! A Pod carries a finalizer until it is counted. A Pod that has ended is first written down by its uid in the status
//! (`uncountedTerminatedPods`), then loses its finalizer, and is then counted: whatever is interrupted is taken up
//! where it stands. Source: Kubernetes pkg/controller/job/job_controller.go, `trackJobStatusAndRemoveFinalizers`.

use std::collections::BTreeSet;

use kube::ResourceExt;
use maille_config::k8s::api::batch::v1::{JobSpec, JobStatus, UncountedTerminatedPods};
use maille_config::k8s::api::core::v1::Pod;

use super::indexes;
use super::policy::{self, Verdict};

/// Keeps a Pod until it is counted.
pub(super) const TRACKING: &str = "batch.kubernetes.io/job-tracking";

/// Whether the Pod is still to be counted.
pub(super) fn is_tracked(pod: &Pod) -> bool {
    pod.finalizers().iter().any(|finalizer| finalizer == TRACKING)
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// Whether the Pod has ended.
pub(super) fn has_ended(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether the Pod runs, or will.
pub(super) fn is_active(pod: &Pod) -> bool {
    !has_ended(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// Whether the Pod is on its way out.
pub(super) fn is_terminating(pod: &Pod) -> bool {
    !has_ended(pod) && pod.metadata.deletion_timestamp.is_some()
}

/// Ended Pods, sorted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Uids to write down.
    pub(super) succeeded: BTreeSet<String>,
    pub(super) failed: BTreeSet<String>,
    /// Indexes that are complete, and that are not tried again, those of the status among them.
    pub(super) completed_indexes: BTreeSet<i32>,
    pub(super) failed_indexes: BTreeSet<i32>,
    /// Names of Pods that lose their finalizer once the rest is written.
    pub(super) release: Vec<String>,
    /// A failure that ends the Job.
    pub(super) fatal: Option<String>,
}

/// How many completions an indexed Job has; none if it is not indexed.
pub(super) fn indexed(spec: &JobSpec) -> Option<i32> {
    let indexed = spec.completion_mode.as_deref() == Some("Indexed");
    spec.completions.filter(|_| indexed)
}

/// Sorts the Pods that are not counted yet. With `over`, the Job has failed or goes, and what still runs counts as
/// failed.
pub(super) fn take(spec: &JobSpec, status: &JobStatus, pods: &[Pod], over: bool) -> Tally {
    let limit = indexed(spec);
    let set = |text: &Option<String>| {
        limit.map(|limit| indexes::parse(text.as_deref().unwrap_or_default(), limit)).unwrap_or_default()
    };
    let mut tally = Tally {
        completed_indexes: set(&status.completed_indexes),
        failed_indexes: set(&status.failed_indexes),
        ..Tally::default()
    };
    let only_failed = spec.pod_replacement_policy.as_deref() == Some("Failed");
    for pod in pods.iter().filter(|pod| is_tracked(pod)) {
        // What somebody deletes counts as failed, unless Pods are replaced only when they have ended.
        let deleted = pod.metadata.deletion_timestamp.is_some() && !only_failed;
        if !has_ended(pod) && !deleted && !over {
            continue;
        }
        tally.release.push(pod.name_any());
        let index = indexes::of_pod(pod).filter(|index| limit.is_some_and(|limit| *index < limit));
        if limit.is_some() && index.is_none() {
            continue;
        }
        let uid = pod.uid().unwrap_or_default();
        if phase(pod) == "Succeeded" {
            tally.completed_indexes.extend(index);
            tally.succeeded.insert(uid);
            continue;
        }
        match if phase(pod) == "Failed" { policy::judge(spec, pod) } else { Verdict::Count } {
            Verdict::Ignore => {}
            Verdict::Count => {
                tally.failed.insert(uid);
            }
            Verdict::FailIndex => {
                tally.failed.insert(uid);
                tally.failed_indexes.extend(index);
            }
            Verdict::FailJob(message) => {
                tally.failed.insert(uid);
                tally.fatal = tally.fatal.or(Some(message));
            }
        }
    }
    // Failures of an index beyond its limit are the end of it.
    if let (Some(limit), Some(_)) = (spec.backoff_limit_per_index, indexed(spec)) {
        for index in pods.iter().filter_map(indexes::of_pod) {
            if failures_of(spec, pods, index) > limit {
                tally.failed_indexes.insert(index);
            }
        }
        tally.failed_indexes = &tally.failed_indexes - &tally.completed_indexes;
    }
    tally
}

/// How often an index has failed, by its Pods.
fn failures_of(spec: &JobSpec, pods: &[Pod], index: i32) -> i32 {
    let failed = pods.iter().filter(|pod| {
        phase(pod) == "Failed"
            && indexes::of_pod(pod) == Some(index)
            && policy::judge(spec, pod) != Verdict::Ignore
    });
    i32::try_from(failed.count()).unwrap_or(i32::MAX)
}

/// The status with what was written down counted, for Pods that have lost their finalizer.
pub(super) fn count(spec: &JobSpec, status: &mut JobStatus, still_tracked: &BTreeSet<String>) {
    let Some(uncounted) = status.uncounted_terminated_pods.take() else { return };
    let settle = |uids: Option<Vec<String>>, counter: &mut Option<i32>| {
        let (kept, done): (Vec<_>, Vec<_>) =
            uids.into_iter().flatten().partition(|uid| still_tracked.contains(uid));
        *counter = Some(counter.unwrap_or(0).saturating_add(i32::try_from(done.len()).unwrap_or(i32::MAX)));
        (!kept.is_empty()).then_some(kept)
    };
    let succeeded = settle(uncounted.succeeded, &mut status.succeeded);
    let failed = settle(uncounted.failed, &mut status.failed);
    if let Some(limit) = indexed(spec) {
        let complete = indexes::parse(status.completed_indexes.as_deref().unwrap_or_default(), limit);
        status.succeeded = Some(i32::try_from(complete.len()).unwrap_or(i32::MAX));
    }
    // Present though empty, as Kubernetes has it: counting goes by finalizers.
    status.uncounted_terminated_pods = Some(UncountedTerminatedPods { failed, succeeded });
}

/// Adds what was taken to what is written down.
pub(super) fn write_down(spec: &JobSpec, status: &mut JobStatus, tally: &Tally) {
    let uncounted = status.uncounted_terminated_pods.get_or_insert_default();
    let add = |list: &mut Option<Vec<String>>, uids: &BTreeSet<String>| {
        let mut all: BTreeSet<String> = list.take().into_iter().flatten().collect();
        all.extend(uids.iter().cloned());
        *list = (!all.is_empty()).then(|| all.into_iter().collect());
    };
    add(&mut uncounted.succeeded, &tally.succeeded);
    add(&mut uncounted.failed, &tally.failed);
    if indexed(spec).is_some() {
        status.completed_indexes =
            Some(indexes::print(&tally.completed_indexes)).filter(|text| !text.is_empty());
        status.failed_indexes =
            spec.backoff_limit_per_index.is_some().then(|| indexes::print(&tally.failed_indexes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn spec(value: Value) -> JobSpec {
        let mut whole = json!({"template": {}, "completions": 3});
        for (key, part) in value.as_object().expect("an object") {
            whole[key] = part.clone();
        }
        serde_json::from_value(whole).expect("a spec")
    }

    fn pod(uid: &str, phase: &str, extra: Value) -> Pod {
        let mut whole = json!({"metadata": {"name": uid, "uid": uid, "finalizers": [TRACKING]}, "status": {"phase": phase}});
        for (key, part) in extra.as_object().expect("an object") {
            whole["metadata"][key] = part.clone();
        }
        serde_json::from_value(whole).expect("a Pod")
    }

    #[test]
    fn a_pod_is_counted_once_wherever_one_is_interrupted() {
        let spec = spec(json!({}));
        let mut status = JobStatus::default();
        let gone = json!({"deletionTimestamp": "2026-01-01T00:00:00Z"});
        let pods = [
            pod("a", "Succeeded", json!({})),
            pod("b", "Failed", json!({})),
            pod("c", "Running", json!({})),
            pod("d", "Running", gone.clone()),
            pod("e", "Failed", json!({"finalizers": []})),
        ];
        let tally = take(&spec, &status, &pods, false);
        assert_eq!(tally.release, ["a", "b", "d"]);
        write_down(&spec, &mut status, &tally);
        // Interrupted here: the same again adds nothing.
        let again = take(&spec, &status, &pods, false);
        write_down(&spec, &mut status, &again);
        count(&spec, &mut status, &BTreeSet::from(["a", "b", "d"].map(str::to_owned)));
        assert_eq!((status.succeeded, status.failed), (Some(0), Some(0)));
        // One has lost its finalizer.
        count(&spec, &mut status, &BTreeSet::from(["b", "d"].map(str::to_owned)));
        assert_eq!((status.succeeded, status.failed), (Some(1), Some(0)));
        count(&spec, &mut status, &BTreeSet::new());
        count(&spec, &mut status, &BTreeSet::new());
        assert_eq!((status.succeeded, status.failed), (Some(1), Some(2)));
        // Replaced only when they have ended: one that is on its way out has not.
        let patient = self::spec(json!({"podReplacementPolicy": "Failed"}));
        assert_eq!(take(&patient, &status, &[pod("d", "Running", gone)], false), Tally::default());
    }

    #[test]
    fn indexes_complete_and_fail_for_good() {
        let spec = spec(json!({"completionMode": "Indexed", "backoffLimitPerIndex": 1}));
        let of = |uid: &str, phase: &str, index: &str| {
            pod(uid, phase, json!({"annotations": {indexes::INDEX: index}}))
        };
        let pods = [
            of("a", "Succeeded", "0"),
            of("b", "Failed", "1"),
            of("c", "Failed", "1"),
            of("d", "Failed", "2"),
            of("e", "Succeeded", "7"),
        ];
        let mut status = JobStatus::default();
        let tally = take(&spec, &status, &pods, false);
        assert_eq!(tally.release.len(), 5, "one beyond the completions is let go, and not counted");
        write_down(&spec, &mut status, &tally);
        count(&spec, &mut status, &BTreeSet::new());
        assert_eq!(
            (status.completed_indexes.as_deref(), status.failed_indexes.as_deref()),
            (Some("0"), Some("1"))
        );
        assert_eq!((status.succeeded, status.failed), (Some(1), Some(3)));
    }
}
