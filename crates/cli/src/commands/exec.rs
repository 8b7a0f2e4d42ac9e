//! `maille exec`: a command in a container of the standalone mesh.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::Outcome;
use crate::client::{Api, ApiArgs};

#[derive(Debug, clap::Args)]
pub(crate) struct ExecArgs {
    /// Pod, or deploy/NAME for the newest Pod of a Deployment.
    pod: String,
    /// Namespace.
    #[arg(short = 'n', long, default_value = "default")]
    namespace: String,
    /// Container; the Pod's first that is no sidecar, unless given.
    #[arg(short = 'c', long)]
    container: Option<String>,
    /// The command and its arguments, behind --.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
    #[command(flatten)]
    api: ApiArgs,
}

/// The exit code is the command's.
pub(crate) fn run(args: ExecArgs) -> Result<Outcome> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "`maille exec` enters the Pod's namespaces, which needs root; try it with sudo"
    );
    let (container, pod) = crate::on_runtime(async {
        let api = Api::connect(&args.api).await?;
        let (name, container) = pick(&api, &args.namespace, &args.pod, args.container.as_deref()).await?;
        let pod = api.get(&format!("/api/v1/namespaces/{}/pods/{name}", args.namespace)).await?;
        Ok((container, pod))
    })?;
    let dir = &args.api.data_dir;
    let here = maille_standalone::DataDir::open(dir).is_ok_and(|folder| folder.supervisor().is_some());
    ensure!(
        here,
        "no mesh runs with data folder {}; name the one that runs with --data-dir: `maille exec` enters Pods of this \
         machine only",
        dir.display()
    );
    let uid = pod["metadata"]["uid"].as_str().context("the Pod has no uid")?;
    let code = maille_standalone::exec::run(&args.api.data_dir, uid, &container, &args.command)?;
    Ok(Outcome::Exit(u8::try_from(code).unwrap_or(1).into()))
}

/// The Pod and the container that people mean: `deploy/NAME` is its newest running Pod; without a container's
/// name it is the one the Pod's annotation names, else the first that is no sidecar.
pub(crate) async fn pick(
    api: &Api,
    namespace: &str,
    wanted: &str,
    container: Option<&str>,
) -> Result<(String, String)> {
    let pod = match wanted.split_once('/') {
        None | Some(("pod" | "pods" | "po", _)) => {
            let name = wanted.rsplit('/').next().unwrap_or(wanted);
            api.get(&format!("/api/v1/namespaces/{namespace}/pods/{name}")).await?
        }
        Some(("deploy" | "deployment" | "deployments", name)) => newest_pod(api, namespace, name).await?,
        Some((kind, _)) => bail!("'{kind}' has no containers; name a Pod, or deploy/NAME"),
    };
    let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let containers: Vec<&str> = ["containers", "initContainers"]
        .iter()
        .flat_map(|list| pod["spec"][list].as_array().into_iter().flatten())
        .filter_map(|container| container["name"].as_str())
        .collect();
    let default = pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"].as_str();
    let chosen = container
        .or_else(|| default.filter(|name| containers.contains(name)))
        .or_else(|| containers.iter().copied().find(|name| *name != "istio-proxy"))
        .context("the Pod has no container")?;
    ensure!(
        containers.contains(&chosen),
        "Pod {name} has no container '{chosen}', but {}",
        containers.join(", ")
    );
    Ok((name, chosen.to_owned()))
}

async fn newest_pod(api: &Api, namespace: &str, deployment: &str) -> Result<Value> {
    let found = api.get(&format!("/apis/apps/v1/namespaces/{namespace}/deployments/{deployment}")).await?;
    let labels: Vec<String> = found["spec"]["selector"]["matchLabels"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}%3D{}", value.as_str().unwrap_or_default()))
        .collect();
    let list =
        api.get(&format!("/api/v1/namespaces/{namespace}/pods?labelSelector={}", labels.join(","))).await?;
    let mut pods: Vec<Value> = list["items"].as_array().cloned().unwrap_or_default();
    pods.retain(|pod| pod["metadata"]["deletionTimestamp"].is_null() && pod["status"]["phase"] == "Running");
    pods.sort_by_key(|pod| pod["metadata"]["creationTimestamp"].as_str().unwrap_or_default().to_owned());
    pods.pop().with_context(|| format!("deployment {namespace}/{deployment} has no running Pod"))
}
