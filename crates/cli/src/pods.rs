//! What the standalone mesh lends its API: streams into the Pods that it runs.

use std::io;
use std::path::Path;

use anyhow::Result;
use futures::FutureExt;
use futures::future::BoxFuture;
use maille_apiserver::{ExecCommand, PodStreams, Running, StartError};
use maille_standalone::exec;
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
    fn exec(&self, command: ExecCommand) -> BoxFuture<'static, Result<Running, StartError>> {
        async move { Err(StartError::NotRunning(command.container)) }.boxed()
    }

    fn dial(&self, pod_uid: String, port: u16) -> BoxFuture<'static, io::Result<TcpStream>> {
        let containers = self.0.clone();
        async move { containers.dial(&pod_uid, port).await }.boxed()
    }
}
