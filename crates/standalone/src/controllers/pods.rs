//! What controllers want to know of a Pod.

use kube::ResourceExt;
use maille_config::k8s::api::core::v1::{Pod, PodCondition};
use maille_config::k8s::jiff::Timestamp;

/// Whether the Pod counts: it is neither going away nor finished.
pub(super) fn is_active(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    pod.metadata.deletion_timestamp.is_none() && !matches!(phase, Some("Succeeded" | "Failed"))
}

/// Whether the Pod's Ready condition holds.
pub(super) fn is_ready(pod: &Pod) -> bool {
    ready_condition(pod).is_some_and(|condition| condition.status == "True")
}

/// Whether the Pod has been ready for `min_ready_seconds`.
pub(super) fn is_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    let Some(ready) = ready_condition(pod).filter(|condition| condition.status == "True") else {
        return false;
    };
    if min_ready_seconds <= 0 {
        return true;
    }
    ready
        .last_transition_time
        .as_ref()
        .is_some_and(|since| now.duration_since(since.0).as_secs() >= i64::from(min_ready_seconds))
}

/// In which order Pods are given up: those that serve least first (Kubernetes' ActivePods order, shortened).
pub(super) fn by_worth(pods: &mut [Pod]) {
    pods.sort_by_key(|pod| {
        let status = pod.status.as_ref();
        let is_running = status.and_then(|s| s.phase.as_deref()) == Some("Running");
        let created = pod.creation_timestamp().map(|time| std::cmp::Reverse(time.0));
        (pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some()), is_running, is_ready(pod), created)
    });
}

fn ready_condition(pod: &Pod) -> Option<&PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == "Ready")
}
