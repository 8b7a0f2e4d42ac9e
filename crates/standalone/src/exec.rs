//! A command in a running container, for `maille exec`.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use maille_net::sandbox::{Capabilities, Joined, SandboxSpec, Start, dial, exec_here};

use crate::state::DataDir;

/// How long a connection inside a Pod may take: it goes over loopback.
const DIAL_PATIENCE: Duration = Duration::from_secs(5);

/// Runs `command` in a container with this process's standard streams: in its namespaces, with its user,
/// environment and working directory, without any capability. Answers the exit code, or 128 and the signal.
///
/// `pod_uid` is the Pod's `metadata.uid`. Needs root. Blocks until the command ends.
pub fn run(data_dir: &Path, pod_uid: &str, container: &str, command: &[String]) -> anyhow::Result<i32> {
    if !is_plain(pod_uid) || !is_plain(container) {
        bail!("no such container: {container:?} of Pod {pod_uid:?}");
    }
    let path = DataDir::open(data_dir)?.pod(pod_uid).join(format!("{container}.json"));
    let text = std::fs::read(&path).with_context(|| format!("container {container} has not been started"))?;
    let mut spec: SandboxSpec = serde_json::from_slice(&text).with_context(|| path.display().to_string())?;
    spec.process.command = command.to_vec();
    spec.process.capabilities = Capabilities::None;
    let status = exec_here(&spec)?;
    Ok(status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(255))
}

/// Whether a name is one file's name.
fn is_plain(name: &str) -> bool {
    name.chars().all(|c| c.is_ascii_alphanumeric() || "-.".contains(c))
        && !name.starts_with('.')
        && !name.is_empty()
}

/// The running containers of a mesh, for the API's streams into Pods.
#[derive(Debug, Clone)]
pub struct Containers {
    data: DataDir,
}

impl Containers {
    /// Those of the mesh with this data directory.
    pub fn open(data_dir: &Path) -> anyhow::Result<Self> {
        Ok(Self { data: DataDir::open(data_dir)? })
    }

    /// Connects to `127.0.0.1:port` inside the network namespace of the Pod with this `metadata.uid`.
    pub async fn dial(&self, pod_uid: &str, port: u16) -> std::io::Result<tokio::net::TcpStream> {
        let container = self.any_running(pod_uid);
        let container = container.ok_or_else(|| {
            std::io::Error::new(std::io::ErrorKind::NotFound, "no container of the pod is running")
        })?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let dialled = move || dial(&container, address, DIAL_PATIENCE);
        let stream = tokio::task::spawn_blocking(dialled).await.map_err(std::io::Error::other)??;
        stream.set_nonblocking(true)?;
        tokio::net::TcpStream::from_std(stream)
    }

    /// Any container of a Pod: they share a network.
    fn any_running(&self, pod_uid: &str) -> Option<Joined> {
        if !is_plain(pod_uid) {
            return None;
        }
        let files = std::fs::read_dir(self.data.pod(pod_uid)).ok()?.flatten().map(|entry| entry.path());
        let specs = files.filter(|path| path.extension().is_some_and(|kind| kind == "json"));
        let joined = specs.filter_map(|path| {
            let spec: SandboxSpec = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
            match spec.start {
                Start::Join(joined) => Some(joined),
                Start::New { .. } => None,
            }
        });
        joined.into_iter().find(|joined| joined.container.is_alive())
    }
}
