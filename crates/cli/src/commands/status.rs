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
/// `kubeconfig`, `dashboard` (null until there is one), `node_namespace`, `control_plane {ready, pod}` and
/// `workloads[] {namespace, name, pod, address, ready, sidecar, restarts}`.
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
    let Ok(api) = Api::from_file(&kubeconfig).await else { return status };
    let Ok(pods) = api.get("/api/v1/pods").await else { return status };
    let pods = pods["items"].as_array().cloned().unwrap_or_default();
    let workloads: Vec<Value> = pods.iter().map(workload).collect();
    let control_plane = workloads
        .iter()
        .find(|workload| workload["namespace"] == maille_core::ROOT_NAMESPACE && workload["name"] == "istiod")
        .map(|workload| json!({"ready": workload["ready"], "pod": workload["pod"]}));
    let control_plane_ready = control_plane.as_ref().is_some_and(|control| control["ready"] == true);
    let all_ready = workloads.iter().all(|workload| workload["ready"] == true);
    // Files that are still being applied are part of what was asked for.
    let complete = folder.path().join(super::up::STARTED).exists();
    status["ready"] = json!(control_plane_ready && all_ready && complete);
    status["control_plane"] = json!(control_plane);
    status["workloads"] = json!(workloads);
    status
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
        "sidecar": sidecar,
        "restarts": restarts
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
        out!("no mesh runs with data folder {}", status["data_dir"].as_str().unwrap_or_default());
        return;
    }
    let yes_no = |value: &Value| if value == true { "ready" } else { "not ready" };
    out!("mesh            {}", yes_no(&status["ready"]));
    out!("control plane   {}", yes_no(&status["control_plane"]["ready"]));
    out!("kubeconfig      {}", status["kubeconfig"].as_str().unwrap_or_default());
    let mut lines = vec![
        ["NAMESPACE", "WORKLOAD", "ADDRESS", "STATE", "SIDECAR", "RESTARTS"].map(str::to_owned).to_vec(),
    ];
    for workload in status["workloads"].as_array().into_iter().flatten() {
        let text = |field: &str| workload[field].as_str().unwrap_or("-").to_owned();
        lines.push(vec![
            text("namespace"),
            text("name"),
            text("address"),
            yes_no(&workload["ready"]).to_owned(),
            if workload["sidecar"] == true { "yes" } else { "no" }.to_owned(),
            workload["restarts"].to_string(),
        ]);
    }
    out!("");
    write_out(&aligned(&lines));
}
