//! `maille exec`: a command in a container, over the Kubernetes API.

mod terminal;

use std::io::{Read, Write};

use anyhow::{Context, Result, anyhow, bail, ensure};
use futures::SinkExt;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::api::{AttachParams, AttachedProcess};
use maille_config::kinds::{self, Kind};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::Outcome;
use crate::client::{Api, ApiArgs, NamespaceArgs};

/// What a signal's end is called, as a shell does: 128 and the number of SIGTERM.
const TERMINATED: u8 = 143;
const PIECE: usize = 32 << 10;

#[derive(Debug, clap::Args)]
pub(crate) struct ExecArgs {
    /// Pod, or deploy/NAME, statefulset/NAME, job/NAME … for its newest Pod; without -n, NAME.NAMESPACE too.
    pod: String,
    #[command(flatten)]
    namespace: NamespaceArgs,
    /// Container; the Pod's first that is no sidecar, unless given.
    #[arg(short = 'c', long)]
    container: Option<String>,
    /// Pass standard input to the command.
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Give the command a terminal; with -i, this one.
    #[arg(short = 't', long)]
    tty: bool,
    /// The command and its arguments, behind --.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
    #[command(flatten)]
    api: ApiArgs,
}

/// The exit code is the command's.
pub(crate) async fn run(args: ExecArgs) -> Result<Outcome> {
    let api = Api::connect(&args.api).await?;
    let Picked { namespace, pod, container } =
        pick(&api, &args.namespace, &args.pod, args.container.as_deref()).await?;
    let tty = args.tty && (!args.stdin || terminal::is_there());
    if args.tty && !tty {
        eprintln!("maille: no terminal for the command: standard input is none");
    }
    let parameters = AttachParams {
        container: Some(container),
        stdin: args.stdin,
        stdout: true,
        // A terminal has one output.
        stderr: !tty,
        tty,
        max_stdin_buf_size: Some(PIECE),
        max_stdout_buf_size: Some(PIECE),
        max_stderr_buf_size: Some(PIECE),
    };
    let pods: kube::Api<Pod> = kube::Api::namespaced(api.client().clone(), &namespace);
    let command = match pods.exec(&pod, &args.command, &parameters).await {
        Ok(command) => command,
        Err(kube::Error::Api(status)) => bail!("{}", status.message),
        Err(error) => return Err(anyhow!(error).context(format!("cannot run a command in Pod {pod}"))),
    };
    let raw = if tty && args.stdin {
        Some(terminal::Raw::take().context("cannot use this terminal")?)
    } else {
        None
    };
    let ended = tokio::select! {
        ended = attend(command) => ended,
        code = ended_from_outside() => Ok(code),
    };
    drop(raw);
    Ok(Outcome::Exit(ended?.into()))
}

/// Carries the command's streams to its end.
async fn attend(mut command: AttachedProcess) -> Result<u8> {
    if let Some(stdin) = command.stdin() {
        tokio::spawn(feed(stdin));
    }
    if let Some(sizes) = command.terminal_size() {
        tokio::spawn(follow_size(sizes));
    }
    let mut status = std::pin::pin!(command.take_status().context("no status of the command")?);
    let (stdout, stderr) = (command.stdout(), command.stderr());
    let mut printing = std::pin::pin!(async {
        tokio::try_join!(print(stdout, std::io::stdout()), print(stderr, std::io::stderr())).map(drop)
    });
    let status = tokio::select! {
        printed = &mut printing => {
            printed?;
            status.await
        }
        // A connection that breaks off leaves the output without an end.
        status = &mut status => {
            if status.is_some() {
                printing.await?;
            }
            status
        }
    };
    match status {
        Some(status) => exit_code(&status),
        None => {
            let why = command.join().await.err().map(|error| format!(": {error}"));
            bail!("the connection to the command broke off{}", why.unwrap_or_default())
        }
    }
}

/// The code that a Status tells.
fn exit_code(status: &Status) -> Result<u8> {
    if status.status.as_deref() == Some("Success") {
        return Ok(0);
    }
    let mut causes = status.details.iter().flat_map(|details| details.causes.iter().flatten());
    let code = causes.find(|cause| cause.reason.as_deref() == Some("ExitCode"));
    let code = code.and_then(|cause| cause.message.as_deref()?.parse::<i32>().ok());
    match code {
        Some(code) => Ok(u8::try_from(code).unwrap_or(1)),
        None => bail!("{}", status.message.as_deref().unwrap_or("the command failed for no reason given")),
    }
}

/// Prints what comes, at once.
async fn print(from: Option<impl AsyncRead + Unpin>, mut to: impl Write) -> Result<()> {
    let Some(mut from) = from else { return Ok(()) };
    let mut buffer = vec![0; PIECE];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        to.write_all(buffer.get(..count).unwrap_or_default())?;
        to.flush()?;
    }
}

