//! `maille status`: what runs on this machine, and whether it is ready.

use anyhow::{Result, bail};
use serde_json::{Value, json};

use crate::Outcome;
use crate::client::Api;
use crate::output::{aligned, out, write_out};

#[derive(Debug, clap::Args)]
pub(crate) struct StatusArgs {
    /// Data folder of the mesh.
    #[arg(long, value_name = "DIR", default_value = crate::DEFAULT_DATA_DIR, env = "MAILLE_DATA_DIR")]
    data_dir: std::path::PathBuf,
    /// Form of the output.
    #[arg(short = 'o', long, value_parser = ["json"])]
    output: Option<String>,
}

/// Exit code 0 if the mesh is ready, 1 if it is not, or not there.
pub(crate) async fn run(args: StatusArgs) -> Result<Outcome> {
    if let Err(error) = std::fs::read_dir(&args.data_dir)
        && error.kind() == std::io::ErrorKind::PermissionDenied
    {
        bail!("the data folder {} is root's alone; try it with sudo", args.data_dir.display());
    }
    let status = collect(&args.data_dir).await;
    match args.output {
        Some(_) => out!("{}", serde_json::to_string_pretty(&status)?),
        None => print(&status),
    }
    Ok(if status["ready"] == true { Outcome::Fine } else { Outcome::NotFine })
}

/// The status of the mesh with this data folder, in its documented form: `ready`, `running`, `supervisor` (pid),
/// `kubeconfig`, `dashboard` (its address with the key, or null), `node_namespace`, `control_plane {ready, pod}` and
/// `workloads[] {namespace, name, pod, address, phase, ready, sidecar, restarts, message}`: one for each Pod, and one
/// with `pod` null for each Deployment that lacks Pods. `message` says why something is missing, or is null.
async fn collect(data_dir: &std::path::Path) -> Value {
    let kubeconfig = data_dir.join("kubeconfig");
    let mut status = json!({
        "ready": false, "running": false, "supervisor": null, "data_dir": data_dir, "kubeconfig": null,
        "dashboard": null, "node_namespace": null, "control_plane": null, "workloads": []
    });
    let Ok(folder) = maille_standalone::DataDir::open(data_dir) else { return status };
    let Some(supervisor) = folder.supervisor() else { return status };
    status["running"] = json!(true);
    status["supervisor"] = json!(supervisor.pid);
    status["node_namespace"] = json!(folder.node_namespace());
    status["kubeconfig"] = json!(kubeconfig);
    status["dashboard"] = json!(crate::dashboard::Place::url(folder.path()));
    let Ok(api) = Api::from_file(&kubeconfig).await else { return status };
    let Ok(pods) = api.get("/api/v1/pods").await else { return status };
    let Ok(deployments) = api.get("/apis/apps/v1/deployments").await else { return status };
    let items = |list: &Value| list["items"].as_array().cloned().unwrap_or_default();
    let pods = items(&pods);
    let mut events = Vec::new();
    // Asked only where there is something to explain.
    if pods.iter().any(|pod| !is_ready(pod))
        && let Ok(list) = api.get("/api/v1/events").await
    {
        events = items(&list);
    }
    let workloads = workloads(&pods, &items(&deployments), &events);
    let control_plane = workloads
        .iter()
        .find(|workload| workload["namespace"] == maille_core::ROOT_NAMESPACE && workload["name"] == "istiod")
        .map(|workload| json!({"ready": workload["ready"], "pod": workload["pod"]}));
    let control_plane_ready = control_plane.as_ref().is_some_and(|control| control["ready"] == true);
    let all_ready =
        workloads.iter().all(|workload| workload["ready"] == true || workload["terminating"] == true);
    // Files that are still being applied are part of what was asked for.
    let complete = folder.path().join(super::up::STARTED).exists();
    status["ready"] = json!(control_plane_ready && all_ready && complete);
    status["control_plane"] = json!(control_plane);
    status["workloads"] = json!(workloads);
    status
}

