//! The cells of each kind.

use jiff::Timestamp;
use serde_json::Value;

use super::{age, workloads};
use crate::json;
use crate::resources::Resource;
use crate::time::human_age;

pub(super) const NONE: &str = "<none>";

/// One cell.
pub(super) fn cell(resource: &Resource, column: &str, object: &Value, now: Timestamp) -> Value {
    match (column, resource.plural) {
        ("Name", _) => json::name(object).into(),
        ("Age", _) => age(object, now),
        ("Created At", _) => json::text(object, &["metadata", "creationTimestamp"]).into(),
        (_, "pods") => pod(column, object, now),
        (_, "services") => service(column, object),
        (_, "events") => event(column, object, now),
        (_, "nodes") => node(column, object),
        (_, "deployments" | "replicasets" | "statefulsets" | "daemonsets") => {
            workloads::replicated(column, object)
        }
        (_, "controllerrevisions") => workloads::revision(column, object),
        (_, "jobs") => workloads::job(column, object, now),
        (_, "cronjobs") => workloads::cron_job(column, object, now),
        (_, "persistentvolumeclaims") => workloads::claim(column, object),
        (_, "endpointslices") => slice(column, object),
        ("Status", _) => json::text(object, &["status", "phase"]).into(),
        ("Type", _) => json::text(object, &["type"]).into(),
        ("Data", _) => {
            let count =
                |key: &str| object.get(key).and_then(Value::as_object).map_or(0, serde_json::Map::len);
            (count("data") + count("binaryData")).into()
        }
        ("Holder", _) => json::text(object, &["spec", "holderIdentity"]).into(),
        ("Mode", _) => json::text(object, &["spec", "mtls", "mode"]).into(),
        ("Action", _) => json::text(object, &["spec", "action"]).into(),
        (other, _) => {
            // Columns of Istio's CRDs show a field of the spec of the same name.
            match json::at(object, &["spec", &other.to_lowercase()]) {
                Some(Value::Array(_)) => json::at(object, &["spec", &other.to_lowercase()])
                    .map_or_else(String::new, Value::to_string)
                    .into(),
                Some(value) => value.clone(),
                None => "".into(),
            }
        }
    }
}

pub(super) fn or_none(text: &str) -> Value {
    if text.is_empty() { NONE.into() } else { text.into() }
}

pub(super) fn count(object: &Value, path: &[&str]) -> i64 {
    json::at(object, path).and_then(Value::as_i64).unwrap_or(0)
}

fn pod(column: &str, pod: &Value, now: Timestamp) -> Value {
    match column {
        "Ready" => {
            let statuses = json::items(pod, &["status", "containerStatuses"]);
            let ready = statuses.iter().filter(|s| s.get("ready") == Some(&Value::Bool(true))).count();
            format!("{ready}/{}", json::items(pod, &["spec", "containers"]).len()).into()
        }
        "Status" => pod_status(pod).into(),
        "Restarts" => restarts(pod, now).into(),
        "IP" => or_none(json::text(pod, &["status", "podIP"])),
        "Node" => or_none(json::text(pod, &["spec", "nodeName"])),
        _ => NONE.into(),
    }
}

/// The word of the STATUS column.
///
/// Source: `pkg/printers/internalversion/printers.go`, `printPod`.
fn pod_status(pod: &Value) -> String {
    let phase = json::text(pod, &["status", "phase"]);
    let mut reason = match json::text(pod, &["status", "reason"]) {
        "" => phase.to_owned(),
        given => given.to_owned(),
    };
    let init = json::items(pod, &["status", "initContainerStatuses"]);
    let init_total = json::items(pod, &["spec", "initContainers"]).len();
    let mut initializing = false;
    for (i, status) in init.iter().enumerate() {
        let terminated = json::at(status, &["state", "terminated"]);
        if terminated.is_some_and(|t| count(t, &["exitCode"]) == 0) {
            continue;
        }
        let waiting = json::text(status, &["state", "waiting", "reason"]);
        reason = match terminated {
            Some(t) if !json::text(t, &["reason"]).is_empty() => {
                format!("Init:{}", json::text(t, &["reason"]))
            }
            Some(t) if count(t, &["signal"]) != 0 => format!("Init:Signal:{}", count(t, &["signal"])),
            Some(t) => format!("Init:ExitCode:{}", count(t, &["exitCode"])),
            None if !waiting.is_empty() && waiting != "PodInitializing" => format!("Init:{waiting}"),
            None => format!("Init:{i}/{init_total}"),
        };
        initializing = true;
        break;
    }
    if !initializing {
        let mut has_running = false;
        for status in json::items(pod, &["status", "containerStatuses"]).iter().rev() {
            let waiting = json::text(status, &["state", "waiting", "reason"]);
            let terminated = json::at(status, &["state", "terminated"]);
            match terminated {
                _ if !waiting.is_empty() => reason = waiting.to_owned(),
                Some(t) if !json::text(t, &["reason"]).is_empty() => {
                    reason = json::text(t, &["reason"]).to_owned();
                }
                Some(t) if count(t, &["signal"]) != 0 => reason = format!("Signal:{}", count(t, &["signal"])),
                Some(t) => reason = format!("ExitCode:{}", count(t, &["exitCode"])),
                None => {
                    let ready = status.get("ready") == Some(&Value::Bool(true));
                    has_running |= ready && json::at(status, &["state", "running"]).is_some();
                }
            }
        }
        if reason == "Completed" && has_running {
            let ready = json::items(pod, &["status", "conditions"])
                .iter()
                .any(|c| json::text(c, &["type"]) == "Ready" && json::text(c, &["status"]) == "True");
            reason = if ready { "Running" } else { "NotReady" }.to_owned();
        }
    }
    if json::is_terminating(pod) && !matches!(phase, "Succeeded" | "Failed") {
        return "Terminating".to_owned();
    }
    if reason.is_empty() { "Unknown".to_owned() } else { reason }
}

