use serde_json::{Value, json};

use super::parse_indexes;
use crate::check;

const TEMPLATE: &str =
    r#"{"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "a", "image": "x"}]}}"#;

fn merged(base: Value, over: Value) -> Value {
    match (base, over) {
        (Value::Object(mut base), Value::Object(over)) => {
            for (key, value) in over {
                let before = base.shift_remove(&key).unwrap_or(Value::Null);
                base.insert(key, merged(before, value));
            }
            Value::Object(base)
        }
        (_, over) => over,
    }
}

/// Each change of a good object, with the fields that are then wrong.
fn expect(api_version: &str, kind: &str, good: Value, cases: &[(Value, &[&str])]) {
    for (change, fields) in cases {
        let spec = merged(good.clone(), change.clone());
        let object =
            json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": "a"}, "spec": spec});
        let errors = check::check(&object).err().unwrap_or_default();
        let found: Vec<_> = errors.iter().map(|error| error.path.as_str()).collect();
        assert_eq!(found, *fields, "{kind} {change}: {errors:?}");
    }
}

fn replicated() -> Value {
    let template: Value = serde_json::from_str(TEMPLATE).expect("JSON");
    json!({"selector": {"matchLabels": {"app": "a"}}, "template": template})
}

#[test]
fn stateful_sets() {
    let claim = |name: &str| {
        json!({"metadata": {"name": name},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}})
    };
    let mounts =
        json!([{"name": "a", "image": "x", "volumeMounts": [{"name": "data", "mountPath": "/data"}]}]);
    let cases: &[(Value, &[&str])] = &[
        (json!({}), &[]),
        (
            json!({"serviceName": "a", "volumeClaimTemplates": [claim("data")], "template": {"spec": {"containers": mounts}}}),
            &[],
        ),
        (
            json!({"template": {"spec": {"containers": mounts}}}),
            &["spec.template.spec.containers[0].volumeMounts[0].name"],
        ),
        (
            json!({"volumeClaimTemplates": [claim("data"), claim("data"), {"spec": {}}]}),
            &[
                "spec.volumeClaimTemplates[1].metadata.name",
                "spec.volumeClaimTemplates[2].metadata.name",
                "spec.volumeClaimTemplates[2].spec.accessModes",
                "spec.volumeClaimTemplates[2].spec.resources.requests.storage",
            ],
        ),
        (
            json!({"podManagementPolicy": "Random", "updateStrategy": {"type": "OnDelete", "rollingUpdate": {"partition": -1, "maxUnavailable": 0}}}),
            &[
                "spec.podManagementPolicy",
                "spec.updateStrategy.rollingUpdate",
                "spec.updateStrategy.rollingUpdate.partition",
                "spec.updateStrategy.rollingUpdate.maxUnavailable",
            ],
        ),
        (
            json!({"replicas": -1, "ordinals": {"start": -1}, "persistentVolumeClaimRetentionPolicy": {"whenScaled": "Recycle"}}),
            &["spec.ordinals.start", "spec.persistentVolumeClaimRetentionPolicy.whenScaled", "spec.replicas"],
        ),
    ];
    expect("apps/v1", "StatefulSet", replicated(), cases);
}

#[test]
fn daemon_sets() {
    let rolling = |value: Value| json!({"updateStrategy": {"rollingUpdate": value}});
    let unavailable: &[&str] = &["spec.updateStrategy.rollingUpdate.maxUnavailable"];
    let surge: &[&str] = &["spec.updateStrategy.rollingUpdate.maxSurge"];
    let cases: &[(Value, &[&str])] = &[
        (json!({}), &[]),
        (rolling(json!({"maxSurge": 1, "maxUnavailable": 0})), &[]),
        (rolling(json!({"maxSurge": 1})), &[]),
        (rolling(json!({"maxSurge": 1, "maxUnavailable": "20%"})), surge),
        (rolling(json!({"maxUnavailable": 0})), unavailable),
        (rolling(json!({"maxUnavailable": "200%"})), unavailable),
        (json!({"selector": {"matchLabels": {"app": "b"}}}), &["spec.selector.matchLabels.app"]),
    ];
    expect("apps/v1", "DaemonSet", replicated(), cases);
}

