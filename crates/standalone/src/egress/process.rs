//! The process, as the supervisor keeps it.

use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use tokio::process::{Child, Command};

use crate::state::DataDir;

/// The first and the longest wait before a process that ended is started again.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Starts the process, and starts it again whenever it ends. While it is away, connections to the outside are refused
/// and nothing else suffers.
///
/// Must be polled on a thread that lives as long as the mesh: the kernel ends the process with it.
pub(crate) async fn keep_running(binary: &Path, data: &DataDir) {
    let mut wait = FIRST_WAIT;
    loop {
        let since = tokio::time::Instant::now();
        match start(binary, data) {
            Ok(mut child) => {
                let status = child.wait().await;
                tracing::warn!(?status, "the process for the Pods' way out ended; it is started again");
            }
            Err(error) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "the process for the Pods' way out did not start"
                );
            }
        }
        wait = if since.elapsed() > LONGEST_WAIT { FIRST_WAIT } else { (wait * 2).min(LONGEST_WAIT) };
        tokio::time::sleep(wait).await;
    }
}

fn start(binary: &Path, data: &DataDir) -> anyhow::Result<Child> {
    let log_path = data.path().join("egress.log");
    let log = File::create(&log_path).with_context(|| log_path.display().to_string())?;
    Command::new(binary)
        .args(["egress", "--node-namespace", &data.node_namespace()])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("start {}", binary.display()))
}