/// Hands standard input to the command, and its end.
async fn feed(mut to: impl tokio::io::AsyncWrite + Unpin) {
    let (sender, mut pieces) = mpsc::channel::<Vec<u8>>(1);
    // A thread of its own, which the process's end does not wait for: a read of a terminal cannot be given up.
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        let mut buffer = vec![0; PIECE];
        while let Ok(count @ 1..) = stdin.read(&mut buffer) {
            if sender.blocking_send(buffer.get(..count).unwrap_or_default().to_vec()).is_err() {
                return;
            }
        }
    });
    while let Some(piece) = pieces.recv().await {
        // The command has ended.
        if to.write_all(&piece).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

/// Tells the command how large the terminal is, now and whenever that changes.
async fn follow_size(mut sizes: impl futures::Sink<kube::api::TerminalSize> + Unpin) {
    let Ok(mut changes) = signal(SignalKind::window_change()) else { return };
    loop {
        if let Some(size) = terminal::size()
            && sizes.send(size).await.is_err()
        {
            return;
        }
        changes.recv().await;
    }
}

/// The exit code when someone ends this process: the terminal must be given back first.
async fn ended_from_outside() -> u8 {
    crate::signals::shutdown().await;
    TERMINATED
}

/// A container of a Pod.
pub(crate) struct Picked {
    pub(crate) namespace: String,
    pub(crate) pod: String,
    pub(crate) container: String,
}

/// Kinds that stand for their Pods.
const OWNERS: [&str; 5] = ["deployments", "statefulsets", "daemonsets", "replicasets", "jobs"];

/// The Pod and the container that people mean: `deploy/NAME` (or `statefulset/NAME`, …) is its newest Pod, a running one if
/// there is one; without a container's
/// name it is the one the Pod's annotation names, else the first that is no sidecar.
pub(crate) async fn pick(
    api: &Api,
    namespace: &NamespaceArgs,
    wanted: &str,
    container: Option<&str>,
) -> Result<Picked> {
    let (kind, rest) = wanted.split_once('/').unwrap_or(("pod", wanted));
    // A name may have dots of its own: with -n they are.
    let (name, namespace) = match (namespace.given(), rest.rsplit_once('.')) {
        (None, Some((name, namespace))) => (name, namespace),
        _ => (rest, namespace.of(api)),
    };
    ensure!(
        maille_core::is_dns_subdomain(name) && maille_core::is_dns_label(namespace),
        "'{wanted}' names no Pod; write NAME, NAME.NAMESPACE or deploy/NAME.NAMESPACE"
    );
    let pod = match kind {
        "pod" | "pods" | "po" => api.get(&format!("/api/v1/namespaces/{namespace}/pods/{name}")).await?,
        other => match kinds::find_name(other).filter(|kind| OWNERS.contains(&kind.plural)) {
            Some(owner) => newest_pod(api, owner, namespace, name).await?,
            None => bail!("'{kind}' has no containers; name a Pod, or deploy/NAME"),
        },
    };
    let namespace = namespace.to_owned();
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
    Ok(Picked { namespace, container: chosen.to_owned(), pod: name })
}

async fn newest_pod(api: &Api, owner: &Kind, namespace: &str, name: &str) -> Result<Value> {
    let (group, plural) = (owner.api_version(), owner.plural);
    let found = api.get(&format!("/apis/{group}/namespaces/{namespace}/{plural}/{name}")).await?;
    let labels: Vec<String> = found["spec"]["selector"]["matchLabels"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}%3D{}", value.as_str().unwrap_or_default()))
        .collect();
    let list =
        api.get(&format!("/api/v1/namespaces/{namespace}/pods?labelSelector={}", labels.join(","))).await?;
    let mut pods: Vec<Value> = list["items"].as_array().cloned().unwrap_or_default();
    // What a Job's Pod has written can be read when it has ended, too.
    let has_run =
        |pod: &Value| matches!(pod["status"]["phase"].as_str(), Some("Running" | "Succeeded" | "Failed"));
    pods.retain(|pod| pod["metadata"]["deletionTimestamp"].is_null() && has_run(pod));
    pods.sort_by_key(|pod| {
        let created = pod["metadata"]["creationTimestamp"].as_str().unwrap_or_default();
        (pod["status"]["phase"] == "Running", created.to_owned())
    });
    pods.pop()
        .with_context(|| format!("{} {namespace}/{name} has no Pod that runs or has run", owner.singular))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(status: serde_json::Value) -> Result<u8> {
        exit_code(&serde_json::from_value(status).unwrap())
    }

    #[test]
    fn a_status_is_an_exit_code_or_a_reason() {
        use serde_json::json;
        assert_eq!(code(json!({ "status": "Success" })).unwrap(), 0);
        let ended = json!({
            "status": "Failure", "reason": "NonZeroExitCode", "message": "exit status 3",
            "details": { "causes": [{ "reason": "ExitCode", "message": "3" }] },
        });
        assert_eq!(code(ended).unwrap(), 3);
        let failed = json!({ "status": "Failure", "message": "container not found (\"a\")" });
        assert!(code(failed).unwrap_err().to_string().contains("container not found"));
    }
}
