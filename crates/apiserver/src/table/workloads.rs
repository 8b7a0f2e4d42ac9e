//! The cells of what makes Pods, and of claims.
//!
//! Source: kubernetes `pkg/printers/internalversion/printers.go`.

use jiff::Timestamp;
use serde_json::Value;

use super::cells::{NONE, count, or_none, pairs};
use crate::json;
use crate::selector::LabelSelector;
use crate::time::{human_age, human_between};

/// Names, images and selector of a template's containers: the wide columns of all.
fn template(column: &str, object: &Value, spec: &[&str]) -> Value {
    let at = |rest: &[&str]| json::at(object, &[spec, rest].concat());
    let containers = at(&["template", "spec", "containers"]).and_then(Value::as_array);
    let join = |key: &str| {
        let texts = containers.into_iter().flatten().map(|c| json::text(c, &[key]));
        texts.collect::<Vec<_>>().join(",")
    };
    match column {
        "Containers" => join("name").into(),
        "Images" => join("image").into(),
        "Selector" => {
            or_none(&at(&["selector"]).map_or_else(String::new, |s| LabelSelector::of_spec(s).to_text()))
        }
        _ => NONE.into(),
    }
}

/// Deployments, ReplicaSets, StatefulSets and DaemonSets.
pub(super) fn replicated(column: &str, object: &Value) -> Value {
    let status = |key: &str| count(object, &["status", key]);
    let daemon = json::text(object, &["kind"]) == "DaemonSet";
    let counts = json::text(object, &["kind"]) == "ReplicaSet";
    match column {
        "Ready" if daemon => status("numberReady").into(),
        "Ready" if counts => status("readyReplicas").into(),
        "Ready" => format!("{}/{}", status("readyReplicas"), count(object, &["spec", "replicas"])).into(),
        "Up-to-date" if daemon => status("updatedNumberScheduled").into(),
        "Up-to-date" => status("updatedReplicas").into(),
        "Available" if daemon => status("numberAvailable").into(),
        "Available" => status("availableReplicas").into(),
        "Desired" if daemon => status("desiredNumberScheduled").into(),
        "Desired" => count(object, &["spec", "replicas"]).into(),
        "Current" if daemon => status("currentNumberScheduled").into(),
        "Current" => status("replicas").into(),
        "Node Selector" => or_none(&pairs(json::at(object, &["spec", "template", "spec", "nodeSelector"]))),
        _ => template(column, object, &["spec"]),
    }
}

/// ControllerRevisions.
pub(super) fn revision(column: &str, object: &Value) -> Value {
    match column {
        "Controller" => {
            let owners = json::items(object, &["metadata", "ownerReferences"]);
            let owner = owners.iter().find(|owner| owner.get("controller") == Some(&Value::Bool(true)));
            or_none(&owner.map_or_else(String::new, |owner| {
                let group =
                    json::text(owner, &["apiVersion"]).rsplit_once('/').map_or("", |(group, _)| group);
                let kind = json::text(owner, &["kind"]).to_lowercase();
                let dot = if group.is_empty() { "" } else { "." };
                format!("{kind}{dot}{group}/{}", json::text(owner, &["name"]))
            }))
        }
        "Revision" => count(object, &["revision"]).into(),
        _ => NONE.into(),
    }
}

/// Jobs.
pub(super) fn job(column: &str, job: &Value, now: Timestamp) -> Value {
    match column {
        "Status" => job_status(job).into(),
        "Completions" => {
            let succeeded = count(job, &["status", "succeeded"]);
            match json::at(job, &["spec", "completions"]).and_then(Value::as_i64) {
                Some(wanted) => format!("{succeeded}/{wanted}"),
                None => match count(job, &["spec", "parallelism"]) {
                    parallel @ 2.. => format!("{succeeded}/1 of {parallel}"),
                    _ => format!("{succeeded}/1"),
                },
            }
            .into()
        }
        "Duration" => {
            let started = json::text(job, &["status", "startTime"]);
            match json::text(job, &["status", "completionTime"]) {
                _ if started.is_empty() => "".into(),
                "" => human_age(started, now).into(),
                ended => human_between(started, ended).into(),
            }
        }
        _ => template(column, job, &["spec"]),
    }
}

fn job_status(job: &Value) -> &'static str {
    let holds = |wanted: &str| {
        json::items(job, &["status", "conditions"])
            .iter()
            .any(|c| json::text(c, &["type"]) == wanted && json::text(c, &["status"]) == "True")
    };
    let states = |wanted: &[(&'static str, &'static str)]| {
        wanted.iter().find(|(condition, _)| holds(condition)).map(|(_, word)| *word)
    };
    let ended = states(&[("Complete", "Complete"), ("Failed", "Failed")]);
    let rest = || {
        states(&[
            ("Suspended", "Suspended"),
            ("FailureTarget", "FailureTarget"),
            ("SuccessCriteriaMet", "SuccessCriteriaMet"),
        ])
    };
    match ended {
        Some(word) => word,
        None if json::is_terminating(job) => "Terminating",
        None => rest().unwrap_or("Running"),
    }
}

/// CronJobs.
pub(super) fn cron_job(column: &str, object: &Value, now: Timestamp) -> Value {
    match column {
        "Schedule" => json::text(object, &["spec", "schedule"]).into(),
        "Timezone" => or_none(json::text(object, &["spec", "timeZone"])),
        "Suspend" => {
            let suspended = json::at(object, &["spec", "suspend"]) == Some(&Value::Bool(true));
            if suspended { "True" } else { "False" }.into()
        }
        "Active" => json::items(object, &["status", "active"]).len().into(),
        "Last Schedule" => match json::text(object, &["status", "lastScheduleTime"]) {
            "" => NONE.into(),
            at => human_age(at, now).into(),
        },
        _ => template(column, object, &["spec", "jobTemplate", "spec"]),
    }
}

/// PersistentVolumeClaims.
pub(super) fn claim(column: &str, claim: &Value) -> Value {
    match column {
        "Status" if json::is_terminating(claim) => "Terminating".into(),
        "Status" => json::text(claim, &["status", "phase"]).into(),
        "Volume" => json::text(claim, &["spec", "volumeName"]).into(),
        "Capacity" => json::text(claim, &["status", "capacity", "storage"]).into(),
        "Access Modes" => {
            let bound = !json::text(claim, &["spec", "volumeName"]).is_empty();
            let modes = if bound { json::items(claim, &["status", "accessModes"]) } else { &[] };
            let short = modes.iter().map(|mode| match mode.as_str().unwrap_or_default() {
                "ReadWriteOnce" => "RWO",
                "ReadOnlyMany" => "ROX",
                "ReadWriteMany" => "RWX",
                "ReadWriteOncePod" => "RWOP",
                other => other,
            });
            short.collect::<Vec<_>>().join(",").into()
        }
        "StorageClass" => json::text(claim, &["spec", "storageClassName"]).into(),
        "VolumeAttributesClass" => match json::text(claim, &["spec", "volumeAttributesClassName"]) {
            "" => "<unset>".into(),
            class => class.into(),
        },
        "VolumeMode" => match json::text(claim, &["spec", "volumeMode"]) {
            "" => "<unset>".into(),
            mode => mode.into(),
        },
        _ => NONE.into(),
    }
}
