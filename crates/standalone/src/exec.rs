//! What the API reaches inside running containers: commands, and connections.
//!
//! Nothing here enters a container itself: a command is a child process of this binary that does
//! ([`maille_net::sandbox`]), and a connection is made by a thread that ends with it.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use maille_net::sandbox::{
    Capabilities, ExecSpec, Joined, Report, SandboxSpec, Start, dial, receive_files, send_files,
};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::process::Command;

use crate::state::DataDir;
use crate::terminal::Terminal;

/// How long a connection inside a Pod may take: it goes over loopback.
const DIAL_PATIENCE: Duration = Duration::from_secs(5);
/// How long a command may take until it runs.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// The longest report of the process that stands between this one and a command.
const MAX_REPORT: usize = 64 << 10;

/// The running containers of a mesh.
#[derive(Debug, Clone)]
pub struct Containers {
    data: DataDir,
}

/// A command that runs in a container.
#[derive(Debug)]
pub struct Execution {
    /// Its streams.
    pub streams: Streams,
    /// Itself.
    pub command: Executed,
}

/// The streams of a command.
#[derive(Debug)]
pub enum Streams {
    /// Three pipes.
    Pipes {
        /// Standard input, if asked for.
        stdin: Option<pipe::Sender>,
        /// Standard output.
        stdout: pipe::Receiver,
        /// Standard error.
        stderr: pipe::Receiver,
    },
    /// One terminal.
    Terminal(Terminal),
}

/// Why a command does not run.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The container does not run.
    #[error("the container is not running")]
    NotRunning,
    /// There is no such program in the container, or it cannot be executed.
    #[error("{message}")]
    Refused {
        /// What is wrong, for people.
        message: String,
        /// As a shell would end: 127 or 126.
        code: i32,
    },
    /// It could not be started.
    #[error("{0:#}")]
    Failed(#[from] anyhow::Error),
}

impl Containers {
    /// Those of the mesh with this data directory.
    pub fn open(data_dir: &Path) -> anyhow::Result<Self> {
        Ok(Self { data: DataDir::open(data_dir)? })
    }