/// A row for each Pod; and one for each Deployment with fewer Pods available than it wants, unless a Pod of its own
/// that is not ready shows it already.
fn workloads(pods: &[Value], deployments: &[Value], events: &[Value]) -> Vec<Value> {
    let mut rows: Vec<Value> = pods.iter().map(|pod| workload(pod, events)).collect();
    for deployment in deployments {
        let wanted = deployment["spec"]["replicas"].as_i64().unwrap_or(1);
        let status = &deployment["status"];
        let available = status["availableReplicas"].as_i64().unwrap_or(0);
        let (namespace, name) = (&deployment["metadata"]["namespace"], &deployment["metadata"]["name"]);
        let shows = |row: &Value| {
            let is_its = row["namespace"] == *namespace && row["name"] == *name;
            is_its && row["ready"] == false && row["terminating"] == false
        };
        if available >= wanted || rows.iter().any(shows) {
            continue;
        }
        let conditions = status["conditions"].as_array();
        let failure =
            conditions.into_iter().flatten().find(|condition| condition["type"] == "ReplicaFailure");
        let why = failure.and_then(|condition| condition["message"].as_str());
        let why = why.map(|why| format!(": {why}")).unwrap_or_default();
        rows.push(json!({
            "namespace": namespace, "name": name, "pod": null, "address": null, "phase": null,
            "ready": false, "terminating": false, "sidecar": false, "restarts": 0,
            "message": format!("{available} of {wanted} Pods are there{why}"),
        }));
    }
    rows
}

fn is_ready(pod: &Value) -> bool {
    let mut statuses = pod["status"]["containerStatuses"].as_array().into_iter().flatten().peekable();
    let running = statuses.peek().is_some() && statuses.all(|status| status["ready"] == true);
    running || pod["status"]["phase"] == "Succeeded"
}

/// Why a Pod is not ready: what keeps its containers from running, in the order in which they start; else what its
/// conditions or the latest warning about it say.
fn why_not_ready(pod: &Value, events: &[Value]) -> Option<String> {
    let status = &pod["status"];
    let said = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let warning = || {
        let own = |event: &&Value| {
            event["involvedObject"]["kind"] == "Pod"
                && event["involvedObject"]["name"] == pod["metadata"]["name"]
                && event["involvedObject"]["namespace"] == pod["metadata"]["namespace"]
                && event["type"] == "Warning"
        };
        let when = |event: &&Value| {
            let times = ["lastTimestamp", "eventTime", "firstTimestamp"];
            times.iter().find_map(|field| said(&event[*field])).unwrap_or_default()
        };
        let latest = events.iter().filter(own).max_by_key(when)?;
        Some(format!("{}: {}", said(&latest["reason"])?, said(&latest["message"])?))
    };
    let containers = ["initContainerStatuses", "containerStatuses"]
        .into_iter()
        .flat_map(|list| status[list].as_array().into_iter().flatten());
    let mut waiting = Vec::new();
    for container in containers {
        let name = container["name"].as_str().unwrap_or_default();
        let (state, last) = (&container["state"], &container["lastState"]["terminated"]);
        let ended = |ended: &Value| {
            let code = ended["exitCode"].as_i64()?;
            let why = said(&ended["message"]).or_else(|| said(&ended["reason"]).filter(|r| r != "Error"));
            let why = why.map(|why| format!(" ({why})")).unwrap_or_default();
            (code != 0).then(|| format!("container {name} ended with exit code {code}{why}"))
        };
        if let Some(reason) = said(&state["waiting"]["reason"]) {
            let plain = matches!(reason.as_str(), "ContainerCreating" | "PodInitializing");
            match (said(&state["waiting"]["message"]), ended(last)) {
                (_, Some(ended)) => return Some(format!("{ended}; {reason}")),
                (Some(message), None) => return Some(format!("container {name}: {reason}: {message}")),
                (None, None) if plain => waiting.push(format!("container {name}: {reason}")),
                (None, None) => return Some(format!("container {name}: {reason}")),
            }
        } else if let Some(ended) = ended(&state["terminated"]) {
            return Some(ended);
        } else if container["ready"] == false && state["running"].is_object() {
            waiting.push(format!("container {name} runs, and is not ready"));
        }
    }
    let conditions = status["conditions"].as_array().into_iter().flatten();
    let unmet = conditions.filter(|one| one["status"] == "False").find_map(|one| said(&one["message"]));
    warning().or_else(|| said(&status["message"])).or_else(|| waiting.into_iter().next()).or(unmet)
}

