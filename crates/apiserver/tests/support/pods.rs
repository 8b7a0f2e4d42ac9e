//! Pods that are processes of this machine, in place of a mesh's.

use std::io;
use std::process::Stdio;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use maille_apiserver::{ExecCommand, PodStreams, Running, StartError};
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::support::Server;

/// Runs commands on this machine, without terminals, and connects to its loopback.
#[derive(Debug)]
pub(crate) struct LocalPods;

impl PodStreams for LocalPods {
    fn exec(&self, order: ExecCommand) -> BoxFuture<'static, Result<Running, StartError>> {
        async move {
            if order.container == "b" {
                return Err(StartError::NotRunning(order.container));
            }
            let (program, arguments) = order.command.split_first().expect("a command");
            let mut child = Command::new(program)
                .args(arguments)
                .env("CONTAINER", &order.container)
                .stdin(if order.stdin { Stdio::piped() } else { Stdio::null() })
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .kill_on_drop(true)
                .spawn()
                .map_err(|error| StartError::Command { message: format!("{program}: {error}"), code: 127 })?;
            Ok(Running {
                stdin: child.stdin.take().map(|stdin| Box::new(stdin) as _),
                stdout: Box::new(child.stdout.take().expect("piped")),
                stderr: child.stderr.take().map(|stderr| Box::new(stderr) as _),
                resize: None,
                ended: async move { child.wait().await.expect("waited").code().unwrap_or(137) }.boxed(),
            })
        }
        .boxed()
    }

    fn dial(&self, _pod_uid: String, port: u16) -> BoxFuture<'static, io::Result<TcpStream>> {
        TcpStream::connect(("127.0.0.1", port)).boxed()
    }
}

/// An API whose Pod `default/one` runs, with the containers `a` and `b`, of which `b` has ended.
pub(crate) fn server() -> Server {
    let server = Server::start_with(|options| options.pods = Some(Arc::new(LocalPods)));
    for (pod, containers) in
        [("one", "{name: a, image: x}, {name: b, image: x}"), ("waiting", "{name: a, image: x}")]
    {
        server.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {pod}, namespace: default}}, spec: {{containers: [{containers}]}}}}"
        ));
    }
    let status = r#"{"status":{"phase":"Running","podIP":"127.0.0.1","containerStatuses":[{"name":"a","ready":true,"restartCount":0,"image":"x","imageID":"","state":{"running":{}}}]}}"#;
    server.kubectl(&["patch", "pod", "one", "--subresource=status", "--type=merge", "-p", status]);
    server
}
