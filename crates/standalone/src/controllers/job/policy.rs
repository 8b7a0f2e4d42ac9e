//! What a Pod's failure means to its Job, and which successes are enough.
//!
//! Source: Kubernetes pkg/controller/job/{pod_failure_policy,success_policy}.go.

use std::collections::BTreeSet;

use maille_config::k8s::api::batch::v1::{JobSpec, PodFailurePolicyRule};
use maille_config::k8s::api::core::v1::{ContainerStatus, Pod};

use super::indexes;

/// The consequence of a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It counts towards the limits.
    Count,
    /// It is not counted; the Pod is replaced.
    Ignore,
    /// Its index is not tried again.
    FailIndex,
    /// The Job has failed, with this message.
    FailJob(String),
}

/// What the first rule that fits says.
pub(super) fn judge(spec: &JobSpec, pod: &Pod) -> Verdict {
    let Some(policy) = &spec.pod_failure_policy else { return Verdict::Count };
    for (number, rule) in policy.rules.iter().enumerate() {
        let Some(why) = fits(rule, pod) else { continue };
        return match rule.action.as_str() {
            "Ignore" => Verdict::Ignore,
            "FailIndex" => Verdict::FailIndex,
            "FailJob" => Verdict::FailJob(format!("{why} matching FailJob rule at index {number}")),
            _ => Verdict::Count,
        };
    }
    Verdict::Count
}

/// Why a rule fits, if it does.
fn fits(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let name = || {
        let metadata = &pod.metadata;
        format!(
            "{}/{}",
            metadata.namespace.as_deref().unwrap_or_default(),
            metadata.name.as_deref().unwrap_or_default()
        )
    };
    if let Some(wanted) = &rule.on_exit_codes {
        let statuses = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
        let fails = |container: &ContainerStatus| {
            let code = container.state.as_ref()?.terminated.as_ref()?.exit_code;
            let named = wanted.container_name.as_ref().is_none_or(|name| *name == container.name);
            let listed = wanted.values.contains(&code);
            let fits = if wanted.operator == "NotIn" { !listed } else { listed };
            (code != 0 && named && fits).then_some((container.name.clone(), code))
        };
        let (container, code) = statuses.into_iter().find_map(fails)?;
        return Some(format!("Container {container} for pod {} failed with exit code {code}", name()));
    }
    for pattern in rule.on_pod_conditions.iter().flatten() {
        let wanted = pattern.status.as_deref().unwrap_or("True");
        let mut conditions = status.conditions.iter().flatten();
        if conditions.any(|condition| condition.type_ == pattern.type_ && condition.status == wanted) {
            return Some(format!("Pod {} has condition {}", name(), pattern.type_));
        }
    }
    None
}

/// Whether a rule of the success policy is met by these indexes; the message that says so.
pub(super) fn suffices(spec: &JobSpec, succeeded: &BTreeSet<i32>, completions: i32) -> Option<String> {
    let policy = spec.success_policy.as_ref()?;
    policy.rules.iter().enumerate().find_map(|(number, rule)| {
        let wanted = rule.succeeded_indexes.as_deref().map(|text| indexes::parse(text, completions));
        let met = match &wanted {
            Some(wanted) => succeeded.intersection(wanted).count(),
            None => succeeded.len(),
        };
        let needed = match (rule.succeeded_count, &wanted) {
            (Some(count), _) => usize::try_from(count).unwrap_or(usize::MAX),
            (None, Some(wanted)) => wanted.len(),
            (None, None) => return None,
        };
        (met >= needed).then(|| format!("Matched rules at index {number}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn spec(value: Value) -> JobSpec {
        let mut whole = json!({"template": {}});
        for (key, part) in value.as_object().expect("an object") {
            whole[key] = part.clone();
        }
        serde_json::from_value(whole).expect("a spec")
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let spec = spec(json!({"podFailurePolicy": {"rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "FailJob", "onExitCodes": {"containerName": "main", "operator": "In", "values": [42]}},
            {"action": "FailIndex", "onExitCodes": {"operator": "NotIn", "values": [1, 42]}},
        ]}}));
        let pod = |container: &str, code: i32, condition: &str| -> Pod {
            serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n"}, "status": {
                "conditions": [{"type": condition, "status": "True"}],
                "containerStatuses": [{"name": container, "image": "x", "imageID": "", "ready": false, "restartCount": 0,
                    "state": {"terminated": {"exitCode": code}}}],
            }}))
            .expect("a Pod")
        };
        assert_eq!(judge(&spec, &pod("main", 42, "DisruptionTarget")), Verdict::Ignore);
        let message = "Container main for pod n/p failed with exit code 42 matching FailJob rule at index 1";
        assert_eq!(judge(&spec, &pod("main", 42, "Ready")), Verdict::FailJob(message.to_owned()));
        assert_eq!(judge(&spec, &pod("other", 42, "Ready")), Verdict::Count);
        assert_eq!(judge(&spec, &pod("other", 3, "Ready")), Verdict::FailIndex);
        assert_eq!(judge(&spec, &pod("other", 1, "Ready")), Verdict::Count);
    }

    #[test]
    fn some_indexes_can_be_enough() {
        let rules = |rules: Value| spec(json!({"successPolicy": {"rules": rules}}));
        let leader = rules(json!([{"succeededIndexes": "0", "succeededCount": 1}]));
        assert!(suffices(&leader, &BTreeSet::from([1, 2]), 3).is_none());
        assert!(suffices(&leader, &BTreeSet::from([0]), 3).is_some());
        let some = rules(json!([{"succeededIndexes": "0-1"}, {"succeededCount": 2}]));
        assert!(suffices(&some, &BTreeSet::from([2]), 5).is_none());
        assert_eq!(suffices(&some, &BTreeSet::from([2, 4]), 5).as_deref(), Some("Matched rules at index 1"));
        assert!(suffices(&spec(json!({})), &BTreeSet::from([0]), 1).is_none());
    }
}