    /// Starts a command in a container of the Pod with this `metadata.uid`: in the container's namespaces, with its
    /// user, environment and working directory, without any capability. With `tty` its streams are a terminal.
    pub async fn exec(
        &self,
        pod_uid: &str,
        container: &str,
        command: Vec<String>,
        stdin: bool,
        tty: bool,
    ) -> Result<Execution, ExecError> {
        let spec = self.spec(pod_uid, container).ok_or(ExecError::NotRunning)?;
        let Start::Join(joined) = spec.start else { return Err(ExecError::NotRunning) };
        if !joined.container.is_alive() {
            return Err(ExecError::NotRunning);
        }
        let mut process = spec.process;
        process.command = command;
        process.capabilities = Capabilities::None;
        // As container runtimes do: a terminal of no known kind is of little use.
        if tty && process.env.iter().all(|(name, _)| name != "TERM") {
            process.env.push(("TERM".to_owned(), "xterm".to_owned()));
        }
        let spec = ExecSpec { container: joined, process, terminal: tty };
        let started = tokio::time::timeout(START_PATIENCE, start(&spec, stdin)).await;
        started.map_err(|_| anyhow!("the command did not start in time"))?
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

    /// What the kubelet left for whoever joins a container.
    fn spec(&self, pod_uid: &str, container: &str) -> Option<SandboxSpec> {
        if !is_plain(pod_uid) || !is_plain(container) {
            return None;
        }
        read_spec(&self.data.pod(pod_uid).join(format!("{container}.json")))
    }

    /// Any container of a Pod: they share a network.
    fn any_running(&self, pod_uid: &str) -> Option<Joined> {
        if !is_plain(pod_uid) {
            return None;
        }
        let files = std::fs::read_dir(self.data.pod(pod_uid)).ok()?.flatten().map(|entry| entry.path());
        let specs = files.filter(|path| path.extension().is_some_and(|kind| kind == "json"));
        let mut joined = specs.filter_map(|path| match read_spec(&path)?.start {
            Start::Join(joined) => Some(joined),
            Start::New { .. } => None,
        });
        joined.find(|joined| joined.container.is_alive())
    }
}

fn read_spec(path: &Path) -> Option<SandboxSpec> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// Whether a name is one file's name.
fn is_plain(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-.".contains(c);
    !name.is_empty() && name.chars().all(plain) && !name.starts_with('.')
}

/// The near ends of a command's pipes, and the far ones.
fn pipes(input: bool) -> std::io::Result<(Streams, Vec<OwnedFd>)> {
    let (stdin, theirs) = if input {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        (Some(pipe::Sender::from_owned_fd(write)?), read)
    } else {
        (None, std::fs::File::open("/dev/null")?.into())
    };
    let (stdout, output) = pipe_with(PipeFlags::CLOEXEC)?;
    let (stderr, errors) = pipe_with(PipeFlags::CLOEXEC)?;
    let streams = Streams::Pipes {
        stdin,
        stdout: pipe::Receiver::from_owned_fd(stdout)?,
        stderr: pipe::Receiver::from_owned_fd(stderr)?,
    };
    Ok((streams, vec![theirs, output, errors]))
}

async fn start(spec: &ExecSpec, input: bool) -> Result<Execution, ExecError> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().context("make a socket pair")?;
    ours.set_nonblocking(true).context("make a socket pair")?;
    // Nobody waits for it: it ends when the socket closes, and the runtime collects it.
    Command::new("/proc/self/exe")
        .args(["sandbox", "exec"])
        .env_clear()
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("start a process for the command")?;
    let socket = UnixStream::from_std(ours).context("make a socket pair")?;
    let mut line = serde_json::to_vec(spec).context("write the specification")?;
    line.push(b'\n');
    let (pipes, far) = if spec.terminal {
        (None, Vec::new())
    } else {
        pipes(input).map(|(near, far)| (Some(near), far)).context("make pipes")?
    };
    let files: Vec<BorrowedFd<'_>> = far.iter().map(OwnedFd::as_fd).collect();
    let send = || send_files(&socket, &line, &files);
    let sent = socket.async_io(Interest::WRITABLE, send).await.context("hand the command over")?;
    drop(files);
    // What the command does not hold any more must end for this side.
    drop(far);
    let mut command = Executed { socket, pending: Vec::new() };
    let rest = line.get(sent..).unwrap_or_default();
    command.socket.write_all(rest).await.context("hand the command over")?;
    let mut files = Vec::new();
    match command.report(&mut files).await? {
        Report::Started { .. } => {}
        Report::Failed { message, code: code @ (126 | 127) } => {
            return Err(ExecError::Refused { message, code });
        }
        Report::Failed { message, .. } => return Err(anyhow!(message).into()),
        Report::Exited { .. } => return Err(anyhow!("the command ended before it began").into()),
    }
    let streams = match pipes {
        Some(streams) => streams,
        None => {
            let terminal = files.pop().context("the command got no terminal")?;
            Streams::Terminal(Terminal::new(terminal).context("use the command's terminal")?)
        }
    };
    Ok(Execution { streams, command })
}

/// A running command. Dropping it ends the command, and all of its process group.
#[derive(Debug)]
pub struct Executed {
    /// Its other end sees when this one closes.
    socket: UnixStream,
    pending: Vec<u8>,
}

impl Executed {
    /// Waits for its end: the exit code, or 128 and the signal.
    pub async fn wait(mut self) -> i32 {
        loop {
            match self.report(&mut Vec::new()).await {
                Ok(Report::Exited { code, .. }) => return code,
                Ok(_) => {}
                // What stood between was killed from outside, and the command with it.
                Err(_) => return 137,
            }
        }
    }

    async fn report(&mut self, files: &mut Vec<OwnedFd>) -> anyhow::Result<Report> {
        loop {
            if let Some(end) = self.pending.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                return serde_json::from_slice(&line).context("unreadable report of the command");
            }
            if self.pending.len() > MAX_REPORT {
                return Err(anyhow!("a report of the command is too long"));
            }
            let mut buffer = [0; 4096];
            let receive = || receive_files(&self.socket, &mut buffer, files);
            match self.socket.async_io(Interest::READABLE, receive).await? {
                0 => return Err(anyhow!("the command was killed")),
                count => self.pending.extend(buffer.iter().take(count)),
            }
        }
    }
}