fn workload(pod: &Value, events: &[Value]) -> Value {
    let statuses = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
    let (ready, terminating) = (is_ready(pod), !pod["metadata"]["deletionTimestamp"].is_null());
    let restarts: i64 = statuses.iter().filter_map(|status| status["restartCount"].as_i64()).sum();
    let sidecar = statuses.iter().any(|status| status["name"] == "istio-proxy");
    json!({
        "namespace": pod["metadata"]["namespace"],
        "name": owner(pod),
        "pod": pod["metadata"]["name"],
        "address": pod["status"]["podIP"],
        "phase": pod["status"]["phase"],
        "ready": ready,
        // On its way out, and no sign that something is amiss: whatever replaces it has a row of its own.
        "terminating": terminating,
        "sidecar": sidecar,
        "restarts": restarts,
        "message": if ready || terminating { None } else { why_not_ready(pod, events) }
    })
}

/// The Deployment's name: the ReplicaSet's without its hash; the Pod's own if nothing owns it.
fn owner(pod: &Value) -> Value {
    let replica_set = pod["metadata"]["ownerReferences"][0]["name"].as_str();
    let hash = pod["metadata"]["labels"]["pod-template-hash"].as_str();
    match (replica_set, hash) {
        (Some(set), Some(hash)) => json!(set.trim_end_matches(hash).trim_end_matches('-')),
        (Some(set), None) => json!(set),
        (None, _) => pod["metadata"]["name"].clone(),
    }
}

