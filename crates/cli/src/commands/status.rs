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
    let workloads = workloads(&items(&pods), &items(&deployments));
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
fn workloads(pods: &[Value], deployments: &[Value]) -> Vec<Value> {
    let mut rows: Vec<Value> = pods.iter().map(workload).collect();
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

fn workload(pod: &Value) -> Value {
    let statuses = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
    let ready = !statuses.is_empty() && statuses.iter().all(|status| status["ready"] == true);
    let restarts: i64 = statuses.iter().filter_map(|status| status["restartCount"].as_i64()).sum();
    let sidecar = statuses.iter().any(|status| status["name"] == "istio-proxy");
    let finished = pod["status"]["phase"] == "Succeeded";
    json!({
        "namespace": pod["metadata"]["namespace"],
        "name": owner(pod),
        "pod": pod["metadata"]["name"],
        "address": pod["status"]["podIP"],
        "phase": pod["status"]["phase"],
        "ready": ready || finished,
        // On its way out, and no sign that something is amiss: whatever replaces it has a row of its own.
        "terminating": !pod["metadata"]["deletionTimestamp"].is_null(),
        "sidecar": sidecar,
        "restarts": restarts,
        "message": null
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
        let rows = workloads(&[], &[deployment(0)]);
        assert_eq!((rows.len(), &rows[0]["ready"]), (1, &json!(false)));
        assert_eq!(rows[0]["message"], "0 of 2 Pods are there: pods \"x\" is forbidden");
    }

    #[test]
    fn a_deployment_is_shown_beside_its_pods_only_if_they_hide_that_some_are_missing() {
        assert_eq!(workloads(&[pod(true), pod(true)], &[deployment(2)]).len(), 2);
        assert_eq!(workloads(&[pod(true)], &[deployment(1)]).len(), 2);
        assert_eq!(workloads(&[pod(false)], &[deployment(0)]).len(), 1);
        let mut leaving = pod(false);
        leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        let rows = workloads(&[leaving], &[deployment(0)]);
        assert_eq!((rows.len(), &rows[0]["terminating"]), (2, &json!(true)));
        let mut none_wanted = deployment(0);
        none_wanted["spec"]["replicas"] = json!(0);
        assert!(workloads(&[], &[none_wanted]).is_empty());
    }
}
