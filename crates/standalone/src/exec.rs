//! A command in a running container, for `maille exec`.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use maille_net::sandbox::{Capabilities, SandboxSpec, exec_here};

use crate::state::DataDir;

/// Runs `command` in a container with this process's standard streams: in its namespaces, with its user,
/// environment and working directory, without any capability. Answers the exit code, or 128 and the signal.
///
/// `pod_uid` is the Pod's `metadata.uid`. Needs root. Blocks until the command ends.
pub fn run(data_dir: &Path, pod_uid: &str, container: &str, command: &[String]) -> anyhow::Result<i32> {
    let plain =
        |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-.".contains(c));
    if !plain(pod_uid) || !plain(container) || pod_uid.starts_with('.') {
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