fn restarts(pod: &Value, now: Timestamp) -> String {
    let statuses = json::items(pod, &["status", "containerStatuses"]);
    let total: i64 = statuses.iter().map(|s| count(s, &["restartCount"])).sum();
    let last = statuses
        .iter()
        .map(|s| json::text(s, &["lastState", "terminated", "finishedAt"]))
        .filter(|t| !t.is_empty())
        .max();
    match last {
        Some(at) if total > 0 => format!("{total} ({} ago)", human_age(at, now)),
        _ => total.to_string(),
    }
}

fn service(column: &str, service: &Value) -> Value {
    match column {
        "Type" => json::text(service, &["spec", "type"]).into(),
        "Cluster-IP" => or_none(json::text(service, &["spec", "clusterIP"])),
        "External-IP" => or_none(json::text(service, &["spec", "externalName"])),
        "Port(s)" => {
            let ports = json::items(service, &["spec", "ports"])
                .iter()
                .map(|p| format!("{}/{}", count(p, &["port"]), json::text(p, &["protocol"])));
            or_none(&ports.collect::<Vec<_>>().join(","))
        }
        "Selector" => or_none(&pairs(json::at(service, &["spec", "selector"]))),
        _ => NONE.into(),
    }
}

pub(super) fn pairs(map: Option<&Value>) -> String {
    let mut pairs: Vec<String> = map
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default()))
        .collect();
    pairs.sort();
    pairs.join(",")
}

fn event(column: &str, event: &Value, now: Timestamp) -> Value {
    // Both groups' shapes are shown.
    let either = |a: &[&str], b: &[&str]| match json::text(event, a) {
        "" => json::text(event, b).to_owned(),
        found => found.to_owned(),
    };
    let ago = |at: &str| if at.is_empty() { "<unknown>".to_owned() } else { human_age(at, now) };
    let made = || {
        let series = either(&["eventTime"], &["metadata", "creationTimestamp"]);
        ago(&series)
    };
    match column {
        "Last Seen" => match either(&["lastTimestamp"], &["deprecatedLastTimestamp"]) {
            at if at.is_empty() => made().into(),
            at => ago(&at).into(),
        },
        "First Seen" => match either(&["firstTimestamp"], &["deprecatedFirstTimestamp"]) {
            at if at.is_empty() => made().into(),
            at => ago(&at).into(),
        },
        "Type" => json::text(event, &["type"]).into(),
        "Reason" => json::text(event, &["reason"]).into(),
        "Object" => {
            let kind = either(&["involvedObject", "kind"], &["regarding", "kind"]).to_lowercase();
            format!("{kind}/{}", either(&["involvedObject", "name"], &["regarding", "name"])).into()
        }
        "Subobject" => either(&["involvedObject", "fieldPath"], &["regarding", "fieldPath"]).into(),
        "Source" => match either(&["source", "component"], &["deprecatedSource", "component"]) {
            text if text.is_empty() => either(&["reportingComponent"], &["reportingController"]).into(),
            text => text.into(),
        },
        "Message" => either(&["message"], &["note"]).trim().into(),
        "Count" => {
            let found = count(event, &["count"]).max(count(event, &["deprecatedCount"]));
            found.max(count(event, &["series", "count"])).max(1).to_string().into()
        }
        _ => "".into(),
    }
}

fn node(column: &str, node: &Value) -> Value {
    let address = |kind: &str| {
        json::items(node, &["status", "addresses"])
            .iter()
            .find(|a| json::text(a, &["type"]) == kind)
            .map_or("", |a| json::text(a, &["address"]))
    };
    let info = |key: &str| json::text(node, &["status", "nodeInfo", key]);
    match column {
        "Status" => {
            let ready = json::items(node, &["status", "conditions"])
                .iter()
                .find(|c| json::text(c, &["type"]) == "Ready")
                .map(|c| json::text(c, &["status"]) == "True");
            match ready {
                Some(true) => "Ready",
                Some(false) => "NotReady",
                None => "Unknown",
            }
            .into()
        }
        "Version" => info("kubeletVersion").into(),
        "Internal-IP" => or_none(address("InternalIP")),
        "External-IP" => or_none(address("ExternalIP")),
        "OS-Image" => or_none(info("osImage")),
        "Kernel-Version" => or_none(info("kernelVersion")),
        "Container-Runtime" => or_none(info("containerRuntimeVersion")),
        _ => NONE.into(),
    }
}

fn slice(column: &str, slice: &Value) -> Value {
    let list = |texts: Vec<String>, most: usize| -> Value {
        if texts.is_empty() {
            return "<unset>".into();
        }
        let more = texts.len().saturating_sub(most);
        let shown = texts.iter().take(most).cloned().collect::<Vec<_>>().join(",");
        if more > 0 { format!("{shown} + {more} more...").into() } else { shown.into() }
    };
    match column {
        "AddressType" => json::text(slice, &["addressType"]).into(),
        "Ports" => list(
            json::items(slice, &["ports"])
                .iter()
                .map(|p| p.get("port").filter(|v| !v.is_null()).map_or("*".to_owned(), Value::to_string))
                .collect(),
            3,
        ),
        "Endpoints" => list(
            json::items(slice, &["endpoints"])
                .iter()
                .flat_map(|e| json::items(e, &["addresses"]))
                .map(|a| a.as_str().unwrap_or_default().to_owned())
                .collect(),
            3,
        ),
        _ => NONE.into(),
    }
}
