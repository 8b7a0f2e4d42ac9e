//! What happens inside running Pods, which this API asks of whoever runs them.

use std::fmt;
use std::io;

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// Reaches into running Pods: behind `pods/NAME/exec` and `pods/NAME/portforward`.
///
/// The API has checked who asks and that the Pod and the container exist; that they still run is checked here.
pub trait PodStreams: fmt::Debug + Send + Sync {
    /// Starts a command in a running container, with the rights of that container and no more.
    fn exec(&self, command: ExecCommand) -> BoxFuture<'static, Result<Running, StartError>>;

    /// Connects to `127.0.0.1:port` inside the network namespace of the Pod with this `metadata.uid`.
    fn dial(&self, pod_uid: String, port: u16) -> BoxFuture<'static, io::Result<TcpStream>>;
}

/// A command to run in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecCommand {
    /// `metadata.uid` of the Pod.
    pub pod_uid: String,
    /// Name of the container.
    pub container: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Whether something can be written to it; without, its standard input is empty.
    pub stdin: bool,
    /// Whether its streams are one terminal.
    pub tty: bool,
}

/// A command that runs.
pub struct Running {
    /// Its standard input, if asked for; dropping it, or shutting it down, ends the input.
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Its standard output, or its terminal's.
    pub stdout: Box<dyn AsyncRead + Send + Unpin>,
    /// Its standard error; none with a terminal, whose output has both.
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Tells the terminal its size, if there is one.
    pub resize: Option<Box<dyn Fn(TerminalSize) + Send + Sync>>,
    /// Its end: the exit code, or 128 and the signal. Dropping this ends the command.
    pub ended: BoxFuture<'static, i32>,
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running").finish_non_exhaustive()
    }
}

/// Size of a terminal, in characters. On the wire it is `{"Width":80,"Height":24}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// Why a command did not start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// The container's own fault, as a shell would tell it.
    #[error("{message}")]
    Command {
        /// What is wrong, for people.
        message: String,
        /// 127 when there is no such program, 126 when it cannot be executed.
        code: i32,
    },
    /// The container does not run.
    #[error("container not found (\"{0}\")")]
    NotRunning(String),
    /// What should have started it could not.
    #[error("{0}")]
    Failed(String),
}
