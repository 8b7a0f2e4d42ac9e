//! A container's process, seen from the supervisor.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use maille_net::process::ProcessRef;
use maille_net::sandbox::{Order, Report, SandboxSpec};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};

/// How long a sandbox may take until its program runs.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// A running program in its sandbox. Dropping it ends the program.
#[derive(Debug)]
pub(crate) struct Sandboxed {
    /// The program's process on the host.
    pub(crate) process: ProcessRef,
    /// Its output, until taken.
    pub(crate) output: Option<(ChildStdout, ChildStderr)>,
    monitor: Child,
    reports: Lines<BufReader<OwnedReadHalf>>,
    orders: OwnedWriteHalf,
    ended: Option<Exit>,
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit {
    /// Exit code, or 128 and the signal.
    pub(crate) code: i32,
    /// The signal that ended it.
    pub(crate) signal: Option<i32>,
}

/// Why a program did not start.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct StartError {
    pub(crate) message: String,
    pub(crate) code: i32,
}

impl From<anyhow::Error> for StartError {
    fn from(error: anyhow::Error) -> Self {
        Self { message: format!("{error:#}"), code: 125 }
    }
}

/// Starts a program and waits until it runs.
///
/// Must be called on a thread that lives as long as the program may: the kernel ends the
/// monitor when the thread that started it ends.
pub(crate) async fn start(binary: &Path, spec: &SandboxSpec) -> Result<Sandboxed, StartError> {
    let started = tokio::time::timeout(START_PATIENCE, start_unbounded(binary, spec)).await;
    started.map_err(|_| StartError { message: "the sandbox did not start in time".to_owned(), code: 125 })?
}

async fn start_unbounded(binary: &Path, spec: &SandboxSpec) -> Result<Sandboxed, StartError> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().context("make a socket pair")?;
    ours.set_nonblocking(true).context("make a socket pair")?;
    let mut monitor = Command::new(binary)
        .arg("sandbox")
        .env_clear()
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("start {}", binary.display()))?;
    let stream = UnixStream::from_std(ours).context("make a socket pair")?;
    let (read, mut orders) = stream.into_split();
    let mut line = serde_json::to_vec(spec).context("write the specification")?;
    line.push(b'\n');
    orders.write_all(&line).await.context("write the specification")?;
    let mut reports = BufReader::new(read).lines();
    match next(&mut reports).await? {
        Report::Started { process } => {
            let output = monitor.stdout.take().zip(monitor.stderr.take());
            Ok(Sandboxed { process, output, monitor, reports, orders, ended: None })
        }
        Report::Failed { message, code } => {
            let _ = monitor.wait().await;
            Err(StartError { message, code })
        }
        Report::Exited { .. } => Err(anyhow!("the sandbox ended before it began").into()),
    }
}

async fn next(reports: &mut Lines<BufReader<OwnedReadHalf>>) -> anyhow::Result<Report> {
    let line = reports.next_line().await.context("read the sandbox's report")?;
    let line = line.ok_or_else(|| anyhow!("the sandbox's monitor was killed"))?;
    serde_json::from_str(&line).with_context(|| format!("unreadable report {line:?}"))
}

impl Sandboxed {
    /// Waits for its end. Cancel-safe.
    pub(crate) async fn wait(&mut self) -> Exit {
        let exit = loop {
            if let Some(exit) = self.ended {
                break exit;
            }
            match next(&mut self.reports).await {
                // Kept, since the wait below may be given up and begun again.
                Ok(Report::Exited { code, signal }) => self.ended = Some(Exit { code, signal }),
                Ok(_) => {}
                // The monitor was killed from outside, and the program with it.
                Err(_) => self.ended = Some(Exit { code: 137, signal: Some(9) }),
            }
        };
        let _ = self.monitor.wait().await;
        exit
    }

    /// Asks it to end.
    pub(crate) async fn terminate(&mut self) {
        self.order(Order::Terminate).await;
    }

    /// Ends it.
    pub(crate) async fn kill(&mut self) {
        self.order(Order::Kill).await;
    }

    async fn order(&mut self, order: Order) {
        if let Ok(mut line) = serde_json::to_vec(&order) {
            line.push(b'\n');
            // A monitor that is gone has nothing left to end.
            let _ = self.orders.write_all(&line).await;
        }
    }
}
