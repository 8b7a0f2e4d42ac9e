use serde_json::{Value, json};

use super::*;

fn now() -> Timestamp {
    "2026-01-01T00:10:00Z".parse().expect("a time")
}

fn spec(value: Value) -> JobSpec {
    let mut whole = json!({"template": {"spec": {"restartPolicy": "Never", "containers": []}}, "parallelism": 1, "backoffLimit": 6});
    for (key, part) in value.as_object().expect("an object") {
        whole[key] = part.clone();
    }
    serde_json::from_value(whole).expect("a spec")
}

fn status(value: Value) -> JobStatus {
    serde_json::from_value(value).expect("a status")
}

/// A Pod that ended so many seconds before now, if it ended.
fn pod(phase: &str, index: Option<i32>, ago: i64) -> Pod {
    let at = now() - SignedDuration::from_secs(ago);
    let state = match phase {
        "Running" => json!({"running": {}}),
        _ => json!({"terminated": {"exitCode": 1, "finishedAt": at.to_string()}}),
    };
    let annotations: Value = index.map_or(json!({}), |index| json!({indexes::INDEX: index.to_string()}));
    serde_json::from_value(
        json!({"metadata": {"annotations": annotations}, "status": {"phase": phase, "containerStatuses": [
            {"name": "a", "image": "x", "imageID": "", "ready": false, "restartCount": 2, "state": state},
        ]}}),
    )
    .expect("a Pod")
}

fn run(create: Vec<Option<i32>>, surplus: usize, again: Option<u64>) -> Decision {
    Decision::Run { create, surplus, again: again.map(Duration::from_secs) }
}

fn reason(decision: &Decision) -> &'static str {
    match decision {
        Decision::Fail { reason, .. } | Decision::Succeed { reason, .. } => reason,
        Decision::Suspend => "Suspend",
        Decision::Run { .. } => "Run",
    }
}

#[test]
fn as_many_pods_run_as_are_missing_and_not_more_than_are_allowed() {
    let of = |extra: Value, done: i32, active: usize| {
        let pods = vec![pod("Running", None, 0); active];
        decide(&spec(extra), &status(json!({"succeeded": done})), &pods, now())
    };
    assert_eq!(of(json!({"completions": 5, "parallelism": 2}), 0, 0), run(vec![None; 2], 0, None));
    assert_eq!(of(json!({"completions": 5, "parallelism": 2}), 0, 1), run(vec![None], 0, None));
    assert_eq!(of(json!({"completions": 5, "parallelism": 2}), 4, 0), run(vec![None], 0, None));
    assert_eq!(of(json!({"completions": 5, "parallelism": 2}), 1, 4), run(vec![], 2, None));
    assert_eq!(of(json!({"completions": 5, "parallelism": 0}), 1, 1), run(vec![], 1, None));
    assert_eq!(reason(&of(json!({"completions": 5, "parallelism": 2}), 5, 0)), "CompletionsReached");
    assert_eq!(reason(&of(json!({"completions": 0}), 0, 0)), "CompletionsReached");
    // Without a number of completions one success is enough, and the others come to their end.
    assert_eq!(of(json!({"parallelism": 3}), 0, 0), run(vec![None; 3], 0, None));
    assert_eq!(of(json!({"parallelism": 3}), 1, 2), run(vec![], 0, None));
    assert_eq!(reason(&of(json!({"parallelism": 3}), 1, 0)), "CompletionsReached");
    assert_eq!(reason(&of(json!({"completions": 1, "suspend": true}), 0, 1)), "Suspend");
    assert_eq!(of(json!({"completions": 99, "parallelism": 99}), 0, 0), run(vec![None; BURST], 0, Some(0)));
}

#[test]
fn failures_are_waited_for_longer_each_time_and_end_at_the_limit() {
    let of = |failed: i32, pods: &[Pod]| {
        decide(&spec(json!({"completions": 2})), &status(json!({"failed": failed})), pods, now())
    };
    assert_eq!(of(1, &[pod("Failed", None, 4)]), run(vec![], 0, Some(6)));
    assert_eq!(of(1, &[pod("Failed", None, 10)]), run(vec![None], 0, None));
    assert_eq!(
        of(3, &[pod("Failed", None, 90), pod("Failed", None, 50), pod("Failed", None, 10)]),
        run(vec![], 0, Some(30))
    );
    // A success begins anew.
    assert_eq!(
        of(2, &[pod("Failed", None, 90), pod("Succeeded", None, 20), pod("Failed", None, 8)]),
        run(vec![], 0, Some(2))
    );
    assert_eq!(reason(&of(7, &[])), "BackoffLimitExceeded");
    let in_place = spec(
        json!({"backoffLimit": 2, "template": {"spec": {"restartPolicy": "OnFailure", "containers": []}}}),
    );
    let decision = decide(&in_place, &status(json!({})), &[pod("Running", None, 0)], now());
    assert_eq!(reason(&decision), "BackoffLimitExceeded");
}

#[test]
fn the_deadline_counts_from_the_start() {
    let of = |started: &str| {
        let spec = spec(json!({"activeDeadlineSeconds": 60, "completions": 1}));
        decide(&spec, &status(json!({"startTime": started})), &[pod("Running", None, 0)], now())
    };
    assert_eq!(of("2026-01-01T00:09:30Z"), run(vec![], 0, Some(30)));
    assert_eq!(reason(&of("2026-01-01T00:08:59Z")), "DeadlineExceeded");
}

#[test]
fn each_index_has_one_pod_and_failed_ones_are_left() {
    let indexed = |extra: Value| {
        let mut whole = json!({"completions": 4, "parallelism": 3, "completionMode": "Indexed"});
        for (key, part) in extra.as_object().expect("an object") {
            whole[key] = part.clone();
        }
        spec(whole)
    };
    let done = status(json!({"completedIndexes": "1", "succeeded": 1}));
    let plain = indexed(json!({}));
    assert_eq!(decide(&plain, &status(json!({})), &[], now()), run(vec![Some(0), Some(1), Some(2)], 0, None));
    assert_eq!(
        decide(&plain, &done, &[pod("Running", Some(2), 0)], now()),
        run(vec![Some(0), Some(3)], 0, None)
    );
    let per_index = indexed(json!({"backoffLimitPerIndex": 2, "backoffLimit": i32::MAX}));
    // Only the index that failed waits.
    let decision = decide(&per_index, &done, &[pod("Failed", Some(0), 3)], now());
    assert_eq!(decision, run(vec![Some(2), Some(3)], 0, Some(7)));
    let over = status(json!({"completedIndexes": "1-3", "failedIndexes": "0", "succeeded": 3}));
    assert_eq!(reason(&decide(&per_index, &over, &[], now())), "FailedIndexes");
    let few = indexed(json!({"backoffLimitPerIndex": 0, "maxFailedIndexes": 0}));
    assert_eq!(
        reason(&decide(&few, &status(json!({"failedIndexes": "0"})), &[], now())),
        "MaxFailedIndexesExceeded"
    );
    let leader = indexed(json!({"successPolicy": {"rules": [{"succeededIndexes": "1"}]}}));
    assert_eq!(reason(&decide(&leader, &done, &[], now())), "SuccessPolicy");
}