fn print(status: &Value) {
    if status["running"] != true {
        out!(
            "no mesh runs with data folder {}; name another with --data-dir",
            status["data_dir"].as_str().unwrap_or_default()
        );
        return;
    }
    let yes_no = |value: &Value| if value == true { "ready" } else { "not ready" };
    out!("mesh            {}", yes_no(&status["ready"]));
    out!("control plane   {}", yes_no(&status["control_plane"]["ready"]));
    out!("kubeconfig      {}", status["kubeconfig"].as_str().unwrap_or_default());
    if let Some(url) = status["dashboard"].as_str() {
        out!("dashboard       {url}");
    }
    let mut lines = vec![
        ["NAMESPACE", "WORKLOAD", "ADDRESS", "STATE", "SIDECAR", "RESTARTS"].map(str::to_owned).to_vec(),
    ];
    let workloads = || status["workloads"].as_array().into_iter().flatten();
    for workload in workloads() {
        let text = |field: &str| workload[field].as_str().unwrap_or("-").to_owned();
        lines.push(vec![
            text("namespace"),
            text("name"),
            text("address"),
            if workload["terminating"] == true { "terminating" } else { yes_no(&workload["ready"]) }
                .to_owned(),
            if workload["sidecar"] == true { "yes" } else { "no" }.to_owned(),
            workload["restarts"].to_string(),
        ]);
    }
    out!("");
    write_out(&aligned(&lines));
    for workload in workloads() {
        if let (Some(namespace), Some(name), Some(message)) =
            (workload["namespace"].as_str(), workload["name"].as_str(), workload["message"].as_str())
        {
            // What a container wrote may be in it.
            let message: String = message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            out!("{namespace}/{name}: {message}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(available: i64) -> Value {
        json!({
            "metadata": {"namespace": "a", "name": "web"}, "spec": {"replicas": 2},
            "status": {"availableReplicas": available, "conditions": [
                {"type": "Progressing", "status": "True", "message": "working"},
                {"type": "ReplicaFailure", "status": "True", "message": "pods \"x\" is forbidden"}]}
        })
    }

    fn pod(ready: bool) -> Value {
        json!({
            "metadata": {"namespace": "a", "name": "web-1-x", "labels": {"pod-template-hash": "1"},
                "ownerReferences": [{"name": "web-1"}]},
            "status": {"phase": "Running", "containerStatuses": [{"name": "web", "ready": ready}]}
        })
    }

    #[test]
    fn a_deployment_without_pods_is_not_ready_and_says_why() {
        let rows = workloads(&[], &[deployment(0)], &[]);
        assert_eq!((rows.len(), &rows[0]["ready"]), (1, &json!(false)));
        assert_eq!(rows[0]["message"], "0 of 2 Pods are there: pods \"x\" is forbidden");
    }

    #[test]
    fn a_deployment_is_shown_beside_its_pods_only_if_they_hide_that_some_are_missing() {
        assert_eq!(workloads(&[pod(true), pod(true)], &[deployment(2)], &[]).len(), 2);
        assert_eq!(workloads(&[pod(true)], &[deployment(1)], &[]).len(), 2);
        assert_eq!(workloads(&[pod(false)], &[deployment(0)], &[]).len(), 1);
        let mut leaving = pod(false);
        leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        let rows = workloads(&[leaving], &[deployment(0)], &[]);
        assert_eq!((rows.len(), &rows[0]["terminating"]), (2, &json!(true)));
        let mut none_wanted = deployment(0);
        none_wanted["spec"]["replicas"] = json!(0);
        assert!(workloads(&[], &[none_wanted], &[]).is_empty());
    }

    #[test]
    fn a_pod_that_does_not_start_says_why() {
        let with = |status: Value| {
            let mut pod = pod(false);
            pod["status"] = status;
            pod
        };
        let container =
            |state: Value| json!({"containerStatuses": [{"name": "web", "ready": false, "state": state}]});
        let mut crashed =
            container(json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}));
        crashed["containerStatuses"][0]["lastState"] =
            json!({"terminated": {"exitCode": 3, "reason": "Error"}});
        let creating = container(json!({"waiting": {"reason": "ContainerCreating"}}));
        let event = |time: &str, name: &str, message: &str| {
            json!({"type": "Warning", "reason": "FailedMount", "message": message, "lastTimestamp": time,
                "involvedObject": {"kind": "Pod", "namespace": "a", "name": name}})
        };
        let events = [
            event("2026-01-01T00:00:02Z", "web-1-x", "no Secret key"),
            event("2026-01-01T00:00:01Z", "web-1-x", "earlier"),
            event("2026-01-01T00:00:03Z", "other", "not of this Pod"),
        ];
        let init = json!({
            "initContainerStatuses": [{"name": "setup", "ready": false, "state": {"terminated": {"exitCode": 2}}}],
            "containerStatuses": [{"name": "web", "ready": false, "state": {"waiting": {"reason": "PodInitializing"}}}]
        });
        for (status, events, expected) in [
            (crashed, &[][..], "container web ended with exit code 3; CrashLoopBackOff"),
            (
                container(
                    json!({"waiting": {"reason": "CreateContainerConfigError", "message": "no command"}}),
                ),
                &[],
                "container web: CreateContainerConfigError: no command",
            ),
            (creating.clone(), &events, "FailedMount: no Secret key"),
            (creating, &[], "container web: ContainerCreating"),
            (init, &[], "container setup ended with exit code 2"),
            (container(json!({"running": {}})), &[], "container web runs, and is not ready"),
        ] {
            let rows = workloads(&[with(status)], &[], events);
            assert_eq!(rows[0]["message"], expected);
        }
        assert_eq!(workloads(&[pod(true)], &[], &[])[0]["message"], Value::Null);
    }
}
