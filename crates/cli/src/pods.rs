//! What the standalone mesh lends its API: streams into the Pods that it runs.

use std::io;
use std::path::Path;

use anyhow::Result;
use futures::FutureExt;
use futures::future::BoxFuture;
use maille_apiserver::{ExecCommand, PodStreams, Running, StartError, TerminalSize};
use maille_standalone::exec::{self, ExecError, Execution, Streams};
use tokio::net::TcpStream;

/// The running containers of this machine's mesh.
#[derive(Debug)]
pub(crate) struct Containers(exec::Containers);

impl Containers {
    /// Those of the mesh with this data directory.
    pub(crate) fn open(data_dir: &Path) -> Result<Self> {
        Ok(Self(exec::Containers::open(data_dir)?))
    }
}

impl PodStreams for Containers {
    fn exec(&self, order: ExecCommand) -> BoxFuture<'static, Result<Running, StartError>> {
        let containers = self.0.clone();
        async move {
            let ExecCommand { pod_uid, container, command, stdin, tty } = order;
            match containers.exec(&pod_uid, &container, command, stdin, tty).await {
                Ok(execution) => Ok(running(execution, stdin)),
                Err(ExecError::NotRunning) => Err(StartError::NotRunning(container)),
                Err(ExecError::Refused { message, code }) => Err(StartError::Command { message, code }),
                Err(error @ ExecError::Failed(_)) => Err(StartError::Failed(error.to_string())),
            }
        }
        .boxed()
    }

    fn dial(&self, pod_uid: String, port: u16) -> BoxFuture<'static, io::Result<TcpStream>> {
        let containers = self.0.clone();
        async move { containers.dial(&pod_uid, port).await }.boxed()
    }
}

fn running(execution: Execution, input: bool) -> Running {
    let ended = execution.command.wait().boxed();
    match execution.streams {
        Streams::Pipes { stdin, stdout, stderr } => Running {
            stdin: stdin.map(|stdin| Box::new(stdin) as _),
            stdout: Box::new(stdout),
            stderr: Some(Box::new(stderr)),
            resize: None,
            ended,
        },
        Streams::Terminal(terminal) => {
            let sized = terminal.clone();
            Running {
                stdin: input.then(|| Box::new(terminal.clone()) as _),
                stdout: Box::new(terminal),
                stderr: None,
                resize: Some(Box::new(move |size: TerminalSize| sized.resize(size.width, size.height))),
                ended,
            }
        }
    }
}