#[test]
fn jobs() {
    let good = json!({"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "a", "image": "x"}]}}});
    let cases: &[(Value, &[&str])] = &[
        (json!({}), &[]),
        (
            json!({"completions": 3, "completionMode": "Indexed", "backoffLimitPerIndex": 1, "maxFailedIndexes": 1}),
            &[],
        ),
        (json!({"template": {"spec": {"restartPolicy": null}}}), &["spec.template.spec.restartPolicy"]),
        (json!({"template": {"spec": {"restartPolicy": "Always"}}}), &["spec.template.spec.restartPolicy"]),
        (json!({"completionMode": "Indexed"}), &["spec.completions"]),
        (json!({"completionMode": "Indexed", "completions": 100_000}), &[]),
        (json!({"completionMode": "Indexed", "completions": 100_001}), &["spec.completions"]),
        (json!({"completions": 100_001}), &[]),
        (json!({"backoffLimitPerIndex": 1}), &["spec.backoffLimitPerIndex"]),
        (json!({"maxFailedIndexes": 1}), &["spec.maxFailedIndexes"]),
        (json!({"managedBy": "example.com/other"}), &["spec.managedBy"]),
        (json!({"managedBy": "kubernetes.io/job-controller"}), &[]),
        (json!({"selector": {"matchLabels": {"a": "b"}}}), &["spec.selector"]),
        (json!({"selector": {"matchLabels": {"a": "b"}}, "manualSelector": true}), &[]),
        (
            json!({"podFailurePolicy": {"rules": [
                {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}},
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            ]}}),
            &[],
        ),
        (
            json!({"podFailurePolicy": {"rules": [
                {"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [0]}}, {"action": "Count"},
            ]}}),
            &[
                "spec.podFailurePolicy.rules[0].action",
                "spec.podFailurePolicy.rules[0].onExitCodes.values",
                "spec.podFailurePolicy.rules[1]",
            ],
        ),
        (
            json!({"successPolicy": {"rules": [{"succeededIndexes": "2-1"}]}}),
            &["spec.successPolicy", "spec.successPolicy.rules[0].succeededIndexes"],
        ),
        (
            json!({"parallelism": -1, "activeDeadlineSeconds": 0}),
            &["spec.parallelism", "spec.activeDeadlineSeconds"],
        ),
    ];
    expect("batch/v1", "Job", good.clone(), cases);

    let good = json!({"schedule": "*/5 * * * *", "jobTemplate": {"spec": good}});
    let cases: &[(Value, &[&str])] = &[
        (json!({}), &[]),
        (json!({"timeZone": "Europe/Berlin", "concurrencyPolicy": "Forbid"}), &[]),
        (json!({"schedule": ""}), &["spec.schedule"]),
        (json!({"schedule": "* * *"}), &["spec.schedule"]),
        (json!({"timeZone": "Local"}), &["spec.timeZone"]),
        (json!({"timeZone": "Mars/Base"}), &["spec.timeZone"]),
        (json!({"concurrencyPolicy": "Queue"}), &["spec.concurrencyPolicy"]),
        (
            json!({"jobTemplate": {"spec": {"manualSelector": true}}}),
            &["spec.jobTemplate.spec.manualSelector"],
        ),
        (json!({"startingDeadlineSeconds": -1}), &["spec.startingDeadlineSeconds"]),
    ];
    expect("batch/v1", "CronJob", good, cases);
}

#[test]
fn claims() {
    let good = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
    let cases: &[(Value, &[&str])] = &[
        (json!({}), &[]),
        (json!({"volumeMode": "Block"}), &["spec.volumeMode"]),
        (json!({"accessModes": ["Anyhow"]}), &["spec.accessModes[0]"]),
        (json!({"dataSource": {"kind": "VolumeSnapshot", "name": "x"}}), &["spec.dataSource"]),
    ];
    expect("v1", "PersistentVolumeClaim", good.clone(), cases);
    let mut object =
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "a"}, "spec": good});
    let warned = |object: &Value| {
        let checked = check::check(object).expect("good");
        check::warnings(&checked).iter().map(|w| w.path.clone()).collect::<Vec<_>>()
    };
    assert!(warned(&object).is_empty());
    object["spec"]["storageClassName"] = "fast".into();
    assert_eq!(warned(&object), ["spec.storageClassName"]);
}

#[test]
fn indexes_are_ascending_intervals() {
    assert_eq!(parse_indexes("1,3-5,7"), Some(vec![(1, 1), (3, 5), (7, 7)]));
    assert_eq!(parse_indexes(""), Some(vec![]));
    for text in ["1,", "5-3", "3,3", "a", "-1", "1-2-3", "+1"] {
        assert_eq!(parse_indexes(text), None, "{text}");
    }
}
